"""The reference backend: one plain loop over time that every other backend is checked against.

It runs on the arrays' own module (NumPy or CuPy) in their own precision. Padding is selected away, never multiplied.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

from fastrnn import philox
from fastrnn.arrays import Array, array_module
from fastrnn.cells import Cell
from fastrnn.recurrence import Columns, Final, Given, Initial, Loop, Run, Shape, Weights, Zone


class Saved(NamedTuple):
    """Per step t, in any direction: the state that the step saw, what it made, and its gates."""

    h_prev: Array  # [T, B, P]
    c_prev: Array  # [T, B, H]
    h: Array  # [T, B, H], of the cell: before zoneout and projection
    c: Array  # [T, B, H], of the cell: before zoneout
    c_kept: Array  # [T, B, H], after zoneout
    gates: list[Array]  # T x [B, V, H]
    gated: Array  # [T, B, H], the gated state of a second product, as the product sees it


def _module(array: Array) -> ModuleType:
    xp = array_module(array)
    assert xp is not None, "validated before"
    return xp


def _gates(xp: ModuleType, a: Array, w: Array, bias: Array | None, hidden: int) -> Array:
    """a [..., K] times w [n*H, K] transposed, or a diagonal w [n*H], plus bias, as [..., n, H]."""
    product = a @ w.T if w.ndim == 2 else xp.tile(a, w.shape[0] // hidden) * w
    if bias is not None:
        product += bias
    return product.reshape(*a.shape[:-1], w.shape[0] // hidden, hidden)


def _gates_backward(xp: ModuleType, da: Array, w: Array) -> Array:
    """Gradient of a in `_gates`, for da [B, n, H]."""
    if w.ndim == 1:
        own: Array = (da * w.reshape(da.shape[1:])).sum(1)
        return own
    product: Array = da.reshape(da.shape[0], w.shape[0]) @ w
    return product


def _recurrent(xp: ModuleType, cell: Cell, w: Weights, ax: Array, h: Array, keep: Array | int) -> tuple[Array, Array]:
    """ah [B, G, H] for one step and the gated state as its product sees it (h itself where the cell has none)."""
    hidden = ax.shape[-1]
    if cell.gated is None:
        return _gates(xp, h * keep, w.hh, w.b_hh, hidden), h
    last = (len(cell.gates) - 1) * hidden
    b_first, b_last = (None, None) if w.b_hh is None else (w.b_hh[:last], w.b_hh[last:])
    ah = _gates(xp, h * keep, w.hh[:last], b_first, hidden)
    s = cell.gated.forward(xp, ax, ah, h) * keep
    return xp.concatenate((ah, _gates(xp, s, w.hh[last:], b_last, hidden)), axis=1), s


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


def recur_forward(cell: Cell, packed: Weights, run: Run, save: bool) -> Final:
    """Run the recurrence step by step; see fastrnn.recurrence."""
    xp, w, valid = _module(run.x), packed, _valid(_module(run.x), run)
    hidden = w.ih.shape[0] // len(cell.gates)
    x = run.x if valid is None else xp.where(valid, run.x, 0)
    ax = _gates(xp, x, w.ih, w.b_ih, hidden)
    h, c = run.h0, run.c0
    kept = _empty_saved(xp, cell, run, hidden) if save else None
    for t in run.steps():
        if run.clear is not None:
            h = xp.where(run.clear[t][:, None], 0, h)
            c = None if c is None else xp.where(run.clear[t][:, None], 0, c)
        ah, s = _recurrent(xp, cell, w, ax[t], h, _keep_factors(run))
        step = cell.forward(xp, ax[t], ah, h, c, w.p)
        share_h, share_c = _shares(run, t)
        c_new = None if c is None else _mixed(share_c, c, step.c)
        h_new = _mixed(share_h, h, step.h) if w.hr is None else step.h @ w.hr.T
        here = True if valid is None else valid[t]
        if kept is not None:
            _keep(xp, kept, t, here, (h, c, step.h, step.c, c_new, s))
            kept.gates[t] = step.saved
        run.y.view[t] = xp.where(here, h_new, 0)
        h = xp.where(here, h_new, h)
        c = None if c is None else xp.where(here, c_new, c)
    return Final(h, c, kept)


def cells(cell: Cell, packed: Weights, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    xp, valid = _module(run.x), _valid(_module(run.x), run)
    result: Array = saved.c_kept.copy() if valid is None else xp.where(valid, saved.c_kept, 0)
    return result


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    return philox.random_words(xp, seed, counter, count)


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    stages = ("input product of all steps at once", f"{shape.steps} steps, each a product and the cell's equations")
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
        final = recur_forward(self._cell, self._weights, run, False)
        self.h[...] = final.h_n
        if self.c is not None:
            self.c[...] = final.c_n


def stepper(cell: Cell, packed: Weights, x: Array, zone: Zone | None) -> Stepper:
    """One layer of a stream that reads x [B, I]."""
    return Stepper(cell, packed, x, zone)


def _empty_saved(xp: ModuleType, cell: Cell, run: Run, hidden: int) -> Saved:
    steps, batch, proj = run.x.shape[0], run.x.shape[1], run.h0.shape[1]

    def empty(width: int) -> Array:
        array: Array = xp.empty((steps, batch, width), run.x.dtype)
        return array

    cells = hidden if cell.cell_state else 0
    gated = hidden if cell.gated is not None else 0
    return Saved(empty(proj), empty(cells), empty(hidden), empty(cells), empty(cells), [run.x] * steps, empty(gated))


def _keep(xp: ModuleType, kept: Saved, t: int, here: Array | bool, values: tuple[Array | None, ...]) -> None:
    """Zeros where the step does not exist: a NaN there must not reach a sum over T*B as 0 * NaN."""
    into = (kept.h_prev, kept.c_prev, kept.h, kept.c, kept.c_kept, kept.gated)
    for array, value in zip(into, values, strict=True):
        if array.size:
            array[t] = xp.where(here, value, 0)


def recur_backward(
    cell: Cell, packed: Weights, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool
) -> Initial:
    """Back-propagate step by step, then all weight gradients as products over T*B; see fastrnn.recurrence."""
    xp, w, valid = _module(run.x), packed, _valid(_module(run.x), run)
    steps, batch = run.x.shape[:2]
    hidden = w.ih.shape[0] // len(cell.gates)
    dh = xp.zeros_like(run.h0) if given.h_n is None else given.h_n
    dc = None if run.c0 is None else xp.zeros_like(run.c0) if given.c_n is None else given.c_n
    dax: Array = xp.empty((steps, batch, len(cell.gates), hidden), run.x.dtype)
    dah, dproj = xp.empty_like(dax), xp.empty_like(saved.h_prev)
    dp = None if w.p is None else xp.zeros((batch, *w.p.shape), run.x.dtype)
    for t in list(run.steps())[::-1]:
        here = True if valid is None else valid[t]
        dh_t = dh if given.y is None else dh + xp.where(here, given.y.view[t], 0)
        dc_t = dc if given.cells is None or dc is None else dc + xp.where(here, given.cells.view[t], 0)
        dproj[t] = xp.where(here, dh_t, 0)
        share_h, share_c = _shares(run, t)
        dh_cell = (1 - share_h) * dh_t if w.hr is None else dh_t @ w.hr
        c_prev, c = (saved.c_prev[t], saved.c[t]) if cell.cell_state else (None, None)
        dc_cell = None if dc_t is None else (1 - share_c) * dc_t
        step = cell.backward(xp, saved.gates[t], saved.h_prev[t], c_prev, saved.h[t], c, dh_cell, dc_cell, w.p)
        alive = here if run.clear is None else here & ~run.clear[t][:, None]
        every_gate = True if valid is None else valid[t][..., None]
        dax[t], dah[t] = xp.where(every_gate, step.dax, 0), xp.where(every_gate, step.dah, 0)
        if dp is not None:
            dp += xp.where(every_gate, step.dp, 0)
        dh_prev = _recurrent_backward(xp, cell, w, saved, t, here, _keep_factors(run), dax, dah)
        if step.dh_prev is not None:
            dh_prev = dh_prev + step.dh_prev
        dh = _pass_on(xp, here, alive, _held(share_h, dh_t, dh_prev), dh)
        if dc is not None:
            dc = _pass_on(xp, here, alive, _held(share_c, dc_t, step.dc_prev), dc)
    _input_gradient(xp, w, valid, dax, dx, accumulate)
    x = run.x if valid is None else xp.where(valid, run.x, 0)
    seen = saved.h_prev * _keep_factors(run)
    weights = _weight_gradients(xp, cell, w, saved, seen, x, dax, dah, dproj)
    return Initial(dh, dc, weights._replace(p=None if dp is None else dp.sum(0)))


def _pass_on(xp: ModuleType, here: Array | bool, alive: Array | bool, d_prev: Array | None, d: Array) -> Array:
    """Gradient of the state before the step: cut at a reset, held where the step does not exist."""
    result: Array = xp.where(here, xp.where(alive, d_prev, 0), d)
    return result


def _recurrent_backward(
    xp: ModuleType, cell: Cell, w: Weights, saved: Saved, t: int, here: Array | bool, keep: Array | int, dax: Array,
    dah: Array,
) -> Array:  # fmt: skip
    """Gradient of h_prev through the recurrent product(s); fills in gate 0 where it waits for a gated state."""
    gates, hidden = dah.shape[2:]
    if cell.gated is None:
        return _gates_backward(xp, dah[t], w.hh) * keep
    last = (gates - 1) * hidden
    ds = _gates_backward(xp, dah[t, :, -1:], w.hh[last:]) * keep
    da, dh = cell.gated.backward(xp, saved.gates[t], saved.h_prev[t], ds)
    dax[t, :, 0] += xp.where(here, da, 0)
    dah[t, :, 0] = dax[t, :, 0]
    result: Array = dh + _gates_backward(xp, dah[t, :, :-1], w.hh[:last]) * keep
    return result


def _input_gradient(xp: ModuleType, w: Weights, valid: Array | None, dax: Array, dx: Array, accumulate: bool) -> None:
    """dx = dax W over all T*B at once, exactly zero on padding."""
    product = dax.reshape(*dax.shape[:2], w.ih.shape[0]) @ w.ih
    if valid is not None:
        product = xp.where(valid, product, 0)
    dx[...] = dx + product if accumulate else product


def _weight_gradients(
    xp: ModuleType, cell: Cell, w: Weights, saved: Saved, seen: Array, x: Array, dax: Array, dah: Array, dproj: Array
) -> Weights:
    """dW = dax^T x, dU = dah^T seen (h_prev as the product saw it), db = sums of dax and dah, over T*B at once."""

    def rows(a: Array) -> Array:
        return a.reshape(a.shape[0] * a.shape[1], math.prod(a.shape[2:]))

    def over_time(da: Array, a: Array) -> Array:
        product: Array = rows(da).T @ rows(a)
        return product

    def recurrent(da: Array, a: Array) -> Array:
        return over_time(da, a) if w.hh.ndim == 2 else (da * a[:, :, None]).sum((0, 1)).reshape(-1)

    if cell.gated is None:
        hh = recurrent(dah, seen)
    else:
        hh = xp.concatenate((recurrent(dah[:, :, :-1], seen), recurrent(dah[:, :, -1:], saved.gated)))
    return Weights(
        over_time(dax, x),
        hh,
        None if w.b_ih is None else rows(dax).sum(0),
        None if w.b_hh is None else rows(dah).sum(0),
        None if w.hr is None else over_time(dproj, saved.h),
    )
