"""What this machine can do at best: fused multiply-adds per second, and bytes read per second by size of working set.

Both are measured in the same run as the cases and with the same number of threads, each thread on data of its own.
The best of many short tries counts: a peak is what the machine gives when nobody disturbs it. The host of a virtual
machine can keep a processor from it for minutes, so who measures for long measures again now and then (`again`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numba import from_dtype, njit

from fastrnn.cpu.vector import fma, lane_sum, lanes, load, splat

CHAINS, UNROLL = 12, 4
TRIES, TRY_SECONDS = 12, 8e-3
MAIN_MEMORY = 1 << 28  # bytes, beyond every cache


@njit(nogil=True)
def _multiply_add(a: Any, turns: int) -> Any:
    """CHAINS independent chains of v = v * m + c in registers: enough to cover the latency of two units of 4 cycles."""
    m, c = splat(a, a[0]), splat(a, a[1])
    v0, v1, v2, v3 = splat(a, a[2]), splat(a, a[3]), splat(a, a[4]), splat(a, a[5])
    v4, v5, v6, v7 = splat(a, a[6]), splat(a, a[7]), splat(a, a[8]), splat(a, a[9])
    v8, v9, v10, v11 = splat(a, a[10]), splat(a, a[11]), splat(a, a[12]), splat(a, a[13])
    for _ in range(turns):
        v0, v1, v2, v3 = fma(v0, m, c), fma(v1, m, c), fma(v2, m, c), fma(v3, m, c)
        v4, v5, v6, v7 = fma(v4, m, c), fma(v5, m, c), fma(v6, m, c), fma(v7, m, c)
        v8, v9, v10, v11 = fma(v8, m, c), fma(v9, m, c), fma(v10, m, c), fma(v11, m, c)
    return lane_sum(v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7 + v8 + v9 + v10 + v11)


@njit(nogil=True)
def _read(a: Any, width: int, turns: int) -> Any:
    """Read a flat array from end to end, `turns` times; its size is a multiple of UNROLL * width."""
    s0 = s1 = s2 = s3 = splat(a, a[0])
    for _ in range(turns):
        for i in range(0, a.size, UNROLL * width):
            s0, s1 = s0 + load(a, i), s1 + load(a, i + width)
            s2, s3 = s2 + load(a, i + 2 * width), s3 + load(a, i + 3 * width)
    return lane_sum(s0 + s1 + s2 + s3)


_best: dict[tuple[Any, int], float] = {}  # turns per second, of a dtype or of a size, by threads


def flops(dtype: str, threads: int, again: bool = False) -> float:
    """Peak FLOP/s of fused multiply-adds, each counted as two.

    again: measure also where it is known, and keep the better.
    """
    a = np.linspace(0.1, 0.9, CHAINS + 2).astype(dtype)
    turns = _rate((dtype, threads), again, lambda: [partial(_multiply_add, a)] * threads)
    return turns * 2 * CHAINS * _width(dtype) * threads


def bandwidth(size: int, threads: int, again: bool = False) -> float:
    """Bytes per second at which a working set of `size` bytes, split over the threads, is read again and again.

    again: as in `flops`.
    """
    # Powers of two, so that few sizes are measured; rounded down: a smaller set is never slower, so the floor holds.
    part = 1 << max(12, (size // threads).bit_length() - 1)
    part = min(part, MAIN_MEMORY // threads)
    width = _width("float32")

    def kernels() -> list[Callable[[int], Any]]:
        arrays = [np.ones(part // 4, np.float32) for _ in range(threads)]  # written, so that the pages are there
        return [partial(_read, a, width) for a in arrays]

    return _rate((part, threads), again, kernels) * part * threads


def _rate(key: tuple[Any, int], again: bool, kernels: Callable[[], Sequence[Callable[[int], Any]]]) -> float:
    """The best rate of kernels that was measured, now if it is not known."""
    if again or key not in _best:
        _best[key] = max(_best.get(key, 0.0), _best_rate(kernels()))
    return _best[key]


def _best_rate(kernels: Sequence[Callable[[int], Any]]) -> float:
    """Turns per second of the kernels, all running at once on a thread each."""
    with ThreadPoolExecutor(len(kernels)) as pool:

        def seconds(turns: int) -> float:
            start = time.perf_counter()
            list(pool.map(lambda kernel: kernel(turns), kernels))
            return time.perf_counter() - start

        seconds(1)  # compiles
        turns = 1
        while seconds(turns) < TRY_SECONDS:
            turns *= 2
        return max(turns / seconds(turns) for _ in range(TRIES))


def _width(dtype: str) -> int:
    return int(lanes(from_dtype(np.dtype(dtype))))
