// Layer normalisation of rows; fastrnn/normalisation.py is the specification.
//
//   mean = sum(a) / n      scale = 1 / sqrt(sum((a - mean)^2) / n + epsilon)      hat = (a - mean) * scale
//
// A whole block has one row at a time, of some gates of H units each, and reads it twice for the two sums. Only mean and
// scale are kept: whoever needs hat reads the product again, which costs no more than hat would and is not rounded to S.
// A thread sums single units, blockDim.x apart, whatever W is, so that every width has the same sums.
//
// step.cuh includes this in its middle: A, W, epsilon and FOR_EACH_UNIT are known here.
#pragma once
#include "memory.cuh"

struct Moments { A mean, scale; };

constexpr int OF_H = 0, OF_LAST = 1, OF_C = 2, ROWS = 3;  // what has moments [B, ROWS, 2]: h U, of a gated cell without
                                                          // its last gate, which has its own; and c

__device__ __forceinline__ Moments fetch_moments(const A* at) { return {fetch(at), fetch(at + 1)}; }

__device__ __forceinline__ void keep_moments(A* at, const Moments& m) {
  if (threadIdx.x == 0) put(at, m.mean), put(at + 1, m.scale);
}

// Each sum over the block of every thread's part, the same in all threads: lanes in pairs, then warps in order. The
// block is whole warps, and all of it comes here.
template <int N> __device__ __forceinline__ void block_sums(A (&parts)[N]) {
  A* of_warps = static_cast<A*>(shared_memory());
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int bits = 16; bits > 0; bits /= 2)
    for (int n = 0; n < N; ++n) parts[n] += __shfl_xor_sync(0xffffffffu, parts[n], bits);
  __syncthreads();  // the sums before these have been read
  if (threadIdx.x % 32 == 0)
    for (int n = 0; n < N; ++n) put(of_warps + warp * N + n, parts[n]);
  __syncthreads();  // these are written
  for (int n = 0; n < N; ++n) parts[n] = A(0);
  _Pragma("unroll 1") for (int k = 0; k < warps; ++k)
    for (int n = 0; n < N; ++n) parts[n] += fetch(of_warps + k * N + n);
}

// Of gates first to last - 1, gate g at row(g).
template <class Row> __device__ __forceinline__ Moments moments(Row row, int first, int last, int64 H) {
  const A count = static_cast<A>((last - first) * H);
  A sum[1] = {A(0)}, squares[1] = {A(0)};
  _Pragma("unroll 1") for (int g = first; g < last; ++g)
    _Pragma("unroll 4") for (int64 u = threadIdx.x; u < H; u += blockDim.x) sum[0] += widen(fetch(row(g) + u));
  block_sums(sum);
  const A mean = sum[0] / count;
  _Pragma("unroll 1") for (int g = first; g < last; ++g)
    _Pragma("unroll 4") for (int64 u = threadIdx.x; u < H; u += blockDim.x) {
      const A centred = widen(fetch(row(g) + u)) - mean;
      squares[0] += centred * centred;
    }
  block_sums(squares);
  return {mean, A(1) / sqrt(squares[0] / count + A(epsilon))};
}

__device__ __forceinline__ A hat(A a, const Moments& m) { return (a - m.mean) * m.scale; }

// What stands in the place of a product: hat * gain.
__device__ __forceinline__ void normalise(A (&a)[W], const Moments& m, const A* gain) {
  A factor[W];
  load<W>(gain, factor);
  for (int k = 0; k < W; ++k) a[k] = hat(a[k], m) * factor[k];
}

struct Means { A d, along; };  // of d and of d * hat, d the gradient of hat

__device__ __forceinline__ A normalise_backward(A d, A a, const Moments& m, const Means& of_row) {
  return m.scale * (d - of_row.d - hat(a, m) * of_row.along);
}

// Gradients d_raw of the products raw of a row's gates first to last - 1, for those of what stands in their place, da;
// zero where there is none. da must be complete, and d_raw may be da.
template <class D, class R, class O>
__device__ __forceinline__ void before_gain(
    bool none, int first, int last, int64 H, const A* gain, const A* kept, D da, R raw, O d_raw) {
  const A count = static_cast<A>((last - first) * H);
  Moments m = {A(0), A(0)};
  Means of_row = {A(0), A(0)};
  if (!none) {
    A sums[2] = {A(0), A(0)};
    m = fetch_moments(kept);
    _Pragma("unroll 1") for (int g = first; g < last; ++g)
      _Pragma("unroll 4") for (int64 u = threadIdx.x; u < H; u += blockDim.x) {
        const A d = widen(fetch(da(g) + u)) * fetch(gain + g * H + u);
        sums[0] += d, sums[1] += d * hat(widen(fetch(raw(g) + u)), m);
      }
    block_sums(sums);
    of_row = {sums[0] / count, sums[1] / count};
  }
  _Pragma("unroll 1") for (int g = first; g < last; ++g) FOR_EACH_UNIT(u, H) {
    A d[W], a[W], factor[W];
    for (int k = 0; k < W; ++k) d[k] = A(0);
    if (!none) {
      load<W>(da(g) + u, d), load<W>(raw(g) + u, a), load<W>(gain + g * H + u, factor);
      for (int k = 0; k < W; ++k) d[k] = normalise_backward(d[k] * factor[k], a[k], m, of_row);
    }
    store<W>(d_raw(g) + u, d);
  }
}
