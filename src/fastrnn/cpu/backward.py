"""One layer and direction backward: the kernel of the loop on each thread's rows, then the products over all T*B."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import pool, products
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.layout import flags, flat, kept_rows, part_count, row_slices, shares
from fastrnn.cpu.packed import Packed
from fastrnn.cpu.saved import Saved
from fastrnn.memory import empty
from fastrnn.recurrence import Columns, Given, Initial, Run


def recur_backward(
    cell: Cell, packed: Sequence[Packed], runs: Sequence[Run], saved: Sequence[Saved], given: Sequence[Given],
    dx: Array, accumulate: bool,
) -> list[Initial]:  # fmt: skip
    """Back-propagate through time, then the products over all T*B; see fastrnn.recurrence."""
    directions = enumerate(zip(packed, runs, saved, given, strict=True))
    return [_backward(cell, *of_direction, dx, accumulate or k > 0) for k, of_direction in directions]


def _backward(cell: Cell, packed: Packed, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool) -> Initial:
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
    keep, zone = kept_rows(run, n, packed.nothing), shares(run.zone, n.H, n.Hp, packed.nothing)
    back = packed.back
    dy, dcells = _columns(given.y, dtype), _columns(given.cells, dtype)
    clear = flags(run)

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

    total = steps * batch if run.lengths is None else int(run.lengths.sum())
    parts = part_count(total, batch, 2.0 * n.G * n.H * n.P)
    pool.run([partial(work, *part) for part in row_slices(run.lengths, steps, batch, parts)])
    weights = products.after_loop(packed, run, saved, planes.reshape(-1), dproj.reshape(-1), dx, accumulate)
    if packed.diagonal:
        hh = du.sum(axis=0)[np.argsort(loop.DAH_GATES), : n.H]
        weights = weights._replace(hh=hh.reshape(-1))
    if cell.unit_parameters:
        weights = weights._replace(p=dp.sum(axis=0)[:, : n.H])
    if packed.normalised:
        weights = weights._replace(**products.affine_gradients(packed, sums))
    return Initial(dh[:, : n.P], dc[:, : n.H] if cell.cell_state else None, weights)


def _columns(columns: Columns | None, dtype: object) -> tuple[Array, int, int, int]:
    """An array, the strides of t and b, and the first column; an empty one stands for zero."""
    if columns is None:
        return np.empty(0, dtype), 0, 0, 0  # type: ignore[call-overload]
    return *flat(columns.array), columns.first
