"""What differs elsewhere, each fact once: the order of the gates, the operators and attributes of ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import Array

# Gates by our letters, in the order in which others stack them. What we call g, they call c; their h of a GRU is our n.
ONNX_GATES = {"RNN": ("h",), "LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n")}
ONNX_PEEPHOLES = ("i", "o", "f")
KERAS_GATES = {"SimpleRNN": ("h",), "LSTM": ("i", "f", "g", "o"), "GRU": ("z", "r", "n")}


class Operator(NamedTuple):
    """What ONNX calls a cell. options: of our layer's constructor. attributes: of the node, for one direction."""

    kind: str
    options: dict[str, Any]
    attributes: dict[str, Any]


AFFINE = {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}
OPERATORS: dict[str, Operator] = {  # by the cell's name in the registry
    "rnn_tanh": Operator("RNN", {"nonlinearity": "tanh"}, {"activations": ["Tanh"]}),
    "rnn_relu": Operator("RNN", {"nonlinearity": "relu"}, {"activations": ["Relu"]}),
    "rnn_identity": Operator("RNN", {"nonlinearity": "identity"}, AFFINE),
    "lstm": Operator("LSTM", {}, {"input_forget": 0}),
    "lstm_peephole": Operator("LSTM", {"peephole": True}, {"input_forget": 0}),
    "lstm_coupled": Operator("LSTM", {"coupled": True}, {"input_forget": 1}),
    "lstm_coupled_peephole": Operator("LSTM", {"coupled": True, "peephole": True}, {"input_forget": 1}),
    "gru": Operator("GRU", {}, {"linear_before_reset": 1}),
    "gru_reset_before": Operator("GRU", {"reset_after": False}, {"linear_before_reset": 0}),
}


def blocks(value: Array, names: Sequence[str]) -> dict[str, Array]:
    """Split the first axis into equal blocks, one a gate."""
    return dict(zip(names, np.split(value, len(names)), strict=True))


def joined(parts: Mapping[str, Array], names: Sequence[str]) -> Array:
    """The blocks of these names, stacked in this order; others are left out."""
    return np.concatenate([parts[name] for name in names])


def reordered(value: Array, have: Sequence[str], want: Sequence[str]) -> Array:
    """Blocks of the first axis [G*H, ...] in another order of the gates."""
    return joined(blocks(value, have), want)
