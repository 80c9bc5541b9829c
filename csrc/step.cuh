// One time step of any cell, forward and backward; the matrix products are done outside, by cuBLAS.
//
// Before this file stand three lines that make it one variant: `using Cell = Lstm; using S = float;` (the type of the
// arrays) and `constexpr int W = 4;` (elements a thread moves at once). A is what is computed in: float, or double for
// double. The cell state c, its gradient dc, the direct path of dh and the biases are of type A everywhere.
//
// Who owns what: a thread owns W neighbouring hidden units of a row b, for every array of the step, and strides over
// the rest; neighbouring threads own neighbouring units, so every access of a warp is one contiguous piece. Each array
// is read or written once. Padding (t >= lengths[b]) is selected: what stands there, NaN too, is never read; the state
// is held, y is zero, gradients are zero. Where clear[b], the step sees a state of zero and its gradient is cut.
//
// Shapes: B, H, P, G, V are batch, hidden, projection, gates, saved values; offsets are 64-bit. "or null" marks what
// may be absent. ah_last and dah_last: [B, H], the last gate's; apart from the others, [B, G - 1, H], for gated cells,
// so that each is the operand of a product; for other cells they point into [B, G, H].
// Bytes moved are given per element (b, u) as multiples of s = sizeof(S) and a = sizeof(A), without lengths and flags.
#pragma once
#include "memory.cuh"

using A = Registers<S>::type;

// Not unrolled: a launch gives most threads one turn, and four copies of the body only cost compile time.
#define FOR_EACH_ROW(b, rows)                                                                        \
  _Pragma("unroll 1") for (int64 b = blockIdx.y * static_cast<int64>(blockDim.y) + threadIdx.y; b < (rows); \
                           b += gridDim.y * static_cast<int64>(blockDim.y))
#define FOR_EACH_UNIT(u, units)                                                                      \
  _Pragma("unroll 1") for (int64 u = W * (blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x); u < (units); \
                           u += W * static_cast<int64>(gridDim.x) * blockDim.x)
#define KERNEL extern "C" __global__ void __launch_bounds__(256, 1)

__device__ __forceinline__ bool exists(const int64* lengths, int64 b, int64 t) { return !lengths || t < fetch(lengths + b); }
__device__ __forceinline__ bool is_set(const bool* flags, int64 b) { return flags && fetch(flags + b); }

// Where gate g of row b begins in ah or dah.
template <class T> __device__ __forceinline__ T* gate_of(T* ah, T* ah_last, int64 b, int g, int64 H) {
  constexpr int inner = Cell::gated ? Cell::gates - 1 : Cell::gates;
  return Cell::gated && g == inner ? ah_last + b * H : ah + (b * inner + g) * H;
}

template <int N> __device__ __forceinline__ void fill(A (&values)[N], A value) {
  for (int k = 0; k < N; ++k) values[k] = value;
}

// h, c, saved values and y of step t.
// Moves, per element: s * (2G + V + 2), 2a more with a cell state, s more where h_prev is used (by GRU, and on padding).
KERNEL step_forward(
    const S* ax,           // [B, G, H] pre-activations from the input, without bias
    const S* ah,           // [B, G, H] from the recurrent product, without bias
    const S* ah_last,      // [B, H] the last gate's, gated cells only, else null
    const A* bias,         // [G + separate, H] or null; row G is added to the last gate's ah
    const S* h_prev,       // [B, H], with a projection null
    const A* c_prev,       // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    S* h,                  // [B, H]; with a projection its input, zero on padding
    A* c,                  // [B, H] or null
    S* saved,              // [B, V, H] or null
    S* y,                  // rows of H, y_row apart; null with a projection
    int64 y_row, int64 t, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    FOR_EACH_UNIT(u, H) {
      const int64 at = b * H + u;
      A hp[W], cp[W], h_new[W], c_new[W];
      fill(hp, A(0)), fill(cp, A(0)), fill(h_new, A(0)), fill(c_new, A(0));
      if (h_prev && !cleared && (Cell::uses_h_prev || !here)) load<W>(h_prev + at, hp);
      if (Cell::cell_state && !cleared) load<W>(c_prev + at, cp);
      if (here) {
        A from_x[Cell::gates][W], from_h[Cell::gates][W], keep[Cell::saved + 1][W];
        for (int g = 0; g < Cell::gates; ++g) {
          A add[W];
          fill(add, A(0)), fill(from_h[g], A(0));
          load<W>(ax + (b * Cell::gates + g) * H + u, from_x[g]);
          if (!cleared) load<W>(gate_of(ah, ah_last, b, g, H) + u, from_h[g]);
          if (bias) load<W>(bias + g * H + u, add);
          for (int k = 0; k < W; ++k) from_x[g][k] += add[k];
        }
        if (Cell::separate && bias) {
          A add[W];
          load<W>(bias + Cell::gates * H + u, add);
          for (int k = 0; k < W; ++k) from_h[Cell::gates - 1][k] += add[k];
        }
        for (int k = 0; k < W; ++k) {
          A x[Cell::gates], r[Cell::gates], v[Cell::saved + 1];
          for (int g = 0; g < Cell::gates; ++g) x[g] = from_x[g][k], r[g] = from_h[g][k];
          Cell::forward(x, r, hp[k], cp[k], h_new[k], c_new[k], v);
          for (int g = 0; g < Cell::saved; ++g) keep[g][k] = v[g];
        }
        if (saved) {
          for (int g = 0; g < Cell::saved; ++g) store<W>(saved + (b * Cell::saved + g) * H + u, keep[g]);
        }
      }
      if (y) store<W>(y + b * y_row + u, h_new);
      for (int k = 0; k < W && !here; ++k) h_new[k] = hp[k], c_new[k] = cp[k];
      store<W>(h + at, h_new);
      if (Cell::cell_state) store<W>(c + at, c_new);
    }
  }
}

// After the projection: the state and y of step t from the product. Moves 3s per element.
KERNEL project_forward(
    const S* product,      // [B, P]
    const S* h_prev,       // [B, P]
    const int64* lengths,  // [B] or null
    S* h,                  // [B, P]
    S* y,                  // rows of P, y_row apart
    int64 y_row, int64 t, int64 B, int64 P) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t);
    FOR_EACH_UNIT(u, P) {
      A state[W], out[W];
      fill(out, A(0));
      load<W>((here ? product : h_prev) + b * P + u, state);
      for (int k = 0; k < W && here; ++k) out[k] = state[k];
      store<W>(h + b * P + u, state);
      store<W>(y + b * y_row + u, out);
    }
  }
}

// The gradient of h after a step, from all sides: the direct path, the recurrent product of the step that comes later
// in the sequence's own order (null at its end), and the loss on y (null for none).
__device__ __forceinline__ void arriving(
    const A* direct, const S* product, const int64* lengths, const bool* clear_later, const S* dy, int64 later,
    int64 b, int64 at, A (&dh)[W]) {
  A add[W];
  load<W>(direct + at, dh);
  if (product && exists(lengths, b, later) && !is_set(clear_later, b)) {
    load<W>(product + at, add);
    for (int k = 0; k < W; ++k) dh[k] += add[k];
  }
  if (dy) {
    load<W>(dy, add);
    for (int k = 0; k < W; ++k) dh[k] += add[k];
  }
}

// Gradients of the pre-activations of step t; the state's gradients move from after the step to before it.
// Moves, per element: s * (V + G + 2) + 2a; s more for each of h and h_prev that the cell uses, 4a with a cell state (and s with
// dcells), s * G where `separate`.
KERNEL step_backward(
    const S* saved,           // [B, V, H]
    const S* h_prev,          // [B, H]
    const A* c_prev,          // [B, H] or null
    const S* h,               // [B, H]
    const A* c,               // [B, H] or null
    const int64* lengths,     // [B] or null
    const bool* clear,        // [B] of step t, or null
    const bool* clear_later,  // [B] of step `later`, or null
    const S* dy,              // rows of H, dy_row apart, or null
    int64 dy_row,
    const S* dcells,          // rows of H, dcells_row apart: gradient of c from the loss on it; or null
    int64 dcells_row,
    const S* product,         // [B, H] dah of step `later` times U; null where there is none
    const S* dm,              // [B, H] gradient of the projection's input; null without a projection
    A* direct,                // [B, H] dh on the direct path; in and out; null with a projection
    A* dc,                    // [B, H] in and out, or null
    S* dax,                   // [B, G, H] where `separate`, else null: dah is dax
    S* dah,                   // [B, G, H]
    S* dah_last,              // [B, H] the last gate's, gated cells only, else null
    int64 t, int64 later, int64 B, int64 H) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    FOR_EACH_UNIT(u, H) {
      const int64 at = b * H + u;
      A dh[W], dc_t[W], add[W], gate[Cell::gates][W], last[W], dh_prev[W];
      fill(dh, A(0)), fill(dc_t, A(0)), fill(last, A(0));
      if (!dm) arriving(direct, product, lengths, clear_later, here && dy ? dy + b * dy_row + u : nullptr, later, b, at, dh);
      if (dm && here) load<W>(dm + at, dh);
      if (Cell::cell_state) load<W>(dc + at, dc_t);
      if (Cell::cell_state && dcells && here) {
        load<W>(dcells + b * dcells_row + u, add);
        for (int k = 0; k < W; ++k) dc_t[k] += add[k];
      }
      for (int g = 0; g < Cell::gates; ++g) fill(gate[g], A(0));
      for (int k = 0; k < W; ++k) dh_prev[k] = dh[k];
      if (here) {
        A keep[Cell::saved + 1][W], hp[W], h_t[W], cp[W], c_t[W];
        fill(hp, A(0)), fill(h_t, A(0)), fill(cp, A(0)), fill(c_t, A(0));
        for (int g = 0; g < Cell::saved; ++g) load<W>(saved + (b * Cell::saved + g) * H + u, keep[g]);
        if (Cell::uses_h_prev && !cleared) load<W>(h_prev + at, hp);
        if (Cell::uses_h) load<W>(h + at, h_t);
        if (Cell::cell_state && !cleared) load<W>(c_prev + at, cp);
        if (Cell::cell_state) load<W>(c + at, c_t);
        for (int k = 0; k < W; ++k) {
          A v[Cell::saved + 1], da[Cell::gates];
          for (int g = 0; g < Cell::saved; ++g) v[g] = keep[g][k];
          for (int g = 0; g < Cell::gates; ++g) da[g] = A(0);
          Cell::backward(v, hp[k], cp[k], h_t[k], c_t[k], dh[k], dc_t[k], da, last[k], dh_prev[k]);
          for (int g = 0; g < Cell::gates; ++g) gate[g][k] = da[g];
          if (cleared) dh_prev[k] = dc_t[k] = A(0);
        }
      }
      for (int g = 0; g < Cell::gates; ++g) {
        const bool apart = Cell::separate && g == Cell::gates - 1;
        if (Cell::separate) store<W>(dax + (b * Cell::gates + g) * H + u, gate[g]);
        store<W>(gate_of(dah, dah_last, b, g, H) + u, apart ? last : gate[g]);
      }
      if (!dm) store<W>(direct + at, dh_prev);
      if (Cell::cell_state) store<W>(dc + at, dc_t);
    }
  }
}

// The gradient of h after step t where a projection made it: dproj, zero on padding, where the direct path keeps it.
// Moves 3s + 2a per element.
KERNEL project_backward(
    const S* product,         // [B, P] dah of step `later` times U; null where there is none
    const int64* lengths,     // [B] or null
    const bool* clear_later,  // [B] of step `later`, or null
    const S* dy,              // rows of P, dy_row apart, or null
    int64 dy_row,
    A* direct,                // [B, P] in and out
    S* dproj,                 // [B, P]
    int64 t, int64 later, int64 B, int64 P) {
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t);
    FOR_EACH_UNIT(u, P) {
      A dh[W], held[W];
      arriving(direct, product, lengths, clear_later, here && dy ? dy + b * dy_row + u : nullptr, later, b, b * P + u, dh);
      for (int k = 0; k < W; ++k) held[k] = here ? A(0) : dh[k];
      for (int k = 0; k < W && !here; ++k) dh[k] = A(0);
      store<W>(direct + b * P + u, held);
      store<W>(dproj + b * P + u, dh);
    }
  }
}

// The gradient of the initial state: what arrives before the first step. Moves 2s + a per element.
KERNEL initial_backward(
    const A* direct,          // [B, P]
    const S* product,         // [B, P] or null
    const int64* lengths,     // [B] or null
    const bool* clear_later,  // [B] of step `later`, the first one, or null
    S* dh0,                   // [B, P]
    int64 later, int64 B, int64 P) {
  FOR_EACH_ROW(b, B) {
    FOR_EACH_UNIT(u, P) {
      A dh[W];
      arriving(direct, product, lengths, clear_later, nullptr, later, b, b * P + u, dh);
      store<W>(dh0 + b * P + u, dh);
    }
  }
}
