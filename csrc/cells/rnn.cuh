// Vanilla RNN: h = phi(ax + ah), phi one of tanh, relu, identity. The derivative needs only h, so nothing is saved.
#pragma once
#include "cell.cuh"

template <class Phi> struct Rnn : CellTraits {
  static constexpr int gates = 1, saved = 0;
  static constexpr bool uses_h = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A, const A*, A& h, A&, A*) { h = Phi::of(ax[0] + ah[0]); }

  template <class A>
  static __device__ void backward(const A*, A, A, A h, A, const A*, A dh, A&, A* dax, A&, A& dh_prev, A*) {
    dax[0] = dh * Phi::slope(h);
    dh_prev = A(0);
  }
};

struct Tanh {
  template <class A> static __device__ A of(A a) { return tanh(a); }
  template <class A> static __device__ A slope(A h) { return tanh_slope(h); }
};
struct Relu {
  template <class A> static __device__ A of(A a) { return relu(a); }
  template <class A> static __device__ A slope(A h) { return relu_slope(h); }
};
struct Identity {
  template <class A> static __device__ A of(A a) { return a; }
  template <class A> static __device__ A slope(A) { return A(1); }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;
using RnnIdentity = Rnn<Identity>;
