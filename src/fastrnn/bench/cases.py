"""The one table of cases: what is measured, fed by the registry of cells, and what each case must compute and move.

The public table is MAIN_CELLS x {infer, train} x SHAPES (T, B, I = H), one streaming step per cell and STREAM_SIZES,
and one batch of variable length per cell and mode. Other cells of the registry are measured when they are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fastrnn.cells import CELLS

MAIN_CELLS = ("lstm", "gru", "rnn_tanh")
SHAPES = ((100, 1, 64), (100, 1, 256), (100, 1, 512), (100, 16, 256), (100, 64, 256), (100, 64, 512), (50, 64, 1024))
STREAM_SIZES = (64, 512)
LENGTHS_SHAPE = (200, 32, 256)
QUICK_SHAPES, QUICK_STREAM_SIZES, QUICK_LENGTHS_SHAPE = SHAPES[:2] + SHAPES[3:4], (64,), (50, 8, 64)
ITEMSIZE = {"float32": 4, "float64": 8}
Shape: TypeAlias = tuple[int, int, int, int]  # T, B, I, H


@dataclass(frozen=True)
class Case:
    """One row of the table.

    cell: key in the registry. mode: "infer", or "train" (forward and backward, every gradient).
    kind: "sequence"; "lengths" (lengths drawn uniformly from 1..T); "step" (one call per time step, state kept).
    """

    cell: str
    mode: str
    kind: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Readable id, as tests have them: `lstm-train-f32-T100B16I256H256`."""
        kind = "" if self.kind == "sequence" else f"-{self.kind}"
        size = f"T{self.steps}B{self.batch}I{self.input_size}H{self.hidden_size}"
        return f"{self.cell}-{self.mode}{kind}-f{self.dtype.removeprefix('float')}-{size}"

    @property
    def gates(self) -> int:
        """G, the number of gates."""
        return len(CELLS[self.cell].gates)

    @property
    def unit_parameters(self) -> int:
        """N, the rows of `weight_p`."""
        return CELLS[self.cell].unit_parameters

    @property
    def states(self) -> int:
        """How many state arrays the cell carries: h, or h and c."""
        return 2 if CELLS[self.cell].cell_state else 1


def table(
    cells: Iterable[str] = MAIN_CELLS, dtype: str = "float32", quick: bool = False, shapes: Iterable[Shape] = ()
) -> Iterator[Case]:
    """Yield the cases; a shape's modes follow each other, so that its expected values are computed once.

    Args:
        cells: keys of the registry.
        dtype: "float32" or "float64".
        quick: the small shapes only.
        shapes: sequences of these shapes (T, B, I, H) instead of the table's.

    Raises:
        ValueError: for a cell that the registry does not have, or another dtype.
    """
    if dtype not in ITEMSIZE:
        raise ValueError(f"dtype: expected one of {', '.join(ITEMSIZE)}, got {dtype!r}")
    rows = [("sequence", shape) for shape in shapes] or _rows(quick)
    for cell in cells:
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        for kind, shape in rows:
            for mode in ("infer",) if kind == "step" else ("infer", "train"):
                yield Case(cell, mode, kind, *shape, dtype)


def _rows(quick: bool) -> list[tuple[str, Shape]]:
    """Kind and shape of the table's rows."""
    shapes = [("sequence", shape) for shape in (QUICK_SHAPES if quick else SHAPES)]
    shapes += [("step", (1, 1, H)) for H in (QUICK_STREAM_SIZES if quick else STREAM_SIZES)]
    shapes += [("lengths", QUICK_LENGTHS_SHAPE if quick else LENGTHS_SHAPE)]
    return [(kind, (T, B, H, H)) for kind, (T, B, H) in shapes]


@dataclass(frozen=True)
class Work:
    """What a case cannot do without; `traffic` over time is the GB/s, `flops` over time the GFLOP/s of the report.

    flops: of the matrix products, a multiply-add as two; element-wise work is not counted. Training does three times
        the forward pass: dax and dah times the weights, and both weight gradients.
    recurrent: bytes of U [G*H, H], read once per time step and pass, from whichever cache holds it (its very first
        reading is in `once`). recurrent_size: bytes of U itself.
    once: bytes of every array that the caller gives or gets, each counted once (dU, dW, db, dx, states included).
    """

    flops: int
    recurrent_size: int
    recurrent: int
    once: int

    @property
    def traffic(self) -> int:
        """Bytes of both kinds together."""
        return self.recurrent + self.once


def work(case: Case, rows: int, longest: int) -> Work:
    """Count the floating-point operations and bytes of a case.

    Args:
        case: the case.
        rows: time steps of all sequences together, T*B without lengths.
        longest: time steps of the longest sequence, T without lengths.
    """
    G, H, inputs, item = case.gates, case.hidden_size, case.input_size, ITEMSIZE[case.dtype]
    train = case.mode == "train"
    U = G * H * H
    weights = G * H * inputs + U + 2 * G * H
    states = 2 * case.states * case.batch * H
    arrays = rows * inputs + case.steps * case.batch * H + states
    return Work(
        flops=(3 if train else 1) * 2 * rows * G * H * (inputs + H),
        recurrent_size=U * item,
        recurrent=((2 if train else 1) * longest - 1) * U * item,
        once=(2 if train else 1) * (weights + arrays) * item,
    )


def floor(needs: Work, flops_per_s: float, read_once_per_s: float, read_weights_per_s: float) -> float:
    """The roofline: seconds below which the slowest of three single demands cannot be met on this machine.

    It takes U to pass whole through the core in every step; a kernel that keeps a part of U in registers or in a nearer
    cache from step to step can go below the third demand, never below the first two.

    Args:
        needs: the case's work.
        flops_per_s: measured peak of fused multiply-adds.
        read_once_per_s: measured bandwidth over a working set of `needs.once` bytes.
        read_weights_per_s: measured bandwidth over a working set of `needs.recurrent_size` bytes.
    """
    return max(needs.flops / flops_per_s, needs.once / read_once_per_s, needs.recurrent / read_weights_per_s)


def weight(case: Case, budget: float) -> float:
    """Roughly how many seconds the case takes to measure; for the progress bar only."""
    return max(budget, work(case, case.steps * case.batch, case.steps).flops / 4e9)
