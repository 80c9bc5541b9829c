"""Truncated back-propagation through time: an update every k1 steps, gradients through the last k2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fastrnn import validation


class Span(NamedTuple):
    """One update of truncated back-propagation: steps [start, stop) are run, losses of [scored, stop) count."""

    start: int
    scored: int
    stop: int


def spans(steps: int, k1: int, k2: int) -> Iterator[Span]:
    """Yield the spans of a sequence: an update after every k1 steps, and after the last.

    The losses of an update are those of the steps since the one before, and go back through the last k2 steps. With
    k2 < k1 only the last k2 of them can count: the others are passed through without a gradient.

    Args:
        steps: T, length of the sequence.
        k1: steps between updates.
        k2: steps back-propagated through.

    Raises:
        ValueError, TypeError: an argument that is not a positive integer.
    """
    for name, value in (("steps", steps), ("k1", k1), ("k2", k2)):
        validation.integer(name, value, 1)
    for before in range(0, steps, k1):
        stop = min(before + k1, steps)
        start = max(0, stop - k2)
        yield Span(start, max(before, start), stop)


def truncated_bptt(
    learn: Callable[[Span, Any], Any], advance: Callable[[int, int, Any], Any], steps: int, k1: int, k2: int,
    state: Any = None,
) -> Any:  # fmt: skip
    """Train on one long sequence by truncated back-propagation through time, the state carried along.

    With k1 = k2 = T this is full back-propagation. With k2 > k1 the last k2 steps run again, before each update, from
    the state that was kept, with the current parameters; bringing that state forward costs k1 steps without a
    gradient. With k2 < k1 the steps that no gradient passes through are run once, forward only.

    Args:
        learn: `learn(span, state) -> state`: runs steps [span.start, span.stop) from `state`, back-propagates the
            losses of [span.scored, span.stop), updates the parameters, and returns the state after the last step.
        advance: `advance(start, stop, state) -> state`: runs steps forward only.
        steps: T, length of the sequence.
        k1: steps between updates.
        k2: steps back-propagated through.
        state: before the first step, in whatever form both functions use.

    Returns:
        The state after the last step.

    Raises:
        ValueError, TypeError: a number that is not a positive integer.

    Source: Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories" (1990), where k2 is h and k1 is h'.
    """
    kept = 0, state  # a position, and the state before its step
    for span in spans(steps, k1, k2):
        if span.start > kept[0]:
            kept = span.start, advance(kept[0], span.start, kept[1])
        state = learn(span, kept[1])
        if k2 <= k1:
            kept = span.stop, state
    return state
