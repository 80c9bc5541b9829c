"""One recurrent node of ONNX as a layer, called with ONNX's arguments and layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from fastrnn import validation
from fastrnn.arrays import Array
from fastrnn.convert.checks import KINDS, suffixes
from fastrnn.convert.tables import OPERATORS
from fastrnn.layers import Recurrent
from fastrnn.onnx import attributes, weights

LSTM_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
INPUTS = {"RNN": LSTM_INPUTS[:6], "LSTM": LSTM_INPUTS, "GRU": LSTM_INPUTS[:6]}  # of a node, in its order


@dataclass(frozen=True)
class Operator:
    """A recurrent node: a layer, time first, and how the node lays out and reads its sequences.

    layer: for "bidirectional" of both directions, else forward; "reverse" runs it on each sequence read from its end.
    direction: "forward", "reverse" or "bidirectional". layout: ONNX's, 0 is time first, 1 batch first.
    """

    layer: Recurrent[Any]
    direction: str
    layout: int

    def __call__(
        self, X: Array, sequence_lens: Any = None, initial_h: Array | None = None, initial_c: Array | None = None
    ) -> tuple[Array, ...]:
        """Run the node.

        Args:
            X: [T, B, I], with layout 1 [B, T, I].
            sequence_lens: [B] integers, 0 <= length <= T.
            initial_h: [D, B, H], with layout 1 [B, D, H]; zeros if None.
            initial_c: the same, for LSTM alone.

        Returns:
            Y [T, D, B, H], with layout 1 [B, T, D, H], zero past the end of a sequence; Y_h and, for LSTM, Y_c as the
            initial states.

        Raises:
            ShapeError, TypeError, ValueError: as the layer's own call.
        """
        cell_state = self.layer._network.cell.cell_state
        if initial_c is not None and not cell_state:
            raise ValueError(f"initial_c: expected None for {type(self.layer).__name__}, got an array")
        swap = (1, 0, 2) if self.layout else (0, 1, 2)
        x = validation.array("X", X, self.layer.dtype, ("B", "T", "I") if self.layout else ("T", "B", "I"))
        x = x.transpose(swap)
        h_0, c_0 = (
            None if s is None else validation.array(name, s, self.layer.dtype, ("D", "B", "H")).transpose(swap)
            for name, s in (("initial_h", initial_h), ("initial_c", initial_c))
        )
        steps, batch = x.shape[:2]
        lengths = None if sequence_lens is None else validation.steps_of(sequence_lens, steps, batch)
        order = _from_the_end(steps, batch, lengths) if self.direction == "reverse" else None
        state = (h_0, c_0) if cell_state else h_0
        y, state_n = self.layer(x if order is None else x[order], state, lengths=lengths)
        y = (y if order is None else y[order]).reshape(steps, batch, -1, self.layer.hidden_size)
        y = y.transpose((1, 0, 2, 3) if self.layout else (0, 2, 1, 3))
        states = state_n if cell_state else (state_n,)
        return tuple(np.ascontiguousarray(a) for a in (y, *(s.transpose(swap) for s in states)))


def make(node: NodeProto, given: Mapping[str, Any], **options: Any) -> Operator:
    """Make the operator of a node.

    Args:
        node: RNN, LSTM or GRU.
        given: the arrays W, R, and B and P if there are any.
        options: further arguments of the layer's constructor.

    Raises:
        ValueError: an attribute that fastrnn refuses, by name. ShapeError, TypeError: weights that do not fit.
    """
    said = attributes.read(node)
    checked = weights.check(said.kind, given, said.num_directions, said.hidden_size)
    cell = said.cell if checked["P"] is None else f"{said.cell}_peephole"
    _, own, _ = OPERATORS[cell]
    layer = KINDS[said.kind](
        checked["W"].shape[2], checked["R"].shape[2], bias=checked["B"] is not None,
        bidirectional=said.num_directions == 2, dtype=checked["W"].dtype, **own, **options,
    )  # fmt: skip
    (ends,) = suffixes(1, said.num_directions)
    layer.load_state_dict(weights.to_params(cell, checked, ends))
    return Operator(layer, said.direction, said.layout)


def _from_the_end(steps: int, batch: int, lengths: Array | None) -> tuple[Array, Array]:
    """Index that reads each sequence from its end; it leaves padding in its place, and is its own inverse."""
    t, ends = np.arange(steps)[:, None], np.full(batch, steps) if lengths is None else lengths
    return np.where(t < ends, ends - 1 - t, t), np.arange(batch)
