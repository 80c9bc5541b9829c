"""fastrnn.torch on a GPU's tensors, without one: torch's CPU tensors are brought into the stand-in for CuPy and back.

What is replaced is fastrnn.torch.bridge and what tells the device of a tensor; all else is what a GPU would run: each
output and gradient is compared by name with torch.nn's in float64, and with those of the path for the CPU.
"""

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import cupy_standin
import host_kernels
import ml_dtypes
import numpy as np
import pytest
import torch
from tolerance import EPS, assert_close, assert_same_bits, rounding
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch_cases import CELLS, KINDS, H, I, double, hx_of, kernels_only, leaves, make, random, states

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


def twins(kind: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """fastrnn's module, and torch's with the very same numbers in float64."""
    torch.manual_seed(7)
    ours = make(fastrnn.torch, kind, dtype=dtype, **options)
    theirs = make(torch.nn, kind, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


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
CASES = [
    pytest.param(kind, options, dtype, id=f"{kind}-{name}-{dtype}")
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


@pytest.mark.parametrize("dtype", DTYPES)
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
