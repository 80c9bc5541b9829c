// What a cell is on the GPU: the equations of one hidden unit on registers; fastrnn/cells/ is the specification.
//
//   gates, saved            G and V: pre-activations, and values kept for the backward pass
//   cell_state              it carries c besides h
//   separate                the last gate's ax and ah do not enter as their sum, so dah differs from dax there
//   gated                   a second recurrent product, of a gated state s = gate(...), with the last gate's weights
//   uses_h, uses_h_prev     what `backward` reads of the states, so that the loop need not fetch the others
//
//   forward(ax[G], ah[G], h_prev, c_prev, h, c, saved[V])          writes h, c, saved
//   backward(saved[V], h_prev, c_prev, h, c, dh, dc, dax[G], dah_last, dh_prev)
//       writes dax, dah_last where `separate`, and dh_prev, the direct path of h; turns dc into dc_prev
//
// Cells without a cell state leave c and dc alone.
#pragma once
#include "../activations.cuh"

struct CellTraits {
  static constexpr bool cell_state = false, separate = false, gated = false, uses_h = false, uses_h_prev = false;
};
