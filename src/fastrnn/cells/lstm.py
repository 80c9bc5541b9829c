"""LSTM with forget gate, gates in the order i f g o; with peepholes p, with coupled gates, with both.

    i, f = sigma(ax + ah + p * c_prev)      g = tanh(ax + ah)       coupled: i = 1 - f, and the gates are f g o
    c = f * c_prev + i * g
    o = sigma(ax + ah + p * c)              h = o * tanh(c)

The rows of p [N, H] belong to i f o, to f o where the gates are coupled.

Source: Hochreiter, Schmidhuber 1997; forget gate and peepholes: Gers, Schmidhuber, Cummins 2000; coupled gates: Greff
et al. 2017 (CIFG); order of gates: cuDNN, torch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fastrnn.arrays import Array
from fastrnn.cells.cell import Cell, Readout, Step, StepGradient, sigmoid


def readout(xp: ModuleType, saved: Array, v: Array) -> Array:
    """h = o * tanh(v), v = c."""
    h: Array = saved[:, -1] * xp.tanh(v)
    return h


def readout_backward(xp: ModuleType, saved: Array, v: Array, dh: Array) -> tuple[Array, Array]:
    """Gradients of o and of v."""
    tanh_v = xp.tanh(v)
    return dh * tanh_v, dh * saved[:, -1] * (1 - tanh_v * tanh_v)


def _cell(name: str, coupled: bool, peephole: bool) -> Cell:
    def forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
        *inputs, a_g, a_o = (ax + ah).swapaxes(0, 1)
        if peephole:
            inputs = [a + row * c_prev for a, row in zip(inputs, p[:-1], strict=True)]
        *i, f = (sigmoid(xp, a) for a in inputs)
        g = xp.tanh(a_g)
        c = f * c_prev + (1 - f if coupled else i[0]) * g
        o = sigmoid(xp, a_o + p[-1] * c if peephole else a_o)
        saved = xp.stack((*i, f, g, o), axis=1)
        return Step(readout(xp, saved, c), c, saved)

    def backward(
        xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Any, dh: Array, dc: Any, p: Any
    ) -> StepGradient:
        """Gradients of one step; dc is what arrives from the next step and from the loss on c itself."""
        do, dv = readout_backward(xp, saved, c, dh)
        return inside(xp, saved, h_prev, c_prev, h, c, do, dc + dv, p)

    def inside(
        xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Any, do: Array, dc: Any, p: Any
    ) -> StepGradient:
        """The same from the gradients of o and of c, all but what reaches c through its own peephole."""
        *_, f, g, o = saved.swapaxes(0, 1)
        i = 1 - f if coupled else saved[:, 0]
        da_o = do * o * (1 - o)
        if peephole:
            dc = dc + p[-1] * da_o
        df = dc * (c_prev - g) if coupled else dc * c_prev
        da_inputs = [df * f * (1 - f)] if coupled else [dc * g * i * (1 - i), df * f * (1 - f)]
        dc_prev, dp = dc * f, None
        if peephole:
            dc_prev = dc_prev + sum(row * da for row, da in zip(p[:-1], da_inputs, strict=True))
            dp = xp.stack((*(da * c_prev for da in da_inputs), da_o * c), axis=1)
        da = xp.stack((*da_inputs, dc * i * (1 - g * g), da_o), axis=1)
        return StepGradient(da, da, None, dc_prev, dp)

    gates = ("f", "g", "o") if coupled else ("i", "f", "g", "o")
    return Cell(
        name, gates, forward, backward, numba=("fastrnn.cpu.cells.lstm", name.upper()),
        cuda=("lstm.cuh", f"Lstm{'Coupled' * coupled}{'Peephole' * peephole}"), saved=len(gates), uses_h_prev=False,
        cell_state=True, unit_parameters=len(gates) - 1 if peephole else 0,
        readout=Readout(readout, readout_backward, inside), peepholes=tuple(gate for gate in gates if gate != "g"),
    )  # fmt: skip


LSTM = _cell("lstm", coupled=False, peephole=False)
LSTM_PEEPHOLE = _cell("lstm_peephole", coupled=False, peephole=True)
LSTM_COUPLED = _cell("lstm_coupled", coupled=True, peephole=False)
LSTM_COUPLED_PEEPHOLE = _cell("lstm_coupled_peephole", coupled=True, peephole=True)
