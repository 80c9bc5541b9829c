"""What the CUDA backend would do with one layer; nothing is compiled or launched for it."""

from __future__ import annotations

from fastrnn import peepholes
from fastrnn.cells import Cell
from fastrnn.recurrence import Loop, Shape


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    peepholes.refuse(shape.dense > 0, "cuda")
    gated = cell.gated is not None
    products = 0 if shape.diagonal else 1 + gated + (shape.projected > 0)
    before = f"{products} product(s) by cuBLAS, and " if products else ""
    fused = "two fused kernels" if gated and products else "one fused kernel"
    stages = [
        "input product of all steps by cuBLAS",
        f"per step {before}the gates and all options in {fused}",
        "launched in the first call of a shape, replayed as one CUDA graph from the third",
    ]
    if shape.train:
        loop, after = (", dU in the loop", "dW and dx") if shape.diagonal else ("", "dW, dU and dx")
        stages.append(f"backward: the same turned round{loop}, then {after} by cuBLAS over all steps")
    return Loop(f"step.cuh for `{cell.name}`", False, 1, "the step plan, which serves every shape", tuple(stages))
