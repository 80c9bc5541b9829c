// The same product as in mma.cuh for a block of few units and many terms: warps share the terms, not the units.
//
// Before this file stand `constexpr int UNITS, ROWS, THREADS`, ROWS a multiple of 8. A warp has all gates of all units for
// its part of the terms, as fragments of two mma.m16n8k16 (16 units of a gate, 32 terms), which serve 8 rows after 8 rows.
// No two warps read the same of what the product sees, so it is read from where it stands, in whole vectors. What each
// warp has for a unit and a row goes through shared memory to the thread that owns the pair, which adds it in the order
// of the warps: a row's result does not depend on ROWS.
#pragma once
#include "loop.cuh"

using Seen = S;
constexpr bool STAGED = false;

struct alignas(16) Vector { unsigned at[4]; };

constexpr int WARPS = THREADS / 32, groups = UNITS / 16, pairs_owned = UNITS * ROWS, own = (pairs_owned + THREADS - 1) / THREADS;
static_assert(groups * 16 == UNITS && ROWS % 8 == 0, "tiles are whole");

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int unit_of(int j) { return (j * THREADS + threadIdx.x) % UNITS; }
__device__ __forceinline__ int row_of(int j) { return (j * THREADS + threadIdx.x) / UNITS; }
__device__ __forceinline__ bool acts(int j) { return j * THREADS + threadIdx.x < pairs_owned; }

template <int GATES, int K, int FRAGMENTS> struct Product {
  static_assert(K % (32 * WARPS) == 0, "warps have as many terms each");
  static constexpr int pairs = K / 32 / WARPS, tiles = groups * GATES, fragments = pairs * tiles;
  static constexpr int kept = FRAGMENTS < fragments ? FRAGMENTS : fragments;
  static constexpr int row = K, seen = ROWS * row;  // elements
  static constexpr int vectors = fragments * 2, in_shared = (fragments - kept) * 2;  // of a thread's weights
  // Products that follow each other wait for no sum of the one before.
  static constexpr int chains = tiles >= 4 ? 1 : tiles >= 2 ? 2 : 4;
  // As in mma.cuh.
  static constexpr int step = 2, unrolled = (kept + tiles * step - 1) / (tiles * step) * step;
  static constexpr int rolled = unrolled < pairs ? unrolled : pairs;
  // A row of sums has 4 more than units: two rows apart, which a warp writes at once, they stand in different banks.
  static constexpr int width = UNITS + 4, of_warp = GATES * ROWS * width, scratch = WARPS * of_warp * sizeof(A);

  Vector held[kept ? kept * 2 : 1];
  const Vector* shared;
  A* sums_of_warps;  // [WARPS, GATES, ROWS, width]

  static __device__ __forceinline__ int place(int r, int k) { return r * row + k; }

  // One of a thread's vectors: half of fragment f, of pair f / tiles, group f % tiles / GATES, gate f % GATES; words as in
  // mma.cuh.
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    const int f = v / 2;
    Vector out;
    for (int k = 0; k < 4; ++k) {
      const int u = f % tiles / GATES * 16 + lane() / 4 + k % 2 * 8;
      const int term = (threadIdx.x / 32 * pairs + f / tiles) * 32 + lane() % 4 * 8 + v % 2 * 4 + k / 2 * 2;
      const S low = w(f % GATES, u, term), high = w(f % GATES, u, term + 1);
      out.at[k] = low.bits | static_cast<unsigned>(high.bits) << 16;
    }
    return out;
  }

  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory, A* scratch_memory) {
    shared = memory + threadIdx.x, sums_of_warps = scratch_memory;
    // As in fma.cuh.
    _Pragma("unroll 4") for (int v = 2 * kept; v < vectors; ++v)
      put(memory + (v - 2 * kept) * THREADS + threadIdx.x, fetch(from + v * THREADS + threadIdx.x));
    _Pragma("unroll") for (int v = 0; v < 2 * kept; ++v) held[v] = fetch(from + v * THREADS + threadIdx.x);
  }

  // A barrier of the block must lie between two calls, after the sums of the first are there.
  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    const Vector* mine =
        reinterpret_cast<const Vector*>(from + place(lane() / 4, threadIdx.x / 32 * pairs * 32 + lane() % 4 * 8));
    A* written = sums_of_warps + threadIdx.x / 32 * of_warp + lane() % 4 * 2 * width + lane() / 4;
    _Pragma("unroll 1") for (int r = 0; r < ROWS; r += 8) {
      A sums[chains][tiles][4];
      _Pragma("unroll") for (int c = 0; c < chains; ++c)
        _Pragma("unroll") for (int n = 0; n < tiles; ++n) fill(sums[c][n], A(0));
      const Vector* rows = mine + r * row / 8;
      _Pragma("unroll") for (int p = 0; p < rolled; ++p) add<true>(fetch(rows + p * 4), p, p, sums);
      _Pragma("unroll 1") for (int p = rolled; p < pairs; p += step)
        _Pragma("unroll") for (int k = 0; k < step; ++k)
          if (p + k < pairs) add<false>(fetch(rows + (p + k) * 4), p + k, k, sums);
      _Pragma("unroll") for (int n = 0; n < tiles; ++n)
        _Pragma("unroll") for (int k = 0; k < 4; ++k) {
          A sum = sums[0][n][k];
          _Pragma("unroll") for (int c = 1; c < chains; ++c) sum += sums[c][n][k];
          put(written + (n % GATES * ROWS + r + k % 2) * width + n / GATES * 16 + k / 2 * 8, sum);
        }
    }
    __syncthreads();  // all warps' sums are there
    _Pragma("unroll") for (int j = 0; j < own; ++j)
      if (acts(j))
        _Pragma("unroll") for (int g = 0; g < GATES; ++g) {
          const A* sums = sums_of_warps + (g * ROWS + row_of(j)) * width + unit_of(j);
          out[j][g] = fetch(sums);
          _Pragma("unroll") for (int w = 1; w < WARPS; ++w) out[j][g] += fetch(sums + w * of_warp);
        }
  }

 private:
  // As in mma.cuh.
  template <bool some_held>
  __device__ __forceinline__ void add(const Vector& h, int p, int like, A (&sums)[chains][tiles][4]) const {
    _Pragma("unroll") for (int half = 0; half < 2; ++half) {
      const unsigned b[2] = {h.at[half * 2], h.at[half * 2 + 1]};
      _Pragma("unroll") for (int n = 0; n < tiles; ++n) {
        const int v = (p * tiles + n) * 2 + half;
        const bool in_registers = some_held && v < 2 * kept;
        const Vector a = in_registers ? held[in_registers ? v : 0] : fetch(shared + (v - 2 * kept) * THREADS);
        mma<S>(sums[(like * 2 + half) % chains][n], a.at, b);
      }
    }
  }
};
