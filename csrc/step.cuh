// One time step of any cell, forward and backward; the matrix products are done outside, by cuBLAS.
//
// Before this file stand seven lines that make it one variant: `using Cell = Lstm; using S = float;` (the type of the
// arrays), `constexpr int W = 4;` (elements a thread moves at once) and `constexpr bool options = false;` (whether it
// knows a diagonal U, recurrent dropout and zoneout, each of which is then absent where its pointers are null; without,
// their code is gone), `constexpr bool normalised = false;` (layer normalisation, below), with its `constexpr double
// epsilon = 1e-05;`, and `constexpr int dense = 2;` (dense peepholes; 0 where a cell has none, and without options).
// A is what is computed in: float, or double for double. The cell state c, its gradient dc, the direct path of dh, the
// biases, the unit parameters p, a diagonal U, and the gradients of both are of type A everywhere.
//
//   diagonal U          ah = diagonal * seen is taken in the kernel itself, and so is the gated state of a gated cell
//   recurrent dropout   the products see h_prev * keep and s * keep; keep [B, P] is the same at all steps
//   zoneout             h = zone_h * h_prev + (1 - zone_h) * h, likewise c, before the projection; rows of the shares
//                       are zone_row apart, 0 where they are rates for all rows; backward wants the cell's own c and h
//   dense peepholes     V's products with c are done outside: the first `dense` gates see c_prev, the last one sees the
//                       cell's own c. So a step is launched twice each way, first for what the product in between
//                       needs: c alone (h is null), the last gate's dah alone (dc is null). That launch leaves states
//                       and sums as they are; what else it writes, when normalised, the second one writes again
//
// Who owns what: a thread owns W neighbouring hidden units of a row b, for every array of the step, and strides over
// the rest; neighbouring threads own neighbouring units, so every access of a warp is one contiguous piece. Each array
// is read or written once. Padding (t >= lengths[b]) is selected: what stands there, NaN too, is never read; the state
// is held, y is zero, gradients are zero. Where clear[b], the step sees a state of zero and its gradient is cut.
//
// Layer normalisation is a variant of its own (normalise.cuh, normalised.cuh): a block has whole rows, gridDim.x and
// blockDim.y are 1, so that it can sum over them. x W, h U and, for a cell with c, c are normalised on the way into
// registers; h is read out of LN(c) once the row's c is there. gains: [2G, H] of x W and h U, then for a cell with c two
// rows, gain and bias of LN(c). A diagonal U has kernels of its own then, and is absent here.
//
// Shapes: B, H, P, G, V are batch, hidden, projection, gates, saved values; offsets are 64-bit. "or null" marks what
// may be absent. ah_last and dah_last: [B, H], the last gate's; apart from the others, [B, G - 1, H], for gated cells,
// so that each is the operand of a product; for other cells they point into [B, G, H].
// Bytes moved are given per element (b, u) as multiples of s = sizeof(S) and a = sizeof(A), without lengths and flags,
// and without what is the same in every row: biases, p, a diagonal U, rates.
#pragma once
#include "loop.cuh"

// Not unrolled: a launch gives most threads one turn, and four copies of the body only cost compile time.
#define FOR_EACH_ROW(b, rows)                                                                        \
  _Pragma("unroll 1") for (int64 b = blockIdx.y * static_cast<int64>(blockDim.y) + threadIdx.y; b < (rows); \
                           b += gridDim.y * static_cast<int64>(blockDim.y))
#define FOR_EACH_UNIT(u, units)                                                                      \
  _Pragma("unroll 1") for (int64 u = W * (blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x); u < (units); \
                           u += W * static_cast<int64>(gridDim.x) * blockDim.x)
static_assert(!dense || !(Cell::gated || Cell::separate || Cell::parameters), "its first launch would write more");

// Where gate g of row b begins in ah or dah.
template <class T> __device__ __forceinline__ T* gate_of(T* ah, T* ah_last, int64 b, int g, int64 H) {
  return Cell::gated && g == inner ? ah_last + b * H : ah + (b * inner + g) * H;
}

#include "normalise.cuh"
constexpr bool reads_out = normalised && Cell::cell_state;

// The factors of what the recurrent product sees.
__device__ __forceinline__ void load_keep(const S* keep, int64 at, A (&factor)[W]) {
  fill(factor, A(1));
  if (options && keep) load<W>(keep + at, factor);
}

// What the next product sees of h: the numbers that stand in memory, so that a pass may begin anywhere.
__device__ __forceinline__ void drop(const A (&h)[W], const A (&factor)[W], S* seen) {
  A out[W];
  for (int k = 0; k < W; ++k) {
    S stored;
    narrow(h[k], stored);
    out[k] = widen(stored) * factor[k];
  }
  store<W>(seen, out);
}

// Zoneout: what the state becomes.
__device__ __forceinline__ void mix(const S* share, const A (&old)[W], A (&now)[W]) {
  A part[W];
  load<W>(share, part);
  for (int k = 0; k < W; ++k) now[k] = part[k] * old[k] + (A(1) - part[k]) * now[k];
}

// Zoneout: the gradient d of the state, divided between the old state and what the cell gave.
__device__ __forceinline__ void divide(const S* share, A (&d)[W], A (&held)[W]) {
  A part[W];
  load<W>(share, part);
  for (int k = 0; k < W; ++k) held[k] = part[k] * d[k], d[k] = (A(1) - part[k]) * d[k];
}

// Adds to a sum over the steps, which belongs to this thread.
__device__ __forceinline__ void accumulate(A* sum, const A (&values)[W]) {
  A total[W];
  load<W>(sum, total);
  for (int k = 0; k < W; ++k) total[k] += values[k];
  store<W>(sum, total);
}

// Adds to a value what a product with V gives it.
__device__ __forceinline__ void add_from(const A* product, A (&value)[W]) {
  A part[W];
  load<W>(product, part);
  for (int k = 0; k < W; ++k) value[k] += part[k];
}

// What h becomes: kept as the cell made it, mixed with the old one, held on padding, and written for all who read it.
__device__ __forceinline__ void write_h(
    bool here, int64 b, int64 u, int64 at, const S* zone_h, int64 zone_row, const A (&hp)[W], const A (&factor)[W], S* h,
    S* seen, S* own_h, S* y, int64 y_row, A (&h_new)[W]) {
  if (options && here && own_h) store<W>(own_h + at, h_new);
  if (options && here && zone_h) mix(zone_h + b * zone_row + u, hp, h_new);
  if (y) store<W>(y + b * y_row + u, h_new);
  for (int k = 0; k < W && !here; ++k) h_new[k] = hp[k];
  store<W>(h + at, h_new);
  if (options && seen) drop(h_new, factor, seen + at);
}

// h, c, saved values and y of step t.
// Moves, per element: s * (2G + V + 2), 2a more with a cell state, s more where h_prev is used (by GRU, and on padding).
// A diagonal U: s * (G - 1) less, s more where the cell itself does not use h_prev. Dropout: 2s more, with a diagonal U
// s. Zoneout: s more for h_prev, s for each mask, and for the backward pass a for c, s for h where the cell uses it.
// Normalised: the same from memory, each row of ah a second and a third time from the cache, of c and saved once more.
// Dense peepholes: a * (dense + 1) more, and before it a launch that moves s * 2G + a * (dense + 2) and makes c alone.
KERNEL step_forward(
    const S* ax,           // [B, G, H] pre-activations from the input, without bias
    const S* ah,           // [B, G, H] from the recurrent product, without bias
    const S* ah_last,      // [B, H] the last gate's, gated cells only, else null
    const A* bias,         // [G + separate, H] or null; row G is added to the last gate's ah
    const A* p,            // [N, H], null where N = 0
    const A* diagonal,     // [G, H] or null; ah and ah_last are null then
    const S* keep,         // [B, H] or null
    const S* zone_h,       // rows of H, zone_row apart, or null; null with a projection
    const S* zone_c,       // likewise, or null
    int64 zone_row,
    const S* h_prev,       // [B, H], with a projection null
    const A* c_prev,       // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [B] of step t, or null
    S* h,                  // [B, H]; with a projection its input, zero on padding; null in a launch that makes c alone
    A* c,                  // [B, H] or null
    S* saved,              // [B, V, H] or null
    S* seen,               // [B, H] h * keep for the next product; null without keep, with a diagonal U or a projection
    S* s,                  // [B, H] the gated state as its product sees it, with a diagonal U and if kept, else null
    S* own_h,              // [B, H] h before zoneout, or null
    A* own_c,              // [B, H] c before zoneout, or null
    const A* gains,        // normalised only, as the next two, else null
    const A* of_x,         // [B, 2] moments of ax
    A* of_rows,            // [B, ROWS, 2] those of h U and c, written; of a gated cell's first product read
    const A* from_c_prev,  // [B, dense, H] c_prev V^T of the gates that see it; null without dense peepholes
    const A* from_c,       // [B, H] c V^T of the last gate, likewise; null in a launch that makes c alone
    S* y,                  // rows of H, y_row apart; null with a projection
    int64 y_row, int64 t, int64 B, int64 H) {
  const bool c_alone = dense && !h;
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    Moments m_x, m_h, m_last;
    if (normalised && here) {
      A* kept = of_rows + b * ROWS * 2;
      m_x = fetch_moments(of_x + b * 2);
      if (!Cell::gated && !cleared) {
        m_h = moments([=](int g) { return gate_of(ah, ah_last, b, g, H); }, 0, inner, H);
        keep_moments(kept + OF_H * 2, m_h);
      }
      if (Cell::gated && !cleared) m_h = fetch_moments(kept + OF_H * 2);
      if (Cell::gated) {
        m_last = moments([=](int) { return ah_last + b * H; }, 0, 1, H);
        keep_moments(kept + OF_LAST * 2, m_last);
      }
    }
    FOR_EACH_UNIT(u, H) {
      const int64 at = b * H + u;
      A hp[W], cp[W], h_new[W], c_new[W], factor[W];
      fill(hp, A(0)), fill(cp, A(0)), fill(h_new, A(0)), fill(c_new, A(0));
      const bool uses_h_prev = Cell::uses_h_prev || !here || (options && (diagonal || zone_h));
      if (h_prev && !cleared && uses_h_prev) load<W>(h_prev + at, hp);
      load_keep(keep, at, factor);
      if (Cell::cell_state && !cleared) load<W>(c_prev + at, cp);
      if (here) {
        A from_x[Cell::gates][W], from_h[Cell::gates][W], kept[Cell::saved + 1][W], own[Cell::parameters + 1][W];
        for (int g = 0; g < Cell::gates; ++g) {
          A add[W];
          fill(add, A(0)), fill(from_h[g], A(0));
          load<W>(ax + (b * Cell::gates + g) * H + u, from_x[g]);
          if (normalised) normalise(from_x[g], m_x, gains + g * H + u);
          const bool of_state = !(Cell::gated && g == Cell::gates - 1);  // which is gone where it was cleared
          if (!(cleared && of_state) && !(options && diagonal)) {
            load<W>(gate_of(ah, ah_last, b, g, H) + u, from_h[g]);
            if (normalised) normalise(from_h[g], of_state ? m_h : m_last, gains + (Cell::gates + g) * H + u);
          }
          if (bias) load<W>(bias + g * H + u, add);
          for (int k = 0; k < W; ++k) from_x[g][k] += add[k];
        }
        if (options && diagonal) {
          for (int g = 0; g < Cell::gates; ++g) {
            A weight[W], sees[W];
            load<W>(diagonal + g * H + u, weight);
            for (int k = 0; k < W; ++k) sees[k] = hp[k] * factor[k];
            if (Cell::gated && g == Cell::gates - 1) {
              for (int k = 0; k < W; ++k) sees[k] = Cell::gate(from_x[0][k], from_h[0][k], hp[k]) * factor[k];
              if (s) store<W>(s + at, sees);
            }
            for (int k = 0; k < W; ++k) from_h[g][k] = weight[k] * sees[k];
          }
        }
        if (Cell::separate && bias) {
          A add[W];
          load<W>(bias + Cell::gates * H + u, add);
          for (int k = 0; k < W; ++k) from_h[Cell::gates - 1][k] += add[k];
        }
        for (int g = 0; g < dense; ++g)
          if (from_c_prev && !cleared) add_from(from_c_prev + (b * dense + g) * H + u, from_h[g]);
        if (dense && from_c) add_from(from_c + at, from_h[Cell::gates - 1]);
        for (int n = 0; n < Cell::parameters; ++n) load<W>(p + n * H + u, own[n]);
        for (int k = 0; k < W; ++k) {
          A x[Cell::gates], r[Cell::gates], v[Cell::saved + 1], q[Cell::parameters + 1];
          for (int g = 0; g < Cell::gates; ++g) x[g] = from_x[g][k], r[g] = from_h[g][k];
          for (int n = 0; n < Cell::parameters; ++n) q[n] = own[n][k];
          Cell::forward(x, r, hp[k], cp[k], q, h_new[k], c_new[k], v);
          for (int g = 0; g < Cell::saved; ++g) kept[g][k] = v[g];
        }
        if (saved) {
          for (int g = 0; g < Cell::saved; ++g) store<W>(saved + (b * Cell::saved + g) * H + u, kept[g]);
        }
        if (options && own_c) store<W>(own_c + at, c_new);
        if (options && zone_c) mix(zone_c + b * zone_row + u, cp, c_new);
      }
      for (int k = 0; k < W && !here; ++k) c_new[k] = cp[k];
      if (Cell::cell_state) store<W>(c + at, c_new);
      if (!reads_out && !c_alone)
        write_h(here, b, u, at, zone_h, zone_row, hp, factor, h, seen, own_h, y, y_row, h_new);
    }
    if constexpr (reads_out) {
      if (c_alone) continue;
      const A* of_cell = (own_c ? own_c : c) + b * H;
      Moments m_c;
      if (here) {
        __syncthreads();  // the row's c is there
        m_c = moments([=](int) { return of_cell; }, 0, 1, H);
        keep_moments(of_rows + (b * ROWS + OF_C) * 2, m_c);
      }
      FOR_EACH_UNIT(u, H) {
        const int64 at = b * H + u;
        A hp[W], h_new[W], factor[W];
        fill(hp, A(0)), fill(h_new, A(0));
        if (h_prev && !cleared && (!here || zone_h)) load<W>(h_prev + at, hp);
        load_keep(keep, at, factor);
        if (here) {
          A v[W], bias_c[W], kept[Cell::saved + 1][W];
          load<W>(of_cell + u, v), load<W>(gains + (2 * Cell::gates + 1) * H + u, bias_c);
          normalise(v, m_c, gains + 2 * Cell::gates * H + u);
          for (int g = 0; g < Cell::saved; ++g) load<W>(saved + (b * Cell::saved + g) * H + u, kept[g]);
          for (int k = 0; k < W; ++k) {
            A values[Cell::saved + 1];
            for (int g = 0; g < Cell::saved; ++g) values[g] = kept[g][k];
            h_new[k] = Cell::readout(values, v[k] + bias_c[k]);
          }
        }
        write_h(here, b, u, at, zone_h, zone_row, hp, factor, h, seen, own_h, y, y_row, h_new);
      }
    }
  }
}

// After the projection: the state and y of step t from the product. Moves 3s per element, with dropout 5s.
KERNEL project_forward(
    const S* product,      // [B, P]
    const S* h_prev,       // [B, P]
    const S* keep,         // [B, P] or null
    const int64* lengths,  // [B] or null
    S* h,                  // [B, P]
    S* seen,               // [B, P] h * keep for the next product, null without keep
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
      if (options && seen) {
        A factor[W];
        load_keep(keep, b * P + u, factor);
        drop(state, factor, seen + b * P + u);
      }
    }
  }
}

// The gradient of h after a step, from all sides: the direct path, the recurrent product of the step that comes later
// in the sequence's own order (null at its end, and with a diagonal U, whose product is in the direct path), and the
// loss on y (null for none).
__device__ __forceinline__ void arriving(
    const A* direct, const S* product, const S* keep, const int64* lengths, const bool* clear_later, const S* dy,
    int64 later, int64 b, int64 at, A (&dh)[W]) {
  A add[W], factor[W];
  load<W>(direct + at, dh);
  if (product && exists(lengths, b, later) && !is_set(clear_later, b)) {
    load<W>(product + at, add);
    load_keep(keep, at, factor);
    for (int k = 0; k < W && options; ++k) add[k] *= factor[k];
    for (int k = 0; k < W; ++k) dh[k] += add[k];
  }
  if (dy) {
    load<W>(dy, add);
    for (int k = 0; k < W; ++k) dh[k] += add[k];
  }
}

// Gradients of the pre-activations of step t; the state's gradients move from after the step to before it.
// Moves, per element: s * (V + G + 2) + 2a; s more for each of h and h_prev that the cell uses, 4a with a cell state (and s with
// dcells), s * G where `separate`, 2a * N with unit parameters. A diagonal U: 2a * G more for its gradient, s for
// h_prev where the cell itself does not use it, s for s, s less for the product. Dropout and zoneout: s for each array.
// Normalised: s * 2G more, for a gated cell 2s here; 4a more for the gradients of LN(c)'s gain and bias. What it reads
// again, and `read`, should come from the cache.
// Dense peepholes: 2a more, and before it a launch that moves s * (V + 3) + 3a and makes the last gate's dah alone.
KERNEL step_backward(
    const S* saved,           // [B, V, H]
    const A* p,               // [N, H], null where N = 0
    const A* diagonal,        // [G, H] or null
    const S* keep,            // [B, P] or null
    const S* zone_h,          // as in step_forward
    const S* zone_c,
    int64 zone_row,
    const S* h_prev,          // [B, H]
    const A* c_prev,          // [B, H] or null
    const S* s,               // [B, H] the gated state as its product saw it, with a diagonal U only, else null
    const S* h,               // [B, H] of the cell: before zoneout and projection
    const A* c,               // [B, H] of the cell: before zoneout; or null
    const int64* lengths,     // [B] or null
    const bool* clear,        // [B] of step t, or null
    const bool* clear_later,  // [B] of step `later`, or null
    const S* dy,              // rows of H, dy_row apart, or null
    int64 dy_row,
    const S* dcells,          // rows of H, dcells_row apart: gradient of c from the loss on it; or null
    int64 dcells_row,
    const S* product,         // [B, H] dah of step `later` times U; null where there is none, and with a diagonal U
    const S* dm,              // [B, H] gradient of the projection's input; null without a projection
    A* direct,                // [B, H] dh on the direct path; in and out; null with a projection
    A* dc,                    // [B, H] in and out, or null; null too in a launch that makes the last gate's dah alone
    S* dax,                   // [B, G, H] where `separate`, else null: dah is dax
    S* dah,                   // [B, G, H]
    S* dah_last,              // [B, H] the last gate's, gated cells only, else null
    A* dp,                    // [B, N, H] sum over the steps so far, in and out; null where N = 0
    A* ddiagonal,             // [B, G, H] likewise; null without a diagonal U
    const A* gains,           // normalised only, as all that follows, else null
    const A* of_rows,         // [B, ROWS, 2] moments
    const S* ah,              // [B, G, H] the products; of a gated cell [B, H], the second one
    S* dhu,                   // likewise, their gradients
    A* read,                  // [2, B, H] scratch for a cell with c, else null, as the next
    A* dnorm_c,               // [B, 2, H] gradients of gain and bias of LN(c), sum over the steps so far, in and out
    const A* to_c,            // [B, H] dah of the last gate times V; null without dense peepholes, and where dc is null
    const A* to_c_prev,       // [B, H] that of step `later`, of the gates that saw c_prev; likewise, or no such step
    int64 t, int64 later, int64 B, int64 H) {
  const bool last_alone = dense && !dc;  // of the gates, whose gradient needs no dc
  FOR_EACH_ROW(b, B) {
    const bool here = exists(lengths, b, t), cleared = is_set(clear, b);
    Moments m_c;
    Means of_c;
    A *d_o = read + b * H, *d_hat = read + (B + b) * H;  // gradients of the output gate and of c's hat
    if constexpr (reads_out) {
      if (here) {
        A sums[2] = {A(0), A(0)};
        m_c = fetch_moments(of_rows + (b * ROWS + OF_C) * 2);
        FOR_EACH_UNIT(u, H) {
          const int64 at = b * H + u;
          A dh[W], held[W], c_t[W], c_hat[W], gain[W], bias_c[W], kept[Cell::saved + 1][W], out[W], dv[W], along[W];
          const S* dy_at = dy ? dy + b * dy_row + u : nullptr;
          if (dm) load<W>(dm + at, dh);
          else arriving(direct, product, keep, lengths, clear_later, dy_at, later, b, at, dh);
          if (zone_h) divide(zone_h + b * zone_row + u, dh, held);
          load<W>(c + at, c_t);
          load<W>(gains + 2 * Cell::gates * H + u, gain), load<W>(gains + (2 * Cell::gates + 1) * H + u, bias_c);
          for (int g = 0; g < Cell::saved; ++g) load<W>(saved + (b * Cell::saved + g) * H + u, kept[g]);
          for (int k = 0; k < W; ++k) {
            A values[Cell::saved + 1];
            for (int g = 0; g < Cell::saved; ++g) values[g] = kept[g][k];
            c_hat[k] = hat(c_t[k], m_c);
            Cell::readout_backward(values, c_hat[k] * gain[k] + bias_c[k], dh[k], out[k], dv[k]);
            along[k] = dv[k] * c_hat[k];
          }
          if (!last_alone) accumulate(dnorm_c + b * 2 * H + u, along), accumulate(dnorm_c + (b * 2 + 1) * H + u, dv);
          for (int k = 0; k < W; ++k) dv[k] *= gain[k];
          store<W>(d_o + u, out), store<W>(d_hat + u, dv);
        }
        __syncthreads();  // the row's gradients of hat are there
        _Pragma("unroll 4") for (int64 u = threadIdx.x; u < H; u += blockDim.x) {
          const A d = fetch(d_hat + u);
          sums[0] += d, sums[1] += d * hat(fetch(c + b * H + u), m_c);
        }
        block_sums(sums);
        of_c = {sums[0] / static_cast<A>(H), sums[1] / static_cast<A>(H)};
      }
    }
    FOR_EACH_UNIT(u, H) {
      const int64 at = b * H + u;
      A dh[W], dc_t[W], add[W], gate[Cell::gates][W], last[W], dh_prev[W];
      fill(dh, A(0)), fill(dc_t, A(0)), fill(last, A(0));
      const S* dy_at = here && dy ? dy + b * dy_row + u : nullptr;
      if (!dm) arriving(direct, product, keep, lengths, clear_later, dy_at, later, b, at, dh);
      if (dm && here) load<W>(dm + at, dh);
      if (Cell::cell_state && !last_alone) load<W>(dc + at, dc_t);
      if (dense && to_c_prev && exists(lengths, b, later) && !is_set(clear_later, b)) add_from(to_c_prev + at, dc_t);
      if (Cell::cell_state && dcells && here) {
        load<W>(dcells + b * dcells_row + u, add);
        for (int k = 0; k < W; ++k) dc_t[k] += add[k];
      }
      for (int g = 0; g < Cell::gates; ++g) fill(gate[g], A(0));
      for (int k = 0; k < W; ++k) dh_prev[k] = dh[k];
      if (here) {
        A kept[Cell::saved + 1][W], own[Cell::parameters + 1][W], dp_t[Cell::parameters + 1][W];
        A hp[W], h_t[W], cp[W], c_t[W], held_h[W], held_c[W];
        fill(hp, A(0)), fill(h_t, A(0)), fill(cp, A(0)), fill(c_t, A(0)), fill(held_h, A(0)), fill(held_c, A(0));
        for (int g = 0; g < Cell::saved; ++g) load<W>(saved + (b * Cell::saved + g) * H + u, kept[g]);
        for (int n = 0; n < Cell::parameters; ++n) load<W>(p + n * H + u, own[n]);
        if ((Cell::uses_h_prev || (options && diagonal)) && !cleared) load<W>(h_prev + at, hp);
        if (Cell::uses_h) load<W>(h + at, h_t);
        if (Cell::cell_state && !cleared) load<W>(c_prev + at, cp);
        if (Cell::cell_state) load<W>(c + at, c_t);
        if (options && zone_h) divide(zone_h + b * zone_row + u, dh, held_h);
        if (options && zone_c) divide(zone_c + b * zone_row + u, dc_t, held_c);
        if (dense && to_c) add_from(to_c + at, dc_t);
        if constexpr (reads_out) {
          A d[W];
          load<W>(d_hat + u, d), load<W>(d_o + u, dh);
          for (int k = 0; k < W; ++k) dc_t[k] += normalise_backward(d[k], c_t[k], m_c, of_c);
        }
        for (int k = 0; k < W; ++k) {
          A v[Cell::saved + 1], q[Cell::parameters + 1], dq[Cell::parameters + 1], da[Cell::gates];
          for (int g = 0; g < Cell::saved; ++g) v[g] = kept[g][k];
          for (int n = 0; n < Cell::parameters; ++n) q[n] = own[n][k];
          for (int g = 0; g < Cell::gates; ++g) da[g] = A(0);
          if constexpr (reads_out)
            Cell::inside(v, hp[k], cp[k], h_t[k], c_t[k], q, dh[k], dc_t[k], da, last[k], dh_prev[k], dq);
          else Cell::backward(v, hp[k], cp[k], h_t[k], c_t[k], q, dh[k], dc_t[k], da, last[k], dh_prev[k], dq);
          for (int g = 0; g < Cell::gates; ++g) gate[g][k] = da[g];
          for (int n = 0; n < Cell::parameters; ++n) dp_t[n][k] = dq[n];
        }
        for (int n = 0; n < Cell::parameters; ++n) accumulate(dp + (b * Cell::parameters + n) * H + u, dp_t[n]);
        if (options && diagonal) {  // the last gate first: its gradient makes gate 0's where the cell is gated
          A factor[W];
          load_keep(keep, at, factor);
          for (int g = Cell::gates - 1; g >= 0; --g) {
            const bool of_gated = Cell::gated && g == Cell::gates - 1, apart = Cell::separate && g == Cell::gates - 1;
            A weight[W], sees[W], sum[W];
            load<W>(diagonal + g * H + u, weight);
            if (of_gated) load<W>(s + at, sees);
            for (int k = 0; k < W && !of_gated; ++k) sees[k] = hp[k] * factor[k];
            for (int k = 0; k < W; ++k) {
              const A da = apart ? last[k] : gate[g][k];
              A path = da * weight[k] * factor[k];
              sum[k] = da * sees[k];
              if (of_gated) {
                A da_0;
                Cell::gate_backward(kept[0][k], hp[k], path, da_0, path);
                gate[0][k] += da_0;
              }
              dh_prev[k] += path;
            }
            accumulate(ddiagonal + (b * Cell::gates + g) * H + u, sum);
          }
        }
        for (int k = 0; k < W && options; ++k) dh_prev[k] += held_h[k], dc_t[k] += held_c[k];
        for (int k = 0; k < W && cleared; ++k) dh_prev[k] = dc_t[k] = A(0);
      }
      for (int g = 0; g < Cell::gates; ++g) {
        const bool apart = Cell::separate && g == Cell::gates - 1;
        if (last_alone && g < Cell::gates - 1) continue;
        if (Cell::separate) store<W>(dax + (b * Cell::gates + g) * H + u, gate[g]);
        store<W>(gate_of(dah, dah_last, b, g, H) + u, apart ? last : gate[g]);
      }
      if (!dm && !last_alone) store<W>(direct + at, dh_prev);
      if (Cell::cell_state && !last_alone) store<W>(dc + at, dc_t);
    }
    if constexpr (normalised) {
      if (last_alone) continue;
      constexpr int first = Cell::gated ? inner : 0, rows = Cell::gates - first, of = Cell::gated ? OF_LAST : OF_H;
      __syncthreads();  // the row's gradients are there
      before_gain(
          !here || cleared, first, Cell::gates, H, gains + Cell::gates * H, of_rows + (b * ROWS + of) * 2,
          [=](int g) { return gate_of(dah, dah_last, b, g, H); },
          [=](int g) { return ah + (b * rows + g - first) * H; },
          [=](int g) { return dhu + (b * rows + g - first) * H; });
    }
  }
}

// The gradient of h after step t where a projection made it: dproj, zero on padding, where the direct path keeps it.
// Moves 3s + 2a per element, with dropout s more.
KERNEL project_backward(
    const S* product,         // [B, P] dah of step `later` times U; null where there is none
    const S* keep,            // [B, P] or null
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
      const S* dy_at = here && dy ? dy + b * dy_row + u : nullptr;
      arriving(direct, product, keep, lengths, clear_later, dy_at, later, b, b * P + u, dh);
      for (int k = 0; k < W; ++k) held[k] = here ? A(0) : dh[k];
      for (int k = 0; k < W && !here; ++k) dh[k] = A(0);
      store<W>(direct + b * P + u, held);
      store<W>(dproj + b * P + u, dh);
    }
  }
}

// The gradient of the initial state: what arrives before the first step. Moves 2s + a per element, with dropout s more.
KERNEL initial_backward(
    const A* direct,          // [B, P]
    const S* product,         // [B, P] or null
    const S* keep,            // [B, P] or null
    const int64* lengths,     // [B] or null
    const bool* clear_later,  // [B] of step `later`, the first one, or null
    S* dh0,                   // [B, P]
    int64 later, int64 B, int64 P) {
  FOR_EACH_ROW(b, B) {
    FOR_EACH_UNIT(u, P) {
      A dh[W];
      arriving(direct, product, keep, lengths, clear_later, nullptr, later, b, b * P + u, dh);
      store<W>(dh0 + b * P + u, dh);
    }
  }
}
