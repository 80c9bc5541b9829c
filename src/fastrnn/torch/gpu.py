"""Calls on a GPU's tensors: the CUDA kernels on torch's memory and stream, and their place in torch's graph.

The weights are used where they are, so no copy of them can be stale; only sums of biases and the like are made anew at
each call. Nothing waits for the GPU, but `lengths` that are there, which must be known on the host, and a `reset` that
is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fastrnn import backends, validation
from fastrnn.arrays import Array
from fastrnn.torch import function
from fastrnn.torch.function import Call, Masks
from fastrnn.torch.snapshot import checked, grouped
from fastrnn.torch.spec import GPU_DTYPES, Spec


def call_of(spec: Spec, device: str, x: Tensor, masks: Masks | None, lengths: Any, reset: Any) -> Call:
    """A call without weights, its lengths on the host, and a copy of reset on the GPU."""
    lengths = function.counts(lengths)
    if isinstance(reset, (Tensor, np.ndarray)):
        with torch._C._DisableFuncTorch():  # it belongs to no transform
            reset = torch.as_tensor(reset).detach().to(x.device, copy=True)
    call = Call.of(spec, GPU_DTYPES[x.dtype], device).on(masks, lengths, reset)
    return call._replace(backend=backends.module(backends.current(device)))


def run(call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]) -> list[Tensor]:
    """Run a call eagerly; outputs as function.forward's."""
    if function.steps_needed((x, h, c, *weights)):
        host = call.on_host()
        return function.by_steps(host, function.sizes(host, x, h, c), x, h, c, weights)
    if torch.is_grad_enabled() and function.has_gradient(x, h, c, *weights):
        return list(run_with_graph(call, [], x, h, c, *weights))
    return forward(call, x, h, c, weights, save=False)[0]


def forward(call: Call, x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], save: bool) -> tuple[list[Tensor], Any]:
    """Run the kernels; return the outputs, and what `backward` needs."""
    with function.bridge().current(call.device):
        validation.usable_stream(call.device)
        call = call._replace(packed=_packed(call, weights))
        outputs, kept = function.forward(call, x, h, c, save)
    return outputs, (call, *kept)


def backward(kept: Any, given: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients by the kernels; as function.backward."""
    call, inputs, batched, passes = kept
    with function.bridge().current(call.device):
        validation.usable_stream(call.device)
        return function.backward(call, inputs, batched, passes, given, needed)


def _packed(call: Call, weights: Sequence[Tensor]) -> list[Any]:
    names, shapes = zip(*call.layer._shapes(), strict=True)
    checked(names, shapes, weights)
    arrays: list[Array] = call.arrays(weights)
    return [call.backend.pack(call.network.cell, of) for of in grouped(call.layer, arrays)]


class _Ticket(np.ndarray[Any, Any]):
    """One byte that holds what a forward pass keeps for its backward pass, for as long as a tensor has its memory."""

    contents: Any


_issued: WeakValueDictionary[int, _Ticket] = WeakValueDictionary()  # by the address of the byte


def issue(contents: Any) -> Tensor:
    """A tensor for autograd to keep in the place of what it cannot: it frees that as it frees its own."""
    ticket = np.zeros(1, np.uint8).view(_Ticket)
    ticket.contents = contents
    tensor = torch.from_numpy(ticket)
    _issued[tensor.data_ptr()] = ticket
    return tensor


def redeem(tensor: Tensor) -> Any:
    """What was kept; None if this is a copy of the tensor that was issued, and the tensor gone."""
    ticket = _issued.get(tensor.data_ptr())
    return None if ticket is None else ticket.contents


class Recurrence(torch.autograd.Function):
    """A call as one node of the graph.

    Arrays of graphs that are replayed stay where they are, so they cannot be handed to the hooks by which a user moves
    what autograd keeps elsewhere. Where such hooks give back a copy, the forward pass is run again.
    """

    @staticmethod
    def forward(call: Call, kept: list[Any], x: Tensor, h: Any, c: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        """Run the kernels; leave the ticket in `kept`."""
        outputs, contents = forward(call, x, h, c, weights, save=True)
        kept.append(issue(contents))
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Give the arguments and the ticket to autograd, which watches over writes to them and frees them."""
        ctx.call, kept, *given = inputs
        ctx.save_for_backward(*given, *kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        """Gradients by the kernels; by torch operations where they must be differentiable themselves."""
        *arguments, ticket = ctx.saved_tensors
        call, needed = ctx.call, ctx.needs_input_grad[2:]
        if function.must_be_differentiable(given):
            host = call.on_host()
            inputs = function.sizes(host, *arguments[:3])
            return None, None, *function.differentiable(host, inputs, arguments, needed, given)
        x, h, c, *weights = arguments
        contents = redeem(ticket) or forward(call, x, h, c, weights, save=True)[1]
        return None, None, *backward(contents, given, needed)


run_with_graph = super(torch.autograd.Function, Recurrence).apply  # as function.run_with_graph
