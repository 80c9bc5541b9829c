"""Clipping by global norm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn.arrays import Array, at, fetched
from fastrnn.optim.checks import module


def clip_by_global_norm(grads: Mapping[str, Array], theta: float) -> tuple[dict[str, Array], float]:
    """Scale all gradients together to the norm `theta` if theirs is greater: `g = theta g / ||g||`.

    A GPU is waited for once.

    Args:
        grads: name -> array; left as they are.
        theta: the greatest norm to let pass, > 0.

    Returns:
        The gradients (the same arrays where nothing was clipped) and ||g|| over all of them before clipping,
        summed in float64.

    Raises:
        ValueError: theta is not positive, or a gradient is not finite (scaling it would spread the NaN to all).

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks" (2013).
    """
    return clipped(grads, fetched(squares(grads)), theta)


def squares(grads: Mapping[str, Array]) -> list[Any]:
    """Return the squared norm of each gradient, float64 scalars where it is."""
    found = []
    for g in grads.values():
        with at(g):
            found.append(module(g).square(g, dtype=np.float64).sum())
    return found


def clipped(grads: Mapping[str, Array], squares: Sequence[float], theta: float) -> tuple[dict[str, Array], float]:
    """Return what `clip_by_global_norm` does, of gradients whose `squares` the host knows."""
    if not theta > 0:
        raise ValueError(f"theta: expected a number greater than 0, got {theta!r}")
    for name, square in zip(grads, squares, strict=True):
        if not math.isfinite(square):
            raise ValueError(
                f"grads[{name!r}]: expected a finite norm, got NaN, infinity or values too large to square"
            )
    norm = math.sqrt(math.fsum(squares))
    if norm <= theta:
        return dict(grads), norm
    scaled = {}
    for name, g in grads.items():
        with at(g):
            scaled[name] = g * g.dtype.type(theta / norm)
    return scaled, norm
