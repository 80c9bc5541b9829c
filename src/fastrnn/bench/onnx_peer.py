"""ONNX Runtime as a peer: one LSTM, GRU or RNN operator with the weights as initialisers, inference only.

ONNX orders the gates i o f c (LSTM) and z r h (GRU); linear_before_reset=1 is the GRU whose reset follows the product.
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

OPSET, IR_VERSION = 17, 8  # the oldest that have all we use, so that any onnxruntime of the last years reads the model
OPERATORS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    # registry key: operator, our gates in its order, its attributes
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", (1, 0, 2), {"linear_before_reset": 0}),
    "rnn_tanh": ("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
    "rnn_identity": ("RNN", (0,), {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}),
}


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

    operator, order, attributes = OPERATORS[cell]
    B, H = problem.states[0].shape[1:]
    names = [name for name, _ in zip(("h", "c"), problem.states, strict=False)]

    def gates(name: str) -> Array:
        p = problem.params[name]
        return p.reshape(len(order), H, -1)[list(order)].reshape(1, *p.shape)

    weights = {
        "W": gates("weight_ih_l0"),
        "R": gates("weight_hh_l0"),
        "B": np.concatenate((gates("bias_ih_l0"), gates("bias_hh_l0")), axis=1),
    }
    lengths = "" if problem.lengths is None else "sequence_lens"
    inputs = {"X": [steps, B, problem.x.shape[2]], **{f"initial_{n}": [1, B, H] for n in names}}
    outputs = {"Y": [steps, 1, B, H], **{f"Y_{n}": [1, B, H] for n in names}}
    node = helper.make_node(
        operator, ["X", *weights, lengths, *list(inputs)[1:]], list(outputs), hidden_size=H, **attributes
    )
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    if lengths:
        infos.append(helper.make_tensor_value_info(lengths, TensorProto.INT32, [B]))
    graph = helper.make_graph(
        [node], operator, infos, [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items()],
    )  # fmt: skip
    opset = helper.make_opsetid("", OPSET)
    serialised: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
    return serialised


PACKAGES = ("onnxruntime", "onnx")
CONTESTANTS = (
    Contestant("onnxruntime", "peer", PACKAGES, prepare, refuses),
    Contestant("onnxruntime padded", "peer", PACKAGES, prepare_padded, refuses, padded=True),
)
