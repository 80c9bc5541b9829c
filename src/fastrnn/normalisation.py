"""Layer normalisation of a row, in NumPy: the specification that the compiled loops follow.

    mean = sum(a) / n       scale = 1 / sqrt(sum((a - mean)^2) / n + EPSILON)       hat = (a - mean) * scale

over all n elements of a row. It stands at three places of a step: LN(x W) and LN(h U) over all gates and units at once,
LN(c) over the units. A cell with a second product (fastrnn.cells.GatedProduct) gets it after the first, on which the
second depends, so each product there is normalised over its own width.

Source: Ba, Kiros, Hinton, Layer normalization, 2016.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from fastrnn.arrays import Array

EPSILON = 1e-5  # added to the variance, as torch.nn.functional.layer_norm does


class Rows(NamedTuple):
    """Normalised rows [..., n, H] and their scales [..., 1, 1]; of c [..., H] and [..., 1]."""

    hat: Array
    scale: Array


def normalise(xp: ModuleType, a: Array, axes: tuple[int, ...]) -> Rows:
    """Normalise over the given last axes."""
    centred = a - a.mean(axes, keepdims=True)
    scale = 1 / xp.sqrt((centred * centred).mean(axes, keepdims=True) + a.dtype.type(EPSILON))
    return Rows(centred * scale, scale)


def normalise_backward(d_hat: Array, rows: Rows, axes: tuple[int, ...]) -> Array:
    """Gradient of what was normalised."""
    along = rows.hat * (d_hat * rows.hat).mean(axes, keepdims=True)
    result: Array = rows.scale * (d_hat - d_hat.mean(axes, keepdims=True) - along)
    return result
