"""Products into memory that is given, by cuBLAS itself: CuPy's own functions refuse to be captured in a graph.

CuPy 14 raises NotImplementedError for every call of cuBLAS on a stream that captures (cupy#6290), though cuBLAS allows
it. So the function is taken from the library that CuPy has loaded, with CuPy's handle, on CuPy's current stream.

cuBLAS lets a product have a workspace that belongs to the handle, and so to a thread. What is captured in a graph keeps
the address, so the products of a loop over time are given memory of their own (`using`), captured or not: the size is
one of the things that cuBLAS chooses its algorithm by, and a launched pass shall have the bits of a replayed one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import local
from typing import Any

import cupy

from fastrnn.arrays import Array

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType_t
COMPUTE_32F, COMPUTE_64F, DEFAULT_ALGORITHM = 68, 70, -1  # sums in float32,
SUMS_AS_COMPUTED = 16  # partial ones too, which cuBLAS else rounds to 16 bits where they pass through memory; no tf32
AS_IT_IS, TRANSPOSED = 0, 1
_ONE, _ZERO = ((ctypes.c_float(x), ctypes.c_double(x)) for x in (1, 0))  # read when the call is made or captured


_prepared: ContextVar[int | None] = ContextVar("_prepared", default=None)  # handle
_thread = local()  # devices: those on which it has made products


def workspace_bytes() -> int:
    """Return the size that NVIDIA advises for the current device: from Hopper on more."""
    return (32 if int(cupy.cuda.Device().compute_capability) >= 90 else 4) << 20


def workspace() -> Array:
    """Return memory for the products of a loop; CuPy's begins at a multiple of 512 bytes, and cuBLAS wants 256."""
    memory: Array = cupy.empty(workspace_bytes(), "uint8")
    return memory


@contextmanager
def using(memory: Array | None) -> Iterator[int]:
    """Let the products of this thread inside the block work in this memory and in no other, on the current stream.

    Nothing else may call cuBLAS in there: CuPy sets the stream for every call, which takes the workspace away.
    """
    library, before = _library(), ctypes.c_int()
    device = cupy.cuda.Device()
    handle: int = device.cublas_handle
    stream = cupy.cuda.get_current_stream().ptr
    _check(library.cublasGetMathMode(handle, ctypes.addressof(before)))
    _check(library.cublasSetStream_v2(handle, stream))
    if memory is not None:
        _check(library.cublasSetWorkspace_v2(handle, memory.data.ptr, memory.nbytes))  # type: ignore[attr-defined]
    _check(library.cublasSetMathMode(handle, SUMS_AS_COMPUTED))
    _devices().add(device.id)
    token = _prepared.set(handle)
    try:
        yield handle
    finally:
        _prepared.reset(token)
        _check(library.cublasSetMathMode(handle, before.value))
        _check(library.cublasSetStream_v2(handle, stream))


def used_by_this_thread() -> bool:
    """Whether this thread has made products on the current device: CuPy makes a handle for each thread, when asked."""
    return cupy.cuda.Device().id in _devices()


def multiply(a: Array, b: Array, out: Array) -> Array:
    """Write the product of two matrices of one dtype to `out`, which is contiguous, and return it.

    Their rows, or their columns, may be apart, as of a matrix that is some columns of a wider one.
    The sum is rounded once, to the dtype of `out`: theirs, or float32 for 16-bit ones.

    cuBLAS counts columns first and sees every matrix transposed: out^T = b^T a^T.
    """
    handle = _prepared.get()
    if handle is None:
        with using(None):
            return multiply(a, b, out)
    (rows, inner), columns = a.shape, b.shape[1]
    (turn_a, lead_a), (turn_b, lead_b) = _layout(a), _layout(b)
    kind, kind_out = TYPES[str(a.dtype)], TYPES[str(out.dtype)]
    double = kind == TYPES["float64"]
    assert max(rows, inner, columns) < 1 << 31, "cuBLAS counts rows and columns in 32 bits"
    at_a, at_b, at_out = (array.data.ptr for array in (a, b, out))  # type: ignore[attr-defined]
    status = _library().cublasGemmEx(
        handle, turn_b, turn_a, columns, rows, inner, ctypes.addressof(_ONE[double]), at_b, kind, lead_b, at_a, kind,
        lead_a, ctypes.addressof(_ZERO[double]), at_out, kind_out, columns, COMPUTE_64F if double else COMPUTE_32F,
        DEFAULT_ALGORITHM,
    )  # fmt: skip
    _check(status)
    return out


def matmul(a: Array, b: Array, dtype: str | None = None) -> Array:
    """Return the product of two matrices of one dtype, of any size, in theirs or another; a sum of nothing is zero."""
    out: Array = cupy.empty((a.shape[0], b.shape[1]), dtype or a.dtype)
    if out.size and a.shape[1]:
        return multiply(a, b, out)
    out[...] = 0
    return out


def _layout(a: Array) -> tuple[int, int]:
    """Whether cuBLAS has to transpose what it sees of a matrix, and the distance of its rows or columns in elements."""
    if a.flags.c_contiguous:
        return AS_IT_IS, a.shape[1]
    if a.flags.f_contiguous:
        return TRANSPOSED, a.shape[0]
    down, across = (n // a.itemsize for n in a.strides)
    assert 1 in (down, across), "the elements of a row, or of a column, stand side by side"
    return (AS_IT_IS, down) if across == 1 else (TRANSPOSED, across)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS: status {status}")


def _devices() -> set[int]:
    if not hasattr(_thread, "devices"):
        _thread.devices = set()
    devices: set[int] = _thread.devices
    return devices


@cache
def _library() -> Any:
    """cuBLAS: CuPy's module is linked to it, and finds its functions."""
    from cupy_backends.cuda.libs import cublas

    library = ctypes.CDLL(cublas.__file__)
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasGetMathMode.argtypes, library.cublasSetMathMode.argtypes = [pointer, pointer], [pointer, number]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    library.cublasGemmEx.argtypes = [
        pointer, *[number] * 5, pointer, pointer, number, number, pointer, number, number, pointer, pointer,
        *[number] * 4,
    ]  # fmt: skip
    return library
