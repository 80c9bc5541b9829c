"""save="recompute": keep only the states at the ends of segments of time, and run each segment again for its gradients.

A sequence of T steps is cut into segments of S = ceil(sqrt(T)) steps. Forward runs them one after the other and keeps
the state that each started from; backward takes them in the opposite order, runs each once more, saving, and lets the
backend back-propagate through it. What is held at a time is T / S states and one segment's gates, instead of all T: for
one forward pass more. It knows neither cell nor backend.

Source: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

from fastrnn.arrays import Array, array_module, computed_in
from fastrnn.cells import Cell
from fastrnn.recurrence import Backend, Columns, Final, Given, Initial, Run, Weights, Zone


class Starts(NamedTuple):
    """The state at the start of one segment, in the order of the recurrence."""

    first: int
    last: int
    h: Array
    c: Array | None


class Segmented:
    """A backend whose `saved` is a list of Starts; all else is the given backend's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.pack, self.stepper = backend.pack, backend.stepper
        self.random_words, self.describe = backend.random_words, backend.describe

    def recur_forward(self, cell: Cell, packed: Sequence[Any], runs: Sequence[Run], save: bool) -> list[Final]:
        """Run the segments of each direction one after the other; see fastrnn.recurrence."""
        if not save:
            return self._backend.recur_forward(cell, packed, runs, False)
        return [self._forward(cell, weights, run) for weights, run in zip(packed, runs, strict=True)]

    def _forward(self, cell: Cell, packed: Any, run: Run) -> Final:
        starts, h, c = list[Starts](), run.h0, run.c0
        for first, last in _segments(run):
            starts.append(Starts(first, last, h, c))
            h, c, _ = self._backend.recur_forward(cell, [packed], [_part(run, starts[-1])], False)[0]
        return Final(h, c, starts)

    def recur_backward(
        self, cell: Cell, packed: Sequence[Any], runs: Sequence[Run], saved: Sequence[list[Starts]],
        given: Sequence[Given], dx: Array, accumulate: bool,
    ) -> list[Initial]:  # fmt: skip
        """Run each segment again, the last first, and back-propagate through it; see fastrnn.recurrence."""
        directions = enumerate(zip(packed, runs, saved, given, strict=True))
        return [self._backward(cell, *of_direction, dx, accumulate or k > 0) for k, of_direction in directions]

    def _backward(
        self, cell: Cell, packed: Any, run: Run, saved: list[Starts], given: Given, dx: Array, accumulate: bool
    ) -> Initial:
        dh, dc, total = given.h_n, given.c_n, None
        for start in saved[::-1]:
            part, time = _again(run, start), slice(start.first, start.last)
            of_part = Given(_columns(given.y, time), _columns(given.cells, time), dh, dc)
            kept = self._saved(cell, packed, part)
            of_segment = [packed], [part], [kept], [of_part], dx[time], accumulate
            dh, dc, weights = self._backend.recur_backward(cell, *of_segment)[0]
            total = weights if total is None else _sum(total, weights)
        assert total is not None, "every run has a segment"
        total = _each(lambda a: a.astype(run.x.dtype, copy=False), total)
        assert dh is not None, "the backend gave it"
        return Initial(dh, dc, total)

    def cells(self, cell: Cell, packed: Any, run: Run, saved: list[Starts]) -> Array:
        """c after every step [T, B, H], zero past the end."""
        parts = []
        for start in saved[:: -1 if run.reverse else 1]:
            part = _again(run, start)
            parts.append(self._backend.cells(cell, packed, part, self._saved(cell, packed, part)))
        return _module(run.x).concatenate(parts)  # type: ignore[no-any-return]

    def _saved(self, cell: Cell, packed: Any, part: Run) -> Any:
        """What the backward pass of a segment needs."""
        return self._backend.recur_forward(cell, [packed], [part], True)[0].saved


def segment(steps: int) -> int:
    """S, steps of one segment."""
    return math.isqrt(max(0, steps - 1)) + 1


def _segments(run: Run) -> list[tuple[int, int]]:
    """First and last step of each, in the order of the recurrence; one that is empty if there is no step."""
    steps = run.x.shape[0]
    size = segment(steps)
    parts = [(first, min(first + size, steps)) for first in range(0, max(1, steps), size)]
    return parts[::-1] if run.reverse else parts


def _part(run: Run, start: Starts) -> Run:
    """The run of one segment."""
    time = slice(start.first, start.last)
    lengths = None if run.lengths is None else (run.lengths - start.first).clip(0, start.last - start.first)
    zone = run.zone
    if zone is not None:
        zone = Zone(*(share if share is None or len(share) == 1 else share[time] for share in zone))
    return run._replace(
        x=run.x[time], h0=start.h, c0=start.c, lengths=lengths, clear=None if run.clear is None else run.clear[time],
        y=Columns(run.y.array[time], run.y.first, run.y.width), zone=zone,
    )  # fmt: skip


def _again(run: Run, start: Starts) -> Run:
    """The run of one segment into scratch: y was handed out, and may hold the caller's own numbers by now."""
    part = _part(run, start)
    view = part.y.view
    return part._replace(y=Columns(_module(view).empty(view.shape, view.dtype), 0, run.y.width))


def _module(array: Array) -> ModuleType:
    xp = array_module(array)
    assert xp is not None, "validated before"
    return xp


def _columns(columns: Columns | None, time: slice) -> Columns | None:
    return None if columns is None else columns._replace(array=columns.array[time])


def _sum(a: Weights, b: Weights) -> Weights:
    """The sum, of 16 bits in float32: rounded after each of sqrt(T) segments it would be four times as wrong."""
    return _each(lambda p, q: _wide(p) + _wide(q), a, b)


def _wide(a: Array) -> Array:
    return a.astype(computed_in(a.dtype), copy=False)


def _each(operation: Callable[..., Array], *weights: Weights) -> Weights:
    """The operation on each parameter that there is."""
    return Weights(*(cast(Array, None if of[0] is None else operation(*of)) for of in zip(*weights, strict=True)))
