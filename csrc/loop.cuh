// What every plan's loop over time says of a row of the batch and of a step.
//
// Before this file stand `using Cell = Lstm; using S = float;`, S the type of the arrays, and `constexpr int THREADS`,
// the most threads of a block. A is what is computed in.
#pragma once
#include "memory.cuh"

using A = Registers<S>::type;

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)

static_assert(!(Cell::gated && Cell::separate), "the last gate of a gated cell has no ah of its own");
constexpr int inner = Cell::gated ? Cell::gates - 1 : Cell::gates;  // gates of the first product

// A place in the block's shared memory.
template <class T> __device__ __forceinline__ T* at_byte(int byte) {
  return reinterpret_cast<T*>(static_cast<char*>(shared_memory()) + byte);
}

template <class T> __device__ __forceinline__ T rounded(A value) {
  T stored;
  narrow(value, stored);
  return stored;
}

__device__ __forceinline__ bool exists(const int64* lengths, int64 b, int64 t) { return !lengths || t < fetch(lengths + b); }
__device__ __forceinline__ bool is_set(const bool* flags, int64 b) { return flags && fetch(flags + b); }

template <int N> __device__ __forceinline__ void fill(A (&values)[N], A value) {
  for (int k = 0; k < N; ++k) values[k] = value;
}
