"""Rows times packed panels, blocked for the caches; the sums are those of blocks of K_BLOCK, whatever the blocking."""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.microkernel import product_rows, unit_block

K_BLOCK = 512  # a panel of this depth (32 KiB) stays close while the rows of a tile go by; 256 is 3% slower on a Zen 3
FEW_ROWS = 2  # so few rows leave registers free: several panels at once hide the latency of the additions
FEW_PANELS = 4
_ALIAS = 4096  # bytes: rows at this distance share the sets of the first-level cache, and six of them fill it


@register_jitable(error_model="numpy")
def row_stride(width: int, itemsize: int) -> int:
    """Distance of rows of `width` elements, a cache line more where they would stand in each other's way.

    Six rows of a tile 4 KiB apart cost a product 15 to 20% of its speed on a Zen 3 (LSTM and GRU, H = 1024).
    """
    return width + 64 // itemsize if width * itemsize % _ALIAS == 0 else width


@register_jitable(error_model="numpy")
def product(
    a: Any, a_rows: Any, first: int, count: int, K: int, w: Any, w_first: int, panels: int, w_panel: int,
    out: Any, start: int, out_row: int, out_panel: int, accumulate: bool,
) -> None:  # fmt: skip
    """out [count, panels, U] (+)= rows of a [.., K] times panels [K, U] of w, as sums of blocks of K_BLOCK."""
    U = unit_block(a)
    together = panels if count <= FEW_ROWS else 1
    for k in range(0, K, K_BLOCK):
        depth, more = min(K_BLOCK, K - k), accumulate or k > 0
        for p in range(0, panels, together):
            product_rows(
                a, k, a_rows, first, count, 1, w, w_first + p * w_panel + k * U, U, w_panel, together, depth,
                out, start + p * out_panel, out_row, out_panel, more,
            )  # fmt: skip


@register_jitable(error_model="numpy")
def wide_product(a: Any, a_rows: Any, first: int, count: int, K: int, w: Any, columns: int, out: Any) -> None:
    """out [count, columns] = rows of a [.., K] times w [columns/U, K, U], as sums of blocks of K_BLOCK.

    Blocks of K stand outside, so that the rows' block stays in the second-level cache while all panels go by. With few
    rows there is nothing to keep, and the panels are read from end to end, as the prefetcher likes it.
    """
    U = unit_block(a)
    few = count <= FEW_ROWS
    group = FEW_PANELS * U if few else columns
    for start in range(0, columns, group):
        panels = min(group, columns - start) // U
        together = panels if few else 1
        for k in range(0, K, K_BLOCK):
            for panel in range(0, panels, together):
                column = start + panel * U
                product_rows(
                    a, k, a_rows, first, count, 1, w, column * K + k * U, U, K * U, together, min(K_BLOCK, K - k),
                    out, column, columns, U, k > 0,
                )  # fmt: skip
