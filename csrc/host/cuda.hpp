// What the kernels of csrc/ need of CUDA, for a host C++ compiler; the tests run them with it and check every access.
// Include it before any kernel, with FASTRNN_HOST defined. The scheduler behind it is scheduler.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::exp;
using std::tanh;

struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace host {

struct Thread {
  dim3 index, block;
  unsigned flat, flat_block;  // numbers in the grid
};
extern Thread* current;
extern dim3 grid_dim, block_dim;

enum Barrier { warp, block, grid };
void wait(Barrier barrier);  // until every living thread of the warp, block or grid is here
void* shared_memory();       // the block's, NaN bytes at first
void* warp_slot(int lane);   // 8 bytes each, for shuffles
void touch(const void* p, int bytes, bool write, bool atomic = false);  // fails outside every array, and on a race

inline float from_bits(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline uint32_t to_bits(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  return x != x ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024.f + fraction, exponent - 25)
                                     : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 ? -value : value;
}
// To nearest, ties to even: scaled so that one unit is the half's last place, nearbyint does the rounding.
inline uint16_t to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (!(size < 65520.f)) return sign | (x != x ? 0x7e00 : 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f * 2^exponent, 1/2 <= f < 1
  const int last = (exponent < -13 ? -13 : exponent) - 11;
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, -last)));
  return sign | static_cast<uint16_t>(((last + 24) << 10) + units);  // a carry into the exponent is the right result
}

template <class T> struct Code;  // one letter a type, as NumPy's
template <> struct Code<float> { static constexpr char letter = 'f'; };
template <> struct Code<double> { static constexpr char letter = 'd'; };
template <> struct Code<bool> { static constexpr char letter = '?'; };
template <> struct Code<int> { static constexpr char letter = 'i'; };
template <> struct Code<long long> { static constexpr char letter = 'q'; };
template <> struct Code<unsigned> { static constexpr char letter = 'I'; };
template <> struct Code<unsigned long long> { static constexpr char letter = 'Q'; };
template <class T> struct Code<const T> { static constexpr char letter = Code<T>::letter; };

template <class T> struct Parameter { static std::string text() { return {Code<T>::letter}; } };
template <class T> struct Parameter<T*> { static std::string text() { return {'*', Code<T>::letter}; } };
template <class T> struct Parameter<const T*> { static std::string text() { return {'&', Code<T>::letter}; } };

// "&f" for const float*, "*f" for float*, "q" for long long, one after another.
template <class... P> const char* signature(void (*)(P...)) {
  static const std::string all = (std::string() + ... + Parameter<P>::text());
  return all.c_str();
}

template <class... P> void call(void (*kernel)(P...), void** args) {
  [&]<int... N>(std::integer_sequence<int, N...>) {
    kernel(*static_cast<P*>(args[N])...);
  }(std::make_integer_sequence<int, sizeof...(P)>());
}

}  // namespace host

#define threadIdx (host::current->index)
#define blockIdx (host::current->block)
#define blockDim (host::block_dim)
#define gridDim (host::grid_dim)

inline void __syncthreads() { host::wait(host::block); }
inline void grid_sync() { host::wait(host::grid); }
template <class T> T* dynamic_shared() { return static_cast<T*>(host::shared_memory()); }

// All living lanes of the warp take part, as with a full mask.
template <class T> T shuffle(T value, int from) {
  const int lane = threadIdx.x % 32;
  std::memcpy(host::warp_slot(lane), &value, sizeof(T));
  host::wait(host::warp);
  if (from >= 0 && from < 32) std::memcpy(&value, host::warp_slot(from), sizeof(T));
  host::wait(host::warp);
  return value;
}
template <class T> T __shfl_sync(unsigned, T value, int lane) { return shuffle(value, lane); }
template <class T> T __shfl_xor_sync(unsigned, T value, int bits) { return shuffle(value, (threadIdx.x % 32) ^ bits); }
template <class T> T __shfl_down_sync(unsigned, T value, int by) { return shuffle(value, threadIdx.x % 32 + by); }

template <class T> T atomicAdd(T* p, T value) {
  host::touch(p, sizeof(T), true, true);
  const T old = *p;
  *p = old + value;
  return old;
}

// For a loader that knows the kernel by name only.
#define HOST_ENTRY(name)                                                         \
  extern "C" const char* name##_signature() { return host::signature(name); }    \
  extern "C" void name##_call(void** args) { host::call(name, args); }
