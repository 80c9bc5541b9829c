"""LSTM; the equations are in fastrnn.cells.lstm."""

from __future__ import annotations

from typing import Any

from numba import njit

from fastrnn.cpu.activations import sigmoid, tanh
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.vector import splat


@njit(forceinline=True)
def forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
    """One step; saves i, f, g, o."""
    i, f, o = sigmoid(ax[0] + ah[0]), sigmoid(ax[1] + ah[1]), sigmoid(ax[3] + ah[3])
    g = tanh(ax[2] + ah[2])
    c = f * c_prev + i * g
    return o * tanh(c), c, (i, f, g, o)


@njit(forceinline=True)
def backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
    """Gradients of one step; tanh(c) is cheaper to compute again than to fetch."""
    i, f, g, o = saved
    tanh_c = tanh(c)
    do = dh * tanh_c
    dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
    planes = (
        dc * g * i * (1.0 - i),
        dc * c_prev * f * (1.0 - f),
        dc * i * (1.0 - g * g),
        do * o * (1.0 - o),
    )
    return planes, splat(dh, 0.0), dc * f


LSTM = Rendering(forward, backward, gates=4, saved=4, planes=4, dah_gates=(0, 1, 2, 3), cell_state=True, reads_h=False)
