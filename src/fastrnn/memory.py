"""Memory for large NumPy arrays that is used again once nobody holds them.

The system takes large blocks back when they are freed and gives fresh pages for the next ones: every step of a training
loop then pays for pages, and where the system has to gather memory for them, more than for the products computed in it.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from fastrnn.arrays import Array

SMALLEST = 2**20  # bytes; smaller arrays stay in the allocator's own hands
MOST_WAITING = 2**29  # bytes in all that nobody uses
SPARE = 1.25  # a block serves an array that is smaller by up to this factor
LINE = 64  # bytes: a vector that is split over two cache lines costs two

_waiting: list[Array] = []  # the one that was given back last at the end
_returned: deque[Array] = deque()  # appended to whenever an array is dropped, in any thread
_lock = Lock()


class _Owner:
    """What an array and all its views hold on to."""

    def __init__(self, block: Array) -> None:
        self._block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self, at_exit: Any = sys.is_finalizing) -> None:
        if not at_exit():
            _returned.append(self._block)
            if _lock.acquire(blocking=False):  # whoever has it, even this thread, tidies up too
                try:
                    _tidy_up()
                finally:
                    _lock.release()


def empty(shape: int | Sequence[int], dtype: Any) -> Array:
    """Return an uninitialised array, as numpy.empty does; a large one starts on a cache line."""
    kind = np.dtype(dtype)
    size = kind.itemsize * (shape if isinstance(shape, int) else math.prod(shape))
    if size < SMALLEST:
        return np.empty(shape, kind)
    block = np.asarray(_Owner(_take(size + LINE)))
    start = -block.__array_interface__["data"][0] % LINE
    array: Array = block[start : start + size].view(kind).reshape(shape)
    return array


def forget() -> None:
    """Give all that waits here back to the system; what small calls use again stays with their layers."""
    with _lock:
        _returned.clear()
        _waiting.clear()


def _tidy_up() -> None:
    """Sort in what was given back, and let go of what has waited longest, down to the limit."""
    while _returned:
        _waiting.append(_returned.popleft())
    held = sum(block.size for block in _waiting)
    while held > MOST_WAITING:
        held -= _waiting.pop(0).size


def _take(size: int) -> Array:
    """A block of at least this size, the tightest that waits; fresh where none fits."""
    if _lock.acquire(blocking=False):  # never wait: a signal handler may have come between, in this very thread
        try:
            _tidy_up()
            fitting = [block for block in _waiting if size <= block.size <= SPARE * size]
            if fitting:
                found = min(fitting, key=lambda block: block.size)
                _waiting[:] = [block for block in _waiting if block is not found]
                return found
        finally:
            _lock.release()
    return np.empty(size, np.uint8)


def _renew() -> None:
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # another thread may have held it
