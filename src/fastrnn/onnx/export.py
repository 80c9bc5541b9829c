"""A layer as an ONNX model, one node a layer, with the names of a layer's call."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from fastrnn import validation
from fastrnn.arrays import Array
from fastrnn.convert.checks import host_parameters, kind_of, suffixes
from fastrnn.convert.tables import OPERATORS, blocks
from fastrnn.layers import Recurrent
from fastrnn.onnx import attributes, weights
from fastrnn.onnx.operator import INPUTS

OPSET, IR_VERSION = 17, 8  # the oldest that have all we use, so that any onnxruntime of the last years reads the model
EVERY_CELL = {
    "nonlinearity": ("identity",), "reset_after": (False,), "peephole": (True,), "coupled": (True,),
    "recurrent": ("diagonal",),
}  # fmt: skip


def to_onnx(layer: Recurrent[Any], *, lengths: bool = False, state: bool = False) -> ModelProto:
    """Return a layer as an ONNX model, for sequences of any length in batches of any size.

        inputs      x, and where asked for lengths [B] int32, h_0 and, for LSTM, c_0
        outputs     y, h_n and, for LSTM, c_n

    All are laid out as in the layer's call; with batch_first the model turns x and y around nodes that are time first,
    since ONNX Runtime has no others. Dropout is left out, as in inference. A diagonal U becomes a full one.

    Args:
        layer: a fastrnn.RNN, LSTM or GRU.
        lengths: whether the model has the input `lengths`; without it all sequences have T steps.
        state: whether the model has the initial states as inputs; without it they are zero.

    Returns:
        The model, in opset 17; `onnx.save(model, path)` writes it.

    Raises:
        TypeError: no layer. ValueError: an option that ONNX has not (proj_size, dense peepholes, layer_norm, zoneout).
    """
    lengths, state = validation.boolean("lengths", lengths), validation.boolean("state", state)
    kind_of(layer, "ONNX", EVERY_CELL)
    names, directions = ("h", "c")[: 1 + layer._network.cell.cell_state], 1 + layer.bidirectional
    params, graph, turn = _full(layer), _Graph(), (2, 0, 1, 3) if layer.batch_first else (0, 2, 1, 3)
    below = graph.add("Transpose", ["x"], "x_time_first", perm=(1, 0, 2)) if layer.batch_first else "x"
    initial = [graph.split(f"{name}_0", layer.num_layers, directions) for name in names if state]
    last: list[list[str]] = [[] for _ in names]
    for number, ends in enumerate(suffixes(layer.num_layers, directions)):
        top = number == layer.num_layers - 1
        Y, *finals = _recurrent(
            graph, layer, params, number, ends, below, lengths, [parts[number] for parts in initial]
        )
        for parts, final in zip(last, finals, strict=True):
            parts.append(final)
        turned = graph.add("Transpose", [Y], f"{Y}_turned", perm=turn if top else (0, 2, 1, 3))
        shape = graph.constant(f"{Y}_shape", np.array([0, 0, directions * layer.hidden_size], np.int64))  # 0: as it is
        below = graph.add("Reshape", [turned, shape], "y" if top else f"y_l{number}")
    for name, parts in zip(names, last, strict=True):
        graph.add("Concat", parts, f"{name}_n", axis=0)
    over = ["B", "T"] if layer.batch_first else ["T", "B"]
    held = [layer.num_layers * directions, "B", layer.hidden_size]
    given = {"x": [*over, layer.input_size], **({f"{name}_0": held for name in names} if state else {})}
    made = {"y": [*over, directions * layer.hidden_size], **{f"{name}_n": held for name in names}}
    return graph.model(layer.dtype, given, {"lengths": ["B"]} if lengths else {}, made)


def _full(layer: Recurrent[Any]) -> dict[str, Array]:
    """The parameters, with full matrices in place of a diagonal U."""
    params = host_parameters(layer)
    if layer._is_diagonal:
        for name in [name for name in params if name.startswith("weight_hh")]:
            diagonals = blocks(params[name], layer._network.cell.gates).values()
            params[name] = np.concatenate([np.diag(diagonal) for diagonal in diagonals])
    return params


def _recurrent(
    graph: _Graph, layer: Recurrent[Any], params: dict[str, Array], number: int, ends: list[str], below: str,
    lengths: bool, initial: list[str],
) -> list[str]:  # fmt: skip
    """Add the node of one layer; return the names of Y, Y_h and, for LSTM, Y_c."""
    cell = layer._network.cell.name
    arrays = weights.from_params(cell, params, ends)
    given = {name: graph.constant(f"{name}_l{number}", value) for name, value in arrays.items()}
    given |= {"X": below, "sequence_lens": "lengths" if lengths else ""}
    given |= dict(zip(("initial_h", "initial_c"), initial, strict=False))
    kind = OPERATORS[cell].kind
    outputs = [f"{name}_l{number}" for name in ("Y", "Y_h", "Y_c")[: 2 + layer._network.cell.cell_state]]
    graph.add(
        kind, [given.get(name, "") for name in INPUTS[kind]], *outputs,
        hidden_size=layer.hidden_size, direction="bidirectional" if len(ends) == 2 else "forward",
        **attributes.of_cell(cell, len(ends)),
    )  # fmt: skip
    return outputs


class _Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def add(self, kind: str, inputs: list[str], *outputs: str, **said: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}_{len(self._nodes)}", **said))
        return outputs[0]

    def constant(self, name: str, value: Array) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def split(self, name: str, layers: int, directions: int) -> list[str]:
        """The rows [D, B, H] of each layer."""
        parts = [f"{name}_l{number}" for number in range(layers)]
        self.add("Split", [name, self.constant(f"{name}_rows", np.full(layers, directions, np.int64))], *parts, axis=0)
        return parts

    def model(
        self, dtype: str, given: dict[str, list[Any]], integers: dict[str, list[Any]], made: dict[str, list[Any]]
    ) -> ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

        def infos(shapes: dict[str, list[Any]], of: int) -> list[Any]:
            return [helper.make_tensor_value_info(name, of, shape) for name, shape in shapes.items()]

        graph = helper.make_graph(
            self._nodes, "fastrnn", infos(given, kind) + infos(integers, TensorProto.INT32), infos(made, kind),
            self._constants,
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fastrnn"
        )
        checker.check_model(model, full_check=True)
        return model
