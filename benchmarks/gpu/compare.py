"""One problem on the GPU, for fastrnn and for cuDNN through torch: checked against float64, then timed in turns.

The arrays are torch's; CuPy sees the same memory. No time is taken of a contestant whose results are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any

import fastrnn
from benchmarks.gpu import device

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DEVICE = "cuda"
INFERRED = "y of a call that saves nothing"  # which is timed too
CHECKED_STEPS, CHECKED_ROWS = 100, 64  # of the batch; float64 for more would take too long


@dataclass(frozen=True)
class Case:
    """One row: sizes, one direction; lengths "triangular" are spread evenly from 1 to T."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int
    layers: int = 1
    lengths: str = ""

    def __str__(self) -> str:
        more = f"L{self.layers}" * (self.layers > 1) + f"-{self.lengths}" * bool(self.lengths)
        return f"{self.cell}-{self.dtype}-T{self.T}B{self.B}H{self.H}{more}"


class Problem:
    """x [T, B, H], parameters, the gradient of y and the lengths of a case, drawn on the device."""

    def __init__(self, case: Case) -> None:
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.dtype = getattr(torch, case.dtype)
        generator = torch.Generator(DEVICE).manual_seed(0)

        def normal(*shape: int) -> Any:
            return torch.randn(shape, generator=generator, device=DEVICE).to(self.dtype)

        self.x, self.d_y = normal(case.T, case.B, case.H), normal(case.T, case.B, case.H)
        self.lengths = torch.linspace(1, case.T, case.B).round().long() if case.lengths else None
        module = torch_module(case, self.dtype)
        self.params = {
            name: (torch.rand(p.shape, generator=generator, device=DEVICE) * 2 - 1).mul(case.H**-0.5).to(self.dtype)
            for name, p in module.named_parameters()
        }

    def padded(self) -> Problem:
        """The same with every sequence at full length."""
        whole = copy(self)
        whole.lengths = None
        return whole

    def block(self) -> tuple[slice, slice]:
        """Steps and rows that are checked: what they give depends on no other."""
        return slice(0, min(self.x.shape[0], CHECKED_STEPS)), slice(0, min(self.x.shape[1], CHECKED_ROWS))

    def block_gradient(self) -> Any:
        """The gradient of y inside the block and inside the lengths, zero elsewhere."""
        import torch

        d_y, inside = torch.zeros_like(self.d_y), self.block()
        d_y[inside] = self.d_y[inside]
        if self.lengths is not None:
            past = torch.arange(d_y.shape[0])[:, None] >= self.lengths
            d_y[past.to(d_y.device)] = 0
        return d_y


def torch_module(case: Case, dtype: Any) -> Any:
    """torch's module of a case on the device."""
    import torch

    kinds = {"lstm": (torch.nn.LSTM, {}), "gru": (torch.nn.GRU, {}), "rnn_tanh": (torch.nn.RNN, {})}
    kind, options = kinds[case.cell]
    return kind(case.H, case.H, case.layers, dtype=dtype, device=DEVICE, **options)


def to_cupy(tensor: Any) -> Any:
    """The same memory as CuPy's array; 16-bit types go through integers, which every version of DLPack knows."""
    import cupy
    import numpy as np
    import torch

    tensor = tensor.detach()
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return cupy.from_dlpack(tensor)
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  # gives NumPy the name
    return cupy.from_dlpack(tensor.view(torch.int16)).view(np.dtype(name))


def to_torch(array: Any) -> Any:
    """CuPy's array as torch's, in float64."""
    import torch

    if array.dtype.itemsize > 2:
        return torch.from_dlpack(array).double()
    name = array.dtype.name
    return torch.from_dlpack(array.view("int16")).view(getattr(torch, name)).double()


class Ours:
    """fastrnn, by the plan that it chooses or by another one."""

    def __init__(self, case: Case, problem: Problem, plan: str | None = None) -> None:
        self.plan = plan
        layers = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn_tanh": fastrnn.RNN}
        kind: Callable[..., Any] = layers[case.cell]
        self.layer = kind(case.H, case.H, case.layers, dtype=case.dtype, device="cuda:0", seed=0)
        self.params = {name: to_cupy(value) for name, value in problem.params.items()}
        self.x, self.d_y = to_cupy(problem.x), to_cupy(problem.d_y)
        self.lengths = None if problem.lengths is None else problem.lengths.numpy()
        self.layer.update(self.params)

    def infer(self) -> Any:
        with self._planned():
            return self.layer(self.x, lengths=self.lengths)

    def train(self) -> Any:
        with self._planned():
            self.layer.update(self.params)  # as after an optimiser's step
            return self.layer.forward(self.x, lengths=self.lengths).backward(self.d_y)

    def _planned(self) -> Any:
        from fastrnn.cuda import choice

        return nullcontext() if self.plan is None else choice.forced(self.plan)

    def results(self, d_y: Any) -> dict[str, Any]:
        with self._planned():
            y, _, backward = self.layer.forward(self.x, lengths=self.lengths)
            grads = backward(to_cupy(d_y))
        named = {"y": y, "d x": grads.x, **{f"d {name}": value for name, value in grads.params.items()}}
        named[INFERRED] = self.infer()[0]
        return {name: to_torch(value) for name, value in named.items()}


class Torch:
    """cuDNN, as torch ships it; packed sequences where there are lengths."""

    def __init__(self, case: Case, problem: Problem, dtype: Any = None) -> None:
        self.problem, self.dtype = problem, dtype or problem.dtype
        self.module = torch_module(case, self.dtype)
        self.values = [problem.params[name].to(self.dtype) for name, _ in self.module.named_parameters()]
        self._renew()

    def _renew(self) -> None:
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.module.parameters(), self.values, strict=True):
                parameter.copy_(value)

    def _forward(self, x: Any) -> Any:
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        lengths = self.problem.lengths
        if lengths is None:
            return self.module(x)[0]
        packed = self.module(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
        return pad_packed_sequence(packed, total_length=x.shape[0])[0]

    def infer(self) -> Any:
        import torch

        with torch.inference_mode():
            return self._forward(self.problem.x)

    def train(self) -> Any:
        self._renew()
        return self._gradients(self.problem.x, self.problem.d_y, self._forward)

    def _gradients(self, x: Any, d_y: Any, forward: Callable[[Any], Any]) -> tuple[Any, ...]:
        import torch

        x = x.detach().requires_grad_()
        y = forward(x)
        return y.detach(), *torch.autograd.grad(y, [x, *self.module.parameters()], d_y)

    def results(self, d_y: Any, inside: tuple[slice, slice] | None = None) -> dict[str, Any]:
        """y and gradients in float64; with `inside`, of the block alone, without lengths: the oracle."""
        x, forward = self.problem.x, self._forward
        if inside is not None:
            x, d_y, forward = x[inside], d_y[inside], lambda x: self.module(x)[0]
        got = self._gradients(x.to(self.dtype), d_y.to(self.dtype), forward)
        names = ["y", "d x", *(f"d {name}" for name, _ in self.module.named_parameters())]
        named = {name: value.double() for name, value in zip(names, got, strict=True)}
        return named | {INFERRED: named["y"] if inside is not None else self.infer().double()}


def error(got: Mapping[str, Any], want: Mapping[str, Any], problem: Problem) -> tuple[float, str]:
    """The largest of max|got - want| / max|want| over the arrays, and the array's name."""
    import torch

    worst = (0.0, "")
    inside = problem.block()
    for name, expected in want.items():
        value = got[name][inside] if name in ("y", INFERRED, "d x") else got[name]
        if name in ("y", INFERRED) and problem.lengths is not None:
            past = torch.arange(expected.shape[0])[:, None] >= problem.lengths[inside[1]]
            expected = expected.masked_fill(past.to(expected.device)[..., None], 0)
        assert value.shape == expected.shape, f"{name}: {tuple(value.shape)}, expected {tuple(expected.shape)}"
        off = float((value - expected).abs().max() / expected.abs().max())
        worst = max(worst, (off if off == off else float("inf"), name))
    return worst


def allowed(dtype: str, peer: float) -> float:
    """How large an error may be: twice the peer's own on the same numbers, and never less than 16 roundings."""
    return max(16 * EPS[dtype], 2 * peer)


def judge(ours: tuple[float, str], peer: tuple[float, str], dtype: str) -> None:
    """Raise if a contestant's results are wrong."""
    if not peer[0] <= 0.1:
        raise AssertionError(f"cuDNN itself is off by {peer[0]:.1e} in {peer[1]}: nothing to compare with")
    if not ours[0] <= allowed(dtype, peer[0]):
        raise AssertionError(f"wrong: {ours[1]} off by {ours[0]:.1e}, cuDNN by {peer[0]:.1e}; no time was taken")


def release() -> None:
    """Give back what torch and CuPy keep after freeing it: each would keep it from the other."""
    import cupy
    import torch

    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()


def compare(case: Case) -> dict[str, Any]:
    """Check, then time fastrnn and cuDNN, forward and forward with backward."""
    import torch

    release()
    problem = Problem(case)
    d_y = problem.block_gradient()
    want = Torch(case, problem, torch.float64).results(d_y, problem.block())
    plans = {mode: planned(case, mode == "train") for mode in ("infer", "train")}
    ours, peer = {"fastrnn": Ours(case, problem)}, Torch(case, problem)
    ours |= {f"fastrnn by {plan}": Ours(case, problem, plan) for plan in plans["train"]["others"]}
    errors = {name: error(one.results(d_y), want, problem) for name, one in [*ours.items(), ("cudnn", peer)]}
    for name in ours:
        judge(errors[name], errors["cudnn"], case.dtype)
    del want, d_y
    release()
    contestants: dict[str, Any] = {**ours, "cudnn": peer}
    if case.lengths:  # what padding costs instead: another job, so no ratio is made of it
        whole = problem.padded()
        contestants |= {"fastrnn padded": Ours(case, whole), "cudnn padded": Torch(case, whole)}
    measured: dict[str, Any] = {}
    for mode in ("infer", "train"):
        measured |= device.times({f"{name} {mode}": getattr(one, mode) for name, one in contestants.items()})
    return {
        "errors": {name: {"error": value, "array": array} for name, (value, array) in errors.items()},
        "times": measured,
        "plans": plans,
        "allow_tf32": False,
    }


def planned(case: Case, train: bool) -> dict[str, Any]:
    """The plan that a layer takes, its milliseconds by the model in all layers, and the others that would serve it."""
    from fastrnn.cells import CELLS
    from fastrnn.cuda import choice
    from fastrnn.recurrence import Shape

    steps = case.T * case.B
    cell, shape = CELLS[case.cell], Shape(case.T, case.B, steps, case.T, case.H, case.H, 0, case.dtype, train, False)
    taken = choice.choose(cell, shape)
    assert taken.seconds is not None
    others = [plan for plan in choice.serving(cell, shape) if plan != taken.plan]
    return {"plan": taken.plan, "model_ms": 1e3 * taken.seconds * case.layers, "others": others}
