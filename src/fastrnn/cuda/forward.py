"""The step plan forward: for every step one recurrent product by cuBLAS and one fused kernel, see csrc/step.cuh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import cupy as xp

from fastrnn.arrays import Array, computed_in
from fastrnn.cells import Cell
from fastrnn.cuda import kernels
from fastrnn.cuda.packed import Packed
from fastrnn.cuda.products import multiply
from fastrnn.cuda.source import OnChip
from fastrnn.recurrence import Run, Shape

if TYPE_CHECKING:
    from fastrnn.cuda.places import Place


class Products(NamedTuple):
    """What layer normalisation needs again: the products as they are, and mean and scale of each of their rows."""

    x: Array  # [T, B, G*H], of all steps also in a pass that saves nothing, as the next
    of_x: Array  # [T, B, 2] in the dtype of registers
    ah: Array  # [T, B, G*H]; gated cells [T, B, (G-1)*H]
    ah_last: Array | None  # gated cells [T, B, H]
    of_rows: Array  # [T, B, 3, 2] likewise: of ah, of ah_last, of c


class States(NamedTuple):
    """What the forward pass writes.

    hs and cs hold the state before and after every step: slot t and t + 1, in the reverse direction t + 1 and t. A
    pass that saves nothing has two slots, used in turn, and one step's worth of the others.
    """

    hs: Array  # [T+1, B, P]
    cs: Array | None  # [T+1, B, H]
    gates: Array | None  # [T, B, V, H]
    m: Array | None  # [T, B, H], input of the projection
    s: Array | None  # [T, B, H], gated state as its product sees it
    seen: Array | None  # [T+1, B, P], with recurrent dropout: hs as the product sees it
    own_h: Array | None  # [T, B, H], with zoneout: h of the cell, where its backward reads that
    own_c: Array | None  # [T, B, H], with zoneout: c of the cell
    norm: Products | None  # with layer normalisation

    def slots(self, t: int, reverse: bool) -> tuple[int, int]:
        """Return where the state before and after step t is."""
        count = self.hs.shape[0]
        return (t + reverse) % count, (t + 1 - reverse) % count


@dataclass(frozen=True, eq=False)
class Saved:
    """What the backward pass needs."""

    states: States
    place: Place | None  # whose memory the states are, in a pass that was replayed
    on_chip: tuple[OnChip, ...] = ()  # the layout of the plan on the chip that ran it


class Scratch(NamedTuple):
    """Where the products of one pass go."""

    ax: Array  # [T, B, G*H]
    ah: Array | None  # [1, B, G*H]; gated cells [1, B, (G-1)*H]; none with a diagonal U whose products the kernel takes
    ah_last: Array | None  # gated cells [1, B, H]
    product: Array | None  # [B, P], the projection
    from_c_prev: Array | None  # [B, (n-1)*H] with dense peepholes, in the dtype of registers: c_prev V^T, and
    from_c: Array | None  # [B, H] likewise, c V^T, of
    c: Array | None  # [B, H] likewise, the cell's own c, before the state is written


def rows(a: Array) -> Array:
    """[T, B, ...] as a contiguous matrix [T*B, ...]."""
    flat: Array = xp.ascontiguousarray(a).reshape(a.shape[0] * a.shape[1], math.prod(a.shape[2:]))
    return flat


def has_options(packed: Packed, run: Run) -> bool:
    """Whether a pass needs the kernels that know a diagonal U, dense peepholes, recurrent dropout and zoneout."""
    return any(option is not None for option in (packed.diagonal, packed.ch, run.keep, run.zone))


def shape_of(packed: Packed, run: Run, save: bool, directions: int = 1) -> Shape:
    """What decides how a pass runs and what memory it needs; `train`: whether all that backward needs is kept."""
    steps, batch, inputs = map(int, run.x.shape)
    return Shape(
        steps, batch, steps * batch, steps, inputs, packed.hidden, 0 if packed.hr is None else packed.output,
        packed.dtype, save, packed.diagonal is not None, packed.gains is not None,
        0 if packed.ch is None else len(packed.ch) // packed.hidden, run.zone is not None, run.keep is not None,
        directions=directions,
    )  # fmt: skip


def step(array: Array | None, t: int) -> Array | None:
    """Return step t of an array that has an entry for every step, or one for all."""
    return None if array is None else array[t % array.shape[0]]


def shares(run: Run, t: int) -> tuple[Array | None, Array | None, int]:
    """Zoneout's shares of the old h and c at one step, [B, H] or rates [1, H], and the distance of their rows."""
    if run.zone is None:
        return None, None, 0
    h, c = (step(share, t) for share in run.zone)
    row = max(0 if share is None or share.shape[0] == 1 else share.shape[1] for share in (h, c))
    return h, c, row


def allocate(cell: Cell, packed: Packed, run: Run, save: bool) -> States:
    """Return uninitialised arrays for one pass; without `save`, as few as a pass can do with."""
    (steps, batch), dtype, hidden = run.x.shape[:2], packed.dtype, packed.hidden
    zone_h, zone_c = (None, None) if run.zone is None else run.zone
    kept, slots = (steps, steps + 1) if save else (1, 2)
    norm = _products(packed, kept, steps, batch)
    saved = cell.saved if save or (norm is not None and cell.cell_state) else 0  # h is read out of them

    def empty(count: int, *shape: int, dtype: str = dtype) -> Array:
        array: Array = xp.empty((count, batch, *shape), dtype)
        return array

    return States(
        empty(slots, packed.output),
        empty(slots, hidden, dtype=computed_in(dtype)) if cell.cell_state else None,
        empty(kept, saved, hidden) if saved else None,
        empty(kept, hidden) if packed.hr is not None else None,
        empty(kept, hidden) if cell.gated and (save or packed.fused is None) else None,
        empty(slots, packed.output) if run.keep is not None and packed.fused is None else None,
        empty(kept, hidden) if save and zone_h is not None and cell.uses_h else None,
        empty(kept, hidden, dtype=computed_in(dtype)) if (save or norm is not None) and zone_c is not None else None,
        norm,
    )


def _products(packed: Packed, kept: int, steps: int, batch: int) -> Products | None:
    if packed.gains is None:
        return None
    dtype, compute, hidden = packed.dtype, computed_in(packed.dtype), packed.hidden
    return Products(
        xp.empty((steps, batch, packed.gates * hidden), dtype), xp.empty((steps, batch, 2), compute),
        xp.empty((kept, batch, packed.split), dtype), xp.empty((kept, batch, hidden), dtype) if packed.gated else None,
        xp.empty((kept, batch, 3, 2), compute),
    )  # fmt: skip


def scratch(packed: Packed, steps: int, batch: int, norm: Products | None) -> Scratch:
    """Return uninitialised arrays for the products of a pass, or those that it keeps."""
    hidden, dtype = packed.hidden, packed.dtype
    product = None if packed.hr is None else xp.empty((batch, packed.output), dtype)
    widths = (None,) * 3 if packed.ch is None else (packed.ch.shape[0] - hidden, hidden, hidden)
    of_c = (None if width is None else xp.empty((batch, width), computed_in(dtype)) for width in widths)
    if norm is not None:
        return Scratch(norm.x, norm.ah, norm.ah_last, product, *of_c)
    return Scratch(
        xp.empty((steps, batch, packed.gates * hidden), dtype),
        None if packed.hh is None else xp.empty((1, batch, packed.split), dtype),
        xp.empty((1, batch, hidden), dtype) if packed.hh is not None and packed.gated else None,
        product, *of_c,
    )  # fmt: skip


def set_initial(run: Run, states: States) -> None:
    """Put the initial state into its slot."""
    slot = states.slots(run.x.shape[0] - 1 if run.reverse else 0, run.reverse)[0]
    states.hs[slot] = run.h0
    if states.seen is not None:
        states.seen[slot] = run.h0 * run.keep
    if states.cs is not None:
        states.cs[slot] = run.c0


def input_product(packed: Packed, x: Array, into: Scratch) -> None:
    """Multiply the input of all steps at once."""
    if into.ax.size:
        multiply(rows(x), packed.ih.T, out=rows(into.ax))


def forward_steps(cell: Cell, packed: Packed, run: Run, states: States, into: Scratch) -> None:
    """Run the loop; nothing in here waits for the device, and nothing allocates."""
    steps, batch = run.y.view.shape[:2]
    hidden, output, y = packed.hidden, packed.output, run.y.view
    if steps * batch == 0:
        return
    normalised = packed.gains is not None
    k = kernels.load(cell, packed.dtype, batch, (hidden, output), (y,), has_options(packed, run), normalised)
    ax, product = into.ax, into.product
    y_row = y.strides[1] // y.itemsize
    if states.norm is not None:
        k.launch("input_moments", steps * batch, hidden, ax, run.lengths, states.norm.of_x, steps, batch, hidden)
    for t in run.steps():
        before, after = states.slots(t, run.reverse)
        clear = None if run.clear is None else run.clear[t]
        h_prev, h = states.hs[before], states.hs[after]
        c_prev, c = (None, None) if states.cs is None else (states.cs[before], states.cs[after])
        seen, seen_next = (h_prev, None) if states.seen is None else (states.seen[before], states.seen[after])
        m, s, saved = step(states.m, t), step(states.s, t), step(states.gates, t)
        own_h, own_c = step(states.own_h, t), step(states.own_c, t)
        ah, ah_last = step(into.ah, t), step(into.ah_last, t)
        norm = _at(packed, states.norm, t)
        if ah is not None:
            _recurrent(k, packed, False, seen, ah)
        if ah_last is not None:
            k.launch(
                "gate_forward", batch, hidden, ax[t], ah, packed.bias, h_prev, run.keep, run.lengths, clear, s, *norm,
                t, batch, hidden,
            )  # fmt: skip
            _recurrent(k, packed, True, s, ah_last)  # type: ignore[arg-type]
        whole = m is None  # no projection: the kernel makes h itself
        sums = ax[t], ah, ah_last, packed.bias, packed.p, packed.fused, run.keep if whole else None
        before_it = h_prev if whole else None, c_prev, run.lengths, clear
        if packed.ch is not None:
            _see_cells(k, packed, into, sums, before_it, norm, t)
        k.launch(
            "step_forward", batch, hidden, *sums, *shares(run, t), *before_it, h if whole else m, c, saved,
            seen_next if whole else None, s if ah_last is None else None, own_h, own_c, *norm, into.from_c_prev,
            into.from_c, y[t] if whole else None, y_row, t, batch, hidden,
        )  # fmt: skip
        if m is not None:
            multiply(m, packed.hr.T, out=product)  # type: ignore[union-attr,arg-type]
            k.launch(
                "project_forward", batch, output, product, h_prev, run.keep, run.lengths, h, seen_next, y[t], y_row, t,
                batch, output,
            )  # fmt: skip


def _see_cells(
    k: kernels.Kernels, packed: Packed, into: Scratch, sums: tuple[Array | None, ...],
    before_it: tuple[Array | None, ...], norm: tuple[Array | None, ...], t: int,
) -> None:  # fmt: skip
    """What the gates of a step see of c_prev, and of c, which a launch of the step's own kernel makes, and no more."""
    c_prev, c, (batch, hidden) = before_it[1], into.c, into.c.shape  # type: ignore[union-attr]
    of_first, of_last = packed.peepholes(wide=True)
    multiply(c_prev, of_first.T, out=into.from_c_prev)  # type: ignore[arg-type]
    k.launch(
        "step_forward", batch, hidden, *sums, None, None, 0, *before_it, None, c, *(None,) * 5, *norm, into.from_c_prev,
        None, None, 0, t, batch, hidden,
    )  # fmt: skip
    multiply(c, of_last.T, out=into.from_c)  # type: ignore[arg-type]


def _at(packed: Packed, norm: Products | None, t: int) -> tuple[Array | None, Array | None, Array | None]:
    """What normalises the products of one step; nulls without it."""
    return (None, None, None) if norm is None else (packed.gains, norm.of_x[t], step(norm.of_rows, t))


def _recurrent(k: kernels.Kernels, packed: Packed, last: bool, seen: Array, out: Array) -> None:
    """The product of the state with U, of the gated state with its last gate; a diagonal one if a kernel of its own."""
    if packed.diagonal is None:
        multiply(seen, (packed.last if last else packed.first).T, out=out)
        return
    k.launch(
        "diagonal_forward", seen.shape[0], packed.hidden, seen, packed.diagonal, out, *packed.gates_of(last),
        seen.shape[0], packed.hidden,
    )  # fmt: skip
