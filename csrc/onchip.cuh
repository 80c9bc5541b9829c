// The whole sequence in one launch: recurrent weights stay on the chip, in registers and shared memory, for all steps.
//
// Before this file stand a product (fma.cuh for float32; for 16 bits mma.cuh, or split.cuh where a block has few units)
// and who takes part: block.cuh, a block with all units, or grid.cuh, blocks that share the units. Before those, besides
// what loop.cuh and the product ask for, `constexpr bool options` (whether it knows recurrent dropout and zoneout;
// without, their code is gone), `constexpr int FORWARD, BACKWARD`, how much of each pass's weights is in registers
// (QUADS or FRAGMENTS; a gated cell's second product has FORWARD_LAST, BACKWARD_LAST), `constexpr int FORWARD_BYTES,
// BACKWARD_BYTES`, the shared memory that the launch gives, and `FORWARD_SHOWN, BACKWARD_SHOWN`, the elements that
// the blocks of a group exchange.
//
// Who owns what: a thread has the gates of `own` pairs of a unit and a row for all steps, and with them c, the state h
// and their gradients in registers. What the product sees, h * keep forward and the gates' gradients backward, all threads
// of a group need: it is shown to them (`Shown`) in two places in turn, so that a step has one barrier (a gated cell two:
// its gated state has a place of its own). Inputs of a step are fetched as soon as those of the step before are used up,
// and waited for after the product. A second set of registers, fetched a product earlier still, left no room for 32 KiB
// of weights. Where a barrier is dear, between blocks, only what is shown is written before it, all else after.
//
// What padding, `clear`, zoneout and the types of arrays mean is as in step.cuh, and memory is the step plan's, so that
// the products before and after the loop are the same. Where all of a group's sequences have ended it stops; slots of
// states on padding are written only where somebody reads them: next to a step that exists, and the last one.
// h and what the product sees are rounded to S each step, so that a pass may begin anywhere.
#pragma once
#include "loop.cuh"

constexpr int biases = Cell::gates + Cell::separate, parameters = Cell::parameters;
constexpr int last_places = Cell::gated;  // for what the last product sees: none where there is no such product

// Places in shared memory, in bytes: sums first for alignment.
template <class First, class Last> struct Areas {
  static constexpr int vectors = 0;  // biases, p: A [biases + parameters, UNITS]
  static constexpr int seen = vectors + (biases + parameters) * UNITS * sizeof(A);
  static constexpr int last_seen = seen + Shown<First, 2>::bytes;
  static constexpr int weights = last_seen + Shown<Last, last_places>::bytes;
  static constexpr int last_weights = weights + First::in_shared * THREADS * sizeof(Vector);
  static constexpr int scratch = last_weights + (Cell::gated ? Last::in_shared * THREADS * sizeof(Vector) : 0);
  static constexpr int bytes = scratch + (Cell::gated && Last::scratch > First::scratch ? Last::scratch : First::scratch);
  // Elements that the blocks of a group exchange.
  static constexpr int shown = Shown<First, 2>::exchanged + Shown<Last, last_places>::exchanged;
};

// Steps that the group's longest sequence has; 0 <= lengths <= T.
__device__ __forceinline__ int longest(const int64* lengths, int first_row, int64 T, int64 B) {
  if (!lengths) return static_cast<int>(T);
  int most = 0;
  for (int b = first_row; b < first_row + ROWS && b < B; ++b) {
    const int length = static_cast<int>(fetch(lengths + b));
    if (length > most) most = length;
  }
  return most;
}

// The pairs of a unit and a row that a thread owns. Within a step offsets have 32 bits, and only where the step begins has
// 64: it is the same for all threads, and what each thread keeps of it takes no registers.
struct Pairs {
  int b[own], length[own];
  bool there[own];

  __device__ __forceinline__ Pairs(const int64* lengths, int first_row, int first_unit, int64 T, int64 B, int H) {
    _Pragma("unroll") for (int j = 0; j < own; ++j) {
      b[j] = first_row + row_of(j);
      there[j] = acts(j) && b[j] < B && first_unit + unit_of(j) < H;
      length[j] = static_cast<int>(there[j] && lengths ? fetch(lengths + b[j]) : T);
    }
  }
};
#define FOR_MINE(j) _Pragma("unroll") for (int j = 0; j < own; ++j) if (mine.there[j])

// One of `count` in an array [T, B, count, H], `step` [T, B, H] elements behind its begin. What is the same for all
// threads is added first: it takes no registers of theirs, which offsets kept for every gate would.
template <int count, class T> __device__ __forceinline__ T* gate_of(T* array, int64 step, int g, int b, int u, int H) {
  return array + (step * count + g * H) + (b * count * H + u);
}

__device__ __forceinline__ A share_of(const S* share, int64 step, int64 row, int64 t, int b, int u) {
  return widen(fetch(share + t * step + b * row + u));
}

// What a step of the forward pass makes of a pair, as it is stored.
struct Made {
  S saved[Cell::saved + 1], h, sees, own_h;
  A own_c;
};

using FirstForward = Product<inner, ALL_UNITS, FORWARD>;
using LastForward = Product<1, ALL_UNITS, FORWARD_LAST>;
using FirstBackward = Product<1, inner * ALL_UNITS, BACKWARD>;
using LastBackward = Product<1, ALL_UNITS, BACKWARD_LAST>;
template <class First, class Last> constexpr int vectors_of = First::vectors + (Cell::gated ? Last::vectors : 0);

// A block of these two kernels writes one vector of each thread of a block of the next two, [slices, vectors, THREADS],
// those of a gated cell's last product behind the others: what a thread has then comes in loads of 16 bytes, side by side.
// Fetched as they stand, element by element, weights took 50 KiB of code and, until the loop began, more registers than
// there are. The grid has vectors along x, slices of units along y.
KERNEL onchip_pack_forward(
    const S* hh,  // [G, H, H] recurrent weights
    S* packed,    // vectors of both products times THREADS times 16 bytes
    int64 all_units) {
  const int H = static_cast<int>(all_units), v = blockIdx.x, first_unit = blockIdx.y * UNITS;
  const auto weight = [=](int g, int of, int k) {
    const int u = first_unit + of;
    return u < H && k < H ? fetch(hh + (g * H + u) * H + k) : rounded<S>(A(0));
  };
  Vector out;
  if (v < FirstForward::vectors) out = FirstForward::vector(weight, v);
  else out = LastForward::vector([=](int, int u, int k) { return weight(inner, u, k); }, v - FirstForward::vectors);
  put(reinterpret_cast<Vector*>(packed) + (blockIdx.y * gridDim.x + v) * THREADS + threadIdx.x, out);
}

// U transposed: the terms are gates and their units, the units those that the step before saw.
KERNEL onchip_pack_backward(const S* hh, S* packed, int64 all_units) {
  const int H = static_cast<int>(all_units), v = blockIdx.x, first_unit = blockIdx.y * UNITS;
  const auto weight = [=](int g, int seen_by, int k) {
    const int u = first_unit + seen_by, of = k % ALL_UNITS;
    return u < H && of < H ? fetch(hh + (g * H + of) * H + u) : rounded<S>(A(0));
  };
  Vector out;
  if (v < FirstBackward::vectors)
    out = FirstBackward::vector(
        [=](int, int u, int k) { return k < inner * ALL_UNITS ? weight(k / ALL_UNITS, u, k) : rounded<S>(A(0)); }, v);
  else
    out = LastBackward::vector(
        [=](int, int u, int k) { return k < ALL_UNITS ? weight(inner, u, k) : rounded<S>(A(0)); }, v - FirstBackward::vectors);
  put(reinterpret_cast<Vector*>(packed) + (blockIdx.y * gridDim.x + v) * THREADS + threadIdx.x, out);
}

// Take the weights of the block's units.
template <class First, class Last> __device__ __forceinline__ void load_weights(const S* packed, int slice, First& first, Last& last) {
  using At = Areas<First, Last>;
  const Vector* weights = reinterpret_cast<const Vector*>(packed) + slice * vectors_of<First, Last> * THREADS;
  first.load_weights(weights, at_byte<Vector>(At::weights), at_byte<A>(At::scratch));
  if constexpr (Cell::gated)
    last.load_weights(weights + First::vectors * THREADS, at_byte<Vector>(At::last_weights), at_byte<A>(At::scratch));
}

// All steps: h, c, saved values and y.
KERNEL onchip_forward(
    const S* ax,           // [T, B, G, H] pre-activations from the input, without bias
    const S* packed,       // what onchip_pack_forward wrote
    const A* bias,         // [G + separate, H] or null; row G is added to the last gate's ah
    const A* p,            // [N, H], null where N = 0
    const S* keep,         // [B, H] or null
    const S* zone_h,       // steps zone_step apart, rows of H zone_row apart, or null
    const S* zone_c,       // likewise, or null
    int64 zone_step, int64 zone_row,
    const S* h_first,      // [B, H]
    const A* c_first,      // [B, H] or null
    const int64* lengths,  // [B] or null
    const bool* clear,     // [T, B] or null
    S* hs,                 // [T + 1, B, H] states before and after each step; a pass that keeps none has nulls here and
    A* cs,                 // likewise                                         in the next four
    S* saved,              // [T, B, V, H]
    S* s,                  // [T, B, H] the gated state as its product sees it, zero on padding; of gated cells
    S* seen,               // [T + 1, B, H] h * keep as the product sees it, or null
    S* own_h,              // [T, B, H] h before zoneout, or null
    A* own_c,              // [T, B, H] c before zoneout, or null
    S* h_last,             // [B, H]; may be h_first
    A* c_last,             // [B, H] or null
    S* y,                  // steps y_step apart, rows of H y_row apart
    int64 y_step, int64 y_row, int64 reverse, int64 T, int64 B, int64 all_units,
    Seen* exchange,        // [groups, FORWARD_SHOWN] zeros, where blocks share the units, else null
    unsigned* flags,       // [groups, 2, LINE] zeros, likewise
    int64 first_group) {   // of this launch
  const int H = static_cast<int>(all_units);
  using First = FirstForward;
  using Last = LastForward;
  using At = Areas<First, Last>;
  static_assert(At::bytes == FORWARD_BYTES && At::shown == FORWARD_SHOWN, "the launch counts as the kernel does");
  A* vectors = at_byte<A>(At::vectors);
  const Group group(exchange, flags, first_group);
  const int first_row = group.first_row(), first_unit = group.slice() * UNITS;
  const Pairs mine(lengths, first_row, first_unit, T, B, H);

  First first;
  Last last;
  load_weights(packed, group.slice(), first, last);
  Shown<First, 2> state(group, At::seen, 0, At::shown, 0);
  Shown<Last, last_places> gated_state(group, At::last_seen, 1, At::shown, Shown<First, 2>::exchanged);
  for (int k = threadIdx.x; k < (biases + parameters) * UNITS; k += THREADS) {
    const int row = k / UNITS, u = first_unit + k % UNITS;
    A value = A(0);
    if (u < H && row < biases && bias) value = fetch(bias + row * H + u);
    if (u < H && row >= biases) value = fetch(p + (row - biases) * H + u);
    put(vectors + k, value);
  }
  __syncthreads();

  const int steps = longest(lengths, first_row, T, B), begin = reverse ? static_cast<int>(T) - steps : 0, end = begin + steps;
  const int64 in_step = B * H;  // of an array [T, B, H]
  const auto time = [=](int n) { return reverse ? static_cast<int>(T) - 1 - n : n; };
  const bool keeps = hs != nullptr;
  A h[own], c[own], factor[own];
  S x[own][Cell::gates];
  FOR_MINE(j) {
    const int u = first_unit + unit_of(j);
    const int at = mine.b[j] * H + u;
    const int64 entry = (reverse ? steps : 0) * in_step + at;  // the slot before the first step
    h[j] = widen(fetch(h_first + at));
    c[j] = Cell::cell_state ? fetch(c_first + at) : A(0);
    factor[j] = options && keep ? widen(fetch(keep + at)) : A(1);
    const S sees = rounded<S>(h[j] * factor[j]);
    if (keeps && begin > 0) {
      put(hs + entry, rounded<S>(h[j]));
      if (Cell::cell_state) put(cs + entry, c[j]);
      if (options && seen) put(seen + entry, sees);
    }
    if (steps > 0) {
      if (clear && fetch(clear + time(begin) * B + mine.b[j])) h[j] = c[j] = A(0);
      else state.show(0, row_of(j), u, rounded<Seen>(widen(sees)));
      _Pragma("unroll") for (int g = 0; g < Cell::gates; ++g)
        x[j][g] = fetch(gate_of<Cell::gates>(ax, time(begin) * in_step, g, mine.b[j], u, H));
    }
  }
  state.arrive(), state.wait(0);

  _Pragma("unroll 1") for (int n = begin; n < end; ++n) {
    const int t = time(n), t_next = time(n + 1), parity = (n - begin) % 2;
    const int64 begins = t * in_step, after = (t + 1 - reverse) * in_step;
    const bool more = n + 1 < end;
    bool cleared_next[own];
    FOR_MINE(j) cleared_next[j] = more && clear && fetch(clear + t_next * B + mine.b[j]);
    A from_h[own][inner], from_s[own][1];
    first.multiply(state.at(parity), from_h);
    if constexpr (Cell::gated) {
      S gated[own];
      FOR_MINE(j) {
        A value = A(0);
        if (t < mine.length[j])
          value = Cell::gate(widen(x[j][0]) + fetch(vectors + unit_of(j)), from_h[j][0], h[j]) * factor[j];
        gated[j] = rounded<S>(value);
        gated_state.show(0, row_of(j), first_unit + unit_of(j), rounded<Seen>(widen(gated[j])));
      }
      gated_state.arrive();
      if (keeps) FOR_MINE(j) put(s + begins + (mine.b[j] * H + first_unit + unit_of(j)), gated[j]);
      gated_state.wait(0);
      last.multiply(gated_state.at(0), from_s);
    }
    Made made[own];
    // What there is only of a step that exists. Where nothing is put off it is written at once: kept until after the
    // branch, it took up to 16 registers more.
    const auto write_saved = [&](int j) {
      const int u = first_unit + unit_of(j), b = mine.b[j], at = b * H + u;
      if (keeps)
        _Pragma("unroll") for (int k = 0; k < Cell::saved; ++k)
          put(gate_of<Cell::saved>(saved, begins, k, b, u, H), made[j].saved[k]);
      if (options && own_h) put(own_h + begins + at, made[j].own_h);
      if (options && own_c) put(own_c + begins + at, made[j].own_c);
    };
    const auto write = [&](int j) {
      const int u = first_unit + unit_of(j), b = mine.b[j], at = b * H + u;
      const bool here = t < mine.length[j];
      if (apart && here) write_saved(j);
      put(y + t * y_step + b * y_row + u, here ? made[j].h : rounded<S>(A(0)));
      if (keeps) {
        put(hs + after + at, made[j].h);
        if (Cell::cell_state) put(cs + after + at, c[j]);
        if (options && seen) put(seen + after + at, made[j].sees);
      }
      if (cleared_next[j]) h[j] = c[j] = A(0);
      _Pragma("unroll") for (int g = 0; g < Cell::gates && more; ++g)
        x[j][g] = fetch(gate_of<Cell::gates>(ax, t_next * in_step, g, b, u, H));
    };
    FOR_MINE(j) {
      const int of = unit_of(j), b = mine.b[j], u = first_unit + of;
      A h_new = h[j], c_new = c[j];
      if (t < mine.length[j]) {
        A from_x[Cell::gates], from_state[Cell::gates], kept[Cell::saved + 1], q[parameters + 1];
        _Pragma("unroll") for (int g = 0; g < Cell::gates; ++g) {
          from_x[g] = widen(x[j][g]) + fetch(vectors + g * UNITS + of);
          from_state[g] = Cell::gated && g == inner ? from_s[j][0] : from_h[j][g < inner ? g : 0];
        }
        if (Cell::separate) from_state[Cell::gates - 1] += fetch(vectors + Cell::gates * UNITS + of);
        _Pragma("unroll") for (int k = 0; k < parameters; ++k) q[k] = fetch(vectors + (biases + k) * UNITS + of);
        Cell::forward(from_x, from_state, h[j], c[j], q, h_new, c_new, kept);
        _Pragma("unroll") for (int k = 0; k < Cell::saved; ++k) made[j].saved[k] = rounded<S>(kept[k]);
        if (options) made[j].own_h = rounded<S>(h_new), made[j].own_c = c_new;
        if (!apart) write_saved(j);
        if (options) {
          if (zone_h) {
            const A share = share_of(zone_h, zone_step, zone_row, t, b, u);
            h_new = share * h[j] + (A(1) - share) * h_new;
          }
          if (zone_c) {
            const A share = share_of(zone_c, zone_step, zone_row, t, b, u);
            c_new = share * c[j] + (A(1) - share) * c_new;
          }
        }
      }
      made[j].h = rounded<S>(h_new);
      h[j] = widen(made[j].h), c[j] = c_new;
      made[j].sees = options ? rounded<S>(h[j] * factor[j]) : made[j].h;
      state.show(1 - parity, row_of(j), u, rounded<Seen>(cleared_next[j] ? A(0) : widen(made[j].sees)));
      if (!apart) write(j);
    }
    state.arrive();
    if (apart) FOR_MINE(j) write(j);
    state.wait(1 - parity);  // the state is there
  }

  FOR_MINE(j) {
    const int u = first_unit + unit_of(j);
    put(h_last + mine.b[j] * H + u, rounded<S>(h[j]));
    if (Cell::cell_state) put(c_last + mine.b[j] * H + u, c[j]);
    for (int t = steps; t < T; ++t) {
      put(y + t * y_step + mine.b[j] * y_row + u, rounded<S>(A(0)));
      if (Cell::gated && keeps) put(s + t * in_step + (mine.b[j] * H + u), rounded<S>(A(0)));
    }
  }
}

// What a step's gradients need besides earlier results of the pass.
struct Given {
  S saved[Cell::saved + 1], h_prev, h, dy;
  A c_prev, c;
  bool cleared;
};

// Gradients of all pre-activations and of the initial state.
KERNEL onchip_backward(
    const S* packed,       // what onchip_pack_backward wrote
    const A* p,            // [N, H], null where N = 0
    const S* keep,         // [B, H] or null
    const S* zone_h,       // as in onchip_forward
    const S* zone_c,
    int64 zone_step, int64 zone_row,
    const S* hs,           // [T + 1, B, H]
    const A* cs,           // [T + 1, B, H] or null
    const S* own_h,        // [T, B, H] h before zoneout, or null: that of hs
    const A* own_c,        // [T, B, H] likewise
    const int64* lengths,  // [B] or null
    const bool* clear,     // [T, B] or null
    const S* saved,        // [T, B, V, H], null where V = 0
    const S* dy,           // steps dy_step, rows of H dy_row apart, or null
    int64 dy_step, int64 dy_row,
    const S* dcells,       // likewise: gradient of c from the loss on it; or null
    int64 dcells_step, int64 dcells_row,
    const A* dh,           // [B, H] gradient of the final state
    A* dc,                 // [B, H] likewise, in and out: of the initial one; or null
    S* dax,                // [T, B, G, H] where `separate`, else null: dah is dax
    S* dah,                // [T, B, G, H], gated cells [T, B, G - 1, H]; zero on padding, as the others
    S* dah_last,           // [T, B, H] the last gate's, gated cells only, else null
    A* dp,                 // [B, N, H] sum over the steps, written; null where N = 0
    S* dh0,                // [B, H]
    int64 reverse, int64 T, int64 B, int64 all_units,
    Seen* exchange,        // [groups, BACKWARD_SHOWN], as in onchip_forward, as the next two
    unsigned* flags, int64 first_group) {
  const int H = static_cast<int>(all_units);
  using First = FirstBackward;
  using Last = LastBackward;
  using At = Areas<First, Last>;
  static_assert(At::bytes == BACKWARD_BYTES && At::shown == BACKWARD_SHOWN, "the launch counts as the kernel does");
  A* vectors = at_byte<A>(At::vectors);
  const Group group(exchange, flags, first_group);
  const int first_row = group.first_row(), first_unit = group.slice() * UNITS;
  const Pairs mine(lengths, first_row, first_unit, T, B, H);

  First first;
  Last last;
  load_weights(packed, group.slice(), first, last);
  Shown<First, 2> gradients(group, At::seen, 0, At::shown, 0);
  Shown<Last, last_places> last_gradient(group, At::last_seen, 1, At::shown, Shown<First, 2>::exchanged);
  for (int k = threadIdx.x; k < parameters * UNITS; k += THREADS) {
    const int u = first_unit + k % UNITS;
    put(vectors + biases * UNITS + k, u < H ? fetch(p + k / UNITS * H + u) : A(0));
  }

  const int steps = longest(lengths, first_row, T, B), begin = reverse ? static_cast<int>(T) - steps : 0, end = begin + steps;
  const int64 in_step = B * H;  // of an array [T, B, H]
  const auto time = [=](int n) { return reverse ? static_cast<int>(T) - 1 - n : n; };
  const auto fetch_given = [=](int t, int b, int u, bool here, Given& given) {
    const int64 begins = t * in_step, before = (t + reverse) * in_step, after = (t + 1 - reverse) * in_step;
    const int at = b * H + u;
    given.cleared = clear && fetch(clear + t * B + b);
    given.dy = here && dy ? fetch(dy + t * dy_step + b * dy_row + u) : rounded<S>(A(0));
    if (!here) return;
    _Pragma("unroll") for (int k = 0; k < Cell::saved; ++k)
      given.saved[k] = fetch(gate_of<Cell::saved>(saved, begins, k, b, u, H));
    if (Cell::uses_h_prev || Cell::gated) given.h_prev = fetch(hs + before + at);  // gate_backward reads it too
    if (Cell::uses_h) given.h = fetch((options && own_h ? own_h + begins : hs + after) + at);
    if (Cell::cell_state) {
      given.c_prev = fetch(cs + before + at);
      given.c = fetch((options && own_c ? own_c + begins : cs + after) + at);
    }
  };
  const auto write_zeros = [=](int t, int b, int u) {
    _Pragma("unroll") for (int g = 0; g < inner; ++g) {
      put(gate_of<inner>(dah, t * in_step, g, b, u, H), rounded<S>(A(0)));
      if (Cell::separate) put(gate_of<inner>(dax, t * in_step, g, b, u, H), rounded<S>(A(0)));
    }
    if (Cell::gated) put(dah_last + t * in_step + (b * H + u), rounded<S>(A(0)));
  };
  A direct[own], dc_t[own], factor[own], dp_sum[own][parameters + 1];
  bool arrives[own];  // the product of the later step belongs to this one's state
  Given now[own];
  FOR_MINE(j) {
    const int u = first_unit + unit_of(j), at = mine.b[j] * H + u;
    direct[j] = fetch(dh + at);
    dc_t[j] = Cell::cell_state ? fetch(dc + at) : A(0);
    factor[j] = options && keep ? widen(fetch(keep + at)) : A(1);
    fill(dp_sum[j], A(0));
    arrives[j] = false;
    for (int t = steps; t < T; ++t) write_zeros(t, mine.b[j], u);
    if (steps > 0) fetch_given(time(end - 1), mine.b[j], u, time(end - 1) < mine.length[j], now[j]);
  }
  gradients.arrive(), gradients.wait(0);

  _Pragma("unroll 1") for (int n = end - 1; n >= begin; --n) {
    const int t = time(n), parity = (end - 1 - n) % 2;
    const int64 begins = t * in_step;
    A from_later[own][1], of_gated[own][1], gates[own][Cell::gates], last_gate[own];
    first.multiply(gradients.at(parity), from_later);  // zeros at first
    S stored_last[own];
    FOR_MINE(j) {
      const int u = first_unit + unit_of(j), b = mine.b[j];
      const bool here = t < mine.length[j];
      A dh_t = direct[j] + widen(now[j].dy), dh_prev, held_h = A(0), held_c = A(0);
      if (arrives[j]) dh_t += from_later[j][0] * factor[j];
      if (dcells && here) dc_t[j] += widen(fetch(dcells + t * dcells_step + b * dcells_row + u));  // rare: not ahead
      fill(gates[j], A(0));
      last_gate[j] = A(0);
      dh_prev = dh_t;
      if (here) {
        A kept[Cell::saved + 1], q[parameters + 1], dq[parameters + 1];
        const bool sees_state = !now[j].cleared;
        _Pragma("unroll") for (int k = 0; k < Cell::saved; ++k) kept[k] = widen(now[j].saved[k]);
        _Pragma("unroll") for (int k = 0; k < parameters; ++k) q[k] = fetch(vectors + (biases + k) * UNITS + unit_of(j));
        const A hp = Cell::uses_h_prev && sees_state ? widen(now[j].h_prev) : A(0);
        const A h_t = Cell::uses_h ? widen(now[j].h) : A(0);
        const A cp = Cell::cell_state && sees_state ? now[j].c_prev : A(0), c_t = Cell::cell_state ? now[j].c : A(0);
        if (options && zone_h) {
          const A share = share_of(zone_h, zone_step, zone_row, t, b, u);
          held_h = share * dh_t, dh_t = (A(1) - share) * dh_t;
        }
        if (options && zone_c) {
          const A share = share_of(zone_c, zone_step, zone_row, t, b, u);
          held_c = share * dc_t[j], dc_t[j] = (A(1) - share) * dc_t[j];
        }
        Cell::backward(kept, hp, cp, h_t, c_t, q, dh_t, dc_t[j], gates[j], last_gate[j], dh_prev, dq);
        _Pragma("unroll") for (int k = 0; k < parameters; ++k) dp_sum[j][k] += dq[k];
        dh_prev += held_h, dc_t[j] += held_c;
        if (!sees_state) dh_prev = dc_t[j] = A(0);
      }
      direct[j] = dh_prev;
      arrives[j] = here && !now[j].cleared;
      if constexpr (Cell::gated) {
        stored_last[j] = rounded<S>(gates[j][inner]);
        last_gradient.show(0, row_of(j), u, rounded<Seen>(widen(stored_last[j])));
      }
    }
    if constexpr (Cell::gated) {
      last_gradient.arrive();
      FOR_MINE(j) put(dah_last + begins + (mine.b[j] * H + first_unit + unit_of(j)), stored_last[j]);
      last_gradient.wait(0);
      last.multiply(last_gradient.at(0), of_gated);
      FOR_MINE(j) if (t < mine.length[j]) {
        const A hp = arrives[j] ? widen(now[j].h_prev) : A(0);
        A dh_gated;
        A d_0;
        Cell::gate_backward(widen(now[j].saved[0]), hp, of_gated[j][0] * factor[j], d_0, dh_gated);
        gates[j][0] = Cell::gate_shared ? gates[j][0] + d_0 : d_0;
        if (arrives[j]) direct[j] += dh_gated;
      }
    }
    const auto of_product = [&](int j, int g) {
      return rounded<S>(Cell::separate && g == inner - 1 ? last_gate[j] : gates[j][g]);
    };
    const auto write = [&](int j) {
      const int u = first_unit + unit_of(j), b = mine.b[j];
      _Pragma("unroll") for (int g = 0; g < inner; ++g) {
        put(gate_of<inner>(dah, begins, g, b, u, H), of_product(j, g));
        if (Cell::separate) put(gate_of<inner>(dax, begins, g, b, u, H), rounded<S>(gates[j][g]));
      }
      if (n > begin) fetch_given(time(n - 1), b, u, time(n - 1) < mine.length[j], now[j]);
    };
    FOR_MINE(j) {
      _Pragma("unroll") for (int g = 0; g < inner; ++g) {
        const int k = g * ALL_UNITS + first_unit + unit_of(j);
        gradients.show(1 - parity, row_of(j), k, rounded<Seen>(widen(of_product(j, g))));
      }
      if (!apart) write(j);
    }
    gradients.arrive();
    if (apart) FOR_MINE(j) write(j);
    gradients.wait(1 - parity);  // the gates' gradients are there
  }

  A from_first[own][1];
  first.multiply(gradients.at(steps % 2), from_first);
  FOR_MINE(j) {
    const int u = first_unit + unit_of(j), at = mine.b[j] * H + u;
    put(dh0 + at, rounded<S>(direct[j] + (arrives[j] ? from_first[j][0] * factor[j] : A(0))));
    if (Cell::cell_state) put(dc + at, dc_t[j]);
    _Pragma("unroll") for (int k = 0; k < parameters; ++k)
      put(dp + (mine.b[j] * parameters + k) * H + u, dp_sum[j][k]);
  }
}
