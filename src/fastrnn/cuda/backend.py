"""The CUDA backend: csrc/ compiled by NVRTC through CuPy, matrix products by cuBLAS; see fastrnn.recurrence.

Everything runs on CuPy's current device and stream and in its memory pool, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import cupy
import numpy as np

from fastrnn.arrays import Array, zeroed
from fastrnn.cells import Cell
from fastrnn.cuda import choice, kernels, places
from fastrnn.cuda.backward import recur_backward
from fastrnn.cuda.beside import at_once
from fastrnn.cuda.describe import describe
from fastrnn.cuda.forward import (
    Saved,
    Scratch,
    States,
    allocate,
    forward_steps,
    input_product,
    scratch,
    set_initial,
    shape_of,
)
from fastrnn.cuda.onchip import forward_loop
from fastrnn.cuda.packed import Packed, pack
from fastrnn.cuda.products import using, workspace
from fastrnn.cuda.stepper import Stepper
from fastrnn.philox import MASK
from fastrnn.recurrence import Final, Run, Zone

__all__ = ["cells", "describe", "pack", "random_words", "recur_backward", "recur_forward", "stepper"]


def recur_forward(cell: Cell, packed: Sequence[Packed], runs: Sequence[Run], save: bool) -> list[Final]:
    """Run the recurrences; see fastrnn.recurrence."""
    directions = list(zip(packed, runs, strict=True))
    on_chip = choice.variants(cell, shape_of(*directions[0], save, len(runs)))
    if not on_chip:
        return [_by_step(cell, weights, run, save) for weights, run in directions]
    finals, loops = list[Final](), []
    for weights, run in directions:
        states, into = _begun(cell, weights, run, save)
        loops.append(forward_loop(on_chip, weights, run, states, into, save))
        finals.append(Final(*_end(run, states), Saved(states, None, on_chip) if save else None))
    at_once(*loops)
    return finals


def _begun(cell: Cell, packed: Packed, run: Run, save: bool) -> tuple[States, Scratch]:
    """Memory for a pass with its initial state and the products of its input."""
    states = allocate(cell, packed, run, save)
    steps, batch = run.x.shape[:2]
    into = scratch(packed, steps, batch, states.norm)
    set_initial(run, states)
    input_product(packed, run.x, into)
    return states, into


def _by_step(cell: Cell, packed: Packed, run: Run, save: bool) -> Final:
    """Run one recurrence by the plan `step`."""
    taken = places.take(cell, packed, run, save)
    if taken is None:
        states, into = _begun(cell, packed, run, save)
        with using(workspace()):
            forward_steps(cell, packed, run, states, into)
        return Final(*_end(run, states), Saved(states, None) if save else None)
    key, place = taken
    set_initial(run, place.states)
    input_product(packed, run.x, place.scratch)
    place.forward(packed, run)
    if save:
        return Final(*_end(run, place.states), places.until_dropped(key, place))
    h_n, c_n = _end(run, place.states)
    final = Final(h_n.copy(), None if c_n is None else c_n.copy(), None)
    places.give_back(key, place)
    return final


def _end(run: Run, states: States) -> tuple[Array, Array | None]:
    """The state after the last step, where it is."""
    last = (0 if run.reverse else run.x.shape[0]) % states.hs.shape[0]
    return states.hs[last], None if states.cs is None else states.cs[last]


def cells(cell: Cell, packed: Packed, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    steps, cs = run.x.shape[0], saved.states.cs
    assert cs is not None, "asked for cells that have a cell state only"
    c: Array = (cs[:steps] if run.reverse else cs[1:]).astype(packed.dtype)  # a copy
    if run.lengths is None:
        return c
    return zeroed(c, (cupy.arange(steps)[:, None] >= run.lengths)[..., None])


def stepper(cell: Cell, packed: Packed, x: Array, zone: Zone | None, below: Stepper | None) -> Stepper:
    """One layer of a stream that reads x [B, I]; all layers' products work in the first one's memory."""
    return Stepper(cell, packed, x, zone, workspace() if below is None else below.workspace)


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    words: Array = xp.empty(count, np.uint32)
    if count:
        key, prefix = np.uint64(seed), [np.uint32(value & MASK) for value in counter]
        kernel = kernels.load_masks(cupy.cuda.Device().id)
        kernel.launch("random_words", 1, count, words, key, *prefix, count)
    return words
