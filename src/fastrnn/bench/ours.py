"""fastrnn itself, by its public interface; its PyTorch modules and its NumPy reference as columns of their own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, cast

import fastrnn
from fastrnn import layers
from fastrnn.bench import torch_peer
from fastrnn.bench.cases import Case
from fastrnn.bench.contestant import Contestant, Run, first_outputs, named
from fastrnn.bench.problem import Problem

LAYERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {  # registry key: layer class and its options
    "lstm": (fastrnn.LSTM, {}),
    "lstm_peephole": (fastrnn.LSTM, {"peephole": True}),
    "lstm_coupled": (fastrnn.LSTM, {"coupled": True}),
    "lstm_coupled_peephole": (fastrnn.LSTM, {"coupled": True, "peephole": True}),
    "gru": (fastrnn.GRU, {}),
    "gru_reset_before": (fastrnn.GRU, {"reset_after": False}),
    "rnn_tanh": (fastrnn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn_identity": (fastrnn.RNN, {"nonlinearity": "identity"}),
}


def make(cell: str, input_size: int, hidden_size: int, **options: Any) -> Any:
    """Return a layer of a cell of the registry; one that was registered has a class of its own."""
    kind, own = LAYERS.get(cell) or (cast("Callable[..., Any]", layers.LAYERS[cell]), {})
    return kind(input_size, hidden_size, **own, **options)


def prepare(case: Case, problem: Problem, threads: int) -> Run:
    """Set up a layer of fastrnn; `threads` is already in force for the process."""
    layer = make(case.cell, problem.x.shape[2], problem.states[0].shape[2], dtype=problem.dtype)
    layer.update(problem.params)
    if case.kind == "step":
        step, inputs = layer.stream(batch=problem.x.shape[1]).__enter__().step, cycle(problem.x)
        return _stream(lambda: step(next(inputs)), len(problem.x))
    state, d_state = _bare(problem.states), _bare(problem.d_states)

    def infer() -> Any:
        return layer(problem.x, state, lengths=problem.lengths)

    def train() -> Any:
        layer.update(problem.params)  # as after an optimiser's step, so that a packed copy is never a free lunch
        y, state_n, backward = layer.forward(problem.x, state, lengths=problem.lengths, training=True)
        return y, state_n, backward(problem.d_y, d_state)

    def outputs() -> dict[str, Any]:
        if case.mode == "infer":
            y, state_n = infer()
            return named(y, _tuple(state_n))
        y, state_n, grads = train()
        gradients = (grads.x, *_tuple(grads.state), *(grads.params[name] for name in problem.params))
        return named(y, _tuple(state_n), gradients, problem.params)

    return Run(infer if case.mode == "infer" else train, outputs)


def prepare_padded(case: Case, problem: Problem, threads: int) -> Run:
    """As `prepare`, every sequence at full length."""
    return prepare(case, problem.padded(), threads)


def prepare_reference(case: Case, problem: Problem, threads: int) -> Run:
    """As `prepare`, on the NumPy reference."""
    with fastrnn.use_backend("reference"):
        run = prepare(case, problem, threads)

    def call() -> Any:
        with fastrnn.use_backend("reference"):
            return run.call()

    def outputs() -> dict[str, Any]:
        with fastrnn.use_backend("reference"):
            return run.outputs()

    return Run(call, outputs)


def prepare_module(case: Case, problem: Problem, threads: int) -> Run:
    """As `prepare`, the module of fastrnn.torch: what autograd and the tensors' ways in and out add."""
    import fastrnn.torch

    kind, options = LAYERS[case.cell]
    return torch_peer.run_of(getattr(fastrnn.torch, kind.__name__), options, _module_forward, case, problem)


def _module_forward(module: Any, x: Any, states: list[Any], lengths: Any) -> tuple[Any, tuple[Any, ...]]:
    y, state = module(x, _bare(tuple(states)), lengths=lengths)
    return y, _tuple(state)


def _module_refuses(case: Case) -> str:
    return "" if case.cell in LAYERS else f"fastrnn.torch has no {case.cell}"


def _stream(call: Callable[[], Any], steps: int) -> Run:
    return Run(call, lambda: first_outputs(call, steps))


def _bare(states: tuple[Any, ...]) -> Any:
    return states if len(states) > 1 else states[0]


def _tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


REFERENCE = Contestant("reference", "reference", (), prepare_reference, lambda case: "")
CONTESTANTS = (
    Contestant("fastrnn", "fastrnn", (), prepare, lambda case: ""),
    Contestant("fastrnn.torch", "module", ("torch",), prepare_module, _module_refuses),
    Contestant("fastrnn padded", "fastrnn", (), prepare_padded, lambda case: "", padded=True),
    REFERENCE,
)
