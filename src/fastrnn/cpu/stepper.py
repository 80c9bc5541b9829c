"""One time step at a time on the CPU: the loop's kernel with T = 1, on buffers that are made once."""

from __future__ import annotations

import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu.forward import Place
from fastrnn.cpu.layout import flat
from fastrnn.cpu.packed import Packed
from fastrnn.recurrence import Columns, Run, Zone


class Stepper:
    """One layer's stream; see fastrnn.recurrence.Stepper. It runs on the calling thread."""

    def __init__(self, cell: Cell, packed: Packed, x: Array, zone: Zone | None) -> None:
        n, batch = packed.sizes, x.shape[0]
        x, y = x[None], np.empty((1, batch, n.P), packed.dtype)
        zeros = [np.zeros((batch, width), packed.dtype) for width in (n.P, n.H)]
        run = Run(x, zeros[0], zeros[1] if cell.cell_state else None, None, None, False, Columns(y, 0, n.P), zone=zone)
        place = Place(cell, packed, run, save=False, parts=1)
        place.put(run.h0, run.c0)
        (part,) = place.parts
        self._kernel, self._arguments = packed.loop.layer_forward, (*flat(x), *flat(y), 0, *part)
        self._states, self._cells = place.saved.hs, place.saved.cs
        self.h, self.y = self._states[0, :, : n.P], y[0]
        self.c = self._cells[0, :, : n.H] if cell.cell_state else None

    def step(self) -> None:
        """Take one step: x to y, and the state to the next."""
        self._kernel(*self._arguments)
        self._states[0] = self._states[1]
        if self.c is not None:
            self._cells[0] = self._cells[1]
