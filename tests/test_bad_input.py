"""Bad input: the class of the error, and a message that names the argument, what was expected and what came.

Shape -> ShapeError (a ValueError and a RuntimeError), other values -> ValueError, dtype, array type or device ->
TypeError, a missing extra -> ImportError. Nothing is half done: after an error everything is as it was.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CELLS, LAYERS, Case, draw, evaluate, make_layer
from tolerance import assert_same_bits

import fastrnn
from fastrnn import ShapeError, threads

T, B, I, H = 5, 3, 4, 6
F32 = np.float32


def refused(error: type[Exception], name: str, expected: str, got: str, call: Callable[[], Any]) -> None:
    """Assert that `call` raises exactly `error` with "name: expected ... got ..."; `expected` and `got` must occur."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    match = re.fullmatch(r"(?s)(.+?): expected (.+), got (.+)", message)
    assert match, f"not of the form 'name: expected ..., got ...': {message}"
    for part, want, have in zip(("name", "expected", "got"), (name, expected, got), match.groups(), strict=True):
        assert want in have, f"{part}: {want!r} is not in {have!r}: {message}"
    assert match[1] == name, message


def lstm(**options: Any) -> Any:
    return fastrnn.LSTM(I, H, seed=0, **options)


def gru(**options: Any) -> Any:
    return fastrnn.GRU(I, H, seed=0, **options)


def ones(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


X = ones(T, B, I)

# Constructor

CONSTRUCTOR: list[tuple[type[Exception], str, str, str, dict[str, Any]]] = [
    (TypeError, "input_size", "an integer", "4.0", {"input_size": 4.0}),
    (TypeError, "input_size", "an integer", "None", {"input_size": None}),
    (TypeError, "input_size", "an integer", "bool True", {"input_size": True}),
    (ValueError, "input_size", "at least 1", "0", {"input_size": 0}),
    (ValueError, "hidden_size", "at least 1", "-6", {"hidden_size": -6}),
    (TypeError, "hidden_size", "an integer", "'6'", {"hidden_size": "6"}),
    (ValueError, "num_layers", "at least 1", "0", {"num_layers": 0}),
    (TypeError, "num_layers", "an integer", "bool False", {"num_layers": False}),
    (TypeError, "num_layers", "an integer", "2.5", {"num_layers": 2.5}),
    (TypeError, "bias", "a bool", "1", {"bias": 1}),
    (TypeError, "bias", "a bool", "None", {"bias": None}),
    (TypeError, "batch_first", "a bool", "'yes'", {"batch_first": "yes"}),
    (TypeError, "bidirectional", "a bool", "2", {"bidirectional": 2}),
    (ValueError, "dropout", "0 <= p < 1", "1.0", {"dropout": 1.0}),
    (ValueError, "dropout", "0 <= p < 1", "-0.1", {"dropout": -0.1}),
    (ValueError, "dropout", "0 <= p < 1", "1.5", {"dropout": 1.5, "num_layers": 2}),
    (ValueError, "dropout", "a finite number", "nan", {"dropout": float("nan")}),
    (ValueError, "dropout", "a finite number", "inf", {"dropout": np.inf}),
    (TypeError, "dropout", "a number", "bool True", {"dropout": True}),
    (TypeError, "dropout", "a number", "'0.5'", {"dropout": "0.5"}),
    (TypeError, "dropout", "a number", "None", {"dropout": None}),
    (ValueError, "recurrent_dropout", "0 <= p < 1", "1.0", {"recurrent_dropout": 1.0}),
    (TypeError, "recurrent_dropout", "a number", "None", {"recurrent_dropout": None}),
    (ValueError, "zoneout", "0 <= p < 1", "1.5", {"zoneout": 1.5}),
    (TypeError, "zoneout", "a number", "'0.1'", {"zoneout": "0.1"}),
    (TypeError, "zoneout", "a number", "(0.1, 0.2, 0.3)", {"zoneout": (0.1, 0.2, 0.3)}),
    (ValueError, "recurrent", "'diagonal'", "'sparse'", {"recurrent": "sparse"}),
    (ShapeError, "recurrent", "a mask [6, 6]", "(1, 1)", {"recurrent": [[1]]}),
    (ShapeError, "recurrent", "a mask [6, 6]", "(7, 7)", {"recurrent": np.eye(7)}),
    (ValueError, "recurrent", "a mask of 0 and 1", "other values", {"recurrent": np.full((H, H), 0.5)}),
    (TypeError, "recurrent", "a mask of 0 and 1", "None", {"recurrent": None}),
    (TypeError, "layer_norm", "a bool", "1", {"layer_norm": 1}),
    (ValueError, "save", "'recompute'", "'everything'", {"save": "everything"}),
    (ValueError, "save", "'gates'", "None", {"save": None}),
    (ValueError, "init", "'xavier'", "'glorot'", {"init": "glorot"}),
    (ValueError, "init", "'uniform'", "None", {"init": None}),
    (TypeError, "dtype", "float32, float64", "float16", {"dtype": "float16"}),
    (TypeError, "dtype", "float32, float64", "int", {"dtype": int}),
    (TypeError, "dtype", "float32, float64", "None", {"dtype": None}),
    (TypeError, "dtype", "float32, float64", "torch.float32", {"dtype": torch.float32}),
    (TypeError, "dtype", "float32, float64", "'bfloat16'", {"dtype": "bfloat16"}),
    (TypeError, "dtype", "float32, float64", ">f4", {"dtype": ">f4"}),
    (TypeError, "dtype", "float32, float64", "complex", {"dtype": np.complex64}),
    (ValueError, "seed", "at least 0", "-1", {"seed": -1}),
    (ValueError, "seed", "at most 18446744073709551615", "18446744073709551616", {"seed": 2**64}),
    (TypeError, "seed", "an integer", "0.5", {"seed": 0.5}),
    (TypeError, "seed", "an integer", "bool True", {"seed": True}),
    (ValueError, "device", "'cpu'", "'gpu'", {"device": "gpu"}),
    (ValueError, "device", "'cpu'", "None", {"device": None}),
    (ValueError, "device", "'cpu'", "torch.device", {"device": "torch.device"}),
    (ValueError, "device", "'cuda:N'", "cuda:banana", {"device": "cuda:banana"}),
    (ValueError, "device", "'cuda:N'", "cuda:", {"device": "cuda:"}),
]
NOT_YET: dict[str, list[Any]] = {
    "precision": ["high", "medium", "low"],
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "options"), CONSTRUCTOR, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_constructor(
    cell: str, error: type[Exception], name: str, expected: str, got: str, options: dict[str, Any]
) -> None:
    refused(error, name, expected, got, lambda: LAYERS[cell](**{"input_size": I, "hidden_size": H, **options}))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", NOT_YET)
def test_an_option_that_does_not_exist_yet_is_refused_by_name(cell: str, name: str) -> None:
    for value in NOT_YET[name]:
        shown = str(value.shape) if isinstance(value, np.ndarray) else repr(value)
        refused(ValueError, name, "in this version", shown, lambda: LAYERS[cell](I, H, **{name: value}))  # noqa: B023


def test_constructor_of_one_cell_only() -> None:
    refused(ValueError, "proj_size", f"less than hidden_size = {H}", "6", lambda: lstm(proj_size=6))
    refused(ValueError, "proj_size", "at least 0", "-1", lambda: lstm(proj_size=-1))
    refused(TypeError, "proj_size", "an integer", "2.0", lambda: lstm(proj_size=2.0))
    refused(ValueError, "peephole", "False, True or 'dense'", "'diagonal'", lambda: lstm(peephole="diagonal"))
    refused(TypeError, "peephole", "a bool", "1", lambda: lstm(peephole=1))
    refused(TypeError, "coupled", "a bool", "1", lambda: lstm(coupled=1))
    refused(ValueError, "zoneout", "(0, z_c) with proj_size", "0.1", lambda: lstm(proj_size=2, zoneout=0.1))
    refused(
        ValueError, "recurrent", "'full' with proj_size", "diagonal", lambda: lstm(proj_size=2, recurrent="diagonal")
    )
    refused(TypeError, "zoneout", "a number", "(0.1, 0.2)", lambda: gru(zoneout=(0.1, 0.2)))
    refused(TypeError, "forget_bias", "a number", "'1'", lambda: lstm(forget_bias="1"))
    refused(TypeError, "forget_bias", "a number", "bool True", lambda: lstm(forget_bias=True))
    refused(ValueError, "forget_bias", "a finite number", "nan", lambda: lstm(forget_bias=float("nan")))
    refused(ValueError, "forget_bias", "None with bias=False", "1.0", lambda: lstm(forget_bias=1.0, bias=False))
    refused(TypeError, "reset_after", "a bool", "'before'", lambda: gru(reset_after="before"))
    for bad in ("sigmoid", None, 3):
        refused(
            ValueError, "nonlinearity", "'tanh', 'relu', 'identity'", repr(bad),
            lambda: fastrnn.RNN(I, H, nonlinearity=bad),  # noqa: B023
        )  # fmt: skip
    for unknown in (
        lambda: gru(proj_size=2),
        lambda: gru(peephole=True),
        lambda: fastrnn.RNN(I, H, reset_after=True),
        lambda: lstm(colour=1),
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            unknown()


def test_a_gpu_that_cannot_be_had_names_what_is_missing() -> None:
    here = importlib.util.find_spec("cupy") is not None
    for call in (lambda: lstm(device="cuda:0"), lambda: lstm().to("cuda")):
        with pytest.raises(
            RuntimeError if here else ImportError, match=r"device: 'cuda(:0)?' needs (CuPy|a GPU)"
        ) as caught:
            call()
        assert here or "fastrnn[cuda12]" in str(caught.value)
    refused(ValueError, "device", "'cpu'", "'tpu'", lambda: lstm().to("tpu"))


# Calls: each case goes through a plain call and through forward

CALLS: list[tuple[str, type[Exception], str, str, str, dict[str, Any], dict[str, Any]]] = [
    ("x-features", ShapeError, "x", "[T, B, 4] float32", "(5, 3, 6) float32", {}, {"x": ones(T, B, 6)}),
    ("x-both-wrong", ShapeError, "x", "[T, B, 4] float32", "(5, 3, 6) float64", {}, {"x": ones(T, B, 6, dtype=float)}),
    ("x-1d", ShapeError, "x", "[T, B, 4]", "(4,)", {}, {"x": ones(I)}),
    ("x-0d", ShapeError, "x", "[T, B, 4]", "()", {}, {"x": np.array(1, F32)}),
    ("x-4d", ShapeError, "x", "[T, B, 4]", "(1, 5, 3, 4)", {}, {"x": X[None]}),
    ("x-unbatched", ShapeError, "x", "[T, 4]", "(5, 3)", {}, {"x": ones(T, B)}),
    ("x-batch-first", ShapeError, "x", "[B, T, 4]", "(3, 5, 6)", {"batch_first": True}, {"x": ones(B, T, 6)}),
    ("x-float64", TypeError, "x", "float32", "float64", {}, {"x": X.astype(float)}),
    ("x-float32", TypeError, "x", "float64", "float32", {"dtype": "float64"}, {"x": X}),
    ("x-float16", TypeError, "x", "float32", "float16", {}, {"x": X.astype(np.float16)}),
    ("x-int", TypeError, "x", "float32", "int64", {}, {"x": X.astype(np.int64)}),
    ("x-complex", TypeError, "x", "float32", "complex64", {}, {"x": X.astype(np.complex64)}),
    ("x-big-endian", TypeError, "x", "float32", ">f4", {}, {"x": X.astype(">f4")}),
    ("x-object", TypeError, "x", "float32", "object", {}, {"x": X.astype(object)}),
    ("x-list", TypeError, "x", "as a NumPy array", "list", {}, {"x": [[[1.0, 2.0, 3.0, 4.0]]]}),
    ("x-torch", TypeError, "x", "as a NumPy array", "torch.Tensor of shape (5, 3, 4)", {}, {"x": torch.ones(T, B, I)}),
    ("x-none", TypeError, "x", "as a NumPy array", "None", {}, {"x": None}),
    ("x-number", TypeError, "x", "as a NumPy array", "1.0", {}, {"x": 1.0}),
    ("h_0-layers", ShapeError, "state h_0", "[1, 3, 6] float32", "(2, 3, 6)", {}, {"state": ones(2, B, H)}),
    ("h_0-batch", ShapeError, "state h_0", "[1, 3, 6]", "(1, 5, 6)", {}, {"state": ones(1, 5, H)}),
    ("h_0-no-batch", ShapeError, "state h_0", "[1, 3, 6]", "(1, 6)", {}, {"state": ones(1, H)}),
    ("h_0-unbatched", ShapeError, "state h_0", "[1, 6]", "(1, 1, 6)", {}, {"x": X[:, 0], "state": ones(1, 1, H)}),
    ("h_0-batch-first", ShapeError, "state h_0", "[1, 3, 6]", "(3, 1, 6)", {"batch_first": True},
     {"x": ones(B, T, I), "state": ones(B, 1, H)}),
    ("h_0-dtype", TypeError, "state h_0", "float32", "float64", {}, {"state": ones(1, B, H, dtype=float)}),
    ("h_0-pair", TypeError, "state h_0", "as a NumPy array", "tuple", {}, {"state": (ones(1, B, H), ones(1, B, H))}),
    ("h_0-torch", TypeError, "state h_0", "as a NumPy array", "torch.Tensor", {}, {"state": torch.ones(1, B, H)}),
    ("lengths-shape", ShapeError, "lengths", "[3] integers", "(2,)", {}, {"lengths": [1, 2]}),
    ("lengths-2d", ShapeError, "lengths", "[3] integers", "(3, 1)", {}, {"lengths": [[1], [2], [3]]}),
    ("lengths-scalar", ShapeError, "lengths", "[3] integers", "()", {}, {"lengths": 3}),
    ("lengths-float", TypeError, "lengths", "[3] integers", "float64", {}, {"lengths": [1.0, 2.0, 3.0]}),
    ("lengths-bool", TypeError, "lengths", "[3] integers", "bool", {}, {"lengths": np.array([True, False, True])}),
    ("lengths-text", TypeError, "lengths", "[3] integers", "<U1", {}, {"lengths": ["1", "2", "3"]}),
    ("lengths-ragged", TypeError, "lengths", "[3] integers", "list", {}, {"lengths": [[1], [2, 3], 4]}),
    ("lengths-negative", ValueError, "lengths", "0 <= length <= 5", "-1 at index 1", {}, {"lengths": [5, -1, 2]}),
    ("lengths-too-long", ValueError, "lengths", "0 <= length <= 5", "6 at index 2", {}, {"lengths": [5, 1, 6]}),
    ("lengths-huge", ValueError, "lengths", "0 <= length <= 5", "at index 0", {},
     {"lengths": np.array([2**63, 1, 1], np.uint64)}),
    ("lengths-unbatched", ValueError, "lengths", "None with unbatched x", "list", {}, {"x": X[:, 0], "lengths": [5]}),
    ("reset-shape", ShapeError, "reset", "[5, 3] bool", "(5,) bool", {}, {"reset": np.zeros(T, bool)}),
    ("reset-layout", ShapeError, "reset", "[3, 5] bool", "(5, 3) bool", {"batch_first": True},
     {"x": ones(B, T, I), "reset": np.zeros((T, B), bool)}),
    ("reset-unbatched", ShapeError, "reset", "[5] bool", "(5, 1)", {},
     {"x": X[:, 0], "reset": np.zeros((T, 1), bool)}),
    ("reset-uint8", TypeError, "reset", "[5, 3] bool", "uint8", {}, {"reset": np.zeros((T, B), np.uint8)}),
    ("reset-float", TypeError, "reset", "[5, 3] bool", "float32", {}, {"reset": ones(T, B)}),
    ("reset-list", TypeError, "reset", "[5, 3] bool as a NumPy array", "list", {}, {"reset": [[True] * B] * T}),
]  # fmt: skip


@pytest.mark.parametrize("how", ["call", "forward", "training"])
@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "options", "arguments"),
    [case[1:] for case in CALLS],
    ids=[c[0] for c in CALLS],
)
def test_call(
    error: type[Exception], name: str, expected: str, got: str, options: dict[str, Any], arguments: dict[str, Any],
    how: str,
) -> None:  # fmt: skip
    layer = gru(**options)
    run = layer if how == "call" else layer.forward
    if how == "training":
        arguments = {**arguments, "training": True}
    refused(error, name, expected, got, lambda: run(**{"x": X, **arguments}))
    assert layer.calls == 0, "a refused call is not a training call"


PAIRS: list[tuple[str, type[Exception], str, str, str, Any]] = [
    ("one-array", TypeError, "{}", "a pair (h_{k}, c_{k})", "(1, 3, 6) float32", ones(1, B, H)),
    ("stacked", TypeError, "{}", "a pair (h_{k}, c_{k})", "(2, 1, 3, 6) float32", ones(2, 1, B, H)),
    ("three", TypeError, "{}", "a pair (h_{k}, c_{k})", "tuple", (ones(1, B, H),) * 3),
    ("h-wrong", ShapeError, "{} h_{k}", "[1, 3, 6]", "(1, 3, 5)", (ones(1, B, 5), ones(1, B, H))),
    ("c-wrong", ShapeError, "{} c_{k}", "[1, 3, 6]", "(3, 6)", (ones(1, B, H), ones(B, H))),
    ("c-dtype", TypeError, "{} c_{k}", "float32", "float64", (None, ones(1, B, H, dtype=float))),
    ("h-list", TypeError, "{} h_{k}", "as a NumPy array", "list", ([[[1.0] * H] * B], None)),
]


@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "value"), [c[1:] for c in PAIRS], ids=[c[0] for c in PAIRS]
)
def test_states_of_an_lstm(error: type[Exception], name: str, expected: str, got: str, value: Any) -> None:
    layer = lstm()
    refused(error, name.format("state", k="0"), expected.format(k="0"), got, lambda: layer(X, value))
    refused(error, name.format("state", k="0"), expected.format(k="0"), got, lambda: layer.forward(X, value))
    backward = layer.forward(X).backward
    refused(
        error, name.format("d_state", k="n"), expected.format(k="n"), got, lambda: backward(d_state=value, free=True)
    )
    backward(ones(T, B, H))  # a refused call gave nothing back


def test_a_projected_state_has_two_widths() -> None:
    layer = lstm(proj_size=2)
    state = (ones(1, B, H), ones(1, B, H))
    refused(ShapeError, "state h_0", "[1, 3, 2]", "(1, 3, 6)", lambda: layer(X, state))
    refused(ShapeError, "state c_0", "[1, 3, 6]", "(1, 3, 2)", lambda: layer(X, (ones(1, B, 2), ones(1, B, 2))))


def test_backward() -> None:
    layer, plain = lstm(num_layers=2, bidirectional=True), gru()
    backward, of_gru = layer.forward(X).backward, plain.forward(X).backward
    good = ones(T, B, 2 * H)
    refused(ShapeError, "d_output", "[5, 3, 12] float32", "(5, 3, 6)", lambda: backward(ones(T, B, H)))
    refused(ShapeError, "d_output", "[5, 3, 12] float32", "(4, 3, 12)", lambda: backward(good[1:]))
    refused(TypeError, "d_output", "[5, 3, 12] float32", "float64", lambda: backward(good.astype(float)))
    refused(TypeError, "d_output", "as a NumPy array", "torch.Tensor", lambda: backward(torch.ones(T, B, 2 * H)))
    refused(TypeError, "d_output", "as a NumPy array", "1.0", lambda: backward(1.0))
    refused(ShapeError, "d_state h_n", "[1, 3, 6]", "(1, 3, 5)", lambda: of_gru(d_state=ones(1, B, 5)))
    refused(TypeError, "d_state h_n", "float32", "float64", lambda: of_gru(d_state=ones(1, B, H, dtype=float)))
    refused(ValueError, "d_cells", "no cell state", "list", lambda: of_gru(d_cells=[None]))
    refused(TypeError, "d_cells", "a sequence of 2 arrays", "list", lambda: backward(d_cells=[good]))
    refused(TypeError, "d_cells", "a sequence of 2 arrays", "(5, 3, 12)", lambda: backward(d_cells=good))
    refused(ShapeError, "d_cells[1]", "[5, 3, 12]", "(5, 3, 6)", lambda: backward(d_cells=[good, ones(T, B, H)]))
    refused(TypeError, "d_cells[0]", "float32", "int64", lambda: backward(d_cells=[good.astype(int), None]))
    turned = gru(batch_first=True).forward(ones(B, T, I)).backward
    refused(ShapeError, "d_output", "[3, 5, 6]", "(5, 3, 6)", lambda: turned(ones(T, B, H)))
    single = gru().forward(X[:, 0]).backward
    refused(ShapeError, "d_output", "[5, 6]", "(5, 1, 6)", lambda: single(ones(T, 1, H)))
    backward(good, free=True)
    refused(RuntimeError, "backward", "saved values", "free=True", lambda: backward(good))


# Parameters: all or nothing

PARAMETERS: list[tuple[str, type[Exception], str, str, str, Any]] = [
    ("unknown", ValueError, "{what}", "weight_ih_l0, weight_hh_l0", "unknown weight_ih_l1", {"weight_ih_l1": X}),
    ("shape", ShapeError, "bias_hh_l0", "[18] float32", "(17,)", {"bias_hh_l0": ones(17)}),
    ("transposed", ShapeError, "weight_ih_l0", "[18, 4]", "(4, 18)", {"weight_ih_l0": ones(4, 18)}),
    ("dtype", TypeError, "bias_hh_l0", "float32", "float64", {"bias_hh_l0": ones(18, dtype=float)}),
    ("big-endian", TypeError, "bias_hh_l0", "float32", ">f4", {"bias_hh_l0": ones(18, dtype=">f4")}),
    ("list", TypeError, "bias_hh_l0", "as a NumPy array", "list", {"bias_hh_l0": [1.0] * 18}),
    ("none", TypeError, "bias_hh_l0", "as a NumPy array", "None", {"bias_hh_l0": None}),
    ("torch-double", TypeError, "bias_hh_l0", "float32", "float64", {"bias_hh_l0": torch.ones(18).double()}),
    ("torch-bfloat16", TypeError, "bias_hh_l0", "a NumPy array or a CPU tensor", "torch.Tensor",
     {"bias_hh_l0": torch.ones(18).bfloat16()}),
    ("torch-with-grad", TypeError, "bias_hh_l0", "a NumPy array or a CPU tensor", "detach",
     {"bias_hh_l0": torch.ones(18, requires_grad=True)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "name", "expected", "got", "bad"), [case[1:] for case in PARAMETERS], ids=[case[0] for case in PARAMETERS]
)
def test_parameters_are_replaced_all_or_not_at_all(
    error: type[Exception], name: str, expected: str, got: str, bad: dict[str, Any]
) -> None:
    case = Case("gru", "cpu", "float32", T=T, B=B, I=I, H=H)
    layer, problem = make_layer(case), draw(case)
    before, want = layer.state_dict(), evaluate(layer, case, problem)
    changed = {key: value + 1 for key, value in before.items()}  # good ones first: they must not be taken either
    for what, call in (("params", layer.update), ("state_dict", layer.load_state_dict)):
        with_bad = {key: value for key, value in changed.items() if key not in bad} | bad
        refused(error, name.format(what=what), expected, got, lambda call=call, with_bad=with_bad: call(with_bad))
        for key, value in before.items():
            assert_same_bits(key, layer.params[key], value)
    for key, value in evaluate(layer, case, problem).items():
        assert_same_bits(key, value, want[key])


def test_a_state_dict_must_be_whole_and_a_mapping() -> None:
    layer = gru()
    part = {"weight_ih_l0": layer.params["weight_ih_l0"] + 1}
    refused(
        ValueError, "state_dict", "weight_hh_l0", "no weight_hh_l0, bias_ih_l0", lambda: layer.load_state_dict(part)
    )
    for bad in (None, [("weight_ih_l0", X)], 3):
        refused(TypeError, "state_dict", "a mapping", type(bad).__name__, lambda bad=bad: layer.load_state_dict(bad))
        refused(TypeError, "params", "a mapping", type(bad).__name__, lambda bad=bad: layer.update(bad))
    np.testing.assert_array_equal(layer.params["weight_ih_l0"] + 1, part["weight_ih_l0"])


def test_a_pickle_of_a_gpu_layer_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = lstm().__getstate__()
    state["arguments"] = {**state["arguments"], "device": "cuda:0"}
    twin = fastrnn.LSTM.__new__(fastrnn.LSTM)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^device: 'cuda:0' needs CuPy: pip install fastrnn\[cuda12\]"):
        twin.__setstate__(state)
    assert not vars(twin)


# Streams, threads, backends


def test_streams() -> None:
    layer = lstm(num_layers=2)
    refused(ValueError, "bidirectional", "False", "True", lambda: gru(bidirectional=True).stream())
    refused(ValueError, "batch", "at least 1", "0", lambda: layer.stream(0))
    refused(TypeError, "batch", "an integer", "bool True", lambda: layer.stream(True))
    refused(TypeError, "batch", "an integer", "1.0", lambda: layer.stream(1.0))
    with layer.stream(2) as stream:
        refused(ShapeError, "x", "[2, 4] float32", "(3, 4)", lambda: stream.step(ones(3, I)))
        refused(ShapeError, "x", "[2, 4] float32", "(4,)", lambda: stream.step(ones(I)))
        refused(ShapeError, "x", "[2, 4] float32", "(1, 2, 4)", lambda: stream.step(ones(1, 2, I)))
        refused(TypeError, "x", "[2, 4] float32", "float64", lambda: stream.step(ones(2, I, dtype=float)))
        refused(TypeError, "x", "as a NumPy array", "list", lambda: stream.step([[1.0] * I] * 2))
        refused(TypeError, "state", "a pair (h_0, c_0)", "(2, 2, 6)", lambda: stream.set_state(ones(2, 2, H)))
        refused(ShapeError, "state c_0", "[2, 2, 6]", "(1, 2, 6)", lambda: stream.set_state((None, ones(1, 2, H))))
    refused(RuntimeError, "step", "an open stream", "ended", lambda: stream.step(ones(2, I)))
    refused(RuntimeError, "set_state", "an open stream", "ended", lambda: stream.set_state(None))


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.matrix, np.recarray])
def test_a_subclass_whose_meaning_would_be_lost_is_refused(kind: Any) -> None:
    layer = lstm()
    x = ones(3, I).view(kind)
    refused(TypeError, "x", "as a NumPy array", kind.__name__, lambda: layer(x))
    refused(TypeError, "x", "as a NumPy array", kind.__name__, lambda: layer.forward(x))
    backward = layer.forward(ones(3, I)).backward
    refused(TypeError, "d_output", "as a NumPy array", kind.__name__, lambda: backward(ones(3, H).view(kind)))
    new = {"weight_ih_l0": layer.params["weight_ih_l0"].copy().view(kind)}
    refused(TypeError, "weight_ih_l0", "as a NumPy array", kind.__name__, lambda: layer.update(new))


@pytest.mark.parametrize(
    ("error", "expected", "got", "number"),
    [
        (ValueError, "at least 1", "0", 0),
        (ValueError, "at least 1", "-2", -2),
        (TypeError, "an integer", "1.5", 1.5),
        (TypeError, "an integer", "bool True", True),
        (TypeError, "an integer", "'2'", "2"),
        (TypeError, "an integer", "None", None),
    ],
)
def test_number_of_threads(error: type[Exception], expected: str, got: str, number: Any) -> None:
    before = fastrnn.get_num_threads()
    refused(error, "num_threads", expected, got, lambda: fastrnn.set_num_threads(number))
    assert fastrnn.get_num_threads() == before


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5", " 2"])
def test_number_of_threads_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_number", None)
    monkeypatch.setenv("FASTRNN_NUM_THREADS", text)
    refused(ValueError, "FASTRNN_NUM_THREADS", "a positive integer", repr(text), fastrnn.get_num_threads)
    layer = gru()
    refused(ValueError, "FASTRNN_NUM_THREADS", "a positive integer", repr(text), lambda: layer(X))


@pytest.mark.parametrize("name", ["gpu", "Reference", "", None, 3])
def test_an_unknown_backend(name: Any) -> None:
    def enter() -> None:
        with fastrnn.use_backend(name):
            raise AssertionError("entered")

    refused(ValueError, "backend", "'reference', 'cpu'", repr(name), enter)


def test_a_message_is_short_whatever_came() -> None:
    for bad in (ones(100, 16, I).tolist(), (X, X, X), "x" * 10_000):
        with pytest.raises(TypeError) as caught:
            gru()(bad)
        assert len(str(caught.value)) < 200


def test_shape_error_is_what_users_of_numpy_and_of_torch_catch() -> None:
    for kind in (ValueError, RuntimeError, ShapeError):
        with pytest.raises(kind):
            gru()(X[..., 1:])


def test_a_refused_call_of_a_training_layer_changes_no_mask() -> None:
    layer, twin = (fastrnn.GRU(I, H, 2, dropout=0.5, seed=0) for _ in range(2))
    with pytest.raises(ShapeError):
        layer.forward(X, lengths=[1], training=True)
    assert_same_bits("y", layer.forward(X, training=True).y, twin.forward(X, training=True).y)
