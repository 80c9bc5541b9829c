"""Vanilla RNN (Elman): h = phi(ax + ah), phi one of tanh, relu, identity.

Source: J. L. Elman, Finding structure in time, 1990; relu with an identity-initialised U: Le, Jaitly, Hinton, 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastrnn.arrays import Array
from fastrnn.cells.cell import Cell, Step, StepGradient


def _cell(
    name: str, phi: Callable[[ModuleType, Array], Array], derivative: Callable[[ModuleType, Array], Array]
) -> Cell:
    """Build the cell h = phi(ax + ah); `derivative` gives phi' in terms of the output h."""

    def forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
        return Step(phi(xp, ax[:, 0] + ah[:, 0]), None, ax[:, :0])

    def backward(
        xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Array | None, dh: Array,
        dc: Array | None, p: Any,
    ) -> StepGradient:  # fmt: skip
        da = (dh * derivative(xp, h))[:, None]
        return StepGradient(da, da, None, None)

    prefix = name.removeprefix("rnn_")
    return Cell(
        f"rnn_{prefix}", ("h",), forward, backward, numba=("fastrnn.cpu.cells.rnn", prefix.upper()),
        cuda=("rnn.cuh", f"Rnn{prefix.title()}"), saved=0, uses_h=True, uses_h_prev=False,
    )  # fmt: skip


RNN_TANH = _cell("rnn_tanh", lambda xp, a: xp.tanh(a), lambda xp, h: 1 - h * h)
RNN_RELU = _cell("rnn_relu", lambda xp, a: xp.maximum(a, 0), lambda xp, h: (h > 0).astype(h.dtype))
RNN_IDENTITY = _cell("rnn_identity", lambda xp, a: a, lambda xp, h: xp.ones_like(h))
