"""ONNX Runtime as a peer: one LSTM, GRU or RNN operator with the weights as initialisers, inference only.

The weights are laid out by fastrnn.onnx.
`InferenceSession.run` is called, its quickest way here: one LSTM step at H=64 took 20 us by `run`, 28 us by an I/O
binding whose input is renewed, 134 us by `run_with_ort_values`; at H=512 199, 175 and 230 us.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case
from fastrnn.bench.contestant import Contestant, Run, first_outputs, named
from fastrnn.bench.problem import Problem
from fastrnn.convert.tables import OPERATORS


def refuses(case: Case) -> str:
    """Why ONNX Runtime does not run a case."""
    if case.mode == "train":
        return "inference only"
    if case.dtype != "float32":
        return "float32 only"
    return "" if case.cell in OPERATORS else f"ONNX has no {case.cell}"


def prepare(case: Case, problem: Problem, threads: int) -> Run:
    """Set up a session with the given number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    steps = 1 if case.kind == "step" else problem.x.shape[0]
    session = ort.InferenceSession(model(case.cell, problem, steps), options, providers=["CPUExecutionProvider"])
    feeds = dict(zip(("initial_h", "initial_c"), problem.states, strict=False))
    if case.kind == "step":
        return _stream(session, problem.x, feeds)
    feeds["X"] = problem.x
    if problem.lengths is not None:
        feeds["sequence_lens"] = problem.lengths.astype(np.int32)

    def outputs() -> dict[str, Array]:
        y, *states = session.run(None, feeds)
        return named(y[:, 0], states)

    return Run(lambda: session.run(None, feeds), outputs)


def prepare_padded(case: Case, problem: Problem, threads: int) -> Run:
    """As `prepare`, every sequence at full length."""
    return prepare(case, problem.padded(), threads)


def _stream(session: Any, x: Array, feeds: dict[str, Array]) -> Run:
    inputs, names = cycle(np.split(x, len(x))), list(feeds)

    def call() -> Any:
        feeds["X"] = next(inputs)
        y, *states = session.run(None, feeds)
        feeds.update(zip(names, states, strict=True))
        return y[0, 0]

    return Run(call, lambda: first_outputs(call, len(x)))


def model(cell: str, problem: Problem, steps: int) -> bytes:
    """Return the serialised ONNX model of one layer with the problem's weights, for sequences of `steps`."""
    from onnx import TensorProto, helper, numpy_helper

    from fastrnn.onnx import attributes, weights
    from fastrnn.onnx.export import IR_VERSION, OPSET
    from fastrnn.onnx.operator import INPUTS

    kind = OPERATORS[cell].kind
    B, H = problem.states[0].shape[1:]
    names = [name for name, _ in zip(("h", "c"), problem.states, strict=False)]
    arrays = weights.from_params(cell, problem.params, ["_l0"])
    inputs = {"X": [steps, B, problem.x.shape[2]], **{f"initial_{n}": [1, B, H] for n in names}}
    outputs = {"Y": [steps, 1, B, H], **{f"Y_{n}": [1, B, H] for n in names}}
    lengths = {} if problem.lengths is None else {"sequence_lens": [B]}
    given = [name if name in {**arrays, **inputs, **lengths} else "" for name in INPUTS[kind]]
    node = helper.make_node(kind, given, list(outputs), hidden_size=H, **attributes.of_cell(cell, 1))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    infos += [helper.make_tensor_value_info(n, TensorProto.INT32, s) for n, s in lengths.items()]
    graph = helper.make_graph(
        [node], kind, infos, [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in arrays.items()],
    )  # fmt: skip
    opset = helper.make_opsetid("", OPSET)
    serialised: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
    return serialised


PACKAGES = ("onnxruntime", "onnx")
CONTESTANTS = (
    Contestant("onnxruntime", "peer", PACKAGES, prepare, refuses),
    Contestant("onnxruntime padded", "peer", PACKAGES, prepare_padded, refuses, padded=True),
)
