"""What the CUDA backend would do with one layer; nothing is compiled or launched for it."""

from __future__ import annotations

from fastrnn.cells import Cell
from fastrnn.cuda import choice, places
from fastrnn.cuda.refusal import refuse
from fastrnn.recurrence import Loop, Shape


def describe(cell: Cell, shape: Shape) -> Loop:
    """How one layer would run; see fastrnn.recurrence."""
    refuse(cell, shape.layer_norm, shape.dense > 0)
    plans, taken = choice.explain(cell, shape), choice.choose(cell, shape)
    if taken.variants:
        return _on_chip(cell, shape, taken, plans)
    gated = cell.gated is not None
    dense = shape.dense > 0
    products = (0 if shape.diagonal else 1 + gated + (shape.projected > 0)) + 2 * dense
    apart = shape.diagonal and shape.layer_norm  # a row must be whole before it is normalised
    before = f"{products} product(s) by cuBLAS, and " if products else ""
    if apart:
        before += f"{1 + gated} product(s) with a diagonal in a kernel each, and "
    fused = "two fused kernels" if gated and (products or apart) else "one fused kernel"
    fused += ", a block for each row, which is normalised" if shape.layer_norm else ""
    fused += ", launched twice, since a gate sees all of c" if dense else ""
    stages = [
        "input product of all steps by cuBLAS" + (", then mean and scale of its rows" if shape.layer_norm else ""),
        f"per step {before}the gates and all options in {fused}",
        _graphs(cell, shape),
    ]
    if shape.train:
        loop, after = (", dU in the loop", ["dW"]) if shape.diagonal else ("", ["dW", "dU"])
        after += ["dV"] * dense
        stages.append(f"backward: the same turned round{loop}, then {', '.join(after)} and dx by cuBLAS over all steps")
    kernel = f"step.cuh for `{cell.name}`" + (", normalised" if shape.layer_norm else "")
    return Loop(kernel, False, 1, "the step plan, which serves every shape", (*stages, *plans))


def _on_chip(cell: Cell, shape: Shape, taken: choice.Candidate, plans: list[str]) -> Loop:
    """The stages of a plan on the chip."""
    product = "the tensor cores" if shape.itemsize == 2 else "fused multiply-adds"
    launches = "one launch" if taken.launches == 1 else f"{taken.launches} launches, each of other rows"
    stages = [
        "input product of all steps by cuBLAS",
        f"all steps{' of a segment' * (shape.segment > 0)} in {launches}: {taken.reason}, products by {product}",
    ]
    if shape.train:
        stages.append("backward: the same turned round, then dW, dU and dx by cuBLAS over all steps")
    why = {
        "block": "the block plan: the recurrent weights stay on the chip, and no step waits for another block",
        "grid": "the grid plan: the recurrent weights stay on the chip, shared out to blocks that wait for each other",
    }[taken.plan]
    return Loop(f"onchip.cuh for `{cell.name}`", True, 1, why, (*stages, *plans))


def _graphs(cell: Cell, shape: Shape) -> str:
    """Whether and when a graph is replayed; segments, shorter than the call, are passes of their own."""
    of, steps = ("segment", shape.segment) if shape.segment else ("pass", shape.steps)
    reason = places.why_not(cell, shape._replace(steps=steps))
    if reason:
        return f"each {of} launched kernel by kernel: {reason}"
    return f"launched in the first {of} of a shape, replayed as one CUDA graph from the third"
