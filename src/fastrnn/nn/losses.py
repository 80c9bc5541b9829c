"""Losses: each returns its value and its own backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrnn.arrays import Array, array_module, describe
from fastrnn.errors import ShapeError
from fastrnn.nn.embedding import check_indices
from fastrnn.validation import dtype_name


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Any, Callable[..., Array]]:
    """Mean over all rows n of `-log softmax(logits[n])[targets[n]]`, in nats.

    The row maximum is subtracted first, so logits of any size are safe; the mean is taken in float64.

    Args:
        logits: [..., C], float32 or float64.
        targets: [...] integers in [0, C): the class of each row.

    Returns:
        The loss, a float64 scalar of the array module, and `backward(d_loss=1.0) -> d_logits` [..., C].

    Raises:
        TypeError: logits are not floats, targets not integers, or they live on two devices.
        ShapeError: the shapes do not belong together.
        ValueError: a target out of range, or no row at all.
    """
    xp = array_module(logits)
    if xp is None:
        raise TypeError(f"logits: expected a numpy or cupy array [..., C], got {describe(logits)}")
    dtype_name(logits.dtype, "logits")
    if logits.ndim == 0 or logits.size == 0:
        raise ShapeError(f"logits: expected [..., C] with at least one row and one class, got {describe(logits)}")
    check_indices("targets", targets, logits.shape[-1], like=logits)
    if targets.shape != logits.shape[:-1]:
        raise ShapeError(f"targets: expected {list(logits.shape[:-1])} integers, got {describe(targets)}")
    wanted, rows = targets.reshape(-1), xp.arange(targets.size)
    p = logits.reshape(-1, logits.shape[-1])
    p = p - p.max(axis=1, keepdims=True)  # a fresh array: from here on in place, it is the largest of the model
    chosen = p[rows, wanted]
    xp.exp(p, out=p)
    total = p.sum(axis=1, keepdims=True)
    loss = (xp.log(total[:, 0]) - chosen).mean(dtype=xp.float64)
    p /= total

    def backward(d_loss: float = 1.0) -> Array:
        scale = float(d_loss) / rows.size
        d_logits: Array = p * p.dtype.type(scale)
        d_logits[rows, wanted] -= scale
        return d_logits.reshape(logits.shape)

    return loss, backward
