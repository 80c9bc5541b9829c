"""The same call as a custom operator, one opaque node in the graphs of torch.compile and torch.export.

Its backward pass runs the forward pass again: what the kernels keep has a form that belongs to the backend, which a
traced graph cannot hold. It has no double backward and no tangents; eager mode has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.errors import ShapeError, TensorError
from fastrnn.torch import function, gpu
from fastrnn.torch.function import Call, Masks
from fastrnn.torch.snapshot import Snapshot
from fastrnn.torch.spec import Spec, device_of

# The arguments of both operators; torch reads operator schemas, not annotations, so that they may be postponed here.
CALL = (
    "Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? lengths, Tensor? reset, Tensor? seed, float dropout, "
    "str mode, int input_size, int hidden_size, int num_layers, bool bias, bool batch_first, bool bidirectional, "
    "int proj_size, bool single, bool cells, bool peephole, bool dense, bool coupled, bool diagonal, bool layer_norm, "
    "float zoneout_h, float zoneout_c, float recurrent_dropout, bool recompute"
)
NO_TRANSFORM = (
    "torch.compile: expected no torch.func transform and no forward-mode tangents, got one; eager mode has them"
)


def run(
    spec: Spec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], lengths: Tensor | None,
    reset: Tensor | None, rate: float | None,
) -> list[Tensor]:  # fmt: skip
    """Run a call through the operator; outputs as function.forward's. rate: of dropout, None for no masks."""
    seed = None if rate is None else torch.randint(2**63 - 1, (1,), device="cpu")
    found: list[Tensor] = recurrence(x, h, c, list(weights), lengths, reset, seed, rate or 0.0, *spec)
    return found


def _call(
    x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, reset: Any, seed: Any, rate: float,
    constants: tuple[Any, ...],
) -> Call:  # fmt: skip
    function.check(x, h, c, weights[0])
    if function.steps_needed((x, *weights)):
        raise NotImplementedError(NO_TRANSFORM)  # torch itself would go on without the tangents
    spec = Spec(*constants)
    masks, device = None if seed is None else Masks(rate, int(seed)), device_of(x)
    if device != "cpu":
        return gpu.call_of(spec, device, x, masks, lengths, reset)
    lengths, reset = (None if t is None else t.numpy() for t in (lengths, reset))
    return Snapshot(spec, weights).call.on(masks, lengths, reset)


def _forward(
    x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, reset: Any, seed: Any, rate: float,
    *constants: Any,
) -> list[Tensor]:  # fmt: skip
    call = _call(x, h, c, weights, lengths, reset, seed, rate, constants)
    if call.device == "cpu":
        found = function.forward(call, x, h, c, save=False)[0]
    else:
        found = gpu.forward(call, x, h, c, weights, save=False)[0]
    # Strides are part of a traced graph; the kernels' c after every step is time first in memory.
    return [t.contiguous() for t in found]


def _backward(
    given: Sequence[Tensor | None], x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, reset: Any,
    seed: Any, rate: float, *constants: Any,
) -> list[Tensor]:  # fmt: skip
    call = _call(x, h, c, weights, lengths, reset, seed, rate, constants)
    needed = [True] * (3 + len(weights))
    if call.device == "cpu":
        _, (inputs, batched, passes) = function.forward(call, x, h, c, save=True)
        found = function.backward(call, inputs, batched, passes, given, needed)
    else:
        found = gpu.backward(gpu.forward(call, x, h, c, weights, save=True)[1], given, needed)
    return [g for g in found if g is not None]


def _fake_outputs(x: Tensor, weights: Sequence[Tensor], spec: Spec) -> list[Tensor]:
    """Empty tensors of the shapes of the outputs."""
    core = 1 if spec.single else 2
    if x.dim() not in (core, core + 1) or x.shape[-1] != spec.input_size:
        raise ShapeError(f"x: expected {core} or {core + 1} axes, the last {spec.input_size}, got {x.shape}")
    if x.dtype != weights[0].dtype:
        raise TensorError(f"x: expected {weights[0].dtype}, as the parameters, got {x.dtype}")
    directions, batched = 1 + spec.bidirectional, x.dim() > core
    middle = (x.shape[1 if core == 2 and not spec.batch_first else 0],) if batched else ()
    width, states = spec.proj_size or spec.hidden_size, () if spec.single else (spec.num_layers * directions,)
    found = [] if spec.single else [x.new_empty((*x.shape[:-1], directions * width))]
    found.append(x.new_empty((*states, *middle, width)))
    if spec.cell_state:
        found.append(x.new_empty((*states, *middle, spec.hidden_size)))
    cells = spec.num_layers if spec.cells else 0
    return found + [x.new_empty((*x.shape[:-1], directions * spec.hidden_size)) for _ in range(cells)]


def _fake_forward(
    x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, reset: Any, seed: Any, rate: float,
    *constants: Any,
) -> list[Tensor]:  # fmt: skip
    return _fake_outputs(x, weights, Spec(*constants))


def _fake_backward(
    given: Any, x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, reset: Any, seed: Any, rate: float,
    *constants: Any,
) -> list[Tensor]:  # fmt: skip
    spec = Spec(*constants)
    states = _fake_outputs(x, weights, spec)[0 if spec.single else 1 :][: 1 + spec.cell_state]
    return [x.new_empty(x.shape), *states, *(w.new_empty(w.shape) for w in weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, h, c, weights, lengths, reset, seed, *ctx.constants = inputs
    ctx.save_for_backward(x, h, c, lengths, reset, seed, *weights)


def _gradients(ctx: Any, given: Sequence[Tensor | None]) -> tuple[Any, ...]:
    x, h, c, lengths, reset, seed, *weights = ctx.saved_tensors
    found = recurrence_backward(list(given), x, h, c, weights, lengths, reset, seed, *ctx.constants)
    cell_state = Spec(*ctx.constants[1:]).cell_state
    dx, dh, dc, d_weights = found[0], found[1], found[2] if cell_state else None, found[2 + cell_state :]
    return dx, None if h is None else dh, None if c is None else dc, d_weights, *[None] * (3 + len(ctx.constants))


recurrence = torch.library.custom_op("fastrnn::recurrence", _forward, mutates_args=(), schema=f"({CALL}) -> Tensor[]")
recurrence_backward = torch.library.custom_op(
    "fastrnn::recurrence_backward", _backward, mutates_args=(), schema=f"(Tensor?[] given, {CALL}) -> Tensor[]"
)
recurrence.register_fake(_fake_forward)
recurrence_backward.register_fake(_fake_backward)
recurrence.register_autograd(_gradients, setup_context=_setup_context)
