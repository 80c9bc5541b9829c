"""The CUDA backend without a GPU: its Python on a stand-in for CuPy, its kernels on the CPU, checked as they run.

Every output and every gradient is compared by name with the reference in float64, which is then removed; threads and
blocks run in a different order each time, `empty` is NaN, and a race, an access outside the arrays that a kernel was
given, an argument of a wrong type and a hidden wait for the device fail.
"""

import inspect
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import ml_dtypes  # noqa: F401  # gives NumPy bfloat16
import numpy as np
import pytest
import test_properties
from cases import (
    CELLS,
    DENSE_CELLS,
    DTYPES,
    FUNCTIONS,
    Case,
    Problem,
    assert_results,
    by_name,
    cuda_cases,
    draw,
    evaluate,
    expected,
    make_layer,
    often_on_cuda,
    without_reference,
)
from tolerance import assert_close, assert_same_bits, rounding

import fastrnn
from fastrnn import backends, philox, recurrence

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("nothing_to_replay"),
]
SIXTEEN = ("float16", "bfloat16")
ALL_DTYPES = (*DTYPES, *SIXTEEN)


@pytest.fixture
def whole_vectors(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole vectors also for the small arrays of the tests."""
    from fastrnn.cuda import kernels

    monkeypatch.setattr(kernels, "WIDE_ELEMENTS", 1)


def to_device(value: Any) -> Any:
    """Arrays as the device's, in the same memory layout; lengths stay on the host, where they are checked."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(to_device, value))
    return cupy_standin.ndarray(value) if isinstance(value, np.ndarray) else value


def on_device(problem: Problem) -> Problem:
    names = ("x", "state", "reset", "d_output", "d_state", "d_cells")
    return replace(problem, **{name: to_device(getattr(problem, name)) for name in names})


def evaluate_on_device(case: Case, problem: Problem, layer: Any = None) -> dict[str, np.ndarray]:
    layer = layer or make_layer(case, device="cuda:0")
    given = on_device(problem)
    with without_reference():
        cupy_standin.waits.clear()
        got = evaluate(layer, case, given)
        assert cupy_standin.waits == []
    assert all(isinstance(value, cupy_standin.ndarray) for value in got.values())
    return {name: value._host for name, value in got.items()}


SIZES = [(1, 2, 5, 1), (2, 33, 1, 7), (7, 3, 33, 33), (2, 1, 5, 257), (5, 5, 4, 64)]
CASES = [
    *(case for dtype in DTYPES for _, case in cuda_cases(dtype)),
    *(Case(cell, "cuda", dtype, *size, seed=k) for dtype in DTYPES for cell in CELLS for k, size in enumerate(SIZES)),
    *(Case(cell, "cuda", "float32", *size, dense=True, seed=1) for cell in DENSE_CELLS for size in SIZES),
]
SOME = (
    "plain", "everything", "projection-everything", "reset-lengths-bidirectional", "diagonal-regularised",
    "zoneout-training", "norm-everything", "norm-projection", "norm-diagonal", "dense-everything",
    "dense-projection-everything", "dense-diagonal-regularised", "dense-norm-everything",
)  # fmt: skip
REGULARISED: dict[str, Any] = {"zoneout": 0.3, "recurrent_dropout": 0.3, "training": True}
DIAGONAL: dict[str, Any] = {"recurrent": "diagonal", "zoneout": 0.2}
TWO_WARPS: dict[str, Any] = {"H": 40, "T": 3, "B": 2, "num_layers": 1, "dropout": 0.0, "training": True}
NORMALISED: dict[str, Any] = {"layer_norm": True, "zoneout": 0.2}
ALTOGETHER: list[dict[str, Any]] = [
    norm | options for norm in ({}, {"layer_norm": True}) for options in ({}, REGULARISED, {**REGULARISED, **DIAGONAL})
]
DENSE: dict[str, Any] = {"dense": True}
ALTOGETHER += [
    DENSE, {**DENSE, **REGULARISED, "proj_size": 3}, {**DENSE, **REGULARISED, **DIAGONAL},
    {**DENSE, **REGULARISED, "layer_norm": True},
]  # fmt: skip


def cells_with(options: Any) -> list[str]:
    return [cell for cell in CELLS if cell in DENSE_CELLS or not options.get("dense")]


def on_cells(*several: Any) -> list[Any]:
    """Every cell with each of these options that it can have."""
    return [pytest.param(cell, options, id=f"{cell}-{options}") for options in several for cell in cells_with(options)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(case: Case, cupy: ModuleType) -> None:
    problem = draw(case)
    want = expected(case, problem)
    assert_results(case, problem, evaluate_on_device(case, problem), want)


@pytest.mark.parametrize("case", [case for dtype in SIXTEEN for name, case in cuda_cases(dtype)], ids=str)
def test_16_bit_types_agree_with_the_reference(case: Case, cupy: ModuleType) -> None:
    problem = draw(case)
    want = expected(case, problem)
    assert_results(case, problem, evaluate_on_device(case, problem), want)


@pytest.mark.parametrize(
    "case",
    [
        replace(case, proj_size=8 if case.proj_size else 0, **(TWO_WARPS if case.layer_norm else {"H": 24}))
        for dtype in ALL_DTYPES
        for name, case in cuda_cases(dtype)
        if name in SOME
    ],
    ids=str,
)
def test_whole_vectors_have_the_bits_of_single_elements(case: Case, cupy: ModuleType) -> None:
    in_both_widths(replace(case, strided=False, batch_first=False))


def in_both_widths(case: Case) -> tuple[Problem, dict[str, np.ndarray], set[Any]]:
    """Assert the same bits in both; return the results, and the variants whose kernels have run both ways in time."""
    from fastrnn.cuda import kernels, places

    loaded, results, variants, load = list[Any](), list[dict[str, np.ndarray]](), set[Any](), kernels._load
    problem, layer = draw(case), make_layer(case, device="cuda:0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_load", lambda variant, device: loaded.append(variant) or load(variant, device))
        for elements, width in ((1, kernels.source.widths(case.dtype)[1]), (1 << 18, 1)):
            patch.setattr(kernels, "WIDE_ELEMENTS", elements)
            places.forget()  # which remember the width that they were run with
            loaded.clear()
            cupy_standin.launches.clear()
            results.append(evaluate_on_device(case, problem, layer))
            assert {variant.width for variant in loaded} == {width}
            assert {"step_forward", "step_backward"} <= set(cupy_standin.launches)
            variants |= set(loaded)
    for name, value in results[1].items():
        assert_same_bits(name, results[0][name], value)
    return problem, results[0], variants


KINDS: list[dict[str, Any]] = [{}, REGULARISED, {"layer_norm": True}]  # of variants


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        pytest.param(cell, dtype, marks=[] if often_on_cuda(cell, dtype) else [pytest.mark.nightly])
        for cell in CELLS for dtype in ALL_DTYPES if CELLS[cell].cuda
    ],
)  # fmt: skip
def test_every_variant_agrees_with_the_reference(cell: str, dtype: str, cupy: ModuleType) -> None:
    """In small sizes; the variants that there are, all of a cell and dtype, are those that were run."""
    from fastrnn.cuda import source

    run = set[Any]()
    for options in KINDS:
        case = Case(cell, "cuda", dtype, T=3, B=2, I=3, H=16, lengths="full", reset="random", **options)
        problem, got, variants = in_both_widths(case)
        assert_results(case, problem, got, expected(case, problem))
        run |= variants
    assert run == {variant for variant in source.variants() if (variant.cell, variant.dtype) == (cell, dtype)}


def test_the_dtypes_of_the_variants_are_those_that_are_tested(cupy: ModuleType) -> None:
    from fastrnn.cuda import source

    assert {variant.dtype for variant in source.variants()} == set(ALL_DTYPES)


@pytest.mark.usefixtures("whole_vectors")
def test_rows_that_are_no_whole_vectors_are_taken_one_by_one() -> None:
    """Sizes that divide, but an array from outside whose rows begin elsewhere."""
    case = Case("lstm", "cuda", "float32", H=24, strided=True)
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))


@pytest.mark.parametrize(("cell", "options"), on_cells({}, {"layer_norm": True}, DENSE, {**DENSE, "layer_norm": True}))
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_nothing_to_do(cell: str, T: int, B: int, options: Any, cupy: ModuleType) -> None:
    case = Case(cell, "cuda", T=T, B=B, bidirectional=True, **options)
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))


@pytest.mark.parametrize(
    ("cell", "options"),
    on_cells(
        {}, {"zoneout": 0.3}, DIAGONAL, NORMALISED, {**DIAGONAL, **NORMALISED}, DENSE, {**DENSE, "zoneout": 0.3},
        {**DENSE, **NORMALISED}, {**DENSE, **DIAGONAL}, {**DENSE, "proj_size": 3},
    ),
)  # fmt: skip
def test_a_call_that_saves_nothing_has_the_same_bits(cell: str, options: Any, cupy: ModuleType) -> None:
    same_bits_if_nothing_is_saved(
        Case(cell, "cuda", T=6, lengths="random", reset="random", bidirectional=True, num_layers=2, **options)
    )


def same_bits_if_nothing_is_saved(case: Case) -> None:
    """Assert that a call has the bits of a forward pass."""
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    y, state = layer(problem.x, problem.state, lengths=problem.lengths, reset=problem.reset)
    saving = layer.forward(problem.x, problem.state, lengths=problem.lengths, reset=problem.reset)
    assert_same_bits("y", y._host, saving.y._host)
    for name, value in by_name(case, state).items():
        assert_same_bits(name, value._host, by_name(case, saving.state)[name]._host)


@pytest.mark.parametrize("options", ALTOGETHER, ids=str)
def test_padding_reaches_nothing(options: Any, cupy: ModuleType) -> None:
    for cell in cells_with(options):
        padding_reaches_nothing(Case(cell, "cuda", T=6, B=4, lengths="random", bidirectional=True, **options))


def padding_reaches_nothing(case: Case) -> None:
    """Assert the same bits with NaN wherever there is no step."""
    problem, layer = draw(case), make_layer(case, device="cuda:0")
    want = evaluate_on_device(case, problem, layer)
    assert problem.lengths is not None
    padding = np.arange(case.T)[:, None] >= problem.lengths
    for array in (problem.x, problem.d_output, *(problem.d_cells or [])):
        array[padding] = np.nan
    for part in problem.state if case.cell_state else [problem.state]:
        part[:, problem.lengths == 0] = np.nan  # the state of an empty sequence
    for name in ("h_n", "c_n") if case.cell_state else ("h_n",):
        want[name][:, problem.lengths == 0] = np.nan
    for name, value in evaluate_on_device(case, problem, layer).items():
        assert_same_bits(name, value, want[name])


@pytest.mark.parametrize("options", ALTOGETHER, ids=str)
def test_backward_is_pure(options: Any, cupy: ModuleType) -> None:
    for cell in cells_with(options):
        backward_is_pure(Case(cell, "cuda", reset="random", num_layers=2, **options))


def backward_is_pure(case: Case) -> None:
    """Assert the same bits from a second backward pass, after the caller has overwritten y."""
    problem = on_device(draw(case))
    y, _, backward = make_layer(case, device="cuda:0").forward(
        problem.x, problem.state, reset=problem.reset, training=case.training
    )
    first = backward(problem.d_output, problem.d_state)
    y[...] = 7  # what the layer handed out belongs to the caller
    second = backward(problem.d_output, problem.d_state)
    assert_same_bits("d x", second.x._host, first.x._host)
    for name, value in first.params.items():
        assert_same_bits(name, second.params[name]._host, value._host)


@pytest.mark.parametrize(
    ("cell", "options"),
    on_cells(
        {}, {"zoneout": 0.3}, {"projected": True, "zoneout": 0.3}, DIAGONAL, {"projected": True, **NORMALISED},
        {**DIAGONAL, **NORMALISED}, DENSE, {**DENSE, "projected": True, "zoneout": 0.3}, {**DENSE, **DIAGONAL},
        {**DENSE, **NORMALISED},
    ),
)  # fmt: skip
@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_a_stream_equals_the_whole_sequence(cell: str, dtype: str, options: Any, cupy: ModuleType) -> None:
    others = {name: value for name, value in options.items() if name != "projected"}
    projected = "projected" in options and CELLS[cell].cell_state
    case = Case(cell, "cuda", dtype, T=6, num_layers=2, proj_size=3 if projected else 0, **others)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    y, state = layer(problem.x, problem.state)
    with layer.stream(case.B) as stream:
        stream.set_state(problem.state)
        ys = np.stack([stream.step(problem.x[t])._host.copy() for t in range(case.T)])
        end = stream.state
    allowed = rounding(dtype, case.T * case.num_layers, case.width)
    assert_close("y", ys, y._host, allowed)
    for name, value in by_name(case, end).items():
        assert value.dtype == dtype
        assert_close(name, value._host, by_name(case, state)[name]._host, allowed)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 513, 2049])
def test_random_words_are_those_of_philox(count: int, cupy: ModuleType) -> None:
    seed, counter = 0x0123456789ABCDEF, (2**32 + 5, 3, philox.DROPOUT)
    got = backends.module("cuda").random_words(cupy, seed, counter, count)
    assert_same_bits("words", got._host, philox.random_words(np, seed, counter, count))


def test_launches_per_step(cupy: ModuleType) -> None:
    """One kernel a step, and nothing else of ours; the products are cuBLAS's."""
    case = Case("lstm", "cuda", T=7)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    cupy_standin.launches.clear()
    backward = layer.forward(problem.x, problem.state).backward
    assert cupy_standin.launches == ["step_forward"] * 7
    cupy_standin.launches.clear()
    backward(problem.d_output, problem.d_state)
    assert cupy_standin.launches == ["step_backward"] * 7 + ["initial_backward"]


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "gru_reset_before"])
def test_normalisation_adds_no_launch_to_a_step(cell: str, cupy: ModuleType) -> None:
    """One before the loop and one after it, for all rows at once."""
    launches = []
    for layer_norm in (False, True):
        case = Case(cell, "cuda", T=7, layer_norm=layer_norm)
        layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
        cupy_standin.launches.clear()
        layer.forward(problem.x, problem.state).backward(problem.d_output, problem.d_state)
        launches.append(list(cupy_standin.launches))
    assert launches[1] == ["input_moments", *launches[0], "gains_backward"]
    told = fastrnn.plan(layer, 7, 3, training=True).explain()
    assert "input product of all steps by cuBLAS, then mean and scale of its rows" in told
    assert "a block for each row, which is normalised" in told


@pytest.mark.parametrize("cell", CELLS)
def test_a_large_mean_costs_no_digits(cell: str, cupy: ModuleType) -> None:
    """The variance as mean square less squared mean would have no digit left in float32."""
    case = Case(cell, "cuda", "float32", H=37, layer_norm=True)
    problem = draw(case)
    problem = replace(problem, x=np.abs(problem.x) + np.float32(0.5))

    def shifted(dtype: str, **options: Any) -> Any:
        layer = make_layer(case, dtype, **options)
        layer.update({"weight_ih_l0": (make_layer(case).params["weight_ih_l0"] + np.float32(2000)).astype(dtype)})
        return layer

    want = evaluate(shifted("float64"), case, problem.astype("float64"), "reference")["y"]
    got = evaluate_on_device(case, problem, shifted("float32", device="cuda:0"))["y"]
    # x W is rounded at 2000 * sum(x), before it is normalised
    assert_close("y", got, want, 2000 * case.I * rounding("float32", case.T, case.width))


@pytest.mark.parametrize("cell", ["lstm_peephole", "gru", "gru_reset_before"])
def test_a_diagonal_needs_no_product_in_the_loop(cell: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import backward, forward

    products: list[Any] = []
    for module in (backward, forward):
        own = module.multiply
        monkeypatch.setattr(module, "multiply", lambda *a, own=own, **k: products.append(a) or own(*a, **k))
    case = Case(cell, "cuda", T=7, **REGULARISED, recurrent="diagonal")
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    cupy_standin.launches.clear()
    back = layer.forward(problem.x, problem.state, training=True).backward
    assert len(products) == 1  # of the input
    back(problem.d_output, problem.d_state)
    assert len(products) == 1
    loops = [name for name in cupy_standin.launches if name != "random_words"]
    assert loops == ["step_forward"] * 7 + ["step_backward"] * 7 + ["initial_backward"]
    told = fastrnn.plan(layer, 7, 3, training=True).explain()
    assert "per step the gates and all options in one fused kernel" in told
    assert "dU in the loop" in told


@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", {}), ("gru_reset_before", {}), ("lstm", DENSE), ("lstm", {**DENSE, "layer_norm": True})],
)
def test_rows_beyond_the_largest_grid(
    cell: str, options: Any, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid has at most 65535 rows of blocks; here one, of several rows, so that every thread goes on to others."""
    from fastrnn.cuda import kernels

    monkeypatch.setattr(kernels, "GRID_ROWS", 1)
    proj_size = 3 if CELLS[cell].cell_state else 0
    case = Case(cell, "cuda", T=5, B=11, H=5, lengths="random", proj_size=proj_size, **options)
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))


def test_the_standin_is_as_strict_as_cupy(cupy: ModuleType) -> None:
    a, b = cupy.zeros(3, "float32"), cupy.zeros(3, "bfloat16")
    mask = a >= 0
    cupy_standin.waits.clear()
    a[mask] = 1
    assert a[mask].shape == (3,)
    assert a[0] > 0
    assert cupy.asnumpy(a).tolist() == [1, 1, 1]
    assert cupy.flatnonzero(mask).shape == (3,)
    assert float(a.max()) == 1
    waits = ["boolean index", "boolean index", "truth value", "copy to the host", "flatnonzero", "number"]
    assert cupy_standin.waits == waits
    for mixed in (lambda: a + np.ones(3, "float32"), lambda: np.add(a, 1), lambda: np.asarray(a)):
        with pytest.raises(TypeError):
            mixed()
    with pytest.raises(AssertionError, match="no number for a condition"):
        cupy.where(True, a, a)
    with pytest.raises(AssertionError, match="only matrices"):
        cupy.zeros((2, 2, 2), "bfloat16") @ cupy.zeros((2, 2), "bfloat16")
    with pytest.raises(AssertionError, match="selects no bfloat16"):
        cupy.where(mask, 0, b)
    with pytest.raises(AssertionError, match="only matrices"):
        cupy.matmul(cupy.zeros((2, 2, 2)), cupy.zeros((2, 2, 2)))
    with pytest.raises(AssertionError, match="would write to a copy"):
        cupy.matmul(cupy.zeros((2, 3)), cupy.zeros((3, 4)), out=cupy.zeros((4, 2)).T)
    assert np.isnan(cupy.empty(2)._host).all()


def test_the_backend_has_the_functions_of_a_backend(cupy: ModuleType) -> None:
    for function in FUNCTIONS:
        wanted = list(inspect.signature(getattr(recurrence.Backend, function)).parameters)[1:]
        assert list(inspect.signature(getattr(backends.module("cuda"), function)).parameters) == wanted


def test_a_layer_moves_and_keeps_its_parameters(cupy: ModuleType, tmp_path: Any) -> None:
    layer = fastrnn.LSTM(3, 5, proj_size=2, seed=0)
    before = layer.state_dict()
    assert layer.to("cuda") is layer
    assert layer.device == "cuda:0"
    assert "device='cuda:0'" in repr(layer)
    taken = layer.params["weight_hh_l0"]
    assert isinstance(taken, cupy_standin.ndarray)
    taken[...] = 0  # a copy: the layer does not see it
    layer.save(tmp_path / "layer.safetensors")
    loaded = fastrnn.load(tmp_path / "layer.safetensors")
    assert loaded.device == "cpu"
    for other in (loaded, layer.to("cpu")):
        for name, value in before.items():
            assert_same_bits(name, other.params[name], value)
    layer.to("cuda:0").update({"weight_hh_l0": before["weight_hh_l0"] * 2, "bias_ih_l0": cupy.zeros(20, "float32")})
    assert_same_bits("weight_hh_l0", layer.params["weight_hh_l0"]._host, before["weight_hh_l0"] * 2)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_a_saved_layer_is_loaded_onto_the_gpu(dtype: str, cupy: ModuleType, tmp_path: Any) -> None:
    path, mask = tmp_path / "a", np.tri(5)
    layer = fastrnn.LSTM(3, 5, 2, recurrent=mask, dropout=0.5, dtype=dtype, device="cuda:0", seed=0)
    layer.calls = 7
    layer.save(path)
    loaded = fastrnn.load(path, device="cuda")
    assert (repr(loaded), loaded.calls, loaded.seed) == (repr(layer), 7, 0)
    x = cupy_standin.ndarray(np.ones((2, 1, 3)).astype(dtype))
    for name, value in layer.state_dict().items():
        assert isinstance(loaded.state_dict()[name], cupy_standin.ndarray)
        assert_same_bits(name, loaded.state_dict()[name]._host, value._host)
    assert_same_bits("y", loaded(x)[0]._host, layer(x)[0]._host)
    with pytest.raises(RuntimeError, match="device: 'cuda:1' needs a GPU of that number"):
        fastrnn.load(path, "cuda:1")
    if dtype in SIXTEEN:
        with pytest.raises(TypeError, match=f'device: expected a GPU for .*/a, a layer of {dtype}, .*device="cuda:0"$'):
            fastrnn.load(path)
    else:
        assert fastrnn.load(path).device == "cpu"


def test_arrays_and_layers_must_be_on_the_same_device(cupy: ModuleType) -> None:
    x = np.zeros((2, 1, 3), np.float32)
    on_cpu, on_gpu = fastrnn.GRU(3, 4, seed=0), fastrnn.GRU(3, 4, seed=0, device="cuda:0")
    with pytest.raises(TypeError, match=r"x: expected \[T, B, 3\] float32 as a CuPy array on cuda:0, got ndarray"):
        on_gpu(x)
    with pytest.raises(TypeError, match=r"x: expected \[T, B, 3\] float32 as a NumPy array, got a CuPy array"):
        on_cpu(to_device(x))
    for layer, name in ((on_cpu, "cuda"), (on_gpu, "cpu")):
        with fastrnn.use_backend(name), pytest.raises(TypeError, match=f"backend: expected 'reference'.*got '{name}'"):
            layer(x)
    with pytest.raises(RuntimeError, match="'cuda:1' needs a GPU of that number, and CuPy finds 1"):
        on_cpu.to("cuda:1")
    with pytest.raises(TypeError, match="dtype: expected one of float32, float64 on the CPU"):
        fastrnn.GRU(3, 4, seed=0, device="cuda:0", dtype="float16").to("cpu")


def test_a_cell_without_a_cuda_rendering_is_refused_by_name(cupy: ModuleType, registry: None) -> None:
    layer = fastrnn.register(replace(CELLS["mgu"], name="bare", cuda=None))(3, 4, seed=0, device="cuda:0")
    x = cupy.ones((2, 1, 3), "float32")
    for call in (lambda: layer(x), lambda: layer.forward(x), lambda: layer.stream(), lambda: fastrnn.plan(layer, 2)):
        with pytest.raises(ValueError, match=r"cell: expected one with a CUDA rendering .*, got 'bare'"):
            call()
    with fastrnn.use_backend("reference"):
        assert layer(x)[0].shape == (2, 1, 4)


def test_a_struct_without_a_readout_is_refused_with_layer_norm(cupy: ModuleType, registry: None) -> None:
    text, struct = CELLS["leaky_lstm"].cuda or ("", "")
    bare = replace(CELLS["leaky_lstm"], name="half", cuda=(text.replace("readout", "of_v"), struct))
    layer, x = fastrnn.register(bare), cupy.ones((2, 1, 3), "float32")
    normalised = layer(3, 4, layer_norm=True, device="cuda:0")
    for call in (lambda: normalised(x), lambda: fastrnn.plan(normalised, 2)):
        with pytest.raises(ValueError, match="layer_norm: expected False, since the struct of 'half' has no readout"):
            call()
    assert layer(3, 4, device="cuda:0")(x)[0].shape == (2, 1, 4)


def test_a_separate_gate_must_be_the_last_one(cupy: ModuleType, registry: None) -> None:
    x = cupy.ones((2, 1, 3), "float32")
    for name, options in (("first", {"separate": ("r",)}), ("both", {"gated": CELLS["gru_reset_before"].gated})):
        layer = fastrnn.register(replace(CELLS["gru"], name=name, **options))(3, 4, seed=0, device="cuda:0")
        for call in (layer, lambda x, layer=layer: fastrnn.plan(layer, len(x))):
            with pytest.raises(ValueError, match=f"cell: expected no separate gate but the last, .* of '{name}'"):
                call(x)


def test_a_struct_that_is_not_the_registered_cell_does_not_compile(
    cupy: ModuleType, registry: None, tmp_path: Path
) -> None:
    from fastrnn.cuda import source

    wrong: dict[str, Any] = {"saved": 3, "unit_parameters": 1, "uses_h": True, "uses_h_prev": False, "cell_state": True}
    wrong["gates"] = ("f",)
    for option, value in wrong.items():
        fastrnn.register(replace(CELLS["mgu"], name=f"with_{option}", **{option: value}))
        code = source.assemble(source.Variant(f"with_{option}", "float32", 1))
        told = {"unit_parameters": "parameters"}.get(option, option)
        with pytest.raises(RuntimeError, match=f"with_{option}: {told}: expected .*, as registered"):
            host_kernels.check_syntax(code, tmp_path)
    host_kernels.check_syntax(source.assemble(source.Variant("mgu", "float32", 1)), tmp_path)


def test_another_struct_is_another_cubin(cupy: ModuleType, registry: None) -> None:
    from fastrnn.cuda import source

    variant, (text, struct) = source.Variant("mgu", "float32", 1), CELLS["mgu"].cuda or ("", "")
    before = source.cubin(variant, 90)
    assert text in source.assemble(variant)
    try:
        source.assemble.cache_clear()
        CELLS["mgu"] = replace(CELLS["mgu"], cuda=(text.replace("n * n", "n"), struct))
        assert source.cubin(variant, 90) == before  # the text has no such thing
        source.assemble.cache_clear()
        CELLS["mgu"] = replace(CELLS["mgu"], cuda=(text.replace("f * n", "n * f"), struct))
        assert source.cubin(variant, 90) != before
    finally:
        source.assemble.cache_clear()


# Every pair of option values together, at least four of them not the default; the dtypes are the GPU's.

CHOICES = {**test_properties.CHOICES, "dtype": ALL_DTYPES, "proj_size": (0, 1, 8), "dense": (False, True)}
del CHOICES["threads"]  # of the CPU
COVERING = [
    Case(backend="cuda", seed=seed, **options, **{**sizes, "H": 24 if seed % 2 else 5 + sizes["H"]})
    for seed, (options, sizes) in enumerate(test_properties.covering(CHOICES))
]  # half of them in sizes that whole vectors fit


EVERYDAY = [  # a third of them, each of which runs five times over; all in the nightly run
    pytest.param(case, marks=[pytest.mark.nightly] if number % 3 else [], id=str(case))
    for number, case in enumerate(COVERING)
]


@pytest.mark.parametrize("case", EVERYDAY)
def test_every_pair_of_option_values_together(case: Case, cupy: ModuleType) -> None:
    """Launched, then run in a place, captured and replayed, in whole vectors: the bits of single elements each time."""
    from fastrnn.cuda import kernels, places

    problem, layer = draw(case), make_layer(case, device="cuda:0")
    want = evaluate_on_device(case, problem, layer)
    assert_results(case, problem, want, expected(case, problem))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "WIDE_ELEMENTS", 1)
        places.forget()
        for _ in range(4):
            for name, value in evaluate_on_device(case, problem, layer).items():
                assert_same_bits(name, value, want[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mask_on_the_recurrent_weights_moves_with_the_layer(dtype: str, cupy: ModuleType) -> None:
    mask = np.random.default_rng(0).random((5, 5)) < 0.5
    layer = fastrnn.GRU(3, 5, seed=0, device="cuda:0", dtype=dtype, recurrent=mask)
    layer.update({"weight_hh_l0": cupy.ones((15, 5), dtype)})
    cupy_standin.waits.clear()
    grads = layer.forward(cupy.ones((4, 2, 3), dtype)).backward(cupy.ones((4, 2, 5), dtype))
    assert cupy_standin.waits == []
    for array in (layer.params["weight_hh_l0"], grads.params["weight_hh_l0"]):
        np.testing.assert_array_equal(array._host != 0, np.tile(mask, (3, 1)))


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", {}), pytest.param("LSTM", {"peephole": "dense"}, marks=pytest.mark.nightly)],
    ids=str,
)
def test_recompute_rounds_no_more_than_keeping_the_gates(name: str, options: Any, dtype: str, cupy: ModuleType) -> None:
    """Twenty segments: what is added up over them, and c and its gradient between them, stay in float32."""
    random, exact = np.random.default_rng(0), getattr(fastrnn, name)(3, 6, seed=0, dtype="float64", **options)
    exact.update({key: value.astype(dtype).astype("float64") for key, value in exact.params.items()})
    x, dy = (random.uniform(0, 1, (400, 2, n)).astype(dtype) for n in (3, 6))
    with fastrnn.use_backend("reference"):
        want = exact.forward(x.astype("float64")).backward(dy.astype("float64")).params
    errors = dict[str, dict[str, float]]()
    for save in ("gates", "recompute"):
        layer = getattr(fastrnn, name)(3, 6, seed=0, dtype=dtype, device="cuda:0", save=save, **options)
        layer.update({key: cupy.asarray(value.astype(dtype)) for key, value in exact.params.items()})
        got = layer.forward(cupy.asarray(x)).backward(cupy.asarray(dy)).params
        errors[save] = {
            key: float(np.linalg.norm(got[key]._host.astype("float64") - want[key]) / np.linalg.norm(want[key]))
            for key in want
        }
    for key in want:
        assert errors["recompute"][key] <= 1.25 * errors["gates"][key], (key, errors)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"}, {"cell": "lstm", "dense": True}, {"cell": "lstm", **REGULARISED, "proj_size": 3},
        {"cell": "gru", "recurrent": "diagonal"}, {"cell": "gru_reset_before"}, {"cell": "rnn_relu", "num_layers": 2},
        {"cell": "lstm", "lengths": "none", "reset": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_the_reference_runs_on_the_gpus_arrays(options: Any, dtype: str, cupy: ModuleType) -> None:
    ragged = {"lengths": "random", "reset": "random", "bidirectional": True, "batch_first": True}
    case = Case(backend="reference", dtype=dtype, **{**ragged, **options})
    problem = draw(case)
    got = evaluate(make_layer(case, device="cuda:0"), case, on_device(problem))
    assert_results(case, problem, {name: value._host for name, value in got.items()}, expected(case, problem))
