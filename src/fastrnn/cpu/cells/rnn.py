"""Vanilla RNN; the equations are in fastrnn.cells.rnn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from fastrnn.cpu.activations import relu, tanh
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.vector import select, splat


@njit(forceinline=True)
def tanh_derivative(h: Any) -> Any:
    """tanh' in terms of the output."""
    return 1.0 - h * h


@njit(forceinline=True)
def relu_derivative(h: Any) -> Any:
    """relu' in terms of the output."""
    return select(h > 0.0, splat(h, 1.0), splat(h, 0.0))


@njit(forceinline=True)
def identity(a: Any) -> Any:
    """phi(a) = a."""
    return a


@njit(forceinline=True)
def identity_derivative(h: Any) -> Any:
    """The derivative of the identity."""
    return splat(h, 1.0)


def _rendering(phi: Callable[..., Any], derivative: Callable[..., Any]) -> Rendering:
    @njit(forceinline=True)
    def forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
        h = phi(ax[0] + ah[0])
        return h, c_prev, (h,)

    @njit(forceinline=True)
    def backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
        return (dh * derivative(saved[0]),), splat(dh, 0.0), dc, ()

    return Rendering(forward, backward, gates=1, saved=1, planes=1, dah_gates=(0,), reads_h=False)


TANH = _rendering(tanh, tanh_derivative)
RELU = _rendering(relu, relu_derivative)
IDENTITY = _rendering(identity, identity_derivative)
