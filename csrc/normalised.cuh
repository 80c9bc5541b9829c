// The kernels that a layer with layer normalisation has besides those of step.cuh: what is done for all T*B rows at once,
// before and after the loop, and a diagonal U as products of their own, since its rows must be whole before a gate is.
#pragma once
#include "step.cuh"

// Moments of x W. Moves s * G per element, once more from the cache.
KERNEL input_moments(
    const S* x,            // [T, B, G, H]
    const int64* lengths,  // [B] or null
    A* of_x,               // [T, B, 2]; rows of padding are left alone
    int64 T, int64 B, int64 H) {
  FOR_EACH_ROW(r, T * B) {
    if (!exists(lengths, r % B, r / B)) continue;
    keep_moments(of_x + r * 2, moments([=](int g) { return x + (r * Cell::gates + g) * H; }, 0, Cell::gates, H));
  }
}

// After the loop: gradients of x W in the place of those of the pre-activations, and those of both gains. Block k takes
// rows k, k + gridDim.y and so on in this order, and has its own part of the sums, which are added in order later.
// Moves, per element: s * 4G, s more where `separate`; the parts, 4a * G, should stay in the cache.
KERNEL gains_backward(
    S* dax,                // [T, B, G, H], gated cells [T, B, G - 1, H]; in and out
    S* dax_last,           // [T, B, H] the last gate's, gated cells only, else null
    const S* dah,          // [T, B, G, H] where `separate`, else null: dax is dah
    const S* x,            // [T, B, G, H] x W
    const A* of_x,         // [T, B, 2]
    const S* ah,           // [T, B, G, H] h U, gated cells [T, B, G - 1, H]
    const S* ah_last,      // [T, B, H] or null
    const A* of_rows,      // [T, B, ROWS, 2]
    const A* gains,
    const int64* lengths,  // [B] or null
    const bool* clear,     // [T, B] or null
    A* parts,              // [gridDim.y, 2, G, H] of x W and of h U; in and out
    int64 T, int64 B, int64 H) {
  FOR_EACH_ROW(r, T * B) {
    if (!exists(lengths, r % B, r / B)) continue;  // zeros stand there
    const A* kept = of_rows + r * ROWS * 2;
    const bool cleared = is_set(clear, r);  // h U is zero then, and so is hat
    const Moments m_x = fetch_moments(of_x + r * 2);
    A* part = parts + blockIdx.y * 2 * Cell::gates * H;
    _Pragma("unroll 1") for (int g = 0; g < Cell::gates; ++g) {
      const bool of_last = Cell::gated && g == inner, apart = Cell::separate && g == Cell::gates - 1;
      Moments m = {A(0), A(0)};
      if (!cleared) m = fetch_moments(kept + (of_last ? OF_LAST : OF_H) * 2);
      FOR_EACH_UNIT(u, H) {
        A d[W], a[W], sum[W];
        load<W>(gate_of(dax, dax_last, r, g, H) + u, d), load<W>(x + (r * Cell::gates + g) * H + u, a);
        for (int k = 0; k < W; ++k) sum[k] = d[k] * hat(a[k], m_x);
        accumulate(part + g * H + u, sum);
        if (cleared) continue;
        if (apart) load<W>(dah + (r * Cell::gates + g) * H + u, d);
        load<W>(gate_of(ah, ah_last, r, g, H) + u, a);
        for (int k = 0; k < W; ++k) sum[k] = d[k] * hat(a[k], m);
        accumulate(part + (Cell::gates + g) * H + u, sum);
      }
    }
    const auto da = [=](int g) { return gate_of(dax, dax_last, r, g, H); };
    before_gain(
        false, 0, Cell::gates, H, gains, of_x + r * 2, da, [=](int g) { return x + (r * Cell::gates + g) * H; }, da);
  }
}

// Products with a diagonal U: gates first to first + n - 1. Moves s * (1 + n) per element.
KERNEL diagonal_forward(
    const S* seen,      // [B, H] h or the gated state, as the product sees it
    const A* diagonal,  // [G, H]
    S* ah,              // [B, n, H]
    int64 first, int64 n, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    FOR_EACH_UNIT(u, H) {
      A sees[W], out[W];
      load<W>(seen + b * H + u, sees);
      _Pragma("unroll 1") for (int64 g = 0; g < n; ++g) {
        load<W>(diagonal + (first + g) * H + u, out);
        for (int k = 0; k < W; ++k) out[k] *= sees[k];
        store<W>(ah + (b * n + g) * H + u, out);
      }
    }
  }
}

// Gradients of what they saw, and of U. Moves s * (2 + n) + 2a * n per element.
KERNEL diagonal_backward(
    const S* dhu,          // [B, n, H]
    const A* diagonal,     // [G, H]
    const S* seen,         // [B, H]
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    S* dseen,              // [B, H]
    A* ddiagonal,          // [B, G, H] sum over the steps so far, in and out
    int64 first, int64 n, int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool none = !exists(lengths, b, t) || is_set(clear, b);
    FOR_EACH_UNIT(u, H) {
      A sees[W], out[W];
      fill(out, A(0));
      if (!none) load<W>(seen + b * H + u, sees);
      _Pragma("unroll 1") for (int64 g = 0; g < n && !none; ++g) {
        A d[W], weight[W];
        load<W>(dhu + (b * n + g) * H + u, d), load<W>(diagonal + (first + g) * H + u, weight);
        for (int k = 0; k < W; ++k) out[k] += d[k] * weight[k], d[k] *= sees[k];
        accumulate(ddiagonal + (b * Cell::gates + first + g) * H + u, d);
      }
      store<W>(dseen + b * H + u, out);
    }
  }
}
