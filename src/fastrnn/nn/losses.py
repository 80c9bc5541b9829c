"""Losses: each returns its value and its own backward."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, array_module, at, brought, describe
from fastrnn.errors import ShapeError
from fastrnn.nn.embedding import check_indices

REDUCTIONS = ("mean", "sum")
SUMS_TO_ONE = 1e-3  # catches logits and counts given as probabilities, not the rounding of thousands of classes


def mse(
    y: Array, targets: Array, *, mask: Array | None = None, reduction: str = "mean"
) -> tuple[Any, Callable[..., Array]]:
    """Squared error, `(y - targets)^2`, averaged or summed over all elements.

    Args:
        y: any shape, float32 or float64.
        targets: y's shape, dtype and device.
        mask: bool, the leading axes of y ([T, B] for y [T, B, C]); True where an element counts. What stands elsewhere,
            NaN included, reaches neither the loss nor the gradient. On the host also for y on a GPU: which elements
            count is found there, and for an array of the GPU it has to be waited for.
        reduction: "mean" over what counts, or "sum"; taken in float64.

    Returns:
        The loss, a float64 scalar of the array module, and `backward(d_loss=1.0) -> d_y`.

    Raises:
        TypeError: no arrays of floats, of two dtypes or on two devices; a mask of another type.
        ShapeError: the shapes do not belong together.
        ValueError: nothing counts; another reduction.
    """
    return _squared(y, targets, mask, reduction, 1.0)


def half_mse(
    y: Array, targets: Array, *, mask: Array | None = None, reduction: str = "mean"
) -> tuple[Any, Callable[..., Array]]:
    """Half the squared error, `(y - targets)^2 / 2`, whose gradient is y - targets; the rest as for `mse`."""
    return _squared(y, targets, mask, reduction, 0.5)


def softmax_cross_entropy(
    logits: Array, targets: Array, *, ignore_index: int | None = None, mask: Array | None = None,
    reduction: str = "mean",
) -> tuple[Any, Callable[..., Array]]:  # fmt: skip
    """Cross-entropy `-sum_c targets[n, c] log softmax(logits[n])[c]`, in nats, averaged or summed over the rows n.

    The row maximum is subtracted first, so logits of any size are safe; the sum over rows is taken in float64.

    Args:
        logits: [..., C], float32 or float64.
        targets: [...] integers in [0, C), the class of each row; or [..., C], one-hot or other probabilities of the
            classes, of any numeric or bool dtype, which sum to 1 in each row that counts. On the host also for logits
            on a GPU: they are checked there, and an array of the GPU has to be waited for; so has a mask.
        ignore_index: rows whose class is this integer do not count; it need not be in [0, C).
        mask: bool [...], True where a row counts. What stands elsewhere, NaN included, reaches neither the loss nor
            the gradient.
        reduction: "mean" over the rows that count, or "sum".

    Returns:
        The loss, a float64 scalar of the array module, and `backward(d_loss=1.0) -> d_logits` [..., C].

    Raises:
        TypeError: logits are not floats, targets neither integers nor probabilities, or they live on two devices.
        ShapeError: the shapes do not belong together.
        ValueError: a target out of range, no row that counts, or another reduction.
    """
    xp = _floats("logits", logits)
    validation.choice("reduction", reduction, REDUCTIONS)
    if logits.ndim == 0 or logits.size == 0:
        raise ShapeError(f"logits: expected [..., C] with at least one row and one class, got {describe(logits)}")
    if mask is not None:
        validation.mask("mask", mask, logits.shape[:-1], like=logits)
    targets, mask = _together(targets, mask)
    with at(logits):
        chosen, q, rows = _wanted(logits, targets, None if mask is None else mask.reshape(-1), ignore_index)
        return _cross_entropy(xp, logits, chosen, q, rows, reduction)


def _cross_entropy(
    xp: ModuleType, logits: Array, chosen: Array | None, q: Array | None, rows: Array | None, reduction: str
) -> tuple[Any, Callable[..., Array]]:
    """The loss against the classes `chosen`, or their probabilities q, of the rows that count."""
    p = logits.reshape(-1, logits.shape[-1])
    p = p if rows is None else p[rows]
    number = p.shape[0]
    if number == 0:
        raise ValueError("targets: expected at least one row that counts, got none")
    p = p - p.max(axis=1, keepdims=True)  # a fresh array: from here on in place, it is the largest of the model
    if q is not None:
        at_target = xp.where(q > 0, p, xp.zeros_like(p))  # a class of no probability may have a logit of -inf
        at_target = (q * at_target).sum(axis=1)
    else:
        at_target = p[xp.arange(number), chosen]
    xp.exp(p, out=p)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    loss = (xp.log(total[:, 0]) - at_target).sum(dtype=xp.float64)
    divisor = number if reduction == "mean" else 1

    def backward(d_loss: float = 1.0) -> Array:
        scale = float(d_loss) / divisor
        with at(logits):
            d: Array = p * p.dtype.type(scale)
            if q is not None:
                d -= q * q.dtype.type(scale)
            else:
                d[xp.arange(number), chosen] -= scale
            return _spread(xp, d, rows, logits)

    return loss / divisor, backward


def log_softmax(logits: Array) -> Array:
    """Return `log softmax(logits)` over the last axis; logits of any size are safe.

    Args:
        logits: [..., C], float32 or float64.

    Returns:
        [..., C], of the same type.

    Raises:
        TypeError: logits are no array of floats.
    """
    xp = _floats("logits", logits)
    with at(logits):
        z: Array = logits - logits.max(axis=-1, keepdims=True)
        z -= xp.log(xp.exp(z).sum(axis=-1, keepdims=True))
    return z


def _squared(y: Array, targets: Array, mask: Array | None, reduction: str, factor: float) -> tuple[Any, Any]:
    xp = _floats("y", y)
    validation.beside("targets", targets, y.shape, like=y)
    validation.choice("reduction", reduction, REDUCTIONS)
    if mask is not None:
        validation.mask("mask", mask, y.shape[: getattr(mask, "ndim", 0)], like=y)
    with at(y):
        return _squared_where(xp, y, targets, mask, reduction, factor)


def _squared_where(
    xp: ModuleType, y: Array, targets: Array, mask: Array | None, reduction: str, factor: float
) -> tuple[Any, Any]:
    rows, difference = None, y.reshape(-1)[:0]
    if mask is not None:
        rows = brought(_set(mask), y)
        if rows.size and y.size:
            difference = y.reshape(mask.size, -1)[rows] - targets.reshape(mask.size, -1)[rows]
    else:
        difference = y - targets
    if difference.size == 0:
        raise ValueError("y: expected at least one element that counts, got none")
    divisor = difference.size if reduction == "mean" else 1

    def backward(d_loss: float = 1.0) -> Array:
        with at(y):
            d = difference * y.dtype.type(2 * factor * float(d_loss) / divisor)
            return _spread(xp, d, rows, y)

    return factor * xp.square(difference, dtype=xp.float64).sum() / divisor, backward


def _floats(name: str, value: Array) -> ModuleType:
    xp = array_module(value)
    if xp is None:
        raise TypeError(f"{name}: expected a numpy or cupy array, got {describe(value)}")
    validation.dtype_name(value.dtype, name)
    return xp


def _together(targets: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Both on the host, where nothing has to be waited for; but on the device if one of them is there."""
    if mask is None or array_module(targets) is None:
        return targets, mask
    return brought(targets, mask), brought(mask, targets)


def _wanted(
    logits: Array, targets: Array, counts: Array | None, ignore_index: int | None
) -> tuple[Array | None, Array | None, Array | None]:
    """The class of each row that counts, or the probabilities of its classes; and which rows count (None: all)."""
    if array_module(targets) in (np, array_module(logits)) and targets.shape == logits.shape:
        if ignore_index is not None:
            raise ValueError(f"ignore_index: expected None with targets of probabilities, got {ignore_index}")
        rows, q = _counted(counts), targets.reshape(-1, targets.shape[-1])
        q = _probabilities(q if rows is None else q[rows], logits)
        return None, brought(q, logits), brought(rows, logits)
    wanted, counts = _classes(logits, targets, counts, ignore_index)
    rows = _counted(counts)
    return brought(wanted if rows is None else wanted[rows], logits), None, brought(rows, logits)


def _classes(
    logits: Array, targets: Array, counts: Array | None, ignore_index: int | None
) -> tuple[Array, Array | None]:
    """The class of each row, and which rows count (None: all); a row that does not may hold any class."""
    if array_module(targets) not in (np, array_module(logits)) or targets.dtype.kind not in "iu":
        check_indices("targets", targets, logits.shape[-1], like=logits)
    if targets.shape != logits.shape[:-1]:
        raise ShapeError(f"targets: expected {list(logits.shape[:-1])} integers, got {describe(targets)}")
    wanted = targets.reshape(-1)
    if ignore_index is not None:
        kept = wanted != validation.integer("ignore_index", ignore_index, -(2**63))
        counts = kept if counts is None else counts & kept
    check_indices("targets", wanted if counts is None else wanted[counts], logits.shape[-1], like=logits)
    return wanted, counts


def _probabilities(q: Array, like: Array) -> Array:
    if q.dtype.kind not in "biuf":
        raise TypeError(f"targets: expected probabilities of the classes, got {describe(q)}")
    q = q.astype(like.dtype)
    if not bool(((q >= 0).all(axis=1) & (abs(q.sum(axis=1) - 1) < SUMS_TO_ONE)).all()):
        raise ValueError("targets: expected probabilities, at least 0 and with the sum 1 in each row, got others")
    return q


def _counted(counts: Array | None) -> Array | None:
    """Indices of the rows that count; None where all do."""
    return None if counts is None or bool(counts.all()) else _set(counts)


def _set(mask: Array) -> Array:
    """Indices of the elements of a mask that are set."""
    xp = array_module(mask)
    assert xp is not None, "validated before"
    indices: Array = xp.flatnonzero(mask)
    return indices


def _spread(xp: ModuleType, d: Array, rows: Array | None, like: Array) -> Array:
    """Put gradients of single rows back where they came from; the others are zero."""
    if rows is None:
        return d.reshape(like.shape)
    full = xp.zeros((like.size // d.shape[1], d.shape[1]), like.dtype)
    full[rows] = d
    return full.reshape(like.shape)  # type: ignore[no-any-return]
