"""Packed weights that are never stale, whatever wrote to the parameters.

Nothing that torch keeps tells of every write: `p.data.mul_()` and a NumPy view of a parameter leave no trace in its
version. So each call compares the parameters, bit by bit, with the copies that the packed weights were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import accumulate, pairwise, starmap
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from fastrnn import backends
from fastrnn.arrays import Array
from fastrnn.cpu import build
from fastrnn.errors import ShapeError, TensorError
from fastrnn.recurrence import Weights
from fastrnn.torch.function import Call
from fastrnn.torch.spec import DTYPES, Spec, device_of, on_gpu


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


def _never(*weights: Tensor) -> bool:
    return False


class Snapshot:
    """Copies of one module's weights and what a backend packed from them.

    alike(*weights): whether weights look as those that `seen` was given, and torch is in the state that it was in then.
    usual: whether nothing is to be done in that state but to run the kernels. known: of the module's attributes, then.
    """

    def __init__(self, spec: Spec, weights: Sequence[Tensor]) -> None:
        self.spec, self.asked, self.dtype = spec, backends.asked(), weights[0].dtype
        self._backend = backends.module(backends.current())
        call = Call.of(spec, DTYPES[self.dtype])
        self._names, shapes = zip(*call.layer._shapes(), strict=True)
        self._sizes = list(map(torch.Size, shapes))
        numbers = [size.numel() for size in self._sizes]
        self._stretches = list(starmap(slice, pairwise(accumulate(numbers, initial=0))))
        self._live = self._arrays(weights)  # so that no other thread frees memory that a call is comparing
        self._pointers = list(map(Tensor.data_ptr, weights))
        self._addresses = np.array(self._pointers, np.int64)
        self._words = np.array(numbers, np.int64) * (self._live[0].itemsize // 4)
        self._same_bits = build.load("equal").same_bits
        self.known: Any = None
        self.usual, self.alike = False, cast(Callable[..., bool], _never)
        self._take(call)

    def _take(self, call: Call) -> None:
        """Copy the weights and pack the copies."""
        values = np.concatenate([array.reshape(-1) for array in self._live])
        self._bits = values.view(np.int32)
        parts = [values[where].reshape(size) for where, size in zip(self._stretches, self._sizes, strict=True)]
        packed = [self._backend.pack(call.network.cell, w) for w in grouped(call.layer, parts)]
        self.call = call._replace(backend=self._backend, packed=packed)  # which does not hold this object: no cycle

    def seen(self, known: Any, weights: Sequence[Tensor]) -> Snapshot:
        """The snapshot with another `alike`, for weights that have its bits: they as they look now, torch as it is now.

        torch.compile's guard compares in one call class, dtype, shape, strides and requires_grad, and by the thread's
        dispatch keys whether functions are transformed or traced, operations sent elsewhere or cast, or inference mode
        is on. Autocast is not usual: it changes the dtypes of arguments and outputs.
        """
        new = copy(self)  # another thread may be at the old one
        new.known, new.usual, new.alike = known, not torch.is_autocast_enabled("cpu"), _never
        if all(map(Tensor.is_contiguous, weights)):
            new.alike = TensorGuards(*weights, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        return new

    def lie(self, weights: Sequence[Tensor]) -> bool:
        """Whether weights that are alike lie where these did, for the backend that was asked for."""
        return list(map(Tensor.data_ptr, weights)) == self._pointers and backends.asked() == self.asked

    def is_true(self) -> bool:
        """Whether what lies there has the very bits that it had."""
        return bool(self._same_bits(self._addresses, self._words, self._bits))

    def renewed(self) -> Snapshot:
        """The snapshot of what lies there now."""
        new = copy(self)
        new._take(self.call)
        return new

    def holds(self, spec: Spec, weights: Sequence[Tensor]) -> bool:
        """Whether these weights, whatever they look like, have the very bits of this snapshot."""
        if spec != self.spec or backends.asked() != self.asked or weights[0].dtype != self.dtype:
            return False
        arrays = self._arrays(weights)  # where they are not contiguous, copies that live until they have been read
        addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        return bool(self._same_bits(addresses, self._words, self._bits))

    def _arrays(self, weights: Sequence[Tensor]) -> list[Array]:
        """The weights, checked, each contiguous."""
        checked(self._names, self._sizes, weights)
        return [weight.detach().contiguous().numpy() for weight in weights]
