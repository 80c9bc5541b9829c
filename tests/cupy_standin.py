"""A stand-in for the part of CuPy that fastrnn uses: its arrays live in host memory, its kernels are the host-run ones.

It is stricter than NumPy wherever CuPy is: arrays of the two do not mix, a boolean index and a truth value have to wait
for the device (and are counted, see `waits`), `empty` is NaN, and a product writes only where cuBLAS could.
"""

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import host_kernels
import numpy as np

waits: list[str] = []  # what had to wait for the device, since somebody cleared it
launches: list[str] = []  # names of the kernels that ran
seed = 0  # of the next launch; every launch takes the next one


class ndarray:  # noqa: N801
    """An array of the device."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        self._host = host

    shape, dtype, ndim, size, strides, itemsize, nbytes, flags = (
        property(lambda self, name=name: getattr(self._host, name))
        for name in ("shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes", "flags")
    )
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    device = property(lambda self: Device(0))
    T = property(lambda self: ndarray(self._host.T))

    def __array__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> "ndarray":
        if any(_plain(i).dtype == bool for i in _parts(index) if isinstance(i, ndarray)):
            waits.append("boolean index")
        return _wrap(self._host[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_index(index)] = _plain(value)

    def __bool__(self) -> bool:
        waits.append("truth value")
        return bool(self._host)

    def __repr__(self) -> str:
        return f"standin {self._host!r}"


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return _wrap(getattr(self._host, name)(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}))

    return method


for _name in ("reshape", "transpose", "astype", "copy", "view", "sum", "fill", "any", "all", "max", "min"):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor", "rshift", "lshift", "mod", "matmul"):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _method(f"__{_prefix}{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))


def _wrap(value: Any) -> Any:
    """NumPy's result as an array of the device, numbers too; anything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return value


def _plain(value: Any) -> Any:
    """The host memory of an array of the device; an array of NumPy is refused as CuPy refuses it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value._host if isinstance(value, ndarray) else value


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _index(index: Any) -> Any:
    return tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)


def empty(shape: Any, dtype: Any = float) -> ndarray:
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8)[...] = 0xFF  # NaN, or an absurd integer
    return ndarray(host)


def empty_like(array: ndarray) -> ndarray:
    return empty(array.shape, array.dtype)


def array(value: Any, dtype: Any = None, order: str = "K", copy: bool = True) -> ndarray:
    return ndarray(np.array(value._host if isinstance(value, ndarray) else value, dtype, order=order, copy=copy))


def asarray(value: Any) -> ndarray:
    return value if isinstance(value, ndarray) else ndarray(np.array(value))


def asnumpy(value: ndarray) -> np.ndarray:
    waits.append("copy to the host")
    return value._host.copy()


def ascontiguousarray(value: ndarray) -> ndarray:
    return ndarray(np.ascontiguousarray(_plain(value)))


def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
    """The product of two matrices; 16-bit ones are summed in float32, as cuBLAS does."""
    assert a.ndim == b.ndim == 2, "only matrices: a batched bfloat16 product crashes CuPy"
    assert a.dtype == b.dtype
    compute = np.promote_types(a.dtype, np.float32) if a.dtype.name != "bfloat16" else np.dtype(np.float32)
    result = (a._host.astype(compute) @ b._host.astype(compute)).astype(a.dtype)
    if out is None:
        return ndarray(result)
    assert out.dtype == a.dtype
    assert out.shape == result.shape, f"{out.shape}, expected {result.shape}"
    assert out._host.flags.c_contiguous, "CuPy would write to a copy first"
    assert not any(np.may_share_memory(out._host, operand._host) for operand in (a, b))
    out._host[...] = result
    return out


class RawKernel:
    """A kernel of a RawModule."""

    def __init__(self, kernel: host_kernels.Kernel) -> None:
        self._kernel = kernel

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        global seed
        seed += 1
        launches.append(self._kernel.name)
        self._kernel(grid, block, [arg._host if isinstance(arg, ndarray) else arg for arg in args], seed=seed)


class RawModule:
    """Compiled source."""

    compiler: host_kernels.Compiler

    def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
        assert all(isinstance(option, str) for option in options)
        self._code = code

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(host_kernels.Kernel(self.compiler, self._code, name))


class Device:
    """The only device; a context manager."""

    compute_capability = "90"

    def __init__(self, device: int = 0) -> None:
        assert device == 0
        self.id = device

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        pass


cuda = SimpleNamespace(Device=Device, runtime=SimpleNamespace(getDeviceCount=lambda: 1))


def __getattr__(name: str) -> Any:
    """Any other function of NumPy on arrays of the device; dtypes as they are."""
    found = getattr(np, name)
    if isinstance(found, type):
        return found

    def function(*args: Any, **kwargs: Any) -> Any:
        return _wrap(found(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}))

    return function


@contextmanager
def installed(compiler: host_kernels.Compiler) -> Iterator[ModuleType]:
    """Let `import cupy` find the stand-in, and fastrnn.cuda be imported anew on it, inside the block."""
    this = sys.modules[__name__]
    this.__spec__ = importlib.machinery.ModuleSpec("cupy", None)

    def affected() -> dict[str, ModuleType]:
        return {k: v for k, v in sys.modules.items() if k.split(".")[0] == "cupy" or k.startswith("fastrnn.cuda")}

    kept = affected()
    for name in kept:
        del sys.modules[name]
    sys.modules["cupy"] = this
    RawModule.compiler = compiler
    try:
        yield this
    finally:
        for name in affected():
            del sys.modules[name]
        sys.modules.update(kept)
