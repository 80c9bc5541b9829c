"""Where the gradient goes: its norm at every step of a recurrent layer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import Array, array_module
from fastrnn.layers import GRU, LSTM, RNN


class GradientFlow(NamedTuple):
    """Norms over batch and units, float64 [T+1]; index t belongs to the state after step t, index 0 to the initial."""

    h: Array  # ||dL/dh_t||
    c: Array | None  # ||dL/dc_t||; None for layers without a cell state


def gradient_flow(
    layer: RNN | LSTM | GRU, x: Array, state: Any = None, d_output: Array | None = None, d_state: Any = None
) -> GradientFlow:
    """Return ||dL/dh_t|| for every t, by full back-propagation through time, one step after the other.

    Where it falls towards t = 0 the gradient vanishes, where it grows it explodes.

    Args:
        layer: with one layer and one direction.
        x: as for a call of the layer.
        state: initial state; zeros if None.
        d_output: dL/dy, laid out as the output; zero if None.
        d_state: dL with respect to the last state, as for the layer's backward. If both are None, L is the sum of
            all elements of h_T.

    Raises:
        ValueError: the layer is stacked or bidirectional.
        ShapeError, TypeError: an argument does not fit.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """
    if layer.num_layers != 1 or layer.bidirectional:
        raise ValueError(f"layer: expected one layer and one direction, got {layer!r}")
    whole = layer.forward(x, state)
    lstm = isinstance(whole.state, tuple)
    if d_output is None and d_state is None:
        ones = _ones_like(whole.state[0] if lstm else whole.state)
        d_state = (ones, None) if lstm else ones
    whole.backward(d_output, d_state)  # checks the gradients before they are cut into steps
    time = 1 if layer.batch_first and x.ndim == 3 else 0
    cut = [(slice(None),) * time + (slice(t, t + 1),) for t in range(x.shape[time])]
    backwards = []
    for here in cut:
        _, state, backward = layer.forward(x[here], state)
        backwards.append(backward)
    norms = [_norms(d_state, None if d_output is None or not cut else d_output[cut[-1]])]
    for t in range(len(cut) - 1, -1, -1):
        d_state = backwards[t](None if d_output is None else d_output[cut[t]], d_state).state
        norms.append(_norms(d_state, None if d_output is None or t == 0 else d_output[cut[t - 1]]))
    h, c = np.array(norms[::-1]).T
    return GradientFlow(h, c if lstm else None)


def _norms(d_state: Any, d_output: Array | None) -> tuple[float, float]:
    """Norms of the gradients that reach a state: of h, which is the output of its step too, and of c."""
    d_h, d_c = d_state if isinstance(d_state, tuple) else (d_state, None)
    parts = [part.reshape(-1) for part in (d_h, d_output) if part is not None]
    return _norm(sum(parts[1:], parts[0])) if parts else 0.0, 0.0 if d_c is None else _norm(d_c)


def _ones_like(values: Array) -> Array:
    xp = array_module(values)
    assert xp is not None, "an array of a layer"
    ones: Array = xp.ones_like(values)
    return ones


def _norm(values: Array) -> float:
    xp = array_module(values)
    assert xp is not None, "an array of a layer"
    return math.sqrt(float(xp.square(values, dtype=xp.float64).sum()))
