"""fastrnn.torch on a GPU's tensors, without one: torch's CPU tensors are brought into the stand-in for CuPy and back.

What is replaced is fastrnn.torch.bridge and what tells the device of a tensor; all else is what a GPU would run: each
output and gradient is compared by name with torch.nn's in float64, and with those of the path for the CPU.
"""

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import ml_dtypes
import numpy as np
import pytest
import torch
from tolerance import assert_close, assert_same_bits, rounding
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch_cases import CELLS, KINDS, H, I, double, hx_of, kernels_only, leaves, make, random, states, twins

import fastrnn
import fastrnn.torch
from fastrnn.errors import ShapeError, TensorError
from fastrnn.torch import function, gpu, modules, operator, replacement, snapshot, spec

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.usefixtures("one_torch_thread", "nothing_to_replay", "on_gpu"),
]
T, B = 5, 3
DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
INTEGERS = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}


class Bridge(ModuleType):
    """fastrnn.torch.bridge for tensors of the host: the same four functions, which fail outside `current`."""

    def __init__(self) -> None:
        super().__init__("fastrnn.torch.bridge")
        self.of_torch: Any = cupy_standin.Stream(non_blocking=True)  # its current stream
        self.inside = 0

    @contextmanager
    def current(self, device: str) -> Iterator[None]:
        assert device == "cuda:0"
        self.inside += 1
        cupy_standin.waits.clear()
        with self.of_torch:
            yield
        assert cupy_standin.waits == []
        self.inside -= 1

    def array(self, tensor: torch.Tensor) -> Any:
        assert self.inside == 1, "an array made where CuPy is on another stream"
        host = tensor.detach()
        if host.dtype in INTEGERS:
            return cupy_standin.ndarray(host.view(torch.int16).numpy().view(INTEGERS[host.dtype]))
        return cupy_standin.ndarray(host.numpy())

    def tensor(self, array: Any) -> torch.Tensor:
        assert self.inside == 1
        assert isinstance(array, cupy_standin.ndarray)
        name = array.dtype.name
        if array.itemsize == 2:
            return torch.from_numpy(array._host.view(np.int16)).view(DTYPES[name])
        return torch.from_numpy(array._host)


@pytest.fixture
def on_gpu(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    """Tensors of the CPU count as those of cuda:0, inside the `with` block of `on_cpu` as what they are."""
    bridge = Bridge()
    monkeypatch.setitem(sys.modules, "fastrnn.torch.bridge", bridge)
    for module in (function, modules, operator, replacement, snapshot):
        monkeypatch.setattr(module, "device_of", lambda t: "cuda:0" if t.is_cpu else spec.device_of(t))
    return bridge


@contextmanager
def on_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (function, modules, operator, replacement, snapshot):
            patch.setattr(module, "device_of", spec.device_of)
        yield


def results(
    module: Any, run: Callable[[Any, Any], Any], inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Every output and the gradient of every input and parameter, for random gradients of the outputs."""
    outputs = leaves(run(module, inputs))
    generator = torch.Generator().manual_seed(11)
    given = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    targets = inputs | dict(module.named_parameters())
    grads = torch.autograd.grad(outputs, list(targets.values()), given)
    found = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
    return found | {f"d {name}": g for name, g in zip(targets, grads, strict=True)}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    name_of = str(dtype).removeprefix("torch.")
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == dtype, name
        tolerance = rounding(name_of, 3 * T, 3 * 2 * H)
        assert_close(name, got[name].double().numpy(), value.double().numpy(), tolerance)


def compare(kind: str, options: dict[str, Any], dtype: torch.dtype, inputs: Any, run: Any) -> None:
    ours, theirs = twins(kind, dtype, **options)
    with kernels_only():
        got = results(ours.eval(), run, inputs)
    assert_same(got, results(theirs.eval(), run, double(inputs)), dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stacked": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 3, "num_layers": 2, "bidirectional": True},
}


def nightly(dtype: str) -> list[pytest.MarkDecorator]:
    """Everyday one dtype of 32 bits and one of 16."""
    return [] if dtype in ("float32", "bfloat16") else [pytest.mark.nightly]


CASES = [
    pytest.param(kind, options, dtype, id=f"{kind}-{name}-{dtype}", marks=nightly(dtype))
    for kind in KINDS
    for name, options in OPTIONS.items()
    for dtype in DTYPES
    if kind == "LSTM" or name != "projection"
]


@pytest.mark.parametrize(("kind", "options", "dtype"), CASES)
def test_as_torch_nn(kind: str, options: dict[str, Any], dtype: str) -> None:
    of = DTYPES[dtype]
    shape = (B, T, I) if options.get("batch_first") else (T, B, I)
    inputs = {"x": random(*shape, dtype=of), **states(kind, options, (B,), of)}
    compare(kind, options, of, inputs, lambda m, i: m(i["x"], hx_of(i)))


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=nightly(dtype)) for dtype in DTYPES])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, dtype: str) -> None:
    of = DTYPES[dtype]
    for batch in ((B,), ()):
        inputs = {"x": random(*batch, I, dtype=of), **states(kind, {}, batch, of)}
        compare(kind, {}, of, inputs, lambda m, i: m(i["x"], hx_of(i)))


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched_and_without_a_state(kind: str) -> None:
    compare(kind, {"num_layers": 2}, torch.float32, {"x": random(T, I)}, lambda m, i: m(i["x"]))


@pytest.mark.parametrize("lengths", [[5, 4, 1], [2, 5, 1], [5] * 3], ids=["sorted", "unsorted", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed(kind: str, lengths: list[int]) -> None:
    def run(module: Any, given: dict[str, torch.Tensor]) -> Any:
        packed = pack_padded_sequence(given["x"], torch.tensor(lengths), enforce_sorted=False)
        y, final = module(packed, hx_of(given))
        assert isinstance(y, PackedSequence)
        return y, final

    options = {"num_layers": 2, "bidirectional": True}
    inputs = {"x": random(T, B, I), **states(kind, options, (B,), torch.float32)}
    compare(kind, options, torch.float32, inputs, run)


@pytest.mark.parametrize("lengths", ["list", "tensor", "none"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_reset_and_cells_as_on_the_cpu(lengths: str, batch_first: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "return_cells": True, "batch_first": batch_first}
    shape = (B, T) if batch_first else (T, B)
    reset = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    given = {"list": [4, 0, 5], "tensor": torch.tensor([4, 0, 5]), "none": None}[lengths]
    inputs = {"x": random(*shape, I), **states("LSTM", options, (B,), torch.float32)}
    as_on_the_cpu("LSTM", options, lambda m, i: m(i["x"], hx_of(i), given, reset), inputs)
    module = make(fastrnn.torch, "LSTM", **options)
    got, want = (
        results(module, lambda m, i, r=r: m(i["x"], hx_of(i), given, r), inputs) for r in (reset, reset.numpy())
    )
    for name, value in want.items():
        assert_same_bits(name, got[name].numpy(), value.numpy())


def as_on_the_cpu(kind: str, options: dict[str, Any], run: Any, inputs: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The path for a GPU and that for the CPU, from the same generator state; the masks are the same ones."""
    found = []
    for where in (kernels_only, on_cpu):
        torch.manual_seed(5)
        module = make(fastrnn.torch, kind, dtype=dtype, **options)
        module.train(options.get("dropout", 0) + len(EXTRA.keys() & options.keys()) > 0)
        with where():
            found.append(results(module, run, inputs))
    assert_same(*found, dtype)
    return found[0]


MASK = torch.tensor(np.random.default_rng(1).random((H, H)) < 0.6)
EXTRA: dict[str, Any] = {
    "peephole": True, "coupled": True, "recurrent": MASK, "layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.3,
    "save": "recompute", "dropout": 0.4,
}  # fmt: skip
OF_GRU = {name: value for name, value in EXTRA.items() if name not in ("peephole", "coupled")}
REGULARISED = {"zoneout": 0.3, "recurrent_dropout": 0.3, "dropout": 0.4}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("LSTM", {name: value}) for name, value in EXTRA.items()),
        ("LSTM", {**REGULARISED, "peephole": True, "coupled": True, "layer_norm": True}),
        ("LSTM", {**REGULARISED, "zoneout": (0.0, 0.2), "proj_size": 4, "save": "recompute"}),
        ("GRU", OF_GRU),
        ("GRU", {**REGULARISED, "reset_after": False, "recurrent": "diagonal"}),
        ("RNN", OF_GRU),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_options_as_on_the_cpu(kind: str, options: dict[str, Any]) -> None:
    options = {"num_layers": 2, **options}
    inputs = {"x": random(T, B, I), **states(kind, options, (B,), torch.float32)}
    inputs["h_0"] = random(2, B, options.get("proj_size", H))
    run = lambda m, i: m(i["x"], hx_of(i), [5, 3, 4])  # noqa: E731
    as_on_the_cpu(kind, options, run, inputs)


def test_dense_peepholes_as_the_reference() -> None:
    options = {"peephole": "dense", "num_layers": 2}
    inputs = {"x": random(T, B, I), **states("LSTM", options, (B,), torch.float32)}

    def run(module: Any, given: Any) -> Any:
        name = "cuda" if modules.device_of is not spec.device_of else "reference"
        with fastrnn.use_backend(name):
            return module(given["x"], hx_of(given))

    as_on_the_cpu("LSTM", options, run, inputs)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_cells_with_zoneout_as_on_the_cpu(kind: str) -> None:
    inputs = {"x": random(B, I), **states(kind, {}, (B,), torch.float32)}
    as_on_the_cpu(kind, {"zoneout": 0.4, "layer_norm": True}, lambda m, i: m(i["x"], hx_of(i)), inputs)


def test_dropout_is_drawn_from_torchs_generator() -> None:
    module = fastrnn.torch.LSTM(I, H, num_layers=2, dropout=0.5)
    x = random(T, B, I, grad=False)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert_same_bits("y", module(x)[0].detach().numpy(), first.detach().numpy())
    assert not torch.equal(first, second)


# Graphs that are replayed, what a call keeps, and streams


PASSES = 5  # launched, run in place, captured, replayed


@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_replayed_passes_have_the_same_bits(save: str) -> None:
    module = make(fastrnn.torch, "LSTM", num_layers=2, save=save)
    inputs = {"x": random(T, B, I), **states("LSTM", {"num_layers": 2}, (B,), torch.float32)}
    run = lambda m, i: m(i["x"], hx_of(i), [5, 3, 0])  # noqa: E731
    first = results(module, run, inputs)
    cupy_standin.replays.clear()
    for _ in range(PASSES):
        for name, value in results(module, run, inputs).items():
            assert_same_bits(name, value.numpy(), first[name].numpy())
    assert cupy_standin.replays or save == "recompute"  # whose segments are too short for graphs


def test_two_passes_at_once_and_two_backward_passes() -> None:
    module, _ = twins("GRU", torch.float32)
    x = [random(T, B, I, seed=k) for k in range(2)]
    want = [torch.autograd.grad(module(each)[0].sum(), each)[0] for each in x]
    for _ in range(PASSES):
        ys = [module(each)[0].sum() for each in x]  # whose gradient is one number, seen from everywhere
        for _ in range(2):
            for each, y, expected in zip(x, ys, want, strict=True):
                (got,) = torch.autograd.grad(y, each, retain_graph=True)
                assert_same_bits("d x", got.numpy(), expected.numpy())


def test_what_a_step_keeps_goes_with_its_graph() -> None:
    module, x = fastrnn.torch.LSTM(I, H), random(T, B, I)
    gc.collect()
    gc.disable()
    try:
        before = len(gpu._issued)
        kept = module(x)[0].sum()
        assert len(gpu._issued) == before + 1
        kept.backward(retain_graph=True)
        assert len(gpu._issued) == before + 1
        kept.backward()
        assert len(gpu._issued) == before  # though `kept` is still there
        module(x)[0].sum()
        assert len(gpu._issued) == before
        with torch.no_grad():
            module(x)
        assert len(gpu._issued) == before
        with pytest.raises(RuntimeError, match="second time"):
            kept.backward()
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["checkpoint", "copies"])
def test_hooks_on_what_autograd_keeps(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing hands back the tensors of another forward pass; a copy in another place runs the pass again."""
    passes, forward = list[int](), gpu.forward
    monkeypatch.setattr(gpu, "forward", lambda *a, **o: passes.append(1) or forward(*a, **o))
    module, _ = twins("LSTM", torch.float32, num_layers=2, dropout=0.5)
    inputs = {"x": random(T, B, I)}
    runs = []

    def run(m: Any, given: Any) -> Any:
        torch.manual_seed(2)
        if how == "checkpoint" and runs:
            return checkpoint(lambda x: m(x)[0], given["x"], use_reentrant=False)
        return m(given["x"])[0]

    want = results(module, run, inputs)
    assert len(passes) == 1
    runs.append(1)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    with hooks if how == "copies" else nullcontext():
        got = results(module, run, inputs)
    assert len(passes) == 3
    for name, value in want.items():
        assert_same_bits(name, got[name].numpy(), value.numpy())


def test_a_backward_pass_runs_on_the_stream_of_the_forward_pass(on_gpu: Bridge) -> None:
    """As autograd has it. The stand-in fails where streams race, so neither may use anything of another stream."""
    module, x = fastrnn.torch.LSTM(I, H, num_layers=2), random(T, B, I)
    want = torch.autograd.grad(module(x)[0].sum(), x)[0]
    for _ in range(PASSES):
        on_gpu.of_torch = cupy_standin.Stream(non_blocking=True)
        assert_same_bits("d x", torch.autograd.grad(module(x)[0].sum(), x)[0].numpy(), want.numpy())


def test_a_stream_that_captures_is_refused(on_gpu: Bridge) -> None:
    module, x = fastrnn.torch.LSTM(I, H), random(T, B, I)
    y = module(x)[0].sum()
    on_gpu.of_torch.begin_capture()
    for call in (lambda: module(x), y.backward):
        with pytest.raises(RuntimeError, match="stream: expected a current stream that captures no CUDA graph"):
            call()
        on_gpu.inside = 0


def test_memory_is_shared_not_copied(on_gpu: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    array, tensor = on_gpu.array, on_gpu.tensor
    monkeypatch.setattr(on_gpu, "array", lambda t: seen.append(t.data_ptr()) or array(t))
    made: list[int] = []
    monkeypatch.setattr(on_gpu, "tensor", lambda a: made.append(a.data.ptr) or tensor(a))
    module, x = fastrnn.torch.GRU(I, H), random(T, B, I)
    y, h = module(x)
    assert set(seen) == {t.data_ptr() for t in (x, *module.parameters())}
    assert [y.data_ptr(), h.data_ptr()] == made[:2]


@pytest.mark.parametrize("write", ["optimizer", "data", "numpy"])
def test_writes_to_parameters_are_seen(write: str) -> None:
    ours, theirs = twins("LSTM", torch.float32, num_layers=2)
    x = random(T, B, I, grad=False)
    ours, theirs = ours.eval(), theirs.eval()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.5) for m in (ours, theirs)]
    for _ in range(PASSES):
        for module, optimizer, given in zip((ours, theirs), optimizers, (x, x.double()), strict=True):
            if write == "optimizer":
                optimizer.zero_grad()
                module(given)[0].square().mean().backward()
                optimizer.step()
            else:
                for name, parameter in module.named_parameters():
                    part = parameter.data if write == "data" else parameter.detach().numpy()
                    part *= 0.9 if name.startswith("w") else 1.1
        assert_close("y", ours(x)[0].detach().numpy(), theirs(x.double())[0].detach().numpy(),
                     rounding("float32", 3 * T * PASSES, 6 * H))  # fmt: skip


def test_no_gradient_keeps_nothing_and_eval_has_gradients() -> None:
    module, x = fastrnn.torch.GRU(I, H).eval(), random(T, B, I)
    with torch.inference_mode():
        y = module(x)[0]
    assert not y.requires_grad
    with torch.no_grad():
        assert_same_bits("y", module(x)[0].numpy(), y.numpy())
    assert torch.autograd.grad(module(x)[0].sum(), x)[0].abs().sum() > 0


# Higher orders, transforms, graphs of torch.compile, autocast


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, at the first tangent
def test_double_backward_and_tangents() -> None:
    options = {"num_layers": 2, "dropout": 0.4, "zoneout": 0.2}
    module = make(fastrnn.torch, "LSTM", dtype=torch.float64, **options)
    x, d = random(T, B, I, dtype=torch.float64), random(T, B, I, dtype=torch.float64, seed=4, grad=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        reset = torch.zeros(T, B, dtype=torch.bool)
        reset[2] = True
        return module(x, None, torch.tensor([5, 0, 3]), reset)[0]

    def second() -> torch.Tensor:
        (first,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    def tangent() -> torch.Tensor:
        return torch.func.jvp(run, (x.detach(),), (d,))[1]

    for way in (second, tangent):
        got = way().detach()
        with on_cpu():
            want = way().detach()
        assert_close(way.__name__, got.numpy(), want.numpy(), rounding("float64", 6 * T, 6 * H))
    # the tangent against the kernels' own gradient
    weight = random(T, B, H, dtype=torch.float64, seed=9, grad=False)
    (dx,) = torch.autograd.grad(run(x), x, weight)
    got, want = (tangent() * weight).sum(), (dx * d).sum()
    assert abs(got - want) <= rounding("float64", 3 * T, 6 * H) * abs(dx * d).sum()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_double_backward_in_16_bits(dtype: str) -> None:
    module, wide = twins("GRU", DTYPES[dtype])
    x = random(T, B, I, dtype=DTYPES[dtype])
    (first,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    assert first.dtype == DTYPES[dtype]
    (want,) = torch.autograd.grad(wide(x.double())[0].sum(), x)
    assert_close("d x", first.detach().double().numpy(), want.double().numpy(), rounding(dtype, 3 * T, 6 * H))


@pytest.mark.parametrize("training", [False, True])
def test_compiled_whole(training: bool) -> None:
    torch._dynamo.reset()
    module = make(fastrnn.torch, "LSTM", num_layers=2, dropout=0.4).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = {"x": random(T, B, I), **states("LSTM", {"num_layers": 2}, (B,), torch.float32)}
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(3)) < 0.4

    def run(m: Any, given: Any) -> Any:
        torch.manual_seed(1)
        return (compiled if m is None else m)(given["x"], hx_of(given), torch.tensor([5, 2, 3]), reset)

    want = results(module, run, inputs)
    got = results(module, lambda m, given: run(None, given), inputs)
    for name, value in want.items():
        assert_same_bits(name, got[name].numpy(), value.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell"])
def test_autocast(kind: str, dtype: str) -> None:
    """All of a call in autocast's dtype, as torch's modules do on a GPU, with float32 gradients of the parameters."""
    ours, _ = twins(kind, torch.float32)
    x, hx = random(B, I, grad=True) if "Cell" in kind else random(T, B, I), states(kind, {}, (B,), torch.float32)
    inputs = {"x": x, **hx}

    def run(module: Any, given: Any) -> Any:
        return module(given["x"], hx_of(given))

    with cuda_autocast(DTYPES[dtype]):
        got = results(ours, run, inputs)
    narrow = copy.deepcopy(ours).to(DTYPES[dtype])
    want = results(narrow, run, {k: v.detach().to(DTYPES[dtype]).requires_grad_() for k, v in inputs.items()})
    for name, value in want.items():
        assert got[name].dtype == (torch.float32 if name.startswith("d ") else DTYPES[dtype]), name
        assert_same_bits(name, got[name].to(DTYPES[dtype]).view(torch.int16).numpy(), value.view(torch.int16).numpy())
    with cuda_autocast(DTYPES[dtype]):  # leaves float64 alone
        assert leaves(run(copy.deepcopy(ours).double(), double(inputs)))[0].dtype == torch.float64


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast("cuda") switches itself off where there is no GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


# replace, errors


def test_replace_trains_the_same() -> None:
    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(I, H, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(H, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0])

    torch.manual_seed(0)
    theirs, x = Tagger(), random(B, T, I, grad=False)
    ours, labels = copy.deepcopy(theirs), torch.randint(3, (B * T,))
    assert fastrnn.torch.replace(ours).swapped == ["lstm"]
    losses: list[list[float]] = [[], []]
    for model, found in zip((ours, theirs), losses, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(PASSES):
            loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=rounding("float32", 3 * T * PASSES, 6 * H))
    assert losses[0][-1] < losses[0][0]
    assert fastrnn.torch.restore(ours).swapped == ["lstm"]
    half = torch.nn.GRU(I, H).half()
    assert fastrnn.torch.replace(half).swapped == [""]
    with on_cpu():
        assert fastrnn.torch.replace(torch.nn.GRU(I, H).half()).kept == {"": "no kernels for torch.float16 on the CPU"}


X = torch.ones(T, B, I)
ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "width": (lambda m: m(X[..., :2]), ShapeError, r"x: expected \[T, B, 4\] float32, got \(5, 3, 2\) float32"),
    "axes": (lambda m: m(X[None]), ShapeError, r"x: expected \[T, B, 4\]"),
    "dtype": (lambda m: m(X.half()), TensorError, "x: expected torch.float32, as the parameters, got torch.float16"),
    "state": (lambda m: m(X, torch.ones(2, B, H)), ShapeError, r"state h_0: expected \[1, 3, 9\]"),
    "lengths": (lambda m: m(X, None, [9, 1, 1]), ValueError, "lengths: expected 0 <= length <= 5, got 9"),
    "counts": (lambda m: m(X, None, torch.ones(B)), TypeError, r"lengths: expected \[3\] integers, got"),
    "reset": (lambda m: m(X, None, None, torch.zeros(T, 1, dtype=torch.bool)), ShapeError, r"reset: expected \[5, 3\]"),
    "integers": (lambda m: m(X, None, None, torch.zeros(T, B)), TypeError, r"reset: expected \[5, 3\] bool"),
    "device": (lambda m: m(X.to("meta")), TensorError, "x: expected a tensor on cpu, as the parameters, got meta"),
    "numpy": (lambda m: m(X.numpy()), TypeError, "x: expected a tensor, got"),
    "parameters": (lambda m: m.long_weights()(X), TensorError, "parameters: expected torch.float32 or .* on cuda:0"),
    "a parameter": (lambda m: m.half_bias()(X), TensorError, "bias_hh_l0: expected torch.float32 on cuda:0, got torch"),
    "backend": (lambda m: m.on_backend("cpu")(X), TypeError, "backend: expected 'reference' or 'cuda'"),
}  # fmt: skip


class Erring(fastrnn.torch.GRU):
    def long_weights(self) -> Any:
        for name, value in list(self.named_parameters()):
            setattr(self, name, torch.nn.Parameter(value.long(), requires_grad=False))
        return lambda x: self(x.long())

    def half_bias(self) -> Any:
        self.bias_hh_l0 = torch.nn.Parameter(self.bias_hh_l0.half())
        return self

    def on_backend(self, name: str) -> Any:
        def call(x: torch.Tensor) -> Any:
            with fastrnn.use_backend(name):
                return self(x)

        return call


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("grad", [False, True])
def test_errors(name: str, grad: bool) -> None:
    run, kind, message = ERRORS[name]
    with torch.set_grad_enabled(grad), pytest.raises(kind, match=message):
        run(Erring(I, H))


def test_devices_that_do_not_go_together(on_gpu: Bridge) -> None:
    """With tensors that say they are on a GPU, though they have no numbers; the names of devices are not replaced."""

    def on(device: str, dtype: torch.dtype = torch.float32) -> Any:
        made = fastrnn.torch.GRU(I, H)
        for name, parameter in list(made.named_parameters()):
            fake = torch.empty(parameter.shape, device=device, dtype=dtype)
            setattr(made, name, torch.nn.Parameter(fake, requires_grad=False))
        return made

    module = fastrnn.torch.GRU(I, H)
    with on_cpu(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(T, B, I, device="cuda:0")
        assert spec.device_of(x) == "cuda:0"
        with pytest.raises(TensorError, match="x: expected a tensor on cpu, as the parameters, got cuda:0"):
            module(x)
        there = on("cuda:0")
        with pytest.raises(TensorError, match="x: expected a tensor on cuda:0, as the parameters, got cuda:1"):
            there(torch.empty(T, B, I, device="cuda:1"))
        with pytest.raises(TensorError, match="h_0: expected a tensor on cuda:0, as the parameters, got cpu"):
            there(x, torch.empty(1, B, H))
        assert leaves(there(x))[0].device == torch.device("cuda:0")
        assert leaves(on("cuda:0", torch.bfloat16)(x.bfloat16()))[0].dtype == torch.bfloat16
        with pytest.raises(NotImplementedError, match="device: expected the CPU or a GPU of NVIDIA's, got xpu:0"):
            on("xpu:0")(torch.empty(T, B, I, device="xpu:0"))


def test_reference_backend_on_the_device() -> None:
    inputs = {"x": random(T, B, I), **states("LSTM", {}, (B,), torch.float32)}

    def run(module: Any, given: Any) -> Any:
        with fastrnn.use_backend("reference"):
            return module(given["x"], hx_of(given))

    as_on_the_cpu("LSTM", {}, run, inputs)
