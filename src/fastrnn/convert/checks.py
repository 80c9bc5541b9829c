"""Which layers the formats of others can hold: in one place, each option refused by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn.arrays import Array, describe, to_host
from fastrnn.layers import GRU, LSTM, RNN, Recurrent

KINDS: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
# Options that change equations or shapes, each with the values that every format has. `dropout`, `recurrent_dropout`,
# `save`, `init` and the like change neither. A mask leaves zeros in a matrix that is stored whole.
PLAIN: dict[str, tuple[Any, ...]] = {
    "nonlinearity": ("tanh", "relu"), "proj_size": (0,), "reset_after": (True,), "peephole": (False,),
    "coupled": (False,), "recurrent": ("full", "mask"), "layer_norm": (False,), "zoneout": (0.0, (0.0, 0.0)),
}  # fmt: skip


def kind_of(
    layer: object, target: str, also: Mapping[str, Sequence[Any]] | None = None, free: Sequence[str] = ()
) -> str:
    """Return "RNN", "LSTM" or "GRU" for a layer that a format can hold.

    Args:
        layer: any object.
        target: the format's name in messages.
        also: values of options that this format has besides PLAIN.
        free: options of which it has every value.

    Raises:
        TypeError: not a layer of one of the three classes. ValueError: an option that the format lacks.
    """
    if type(layer) not in KINDS.values():
        raise TypeError(f"layer: expected a fastrnn.RNN, LSTM or GRU, got {describe(layer)}")
    assert isinstance(layer, Recurrent)
    for name in PLAIN.keys() - set(free):
        allowed = (*PLAIN[name], *(also or {}).get(name, ()))
        value = layer._arguments.get(name, allowed[0])
        value = "mask" if isinstance(value, np.ndarray) else value
        if value not in allowed:
            expected = " or ".join(repr(v) for v in allowed)
            raise ValueError(f"{name}: expected {expected}, which is what {target} has, got {value!r}")
    return next(name for name, kind in KINDS.items() if kind is type(layer))


def suffixes(num_layers: int, num_directions: int) -> Iterator[list[str]]:
    """The ends of the parameters' names, one list a layer, one entry a direction."""
    for layer in range(num_layers):
        yield [f"_l{layer}{'_reverse' * direction}" for direction in range(num_directions)]


def host_parameters(layer: Recurrent[Any]) -> dict[str, Array]:
    """Copies of the parameters as NumPy arrays, wherever the layer is."""
    return {name: to_host(value) for name, value in layer.state_dict().items()}
