// Everything that differs between a GPU and the host compiler that runs the same kernels in the tests (csrc/host/): the
// 16-bit conversions, a store of 16 bytes at once, the tensor cores' product, the barrier of a group of blocks, a block's
// shared memory, and `touch`, which tells the host's checker of every access. Nothing else in csrc/ may ask where it runs.
// No header of the CUDA toolkit is needed, so NVRTC compiles the kernels with no include path.
#pragma once

using int64 = long long;

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

#ifdef FASTRNN_HOST

template <> struct host::Code<Half> { static constexpr char letter = 'e'; };
template <> struct host::Code<BFloat16> { static constexpr char letter = 'E'; };
inline float widen(Half x) { return host::from_half(x.bits); }
inline float widen(BFloat16 x) { return host::from_bfloat16(x.bits); }
inline void narrow(float x, Half& out) { out.bits = host::to_half(x); }
inline void narrow(float x, BFloat16& out) { out.bits = host::to_bfloat16(x); }
inline void write_16(float* p, const float* v) { for (int k = 0; k < 4; ++k) p[k] = v[k]; }
inline void write_16(double* p, const double* v) { for (int k = 0; k < 2; ++k) p[k] = v[k]; }
template <class S> void write_16(S* p, const S* v) { for (int k = 0; k < 8; ++k) p[k] = v[k]; }  // Half, BFloat16
// Which lane holds what of the matrices is PTX's: Warp-level matrix instructions, fragments for mma.m16n8k16.
template <class H> float mma_element(unsigned word, int k) {
  H element;
  element.bits = static_cast<unsigned short>(word >> k % 2 * 16);
  return widen(element);
}
template <class H> void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const int lane = host::lane();
  const unsigned* mine[2] = {a, b};
  *reinterpret_cast<const unsigned***>(host::warp_slot(lane)) = mine;
  host::wait(host::warp);
  const auto held = [](int by, int which, int word) { return (*reinterpret_cast<const unsigned***>(host::warp_slot(by)))[which][word]; };
  for (int n = 0; n < 4; ++n) {
    const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
    for (int k = 0; k < 16; ++k)
      sums[n] += mma_element<H>(held(row % 8 * 4 + k % 8 / 2, 0, row / 8 + k / 8 * 2), k) *
                 mma_element<H>(held(column * 4 + k % 8 / 2, 1, k / 8), k);
  }
  host::wait(host::warp);
}
// The barrier of a group of blocks, those of one row of the grid, in its two halves.
inline void group_arrive(unsigned* flag) {
  if (threadIdx.x == 0) host::touch(flag, sizeof(unsigned), true, true), ++*flag;
  host::arrive_at_cluster();
}
inline void group_wait(const unsigned* flag, unsigned until) {
  host::wait_for_cluster();
  if (threadIdx.x != 0) return;
  host::touch(flag, sizeof(unsigned), false, true);
  host::require(*flag - until < gridDim.x, "group barrier: a flag that others count on, or that stands too low");
}
inline void* shared_memory() { return host::shared_memory(); }
inline void touch(const void* p, int bytes, bool write) { host::touch(p, bytes, write); }

#else

__device__ __forceinline__ float widen(Half x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}
__device__ __forceinline__ float widen(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ void narrow(float x, Half& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
// Round to nearest even by integer arithmetic: the instruction for it needs sm_90 for a single value.
__device__ __forceinline__ void narrow(float x, BFloat16& out) {
  const unsigned bits = __float_as_uint(x);
  out.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// 16 bytes of global memory in one instruction. Left to itself, NVRTC stores some structs of four floats one by one.
__device__ __forceinline__ void write_16(float* p, const float* v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
               : : "l"(__cvta_generic_to_global(p)), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}
__device__ __forceinline__ void write_16(double* p, const double* v) {
  asm volatile("st.global.v2.f64 [%0], {%1, %2};"
               : : "l"(__cvta_generic_to_global(p)), "d"(v[0]), "d"(v[1]) : "memory");
}
template <class S> __device__ __forceinline__ void write_16(S* p, const S* v) {  // Half, BFloat16
  unsigned words[4];
  for (int k = 0; k < 4; ++k) words[k] = v[2 * k].bits | static_cast<unsigned>(v[2 * k + 1].bits) << 16;
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               : : "l"(__cvta_generic_to_global(p)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}
// sums [16, 8] += a [16, 16] b [16, 8] by the warp together, the sums in float32; from sm_80 on. Volatile: a compiler must
// not sink it to where some lanes alone use its result.
template <class H> __device__ __forceinline__ void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
#define FASTRNN_MMA(H, type)                                                                                             \
  template <> __device__ __forceinline__ void mma<H>(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                          \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                       \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                    \
  }
FASTRNN_MMA(Half, "f16")
FASTRNN_MMA(BFloat16, "bf16")
#undef FASTRNN_MMA
// The barrier of a group of blocks in its two halves: `flag`, zero at first, counts the blocks that have arrived. What a
// block wrote before it arrives, others see after they waited (PTX ISA, Memory Consistency Model: release and acquire are
// cumulative over the barriers of the block).
__device__ __forceinline__ void group_arrive(unsigned* flag) {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" : : "l"(__cvta_generic_to_global(flag)) : "memory");
}
__device__ __forceinline__ void group_wait(const unsigned* flag, unsigned until) {
  unsigned arrived = until;
  do {
    if (threadIdx.x == 0)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(__cvta_generic_to_global(flag)) : "memory");
  } while (static_cast<int>(arrived - until) < 0);
  __syncthreads();
}
// What the launch asked for.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ double shared_words[];
  return shared_words;
}
__device__ __forceinline__ void touch(const void*, int, bool) {}

#endif
