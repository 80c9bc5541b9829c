"""The loop over time on the CPU, for any cell, forward and backward; one thread's rows of the batch.

A thread takes some rows of the batch and runs all T steps on them alone: nothing is shared, there is no barrier.

    forward     ax = x W + b for a chunk of steps; then per step ah = h U, the cell on vectors of units, h' = m W_hr
    backward    per step, last first: the cell's gradients (planes), then dh = planes U^T

With layer normalisation (NORMALISED) the rows of a step are made whole before the cell sees them, and h waits until the
row of c is complete:

    forward     ax = LN(x W) + b, ah = LN(h U); the cell makes c and o; then h = o * tanh(LN(c))
    backward    do and c's part through h; the cell's gradients; then planes of the gradients of h U and x W themselves

Rows are sorted by falling length, so the rows that are alive at a step are a prefix and finished ones cost nothing.
All arrays are flat and C-contiguous; their shapes stand beside them. Hp and Pp are H and P rounded up to whole blocks
of units (two vectors), and Ps, Hs and Ls are the distances of rows of Pp, Hp and KEPT_PLANES * Hp elements, see
row_stride. Columns past H hold rubbish that never reaches the others, because the products end at P or H,
and planes are zeroed there. The build binds this module to one cell at a time, with or without normalisation.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.blocked import FEW_ROWS, product, row_stride, wide_product
from fastrnn.cpu.build import kernel
from fastrnn.cpu.cells.lstm import LSTM as CELL
from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.normalise import normalise, normalise_backward
from fastrnn.cpu.rows import (
    BLOCKS_AT_ONCE,
    TILE_ROWS,
    add,
    alive,
    copy,
    diagonal_backward,
    diagonal_product,
    multiply,
    projection,
    zero,
)
from fastrnn.cpu.vector import add_tuple, load_block, load_blocks, splat_block, store, store_tuple

NORMALISED = False
CELL_STATE, READS_H, GATED = CELL.cell_state, CELL.reads_h, CELL.gate is not None
READOUT, NORMALISED_GATED = NORMALISED and CELL_STATE, NORMALISED and GATED
WHOLE = NORMALISED or GATED  # whether the rows of a recurrent product are complete before the cell sees them
cell_forward: Any = CELL.forward
cell_backward: Any = CELL.inside if READOUT else CELL.backward
readout: Any = CELL.readout  # called if READOUT
readout_backward: Any = CELL.readout_backward
gate: Any = CELL.gate  # None but for a gated cell, where alone it is called
gate_backward: Any = CELL.gate_backward
GATES, SAVED, PLANES, UNITS = CELL.gates, CELL.saved, CELL.planes, CELL.units
PARAMETERS = CELL.units - CELL.separate  # of the vectors in `unit`
TOGETHER = GATES - 1 if GATED else GATES  # gates of the first product
# The planes that are kept for the products over T*B: the cell's own, or dah and dax behind their normalisation.
KEPT_PLANES = 2 * GATES if NORMALISED else PLANES
DAX_FIRST, DAH_FIRST = (GATES, 0) if NORMALISED else (CELL.dax_first, CELL.dah_first)
DAH_GATES = tuple(range(GATES)) if NORMALISED else CELL.dah_gates
DAH_LAST = DAH_FIRST + GATES - 1
# Of the cell's own planes: those of ax, of ah but for a gated cell's last gate, and that one.
X_PLACES = tuple(range(CELL.dax_first, CELL.dax_first + GATES))
H_PLACES = tuple(CELL.dah_first + CELL.dah_gates.index(gate) for gate in range(TOGETHER))
LAST_PLACE = (CELL.dah_first + CELL.dah_gates.index(GATES - 1),)
ONLY = (0,)
SCALES = 5  # of a step: those of LN(x W), of LN(h U), of a gated cell's last gate; c's mean and scale
SUMS = 2 * GATES + 2 + PLANES  # gradients summed over time: gains (x, h, c), the bias of c, the planes for the others
ROWS_AT_ONCE = 96  # of an input product: their block of K_BLOCK stays in the second-level cache


@register_jitable(error_model="numpy")
def input_product(x: Any, x_rows: Any, w: Any, bias: Any, ax: Any, count: int, I: int, Hp: int) -> None:
    """ax [count, G, Hp] = the rows x_rows of x, times w [Hp/U, G, I, U], plus bias [G, Hp] unless normalised later."""
    U = unit_block(ax)
    for row in range(0, count, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, count - row)
        for r in range(row, row + rows):
            if NORMALISED:
                zero(ax, r * GATES * Hp, GATES * Hp)
            else:
                copy(bias, 0, ax, r * GATES * Hp, GATES * Hp)
        for block in range(Hp // U):
            product(
                x, x_rows, row, rows, I, w, block * GATES * I * U, GATES, I * U,
                ax, row * GATES * Hp + block * U, GATES * Hp, Hp, True,
            )  # fmt: skip


@register_jitable(error_model="numpy")
def cell_rows(
    rows: int, first: int, block: int, ax: Any, ax_first: int, ah: Any, ah_start: int, ah_row: int, ah_gate: int,
    unit: Any, hs: Any, h_prev: Any, m: Any, m_rows: Any, cs: Any, c_prev: Any, c_next: Any, gates: Any, saved: Any,
    dead: Any, zoned: int, zone_h: Any, zone_c: Any, zone_rows: Any, raw_c: Any, raw_rows: Any, save: bool, Hp: int,
) -> None:  # fmt: skip
    """Run the cell on one block of units of some rows; all *_rows, c_prev, c_next, saved hold offsets of rows."""
    column = block * unit_block(ax)
    for r in range(rows):
        row = first + r
        a = load_blocks(ax, (ax_first + row) * GATES * Hp + column, Hp, GATES)
        b = load_blocks(ah, ah_start + r * ah_row, ah_gate, GATES)
        nothing = splat_block(ax, 0.0)
        h_old = load_block(hs, h_prev[row] + column) if READS_H else nothing
        c_old = load_block(cs, c_prev[row] + column) if CELL_STATE and not dead[row] else nothing
        h, c, kept = cell_forward(a, b, h_old, c_old, load_blocks(unit, column, Hp, UNITS))
        if READOUT:
            store(raw_c, raw_rows[row] + column, c)
            store_tuple(gates, saved[row] + column, Hp, kept)
        else:
            if zoned:
                if zone_h.size:
                    share = load_block(zone_h, zone_rows[row] + column)
                    h = share * load_block(hs, h_prev[row] + column) + (1.0 - share) * h
                if CELL_STATE:
                    if save:
                        store(raw_c, raw_rows[row] + column, c)
                    share = load_block(zone_c, zone_rows[row] + column)
                    c = share * c_old + (1.0 - share) * c
            store(m, m_rows[row] + column, h)
            if CELL_STATE:
                store(cs, c_next[row] + column, c)
            if save:
                store_tuple(gates, saved[row] + column, Hp, kept)


@register_jitable(error_model="numpy")
def readout_rows(
    rows: Any, count: int, t: int, B: int, hs: Any, h_prev: Any, m: Any, m_rows: Any, cs: Any, c_prev: Any,
    c_next: Any, gates: Any, saved: Any, dead: Any, zoned: int, zone_h: Any, zone_c: Any, zone_rows: Any, raw_c: Any,
    raw_rows: Any, norm: Any, save: bool, H: int, Hp: int,
) -> None:  # fmt: skip
    """h of some rows from the normalised c, which cell_rows has left in raw_c; then zoneout of both."""
    affine, hats, scales, row = norm
    for i in range(count):
        copy(raw_c, raw_rows[i], row, 0, Hp)
        mean, scale = normalise(row, 0, 1, H, Hp, affine, 2 * GATES * Hp, hats, 0, False)
        if save:
            scales[(t * B + rows[i]) * SCALES + 3] = mean
            scales[(t * B + rows[i]) * SCALES + 4] = scale
        for column in range(0, Hp, unit_block(row)):
            h = readout(load_blocks(gates, saved[i] + column, Hp, SAVED), load_block(row, column))
            if zoned:
                if zone_h.size:
                    share = load_block(zone_h, zone_rows[i] + column)
                    h = share * load_block(hs, h_prev[i] + column) + (1.0 - share) * h
                share = load_block(zone_c, zone_rows[i] + column)
                c_old = splat_block(row, 0.0) if dead[i] else load_block(cs, c_prev[i] + column)
                store(cs, c_next[i] + column, share * c_old + (1.0 - share) * load_block(raw_c, raw_rows[i] + column))
            store(m, m_rows[i] + column, h)


@kernel
def layer_forward(
    x: Any, x_step: int, x_row: int,  # [T, B, I] and its strides
    y: Any, y_step: int, y_row: int, y_first: int,  # [T, B, D*P], its strides and this direction's column
    rows: Any,  # [n] rows of the batch, by falling length
    lengths: Any,  # [n] their lengths
    clear: Any, clears: bool,  # [T, B] bool, read if clears
    reverse: bool,
    w: Any,  # [Hp/U, G, I, U]
    bias: Any,  # [G, Hp]
    u: Any, diagonal: bool,  # [Hp/U, G, P, U], [G, Hp] if diagonal
    unit: Any,  # [units, Hp]
    hr: Any,  # [Pp/U, H, U], empty without a projection
    hs: Any,  # [T+1 or 2, B, Ps] states around each step; the initial state is in place
    cs: Any,  # [T+1 or 2, B, Hp]
    gates: Any,  # [T, B, V, Hp] if save, scratch [1, B, V, Hp] if READOUT
    m: Any,  # [T or 1, B, Hs], h before the projection, with one only
    s: Any,  # [T or 1, B, Hs], gated state, for a gated cell only
    keep: Any, seen: Any,  # recurrent dropout: factors [B, Ps] and h_prev times them [T or 1, B, Ps]; empty without
    zoned: int, zone_h: Any, zone_c: Any,  # 0: no zoneout; 1: shares [Hp]; 2: shares [T, B, Hp]; empty: none of h; c
    raw_c: Any,  # [T or 1, B, Hp] if zoned and save, or READOUT: c of the cell, before zoneout
    norm: Any,  # if NORMALISED: affine [2, 2G+1, Hp]; hats [T, B, 2G, Hp] and scales [T, B, SCALES], written if save;
    # scratch [Hp]; else ()
    ax: Any, tile: Any,  # scratch [chunk, G, Hp], [n, G, Hp] if WHOLE, else [TILE_ROWS, G, U]
    offsets: Any,  # scratch [chunk + 9n] int64
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
    raw = raw_c if zoned else cs  # where c stands that the cell made
    # chosen once: Numba counts references at each choice
    made, made_rows = (m, m_rows) if projected else (hs, h_next)
    source = near if near.size else x
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
        input_product(source, x_rows, w, bias, ax, count, I, Hp)
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
                saved[i] = (kept * B + rows[i]) * SAVED * Hp
                m_rows[i] = (kept * B + rows[i]) * Hs
                zone_rows[i] = (t * B + rows[i]) * Hp if zoned == 2 else 0
                raw_rows[i] = (kept * B + rows[i]) * Hp if zoned else c_next[i]
                dead[i] = clears and clear[t * B + rows[i]]
                if dead[i]:
                    zero(hs, h_prev[i], Pp)
                if drops:
                    seen_rows[i] = (kept * B + rows[i]) * Ps
                    multiply(hs, h_prev[i], keep, rows[i] * Ps, seen, seen_rows[i], Pp)
            together = BLOCKS_AT_ONCE if here <= FEW_ROWS and not diagonal else 1
            if WHOLE:
                first_product(seen_state, seen_rows, here, u, diagonal, tile, together, P, Hp)
                if NORMALISED:
                    normalise_rows(rows, here, t, B, ax, ax_first, tile, norm, save, H, Hp)
                if GATED:
                    gate_rows(rows, here, ax, ax_first, tile, hs, h_prev, keep, s, m_rows, Hp, Ps)
                if NORMALISED_GATED:
                    for block in range(0, Hp // U, together):
                        blocks = min(together, Hp // U - block)
                        last_product(s, m_rows, here, u, diagonal, tile, block, blocks, P, Hp)
                    normalise_last(rows, here, t, B, tile, norm, save, H, Hp)
                for block in range(0, Hp // U, together):
                    blocks = min(together, Hp // U - block)
                    if not NORMALISED:
                        last_product(s, m_rows, here, u, diagonal, tile, block, blocks, P, Hp)
                    for k in range(blocks):
                        cell_rows(
                            here, 0, block + k, ax, ax_first, tile, (block + k) * U, GATES * Hp, Hp, unit, hs, h_prev,
                            made, made_rows,
                            cs, c_prev, c_next, gates, saved, dead, zoned, zone_h, zone_c, zone_rows, raw, raw_rows,
                            save, Hp,
                        )  # fmt: skip
                if READOUT:
                    readout_rows(
                        rows, here, t, B, hs, h_prev, made, made_rows,
                        cs, c_prev, c_next, gates, saved, dead, zoned, zone_h, zone_c, zone_rows, raw, raw_rows, norm,
                        save, H, Hp,
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
                                made, made_rows,
                                cs, c_prev, c_next, gates, saved, dead, zoned, zone_h, zone_c, zone_rows, raw,
                                raw_rows, save, Hp,
                            )  # fmt: skip
            if projected:
                projection(m, m_rows, hr, tile, hs, h_next, here, H, P)
            for i in range(here):
                copy(hs, h_next[i], y, t * y_step + rows[i] * y_row + y_first, P)
            ax_first += here
        begin = end


@register_jitable(error_model="numpy")
def first_product(
    seen: Any, seen_rows: Any, count: int, u: Any, diagonal: bool, ah: Any, together: int, P: int, Hp: int
) -> None:
    """ah [count, G, Hp] = what the product sees of h times u; all gates but the last of a gated cell."""
    U = unit_block(ah)
    step = together if GATES == 1 else 1  # with one gate, some blocks at once; else the gates of one
    for block in range(0, Hp // U, step):
        if diagonal:
            diagonal_product(seen, seen_rows, 0, count, block * U, u, TOGETHER, Hp, ah, block * U, GATES * Hp, Hp)
        else:
            product(
                seen, seen_rows, 0, count, P, u, block * GATES * P * U,
                min(step, Hp // U - block) if GATES == 1 else TOGETHER, P * U, ah, block * U, GATES * Hp,
                U if GATES == 1 else Hp, False,
            )  # fmt: skip


@register_jitable(error_model="numpy")
def gate_rows(
    rows: Any, count: int, ax: Any, ax_first: int, ah: Any, hs: Any, h_prev: Any, keep: Any, s: Any, s_rows: Any,
    Hp: int, Ps: int,
) -> None:  # fmt: skip
    """The gated state s of some rows, as its product sees it."""
    for row in range(count):
        for column in range(0, Hp, unit_block(ax)):
            a = load_block(ax, (ax_first + row) * GATES * Hp + column)
            b = load_block(ah, row * GATES * Hp + column)
            gated = gate(a, b, load_block(hs, h_prev[row] + column))
            store(s, s_rows[row] + column, gated * load_block(keep, rows[row] * Ps + column) if keep.size else gated)


@register_jitable(error_model="numpy")
def last_product(
    s: Any, s_rows: Any, count: int, u: Any, diagonal: bool, ah: Any, block: int, blocks: int, P: int, Hp: int
) -> None:
    """Some blocks of the last gate of ah [count, G, Hp] = s times its weights."""
    U = unit_block(ah)
    to = (GATES - 1) * Hp + block * U
    if diagonal:
        diagonal_product(s, s_rows, 0, count, block * U, u[(GATES - 1) * Hp :], 1, Hp, ah, to, GATES * Hp, 0)
    else:
        product(
            s, s_rows, 0, count, P, u, (block * GATES + GATES - 1) * P * U, blocks, GATES * P * U, ah, to, GATES * Hp,
            U, False,
        )  # fmt: skip


@register_jitable(error_model="numpy")
def normalise_rows(
    rows: Any, count: int, t: int, B: int, ax: Any, ax_first: int, ah: Any, norm: Any, save: bool, H: int, Hp: int
) -> None:
    """Normalise ax and ah [count, G, Hp] of some rows, but for the last gate of ah of a gated cell."""
    affine, hats, scales, _ = norm
    width = GATES * Hp
    for i in range(count):
        row = t * B + rows[i]
        _, scale_x = normalise(ax, (ax_first + i) * width, GATES, H, Hp, affine, 0, hats, row * 2 * width, save)
        _, scale_h = normalise(ah, i * width, TOGETHER, H, Hp, affine, width, hats, (row * 2 + 1) * width, save)
        if save:
            scales[row * SCALES] = scale_x
            scales[row * SCALES + 1] = scale_h


@register_jitable(error_model="numpy")
def normalise_last(rows: Any, count: int, t: int, B: int, ah: Any, norm: Any, save: bool, H: int, Hp: int) -> None:
    """Normalise the last gate of ah [count, G, Hp] of some rows by itself."""
    affine, hats, scales, _ = norm
    last = (2 * GATES - 1) * Hp
    for i in range(count):
        row = t * B + rows[i]
        at = (i * GATES + GATES - 1) * Hp
        _, scale = normalise(ah, at, 1, H, Hp, affine, last, hats, row * 2 * GATES * Hp + last, save)
        if save:
            scales[row * SCALES + 2] = scale


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
    planes: Any,  # [T, B, Ls]: [KEPT_PLANES, Hp]
    du: Any,  # [B, G, Hp], zeros before, if diagonal: each row's part of the gradient of u, in the order of the planes
    dp: Any,  # [B, parameters, Hp], zeros before: each row's part of the gradient of the unit parameters
    dproj: Any,  # [T, B, Pp], gradient of the projected h, with a projection only
    norm: Any,  # if NORMALISED: affine, hats, scales as in layer_forward, scratch [4, Hp], [n, PLANES, Hp]; sums
    # [B, SUMS, Hp], zeros before; else ()
    dm: Any, ds: Any, back: Any,  # scratch [n, Hp], [n, Hp], [n, Pp]
    offsets: Any,  # scratch [4n] int64
    T: int, B: int, H: int, P: int,
) -> None:  # fmt: skip
    """Write planes, and turn the gradient of the final state into that of the initial state, for these rows."""
    n, U = rows.size, unit_block(dh)
    Hp, Pp = (H + U - 1) // U * U, (P + U - 1) // U * U
    Ps, Ls = row_stride(Pp, hs.itemsize), row_stride(KEPT_PLANES * Hp, hs.itemsize)
    projected = hr.size > 0
    dh_rows, dah_rows, last_rows = offsets[:n], offsets[n : 2 * n], offsets[2 * n : 3 * n]
    made_rows = offsets[3 * n :]
    nothing, made = splat_block(dh, 0.0), planes  # the cell's own planes
    if NORMALISED:
        affine, hats, scales, spare, made, sums = norm
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
            made_rows[i] = i * PLANES * Hp if NORMALISED else (t * B + b) * Ls
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
            if READOUT:
                readout_backward_row(
                    gates, (t * B + b) * SAVED * Hp, raw_c if zoned else cs,
                    ((t if zoned else after) * B + b) * Hp, dm if projected else dh, i * Hp if projected else b * Pp,
                    zone_h, ((t * B + b) * Hp if zoned == 2 else 0), affine, scales, (t * B + b) * SCALES, spare,
                    sums, b * SUMS * Hp, H, Hp,
                )  # fmt: skip
            for column in range(0, Hp, U):
                kept = load_blocks(gates, (t * B + b) * SAVED * Hp + column, Hp, SAVED)
                h_prev = load_block(hs, (before * B + b) * Ps + column) if READS_H else nothing
                c_prev = load_block(cs, (before * B + b) * Hp + column) if CELL_STATE and not dead else nothing
                c = load_block(cs, (after * B + b) * Hp + column) if CELL_STATE else nothing
                dc_row = load_block(dc, b * Hp + column) if CELL_STATE else nothing
                dh_row = load_block(dm, i * Hp + column) if projected else load_block(dh, b * Pp + column)
                dh_held, dc_held = nothing, nothing
                if zoned:
                    share_at = ((t * B + b) * Hp if zoned == 2 else 0) + column
                    if zone_h.size:
                        dh_held = load_block(zone_h, share_at) * dh_row
                        dh_row = (1.0 - load_block(zone_h, share_at)) * dh_row
                    if CELL_STATE:
                        c = load_block(raw_c, (t * B + b) * Hp + column)
                        dc_held = load_block(zone_c, share_at) * dc_row
                        dc_row = (1.0 - load_block(zone_c, share_at)) * dc_row
                if READOUT:
                    dh_row, dc_row = load_block(spare, 2 * Hp + column), dc_row + load_block(spare, 3 * Hp + column)
                da, direct, dc_row, dp_row = cell_backward(
                    kept, h_prev, c_prev, c, dh_row, dc_row, load_blocks(unit, column, Hp, UNITS)
                )
                store_tuple(made, made_rows[i] + column, Hp, da)
                if PARAMETERS:
                    add_tuple(dp, b * PARAMETERS * Hp + column, Hp, dp_row)
                if CELL_STATE:
                    store(dc, b * Hp + column, dc_row + dc_held if zoned else dc_row)
                if not projected:
                    store(dh, b * Pp + column, direct + dh_held if zoned else direct)
            for plane in range(PLANES):
                zero(made, made_rows[i] + plane * Hp + H, Hp - H)
            if projected:
                zero(dh, b * Pp, Pp)
        if NORMALISED_GATED:
            for i in range(here):
                last, row = (2 * GATES - 1) * Hp, t * B + rows[i]
                normalise_backward(
                    made, made_rows[i], LAST_PLACE, hats, row * 2 * GATES * Hp + last, H, Hp, affine, last,
                    scales[row * SCALES + 2], planes, last_rows[i], sums, rows[i] * SUMS * Hp + last,
                )  # fmt: skip
        if GATED:
            gated_backward_rows(
                rows, here, t, u_gated, diagonal, gates, hs, before, planes, last_rows, made, made_rows, s, keep, du,
                ds, dh, B, H, Hp, Pp,
            )  # fmt: skip
        if NORMALISED:
            for i in range(here):
                row, to, width = t * B + rows[i], rows[i] * SUMS * Hp, GATES * Hp
                normalise_backward(
                    made, made_rows[i], H_PLACES, hats, (row * 2 + 1) * width, H, Hp, affine, width,
                    scales[row * SCALES + 1], planes, dah_rows[i], sums, to + width,
                )  # fmt: skip
                normalise_backward(
                    made, made_rows[i], X_PLACES, hats, row * 2 * width, H, Hp, affine, 0, scales[row * SCALES],
                    planes, dah_rows[i] + width, sums, to,
                )  # fmt: skip
                add(made, made_rows[i], sums, to + (SUMS - PLANES) * Hp, PLANES * Hp)
        many = TOGETHER
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
                multiply(back, i * Pp, keep, rows[i] * Ps, back, i * Pp, Pp)
            add(back, i * Pp, dh, dh_rows[i], Pp)
        for i in range(here):
            if clears and clear[t * B + rows[i]]:
                zero(dh, rows[i] * Pp, Pp)
                zero(dc, rows[i] * Hp, Hp if CELL_STATE else 0)


@register_jitable(error_model="numpy")
def readout_backward_row(
    gates: Any, saved: int, c: Any, c_at: int, dh: Any, dh_at: int, zone_h: Any, zone_at: int, affine: Any,
    scales: Any, scales_at: int, spare: Any, sums: Any, sums_at: int, H: int, Hp: int,
) -> None:  # fmt: skip
    """spare [4, Hp] = hat and gradient of what h was read from, gradient of o, and of c by this way; its sums too."""
    mean, scale, gain = scales[scales_at + 3], scales[scales_at + 4], 2 * GATES * Hp
    for column in range(0, Hp, unit_block(dh)):
        hat = (load_block(c, c_at + column) - mean) * scale
        v = hat * load_block(affine, gain + column) + load_block(affine, affine.size // 2 + gain + column)
        d = load_block(dh, dh_at + column)
        if zone_h.size:
            d = (1.0 - load_block(zone_h, zone_at + column)) * d
        do, dv = readout_backward(load_blocks(gates, saved + column, Hp, SAVED), v, d)
        store(spare, column, hat)
        store(spare, Hp + column, dv)
        store(spare, 2 * Hp + column, do)
    zero(spare, H, Hp - H)
    zero(spare, Hp + H, Hp - H)
    add(spare, Hp, sums, sums_at + gain + Hp, Hp)
    normalise_backward(spare, Hp, ONLY, spare, 0, H, Hp, affine, gain, scale, spare, 3 * Hp, sums, sums_at + gain)


@register_jitable(error_model="numpy")
def gated_backward_rows(
    rows: Any, count: int, t: int, u_gated: Any, diagonal: bool, gates: Any, hs: Any, before: int, planes: Any,
    last_rows: Any, made: Any, made_rows: Any, s: Any, keep: Any, du: Any, ds: Any, dh: Any, B: int, H: int, Hp: int,
    Pp: int,
) -> None:  # fmt: skip
    """ds = last plane U_n^T, then the cell's plane 0 and the direct gradient of h_prev through the gated state."""
    U, Ps = unit_block(dh), row_stride(Pp, dh.itemsize)
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
            multiply(ds, i * Hp, keep, b * Ps, ds, i * Hp, Hp)
        for column in range(0, Hp, U):
            kept = load_blocks(gates, (t * B + b) * SAVED * Hp + column, Hp, SAVED)
            h_prev = load_block(hs, (before * B + b) * Ps + column)
            da, direct = gate_backward(kept, h_prev, load_block(ds, i * Hp + column))
            place = made_rows[i] + column
            store(made, place, load_block(made, place) + da)
            store(dh, b * Pp + column, load_block(dh, b * Pp + column) + direct)
        zero(made, made_rows[i] + H, Hp - H)
