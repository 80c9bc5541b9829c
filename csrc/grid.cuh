// Blocks share the units of their rows of the batch, each a slice with all its gates: what a product sees stands in global
// memory, the chip's second cache, and a barrier of the group of blocks lies between the steps. Groups, which have other
// rows, never wait for each other. The grid has a group's blocks along x, groups along y, and all must run at once.
//
// Before this file stand a product, `constexpr int ALL_UNITS` and `constexpr bool STAGED`: whether the product reads
// shared memory, where each block then copies what it sees, since several of its warps read the same.
#pragma once
#include "loop.cuh"

constexpr bool apart = true;  // the barrier is dear: before it only what others wait for is written
constexpr int LINE = 32;      // words that a flag has for itself

struct Group {
  Seen* exchange;
  unsigned* flags;
  int number;

  __device__ __forceinline__ Group(Seen* exchange, unsigned* flags, int64 first)
      : exchange(exchange), flags(flags), number(static_cast<int>(first) + blockIdx.y) {}
  __device__ __forceinline__ int first_row() const { return number * ROWS; }
  __device__ __forceinline__ int slice() const { return blockIdx.x; }
};

// As in block.cuh; the zeros at first are the launch's, as those of the flags.
template <class P, int places> struct Shown {
  static constexpr int exchanged = places * P::seen, bytes = STAGED && places ? P::seen * sizeof(Seen) : 0;
  static constexpr int each = 16 / sizeof(Seen);  // elements of a vector
  static_assert(P::seen % each == 0, "whole vectors are copied");
  Seen *memory, *copy;
  unsigned *flag, arrived = 0;

  // `which` of the `of` elements that the group exchanges, and of its two flags.
  __device__ __forceinline__ Shown(const Group& group, int byte, int which, int of, int begin)
      : memory(group.exchange + static_cast<int64>(group.number) * of + begin), copy(at_byte<Seen>(byte)),
        flag(group.flags + (group.number * 2 + which) * LINE) {}
  __device__ __forceinline__ void show(int place, int row, int k, Seen value) const {
    put(memory + place * P::seen + P::place(row, k), value);
  }
  __device__ __forceinline__ void arrive() const { group_arrive(flag); }
  __device__ __forceinline__ void wait(int place) {
    group_wait(flag, arrived += gridDim.x);
    if constexpr (STAGED) {
      const Vector* from = reinterpret_cast<const Vector*>(memory + place * P::seen);
      for (int k = threadIdx.x; k < P::seen / each; k += THREADS) put(reinterpret_cast<Vector*>(copy) + k, fetch(from + k));
      __syncthreads();  // the copy is there
    }
  }
  __device__ __forceinline__ const Seen* at(int place) const { return STAGED ? copy : memory + place * P::seen; }
};
