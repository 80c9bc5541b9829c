"""The minimal gated unit as a cell of one's own: one gate f that both forgets and updates.

    f = sigma(ax + ah)                          s = f * h_prev
    n = tanh(ax + ah), ah = s U_n + b_hh        h = (1 - f) * h_prev + f * n

Its second product, of the gated state s, is the one that GRU has with the reset before the product.

Source: Zhou, Wu, Zhang, Zhou, Minimal gated unit for recurrent neural networks, 2016.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from numba import njit

import fastrnn
from fastrnn.arrays import Array
from fastrnn.cells import Cell, GatedProduct, Step, StepGradient, sigmoid
from fastrnn.cpu.activations import sigmoid as vector_sigmoid
from fastrnn.cpu.activations import tanh as vector_tanh
from fastrnn.cpu.cells import Rendering

# The equations in NumPy, on [B, G, H]: what every backend is checked against


def forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
    """One step; saves f and n."""
    a = ax + ah
    f, n = sigmoid(xp, a[:, 0]), xp.tanh(a[:, 1])
    return Step((1 - f) * h_prev + f * n, None, xp.stack((f, n), axis=1))


def backward(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Array | None, dh: Array,
    dc: Array | None, p: Any,
) -> StepGradient:  # fmt: skip
    """Gradients of one step, but for what reaches f through the gated state."""
    f, n = saved[:, 0], saved[:, 1]
    da = xp.stack((dh * (n - h_prev) * f * (1 - f), dh * f * (1 - n * n)), axis=1)
    return StepGradient(da, da, dh * (1 - f), None)


def gated_state(xp: ModuleType, ax: Array, ah: Array, h_prev: Array) -> Array:
    """s = f * h_prev."""
    return sigmoid(xp, ax[:, 0] + ah[:, 0]) * h_prev


def gated_state_backward(xp: ModuleType, saved: Array, h_prev: Array, ds: Array) -> tuple[Array, Array]:
    """Gradients of f's pre-activation and of h_prev through s."""
    f = saved[:, 0]
    return ds * h_prev * f * (1 - f), ds * f


# The same on vectors of units, for the CPU's compiled loop


@njit(forceinline=True)
def vector_forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
    """One step; saves f and n."""
    f, n = vector_sigmoid(ax[0] + ah[0]), vector_tanh(ax[1] + ah[1])
    return (1.0 - f) * h_prev + f * n, c_prev, (f, n)


@njit(forceinline=True)
def vector_backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
    """Gradients of one step, but for what reaches f through the gated state."""
    f, n = saved
    planes = (dh * (n - h_prev) * f * (1.0 - f), dh * f * (1.0 - n * n))
    return planes, dh * (1.0 - f), dc, ()


@njit(forceinline=True)
def vector_gated_state(ax: Any, ah: Any, h_prev: Any) -> Any:
    """s = f * h_prev."""
    return vector_sigmoid(ax + ah) * h_prev


@njit(forceinline=True)
def vector_gated_state_backward(saved: Any, h_prev: Any, ds: Any) -> Any:
    """Gradients of f's pre-activation and of h_prev through s."""
    f = saved[0]
    return ds * h_prev * f * (1.0 - f), ds * f


RENDERING = Rendering(
    vector_forward, vector_backward, gates=2, saved=2, planes=2, dah_gates=(0, 1), gate=vector_gated_state,
    gate_backward=vector_gated_state_backward,
)  # fmt: skip

MGU = fastrnn.register(
    Cell(
        "mgu", ("f", "n"), forward, backward, numba=(__name__, "RENDERING"),
        gated=GatedProduct(gated_state, gated_state_backward),
    )
)  # fmt: skip
