"""Which library an array belongs to: NumPy runs on the CPU, CuPy on its GPU, nothing else is accepted."""

from __future__ import annotations

import reprlib
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def array_module(array: object) -> ModuleType | None:
    """Return numpy or cupy, whichever `array` belongs to, or None; never imports a library that is not loaded."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return None


def describe(value: object) -> str:
    """Say what `value` is, as error messages do: "(100, 16, 32) float64" for an array, else its type and value."""
    if array_module(value) is not None:
        return f"{value.shape} {value.dtype}"  # type: ignore[attr-defined]
    shape = getattr(value, "shape", None)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if shape is not None:
        return f"{kind} of shape {tuple(shape)}"
    return f"{kind} {reprlib.repr(value)}"[:120]  # a nested list would fill the screen
