"""Two pieces of work of one layer's directions, done by the device at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import cupy


class _Streams(threading.local):
    """A stream of its own for each Python thread and device: nothing of another thread is waited for."""

    def __init__(self) -> None:
        self.of_device: dict[int, cupy.cuda.Stream] = {}


_streams = _Streams()


def at_once(first: Callable[[], None], second: Callable[[], None] | None = None) -> None:
    """Launch both, the second on another stream; what the current stream does later waits for both.

    Neither may allocate: memory that the second frees could be used again on the current stream before it ends.
    """
    if second is None:
        first()
        return
    device, here = cupy.cuda.Device().id, cupy.cuda.get_current_stream()
    there = _streams.of_device.get(device)
    if there is None:
        there = _streams.of_device[device] = cupy.cuda.Stream(non_blocking=True)
    begun, ended = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
    begun.record(here)
    there.wait_event(begun)
    try:
        with there:
            second()
        first()
    finally:
        ended.record(there)
        here.wait_event(ended)
