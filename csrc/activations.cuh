// The activations, and their derivatives in terms of the output.
//
// exp and tanh are the CUDA library's, within 2 ulp; 1 / (1 + inf) = 0 makes sigmoid right where exp overflows, and
// a NaN stays a NaN in all of them.
#pragma once

template <class A> __device__ __forceinline__ A sigmoid(A a) { return A(1) / (A(1) + exp(-a)); }
template <class A> __device__ __forceinline__ A relu(A a) { return a < A(0) ? A(0) : a; }

template <class A> __device__ __forceinline__ A sigmoid_slope(A s) { return s * (A(1) - s); }
template <class A> __device__ __forceinline__ A tanh_slope(A t) { return A(1) - t * t; }
template <class A> __device__ __forceinline__ A relu_slope(A h) { return h > A(0) ? A(1) : A(0); }
