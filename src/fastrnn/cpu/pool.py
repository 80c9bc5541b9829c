"""Threads for kernels that hold no GIL; each task is a whole slice of work, so there is nothing to wait for inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_executor: ThreadPoolExecutor | None = None
_size = 0


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


def _pool(size: int) -> ThreadPoolExecutor:
    global _executor, _size
    if _executor is None or _size < size:
        # A smaller one may still serve another thread: it ends when that thread lets go of it.
        _executor, _size = ThreadPoolExecutor(size, thread_name_prefix="fastrnn"), size
    return _executor


def _forget() -> None:
    global _executor, _size
    _executor, _size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # threads do not survive a fork
