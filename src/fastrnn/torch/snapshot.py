"""Packed weights that are never stale, whatever wrote to the parameters.

Nothing that torch keeps tells of every write: `p.data.mul_()` and a NumPy view of a parameter leave no trace in its
version. So each call compares the parameters, bit by bit, with the copies that the packed weights were made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastrnn import backends
from fastrnn.arrays import Array
from fastrnn.cpu import build
from fastrnn.errors import ShapeError, TensorError
from fastrnn.recurrence import Weights


class Snapshot:
    """Copies of one module's weights and what a backend packed from them."""

    def __init__(self, layer: Any, backend: str, weights: Sequence[torch.Tensor]) -> None:
        self.layer, self.name, self.backend = layer, backend, backends.module(backend)
        self._names, shapes = zip(*layer._shapes(), strict=True)
        self._sizes, self._dtype = list(map(torch.Size, shapes)), getattr(torch, layer.dtype)
        self._live = self._arrays(weights)  # while these views live, nothing else can stand where the weights stand
        self._pointers = [weight.data_ptr() for weight in weights]
        self._addresses = _addresses(self._live)
        self._copy = np.concatenate([array.reshape(-1) for array in self._live])
        self._words = np.array([size.numel() * self._copy.itemsize // 4 for size in self._sizes], np.int64)
        self._same_bits = build.load("equal").same_bits
        self._bits = self._copy.view(np.int32)
        self.packed = [self.backend.pack(layer._network.cell, w) for w in self._grouped()]

    def holds(self, layer: Any, backend: str, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these weights have the very bits of this snapshot."""
        if layer is not self.layer or backend != self.name:
            return False
        known = [weight.data_ptr() for weight in weights] == self._pointers
        for size, weight in zip(self._sizes, weights, strict=True):
            if weight.shape != size or not weight.is_contiguous():
                known = False
        if known:
            return bool(self._same_bits(self._addresses, self._words, self._bits))
        arrays = self._arrays(weights)
        return bool(self._same_bits(_addresses(arrays), self._words, self._bits))

    def _arrays(self, weights: Sequence[torch.Tensor]) -> list[Array]:
        """The weights, checked, each contiguous."""
        for name, shape, weight in zip(self._names, self._sizes, weights, strict=True):
            if weight.shape != shape:
                raise ShapeError(f"{name}: expected {list(shape)}, got {list(weight.shape)}")
            if weight.dtype != self._dtype or not weight.is_cpu:
                raise TensorError(f"{name}: expected {self._dtype} on the CPU, got {weight.dtype} on {weight.device}")
            if weight.data_ptr() == 0:
                raise RuntimeError(f"{name}: expected a tensor with memory, got one whose storage was freed")
        return [weight.detach().contiguous().numpy() for weight in weights]

    def _grouped(self) -> Iterator[Weights]:
        """The copies as the core takes them, one entry a layer and direction."""
        parts = np.split(self._copy, np.cumsum([size.numel() for size in self._sizes])[:-1])
        arrays = iter([part.reshape(size) for part, size in zip(parts, self._sizes, strict=True)])
        for names in self.layer._names():
            values: list[Array | None] = [None if name is None else next(arrays) for name in names]
            yield Weights(*values)  # type: ignore[arg-type]


def _addresses(arrays: Sequence[Array]) -> Array:
    return np.array([array.ctypes.data for array in arrays], np.int64)
