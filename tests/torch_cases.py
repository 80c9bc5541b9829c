"""torch's modules beside fastrnn's: one table of options, one way to run both, torch in float64 on the same numbers."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tolerance import assert_close, rounding

import fastrnn.torch
from fastrnn.torch import function, modules, steps

KINDS: dict[str, dict[str, Any]] = {
    "RNN": {"nonlinearity": "tanh"},
    "RNN_relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "GRU": {},
}
CELLS = {"RNNCell": {"nonlinearity": "tanh"}, "RNNCell_relu": {"nonlinearity": "relu"}, "LSTMCell": {}, "GRUCell": {}}
DTYPES = (torch.float32, torch.float64)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "batch-first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "eval-dropout": {"num_layers": 2, "dropout": 0.4},
}
PROJECTION = {"projection": {"proj_size": 3, "num_layers": 2, "bidirectional": True, "batch_first": True}}
I, H = 4, 9
KERNELS = (
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip


def make(package: Any, kind: str, *sizes: int, **options: Any) -> Any:
    """torch.nn's or fastrnn.torch's module of a kind, such as "RNN_relu"."""
    name = kind.split("_")[0]
    return getattr(package, name)(*(sizes or (I, H)), **{**KINDS, **CELLS}[kind], **options)


def twins(kind: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """fastrnn's module, and torch's with the very same numbers in float64."""
    torch.manual_seed(7)
    ours = make(fastrnn.torch, kind, dtype=dtype, **options)
    theirs = make(torch.nn, kind, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@contextmanager
def kernels_only(loop: bool = False) -> Iterator[None]:
    """Inside, torch's own recurrent functions raise, and the loop of torch operations too unless it is allowed."""

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("torch's recurrent functions, or the slow loop, ran")

    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(torch._VF, name, forbidden)
            patch.setattr(torch, name, forbidden)
        for mode in torch.nn.modules.rnn._rnn_impls:
            patch.setitem(torch.nn.modules.rnn._rnn_impls, mode, forbidden)
        if not loop:
            patch.setattr(steps, "run", forbidden)
        yield


@contextmanager
def by_steps() -> Iterator[None]:
    """Inside, every call runs as a loop of torch operations, and none on the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "_is_plain", lambda *of: False)  # so that no call is like the last one
        patch.setattr(function, "steps_needed", lambda tensors: True)
        patch.setattr(function, "forward", None)
        yield


def leaves(value: Any) -> list[torch.Tensor]:
    """Tensors of an output, with those of packed sequences in order."""
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in leaves(part)]


def results(module: Any, run: Callable[[Any], Any], inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Every output and the gradient of every input and parameter, for random gradients of the outputs."""
    outputs = leaves(run(module))
    generator = torch.Generator().manual_seed(11)
    given = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    targets = inputs | dict(module.named_parameters())
    grads = torch.autograd.grad(
        outputs, list(targets.values()), [g.to(o.dtype) for g, o in zip(given, outputs, strict=True)]
    )
    found = {f"output {k}": o.detach().numpy() for k, o in enumerate(outputs)}
    return found | {f"d {name}": g.numpy() for name, g in zip(targets, grads, strict=True)}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], dtype: torch.dtype, steps: int) -> None:
    """Assert every array by name, dtype and value."""
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == np.dtype(str(dtype).removeprefix("torch.")), name
        assert_close(name, got[name], value, rounding(str(dtype).removeprefix("torch."), 3 * steps, 3 * 2 * H))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, grad: bool = True) -> torch.Tensor:
    """Random numbers that are the same in float32 and float64."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return values.to(dtype).requires_grad_(grad)


def states(kind: str, options: dict[str, Any], batch: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random initial states by name."""
    number = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    leading = () if "Cell" in kind else (number,)
    found = {"h_0": random(*leading, *batch, options.get("proj_size", 0) or H, dtype=dtype, seed=1)}
    if "LSTM" in kind:
        found["c_0"] = random(*leading, *batch, H, dtype=dtype, seed=2)
    return found


def hx_of(given: dict[str, torch.Tensor]) -> Any:
    """The states as a module takes them."""
    found = [value for name, value in given.items() if name in ("h_0", "c_0")]
    return tuple(found) if len(found) == 2 else found[0] if found else None


def double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same numbers in float64, as leaves."""
    return {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in tensors.items()}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's testing package is not free of deprecated imports
    from torch.testing._internal import common_modules as common_modules
