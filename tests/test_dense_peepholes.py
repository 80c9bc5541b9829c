"""Dense peepholes, `peephole="dense"`, on the reference and on CUDA; the CPU's compiled loop refuses them.

The reference goes through the same checks as without them: finite differences with every pair of options, torch with
autograd step by step, the properties, streams and checkpoints; and they are diagonal peepholes where the matrices are
diagonal. CUDA is held against it here with every pair of options; test_cuda.py, test_cuda_graphs.py and
test_host_kernels.py take them along with all else.
"""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import numpy as np
import pytest
import test_checkpoint
import test_cuda
import test_properties
import test_reference
import test_stream
import torch
from cases import DENSE_CELLS, DTYPES, Case, assert_results, by_name, draw, evaluate, expected, make_layer
from test_properties import CHOICES, EVERYTHING, all_pairs, pairs, possible_pairs
from tolerance import assert_close, assert_same_bits, rounding
from torch.nn.functional import layer_norm

import fastrnn
from fastrnn import peepholes
from fastrnn.cells import CELLS

LSTMS = ("lstm", "lstm_coupled")
PLAIN: dict[str, Any] = {}
PROJECTION, NORMALISED = {"proj_size": 9, **EVERYTHING}, {**EVERYTHING, "layer_norm": True}


def dense(cell: str, dtype: str = "float64", **options: Any) -> Case:
    return Case(cell, "reference", dtype, dense=True, **options)


# Gradients

OF_LSTMS = {**CHOICES, "cell": LSTMS, "dtype": ("float64",), "threads": (1,), "num_layers": (1, 2)}


def test_gradients_with_every_pair_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    sets, wanted = all_pairs(OF_LSTMS), possible_pairs(OF_LSTMS)
    assert set().union(*map(pairs, sets)) >= wanted
    with capsys.disabled():
        print(f"\nall {len(wanted)} possible pairs of option values occur in {len(sets)} sets of options")
    for seed, options in enumerate(sets):
        given = {name: value for name, value in options.items() if name != "threads"}
        sizes = {"T": 4, "B": 1 if options["unbatched"] else 2, "I": 2, "H": 6}
        case = Case(backend="reference", dense=True, seed=seed, **sizes, **given)
        try:
            errors = test_reference.check_gradients(case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
        assert "weight_ch_l0" in errors


def forgotten(what: str) -> dict[str, Any]:
    """A part of the backward pass left out, or of the forward pass put in the wrong place."""
    cell_backward, gradient = peepholes.backward, peepholes.gradient

    def without_last(cell: Any, v: Any, equations: Any, given: Any, dc: Any, p: Any) -> Any:
        v = v.copy()
        v[-dc.shape[1] :] = 0
        return cell_backward(cell, v, equations, given, dc, p)

    def without_before(cell: Any, v: Any, equations: Any, given: Any, dc: Any, p: Any) -> Any:
        v = v.copy()
        v[: -dc.shape[1]] = 0
        return cell_backward(cell, v, equations, given, dc, p)

    def swapped(xp: Any, cell: Any, dah: Any, c_prev: Any, c: Any) -> Any:
        return gradient(xp, cell, dah, c, c_prev)

    parts: dict[str, dict[str, Any]] = {
        "o's path to c": {"backward": without_last},
        "the paths to c_prev": {"backward": without_before},
        "c for c_prev": {"gradient": swapped},
    }
    return parts[what]


@pytest.mark.parametrize("what", ["o's path to c", "the paths to c_prev", "c for c_prev"])
@pytest.mark.parametrize("cell", LSTMS)
def test_what_is_forgotten_is_caught(cell: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in forgotten(what).items():
        monkeypatch.setattr(peepholes, name, value)
    with pytest.raises(AssertionError, match="relative errors"):
        test_reference.check_gradients(dense(cell))


# torch


def oracle(case: Case, p: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One layer in one direction by torch's own operations: y, the states, the cell states."""
    coupled, (z_h, z_c) = "coupled" in case.cell, (0.0 if case.proj_size else case.zoneout, case.zoneout)
    h, c, ys, cs = p["h_0"][0], p["c_0"][0], [], []
    zero = torch.zeros(len(p["weight_ih_l0"]), dtype=torch.float64)
    b_ih, b_hh = p.get("bias_ih_l0", zero), p.get("bias_hh_l0", zero)
    *v_before, v_o = p["weight_ch_l0"].split(case.H)

    def normalised(a: torch.Tensor, gain: str) -> torch.Tensor:
        return layer_norm(a, a.shape[-1:], p[gain], None, 1e-5) if case.layer_norm else a

    for x in p["x"]:
        ax = normalised(x @ p["weight_ih_l0"].T, "norm_ih_l0") + b_ih
        ah = normalised(h @ p["weight_hh_l0"].T, "norm_hh_l0") + b_hh
        *inputs, a_g, a_o = (ax + ah).split(case.H, 1)
        gates = [torch.sigmoid(a + c @ v.T) for a, v in zip(inputs, v_before, strict=True)]
        f, i = gates[-1], 1 - gates[-1] if coupled else gates[0]
        c_new = f * c + i * torch.tanh(a_g)
        o = torch.sigmoid(a_o + c_new @ v_o.T)
        seen = layer_norm(c_new, (case.H,), p["norm_c_l0"], p["norm_c_bias_l0"], 1e-5) if case.layer_norm else c_new
        h_new = o * torch.tanh(seen)
        c = z_c * c + (1 - z_c) * c_new
        h = h_new @ p["weight_hr_l0"].T if case.proj_size else z_h * h + (1 - z_h) * h_new
        ys.append(h)
        cs.append(c)
    return {"y": torch.stack(ys), "h_n": h[None], "c_n": c[None], "cells_l0": torch.stack(cs)}


ORACLE: list[dict[str, Any]] = [
    {}, {"bias": False, "seed": 1}, {"proj_size": 4, "seed": 2}, {"zoneout": 0.3}, {"layer_norm": True, "seed": 3},
    {"proj_size": 5, "layer_norm": True, "zoneout": 0.2}, {"H": 1, "B": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", ORACLE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", LSTMS)
def test_torch_step_by_step(cell: str, dtype: str, options: dict[str, Any]) -> None:
    case = dense(cell, dtype, **{"T": 6, "B": 4, "I": 3, "H": 19, **options})
    layer, problem = make_layer(case), draw(case)
    values = {"x": problem.x} | by_name(case, problem.state, "_0") | dict(layer.params)
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    outputs = oracle(case, leaves)
    assert problem.d_cells is not None
    upstream = {"y": problem.d_output, "cells_l0": problem.d_cells[0]} | by_name(case, problem.d_state)
    sum((outputs[name] * torch.tensor(d, dtype=torch.float64)).sum() for name, d in upstream.items()).backward()
    want = {name: value.detach().numpy() for name, value in outputs.items()}
    want = {name: want[name] for name in ("y", "h_n", "c_n", "cells_l0")}
    want |= {f"d {name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    assert_results(case, problem, evaluate(layer, case, problem), want)


# Degenerate matrices


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING, PROJECTION, NORMALISED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", LSTMS)
def test_diagonal_matrices_are_diagonal_peepholes(cell: str, dtype: str, options: dict[str, Any]) -> None:
    case = dense(cell, dtype, H=21, **options)
    other = replace(case, cell=f"{cell}_peephole", dense=False)
    layer, twin, problem = make_layer(case), make_layer(other), draw(case)

    def matrices(p: np.ndarray) -> np.ndarray:
        return np.concatenate([np.diag(row) for row in p])

    layer.update({n.replace("_p_", "_ch_"): matrices(v) if "_p_" in n else v for n, v in twin.params.items()})
    got, want = evaluate(layer, case, problem), evaluate(twin, other, problem)
    assert len(got) == len(want)
    for name, value in want.items():
        found = got[name.replace("_p_", "_ch_")]
        if "_p_" in name:
            found = np.stack([np.diag(part) for part in np.split(found, len(value))])
            assert value.any()
        assert_close(name, found, value, rounding(dtype, case.T * case.num_layers, case.width))


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING, PROJECTION, NORMALISED], ids=str)
@pytest.mark.parametrize("cell", LSTMS)
def test_zero_matrices_are_none(cell: str, options: dict[str, Any]) -> None:
    case = dense(cell, "float32", H=21, **options)
    plain = replace(case, dense=False)
    layer, bare, problem = make_layer(case), make_layer(plain), draw(case)
    zeros = {name: np.zeros_like(value) for name, value in layer.params.items() if "_ch_" in name}
    layer.update({**bare.params, **zeros})
    got, want = evaluate(layer, case, problem), evaluate(bare, plain, problem)
    assert all(got[f"d {name}"].any() for name in zeros)
    for name, value in want.items():
        assert_close(name, got[name], value, rounding("float32", case.T * case.num_layers, case.width))


# What all layers pass

PROPERTIES = [
    test_properties.test_permuting_the_batch_permutes_the_result,
    test_properties.test_saving_or_not_gives_the_same_bits,
    test_properties.test_backward_is_pure,
    test_properties.test_no_gradient_from_outside_means_no_gradient,
    test_properties.test_cells_are_the_cell_states_step_by_step,
    test_properties.test_layout_in_memory_does_not_matter,
    test_properties.test_read_only_inputs_are_enough,
]
OF_PADDING = [
    test_properties.test_padding_reaches_nothing,
    test_properties.test_the_state_of_an_empty_sequence_reaches_nothing,
    test_properties.test_each_sequence_of_a_padded_batch_is_as_if_alone,
]


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING, PROJECTION, NORMALISED], ids=str)
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__.removeprefix("test_"))
def test_properties_hold(check: Any, options: dict[str, Any]) -> None:
    check(dense("lstm", "float32", **{"T": 7, "B": 5, "H": 21, **options}))


@pytest.mark.parametrize("options", [{"lengths": "random"}, EVERYTHING, NORMALISED], ids=str)
@pytest.mark.parametrize("check", OF_PADDING, ids=lambda check: check.__name__.removeprefix("test_"))
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_padding(check: Any, options: dict[str, Any]) -> None:
    if options is NORMALISED and "alone" in check.__name__:
        options = {**EVERYTHING, "zoneout": 0.2}
    check(dense("lstm_coupled", "float32", **{"T": 7, "B": 5, "H": 21, **options}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING, NORMALISED], ids=str)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_nan_in_one_row_stays_in_that_row(options: dict[str, Any], bad: float) -> None:
    case = dense("lstm", "float32", **{"T": 7, "B": 5, "H": 33, **options})
    test_properties.test_nan_in_one_row_stays_in_that_row(case, bad)


@pytest.mark.parametrize("size", [{"T": 0}, {"B": 0}, {"T": 0, "B": 0}, {"lengths": "zero"}], ids=str)
def test_empty_sequences_return_the_initial_state(size: dict[str, Any]) -> None:
    case = dense("lstm", "float32", **{"T": 7, "B": 5, "H": 21, **EVERYTHING, **size})
    test_properties.test_empty_sequences_return_the_initial_state(case)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("cell", LSTMS)
def test_a_split_sequence_equals_one_run(cell: str, at: int) -> None:
    case = dense(cell, "float32", T=7, B=5, H=21, num_layers=2, lengths="random", reset="random")
    test_properties.test_a_split_sequence_equals_one_run(case, at)


@pytest.mark.parametrize("options", [PLAIN, PROJECTION, NORMALISED], ids=str)
@pytest.mark.parametrize("cell", LSTMS)
def test_float32_and_recomputation(cell: str, options: dict[str, Any]) -> None:
    case = dense(cell, "float32", **{"T": 11, "B": 5, "H": 33, **options})
    problem = draw(case)
    want = expected(case, problem)
    for save in ("gates", "recompute"):
        other = replace(case, save=save)
        assert_results(other, problem, evaluate(make_layer(other), other, problem), want)


@pytest.mark.parametrize("options", [PLAIN, {"proj_size": 5, "num_layers": 2, "zoneout": 0.3}], ids=str)
def test_streams(options: dict[str, Any]) -> None:
    case = dense("lstm", "float32", T=7, H=21, **options)
    test_stream.test_a_stream_equals_the_whole_sequence(case)
    test_stream.test_a_step_has_the_bits_of_a_call_on_one_step(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", LSTMS)
def test_checkpoints(cell: str, dtype: str, tmp_path: Path) -> None:
    test_checkpoint.test_round_trip(dense(cell, num_layers=2, bidirectional=True, layer_norm=True), dtype, tmp_path)


# Parameters


@pytest.mark.parametrize(("coupled", "rows"), [(False, 3), (True, 2)])
def test_names_shapes_and_initial_values(coupled: bool, rows: int) -> None:
    layer: Any = fastrnn.LSTM(4, 5, num_layers=2, bidirectional=True, peephole="dense", coupled=coupled, seed=1)
    assert layer.peephole == "dense"
    assert "peephole='dense'" in repr(layer)
    stems = [name.removesuffix("_l0") for name in layer.params if name.endswith("_l0")]
    assert stems == ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch"]
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        value = layer.params[f"weight_ch_{suffix}"]
        assert value.shape == (rows * 5, 5)
        assert 0 < np.abs(value).max() <= 5**-0.5
    for init in ("xavier", "orthogonal", "identity"):
        started = fastrnn.LSTM(4, 5, peephole="dense", coupled=coupled, init=init, seed=1)
        assert not started.params["weight_ch_l0"].any(), "as the diagonal ones"
    ones = np.ones((rows * 5, 5), np.float32)
    layer.update({"weight_ch_l1": ones})
    assert_same_bits("weight_ch_l1", layer.params["weight_ch_l1"], ones)
    with pytest.raises(fastrnn.ShapeError, match="weight_ch_l0"):
        layer.update({"weight_ch_l0": ones[1:]})


def test_the_rows_belong_to_i_f_o() -> None:
    """A gate that is pushed far down by its rows is off."""
    x, state = np.zeros((1, 1, 2)), (np.zeros((1, 1, 3)), np.ones((1, 1, 3)))
    layer = fastrnn.LSTM(2, 3, peephole="dense", bias=False, dtype="float64", seed=0)
    layer.update({name: np.zeros_like(value) for name, value in layer.params.items()})
    found = []
    for gate in range(3):
        v = np.zeros((3, 3, 3))
        v[gate] = -1000.0
        layer.update({"weight_ch_l0": v.reshape(9, 3)})
        with fastrnn.use_backend("reference"):
            y, (_, c_n) = layer(x, state)
        found.append((float(c_n[0, 0, 0]), float(y[0, 0, 0])))
    half = 0.5 * float(np.tanh(0.5))
    np.testing.assert_allclose(found, [(0.5, half), (0.0, 0.0), (0.5, 0.0)], atol=1e-15)


# Backends


def calls(layer: Any, x: Any) -> list[Any]:
    return [
        lambda: layer(x), lambda: layer.forward(x, training=True), lambda: layer.stream(2),
        lambda: fastrnn.plan(layer, 3, 2),
    ]  # fmt: skip


def test_the_cpu_backend_refuses_them_by_name() -> None:
    layer, x = fastrnn.LSTM(2, 3, peephole="dense", seed=0), np.ones((3, 2, 2), np.float32)
    wanted = (
        "peephole: expected False or True on the backend 'cpu', got 'dense'; "
        "call it under fastrnn.use_backend('reference')"
    )
    for call in calls(layer, x):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
            call()
        assert str(caught.value) == wanted
    assert layer.calls == 0
    with fastrnn.use_backend("reference"):
        assert layer(x)[0].shape == (3, 2, 3)
        plan, plain = fastrnn.plan(layer, 3, 2), fastrnn.plan(fastrnn.LSTM(2, 3), 3, 2)
    assert "c_prev" in plan.explain()
    assert plan.work.flops - plain.work.flops == 2 * 6 * 3 * 3 * 3  # 2 a product, T*B rows, three matrices [3, 3]


def test_cells_that_may_have_them() -> None:
    assert DENSE_CELLS == LSTMS


def test_the_cells_equations_run_as_they_are() -> None:
    """No cell knows of the matrices: any with such gates gets them from the loop."""
    assert CELLS["lstm"].peepholes == CELLS["lstm_peephole"].peepholes == ("i", "f", "o")
    assert CELLS["lstm_coupled"].peepholes == ("f", "o")
    assert peepholes.gates(CELLS["lstm"]) == ([0, 1], 3)
    assert peepholes.gates(CELLS["lstm_coupled"]) == ([0], 2)


# CUDA, on the stand-in for CuPy

on_the_standin = pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools())
OF_GPU = {**OF_LSTMS, "dtype": test_cuda.ALL_DTYPES, "proj_size": (0, 1, 8)}


def covering() -> list[Any]:
    """Cases in which every pair of options occurs; a third of them in sizes that whole vectors fit, and are taken."""
    found = []
    for seed, options in enumerate(all_pairs(OF_GPU)):
        wide, given = seed % 3 == 0, {name: value for name, value in options.items() if name != "threads"}
        sizes = {"T": 4, "B": 1 if options["unbatched"] else 3, "I": 2, "H": 16 if wide else 9 + seed % 9}
        case = Case(backend="cuda", dense=True, seed=seed, **sizes, **given)
        found.append(pytest.param(case, wide, id=f"{seed}-{case.dtype}-{'wide' if wide else 'single'}"))
    return found


@pytest.fixture
def nothing_waits(cupy: ModuleType) -> ModuleType:
    """The stand-in, with passes that are launched kernel by kernel at first."""
    from fastrnn.cuda import places

    places.forget()
    return cupy


@on_the_standin
@pytest.mark.parametrize(("of_pairs", "wide"), covering())
def test_cuda_with_every_pair_of_options(
    of_pairs: Case, wide: bool, nothing_waits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import kernels

    if wide:
        monkeypatch.setattr(kernels, "WIDE_ELEMENTS", 1)
    problem = draw(of_pairs)
    assert_results(of_pairs, problem, test_cuda.evaluate_on_device(of_pairs, problem), expected(of_pairs, problem))


@on_the_standin
@pytest.mark.parametrize("options", test_cuda.KINDS, ids=str)
@pytest.mark.parametrize("dtype", test_cuda.ALL_DTYPES)
@pytest.mark.parametrize("cell", LSTMS)
def test_cuda_has_the_same_bits_in_both_widths(
    cell: str, dtype: str, options: dict[str, Any], nothing_waits: ModuleType
) -> None:
    case = Case(cell, "cuda", dtype, dense=True, T=3, B=2, I=3, H=16, lengths="full", reset="random", **options)
    problem, got, _ = test_cuda.in_both_widths(case)
    assert_results(case, problem, got, expected(case, problem))


@on_the_standin
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING, NORMALISED, {**EVERYTHING, **test_cuda.REGULARISED}], ids=str)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_cuda_keeps_nan_of_one_row_in_that_row(options: dict[str, Any], bad: float, nothing_waits: ModuleType) -> None:
    case = Case("lstm", "cuda", "float32", dense=True, T=7, B=5, H=33, **options)
    problem, layer = draw(case), make_layer(case, device="cuda:0")
    want = test_cuda.evaluate_on_device(case, problem, layer)
    row = 2 if problem.lengths is None else int(np.argmax(problem.lengths))
    problem.x[0, row, 1] = bad
    problem.state[1][:, row] = bad
    got = test_cuda.evaluate_on_device(case, problem, layer)
    assert not np.isfinite(got["y"][:, row]).all()
    others = np.arange(case.B) != row
    for name, value in want.items():
        if not test_properties.is_weight(name):
            assert_same_bits(name, got[name][:, others], value[:, others])


@on_the_standin
@pytest.mark.parametrize("options", [PLAIN, {"zoneout": 0.3}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("cell", LSTMS)
def test_cuda_never_sees_a_state_that_was_cleared(
    cell: str, options: dict[str, Any], nothing_waits: ModuleType
) -> None:
    """Neither the gates nor V's gradient."""
    case = Case(cell, "cuda", "float32", dense=True, reset="first", bidirectional=False, **options)
    problem, layer = draw(case), make_layer(case, device="cuda:0")
    want = test_cuda.evaluate_on_device(case, problem, layer)
    for part in problem.state:
        part[...] = np.nan
    for name, value in test_cuda.evaluate_on_device(case, problem, layer).items():
        assert_same_bits(name, value, want[name])
    assert not want["d c_0"].any()


@on_the_standin
@pytest.mark.parametrize(
    ("options", "products", "after"),
    [(PLAIN, 3, 3), ({"proj_size": 3}, 4, 4), ({"recurrent": "diagonal"}, 2, 2), ({"layer_norm": True}, 3, 3)],
    ids=str,
)
def test_what_a_step_launches(
    options: dict[str, Any], products: int, after: int, nothing_waits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel twice, and two products more; after the loop one product for each part of dV."""
    made = list[Any]()
    gemm = cupy_standin.Cublas.cublasGemmEx
    monkeypatch.setattr(cupy_standin.Cublas, "cublasGemmEx", lambda self, *args: made.append(args) or gemm(self, *args))
    case = Case("lstm", "cuda", dense=True, T=7, **options)
    layer, problem = make_layer(case, device="cuda:0"), test_cuda.on_device(draw(case))
    cupy_standin.launches.clear()
    back = layer.forward(problem.x, problem.state).backward
    assert len(made) == 1 + 7 * products
    assert cupy_standin.launches.count("step_forward") == 14
    made.clear()
    cupy_standin.launches.clear()
    back(problem.d_output, problem.d_state)
    assert len(made) == 7 * products + 2 + after
    loop = [name for name in cupy_standin.launches if name not in ("project_backward", "gains_backward")]
    assert loop == ["step_backward"] * 14 + ["initial_backward"]
    told = fastrnn.plan(layer, 7, 3, training=True).explain()
    assert f"per step {products} product(s) by cuBLAS, and the gates and all options in one fused kernel" in told
    assert "launched twice, since a gate sees all of c" in told
    assert "dV and dx by cuBLAS over all steps" in told


def broken(what: str) -> tuple[Any, str, Any]:
    """A mistake in the Python around the kernels: module, name and what to put there."""
    from fastrnn.cuda import backward, forward

    gradient, of_gates, finish, see = (
        backward._peephole_gradient, backward._of_gates, backward._finish, forward._see_cells,
    )  # fmt: skip

    def nothing_for_c(packed: Any, dah: Any, last: bool, out: Any) -> None:
        of_gates(packed, dah, last, out)
        if last:
            out[...] = 0

    def at_the_end(cell: Any, packed: Any, run: Any, states: Any, memory: Any, *rest: Any) -> Any:
        return finish(cell, packed, run, states, memory._replace(to_c_prev=None), *rest)

    mistakes: dict[str, tuple[Any, str, Any]] = {
        "c after zoneout in dV": (
            backward, "_peephole_gradient",
            lambda p, run, states, *rest: gradient(p, run, states._replace(own_c=None), *rest),
        ),
        "cleared states in dV": (
            backward, "_peephole_gradient", lambda *given: gradient(*given[:-1], given[-2])
        ),
        "c for c_prev in dV": (
            backward, "_peephole_gradient", lambda p, run, *rest: gradient(p, run._replace(reverse=True), *rest)
        ),
        "nothing for c from the gate that sees it": (backward, "_of_gates", nothing_for_c),
        "nothing for c_0 from the gates that see it": (backward, "_finish", at_the_end),
        "something for c_0 where it was cleared": (
            backward, "_finish", lambda cell, p, run, *rest: finish(cell, p, run._replace(clear=None), *rest)
        ),
        "c made in the place of c_prev": (
            forward, "_see_cells",
            lambda k, p, into, sums, before_it, *rest: see(k, p, into._replace(c=before_it[1]), sums, before_it, *rest),
        ),
    }  # fmt: skip
    return mistakes[what]


@on_the_standin
@pytest.mark.parametrize(
    ("what", "options", "seen"),
    [
        ("c after zoneout in dV", {"zoneout": 0.3}, "d weight_ch_l0: off by"),
        ("cleared states in dV", {"reset": "random"}, "d weight_ch_l0: off by"),
        ("c for c_prev in dV", {}, "d weight_ch_l0: off by"),
        ("nothing for c from the gate that sees it", {}, "d x: off by"),
        ("nothing for c_0 from the gates that see it", {}, "d c_0: off by"),
        ("something for c_0 where it was cleared", {"reset": "first"}, "d c_0: off by"),
        ("c made in the place of c_prev", {}, "y: off by"),
    ],
)
@pytest.mark.parametrize("cell", LSTMS)
def test_a_mistake_around_the_kernels_is_caught(
    cell: str, what: str, options: dict[str, Any], seen: str, nothing_waits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(cell, "cuda", dense=True, **options)
    problem = draw(case)
    want = expected(case, problem)
    assert_results(case, problem, test_cuda.evaluate_on_device(case, problem), want)
    monkeypatch.setattr(*broken(what))
    with pytest.raises(AssertionError, match=seen):
        assert_results(case, problem, test_cuda.evaluate_on_device(case, problem), want)


@on_the_standin
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_with_and_without_replay_apart(dtype: str, nothing_waits: ModuleType) -> None:
    """Passes of one shape otherwise, in turn; their weights change each time."""
    for seed in range(5):  # launched, run in a place, captured, replayed, replayed
        for dense in (True, False):
            case = Case("lstm", "cuda", dtype, dense=dense, seed=seed, zoneout=0.2)
            problem = draw(case)
            cupy_standin.replays.clear()
            assert_results(case, problem, test_cuda.evaluate_on_device(case, problem), expected(case, problem))
            assert (len(cupy_standin.replays) == 2) == (seed > 1)


@on_the_standin
def test_cuda_refuses_gates_in_another_order(nothing_waits: ModuleType, registry: None) -> None:
    others: list[dict[str, Any]] = [
        {"peepholes": ("f", "o")}, {"peepholes": ("f", "i", "o")}, {"peepholes": ("i", "f")}, {"unit_parameters": 3},
    ]  # fmt: skip
    own, x = CELLS["lstm"], nothing_waits.ones((3, 2, 2), np.float32)
    for other in others:
        CELLS["lstm"] = replace(own, **other)
        layer = fastrnn.LSTM(2, 3, peephole="dense", device="cuda:0", seed=0)
        for call in calls(layer, x):
            with pytest.raises(ValueError, match="peephole: expected 'dense' for a cell whose first gates see c_prev"):
                call()
