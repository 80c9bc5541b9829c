// GRU, gates r z n:   h = (1 - z) * n + z * h_prev   r, z = sigmoid(ax + ah)
//   reset after the product:    n = tanh(ax + r * ah)    ah = h_prev U_n + b_hh
//   reset before the product:   n = tanh(ax + ah)        ah = (r * h_prev) U_n + b_hh
#pragma once
#include "cell.cuh"

// Through h = (1 - z) * n + z * h_prev: gradients of z's and n's pre-activation and of h_prev.
template <class A>
__device__ void mix_backward(A z, A n, A h_prev, A dh, A& daz, A& dan, A& dh_prev) {
  daz = dh * (h_prev - n) * sigmoid_slope(z);
  dan = dh * (A(1) - z) * tanh_slope(n);
  dh_prev = dh * z;
}

struct Gru : CellTraits {
  static constexpr int gates = 3, saved = 4;
  static constexpr bool separate = true, uses_h_prev = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A h_prev, A, const A*, A& h, A&, A* saved) {
    const A r = sigmoid(ax[0] + ah[0]), z = sigmoid(ax[1] + ah[1]), n = tanh(ax[2] + r * ah[2]);
    h = (A(1) - z) * n + z * h_prev;
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = ah[2];
  }

  template <class A>
  static __device__ void backward(
      const A* saved, A h_prev, A, A, A, const A*, A dh, A&, A* dax, A& dah_last, A& dh_prev, A*) {
    const A r = saved[0], z = saved[1], n = saved[2], ah_n = saved[3];
    mix_backward(z, n, h_prev, dh, dax[1], dax[2], dh_prev);
    dax[0] = dax[2] * ah_n * sigmoid_slope(r);
    dah_last = dax[2] * r;
  }
};

struct GruResetBefore : CellTraits {
  static constexpr int gates = 3, saved = 3;
  static constexpr bool gated = true, uses_h_prev = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A h_prev, A, const A*, A& h, A&, A* saved) {
    const A r = sigmoid(ax[0] + ah[0]), z = sigmoid(ax[1] + ah[1]), n = tanh(ax[2] + ah[2]);
    h = (A(1) - z) * n + z * h_prev;
    saved[0] = r, saved[1] = z, saved[2] = n;
  }

  // r's gradient waits for that of the gated state; gate_backward gives it.
  template <class A>
  static __device__ void backward(
      const A* saved, A h_prev, A, A, A, const A*, A dh, A&, A* dax, A&, A& dh_prev, A*) {
    mix_backward(saved[1], saved[2], h_prev, dh, dax[1], dax[2], dh_prev);
  }

  // s = r * h_prev, with ax and ah those of r.
  template <class A> static __device__ A gate(A ax, A ah, A h_prev) { return sigmoid(ax + ah) * h_prev; }

  // Gradients of r's pre-activation and of h_prev through s.
  template <class A> static __device__ void gate_backward(A r, A h_prev, A ds, A& dar, A& dh_prev) {
    dar = ds * h_prev * sigmoid_slope(r);
    dh_prev = ds * r;
  }
};
