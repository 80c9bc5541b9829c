"""What the CUDA backend would do with one layer; nothing is compiled or launched for it."""

from __future__ import annotations

from fastrnn.cells import Cell
from fastrnn.recurrence import Loop, Shape


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    products = 1 + (cell.gated is not None) + (shape.projected > 0)
    stages = [
        "input product of all steps by cuBLAS",
        f"per step {products} product(s) by cuBLAS, then the gates and all options in one fused kernel",
        "launched in the first call of a shape, replayed as one CUDA graph from the third",
    ]
    if shape.train:
        stages.append("backward: the same turned round, then dW, dU and dx by cuBLAS over all steps")
    return Loop(f"step.cuh for `{cell.name}`", False, 1, "the step plan, which serves every shape", tuple(stages))
