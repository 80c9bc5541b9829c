"""One time step at a time on the GPU: two products and one kernel a layer, on buffers that are made once, replayed."""

from __future__ import annotations

from functools import partial

import cupy as xp

from fastrnn.arrays import Array, computed_in
from fastrnn.cells import Cell
from fastrnn.cuda.forward import Scratch, States, allocate, forward_steps, input_product, scratch
from fastrnn.cuda.graphs import Replayed, caller_captures
from fastrnn.cuda.packed import Packed
from fastrnn.recurrence import Columns, Run, Zone


class Stepper:
    """One layer's stream; see fastrnn.recurrence.Stepper. The kernels may write a state over the one they read."""

    def __init__(self, cell: Cell, packed: Packed, x: Array, zone: Zone | None, memory: Array) -> None:
        batch, hidden, dtype = x.shape[0], packed.hidden, packed.dtype
        self.h: Array = xp.zeros((batch, packed.output), dtype)
        self.c: Array | None = xp.zeros((batch, hidden), computed_in(dtype)) if cell.cell_state else None
        self.y: Array = xp.empty((batch, packed.output), dtype)
        y = Columns(self.y[None], 0, packed.output)
        run = Run(x[None], self.h, self.c, None, None, False, y, zone=zone)
        states = allocate(cell, packed, run, False)
        states = states._replace(hs=self.h[None], cs=None if self.c is None else self.c[None])
        into = scratch(packed, 1, batch, states.norm)
        self.workspace = memory
        self._replayed = Replayed(partial(_launch, cell, packed, run, states, into), memory)

    def step(self) -> None:
        """Take one step: x to y, and the state to the next."""
        if caller_captures():
            self._replayed.launch_captured()
        else:
            self._replayed()


def _launch(cell: Cell, packed: Packed, run: Run, states: States, into: Scratch) -> None:
    input_product(packed, run.x, into)
    forward_steps(cell, packed, run, states, into)
