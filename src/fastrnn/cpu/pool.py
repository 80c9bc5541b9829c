"""Threads for kernels that hold no GIL: for slices of work, all of which are waited for, and for help, which is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import get_native_id

STEPS_BACK = 10  # in niceness: see CONTRIBUTING

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


class _Offer:
    """A task that can be taken back: a queue would hold on to it, and all its memory, until a thread comes to it."""

    def __init__(self, task: Callable[[], None]) -> None:
        self.task: Callable[[], None] | None = task

    def __call__(self) -> None:
        if self.task is not None:
            self.task()


def lead(first: Callable[[], None], helpers: Sequence[Callable[[], None]]) -> bool:
    """Run the first task on the calling thread and offer the others; return when the first has ended.

    Helpers run where a processor is idle, and stand back for everybody else: on Linux, where threads have a niceness.
    One that has not begun when the first has ended never will; where no thread is to be had, none helps.

    Returns whether no helper is still at work. One that is may write on for a while; what it raises is lost.
    """
    offers = list(map(_Offer, helpers))
    futures: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # no more threads, or the interpreter is about to end
            executor = _pool(len(offers), stands_back=True)
            for offer in offers:
                futures.append(executor.submit(offer))  # noqa: PERF401 - those before an error count
        first()
    finally:
        ended = [future.cancel() for future in futures]
        for offer, withdrawn in zip(offers, ended, strict=False):
            if withdrawn:
                offer.task = None
    return all(withdrawn or future.done() for withdrawn, future in zip(ended, futures, strict=True))


def _pool(size: int, stands_back: bool = False) -> ThreadPoolExecutor:
    executor, had = _executors.get(stands_back, (None, 0))
    if executor is None or had < size:
        # A smaller one may still serve another thread: it ends when that thread lets go of it.
        executor = ThreadPoolExecutor(size, "fastrnn", _stand_back if stands_back else None)
        _executors[stands_back] = executor, size
    return executor


def _stand_back() -> None:
    if sys.platform == "linux":
        thread = get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + STEPS_BACK)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executors.clear)  # threads do not survive a fork
