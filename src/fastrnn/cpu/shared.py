"""Memory and arguments of one sequence whose hidden units several threads share; see split.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, pool
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.lately import Timed
from fastrnn.cpu.layout import CHUNK_ROWS, unit_parts
from fastrnn.cpu.packed import Packed
from fastrnn.cpu.rows import BLOCKS_AT_ONCE
from fastrnn.cpu.saved import Saved
from fastrnn.cpu.signals import SPACING
from fastrnn.memory import empty
from fastrnn.recurrence import Run

_compiled: set[tuple[Any, Any]] = set()  # kernels and dtypes


def sharers(packed: Packed, run: Run, save: bool) -> int:
    """How many threads may share a pass's units: split.py knows plain cells, nothing drawn, held, padded or reset."""
    n, (steps, batch) = packed.sizes, run.x.shape[:2]
    if batch > 1 or packed.normalised or packed.cell.gated or packed.diagonal or packed.hr.size:
        return 1
    if run.clear is not None or run.keep is not None or run.zone is not None:
        return 1
    if run.lengths is not None and run.lengths.min(initial=steps) < steps:
        return 1
    states = 0 if save else steps * n.H * (1 + packed.cell.cell_state) * n.itemsize
    return unit_parts(steps, n.G * n.H * n.H * n.itemsize, n.Hp // n.U, states)


def timed(packed: Packed, run: Run, save: bool, parts: int) -> Timed | None:
    """Begin a pass that `parts` threads share if that has lately been faster; None: they do, for the kernel is new."""
    if (build.load("split", packed.cell).split_forward, packed.dtype) not in _compiled:
        return None
    n = packed.sizes
    return Timed((packed.cell.name, n.itemsize, n.I, n.H, save, parts), run.x.shape[0], packed.used)


class Shared:
    """As forward.Place, for such a pass.

    A helper may still be at work when a call has returned, so it works on memory that is its pass's own alone, on a
    copy of x too.
    """

    def __init__(self, cell: Cell, packed: Packed, run: Run, save: bool, parts: int) -> None:
        n, dtype, nothing, saved = packed.sizes, packed.dtype, packed.nothing, packed.loop.SAVED
        steps, chunk = run.x.shape[0], min(CHUNK_ROWS, run.x.shape[0])
        hs = empty((steps + 1, 1, n.Ps), dtype)
        cs = empty((steps + 1, 1, n.Hp), dtype) if cell.cell_state else nothing
        gates = empty((steps, 1, saved, n.Hp), dtype) if save else nothing
        self.saved = Saved(hs, cs, gates, *(nothing,) * 6)
        self._n, self._ends = n, (steps, 0) if run.reverse else (0, steps)
        self._at = np.empty(parts * SPACING, np.int64)
        self._x = empty((steps, row_stride(n.I, n.itemsize)), dtype)
        self._kernel = build.load("split", cell).split_forward
        ax, tile, offsets = chunk * n.G * n.Hp, BLOCKS_AT_ONCE * n.G * n.U, chunk + 5 + parts
        self._parts: list[tuple[Any, ...]] = [
            (
                self._at, self._x.reshape(-1), self._x.shape[1], run.reverse, packed.w, packed.bias, packed.u,
                packed.unit, hs.reshape(-1), cs.reshape(-1), gates.reshape(-1), nothing, empty(ax, dtype),
                empty(tile, dtype), np.empty(offsets, np.int64), np.zeros(1, np.bool_), steps, n.I, n.H, n.Ps, save,
            )
            for _ in range(parts)
        ]  # fmt: skip
        self.bytes = hs.nbytes + cs.nbytes + gates.nbytes + self._x.nbytes
        self.bytes += parts * ((ax + tile) * n.itemsize + 8 * offsets)

    def put(self, h0: Array, c0: Array | None) -> None:
        """Write the initial state."""
        first = self._ends[0]
        self.saved.hs[first, :, : self._n.P] = h0
        if c0 is not None:
            self.saved.cs[first, :, : self._n.H] = c0

    def run(self, x: tuple[Array, int, int], y: tuple[Array, int, int], first: int) -> bool:
        """Run the kernel; return whether nobody works on this memory any more."""
        rows, step, _ = x
        steps, inputs, itemsize = len(self._x), self._n.I, self._n.itemsize
        self._x[:, :inputs] = np.lib.stride_tricks.as_strided(rows, (steps, inputs), (step * itemsize, itemsize))
        self._at.fill(-1)
        mine, *others = (
            partial(self._kernel, me, len(self._parts), y[0], y[1], first, *part) for me, part in enumerate(self._parts)
        )
        if (self._kernel, rows.dtype) not in _compiled:  # not by a helper, which would stand back as it compiles
            mine()
            _compiled.add((self._kernel, rows.dtype))
            return True
        return pool.lead(mine, others)

    def final(self) -> tuple[Array, Array | None]:
        """The state after the last step, where it is."""
        last = self._ends[1]
        c = self.saved.cs[last, :, : self._n.H] if self.saved.cs.size else None
        return self.saved.hs[last, :, : self._n.P], c
