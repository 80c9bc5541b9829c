"""How many threads a call may use."""

from __future__ import annotations

import os

from fastrnn import validation

VARIABLE = "FASTRNN_NUM_THREADS"
_number: int | None = None


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
    if _number is not None:
        return _number
    text = os.environ.get(VARIABLE)
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE}: expected a positive integer, got {text!r}")
    return int(text)
