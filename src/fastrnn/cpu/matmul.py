"""Products of whole sequences: rows times packed panels, and the gradients of weights, in a fixed order over the sum.

The arrays are flat and rows are given as lists of element offsets, so that the rows of a product may be chosen
freely: a row that is not listed is never read. No result depends on how a caller splits rows or columns over threads.
"""

from typing import Any

import numpy as np

from fastrnn.cpu.blocked import wide_product
from fastrnn.cpu.build import kernel
from fastrnn.cpu.microkernel import MAIN_ROWS, product_rows, unit_block
from fastrnn.cpu.vector import load, splat, store

SUM_BLOCK = 256  # terms that one chain of sums takes; part of the result's bits
_ROWS_AT_ONCE = 96  # rows of a product: a block of them stays in the second-level cache while all panels go by
_CHUNK_BYTES = 196608  # rows packed or read at once: well inside an L2 of 512 KiB
_PANEL_BYTES = 2097152  # columns packed at once: read from L3 once for each chunk of rows


@kernel
def product_panels(
    a: Any, a_rows: Any, w: Any, k: int, columns: int, out: Any, out_rows: Any, accumulate: bool
) -> None:
    """out[r, n] (+)= sum_kk a[r, kk] w[n // U, kk, n % U], as sums of blocks of K_BLOCK (fastrnn.cpu.blocked).

    Args:
        a: flat array; row r stands at a_rows[r], its k elements side by side.
        a_rows: int64 [R], offsets of the rows in `a`.
        w: packed panels, flat [ceil(columns / U), k, U], dtype of `a`.
        k: length of the sums, at least 1.
        columns: number of columns; the last panel may be partly used.
        out: flat array, dtype of `a`; element (r, n) stands at out_rows[r] + n.
        out_rows: int64 [R], offsets of the rows in `out`.
        accumulate: add to what stands in `out` instead of overwriting it.
    """
    U, lanes, rows = unit_block(a), unit_block(a) // 2, a_rows.size
    padded = (columns + U - 1) // U * U
    # Through a tile, since rows of `out` may lie anywhere and its last panel may be cut.
    tile = np.empty(min(_ROWS_AT_ONCE, rows) * padded, a.dtype)
    for first in range(0, rows, _ROWS_AT_ONCE):
        here = min(_ROWS_AT_ONCE, rows - first)
        wide_product(a, a_rows, first, here, k, w, padded, tile)
        for row in range(here):
            at, to = row * padded, out_rows[first + row]
            whole = columns // lanes * lanes
            for n in range(0, whole, lanes):
                value = load(tile, at + n)
                store(out, to + n, load(out, to + n) + value if accumulate else value)
            for n in range(whole, columns):
                out[to + n] = out[to + n] + tile[at + n] if accumulate else tile[at + n]


@kernel
def gemm_tn(
    a: Any, a_rows: Any, b: Any, b_rows: Any, m: int, n_first: int, n_last: int, c: Any, c_rowstride: int,
    accumulate: bool,
) -> None:  # fmt: skip
    """C[i, n] (+)= sum_k A[k, i] B[k, n] for n_first <= n < n_last: A^T B over the listed rows.

    Blocks of SUM_BLOCK rows are summed by one chain of fused multiply-adds each and added in order.

    Args:
        a: flat array; element (k, i) stands at a_rows[k] + i.
        a_rows: int64 [K], offsets of the rows in `a`.
        b: flat array, dtype of `a`; element (k, n) stands at b_rows[k] + n.
        b_rows: int64 [K], offsets of the rows in `b`.
        m: rows of C, any number.
        n_first: first column, a multiple of U.
        n_last: end of the columns, a multiple of U.
        c: flat array, dtype of `a`; element (i, n) stands at i * c_rowstride + n.
        c_rowstride: distance of rows in `c`, elements.
        accumulate: add to what stands in `c` instead of overwriting it.
    """
    U, terms = unit_block(a), a_rows.size
    if terms == 0:
        _clear(c, m, n_first, n_last, c_rowstride, accumulate)
        return
    m_chunk = _CHUNK_BYTES // (SUM_BLOCK * a.itemsize) // MAIN_ROWS * MAIN_ROWS
    n_chunk = _PANEL_BYTES // (SUM_BLOCK * a.itemsize) // U * U
    depth = min(SUM_BLOCK, terms)
    packed_a = np.empty((min(m_chunk, m) + 2 * MAIN_ROWS + U) * depth, a.dtype)
    packed_b = _aligned(min(n_chunk, n_last - n_first) * depth, b)
    # A group of MAIN_ROWS rows stands as [depth, MAIN_ROWS], so that one tile reads one stream.
    places = np.empty(min(m_chunk, m), np.int64)
    for i in range(places.size):
        places[i] = i // MAIN_ROWS * MAIN_ROWS * depth + i % MAIN_ROWS
    for column in range(n_first, n_last, n_chunk):
        width = min(n_chunk, n_last - column)
        for start in range(0, terms, SUM_BLOCK):
            count = min(SUM_BLOCK, terms - start)
            _pack_b(b, b_rows, start, count, column, width, packed_b)
            for row in range(0, m, m_chunk):
                rows = min(m_chunk, m - row)
                _pack_a(a, a_rows, start, count, row, rows, m, depth, packed_a)
                for panel in range(0, width, U):
                    product_rows(packed_a, 0, places, 0, rows, MAIN_ROWS, packed_b, panel * count, U, 0, 1, count,
                                 c, row * c_rowstride + column + panel, c_rowstride, 0,
                                 accumulate or start > 0)  # fmt: skip


@kernel
def _clear(c: Any, m: int, n_first: int, n_last: int, c_rowstride: int, accumulate: bool) -> None:
    """An empty sum: zeros, or nothing to add."""
    if not accumulate:
        for i in range(m):
            c[i * c_rowstride + n_first : i * c_rowstride + n_last] = 0


@kernel
def _aligned(size: int, like: Any) -> Any:
    """Uninitialised [size] of the dtype of `like` that starts on a cache line: a split load costs two."""
    line = 64 // like.itemsize
    memory = np.empty(size + line, like.dtype)
    skip = (-memory.ctypes.data // like.itemsize) % line
    return memory[skip : skip + size]


@kernel
def _pack_b(b: Any, b_rows: Any, start: int, count: int, column: int, width: int, packed: Any) -> None:
    """packed [width / U, count, U] = columns of the listed rows."""
    U = unit_block(b)
    for k in range(count):
        source = b_rows[start + k] + column
        for panel in range(0, width, U):
            to = panel * count + k * U
            store(packed, to, load(b, source + panel))
            store(packed, to + U // 2, load(b, source + panel + U // 2))


@kernel
def _pack_a(
    a: Any, a_rows: Any, start: int, count: int, first: int, rows: int, m: int, depth: int, packed: Any
) -> None:
    """packed [groups, depth, MAIN_ROWS] = elements first : first + rows of the listed rows of A [K, m]."""
    lanes = unit_block(a) // 2
    span = (MAIN_ROWS + lanes - 1) // lanes * lanes
    for group in range(0, rows, MAIN_ROWS):
        to = group * depth
        if first + group + span <= m:
            # The last vector runs over into the next k, which is written after it.
            for k in range(count):
                source = a_rows[start + k] + first + group
                for i in range(0, span, lanes):
                    store(packed, to + k * MAIN_ROWS + i, load(a, source + i))
        else:
            for k in range(count):
                for i in range(min(MAIN_ROWS, rows - group)):
                    packed[to + k * MAIN_ROWS + i] = a[a_rows[start + k] + first + group + i]


@kernel
def column_sums(b: Any, b_rows: Any, n_first: int, n_last: int, out: Any) -> None:
    """out[n] = sum_k B[k, n] for n_first <= n < n_last, summed in blocks of SUM_BLOCK rows that are added in order.

    Args:
        b: flat array; element (k, n) stands at b_rows[k] + n.
        b_rows: int64 [K], offsets of the rows in `b`.
        n_first: first column, a multiple of U.
        n_last: end of the columns, a multiple of U.
        out: flat array [>= n_last], dtype of `b`.
    """
    lanes, zero = unit_block(b) // 2, splat(b, 0.0)
    block = np.empty(n_last - n_first, b.dtype)
    for n in range(n_first, n_last, lanes):
        store(out, n, zero)
    for start in range(0, b_rows.size, SUM_BLOCK):
        for n in range(0, block.size, lanes):
            store(block, n, zero)
        for k in range(start, min(start + SUM_BLOCK, b_rows.size)):
            for n in range(0, block.size, lanes):
                store(block, n, load(block, n) + load(b, b_rows[k] + n_first + n))
        for n in range(0, block.size, lanes):
            store(out, n_first + n, load(out, n_first + n) + load(block, n))
