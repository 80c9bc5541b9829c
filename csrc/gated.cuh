// The two extra kernels of a cell with a second recurrent product, of a gated state (GRU, reset before the product):
// one between the two products forward, one between the two products backward. Conventions as in step.cuh. With a
// diagonal U there is no product, and neither is launched.
#pragma once
#include "step.cuh"

// The gated state s of step t as its product sees it, zero on padding. Moves 4s per element, with dropout 5s.
KERNEL gate_forward(
    const S* ax,           // [B, G, H]
    const S* ah,           // [B, G - 1, H]
    const A* bias,         // [G, H] or null
    const S* h_prev,       // [B, H]
    const S* keep,         // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    S* s,                  // [B, H]
    int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    FOR_EACH_UNIT(u, H) {
      A from_x[W], from_h[W], hp[W], add[W], out[W], factor[W];
      fill(add, A(0)), fill(out, A(0)), fill(from_h, A(0)), fill(hp, A(0));
      if (here) {
        load<W>(ax + b * Cell::gates * H + u, from_x);
        if (!cleared) load<W>(gate_of(ah, ah, b, 0, H) + u, from_h), load<W>(h_prev + b * H + u, hp);
        if (bias) load<W>(bias + u, add);
        load_keep(keep, b * H + u, factor);
        for (int k = 0; k < W; ++k) out[k] = Cell::gate(from_x[k] + add[k], from_h[k], hp[k]);
        for (int k = 0; k < W && options; ++k) out[k] *= factor[k];
      }
      store<W>(s + b * H + u, out);
    }
  }
}

// Gate 0's gradient and the rest of the direct path, once the gradient of the gated state is known.
// Moves 4s + 2a per element; s more where gate 0 is shared, s more with dropout.
KERNEL gate_backward(
    const S* ds,           // [B, H]
    const S* saved,        // [B, V, H]
    const S* h_prev,       // [B, H]
    const S* keep,         // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    A* direct,             // [B, H] in and out
    S* dah,                // [B, G - 1, H]: gate 0 is written, or added to where it is shared
    int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    if (!exists(lengths, b, t)) continue;  // step_backward wrote the zero already
    const bool cleared = is_set(clear, b);
    FOR_EACH_UNIT(u, H) {
      const int64 at = b * H + u;
      A grad[W], r[W], hp[W], da[W], path[W], shared[W], factor[W];
      fill(hp, A(0)), fill(shared, A(0));
      load<W>(ds + at, grad), load<W>(saved + b * Cell::saved * H + u, r), load<W>(direct + at, path);
      if (!cleared) load<W>(h_prev + at, hp);
      load_keep(keep, at, factor);
      if (Cell::gate_shared) load<W>(gate_of(dah, dah, b, 0, H) + u, shared);
      for (int k = 0; k < W && options; ++k) grad[k] *= factor[k];
      for (int k = 0; k < W; ++k) {
        A dh;
        Cell::gate_backward(r[k], hp[k], grad[k], da[k], dh);
        if (!cleared) path[k] += dh;
        if (Cell::gate_shared) da[k] += shared[k];
      }
      store<W>(direct + at, path);
      store<W>(gate_of(dah, dah, b, 0, H) + u, da);
    }
  }
}
