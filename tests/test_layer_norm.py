"""Layer normalisation against torch.nn.functional.layer_norm, step by step with autograd; what must hold by itself.

Every combination with the other options goes through the suites that all options go through: finite differences,
the compiled backend against the reference, properties, streams, checkpoints.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, DTYPES, LAYERS, Case, assert_results, by_name, draw, evaluate, expected, make_layer
from tolerance import assert_close, assert_same_bits, rounding
from torch.nn.functional import layer_norm

import fastrnn
from fastrnn import layers, optim
from fastrnn.cells import CELLS
from fastrnn.cpu.cells.lstm import LSTM

HALF = dataclasses.replace(LSTM, readout=None)
CORE = [name for name in CELLS if name.startswith(("rnn", "lstm", "gru"))]


def tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def oracle(case: Case, p: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One layer in one direction by torch's own operations: y, the states, the cell states."""
    stem = case.cell.split("_")[0]
    coupled, peephole = "coupled" in case.cell, "peephole" in case.cell
    h, c, ys, cs = p["h_0"][0], p["c_0"][0] if case.cell_state else None, [], []
    zero = torch.zeros(len(p["weight_ih_l0"]), dtype=torch.float64)
    b_ih, b_hh = p.get("bias_ih_l0", zero), p.get("bias_hh_l0", zero)

    def normalised(a: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return layer_norm(a, a.shape[-1:], gain, None, 1e-5)

    for x in p["x"]:
        ax = (normalised(x @ p["weight_ih_l0"].T, p["norm_ih_l0"]) + b_ih).split(case.H, 1)
        if case.cell == "gru_reset_before":
            both, u = 2 * case.H, p["weight_hh_l0"]
            ah = (normalised(h @ u[:both].T, p["norm_hh_l0"][:both]) + b_hh[:both]).split(case.H, 1)
            r, z = torch.sigmoid(ax[0] + ah[0]), torch.sigmoid(ax[1] + ah[1])
            n = torch.tanh(ax[2] + normalised((r * h) @ u[both:].T, p["norm_hh_l0"][both:]) + b_hh[both:])
            h = (1 - z) * n + z * h
            ys.append(h)
            continue
        ah = (normalised(h @ p["weight_hh_l0"].T, p["norm_hh_l0"]) + b_hh).split(case.H, 1)
        if stem == "gru":
            r, z = torch.sigmoid(ax[0] + ah[0]), torch.sigmoid(ax[1] + ah[1])
            h = (1 - z) * torch.tanh(ax[2] + r * ah[2]) + z * h
        elif stem == "lstm":
            *inputs, a_g, a_o = (a + b for a, b in zip(ax, ah, strict=True))
            if peephole:
                inputs = [a + row * c for a, row in zip(inputs, p["weight_p_l0"], strict=False)]
            f = torch.sigmoid(inputs[-1])
            c = f * c + (1 - f if coupled else torch.sigmoid(inputs[0])) * torch.tanh(a_g)
            o = torch.sigmoid(a_o + p["weight_p_l0"][-1] * c if peephole else a_o)
            h = o * torch.tanh(layer_norm(c, (case.H,), p["norm_c_l0"], p["norm_c_bias_l0"], 1e-5))
            h = h @ p["weight_hr_l0"].T if case.proj_size else h
            cs.append(c)
        else:
            phi = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda a: a}[case.cell.split("_")[1]]
            h = phi(ax[0] + ah[0])
        ys.append(h)
    outputs = {"y": torch.stack(ys), "h_n": h[None]}
    return outputs | ({"c_n": c[None], "cells_l0": torch.stack(cs)} if case.cell_state else {})


CASES = [
    Case(cell, backend, dtype, T=6, B=4, I=3, H=19, layer_norm=True, **option)
    for backend in BACKENDS
    for dtype in DTYPES
    for cell in CORE
    for option in ({}, {"bias": False, "seed": 1}, *([{"proj_size": 4, "seed": 2}] if CELLS[cell].cell_state else []))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torchs_layer_norm_step_by_step(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    leaves = tensors({"x": problem.x} | by_name(case, problem.state, "_0") | dict(layer.params))
    outputs = oracle(case, leaves)
    upstream = {"y": problem.d_output} | by_name(case, problem.d_state)
    if problem.d_cells is not None:
        upstream["cells_l0"] = problem.d_cells[0]
    sum((outputs[name] * torch.tensor(d)).sum() for name, d in upstream.items()).backward()
    want = {name: value.detach().numpy() for name, value in outputs.items()}
    want |= {f"d {name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    assert_results(case, problem, evaluate(layer, case, problem), want)


@pytest.mark.parametrize("cell", CELLS)
def test_names_shapes_and_initial_values(cell: str) -> None:
    options: dict[str, Any] = {"bidirectional": True, "seed": 3}
    plain, layer = (LAYERS[cell](3, 5, layer_norm=flag, **options) for flag in (False, True))
    rows = 5 * len(CELLS[cell].gates)
    shapes = {"norm_ih": rows, "norm_hh": rows} | ({"norm_c": 5, "norm_c_bias": 5} if CELLS[cell].cell_state else {})
    added = {name: value for name, value in layer.params.items() if name not in plain.params}
    assert {name: value.shape for name, value in added.items()} == {
        f"{stem}_l0{suffix}": (size,) for suffix in ("", "_reverse") for stem, size in shapes.items()
    }
    for name, value in added.items():
        np.testing.assert_array_equal(value, 0 if name.startswith("norm_c_bias") else 1)
    for name, value in plain.params.items():
        assert_same_bits(name, layer.params[name], value)
    assert repr(layer) == repr(plain)[:-1] + ", layer_norm=True)"
    for init in ("xavier", "orthogonal", "identity"):
        again = LAYERS[cell](3, 5, layer_norm=True, init=init, **options)
        assert all((again.params[name] == value).all() for name, value in added.items())


SCALED = [Case(cell, backend, "float32", H=21, layer_norm=True, num_layers=2) for backend in BACKENDS for cell in CELLS]


@pytest.mark.parametrize("case", SCALED, ids=str)
def test_the_scale_of_the_weights_does_not_matter(case: Case) -> None:
    """But for the 1e-5 beside the variance, which weights of this size leave without effect on a bit."""
    layer, problem = make_layer(case), draw(case)

    def at(scale: float) -> np.ndarray:
        large = {n: v * scale for n, v in layer.params.items() if n.startswith(("weight_ih", "weight_hh"))}
        twin = make_layer(case)
        twin.update(large)
        return evaluate(twin, case, problem)["y"]

    assert_same_bits("y", at(2.0**31), at(2.0**30))
    assert not np.array_equal(at(2.0), at(1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_has_no_variance(backend: str) -> None:
    """A row of one element is normalised to zero: what is left are the biases."""
    rnn = make_layer(Case("rnn_tanh", backend, "float32", H=1, layer_norm=True))
    lstm = make_layer(Case("lstm", backend, "float32", H=1, layer_norm=True))
    x = np.random.default_rng(0).standard_normal((3, 2, 4), np.float32)
    with fastrnn.use_backend(backend):
        y, _ = rnn(x)
        (h, (_, c)), p = lstm(x), lstm.params
    allowed = rounding("float32", 3, 4)
    bias = rnn.params["bias_ih_l0"] + rnn.params["bias_hh_l0"]
    assert_close("y", y, np.broadcast_to(np.tanh(bias), y.shape), allowed)
    ratio = h / np.tanh(p["norm_c_bias_l0"])
    assert ((ratio > 0) & (ratio < 1)).all(), "o, a sigmoid"
    assert np.ptp(c) > 0


OF_A_LARGE_MEAN = [Case(cell, backend, "float32", H=37, layer_norm=True) for backend in BACKENDS for cell in CORE]


@pytest.mark.parametrize("case", OF_A_LARGE_MEAN, ids=str)
def test_a_large_mean_costs_no_digits(case: Case) -> None:
    """The variance as mean square less squared mean would have no digit left in float32."""
    problem = draw(case)
    problem = dataclasses.replace(problem, x=np.abs(problem.x) + np.float32(0.5))

    def shifted(dtype: str) -> Any:
        layer = make_layer(case, dtype)
        layer.update({"weight_ih_l0": (make_layer(case).params["weight_ih_l0"] + np.float32(2000)).astype(dtype)})
        return layer

    want = evaluate(shifted("float64"), case, problem.astype("float64"), "reference")["y"]
    got = evaluate(shifted("float32"), case, problem)["y"]
    # x W is rounded at 2000 * sum(x), before it is normalised
    assert_close("y", got, want, 2000 * case.I * rounding("float32", case.T, case.width))
    assert_close("y", want, expected(case, problem)["y"], 2000 * case.I * rounding("float32", case.T, case.width))


def test_it_is_trained_and_moved_like_the_rest(tmp_path: Any) -> None:
    layer = fastrnn.LSTM(3, 5, layer_norm=True, seed=0)
    adam, before, x = optim.Adam(lr=0.1), layer.state_dict(), np.ones((4, 2, 3), np.float32)
    grads = layer.forward(x)[2](np.ones((4, 2, 5), np.float32))
    layer.update(adam.step(layer.params, grads.params))
    changed = [name for name, value in before.items() if not np.array_equal(layer.params[name], value)]
    assert {"norm_ih_l0", "norm_hh_l0", "norm_c_l0", "norm_c_bias_l0"} <= set(changed)
    layer.save(tmp_path / "a")
    loaded = fastrnn.load(tmp_path / "a")
    assert loaded.layer_norm is True
    for name, value in layer.params.items():
        assert_same_bits(name, loaded.params[name], value)


def test_what_has_none_is_refused_by_name() -> None:
    cells, kinds = dict(CELLS), dict(layers.LAYERS)
    try:
        bare = dataclasses.replace(CELLS["lstm"], name="bare", readout=None)
        with pytest.raises(
            ValueError, match="layer_norm: expected False for 'bare', a cell with c and without a readout"
        ):
            fastrnn.register(bare)(3, 5, layer_norm=True)
        fastrnn.register(dataclasses.replace(CELLS["lstm"], name="half", numba=(__name__, "HALF")))
        half = layers.LAYERS["half"](3, 5, layer_norm=True)
        with pytest.raises(
            ValueError, match="layer_norm: expected False, since the rendering of 'half' has no readout"
        ):
            half(np.ones((4, 2, 3), np.float32))
    finally:
        for mapping, kept in ((CELLS, cells), (layers.LAYERS, kinds)):
            mapping.clear()
            mapping.update(kept)
