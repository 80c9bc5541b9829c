"""What a decoder is fed with while it learns, and which sequences it sees first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, array_module, to_host
from fastrnn.errors import ShapeError
from fastrnn.nn.embedding import check_indices


def decoder_inputs(
    targets: Array, start: Array, ratio: float, step: Callable[[Any, Array], tuple[Array, Any]], state: Any,
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """Return the inputs of a decoder by teacher forcing with a ratio.

    The first input is `start`. Each later one is, by a coin for every element, the target of the step before (with
    probability `ratio`) or what the model itself finds likeliest there, given the inputs before. The inputs are
    constants: run the decoder on them as on any others, and back-propagate through that run.

    Args:
        targets: [T, B] integers. On the host also for a model on a GPU, whose choices are then waited for at each step.
        start: [B] integers, of the same type and device.
        ratio: 1 feeds the targets alone and never calls `step`; 0 the model's own choices alone.
        step: `step(state, tokens [B]) -> (log_probs [B, V], state)`, as for `fastrnn.beam_search`.
        state: of the decoder before the first step.
        rng: of the coins.

    Returns:
        [T, B], of the targets' type.

    Raises:
        TypeError, ShapeError: targets or start are no integers; they do not belong together.
        ValueError: ratio is not in [0, 1].

    Source: Williams and Zipser (1989); the ratio: Bengio et al., "Scheduled sampling" (2015).
    """
    if not 0 <= validation.real("ratio", ratio) <= 1:
        raise ValueError(f"ratio: expected 0 <= ratio <= 1, got {ratio}")
    check_indices("targets", targets, 2**63, like=targets)
    validation.beside("start", start, targets.shape[1:], like=targets)
    if targets.ndim != 2:
        raise ShapeError(f"targets: expected [T, B] integers, got shape {targets.shape}")
    xp = array_module(targets)
    assert xp is not None, "validated before"
    inputs = xp.empty_like(targets)
    inputs[:1] = start
    forced = rng.random(targets.shape) < ratio
    for t in range(1, targets.shape[0]):
        if forced[t:].all():
            inputs[t:] = targets[t - 1 : -1]
            break
        log_probs, state = step(state, inputs[t - 1])
        own = log_probs.argmax(axis=1)
        own = (to_host(own) if xp is np else own).astype(targets.dtype)
        inputs[t] = xp.where(xp.asarray(forced[t]), targets[t - 1], own)
    return inputs  # type: ignore[no-any-return]


class Curriculum:
    """Short sequences first: the share of the sequences that may be drawn grows from the shortest to all.

        share = first + (1 - first) * step / steps, at most 1

    Args:
        lengths: length of each sequence, at least one.
        steps: steps until all sequences may be drawn.
        first: share at step 0, in (0, 1]; at least one sequence.

    Raises:
        ValueError, TypeError: an argument out of range; of another type.

    Source: Bengio et al., "Curriculum learning" (2009).
    """

    def __init__(self, lengths: Any, steps: int, first: float = 0.1) -> None:
        self._lengths = np.asarray(lengths)
        if self._lengths.ndim != 1 or self._lengths.size == 0:
            raise ShapeError(f"lengths: expected [N] with at least one length, got shape {self._lengths.shape}")
        self.steps = validation.integer("steps", steps, 1)
        self.first = validation.real("first", first)
        if not 0 < self.first <= 1:
            raise ValueError(f"first: expected 0 < first <= 1, got {first}")
        self._sorted = np.sort(self._lengths)

    def eligible(self, step: int) -> Array:
        """Return the indices of the sequences that may be drawn at a step, ascending; equal lengths come together."""
        share = min(1.0, self.first + (1 - self.first) * step / self.steps)
        longest = self._sorted[max(0, int(np.ceil(share * self._sorted.size)) - 1)]
        return np.flatnonzero(self._lengths <= longest)
