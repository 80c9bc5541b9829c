"""The one table of cases: what is measured, fed by the registry of cells, and what each case must compute and move.

The public table is MAIN_CELLS x {infer, train} x SHAPES (T, B, I = H), one streaming step per cell and STREAM_SIZES,
and one batch of variable length per cell and mode. Other cells of the registry are measured when they are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fastrnn import roofline
from fastrnn.cells import CELLS
from fastrnn.roofline import Work

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


def work(case: Case, rows: int, longest: int) -> Work:
    """Count the floating-point operations and bytes of a case; for rows and longest see fastrnn.roofline.work."""
    return roofline.work(
        steps=case.steps, batch=case.batch, rows=rows, longest=longest, I=case.input_size, G=case.gates,
        H=case.hidden_size, itemsize=ITEMSIZE[case.dtype], states=case.states, train=case.mode == "train",
    )  # fmt: skip


def weight(case: Case, budget: float) -> float:
    """Roughly how many seconds the case takes to measure; for the progress bar only."""
    return max(budget, work(case, case.steps * case.batch, case.steps).flops / 4e9)
