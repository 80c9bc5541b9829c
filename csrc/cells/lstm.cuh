// LSTM, gates i f g o:   c = f * c_prev + i * g   h = o * tanh(c)   i, f, o = sigmoid(ax + ah)   g = tanh(ax + ah)
// coupled: i = 1 - f, gates f g o
#pragma once
#include "cell.cuh"

struct Lstm : CellTraits {
  static constexpr int gates = 4, saved = 4;
  static constexpr bool cell_state = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A c_prev, A& h, A& c, A* saved) {
    const A i = sigmoid(ax[0] + ah[0]), f = sigmoid(ax[1] + ah[1]), g = tanh(ax[2] + ah[2]), o = sigmoid(ax[3] + ah[3]);
    c = f * c_prev + i * g;
    h = o * tanh(c);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
  }

  // tanh(c) is cheaper to compute again than to fetch.
  template <class A>
  static __device__ void backward(const A* saved, A, A c_prev, A, A c, A dh, A& dc, A* dax, A&, A& dh_prev) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(c);
    dc += dh * o * tanh_slope(tanh_c);
    dax[0] = dc * g * sigmoid_slope(i);
    dax[1] = dc * c_prev * sigmoid_slope(f);
    dax[2] = dc * i * tanh_slope(g);
    dax[3] = dh * tanh_c * sigmoid_slope(o);
    dc *= f;
    dh_prev = A(0);
  }
};

struct LstmCoupled : CellTraits {
  static constexpr int gates = 3, saved = 3;
  static constexpr bool cell_state = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A c_prev, A& h, A& c, A* saved) {
    const A f = sigmoid(ax[0] + ah[0]), g = tanh(ax[1] + ah[1]), o = sigmoid(ax[2] + ah[2]);
    c = f * c_prev + (A(1) - f) * g;
    h = o * tanh(c);
    saved[0] = f, saved[1] = g, saved[2] = o;
  }

  template <class A>
  static __device__ void backward(const A* saved, A, A c_prev, A, A c, A dh, A& dc, A* dax, A&, A& dh_prev) {
    const A f = saved[0], g = saved[1], o = saved[2], tanh_c = tanh(c);
    dc += dh * o * tanh_slope(tanh_c);
    dax[0] = dc * (c_prev - g) * sigmoid_slope(f);
    dax[1] = dc * (A(1) - f) * tanh_slope(g);
    dax[2] = dh * tanh_c * sigmoid_slope(o);
    dc *= f;
    dh_prev = A(0);
  }
};
