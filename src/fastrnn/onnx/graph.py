"""The recurrent nodes of a model as operators, and nodes that follow each other as one layer."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from typing import Any, cast

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from fastrnn.arrays import Array, describe
from fastrnn.layers import Recurrent
from fastrnn.onnx import attributes, operator, values, weights
from fastrnn.onnx.operator import Operator


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
    chosen = _chosen(_named(model), node)
    options = {"batch_first": attributes.read(next(iter(chosen.values()))).layout == 1, **options}
    made = {name: _operator(model, each, options if len(chosen) == 1 else {}) for name, each in chosen.items()}
    for name, each in chosen.items():
        if made[name].direction == "reverse":
            raise ValueError(
                f"direction: expected 'forward' or 'bidirectional', which layers have, got 'reverse' in {name}; "
                "fastrnn.onnx.operators runs it"
            )
        for given in ("sequence_lens", "initial_h", "initial_c"):
            value = values.constant(model, each, given)
            if value is not None and (given == "sequence_lens" or value.any()):
                raise ValueError(
                    f"{given}: expected no constant but states of zero, since a layer takes it in each call, "
                    f"got {describe(value)} in {name}"
                )
    return next(iter(made.values())).layer if len(made) == 1 else _stack(model, chosen, made, options)


def operators(model: ModelProto | str | os.PathLike[str]) -> dict[str, Operator]:
    """Return each recurrent node of a model's main graph by itself, by its name or, without one, its first output's.

    Raises:
        As `from_onnx`, but for what it says of directions, states and stacks.
    """
    model = _opened(model)
    return {name: _operator(model, node, {}) for name, node in _named(model).items()}


def _opened(model: object) -> ModelProto:
    if isinstance(model, (str, os.PathLike)):
        return onnx.load(model)
    if not isinstance(model, ModelProto):
        raise TypeError(f"model: expected an ONNX model or its path, got {describe(model)}")
    return model


def _named(model: ModelProto) -> dict[str, NodeProto]:
    """All recurrent nodes by name; one whose name is missing, or others' too, goes by its first output."""
    nodes = attributes.recurrent_nodes(model)
    taken = Counter(node.name for node in nodes if node.name)
    return {node.name if taken[node.name] == 1 else next(filter(None, node.output)): node for node in nodes}


def _chosen(named: dict[str, NodeProto], name: str | None) -> dict[str, NodeProto]:
    """The node of a name or of an output, or all recurrent nodes."""
    if name is None:
        return named
    chosen = {own: node for own, node in named.items() if name and name in (own, *node.output)}
    if len(chosen) != 1:
        raise ValueError(f"node: expected one of {', '.join(named)}, got {name!r}")
    return chosen


def _operator(model: ModelProto, node: NodeProto, options: dict[str, Any]) -> Operator:
    given = {}
    for name in weights.NAMES:
        given[name] = values.constant(model, node, name)
        if given[name] is None and values.source(node, name):
            raise ValueError(f"{name}: expected a constant of the model, got a value that depends on its inputs")
    return operator.make(node, given, **options)


def _stack(
    model: ModelProto, nodes: dict[str, NodeProto], made: dict[str, Operator], options: dict[str, Any]
) -> Recurrent[Any]:
    """One layer of operators that read each other."""
    layers = [op.layer for op in made.values()]
    first, kind = layers[0], type(layers[0])
    for (below, lower), (above, upper) in pairwise(made.items()):
        own = {**upper.layer._arguments, "seed": first.seed, "input_size": first.input_size}
        alike = own == first._arguments and type(upper.layer) is kind and upper.layout == lower.layout
        if not alike or not _follows(model, nodes[below], nodes[above], lower):
            raise ValueError(
                f"node: expected the name of one of {', '.join(nodes)}, since {above} does not stand on {below} as a "
                "layer on another, got None"
            )
    told = {name: value for name, value in first._arguments.items() if name not in ("num_layers", "seed", *options)}
    stack: Recurrent[Any] = cast(Any, kind)(**told, num_layers=len(layers), **options)
    params: dict[str, Array] = {}
    for number, layer in enumerate(layers):
        params |= {name.replace("_l0", f"_l{number}"): value for name, value in layer.params.items()}
    stack.load_state_dict(params)
    return stack


def _follows(model: ModelProto, below: NodeProto, above: NodeProto, lower: Operator) -> bool:
    """Whether what is between two nodes only turns the layout of Y into that of X.

    Found by running it on numbers of both signs and all sizes, which no activation, clipping or scaling leaves alone.
    """
    if not below.output[0]:
        return False
    directions, hidden = 1 + lower.layer.bidirectional, lower.layer.hidden_size
    rng = np.random.default_rng(0)
    shape = (2, 3, directions, hidden) if lower.layout else (2, directions, 3, hidden)
    y = (rng.standard_normal(shape) * 10 ** rng.uniform(-3, 6, shape)).astype(lower.layer.dtype)
    x = values.evaluated(model, values.source(above, "X"), {below.output[0]: y})
    want = (y if lower.layout else y.transpose(0, 2, 1, 3)).reshape(2, 3, -1)
    return x is not None and x.shape == want.shape and np.array_equal(x, want)
