"""One layer and direction forward: memory for its states, and the kernel of the loop on each thread's rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import pool
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.layout import CHUNK_ROWS, flags, flat, kept_rows, part_count, row_slices, shares
from fastrnn.cpu.packed import Packed
from fastrnn.cpu.saved import Saved
from fastrnn.cpu.shared import Shared, sharers, timed
from fastrnn.memory import empty
from fastrnn.recurrence import Final, Run

LARGEST = 2**20  # bytes of memory that waits for the next pass: what is larger costs little to allocate, beside its use


class Place:
    """Memory of one forward pass, and all arguments of its kernels but x and y."""

    def __init__(self, cell: Cell, packed: Packed, run: Run, save: bool, parts: int) -> None:
        n, dtype, loop, nothing = packed.sizes, packed.dtype, packed.loop, packed.nothing
        steps, batch = run.x.shape[:2]
        slots, kept = (steps + 1, steps) if save else (2, 1)
        zone = shares(run.zone, n.H, n.Hp, nothing)
        made = zone[0] and cell.cell_state and (save or loop.READOUT)
        normalised, keep = save and packed.normalised, kept_rows(run, n, nothing)

        def array(wanted: Any, *shape: int) -> Array:
            return empty(shape, dtype) if wanted else nothing

        self.saved = Saved(
            array(True, slots, batch, n.Ps), array(cell.cell_state, slots, batch, n.Hp),
            array(save or loop.READOUT, kept, batch, loop.SAVED, n.Hp), array(packed.hr.size, kept, batch, n.Hs),
            array(cell.gated, kept, batch, n.Hs), array(made, kept, batch, n.Hp), array(keep.size, kept, batch, n.Ps),
            array(normalised, steps, batch, 2 * n.G, n.Hp), array(normalised, steps, batch, loop.SCALES),
        )  # fmt: skip
        self._kernel = loop.layer_forward
        self._h, self._c = slice(n.P), slice(n.H) if cell.cell_state else None
        self._first, self._last = _ends(run, save)
        hs, cs, gates, m, s, raw_c, seen, hats, scales = (a.reshape(-1) for a in self.saved)
        clear, aliased = flags(run), _aliased(run, n.itemsize)
        self.parts: list[tuple[Any, ...]] = []
        self.bytes = sum(a.nbytes for a in self.saved)
        for rows, lengths in row_slices(run.lengths, steps, batch, parts):
            chunk = max(rows.size, min(CHUNK_ROWS, int(lengths.sum())))
            tile = rows.size * n.G * n.Hp if loop.WHOLE else loop.TILE_ROWS * n.G * n.U
            ax, near = array(True, chunk * n.G * n.Hp), array(aliased, chunk * row_stride(n.I, n.itemsize))
            self.bytes += ax.nbytes + near.nbytes + tile * n.itemsize
            self.parts.append((
                rows, lengths, clear, run.clear is not None, run.reverse, packed.w, packed.bias, packed.u,
                packed.diagonal, packed.unit, packed.hr, hs, cs, gates, m, s, keep, seen, *zone, raw_c,
                (packed.affine, hats, scales, array(True, n.Hp)) if packed.normalised else (), ax, array(True, tile),
                np.empty(chunk + 9 * rows.size, np.int64), near, np.empty(rows.size, np.bool_),
                steps, batch, n.I, n.H, n.P, save,
            ))  # fmt: skip

    def put(self, h0: Array, c0: Array | None) -> None:
        """Write the initial state."""
        self.saved.hs[(*self._first, self._h)] = h0
        if self._c is not None:
            self.saved.cs[(*self._first, self._c)] = c0

    def run(self, x: tuple[Array, int, int], y: tuple[Array, int, int], first: int) -> bool:
        """Run the kernel; return whether nobody works on this memory any more."""
        if len(self.parts) == 1:  # without a task, which costs 2 us
            self._kernel(*x, *y, first, *self.parts[0])
        else:
            pool.run([partial(self._kernel, *x, *y, first, *part) for part in self.parts])
        return True

    def final(self) -> tuple[Array, Array | None]:
        """The state after the last step, where it is unless the rows are chosen by their lengths."""
        c = None if self._c is None else self.saved.cs[(*self._last, self._c)]
        return self.saved.hs[(*self._last, self._h)], c


def _ends(run: Run, save: bool) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Where in hs [slots, B, ..] each row's initial and final state stand, as indices."""
    steps, batch = run.x.shape[:2]
    rows: Any = slice(None) if run.lengths is None else np.arange(batch)
    end: Any = steps if run.lengths is None else run.lengths
    first, last = (end, 0 * end) if run.reverse else (0 * end, end)
    return ((first, rows), (last, rows)) if save else ((first & 1, rows), (last & 1, rows))


def _aliased(run: Run, itemsize: int) -> bool:
    """Whether rows of x that a product takes together stand in each other's way."""
    step, row, _ = run.x.strides
    distance = (row if run.x.shape[1] > 1 else step) // itemsize
    return bool(row_stride(distance, itemsize) != distance)


def recur_forward(cell: Cell, packed: Sequence[Packed], runs: Sequence[Run], save: bool) -> list[Final]:
    """Run the recurrences, one after the other; see fastrnn.recurrence."""
    return [_forward(cell, weights, run, save) for weights, run in zip(packed, runs, strict=True)]


def _forward(cell: Cell, packed: Packed, run: Run, save: bool) -> Final:
    n = packed.sizes
    steps, batch = run.x.shape[:2]
    total = steps * batch if run.lengths is None else int(run.lengths.sum())
    parts = part_count(total, batch, 2.0 * n.G * n.H * (n.I + n.P))
    together = sharers(packed, run, save)
    measured = timed(packed, run, save, together) if together > 1 else None
    if measured is not None and not measured.shares:
        together = 1
    again = not save and run.lengths is None and run.clear is None and run.keep is None and run.zone is None
    key = steps, batch, parts, together, run.reverse, run.x.strides
    place = packed.places.pop(key, None) if again else None  # nobody else has it now
    if place is None:
        place = Place(cell, packed, run, save, parts) if together == 1 else Shared(cell, packed, run, save, together)
    place.put(run.h0, run.c0)
    free = place.run(flat(run.x), flat(run.y.array, written=True), run.y.first)
    if measured is not None:
        packed.used = measured.end()
    h_n, c_n = place.final()
    if again:
        h_n, c_n = h_n.copy(), None if c_n is None else c_n.copy()
        if free and place.bytes <= LARGEST:
            packed.keep(key, place)
    if run.lengths is not None:
        run.y.view[np.arange(steps)[:, None] >= run.lengths] = 0
    return Final(h_n, c_n, place.saved if save else None)


def cells(cell: Cell, packed: Packed, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    steps = run.x.shape[0]
    c = saved.cs[:steps] if run.reverse else saved.cs[1:]
    c = c[:, :, : packed.sizes.H].copy()
    if run.lengths is not None:
        c[np.arange(steps)[:, None] >= run.lengths] = 0
    return c
