"""One sequence over several threads, forward: each has some of the hidden units, and all meet at every step.

    ax = x W + b for a chunk of steps, each thread its units; then per step ah = h U of its units, and the cell

A thread that is late is not waited for long: who stands there computes the late one's units too and goes on, and the
late one catches up from where the others are. So the first thread returns when the last step is whole, whoever made it,
whether the system has put another aside or not let it begin.

This is safe because whatever is made twice is made of the same numbers by the same sums: x is a copy that nobody
changes, and every step has memory of its own, in which the second writes the bits that stand there. A thread that is
still inside when the first one returns writes nothing else: y, which belongs to the caller, is the first one's alone.

`at` [parts, SPACING] holds for each thread the step that it is at: it has seen all steps before the last one whole, and
that one's own units are there. -1 where it has not begun, T + 1 where it has seen the last step whole.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.blocked import product
from fastrnn.cpu.build import kernel
from fastrnn.cpu.loop import GATES, ROWS_AT_ONCE, SAVED, cell_rows
from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.rows import BLOCKS_AT_ONCE, copy
from fastrnn.cpu.signals import SPACING, pause, tell, told

# How long a late thread is waited for, in pauses of 20 to 40 ns, about as long as its work should take.
STEP_BYTES = 1024  # of recurrent weights for each pause
INPUT_TERMS = 1024  # of the input's products for each pause


@register_jitable(error_model="numpy")
def input_part(x: Any, x_rows: Any, w: Any, bias: Any, ax: Any, count: int, first: int, last: int, I: int) -> None:
    """ax [count, G, Hp] = the rows x_rows of x, times w [Hp/U, G, I, U], plus bias [G, Hp]: blocks first to last."""
    U, Hp = unit_block(ax), bias.size // GATES
    for row in range(0, count, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, count - row)
        for r in range(row, row + rows):
            for g in range(GATES):
                copy(bias, g * Hp + first * U, ax, (r * GATES + g) * Hp + first * U, (last - first) * U)
        for block in range(first, last):
            product(
                x, x_rows, row, rows, I, w, block * GATES * I * U, GATES, I * U,
                ax, row * GATES * Hp + block * U, GATES * Hp, Hp, True,
            )  # fmt: skip


@kernel
def split_forward(
    me: int, parts: int,  # this thread, and how many there are; the first is the caller's
    y: Any, y_step: int, y_first: int,  # [T, D*P], its stride and this direction's column; the first thread's
    at: Any,  # [parts, SPACING] int64, -1 before
    x: Any, x_step: int,  # [T, I] and its stride, of this pass alone
    reverse: bool,
    w: Any, bias: Any, u: Any, unit: Any,  # as in loop.layer_forward
    hs: Any,  # [T+1, Ps] states around each step; the initial state is in place
    cs: Any,  # [T+1, Hp]
    gates: Any,  # [T, V, Hp] if save
    nothing: Any,  # an empty array
    ax: Any, tile: Any,  # scratch of this thread: [chunk, G, Hp], [BLOCKS_AT_ONCE, G, U]
    offsets: Any,  # scratch [chunk + 5 + parts] int64
    dead: Any,  # [1] bool, False
    T: int, I: int, H: int, Ps: int, save: bool,
) -> None:  # fmt: skip
    """Write the states and the saved values, and y, from the first thread."""
    U, Hp = unit_block(ax), bias.size // GATES
    chunk, blocks = ax.size // (GATES * Hp), Hp // U
    x_rows, h_prev, h_next = offsets[:chunk], offsets[chunk : chunk + 1], offsets[chunk + 1 : chunk + 2]
    c_prev, c_next, saved = (
        offsets[chunk + 2 : chunk + 3],
        offsets[chunk + 3 : chunk + 4],
        offsets[chunk + 4 : chunk + 5],
    )
    made = offsets[chunk + 5 :]  # the chunk of each part's ax that this thread has
    for q in range(parts):
        made[q] = -1
    patience = GATES * Hp * H * hs.itemsize // (parts * STEP_BYTES)
    step = 0
    while step < T:
        for q in range(parts):
            step = max(step, told(at, q * SPACING) - 1)
        if step >= T:
            break
        tell(at, me * SPACING, step)
        t = T - 1 - step if reverse else step
        before, after = (t + 1, t) if reverse else (t, t + 1)
        h_prev[0], h_next[0], c_prev[0], c_next[0] = before * Ps, after * Ps, before * Hp, after * Hp
        saved[0] = t * SAVED * Hp
        begin = step // chunk * chunk
        count = min(chunk, T - begin)
        for k in range(parts):
            q = (me + k) % parts
            if k > 0:
                left, there = patience, told(at, q * SPACING)
                if made[q] != begin:
                    left += count * I * GATES * Hp // (parts * INPUT_TERMS)
                while there == step and left > 0:
                    pause()
                    left -= 1
                    there = told(at, q * SPACING)
                if there > step:
                    continue
            first, last = blocks * q // parts, blocks * (q + 1) // parts
            if made[q] != begin:
                for i in range(count):
                    x_rows[i] = (T - 1 - begin - i if reverse else begin + i) * x_step
                input_part(x, x_rows, w, bias, ax, count, first, last, I)
                made[q] = begin
            for block in range(first, last, BLOCKS_AT_ONCE):
                together = min(BLOCKS_AT_ONCE, last - block)
                width = together * GATES * U
                product(
                    hs, h_prev, 0, 1, H, u, block * GATES * H * U, together * GATES, H * U, tile, 0, width, U, False
                )
                for n in range(together):
                    cell_rows(
                        1, 0, block + n, ax, step - begin, tile, n * GATES * U, width, U, unit, hs, h_prev, hs, h_next,
                        cs, c_prev, c_next, gates, saved, dead, 0, nothing, nothing, saved, nothing, saved, save, Hp,
                    )  # fmt: skip
            if k == 0:
                tell(at, me * SPACING, step + 1)
        step += 1
    tell(at, me * SPACING, T + 1)
    if me == 0:
        for t in range(T):
            copy(hs, (t if reverse else t + 1) * Ps, y, t * y_step + y_first, H)
