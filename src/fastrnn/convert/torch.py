"""State dicts of torch.nn's RNN, LSTM, GRU and their cells; and files that hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, describe
from fastrnn.cells import CELLS
from fastrnn.convert.checks import KINDS, host_parameters, kind_of
from fastrnn.errors import ShapeError
from fastrnn.layers import Recurrent

NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(\d+)(_reverse)?)?")
GATES = {len(CELLS[cell].gates): kind for cell, kind in (("rnn_tanh", "RNN"), ("gru", "GRU"), ("lstm", "LSTM"))}


def from_torch(state_dict: Mapping[str, Any], *, prefix: str = "", **options: Any) -> Recurrent[Any]:
    """Make a layer from the state_dict of torch.nn's RNN, LSTM or GRU, or of one of their cells.

    The class, the sizes, the layers, the directions, the biases and the dtype follow from the names and shapes.

    Args:
        state_dict: tensors on the CPU or NumPy arrays by torch's names, weight_ih_l0 [G*H, I], or weight_ih of a cell.
        prefix: what the names begin with in the state_dict of a larger model, "encoder.lstm."; others are left out.
        options: the constructor's arguments that a state_dict does not tell: batch_first, dropout, nonlinearity, ...

    Returns:
        A fastrnn.RNN, LSTM or GRU; of a cell, with one layer, whose one step is the cell's.

    Raises:
        ValueError: missing or unknown names. ShapeError: shapes that do not fit together. TypeError: no arrays, mixed
        dtypes, or a dtype that fastrnn lacks.
    """
    tensors = _selected(state_dict, prefix)
    layers = {int(match[2]) for name in tensors if (match := NAME.fullmatch(name)) and match[2]}
    if layers != set(range(len(layers))):  # before anything of the claimed number is made
        raise ValueError(f"state_dict: expected layers l0, l1, ... without a gap, got {sorted(layers)}")
    hidden, inputs, gates = _sizes(tensors)
    if gates not in GATES:
        counts = ", ".join(f"{count} gates ({kind})" for count, kind in sorted(GATES.items()))
        raise ShapeError(
            f"{prefix}weight_hh_l0: expected [G*{hidden}, ...] with {counts}, got {describe(tensors['weight_hh_l0'])}"
        )
    known: dict[str, Any] = {
        "num_layers": len(layers), "bidirectional": any(name.endswith("_reverse") for name in tensors),
        "bias": any(name.startswith("bias") for name in tensors), "dtype": tensors["weight_ih_l0"].dtype,
    }  # fmt: skip
    if "weight_hr_l0" in tensors:
        known["proj_size"] = tensors["weight_hr_l0"].shape[0]
    layer: Recurrent[Any] = KINDS[GATES[gates]](inputs, hidden, **known, **options)
    layer.load_state_dict(tensors)
    return layer


def to_torch(layer: Recurrent[Any], *, prefix: str = "", cell: bool = False) -> dict[str, Any]:
    """Return a layer's parameters as a state_dict of torch tensors, for `load_state_dict` of torch.nn's module.

    Args:
        layer: a fastrnn.RNN, LSTM or GRU with options that torch.nn has.
        prefix: what the names shall begin with.
        cell: names for torch.nn's cell instead, weight_ih and so on; for one layer in one direction.

    Returns:
        Tensors of their own memory on the CPU, by name, in the layer's dtype.

    Raises:
        ImportError: PyTorch is missing. TypeError: no layer. ValueError: an option that torch.nn lacks, by name.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("to_torch: expected PyTorch, got none; install fastrnn[torch]") from error

    params = torch_parameters(layer)
    if cell and (layer.num_layers, layer.bidirectional, layer.proj_size) != (1, False, 0):
        raise ValueError(f"cell: expected False for a layer with more than a cell's weights, got True for {layer!r}")
    return {
        prefix + (name.removesuffix("_l0") if cell else name): torch.from_numpy(value)
        for name, value in params.items()
    }  # fmt: skip


def torch_parameters(layer: Recurrent[Any]) -> dict[str, Array]:
    """The parameters of a layer that torch.nn has too, as NumPy arrays."""
    kind_of(layer, "torch.nn", free=("proj_size",))
    return host_parameters(layer)


def _selected(state_dict: object, prefix: str) -> dict[str, Array]:
    """Arrays under the names of a layer, from names that begin with `prefix`, of a cell or of a layer."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to tensors, got {describe(state_dict)}")
    under = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    unknown = [prefix + name for name in under if NAME.fullmatch(name) is None]
    if unknown or not under:
        raise ValueError(
            f"state_dict: expected {prefix}weight_ih_l0, {prefix}weight_hh_l0 ... and no other names that begin with "
            f"{prefix!r}, got {', '.join(unknown or map(str, state_dict)) or 'none'}"
        )
    is_cell = all(NAME.fullmatch(name)[2] is None for name in under)  # type: ignore[index]
    tensors = {}
    for name, value in under.items():
        array = validation.from_foreign(prefix + name, value)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{prefix}{name}: expected a NumPy array or a CPU tensor, got {describe(value)}")
        tensors[name + "_l0" * is_cell] = array
    return tensors


def _sizes(tensors: Mapping[str, Array]) -> tuple[int, int, int]:
    """H, I and G, from the first layer's matrices."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in tensors:
            raise ValueError(f"state_dict: expected the name {name}, got {', '.join(tensors)}")
    for name in ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"):
        if name in tensors and (tensors[name].ndim != 2 or 0 in tensors[name].shape):
            raise ShapeError(f"{name}: expected a matrix, got {describe(tensors[name])}")
    rows, hidden = tensors["weight_hh_l0"].shape
    hidden = tensors["weight_hr_l0"].shape[1] if "weight_hr_l0" in tensors else hidden
    return hidden, tensors["weight_ih_l0"].shape[1], 0 if rows % hidden else rows // hidden
