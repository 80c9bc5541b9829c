"""What every optimiser checks before it writes anything: a step is taken whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from fastrnn import validation
from fastrnn.arrays import Array, array_module, describe


def check(params: Mapping[str, Array], grads: Mapping[str, Array], before: Mapping[str, Array]) -> None:
    """Check that parameters and gradients belong together, and to what an optimiser kept of earlier steps, if any."""
    if params.keys() != grads.keys():
        raise ValueError(f"grads: expected the names {sorted(params)}, got {sorted(grads)}")
    if before and params.keys() != before.keys():
        raise ValueError(f"params: expected the names {sorted(before)} as before, got {sorted(params)}")
    for name, w in params.items():
        module(w)
        validation.beside(f"grads[{name!r}]", grads[name], w.shape, like=w)
        if name in before:
            validation.beside(f"params[{name!r}]", w, before[name].shape, like=before[name])


def module(array: Array) -> ModuleType:
    """Return numpy or cupy, or raise TypeError."""
    xp = array_module(array)
    if xp is None:
        raise TypeError(f"params, grads: expected numpy or cupy arrays, got {describe(array)}")
    return xp
