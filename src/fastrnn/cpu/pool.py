"""Threads for kernels that hold no GIL; each task is a whole slice of work, so there is nothing to wait for inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id

LEAST = 10  # niceness

_executors: dict[bool, tuple[ThreadPoolExecutor, int]] = {}  # whether its threads stand back, and how many there are


def run(tasks: Sequence[Callable[[], None]]) -> None:
    """Run all tasks, the first on the calling thread, and return when the last has ended."""
    if len(tasks) > 1:
        futures = [_pool(len(tasks) - 1).submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            for future in futures:
                future.result()
    elif tasks:
        tasks[0]()


def lead(first: Callable[[], None], helpers: Sequence[Callable[[], None]]) -> bool:
    """Run the first task on the calling thread and offer the others; return when the first has ended.

    Helpers run where a processor is idle, and stand back for everybody else: on Linux, where threads have a niceness.

    Returns whether no helper is still at work. One that has not begun never will; what the others write, or raise, no
    longer matters.
    """
    futures = [_pool(len(helpers), stands_back=True).submit(helper) for helper in helpers]
    try:
        first()
    finally:
        ended = [future.cancel() or future.done() for future in futures]
    return all(ended)


def _pool(size: int, stands_back: bool = False) -> ThreadPoolExecutor:
    executor, had = _executors.get(stands_back, (None, 0))
    if executor is None or had < size:
        # A smaller one may still serve another thread: it ends when that thread lets go of it.
        executor = ThreadPoolExecutor(size, "fastrnn", _stand_back if stands_back else None)
        _executors[stands_back] = executor, size
    return executor


def _stand_back() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), LEAST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executors.clear)  # threads do not survive a fork
