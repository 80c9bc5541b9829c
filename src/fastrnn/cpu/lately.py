"""One thread or several for one sequence: whichever has lately been faster, by the times of the calls themselves.

Sharing gains while the other processors are awake, near the weights and idle, and loses where they have to wake first
or others need them. The bits are the same either way, so times may decide.

Calls of one kind go the way with the smaller median of its last times. The other way is tried again after a while, in
some calls on end, of which the first is not counted: it finds weights and threads as the way before left them. A way
that has not been timed counts as one that takes no time, so it is tried next.

Python threads may be here at once, and there is no lock: the worst that happens is a time lost or in the wrong place.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

clock = time.perf_counter

HOT_SECONDS = 0.01  # since the weights were used: after longer pauses other times count
TIMES = 7  # of each way that are kept
TRIED = 3  # times of a way that are counted before it may be left
COST = 50  # trying the slower way takes one part in so many of the time
OFTEN = 50  # calls before it is tried again, at least
SELDOM = 500  # at most, whatever it costs: its last times may have been bad luck
MOST_KINDS = 256

_kinds: dict[Hashable, _Kind] = {}


class _Kind:
    """What is known of one kind of call; way 0 is one thread alone, way 1 is sharing."""

    __slots__ = ("_count", "_medians", "_times", "way")

    def __init__(self) -> None:
        self.way = 0
        self._count = -1  # times counted since the way was changed; -1 before the first, which is not
        self._times: list[tuple[float, ...]] = [(), ()]
        self._medians = [0.0, 0.0]

    def add(self, way: int, seconds: float) -> None:
        """Note the time of a step, and decide on the next call."""
        if way != self.way:  # a call of another Python thread has changed it meanwhile
            return
        self._count += 1
        if self._count == 0:
            return
        self._times[way] = times = (*self._times[way][1 - TIMES :], seconds)
        self._medians[way] = median = sorted(times)[len(times) // 2]
        if self._count < TRIED:
            return
        excess = self._medians[1 - way] - median
        if excess < 0:
            self._change_to(1 - way)
        elif self._count >= OFTEN and (self._count >= SELDOM or self._count * median >= COST * (1 + TRIED) * excess):
            self._times[1 - way] = ()  # old ones would outvote what it takes now
            self._change_to(1 - way)

    def _change_to(self, way: int) -> None:
        self.way, self._count = way, -1


class Timed:
    """A call of `steps` steps that begins now: which way it goes, and its end.

    kind: all that its time depends on but the number of steps. used: by `clock`, when its weights were last used.
    """

    __slots__ = ("_begin", "_kind", "_steps", "shares")

    def __init__(self, kind: Hashable, steps: int, used: float) -> None:
        self._begin, self._steps = clock(), steps
        # Times are of a step, so the number may vary; but what begins slowly is made up for in a long call only.
        key = kind, steps.bit_length(), self._begin - used < HOT_SECONDS
        known = _kinds.get(key)
        if known is None:
            if len(_kinds) >= MOST_KINDS:
                _kinds.clear()
            known = _kinds[key] = _Kind()
        self._kind, self.shares = known, bool(known.way)

    def end(self) -> float:
        """Note the call's time; return what the clock shows."""
        now = clock()
        self._kind.add(int(self.shares), (now - self._begin) / self._steps)
        return now
