"""How arrays look to the kernels, and how work is dealt out to threads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import threads
from fastrnn.arrays import Array
from fastrnn.memory import empty
from fastrnn.recurrence import Run, Zone

if TYPE_CHECKING:
    from fastrnn.cpu.packed import Sizes

CHUNK_ROWS = 256  # rows (t, b) of one input product: enough to use each panel often, few enough to stay in a cache
THREAD_FLOPS = 4e6  # a thread that is woken for less than this costs more than it brings (about 40 us of work)
PART_BYTES = 2**16  # of recurrent weights that a thread reads each step: for less, meeting costs more than it brings
SHARED_BYTES = 2**26  # of a whole call, about 0.8 ms: for less, the others come too late
MOST_STATES = 2**26  # bytes of states at every step, of which a pass that saves nothing else keeps two

_NO_FLAGS = np.empty(0, np.bool_)


def plain(a: Array) -> Array:
    """A contiguous array as Numba's most common type, flat and writable, without a copy."""
    if a.flags.writeable:
        return a.reshape(-1)
    # Numba compiles anew for a read-only array; no kernel writes to its inputs.
    return np.asarray(_Unlocked(a)).reshape(-1)


def aligned(sizes: Sequence[int], dtype: np.dtype[Any]) -> list[Array]:
    """Uninitialised arrays of these sizes, whole cache lines each, that start on one: a split load costs two."""
    line = 64 // dtype.itemsize
    memory = empty(sum(sizes) + line, dtype)
    start = -memory.__array_interface__["data"][0] // dtype.itemsize % line
    ends = list(accumulate(sizes, initial=start))
    return [memory[first:end] for first, end in pairwise(ends)]


class _Unlocked:
    def __init__(self, array: Array) -> None:
        self.array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def flat(a: Array, written: bool = False) -> tuple[Array, int, int]:
    """An array [T, B, N] as a flat one with the strides of t and b in elements; copied only if rows lie otherwise.

    written: the kernels write to it, so a copy would lose what they write.
    """
    steps, batch, width = a.shape
    flags = a.flags  # made anew each time it is asked for
    if flags.c_contiguous and flags.aligned:
        return a.reshape(-1) if flags.writeable else plain(a), batch * width, width
    if a.transpose(1, 0, 2).flags.c_contiguous and flags.aligned:
        return plain(a.transpose(1, 0, 2)), width, steps * width
    t, b, n = (stride // a.itemsize for stride in a.strides)
    whole = all(stride >= 0 and stride % a.itemsize == 0 for stride in a.strides)
    if a.size and whole and (n == 1 or width == 1) and flags.aligned:
        extent = (steps - 1) * t + (batch - 1) * b + width
        return plain(np.lib.stride_tricks.as_strided(a, (extent,), (a.itemsize,))), t, b
    assert not written or a.size == 0, "results are laid out as the kernels write them"
    return np.array(a, order="C").reshape(-1), batch * width, width


def columns_of(width: int, block: int, part: int, parts: int) -> tuple[int, int]:
    """First and last column of one of `parts` shares of `width` columns, in whole blocks."""
    blocks = width // block
    return blocks * part // parts * block, blocks * (part + 1) // parts * block


def part_count(total: int, most: int, flops: float) -> int:
    """Number of threads for `total` rows of so many flops each, dealt out in at most `most` parts."""
    return int(max(1, min(threads.get_num_threads(), most, total * flops // THREAD_FLOPS)))


def unit_parts(steps: int, step_bytes: int, blocks: int, state_bytes: int) -> int:
    """Number of threads that share the units of one sequence.

    step_bytes: of the recurrent weights. state_bytes: of states that would be kept for this alone, at every step.
    """
    if steps * step_bytes < SHARED_BYTES or state_bytes > MOST_STATES:
        return 1
    return int(max(1, min(threads.get_num_threads(), blocks, step_bytes // PART_BYTES)))


def row_slices(lengths: Array | None, steps: int, batch: int, parts: int) -> list[tuple[Array, Array]]:
    """Rows and their lengths for each thread, longest first, dealt out so that each gets an equal share of steps."""
    if lengths is None:
        every = np.empty(batch, np.int64)
        every.fill(steps)
        return [(np.arange(part, batch, parts, dtype=np.int64), every[part::parts].copy()) for part in range(parts)]
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    turn = np.arange(batch) % (2 * parts)
    owner = np.minimum(turn, 2 * parts - 1 - turn)  # 0 1 1 0 0 1 ...: long and short rows to each
    return [(order[owner == part], lengths[order[owner == part]]) for part in range(parts)]


def flags(run: Run) -> Array:
    """run.clear flat; an empty array where there is none."""
    return _NO_FLAGS if run.clear is None else plain(run.clear)


def kept_rows(run: Run, n: Sizes, nothing: Array) -> Array:
    """run.keep flat, in rows of Ps; nothing where there is none."""
    if run.keep is None:
        return nothing
    keep = np.zeros((run.keep.shape[0], n.Ps), run.x.dtype)
    keep[:, : n.P] = run.keep
    return keep.reshape(-1)


def shares(zone: Zone | None, H: int, Hp: int, nothing: Array) -> tuple[int, Array, Array]:
    """Zoneout as the kernels take it: 0 without, 1 for rates [Hp], 2 for masks [T, B, Hp]; shares of h; of c.

    nothing: an empty array of their dtype, for those that there are none of.
    """
    if zone is None:
        return 0, nothing, nothing

    def padded(share: Array | None) -> Array:
        if share is None:
            return nothing
        array = np.zeros((*share.shape[:2], Hp), nothing.dtype)
        array[:, :, :H] = share
        return array.reshape(-1)

    share = zone.c if zone.h is None else zone.h
    assert share is not None, "a cell without c has no projection"
    return 1 if share.shape[:2] == (1, 1) else 2, padded(zone.h), padded(zone.c)
