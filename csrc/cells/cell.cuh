// What a cell is on the GPU: the equations of one hidden unit on registers; fastrnn/cells/ is the specification.
//
//   gates, saved            G and V: pre-activations, and values kept for the backward pass
//   parameters              N, the rows of the unit parameters p (peepholes)
//   cell_state              it carries c besides h
//   separate                the last gate's ax and ah do not enter as their sum, so dah differs from dax there
//   gated                   a second recurrent product, of a gated state s = gate(...), with the last gate's weights
//   gate_shared             gate 0 acts elsewhere too, so that `backward` gives a part of its gradient
//   uses_h, uses_h_prev     what `backward` reads of the states, so that the loop need not fetch the others; also
//                           whether `forward` reads h_prev
//
//   forward(ax[G], ah[G], h_prev, c_prev, p[N], h, c, saved[V])          writes h, c, saved
//   backward(saved[V], h_prev, c_prev, h, c, p[N], dh, dc, dax[G], dah_last, dh_prev, dp[N])
//       writes dax, dah_last where `separate`, dp, and dh_prev, the direct path of h; turns dc into dc_prev
//   gate(ax_0, ah_0, h_prev)                              the gated state s; saved[0] must be gate 0
//   gate_backward(saved_0, h_prev, ds, da_0, dh_prev)     writes what comes through s: to gate 0's pre-activation, to h
//   with a cell state, where layer normalisation is wanted: h is read out of v = c, or v = LN(c)
//   readout(saved[V], v)                                  h
//   readout_backward(saved[V], v, dh, d_o, dv)            writes the gradients of the output gate and of v
//   inside(saved[V], h_prev, c_prev, h, c, p[N], d_o, dc, dax[G], dah_last, dh_prev, dp[N])
//       the rest of `backward`: as it, with d_o in place of dh and what came through v in dc already
//
// Cells without a cell state leave c and dc alone. ax holds its bias, and ah its own where `separate`. A cell of one's
// own is such a struct, given as text to fastrnn.register; its numbers must be those of the registered Cell.
#pragma once
#include "../activations.cuh"

struct CellTraits {
  static constexpr int parameters = 0;
  static constexpr bool cell_state = false, separate = false, gated = false, gate_shared = false;
  static constexpr bool uses_h = false, uses_h_prev = false;

  // of cells without a gated product, which never call them
  template <class A> static __device__ A gate(A, A, A) { return A(0); }
  template <class A> static __device__ void gate_backward(A, A, A, A&, A&) {}

  // likewise without a cell state or layer normalisation
  template <class A> static __device__ A readout(const A*, A v) { return v; }
  template <class A> static __device__ void readout_backward(const A*, A, A, A&, A&) {}
  template <class A>
  static __device__ void inside(const A*, A, A, A, A, const A*, A, A&, A*, A&, A&, A*) {}
};
