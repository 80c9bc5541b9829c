"""Memory for passes that are replayed: kept for the next pass of the same shape once nobody needs what it holds."""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from functools import partial
from threading import Lock, get_ident

import cupy as xp

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cuda.backward import Backward, backward_steps
from fastrnn.cuda.backward import allocate as allocate_backward
from fastrnn.cuda.forward import Saved, allocate, forward_steps, scratch
from fastrnn.cuda.graphs import Replayed
from fastrnn.cuda.packed import Packed
from fastrnn.cuda.products import workspace, workspace_bytes
from fastrnn.cuda.source import item_bytes
from fastrnn.recurrence import Columns, Given, Run, Zone

FEWEST_STEPS = 4  # a shorter loop is not worth the copies. Not yet measured.
MOST_BYTES = 1 << 30  # of one place, and of all that wait. Not yet measured.
MOST_SHAPES = 64  # that are remembered


class Place:
    """Memory of one pass that stays where it is, with copies of all that its loops read, and the loops replayed."""

    def __init__(self, cell: Cell, packed: Packed, run: Run, save: bool) -> None:
        steps, batch = run.x.shape[:2]
        self.bytes = _bytes(cell, packed, run)
        self._cell, self.packed, self._copied = cell, packed.copy(), packed.looped
        self.states = states = allocate(cell, packed, run, save)
        self.scratch = scratch(packed, steps, batch, states.norm)
        y = xp.empty((steps, batch, packed.output), packed.dtype)
        self.run = run._replace(
            lengths=None if run.lengths is None else xp.empty_like(run.lengths),
            clear=None if run.clear is None else xp.empty_like(run.clear),
            keep=None if run.keep is None else xp.empty_like(run.keep),
            zone=None if run.zone is None else Zone(*(None if a is None else xp.empty_like(a) for a in run.zone)),
            y=Columns(y, 0, packed.output), x=y[:, :, :0], h0=states.hs[:0], c0=None,  # those three are not read
        )  # fmt: skip
        self._stream = xp.cuda.get_current_stream()  # whose memory it is
        self._workspace = workspace()  # of both loops, which never run at the same time
        loop = partial(forward_steps, cell, self.packed, self.run, self.states, self.scratch)
        self._forward = Replayed(loop, self._workspace)
        self._backward: dict[tuple[bool, bool], tuple[Backward, Replayed]] = {}

    def holds(self, packed: Packed) -> bool:
        """Whether the weights in it are copies of these."""
        return all(mine is theirs for mine, theirs in zip(self._copied, packed.looped, strict=True))

    def forward(self, packed: Packed, run: Run) -> None:
        """Run the loop on the initial state and the input's products, which stand in their places; write run.y."""
        if not self.holds(packed):
            self.packed.take(packed)
            self._copied = packed.looped
        for mine, given in zip(_looped(self.run), _looped(run), strict=True):
            if mine is not None:
                mine[...] = given
        self._forward()
        run.y.view[...] = self.run.y.array

    def on_its_stream(self) -> bool:
        """Whether memory that is allocated now belongs to the same stream as the place's, and may be kept with it."""
        return bool(xp.cuda.get_current_stream() == self._stream)

    def backward(self, given: Given) -> Backward:
        """Run the loop backward; return its memory, the place's own."""
        key = given.y is None, given.cells is None
        if key not in self._backward:
            steps, batch = self.run.x.shape[:2]
            dy, dcells = self._like(given.y), self._like(given.cells)
            mine = allocate_backward(self._cell, self.packed, steps, batch, dy, dcells)
            loop = partial(backward_steps, self._cell, self.packed, self.run, self.states, mine)
            self._backward[key] = mine, Replayed(loop, self._workspace)
        mine, replayed = self._backward[key]
        mine.take(given)
        replayed()
        return mine

    def _like(self, columns: Columns | None) -> Array | None:
        """Memory for a gradient from outside."""
        if columns is None:
            return None
        memory: Array = xp.empty((*self.run.x.shape[:2], columns.width), self.packed.dtype)
        return memory


_waiting: OrderedDict[Hashable, list[Place]] = OrderedDict()  # by shape, the least recently used first
_returned: deque[tuple[Hashable, Place]] = deque()  # appended to by the garbage collector, whenever it likes
_lock = Lock()


def take(cell: Cell, packed: Packed, run: Run, save: bool) -> tuple[Hashable, Place] | None:
    """Return a place of the right shape; None for the first pass of a shape, and where nothing is to be replayed."""
    steps, batch = run.x.shape[:2]
    if steps < FEWEST_STEPS or batch == 0 or _bytes(cell, packed, run) > MOST_BYTES:
        return None
    key = (
        cell.name, packed.dtype, steps, batch, packed.hidden, packed.output, packed.hr is None, packed.bias is None,
        packed.diagonal is None, packed.gains is None, *(None if a is None else a.shape for a in _looped(run)),
        run.reverse, save, xp.cuda.Device().id, xp.cuda.get_current_stream().ptr, get_ident(),
    )  # fmt: skip
    with _lock:
        known = key in _waiting
        _waiting.setdefault(key, [])
        _waiting.move_to_end(key)
        _put_away()
        if not known:
            return None
        if places := _waiting.get(key):
            place = next((place for place in places if place.holds(packed)), places[-1])
            places.remove(place)
            return key, place
    return key, Place(cell, packed, run, save)


def give_back(key: Hashable, place: Place) -> None:
    """Let the next pass of this shape have the place."""
    _returned.append((key, place))


def until_dropped(key: Hashable, place: Place) -> Saved:
    """What a backward pass needs of a place, which is given back once nobody holds this."""
    saved = Saved(place.states, place)
    weakref.finalize(saved, give_back, key, place).atexit = False
    return saved


def forget() -> None:
    """Give all waiting places back to CuPy's pool."""
    with _lock:
        _returned.clear()
        _waiting.clear()


def _put_away() -> None:
    """Keep what was given back, and forget the shapes that were used least recently, down to the limits."""
    while _returned:
        key, place = _returned.popleft()
        _waiting.setdefault(key, []).append(place)
    while len(_waiting) > MOST_SHAPES or sum(p.bytes for places in _waiting.values() for p in places) > MOST_BYTES:
        _waiting.popitem(last=False)


def _looped(run: Run) -> tuple[Array | None, ...]:
    """What the loops read of a run besides the input and the state, and a place holds copies of."""
    return run.lengths, run.clear, run.keep, *(run.zone or (None, None))


def _bytes(cell: Cell, packed: Packed, run: Run) -> int:
    """About how much memory a place needs: the workspace, copies of weights, and what has an entry for every step."""
    weights = sum(a.nbytes for a in packed.looped if a is not None)
    a_unit = 3 * packed.gates + cell.saved + 4 * cell.cell_state + (packed.hr is not None) + (cell.gated is not None)
    a_unit += (2 + 3 * cell.cell_state) * (run.zone is not None)  # the masks, and what the cell made
    normalised = packed.gains is not None
    a_unit += 2 * packed.gates * normalised  # the recurrent products and their gradients
    a_row = a_unit * packed.hidden + (4 + (run.keep is not None)) * packed.output + 16 * normalised  # moments
    over_time = int(run.x.shape[0]) * int(run.x.shape[1]) * a_row * item_bytes(packed.dtype)
    return workspace_bytes() + weights + over_time
