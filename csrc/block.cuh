// One block has all units of its rows of the batch: what a product sees stands in the block's shared memory.
//
// Before this file stand a product and `constexpr int ALL_UNITS`, here UNITS. A barrier of the block is cheap, so nothing
// is put off until after it (`apart`).
#pragma once
#include "loop.cuh"

static_assert(ALL_UNITS == UNITS, "a block has all units");
constexpr bool apart = false;

struct Group {
  __device__ __forceinline__ Group(Seen*, unsigned*, int64) {}
  __device__ __forceinline__ int first_row() const { return blockIdx.x * ROWS; }
  __device__ __forceinline__ int slice() const { return 0; }  // which of the units
};

// What product P sees, in `places` places that are used in turn; all zeros at first. What is put there may be read after
// `arrive`, then `wait`.
template <class P, int places> struct Shown {
  static constexpr int bytes = places * P::seen * sizeof(Seen), exchanged = 0;
  Seen* memory;

  __device__ __forceinline__ Shown(const Group&, int byte, int, int, int) : memory(at_byte<Seen>(byte)) {
    for (int k = threadIdx.x; k < places * P::seen; k += THREADS) put(memory + k, rounded<Seen>(A(0)));
  }
  __device__ __forceinline__ void show(int place, int row, int k, Seen value) const {
    put(memory + place * P::seen + P::place(row, k), value);
  }
  __device__ __forceinline__ void arrive() const {}
  __device__ __forceinline__ void wait(int) const { __syncthreads(); }
  __device__ __forceinline__ const Seen* at(int place) const { return memory + place * P::seen; }
};
