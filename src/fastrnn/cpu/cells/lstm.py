"""LSTM, plain, with peepholes, with coupled gates; the equations are in fastrnn.cells.lstm."""

from __future__ import annotations

from typing import Any

from numba import njit

from fastrnn.cpu.activations import sigmoid, tanh
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.vector import splat


@njit(forceinline=True)
def blind(a: Any, p: Any, k: int, c: Any) -> Any:
    """A gate's pre-activation that does not see the cell state."""
    return a


@njit(forceinline=True)
def peep(a: Any, p: Any, k: int, c: Any) -> Any:
    """A gate's pre-activation that sees the cell state through its peephole."""
    return a + p[k] * c


@njit(forceinline=True)
def blind_backward(dc: Any, p: Any, k: int, da: Any) -> Any:
    """Nothing comes back to the cell state."""
    return dc


@njit(forceinline=True)
def peep_backward(dc: Any, p: Any, k: int, da: Any) -> Any:
    """Gradient of the cell state, with what comes back through a peephole."""
    return dc + p[k] * da


@njit(forceinline=True)
def no_parameters(da: Any, c_prev: Any, c: Any) -> Any:
    """Without peepholes there is nothing to sum."""
    return ()


@njit(forceinline=True)
def peepholes(da: Any, c_prev: Any, c: Any) -> Any:
    """This step's part of the gradients of the peepholes of i f o."""
    return da[0] * c_prev, da[1] * c_prev, da[3] * c


@njit(forceinline=True)
def coupled_peepholes(da: Any, c_prev: Any, c: Any) -> Any:
    """This step's part of the gradients of the peepholes of f o."""
    return da[0] * c_prev, da[2] * c


@njit(forceinline=True)
def readout(saved: Any, v: Any) -> Any:
    """h = o * tanh(v)."""
    return saved[-1] * tanh(v)


@njit(forceinline=True)
def readout_backward(saved: Any, v: Any, dh: Any) -> Any:
    """Gradients of o and of v."""
    tanh_v = tanh(v)  # cheaper to compute again than to fetch
    return dh * tanh_v, dh * saved[-1] * (1.0 - tanh_v * tanh_v)


def _rendering(forward: Any, inside: Any, gates: int, units: int) -> Rendering:
    @njit(forceinline=True)
    def backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
        do, dv = readout_backward(saved, c, dh)
        return inside(saved, h_prev, c_prev, c, do, dc + dv, unit)

    return Rendering(
        forward, backward, gates=gates, saved=gates, planes=gates, dah_gates=tuple(range(gates)), units=units,
        cell_state=True, reads_h=False, readout=readout, readout_backward=readout_backward, inside=inside,
    )  # fmt: skip


def _separate(see: Any, see_backward: Any, parameters: Any, units: int) -> Rendering:
    @njit(forceinline=True)
    def forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
        i = sigmoid(see(ax[0] + ah[0], unit, 0, c_prev))
        f = sigmoid(see(ax[1] + ah[1], unit, 1, c_prev))
        g = tanh(ax[2] + ah[2])
        c = f * c_prev + i * g
        saved = i, f, g, sigmoid(see(ax[3] + ah[3], unit, 2, c))
        return readout(saved, c), c, saved

    @njit(forceinline=True)
    def inside(saved: Any, h_prev: Any, c_prev: Any, c: Any, do: Any, dc: Any, unit: Any) -> Any:
        i, f, g, o = saved
        da_o = do * o * (1.0 - o)
        dc = see_backward(dc, unit, 2, da_o)
        da_i, da_f = dc * g * i * (1.0 - i), dc * c_prev * f * (1.0 - f)
        planes = (da_i, da_f, dc * i * (1.0 - g * g), da_o)
        dc_prev = see_backward(see_backward(dc * f, unit, 0, da_i), unit, 1, da_f)
        return planes, splat(do, 0.0), dc_prev, parameters(planes, c_prev, c)

    return _rendering(forward, inside, 4, units)


def _coupled(see: Any, see_backward: Any, parameters: Any, units: int) -> Rendering:
    @njit(forceinline=True)
    def forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
        f = sigmoid(see(ax[0] + ah[0], unit, 0, c_prev))
        g = tanh(ax[1] + ah[1])
        c = f * c_prev + (1.0 - f) * g
        saved = f, g, sigmoid(see(ax[2] + ah[2], unit, 1, c))
        return readout(saved, c), c, saved

    @njit(forceinline=True)
    def inside(saved: Any, h_prev: Any, c_prev: Any, c: Any, do: Any, dc: Any, unit: Any) -> Any:
        f, g, o = saved
        da_o = do * o * (1.0 - o)
        dc = see_backward(dc, unit, 1, da_o)
        da_f = dc * (c_prev - g) * f * (1.0 - f)
        planes = (da_f, dc * (1.0 - f) * (1.0 - g * g), da_o)
        return planes, splat(do, 0.0), see_backward(dc * f, unit, 0, da_f), parameters(planes, c_prev, c)

    return _rendering(forward, inside, 3, units)


LSTM = _separate(blind, blind_backward, no_parameters, 0)
LSTM_PEEPHOLE = _separate(peep, peep_backward, peepholes, 3)
LSTM_COUPLED = _coupled(blind, blind_backward, no_parameters, 0)
LSTM_COUPLED_PEEPHOLE = _coupled(peep, peep_backward, coupled_peepholes, 2)
