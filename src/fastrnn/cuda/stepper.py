"""One time step at a time on the GPU: two products and one kernel a layer, on buffers that are made once."""

from __future__ import annotations

import cupy as xp

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cuda.forward import States, run_steps, scratch
from fastrnn.cuda.packed import Packed, computed_in
from fastrnn.recurrence import Columns, Run


class Stepper:
    """One layer's stream; see fastrnn.recurrence.Stepper. The kernels may write a state over the one they read."""

    def __init__(self, cell: Cell, packed: Packed, x: Array) -> None:
        batch, hidden, dtype = x.shape[0], packed.hidden, packed.dtype
        self._cell, self._packed = cell, packed
        self.h: Array = xp.zeros((batch, packed.output), dtype)
        self.c: Array | None = xp.zeros((batch, hidden), computed_in(dtype)) if cell.cell_state else None
        self.y: Array = xp.empty((batch, packed.output), dtype)
        self._states = States(
            self.h[None], None if self.c is None else self.c[None], None,
            xp.empty((1, batch, hidden), dtype) if packed.hr is not None else None,
            xp.empty((1, batch, hidden), dtype) if cell.gated else None,
        )  # fmt: skip
        self._scratch = scratch(packed, 1, batch)
        self._run = Run(x[None], self.h, self.c, None, None, False, Columns(self.y[None], 0, packed.output))

    def step(self) -> None:
        """Take one step: x to y, and the state to the next."""
        run_steps(self._cell, self._packed, self._run, self._states, self._scratch)
