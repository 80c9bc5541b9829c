"""How many threads a call may use."""

from __future__ import annotations

import os
from contextvars import ContextVar

from fastrnn import validation

VARIABLE = "FASTRNN_NUM_THREADS"
_number: int | None = None
_borrowed: ContextVar[int | None] = ContextVar("fastrnn_num_threads", default=None)


# Between `token = lend(number)` and `take_back(token)`, calls of this thread or task use up to `number` threads: an
# adapter's own setting, by two bare calls, since a context manager takes 2 us more of each of the adapter's.
lend, take_back = _borrowed.set, _borrowed.reset


class Limited:
    """Inside the `with` block, calls of this thread or task use up to `number` threads."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._token = lend(self._number)

    def __exit__(self, *error: object) -> None:
        take_back(self._token)


def set_num_threads(number: int) -> None:
    """Let every later call use up to `number` threads; the results do not depend on it, to the bit.

    Raises:
        TypeError, ValueError: `number` is not a positive integer.
    """
    global _number
    _number = validation.integer("num_threads", number, 1)


def get_num_threads() -> int:
    """Return the number of threads: as set, else FASTRNN_NUM_THREADS, else the processors this process may use.

    Raises:
        ValueError: FASTRNN_NUM_THREADS is not a positive integer.
    """
    borrowed = _borrowed.get()
    if borrowed is not None:
        return borrowed
    if _number is not None:
        return _number
    text = os.environ.get(VARIABLE)
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE}: expected a positive integer, got {text!r}")
    return int(text)
