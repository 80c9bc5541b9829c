"""The weights of one layer and direction as the loop uses them: torch's layout, biases summed where they may be."""

from __future__ import annotations

from typing import NamedTuple

import cupy as xp

from fastrnn.arrays import Array, computed_in
from fastrnn.cells import Cell
from fastrnn.cuda.refusal import refuse
from fastrnn.recurrence import Weights


class Packed(NamedTuple):
    """Weights [rows, columns], contiguous, on the device."""

    ih: Array  # [G*H, I]
    hh: Array | None  # [G*H, P], or
    diagonal: Array | None  # [G, H] in the dtype of registers
    hr: Array | None  # [P, H]
    bias: Array | None  # [G + separate, H] in the dtype of registers
    p: Array | None  # [N, H] in the dtype of registers
    ch: Array | None  # [n*H, H], dense peepholes
    ch_wide: Array | None  # the same in the dtype of registers, which c has, where that is another one
    gains: Array | None  # layer normalisation, in the dtype of registers: [2G, H] of x W and h U; gain and bias of c
    gates: int
    gated: bool

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.ih.shape[0]) // self.gates

    @property
    def output(self) -> int:
        """P."""
        return self.hidden if self.hr is None else int(self.hr.shape[0])

    @property
    def split(self) -> int:
        """The rows of ih and hh that belong to the first product: all, or all but the last gate's."""
        return (self.gates - self.gated) * self.hidden

    @property
    def first(self) -> Array:
        """[G*H, P]; gated cells [(G-1)*H, P]."""
        assert self.hh is not None, "a diagonal needs no product"
        return self.hh[: self.split]

    @property
    def last(self) -> Array:
        """[H, P], of gated cells."""
        assert self.hh is not None, "a diagonal needs no product"
        return self.hh[self.split :]

    def peepholes(self, wide: bool) -> tuple[Array, Array]:
        """The dense ones of the gates that see c_prev [(n-1)*H, H] and of the one that sees c [H, H]; if wide, as c."""
        v = self.ch_wide if wide and self.ch_wide is not None else self.ch
        assert v is not None, "asked for where there are some"
        return v[: -self.hidden], v[-self.hidden :]

    @property
    def fused(self) -> Array | None:
        """A diagonal U whose products the kernel of the step takes; if normalised, rows must be whole before."""
        return self.diagonal if self.gains is None else None

    def gates_of(self, last: bool) -> tuple[int, int]:
        """The first gate of one of the two products of a gated cell, and how many it has."""
        inner = self.gates - self.gated
        return (inner, 1) if last else (0, inner)

    @property
    def dtype(self) -> str:
        """Name of the dtype of the matrices."""
        return str(self.ih.dtype)

    @property
    def looped(self) -> tuple[Array | None, ...]:
        """What the loop reads of them."""
        return self.hh, self.diagonal, self.hr, self.bias, self.p, self.ch, self.ch_wide, self.gains

    def copy(self) -> Packed:
        """Return the same with copies of all that the loop reads; ih, which it does not, is the same array."""
        hh, diagonal, hr, bias, p, ch, wide, gains = (None if a is None else a.copy() for a in self.looped)
        return Packed(self.ih, hh, diagonal, hr, bias, p, ch, wide, gains, self.gates, self.gated)

    def take(self, other: Packed) -> None:
        """Write what the loop reads of other weights of the same shapes over this one's."""
        for mine, theirs in zip(self.looped, other.looped, strict=True):
            if mine is not None:
                mine[...] = theirs


def pack(cell: Cell, weights: Weights) -> Packed:
    """Bring the weights of one layer and direction into the form that the loop uses."""
    refuse(cell, weights.norm_ih is not None, weights.ch is not None)
    gates = len(cell.gates)
    hidden = weights.ih.shape[0] // gates
    dtype, full = computed_in(weights.ih.dtype), weights.hh.ndim == 2
    ch = None if weights.ch is None else xp.ascontiguousarray(weights.ch)
    return Packed(
        xp.ascontiguousarray(weights.ih), xp.ascontiguousarray(weights.hh) if full else None,
        None if full else weights.hh.astype(dtype).reshape(gates, hidden),
        None if weights.hr is None else xp.ascontiguousarray(weights.hr), _bias(cell, weights, hidden),
        None if weights.p is None else weights.p.astype(dtype, order="C"), ch,
        None if ch is None or ch.dtype == dtype else ch.astype(dtype), _gains(weights, hidden, dtype), gates,
        cell.gated is not None,
    )  # fmt: skip


def _gains(weights: Weights, hidden: int, dtype: str) -> Array | None:
    """Rows of H, in the order in which the kernels expect them."""
    parts = (weights.norm_ih, weights.norm_hh, weights.norm_c, weights.norm_c_bias)
    given = [a.astype(dtype).reshape(-1, hidden) for a in parts if a is not None]
    joined: Array | None = xp.concatenate(given) if given else None
    return joined


def _bias(cell: Cell, weights: Weights, hidden: int) -> Array | None:
    """b_ih + b_hh a gate; a separate last gate has b_ih alone there and b_hh in one more row."""
    if weights.b_ih is None or weights.b_hh is None:
        return None
    dtype = computed_in(weights.ih.dtype)
    b_ih, b_hh = (b.astype(dtype).reshape(-1, hidden) for b in (weights.b_ih, weights.b_hh))
    if not cell.separate:
        bias: Array = b_ih + b_hh
        return bias
    joined: Array = xp.concatenate((b_ih[:-1] + b_hh[:-1], b_ih[-1:], b_hh[-1:]))
    return joined
