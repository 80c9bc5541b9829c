"""Memory for passes that are replayed: kept for the next pass of the same shape once nobody needs what it holds."""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from functools import cache, partial
from threading import Lock, get_ident

import cupy as xp

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cuda.backward import Backward, backward_steps
from fastrnn.cuda.backward import allocate as allocate_backward
from fastrnn.cuda.forward import Saved, allocate, forward_steps, scratch, shape_of
from fastrnn.cuda.graphs import Replayed
from fastrnn.cuda.packed import Packed
from fastrnn.cuda.products import workspace, workspace_bytes
from fastrnn.recurrence import Columns, Given, Run, Shape, Zone

FEWEST_STEPS = 4  # a shorter loop is not worth the copies. Not yet measured.
# Shares of the device's memory. A launched pass needs about as much as a place while it runs; what a place takes from
# others it takes while it waits. So the places of a training step (one for each layer and direction) may wait together
# as long as three quarters are left to everything else, and none is more than half of them. Not yet measured.
ONE_PLACE = 1 / 8
ALL_WAITING = 1 / 4
MOST_SHAPES = 64  # that are remembered


class Place:
    """Memory of one pass that stays where it is, with copies of all that its loops read, and the loops replayed."""

    def __init__(self, cell: Cell, packed: Packed, run: Run, save: bool) -> None:
        steps, batch = run.x.shape[:2]
        self.bytes, self.device = needed(cell, shape_of(packed, run, save)), xp.cuda.Device().id
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
    if batch == 0 or why_not(cell, shape_of(packed, run, save)):
        return None
    device = xp.cuda.Device().id
    key = (
        cell.name, packed.dtype, steps, batch, packed.hidden, packed.output, packed.hr is None, packed.bias is None,
        packed.diagonal is None, packed.ch is None, packed.gains is None,
        *(None if a is None else a.shape for a in _looped(run)), run.reverse, save, device,
        xp.cuda.get_current_stream().ptr, get_ident(),
    )  # fmt: skip
    with _lock:
        known = key in _waiting
        _waiting.setdefault(key, [])
        _waiting.move_to_end(key)
        _put_away(device)
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


def _put_away(device: int) -> None:
    """Keep what was given back, but forget what was used least recently, down to the limits."""
    while _returned:
        key, place = _returned.popleft()
        _waiting.setdefault(key, []).append(place)
    while len(_waiting) > MOST_SHAPES:
        _waiting.popitem(last=False)
    here = [(places, place) for places in _waiting.values() for place in places if place.device == device]
    held = sum(place.bytes for _, place in here)
    for places, place in here:
        if held <= ALL_WAITING * memory(device):
            break
        places.remove(place)
        held -= place.bytes


def _looped(run: Run) -> tuple[Array | None, ...]:
    """What the loops read of a run besides the input and the state, and a place holds copies of."""
    return run.lengths, run.clear, run.keep, *(run.zone or (None, None))


def why_not(cell: Cell, shape: Shape) -> str:
    """Why passes of a shape are launched kernel by kernel each time; empty where they are replayed."""
    if shape.steps < FEWEST_STEPS:
        return f"fewer than {FEWEST_STEPS} steps"
    bytes_, most = needed(cell, shape), ONE_PLACE * memory(xp.cuda.Device().id)
    if bytes_ > most:
        return f"a graph's own memory would be {bytes_ / 2**30:.3g} GiB, of at most {most / 2**30:.3g} on this device"
    return ""


def needed(cell: Cell, shape: Shape) -> int:
    """About how many bytes a place needs: the workspace, copies of weights, and what has an entry for every step."""
    gates, c, zone, norm = len(cell.gates), cell.cell_state, shape.zoneout, shape.layer_norm
    output, projected = shape.projected or shape.hidden, shape.projected > 0
    compute = max(4, shape.itemsize)  # bytes of a register
    matrices = shape.hidden * (output * (0 if shape.diagonal else gates) + shape.projected + shape.dense * shape.hidden)
    vectors = shape.hidden * (gates * (1 + shape.diagonal + 2 * norm) + 1 + cell.unit_parameters + 2 * norm)
    vectors += shape.dense * shape.hidden**2 * (shape.itemsize < compute)  # V as wide as c
    a_unit, a_state = gates + zone * (1 + c), 1  # products of the input, masks; y
    if shape.train:
        a_unit += 2 * gates + cell.saved + 4 * c + projected + (cell.gated is not None) + zone * (1 + 2 * c)
        a_unit += 2 * gates * norm  # the recurrent products and their gradients
        a_state += 3 + shape.recurrent_dropout
    a_row = (a_unit * shape.hidden + a_state * output) * shape.itemsize + 8 * norm * compute  # means and scales
    return workspace_bytes() + matrices * shape.itemsize + vectors * compute + shape.steps * shape.batch * a_row


@cache
def memory(device: int) -> int:
    """Bytes of memory that a device has."""
    return int(xp.cuda.Device(device).mem_info[1])
