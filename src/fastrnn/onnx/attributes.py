"""What a recurrent node of ONNX asks for: every attribute is honoured or refused here, by its name."""

from __future__ import annotations

from typing import Any, NamedTuple

from onnx import ModelProto, NodeProto, helper

from fastrnn import validation
from fastrnn.convert.tables import ONNX_GATES, OPERATORS

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}  # and how many they are
FUNCTIONS = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}  # ONNX's own, f g h
FLAGS = {"RNN": "", "LSTM": "input_forget", "GRU": "linear_before_reset"}
HONOURED = ("direction", "layout", "hidden_size", "activations", "activation_alpha", "activation_beta")


class Attributes(NamedTuple):
    """What a node says. cell: in the registry, without peepholes, which are a matter of its inputs."""

    kind: str
    cell: str
    direction: str
    layout: int
    hidden_size: int | None

    @property
    def num_directions(self) -> int:
        """D."""
        return DIRECTIONS[self.direction]


def is_recurrent(node: NodeProto) -> bool:
    """Whether a node is ONNX's RNN, LSTM or GRU."""
    return node.domain in ("", "ai.onnx") and node.op_type in ONNX_GATES


def recurrent_nodes(model: ModelProto) -> list[NodeProto]:
    """The RNN, LSTM and GRU nodes of a model's main graph.

    Raises:
        ValueError: there is none.
    """
    nodes = [node for node in model.graph.node if is_recurrent(node)]
    if not nodes:
        raise ValueError("model: expected an RNN, LSTM or GRU node in its main graph, got none")
    return nodes


def read(node: NodeProto) -> Attributes:
    """Read a node's attributes.

    Raises:
        ValueError: no recurrent node; an unknown attribute, `clip`, or activations that no cell of fastrnn has.
    """
    if not is_recurrent(node):
        raise ValueError(f"node: expected one of {', '.join(ONNX_GATES)}, got {node.domain}{node.op_type}")
    kind, flag = node.op_type, FLAGS[node.op_type]
    given = {attribute.name: _value(attribute) for attribute in node.attribute}
    for name, value in given.items():
        if name not in (*HONOURED, flag):
            raise ValueError(f"{name}: expected no such attribute of {kind} in this version, got {value!r}")
    direction, layout = given.get("direction", "forward"), given.get("layout", 0)
    validation.choice("direction", direction, tuple(DIRECTIONS))
    if layout not in (0, 1):
        raise ValueError(f"layout: expected 0 or 1, got {layout!r}")
    return Attributes(kind, _cell(kind, given, DIRECTIONS[direction]), direction, layout, given.get("hidden_size"))


def of_cell(cell: str, num_directions: int) -> dict[str, Any]:
    """The attributes that make ONNX's operator this cell."""
    return {
        name: value * num_directions if isinstance(value, list) else value
        for name, value in OPERATORS[cell].attributes.items()
    }


def _value(attribute: Any) -> Any:
    if attribute.ref_attr_name:
        raise ValueError(f"{attribute.name}: expected a value, got a reference to a function's attribute")
    value = helper.get_attribute_value(attribute)
    if isinstance(value, list):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value.decode() if isinstance(value, bytes) else value


def _cell(kind: str, given: dict[str, Any], num_directions: int) -> str:
    """The cell whose attributes these are, those that are left out being ONNX's defaults."""
    names = given.get("activations", FUNCTIONS[kind] * num_directions)
    said = {
        "activation_alpha": [1.0] * num_directions, "activation_beta": [0.0] * num_directions, **given,
        "activations": [name.capitalize() for name in names],  # ONNX Runtime does not mind their case either
        FLAGS[kind]: int(bool(given.get(FLAGS[kind], 0))),
    }  # fmt: skip
    choices = {name: operator for name, operator in OPERATORS.items() if operator.kind == kind}
    for cell in choices:
        wanted = {"activations": FUNCTIONS[kind] * num_directions, **of_cell(cell, num_directions)}
        if all(said[name] == value for name, value in wanted.items()):
            return cell
    allowed = {str(operator.attributes.get("activations", FUNCTIONS[kind])) for operator in choices.values()}
    raise ValueError(
        f"activations: expected {' or '.join(sorted(allowed))} in each direction, Affine with alpha 1 and beta 0, got "
        f"{names} with alpha {given.get('activation_alpha')} and beta {given.get('activation_beta')}"
    )
