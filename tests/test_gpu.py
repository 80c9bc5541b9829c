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


@pytest.mark.parametrize("plan", ["step", "block", "grid"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(case: Case, plan: str) -> None:
    from fastrnn.cuda import choice

    problem, layer = draw(case), make_layer(case, device="cuda:0")
    if f"plan {plan}: not for this layer" in fastrnn.plan(layer, case.T, case.B).explain():
        pytest.skip("the plan declines this layer")
    want = expected(case, problem)
    with choice.forced(plan):
        first = evaluate_on_device(case, problem, layer)
        assert_results(case, problem, first, want)
        for _ in range(PASSES - 1):
            for name, value in evaluate_on_device(case, problem, layer).items():
                assert_same_bits(name, value, first[name])


@pytest.mark.parametrize("plan", ["step", "block", "grid"])
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


# fastrnn.torch on CUDA tensors


def no_torch() -> str:
    """Why the modules cannot run on a GPU here; empty if they can."""
    try:
        import torch
    except ImportError as error:
        return str(error)
    return "" if torch.cuda.is_available() else "torch finds no GPU"


with_torch = pytest.mark.skipif(bool(no_torch()), reason=no_torch())
T_, B_, I_, H_ = 12, 5, 24, 40
KINDS = ("RNN", "LSTM", "GRU")
MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no-bias": {"bias": False},
}


def twins(kind: str, dtype: str, device: str, **options: Any) -> tuple[Any, Any]:
    """fastrnn.torch's module, and torch's in float64 with the same numbers."""
    import torch

    import fastrnn.torch

    torch.manual_seed(7)
    ours = getattr(fastrnn.torch, kind)(I_, H_, **options).to(device, getattr(torch, dtype))
    theirs = getattr(torch.nn, kind)(I_, H_, **options).to(device, torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def module_results(module: Any, steps: Any, lengths: Any = None) -> dict[str, Any]:
    """Output, states, and the gradients of the input and of all parameters, as tensors."""
    import torch
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

    weight = next(module.parameters())
    x = steps.detach().to(weight.device, weight.dtype).requires_grad_()
    given = x if lengths is None else pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
    y, state = module(given)
    outputs = [y.data if isinstance(y, PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]
    generator = torch.Generator().manual_seed(3)
    d = [torch.randn(o.shape, generator=generator).to(weight.dtype).to(o.device) for o in outputs]
    targets = {"x": x, **dict(module.named_parameters())}
    grads = torch.autograd.grad(outputs, list(targets.values()), d)
    found = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
    return found | {f"d {name}": g for name, g in zip(targets, grads, strict=True)}


def steps_for(options: dict[str, Any], dtype: str) -> Any:
    import torch

    shape = (B_, T_, I_) if options.get("batch_first") else (T_, B_, I_)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))


def assert_as_torch(got: dict[str, Any], want: dict[str, Any], dtype: str) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert str(got[name].dtype) == f"torch.{dtype}", name
        assert got[name].device == value.device, name
        assert_close(name, got[name].double().cpu().numpy(), value.cpu().numpy(), rounding(dtype, 3 * T_, 6 * H_))


def assert_modules_agree(kind: str, dtype: str, options: dict[str, Any], lengths: Any, device: str) -> None:
    ours, theirs = twins(kind, dtype, device, **options)
    steps = steps_for(options, dtype)
    want = module_results(theirs, steps, lengths)
    first = module_results(ours, steps, lengths)
    assert_as_torch(first, want, dtype)
    for _ in range(PASSES):  # as graphs
        for name, value in module_results(ours, steps, lengths).items():
            assert_same_bits(name, value.double().cpu().numpy(), first[name].double().cpu().numpy())


@with_torch
@pytest.mark.parametrize("lengths", [None, [12, 3, 7, 1, 12]], ids=["padded", "packed"])
@pytest.mark.parametrize("options", MODULES)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_modules_as_torch_nn(kind: str, dtype: str, options: str, lengths: Any) -> None:
    import torch

    assert_modules_agree(kind, dtype, MODULES[options], None if lengths is None else torch.tensor(lengths), "cuda")


@with_torch
@pytest.mark.parametrize("kind", KINDS)
def test_torch_modules_on_a_side_stream(kind: str) -> None:
    """What was computed on one of torch's streams, and on what follows on it without a host that waits."""
    import torch

    ours, theirs = twins(kind, "float32", "cuda", num_layers=2)
    steps = torch.randn(200, 32, I_, device="cuda")
    want = module_results(theirs, steps)
    torch.cuda.synchronize()
    for _ in range(2 * PASSES):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # the host is far ahead
            late = steps * 0.5
            got = module_results(ours, late + late)
        stream.synchronize()
        for name, value in want.items():
            tolerance = rounding("float32", 3 * 200, 6 * H_)
            assert_close(name, got[name].double().cpu().numpy(), value.cpu().numpy(), tolerance)


@with_torch
def test_torchs_record_stream_holds_outputs_back() -> None:
    """An output that another stream still reads is not written over by the next call, once its stream is recorded."""
    import torch

    ours, _ = twins("GRU", "float32", "cuda")
    steps = steps_for({}, "float32").cuda()
    with torch.no_grad():
        want = ours(steps)[0].cpu()
        side, kept = torch.cuda.Stream(), torch.empty(T_, B_, H_, device="cuda")
        for _ in range(PASSES):
            y = ours(steps)[0]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                torch.cuda._sleep(10_000_000)
                kept.copy_(y)
            y.record_stream(side)
            del y
            for _ in range(3):
                ours(steps * 2)
            side.synchronize()
            assert_same_bits("y", kept.cpu().numpy(), want.numpy())


@with_torch
def test_torch_modules_after_steps_of_an_optimiser() -> None:
    import torch

    ours, theirs = twins("LSTM", "float32", "cuda", num_layers=2)
    steps = steps_for({}, "float32").cuda()
    losses: list[list[float]] = [[], []]
    for module, found in zip((ours, theirs), losses, strict=True):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.5)
        for _ in range(2 * PASSES):
            loss = (module(steps.to(next(module.parameters()).dtype))[0] - 0.3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=trained("float32", 3 * T_ * 2 * PASSES, 6 * H_))
    assert losses[0][-1] < losses[0][0]


@with_torch
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_autocast_returns_torchs_dtypes(kind: str, dtype: str) -> None:
    import torch

    ours, theirs = twins(kind, "float32", "cuda")
    steps = torch.randn(*(() if "Cell" in kind else (T_,)), B_, I_, device="cuda")

    def flat(value: Any) -> list[Any]:
        return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]

    with torch.autocast("cuda", dtype=getattr(torch, dtype)):
        got, want = flat(ours(steps)), flat(theirs.float()(steps))
    assert [t.dtype for t in got] == [t.dtype for t in want]


@with_torch
def test_torch_modules_refuse_what_is_elsewhere() -> None:
    import torch

    ours, _ = twins("GRU", "float32", "cuda")
    with pytest.raises(TypeError, match="x: expected a tensor on cuda:0, as the parameters, got cpu"):
        ours(torch.zeros(T_, B_, I_))
    graph = torch.cuda.CUDAGraph()
    steps = steps_for({}, "float32").cuda()
    with torch.cuda.graph(graph):
        steps + 1  # an empty graph would be warned of
        with pytest.raises(RuntimeError, match="stream: expected"):
            ours(steps)
