// Storage types against register types, and the only way to memory: `load` and `store` of W neighbouring elements.
//
// A float16 or bfloat16 array is computed on in float; float and double are computed on in themselves. W > 1 moves up
// to 16 bytes in one instruction, so the address must be a multiple of W * sizeof(S), or of 16 where that is more.
#pragma once
#include "intrinsics.cuh"

template <class S> struct Registers { using type = float; };
template <> struct Registers<double> { using type = double; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }

template <class S, int W> struct alignas(sizeof(S) * W < 16 ? sizeof(S) * W : 16) Pack { S at[W]; };

template <int W, class S, class A> __device__ __forceinline__ void load(const S* p, A (&values)[W]) {
  touch(p, sizeof(S) * W, false);
  const Pack<S, W> pack = *reinterpret_cast<const Pack<S, W>*>(p);
  for (int k = 0; k < W; ++k) values[k] = widen(pack.at[k]);
}

template <int W, class S, class A> __device__ __forceinline__ void store(S* p, const A (&values)[W]) {
  touch(p, sizeof(S) * W, true);
  Pack<S, W> pack;
  for (int k = 0; k < W; ++k) narrow(values[k], pack.at[k]);
  constexpr int at_once = 16 / sizeof(S);
  if constexpr (W % at_once == 0) {
    for (int k = 0; k < W; k += at_once) write_16(p + k, pack.at + k);
  } else {
    *reinterpret_cast<Pack<S, W>*>(p) = pack;
  }
}

// One element as it is: lengths and flags.
template <class T> __device__ __forceinline__ T fetch(const T* p) {
  touch(p, sizeof(T), false);
  return *p;
}
template <class T> __device__ __forceinline__ void put(T* p, T value) {
  touch(p, sizeof(T), true);
  *p = value;
}
