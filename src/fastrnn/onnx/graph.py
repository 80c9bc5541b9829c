"""The recurrent nodes of a model as operators, and nodes that follow each other as one layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from fastrnn.arrays import Array, describe
from fastrnn.convert.checks import suffixes
from fastrnn.layers import Recurrent
from fastrnn.onnx import attributes, operator, weights
from fastrnn.onnx.operator import INPUTS, Operator


def from_onnx(
    model: ModelProto | str | os.PathLike[str], node: str | None = None, **options: Any
) -> Recurrent[Any]:  # fmt: skip
    """Make a layer from a recurrent node of an ONNX model, or from all of them where each reads the one before.

    The layer takes the place of the nodes, from the first one's X to the last one's Y. Initial states and lengths are
    arguments of its call; what the graph does around the nodes is left out.

    Args:
        model: an ONNX model, or the path of one.
        node: the node's name, or the name of one of its outputs; None for all recurrent nodes, which must be a stack:
            alike but for the weights, and between them nothing but the layout of Y changed into that of X.
        options: the constructor's arguments that no node tells: dropout, recurrent_dropout, save, device, batch_first
            (which is True for layout 1) ...

    Returns:
        A fastrnn.RNN, LSTM or GRU in the dtype of the weights.

    Raises:
        ValueError: naming the attribute that fastrnn lacks; the direction "reverse", which no layer has
            (`operators(model)` runs such nodes, by reading each sequence from its end); weights that are not constants,
            initial states or lengths that are, unless zero; nodes that are no stack. TypeError, ShapeError: weights of
            another dtype or shape.
    """
    model = _opened(model)
    chosen = _chosen(model, node)
    options = {"batch_first": attributes.read(chosen[0]).layout == 1, **options}
    made = [_operator(model, each, options if len(chosen) == 1 else {}) for each in chosen]
    for each, op in zip(chosen, made, strict=True):
        if op.direction == "reverse":
            raise ValueError(
                f"direction: expected 'forward' or 'bidirectional', which layers have, got 'reverse' in {_name(each)}; "
                "fastrnn.onnx.operators runs it"
            )
        for name in ("sequence_lens", "initial_h", "initial_c"):
            value = _constant(model, each, name)
            if value is not None and (name == "sequence_lens" or value.any()):
                raise ValueError(f"{name}: expected no constant but zero states, since a layer takes it in each call, "
                                 f"got {describe(value)} in {_name(each)}")  # fmt: skip
    return made[0].layer if len(made) == 1 else _stack(model, chosen, made, options)


def operators(model: ModelProto | str | os.PathLike[str]) -> dict[str, Operator]:
    """Return each recurrent node of a model's main graph by itself, by its name or, without one, its first output's.

    Raises:
        As `from_onnx`, but for what it says of directions, states and stacks.
    """
    model = _opened(model)
    return {_name(node): _operator(model, node, {}) for node in _chosen(model, None)}


def _opened(model: object) -> ModelProto:
    if isinstance(model, (str, os.PathLike)):
        return onnx.load(model)
    if not isinstance(model, ModelProto):
        raise TypeError(f"model: expected an ONNX model or its path, got {describe(model)}")
    return model


def _name(node: NodeProto) -> str:
    name: str = node.name or next(filter(None, node.output))
    return name


def _chosen(model: ModelProto, name: str | None) -> list[NodeProto]:
    """The node of a name, or all recurrent nodes."""
    nodes = [node for node in model.graph.node if attributes.is_recurrent(node)]
    if not nodes:
        raise ValueError("model: expected an RNN, LSTM or GRU node in its main graph, got none")
    chosen = [node for node in nodes if name is None or (name and name in (node.name, *node.output))]
    if not chosen:
        raise ValueError(f"node: expected one of {', '.join(map(_name, nodes))}, got {name!r}")
    return chosen


def _operator(model: ModelProto, node: NodeProto, options: dict[str, Any]) -> Operator:
    given = {}
    for name in weights.NAMES:
        given[name] = _constant(model, node, name)
        if given[name] is None and _input(node, name):
            raise ValueError(f"{name}: expected a constant of the model, got a value that depends on its inputs")
    return operator.make(node, given, **options)


def _input(node: NodeProto, name: str) -> str:
    """The tensor that a node reads as its input of this name; "" for none."""
    names: dict[str, str] = dict(zip(INPUTS, node.input, strict=False))
    return names.get(name, "")


def _constant(model: ModelProto, node: NodeProto, name: str) -> Array | None:
    """The value of an input that is the same in every run; None where there is none."""
    tensor = _input(node, name)
    return _evaluated(model, tensor, {}) if tensor else None


def _evaluated(model: ModelProto, tensor: str, feeds: Mapping[str, Array]) -> Array | None:
    """The value of a tensor, by ONNX's own reference, from the values of others; None if they do not determine it."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output if output}
    initializers = {i.name: i for i in graph.initializer}
    needed, stack = set[str](), [tensor]
    while stack:
        name = stack.pop()
        if name in needed or name in feeds or name in initializers:
            needed.add(name)
            continue
        if name not in producers or attributes.is_recurrent(producers[name]):
            return None
        needed.update(producers[name].output)
        stack += [source for source in producers[name].input if source]
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    nodes = [node for node in graph.node if (needed - feeds.keys()).intersection(filter(None, node.output))]
    part = helper.make_graph(
        nodes, "part", [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [helper.make_tensor_value_info(tensor, TensorProto.UNDEFINED, None)],
        [initializer for name, initializer in initializers.items() if name in needed],
    )  # fmt: skip
    whole = helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    value: Array = ReferenceEvaluator(whole).run([tensor], dict(feeds))[0]
    return value


def _stack(model: ModelProto, nodes: list[NodeProto], made: list[Operator], options: dict[str, Any]) -> Recurrent[Any]:
    """One layer of operators that read each other."""
    first = made[0].layer
    for below, above, lower, upper in zip(nodes, nodes[1:], made, made[1:], strict=False):
        own = {**upper.layer._arguments, "seed": None, "input_size": first.input_size}
        alike = own == {**first._arguments, "seed": None} and upper.layout == lower.layout
        if not alike or not _follows(model, below, above, lower):
            raise ValueError(
                f"node: expected the name of one of {', '.join(map(_name, nodes))}, since {_name(above)} does not "
                f"stand on {_name(below)} as a layer on another, got None"
            )
    told = {name: value for name, value in first._arguments.items() if name not in ("num_layers", "seed", *options)}
    kind: Any = type(first)
    layer: Recurrent[Any] = kind(**told, num_layers=len(made), **options)
    ends = suffixes(len(made), 1 + first.bidirectional)
    params = {}
    for of_layer, op in zip(ends, made, strict=True):
        for name, value in op.layer.params.items():
            stem, reverse = name.removesuffix("_reverse").removesuffix("_l0"), name.endswith("_reverse")
            params[stem + of_layer[reverse]] = value
    layer.load_state_dict(params)
    return layer


def _follows(model: ModelProto, below: NodeProto, above: NodeProto, lower: Operator) -> bool:
    """Whether what is between two nodes only turns the layout of Y into that of X.

    Found by running it on numbers of both signs and all sizes, which no activation, clipping or scaling leaves alone.
    """
    directions, hidden = 1 + lower.layer.bidirectional, lower.layer.hidden_size
    rng = np.random.default_rng(0)
    shape = (2, 3, directions, hidden) if lower.layout else (2, directions, 3, hidden)
    y = (rng.standard_normal(shape) * 10 ** rng.uniform(-3, 6, shape)).astype(lower.layer.dtype)
    x = _evaluated(model, _input(above, "X"), {below.output[0]: y}) if below.output[0] else None
    want = (y if lower.layout else y.transpose(0, 2, 1, 3)).reshape(2, 3, -1)
    return x is not None and x.shape == want.shape and np.array_equal(x, want)
