"""Where the gradient goes: its norm at every step of a recurrent layer."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import Array, array_module, fetched, on, to_host
from fastrnn.layers import GRU, LSTM, RNN, Gradients


class GradientFlow(NamedTuple):
    """Norms over batch and units, float64; index t belongs to the state after t steps, index 0 to the initial one.

    [T+1] of one layer and direction, else [L*D, T+1] in the order of the state's first axis. A reverse direction takes
    its first step at the end of the sequence.
    """

    h: Array  # ||dL/dh_t||
    c: Array | None  # ||dL/dc_t||; None for layers without a cell state


def gradient_flow(
    layer: RNN | LSTM | GRU, x: Array, state: Any = None, d_output: Array | None = None, d_state: Any = None
) -> GradientFlow:
    """Return ||dL/dh_t|| for every t, layer and direction, by full back-propagation, one step after the other.

    Where it falls towards t = 0 the gradient vanishes, where it grows it explodes.

    Args:
        layer: it is run without dropout.
        x: as for a call of the layer.
        state: initial state; zeros if None.
        d_output: dL/dy, laid out as the output; zero if None.
        d_state: dL with respect to the last state, as for the layer's backward. If both are None, L is the sum of
            all elements of the last layer's last state h_T, of both its directions.

    Raises:
        ShapeError, TypeError: an argument does not fit.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """
    with on(layer.device):
        whole = layer.forward(x, state)
        if d_output is None and d_state is None:
            d_state = _ones(layer, whole.state)
        whole.backward(d_output, d_state)  # checks the gradients before they are cut into layers and steps
        levels = _levels(layer, x, state)
        found = _backwards(levels, _time_first(layer, d_output, x.ndim), lambda k: _of(d_state, k, x.ndim))
    norms = np.reshape(fetched([norm for step in found for norm in step]), (len(levels) * len(levels[0]), -1, 2))
    h, c = np.moveaxis(norms[0] if len(norms) == 1 else norms, -1, 0)
    return GradientFlow(h, c if isinstance(whole.state, tuple) else None)


class _Walk:
    """One layer in one direction, run one step after the other; y [T, B, P]."""

    def __init__(self, layer: RNN | LSTM | GRU, x: Array, state: Any, reverse: bool) -> None:
        outputs: dict[int, Array] = {-1: layer(x[:0])[0]}  # where there is no step
        self._x, self._order = x, range(len(x))[:: -1 if reverse else 1]
        self._backwards: list[Callable[..., Gradients[Any]]] = []
        for t in self._order:
            outputs[t], state, backward = layer.forward(x[t : t + 1], state)
            self._backwards.append(backward)
        self.y: Array = _module(x).concatenate([outputs[t] for t in sorted(outputs)])

    def back(self, d_y: Array | None, d_state: Any) -> tuple[list[tuple[Any, Any]], Array]:
        """Return the norms of dL/dh_t and dL/dc_t, of the initial state first, and dL/dx."""
        xp, norms = _module(self._x), []
        dx: Array = xp.zeros_like(self._x)
        for t, backward in zip(reversed(self._order), reversed(self._backwards), strict=True):
            d_t = None if d_y is None else d_y[t : t + 1]
            norms.append(_norms(xp, d_state, d_t))
            grads = backward(d_t, d_state)
            dx[t : t + 1], d_state = grads.x, grads.state
        norms.append(_norms(xp, d_state, None))
        return norms[::-1], dx


def _levels(layer: RNN | LSTM | GRU, x: Array, state: Any) -> list[list[_Walk]]:
    """Run a layer as its single layers and directions."""
    levels: list[list[_Walk]] = []
    D, ndim = 1 + layer.bidirectional, x.ndim
    y = _time_first(layer, x, ndim)
    for depth in range(layer.num_layers):
        parts = [(_part(layer, depth, d, y.shape[2]), _of(state, D * depth + d, ndim)) for d in range(D)]
        levels.append([_Walk(part, y, h_0, bool(d)) for d, (part, h_0) in enumerate(parts)])
        y = _module(x).concatenate([walk.y for walk in levels[-1]], axis=2)
    return levels


def _backwards(levels: list[list[_Walk]], d_y: Array | None, d_state: Callable[[int], Any]) -> list[tuple[Any, Any]]:
    """The norms of all layers and directions, one after the other; d_y [T, B, D*P] of the last layer."""
    norms: list[tuple[Any, Any]] = []
    D, P = len(levels[0]), levels[0][0].y.shape[2]
    for depth in range(len(levels) - 1, -1, -1):
        parts = [None if d_y is None else d_y[:, :, d * P : (d + 1) * P] for d in range(D)]
        found = [walk.back(parts[d], d_state(D * depth + d)) for d, walk in enumerate(levels[depth])]
        norms = [pair for own, _ in found for pair in own] + norms
        d_y = sum((dx for _, dx in found[1:]), found[0][1])
    return norms


def _part(layer: RNN | LSTM | GRU, depth: int, direction: int, input_size: int) -> Any:
    """A layer of one layer and direction, with the parameters that `layer` has there."""
    end = f"_l{depth}" + "_reverse" * direction
    alone = {"num_layers": 1, "bidirectional": False, "dropout": 0.0, "batch_first": False, "input_size": input_size}
    params = {f"{n.removesuffix(end)}_l0": to_host(v) for n, v in layer.state_dict().items() if n.endswith(end)}
    return type(layer)._restored({**layer._arguments, **alone}, params, 0)


def _time_first(layer: RNN | LSTM | GRU, a: Any, ndim: int) -> Any:
    """x or dL/dy as [T, B, ...]."""
    if a is None:
        return None
    return a[:, None] if ndim == 2 else a.transpose(1, 0, 2) if layer.batch_first else a


def _of(state: Any, k: int, ndim: int) -> Any:
    """The part of a state, or of its gradient, that belongs to its row k."""
    if state is None or isinstance(state, (tuple, list)):
        return None if state is None else tuple(_of(part, k, ndim) for part in state)
    return state[k : k + 1, None] if ndim == 2 else state[k : k + 1]


def _ones(layer: RNN | LSTM | GRU, state: Any) -> Any:
    """The gradient of the sum of the last layer's h_T."""
    h = state[0] if isinstance(state, tuple) else state
    ones = _module(h).zeros_like(h)
    ones[-1 - layer.bidirectional :] = 1
    return (ones, None) if isinstance(state, tuple) else ones


def _norms(xp: ModuleType, d_state: Any, d_output: Array | None) -> tuple[Any, Any]:
    """Norms of the gradients that reach a state: of h, which is the output of its step too, and of c."""
    d_h, d_c = d_state if isinstance(d_state, tuple) else (d_state, None)
    parts = [part.reshape(-1) for part in (d_h, d_output) if part is not None]
    reaching = sum(parts[1:], parts[0]) if parts else None
    h, c = (_norm(xp, d) for d in (reaching, d_c))
    return h, c


def _norm(xp: ModuleType, d: Array | None) -> Any:
    """Norm in float64, of what has any size: its squares alone would leave the range at 1e154 and at 1e-162."""
    if d is None or d.size == 0:
        return xp.zeros(())
    wide = d.astype(xp.float64)
    _, exponent = xp.frexp(xp.abs(wide).max())
    scale = xp.ldexp(xp.ones(()), exponent - 1)  # a power of two, which rounds nothing
    return scale * xp.sqrt(xp.square(wide / scale).sum())


def _module(array: Array) -> ModuleType:
    xp = array_module(array)
    assert xp is not None, "an array of a layer"
    return xp
