"""Which library an array belongs to: NumPy runs on the CPU, CuPy on its GPU, nothing else is accepted."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def array_module(array: object) -> ModuleType | None:
    """Return numpy or cupy, whichever `array` belongs to, or None; never imports a library that is not loaded."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return None


def describe(value: object) -> str:
    """Say what `value` is, as error messages do: "(100, 16, 32) float64" for an array, else its type and value."""
    if array_module(value) is not None:
        return f"{value.shape} {value.dtype}"  # type: ignore[attr-defined]
    shape = getattr(value, "shape", None)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if shape is not None:
        return f"{kind} of shape {tuple(shape)}"
    return f"{kind} {reprlib.repr(value)}"[:120]  # a nested list would fill the screen


def module_of(device: str) -> ModuleType:
    """Return the library whose arrays live on a device: numpy for "cpu", cupy for "cuda:N"."""
    if device == "cpu":
        return np
    import cupy

    module: ModuleType = cupy
    return module


def on(device: str) -> AbstractContextManager[Any]:
    """Make a device the current one inside the `with` block, so that CuPy allocates and launches there."""
    if device == "cpu":
        return nullcontext()
    context: AbstractContextManager[Any] = module_of(device).cuda.Device(index(device))
    return context


class Order:
    """Of work on a GPU's streams that shares memory which the callers know nothing of; on the CPU there is none.

    Made on the stream that wrote the memory, and whose memory it is: it gets it back when it is freed. No host waits.
    besides: of memory that is used together with it, and was waited for.
    """

    def __init__(self, device: str, besides: Order | None = None) -> None:
        self._event: Any = None
        self._owners: list[Any] = []
        if device != "cpu":
            self._cuda, self._lock = module_of(device).cuda, Lock()
            self._last = self._cuda.get_current_stream()
            self._owners = [self._last, *(s for s in (besides._owners if besides else ()) if s != self._last)]
            self._event = self._cuda.Event(disable_timing=True)
            self._event.record(self._last)

    def reached(self) -> None:
        """Let what the current stream does from now on wait for the memory to be written."""
        if self._event is not None:
            current = self._cuda.get_current_stream()
            if current != self._last:
                current.wait_event(self._event)

    def left(self) -> None:
        """Let the owners' later work wait for what the current stream has read: by then the memory may be freed."""
        if self._event is None:
            return
        current = self._cuda.get_current_stream()
        if any(owner != current for owner in self._owners):
            event = self._cuda.Event(disable_timing=True)
            event.record(current)
            self._hold_back(current, event)

    def passed_on(self) -> None:
        """Let what the current stream does from now on wait for the one that had the memory before.

        A capture of the caller's cannot wait for what is not in it, so the order of its graph is the caller's.
        """
        if self._event is not None:
            current = self._cuda.get_current_stream()
            if current != self._last and not current.is_capturing():
                self._event.record(self._last)
                current.wait_event(self._event)
                self._last = current

    def given_up(self) -> None:
        """Let the owners' later work wait for the stream that has the memory: it will be freed now."""
        if self._event is not None and any(owner != self._last for owner in self._owners):
            self._event.record(self._last)
            self._hold_back(self._last, self._event)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Order the block, which only reads, behind what wrote the memory; the owners' later work behind the block."""
        self.reached()
        try:
            yield
        finally:
            self.left()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Order the block, which uses the memory, behind all that did before; the owners' later work behind it.

        One block at a time: two on two streams would be in each other's way.
        """
        if self._event is None:
            yield
            return
        with self._lock:
            self.reached()
            self._last = self._cuda.get_current_stream()
            try:
                yield
            finally:
                self._event.record(self._last)
                self._hold_back(self._last, self._event)

    def _hold_back(self, current: Any, event: Any) -> None:
        for owner in self._owners:
            if owner != current:
                owner.wait_event(event)


def at(array: object) -> AbstractContextManager[Any]:
    """Make an array's device the current one inside the `with` block, as `on` does by name."""
    if array_module(array) in (None, np):
        return nullcontext()
    context: AbstractContextManager[Any] = array.device  # type: ignore[attr-defined]
    return context


def index(device: str) -> int:
    """Return the number N of "cuda:N"."""
    return int(device.partition(":")[2] or 0)


def to_host(array: Any) -> Array:
    """Return an array as a NumPy array; one of the GPU is copied, and waited for."""
    host: Array = array if isinstance(array, np.ndarray) else module_of("cuda").asnumpy(array)
    return host


def to_device(array: Any, device: str) -> Array:
    """Return an array on a device: itself where it is there already, else a copy."""
    if device == "cpu":
        return to_host(array)
    with on(device):
        here = not isinstance(array, np.ndarray) and array.device.id == index(device)
        placed: Array = array if here else module_of(device).asarray(to_host(array))
        return placed


def brought(array: Any, like: Array) -> Any:
    """Return an array of the host on the device of `like`, which waits for nothing; anything else as it is."""
    xp = array_module(like)
    assert xp is not None, "a layer's own array, or one that was validated"
    if xp is np or not isinstance(array, np.ndarray):
        return array
    with at(like):
        return xp.asarray(array)


def copied(array: Array) -> Array:
    """Return a copy, on the array's own device."""
    with at(array):
        return array.copy()


def fetched(numbers: Sequence[Any]) -> list[float]:
    """Return scalars, all of one device, as Python's numbers: a GPU is waited for once."""
    xp = next(filter(None, map(array_module, numbers)), np)
    found: list[float] = to_host(xp.stack(list(numbers))).tolist() if numbers else []
    return found


def zeroed(a: Array, where: Array) -> Array:
    """Return a copy with zeros where the mask is set, whatever stands there."""
    return select(where, 0, a)


def computed_in(dtype: object) -> str:
    """Return the dtype of registers, cell states and sums for arrays of a dtype."""
    return "float64" if str(dtype) == "float64" else "float32"


def select(where: Array | bool, x: Any, y: Any) -> Array:
    """Return x where the mask is set and y elsewhere: arrays of one dtype, or one of them 0; for a mask of True, x.

    Bits are selected: an assignment to a mask's elements would wait for the GPU, and CuPy selects no bfloat16.
    """
    if where is True:
        return x  # type: ignore[no-any-return]
    array = y if isinstance(x, int) else x
    xp, bits = array_module(array), np.dtype(f"u{array.itemsize}")
    assert xp is not None, "an array of a layer"
    chosen: Array = xp.where(where, *(bits.type(0) if isinstance(v, int) else v.view(bits) for v in (x, y)))
    return chosen.view(array.dtype)
