"""The other convention of the GRU's update gate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, describe
from fastrnn.cells import CELLS
from fastrnn.convert.tables import blocks, joined
from fastrnn.errors import ShapeError

GATES = CELLS["gru"].gates
STEMS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def flip_update_gate(params: Mapping[str, Array]) -> dict[str, Array]:
    """Turn GRU parameters of one convention of the update gate into those of the other; it is its own inverse.

        here, torch, Keras, ONNX:   h = (1 - z) * n + z * h_prev
        the other one:              h = z * n + (1 - z) * h_prev

    Since 1 - sigma(a) = sigma(-a), the rows of z change their sign, which is exact.

    Args:
        params: arrays by torch's names, weight_ih_l0 [3H, I] and so on, gates in the order r z n.

    Returns:
        New arrays of the same names and shapes, for `gru.update` or `gru.load_state_dict`.

    Raises:
        ValueError: a name that is not of a GRU's weights and biases. ShapeError: rows that are not three gates'.
        TypeError: not NumPy arrays of floating point.

    Source: z as the share of the new state: Chung et al. 2014; as the share of the old one: Cho et al. 2014.
    """
    flipped = {}
    for name, value in params.items():
        if not name.startswith(STEMS):
            raise ValueError(f"params: expected names that begin with {', '.join(STEMS)}, got {name!r}")
        array = validation.from_foreign(name, value)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise TypeError(f"{name}: expected a NumPy array of floating point, got {describe(value)}")
        if array.ndim == 0 or array.shape[0] % len(GATES):
            raise ShapeError(f"{name}: expected [3H, ...], the rows of three gates, got {describe(value)}")
        parts = blocks(array, GATES)
        flipped[name] = joined(parts | {"z": -parts["z"]}, GATES)
    return flipped
