"""The CUDA backend: csrc/ compiled by NVRTC through CuPy, matrix products by cuBLAS; see fastrnn.recurrence.

Everything runs on CuPy's current device and stream and in its memory pool, and nothing waits for the device.
"""

from __future__ import annotations

from types import ModuleType

import cupy
import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cuda import kernels
from fastrnn.cuda.backward import recur_backward
from fastrnn.cuda.forward import States, allocate, run_steps, scratch
from fastrnn.cuda.packed import Packed, pack
from fastrnn.cuda.stepper import Stepper
from fastrnn.philox import MASK
from fastrnn.recurrence import Final, Run

__all__ = ["cells", "pack", "random_words", "recur_backward", "recur_forward", "stepper"]


def recur_forward(cell: Cell, packed: Packed, run: Run, save: bool) -> Final:
    """Run the recurrence; see fastrnn.recurrence."""
    steps, batch = run.x.shape[:2]
    states = allocate(cell, packed, steps, batch, save)
    count = states.hs.shape[0]
    first, last = (steps, 0) if run.reverse else (0, steps)
    states.hs[first % count] = run.h0
    if states.cs is not None:
        states.cs[first % count] = run.c0
    run_steps(cell, packed, run, states, scratch(packed, steps, batch))
    c_n = None if states.cs is None else states.cs[last % count]
    return Final(states.hs[last % count], c_n, states if save else None)


def cells(cell: Cell, packed: Packed, run: Run, saved: States) -> Array:
    """c after every step [T, B, H], zero past the end."""
    steps = run.x.shape[0]
    assert saved.cs is not None, "asked for cells that have a cell state only"
    c: Array = (saved.cs[:steps] if run.reverse else saved.cs[1:]).astype(packed.dtype)  # a copy
    if run.lengths is not None:
        c[cupy.arange(steps)[:, None] >= run.lengths] = 0
    return c


def stepper(cell: Cell, packed: Packed, x: Array) -> Stepper:
    """One layer of a stream that reads x [B, I]."""
    return Stepper(cell, packed, x)


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    words: Array = xp.empty(count, np.uint32)
    if count:
        key, prefix = np.uint64(seed), [np.uint32(value & MASK) for value in counter]
        kernel = kernels.load_masks(cupy.cuda.Device().id)
        kernel.launch("random_words", 1, count, words, key, *prefix, count)
    return words
