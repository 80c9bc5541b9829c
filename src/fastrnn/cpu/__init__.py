"""The CPU backend: Numba kernels in loop.py, matmul.py and panels.py; see fastrnn.recurrence for what a backend is."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn import philox, threads
from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, pool, products
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.describe import describe
from fastrnn.cpu.layout import CHUNK_ROWS, flat, plain, row_slices, shares
from fastrnn.cpu.packed import Packed, Sizes
from fastrnn.cpu.refusal import refuse
from fastrnn.cpu.stepper import Stepper
from fastrnn.recurrence import Columns, Final, Given, Initial, Run, Weights, Zone

THREAD_WORDS = 20_000  # fewer random words are not worth waking a thread for

__all__ = ["cells", "describe", "pack", "random_words", "recur_backward", "recur_forward", "stepper"]

_NO_FLAGS = np.empty(0, np.bool_)

empty = np.empty  # tests replace it by one that fills with NaN


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass; shapes as in loop.layer_forward."""

    hs: Array
    cs: Array
    gates: Array
    m: Array
    s: Array
    raw_c: Array
    seen: Array
    hats: Array
    scales: Array


def pack(cell: Cell, weights: Weights) -> Packed:
    """Bring the weights into panels."""
    refuse(cell, weights.norm_ih is not None, weights.ch is not None)
    return Packed(cell, weights)


def stepper(cell: Cell, packed: Packed, x: Array, zone: Zone | None, below: Stepper | None) -> Stepper:
    """One layer of a stream that reads x [B, I]."""
    return Stepper(cell, packed, x, zone)


def _ends(run: Run, save: bool) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Where in hs [slots, B, ..] each row's initial and final state stand, as indices."""
    steps, batch = run.x.shape[:2]
    rows: Any = slice(None) if run.lengths is None else np.arange(batch)
    end: Any = steps if run.lengths is None else run.lengths
    first, last = (end, 0 * end) if run.reverse else (0 * end, end)
    return ((first, rows), (last, rows)) if save else ((first & 1, rows), (last & 1, rows))


def recur_forward(cell: Cell, packed: Packed, run: Run, save: bool) -> Final:
    """Run the recurrence; see fastrnn.recurrence."""
    n, dtype, loop, nothing = packed.sizes, packed.dtype, packed.loop, packed.nothing
    steps, batch = run.x.shape[:2]
    slots, kept = (steps + 1, steps) if save else (2, 1)
    hs, cs = empty((slots, batch, n.Ps), dtype), empty((slots, batch, n.Hp), dtype) if cell.cell_state else nothing
    gates = empty((kept, batch, loop.SAVED, n.Hp), dtype) if save or loop.READOUT else nothing
    m = empty((kept, batch, n.Hs), dtype) if packed.hr.size else nothing
    s = empty((kept, batch, n.Hs), dtype) if cell.gated else nothing
    first, last = _ends(run, save)
    zone = shares(run.zone, n.H, n.Hp, nothing)
    made_c = zone[0] and cell.cell_state and (save or loop.READOUT)
    raw_c = empty((kept, batch, n.Hp), dtype) if made_c else nothing
    hats = empty((steps, batch, 2 * n.G, n.Hp), dtype) if save and packed.normalised else nothing
    scales = empty((steps, batch, loop.SCALES), dtype) if save and packed.normalised else nothing
    keep = _keep(run, n, nothing)
    seen = empty((kept, batch, n.Ps), dtype) if keep.size else nothing
    hs[(*first, slice(n.P))] = run.h0
    if run.c0 is not None:
        cs[(*first, slice(n.H))] = run.c0
    x, y = flat(run.x), flat(run.y.array, written=True)
    clear = _flags(run)
    distance = x[2] if batch > 1 else x[1]  # of the rows that a product takes together
    aliased = row_stride(distance, n.itemsize) != distance
    flops = 2.0 * n.G * n.H * (n.I + n.P)

    def work(rows: Array, lengths: Array) -> None:
        chunk = max(rows.size, min(CHUNK_ROWS, int(lengths.sum())))
        tile = rows.size * n.G * n.Hp if loop.WHOLE else loop.TILE_ROWS * n.G * n.U
        norm = (packed.affine, hats.reshape(-1), scales.reshape(-1), empty(n.Hp, dtype)) if packed.normalised else ()
        loop.layer_forward(
            rows, lengths, *x, clear, run.clear is not None, run.reverse, packed.w, packed.bias, packed.u,
            packed.diagonal, packed.unit, packed.hr, hs.reshape(-1), cs.reshape(-1), gates.reshape(-1), m.reshape(-1),
            s.reshape(-1), *y, run.y.first, keep, seen.reshape(-1), *zone, raw_c.reshape(-1), norm,
            empty(chunk * n.G * n.Hp, dtype), empty(tile, dtype), np.empty(chunk + 9 * rows.size, np.int64),
            empty(chunk * row_stride(n.I, n.itemsize), dtype) if aliased else nothing, np.empty(rows.size, np.bool_),
            steps, batch, n.I, n.H, n.P, save,
        )  # fmt: skip

    pool.run([partial(work, *part) for part in row_slices(run.lengths, steps, batch, flops)])
    if run.lengths is not None:
        run.y.view[np.arange(steps)[:, None] >= run.lengths] = 0
    h_n = hs[(*last, slice(n.P))]
    c_n = cs[(*last, slice(n.H))] if cell.cell_state else None
    return Final(h_n, c_n, Saved(hs, cs, gates, m, s, raw_c, seen, hats, scales) if save else None)


def cells(cell: Cell, packed: Packed, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    steps = run.x.shape[0]
    c = saved.cs[:steps] if run.reverse else saved.cs[1:]
    c = c[:, :, : packed.sizes.H].copy()
    if run.lengths is not None:
        c[np.arange(steps)[:, None] >= run.lengths] = 0
    return c


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    words = np.empty(count, np.uint32)
    key = np.array([seed & philox.MASK, seed >> 32], np.uint64)
    prefix = np.array([value & philox.MASK for value in counter], np.uint64)
    fill = build.load("masks").random_words
    parts = max(1, min(threads.get_num_threads(), count // THREAD_WORDS))
    bounds = [count * k // parts // 4 * 4 for k in range(parts)] + [count]
    pool.run([partial(fill, words, first, last, key, prefix) for first, last in pairwise(bounds)])
    return words


def recur_backward(
    cell: Cell, packed: Packed, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool
) -> Initial:
    """Back-propagate through time, then the products over all T*B; see fastrnn.recurrence."""
    n, dtype, loop = packed.sizes, packed.dtype, packed.loop
    steps, batch = run.x.shape[:2]
    dh, dc = np.zeros((batch, n.Pp), dtype), np.zeros((batch, n.Hp) if cell.cell_state else 0, dtype)
    if given.h_n is not None:
        dh[:, : n.P] = given.h_n
    if given.c_n is not None:
        dc[:, : n.H] = given.c_n
    planes = empty((steps, batch, row_stride(loop.KEPT_PLANES * n.Hp, n.itemsize)), dtype)
    dproj = empty((steps, batch, n.Pp) if packed.hr.size else 0, dtype)
    dp = np.zeros((batch, cell.unit_parameters, n.Hp), dtype)
    du = np.zeros((batch, n.G, n.Hp) if packed.diagonal else 0, dtype)
    sums = np.zeros((batch, loop.SUMS, n.Hp) if packed.normalised else 0, dtype)
    keep, zone = _keep(run, n, packed.nothing), shares(run.zone, n.H, n.Hp, packed.nothing)
    back = packed.back
    dy, dcells = _columns(given.y, dtype), _columns(given.cells, dtype)
    clear = _flags(run)

    def work(rows: Array, lengths: Array) -> None:
        norm: tuple[Array, ...] = ()
        if packed.normalised:
            made = empty(rows.size * loop.PLANES * n.Hp, dtype)
            norm = packed.affine, saved.hats.reshape(-1), saved.scales.reshape(-1), empty(4 * n.Hp, dtype), made
            norm = *norm, sums.reshape(-1)
        loop.layer_backward(
            rows, lengths, clear, run.clear is not None, run.reverse, back.u, packed.diagonal, back.u_gated, back.hr,
            packed.unit, saved.hs.reshape(-1), saved.cs.reshape(-1), saved.gates.reshape(-1),
            saved.s.reshape(-1), keep, saved.seen.reshape(-1), *zone, saved.raw_c.reshape(-1), *dy, *dcells,
            dh.reshape(-1), dc.reshape(-1), planes.reshape(-1), du.reshape(-1), dp.reshape(-1), dproj.reshape(-1), norm,
            empty(rows.size * n.Hp, dtype), empty(rows.size * n.Hp, dtype), empty(rows.size * n.Pp, dtype),
            np.empty(4 * rows.size, np.int64),
            steps, batch, n.H, n.P,
        )  # fmt: skip

    pool.run([partial(work, *part) for part in row_slices(run.lengths, steps, batch, 2.0 * n.G * n.H * n.P)])
    weights = products.after_loop(packed, run, saved, planes.reshape(-1), dproj.reshape(-1), dx, accumulate)
    if packed.diagonal:
        hh = du.sum(axis=0)[np.argsort(loop.DAH_GATES), : n.H]
        weights = weights._replace(hh=hh.reshape(-1))
    if cell.unit_parameters:
        weights = weights._replace(p=dp.sum(axis=0)[:, : n.H])
    if packed.normalised:
        weights = weights._replace(**products.affine_gradients(packed, sums))
    return Initial(dh[:, : n.P], dc[:, : n.H] if cell.cell_state else None, weights)


def _keep(run: Run, n: Sizes, nothing: Array) -> Array:
    """run.keep flat, in rows of Ps; nothing where there is none."""
    if run.keep is None:
        return nothing
    keep = np.zeros((run.keep.shape[0], n.Ps), run.x.dtype)
    keep[:, : n.P] = run.keep
    return keep.reshape(-1)


def _flags(run: Run) -> Array:
    """run.clear flat; an empty array where there is none."""
    return _NO_FLAGS if run.clear is None else plain(run.clear)


def _columns(columns: Columns | None, dtype: object) -> tuple[Array, int, int, int]:
    """An array, the strides of t and b, and the first column; an empty one stands for zero."""
    if columns is None:
        return np.empty(0, dtype), 0, 0, 0  # type: ignore[call-overload]
    return *flat(columns.array), columns.first
