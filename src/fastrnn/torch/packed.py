"""torch's PackedSequence to padded steps and back, in one indexed copy each way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.errors import ShapeError


class Padded(NamedTuple):
    """A PackedSequence as [T, B, I], longest first, and what packs an output of the same steps again."""

    x: Tensor  # [T, B, I]
    lengths: Tensor | None  # [B] int64; None where all are T
    places: Tensor | None  # [N] int64, on the device of x: where the packed rows stand among the T*B
    origin: PackedSequence

    def pack(self, y: Tensor) -> PackedSequence:
        """Pack an output [T, B, N]."""
        rows = y.reshape(-1, y.shape[2])
        _, batch_sizes, sorted_indices, unsorted_indices = self.origin
        data = rows if self.places is None else rows.index_select(0, self.places)
        return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)

    def sort(self, state: Tensor) -> Tensor:
        """A state [L*D, B, N] from the caller's order to longest first."""
        order = self.origin.sorted_indices
        return state if order is None else state.index_select(1, order)

    def unsort(self, state: Tensor) -> Tensor:
        """A state back in the caller's order."""
        order = self.origin.unsorted_indices
        return state if order is None else state.index_select(1, order)


def pad(packed: PackedSequence) -> Padded:
    """Lay the packed rows out as [T, B, I]."""
    data, batch_sizes = packed.data, packed.batch_sizes
    if data.dim() != 2:
        raise ShapeError(f"x: expected a PackedSequence of [N, I], got {tuple(data.shape)}")
    steps, batch = batch_sizes.numel(), int(batch_sizes[0])
    if not torch.compiler.is_compiling() and data.shape[0] == steps * batch:  # a graph cannot hang on the lengths
        return Padded(data.view(steps, batch, -1), None, None, packed)
    valid = torch.arange(batch, device="cpu") < batch_sizes.unsqueeze(1)
    places = valid.flatten().nonzero().squeeze(1).to(data.device, non_blocking=True)  # nobody writes to it: no wait
    rows = data.new_zeros(steps * batch, data.shape[1]).index_copy(0, places, data)
    return Padded(rows.view(steps, batch, -1), valid.sum(0), places, packed)
