"""torch.nn.LSTM, GRU and RNN as peers: eager, on the CPU, packed sequences for variable lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case
from fastrnn.bench.contestant import Contestant, Run, first_outputs, named
from fastrnn.bench.problem import Problem

# (module, x, states, lengths) -> y [T, B, H] and the final states
Forward: TypeAlias = Callable[[Any, Any, list[Any], Any], tuple[Any, tuple[Any, ...]]]
MODULES: dict[str, tuple[str, dict[str, Any]]] = {  # registry key: class in torch.nn and its options
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}


def refuses(case: Case) -> str:
    """Why torch does not run a case."""
    return "" if case.cell in MODULES else f"torch has no {case.cell}"


def prepare(case: Case, problem: Problem, threads: int) -> Run:
    """Set up a torch module; `threads` is already in force for the process."""
    import torch

    class_name, options = MODULES[case.cell]
    return run_of(getattr(torch.nn, class_name), options, _forward, case, problem)


def run_of(kind: Callable[..., Any], options: dict[str, Any], forward: Forward, case: Case, problem: Problem) -> Run:
    """Set up a module with torch.nn's constructor and parameter names, which `forward` calls."""
    import torch

    x, *states = (torch.tensor(a) for a in (problem.x, *problem.states))
    module = kind(x.shape[2], states[0].shape[2], dtype=x.dtype, **options)
    module.load_state_dict({name: torch.tensor(p) for name, p in problem.params.items()})
    if case.kind == "step":
        return _stream(partial(forward, module), module, x, states)
    lengths = None if problem.lengths is None else torch.tensor(problem.lengths)
    once = partial(forward, module, x, states, lengths)
    return _train(once, module, x, states, problem) if case.mode == "train" else _infer(once, module)


def prepare_padded(case: Case, problem: Problem, threads: int) -> Run:
    """As `prepare`, every sequence at full length."""
    return prepare(case, problem.padded(), threads)


def _forward(module: Any, x: Any, states: list[Any], lengths: Any) -> tuple[Any, tuple[Any, ...]]:
    """y [T, B, H] and the final states; packing and unpacking belong to the job when there are lengths."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    state = tuple(states) if len(states) > 1 else states[0]
    if lengths is None:
        y, state = module(x, state)
    else:
        packed, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
        y, _ = pad_packed_sequence(packed, total_length=x.shape[0])
    return y, state if isinstance(state, tuple) else (state,)


def _infer(forward: Callable[[], Any], module: Any) -> Run:
    import torch

    module.eval()

    def call() -> Any:
        with torch.inference_mode():
            return forward()

    return Run(call, lambda: _named(*call()))


def _train(forward: Callable[[], Any], module: Any, x: Any, states: list[Any], problem: Problem) -> Run:
    import torch

    params = dict(module.named_parameters())
    values = [torch.tensor(problem.params[name]) for name in params]
    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in states), *params.values()]
    upstream = [torch.tensor(a) for a in (problem.d_y, *problem.d_states)]

    def call() -> Any:
        with torch.no_grad():  # as after an optimiser's step; every contestant renews its parameters in the timed part
            for parameter, value in zip(params.values(), values, strict=True):
                parameter.copy_(value)
        y, final = forward()
        return y, final, torch.autograd.grad((y, *final), leaves, upstream)

    def outputs() -> dict[str, Any]:
        y, final, gradients = call()
        return _named(y, final, gradients, params)

    return Run(call, outputs)


def _named(
    y: Any, states: tuple[Any, ...], gradients: tuple[Any, ...] = (), params: Iterable[str] = ()
) -> dict[str, Array]:
    """Name the results, see `contestant.named`."""
    return named(y.detach().numpy(), [s.detach().numpy() for s in states], [g.numpy() for g in gradients], params)


def _stream(forward: Callable[..., Any], module: Any, x: Any, states: list[Any]) -> Run:
    import torch

    module.eval()
    inputs, state = cycle(x.split(1)), tuple(states)

    def call() -> Any:
        nonlocal state
        with torch.inference_mode():
            y, state = forward(next(inputs), list(state), None)
        return y[0]

    return Run(call, lambda: first_outputs(lambda: call().numpy(), x.shape[0]))


TORCH = Contestant("torch", "peer", ("torch",), prepare, refuses)
CONTESTANTS = (TORCH, Contestant("torch padded", "peer", ("torch",), prepare_padded, refuses, padded=True))
