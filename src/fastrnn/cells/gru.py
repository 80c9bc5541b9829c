"""GRU in both forms, gates in the order r z n.

    r, z = sigma(ax + ah)         h = (1 - z) * n + z * h_prev
    reset after the product:      n = tanh(ax + r * ah)                 ah = h_prev U_n + b_hh
    reset before the product:     n = tanh(ax + ah)                     ah = (r * h_prev) U_n + b_hh

Source: before: Cho et al. 2014; after: cuDNN and torch; z as the share of the old state: torch's convention.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fastrnn.arrays import Array
from fastrnn.cells.cell import Cell, GatedProduct, Step, StepGradient, sigmoid


def _mix(xp: ModuleType, z: Array, n: Array, h_prev: Array) -> Array:
    h: Array = (1 - z) * n + z * h_prev
    return h


def _mix_backward(z: Array, n: Array, h_prev: Array, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of z's and n's pre-activation and of h_prev through h = (1 - z) * n + z * h_prev."""
    return dh * (h_prev - n) * z * (1 - z), dh * (1 - z) * (1 - n * n), dh * z


def after_forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
    """One step, reset after the product; saves r, z, n and the candidate's ah."""
    r, z = sigmoid(xp, ax[:, 0] + ah[:, 0]), sigmoid(xp, ax[:, 1] + ah[:, 1])
    n = xp.tanh(ax[:, 2] + r * ah[:, 2])
    return Step(_mix(xp, z, n, h_prev), None, xp.stack((r, z, n, ah[:, 2]), axis=1))


def after_backward(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Array | None, dh: Array,
    dc: Array | None, p: Any,
) -> StepGradient:  # fmt: skip
    """Gradients of one step; dah differs from dax in the candidate, which sees r * ah."""
    r, z, n, ah_n = (saved[:, k] for k in range(4))
    daz, dan, dh_prev = _mix_backward(z, n, h_prev, dh)
    dar = dan * ah_n * r * (1 - r)
    return StepGradient(xp.stack((dar, daz, dan), axis=1), xp.stack((dar, daz, dan * r), axis=1), dh_prev, None)


def before_forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
    """One step, reset before the product; ah's candidate is already the product of r * h_prev."""
    a = ax + ah
    r, z, n = sigmoid(xp, a[:, 0]), sigmoid(xp, a[:, 1]), xp.tanh(a[:, 2])
    return Step(_mix(xp, z, n, h_prev), None, xp.stack((r, z, n), axis=1))


def before_backward(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Array | None, dh: Array,
    dc: Array | None, p: Any,
) -> StepGradient:  # fmt: skip
    """Gradients of one step but for r, which waits for the gradient of the gated state."""
    z, n = saved[:, 1], saved[:, 2]
    daz, dan, dh_prev = _mix_backward(z, n, h_prev, dh)
    da = xp.stack((xp.zeros_like(daz), daz, dan), axis=1)
    return StepGradient(da, da, dh_prev, None)


def reset_state(xp: ModuleType, ax: Array, ah: Array, h_prev: Array) -> Array:
    """s = r * h_prev."""
    return sigmoid(xp, ax[:, 0] + ah[:, 0]) * h_prev


def reset_state_backward(xp: ModuleType, saved: Array, h_prev: Array, ds: Array) -> tuple[Array, Array]:
    """Gradients of r's pre-activation and of h_prev through s = r * h_prev."""
    r = saved[:, 0]
    return ds * h_prev * r * (1 - r), ds * r


GRU = Cell(
    "gru", ("r", "z", "n"), after_forward, after_backward, numba=("fastrnn.cpu.cells.gru", "AFTER"),
    cuda=("gru.cuh", "Gru"), saved=4, separate=("n",),
)  # fmt: skip
GRU_RESET_BEFORE = Cell(
    "gru_reset_before", ("r", "z", "n"), before_forward, before_backward,
    numba=("fastrnn.cpu.cells.gru", "BEFORE"), cuda=("gru.cuh", "GruResetBefore"), saved=3,
    gated=GatedProduct(reset_state, reset_state_backward),
)  # fmt: skip
