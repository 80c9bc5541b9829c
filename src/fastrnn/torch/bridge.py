"""Tensors of a GPU and CuPy's arrays on the same memory, on torch's current stream, in memory of torch's allocator.

No line that needs a GPU has run on one: what `current` sets and what `array` is given. That the numbers, gradients and
errors of fastrnn.torch are right around this file is proven with another in its place, and that `allocate` and `tensor`
are with CuPy's own arrays on the host's memory.

CuPy takes memory from torch's allocator, not from its own pool, so that what a call returns is as any other tensor:
`record_stream` and autograd's own use of it hold it back until another stream has read it, where torch ignores both for
memory of a foreign pool; and neither library's pool keeps from the other what it has freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
import torch
from torch import Tensor

from fastrnn.arrays import Array, index
from fastrnn.torch.spec import GPU_DTYPES

TENSOR_DTYPES = {name: dtype for dtype, name in GPU_DTYPES.items()} | {"bool": torch.bool}


@contextmanager
def current(device: str) -> Iterator[None]:
    """Let CuPy compute and allocate on a device as torch would: on torch's current stream, from torch's memory.

    Autograd sets that stream to the one of the forward pass before it calls a backward pass, in whatever thread.
    """
    number = index(device)
    with torch.cuda.device(number), cupy.cuda.Device(number):
        stream = torch.cuda.current_stream(number)
        named = SimpleNamespace(__cuda_stream__=lambda: (0, stream.cuda_stream))  # not all of torch's versions have it
        with cupy.cuda.Stream.from_external(named), cupy.cuda.using_allocator(allocate):
            yield


def allocate(size: int) -> Any:
    """Memory of torch's allocator, for CuPy, on the current device and stream."""
    return held(torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device())))


def held(block: Tensor) -> Any:
    """A tensor's memory as CuPy points to it."""
    memory = Block(block.data_ptr(), block.nbytes, block, max(block.get_device(), 0))
    memory.tensor = block
    return cupy.cuda.MemoryPointer(memory, 0)


class Block(cupy.cuda.UnownedMemory):
    """Memory that belongs to a tensor."""

    tensor: Tensor


def array(tensor: Tensor) -> Array:
    """The tensor's memory as CuPy's array; 16-bit types go through integers, which every version of DLPack knows."""
    tensor = tensor.detach().resolve_neg()
    name = GPU_DTYPES.get(tensor.dtype, "")
    if tensor.itemsize != 2:
        return cupy.from_dlpack(tensor)  # type: ignore[no-any-return]
    return cupy.from_dlpack(tensor.view(torch.int16)).view(np.dtype(name))  # type: ignore[no-any-return]


def tensor(array: Any) -> Tensor:
    """An array that was made inside `current` as a tensor on the same memory."""
    dtype, block = TENSOR_DTYPES[array.dtype.name], array.data.mem.tensor
    first = (array.data.ptr - block.data_ptr()) // array.itemsize
    strides = [stride // array.itemsize for stride in array.strides]
    return torch.empty(0, dtype=dtype, device=block.device).set_(block.untyped_storage(), first, array.shape, strides)
