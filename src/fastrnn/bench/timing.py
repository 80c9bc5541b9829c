"""Interleaved timing: in every round each contestant has one turn, and the order rotates from round to round.

What disturbs a shared machine then disturbs all contestants alike, and nobody always runs in another's wake.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Clock: TypeAlias = Callable[[], float]
SLOW = 0.1  # seconds a call: too long for a second warm-up


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    budget: seconds for all contestants of a case together. min_rounds, max_rounds: samples each, whatever the budget.
    few_rounds: samples at least of those contestants whose times are only there for orientation.
    min_sample: seconds; shorter calls are repeated within a sample. pause: seconds before each turn, so that the
        spinning worker threads of the contestant before (OpenMP's and ONNX Runtime's do) have gone to sleep.
    """

    budget: float = 2.0
    min_rounds: int = 5
    few_rounds: int = 3
    max_rounds: int = 30
    min_sample: float = 2e-3
    pause: float = 0.0


QUICK = Effort(budget=0.4, min_rounds=3, few_rounds=2, max_rounds=15)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: one sample per turn, each the mean of `calls` calls."""

    samples: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median of the samples."""
        return float(np.median(self.samples))

    @property
    def spread(self) -> float:
        """Distance between the quartiles of the samples."""
        low, high = np.percentile(self.samples, (25, 75))
        return float(high - low)


def order(names: Sequence[str], turn: int) -> list[str]:
    """Names in the order of one round: rotated by one place a round."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    effort: Effort,
    few: Sequence[str] = (),
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time all contestants of a case in turns.

    A contestant that has used up its share of the budget and has `min_rounds` samples sits out the other rounds.

    Args:
        calls: what to time, by name.
        effort: how long.
        few: names of contestants for which `few_rounds` are enough.
        clock: seconds; another one for tests.
    """
    names, share = list(calls), effort.budget / max(1, len(calls))
    least = {name: effort.few_rounds if name in few else effort.min_rounds for name in names}
    repeats = {name: _repeats(calls[name], effort, clock) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for turn in range(effort.max_rounds):
        active = [name for name in names if turn < least[name] or spent[name] < share]
        if not active:
            break
        for name in order(active, turn):
            sample, took = _turn(calls[name], repeats[name], effort, clock)
            samples[name].append(sample)
            spent[name] += took
    return {name: Timing(tuple(samples[name]), repeats[name]) for name in names}


def _repeats(call: Callable[[], Any], effort: Effort, clock: Clock) -> int:
    """Calls per sample, from a warm-up call, or from the faster of two where a first one may have been exceptional."""
    fastest = _elapsed(call, 1, clock)
    if fastest < SLOW:
        fastest = min(fastest, _elapsed(call, 1, clock))
    return max(1, math.ceil(effort.min_sample / max(fastest, 1e-7)))


def _turn(call: Callable[[], Any], repeats: int, effort: Effort, clock: Clock) -> tuple[float, float]:
    """One sample in seconds per call, and what it cost; short calls first run once to bring their data into cache."""
    if effort.pause:
        time.sleep(effort.pause)
    start = clock()
    if repeats > 1:
        call()
    sample = _elapsed(call, repeats, clock) / repeats
    return sample, clock() - start


def _elapsed(call: Callable[[], Any], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start
