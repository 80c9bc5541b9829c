// LSTM, gates i f g o:   c = f * c_prev + i * g   h = o * tanh(c)   i, f, o = sigmoid(ax + ah)   g = tanh(ax + ah)
// coupled: i = 1 - f, gates f g o
// peepholes p, rows i f o (coupled: f o):   i and f see p * c_prev besides, o sees p * c
#pragma once
#include "cell.cuh"

// A gate's pre-activation with what it sees of the cell state.
template <bool peephole, class A> __device__ A seeing(A a, const A* p, int row, A c) {
  if constexpr (peephole) return a + p[row] * c;
  else return a;
}

// What all of them share: h = o * tanh(v), o saved last. Inside is the struct whose `inside` does the rest.
// tanh(v) is cheaper to compute again than to fetch.
template <class Inside, int O> struct LstmReadout : CellTraits {
  template <class A> static __device__ A readout(const A* saved, A v) { return saved[O] * tanh(v); }

  template <class A> static __device__ void readout_backward(const A* saved, A v, A dh, A& d_o, A& dv) {
    const A tanh_v = tanh(v);
    d_o = dh * tanh_v;
    dv = dh * saved[O] * tanh_slope(tanh_v);
  }

  template <class A>
  static __device__ void backward(
      const A* saved, A h_prev, A c_prev, A h, A c, const A* p, A dh, A& dc, A* dax, A& dah_last, A& dh_prev, A* dp) {
    A d_o, dv;
    readout_backward(saved, c, dh, d_o, dv);
    dc += dv;
    Inside::inside(saved, h_prev, c_prev, h, c, p, d_o, dc, dax, dah_last, dh_prev, dp);
  }
};

template <bool peephole> struct LstmSeparate : LstmReadout<LstmSeparate<peephole>, 3> {
  static constexpr int gates = 4, saved = 4, parameters = peephole ? 3 : 0;
  static constexpr bool cell_state = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A c_prev, const A* p, A& h, A& c, A* saved) {
    const A i = sigmoid(seeing<peephole>(ax[0] + ah[0], p, 0, c_prev));
    const A f = sigmoid(seeing<peephole>(ax[1] + ah[1], p, 1, c_prev)), g = tanh(ax[2] + ah[2]);
    c = f * c_prev + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = sigmoid(seeing<peephole>(ax[3] + ah[3], p, 2, c));
    h = LstmReadout<LstmSeparate, 3>::readout(saved, c);
  }

  template <class A>
  static __device__ void inside(
      const A* saved, A, A c_prev, A, A c, const A* p, A d_o, A& dc, A* dax, A&, A& dh_prev, A* dp) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    dax[3] = d_o * sigmoid_slope(o);
    dc = seeing<peephole>(dc, p, 2, dax[3]);
    dax[0] = dc * g * sigmoid_slope(i);
    dax[1] = dc * c_prev * sigmoid_slope(f);
    dax[2] = dc * i * tanh_slope(g);
    dc = seeing<peephole>(seeing<peephole>(dc * f, p, 0, dax[0]), p, 1, dax[1]);
    dh_prev = A(0);
    if constexpr (peephole) dp[0] = dax[0] * c_prev, dp[1] = dax[1] * c_prev, dp[2] = dax[3] * c;
  }
};

template <bool peephole> struct LstmOneGate : LstmReadout<LstmOneGate<peephole>, 2> {
  static constexpr int gates = 3, saved = 3, parameters = peephole ? 2 : 0;
  static constexpr bool cell_state = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A c_prev, const A* p, A& h, A& c, A* saved) {
    const A f = sigmoid(seeing<peephole>(ax[0] + ah[0], p, 0, c_prev)), g = tanh(ax[1] + ah[1]);
    c = f * c_prev + (A(1) - f) * g;
    saved[0] = f, saved[1] = g, saved[2] = sigmoid(seeing<peephole>(ax[2] + ah[2], p, 1, c));
    h = LstmReadout<LstmOneGate, 2>::readout(saved, c);
  }

  template <class A>
  static __device__ void inside(
      const A* saved, A, A c_prev, A, A c, const A* p, A d_o, A& dc, A* dax, A&, A& dh_prev, A* dp) {
    const A f = saved[0], g = saved[1], o = saved[2];
    dax[2] = d_o * sigmoid_slope(o);
    dc = seeing<peephole>(dc, p, 1, dax[2]);
    dax[0] = dc * (c_prev - g) * sigmoid_slope(f);
    dax[1] = dc * (A(1) - f) * tanh_slope(g);
    dc = seeing<peephole>(dc * f, p, 0, dax[0]);
    dh_prev = A(0);
    if constexpr (peephole) dp[0] = dax[0] * c_prev, dp[1] = dax[2] * c;
  }
};

using Lstm = LstmSeparate<false>;
using LstmPeephole = LstmSeparate<true>;
using LstmCoupled = LstmOneGate<false>;
using LstmCoupledPeephole = LstmOneGate<true>;
