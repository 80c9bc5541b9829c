// What one barrier between blocks costs: every round, each block hands a number to its neighbour across the barrier, so
// that a barrier that does not hold gives a wrong sum. exchange [2, blocks], out [blocks], both zero at first; flags
// [blocks], zero. After `rounds` rounds out[b] is the number of rounds.
//
// Kinds: 0 a counter that all blocks add to; 1 a flag a block, read by one warp of every other block; 2 the hardware
// barrier of a cluster (launch with one cluster); 3 cooperative groups; 4 __syncthreads alone, one block.
#if KIND == 3
#include <cooperative_groups.h>
#endif

__device__ __forceinline__ void add_release(unsigned* p) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

__device__ __forceinline__ void barrier(unsigned* flags, unsigned round) {
#if KIND == 0
  __syncthreads();
  if (threadIdx.x == 0) {
    add_release(flags);
    while (load_acquire(flags) < (round + 1) * gridDim.x) {}
  }
  __syncthreads();
#elif KIND == 1
  __syncthreads();
  if (threadIdx.x == 0) store_release(flags + blockIdx.x, round + 1);
  if (threadIdx.x < 32)
    for (unsigned b = threadIdx.x; b < gridDim.x; b += 32)
      while (load_acquire(flags + b) < round + 1) {}
  __syncthreads();
#elif KIND == 2
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#elif KIND == 3
  cooperative_groups::this_grid().sync();
#else
  __syncthreads();
#endif
}

extern "C" __global__ void
#if KIND == 2
__cluster_dims__(BLOCKS, 1, 1)
#endif
__launch_bounds__(256, 1) exchange_rounds(volatile unsigned* exchange, unsigned* out, unsigned* flags, unsigned rounds) {
  const unsigned blocks = gridDim.x, b = blockIdx.x;
  unsigned mine = 0;
  for (unsigned round = 0; round < rounds; ++round) {
    volatile unsigned* place = exchange + (round & 1) * blocks;
    if (threadIdx.x == 0) place[b] = mine;
    barrier(flags, round);
    if (threadIdx.x == 0) mine = place[(b + 1) % blocks] + 1;
  }
  if (threadIdx.x == 0) out[b] = mine;
}
