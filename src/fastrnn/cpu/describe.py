"""What the CPU backend would do with one layer: kernel, vectors, blocks, threads. Nothing is compiled for it."""

from __future__ import annotations

from fastrnn.cells import Cell
from fastrnn.cpu.blocked import FEW_ROWS, K_BLOCK
from fastrnn.cpu.layout import CHUNK_ROWS, part_count, unit_parts
from fastrnn.cpu.loop import ROWS_AT_ONCE
from fastrnn.cpu.microkernel import MAIN_ROWS
from fastrnn.cpu.refusal import refuse
from fastrnn.cpu.rows import BLOCKS_AT_ONCE, TILE_ROWS
from fastrnn.cpu.vector import vector_bytes
from fastrnn.recurrence import Loop, Shape


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    refuse(cell, shape.layer_norm, shape.dense > 0)
    G, H, P = len(cell.gates), shape.hidden, shape.projected or shape.hidden
    lanes = vector_bytes() // shape.itemsize
    block = 2 * lanes
    threads = part_count(shape.rows, shape.batch, 2.0 * G * H * (shape.inputs + P))
    rows = -(-shape.batch // threads)
    dealt = f"{threads} thread(s) of up to {rows} sequences each, all {shape.longest} steps alone: no barrier"
    if (together := _sharers(cell, shape, -(-H // block))) > 1:
        threads = together
        dealt = f"{threads} threads share the units and meet at every step, forward; a late one is not waited for"
        dealt += "; one thread alone where measured times of such calls say that it has lately been faster"
    stages = [
        dealt,
        f"vectors of {lanes} {shape.dtype}, blocks of {block} units; {MAIN_ROWS} x {block} sums of {K_BLOCK} terms",
        f"input product of {CHUNK_ROWS} steps at a time ({ROWS_AT_ONCE} of them to each panel of W)",
        _step(cell, shape, rows),
    ]
    if shape.train:
        after = "dW, db and dx" if shape.diagonal else "dW, dU, db and dx"
        more = ", dU in the loop" if shape.diagonal else ""
        product = "" if shape.diagonal else f" then dh = dah U ({'few rows' if rows <= FEW_ROWS else 'blocked'})"
        stages += [
            f"backward: per step the cell's gradients of all units{',' if product else ''}{product}{more}",
            f"after it {after} as products over {shape.rows} steps, in a fixed order of sums, split over columns",
        ]
    kernel = f"loop.py for `{cell.name}`" + (", normalised" if shape.layer_norm else "")
    return Loop(kernel, True, threads, _why(threads, shape), tuple(stages))


def _sharers(cell: Cell, shape: Shape, blocks: int) -> int:
    """As shared.sharers, of a call without resets."""
    options = shape.layer_norm, shape.diagonal, shape.projected, shape.zoneout, shape.recurrent_dropout, cell.gated
    steps = shape.segment or shape.steps
    if shape.batch > 1 or any(options) or shape.rows < shape.steps:
        return 1
    states = 0 if shape.train else steps * shape.hidden * (1 + cell.cell_state) * shape.itemsize
    return unit_parts(steps, len(cell.gates) * shape.hidden**2 * shape.itemsize, blocks, states)


def _why(threads: int, shape: Shape) -> str:
    alone = "one such sequence is not shared" if shape.batch == 1 else "too little work to wake a second thread"
    return "compiled for this cell" + (f"; {alone}" if threads == 1 else "")


def _step(cell: Cell, shape: Shape, rows: int) -> str:
    product = "h * u element by element" if shape.diagonal else "product with U"
    together = BLOCKS_AT_ONCE if rows <= FEW_ROWS and not shape.diagonal else 1
    units = "a block of units" if together == 1 else f"{together} blocks of units"
    parts = f"per step, {units} at a time, {min(rows, TILE_ROWS)} rows: {product}, then the gates from a tile in L1"
    if shape.layer_norm:
        made = "h from the normalised c" if cell.cell_state else "nothing more"
        parts = f"per step, {product} for whole rows, normalised beside those of x; then the gates, then {made}"
        parts = parts.removesuffix(", then nothing more")
    if cell.gated:
        parts = "per step, the gated state first, whose own product follows; " + parts.removeprefix("per step, ")
    return parts + (f"; then the projection to {shape.projected}" if shape.projected else "")
