"""Beam search over any model that gives the log-probabilities of the next token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, array_module, at, brought, to_host
from fastrnn.errors import ShapeError
from fastrnn.nn.embedding import check_indices


class Hypothesis(NamedTuple):
    """One sequence that a search found."""

    tokens: tuple[int, ...]  # without the start; the last one is `end`, unless the sequence was cut off
    log_prob: float  # of all tokens
    score: float  # log_prob / ((5 + length) / 6) ** length_penalty


def beam_search(
    step: Callable[[Any, Array], tuple[Array, Any]], state: Any, start: Array, *, end: int, width: int,
    max_length: int, length_penalty: float = 0.0, batch_axis: int = 1,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Search the most probable sequences by keeping the `width` best unfinished ones at each length.

        score = log p(tokens) / ((5 + length) / 6) ** length_penalty

    Each length extends every unfinished sequence by every token and takes the `width` best of all; those that end are
    finished. With width 1 this is the greedy choice; with a width that no length fills it finds the best of all
    sequences. A sequence of `max_length` tokens is finished as it is.

    Args:
        step: `step(state, tokens [N]) -> (log_probs [N, V], state)`, the model; N is B at first and then changes.
        state: of the model before `start`: an array, None, or tuples of these, with the B sequences along `batch_axis`.
        start: [B] integers, the first token of each sequence. Tokens are handed to `step` as it is: on the host, or on
            a GPU, which is waited for at each length anyway.
        end: the token that ends a sequence.
        width: sequences kept for each of the B.
        max_length: greatest number of tokens after `start`.
        length_penalty: at least 0; more favours longer sequences.
        batch_axis: of the arrays in `state`.

    Returns:
        For each of the B, up to `width` finished hypotheses, best score first.

    Raises:
        ValueError, TypeError: an argument out of range; of another type; log-probabilities that are NaN or infinite.
        ShapeError: what `step` returns does not fit its tokens.

    Source: the length penalty: Wu et al., "Google's neural machine translation system" (2016).
    """
    check_indices("start", start, 2**63, like=start)
    for name, value, low in (("end", end, 0), ("width", width, 1), ("max_length", max_length, 1)):
        validation.integer(name, value, low)
    validation.real("length_penalty", length_penalty, 0)
    xp, B = array_module(start), start.shape[0]
    assert xp is not None, "validated before"
    finished: list[list[Hypothesis]] = [[] for _ in range(B)]
    owner, scores = np.arange(B), np.zeros(B)  # of each unfinished sequence, the first B of them empty
    tokens, last = np.empty((B, 0), np.int64), start
    for length in range(1, max_length + 1):
        log_probs, state = step(state, last)
        grown = scores[:, None] + _on_host(log_probs, len(owner), end)
        parent, token = _best(grown, owner, width, B)
        scores, owner = grown[parent, token], owner[parent]
        tokens = np.concatenate([tokens[parent], token[:, None]], axis=1)
        penalty = ((5 + length) / 6) ** length_penalty
        done = (token == end) | (length == max_length)
        for n in np.flatnonzero(done):
            found = Hypothesis(tuple(map(int, tokens[n])), float(scores[n]), float(scores[n]) / penalty)
            finished[owner[n]].append(found)
        for hypotheses in finished:
            hypotheses.sort(key=lambda h: -h.score)
            del hypotheses[width:]
        live = ~done & _can_still_enter(scores, owner, finished, width, ((5 + max_length) / 6) ** length_penalty)
        if not live.any():
            break
        rows = np.flatnonzero(live)
        scores, owner, tokens = scores[rows], owner[rows], tokens[rows]
        state = _select(state, parent[rows], batch_axis)
        last = xp.asarray(tokens[:, -1].astype(start.dtype))
    return finished


def _on_host(log_probs: Array, rows: int, end: int) -> Array:
    """Check what the model returned; return it as a NumPy array, float64."""
    values = to_host(log_probs)
    if values.ndim != 2 or values.shape[0] != rows or values.shape[1] <= end:
        raise ShapeError(f"log_probs: expected [{rows}, V] with V > end = {end}, got shape {values.shape}")
    if bool(np.isnan(values).any()) or bool((values == np.inf).any()):
        raise ValueError("log_probs: expected numbers or -inf, got NaN or inf")
    return values.astype(np.float64)


def _best(grown: Array, owner: Array, width: int, batch: int) -> tuple[Array, Array]:
    """Row and token of the `width` best of each owner, best first; of equals the earlier; none that is impossible."""
    parents, tokens = [], []
    for b in range(batch):
        rows = np.flatnonzero(owner == b)
        flat = grown[rows].reshape(-1)
        order = np.argsort(-flat, kind="stable")[:width]
        order = order[flat[order] > -np.inf]
        parents.append(rows[order // grown.shape[1]] if rows.size else rows)
        tokens.append(order % grown.shape[1])
    return np.concatenate(parents), np.concatenate(tokens)


def _can_still_enter(
    scores: Array, owner: Array, finished: list[list[Hypothesis]], width: int, greatest_penalty: float
) -> Array:
    """Which sequences may still come among the `width` best: none can get above log_prob / greatest penalty."""
    worst = [h[-1].score if len(h) == width else -math.inf for h in finished]
    return scores / greatest_penalty > np.array(worst)[owner]


def _select(state: Any, rows: Array, axis: int) -> Any:
    if isinstance(state, tuple):
        return tuple(_select(part, rows, axis) for part in state)
    if state is None:
        return None
    with at(state):
        return state.take(brought(rows, state), axis=axis)
