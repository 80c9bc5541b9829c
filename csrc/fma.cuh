// A product whose weights stay on the chip for a whole sequence, by fused multiply-adds, for float32.
//
//   out[row][g][u] = sum over k of seen[row][k] * w(g, u, k)      ROWS rows, UNITS units, GATES gates, K terms
//
// Before this file stand `constexpr int UNITS, ROWS, SLICES, THREADS`. SLICES neighbouring threads share a unit: each has
// one slice of the terms, for all gates and rows. Of its weights the first QUADS times four terms stay in registers, the
// others in shared memory, at a place of its own. Then the threads exchange sums, so that each ends with `own` rows, or
// with none. A sum is taken in the same order whatever ROWS is, so a row's result does not depend on the batch.
#pragma once
#include "loop.cuh"

using Seen = A;  // what the product sees of the state

struct alignas(16) Vector { A at[4]; };

constexpr int own = ROWS > SLICES ? ROWS / SLICES : 1;         // sums that a thread ends with, a gate
constexpr int sharers = ROWS > SLICES ? 1 : SLICES / ROWS;     // threads that end with the same sums; the first acts
static_assert(UNITS * SLICES <= THREADS && THREADS % 32 == 0 && 32 % SLICES == 0, "a unit's slices are in one warp");

__device__ __forceinline__ int slice() { return threadIdx.x % SLICES; }
__device__ __forceinline__ int unit_of(int) { return threadIdx.x / SLICES; }
__device__ __forceinline__ int row_of(int j) { return slice() / sharers * own + j; }
__device__ __forceinline__ bool acts() { return threadIdx.x < UNITS * SLICES && slice() % sharers == 0; }

template <int GATES, int K, int QUADS> struct Product {
  static_assert(K % (4 * SLICES) == 0, "slices are made of quads");
  static constexpr int each = K / SLICES, quads = each / 4, kept = QUADS < quads ? QUADS : quads;
  // Slices are read at once, each by its threads: an odd number of quads apart they stand in different banks.
  static constexpr int stride = each % 8 ? each : each + 4, row = SLICES * stride;
  static constexpr int seen = ROWS * row;                            // elements
  static constexpr int vectors = quads * GATES, in_shared = (quads - kept) * GATES;  // of a thread's weights

  Vector held[kept ? kept * GATES : 1];
  const Vector* shared;

  static __device__ __forceinline__ int place(int r, int k) { return r * row + k / each * stride + k % each; }

  // One of a thread's vectors: quad v / GATES of gate v % GATES.
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    Vector out;
    for (int n = 0; n < 4; ++n) out.at[n] = w(v % GATES, unit_of(0), slice() * each + v / GATES * 4 + n);
    return out;
  }

  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory) {
    shared = memory + threadIdx.x;
    _Pragma("unroll") for (int v = 0; v < kept * GATES; ++v) held[v] = fetch(from + v * THREADS + threadIdx.x);
    for (int v = kept * GATES; v < vectors; ++v)
      put(memory + (v - kept * GATES) * THREADS + threadIdx.x, fetch(from + v * THREADS + threadIdx.x));
  }

  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    A sums[GATES][ROWS];
    _Pragma("unroll") for (int g = 0; g < GATES; ++g)
      _Pragma("unroll") for (int r = 0; r < ROWS; ++r) sums[g][r] = A(0);
    const Seen* mine = from + slice() * stride;
    _Pragma("unroll") for (int q = 0; q < kept; ++q) add(mine + 4 * q, held + q * GATES, sums);
    _Pragma("unroll 2") for (int q = kept; q < quads; ++q) {
      Vector w[GATES];
      _Pragma("unroll") for (int g = 0; g < GATES; ++g) w[g] = fetch(shared + ((q - kept) * GATES + g) * THREADS);
      add(mine + 4 * q, w, sums);
    }
    gather<SLICES / 2, ROWS>(sums);
    _Pragma("unroll") for (int j = 0; j < own; ++j)
      _Pragma("unroll") for (int g = 0; g < GATES; ++g) out[j][g] = sums[g][j];
  }

 private:
  static __device__ __forceinline__ void add(const Seen* quad, const Vector* w, A (&sums)[GATES][ROWS]) {
    _Pragma("unroll") for (int r = 0; r < ROWS; ++r) {
      A h[4];
      load<4>(quad + r * row, h);
      _Pragma("unroll") for (int g = 0; g < GATES; ++g)
        _Pragma("unroll") for (int n = 0; n < 4; ++n) sums[g][r] = fma(w[g].at[n], h[n], sums[g][r]);
    }
  }

  // Threads whose numbers differ in one bit add their sums, the highest bit first; as long as there are several rows
  // each of the two ends with half of them.
  template <int bit, int rows> static __device__ __forceinline__ void gather(A (&sums)[GATES][ROWS]) {
    if constexpr (bit > 0) {
      constexpr int left = rows > 1 ? rows / 2 : 1;
      const bool upper = rows > 1 && (slice() & bit);
      _Pragma("unroll") for (int g = 0; g < GATES; ++g)
        _Pragma("unroll") for (int r = 0; r < left; ++r) {
          const A low = sums[g][r], high = sums[g][rows - left + r];
          sums[g][r] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
        }
      gather<bit / 2, left>(sums);
    }
  }
};
