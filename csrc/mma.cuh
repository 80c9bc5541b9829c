// The same product as in fma.cuh by the tensor cores (fragments.cuh), for a block that has all units: warps share them.
//
// Before this file stand `constexpr int UNITS, THREADS`. A warp owns `groups` times 16 units with all their gates, and
// all 8 rows. A thread ends with all gates of the same units and rows: of units l / 4 and l / 4 + 8 of each group, rows
// l % 4 * 2 and the next, l its lane.
#pragma once
#include "fragments.cuh"

constexpr int ROWS = 8, groups = UNITS / 16 / WARPS, own = 4 * groups;
static_assert(groups * 16 * WARPS == UNITS, "warps own whole groups");

__device__ __forceinline__ int unit_of(int j) { return (warp() * groups + j / 4) * 16 + j % 4 / 2 * 8 + lane() / 4; }
__device__ __forceinline__ int row_of(int j) { return lane() % 4 * 2 + j % 2; }
__device__ __forceinline__ bool acts(int) { return true; }

template <int GATES, int K, int FRAGMENTS> struct Product {
  static constexpr int padded = (K + 31) / 32 * 32;
  using Weights = Fragments<GATES, groups, padded / 32, FRAGMENTS>;
  static constexpr int vectors = Weights::vectors, in_shared = Weights::in_shared, scratch = 0;
  // Eight lanes read 64 bytes of each of two rows at once, which must stand in different banks, and a warp writes 16 bytes
  // of each of four rows, every other one: so each second row begins 16 bytes further on.
  static constexpr int row = padded % 64 ? padded : padded + 32;
  static constexpr int seen = ROWS * row + (ROWS / 2 - 1) * 8;  // elements

  Weights weights;

  static __device__ __forceinline__ int place(int r, int k) { return r * row + r / 2 * 8 + k; }
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    return Weights::vector(w, v, warp() * groups * 16, 0);
  }
  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory, A*) { weights.load(from, memory); }

  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    A sums[Weights::tiles][4];
    weights.multiply(reinterpret_cast<const Vector*>(from + place(lane() / 4, lane() % 4 * 8)), sums);
    _Pragma("unroll") for (int j = 0; j < own; ++j)
      _Pragma("unroll") for (int g = 0; g < GATES; ++g) out[j][g] = sums[j / 4 * GATES + g][j % 4];
  }
};
