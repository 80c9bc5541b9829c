"""Weights of Keras's SimpleRNN, LSTM and GRU, as `get_weights` returns and `set_weights` takes them.

    here    weight_ih [G*H, I]   weight_hh [G*H, H]          bias_ih [G*H], bias_hh [G*H]
    Keras   kernel    [I, G*H]   recurrent_kernel [H, G*H]   bias [G*H]; [2, G*H] for GRU with reset_after

Gates stand in the order of tables.KERAS_GATES. Where Keras has one bias, it is bias_ih here and bias_hh is zero; the
other way their sum. A Bidirectional layer (merge_mode="concat") has the forward one's arrays, then the backward one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, describe
from fastrnn.convert.checks import KINDS, host_parameters, kind_of, suffixes
from fastrnn.convert.tables import KERAS_GATES, reordered
from fastrnn.errors import ShapeError
from fastrnn.layers import Recurrent

CELLS = {"SimpleRNN": "RNN", "LSTM": "LSTM", "GRU": "GRU"}  # Keras's class: ours
ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "linear": "identity"}  # of SimpleRNN: our nonlinearity


def from_keras(
    kind: str, *weights: Sequence[Any], reset_after: bool | None = None, activation: str = "tanh",
    recurrent_activation: str = "sigmoid", **options: Any,
) -> Recurrent[Any]:  # fmt: skip
    """Make a layer from what Keras's `get_weights` returns; several lists make a stack of layers.

    Args:
        kind: Keras's class: "SimpleRNN", "LSTM" or "GRU".
        weights: one list a layer: [kernel, recurrent_kernel, bias], without bias where use_bias=False; of Bidirectional
            both directions' arrays in one list, or a pair of lists.
        reset_after: GRU's form, as in Keras's constructor; None: as the shape of the bias says, without one True.
        activation: the layer's activation by name; for SimpleRNN "tanh", "relu" or "linear", else "tanh" alone.
        recurrent_activation: "sigmoid" alone (old files of Keras have "hard_sigmoid").
        options: further arguments of the constructor, such as batch_first=True, which is how Keras lays out x.

    Returns:
        A fastrnn.RNN, LSTM or GRU in the arrays' dtype. Its y is that of return_sequences=True, h_n that of the last
        step of each direction.

    Raises:
        ValueError: a wrong number of arrays, an activation or a class that fastrnn lacks. ShapeError: a wrong shape.
        TypeError: no NumPy arrays, or mixed dtypes.
    """
    validation.choice("kind", kind, tuple(CELLS))
    allowed = tuple(ACTIVATIONS) if kind == "SimpleRNN" else ("tanh",)
    validation.choice("activation", activation, allowed)
    validation.choice("recurrent_activation", recurrent_activation, ("sigmoid",))
    stack = [_directions(f"weights of layer {number}", arrays) for number, arrays in enumerate(weights)]
    if not stack or len({(len(layer), len(layer[0])) for layer in stack}) != 1:
        raise ValueError(
            f"weights: expected one list a layer, all with as many arrays, got {[len(a) for a in weights]} arrays"
        )
    first = stack[0][0]
    known = _sizes(first, len(KERAS_GATES[kind]))
    if kind == "GRU":
        by_bias = len(first) == 2 or first[2].ndim == 2
        known["reset_after"] = by_bias if reset_after is None else validation.boolean("reset_after", reset_after)
    elif reset_after is not None:
        raise ValueError(f"reset_after: expected None for {kind}, got {reset_after!r}")
    if kind == "SimpleRNN":
        known["nonlinearity"] = ACTIVATIONS[activation]
    known |= {"num_layers": len(stack), "bidirectional": len(stack[0]) == 2, "bias": len(first) == 3}
    layer: Recurrent[Any] = KINDS[CELLS[kind]](**known, **options)
    params: dict[str, Array] = {}
    for number, (ends, directions) in enumerate(zip(suffixes(len(stack), len(stack[0])), stack, strict=True)):
        inputs = layer.input_size if number == 0 else layer.hidden_size * len(directions)
        for end, arrays in zip(ends, directions, strict=True):
            params |= {name + end: value for name, value in _from(kind, layer, inputs, arrays).items()}
    layer.load_state_dict(params)
    return layer


def to_keras(layer: Recurrent[Any]) -> list[list[Array]]:
    """Return what Keras's `set_weights` takes: one list of arrays a layer, for Bidirectional forward, then backward.

    Raises:
        TypeError: no layer. ValueError: an option that Keras lacks, by name.
    """
    ours = kind_of(layer, "Keras", {"nonlinearity": ("identity",), "reset_after": (False,)})
    kind = next(name for name, own in CELLS.items() if own == ours)
    have, want = layer._network.cell.gates, KERAS_GATES[kind]
    params, result = host_parameters(layer), []
    for ends in suffixes(layer.num_layers, 1 + layer.bidirectional):
        arrays = []
        for end in ends:
            arrays += [_transposed(reordered(params[name + end], have, want)) for name in ("weight_ih", "weight_hh")]
            if layer.bias:
                b_ih, b_hh = (reordered(params[name + end], have, want) for name in ("bias_ih", "bias_hh"))
                both = layer._network.cell.name == "gru"
                # not b_ih + 0, which would turn -0 into 0: what came from Keras goes back as it was
                arrays.append(np.stack((b_ih, b_hh)) if both else np.where(b_hh == 0, b_ih, b_ih + b_hh))
        result.append(arrays)
    return result


def _directions(name: str, weights: object) -> list[list[Array]]:
    """The arrays of each direction, from one list of 2 or 3, or 4 or 6, or from a pair of lists."""
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{name}: expected the list of arrays of get_weights(), got {describe(weights)}")
    flat = [array for part in weights for array in (part if isinstance(part, (list, tuple)) else (part,))]
    if len(flat) not in (2, 3, 4, 6):
        raise ValueError(f"{name}: expected 2 or 3 arrays, or 4 or 6 for both directions, got {len(flat)}")
    for number, array in enumerate(flat):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected NumPy arrays, got {describe(array)} at index {number}")
    each = len(flat) if len(flat) < 4 else len(flat) // 2
    return [flat[:each], flat[each:]][: len(flat) // each]


def _sizes(arrays: list[Array], gates: int) -> dict[str, Any]:
    """What the first layer's kernels say: sizes and dtype."""
    kernel, recurrent = arrays[:2]
    if kernel.ndim != 2 or recurrent.ndim != 2 or recurrent.shape[1] != gates * recurrent.shape[0]:
        raise ShapeError(
            f"weights: expected kernel [I, {gates}*H] and recurrent_kernel [H, {gates}*H], "
            f"got {describe(kernel)} and {describe(recurrent)}"
        )
    return {"input_size": kernel.shape[0], "hidden_size": recurrent.shape[0], "dtype": kernel.dtype}


def _from(kind: str, layer: Any, inputs: int, arrays: list[Array]) -> dict[str, Array]:
    """Parameters of one direction, by the stems of their names."""
    have, want = KERAS_GATES[kind], layer._network.cell.gates
    rows, both = len(have) * layer.hidden_size, layer._network.cell.name == "gru"
    shapes = {
        "kernel": (inputs, rows),
        "recurrent_kernel": (layer.hidden_size, rows),
        "bias": (2, rows) if both else (rows,),
    }
    kernel, recurrent, *bias = (
        validation.array(name, array, layer.dtype, shape)
        for (name, shape), array in zip(shapes.items(), arrays, strict=False)
    )
    params = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    for value in bias:
        params["bias_ih"], params["bias_hh"] = value if both else (value, np.zeros_like(value))
    return {name: reordered(value, have, want) for name, value in params.items()}


def _transposed(value: Array) -> Array:
    return np.ascontiguousarray(value.T)
