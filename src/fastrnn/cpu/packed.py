"""Weights as the kernels want them: in panels, padded to whole blocks of units."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numba
import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, microkernel
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.layout import aligned_zeros, plain
from fastrnn.cpu.vector import vector_bytes
from fastrnn.recurrence import Weights


class Sizes(NamedTuple):
    """Sizes of one layer; Hp and Pp are H and P in whole blocks of U units."""

    itemsize: int
    I: int
    G: int
    H: int
    P: int
    U: int

    @property
    def Hp(self) -> int:
        """H in whole blocks."""
        return -(-self.H // self.U) * self.U

    @property
    def Pp(self) -> int:
        """P in whole blocks."""
        return -(-self.P // self.U) * self.U

    @property
    def Ps(self) -> int:
        """Distance of rows of Pp elements."""
        return row_stride(self.Pp, self.itemsize)

    @property
    def Hs(self) -> int:
        """Distance of rows of Hp elements."""
        return row_stride(self.Hp, self.itemsize)

    def padded(self, n: int) -> int:
        """Return n in whole blocks."""
        return -(-n // self.U) * self.U


class Packed:
    """The weights of one layer and direction in panels; those of the backward pass are made when it needs them."""

    def __init__(self, cell: Cell, weights: Weights) -> None:
        self.cell, self.weights, self.dtype = cell, weights, weights.ih.dtype
        microkernel.ready(numba.from_dtype(self.dtype))  # kernels from the cache link to it
        self.loop = build.load("loop", cell)
        self.rendering: Rendering = self.loop.CELL
        self.sizes = Sizes(
            self.dtype.itemsize, weights.ih.shape[1], len(cell.gates), weights.ih.shape[0] // len(cell.gates), weights.hh.shape[1],
            2 * vector_bytes() // self.dtype.itemsize,
        )  # fmt: skip
        n = self.sizes
        self.w = self._forward(weights.ih, n.G, n.H, n.I)
        self.u = self._forward(weights.hh, n.G, n.H, n.P)
        self.hr = np.empty(0, self.dtype) if weights.hr is None else self._forward(weights.hr, 1, n.P, n.H)
        self.bias, self.unit = self._biases()

    def _biases(self) -> tuple[Array, Array]:
        """bias [G, Hp]: b_ih plus the b_hh that may be added to it; unit [units, Hp]: the other b_hh."""
        n, w = self.sizes, self.weights
        bias, unit = np.zeros((n.G, n.Hp), self.dtype), np.zeros((self.rendering.units, n.Hp), self.dtype)
        if w.b_ih is not None and w.b_hh is not None:
            b_hh = w.b_hh.reshape(n.G, n.H).copy()
            separate = [self.cell.gates.index(name) for name in self.cell.separate]
            unit[:, : n.H] = b_hh[separate]
            b_hh[separate] = 0
            bias[:, : n.H] = w.b_ih.reshape(n.G, n.H) + b_hh
        return bias.reshape(-1), unit.reshape(-1)

    def _forward(self, w: Array, G: int, H: int, K: int) -> Array:
        panels = aligned_zeros(self.sizes.padded(H) * K * G, self.dtype)
        build.load("panels").pack_forward(plain(w), panels, G, H, K)
        return panels

    def _backward(self, w: Array, order: tuple[int, ...], H: int, rows: int, C: int) -> Array:
        panels = aligned_zeros(self.sizes.padded(C) * len(order) * rows, self.dtype)
        build.load("panels").pack_backward(plain(w), np.array(order, np.int64), panels, H, rows, C)
        return panels

    @cached_property
    def w_back(self) -> Array:
        """[Ip/U, G*Hp, U]: dx = dax W."""
        n = self.sizes
        return self._backward(self.weights.ih, tuple(range(n.G)), n.H, n.Hp, n.I)

    @cached_property
    def u_back(self) -> Array:
        """[Pp/U, G*Hp, U]: dh = dah U; without the last gate for a gated cell."""
        n, order = self.sizes, self.rendering.dah_gates
        return self._backward(self.weights.hh, order[:-1] if self.cell.gated else order, n.H, n.Hp, n.P)

    @cached_property
    def u_gated(self) -> Array:
        """[Hp/U, Hp, U]: gradient of the gated state."""
        n = self.sizes
        if self.cell.gated is None:
            return np.empty(0, self.dtype)
        return self._backward(self.weights.hh, self.rendering.dah_gates[-1:], n.H, n.Hp, n.H)

    @cached_property
    def hr_back(self) -> Array:
        """[Hp/U, P, U]: dm = dh W_hr."""
        n = self.sizes
        if self.weights.hr is None:
            return np.empty(0, self.dtype)
        return self._backward(self.weights.hr, (0,), n.P, n.P, n.H)
