"""ONNX's backend interface: a model whose recurrent nodes run on fastrnn, the others on ONNX's own reference.

onnx.backend.test, ONNX's runner of its node tests, takes the class Backend, or this package as a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.backend import base
from onnx.defs import onnx_opset_version
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastrnn.arrays import Array, describe
from fastrnn.convert.tables import ONNX_GATES
from fastrnn.onnx import attributes, operator, weights
from fastrnn.onnx.operator import INPUTS, Operator


class _Recurrent(OpRun):
    """A recurrent node inside ONNX's evaluator."""

    def _run(self, *inputs: Any, **said: Any) -> tuple[Array, ...]:
        given = dict(zip(INPUTS[self.onnx_node.op_type], inputs, strict=False))
        run = self._operator({name: given.pop(name, None) for name in weights.NAMES})
        return run(**given)[: len(self.onnx_node.output)]

    def _operator(self, given: dict[str, Any]) -> Operator:
        """The last one if the weights are the same numbers: packing them takes longer than a short call."""
        known: tuple[dict[str, Any], Operator] | None = getattr(self, "_known", None)
        if known is None or not all(_same(known[0][name], given[name]) for name in given):
            copies = {name: None if value is None else np.array(value) for name, value in given.items()}
            known = self._known = copies, operator.make(self.onnx_node, copies)
        return known[1]


KERNELS = [type(kind, (_Recurrent,), {"op_domain": ""}) for kind in ONNX_GATES]


class Prepared(base.BackendRep):
    """A model that is ready to run."""

    def __init__(self, model: ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model, new_ops=KERNELS)
        self._needed = {i.name for i in model.graph.input} - {i.name for i in model.graph.initializer}  # no default

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Args:
            inputs: arrays in the order of the model's inputs, or by their names; one array for a single input.
            kwargs: none is known.

        Returns:
            Its outputs, in their order.

        Raises:
            ValueError: a wrong number of inputs, or a keyword. Others: as fastrnn's call, or the evaluator, has it.
        """
        _no_more(kwargs)
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        names, came = self._evaluator.input_names, f"{len(inputs)} arrays"
        if isinstance(inputs, Mapping):
            given, came = dict(inputs), ", ".join(inputs)
        elif len(inputs) <= len(names):
            given = dict(zip(names, inputs, strict=False))
        else:
            given = {}
        if not self._needed <= given.keys() <= set(names):
            raise ValueError(f"inputs: expected {', '.join(names)}, got {came}")
        return tuple(self._evaluator.run(None, given))


class Backend(base.Backend):
    """fastrnn as a backend of ONNX, on the CPU."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model has recurrent nodes in its main graph, and fastrnn runs them all."""
        try:
            for node in attributes.recurrent_nodes(model):
                attributes.read(node)
        except ValueError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check a model and make it ready to run.

        Raises:
            ValueError: no recurrent node, one that fastrnn refuses (by the name of the attribute), another device, or a
            keyword. onnx.checker.ValidationError: no valid model.
        """
        _no_more(kwargs)
        if not cls.supports_device(device):
            raise ValueError(f"device: expected 'CPU', got {device!r}")
        if not isinstance(model, ModelProto):
            raise TypeError(f"model: expected an ONNX model, got {describe(model)}")
        super().prepare(model, device)
        for node in attributes.recurrent_nodes(model):
            attributes.read(node)
        return Prepared(model)

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Sequence[Any], device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one recurrent node on arrays for those of its inputs that have names; `opset_version` may be given."""
        version = kwargs.pop("opset_version", onnx_opset_version())
        names = [name for name in node.input if name]
        if len(names) != len(inputs):
            raise ValueError(f"inputs: expected {', '.join(names)}, got {len(inputs)} arrays")
        values = [np.asarray(value) for value in inputs]
        kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in values]
        ranks = zip(node.output, (4, 3, 3), strict=False)  # of Y, Y_h, Y_c; a valid model says them
        given = zip(names, kinds, [value.shape for value in values], strict=True)
        graph = helper.make_graph(
            [node], "node", [helper.make_tensor_value_info(*info) for info in given],
            [helper.make_tensor_value_info(name, kinds[0], [None] * rank) for name, rank in ranks if name],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        return cls.prepare(model, device, **kwargs).run(values)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device.partition(":")[0] == "CPU"


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else a.dtype == b.dtype and np.array_equal(a, b)


def _no_more(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise ValueError(
            f"{next(iter(kwargs))}: expected no such argument, got {describe(next(iter(kwargs.values())))}"
        )


is_compatible, prepare, run_model = Backend.is_compatible, Backend.prepare, Backend.run_model
run_node, supports_device = Backend.run_node, Backend.supports_device
