"""The CPU backend: Numba kernels in loop.py, matmul.py and panels.py; see fastrnn.recurrence for what a backend is."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import ModuleType

import numpy as np

from fastrnn import philox, threads
from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, pool
from fastrnn.cpu.backward import recur_backward
from fastrnn.cpu.describe import describe
from fastrnn.cpu.forward import cells, recur_forward
from fastrnn.cpu.packed import Packed
from fastrnn.cpu.refusal import refuse
from fastrnn.cpu.stepper import Stepper
from fastrnn.recurrence import Weights, Zone

THREAD_WORDS = 20_000  # fewer random words are not worth waking a thread for

__all__ = ["cells", "describe", "pack", "random_words", "recur_backward", "recur_forward", "stepper"]


def pack(cell: Cell, weights: Weights) -> Packed:
    """Bring the weights into panels."""
    refuse(cell, weights.norm_ih is not None, weights.ch is not None)
    return Packed(cell, weights)


def stepper(cell: Cell, packed: Packed, x: Array, zone: Zone | None, below: Stepper | None) -> Stepper:
    """One layer of a stream that reads x [B, I]."""
    return Stepper(cell, packed, x, zone)


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    words = np.empty(count, np.uint32)
    key = np.array([seed & philox.MASK, seed >> 32], np.uint64)
    prefix = np.array([value & philox.MASK for value in counter], np.uint64)
    fill = build.load("masks").random_words
    parts = max(1, min(threads.get_num_threads(), count // THREAD_WORDS))
    bounds = [count * k // parts // 4 * 4 for k in range(parts)] + [count]
    pool.run([partial(fill, words, first, last, key, prefix) for first, last in pairwise(bounds)])
    return words
