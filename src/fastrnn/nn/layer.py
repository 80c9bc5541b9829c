"""Parameters by name, handed out read-only: `update` and `load_state_dict` are the only ways to write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, brought, copied, to_device

L = TypeVar("L", bound="Layer")


class Gradients(NamedTuple):
    """Gradients of the loss with respect to a layer's input and parameters."""

    x: Any  # an array of the shape of x; None where x is an index
    params: dict[str, Array]


class Layer:
    """Holds the parameters of a layer; its maths is in the subclass's `forward`.

    Args:
        params: name -> array, float32 or float64, all of one dtype.
    """

    def __init__(self, params: Mapping[str, Array]) -> None:
        self._params: dict[str, Array] = dict(params)
        self.device = "cpu"  # where the parameters are, and the arrays of every call

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of every parameter, and of the input and the output."""
        return next(iter(self._params.values())).dtype

    @property
    def params(self) -> dict[str, Array]:
        """Parameters by name, as read-only views."""
        return {name: _read_only(array) for name, array in self._params.items()}

    def to(self: L, device: str) -> L:
        """Move the parameters to `device`, "cpu" or "cuda:N", where calls run from then on; return the layer.

        Raises:
            ValueError: no device's name. ImportError: CuPy is missing. RuntimeError: there is no such GPU.
        """
        self.device = validation.device(device)
        self._params = {name: to_device(array, self.device) for name, array in self._params.items()}
        return self

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters; nothing changes if any of them does not fit.

        Args:
            params: name -> array of the parameter's shape and dtype, on its device or of NumPy.

        Raises:
            ValueError: a name that this layer does not have.
            ShapeError, TypeError: another shape; another dtype or device.
        """
        for name, array in params.items():
            if name not in self._params:
                raise ValueError(f"params: expected names among {sorted(self._params)}, got {name!r}")
            validation.beside(name, array, self._params[name].shape, like=self._params[name], host=True)
        self._params |= {name: brought(copied(array), self._params[name]) for name, array in params.items()}

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter by name, in torch's layout."""
        return {name: copied(array) for name, array in self._params.items()}

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


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float, dtype: np.dtype[Any]) -> Array:
    """Draw from U(-bound, bound); float64 draws are rounded, so that both dtypes start from the same numbers."""
    return rng.uniform(-bound, bound, shape).astype(dtype)
