"""A stateful stream: one time step a call, on buffers and a snapshot of the parameters made once."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, Order, module_of, on
from fastrnn.recurrence import Backend, Stepper
from fastrnn.sequence import Network, zone


class Stream:
    """Runs a layer one step at a time; made by `layer.stream(batch)`, used as a context manager.

    It starts from the zero state. Later updates of the layer's parameters do not reach it. On a GPU it may go on on
    another of CuPy's streams; what a graph of one's own launches of it is to be ordered by oneself, and the thread
    that makes it takes a step outside it before.
    """

    def __init__(
        self, network: Network, backend: Backend, packed: list[Any], weights: Order, input_size: int, batch: int,
        dtype: str, device: str,
    ) -> None:  # fmt: skip
        validation.integer("batch", batch, 1)
        self._network, self._dtype, self._device = network, np.dtype(dtype), device
        self._layers: list[Stepper] = []
        xp = module_of(device)
        with on(device):
            self._x = xp.empty((batch, input_size), dtype)
            for layer in packed:
                below = self._layers[-1] if self._layers else None
                source = self._x if below is None else below.y
                self._layers.append(backend.stepper(network.cell, layer, source, zone(xp, network, dtype), below))
            self._order = Order(device, weights)
        weakref.finalize(self, self._order.given_up).atexit = False  # not when it closes: its state is still there
        self._open = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False

    @property
    def state(self) -> Any:
        """A copy of the state, as the layer returns it: h [L, B, P]; for LSTM (h, c). A closed stream still has it."""
        xp = module_of(self._device)
        with on(self._device):
            self._order.passed_on()
            h = xp.stack([layer.h for layer in self._layers])
            c = [layer.c for layer in self._layers if layer.c is not None]
            return (h, xp.stack(c).astype(self._dtype, copy=False)) if c else h

    def set_state(self, state: Any) -> None:
        """Go on from this state, given as the layer returns it; None stands for zeros.

        Raises:
            RuntimeError: the stream is closed.
            ShapeError, TypeError: the state is not as expected; the stream's own then stays as it was.
        """
        self._check_open("set_state")
        network = self._network
        h, c = validation.pair(
            "state", "_0", state, network.num_layers, self._x.shape[0], network.output_size, network.hidden_size,
            network.cell.cell_state, self._dtype, True, self._device,
        )  # fmt: skip
        with on(self._device):
            self._order.passed_on()
            for k, layer in enumerate(self._layers):
                layer.h[...] = 0 if h is None else h[k]
                if layer.c is not None:
                    layer.c[...] = 0 if c is None else c[k]

    def step(self, x: Array) -> Array:
        """Take one step.

        Args:
            x: [B, I] in the layer's dtype.

        Returns:
            h of the last layer [B, P]; the next call overwrites it.

        Raises:
            RuntimeError: the stream is closed, or this is a thread's first step and captured by the caller.
            ShapeError, TypeError: x is not as expected.
        """
        self._check_open("step")
        x = validation.array("x", x, self._dtype, self._x.shape, self._device)
        with on(self._device):
            self._order.passed_on()
            self._x[...] = x
            for layer in self._layers:
                layer.step()
        y: Array = self._layers[-1].y
        return y

    def _check_open(self, what: str) -> None:
        if not self._open:
            raise RuntimeError(f"{what}: expected an open stream, got one whose `with` block has ended")
