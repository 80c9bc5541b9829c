"""The weights of one layer and direction as the loop uses them: torch's layout, biases summed where they may be."""

from __future__ import annotations

from typing import NamedTuple

import cupy as xp

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.recurrence import Weights


def computed_in(dtype: object) -> str:
    """Return the dtype of registers, cell states and sums for arrays of a dtype."""
    return "float64" if str(dtype) == "float64" else "float32"


class Packed(NamedTuple):
    """Weights [rows, columns], contiguous, on the device; `first` and `last` are rows of hh, split for gated cells."""

    ih: Array  # [G*H, I]
    hh: Array  # [G*H, P]
    first: Array  # [G*H, P]; gated cells [(G-1)*H, P]
    last: Array | None  # gated cells [H, P]
    hr: Array | None  # [P, H]
    bias: Array | None  # [G + separate, H] in the dtype of registers
    gates: int

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.ih.shape[0]) // self.gates

    @property
    def output(self) -> int:
        """P."""
        return int(self.hh.shape[1])

    @property
    def dtype(self) -> str:
        """Name of the dtype of all arrays but the bias."""
        return str(self.ih.dtype)

    @property
    def looped(self) -> tuple[Array | None, ...]:
        """What the loop reads of them."""
        return self.hh, self.hr, self.bias

    def copy(self) -> Packed:
        """Return the same with copies of all that the loop reads; ih, which it does not, is the same array."""
        hh, split = self.hh.copy(), self.first.shape[0]
        return self._replace(
            hh=hh, first=hh[:split], last=None if self.last is None else hh[split:],
            hr=None if self.hr is None else self.hr.copy(), bias=None if self.bias is None else self.bias.copy(),
        )  # fmt: skip

    def take(self, other: Packed) -> None:
        """Write what the loop reads of other weights of the same shapes over this one's."""
        for mine, theirs in zip(self.looped, other.looped, strict=True):
            if mine is not None:
                mine[...] = theirs


def pack(cell: Cell, weights: Weights) -> Packed:
    """Bring the weights of one layer and direction into the form that the loop uses."""
    if cell.cuda is None:
        raise ValueError(
            f"cell: expected one with a CUDA rendering on the backend 'cuda', got {cell.name!r}; "
            "call it under fastrnn.use_backend('reference')"
        )
    assert cell.separate in ((), cell.gates[-1:]), "step.cuh knows this only of the last gate"
    gates = len(cell.gates)
    hidden = weights.ih.shape[0] // gates
    ih, hh = xp.ascontiguousarray(weights.ih), xp.ascontiguousarray(weights.hh)
    split = (gates - 1) * hidden if cell.gated else gates * hidden
    return Packed(
        ih, hh, hh[:split], hh[split:] if cell.gated else None,
        None if weights.hr is None else xp.ascontiguousarray(weights.hr), _bias(cell, weights, hidden), gates,
    )  # fmt: skip


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
