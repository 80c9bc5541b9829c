"""What the loop does to rows whatever the cell: copies, sums, element-wise products, the projection.

Apart from loop.py, which is compiled anew for each cell: these are compiled once in a process.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.blocked import FEW_ROWS, product
from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.vector import load, splat, store

BLOCKS_AT_ONCE = 4  # with few rows: one panel's sums alone would wait for each other's additions
TILE_ROWS = 48  # rows of one tile [TILE_ROWS, G, U], which stays in the first-level cache


@register_jitable(error_model="numpy")
def alive(lengths: Any, count: int, t: int, reverse: bool) -> int:
    """Number of rows that have a step t, given the number at the step before it in the order of the loop."""
    if reverse:
        while count < lengths.size and lengths[count] > t:
            count += 1
    else:
        while count > 0 and lengths[count - 1] <= t:
            count -= 1
    return count


@register_jitable(error_model="numpy")
def whole_vectors(a: Any, count: int) -> int:
    """How many of `count` elements stand in whole vectors. LLVM leaves loops over elements scalar: indices may wrap."""
    lanes = unit_block(a) // 2
    return count // lanes * lanes


@register_jitable(error_model="numpy")
def copy(source: Any, first: int, target: Any, start: int, count: int) -> None:
    """target[start : start + count] = source[first : first + count]."""
    whole = whole_vectors(target, count)
    for k in range(0, whole, unit_block(target) // 2):
        store(target, start + k, load(source, first + k))
    for k in range(whole, count):
        target[start + k] = source[first + k]


@register_jitable(error_model="numpy")
def add(source: Any, first: int, target: Any, start: int, count: int) -> None:
    """target[start : start + count] += source[first : first + count]."""
    whole = whole_vectors(target, count)
    for k in range(0, whole, unit_block(target) // 2):
        store(target, start + k, load(target, start + k) + load(source, first + k))
    for k in range(whole, count):
        target[start + k] += source[first + k]


@register_jitable(error_model="numpy")
def multiply(source: Any, first: int, factors: Any, at: int, target: Any, start: int, count: int) -> None:
    """target[start : start + count] = source[first : ...] * factors[at : ...]; whole vectors all."""
    for k in range(0, count, unit_block(target) // 2):
        store(target, start + k, load(source, first + k) * load(factors, at + k))


@register_jitable(error_model="numpy")
def zero(target: Any, start: int, count: int) -> None:
    """target[start : start + count] = 0."""
    whole = whole_vectors(target, count)
    for k in range(0, whole, unit_block(target) // 2):
        store(target, start + k, splat(target, 0.0))
    for k in range(whole, count):
        target[start + k] = 0.0


@register_jitable(error_model="numpy")
def projection(m: Any, m_rows: Any, hr: Any, tile: Any, hs: Any, h_next: Any, count: int, H: int, P: int) -> None:
    """Rows h_next of hs = the rows m_rows of m, times hr [Pp/U, H, U]."""
    U = unit_block(tile)
    group = BLOCKS_AT_ONCE * U if count <= FEW_ROWS else U
    for first in range(0, P, group):
        panels = (min(group, P - first) + U - 1) // U
        for row in range(0, count, TILE_ROWS):
            rows = min(TILE_ROWS, count - row)
            product(m, m_rows, row, rows, H, hr, first * H, panels, H * U, tile, 0, panels * U, U, False)
            for r in range(rows):
                copy(tile, r * panels * U, hs, h_next[row + r] + first, min(panels * U, P - first))


@register_jitable(error_model="numpy")
def diagonal_product(
    a: Any, a_rows: Any, first: int, count: int, column: int, u: Any, gates: int, Hp: int, out: Any, start: int,
    out_row: int, out_gate: int,
) -> None:  # fmt: skip
    """out [count, gates, U] = one block of units of some rows of a times u [gates, Hp], element by element."""
    U = unit_block(a)
    for r in range(count):
        for g in range(gates):
            for j in range(0, U, U // 2):
                value = load(a, a_rows[first + r] + column + j) * load(u, g * Hp + column + j)
                store(out, start + r * out_row + g * out_gate + j, value)


@register_jitable(error_model="numpy")
def diagonal_backward(
    planes: Any, at: int, u: Any, gates: int, Hp: int, seen: Any, seen_at: int, du: Any, du_at: int, out: Any, to: int
) -> None:
    """out [Hp] = the sum over gates of planes times u [gates, Hp]; du [gates, Hp] += planes times what u saw."""
    for column in range(0, Hp, unit_block(out) // 2):
        total = splat(out, 0.0)
        for g in range(gates):
            da = load(planes, at + g * Hp + column)
            total = total + da * load(u, g * Hp + column)
            place = du_at + g * Hp + column
            store(du, place, load(du, place) + da * load(seen, seen_at + column))
        store(out, to + column, total)
