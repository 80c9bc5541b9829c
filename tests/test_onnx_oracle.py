"""ONNX as an oracle for peepholes, which torch has not: its own node test, and ONNX Runtime on random numbers.

ONNX orders the gates i o f c and the peepholes i o f, ours are i f g o and i f o.
"""

from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, Case, draw, make_layer
from tolerance import assert_close, error, rounding

import fastrnn

onnx = pytest.importorskip("onnx")

GATES, PEEPHOLES = (0, 3, 1, 2), (0, 2, 1)  # our gates and rows in ONNX's order; the second is its own inverse
OURS = tuple(np.argsort(GATES))


def reordered(value: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The blocks of the first axis in another order."""
    return np.concatenate([np.split(value, len(order))[k] for k in order])


def node_test() -> tuple[list[np.ndarray], np.ndarray]:
    """The inputs of ONNX's test_lstm_with_peepholes and the output that its own implementation gives."""
    from onnx.backend.test.case.node import lstm

    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm, "expect", lambda node, inputs, outputs, name: found.update({name: (inputs, outputs)}))
        lstm.LSTM.export_peepholes()
    inputs, (y_h,) = found["test_lstm_with_peepholes"]
    return inputs, y_h


@pytest.mark.parametrize("backend", BACKENDS)
def test_onnx_node_test_of_peepholes(backend: str) -> None:
    (x, w, r, b, lengths, h_0, c_0, p), y_h = node_test()
    assert p.all(), "with peepholes"
    layer = fastrnn.LSTM(w.shape[2], r.shape[2], peephole=True)
    b_ih, b_hh = np.split(b[0], 2)
    matrices = {"weight_ih_l0": w[0], "weight_hh_l0": r[0], "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}
    layer.update({name: reordered(value, OURS) for name, value in matrices.items()})
    layer.update({"weight_p_l0": reordered(p[0], PEEPHOLES).reshape(3, -1)})
    with fastrnn.use_backend(backend):
        _, (h_n, _) = layer(x, (h_0, c_0), lengths=lengths)
    assert_close("h_n", h_n, y_h, rounding("float32", x.shape[0], r.shape[2]))
    layer.update({"weight_p_l0": np.zeros_like(layer.params["weight_p_l0"])})
    with fastrnn.use_backend(backend):
        without = layer(x, (h_0, c_0), lengths=lengths)[1][0]
    assert error(without, y_h) > 1000 * rounding("float32", x.shape[0], r.shape[2]), "the peepholes must show"


def model(case: Case, params: Any) -> bytes:
    """One LSTM operator with the layer's weights, both directions, peepholes included."""
    from onnx import TensorProto, helper, numpy_helper

    directions = ("", "_reverse")[: 1 + case.bidirectional]

    def stacked(*names: str, order: tuple[int, ...]) -> np.ndarray:
        rows = [[reordered(params[name + d], order) for name in names] for d in directions]
        return np.stack([np.concatenate(parts) for parts in rows])

    initializers = {
        "W": stacked("weight_ih_l0", order=GATES), "R": stacked("weight_hh_l0", order=GATES),
        "B": stacked("bias_ih_l0", "bias_hh_l0", order=GATES),
        "P": stacked("weight_p_l0", order=PEEPHOLES).reshape(len(directions), -1),
    }  # fmt: skip
    given = {"X": TensorProto.FLOAT, "sequence_lens": TensorProto.INT32, "initial_h": TensorProto.FLOAT,
             "initial_c": TensorProto.FLOAT}  # fmt: skip
    node = helper.make_node(
        "LSTM", ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"], ["Y", "Y_h", "Y_c"],
        hidden_size=case.H, direction="bidirectional" if case.bidirectional else "forward",
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "lstm", [helper.make_tensor_value_info(name, kind, None) for name, kind in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h", "Y_c")],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in initializers.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_onnx_runtime_with_peepholes(backend: str, bidirectional: bool, seed: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    case = Case(
        "lstm_peephole", backend, "float32", T=7, B=5, I=4, H=9 + 4 * seed, bidirectional=bidirectional,
        lengths="random", seed=seed,
    )  # fmt: skip
    layer, problem = make_layer(case), draw(case)
    assert problem.lengths is not None
    rng = np.random.default_rng(seed)
    layer.update({n: rng.standard_normal(v.shape).astype("float32") for n, v in layer.params.items() if "_p_" in n})
    lengths = np.maximum(problem.lengths, 1)  # ONNX Runtime clears the state of an empty sequence, we hold it
    session = ort.InferenceSession(model(case, layer.params), providers=["CPUExecutionProvider"])
    h_0, c_0 = problem.state
    feeds = {"X": problem.x, "sequence_lens": lengths.astype(np.int32), "initial_h": h_0, "initial_c": c_0}
    y, h_n, c_n = session.run(None, feeds)
    with fastrnn.use_backend(backend):
        got_y, (got_h, got_c) = layer(problem.x, problem.state, lengths=lengths)
    want = {"y": y.transpose(0, 2, 1, 3).reshape(case.T, case.B, -1), "h_n": h_n, "c_n": c_n}
    for (name, value), got in zip(want.items(), (got_y, got_h, got_c), strict=True):
        assert_close(name, got, value, rounding("float32", case.T, case.width))
