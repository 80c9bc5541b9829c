"""A stateful stream: one time step a call, on buffers and a snapshot of the parameters made once."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array
from fastrnn.recurrence import Backend, Columns, Run
from fastrnn.sequence import Network


class Stream:
    """Runs a layer one step at a time; made by `layer.stream(batch)`, used as a context manager.

    It starts from the zero state. Later updates of the layer's parameters do not reach it.
    """

    def __init__(
        self, network: Network, backend: Backend, packed: list[Any], input_size: int, batch: int, dtype: str
    ) -> None:
        validation.integer("batch", batch, 1)
        self._network, self._backend, self._packed = network, backend, packed
        self._input_size, self._batch, self._dtype = input_size, batch, np.dtype(dtype)
        cell_state = network.cell.cell_state
        self._h = np.zeros((network.num_layers, batch, network.output_size), dtype)
        self._c = np.zeros((network.num_layers, batch, network.hidden_size), dtype) if cell_state else None
        self._y = np.empty((network.num_layers, 1, batch, network.output_size), dtype)
        self._open = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False

    @property
    def state(self) -> Any:
        """A copy of the state, as the layer returns it: h [L, B, P]; for LSTM the pair (h, c)."""
        return self._h.copy() if self._c is None else (self._h.copy(), self._c.copy())

    def set_state(self, state: Any) -> None:
        """Go on from this state, given as the layer returns it; None stands for zeros."""
        network = self._network
        h, c = validation.pair(
            "state", "_0", state, network.num_layers, self._batch, network.output_size, network.hidden_size,
            network.cell.cell_state, self._dtype, True,
        )  # fmt: skip
        self._h[...] = 0 if h is None else h
        if self._c is not None:
            self._c[...] = 0 if c is None else c

    def step(self, x: Array) -> Array:
        """Take one step.

        Args:
            x: [B, I] in the layer's dtype.

        Returns:
            h of the last layer [B, P]; the next call overwrites it.

        Raises:
            RuntimeError: the stream is closed. ShapeError, TypeError: x is not as expected.
        """
        if not self._open:
            raise RuntimeError("step: expected an open stream, got one whose `with` block has ended")
        a = validation.array("x", x, self._dtype, (self._batch, self._input_size))[None]
        for k, packed in enumerate(self._packed):
            c = None if self._c is None else self._c[k]
            run = Run(a, self._h[k], c, None, None, False, Columns(self._y[k], 0, self._network.output_size))
            final = self._backend.recur_forward(self._network.cell, packed, run, False)
            self._h[k] = final.h_n
            if c is not None:
                c[...] = final.c_n
            a = self._y[k]
        y: Array = self._y[-1, 0]
        return y
