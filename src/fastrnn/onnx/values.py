"""Values inside a model's graph that do not depend on its inputs, or on those of some tensors alone."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from fastrnn.arrays import Array
from fastrnn.onnx import attributes
from fastrnn.onnx.operator import INPUTS


def source(node: NodeProto, name: str) -> str:
    """The tensor that a node reads as its input of this name; "" for none."""
    names: dict[str, str] = dict(zip(INPUTS[node.op_type], node.input, strict=False))
    return names.get(name, "")


def constant(model: ModelProto, node: NodeProto, name: str) -> Array | None:
    """The value of an input that is the same in every run; None where there is none."""
    tensor = source(node, name)
    return evaluated(model, tensor, {}) if tensor else None


def evaluated(model: ModelProto, tensor: str, feeds: Mapping[str, Array]) -> Array | None:
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
        stack += filter(None, producers[name].input)
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
