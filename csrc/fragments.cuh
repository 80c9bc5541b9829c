// Weights as fragments of the tensor cores' product, for float16 and bfloat16, sums in float32: what a warp has of them,
// and what it multiplies, whichever units and terms those are (mma.cuh, split.cuh).
//
// Before this file stands `constexpr int THREADS`. A fragment here is that of two mma.m16n8k16: a gate of 16 units, 32
// terms. Which term stands where in it is free as long as both sides agree: a lane takes eight neighbouring terms of a
// row for the two, one load of 16 bytes.
#pragma once
#include "loop.cuh"

using Seen = S;

struct alignas(16) Vector { unsigned at[4]; };

constexpr int WARPS = THREADS / 32;

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// All gates of GROUPS times 16 units, PAIRS times 32 terms; the first KEPT fragments stay in registers, the others in
// shared memory. Order: by pair, by group, by gate.
template <int GATES, int GROUPS, int PAIRS, int KEPT> struct Fragments {
  static constexpr int tiles = GROUPS * GATES, count = PAIRS * tiles, kept = KEPT < count ? KEPT : count;
  static constexpr int vectors = count * 2, in_shared = (count - kept) * 2;  // of a thread's weights
  // Products that follow each other wait for no sum of the one before.
  static constexpr int chains = tiles >= 4 ? 1 : tiles >= 2 ? 2 : 4;
  // From `rolled` on all fragments come from shared memory, `step` pairs at a time, which meet each chain equally often.
  static constexpr int step = 2, unrolled = (kept + tiles * step - 1) / (tiles * step) * step;
  static constexpr int rolled = unrolled < PAIRS ? unrolled : PAIRS;

  Vector held[kept ? kept * 2 : 1];
  const Vector* shared;

  // One of a thread's vectors, half of fragment v / 2, of a warp whose units and pairs begin here. Words 0 and 2 are of the
  // lane's first unit, terms 0, 1 and 2, 3 of this half of its eight; 1 and 3 of the second unit, 8 further on.
  template <class Weight> static __device__ __forceinline__ Vector vector(Weight w, int v, int first_unit, int first_pair) {
    const int f = v / 2;
    Vector out;
    for (int k = 0; k < 4; ++k) {
      const int u = first_unit + f % tiles / GATES * 16 + lane() / 4 + k % 2 * 8;
      const int term = (first_pair + f / tiles) * 32 + lane() % 4 * 8 + v % 2 * 4 + k / 2 * 2;
      const S low = w(f % GATES, u, term), high = w(f % GATES, u, term + 1);
      out.at[k] = low.bits | static_cast<unsigned>(high.bits) << 16;
    }
    return out;
  }

  __device__ __forceinline__ void load(const Vector* from, Vector* memory) {
    shared = memory + threadIdx.x;
    // As in fma.cuh.
    _Pragma("unroll 4") for (int v = 2 * kept; v < vectors; ++v)
      put(memory + (v - 2 * kept) * THREADS + threadIdx.x, fetch(from + v * THREADS + threadIdx.x));
    _Pragma("unroll") for (int v = 0; v < 2 * kept; ++v) held[v] = fetch(from + v * THREADS + threadIdx.x);
  }

  // Sums over the terms for 8 rows: of tile n, and of units l / 4, l / 4 + 8 and rows l % 4 * 2, and the next, l the lane:
  // first unit, both rows; second unit, both rows. `mine`: the lane's first eight terms of its row, l / 4.
  __device__ __forceinline__ void multiply(const Vector* mine, A (&out)[tiles][4]) const {
    A sums[chains][tiles][4];
    _Pragma("unroll") for (int c = 0; c < chains; ++c)
      _Pragma("unroll") for (int n = 0; n < tiles; ++n) fill(sums[c][n], A(0));
    _Pragma("unroll") for (int p = 0; p < rolled; ++p) add<true>(fetch(mine + p * 4), p, p, sums);
    _Pragma("unroll 1") for (int p = rolled; p < PAIRS; p += step)  // else loads of many fragments take the registers
      _Pragma("unroll") for (int k = 0; k < step; ++k)
        if (p + k < PAIRS) add<false>(fetch(mine + (p + k) * 4), p + k, k, sums);
    _Pragma("unroll") for (int n = 0; n < tiles; ++n)
      _Pragma("unroll") for (int k = 0; k < 4; ++k) {
        out[n][k] = sums[0][n][k];
        _Pragma("unroll") for (int c = 1; c < chains; ++c) out[n][k] += sums[c][n][k];
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
