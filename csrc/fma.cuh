// A product whose weights stay on the chip for a whole sequence, by fused multiply-adds, for float32.
//
//   out[row][g][u] = sum over k of seen[row][k] * w(g, u, k)      ROWS rows, UNITS units, GATES gates, K terms
//
// Before this file stand `constexpr int UNITS, ROWS, SLICES, THREADS`. SLICES neighbouring threads share a unit: each has
// one slice of the terms, for all gates and rows. Of its weights the first QUADS times four terms stay in registers, the
// others in shared memory, at a place of its own. Rows are taken up to 8 at a time. Then the threads exchange sums, so
// that each ends with `each_time` of these rows; those that end with the same ones keep those of different times. A sum
// is taken in the same order whatever ROWS is, so a row's result does not depend on the batch.
#pragma once
#include "loop.cuh"

using Seen = A;  // what the product sees of the state
constexpr bool STAGED = true;  // all units read the same terms

struct alignas(16) Vector { A at[4]; };

constexpr int together = ROWS < 8 ? ROWS : 8, times = ROWS / together;       // rows at a time
constexpr int each_time = together > SLICES ? together / SLICES : 1;          // sums that a thread ends with, a gate
constexpr int sharers = together > SLICES ? 1 : SLICES / together;           // threads that end with the same sums
constexpr int kept_times = (times + sharers - 1) / sharers, own = each_time * kept_times;
static_assert(UNITS * SLICES <= THREADS && THREADS % 32 == 0 && 32 % SLICES == 0, "a unit's slices are in one warp");
static_assert(times * together == ROWS, "as many rows each time");

__device__ __forceinline__ int slice() { return threadIdx.x % SLICES; }
__device__ __forceinline__ int unit_of(int) { return threadIdx.x / SLICES; }
__device__ __forceinline__ int time_of(int j) { return j / each_time * sharers + slice() % sharers; }
__device__ __forceinline__ int row_of(int j) { return time_of(j) * together + slice() / sharers * each_time + j % each_time; }
__device__ __forceinline__ bool acts(int j) { return threadIdx.x < UNITS * SLICES && time_of(j) < times; }

template <int GATES, int K, int QUADS> struct Product {
  static_assert(K % (4 * SLICES) == 0, "slices are made of quads");
  static constexpr int each = K / SLICES, quads = each / 4, kept = QUADS < quads ? QUADS : quads;
  // Slices are read at once, each by its threads: an odd number of quads apart they stand in different banks.
  static constexpr int stride = each % 8 ? each : each + 4, row = SLICES * stride;
  static constexpr int seen = ROWS * row;                            // elements
  static constexpr int vectors = quads * GATES, in_shared = (quads - kept) * GATES, scratch = 0;  // of a thread's weights

  Vector held[kept ? kept * GATES : 1];
  const Vector* shared;

  static __device__ __forceinline__ int place(int r, int k) { return r * row + k / each * stride + k % each; }

  // One of a thread's vectors: quad v / GATES of gate v % GATES.
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    Vector out;
    for (int n = 0; n < 4; ++n) out.at[n] = w(v % GATES, unit_of(0), slice() * each + v / GATES * 4 + n);
    return out;
  }

  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory, A*) {
    shared = memory + threadIdx.x;
    // Unrolled as a compiler likes, the copy takes all registers and keeps others in memory.
    _Pragma("unroll 4") for (int v = kept * GATES; v < vectors; ++v)
      put(memory + (v - kept * GATES) * THREADS + threadIdx.x, fetch(from + v * THREADS + threadIdx.x));
    _Pragma("unroll") for (int v = 0; v < kept * GATES; ++v) held[v] = fetch(from + v * THREADS + threadIdx.x);
  }

  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    _Pragma("unroll 1") for (int time = 0; time < times; ++time) {  // unrolled, the code would grow with ROWS
      A sums[GATES][together];
      _Pragma("unroll") for (int g = 0; g < GATES; ++g)
        _Pragma("unroll") for (int r = 0; r < together; ++r) sums[g][r] = A(0);
      const Seen* mine = from + time * together * row + slice() * stride;
      _Pragma("unroll") for (int q = 0; q < kept; ++q) add(mine + 4 * q, held + q * GATES, sums);
      _Pragma("unroll 1") for (int q = kept; q < quads; ++q) {
        Vector w[GATES];
        _Pragma("unroll") for (int g = 0; g < GATES; ++g) w[g] = fetch(shared + ((q - kept) * GATES + g) * THREADS);
        add(mine + 4 * q, w, sums);
      }
      gather<SLICES / 2, together>(sums);
      _Pragma("unroll") for (int j = 0; j < own; ++j)
        if (times == 1 || time_of(j) == time)
          _Pragma("unroll") for (int g = 0; g < GATES; ++g) out[j][g] = sums[g][j % each_time];
    }
  }

 private:
  static __device__ __forceinline__ void add(const Seen* quad, const Vector* w, A (&sums)[GATES][together]) {
    _Pragma("unroll") for (int r = 0; r < together; ++r) {
      A h[4];
      load<4>(quad + r * row, h);
      _Pragma("unroll") for (int g = 0; g < GATES; ++g)
        _Pragma("unroll") for (int n = 0; n < 4; ++n) sums[g][r] = fma(w[g].at[n], h[n], sums[g][r]);
    }
  }

  // Threads whose numbers differ in one bit add their sums, the highest bit first; as long as there are several rows
  // each of the two ends with half of them.
  template <int bit, int rows> static __device__ __forceinline__ void gather(A (&sums)[GATES][together]) {
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
