// What the kernels of csrc/ need of CUDA, for a host C++ compiler; the tests run them with it and check every access.
// Include it before any kernel, with FASTRNN_HOST defined. The scheduler behind it is scheduler.cpp.
#pragma once

#ifdef FASTRNN_HOST
// CUDA's functions that the kernels use. <math.h>, which the scheduler has, takes longer to compile than a kernel.
extern "C" float expf(float) noexcept, tanhf(float) noexcept, sqrtf(float) noexcept, fmaf(float, float, float) noexcept;
extern "C" double exp(double) noexcept, tanh(double) noexcept, sqrt(double) noexcept;
inline float exp(float x) { return expf(x); }
inline float tanh(float x) { return tanhf(x); }
inline float sqrt(float x) { return sqrtf(x); }
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)  // HOST_ENTRY is given them too

struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace host {

struct Thread {
  dim3 index, block;
  unsigned flat, flat_block;  // numbers in the grid
};
extern Thread* current;
extern dim3 grid_dim, block_dim, cluster_dim;

enum Barrier { warp, block, cluster, grid };
void wait(Barrier barrier);  // until every living thread of the warp, block or grid is here
void arrive_at_cluster();    // the two halves of the cluster's barrier: what stands between them it does not order
void wait_for_cluster();
void require(bool holds, const char* message);  // fails with this message where it does not
unsigned cluster_rank();     // the block's number in its cluster
void* shared_memory();       // the block's, NaN bytes at first
void* shared_memory_of(unsigned rank, const void* own);  // where another block of the cluster has what is here `own`
double* warp_slot(int lane);  // 8 bytes each, for what lanes exchange
int lane();                   // the thread's, in its warp
void touch(const void* p, int bytes, bool write, bool atomic = false);  // fails outside every array, and on a race

// The 16-bit types: their bits as float, and a float to the nearest of them, ties to even.
float from_half(unsigned short bits);
float from_bfloat16(unsigned short bits);
unsigned short to_half(float x);
unsigned short to_bfloat16(float x);

template <class T> struct Code;  // one letter a type, as NumPy's
template <> struct Code<float> { static constexpr char letter = 'f'; };
template <> struct Code<double> { static constexpr char letter = 'd'; };
template <> struct Code<bool> { static constexpr char letter = '?'; };
template <> struct Code<int> { static constexpr char letter = 'i'; };
template <> struct Code<long long> { static constexpr char letter = 'q'; };
template <> struct Code<unsigned> { static constexpr char letter = 'I'; };
template <> struct Code<unsigned long long> { static constexpr char letter = 'Q'; };

template <class T> struct Parameter { static constexpr char kind = ' '; using type = T; };
template <class T> struct Parameter<T*> { static constexpr char kind = '*'; using type = T; };
template <class T> struct Parameter<const T*> { static constexpr char kind = '&'; using type = T; };

// Two letters a parameter: "&f" for const float*, "*f" for float*, " q" for long long.
template <class... P> const char* signature(void (*)(P...)) {
  static const char all[][2] = {{Parameter<P>::kind, Code<typename Parameter<P>::type>::letter}..., {0, 0}};
  return all[0];
}

template <int... N> struct Numbers {};
template <int N, int... More> struct Count : Count<N - 1, N - 1, More...> {};
template <int... N> struct Count<0, N...> { using type = Numbers<N...>; };

template <class... P, int... N> void call(void (*kernel)(P...), void** args, Numbers<N...>) {
  kernel(*static_cast<P*>(args[N])...);
}
template <class... P> void call(void (*kernel)(P...), void** args) {
  call(kernel, args, typename Count<sizeof...(P)>::type());
}

}  // namespace host

#define threadIdx (host::current->index)
#define blockIdx (host::current->block)
#define blockDim (host::block_dim)
#define gridDim (host::grid_dim)

inline void __syncthreads() { host::wait(host::block); }
inline void grid_sync() { host::wait(host::grid); }
inline void cluster_arrive() { host::arrive_at_cluster(); }
inline void cluster_wait() { host::wait_for_cluster(); }
inline void cluster_sync() { host::arrive_at_cluster(), host::wait_for_cluster(); }
inline unsigned cluster_rank() { return host::cluster_rank(); }
template <class T> T* dynamic_shared() { return static_cast<T*>(host::shared_memory()); }
template <class T> T* map_shared_rank(T* own, unsigned rank) { return static_cast<T*>(host::shared_memory_of(rank, own)); }

// All living lanes of the warp take part, as with a full mask.
template <class T> T shuffle(T value, int from) {
  *reinterpret_cast<T*>(host::warp_slot(host::lane())) = value;
  host::wait(host::warp);
  if (from >= 0 && from < 32) value = *reinterpret_cast<T*>(host::warp_slot(from));
  host::wait(host::warp);
  return value;
}
template <class T> T __shfl_sync(unsigned, T value, int lane) { return shuffle(value, lane); }
template <class T> T __shfl_xor_sync(unsigned, T value, int bits) { return shuffle(value, host::lane() ^ bits); }
template <class T> T __shfl_down_sync(unsigned, T value, int by) { return shuffle(value, host::lane() + by); }

template <class T> T atomicAdd(T* p, T value) {
  host::touch(p, sizeof(T), true, true);
  const T old = *p;
  *p = old + value;
  return old;
}

// For a loader that knows the kernel by name only; after the name, what the kernel has in __cluster_dims__.
#define HOST_ENTRY(name, ...)                                                    \
  extern "C" const char* name##_signature() { return host::signature(name); }    \
  extern "C" const dim3* name##_cluster() { static const dim3 dims{__VA_ARGS__}; return &dims; } \
  extern "C" void name##_call(void** args) { host::call(name, args); }
