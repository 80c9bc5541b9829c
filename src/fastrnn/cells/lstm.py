"""LSTM with forget gate, gates in the order i f g o.

    i, f, o = sigma(ax + ah)      g = tanh(ax + ah)
    c = f * c_prev + i * g        h = o * tanh(c)

Source: Hochreiter, Schmidhuber 1997; forget gate: Gers, Schmidhuber, Cummins 2000; order of gates: cuDNN, torch.
"""

from __future__ import annotations

from types import ModuleType

from fastrnn.arrays import Array
from fastrnn.cells.cell import Cell, Step, StepGradient, sigmoid


def forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None) -> Step:
    """One step; saves the four gates."""
    a = ax + ah
    i, f, g, o = sigmoid(xp, a[:, 0]), sigmoid(xp, a[:, 1]), xp.tanh(a[:, 2]), sigmoid(xp, a[:, 3])
    c = f * c_prev + i * g
    return Step(o * xp.tanh(c), c, xp.stack((i, f, g, o), axis=1))


def backward(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Array | None, dh: Array,
    dc: Array | None,
) -> StepGradient:  # fmt: skip
    """Gradients of one step; dc is what arrives from the next step and from the loss on c itself."""
    i, f, g, o = (saved[:, k] for k in range(4))
    tanh_c = xp.tanh(c)
    do = dh * tanh_c
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    di, df, dg = dc * g, dc * c_prev, dc * i
    da = xp.stack((di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)), axis=1)
    return StepGradient(da, da, None, dc * f)


LSTM = Cell(
    "lstm", ("i", "f", "g", "o"), forward, backward, numba=("fastrnn.cpu.cells.lstm", "LSTM"), cuda=("lstm", "Lstm"),
    saved=4, cell_state=True,
)  # fmt: skip
