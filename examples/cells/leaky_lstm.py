"""An LSTM with a learnable leak as a cell of one's own: each unit learns how fast its memory fades by itself.

    i, f, o = sigma(ax + ah)      g = tanh(ax + ah)
    c = sigma(p) * f * c_prev + i * g                   h = o * tanh(c)

p [1, H] is the layer's parameter `weight_p_l0`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from numba import njit

import fastrnn
from fastrnn.arrays import Array
from fastrnn.cells import Cell, Readout, Step, StepGradient, sigmoid
from fastrnn.cells.lstm import readout, readout_backward
from fastrnn.cpu.activations import sigmoid as vector_sigmoid
from fastrnn.cpu.activations import tanh as vector_tanh
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.cells.lstm import readout as vector_readout
from fastrnn.cpu.cells.lstm import readout_backward as vector_readout_backward
from fastrnn.cpu.vector import splat

# The equations in NumPy, on [B, G, H]: what every backend is checked against


def forward(xp: ModuleType, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any) -> Step:
    """One step; saves i, f, g, o."""
    a = ax + ah
    i, f, g, o = sigmoid(xp, a[:, 0]), sigmoid(xp, a[:, 1]), xp.tanh(a[:, 2]), sigmoid(xp, a[:, 3])
    c = sigmoid(xp, p[0]) * f * c_prev + i * g
    saved = xp.stack((i, f, g, o), axis=1)
    return Step(readout(xp, saved, c), c, saved)


def backward(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Any, dh: Array, dc: Any, p: Any
) -> StepGradient:
    """Gradients of one step, each row's part of p's among them."""
    do, dv = readout_backward(xp, saved, c, dh)
    return inside(xp, saved, h_prev, c_prev, h, c, do, dc + dv, p)


def inside(
    xp: ModuleType, saved: Array, h_prev: Array, c_prev: Array | None, h: Array, c: Any, do: Array, dc: Any, p: Any
) -> StepGradient:
    """The same from the gradients of o and c: set apart, so that `layer_norm` can normalise c before it is read."""
    i, f, g, o = (saved[:, k] for k in range(4))
    leak = sigmoid(xp, p[0])
    df = dc * leak * c_prev
    da = xp.stack((dc * g * i * (1 - i), df * f * (1 - f), dc * i * (1 - g * g), do * o * (1 - o)), axis=1)
    return StepGradient(da, da, None, dc * leak * f, (df * f * (1 - leak))[:, None])


# The same on vectors of units, for the CPU's compiled loop


@njit(forceinline=True)
def vector_forward(ax: Any, ah: Any, h_prev: Any, c_prev: Any, unit: Any) -> Any:
    """One step; saves i, f, g, o."""
    i, f, o = vector_sigmoid(ax[0] + ah[0]), vector_sigmoid(ax[1] + ah[1]), vector_sigmoid(ax[3] + ah[3])
    g = vector_tanh(ax[2] + ah[2])
    c = vector_sigmoid(unit[0]) * f * c_prev + i * g
    return vector_readout((i, f, g, o), c), c, (i, f, g, o)


@njit(forceinline=True)
def vector_backward(saved: Any, h_prev: Any, c_prev: Any, c: Any, dh: Any, dc: Any, unit: Any) -> Any:
    """Gradients of one step, its part of p's among them."""
    do, dv = vector_readout_backward(saved, c, dh)
    return vector_inside(saved, h_prev, c_prev, c, do, dc + dv, unit)


@njit(forceinline=True)
def vector_inside(saved: Any, h_prev: Any, c_prev: Any, c: Any, do: Any, dc: Any, unit: Any) -> Any:
    """The same from the gradients of o and c."""
    i, f, g, o = saved
    leak = vector_sigmoid(unit[0])
    df = dc * leak * c_prev
    planes = (dc * g * i * (1.0 - i), df * f * (1.0 - f), dc * i * (1.0 - g * g), do * o * (1.0 - o))
    return planes, splat(do, 0.0), dc * leak * f, (df * f * (1.0 - leak),)


RENDERING = Rendering(
    vector_forward, vector_backward, gates=4, saved=4, planes=4, dah_gates=(0, 1, 2, 3), units=1, cell_state=True,
    reads_h=False, readout=vector_readout, readout_backward=vector_readout_backward, inside=vector_inside,
)  # fmt: skip

# The same on one unit's registers, for CUDA; csrc/cells/cell.cuh says what such a struct has

CUDA = """
struct LeakyLstm : CellTraits {
  static constexpr int gates = 4, saved = 4, parameters = 1;
  static constexpr bool cell_state = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A, A c_prev, const A* p, A& h, A& c, A* saved) {
    const A i = sigmoid(ax[0] + ah[0]), f = sigmoid(ax[1] + ah[1]), g = tanh(ax[2] + ah[2]), o = sigmoid(ax[3] + ah[3]);
    c = sigmoid(p[0]) * f * c_prev + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    h = readout(saved, c);
  }

  template <class A>
  static __device__ void backward(
      const A* saved, A h_prev, A c_prev, A h, A c, const A* p, A dh, A& dc, A* dax, A& dah_last, A& dh_prev, A* dp) {
    A d_o, dv;
    readout_backward(saved, c, dh, d_o, dv);
    dc += dv;
    inside(saved, h_prev, c_prev, h, c, p, d_o, dc, dax, dah_last, dh_prev, dp);
  }

  // the last three for layer_norm: h is read out of v = c, or of v = LN(c)
  template <class A> static __device__ A readout(const A* saved, A v) { return saved[3] * tanh(v); }

  template <class A> static __device__ void readout_backward(const A* saved, A v, A dh, A& d_o, A& dv) {
    const A tanh_v = tanh(v);
    d_o = dh * tanh_v;
    dv = dh * saved[3] * tanh_slope(tanh_v);
  }

  template <class A>
  static __device__ void inside(
      const A* saved, A, A c_prev, A, A, const A* p, A d_o, A& dc, A* dax, A&, A& dh_prev, A* dp) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], leak = sigmoid(p[0]);
    const A df = dc * leak * c_prev;
    dax[0] = dc * g * sigmoid_slope(i);
    dax[1] = df * sigmoid_slope(f);
    dax[2] = dc * i * tanh_slope(g);
    dax[3] = d_o * sigmoid_slope(o);
    dp[0] = df * f * (A(1) - leak);
    dc *= leak * f;
    dh_prev = A(0);
  }
};
"""

LeakyLSTM = fastrnn.register(
    Cell(
        "leaky_lstm", ("i", "f", "g", "o"), forward, backward, numba=(__name__, "RENDERING"), cuda=(CUDA, "LeakyLstm"),
        saved=4, uses_h_prev=False, cell_state=True, unit_parameters=1,
        readout=Readout(readout, readout_backward, inside),
    )
)  # fmt: skip
