"""fastrnn.convert: outputs against the other libraries' equations in plain NumPy, and there and back by the bit."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equations
import numpy as np
import pytest
import safetensors.numpy
import torch
from test_bad_input import refused
from test_package import run_python
from tolerance import assert_close, assert_same_bits, rounding

import fastrnn
from fastrnn import ShapeError, convert

T, B, I, H = 6, 4, 3, 5
LENGTHS = [4, 6, 1, 2]
COMPILED = (
    "gru",
    "lstm",
    "rnn_tanh",
)  # the rest runs on the reference: what is tested here does not hang on the backend


def numbers(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def assert_outputs(
    layer: Any, steps: Sequence[Sequence[equations.Step]], dtype: str = "float64", widths: Sequence[int] = (H,)
) -> None:
    """Assert y, h_n and c_n of a layer for random input, lengths and states; `steps`: by layer, then by direction.

    widths: of each state, as `widths` of h and c.
    """
    assert (layer.num_layers, 1 + layer.bidirectional) == (len(steps), len(steps[0]))
    x = numbers(1, T, B, layer.input_size, dtype=dtype)
    states = [numbers(2 + k, len(steps) * len(steps[0]), B, w, dtype=dtype) for k, w in enumerate(widths)]
    want, finals = x.astype(float), []
    for number, of_layer in enumerate(steps):
        rows = [number * len(of_layer) + d for d in range(len(of_layer))]
        want, last = equations.bidirectional(of_layer, want, [[s[row] for s in states] for row in rows], LENGTHS)
        finals += last
    state = tuple(states) if len(states) == 2 else states[0]
    given = np.ascontiguousarray(x.transpose(1, 0, 2)) if layer.batch_first else x
    with fastrnn.use_backend("cpu" if layer._network.cell.name in COMPILED else "reference"):
        y, state_n = layer(given, state, lengths=LENGTHS)
    tolerance = rounding(dtype, T * len(steps), 3 * (I + 2 * H))
    assert_close("y", y.transpose(1, 0, 2) if layer.batch_first else y, want, tolerance)
    for k, got in enumerate(state_n if len(states) == 2 else (state_n,)):
        assert_close("hc"[k] + "_n", got, np.stack([last[k] for last in finals]), tolerance)


def assert_params(got: Any, want: Any) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert_same_bits(name, np.asarray(got[name]), np.asarray(value))


# torch

TORCH: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}), ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}), ("LSTM", {"bias": False}),
    ("GRU", {}), ("GRU", {"num_layers": 3, "bidirectional": True}), ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}), ("LSTM", {"batch_first": True, "bidirectional": True}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), TORCH, ids=[f"{k}-{'-'.join(o)}" for k, o in TORCH])
def test_torch_there_and_back(kind: str, options: dict[str, Any], dtype: str) -> None:
    torch.manual_seed(3)
    theirs = getattr(torch.nn, kind)(I, H, dtype=getattr(torch, dtype), **options)
    own = {name: value for name, value in options.items() if name in ("nonlinearity", "batch_first")}
    layer = convert.from_torch(theirs.state_dict(), **own)
    assert type(layer) is getattr(fastrnn, kind)
    assert layer.dtype == dtype
    back = convert.to_torch(layer)
    assert_params(back, theirs.state_dict())
    theirs.load_state_dict(back)
    w = {name: value.numpy().astype(float) for name, value in theirs.state_dict().items()}
    ends = [[f"_l{n}{'_reverse' * d}" for d in range(1 + theirs.bidirectional)] for n in range(theirs.num_layers)]
    steps = [[equations.torch_step(kind, w, e, own.get("nonlinearity", "tanh")) for e in each] for each in ends]
    assert_outputs(layer, steps, dtype, (options.get("proj_size", H), H)[: 1 + (kind == "LSTM")])


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_torch_cells_there_and_back(kind: str) -> None:
    cell = getattr(torch.nn, kind)(I, H)
    layer = convert.from_torch(cell.state_dict())
    assert_params(convert.to_torch(layer, cell=True), cell.state_dict())
    w = {f"{name}_l0": value.numpy().astype(float) for name, value in cell.state_dict().items()}
    step = equations.torch_step(kind.removesuffix("Cell"), w, "_l0")
    assert_outputs(layer, [[step]], "float32", (H, H)[: 1 + (kind == "LSTMCell")])


def test_torch_prefix_chooses_a_module_of_a_model() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.GRU(I, H), "b": torch.nn.LSTM(I, H, 2), "c": torch.nn.Linear(2, 2)})
    for name, kind in (("a", fastrnn.GRU), ("b", fastrnn.LSTM)):
        layer = convert.from_torch(model.state_dict(), prefix=f"{name}.")
        assert type(layer) is kind
        back = convert.to_torch(layer, prefix=f"{name}.")
        assert_params(back, {n: v for n, v in model.state_dict().items() if n.startswith(f"{name}.")})


def test_to_torch_shares_no_memory_with_the_layer() -> None:
    layer = fastrnn.GRU(I, H, seed=0)
    before = layer.state_dict()
    convert.to_torch(layer)["weight_ih_l0"].zero_()
    assert_params(layer.params, before)


# Keras


def keras_weights(kind: str, bias: bool, reset_after: bool, inputs: int, seed: int, dtype: str) -> list[np.ndarray]:
    gates = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}[kind]
    kernels = [numbers(seed, inputs, gates * H, dtype=dtype), numbers(seed, H, gates * H, dtype=dtype)]
    shape = (2, gates * H) if kind == "GRU" and reset_after else (gates * H,)
    return [*kernels, numbers(seed, *shape, dtype=dtype)] if bias else kernels


def keras_step(kind: str, weights: list[np.ndarray], reset_after: bool, activation: str = "tanh") -> equations.Step:
    weights = [w.astype(float) for w in weights]
    if kind == "SimpleRNN":
        phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "linear": lambda a: a}[activation]
        return equations.keras_rnn(weights, phi)
    return equations.keras_lstm(weights) if kind == "LSTM" else equations.keras_gru(weights, reset_after)


KERAS = [("LSTM", True), ("GRU", True), ("GRU", False), ("SimpleRNN", True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)], ids=["one", "stack-of-bidirectional"])
@pytest.mark.parametrize(("kind", "after"), KERAS, ids=["LSTM", "GRU-after", "GRU-before", "SimpleRNN"])
def test_keras_there_and_back(kind: str, after: bool, layers: int, directions: int, bias: bool, dtype: str) -> None:
    each = [
        [keras_weights(kind, bias, after, directions * H if n else I, 10 * n + d, dtype) for d in range(directions)]
        for n in range(layers)
    ]
    flat = [[array for arrays in of_layer for array in arrays] for of_layer in each]  # as Bidirectional.get_weights()
    form = {"reset_after": after} if kind == "GRU" and not bias else {}  # else the bias tells
    layer = convert.from_keras(kind, *flat, **form)
    assert_outputs(
        layer,
        [[keras_step(kind, w, after) for w in of_layer] for of_layer in each],
        dtype,
        (H, H)[: 1 + (kind == "LSTM")],
    )
    back = convert.to_keras(layer)
    for got, want in zip(back, flat, strict=True):
        for k, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same_bits(f"array {k}", a, b)
            assert a.flags.c_contiguous
    if directions == 2:
        pairs = convert.from_keras(kind, *((forward, backward) for forward, backward in each), **form)
        assert_params(pairs.params, layer.params)


@pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
def test_keras_activation_of_simple_rnn(activation: str) -> None:
    weights = keras_weights("SimpleRNN", True, True, I, 0, "float64")
    weights[1] *= 0.2  # relu and linear would grow
    layer = convert.from_keras("SimpleRNN", weights, activation=activation, batch_first=True)
    assert_outputs(layer, [[keras_step("SimpleRNN", weights, True, activation)]])


def test_keras_bias_goes_back_by_the_bit_and_ours_as_the_sum() -> None:
    weights = keras_weights("LSTM", True, True, I, 0, "float32")
    weights[2][:3] = [-0.0, 0.0, np.float32(1e-45)]
    assert_same_bits("bias", convert.to_keras(convert.from_keras("LSTM", weights))[0][2], weights[2])
    layer = fastrnn.LSTM(I, H, seed=0)
    total = layer.params["bias_ih_l0"] + layer.params["bias_hh_l0"]  # the gates' order is Keras's own
    assert_same_bits("bias", convert.to_keras(layer)[0][2], total)
    again = convert.from_keras("LSTM", *convert.to_keras(layer))
    assert_same_bits("weight_hh_l0", again.params["weight_hh_l0"], layer.params["weight_hh_l0"])
    assert_same_bits("bias_hh_l0", again.params["bias_hh_l0"], np.zeros(4 * H, "float32"))


# The other convention of the update gate


def test_flip_update_gate_there_and_back() -> None:
    layer = fastrnn.GRU(I, H, reset_after=False, dtype="float64", seed=0)
    w = {name: 2 * numbers(5, *value.shape) for name, value in layer.params.items()}
    layer.load_state_dict(convert.flip_update_gate(w))
    assert_outputs(layer, [[equations.chung_gru(w)]])
    assert_params(convert.flip_update_gate(layer.params), w)
    layer.load_state_dict(w)
    with pytest.raises(AssertionError, match="y: off by"):
        assert_outputs(layer, [[equations.chung_gru(w)]])


def test_flip_update_gate_of_a_stack_in_both_directions_changes_the_rows_of_z_alone() -> None:
    before = fastrnn.GRU(I, H, 2, bidirectional=True, seed=0).state_dict()
    for name, value in convert.flip_update_gate(before).items():
        sign = np.repeat(np.array([1, -1, 1], "float32"), H).reshape(-1, *[1] * (value.ndim - 1))
        assert_same_bits(name, value, before[name] * sign)


# Safetensors


def test_safetensors_there_and_back(tmp_path: Path) -> None:
    theirs = torch.nn.LSTM(I, H, 2, bidirectional=True)
    tensors = {f"encoder.{name}": value.numpy() for name, value in theirs.state_dict().items()}
    safetensors.numpy.save_file({**tensors, "head.weight": np.ones((2, 2), "float32")}, tmp_path / "model.safetensors")
    layer = convert.from_safetensors(tmp_path / "model.safetensors", prefix="encoder.", batch_first=True)
    assert layer.batch_first
    assert_params(layer.params, convert.from_torch(theirs.state_dict()).params)
    convert.to_safetensors(layer, tmp_path / "back.safetensors", prefix="encoder.")
    found = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert_params(dict(sorted(found.items())), dict(sorted(tensors.items())))


def test_safetensors_of_fastrnn_itself_are_left_to_load(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    fastrnn.LSTM(I, H, coupled=True).save(path)  # with the rows of a GRU
    with pytest.raises(ValueError, match=r"own\.safetensors: expected .* of another origin, got a fastrnn checkpoint"):
        convert.from_safetensors(path)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.safetensors: expected a safetensors file, got a damaged"):
        convert.from_safetensors(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError):
        convert.from_safetensors(tmp_path / "missing.safetensors")


# What is refused

GOOD = {name: value.numpy() for name, value in torch.nn.LSTM(I, H).state_dict().items()}
KERNEL, RECURRENT, BIAS = (np.ones(s, "float32") for s in ((I, 4 * H), (H, 4 * H), (4 * H,)))
BAD: list[tuple[type[Exception], str, str, str, Any]] = [
    (TypeError, "state_dict", "a mapping", "list", lambda: convert.from_torch([])),
    (ValueError, "state_dict", "weight_ih_l0", "none", lambda: convert.from_torch({})),
    (ValueError, "state_dict", "a.weight_ih_l0", "weight_ih_l0", lambda: convert.from_torch(GOOD, prefix="a.")),
    (ValueError, "state_dict", "no other names", "head", lambda: convert.from_torch({**GOOD, "head": KERNEL})),
    (ValueError, "state_dict", "weight_hh_l0", "weight_ih_l0", lambda: convert.from_torch({"weight_ih_l0": KERNEL})),
    (ValueError, "state_dict", "without a gap", "[0, 9000000]",
     lambda: convert.from_torch({**GOOD, "weight_ih_l9000000": KERNEL})),
    (ValueError, "state_dict", "bias_hh_l0", "no bias_hh_l0",
     lambda: convert.from_torch({n: v for n, v in GOOD.items() if n != "bias_hh_l0"})),
    (ShapeError, "weight_hh_l0", "3 gates (GRU)", f"({2 * H}, {H})",
     lambda: convert.from_torch({**GOOD, "weight_hh_l0": np.ones((2 * H, H), "float32")})),
    (ShapeError, "weight_hh_l0", "a matrix", "(7,)", lambda: convert.from_torch({**GOOD, "weight_hh_l0": np.ones(7)})),
    (ShapeError, "bias_ih_l0", f"[{4 * H}]", "(3,)",
     lambda: convert.from_torch({**GOOD, "bias_ih_l0": np.ones(3, "float32")})),
    (TypeError, "bias_ih_l0", "float32", "float64", lambda: convert.from_torch({**GOOD, "bias_ih_l0": np.ones(4 * H)})),
    (TypeError, "weight_ih_l0", "a NumPy array", "list", lambda: convert.from_torch({**GOOD, "weight_ih_l0": [1.0]})),
    (TypeError, "layer", "a fastrnn.RNN, LSTM or GRU", "torch", lambda: convert.to_torch(torch.nn.GRU(I, H))),  # type: ignore[arg-type]
    (ValueError, "peephole", "False", "True", lambda: convert.to_torch(fastrnn.LSTM(I, H, peephole=True))),
    (ValueError, "coupled", "torch.nn", "True", lambda: convert.to_torch(fastrnn.LSTM(I, H, coupled=True))),
    (ValueError, "reset_after", "True", "False", lambda: convert.to_torch(fastrnn.GRU(I, H, reset_after=False))),
    (ValueError, "nonlinearity", "'tanh' or 'relu'", "'identity'",
     lambda: convert.to_torch(fastrnn.RNN(I, H, nonlinearity="identity"))),
    (ValueError, "recurrent", "'full'", "'diagonal'",
     lambda: convert.to_torch(fastrnn.RNN(I, H, recurrent="diagonal"))),
    (ValueError, "layer_norm", "False", "True", lambda: convert.to_torch(fastrnn.GRU(I, H, layer_norm=True))),
    (ValueError, "zoneout", "0.0", "0.1", lambda: convert.to_torch(fastrnn.GRU(I, H, zoneout=0.1))),
    (ValueError, "cell", "False", "True", lambda: convert.to_torch(fastrnn.GRU(I, H, 2), cell=True)),
    (ValueError, "proj_size", "Keras", "2", lambda: convert.to_keras(fastrnn.LSTM(I, H, proj_size=2))),
    (ValueError, "kind", "'SimpleRNN', 'LSTM', 'GRU'", "'ConvLSTM2D'", lambda: convert.from_keras("ConvLSTM2D", [])),
    (ValueError, "weights", "one list a layer", "[]", lambda: convert.from_keras("LSTM")),
    (ValueError, "weights of layer 0", "2 or 3 arrays", "1", lambda: convert.from_keras("LSTM", [KERNEL])),
    (ValueError, "weights of layer 0", "4 or 6", "5",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, BIAS, KERNEL, RECURRENT])),
    (ValueError, "weights", "all with as many", "[3, 2]",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, BIAS], [RECURRENT, RECURRENT])),
    (TypeError, "weights of layer 0", "the list of arrays", "(3, 20) float32",
     lambda: convert.from_keras("LSTM", KERNEL)),
    (TypeError, "weights of layer 0", "NumPy arrays", "int 1", lambda: convert.from_keras("LSTM", [1, 2, 3])),
    (ShapeError, "weights", "recurrent_kernel [H, 3*H]", "(5, 20)",
     lambda: convert.from_keras("GRU", [KERNEL, RECURRENT, BIAS])),
    (ShapeError, "kernel", f"[{I}, {4 * H}]", f"({I}, {3 * H})",
     lambda: convert.from_keras("LSTM", [KERNEL[:, : 3 * H], RECURRENT, BIAS])),
    (ShapeError, "bias", f"[{4 * H}]", f"(2, {4 * H})",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, np.stack([BIAS] * 2)])),
    (ShapeError, "bias", f"[{3 * H}]", f"(2, {3 * H})",
     lambda: convert.from_keras("GRU", keras_weights("GRU", True, True, I, 0, "float32"), reset_after=False)),
    (TypeError, "recurrent_kernel", "float32", "float64",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT.astype(float), BIAS])),
    (ValueError, "reset_after", "None for LSTM", "True",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, BIAS], reset_after=True)),
    (ValueError, "activation", "'tanh'", "'relu'",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, BIAS], activation="relu")),
    (ValueError, "recurrent_activation", "'sigmoid'", "'hard_sigmoid'",
     lambda: convert.from_keras("LSTM", [KERNEL, RECURRENT, BIAS], recurrent_activation="hard_sigmoid")),
    (ValueError, "params", "weight_ih", "'norm_ih_l0'", lambda: convert.flip_update_gate({"norm_ih_l0": np.ones(3)})),
    (ShapeError, "bias_ih_l0", "[3H, ...]", "(4,)", lambda: convert.flip_update_gate({"bias_ih_l0": np.ones(4)})),
    (TypeError, "bias_ih_l0", "floating", "int64", lambda: convert.flip_update_gate({"bias_ih_l0": np.ones(3, int)})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "call"),
    BAD,
    ids=[f"{k}-{case[1]}".replace(" ", "-") for k, case in enumerate(BAD)],
)
def test_bad_input(error: type[Exception], name: str, expected: str, got: str, call: Any) -> None:
    refused(error, name, expected, got, call)


def test_nothing_heavy_is_imported_and_a_missing_library_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, fastrnn.convert\n"
        "print([m for m in ('torch', 'onnx', 'keras', 'numba') if m in sys.modules])\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "for call in (lambda: fastrnn.convert.to_torch(fastrnn.GRU(2, 3)), lambda: fastrnn.convert.to_onnx):\n"
        "    try:\n"
        "        call()\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    nothing, no_torch, no_onnx = run_python(code, cwd=tmp_path).splitlines()
    assert nothing == "[]"
    assert re.fullmatch(r"to_torch: expected PyTorch, got none; install fastrnn\[torch\]", no_torch)
    assert re.fullmatch(r"fastrnn\.onnx: expected the package onnx, got none; install fastrnn\[onnx\]", no_onnx)


def test_every_public_name_is_there_and_documented() -> None:
    if "onnx" not in sys.modules:
        pytest.importorskip("onnx")
    for name in convert.__all__:
        assert (getattr(convert, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'from_caffe'"):
        convert.from_caffe  # noqa: B018
