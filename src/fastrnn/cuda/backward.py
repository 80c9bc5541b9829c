"""The step plan backward: the same loop turned round, then the products over all T*B by cuBLAS; see csrc/step.cuh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cupy as xp

from fastrnn.arrays import Array, computed_in, zeroed
from fastrnn.cells import Cell
from fastrnn.cuda import kernels
from fastrnn.cuda.beside import at_once
from fastrnn.cuda.forward import Products, Saved, States, has_options, rows, shares, step
from fastrnn.cuda.onchip import backward_loop
from fastrnn.cuda.packed import Packed
from fastrnn.cuda.products import matmul, multiply, using, workspace
from fastrnn.recurrence import Columns, Given, Initial, Run, Weights

GAIN_PARTS = 256  # blocks that share the sums over T*B of the gains' gradients. Not yet measured.


class PreActivations(NamedTuple):
    """Gradients of all pre-activations, zero on padding; dah_last holds the last gate's, apart, for gated cells."""

    dax: Array  # [T, B, G, H]; the same array as dah but for cells with a separate gate
    dah: Array  # [T, B, G, H]; gated cells [T, B, G-1, H]
    dah_last: Array | None  # gated cells [T, B, H]
    dproj: Array | None  # [T, B, P], gradient of the projection's output
    dhu: Array  # dah itself; with layer normalisation, apart from it, the gradients of the products before any gain
    dhu_last: Array | None  # likewise


class Backward(NamedTuple):
    """The memory of one backward pass; direct and dc go from the gradient of the final state to that of the initial.

    dc waits for what dense peepholes give it, to_c_prev, until the kernel of the next step reads both.
    """

    dy: Array | None  # [T, B, P], neighbouring units side by side
    dcells: Array | None  # [T, B, H], likewise
    direct: Array  # [B, P] in the dtype of registers: the direct path of dh
    dc: Array | None  # [B, H] in the dtype of registers
    d: PreActivations
    dh0: Array  # [B, P]
    product: Array  # [B, P]
    ds: Array  # [B, H], gradient of the gated state or of the projection's input
    dp: Array | None  # [B, N, H] in the dtype of registers: each row's part of the gradient of the unit parameters
    ddiagonal: Array | None  # [B, G, H] likewise, of a diagonal U
    dnorm_c: Array | None  # [B, 2, H] likewise, of gain and bias of a normalised c
    read: Array | None  # [2, B, H] likewise, scratch for the readout of a normalised c
    to_c: Array | None  # [B, H] likewise, with dense peepholes: what c's gradient gets from the gate that sees c,
    to_c_prev: Array | None  # [B, H] likewise, and that of c_prev from the gates that see it, at the last step taken

    def take(self, given: Given) -> None:
        """Start from these gradients; those over time only where they stand elsewhere."""
        for total in (self.dp, self.ddiagonal, self.dnorm_c):
            if total is not None:
                total[...] = 0
        for mine, arriving in ((self.direct, given.h_n), (self.dc, given.c_n)):
            if mine is not None:
                mine[...] = 0 if arriving is None else arriving
        for over_time, columns in ((self.dy, given.y), (self.dcells, given.cells)):
            if over_time is not None and columns is not None:
                over_time[...] = columns.view


def allocate(cell: Cell, packed: Packed, steps: int, batch: int, dy: Array | None, dcells: Array | None) -> Backward:
    """Return uninitialised memory for a backward pass that reads dy and dcells where they are."""
    gates, hidden, output, dtype = packed.gates, packed.hidden, packed.output, packed.dtype
    compute = computed_in(dtype)

    def empty(*shape: int) -> Array:
        array: Array = xp.empty((steps, batch, *shape), dtype)
        return array

    dah, dah_last = empty(gates - (cell.gated is not None), hidden), empty(hidden) if cell.gated else None
    normalised = packed.gains is not None
    of_c = normalised and cell.cell_state
    to_cells = (None if packed.ch is None else xp.empty((batch, hidden), compute) for _ in range(2))
    d = PreActivations(
        empty(gates, hidden) if cell.separate else dah, dah, dah_last,
        empty(output) if packed.hr is not None else None, empty(*dah.shape[2:]) if normalised else dah,
        empty(hidden) if normalised and cell.gated else dah_last,
    )  # fmt: skip
    return Backward(
        dy, dcells,
        xp.empty((batch, output), compute), xp.empty((batch, hidden), compute) if cell.cell_state else None, d,
        xp.empty((batch, output), dtype), xp.empty((batch, output), dtype), xp.empty((batch, hidden), dtype),
        None if packed.p is None else xp.empty((batch, *packed.p.shape), compute),
        None if packed.diagonal is None else xp.empty((batch, gates, hidden), compute),
        xp.empty((batch, 2, hidden), compute) if of_c else None,
        xp.empty((2, batch, hidden), compute) if of_c else None, *to_cells,
    )  # fmt: skip


def recur_backward(
    cell: Cell, packed: Sequence[Packed], runs: Sequence[Run], saved: Sequence[Saved], given: Sequence[Given],
    dx: Array, accumulate: bool,
) -> list[Initial]:  # fmt: skip
    """Back-propagate through time, then over all T*B at once; see fastrnn.recurrence."""
    directions = list(zip(packed, runs, saved, given, strict=True))
    if not saved[0].on_chip:
        return [_by_step(cell, *one, dx, accumulate or k > 0) for k, one in enumerate(directions)]
    memories = [_begun(cell, weights, run, of_loss) for weights, run, _, of_loss in directions]
    loops = [
        backward_loop(kept.on_chip, weights, run, kept.states, memory)
        for (weights, run, kept, _), memory in zip(directions, memories, strict=True)
    ]
    at_once(*loops)
    return [
        _finish(cell, weights, run, kept.states, memories[k], dx, accumulate or k > 0)
        for k, (weights, run, kept, _) in enumerate(directions)
    ]


def _begun(cell: Cell, packed: Packed, run: Run, given: Given) -> Backward:
    """Memory for a pass backward that begins with what is given."""
    steps, batch = run.x.shape[:2]
    memory = allocate(cell, packed, steps, batch, _over_time(given.y), _over_time(given.cells))
    memory.take(given._replace(y=None, cells=None))
    return memory


def _by_step(cell: Cell, packed: Packed, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool) -> Initial:
    """Back-propagate through one recurrence by the plan `step`."""
    if saved.place is not None and saved.place.on_its_stream():
        return _finish(cell, packed, run, saved.states, saved.place.backward(given), dx, accumulate)
    memory = _begun(cell, packed, run, given)
    with using(workspace()):
        backward_steps(cell, packed, run, saved.states, memory)
    return _finish(cell, packed, run, saved.states, memory, dx, accumulate)


def _over_time(columns: Columns | None) -> Array | None:
    """A gradient [T, B, width] with neighbouring units side by side, as the kernels need them."""
    if columns is None:
        return None
    view = columns.view
    side_by_side = view.strides[2] == view.itemsize and not any(n % view.itemsize for n in view.strides)
    array: Array = view if side_by_side else xp.ascontiguousarray(view)
    return array


def backward_steps(cell: Cell, packed: Packed, run: Run, states: States, memory: Backward) -> None:
    """Write the gradients of all pre-activations and of the initial state.

    Nothing in here waits for the device, and nothing allocates.
    """
    dy, dcells, direct, dc, d, dh0, product, ds, dp, ddiagonal, dnorm_c, read, to_c, to_c_prev = memory
    batch, hidden, output = dh0.shape[0], packed.hidden, packed.output
    if run.x.shape[0] * batch == 0:
        dh0[...] = direct
        return
    norm, options = states.norm, has_options(packed, run)
    k = kernels.load(cell, packed.dtype, batch, (hidden, output), (dy, dcells), options, norm is not None)
    full = packed.fused is None
    later: int | None = None
    for t in list(run.steps())[::-1]:
        before, after = states.slots(t, run.reverse)
        clear, clear_later = (None if run.clear is None or at is None else run.clear[at] for at in (t, later))
        h_prev, h = states.hs[before], states.hs[after]
        c_prev, c = (None, None) if states.cs is None else (states.cs[before], states.cs[after])
        saved, s, dah_last = step(states.gates, t), step(states.s, t), step(d.dah_last, t)
        own_h, own_c = step(states.own_h if states.m is None else states.m, t), step(states.own_c, t)
        first, last = _normalised(packed, norm, d, t)
        recurrent = product if full and later is not None else None
        dm = None
        if d.dproj is not None:
            k.launch(
                "project_backward", batch, output, recurrent, run.keep, run.lengths, clear_later, *_row(dy, t), direct,
                d.dproj[t], t, later or 0, batch, output,
            )  # fmt: skip
            dm = multiply(d.dproj[t], packed.hr, out=ds)  # type: ignore[arg-type]
        kept = (
            run.keep if dm is None else None, *shares(run, t), h_prev, c_prev, None if full else s,
            h if own_h is None else own_h, c if own_c is None else own_c, run.lengths, clear, clear_later,
            *_row(dy if dm is None else None, t),
        )  # fmt: skip
        of_h = recurrent if dm is None else None, dm, direct if dm is None else None
        normalised, at = (*(first if dah_last is None else last), read), (t, later or 0, batch, hidden)
        if packed.ch is not None:  # the last gate's gradient alone, for c's
            k.launch(
                "step_backward", batch, hidden, saved, packed.p, None, *kept, None, 0, *of_h, None, None, d.dah[t],
                *(None,) * 3, *normalised, *(None,) * 3, *at,
            )  # fmt: skip
            _of_gates(packed, d.dah[t], True, to_c)
        k.launch(
            "step_backward", batch, hidden, saved, packed.p, packed.fused, *kept, *_row(dcells, t), *of_h, dc,
            d.dax[t] if cell.separate else None, d.dah[t], dah_last, dp, None if full else ddiagonal, *normalised,
            dnorm_c, to_c, None if later is None else to_c_prev, *at,
        )  # fmt: skip
        if packed.ch is not None:
            _of_gates(packed, d.dah[t], False, to_c_prev)
        if full and dah_last is not None:
            _recurrent(k, packed, run, True, step(d.dhu_last, t), s, t, ds, ddiagonal)  # type: ignore[arg-type]
            k.launch(
                "gate_backward", batch, hidden, ds, saved, h_prev, run.keep, run.lengths, clear, direct, d.dah[t],
                *first, t, batch, hidden,
            )  # fmt: skip
        if full:
            seen = h_prev if states.seen is None else states.seen[before]
            _recurrent(k, packed, run, False, d.dhu[t].reshape(batch, -1), seen, t, product, ddiagonal)
        later = t
    clear_later = None if run.clear is None else run.clear[later]
    k.launch(
        "initial_backward", batch, output, direct, product if full else None, run.keep, run.lengths, clear_later, dh0,
        later, batch, output,
    )  # fmt: skip


def _normalised(
    packed: Packed, norm: Products | None, d: PreActivations, t: int
) -> tuple[tuple[Array | None, ...], tuple[Array | None, ...]]:
    """What turns gradients of the first and of the last product's pre-activations into its own; nulls without it."""
    if norm is None:
        return (None,) * 4, (None,) * 4
    kept = packed.gains, norm.of_rows[t]
    return (*kept, norm.ah[t], d.dhu[t]), (*kept, step(norm.ah_last, t), step(d.dhu_last, t))


def _of_gates(packed: Packed, dah: Array, last: bool, out: Array | None) -> None:
    """What the cell state's gradient gets through dense peepholes: from the gate that sees c, or from the others."""
    of_first, of_last = packed.peepholes(wide=False)
    rows_of_dah = dah.reshape(dah.shape[0], packed.gates * packed.hidden)
    mine = rows_of_dah[:, -packed.hidden :] if last else rows_of_dah[:, : of_first.shape[0]]
    multiply(mine, of_last if last else of_first, out=out)  # type: ignore[arg-type]


def _recurrent(
    k: kernels.Kernels, packed: Packed, run: Run, last: bool, da: Array, seen: Array, t: int, out: Array,
    ddiagonal: Array | None,
) -> None:  # fmt: skip
    """Gradient of what a recurrent product saw; of a diagonal U that of U too."""
    if packed.diagonal is None:
        multiply(da, packed.last if last else packed.first, out=out)
        return
    batch, clear = out.shape[0], None if run.clear is None else run.clear[t]
    k.launch(
        "diagonal_backward", batch, packed.hidden, da, packed.diagonal, seen, run.lengths, clear, out, ddiagonal,
        *packed.gates_of(last), t, batch, packed.hidden,
    )  # fmt: skip


def _row(array: Array | None, t: int) -> tuple[Array | None, int]:
    """Step t of an array [T, B, width] and the distance of its rows, or a null pointer."""
    return (None, 0) if array is None else (array[t], array.strides[1] // array.itemsize)


def _finish(
    cell: Cell, packed: Packed, run: Run, states: States, memory: Backward, dx: Array, accumulate: bool
) -> Initial:
    """Write or add to dx; return the gradients of the initial state, the weights and the biases, as copies."""
    c0 = None if memory.dc is None else memory.dc.copy()
    if c0 is not None and memory.to_c_prev is not None and run.x.shape[0] * run.x.shape[1]:
        unseen = _unseen(run, _padding(run))
        first = next(run.steps())
        c0 += _without(memory.to_c_prev, None if unseen is None else unseen[first])
    return Initial(memory.dh0.copy(), c0, _after_loop(cell, packed, run, states, memory, dx, accumulate))


def _padding(run: Run) -> Array | None:
    """[T, B] bool: the steps that do not exist; None if all do."""
    return None if run.lengths is None else xp.arange(run.x.shape[0])[:, None] >= run.lengths


def _unseen(run: Run, padding: Array | None) -> Array | None:
    """[T, B] bool: the steps that see no state from before; None if all do."""
    return run.clear if padding is None else padding if run.clear is None else padding | run.clear


def _after_loop(
    cell: Cell, packed: Packed, run: Run, states: States, memory: Backward, dx: Array, accumulate: bool
) -> Weights:
    """Write or add to dx; return the gradients of the weights, biases and gains."""
    d, padding = memory.d, _padding(run)
    unseen = _unseen(run, padding)
    x = rows(_without(run.x, padding))
    dax = [rows(d.dax)] if d.dah_last is None else [rows(d.dah), rows(d.dah_last)]
    dah = [rows(d.dah)] if d.dah_last is None else dax
    dhu = [rows(d.dhu)] if d.dhu_last is None else [rows(d.dhu), rows(d.dhu_last)]
    b_ih, b_hh = (None if packed.bias is None else _join([_sum(da) for da in of]) for of in (dax, dah))
    ch = None if packed.ch is None else _peephole_gradient(packed, run, states, dah[0], padding, unseen)
    gains = _gain_gradients(cell, packed, run, states.norm, memory)  # dax becomes the gradient of x W itself
    _input_gradient(packed, dax, padding, dx, accumulate)
    dp, ddiagonal = (None if a is None else _sum(a).astype(packed.dtype) for a in (memory.dp, memory.ddiagonal))
    return Weights(
        _join([matmul(da.T, x) for da in dax]),
        _recurrent_gradient(run, states, dhu, unseen) if ddiagonal is None else ddiagonal.reshape(-1),
        b_ih,
        b_hh,
        None if d.dproj is None or states.m is None else matmul(rows(d.dproj).T, rows(states.m)),
        dp,
        ch,
        *gains,
    )


def _gain_gradients(
    cell: Cell, packed: Packed, run: Run, norm: Products | None, memory: Backward
) -> tuple[Array | None, ...]:
    """Those of x W, of h U, of c and of c's bias; turns dax into the gradient of x W, over all T*B at once."""
    if norm is None:
        return ()
    (steps, batch), hidden, gates, d = run.x.shape[:2], packed.hidden, packed.gates, memory.d
    blocks = max(1, min(steps * batch, GAIN_PARTS))
    parts = xp.zeros((blocks, 2, gates * hidden), computed_in(packed.dtype))
    if steps * batch:
        k = kernels.load(cell, packed.dtype, batch, (hidden,), (), has_options(packed, run), True)
        k.launch(
            "gains_backward", blocks, hidden, d.dax if d.dah_last is None else d.dah, d.dah_last,
            d.dah if cell.separate else None, norm.x, norm.of_x, norm.ah, norm.ah_last, norm.of_rows, packed.gains,
            run.lengths, None if run.clear is None else xp.ascontiguousarray(run.clear), parts, steps, batch, hidden,
        )  # fmt: skip
    of_products = _sum(parts).astype(packed.dtype)
    of_c = (None, None) if memory.dnorm_c is None else _sum(memory.dnorm_c).astype(packed.dtype)
    return (*of_products, *of_c)


def _peephole_gradient(
    packed: Packed, run: Run, states: States, dah: Array, padding: Array | None, unseen: Array | None
) -> Array:
    """dV, dah^T [c_prev ; c] over T*B, of dense peepholes; c before zoneout, rounded as h is for dU."""
    assert states.cs is not None, "what they see"
    before, after = (states.cs[1:], states.cs[:-1]) if run.reverse else (states.cs[:-1], states.cs[1:])
    c, of_first = after if states.own_c is None else states.own_c, packed.peepholes(wide=False)[0].shape[0]
    parts = (dah[:, :of_first], before, unseen), (dah[:, -packed.hidden :], c, padding)
    return _join([matmul(da.T, rows(_without(a, mask).astype(packed.dtype, copy=False))) for da, a, mask in parts])


def _recurrent_gradient(run: Run, states: States, dah: list[Array], unseen: Array | None) -> Array:
    """dU, of all that the recurrent products saw; the state that padding holds may be NaN."""
    seen = states.hs if states.seen is None else states.seen
    h_prev = rows(_without(seen[1:] if run.reverse else seen[: run.x.shape[0]], unseen))
    inputs = [h_prev] if states.s is None else [h_prev, rows(states.s)]
    return _join([matmul(da.T, a) for da, a in zip(dah, inputs, strict=True)])


def _join(parts: list[Array]) -> Array:
    joined: Array = parts[0] if len(parts) == 1 else xp.concatenate(parts)
    return joined


def _sum(da: Array) -> Array:
    """The sum over the first axis, taken in the dtype of registers."""
    total: Array = da.sum(0, dtype=computed_in(da.dtype)).astype(da.dtype)
    return total


def _without(a: Array, mask: Array | None) -> Array:
    """[T, B, width] with zeros where mask [T, B] is set, whatever stands there; `a` itself is left as it is."""
    if mask is None:
        return a
    return zeroed(a, mask[..., None])


def _input_gradient(packed: Packed, dax: list[Array], padding: Array | None, dx: Array, accumulate: bool) -> None:
    """dx = dax W over all T*B, exactly zero on padding.

    What is added is rounded to 16 bits only then: a sum of two directions twice, as dx is where the first one went.
    """
    dtype = computed_in(packed.dtype) if accumulate or len(dax) > 1 else packed.dtype
    whole = matmul(dax[0], packed.ih[: packed.split], dtype)
    if len(dax) > 1:
        whole += matmul(dax[1], packed.ih[packed.split :], dtype)
    if accumulate:
        whole += dx.astype(dtype, copy=False).reshape(whole.shape)
    dx[...] = _without(whole.reshape(dx.shape), padding)
