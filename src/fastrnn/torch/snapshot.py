"""Packed weights that are never stale, whatever wrote to the parameters.

Nothing that torch keeps tells of every write: `p.data.mul_()` and a NumPy view of a parameter leave no trace in its
version. So each call compares the parameters, bit by bit, with the copies that the packed weights were made from. That
reads the weights once more and costs from a quarter down to a tenth of packing them anew.
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

BITS = {"float32": np.int32, "float64": np.int64}


class Snapshot:
    """Copies of one module's weights and what a backend packed from them."""

    def __init__(self, layer: Any, backend: str, weights: Sequence[torch.Tensor]) -> None:
        self.layer, self.backend = layer, backend
        for (name, shape), weight in zip(layer._shapes(), weights, strict=True):
            _check(name, shape, layer.dtype, weight)
        self._live = self._look(weights)
        self._copies = [bits.copy() for bits in self._live[1]]
        pack = backends.module(backend).pack
        self.packed = [pack(layer._network.cell, w) for w in self._grouped()]

    def holds(self, layer: Any, backend: str, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these weights have the very bits of this snapshot."""
        if layer is not self.layer or backend != self.backend:
            return False
        live = self._live  # read once: another thread may replace it
        for weight, (pointer, shape) in zip(weights, live[0], strict=True):
            if weight.data_ptr() != pointer or weight.shape != shape or not weight.is_contiguous():
                for (name, want), given in zip(layer._shapes(), weights, strict=True):
                    _check(name, want, layer.dtype, given)
                self._live = live = self._look(weights)
                break
        return all(map(build.load("equal").same_bits, live[1], self._copies))

    def _look(self, weights: Sequence[torch.Tensor]) -> tuple[list[tuple[int, Any]], list[Array]]:
        """Where the weights stand, and their bits; while the views live, nothing else can stand there."""
        arrays = [weight.detach().contiguous().numpy() for weight in weights]
        bits = [array.reshape(-1).view(BITS[self.layer.dtype]) for array in arrays]
        return [(weight.data_ptr(), weight.shape) for weight in weights], bits

    def _grouped(self) -> Iterator[Weights]:
        """The copies as the core takes them, one entry a layer and direction."""
        dtype, shapes = np.dtype(self.layer.dtype), self.layer._shapes()
        arrays = iter([copy.view(dtype).reshape(s) for copy, (_, s) in zip(self._copies, shapes, strict=True)])
        for names in self.layer._names():
            values: list[Array | None] = [None if name is None else next(arrays) for name in names]
            yield Weights(*values)  # type: ignore[arg-type]


def _check(name: str, shape: tuple[int, ...], dtype: str, weight: torch.Tensor) -> None:
    if tuple(weight.shape) != shape:
        raise ShapeError(f"{name}: expected {list(shape)}, got {list(weight.shape)}")
    if weight.dtype != getattr(torch, dtype) or not weight.is_cpu:
        raise TensorError(f"{name}: expected {dtype} on the CPU, got {weight.dtype} on {weight.device}")
