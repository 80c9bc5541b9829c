"""Parameters by name, handed out read-only: `update` and `load_state_dict` are the only ways to write them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import Array, array_module, describe
from fastrnn.errors import ShapeError


class Gradients(NamedTuple):
    """Gradients of the loss with respect to a layer's input and parameters."""

    x: Array | None  # the shape of x; None where x is an index
    params: dict[str, Array]


class Layer:
    """Holds the parameters of a layer; its maths is in the subclass's `forward`.

    Args:
        params: name -> array, float32 or float64, all of one dtype.
    """

    def __init__(self, params: Mapping[str, Array]) -> None:
        self._params: dict[str, Array] = dict(params)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of every parameter, and of the input and the output."""
        return next(iter(self._params.values())).dtype

    @property
    def params(self) -> dict[str, Array]:
        """Parameters by name, as read-only views."""
        return {name: _read_only(array) for name, array in self._params.items()}

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters; nothing changes if any of them does not fit.

        Args:
            params: name -> array of the parameter's shape and dtype, on its device.

        Raises:
            ValueError: a name that this layer does not have.
            ShapeError, TypeError: another shape; another dtype or device.
        """
        for name, array in params.items():
            if name not in self._params:
                raise ValueError(f"params: expected names among {sorted(self._params)}, got {name!r}")
            check(name, array, self._params[name].shape, like=self._params[name])
        self._params.update({name: array.copy() for name, array in params.items()})

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter by name, in torch's layout."""
        return {name: array.copy() for name, array in self._params.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Replace all parameters; `state` must hold exactly the names of `state_dict()`.

        Raises:
            ValueError: a name that is missing or that this layer does not have.
            ShapeError, TypeError: as `update`.
        """
        if missing := sorted(set(self._params) - set(state)):
            raise ValueError(f"state: expected {sorted(self._params)}, got no {missing}")
        self.update(state)


def _read_only(array: Array) -> Array:
    view = array.view()
    if hasattr(view, "setflags"):  # CuPy has no read-only arrays
        view.setflags(write=False)
    return view


def check(name: str, array: Array, shape: tuple[int | None, ...], like: Array, lead: str = "") -> ModuleType:
    """Check that `array` has `like`'s module and dtype and ends in `shape`, and return its module.

    Args:
        name: what the error calls it.
        array: the array to check.
        shape: its last axes; None stands for any length.
        like: an array of the dtype and device that are expected.
        lead: how the error shows axes before `shape` ("..., "); without it there may be none.

    Raises:
        TypeError: not an array of `like`'s module and dtype.
        ShapeError: another shape.
    """
    xp = array_module(array)
    wanted = f"[{lead}{', '.join('any' if n is None else str(n) for n in shape)}] {like.dtype}"
    if xp is None or xp is not array_module(like):
        kind = getattr(array_module(like), "__name__", "")
        raise TypeError(f"{name}: expected a {kind} array {wanted}, got {describe(array)}")
    if array.dtype != like.dtype:
        raise TypeError(f"{name}: expected {wanted}, got {describe(array)}")
    ends = array.shape[array.ndim - len(shape) :] if array.ndim >= len(shape) else ()
    fits = len(ends) == len(shape) and all(n is None or n == m for n, m in zip(shape, ends, strict=True))
    if not fits or (not lead and array.ndim != len(shape)):
        raise ShapeError(f"{name}: expected {wanted}, got {describe(array)}")
    return xp


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float, dtype: np.dtype[Any]) -> Array:
    """Draw from U(-bound, bound); float64 draws are rounded, so that both dtypes start from the same numbers."""
    return rng.uniform(-bound, bound, shape).astype(dtype)


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """Return float32 or float64 as a NumPy dtype, or raise TypeError."""
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    return found
