"""fastrnn.torch.bridge with CuPy itself and no GPU: its arrays point to memory of torch's on the host.

What needs a GPU is replaced by what tells how it was called; that it does there what it says is proven by test_gpu.py.
"""

import gc
import importlib.util
import weakref
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
DTYPES = ("float32", "float64", "float16", "bfloat16", "bool")


@pytest.fixture
def bridge() -> ModuleType:
    import ml_dtypes  # noqa: F401  # gives NumPy bfloat16

    from fastrnn.torch import bridge

    return bridge


def made(bridge: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """CuPy's array in torch's memory, with numbers in it."""
    import cupy

    with cupy.cuda.using_allocator(lambda size: bridge.held(torch.zeros(size, dtype=torch.uint8))):
        array = cupy.ndarray(shape, np.dtype(dtype))
    array.data.mem.tensor.copy_(torch.arange(array.size).to(bridge.TENSOR_DTYPES[dtype]).view(torch.uint8))
    return array


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_as_a_tensor(bridge: Any, dtype: str) -> None:
    array = made(bridge, (4, 3, 5), dtype)
    whole = torch.arange(60).to(bridge.TENSOR_DTYPES[dtype]).reshape(4, 3, 5)
    for view, want in (
        (array, whole),
        (array.transpose(1, 0, 2), whole.transpose(0, 1)),
        (array[:, 0], whole[:, 0]),
        (array[2], whole[2]),
        (array[1:, :, 2:4], whole[1:, :, 2:4]),
        (array.reshape(12, 5)[3], whole.reshape(12, 5)[3]),
    ):
        got = bridge.tensor(view)
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
        assert got.data_ptr() == view.data.ptr
    empty = bridge.tensor(made(bridge, (0, 3, 5), dtype))
    assert empty.shape == (0, 3, 5)
    assert empty.dtype == whole.dtype


def test_memory_lives_as_long_as_the_last_of_both(bridge: Any) -> None:
    array = made(bridge, (4,), "float32")
    storage = weakref.ref(array.data.mem.tensor)
    tensor = bridge.tensor(array)
    del array
    gc.collect()
    assert storage() is None  # nothing of CuPy's is left
    assert tensor.tolist() == [0, 1, 2, 3]
    assert tensor.untyped_storage().nbytes() == 16  # a block of torch's allocator, which record_stream knows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_as_an_array(bridge: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []

    def from_dlpack(tensor: torch.Tensor) -> Any:
        import cupy

        tensor.__dlpack__()  # which refuses what it cannot say
        given.append(tensor)
        name, strides = str(tensor.dtype).removeprefix("torch."), [n * tensor.itemsize for n in tensor.stride()]
        memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), tensor.untyped_storage().nbytes(), tensor, 0)
        return cupy.ndarray(tensor.shape, np.dtype(name), cupy.cuda.MemoryPointer(memory, 0), strides)

    monkeypatch.setattr(bridge.cupy, "from_dlpack", from_dlpack)
    tensor = torch.arange(24).reshape(4, 6).to(bridge.TENSOR_DTYPES[dtype])
    if dtype != "bool":
        tensor.requires_grad_()
    part = tensor.t()[1:, ::2]
    array = bridge.array(part)
    assert (array.dtype.name, array.shape, array.data.ptr) == (dtype, part.shape, part.data_ptr())
    assert [n // array.itemsize for n in array.strides] == list(part.stride())
    assert given[0].dtype == (torch.int16 if part.itemsize == 2 else part.dtype)
    if dtype == "float32":
        negative = torch.zeros(3, dtype=torch.complex64).conj().imag
        assert negative.is_neg()
        bridge.array(negative)
        assert not given[-1].is_neg()


def test_the_stream_and_the_allocator_are_torchs(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    entered: list[Any] = []

    def device(library: str) -> Any:
        @contextmanager
        def enter(number: int) -> Any:
            entered.append((library, number))
            yield
            entered.append((library, "left"))

        return enter

    before = cupy.cuda.get_allocator()
    monkeypatch.setattr(torch.cuda, "device", device("torch"))
    monkeypatch.setattr(cupy.cuda, "Device", device("cupy"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda number: SimpleNamespace(cuda_stream=70 + number))
    monkeypatch.setattr(cupy.cuda.Stream, "__enter__", lambda stream: entered.append(stream.ptr))
    monkeypatch.setattr(cupy.cuda.Stream, "__exit__", lambda stream, *_: entered.append("left"))
    with bridge.current("cuda:1"):
        assert entered == [("torch", 1), ("cupy", 1), 71]
        assert cupy.cuda.get_allocator() is bridge.allocate
    assert entered[3:] == ["left", ("cupy", "left"), ("torch", "left")]
    assert cupy.cuda.get_allocator() == before
