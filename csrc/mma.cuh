// The same product as in fma.cuh by the tensor cores, for float16 and bfloat16; sums in float32.
//
// Before this file stand `constexpr int UNITS, THREADS`. A warp owns `groups` times 16 units with all their gates, and
// all 8 rows. Weights are loaded once, as fragments of two mma.m16n8k16: a gate of 16 units, 32 terms. The first
// FRAGMENTS of them stay in registers, the others in shared memory. A thread ends with all gates of the same units and
// rows: of units l / 4 and l / 4 + 8 of each group, rows l % 4 * 2 and the next, l its lane.
//
// Which term stands where in a fragment is free as long as both sides agree: a lane takes eight neighbouring terms of
// a row for two fragments, one load of 16 bytes.
#pragma once
#include "loop.cuh"

using Seen = S;

struct alignas(16) Vector { unsigned at[4]; };

constexpr int ROWS = 8, WARPS = THREADS / 32, groups = UNITS / 16 / WARPS, own = 4 * groups;
static_assert(groups * 16 * WARPS == UNITS, "warps own whole groups");

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int unit_of(int j) {
  return (threadIdx.x / 32 * groups + j / 4) * 16 + j % 4 / 2 * 8 + lane() / 4;
}
__device__ __forceinline__ int row_of(int j) { return lane() % 4 * 2 + j % 2; }
__device__ __forceinline__ bool acts(int) { return true; }

template <int GATES, int K, int FRAGMENTS> struct Product {
  static constexpr int padded = (K + 31) / 32 * 32, pairs = padded / 32, tiles = groups * GATES, fragments = pairs * tiles;
  static constexpr int kept = FRAGMENTS < fragments ? FRAGMENTS : fragments;
  // Eight lanes read 64 bytes of each of two rows at once, which must stand in different banks, and a warp writes 16 bytes
  // of each of four rows, every other one: so each second row begins 16 bytes further on.
  static constexpr int row = padded % 64 ? padded : padded + 32;
  static constexpr int seen = ROWS * row + (ROWS / 2 - 1) * 8;
  static constexpr int vectors = fragments * 2, in_shared = (fragments - kept) * 2, scratch = 0;  // of a thread's weights
  // Products that follow each other wait for no sum of the one before.
  static constexpr int chains = tiles >= 4 ? 1 : tiles >= 2 ? 2 : 4;
  // From `rolled` on all fragments come from shared memory, `step` pairs at a time, which meet each chain equally often.
  static constexpr int step = 2, unrolled = (kept + tiles * step - 1) / (tiles * step) * step;
  static constexpr int rolled = unrolled < pairs ? unrolled : pairs;

  Vector held[kept ? kept * 2 : 1];
  const Vector* shared;

  static __device__ __forceinline__ int place(int r, int k) { return r * row + r / 2 * 8 + k; }

  // One of a thread's vectors: half of fragment f, of pair f / GATES / groups, group f / GATES % groups, gate f % GATES.
  // Words 0 and 2 are of the first unit, terms 0, 1 and 2, 3 of this half of the lane's eight; 1 and 3 of the second.
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v) {
    const int f = v / 2;
    Vector out;
    for (int k = 0; k < 4; ++k) {
      const int u = unit_of(4 * (f / GATES % groups) + k % 2 * 2);
      const int term = f / GATES / groups * 32 + lane() % 4 * 8 + v % 2 * 4 + k / 2 * 2;
      const S low = w(f % GATES, u, term), high = w(f % GATES, u, term + 1);
      out.at[k] = low.bits | static_cast<unsigned>(high.bits) << 16;
    }
    return out;
  }

  __device__ __forceinline__ void load_weights(const Vector* from, Vector* memory, A*) {
    shared = memory + threadIdx.x;
    // As in fma.cuh.
    _Pragma("unroll 4") for (int v = 2 * kept; v < vectors; ++v)
      put(memory + (v - 2 * kept) * THREADS + threadIdx.x, fetch(from + v * THREADS + threadIdx.x));
    _Pragma("unroll") for (int v = 0; v < 2 * kept; ++v) held[v] = fetch(from + v * THREADS + threadIdx.x);
  }

  __device__ __forceinline__ void multiply(const Seen* from, A (&out)[own][GATES]) const {
    A sums[chains][tiles][4];
    _Pragma("unroll") for (int c = 0; c < chains; ++c)
      _Pragma("unroll") for (int n = 0; n < tiles; ++n) fill(sums[c][n], A(0));
    const Vector* mine = reinterpret_cast<const Vector*>(from + place(lane() / 4, lane() % 4 * 8));
    _Pragma("unroll") for (int p = 0; p < rolled; ++p) add<true>(fetch(mine + p * 4), p, p, sums);
    _Pragma("unroll 1") for (int p = rolled; p < pairs; p += step)  // else loads of many fragments take the registers
      _Pragma("unroll") for (int k = 0; k < step; ++k)
        if (p + k < pairs) add<false>(fetch(mine + (p + k) * 4), p + k, k, sums);
    _Pragma("unroll") for (int j = 0; j < own; ++j)
      _Pragma("unroll") for (int g = 0; g < GATES; ++g) {
        const int n = j / 4 * GATES + g;
        out[j][g] = sums[0][n][j % 4];
        _Pragma("unroll") for (int c = 1; c < chains; ++c) out[j][g] += sums[c][n][j % 4];
      }
  }

 private:
  // Pair p, which meets the chains as pair `like` does; `some_held`: whether some of its fragments may be in registers.
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
