"""One time step at a time on the CPU: the loop's kernel with T = 1, on buffers that are made once."""

from __future__ import annotations

import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu.layout import shares
from fastrnn.cpu.packed import Packed
from fastrnn.recurrence import Zone


class Stepper:
    """One layer's stream; see fastrnn.recurrence.Stepper. It runs on the calling thread."""

    def __init__(self, cell: Cell, packed: Packed, x: Array, zone: Zone | None) -> None:
        n, dtype, batch, loop = packed.sizes, packed.dtype, x.shape[0], packed.loop
        self._states = np.zeros((2, batch, n.Ps), dtype)
        self._cells = np.zeros((2, batch, n.Hp) if cell.cell_state else (2, 0), dtype)
        self.h = self._states[0, :, : n.P]
        self.c = self._cells[0, :, : n.H] if cell.cell_state else None
        self.y = np.empty((batch, n.P), dtype)
        nothing = packed.nothing
        tile = batch * n.G * n.Hp if loop.WHOLE else loop.TILE_ROWS * n.G * n.U
        waiting = batch * n.Hp if loop.READOUT else 0  # h waits for the row of c, and with it what the cell made
        norm = (packed.affine, nothing, nothing, np.empty(n.Hp, dtype)) if packed.normalised else ()
        self._kernel = loop.layer_forward
        self._arguments = (
            np.arange(batch, dtype=np.int64), np.ones(batch, np.int64),
            x.reshape(-1), 0, n.I, np.empty(0, np.bool_), False, False,
            packed.w, packed.bias, packed.u, packed.diagonal, packed.unit, packed.hr,
            self._states.reshape(-1), self._cells.reshape(-1),
            np.empty(waiting * loop.SAVED, dtype), np.empty(batch * n.Hs if packed.hr.size else 0, dtype),
            np.empty(batch * n.Hs if cell.gated else 0, dtype), self.y.reshape(-1), 0, n.P, 0,
            nothing, nothing, *shares(zone, n.H, n.Hp, nothing), np.empty(waiting, dtype), norm,
            np.empty(batch * n.G * n.Hp, dtype), np.empty(tile, dtype), np.empty(10 * batch, np.int64),
            np.empty(0, dtype), np.empty(batch, np.bool_), 1, batch, n.I, n.H, n.P, False,
        )  # fmt: skip

    def step(self) -> None:
        """Take one step: x to y, and the state to the next."""
        self._kernel(*self._arguments)
        self._states[0] = self._states[1]
        self._cells[0] = self._cells[1]
