"""The reference backend: one plain loop over time that every other backend is checked against.

It runs on the arrays' own module (NumPy or CuPy) in their own precision. Padding is selected away, never multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn import peepholes, philox
from fastrnn.arrays import Array, array_module, select
from fastrnn.cells import Cell
from fastrnn.normalisation import Rows, normalise, normalise_backward
from fastrnn.recurrence import Columns, Final, Given, Initial, Loop, Run, Shape, Weights, Zone

BOTH, LAST = (-2, -1), (-1,)  # axes of a row: gates and units, or units alone


class Saved(NamedTuple):
    """Per step t, in any direction: the state that the step saw, what it made, and its gates."""

    h_prev: Array  # [T, B, P]
    c_prev: Array  # [T, B, H]
    h: Array  # [T, B, H], of the cell: before zoneout and projection
    c: Array  # [T, B, H], of the cell: before zoneout
    c_kept: Array  # [T, B, H], after zoneout
    gates: list[Array]  # T x [B, V, H]
    gated: Array  # [T, B, H], the gated state of a second product, as the product sees it
    norm_x: Rows | None  # [T, B, G, H] and [T, B, 1, 1], with layer normalisation only, as the next two
    norm_h: Rows | None  # [T, B, G, H] and [T, B, G, 1]: each gate has the scale of its product
    norm_c: Rows | None  # [T, B, H] and [T, B, 1], for a cell with c


def _module(array: Array) -> ModuleType:
    xp = array_module(array)
    assert xp is not None, "validated before"
    return xp


class Product(NamedTuple):
    """Weights of one product and what follows it."""

    w: Array  # [n*H, K], or [n*H] for a diagonal in each gate
    bias: Array | None  # [n*H]
    gain: Array | None  # [n*H], with layer normalisation

    def gates(self, first: int, last: int) -> Product:
        """The part of these rows."""
        return Product(*(None if part is None else part[first:last] for part in self))  # type: ignore[arg-type]


def _multiply(a: Array, w: Array) -> Array:
    """Multiply a [..., K] by w [K, N].

    On the CPU step by step, so that a step has the same bits alone and in a sequence; on a GPU as two matrices, since
    stacks of them in bfloat16 are too much for CuPy.
    """
    if array_module(a) is np:
        product: Array = a @ w
        return product
    rows: Array = a.reshape(math.prod(a.shape[:-1]), a.shape[-1]) @ w
    return rows.reshape(*a.shape[:-1], w.shape[1])


def _gates(xp: ModuleType, a: Array, p: Product, hidden: int) -> tuple[Array, list[Rows]]:
    """a [..., K] times w transposed, normalised, plus bias, as [..., n, H]; and the normalised rows, if there are."""
    n, rows = p.w.shape[0] // hidden, list[Rows]()
    product = (_multiply(a, p.w.T) if p.w.ndim == 2 else xp.tile(a, n) * p.w).reshape(*a.shape[:-1], n, hidden)
    if p.gain is not None:
        rows.append(normalise(xp, product, BOTH))
        product = rows[0].hat * p.gain.reshape(n, hidden)
    if p.bias is not None:
        product += p.bias.reshape(n, hidden)
    return product, rows


def _at(rows: Rows, *index: Any) -> Rows:
    """Some of the rows."""
    return Rows(rows.hat[index], rows.scale[index])


def _before_gain(d: Array, gain: Array | None, rows: Rows | None, *index: Any) -> Array:
    """Gradient [..., n, H] of the product itself, for that of what followed it; the rows at an index."""
    if gain is None or rows is None:
        return d
    rows = _at(rows, *index)
    return normalise_backward(d * gain.reshape(d.shape[-2:]), rows, BOTH)


def _gates_backward(xp: ModuleType, da: Array, w: Array) -> Array:
    """Gradient of a in a product, for da [B, n, H]."""
    if w.ndim == 1:
        own: Array = (da * w.reshape(da.shape[1:])).sum(1)
        return own
    product: Array = da.reshape(da.shape[0], w.shape[0]) @ w
    return product


def _recurrent(
    xp: ModuleType, cell: Cell, w: Weights, ax: Array, h: Array, keep: Array | int
) -> tuple[Array, Array, list[Rows]]:
    """ah [B, G, H] for one step, the gated state as its product sees it (h where there is none), normalised rows."""
    hidden, product = ax.shape[-1], Product(w.hh, w.b_hh, w.norm_hh)
    if cell.gated is None:
        ah, rows = _gates(xp, h * keep, product, hidden)
        return ah, h, rows
    last = (len(cell.gates) - 1) * hidden
    ah, rows = _gates(xp, h * keep, product.gates(0, last), hidden)
    s = cell.gated.forward(xp, ax, ah, h) * keep
    ah_last, rows_last = _gates(xp, s, product.gates(last, last + hidden), hidden)
    return xp.concatenate((ah, ah_last), axis=1), s, rows + rows_last


def _keep_factors(run: Run) -> Array | int:
    """Factors of what the recurrent product sees."""
    return 1 if run.keep is None else run.keep


def _shares(run: Run, t: int) -> tuple[Any, Any]:
    """Zoneout's shares of the old h and c at one step."""
    h, c = (None, None) if run.zone is None else run.zone
    return tuple(0 if share is None else share[t if len(share) > 1 else 0] for share in (h, c))  # type: ignore[return-value]


def _mixed(share: Any, old: Any, new: Any) -> Any:
    """share * old + (1 - share) * new."""
    return new if isinstance(share, int) else share * old + (1 - share) * new


def _held(share: Any, d: Any, d_prev: Any) -> Any:
    """Gradient of the old state: what the cell gives, and the share of the new state's."""
    return d_prev if isinstance(share, int) else d_prev + share * d


def _valid(xp: ModuleType, run: Run) -> Array | None:
    """[T, B, 1] bool: the steps that exist; None if all do."""
    if run.lengths is None:
        return None
    valid: Array = (xp.arange(run.x.shape[0])[:, None] < run.lengths)[..., None]
    return valid


def pack(cell: Cell, weights: Weights) -> Weights:
    """Return the weights as they are."""
    return weights


def recur_forward(cell: Cell, packed: Sequence[Weights], runs: Sequence[Run], save: bool) -> list[Final]:
    """Run the recurrences step by step; see fastrnn.recurrence."""
    return [_forward(cell, weights, run, save) for weights, run in zip(packed, runs, strict=True)]


def _forward(cell: Cell, packed: Weights, run: Run, save: bool) -> Final:
    xp, w, valid = _module(run.x), packed, _valid(_module(run.x), run)
    hidden = w.ih.shape[0] // len(cell.gates)
    x = run.x if valid is None else select(valid, run.x, 0)
    ax, norm_x = _gates(xp, x, Product(w.ih, w.b_ih, w.norm_ih), hidden)
    h, c = run.h0, run.c0
    kept = _empty_saved(xp, cell, run, hidden, norm_x) if save else None
    for t in run.steps():
        if run.clear is not None:
            h = select(run.clear[t][:, None], 0, h)
            c = None if c is None else select(run.clear[t][:, None], 0, c)
        ah, s, norm_h = _recurrent(xp, cell, w, ax[t], h, _keep_factors(run))
        step = peepholes.forward(xp, cell, w.ch, ax[t], ah, h, c, w.p)
        norm_c = None
        if cell.readout is not None and w.norm_c is not None:
            norm_c = normalise(xp, step.c, LAST)  # type: ignore[arg-type]
            step = step._replace(h=cell.readout.forward(xp, step.saved, norm_c.hat * w.norm_c + w.norm_c_bias))
        share_h, share_c = _shares(run, t)
        c_new = None if c is None else _mixed(share_c, c, step.c)
        h_new = _mixed(share_h, h, step.h) if w.hr is None else step.h @ w.hr.T
        here = True if valid is None else valid[t]
        if kept is not None:
            _keep(kept, t, here, (h, c, step.h, step.c, c_new, s))
            kept.gates[t] = step.saved
            _keep_rows(kept, t, here, norm_h, norm_c)
        run.y.view[t] = select(here, h_new, 0)
        h = select(here, h_new, h)
        c = None if c is None else select(here, c_new, c)
    return Final(h, c, kept)


def cells(cell: Cell, packed: Weights, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    valid = _valid(_module(run.x), run)
    return saved.c_kept.copy() if valid is None else select(valid, saved.c_kept, 0)


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    return philox.random_words(xp, seed, counter, count)


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    products = "a product" if not shape.dense else "a product each of h, c_prev and c"
    stages = ("input product of all steps at once", f"{shape.steps} steps, each {products} and the cell's equations")
    return Loop(f"reference `{cell.name}`", False, 1, "the specification, in array operations", stages)


class Stepper:
    """One layer of a stream; see fastrnn.recurrence.Stepper."""

    def __init__(self, cell: Cell, packed: Weights, x: Array, zone: Zone | None) -> None:
        self._zone = zone
        xp, batch, hidden = _module(x), x.shape[0], packed.ih.shape[0] // len(cell.gates)
        self.x, self._cell, self._weights = x, cell, packed
        self.h: Array = xp.zeros((batch, hidden if packed.hr is None else packed.hr.shape[0]), x.dtype)
        self.c: Array | None = xp.zeros((batch, hidden), x.dtype) if cell.cell_state else None
        self.y: Array = xp.empty_like(self.h)

    def step(self) -> None:
        """Take one step: x to y, and the state to the next."""
        y = Columns(self.y[None], 0, self.y.shape[1])
        run = Run(self.x[None], self.h, self.c, None, None, False, y, zone=self._zone)
        final = _forward(self._cell, self._weights, run, False)
        self.h[...] = final.h_n
        if self.c is not None:
            self.c[...] = final.c_n


def stepper(cell: Cell, packed: Weights, x: Array, zone: Zone | None, below: Stepper | None) -> Stepper:
    """One layer of a stream that reads x [B, I]."""
    return Stepper(cell, packed, x, zone)


def _empty_saved(xp: ModuleType, cell: Cell, run: Run, hidden: int, norm_x: list[Rows]) -> Saved:
    steps, batch, proj = run.x.shape[0], run.x.shape[1], run.h0.shape[1]

    def empty(width: int) -> Array:
        array: Array = xp.empty((steps, batch, width), run.x.dtype)
        return array

    cells = hidden if cell.cell_state else 0
    gated = hidden if cell.gated is not None else 0
    return Saved(
        empty(proj), empty(cells), empty(hidden), empty(cells), empty(cells), [run.x] * steps, empty(gated),
        *_empty_rows(xp, cell, norm_x),
    )  # fmt: skip


def _empty_rows(xp: ModuleType, cell: Cell, norm_x: list[Rows]) -> tuple[Rows | None, Rows | None, Rows | None]:
    if not norm_x:
        return None, None, None
    like = norm_x[0].hat
    norm_h = Rows(xp.empty_like(like), xp.empty_like(like[..., :1]))
    of_c = Rows(*(xp.empty_like(array[:, :, 0]) for array in norm_h)) if cell.cell_state else None
    return norm_x[0], norm_h, of_c


def _keep(kept: Saved, t: int, here: Array | bool, values: tuple[Array | None, ...]) -> None:
    """Zeros where the step does not exist: a NaN there must not reach a sum over T*B as 0 * NaN."""
    into = (kept.h_prev, kept.c_prev, kept.h, kept.c, kept.c_kept, kept.gated)
    for array, value in zip(into, values, strict=True):
        if array.size:
            array[t] = select(here, value, 0)


def _keep_rows(kept: Saved, t: int, here: Array | bool, norm_h: list[Rows], norm_c: Rows | None) -> None:
    """Likewise."""
    every, gate = here if isinstance(here, bool) else here[..., None], 0
    for rows in norm_h:
        assert kept.norm_h is not None, "there for every normalised product"
        gates = slice(gate, gate + rows.hat.shape[1])
        for array, value in zip(kept.norm_h, rows, strict=True):
            array[t, :, gates] = select(every, value, 0)
        gate = gates.stop
    if kept.norm_c is not None and norm_c is not None:
        for array, value in zip(kept.norm_c, norm_c, strict=True):
            array[t] = select(here, value, 0)


def recur_backward(
    cell: Cell, packed: Sequence[Weights], runs: Sequence[Run], saved: Sequence[Saved], given: Sequence[Given],
    dx: Array, accumulate: bool,
) -> list[Initial]:  # fmt: skip
    """Back-propagate step by step, then all weight gradients as products over T*B; see fastrnn.recurrence."""
    directions = enumerate(zip(packed, runs, saved, given, strict=True))
    return [_backward(cell, *of_direction, dx, accumulate or k > 0) for k, of_direction in directions]


def _backward(
    cell: Cell, packed: Weights, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool
) -> Initial:
    xp, w, valid = _module(run.x), packed, _valid(_module(run.x), run)
    steps, batch = run.x.shape[:2]
    hidden = w.ih.shape[0] // len(cell.gates)
    dh = xp.zeros_like(run.h0) if given.h_n is None else given.h_n
    dc = None if run.c0 is None else xp.zeros_like(run.c0) if given.c_n is None else given.c_n
    dax: Array = xp.empty((steps, batch, len(cell.gates), hidden), run.x.dtype)
    dah, dproj = xp.empty_like(dax), xp.empty_like(saved.h_prev)
    dhu = dah if w.norm_hh is None else xp.empty_like(dah)  # of the products themselves, before any gain
    dv = None if w.norm_c is None else xp.zeros((steps, batch, hidden), run.x.dtype)
    dp = None if w.p is None else xp.zeros((batch, *w.p.shape), run.x.dtype)
    for t in list(run.steps())[::-1]:
        here = True if valid is None else valid[t]
        dh_t = dh if given.y is None else dh + select(here, given.y.view[t], 0)
        dc_t = dc if given.cells is None or dc is None else dc + select(here, given.cells.view[t], 0)
        dproj[t] = select(here, dh_t, 0)
        share_h, share_c = _shares(run, t)
        dh_cell = (1 - share_h) * dh_t if w.hr is None else dh_t @ w.hr
        c_prev, c = (saved.c_prev[t], saved.c[t]) if cell.cell_state else (None, None)
        dc_cell = None if dc_t is None else (1 - share_c) * dc_t
        backward = cell.backward
        if dv is not None and saved.norm_c is not None and cell.readout is not None:
            rows, backward = _at(saved.norm_c, t), cell.readout.inside
            v = rows.hat * w.norm_c + w.norm_c_bias
            dh_cell, dv_t = cell.readout.backward(xp, saved.gates[t], v, dh_cell)
            dc_cell = dc_cell + normalise_backward(dv_t * w.norm_c, rows, LAST)
            dv[t] = select(here, dv_t, 0)
        given_t = xp, saved.gates[t], saved.h_prev[t], c_prev, saved.h[t], c, dh_cell
        step = peepholes.backward(cell, w.ch, backward, given_t, dc_cell, w.p)
        alive = here if run.clear is None else here & ~run.clear[t][:, None]
        every_gate = True if valid is None else valid[t][..., None]
        dax[t], dah[t] = select(every_gate, step.dax, 0), select(every_gate, step.dah, 0)
        if dp is not None:
            dp += select(every_gate, step.dp, 0)
        dh_prev = _recurrent_backward(xp, cell, w, saved, t, here, _keep_factors(run), dax, dah, dhu)
        if step.dh_prev is not None:
            dh_prev = dh_prev + step.dh_prev
        dh = _pass_on(here, alive, _held(share_h, dh_t, dh_prev), dh)
        if dc is not None:
            dc = _pass_on(here, alive, _held(share_c, dc_t, step.dc_prev), dc)
    dxw = _before_gain(dax, w.norm_ih, saved.norm_x)
    _input_gradient(w, valid, dxw, dx, accumulate)
    x = run.x if valid is None else select(valid, run.x, 0)
    seen = saved.h_prev * _keep_factors(run)
    weights = _weight_gradients(xp, cell, w, saved, seen, x, dxw, dhu, dproj)
    biases = {} if w.b_ih is None else {"b_ih": _over_rows(dax), "b_hh": _over_rows(dah)}
    gains = _gain_gradients(saved, dax, dah, dv)
    units = None if dp is None else dp.sum(0)
    ch = None if w.ch is None else peepholes.gradient(xp, cell, dah, saved.c_prev, saved.c)
    return Initial(dh, dc, weights._replace(p=units, ch=ch, **biases, **gains))


def _pass_on(here: Array | bool, alive: Array | bool, d_prev: Array | None, d: Array) -> Array:
    """Gradient of the state before the step: cut at a reset, held where the step does not exist."""
    result: Array = select(here, select(alive, d_prev, 0), d)
    return result


def _recurrent_backward(
    xp: ModuleType, cell: Cell, w: Weights, saved: Saved, t: int, here: Array | bool, keep: Array | int, dax: Array,
    dah: Array, dhu: Array,
) -> Array:  # fmt: skip
    """Gradient of h_prev through the recurrent product(s); fills in dhu, and gate 0 if it waits for a gated state."""
    gates, hidden = dah.shape[2:]
    product, every, rows = Product(w.hh, None, w.norm_hh), slice(None), saved.norm_h
    if cell.gated is None:
        dhu[t] = _before_gain(dah[t], product.gain, rows, t)
        return _gates_backward(xp, dhu[t], w.hh) * keep
    last = (gates - 1) * hidden
    first_product, last_product = product.gates(0, last), product.gates(last, last + hidden)
    dhu[t, :, -1:] = _before_gain(dah[t, :, -1:], last_product.gain, rows, t, every, slice(-1, None))
    ds = _gates_backward(xp, dhu[t, :, -1:], last_product.w) * keep
    da, dh = cell.gated.backward(xp, saved.gates[t], saved.h_prev[t], ds)
    dax[t, :, 0] += select(here, da, 0)
    dah[t, :, 0] = dax[t, :, 0]
    dhu[t, :, :-1] = _before_gain(dah[t, :, :-1], first_product.gain, rows, t, every, slice(-1))
    result: Array = dh + _gates_backward(xp, dhu[t, :, :-1], first_product.w) * keep
    return result


def _input_gradient(w: Weights, valid: Array | None, dxw: Array, dx: Array, accumulate: bool) -> None:
    """dx = dxw W over all T*B at once, exactly zero on padding."""
    product = _multiply(dxw.reshape(*dxw.shape[:2], w.ih.shape[0]), w.ih)
    if valid is not None:
        product = select(valid, product, 0)
    dx[...] = dx + product if accumulate else product


def _rows(a: Array) -> Array:
    return a.reshape(a.shape[0] * a.shape[1], math.prod(a.shape[2:]))


def _over_rows(da: Array) -> Array:
    """Sum over T*B."""
    total: Array = _rows(da).sum(0)
    return total


def _weight_gradients(
    xp: ModuleType, cell: Cell, w: Weights, saved: Saved, seen: Array, x: Array, dxw: Array, dhu: Array, dproj: Array
) -> Weights:
    """dW = dxw^T x, dU = dhu^T seen (h_prev as the product saw it), over T*B at once; those of biases are None."""

    def over_time(da: Array, a: Array) -> Array:
        product: Array = _rows(da).T @ _rows(a)
        return product

    def recurrent(da: Array, a: Array) -> Array:
        return over_time(da, a) if w.hh.ndim == 2 else (da * a[:, :, None]).sum((0, 1)).reshape(-1)

    if cell.gated is None:
        hh = recurrent(dhu, seen)
    else:
        hh = xp.concatenate((recurrent(dhu[:, :, :-1], seen), recurrent(dhu[:, :, -1:], saved.gated)))
    return Weights(over_time(dxw, x), hh, None, None, None if w.hr is None else over_time(dproj, saved.h))


def _gain_gradients(saved: Saved, dax: Array, dah: Array, dv: Array | None) -> dict[str, Array]:
    """Sums over T*B of each gradient times the normalised rows; nothing without layer normalisation."""
    if saved.norm_x is None or saved.norm_h is None:
        return {}
    gains = {"norm_ih": _over_rows(dax * saved.norm_x.hat), "norm_hh": _over_rows(dah * saved.norm_h.hat)}
    if saved.norm_c is None or dv is None:
        return gains
    return gains | {"norm_c": _over_rows(dv * saved.norm_c.hat), "norm_c_bias": _over_rows(dv)}
