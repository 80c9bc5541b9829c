"""Launches captured in a CUDA graph and replayed: one call of the driver for a whole loop over time.

A graph holds the addresses that it was captured with, so what it replays must work on memory that stays where it is and
allocate nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import cupy

from fastrnn.arrays import Array
from fastrnn.cuda.products import used_by_this_thread, using

_capturing = Lock()


class Replayed:
    """A fixed sequence of launches on fixed memory: run as it is once, captured at the second call, replayed since.

    The first run loads the kernels, cuBLAS's too, which must not happen during a capture; nor must a thread's first
    product, for which cuBLAS allocates, so a call by a thread that has made none runs as it is too. memory: workspace
    of the products, which the graph goes on using; nothing else may work in it at the same time.
    """

    def __init__(self, launches: Callable[[], None], memory: Array) -> None:
        self._launches, self._memory, self._warm = launches, memory, False
        self._graph: Any = None

    def __call__(self) -> None:
        """Run, capture or replay."""
        if self._warm and self._graph is None and used_by_this_thread():
            self._graph = _capture(self.launch)
        if self._graph is None:
            self.launch()
            self._warm = True
        else:
            self._graph.launch()

    def launch_captured(self) -> None:
        """Run as it is, into a capture of the caller's.

        Raises:
            RuntimeError: nothing was run before, or not by this thread, whose first product makes cuBLAS allocate.
        """
        if not self._warm or not used_by_this_thread():
            raise RuntimeError("stream: expected a step by the same thread before the first that is captured, got none")
        self.launch()

    def launch(self) -> None:
        """Run as it is."""
        with using(self._memory):
            self._launches()


def caller_captures() -> bool:
    """Whether the caller is capturing the current stream himself, so that nothing may be captured or replayed here."""
    capturing: bool = cupy.cuda.get_current_stream().is_capturing()
    return capturing


def _capture(launches: Callable[[], None]) -> Any:
    stream = _stream(cupy.cuda.Device().id)
    with _capturing, stream:
        stream.begin_capture()
        try:
            launches()
        finally:
            graph = stream.end_capture()
    return graph


@cache
def _stream(device: int) -> Any:
    """The stream that captures on a device; the legacy stream cannot, nor one that waits for it."""
    return cupy.cuda.Stream(non_blocking=True)
