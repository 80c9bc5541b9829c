"""Packed weights that are never stale, whatever wrote to the parameters.

Nothing that torch keeps tells of every write: `p.data.mul_()` and a NumPy view of a parameter leave no trace in its
version. So each call compares the parameters, bit by bit, with the copies that the packed weights were made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.arrays import Array
from fastrnn.cpu import build
from fastrnn.errors import ShapeError, TensorError
from fastrnn.recurrence import Weights
from fastrnn.torch.function import Call
from fastrnn.torch.spec import DTYPES, Spec, device_of, on_gpu

SHAPE = attrgetter("shape")


def checked(names: Sequence[str], sizes: Sequence[Any], weights: Sequence[Tensor]) -> None:
    """Check shapes, memory, and that all have the dtype and the device of the first."""
    dtype, device = weights[0].dtype, weights[0].device
    for name, shape, weight in zip(names, sizes, weights, strict=True):
        if weight.shape != shape:
            raise ShapeError(f"{name}: expected {list(shape)}, got {list(weight.shape)}")
        if weight.dtype != dtype or weight.device != device:
            place = device_of(weights[0])
            place = place if on_gpu(place) else "the CPU"
            raise TensorError(f"{name}: expected {dtype} on {place}, got {weight.dtype} on {weight.device}")
        if weight.data_ptr() == 0:
            raise RuntimeError(f"{name}: expected a tensor with memory, got one whose storage was freed")


def grouped(layer: Any, arrays: Sequence[Array]) -> Iterator[Weights]:
    """The weights as the core takes them, one entry a layer and direction."""
    rest = iter(arrays)
    for names in layer._names():
        values: list[Array | None] = [None if name is None else next(rest) for name in names]
        yield Weights(*values)  # type: ignore[arg-type]


class Snapshot:
    """Copies of one module's weights and what a backend packed from them."""

    def __init__(self, spec: Spec, backend: str, weights: Sequence[Tensor]) -> None:
        self.spec, self.backend, self.dtype = spec, backend, weights[0].dtype
        call = Call.of(spec, DTYPES[self.dtype])
        self._names, shapes = zip(*call.layer._shapes(), strict=True)
        self._sizes = list(map(torch.Size, shapes))
        self._live = self._arrays(weights)  # so that no other thread frees memory that a call is comparing
        self._pointers = list(map(Tensor.data_ptr, weights))
        self._addresses = np.array(self._pointers, np.int64)
        self._copy = np.concatenate([array.reshape(-1) for array in self._live])
        self._words = np.array([size.numel() * self._copy.itemsize // 4 for size in self._sizes], np.int64)
        self._same_bits = build.load("equal").same_bits
        self._bits = self._copy.view(np.int32)
        module = backends.module(backend)
        packed = [module.pack(call.network.cell, w) for w in grouped(call.layer, self._parts())]
        self.call = call._replace(backend=module, packed=packed)  # which does not hold this object: no cycle

    def holds(self, spec: Spec, backend: str, weights: Sequence[Tensor]) -> bool:
        """Whether these weights have the very bits of this snapshot."""
        if spec != self.spec or backend != self.backend or weights[0].dtype != self.dtype:
            return False
        if (
            list(map(Tensor.data_ptr, weights)) == self._pointers
            and list(map(SHAPE, weights)) == self._sizes
            and all(map(Tensor.is_contiguous, weights))
        ):
            return bool(self._same_bits(self._addresses, self._words, self._bits))
        arrays = self._arrays(weights)  # where they are not contiguous, copies that live until they have been read
        addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        return bool(self._same_bits(addresses, self._words, self._bits))

    def _arrays(self, weights: Sequence[Tensor]) -> list[Array]:
        """The weights, checked, each contiguous."""
        checked(self._names, self._sizes, weights)
        return [weight.detach().contiguous().numpy() for weight in weights]

    def _parts(self) -> list[Array]:
        """The copies, one an array."""
        parts = np.split(self._copy, np.cumsum([size.numel() for size in self._sizes])[:-1])
        return [part.reshape(size) for part, size in zip(parts, self._sizes, strict=True)]
