"""The layers as objects: initial values, parameters by name, copies, what a call returns, what a reset means."""

import copy
import itertools
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import (
    BACKENDS,
    CELLS,
    DTYPES,
    LAYERS,
    Case,
    by_name,
    draw,
    evaluate,
    make_layer,
    upstream,
)
from tolerance import EPS, assert_close, assert_same_bits, rounding

import fastrnn

# Statistics of n random numbers are tested at five standard deviations, one wrong alarm in 1.7 million.
SIGMAS = 5


def close(case: Case, name: str, got: np.ndarray, want: np.ndarray) -> None:
    assert_close(name, got, want, rounding(case.dtype, case.T * case.num_layers, case.width))


# Initial values


def assert_uniform(name: str, value: np.ndarray, bound: float) -> None:
    """Mean, variance and range of U(-bound, bound)."""
    n = value.size
    assert np.abs(value).max() <= bound * (1 + EPS["float32"]), name
    assert np.abs(value).max() >= bound * (1 - 20 / n), name
    assert abs(value.mean()) <= SIGMAS * bound / (3 * n) ** 0.5, name
    # the variance is bound**2 / 3, that of a square 4 / 45 * bound**4
    assert abs((value**2).mean() - bound**2 / 3) <= SIGMAS * bound**2 * (4 / 45 / n) ** 0.5, name


@pytest.mark.parametrize("cell", CELLS)
def test_uniform_is_torchs(cell: str) -> None:
    proj = {"proj_size": 20} if CELLS[cell].cell_state else {}
    layer = LAYERS[cell](30, 64, 2, bidirectional=True, seed=3, **proj)
    for name, value in layer.params.items():
        assert_uniform(name, value.astype(np.float64), 64**-0.5)
    flat = np.concatenate([value.ravel() for value in layer.params.values()])
    assert np.unique(flat).size > 0.99 * flat.size, "parameters repeat each other"


@pytest.mark.parametrize("cell", CELLS)
def test_xavier_gate_by_gate(cell: str) -> None:
    gates = len(CELLS[cell].gates)
    layer = LAYERS[cell](30, 64, 2, init="xavier", seed=3, dtype="float64")
    for name, value in layer.params.items():
        if name.startswith(("bias", "weight_p")):
            assert not value.any(), name
            continue
        for gate in value.reshape(gates, 64, -1):
            assert_uniform(name, gate, (6 / (64 + gate.shape[1])) ** 0.5)


@pytest.mark.parametrize("proj_size", [0, 9])
def test_orthogonal_gate_by_gate(proj_size: int) -> None:
    corners = []
    for seed in range(100):
        layer = fastrnn.LSTM(5, 13, proj_size=proj_size, init="orthogonal", seed=seed, dtype="float64")
        for gate in layer.params["weight_hh_l0"].reshape(4, 13, -1):
            assert_close("U^T U", gate.T @ gate, np.eye(proj_size or 13), rounding("float64", 1, 13))
            corners.append(gate[0, 0])
        assert not layer.params["bias_ih_l0"].any()
    assert_uniform("weight_ih_l0", layer.params["weight_ih_l0"], (6 / 18) ** 0.5)
    # uniform over all orthogonal matrices: every element has mean 0 and variance 1 / 13
    assert abs(np.mean(corners)) <= SIGMAS * (1 / 13 / len(corners)) ** 0.5


@pytest.mark.parametrize("cell", CELLS)
def test_identity(cell: str) -> None:
    gates = len(CELLS[cell].gates)
    layer = LAYERS[cell](5, 7, init="identity", seed=0)
    np.testing.assert_array_equal(layer.params["weight_hh_l0"], np.concatenate([np.eye(7)] * gates))
    assert layer.params["weight_ih_l0"].all()
    assert not layer.params["bias_hh_l0"].any()


@pytest.mark.parametrize("init", ["uniform", "xavier"])
def test_forget_bias(init: str) -> None:
    layer = fastrnn.LSTM(5, 7, 2, bidirectional=True, forget_bias=1.5, init=init, seed=0)
    plain = fastrnn.LSTM(5, 7, 2, bidirectional=True, init=init, seed=0)
    f = slice(7, 14)
    for name, value in layer.params.items():
        if name.startswith("bias"):
            assert (value[f] == (1.5 if name.startswith("bias_ih") else 0)).all(), name
            value, rest = np.delete(value, np.s_[f]), np.delete(plain.params[name], np.s_[f])
            np.testing.assert_array_equal(value, rest)
        else:
            np.testing.assert_array_equal(value, plain.params[name])


@pytest.mark.parametrize("cell", CELLS)
def test_a_seed_fixes_the_initial_values(cell: str) -> None:
    one, same, other = (LAYERS[cell](5, 7, seed=seed) for seed in (1, 1, 2))
    random = [LAYERS[cell](5, 7) for _ in range(2)]
    wide = LAYERS[cell](5, 7, seed=1, dtype="float64")
    for name, value in one.params.items():
        np.testing.assert_array_equal(value, same.params[name])
        assert not (value == other.params[name]).any()
        assert not (random[0].params[name] == random[1].params[name]).any()
        np.testing.assert_array_equal(value, wide.params[name].astype(np.float32))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 7), (33, 16)])
def test_parameter_counts_with_one_bias_per_gate(m: int, n: int) -> None:
    count = {
        cell: sum(value.size for name, value in LAYERS[cell](m, n).params.items() if not name.startswith("bias_hh"))
        for cell in CELLS
    }
    assert count["rnn_tanh"] == (m + n) * n + n
    assert count["lstm"] == 4 * (m * n + n * n + n)
    assert count["gru"] == count["lstm_coupled"] == 3 * (m * n + n * n + n)
    assert count["lstm_peephole"] == count["lstm"] + 3 * n
    assert count["lstm_coupled_peephole"] == count["lstm_coupled"] + 2 * n
    assert count["lstm"] - sum(v.size for v in fastrnn.LSTM(m, n, bias=False).params.values()) == 4 * n


# Parameters by name


def test_parameters_are_read_only() -> None:
    layer = fastrnn.GRU(3, 4, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        layer.params["weight_ih_l0"][0] = 1
    with pytest.raises(TypeError):
        layer.params["weight_ih_l0"] = np.zeros((12, 3), np.float32)
    with pytest.raises(AttributeError):
        layer.params = {}
    for value in layer.params.values():
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            value.flags.writeable = True
        owner = value.base
        while isinstance(owner, np.ndarray):
            assert not owner.flags.writeable
            owner = owner.base
        assert memoryview(owner).readonly


def test_the_mapping_of_parameters_follows_updates() -> None:
    layer = fastrnn.GRU(3, 4, seed=0)
    params, held = layer.params, layer.params["bias_hh_l0"]
    layer.update({"bias_hh_l0": held + 1})
    np.testing.assert_array_equal(params["bias_hh_l0"], held + 1)
    assert list(params) == list(layer.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_update_acts_on_the_next_call_and_keeps_copies(backend: str) -> None:
    case = Case("lstm", backend, num_layers=2)
    layer, problem = make_layer(case), draw(case)
    before = evaluate(layer, case, problem)
    held = layer.params["weight_hh_l1"]
    new = held * 2
    layer.update({"weight_hh_l1": new})
    np.testing.assert_array_equal(held * 2, layer.params["weight_hh_l1"])  # what was handed out keeps the old numbers
    after = evaluate(layer, case, problem)
    new[...] = 0
    for name, value in evaluate(layer, case, problem).items():
        assert_same_bits(name, value, after[name])
    assert not np.array_equal(after["y"], before["y"])
    fresh = make_layer(case)
    fresh.load_state_dict(layer.state_dict())
    for name, value in evaluate(fresh, case, problem).items():
        assert_same_bits(name, value, after[name])


def test_state_dict_is_a_copy() -> None:
    layer = fastrnn.RNN(3, 4, seed=0)
    state_dict = layer.state_dict()
    assert list(state_dict) == list(layer.params)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(value, layer.params[name])
        value[...] = 9
        assert not (layer.params[name] == 9).any()


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_and_pickles(backend: str, cell: str, twin_of: Any) -> None:
    case = Case(cell, backend, "float32", num_layers=2, bidirectional=True, dropout=0.5, H=17)
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    twin = twin_of(layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert (twin.calls, twin.seed) == (layer.calls, layer.seed)
    assert not any(value.flags.writeable for value in twin.params.values())
    for name, value in evaluate(twin, case, problem).items():
        assert_same_bits(name, value, want[name])
    twin.update({name: value * 0 for name, value in twin.params.items()})
    for name, value in evaluate(layer, case, problem).items():
        assert_same_bits(name, value, want[name])


def test_numpy_numbers_serve_as_arguments() -> None:
    numbers: dict[str, Any] = {
        "input_size": np.int64(3), "hidden_size": np.int32(4), "num_layers": np.uint8(2), "bias": np.bool_(True),
        "dropout": np.float32(0.5), "seed": np.uint64(2**63), "forget_bias": np.float64(1),
    }  # fmt: skip
    layer = fastrnn.LSTM(**numbers)
    assert [type(getattr(layer, name)) for name in ("hidden_size", "bias", "dropout", "seed")] == [
        int,
        bool,
        float,
        int,
    ]
    plain = fastrnn.LSTM(3, 4, 2, dropout=0.5, seed=2**63, forget_bias=1.0)
    for name, value in plain.params.items():
        np.testing.assert_array_equal(layer.params[name], value)


@pytest.mark.parametrize("dtype", ["float64", "f8", float, np.float64, np.dtype("float64")], ids=repr)
def test_a_dtype_may_be_given_in_every_way_of_numpy(dtype: Any) -> None:
    layer = fastrnn.GRU(3, 4, dtype=dtype, seed=0)
    assert layer.dtype == "float64"
    y, h_n = layer(np.ones((2, 1, 3)))
    assert y.dtype == h_n.dtype == np.float64


def test_repr_says_what_is_not_the_default() -> None:
    assert repr(fastrnn.LSTM(3, 4)) == "LSTM(3, 4)"
    assert repr(fastrnn.GRU(3, 4, 2, bidirectional=True, reset_after=False)) == (
        "GRU(3, 4, num_layers=2, bidirectional=True, reset_after=False)"
    )
    assert repr(fastrnn.RNN(3, 4, nonlinearity="relu", dtype="float64")) == (
        "RNN(3, 4, nonlinearity='relu', dtype='float64')"
    )


def test_to_the_cpu_is_the_layer_itself() -> None:
    layer = fastrnn.GRU(3, 4)
    assert layer.to("cpu") is layer
    assert layer.device == "cpu"


def test_dropout_without_a_second_layer_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="num_layers=1") as caught:
        fastrnn.LSTM(3, 4, dropout=0.5)
    assert caught[0].filename == __file__


# What a call returns


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_is_a_triple_with_names(backend: str, cell: str) -> None:
    case = Case(cell, backend, "float32", num_layers=2, bidirectional=True)
    layer, problem = make_layer(case), draw(case)
    with fastrnn.use_backend(backend):
        result = layer.forward(problem.x, problem.state)
    y, state, backward = result
    assert isinstance(result, tuple)
    assert result.y is y
    assert result.state is state
    assert result.backward is backward
    final = by_name(case, state)
    np.testing.assert_array_equal(y[-1, :, : case.H], final["h_n"][2])  # the last layer's forward direction
    np.testing.assert_array_equal(y[0, :, case.H :], final["h_n"][3])
    if case.cell_state:
        assert len(result.cells) == 2
        for k, cells in enumerate(result.cells):
            np.testing.assert_array_equal(cells[-1, :, : case.H], final["c_n"][2 * k])
            np.testing.assert_array_equal(cells[0, :, case.H :], final["c_n"][2 * k + 1])
    else:
        assert not hasattr(result, "cells")
        with pytest.raises(AttributeError, match="no cell state"):
            _ = result.cells
    grads = backward(*upstream(case, problem))
    assert list(grads.params) == list(layer.params)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_is_the_zero_state(backend: str, cell: str) -> None:
    case = Case(cell, backend, "float32", state="none", bidirectional=True)
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    zeros = tuple(np.zeros_like(want[f"d {name}"]) for name in by_name(case, problem.d_state, "_0"))
    for state in (zeros, (zeros[0], None)) if case.cell_state else (zeros[0],):
        got = evaluate(layer, case, replace(problem, state=state))
        for name, value in want.items():
            assert_same_bits(name, got[name], value)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_agree(backend: str, cell: str) -> None:
    """batch_first only turns axes, and unbatched input is a batch of one."""
    case = Case(cell, backend, "float32", B=1, num_layers=2, bidirectional=True, reset="random", H=17)
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    axes = {"y", "d x", "cells_l0", "cells_l1"}

    def turned(value: Any) -> Any:
        return [v.swapaxes(0, 1) for v in value] if isinstance(value, list) else value.swapaxes(0, 1)

    def single(value: Any) -> Any:
        return type(value)(v[:, 0] for v in value) if isinstance(value, (list, tuple)) else value[:, 0]

    over_time = ("x", "reset", "d_output", *(["d_cells"] if case.cell_state else []))
    first = replace(problem, **{name: turned(getattr(problem, name)) for name in over_time})
    got = evaluate(make_layer(replace(case, batch_first=True)), replace(case, batch_first=True), first)
    for name, value in want.items():
        assert_same_bits(f"batch first {name}", got[name], value.swapaxes(0, 1) if name in axes else value)
    alone = replace(problem, **{name: single(getattr(problem, name)) for name in (*over_time, "state", "d_state")})
    for batch_first in (False, True):
        one = replace(case, unbatched=True, batch_first=batch_first)
        got = evaluate(make_layer(one), one, alone)
        for name, value in want.items():
            weight = name.startswith(("d weight", "d bias"))
            assert_same_bits(f"unbatched {name}", got[name], value if weight else value[:, 0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_do_not_depend_on_training(backend: str, cell: str) -> None:
    case = Case(cell, backend, "float32", num_layers=2)
    layer, problem = make_layer(case), draw(case)
    with fastrnn.use_backend(backend):
        still, moving = (layer.forward(problem.x, training=training) for training in (False, True))
    assert_same_bits("y", moving.y, still.y)
    for name, value in still.backward(problem.d_output).params.items():
        assert_same_bits(name, moving.backward(problem.d_output).params[name], value)


# Resets, and the reverse direction


RESETS = [
    pytest.param(
        Case(cell, backend, "float32", T=9, B=1, H=19, num_layers=1, seed=seed), id=f"{cell}-{backend}-seed{seed}"
    )
    for backend in BACKENDS
    for cell in CELLS
    for seed in range(2)
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("case", RESETS)
def test_a_reset_forward_in_time_starts_a_new_piece_from_zero(case: Case, layers: int) -> None:
    case = replace(case, num_layers=layers)
    layer, problem = make_layer(case), draw(case)
    reset = np.zeros((9, 1), bool)
    reset[[2, 3, 7]] = True
    whole = evaluate(layer, case, replace(problem, reset=reset))
    bounds = [0, 2, 3, 7, 9]
    results = []
    for first, last in itertools.pairwise(bounds):
        piece = replace(
            problem, x=problem.x[first:last], d_output=problem.d_output[first:last],
            state=problem.state if first == 0 else None,
            d_cells=None if problem.d_cells is None else [d[first:last] for d in problem.d_cells],
        )  # fmt: skip
        losses = case.losses if last == 9 else ("y", "cells")  # the final state is the last piece's
        results.append(evaluate(layer, replace(case, T=last - first, losses=losses), piece))
    for name, value in whole.items():
        if name in ("y", "d x") or name.startswith("cells"):
            close(case, name, value, np.concatenate([result[name] for result in results]))
        elif name in ("h_n", "c_n"):
            close(case, name, value, results[-1][name])
        elif name in ("d h_0", "d c_0"):
            close(case, name, value, results[0][name])
        else:
            close(case, name, value, sum(result[name] for result in results))


@pytest.mark.parametrize("case", RESETS)
def test_the_reverse_direction_is_the_forward_one_on_flipped_time(case: Case) -> None:
    """From length - 1, clearing before step t where reset[t + 1]: flipped step s clears where reset[length - s]."""
    case = replace(case, bidirectional=True, B=4)
    layer, problem = make_layer(case), draw(case)
    reset = np.random.default_rng(case.seed).random((9, 4)) < 0.4
    lengths = np.array([9, 4, 0, 1])
    both = evaluate(layer, case, replace(problem, reset=reset, lengths=lengths))
    single = replace(case, bidirectional=False, seed=case.seed + 10)
    mirror = make_layer(single)
    mirror.update({name: layer.params[f"{name}_reverse"] for name in mirror.params})
    second = slice(1, 2)
    for b, length in enumerate(lengths):
        row, H = slice(b, b + 1), case.H
        flipped_reset = np.zeros((length, 1), bool)
        for s in range(1, length):
            flipped_reset[s] = reset[length - s, row]

        def flip(array: np.ndarray, row: slice = row, length: int = length) -> np.ndarray:
            return array[:length, row][::-1]

        def state(value: Any, row: slice = row) -> Any:
            return tuple(v[second, row] for v in value) if isinstance(value, tuple) else value[second, row]

        alone = replace(
            problem, x=flip(problem.x), reset=flipped_reset, lengths=None, state=state(problem.state),
            d_output=flip(problem.d_output[..., H:]), d_state=state(problem.d_state),
            d_cells=None if problem.d_cells is None else [flip(d[..., H:]) for d in problem.d_cells],
        )  # fmt: skip
        want = evaluate(mirror, replace(single, T=int(length), B=1), alone)
        close(case, "y", flip(both["y"][..., H:]), want["y"])
        for name in by_name(case, problem.state):
            close(case, name, both[name][second, row], want[name])
            close(case, f"d {name}", both[f"d {name[0]}_0"][second, row], want[f"d {name[0]}_0"])
        if case.cell_state:
            close(case, "cells", flip(both["cells_l0"][..., H:]), want["cells_l0"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_reset_at_the_first_step_forgets_the_initial_state(dtype: str) -> None:
    case = Case("gru", "cpu", dtype, reset="first")
    layer, problem = make_layer(case), draw(case)
    result = evaluate(layer, case, problem)
    other = evaluate(layer, case, replace(problem, state=np.full_like(problem.state, np.nan)))
    for name, value in result.items():
        assert_same_bits(name, other[name], value)
    assert not result["d h_0"].any()
