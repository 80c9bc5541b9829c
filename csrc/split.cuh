// The same product as in mma.cuh for a block of few units and many terms: warps share the terms, not the units.
//
// Before this file stand `constexpr int UNITS, ROWS, THREADS`, ROWS a multiple of 8. A warp has all gates of all units for
// its part of the terms, which serve 8 rows after 8 rows. No two warps read the same of what the product sees, so it is
// read from where it stands, in whole vectors. What each warp has for a unit and a row goes through shared memory to the
// thread that owns the pair, which adds it in the order of the warps: a row's result does not depend on ROWS.
#pragma once
#include "fragments.cuh"

constexpr bool STAGED = false;
constexpr int groups = UNITS / 16, pairs_owned = UNITS * ROWS, own = (pairs_owned + THREADS - 1) / THREADS;
static_assert(groups * 16 == UNITS && ROWS % 8 == 0, "tiles are whole");

__device__ __forceinline__ int unit_of(int j) { return (j * THREADS + threadIdx.x) % UNITS; }
__device__ __forceinline__ int row_of(int j) { return (j * THREADS + threadIdx.x) / UNITS; }
__device__ __forceinline__ bool acts(int j) { return j * THREADS + threadIdx.x < pairs_owned; }

template <int GATES, int K, int FRAGMENTS> struct Product {
  static_assert(K % (32 * WARPS) == 0, "warps have as many terms each");
  static constexpr int pairs = K / 32 / WARPS, row = K, seen = ROWS * row;  // elements
  using Weights = Fragments<GATES, groups, pairs, FRAGMENTS>;
  static constexpr int vectors = Weights::vectors, in_shared = Weights::in_shared;
  // A row of sums has 4 more than units: two rows apart, which a warp writes at once, they stand in different banks.
  static constexpr int width = UNITS + 4, of_warp = GATES * ROWS * width, scratch = WARPS * of_warp * sizeof(A);

  Weights weights;
  A* sums_of_warps;  // [WARPS, GATES, ROWS, width]

  static __device__ __forceinline__ int place(int r, int k) { return r * row + k; }
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    return Weights::vector(w, v, 0, warp() * pairs);
  }
  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory, A* scratch_memory) {
    weights.load(from, memory), sums_of_warps = scratch_memory;
  }

  // A barrier of the block must lie between two calls, after the sums of the first are there.
  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    const Vector* mine = reinterpret_cast<const Vector*>(from + place(lane() / 4, warp() * pairs * 32 + lane() % 4 * 8));
    A* written = sums_of_warps + warp() * of_warp + lane() % 4 * 2 * width + lane() / 4;
    _Pragma("unroll 1") for (int r = 0; r < ROWS; r += 8) {
      A sums[Weights::tiles][4];
      weights.multiply(mine + r * row / 8, sums);
      _Pragma("unroll") for (int n = 0; n < Weights::tiles; ++n)
        _Pragma("unroll") for (int k = 0; k < 4; ++k)
          put(written + (n % GATES * ROWS + r + k % 2) * width + n / GATES * 16 + k / 2 * 8, sums[n][k]);
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
};
