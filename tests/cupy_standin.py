"""A stand-in for the part of CuPy that fastrnn uses: its arrays live in host memory, its kernels are the host-run ones.

It is stricter than NumPy wherever CuPy is: arrays of the two do not mix, a boolean index and a truth value have to wait
for the device (and are counted, see `waits`), `empty` is NaN, and a product writes only where cuBLAS could.

A capture runs nothing; it records kernels, products and assignments with the addresses of their arrays. A replay works
on these addresses and fails where their memory has been freed. While capturing, nothing may allocate or wait, no
kernel or product may run for the first time, nor any product of a thread that has made none, and no product may work
in the workspace of a thread's cuBLAS handle.

What is done to an array is done on the current stream. Two streams that touch one array, one of them writing, fail
unless an event orders them. Nothing runs later than it is called, so it is the order that is checked, not the values.
"""

import ctypes
import importlib.machinery
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import host_kernels
import numpy as np

waits: list[str] = []  # what had to wait for the device, since somebody cleared it
launches: list[str] = []  # names of the kernels that Python launched
replays: list[int] = []  # for each graph that was launched, how much was recorded in it
seed = 0  # of the next launch; every launch takes the next one


_memory: dict[int, "weakref.ref[np.ndarray]"] = {}  # all arrays that own memory of the device
# What of each of them a stream has written, and when on its own clock; likewise what it has read since.
_writers: dict[int, dict[tuple["Stream", "View"], int]] = {}
_readers: dict[int, dict[tuple["Stream", "View"], int]] = {}


class View(NamedTuple):
    """A part of an array's memory, which it does not keep."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, array: np.ndarray) -> "View":
        return cls(array.__array_interface__["data"][0], array.shape, array.strides, array.itemsize)

    def overlaps(self, other: "View") -> bool:
        return self == other or np.shares_memory(self._array(), other._array())

    def _array(self) -> np.ndarray:
        spans = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        if min(self.shape, default=1) == 0:
            return np.empty(0)
        low, high = sum(min(0, span) for span in spans), sum(max(0, span) for span in spans) + self.itemsize
        memory = (ctypes.c_char * (high - low)).from_address(self.address + low)
        return np.ndarray(self.shape, f"V{self.itemsize}", memory, -low, self.strides)


def _owner(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _forget(key: int) -> None:
    for known in (_memory, _writers, _readers):
        known.pop(key, None)


def _uses(reads: Iterable[np.ndarray], writes: Iterable[np.ndarray]) -> None:
    """Note what the current stream does to the memory of these arrays, and fail if it comes too early."""
    now = _streams[-1]
    if now.recorded is not None:
        return  # nothing happens before the graph is launched
    now.time += 1
    for array in writes:
        key, view = id(_owner(array)), View.of(array)
        read, written = _readers.setdefault(key, {}), _writers.setdefault(key, {})
        for (stream, part), time in [*read.items(), *written.items()]:
            ordered = stream.reached(now, time) or not part.overlaps(view)
            assert ordered, "race between streams: one writes what another reads or writes"
        read.pop((now, view), None)
        written[now, view] = now.time
    for array in reads:
        key, view = id(_owner(array)), View.of(array)
        for (stream, part), time in _writers.get(key, {}).items():
            ordered = stream.reached(now, time) or not part.overlaps(view)
            assert ordered, "race between streams: one reads what another writes"
        _readers.setdefault(key, {})[now, view] = now.time


class ndarray:  # noqa: N801
    """An array of the device."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        self._host = host
        owner = _owner(host)
        key = id(owner)
        if key not in _memory:
            _memory[key] = weakref.ref(owner, lambda _: _forget(key))

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
        _wait_for_mask(index)
        return _wrap(self._host[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        _wait_for_mask(index)
        part, value = self._host[_index(index)] if _basic(index) else None, _plain(value)
        if part is None or (np.ndim(part) == 0 and not isinstance(part, np.ndarray)):
            assert _recording() is None
            _uses((), (self._host,))
            self._host[_index(index)] = value
        else:
            _run("copy", np.copyto, (0,), part, value, "unsafe")

    def __bool__(self) -> bool:
        _wait("truth value")
        return bool(self._host)

    def __float__(self) -> float:
        _wait("number")
        return float(self._host)

    def __int__(self) -> int:
        _wait("number")
        return int(self._host)

    def __repr__(self) -> str:
        return f"standin {self._host!r}"


def _method(name: str) -> Callable[..., Any]:
    moves_nothing = name in ("reshape", "swapaxes", "transpose", "view")
    in_place = name == "fill" or (name.startswith("__i") and name != "__invert__")

    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        if name == "__matmul__" and self.itemsize == 2:
            return matmul(self, *args)
        if name == "sum" and self.itemsize == 2 and "dtype" not in kwargs:
            return method(self, *args, dtype=np.float32, **kwargs).astype(self.dtype)  # as CuPy does
        if not moves_nothing:
            _uses((self._host,), (self._host,) if in_place else ())
        return _wrap(getattr(self._host, name)(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}))

    return method


for _name in (
    "reshape",
    "swapaxes",
    "transpose",
    "astype",
    "copy",
    "clip",
    "view",
    "sum",
    "fill",
    "any",
    "all",
    "argmax",
    "max",
    "mean",
    "min",
    "take",
):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor", "rshift", "lshift", "mod", "matmul"):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _method(f"__{_prefix}{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))


def _wrap(value: Any) -> Any:
    """NumPy's result as an array of the device, numbers too; anything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        assert _recording() is None or array.base is not None, "allocated during a capture"
        if array.base is None:
            _uses((), (array,))
        return ndarray(array)
    return value


def _plain(value: Any) -> Any:
    """The host memory of an array of the device; an array of NumPy is refused as CuPy refuses it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, ndarray):
        _uses((value._host,), ())
        return value._host
    return value


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _index(index: Any) -> Any:
    return tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)


def _wait_for_mask(index: Any) -> None:
    """CuPy counts the elements of a boolean index on the host, also where it assigns."""
    if any(_plain(i).dtype == bool for i in _parts(index) if isinstance(i, ndarray)):
        _wait("boolean index")


def where(condition: ndarray, x: Any, y: Any) -> ndarray:
    assert isinstance(condition, ndarray), "CuPy takes no number for a condition"
    dtypes = [value.dtype.name for value in (x, y) if hasattr(value, "dtype")]
    assert "bfloat16" not in dtypes, "CuPy selects no bfloat16"
    return _wrap(np.where(*map(_plain, (condition, x, y))))


def _basic(index: Any) -> bool:
    """Whether an index selects a view."""
    return not any(isinstance(i, (ndarray, np.ndarray, list)) for i in _parts(index))


def empty(shape: Any, dtype: Any = float) -> ndarray:
    assert _recording() is None, "allocated during a capture"
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8)[: 1 << 20] = 0xFF  # NaN, or an absurd integer; of a workspace its beginning only
    return ndarray(host)


def empty_like(array: ndarray) -> ndarray:
    return empty(array.shape, array.dtype)


def array(value: Any, dtype: Any = None, order: str = "K", copy: bool = True) -> ndarray:
    return _wrap(np.array(value._host if isinstance(value, ndarray) else value, dtype, order=order, copy=copy))


def asarray(value: Any) -> ndarray:
    return value if isinstance(value, ndarray) else _wrap(np.array(value))


def asnumpy(value: ndarray) -> np.ndarray:
    _wait("copy to the host")
    _uses((value._host,), ())
    return value._host.copy()


def ascontiguousarray(value: ndarray) -> ndarray:
    host = _plain(value)
    return value if host.flags.c_contiguous else _wrap(np.ascontiguousarray(host))


def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
    """The product of two matrices; 16-bit ones are summed in float32, as cuBLAS does."""
    if _recording() is not None:  # cupy_backends/cuda/libs/cublas.pyx, setStream
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    assert a.ndim == b.ndim == 2, "only matrices: a batched bfloat16 product crashes CuPy"
    assert a.dtype == b.dtype
    shape = (a.shape[0], b.shape[1])
    if out is None:
        out = empty(shape, a.dtype)
    assert out.dtype == a.dtype
    assert out.shape == shape, f"{out.shape}, expected {shape}"
    assert out._host.flags.c_contiguous, "CuPy would write to a copy first"
    _uses((a._host, b._host), (out._host,))
    _multiply(a._host, b._host, out._host)
    return out


CUDA_TYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}


_thread = threading.local()  # product: there once the thread has made one


class Cublas:
    """libcublas, as ctypes calls it: addresses and numbers, matrices by columns."""

    workspace: np.ndarray | None = None  # the handle's; None is cuBLAS's own
    math_mode = 0

    def cublasGetMathMode(self, handle: int, address: int) -> int:
        assert handle == Device.cublas_handle
        ctypes.c_int.from_address(address).value = Cublas.math_mode
        return 0

    def cublasSetMathMode(self, handle: int, mode: int) -> int:
        assert handle == Device.cublas_handle
        Cublas.math_mode = mode
        return 0

    def cublasSetStream_v2(self, handle: int, stream: int) -> int:
        assert handle == Device.cublas_handle
        assert stream == _streams[-1].ptr
        Cublas.workspace = None  # always, says its documentation
        return 0

    def cublasSetWorkspace_v2(self, handle: int, address: int, size: int) -> int:
        assert handle == Device.cublas_handle
        assert size >= 16 << 10, "with less some functions fail"
        Cublas.workspace = _columns(address, np.dtype(np.uint8), (size, 1), size)
        beginning = _owner(Cublas.workspace).ctypes.data
        assert address == beginning, "cuBLAS wants a multiple of 256, and only the beginning of an array is one"
        return 0

    def cublasGemmEx(
        self, handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int,
        b: int, b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int, compute: int, algorithm: int,
    ) -> int:  # fmt: skip
        assert (handle, algorithm) == (Device.cublas_handle, -1)
        assert self.math_mode == 16, "sums may be rounded to the dtype of the arrays, or products to tf32"
        assert min(m, n, k) >= 1
        assert a_type == b_type
        assert c_type in (a_type, 0 if compute == 68 else 1)
        kind, number = (70, ctypes.c_double) if a_type == 1 else (68, ctypes.c_float)
        assert compute == kind
        assert (number.from_address(alpha).value, number.from_address(beta).value) == (1, 0)
        dtype, dtype_out = np.dtype(CUDA_TYPES[a_type]), np.dtype(CUDA_TYPES[c_type])
        left = _columns(a, dtype, (k, m) if turn_a else (m, k), lda)
        right = _columns(b, dtype, (n, k) if turn_b else (k, n), ldb)
        out = _columns(c, dtype_out, (m, n), ldc)
        left, right = left.T if turn_a else left, right.T if turn_b else right
        assert not any(np.may_share_memory(out, operand) for operand in (left, right))
        what = f"product {dtype} {dtype_out} {left.shape} {left.strides} {right.shape} {right.strides}"
        assert _recording() is None or self.workspace is not None, "a graph with the workspace of a thread's handle"
        assert _recording() is None or hasattr(_thread, "product"), "a thread's first product comes during a capture"
        _thread.product = True
        _run(what, _multiply, (2, 3), left, right, out, self.workspace)
        return 0


def _columns(address: int, dtype: np.dtype, shape: tuple[int, int], lead: int) -> np.ndarray:
    """The matrix that lies at an address column by column, which must lie in one array."""
    assert lead >= shape[0], f"a column of {shape[0]} in {lead}"
    size = ((shape[1] - 1) * lead + shape[0]) * dtype.itemsize
    for known in list(_memory.values()):
        owner = known()
        low, high = (0, 0) if owner is None else np.lib.array_utils.byte_bounds(owner)
        if low <= address and address + size <= high:
            memory = owner.ravel("K").view(np.uint8)
            return np.ndarray(shape, dtype, memory, address - low, (dtype.itemsize, lead * dtype.itemsize))
    raise AssertionError("a product with memory that no array has")


def _multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, workspace: np.ndarray | None = None) -> None:
    if workspace is not None:
        workspace[: 16 << 10] = 0xFF
    compute = np.promote_types(a.dtype, np.float32) if a.dtype.name != "bfloat16" else np.dtype(np.float32)
    out[...] = (a.astype(compute) @ b.astype(compute)).astype(out.dtype)


class RawKernel:
    """A kernel of a RawModule."""

    max_dynamic_shared_size_bytes = 48 << 10
    local_size_bytes = 0

    def __init__(self, kernel: host_kernels.Kernel, cooperative: bool) -> None:
        self._kernel, self._cooperative = kernel, cooperative

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "more shared memory than the kernel was said to need"
        assert shared_mem <= Device.attributes["MaxSharedMemoryPerBlockOptin"], (
            "more shared memory than a block may have"
        )
        if self._cooperative:
            assert np.prod(grid) <= Device.attributes["MultiProcessorCount"], "blocks that do not all run at once"
        launches.append(self._kernel.name)
        arrays = [arg._host if isinstance(arg, ndarray) else arg for arg in args]
        written = [3 + k for k, parameter in enumerate(self._kernel.parameters) if parameter[0] == "*"]
        _run(f"kernel {id(self._kernel)}", self._start, written, grid, block, shared_mem, *arrays)

    def _start(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int, *args: Any) -> None:
        global seed
        seed += 1
        self._kernel(grid, block, args, shared_mem, seed, self._cooperative)


class RawModule:
    """Compiled source."""

    compiler: host_kernels.Compiler

    def __init__(self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool = False) -> None:
        assert all(isinstance(option, str) for option in options)
        self._code, self._cooperative = code, enable_cooperative_groups

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(host_kernels.Kernel(self.compiler, self._code, name), self._cooperative)


class _Address:
    """An array as a graph knows it: where it is. The memory behind it is not kept."""

    def __init__(self, array: np.ndarray) -> None:
        self._owner, self._at = weakref.ref(_owner(array)), array.__array_interface__["data"][0]
        self._low, self._high = np.lib.array_utils.byte_bounds(array)
        self._shape, self._dtype, self._strides = array.shape, array.dtype, array.strides

    def owner(self) -> np.ndarray:
        owner = self._owner()
        assert owner is not None, "a graph was launched on memory that has been freed"
        return owner

    def array(self) -> np.ndarray:
        memory = (ctypes.c_char * (self._high - self._low)).from_address(self._low)
        return np.ndarray(self._shape, self._dtype, memory, self._at - self._low, self._strides)


Recorded = list[tuple[Callable[..., None], Iterable[int], list[Any]]]


class Graph:
    """What was captured."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def launch(self) -> None:
        assert _recording() is None, "a graph launched during a capture"
        replays.append(len(self._recorded))
        for function, written, args in self._recorded:
            owners = [arg.owner() if isinstance(arg, _Address) else None for arg in args]
            _do(function, written, [arg.array() if isinstance(arg, _Address) else arg for arg in args], owners)


class Event:
    """A point on a stream."""

    def __init__(self, disable_timing: bool = False) -> None:
        self.passed: dict[Stream, int] = {}

    def record(self, stream: "Stream") -> None:
        assert stream.recorded is None, "an event of a capture is no point in time"
        self.passed = {**stream.passed, stream: stream.time}


class Stream:
    """A stream that waits for no other but by events; in a `with` block the current one."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.recorded: Recorded | None = None
        self.ptr = id(self) if non_blocking else 0
        self.time = 0
        self.passed: dict[Stream, int] = {}  # how far it has waited for others

    def reached(self, by: "Stream", time: int) -> bool:
        """Whether a time on this stream has passed for another one."""
        return by is self or by.passed.get(self, 0) >= time

    def wait_event(self, event: Event) -> None:
        assert self.recorded is None, "a capture waits for what is not in it"
        for stream, time in event.passed.items():
            self.passed[stream] = max(time, self.passed.get(stream, 0))

    def __enter__(self) -> "Stream":
        _streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert _streams.pop() is self

    def is_capturing(self) -> bool:
        return self.recorded is not None

    def begin_capture(self) -> None:
        assert self.ptr, "cannot capture on the default (legacy) stream"
        assert self.recorded is None
        self.recorded = []

    def end_capture(self) -> Graph:
        recorded, self.recorded = self.recorded, None
        assert recorded is not None
        return Graph(recorded)


_streams = [Stream()]
_warm: set[str] = set()  # kernels and products that have run


def _recording() -> Recorded | None:
    return _streams[-1].recorded


def _wait(what: str) -> None:
    assert _recording() is None, f"{what} during a capture"
    waits.append(what)


def _run(what: str, function: Callable[..., None], written: Iterable[int], *args: Any) -> None:
    """Do something on the device that writes to these of its arguments, or record it."""
    recorded = _recording()
    if recorded is None:
        _warm.add(what)
        _do(function, written, args, args)
    else:
        assert what in _warm, f"{what}: the first of its kind comes during a capture"
        recorded.append((function, written, [_Address(arg) if isinstance(arg, np.ndarray) else arg for arg in args]))


def _do(function: Callable[..., None], written: Iterable[int], args: Iterable[Any], owners: Iterable[Any]) -> None:
    memory = [(k, owner) for k, owner in enumerate(owners) if isinstance(owner, np.ndarray)]
    _uses([a for k, a in memory if k not in written], [a for k, a in memory if k in written])
    function(*args)


class Device:
    """The only device; a context manager."""

    compute_capability = "90"
    attributes: ClassVar = {  # of an H100
        "MultiProcessorCount": 132, "ClockRate": 1755000, "MaxSharedMemoryPerBlockOptin": 227 << 10,
        "MaxRegistersPerMultiprocessor": 65536, "CooperativeLaunch": 1,
    }  # fmt: skip
    cublas_handle = 1
    mem_info = 70 << 30, 80 << 30  # free, all

    def __init__(self, device: int = 0) -> None:
        assert device == 0
        self.id = device

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        pass


cuda = SimpleNamespace(
    Device=Device, Event=Event, Stream=Stream, get_current_stream=lambda device=0: _streams[-1],
    runtime=SimpleNamespace(getDeviceCount=lambda: 1),
)  # fmt: skip


WAITS = {"argwhere", "flatnonzero", "nonzero", "unique"}  # for how much they find


def __getattr__(name: str) -> Any:
    """Any other function of NumPy on arrays of the device; dtypes and numbers as they are.

    A ufunc has no method here: CuPy's `add.reduceat` takes differences of sums over everything before.
    """
    found = getattr(np, name)
    if isinstance(found, type) or not callable(found):
        return found

    def function(*args: Any, out: ndarray | None = None, **kwargs: Any) -> Any:
        if name in WAITS:
            _wait(name)
        plain = [*map(_plain, args)], {k: _plain(v) for k, v in kwargs.items()}
        if out is None:
            return _wrap(found(*plain[0], **plain[1]))
        _uses((), (out._host,))
        found(*plain[0], out=out._host, **plain[1])
        return out

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
    from fastrnn.cuda import products

    products._library = Cublas
    try:
        yield this
    finally:
        for name in affected():
            del sys.modules[name]
        sys.modules.update(kept)
