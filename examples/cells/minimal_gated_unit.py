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

# The same on one unit's registers, for CUDA; csrc/cells/cell.cuh says what such a struct has

CUDA = """
struct MinimalGatedUnit : CellTraits {
  static constexpr int gates = 2, saved = 2;
  static constexpr bool gated = true, gate_shared = true, uses_h_prev = true;

  template <class A>
  static __device__ void forward(const A* ax, const A* ah, A h_prev, A, const A*, A& h, A&, A* saved) {
    const A f = sigmoid(ax[0] + ah[0]), n = tanh(ax[1] + ah[1]);
    h = (A(1) - f) * h_prev + f * n;
    saved[0] = f, saved[1] = n;
  }

  template <class A>
  static __device__ void backward(
      const A* saved, A h_prev, A, A, A, const A*, A dh, A&, A* dax, A&, A& dh_prev, A*) {
    const A f = saved[0], n = saved[1];
    dax[0] = dh * (n - h_prev) * sigmoid_slope(f);
    dax[1] = dh * f * tanh_slope(n);
    dh_prev = dh * (A(1) - f);
  }

  template <class A> static __device__ A gate(A ax, A ah, A h_prev) { return sigmoid(ax + ah) * h_prev; }

  template <class A> static __device__ void gate_backward(A f, A h_prev, A ds, A& da, A& dh_prev) {
    da = ds * h_prev * sigmoid_slope(f);
    dh_prev = ds * f;
  }
};
"""

MGU = fastrnn.register(
    Cell(
        "mgu", ("f", "n"), forward, backward, numba=(__name__, "RENDERING"), cuda=(CUDA, "MinimalGatedUnit"), saved=2,
        gated=GatedProduct(gated_state, gated_state_backward),
    )
)  # fmt: skip
