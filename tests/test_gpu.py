"""What runs on a GPU, where there is one: every option in every dtype against the reference, also replayed; models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import (
    CELLS,
    DENSE_CELLS,
    DTYPES,
    Case,
    Problem,
    assert_results,
    cuda_cases,
    draw,
    evaluate,
    expected,
    make_layer,
)
from tolerance import assert_close, assert_same_bits, rounding, trained

import fastrnn
from fastrnn import backends, models, philox, validation
from fastrnn.models import autoencode, forecast, tag, translate
from fastrnn.nn.embedding import scatter_add


def missing() -> str:
    """Why nothing here can run; empty if it can."""
    try:
        import ml_dtypes  # noqa: F401  # gives NumPy bfloat16

        validation.device("cuda:0")
    except (ImportError, RuntimeError) as error:
        return f"no kernel runs on a GPU here: {error}"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
ALL_DTYPES = (*DTYPES, "float16", "bfloat16")
SIZES = [(1, 2, 5, 1), (2, 33, 1, 7), (7, 3, 33, 33), (4, 1, 5, 257), (9, 64, 40, 512), (5, 300, 24, 1024)]
WIDE = SIZES[3:]  # rows of more than a warp
CASES = [
    *(case for dtype in ALL_DTYPES for _, case in cuda_cases(dtype)),
    *(Case(cell, "cuda", dtype, *size) for dtype in ALL_DTYPES for cell in CELLS for size in SIZES),
    *(Case(cell, "cuda", dtype, *size, layer_norm=True) for dtype in ALL_DTYPES for cell in CELLS for size in WIDE),
]
PASSES = 4  # launched, run in place, captured, replayed


def to_device(value: Any) -> Any:
    """Arrays as CuPy's, in the same layout, gaps and all; lengths stay on the host."""
    import cupy

    if isinstance(value, (tuple, list)):
        return type(value)(map(to_device, value))
    if not isinstance(value, np.ndarray):
        return value
    whole = value if value.base is None or value.flags.c_contiguous else value.base
    if whole is value or not isinstance(whole, np.ndarray) or whole.dtype != value.dtype:
        return cupy.asarray(value)
    offset = value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    placed = cupy.asarray(whole)
    return cupy.ndarray(value.shape, value.dtype, placed.data + offset, value.strides)


def on_device(problem: Problem) -> Problem:
    names = ("x", "state", "reset", "d_output", "d_state", "d_cells")
    return replace(problem, **{name: to_device(getattr(problem, name)) for name in names})


def evaluate_on_device(case: Case, problem: Problem, layer: Any) -> dict[str, np.ndarray]:
    return {name: value.get() for name, value in evaluate(layer, case, on_device(problem)).items()}


@pytest.mark.parametrize("plan", ["step", "block"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(case: Case, plan: str) -> None:
    from fastrnn.cuda import choice

    problem, layer = draw(case), make_layer(case, device="cuda:0")
    if plan == "block" and "plan block: not for this layer" in fastrnn.plan(layer, case.T, case.B).explain():
        pytest.skip("the plan declines this layer")
    want = expected(case, problem)
    with choice.forced(plan):
        first = evaluate_on_device(case, problem, layer)
        assert_results(case, problem, first, want)
        for _ in range(PASSES - 1):
            for name, value in evaluate_on_device(case, problem, layer).items():
                assert_same_bits(name, value, first[name])


@pytest.mark.parametrize("plan", ["step", "block"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_cases(cell: str, dtype: str, plan: str) -> None:
    """For compute-sanitizer: few launches, every kernel, and no pool, in which a wrong address would not show."""
    import cupy

    from fastrnn.cuda import choice

    with cupy.cuda.using_allocator(None), choice.forced(plan):
        plain: dict[str, Any] = {"lengths": "random", "reset": "random", "bidirectional": True}
        regularised = {**plain, "zoneout": 0.2, "recurrent_dropout": 0.2, "training": True}
        diagonal = {**regularised, "recurrent": "diagonal"}
        normalised = [(72, {**options, "layer_norm": True}) for options in (plain, regularised, diagonal)]
        dense = [(24, {**regularised, "dense": True}), (72, {**regularised, "dense": True, "layer_norm": True})]
        others = [*normalised, *(dense if cell in DENSE_CELLS else [])]
        for H, options in ((5, plain), (24, plain), (24, regularised), (24, diagonal), *others):
            case = Case(cell, "cuda", dtype, H=H, **options)
            problem = draw(case)
            got = evaluate_on_device(case, problem, make_layer(case, device="cuda:0"))
            assert_results(case, problem, got, expected(case, problem))


@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_equals_the_whole_sequence(cell: str) -> None:
    case = Case(cell, "cuda", "float32", T=8, H=33, num_layers=2)
    layer, x = make_layer(case, device="cuda:0"), to_device(draw(case).x)
    y, _ = layer(x)
    with layer.stream(case.B) as stream:
        ys = np.stack([stream.step(x_t).get() for x_t in x])
    assert_close("y", ys, y.get(), rounding("float32", case.T * case.num_layers, case.width))


def test_backward_on_another_stream() -> None:
    import cupy

    case = Case("lstm", "cuda", "float32", T=200, B=64, I=64, H=256, num_layers=2)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    want = layer.forward(problem.x).backward(problem.d_output).x.get()
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    for _ in range(2 * PASSES):
        with first:
            backward = layer.forward(problem.x).backward
        with second:
            got = backward(problem.d_output).x
        del backward  # its memory goes to the next pass of the first stream at once
        second.synchronize()
        assert_same_bits("d x", got.get(), want)


def test_parameters_are_read_on_another_stream_after_they_are_written() -> None:
    """A non-blocking stream waits for nothing by itself, neither for a new layer nor for an update."""
    import cupy

    cases = [Case("lstm", "cuda", "float32", T=2, B=64, I=1024, H=1024, seed=seed) for seed in range(PASSES)]
    x = on_device(draw(cases[0])).x
    layers = [make_layer(case, device="cuda:0") for case in cases]
    want, params = [layer(x)[0].get() for layer in layers], [layer.state_dict() for layer in layers]
    stream = cupy.cuda.Stream(non_blocking=True)
    for k, case in enumerate(cases):
        layer = make_layer(case, device="cuda:0")
        for updated in (k, 0):
            with stream:
                y = layer(x)[0]
            stream.synchronize()
            assert_same_bits("y", y.get(), want[updated])
            layer.update(params[0])


def test_a_step_of_a_stream_may_be_captured() -> None:
    import cupy

    case = Case("gru", "cuda", "float32", T=8, H=33, num_layers=2)
    layer, x = make_layer(case, device="cuda:0"), to_device(draw(case).x)
    y = layer(x)[0].get()
    own = cupy.cuda.Stream(non_blocking=True)
    with own, layer.stream(case.B) as stream:
        given, ys = cupy.empty_like(x[0]), [stream.step(x[0]).get()]
        own.begin_capture()
        out = stream.step(given)
        graph = own.end_capture()
        for x_t in x[1:]:
            given[...] = x_t
            graph.launch()
            ys.append(out.get())
    assert_close("y", np.stack(ys), y, rounding("float32", case.T * case.num_layers, case.width))


@pytest.mark.parametrize("count", [1, 3, 513, 2049])
def test_random_words_are_those_of_philox(count: int) -> None:
    import cupy

    seed, counter = 0x0123456789ABCDEF, (2**32 + 5, 3, philox.DROPOUT)
    got = backends.module("cuda").random_words(cupy, seed, counter, count)
    assert_same_bits("words", got.get(), philox.random_words(np, seed, counter, count))


WORDS = ["abcd", "dc", "bbacd", "a", "cabba"]
PAIRS = [translate.Example(w, w[::-1], "back") for w in WORDS] + [translate.Example(w, w.upper(), "up") for w in WORDS]
SENTENCES = [tag.Sentence(list(word), ["B-x", *["O"] * (len(word) - 1)]) for word in WORDS] * 2
MODELS: dict[str, tuple[Any, Any]] = {
    "forecast": (
        lambda **o: models.Forecaster(hidden=16, window=12, horizon=2, **o),
        lambda model, *a: model.fit(forecast.noisy_sine(90), *a),
    ),
    "tag": (
        lambda **o: models.Tagger.of(SENTENCES, hidden=12, embedding=7, dropout=0.3, **o),
        lambda model, *a: model.fit(tag.Corpus("toy", SENTENCES, SENTENCES[:2]), *a),
    ),
    "translate": (
        lambda **o: models.Translator("abcd", "abcdABCD", ["back", "up"], hidden=12, embedding=7, **o),
        lambda model, *a: model.fit(translate.Corpus(PAIRS[2:], PAIRS[:2]), *a),
    ),
    "autoencode": (
        lambda **o: models.Autoencoder("abcd", hidden=12, code=5, **o),
        lambda model, *a: model.fit(autoencode.Corpus("toy", WORDS[1:], WORDS[:1]), *a),
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_trains_as_on_the_cpu(name: str) -> None:
    """Every parameter after some steps of Adam; and the same bits again."""
    make, fit = MODELS[name]
    schedule = models.Schedule(steps=PASSES + 1, batch=4, lr=0.01, evaluate_every=3)
    on_cpu, there, again = make(seed=1), make(seed=1, device="cuda:0"), make(seed=1, device="cuda:0")
    want, got, _ = (fit(model, schedule) for model in (on_cpu, there, again))
    tolerance = trained("float32", 12 * schedule.steps, 40)
    assert got.loss == pytest.approx(want.loss, rel=tolerance)
    repeated = again.parts.on_host()
    for part, value in there.parts.on_host().items():
        assert_close(part, value, on_cpu.parts.params[part], tolerance)
        assert_same_bits(part, repeated[part], value)


def test_vectors_that_share_an_index_are_summed_alone() -> None:
    """No sum over all rows comes into it: NaN and huge values of one index reach no other one."""
    import cupy

    rng = np.random.default_rng(0)
    values, index = rng.standard_normal((4099, 33)).astype(np.float32), rng.integers(1, 200, size=4099)
    values[index == 2], values[index == 3] = np.nan, 1e30
    got = scatter_add(cupy.asarray(values), cupy.asarray(index), 256).get()
    for k in range(256):
        if k == 2:
            assert np.isnan(got[k]).all()
        else:
            want = values[index == k].astype(np.float64).sum(axis=0)
            assert_close(f"index {k}", got[k], want, rounding("float32", 0, 4099))
