"""Clipping by global norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fastrnn.arrays import Array
from fastrnn.optim.checks import module


def clip_by_global_norm(grads: Mapping[str, Array], theta: float) -> tuple[dict[str, Array], float]:
    """Scale all gradients together to the norm `theta` if theirs is greater: `g = theta g / ||g||`.

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
    if not theta > 0:
        raise ValueError(f"theta: expected a number greater than 0, got {theta!r}")
    squares = {name: float(module(g).square(g, dtype=np.float64).sum()) for name, g in grads.items()}
    for name, square in squares.items():
        if not math.isfinite(square):
            raise ValueError(
                f"grads[{name!r}]: expected a finite norm, got NaN, infinity or values too large to square"
            )
    norm = math.sqrt(math.fsum(squares.values()))
    if norm <= theta:
        return dict(grads), norm
    return {name: g * g.dtype.type(theta / norm) for name, g in grads.items()}, norm
