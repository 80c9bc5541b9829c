"""The loop over time on the CPU, for any cell, forward and backward; one thread's rows of the batch.

A thread takes some rows of the batch and runs all T steps on them alone: nothing is shared, there is no barrier.

    forward     ax = x W + b for a chunk of steps; then per step ah = h U, the cell on vectors of units, h' = m W_hr
    backward    per step, last first: the cell's gradients (planes), then dh = planes U^T

Rows are sorted by falling length, so the rows that are alive at a step are a prefix and finished ones cost nothing.
All arrays are flat and C-contiguous; their shapes stand beside them. Hp and Pp are H and P rounded up to whole blocks
of units (two vectors), and Ps, Hs and Ls are the distances of rows of Pp, Hp and PLANES * Hp elements, see row_stride.
Columns past H hold rubbish that never reaches the others, because the products end at P or H,
and planes are zeroed there. The build binds this module to one cell at a time.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.blocked import FEW_ROWS, product, row_stride, wide_product
from fastrnn.cpu.build import kernel
from fastrnn.cpu.cells.lstm import LSTM as CELL
from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.vector import add_tuple, load, load_tuple, splat, store, store_tuple

cell_forward, cell_backward = CELL.forward, CELL.backward
gate: Any = CELL.gate  # None but for a gated cell, where alone it is called
gate_backward: Any = CELL.gate_backward
GATES, SAVED, PLANES, UNITS = CELL.gates, CELL.saved, CELL.planes, CELL.units
PARAMETERS = CELL.units - CELL.separate  # of the vectors in `unit`
DAH_FIRST, DAH_LAST = CELL.dah_first, CELL.dah_first + CELL.gates - 1
CELL_STATE, READS_H, GATED = CELL.cell_state, CELL.reads_h, CELL.gate is not None
ROWS_AT_ONCE = 96  # of an input product: their block of K_BLOCK stays in the second-level cache
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
def copy(source: Any, first: int, target: Any, start: int, count: int) -> None:
    """target[start : start + count] = source[first : first + count]."""
    for k in range(count):
        target[start + k] = source[first + k]


@register_jitable(error_model="numpy")
def add(source: Any, first: int, target: Any, start: int, count: int) -> None:
    """target[start : start + count] += source[first : first + count]."""
    for k in range(count):
        target[start + k] += source[first + k]


@register_jitable(error_model="numpy")
def zero(target: Any, start: int, count: int) -> None:
    """target[start : start + count] = 0."""
    for k in range(count):
        target[start + k] = 0.0


@register_jitable(error_model="numpy")
def input_product(x: Any, x_rows: Any, w: Any, bias: Any, ax: Any, count: int, I: int, Hp: int) -> None:
    """ax [count, G, Hp] = the rows x_rows of x, times w [Hp/U, G, I, U], plus bias [G, Hp]."""
    U = unit_block(ax)
    for row in range(0, count, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, count - row)
        for r in range(row, row + rows):
            copy(bias, 0, ax, r * GATES * Hp, GATES * Hp)
        for block in range(Hp // U):
            product(
                x, x_rows, row, rows, I, w, block * GATES * I * U, GATES, I * U,
                ax, row * GATES * Hp + block * U, GATES * Hp, Hp, True,
            )  # fmt: skip


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
def cell_rows(
    rows: int, first: int, block: int, ax: Any, ax_first: int, ah: Any, ah_start: int, ah_row: int, ah_gate: int,
    unit: Any, hs: Any, h_prev: Any, m: Any, m_rows: Any, cs: Any, c_prev: Any, c_next: Any, gates: Any, saved: Any,
    dead: Any, zoned: int, zone_h: Any, zone_c: Any, zone_rows: Any, raw_c: Any, raw_rows: Any, save: bool, Hp: int,
) -> None:  # fmt: skip
    """Run the cell on one block of units of some rows; all *_rows, c_prev, c_next, saved hold offsets of rows."""
    U = unit_block(ax)
    lanes = U // 2
    for r in range(rows):
        row = first + r
        for column in range(block * U, block * U + U, lanes):
            a = load_tuple(ax, (ax_first + row) * GATES * Hp + column, Hp, GATES)
            b = load_tuple(ah, ah_start + r * ah_row + column - block * U, ah_gate, GATES)
            nothing = splat(ax, 0.0)
            h_old = load(hs, h_prev[row] + column) if READS_H else nothing
            c_old = load(cs, c_prev[row] + column) if CELL_STATE and not dead[row] else nothing
            h, c, kept = cell_forward(a, b, h_old, c_old, load_tuple(unit, column, Hp, UNITS))
            if zoned:
                if zone_h.size:
                    share = load(zone_h, zone_rows[row] + column)
                    h = share * load(hs, h_prev[row] + column) + (1.0 - share) * h
                if CELL_STATE:
                    if save:
                        store(raw_c, raw_rows[row] + column, c)
                    share = load(zone_c, zone_rows[row] + column)
                    c = share * c_old + (1.0 - share) * c
            store(m, m_rows[row] + column, h)
            if CELL_STATE:
                store(cs, c_next[row] + column, c)
            if save:
                store_tuple(gates, saved[row] + column, Hp, kept)


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


@kernel
def layer_forward(
    rows: Any,  # [n] rows of the batch, by falling length
    lengths: Any,  # [n] their lengths
    x: Any, x_step: int, x_row: int,  # [T, B, I] and its strides
    clear: Any, clears: bool,  # [T, B] bool, read if clears
    reverse: bool,
    w: Any,  # [Hp/U, G, I, U]
    bias: Any,  # [G, Hp]
    u: Any, diagonal: bool,  # [Hp/U, G, P, U], [G, Hp] if diagonal
    unit: Any,  # [units, Hp]
    hr: Any,  # [Pp/U, H, U], empty without a projection
    hs: Any,  # [T+1 or 2, B, Ps] states around each step; the initial state is in place
    cs: Any,  # [T+1 or 2, B, Hp]
    gates: Any,  # [T, B, V, Hp] if save
    m: Any,  # [T or 1, B, Hs], h before the projection, with one only
    s: Any,  # [T or 1, B, Hs], gated state, for a gated cell only
    y: Any, y_step: int, y_row: int, y_first: int,  # [T, B, D*P], its strides and this direction's column
    keep: Any, seen: Any,  # recurrent dropout: factors [B, Ps] and h_prev times them [T or 1, B, Ps]; empty without
    zoned: int, zone_h: Any, zone_c: Any,  # 0: no zoneout; 1: shares [Hp]; 2: shares [T, B, Hp]; empty: none of h; c
    raw_c: Any,  # [T, B, Hp] if zoned and save: c of the cell, before zoneout
    ax: Any, tile: Any, offsets: Any,  # scratch [chunk, G, Hp], [n or TILE_ROWS, G, Hp or U], [chunk + 9n] int64
    near: Any,  # scratch [chunk, row_stride(I)] for rows of x that are better copied; empty if none is
    dead: Any,  # scratch [n] bool
    T: int, B: int, I: int, H: int, P: int, save: bool,
) -> None:  # fmt: skip
    """Write y, and the states and saved values of these rows."""
    n, U = rows.size, unit_block(ax)
    Hp, Pp = (H + U - 1) // U * U, (P + U - 1) // U * U
    Ps, Hs, projected = row_stride(Pp, hs.itemsize), row_stride(Hp, hs.itemsize), hr.size > 0
    chunk = ax.size // (GATES * Hp)
    x_rows = offsets[:chunk]
    h_prev, h_next, c_prev, c_next, m_rows, saved = (
        offsets[chunk : chunk + n], offsets[chunk + n : chunk + 2 * n], offsets[chunk + 2 * n : chunk + 3 * n],
        offsets[chunk + 3 * n : chunk + 4 * n], offsets[chunk + 4 * n : chunk + 5 * n],
        offsets[chunk + 5 * n : chunk + 6 * n],
    )  # fmt: skip
    zone_rows, raw_rows = offsets[chunk + 6 * n : chunk + 7 * n], offsets[chunk + 7 * n : chunk + 8 * n]
    drops = keep.size > 0
    seen_rows = offsets[chunk + 8 * n :] if drops else h_prev  # what the recurrent product sees
    seen_state = seen if drops else hs
    here = 0 if reverse else n
    begin = 0
    while begin < T:
        count, end, ahead = 0, begin, here
        while end < T:
            t = T - 1 - end if reverse else end
            ahead = alive(lengths, ahead, t, reverse)
            if count > 0 and count + ahead > chunk:
                break
            for i in range(ahead):
                x_rows[count + i] = t * x_step + rows[i] * x_row
            count += ahead
            end += 1
        if near.size:
            for i in range(count):
                copy(x, x_rows[i], near, i * row_stride(I, x.itemsize), I)
                x_rows[i] = i * row_stride(I, x.itemsize)
        input_product(near if near.size else x, x_rows, w, bias, ax, count, I, Hp)
        ax_first = 0
        for step in range(begin, end):
            t = T - 1 - step if reverse else step
            here = alive(lengths, here, t, reverse)
            before, after = (t + 1, t) if reverse else (t, t + 1)
            before, after = (before, after) if save else (before & 1, after & 1)
            kept = t if save else 0
            for i in range(here):
                h_prev[i], h_next[i] = (before * B + rows[i]) * Ps, (after * B + rows[i]) * Ps
                c_prev[i], c_next[i] = (before * B + rows[i]) * Hp, (after * B + rows[i]) * Hp
                saved[i] = (t * B + rows[i]) * SAVED * Hp
                m_rows[i] = (kept * B + rows[i]) * Hs
                zone_rows[i] = (t * B + rows[i]) * Hp if zoned == 2 else 0
                raw_rows[i] = (t * B + rows[i]) * Hp
                dead[i] = clears and clear[t * B + rows[i]]
                if dead[i]:
                    zero(hs, h_prev[i], Pp)
                if drops:
                    seen_rows[i] = (kept * B + rows[i]) * Ps
                    for j in range(Pp):
                        seen[seen_rows[i] + j] = hs[h_prev[i] + j] * keep[rows[i] * Ps + j]
            together = BLOCKS_AT_ONCE if here <= FEW_ROWS and not diagonal else 1
            if GATED:
                gated_rows(
                    rows, here, ax, ax_first, tile, u, diagonal, hs, h_prev, seen_state, seen_rows, keep, s, m_rows, P,
                    Hp, Ps,
                )  # fmt: skip
                for block in range(0, Hp // U, together):
                    blocks = min(together, Hp // U - block)
                    to = (GATES - 1) * Hp + block * U
                    if diagonal:
                        diagonal_product(
                            s, m_rows, 0, here, block * U, u[(GATES - 1) * Hp :], 1, Hp, tile, to, GATES * Hp, 0
                        )
                    else:
                        product(
                            s, m_rows, 0, here, P, u, (block * GATES + GATES - 1) * P * U, blocks, GATES * P * U,
                            tile, to, GATES * Hp, U, False,
                        )  # fmt: skip
                    for k in range(blocks):
                        cell_rows(
                            here, 0, block + k, ax, ax_first, tile, (block + k) * U, GATES * Hp, Hp, unit, hs, h_prev,
                            hs, h_next, cs, c_prev, c_next, gates, saved, dead, zoned, zone_h, zone_c, zone_rows,
                            raw_c, raw_rows, save, Hp,
                        )  # fmt: skip
            else:
                for block in range(0, Hp // U, together):
                    blocks = min(together, Hp // U - block)
                    width = blocks * GATES * U
                    for first in range(0, here, TILE_ROWS):
                        some = min(TILE_ROWS, here - first)
                        if diagonal:
                            diagonal_product(
                                seen_state, seen_rows, first, some, block * U, u, GATES, Hp, tile, 0, width, U
                            )
                        else:
                            product(
                                seen_state, seen_rows, first, some, P, u, block * GATES * P * U, blocks * GATES, P * U,
                                tile, 0, width, U, False,
                            )  # fmt: skip
                        for k in range(blocks):
                            cell_rows(
                                some, first, block + k, ax, ax_first, tile, k * GATES * U, width, U, unit, hs, h_prev,
                                m if projected else hs, m_rows if projected else h_next,
                                cs, c_prev, c_next, gates, saved, dead, zoned, zone_h, zone_c, zone_rows, raw_c,
                                raw_rows, save, Hp,
                            )  # fmt: skip
            if projected:
                projection(m, m_rows, hr, tile, hs, h_next, here, H, P)
            for i in range(here):
                copy(hs, h_next[i], y, t * y_step + rows[i] * y_row + y_first, P)
            ax_first += here
        begin = end


@register_jitable(error_model="numpy")
def gated_rows(
    rows: Any, count: int, ax: Any, ax_first: int, ah: Any, u: Any, diagonal: bool, hs: Any, h_prev: Any,
    seen_state: Any, seen_rows: Any, keep: Any, s: Any, s_rows: Any, P: int, Hp: int, Ps: int,
) -> None:  # fmt: skip
    """First half of a gated cell: ah [count, G, Hp] of all gates but the last, and s as its product sees it."""
    U = unit_block(ax)
    for block in range(Hp // U):
        if diagonal:
            diagonal_product(
                seen_state, seen_rows, 0, count, block * U, u, GATES - 1, Hp, ah, block * U, GATES * Hp, Hp
            )
        else:
            product(
                seen_state, seen_rows, 0, count, P, u, block * GATES * P * U, GATES - 1, P * U, ah, block * U,
                GATES * Hp, Hp, False,
            )  # fmt: skip
    for row in range(count):
        for column in range(0, Hp, U // 2):
            a = load(ax, (ax_first + row) * GATES * Hp + column)
            b = load(ah, row * GATES * Hp + column)
            gated = gate(a, b, load(hs, h_prev[row] + column))
            store(s, s_rows[row] + column, gated * load(keep, rows[row] * Ps + column) if keep.size else gated)


@kernel
def layer_backward(
    rows: Any,  # [n] rows of the batch, by falling length
    lengths: Any,  # [n] their lengths
    clear: Any, clears: bool,  # [T, B] bool, read if clears
    reverse: bool,
    u: Any, diagonal: bool,  # [Pp/U, G*Hp, U], or [G, Hp]: planes to h; for a gated cell G-1
    u_gated: Any,  # [Hp/U, Hp, U], or [Hp]: the last plane to the gated state, for a gated cell only
    hr: Any,  # [Hp/U, P, U], empty without a projection
    unit: Any,  # [units, Hp]
    hs: Any,  # [T+1, B, Ps]
    cs: Any,  # [T+1, B, Hp]
    gates: Any,  # [T, B, V, Hp]
    s: Any,  # [T, B, Hs], gated state, for a gated cell only
    keep: Any, seen: Any,  # as in layer_forward
    zoned: int, zone_h: Any, zone_c: Any, raw_c: Any,  # as in layer_forward
    dy: Any, y_step: int, y_row: int, y_first: int,  # [T, B, D*P], empty for zero
    dcells: Any, cells_step: int, cells_row: int, cells_first: int,  # [T, B, D*H], empty for zero
    dh: Any,  # [B, Pp]: in the gradient of the final state, out that of the initial one
    dc: Any,  # [B, Hp] likewise
    planes: Any,  # [T, B, Ls]: [planes, Hp]
    du: Any,  # [B, G, Hp], zeros before, if diagonal: each row's part of the gradient of u, in the order of the planes
    dp: Any,  # [B, parameters, Hp], zeros before: each row's part of the gradient of the unit parameters
    dproj: Any,  # [T, B, Pp], gradient of the projected h, with a projection only
    dm: Any, ds: Any, back: Any,  # scratch [n, Hp], [n, Hp], [n, Pp]
    offsets: Any,  # scratch [3n] int64
    T: int, B: int, H: int, P: int,
) -> None:  # fmt: skip
    """Write planes, and turn the gradient of the final state into that of the initial state, for these rows."""
    n, U = rows.size, unit_block(dh)
    Hp, Pp = (H + U - 1) // U * U, (P + U - 1) // U * U
    Ps, Ls = row_stride(Pp, hs.itemsize), row_stride(PLANES * Hp, hs.itemsize)
    lanes, projected = U // 2, hr.size > 0
    dh_rows, dah_rows, last_rows = offsets[:n], offsets[n : 2 * n], offsets[2 * n :]
    nothing = splat(dh, 0.0)
    here = n if reverse else 0
    for step in range(T):
        t = step if reverse else T - 1 - step
        here = alive(lengths, here, t, not reverse)
        before, after = (t + 1, t) if reverse else (t, t + 1)
        for i in range(here):
            b = rows[i]
            dh_rows[i] = b * Pp
            dah_rows[i] = (t * B + b) * Ls + DAH_FIRST * Hp
            last_rows[i] = (t * B + b) * Ls + DAH_LAST * Hp
            if dy.size:
                add(dy, t * y_step + b * y_row + y_first, dh, b * Pp, P)
            if dcells.size:
                add(dcells, t * cells_step + b * cells_row + cells_first, dc, b * Hp, H)
            if projected:
                copy(dh, b * Pp, dproj, (t * B + b) * Pp, Pp)
        if projected:
            wide_product(dh, dh_rows, 0, here, P, hr, Hp, dm)
        for i in range(here):
            b = rows[i]
            dead = clears and clear[t * B + b]
            for column in range(0, Hp, lanes):
                kept = load_tuple(gates, (t * B + b) * SAVED * Hp + column, Hp, SAVED)
                h_prev = load(hs, (before * B + b) * Ps + column) if READS_H else nothing
                c_prev = load(cs, (before * B + b) * Hp + column) if CELL_STATE and not dead else nothing
                c = load(cs, (after * B + b) * Hp + column) if CELL_STATE else nothing
                dc_row = load(dc, b * Hp + column) if CELL_STATE else nothing
                dh_row = load(dm, i * Hp + column) if projected else load(dh, b * Pp + column)
                dh_held, dc_held = nothing, nothing
                if zoned:
                    share_at = ((t * B + b) * Hp if zoned == 2 else 0) + column
                    if zone_h.size:
                        dh_held = load(zone_h, share_at) * dh_row
                        dh_row = (1.0 - load(zone_h, share_at)) * dh_row
                    if CELL_STATE:
                        c = load(raw_c, (t * B + b) * Hp + column)
                        dc_held = load(zone_c, share_at) * dc_row
                        dc_row = (1.0 - load(zone_c, share_at)) * dc_row
                da, direct, dc_row, dp_row = cell_backward(
                    kept, h_prev, c_prev, c, dh_row, dc_row, load_tuple(unit, column, Hp, UNITS)
                )
                store_tuple(planes, (t * B + b) * Ls + column, Hp, da)
                if PARAMETERS:
                    add_tuple(dp, b * PARAMETERS * Hp + column, Hp, dp_row)
                if CELL_STATE:
                    store(dc, b * Hp + column, dc_row + dc_held if zoned else dc_row)
                if not projected:
                    store(dh, b * Pp + column, direct + dh_held if zoned else direct)
            for plane in range(PLANES):
                zero(planes, (t * B + b) * Ls + plane * Hp + H, Hp - H)
            if projected:
                zero(dh, b * Pp, Pp)
        if GATED:
            gated_backward_rows(
                rows, here, t, u_gated, diagonal, gates, hs, before, planes, last_rows, s, keep, du, ds, dh, B, H, Hp,
                Pp,
            )  # fmt: skip
        many = GATES - 1 if GATED else GATES
        if diagonal:
            for i in range(here):
                at = (t * B + rows[i]) * Ps if keep.size else (before * B + rows[i]) * Ps
                diagonal_backward(
                    planes, dah_rows[i], u, many, Hp, seen if keep.size else hs, at, du, rows[i] * GATES * Hp, back,
                    i * Pp,
                )  # fmt: skip
        else:
            wide_product(planes, dah_rows, 0, here, many * Hp, u, Pp, back)
        for i in range(here):
            if keep.size:
                for j in range(Pp):
                    back[i * Pp + j] *= keep[rows[i] * Ps + j]
            add(back, i * Pp, dh, dh_rows[i], Pp)
        for i in range(here):
            if clears and clear[t * B + rows[i]]:
                zero(dh, rows[i] * Pp, Pp)
                zero(dc, rows[i] * Hp, Hp if CELL_STATE else 0)


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


@register_jitable(error_model="numpy")
def gated_backward_rows(
    rows: Any, count: int, t: int, u_gated: Any, diagonal: bool, gates: Any, hs: Any, before: int, planes: Any,
    last_rows: Any, s: Any, keep: Any, du: Any, ds: Any, dh: Any, B: int, H: int, Hp: int, Pp: int,
) -> None:  # fmt: skip
    """ds = last plane U_n^T, then plane 0 and the direct gradient of h_prev through the gated state."""
    U, Ps, Ls = unit_block(dh), row_stride(Pp, dh.itemsize), row_stride(PLANES * Hp, dh.itemsize)
    if not diagonal:
        wide_product(planes, last_rows, 0, count, Hp, u_gated, Hp, ds)
    for i in range(count):
        b = rows[i]
        if diagonal:
            diagonal_backward(
                planes, last_rows[i], u_gated, 1, Hp, s, (t * B + b) * row_stride(Hp, s.itemsize), du,
                (b * GATES + GATES - 1) * Hp, ds, i * Hp,
            )  # fmt: skip
        if keep.size:
            for j in range(Hp):
                ds[i * Hp + j] *= keep[b * Ps + j]
        for column in range(0, Hp, U // 2):
            kept = load_tuple(gates, (t * B + b) * SAVED * Hp + column, Hp, SAVED)
            h_prev = load(hs, (before * B + b) * Ps + column)
            da, direct = gate_backward(kept, h_prev, load(ds, i * Hp + column))
            place = (t * B + b) * Ls + column
            store(planes, place, load(planes, place) + da)
            store(dh, b * Pp + column, load(dh, b * Pp + column) + direct)
        zero(planes, (t * B + b) * Ls + H, Hp - H)
