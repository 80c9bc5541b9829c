// The two extra kernels of a cell with a second recurrent product, of a gated state (GRU, reset before the product):
// one between the two products forward, one between the two products backward. Conventions as in step.cuh. With a
// diagonal U there is no product, and neither is launched.
#pragma once
#include "step.cuh"

// The gated state s of step t as its product sees it, zero on padding. Moves 4s per element, with dropout 5s; normalised
// s * (G - 2) more for the rest of ah.
KERNEL gate_forward(
    const S* ax,           // [B, G, H]
    const S* ah,           // [B, G - 1, H]
    const A* bias,         // [G, H] or null
    const S* h_prev,       // [B, H]
    const S* keep,         // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    S* s,                  // [B, H]
    const A* gains,        // normalised only, as the next two, else null
    const A* of_x,         // [B, 2] moments of ax
    A* of_rows,            // [B, ROWS, 2] those of the first product, written
    int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    Moments m_x, m_h;
    if (normalised && here) {
      m_x = fetch_moments(of_x + b * 2);
      if (!cleared) {
        m_h = moments([=](int g) { return ah + (b * inner + g) * H; }, 0, inner, H);
        keep_moments(of_rows + (b * ROWS + OF_H) * 2, m_h);
      }
    }
    FOR_EACH_UNIT(u, H) {
      A from_x[W], from_h[W], hp[W], add[W], out[W], factor[W];
      fill(add, A(0)), fill(out, A(0)), fill(from_h, A(0)), fill(hp, A(0));
      if (here) {
        load<W>(ax + b * Cell::gates * H + u, from_x);
        if (!cleared) load<W>(gate_of(ah, ah, b, 0, H) + u, from_h), load<W>(h_prev + b * H + u, hp);
        if (normalised) normalise(from_x, m_x, gains + u);
        if (normalised && !cleared) normalise(from_h, m_h, gains + Cell::gates * H + u);
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
// Moves 4s + 2a per element; s more where gate 0 is shared, s more with dropout; normalised s * 3 (G - 1) more.
KERNEL gate_backward(
    const S* ds,           // [B, H]
    const S* saved,        // [B, V, H]
    const S* h_prev,       // [B, H]
    const S* keep,         // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    A* direct,             // [B, H] in and out
    S* dah,                // [B, G - 1, H]: gate 0 is written, or added to where it is shared
    const A* gains,        // normalised only, as all that follows, else null
    const A* of_rows,      // [B, ROWS, 2] moments
    const S* ah,           // [B, G - 1, H] the first product
    S* dhu,                // [B, G - 1, H] its gradient
    int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    if (!here && !normalised) continue;  // step_backward wrote the zero already
    FOR_EACH_UNIT(u, here ? H : 0) {
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
    if constexpr (normalised) {
      __syncthreads();  // gate 0's gradient is there
      before_gain(
          !here || cleared, 0, inner, H, gains + Cell::gates * H, of_rows + (b * ROWS + OF_H) * 2,
          [=](int g) { return dah + (b * inner + g) * H; }, [=](int g) { return ah + (b * inner + g) * H; },
          [=](int g) { return dhu + (b * inner + g) * H; });
    }
  }
}
