"""fastrnn.onnx: ONNX's own node tests, the operators' equations in plain NumPy, ONNX Runtime, torch's exporter."""

import unittest
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bad_input import refused
from test_convert import COMPILED, assert_params, numbers
from tolerance import CANCELLATION, EPS, assert_close, error, rounding

import fastrnn
from fastrnn import ShapeError, convert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import fastrnn.onnx  # noqa: E402
from fastrnn.convert.tables import OPERATORS  # noqa: E402

helper, TensorProto = onnx.helper, onnx.TensorProto
KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("float64"): TensorProto.DOUBLE}
KINDS[np.dtype("int32")] = TensorProto.INT32
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def node_model(
    kind: str, arrays: dict[str, np.ndarray], said: dict[str, Any], constants: Sequence[str] = "WRBP"
) -> Any:
    """A model of one node; the arrays are its inputs, those in `constants` its constants."""
    names = [name if name in arrays else "" for name in INPUTS]
    node = helper.make_node(
        kind, names if kind == "LSTM" else names[:6], ["Y", "Y_h", "Y_c"][: 2 + (kind == "LSTM")],
        hidden_size=arrays["R"].shape[2], **said,
    )  # fmt: skip
    dtype = KINDS[arrays["X"].dtype]
    graph = helper.make_graph(
        [node], kind,
        [helper.make_tensor_value_info(n, KINDS[a.dtype], a.shape) for n, a in arrays.items() if n not in constants],
        [helper.make_tensor_value_info(name, dtype, [None] * (3 + (name == "Y"))) for name in node.output],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in constants],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def draw(
    kind: str, seed: int, dtype: str, directions: int, without: Sequence[str] = (), T: int = 6, B: int = 4, I: int = 3,
    H: int = 5,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Random arrays for every input of a node, but for those `without`."""
    G, rng = GATES[kind], np.random.default_rng(seed)
    shapes = {"X": (T, B, I), "W": (directions, G * H, I), "R": (directions, G * H, H), "B": (directions, 2 * G * H),
              "initial_h": (directions, B, H)}  # fmt: skip
    if kind == "LSTM":
        shapes |= {"initial_c": (directions, B, H), "P": (directions, 3 * H)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    arrays["R"] /= np.sqrt(H).astype(dtype)
    arrays["sequence_lens"] = rng.integers(1, T + 1, B).astype("int32")
    return {name: value for name, value in arrays.items() if name not in without}


def by_equations(kind: str, arrays: dict[str, np.ndarray], said: dict[str, Any]) -> list[np.ndarray]:
    """Y, Y_h and Y_c in layout 0."""
    D, H = arrays["W"].shape[0], arrays["R"].shape[2]
    exact = {name: value.astype(float) for name, value in arrays.items()}
    zeros = np.zeros((D, exact["X"].shape[1], H))
    states = [exact.get(name, zeros) for name in ("initial_h", "initial_c")[: 1 + (kind == "LSTM")]]
    lengths = arrays.get("sequence_lens")
    runs = [
        equations.scan(
            equations.onnx_step(kind, exact, d, said), exact["X"], [s[d] for s in states], lengths,
            reverse=said.get("direction") == "reverse" or d == 1,
        )
        for d in range(D)
    ]  # fmt: skip
    last = [np.stack([final[k] for _, final in runs]) for k in range(len(states))]
    return [np.stack([y for y, _ in runs], axis=1), *last]


def assert_run(got: Sequence[np.ndarray], want: Sequence[np.ndarray], dtype: str, steps: int, width: int) -> None:
    assert len(got) == len(want)
    for name, a, b in zip(("Y", "Y_h", "Y_c"), got, want, strict=False):
        assert a.dtype == dtype
        assert_close(name, a, b, rounding(dtype, steps, width))


def call(operator: Any, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run an operator on the arrays that are not its weights, on the kernels that other tests compile anyway."""
    with fastrnn.use_backend("cpu" if operator.layer._network.cell.name in COMPILED else "reference"):
        result: tuple[np.ndarray, ...] = operator(**{n: a for n, a in arrays.items() if n not in "WRBP"})
    return result


# ONNX's own runner and node tests


def test_onnx_runner_of_node_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that ONNX has for RNN, LSTM and GRU, run by its runner on the class Backend."""
    from onnx.backend.test import runner
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401  # each registers its cases when imported

    def load(kind: str) -> list[Any]:  # the runner's own would make the cases of all operators, for 15 s
        return [c for c in node._NodeTestCases if c.model.graph.node[0].op_type in GATES] if kind == "node" else []

    monkeypatch.setattr(runner, "load_model_tests", load)
    suite = runner.Runner(fastrnn.onnx.Backend).exclude("_cuda$").test_suite
    result = unittest.TestResult()
    suite.run(result)
    assert not result.errors + result.failures
    assert result.testsRun - len(result.skipped) >= 18


# The equations of the operators' documentation

CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("RNN", {}, ()), ("RNN", {"activations": ["Relu"]}, ("sequence_lens",)),
    ("RNN", {"activations": ["Affine"]}, ("B", "initial_h")), ("GRU", {}, ()), ("GRU", {"linear_before_reset": 1}, ()),
    ("GRU", {"linear_before_reset": 1}, ("B", "sequence_lens", "initial_h")), ("LSTM", {}, ()), ("LSTM", {}, ("P",)),
    ("LSTM", {"input_forget": 1}, ()), ("LSTM", {"input_forget": 1}, ("P", "B")),
    ("LSTM", {}, ("P", "B", "sequence_lens", "initial_h", "initial_c")),
    ("LSTM", {"activations": ["sigmoid", "TANH", "Tanh"]}, ("P", "initial_c")),
]  # fmt: skip


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "said", "without"), CASES, ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_operator_against_the_equations(
    kind: str, said: dict[str, Any], without: tuple[str, ...], direction: str, layout: int
) -> None:
    D = 1 + (direction == "bidirectional")
    said = {name: value * D if isinstance(value, list) else value for name, value in said.items()}
    said |= {"direction": direction, "layout": layout}
    arrays = draw(kind, 3, "float64", D, without)
    want = by_equations(kind, arrays, said)
    laid_out = arrays
    if layout:
        turned = {n: arrays[n].swapaxes(0, 1) for n in ("X", "initial_h", "initial_c") if n in arrays}
        laid_out, want = arrays | turned, [want[0].transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in want[1:])]
    ((name, operator),) = fastrnn.onnx.operators(node_model(kind, arrays, said)).items()
    assert name == "Y"
    assert_run(call(operator, laid_out), want, "float64", 6, 20)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("cell", OPERATORS)
def test_weights_there_and_back(cell: str, direction: str) -> None:
    kind, options, _ = OPERATORS[cell]
    layer = getattr(fastrnn, kind)(3, 5, 2, bidirectional=direction == "bidirectional", seed=1, **options)
    layer.update({n: numbers(k, *v.shape, dtype="float32") for k, (n, v) in enumerate(layer.params.items())})
    back = fastrnn.onnx.from_onnx(fastrnn.onnx.to_onnx(layer))
    assert repr(back) == repr(layer)
    assert_params(back.params, layer.params)


# ONNX Runtime


def session_run(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: list[np.ndarray] = session.run(None, feeds)
    return result


def assert_as_onnx_runtime(kind: str, said: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    model = node_model(kind, arrays, said)
    want = session_run(model, {n: a for n, a in arrays.items() if n not in "WRBP"})
    (operator,) = fastrnn.onnx.operators(model).values()
    (T, _, I), got, cancelled = arrays["X"].shape, call(operator, arrays), None
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        allowed = rounding("float32", T, 3 * max(I, arrays["R"].shape[2]))
        if error(a, b) > allowed:
            cancelled = cancelled or input_rounding(kind, said, arrays)
            allowed = max(allowed, CANCELLATION * cancelled[k])
        assert_close(("Y", "Y_h", "Y_c")[k], a, b, allowed)


def input_rounding(kind: str, said: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[float]:
    """The error that one rounding of every input makes, by output: no implementation can be asked to beat it."""
    rng, exact, worst = np.random.default_rng(0), by_equations(kind, arrays, said), [0.0] * 3
    for _ in range(4):
        rounded = {
            n: a if a.dtype.kind == "i" else a * (1 + EPS["float32"] * rng.choice([-0.5, 0.5], a.shape))
            for n, a in arrays.items()
        }
        errors = map(error, by_equations(kind, rounded, said), exact)
        worst = [max(pair) for pair in zip(worst, errors, strict=False)]
    return worst


FUNCTIONS = [
    {},
    {"activations": ["Relu"]},
    {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]},
]


@st.composite
def nodes(draws: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    kind = draws(st.sampled_from(list(GATES)))
    direction = draws(st.sampled_from(["forward", "reverse", "bidirectional"]))
    own: dict[str, Any] = {
        "RNN": st.sampled_from(FUNCTIONS), "GRU": st.fixed_dictionaries({"linear_before_reset": st.integers(0, 1)}),
        "LSTM": st.fixed_dictionaries({"input_forget": st.integers(0, 1)}),
    }  # fmt: skip
    D = 1 + (direction == "bidirectional")
    said = {name: value * D if isinstance(value, list) else value for name, value in draws(own[kind]).items()}
    without = draws(st.sets(st.sampled_from(["B", "P", "sequence_lens", "initial_h", "initial_c"]), max_size=2))
    sizes = {name: draws(st.integers(1, high)) for name, high in (("T", 9), ("B", 6), ("I", 9), ("H", 17))}
    arrays = draw(kind, draws(st.integers(0, 2**32 - 1)), "float32", D, sorted(without), **sizes)
    return kind, {**said, "direction": direction}, arrays


@settings(max_examples=60)
@given(nodes())
def test_fuzz_against_onnx_runtime(node: tuple[str, dict[str, Any], dict[str, np.ndarray]]) -> None:
    assert_as_onnx_runtime(*node)


@pytest.mark.nightly
@given(nodes())
def test_long_fuzz_against_onnx_runtime(node: tuple[str, dict[str, Any], dict[str, np.ndarray]]) -> None:
    assert_as_onnx_runtime(*node)


# Export

EXPORTS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"num_layers": 3, "bidirectional": True}),
    ("LSTM", {"batch_first": True, "num_layers": 2, "dropout": 0.5}),
    ("LSTM", {"peephole": True, "coupled": True, "num_layers": 2}), ("GRU", {"bias": False, "num_layers": 2}),
    ("GRU", {"reset_after": False, "bidirectional": True, "batch_first": True}), ("RNN", {"recurrent": "diagonal"}),
    ("RNN", {"nonlinearity": "identity", "bidirectional": True}), ("LSTM", {"recurrent": np.eye(5)[::-1]}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
]  # fmt: skip


@pytest.mark.parametrize("given_too", [(True, True), (False, False), (True, False)], ids=["all", "x", "lengths"])
@pytest.mark.parametrize(("kind", "options"), EXPORTS, ids=[f"{k}-{'-'.join(o)}" for k, o in EXPORTS])
def test_export_on_onnx_runtime(kind: str, options: dict[str, Any], given_too: tuple[bool, bool]) -> None:
    layer = getattr(fastrnn, kind)(3, 5, seed=2, **options)
    lengths, state = given_too
    model = fastrnn.onnx.to_onnx(layer, lengths=lengths, state=state)
    names = ["h", "c"][: 1 + (kind == "LSTM")]
    assert [i.name for i in model.graph.input] == ["x", *(f"{n}_0" for n in names if state), *(["lengths"] * lengths)]
    assert [o.name for o in model.graph.output] == ["y", *(f"{n}_n" for n in names)]
    rows = layer.num_layers * (1 + layer.bidirectional)
    for T, B in ((6, 4), (1, 1), (9, 2)):  # one model for every time and batch
        x = numbers(T, *((B, T) if layer.batch_first else (T, B)), 3, dtype="float32")
        states = [numbers(k, rows, B, 5, dtype="float32") for k, _ in enumerate(names)]
        feeds = {"x": x} | ({f"{n}_0": s for n, s in zip(names, states, strict=True)} if state else {})
        ends = np.array([T, 1, max(1, T // 2), T][:B], "int32")
        feeds |= {"lengths": ends} if lengths else {}
        with fastrnn.use_backend("cpu" if layer._network.cell.name in COMPILED else "reference"):
            held = (tuple(states) if len(states) == 2 else states[0]) if state else None
            y, last = layer(x, held, lengths=ends if lengths else None)
            want = (y, *last) if len(states) == 2 else (y, last)
            ours = fastrnn.onnx.prepare(model).run(feeds)
        for run in (session_run(model, feeds), ours):
            for name, a, b in zip(feeds | dict.fromkeys("yhc"), run, want, strict=False):
                assert_close(name, a, b, rounding("float32", T * layer.num_layers, 30))
            assert len(run) == len(want)


def test_export_in_float64_keeps_the_dtype() -> None:
    layer = fastrnn.GRU(3, 5, dtype="float64", seed=0)
    model, x = fastrnn.onnx.to_onnx(layer), numbers(0, 4, 2, 3)
    (y, h_n), (want, _) = fastrnn.onnx.prepare(model).run([x]), layer(x)
    assert y.dtype == h_n.dtype == "float64"
    assert_close("y", y, want, rounding("float64", 4, 5))
    assert_params(fastrnn.onnx.from_onnx(model).params, layer.params)


# Models of others


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {"num_layers": 2, "bidirectional": True}), ("GRU", {"num_layers": 3, "batch_first": True}),
     ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}), ("GRU", {"bias": False})],
    ids=["LSTM", "GRU", "RNN", "GRU-no-bias"],
)  # fmt: skip
def test_what_torch_exported_comes_back_by_the_bit(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(3, 5, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is old, but it needs no package that is not here
        torch.onnx.export(theirs, (torch.randn(4, 2, 3),), tmp_path / "a.onnx", dynamo=False, opset_version=17)
    own = {name: value for name, value in options.items() if name == "batch_first"}
    layer = convert.from_onnx(tmp_path / "a.onnx", **own)
    assert_params(layer.params, theirs.state_dict())
    x = torch.randn(4, 2, 3)
    y = theirs(x)[0].detach().numpy()
    with fastrnn.use_backend("reference"):
        whole = fastrnn.onnx.prepare(onnx.load(tmp_path / "a.onnx")).run([x.numpy()])[0]
        for got in (layer(x.numpy())[0], whole):
            assert_close("y", got, y, rounding("float32", 12, 15))


def test_backend_notices_new_weights() -> None:
    first, second = draw("GRU", 0, "float32", 1), draw("GRU", 1, "float32", 1)
    prepared = fastrnn.onnx.prepare(node_model("GRU", first, {"linear_before_reset": 1}, constants=()))
    for arrays in (first, second, first):
        want = by_equations("GRU", arrays, {"linear_before_reset": 1})
        assert_run(prepared.run(arrays), want, "float32", 6, 20)
    first["W"][:] = second["W"]  # in place
    assert_run(prepared.run(first), by_equations("GRU", first, {"linear_before_reset": 1}), "float32", 6, 20)


def test_backend_runs_one_node_and_tells_what_it_can() -> None:
    arrays = draw("LSTM", 0, "float32", 1, ("P",))
    model = node_model("LSTM", arrays, {})
    values = [arrays[name] for name in INPUTS if name in arrays]
    got = fastrnn.onnx.run_node(model.graph.node[0], values, opset_version=14)
    assert_run(got, by_equations("LSTM", arrays, {}), "float32", 6, 20)
    assert fastrnn.onnx.is_compatible(model)
    assert not fastrnn.onnx.is_compatible(model, "CUDA")
    assert not fastrnn.onnx.is_compatible(node_model("LSTM", arrays, {"clip": 1.0}))
    assert not fastrnn.onnx.is_compatible(chained("Relu", model=False))


def chained(*between: str, model: bool = True, **said: Any) -> Any:
    """A GRU, single operators and another GRU; or the operators alone."""
    weights = {name: value for name, value in draw("GRU", 0, "float32", 1, I=5).items() if name in "WRB"}
    steps, tensor = [], "x"
    if model:
        steps.append(helper.make_node("GRU", ["x", "W", "R", "B"], ["Y0"], name="low", hidden_size=5))
        steps.append(helper.make_node("Squeeze", ["Y0", "axis"], ["s"]))
        tensor = "s"
    for k, kind in enumerate(between):
        steps.append(helper.make_node(kind, [tensor, "x"] if kind == "Add" else [tensor], [f"t{k}"]))
        tensor = f"t{k}"
    if model:
        steps.append(helper.make_node("GRU", [tensor, "W", "R", "B"], ["Y1"], name="high", hidden_size=5, **said))
        tensor = "Y1"
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in (weights | {"axis": np.array([1])}).items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        steps,
        "g",
        [info("x", TensorProto.FLOAT, [None] * 3)],
        [info(tensor, TensorProto.FLOAT, [None] * (4 if model else 3))],
        constants if model else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_only_nodes_that_follow_each_other_become_a_stack() -> None:
    assert fastrnn.onnx.from_onnx(chained()).num_layers == 2
    assert fastrnn.onnx.from_onnx(chained("Identity", "Dropout")).num_layers == 2
    for between, said in ((("Relu",), {}), (("Tanh",), {}), (("Add",), {}), ((), {"linear_before_reset": 1})):
        model = chained(*between, **said)
        refused(ValueError, "node", "low, high", "None", lambda model=model: fastrnn.onnx.from_onnx(model))
        assert fastrnn.onnx.from_onnx(model, "high").num_layers == 1
        assert fastrnn.onnx.from_onnx(model, "Y0").num_layers == 1
    assert list(fastrnn.onnx.operators(chained("Relu"))) == ["low", "high"]
    model = chained()
    model.graph.node[0].name = "high"
    assert list(fastrnn.onnx.operators(model)) == ["Y0", "Y1"]


# What is refused


def imported(kind: str, said: dict[str, Any], without: Sequence[str] = (), **other: Any) -> Any:
    D = 1 + (said.get("direction") == "bidirectional")
    arrays = draw(kind, 0, "float32", D, ("sequence_lens", "initial_h", "initial_c", *without)) | other
    constants = [*"WRBP", *other] if other else "WRBP"
    return fastrnn.onnx.from_onnx(node_model(kind, arrays, said, constants))


LSTM = node_model("LSTM", draw("LSTM", 0, "float32", 1), {})
BAD: list[tuple[type[Exception], str, str, str, Any]] = [
    (ValueError, "clip", "no such attribute of LSTM", "3.0", lambda: imported("LSTM", {"clip": 3.0})),
    (ValueError, "input_forget", "no such attribute of GRU", "1", lambda: imported("GRU", {"input_forget": 1})),
    (ValueError, "activations", "['Affine'] or ['Relu'] or ['Tanh']", "['Softsign']",
     lambda: imported("RNN", {"activations": ["Softsign"]})),
    (ValueError, "activations", "in each direction", "['Tanh', 'Relu']",
     lambda: imported("RNN", {"activations": ["Tanh", "Relu"], "direction": "bidirectional"})),
    (ValueError, "activations", "Affine with alpha 1", "alpha [2.0]",
     lambda: imported("RNN", {"activations": ["Affine"], "activation_alpha": [2.0]})),
    (ValueError, "activations", "['Sigmoid', 'Tanh', 'Tanh']", "HardSigmoid",
     lambda: imported("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]})),
    (ValueError, "activations", "['Sigmoid', 'Tanh']", "['Sigmoid']",
     lambda: imported("GRU", {"activations": ["Sigmoid"]})),
    (ValueError, "direction", "'forward' or 'bidirectional'", "'reverse' in Y",
     lambda: imported("GRU", {"direction": "reverse"})),
    (ValueError, "direction", "'forward', 'reverse'", "'sideways'", lambda: imported("GRU", {"direction": "sideways"})),
    (ValueError, "layout", "0 or 1", "2", lambda: imported("GRU", {"layout": 2})),
    (ValueError, "initial_h", "states of zero", "(1, 4, 5) float32",
     lambda: imported("GRU", {}, initial_h=np.ones((1, 4, 5), "float32"))),
    (ValueError, "sequence_lens", "no constant", "(4,) int32",
     lambda: imported("GRU", {}, sequence_lens=np.ones(4, "int32"))),
    (ShapeError, "W", "[1, 15, I]", "(1, 14, 3)", lambda: imported("GRU", {}, W=np.ones((1, 14, 3), "float32"))),
    (ShapeError, "R", "[2, 15, 5]", "(1, 15, 5)",
     lambda: imported("GRU", {"direction": "bidirectional"}, R=np.ones((1, 15, 5), "float32"))),
    (ShapeError, "B", "[1, 40]", "(1, 20)", lambda: imported("LSTM", {}, B=np.ones((1, 20), "float32"))),
    (ShapeError, "P", "[1, 15]", "(1, 5)", lambda: imported("LSTM", {}, P=np.ones((1, 5), "float32"))),
    (TypeError, "B", "float32", "float64", lambda: imported("LSTM", {}, B=np.ones((1, 40)))),
    (ValueError, "W", "a constant", "depends on its inputs",
     lambda: fastrnn.onnx.from_onnx(node_model("GRU", draw("GRU", 0, "float32", 1), {}, "RB"))),
    (TypeError, "model", "an ONNX model", "bytes", lambda: fastrnn.onnx.from_onnx(b"")),  # type: ignore[arg-type]
    (ValueError, "model", "RNN, LSTM or GRU", "none", lambda: fastrnn.onnx.from_onnx(chained("Relu", model=False))),
    (ValueError, "model", "RNN, LSTM or GRU", "none", lambda: fastrnn.onnx.prepare(chained("Relu", model=False))),
    (ValueError, "node", "one of Y", "'Z'", lambda: fastrnn.onnx.from_onnx(LSTM, "Z")),
    (ValueError, "node", "RNN, LSTM, GRU", "Relu",
     lambda: fastrnn.onnx.operator.make(helper.make_node("Relu", ["x"], ["y"]), {})),
    (ValueError, "clip", "no such attribute", "1.0",
     lambda: fastrnn.onnx.prepare(node_model("GRU", draw("GRU", 0, "float32", 1), {"clip": 1.0}))),
    (ValueError, "device", "'CPU'", "'CUDA'", lambda: fastrnn.onnx.prepare(LSTM, "CUDA")),
    (ValueError, "threads", "no such argument", "int 2", lambda: fastrnn.onnx.prepare(LSTM, threads=2)),
    (ValueError, "inputs", "X, initial_h", "9 arrays", lambda: fastrnn.onnx.prepare(LSTM).run([0] * 9)),
    (ValueError, "inputs", "X, initial_h", "3 arrays", lambda: fastrnn.onnx.prepare(LSTM).run([0] * 3)),
    (ValueError, "inputs", "sequence_lens", "X, x", lambda: fastrnn.onnx.prepare(LSTM).run({"X": 0, "x": 0})),
    (ValueError, "inputs", "X, W", "1 arrays", lambda: fastrnn.onnx.run_node(LSTM.graph.node[0], [0])),
    (ValueError, "initial_c", "None for GRU", "an array", lambda: fastrnn.onnx.operators(chained())["low"](
        np.ones((2, 1, 5), "float32"), initial_c=np.ones((1, 1, 5), "float32"))),
    (ShapeError, "X", "[B, T, I] float32", "(2, 5) float32", lambda: fastrnn.onnx.operators(
        node_model("GRU", draw("GRU", 0, "float32", 1), {"layout": 1}))["Y"](np.ones((2, 5), "float32"))),
    (ValueError, "proj_size", "0", "2", lambda: fastrnn.onnx.to_onnx(fastrnn.LSTM(3, 5, proj_size=2))),
    (ValueError, "peephole", "False or True", "'dense'",
     lambda: fastrnn.onnx.to_onnx(fastrnn.LSTM(3, 5, peephole="dense"))),
    (ValueError, "layer_norm", "False", "True", lambda: fastrnn.onnx.to_onnx(fastrnn.GRU(3, 5, layer_norm=True))),
    (ValueError, "zoneout", "(0.0, 0.0)", "(0.0, 0.1)",
     lambda: fastrnn.onnx.to_onnx(fastrnn.LSTM(3, 5, zoneout=(0, 0.1)))),
    (TypeError, "lengths", "a bool", "[1, 2]", lambda: fastrnn.onnx.to_onnx(fastrnn.GRU(3, 5), lengths=[1, 2])),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "call"), BAD, ids=[f"{k}-{c[1]}" for k, c in enumerate(BAD)]
)
def test_bad_input(error: type[Exception], name: str, expected: str, got: str, call: Any) -> None:
    refused(error, name, expected, got, call)


def test_constant_states_of_zero_are_no_hindrance() -> None:
    assert imported("GRU", {}, initial_h=np.zeros((1, 4, 5), "float32")).hidden_size == 5


def test_an_empty_sequence_keeps_its_state() -> None:
    arrays = draw("GRU", 0, "float32", 1)
    (operator,) = fastrnn.onnx.operators(node_model("GRU", arrays, {"linear_before_reset": 1})).values()
    Y, Y_h = call(operator, arrays | {"sequence_lens": np.array([0, 6, 0, 1], "int32")})
    assert not Y[:, :, [0, 2]].any()
    assert np.array_equal(Y_h[:, [0, 2]], arrays["initial_h"][:, [0, 2]])
