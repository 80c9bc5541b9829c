"""The SIMD vector type: each operation against NumPy, in every lane."""

from typing import Any

import numpy as np
import pytest
from numba import njit, types
from tolerance import assert_same_bits

from fastrnn.cpu import vector as v

DTYPES = ("float32", "float64")
PAIRS = [np.nan, 0.0, -0.0, 1.5, -2.5, np.inf, -np.inf]


def operations(load: Any, splat: Any) -> Any:
    @njit(error_model="numpy")
    def run(a: Any, b: Any, out: Any, n: int) -> None:
        size = a.size
        for i in range(0, size, n):
            x, y = load(a, i), load(b, i)
            v.store(out, i, x + y)
            v.store(out, size + i, x - y)
            v.store(out, 2 * size + i, x * y)
            v.store(out, 3 * size + i, x / y)
            v.store(out, 4 * size + i, -x)
            v.store(out, 5 * size + i, (1.25 - x) * 3.0 + x / 0.5 - 0.125)
            v.store(out, 6 * size + i, v.minimum(x, y))
            v.store(out, 7 * size + i, v.maximum(x, y))
            v.store(out, 8 * size + i, v.minimum(1.0, x))
            v.store(out, 9 * size + i, v.absolute(x))
            v.store(out, 10 * size + i, v.copysign(x, y))
            v.store(out, 11 * size + i, v.select(x < y, x, 7.0))
            v.store(out, 12 * size + i, v.select(x != y, 1.0, y))
            v.store(out, 13 * size + i, v.select(x >= 0.0, x, splat(x, 2.0)))
            v.store(out, 14 * size + i, v.sqrt(v.absolute(y)))
            total = x
            total += y
            total *= 2.0
            v.store(out, 15 * size + i, total)

    return run


# One register, and the unit block of some that cells compute on.
WIDTHS = {"load": (operations(v.load, v.splat), 1), "load_block": (operations(v.load_block, v.splat_block), v.BLOCK)}


def expected(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    one = a.dtype.type
    return [
        a + b, a - b, a * b, a / b, -a, (one(1.25) - a) * 3 + a / one(0.5) - one(0.125), np.minimum(a, b),
        np.maximum(a, b), np.minimum(one(1), a), np.abs(a), np.copysign(a, b), np.where(a < b, a, one(7)),
        np.where(a != b, one(1), b), np.where(a >= 0, a, one(2)), np.sqrt(np.abs(b)), (a + b) * 2,
    ]  # fmt: skip


NAMES = ("add", "sub", "mul", "div", "neg", "scalars", "minimum", "maximum", "minimum of a constant", "absolute",
         "copysign", "select <", "select !=", "select >=", "sqrt", "in place")  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_equal_numpy_to_the_bit(dtype: str, width: str) -> None:
    run, registers = WIDTHS[width]
    n = registers * v.lanes(getattr(types, dtype))
    a, b = (grid.ravel() for grid in np.meshgrid(np.array(PAIRS, dtype), np.array(PAIRS, dtype)))
    random = np.random.default_rng(0).standard_normal((2, 16 * n + (-a.size) % n)).astype(dtype)
    a, b = np.concatenate([a, random[0]]), np.concatenate([b, random[1]])
    out = np.full(len(NAMES) * a.size, np.nan, dtype)
    run(a, b, out, n)
    with np.errstate(all="ignore"):
        want = expected(a, b)
    for name, got, value in zip(NAMES, out.reshape(len(NAMES), -1), want, strict=True):
        if name in ("minimum", "maximum"):  # which zero wins is left open, by NumPy too
            got, value = got + 0, value + 0
        assert_same_bits(name, got, value)


@njit
def fused(a: Any, b: Any, c: Any, out: Any, n: int) -> None:
    for i in range(0, a.size, n):
        v.store(out, i, v.fma(v.load(a, i), v.load(b, i), v.load(c, i)))
        v.store(out, a.size + i, v.load(a, i) * v.load(b, i) + v.load(c, i))


def test_fma_rounds_once_and_nothing_else_is_fused() -> None:
    n = v.lanes(types.float32)
    a, b = np.random.default_rng(1).standard_normal((2, 64 * n)).astype(np.float32)
    c = -(a * b)
    out = np.full(2 * a.size, np.nan, np.float32)
    fused(a, b, c, out, n)
    rounded_once = (a.astype(np.float64) * b + c).astype(np.float32)
    assert np.count_nonzero(rounded_once) > a.size // 2
    assert_same_bits("fma", out[: a.size], rounded_once if v.has_fma() else np.zeros_like(a))
    assert_same_bits("a * b + c", out[a.size :], np.zeros_like(a))


@njit
def transpose(a: Any, out: Any, n: int) -> Any:
    """Three unit blocks at a stride of 2 n to a stride of n; returns the sum of the lanes of the second."""
    three = v.load_blocks(a, 1, 2 * n, 3)
    v.store_tuple(out, 1, n, (three[0], three[1] * 2.0, three[2]))
    return v.lane_sum(three[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tuples_and_lane_sum(dtype: str) -> None:
    n = v.BLOCK * v.lanes(getattr(types, dtype))
    a = np.random.default_rng(2).standard_normal(1 + 6 * n).astype(dtype)
    out = np.full(2 + 3 * n, np.nan, dtype)
    total = transpose(a, out, n)
    first, second, third = a[1 : 1 + n], a[1 + 2 * n : 1 + 3 * n], a[1 + 4 * n : 1 + 5 * n]
    assert_same_bits("stored", out, np.concatenate([[np.nan], first, 2 * second, third, [np.nan]]).astype(dtype))
    while second.size > 1:
        second = second[: second.size // 2] + second[second.size // 2 :]
    assert_same_bits("lane_sum", np.array([total], dtype), second)


def test_width_follows_the_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"+avx512f,+avx2,+fma": (64, 32, True), "+avx2,+fma": (32, 16, True), "+avx2,-fma": (16, 16, False),
              "": (16, 16, False), "+neon": (16, 32, True)}  # fmt: skip
    try:
        for features, expected in wanted.items():
            monkeypatch.setattr(v.config, "CPU_FEATURES", features)
            v.target_features.cache_clear()
            assert (v.vector_bytes(), v.vector_registers(), v.has_fma()) == expected, features
    finally:
        monkeypatch.undo()
        v.target_features.cache_clear()
