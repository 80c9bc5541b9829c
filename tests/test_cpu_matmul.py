"""Products of the CPU kernels: values against float64 NumPy at odd sizes, and bits that no split may change."""

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import pytest
from numba import njit, types
from tolerance import EPS, assert_same_bits

from fastrnn.cpu import matmul
from fastrnn.cpu import panels as packing
from fastrnn.cpu.microkernel import MAIN_ROWS, product_rows, unit_block, unit_block_of

DTYPES = ("float32", "float64")
SIZES = (1, 2, 3, 5, 7, 33, 257)


def block(dtype: str) -> int:
    return int(unit_block_of(getattr(types, dtype)))


def normal(seed: int, dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def guarded(array: np.ndarray) -> np.ndarray:
    """A flat copy that ends where readable memory ends: one element read or written beyond it kills the process."""
    if sys.platform == "win32":
        return array.ravel().copy()
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(memory, size))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    flat = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes)
    flat[:] = array.ravel()
    return flat


def assert_product(got: np.ndarray, left: np.ndarray, right: np.ndarray, start: np.ndarray | float = 0.0) -> None:
    """Assert got = start + left @ right.

    A sum of k terms in any order errs by at most k roundings of the sum of magnitudes (twice that without fused
    operations); two more for `start`. A bound, not an estimate: nothing correct can exceed it, and one term of k left
    out exceeds it at any k used here.
    """
    dtype, k = got.dtype.name, left.shape[1]
    left, right, start = left.astype(np.float64), right.astype(np.float64), np.asarray(start, np.float64)
    assert np.isfinite(got).all()
    error = np.abs(got - (start + left @ right))
    assert (error <= (k + 2) * EPS[dtype] * (np.abs(start) + np.abs(left) @ np.abs(right))).all()


@njit
def rows_times_panels(
    a: Any, places: Any, first: int, rows: int, astride: int, w: Any, at: int, kstride: int, pairstride: int,
    pairs: int, k: int, out: Any, to: int, rowstride: int, outstride: int, accumulate: bool,
) -> None:  # fmt: skip
    product_rows(a, 0, places, first, rows, astride, w, at, kstride, pairstride, pairs, k,
                 out, to, rowstride, outstride, accumulate)  # fmt: skip


@njit
def compiled_unit_block(array: Any) -> int:
    return unit_block(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_block_is_the_same_inside_and_outside_of_kernels(dtype: str) -> None:
    assert compiled_unit_block(np.zeros(1, dtype)) == block(dtype)
    with pytest.raises(NotImplementedError, match="unit_block_of"):
        unit_block(np.zeros(1, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, *SIZES])
@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5, 7])
def test_product_rows_values_and_bits(dtype: str, k: int, pairs: int) -> None:
    for rows in range(1, 2 * MAIN_ROWS + 2):
        check_product_rows(dtype, k, pairs, rows)


def check_product_rows(dtype: str, k: int, pairs: int, rows: int) -> None:
    # Rows in any order, elements of a row 3 apart, NaN in all that the product must not read.
    U, a = block(dtype), normal(k, dtype, rows, k)
    memory = np.full((rows + 1, 3 * k + 2), np.nan, dtype)
    order = np.random.default_rng(rows).permutation(rows)
    memory[order + 1, 1 : 1 + 3 * k : 3] = a
    readable = guarded(memory.ravel()[: memory.size - 3] if k else memory)
    places = np.concatenate([[-1], (order + 1) * memory.shape[1] + 1])
    w = normal(k + 1, dtype, k, pairs, U)  # interleaved: a step of k is pairs * U wide
    weights, start = guarded(w), normal(rows, dtype, rows, pairs, U + 1)

    def product(first: int, count: int, pair: int, some: int, into: np.ndarray, accumulate: bool) -> None:
        rows_times_panels(
            readable, places, 1 + first, count, 3, weights, pair * U, pairs * U, U, some, k,
            into.ravel(), (first * pairs + pair) * (U + 1), pairs * (U + 1), U + 1, accumulate,
        )  # fmt: skip

    whole, added, split = np.full_like(start, np.nan), start.copy(), np.full_like(start, np.nan)
    product(0, rows, 0, pairs, whole, False)
    product(0, rows, 0, pairs, added, True)
    for row in range(rows):
        for pair in range(pairs):
            product(row, 1, pair, 1, split, False)
    assert np.isnan(whole[..., U]).all()
    assert_same_bits("row and panel at a time", split, whole)
    assert_same_bits("accumulated", added[..., :U], start[..., :U] + whole[..., :U])
    assert_same_bits("beyond the columns", added[..., U], start[..., U])
    assert_product(whole[..., :U].reshape(rows, pairs * U), a, w.reshape(k, pairs * U))


def packed(w: np.ndarray, U: int) -> np.ndarray:
    """Panels [ceil(N / U), k, U] of w [k, N], NaN past the last column."""
    k, columns = w.shape
    panels = -(-columns // U)
    padded = np.full((k, panels * U), np.nan, w.dtype)
    padded[:, :columns] = w
    return np.ascontiguousarray(padded.reshape(k, panels, U).transpose(1, 0, 2)).ravel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 33, 150])
@pytest.mark.parametrize("k", [1, 33, 257, 600])
def test_product_panels(dtype: str, columns: int, k: int) -> None:
    for rows in SIZES:
        check_product_panels(dtype, columns, k, rows)


def check_product_panels(dtype: str, columns: int, k: int, rows: int) -> None:
    a, w = normal(rows, dtype, rows, k), normal(columns, dtype, k, columns)
    memory = np.full((2 * rows, k), np.nan, dtype)
    memory[::2] = a
    a_rows = np.arange(0, 2 * rows, 2) * k
    out = guarded(np.full((rows, columns + 1), np.nan, dtype)).reshape(rows, columns + 1)
    out_rows = np.arange(rows)[::-1] * out[0].size
    readable, panels = guarded(memory[:-1]), guarded(packed(w, block(dtype)))

    def product(some: slice, into: np.ndarray, accumulate: bool) -> None:
        matmul.product_panels(
            readable, np.ascontiguousarray(a_rows[some]), panels, k, columns,
            into.ravel(), np.ascontiguousarray(out_rows[some]), accumulate,
        )  # fmt: skip

    product(slice(None), out, False)
    assert np.isnan(out[..., columns]).all()
    assert_product(out[::-1, :columns], a, w)
    split = np.full_like(out, np.nan)
    product(slice(0, rows // 3), split, False)
    product(slice(rows // 3, rows), split, False)
    assert_same_bits("split rows", split, out)
    added = normal(k, dtype, *out.shape)
    want = added.copy()
    want[..., :columns] += out[..., :columns]
    product(slice(None), added, True)
    assert_same_bits("accumulated", added, want)


def listed(seed: int, dtype: str, k: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory with k valid rows among as many of NaN, their offsets in random order, and the rows in that order."""
    rows = normal(seed, dtype, k, width)
    memory = np.full((2 * k, width), np.nan, dtype)
    where = 2 * np.random.default_rng(seed).permutation(k) + 1  # the last row of the memory among them
    memory[where] = rows
    return guarded(memory), where * width, rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("k", [0, *SIZES, 512, 600])
def test_gemm_tn(dtype: str, m: int, k: int) -> None:
    n = 3 * block(dtype)
    a, a_rows, left = listed(1, dtype, k, m)
    b, b_rows, right = listed(2, dtype, k, n)

    def product(first: int, last: int, into: np.ndarray, accumulate: bool) -> None:
        matmul.gemm_tn(a, a_rows, b, b_rows, m, first, last, into.ravel(), into.shape[1], accumulate)

    c = np.full((m, n + 1), np.nan, dtype)
    product(0, n, c, False)
    assert np.isnan(c[:, n]).all()
    assert_product(c[:, :n], left.T, right)
    split = np.full_like(c, np.nan)
    for first in range(0, n, block(dtype)):
        product(first, first + block(dtype), split, False)
    assert_same_bits("split columns", split, c)
    start = normal(3, dtype, m, n + 1)
    added = start.copy()
    product(0, n, added, True)
    assert_same_bits("beyond the columns", added[:, n], start[:, n])
    assert_product(added[:, :n], left.T, right, start[:, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_tn_sums_blocks_in_order(dtype: str) -> None:
    """Each block by one chain from zero, blocks added in order: spelled out here row by row."""
    U, m, k = block(dtype), 7, 600
    a, b = normal(1, dtype, k, m), normal(2, dtype, k, U)
    c, want = np.full((m, U), np.nan, dtype), np.zeros((m, U), dtype)
    matmul.gemm_tn(a.ravel(), np.arange(k) * m, b.ravel(), np.arange(k) * U, m, 0, U, c.ravel(), U, False)
    for first in range(0, k, 256):
        count = min(256, k - first)
        for row in range(m):
            places = np.array([first * m + row])
            rows_times_panels(a.ravel(), places, 0, 1, m, b.ravel(), first * U, U, 0, 1, count,
                              want.ravel(), row * U, U, 0, True)  # fmt: skip
    assert_same_bits("C", c, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_tn_beyond_one_chunk_of_rows_and_columns(dtype: str) -> None:
    n, m, k = 2048 + 5 * block(dtype), 200 + MAIN_ROWS // 2, 259
    a, b = normal(1, dtype, k, m), normal(2, dtype, k, n)
    c = np.full((m, n), np.nan, dtype)
    matmul.gemm_tn(a.ravel(), np.arange(k) * m, b.ravel(), np.arange(k) * n, m, 0, n, c.ravel(), n, False)
    assert_product(c, a.T, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, *SIZES, 600])
def test_column_sums(dtype: str, k: int) -> None:
    U = block(dtype)
    b, b_rows, rows = listed(k, dtype, k, 5 * U)
    out = np.full(5 * U, np.nan, dtype)
    matmul.column_sums(b, b_rows, U, 4 * U, out)
    assert np.isnan(out[:U]).all()
    assert np.isnan(out[4 * U :]).all()
    want = np.zeros(3 * U, dtype)
    for first in range(0, k, 256):
        part = np.zeros_like(want)
        for row in rows[first : first + 256, U : 4 * U]:
            part += row
        want += part
    assert_same_bits("sums in blocks of 256", out[U : 4 * U], want)
    assert_product(out[None, U : 4 * U], np.ones((1, k), dtype), rows[:, U : 4 * U])
    split = np.full_like(out, np.nan)
    matmul.column_sums(b, b_rows, U, 2 * U, split)
    matmul.column_sums(b, b_rows, 2 * U, 4 * U, split)
    assert_same_bits("split columns", split, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("G", "H", "K"), [(1, 1, 1), (3, 7, 5), (4, 16, 16), (2, 33, 19), (3, 32, 40)])
def test_panels_hold_each_weight_once(dtype: str, G: int, H: int, K: int) -> None:
    U = block(dtype)
    Hp, Kp = -(-H // U) * U, -(-K // U) * U
    w = normal(7, dtype, G, H, K)
    whole = np.zeros((G, Hp, K), dtype)
    whole[:, :H] = w
    panels = np.zeros(whole.size, dtype)
    packing.pack_forward(w.ravel(), panels, G, H, K)
    assert_same_bits("forward", panels, whole.reshape(G, Hp // U, U, K).transpose(1, 0, 3, 2).ravel())
    order = np.arange(G)[::-1].copy()
    whole = np.zeros((G, Hp, Kp), dtype)
    whole[:, :H, :K] = w[::-1]
    panels = np.zeros(whole.size, dtype)
    packing.pack_backward(w.ravel(), order, panels, H, Hp, K)
    assert_same_bits("backward", panels, whole.reshape(G * Hp, Kp // U, U).transpose(1, 0, 2).ravel())
