"""Weights as the kernels want them: in panels, padded to whole blocks of units."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, microkernel
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.layout import aligned, plain
from fastrnn.cpu.vector import vector_bytes
from fastrnn.recurrence import Weights

if TYPE_CHECKING:
    from fastrnn.cpu.forward import Place
    from fastrnn.cpu.shared import Shared

MOST_PLACES = 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of one layer; Hp and Pp are H and P in whole blocks of U units."""

    itemsize: int
    I: int
    G: int
    H: int
    P: int
    U: int

    @cached_property
    def Hp(self) -> int:
        """H in whole blocks."""
        return -(-self.H // self.U) * self.U

    @cached_property
    def Pp(self) -> int:
        """P in whole blocks."""
        return -(-self.P // self.U) * self.U

    @cached_property
    def Ps(self) -> int:
        """Distance of rows of Pp elements."""
        return int(row_stride(self.Pp, self.itemsize))

    @cached_property
    def Hs(self) -> int:
        """Distance of rows of Hp elements."""
        return int(row_stride(self.Hp, self.itemsize))

    def padded(self, n: int) -> int:
        """Return n in whole blocks."""
        return -(-n // self.U) * self.U


class Back(NamedTuple):
    """Panels of the backward pass; empty where the layer has no such weights."""

    w: Array  # [Ip/U, G*Hp, U]: dx = dax W
    u: Array  # [Pp/U, G*Hp, U], diagonal [G, Hp]: dh = dah U; without the last gate for a gated cell
    u_gated: Array  # [Hp/U, Hp, U], diagonal [Hp]: gradient of the gated state
    hr: Array  # [Hp/U, P, U]: dm = dh W_hr


class Packed:
    """The weights of one layer and direction in panels; those of the backward pass are made when it needs them."""

    def __init__(self, cell: Cell, weights: Weights) -> None:
        self.cell, self.weights, self.dtype = cell, weights, weights.ih.dtype
        microkernel.ready(numba.from_dtype(self.dtype))  # kernels from the cache link to it
        self.nothing = np.empty(0, self.dtype)  # stands for what a pass does not have
        # Memory of passes that have ended, for the next ones like them.
        self.places: dict[Hashable, Place | Shared] = {}
        self.used = -inf  # when a pass that may be shared has ended, by lately's clock
        self.normalised = weights.norm_ih is not None
        self.loop = build.load("loop", cell, self.normalised)
        self.rendering: Rendering = self.loop.CELL
        gates = len(cell.gates)
        hidden = weights.ih.shape[0] // gates
        self.diagonal = weights.hh.ndim == 1
        self.sizes = Sizes(
            self.dtype.itemsize, weights.ih.shape[1], gates, hidden, hidden if self.diagonal else weights.hh.shape[1],
            2 * vector_bytes() // self.dtype.itemsize,
        )  # fmt: skip
        n, w = self.sizes, weights
        self.w, self.u, self.hr = aligned(
            (n.Hp * n.G * n.I, n.Hp * n.G * (1 if self.diagonal else n.P), 0 if w.hr is None else n.Pp * n.H),
            self.dtype,
        )
        pack = build.load("panels").pack_forward
        pack(plain(w.ih), self.w, n.G, n.H, n.I)
        if self.diagonal:
            self._put_diagonal(self.u, range(n.G))
        else:
            pack(plain(w.hh), self.u, n.G, n.H, n.P)
        if w.hr is not None:
            pack(plain(w.hr), self.hr, 1, n.P, n.H)
        self.bias, self.unit = self._biases()
        self.affine = self._affine() if self.normalised else np.empty(0, self.dtype)

    def keep(self, key: Hashable, place: Place | Shared) -> None:
        """Let the next pass of this kind have the memory."""
        self.places[key] = place  # at the end: the others have not been used for longer
        if len(self.places) > MOST_PLACES:
            for oldest in list(self.places)[:-MOST_PLACES]:
                self.places.pop(oldest, None)

    def _put_diagonal(self, u: Array, gates: Sequence[int]) -> None:
        """u [n, Hp] = the diagonals of these gates."""
        n = self.sizes
        u.reshape(-1, n.Hp)[:, n.H :] = 0
        u.reshape(-1, n.Hp)[:, : n.H] = self.weights.hh.reshape(n.G, n.H)[list(gates)]

    def _biases(self) -> tuple[Array, Array]:
        """bias [G, Hp]: b_ih and the b_hh that may be added to it; unit [units, Hp]: other b_hh, unit parameters."""
        n, w = self.sizes, self.weights
        bias, unit = np.zeros((n.G, n.Hp), self.dtype), np.zeros((self.rendering.units, n.Hp), self.dtype)
        if w.b_ih is not None and w.b_hh is not None:
            b_ih, b_hh = w.b_ih.reshape(n.G, n.H), w.b_hh.reshape(n.G, n.H)
            np.add(b_ih, b_hh, out=bias[:, : n.H])
            for k, name in enumerate(self.cell.separate):
                gate = self.cell.gates.index(name)
                bias[gate, : n.H], unit[k, : n.H] = b_ih[gate], b_hh[gate]
        if w.p is not None:
            unit[len(self.cell.separate) :, : n.H] = w.p
        return bias.reshape(-1), unit.reshape(-1)

    def _affine(self) -> Array:
        """[2, 2G+1, Hp]: gains and shifts of LN(x W), LN(h U) and LN(c); the first has the biases, c its own."""
        n, w = self.sizes, self.weights
        affine = np.zeros((2, 2 * n.G + 1, n.Hp), self.dtype)
        assert w.norm_ih is not None, "asked for with layer normalisation only"
        assert w.norm_hh is not None, "the same"
        affine[0, : n.G, : n.H], affine[0, n.G : -1, : n.H] = w.norm_ih.reshape(n.G, n.H), w.norm_hh.reshape(n.G, n.H)
        affine[1, : n.G] = self.bias.reshape(n.G, n.Hp)
        if w.norm_c is not None:
            affine[0, -1, : n.H], affine[1, -1, : n.H] = w.norm_c, w.norm_c_bias
        return affine.reshape(-1)

    @cached_property
    def back(self) -> Back:
        """The panels of the backward pass."""
        n, w, order = self.sizes, self.weights, self.loop.DAH_GATES
        ungated, gated = (order[:-1], order[-1:]) if self.cell.gated else (order, ())
        square = n.Hp if self.diagonal else n.Pp * n.Hp
        panels = Back(
            *aligned(
                (
                    n.padded(n.I) * n.G * n.Hp, square * len(ungated), square * len(gated),
                    0 if w.hr is None else n.Hp * n.P,
                ),
                self.dtype,
            )
        )  # fmt: skip
        pack = build.load("panels").pack_backward
        pack(plain(w.ih), np.arange(n.G), panels.w, n.H, n.Hp, n.I)
        if self.diagonal:
            self._put_diagonal(panels.u, ungated)
            self._put_diagonal(panels.u_gated, gated)
        else:
            pack(plain(w.hh), np.array(ungated, np.int64), panels.u, n.H, n.Hp, n.P)
        if gated and not self.diagonal:
            pack(plain(w.hh), np.array(gated, np.int64), panels.u_gated, n.H, n.Hp, n.H)
        if w.hr is not None:
            pack(plain(w.hr), np.zeros(1, np.int64), panels.hr, n.P, n.P, n.H)
        return panels
