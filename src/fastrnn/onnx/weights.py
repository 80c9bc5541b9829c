"""A node's weights W, R, B and P, and our parameters.

    W [D, G*H, I]   R [D, G*H, H]   B [D, 2*G*H]: of W, then of R   P [D, 3*H]      gates as tables.ONNX_GATES

input_forget: in ONNX f = 1 - i, here i = 1 - f. Since 1 - sigma(a) = sigma(-a), our f has the rows of ONNX's i with the
other sign, in the weights, biases and peepholes. ONNX's rows of f are there and unused; they are written as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, describe
from fastrnn.cells import CELLS
from fastrnn.convert.tables import ONNX_GATES, ONNX_PEEPHOLES, OPERATORS, blocks, joined
from fastrnn.errors import ShapeError

NAMES = ("W", "R", "B", "P")


def to_params(cell: str, weights: Mapping[str, Array | None], ends: Sequence[str]) -> dict[str, Array]:
    """Our parameters, from weights that `check` returned.

    Args:
        cell: in the registry, with its peepholes.
        weights: W, R, and B and P or None.
        ends: of the parameters' names, one a direction: "_l0", "_l0_reverse".
    """
    onnx, ours, params = ONNX_GATES[OPERATORS[cell].kind], CELLS[cell].gates, {}
    for name, stems, have, want in (
        ("W", ("weight_ih",), onnx, ours),
        ("R", ("weight_hh",), onnx, ours),
        ("B", ("bias_ih", "bias_hh"), onnx, ours),
        ("P", ("weight_p",), ONNX_PEEPHOLES, CELLS[cell].peepholes),
    ):
        value = weights[name]
        for end, rows in zip(ends, [] if value is None else value, strict=False):
            for stem, part in zip(stems, np.split(rows, len(stems)), strict=True):
                gates = joined(_uncoupled(cell, blocks(part, have)), want)
                params[stem + end] = gates.reshape(len(want), -1) if name == "P" else gates
    return params


def from_params(cell: str, params: Mapping[str, Array], ends: Sequence[str]) -> dict[str, Array]:
    """W, R, and B and P where there are any, from the parameters of one layer."""
    onnx, ours = ONNX_GATES[OPERATORS[cell].kind], CELLS[cell].gates

    def rows(stem: str, end: str) -> Array:
        have, want = (CELLS[cell].peepholes, ONNX_PEEPHOLES) if stem == "weight_p" else (ours, onnx)
        value = params[stem + end].reshape(-1) if stem == "weight_p" else params[stem + end]
        return joined(_coupled(cell, blocks(value, have)), want)

    found = {}
    stems = {"W": ("weight_ih",), "R": ("weight_hh",), "B": ("bias_ih", "bias_hh"), "P": ("weight_p",)}
    for name, parts in stems.items():
        if parts[0] + ends[0] in params:
            found[name] = np.stack([np.concatenate([rows(stem, end) for stem in parts]) for end in ends])
    return found


def check(kind: str, weights: Mapping[str, Any], num_directions: int, hidden_size: int | None) -> dict[str, Any]:
    """Check the weights' shapes and dtype; return W, R, B and P, where missing None.

    Raises:
        ShapeError: shapes that do not fit each other, the direction or hidden_size. TypeError: other than arrays of one
        dtype. ValueError: W or R is missing, or P for another operator than LSTM.
    """
    gates, R = len(ONNX_GATES[kind]), weights.get("R")
    for name in ("W", "R"):
        if not isinstance(weights.get(name), np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {describe(weights.get(name))}")
    if R is None or R.ndim != 3 or 0 in R.shape:
        raise ShapeError(f"R: expected [{num_directions}, {gates}*H, H], got {describe(R)}")
    hidden = R.shape[2] if hidden_size is None else hidden_size
    shapes: dict[str, tuple[int | str, ...]] = {
        "W": (num_directions, gates * hidden, "I"), "R": (num_directions, gates * hidden, hidden),
        "B": (num_directions, 2 * gates * hidden), "P": (num_directions, 3 * hidden),
    }  # fmt: skip
    if kind != "LSTM" and weights.get("P") is not None:
        raise ValueError(f"P: expected none for {kind}, got {describe(weights['P'])}")
    return {
        name: None if weights.get(name) is None else validation.array(name, weights[name], R.dtype, shape)
        for name, shape in shapes.items()
    }


def _uncoupled(cell: str, parts: dict[str, Array]) -> dict[str, Array]:
    """ONNX's blocks with our f; the same for cells whose gates are not coupled."""
    return parts | {"f": -parts["i"]} if "coupled" in OPERATORS[cell].options else parts


def _coupled(cell: str, parts: dict[str, Array]) -> dict[str, Array]:
    """Our blocks with ONNX's i, and an f that it does not use; the same for cells whose gates are not coupled."""
    if "coupled" not in OPERATORS[cell].options:
        return parts
    return parts | {"i": -parts["f"], "f": np.zeros_like(parts["f"])}
