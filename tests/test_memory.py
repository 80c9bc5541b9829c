"""Large arrays: memory that somebody still holds is never given out again, what nobody holds is, up to a limit."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import memory

MIB = 2**20


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_waiting", [])
    memory._returned.clear()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_dtype_and_start(dtype: str) -> None:
    for shape in (3, (2, 5), (0, 4), (512, 1024), 2**19, (2**18 + 1, 3)):
        array = memory.empty(shape, dtype)
        like = np.empty(shape, dtype)
        assert (array.shape, array.dtype, array.strides) == (like.shape, like.dtype, like.strides)
        assert array.flags.writeable
        assert array.flags.c_contiguous
        if array.nbytes >= memory.SMALLEST:
            assert address(array) % memory.LINE == 0
        array[...] = 1


def test_memory_comes_back_once_nobody_holds_it_or_a_view_of_it() -> None:
    first = memory.empty((2, MIB), "uint8")
    where = address(first)
    views = [first[1:, ::2], np.asarray(memoryview(first).toreadonly()), first.T]
    del first
    others = []
    while views:
        others.append(memory.empty((2, MIB), "uint8"))
        assert address(others[-1]) != where
        views.pop()
    assert address(memory.empty((2, MIB), "uint8")) == where


def test_a_block_serves_what_is_a_little_smaller() -> None:
    where = address(memory.empty(2 * MIB, "uint8"))
    assert address(memory.empty(MIB, "uint8")) != where
    assert address(memory.empty(2 * MIB + 4096, "uint8")) != where
    assert address(memory.empty(int(2 * MIB / 1.2), "uint8")) == where


def test_what_waits_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_WAITING", 5 * MIB)
    arrays = [memory.empty(2 * MIB, "uint8") for _ in range(4)]
    kept = [address(array) for array in arrays]
    while arrays:
        del arrays[0]
    held = [block.__array_interface__["data"][0] for block in memory._waiting]
    assert sum(block.size for block in memory._waiting) <= 5 * MIB
    assert len(held) == 2, "without a further call"
    assert all(0 <= start - block < memory.LINE for start, block in zip(kept[2:], held, strict=True))
    memory.forget()
    assert not memory._waiting
    assert not memory._returned


def slow_min(blocks: Any, key: Any) -> Any:
    """min, with time for another thread between the choice of a block and its removal."""
    found = min(blocks, key=key)
    time.sleep(1e-3)
    return found


def test_no_two_threads_get_the_same_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "min", slow_min, raising=False)
    start = Barrier(4)

    def work(number: int) -> bool:
        start.wait()
        for _ in range(30):
            array = memory.empty(MIB, "uint8")
            array[::4096] = number
            time.sleep(1e-3)
            if (array[::4096] != number).any():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_call_in_the_middle_of_another_gets_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a signal handler, or of a finaliser that the garbage collector runs: it must not wait for itself."""
    where, inner = address(memory.empty(MIB, "uint8")), list[np.ndarray]()

    def interrupted(blocks: Any, key: Any) -> Any:
        inner.append(memory.empty(MIB, "uint8"))
        memory.empty(MIB, "uint8")  # dropped at once
        return min(blocks, key=key)

    monkeypatch.setattr(memory, "min", interrupted, raising=False)
    outer = memory.empty(MIB, "uint8")
    assert address(outer) == where
    assert address(inner[0]) != where


def test_a_training_loop_asks_for_no_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was handed out stays as it was."""
    layer = fastrnn.LSTM(256, 256, seed=0)
    x = np.random.default_rng(0).standard_normal((40, 32, 256)).astype("float32")

    def step() -> list[np.ndarray]:
        layer.update(dict(layer.params))
        y, _, backward = layer.forward(x)
        grads = backward(y)
        return [y, grads.x, *grads.params.values()]

    kept, taken, fresh = step(), [], []
    then = [array.copy() for array in kept]
    step()
    make, take = np.empty, memory._take

    def counted(*args: Any, **options: Any) -> np.ndarray:
        array = make(*args, **options)
        fresh.append(array.nbytes)
        return array

    monkeypatch.setattr(np, "empty", counted)
    monkeypatch.setattr(memory, "_take", lambda size: taken.append(size) or take(size))
    step()
    monkeypatch.undo()
    assert len(taken) > 10
    assert [size for size in fresh if size >= memory.SMALLEST] == []
    for array, want in zip(kept, then, strict=True):
        np.testing.assert_array_equal(array, want)
