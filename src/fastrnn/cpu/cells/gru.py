"""GRU in both forms; the equations are in fastrnn.cells.gru."""

from __future__ import annotations

from typing import Any

from numba import njit

from fastrnn.cpu.activations import sigmoid, tanh
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.vector import splat


@njit(forceinline=True)
def mix(z: Any, n: Any, h_prev: Any) -> Any:
    """h = (1 - z) * n + z * h_prev."""
    return (1.0 - z) * n + z * h_prev


@njit(forceinline=True)
def mix_backward(z: Any, n: Any, h_prev: Any, dh: Any) -> Any:
    """Gradients of z's and n's pre-activations and of h_prev."""
    return dh * (h_prev - n) * z * (1.0 - z), dh * (1.0 - z) * (1.0 - n * n), dh * z


@njit(forceinline=True)
def after_forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
    """One step; saves r, z, n and the candidate's ah with its bias."""
    r, z = sigmoid(ax[0] + ah[0]), sigmoid(ax[1] + ah[1])
    ah_n = ah[2] + unit[0]
    n = tanh(ax[2] + r * ah_n)
    return mix(z, n, h_prev), c_prev, (r, z, n, ah_n)


@njit(forceinline=True)
def after_backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
    """Gradients of one step; planes: n as ah sees it, r, z, n as ax sees it."""
    r, z, n, ah_n = saved
    daz, dan, dh_prev = mix_backward(z, n, h_prev, dh)
    return (dan * r, dan * ah_n * r * (1.0 - r), daz, dan), dh_prev, dc, ()


@njit(forceinline=True)
def before_forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
    """One step; saves r, z, n."""
    r, z, n = sigmoid(ax[0] + ah[0]), sigmoid(ax[1] + ah[1]), tanh(ax[2] + ah[2])
    return mix(z, n, h_prev), c_prev, (r, z, n)


@njit(forceinline=True)
def before_backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
    """Gradients of one step; plane 0 (r) waits for the gradient of the gated state."""
    daz, dan, dh_prev = mix_backward(saved[1], saved[2], h_prev, dh)
    return (splat(dh, 0.0), daz, dan), dh_prev, dc, ()


@njit(forceinline=True)
def reset_state(ax: Any, ah: Any, h_prev: Any) -> Any:
    """s = r * h_prev."""
    return sigmoid(ax + ah) * h_prev


@njit(forceinline=True)
def reset_state_backward(saved: Any, h_prev: Any, ds: Any) -> Any:
    """Gradients of r's pre-activation and of h_prev."""
    r = saved[0]
    return ds * h_prev * r * (1.0 - r), ds * r


AFTER = Rendering(
    after_forward, after_backward, gates=3, saved=4, planes=4, dah_gates=(2, 0, 1), dax_first=1, units=1, separate=1
)
BEFORE = Rendering(
    before_forward, before_backward, gates=3, saved=3, planes=3, dah_gates=(0, 1, 2),
    gate=reset_state, gate_backward=reset_state_backward,
)  # fmt: skip
