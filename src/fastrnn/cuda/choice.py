"""Which plan runs a layer: what each would take by a model of the chip, and the one that takes least.

A pass of T steps takes, without what is the same for all plans (products before and after the loop),

    block   T * max(rounds * (barriers * BARRIER + LATENCY + together * (own * GATES + max(products, shared))), bytes)
    grid    T * max(rounds * (barriers * GROUP_BARRIER + LATENCY + own * GATES + max(products, shared) + seen), bytes)
    step    T * (launches * LAUNCH + max(products, bytes))

with rounds: how often all processors are filled with blocks, `together` of them on each; own: pairs of a unit and a
row that a thread has; products: the multiply-adds of a step, of a block at the rate of its processor, of the whole
batch at GEMM_SHARE of the chip's; shared: bytes of weights and states that a block reads from shared memory; seen:
those that it reads of what other blocks write; bytes: of a step from and to main memory. Backward has as many
multiply-adds, and its gates count twice. Two directions on the chip run at the same time, each with half of the
processors, or, on a grid, one after the other with all, as steps do. Of the ways to lay a layer on a grid the one that
takes least is meant.

The constants come from the design and the literature. None was measured by this package; `explain` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

import cupy

from fastrnn.cells import Cell
from fastrnn.cuda.chip import Chip, chip
from fastrnn.cuda.fit import Fit, fit, spread
from fastrnn.cuda.source import OnChip
from fastrnn.recurrence import Shape

# Seconds. Not yet measured.
BARRIER = 30e-9  # of the threads of a block
GROUP_BARRIER = 600e-9  # of the blocks that share units
LATENCY = 80e-9  # of a step: the first loads, the last activation
GATES = 40e-9  # a pair of a unit and a row
LAUNCH = 2.2e-6  # a kernel of a replayed graph, from begin to end
# Per processor and clock. Not yet measured.
SHARED_BYTES = 128
L2_BYTES = 24
MEMORY_BYTES = 15
GEMM_SHARE = 0.5
OFFSETS = 1 << 31  # the kernels on the chip count steps, and elements within one, in 32 bits


class Candidate(NamedTuple):
    """A plan, and what it would take."""

    plan: str
    seconds: float | None  # of all passes; None where it does not serve the layer
    reason: str  # why it does not, or how it lies on the chip
    variants: tuple[OnChip, ...] = ()  # of a plan on the chip, in the order in which they are tried
    launches: int = 1  # of a plan on the chip, each way, for all steps


_forced: str | None = None


@contextmanager
def forced(plan: str) -> Iterator[None]:
    """Let this plan run whatever it serves, in all threads, inside the block; for tests and measurements."""
    global _forced
    before, _forced = _forced, plan
    try:
        yield
    finally:
        _forced = before


def choose(cell: Cell, shape: Shape) -> Candidate:
    """Return the plan that runs a layer on the current device."""
    return _choose(cell, shape, chip(cupy.cuda.Device().id), _forced)


def serving(cell: Cell, shape: Shape) -> list[str]:
    """Return the plans that could run a layer on the current device."""
    return [one.plan for one in candidates(cell, shape, chip(cupy.cuda.Device().id)) if one.seconds is not None]


def variants(cell: Cell, shape: Shape) -> tuple[OnChip, ...]:
    """Return the variants of the plan on the chip that runs a layer; none where it runs step by step.

    Every plan's time grows with T alone, so T changes nothing: each segment of a pass goes the way of the whole, and a
    new T is no new question.
    """
    return choose(cell, shape._replace(steps=max(1, shape.steps // OFFSETS * OFFSETS), rows=0, longest=0)).variants


def explain(cell: Cell, shape: Shape) -> list[str]:
    """A line a plan: what it would take, and why it runs or does not."""
    this = chip(cupy.cuda.Device().id)
    taken = _choose(cell, shape, this, _forced)
    lines = []
    for candidate in candidates(cell, shape, this):
        if candidate.seconds is None:
            lines.append(f"plan {candidate.plan}: not for this layer: {candidate.reason}")
            continue
        verdict = "taken" if candidate.plan == taken.plan else "not taken"
        per_step = 1e6 * candidate.seconds / max(1, shape.steps)
        lines.append(f"plan {candidate.plan}: {per_step:.2f} us a step by the model, {verdict}; {candidate.reason}")
    return [*lines, "the model's constants are not measured yet"]


@lru_cache(1024)
def _choose(cell: Cell, shape: Shape, chip: Chip, plan: str | None) -> Candidate:
    """By what training would take, for inference too: a pass then has the same bits whether it saves or not."""
    of_training = candidates(cell, shape._replace(train=True), chip)
    training = {one.plan: one.seconds for one in of_training if one.seconds is not None}
    taken = plan if plan in training else min(training, key=training.__getitem__)
    return next(one for one in candidates(cell, shape, chip) if one.plan == taken)


def candidates(cell: Cell, shape: Shape, chip: Chip) -> list[Candidate]:
    """All plans, with what each would take, in all directions, or why it does not serve the layer."""
    share = chip._replace(processors=max(1, chip.processors // shape.directions))
    block, beside = (_both(plan(cell, shape, share), shape, 1) for plan in (_block, _grid))
    after, step = (_both(plan(cell, shape, chip), shape, shape.directions) for plan in (_grid, _step))
    serving = [(one.seconds, one) for one in (beside, after) if one.seconds is not None]
    return [block, min(serving, key=itemgetter(0))[1] if serving else after, step]


def _both(one: Candidate, shape: Shape, rounds: int) -> Candidate:
    """What a plan would take in all directions, in so many rounds."""
    if one.seconds is None or shape.directions == 1:
        return one
    how = "both directions at the same time" if rounds == 1 else "one direction after the other"
    return one._replace(seconds=rounds * one.seconds, reason=f"{one.reason}; {how}")


def _declined(cell: Cell, shape: Shape) -> str:
    """What of a layer the kernels on the chip do not know; empty if nothing."""
    of_step = shape.batch * shape.hidden * max(len(cell.gates), cell.saved, cell.unit_parameters)
    declined = {
        "a diagonal U": shape.diagonal, "layer_norm": shape.layer_norm, "dense peepholes": shape.dense,
        "a projection": shape.projected, "2^31 steps, or elements in a step": max(shape.steps, of_step) >= OFFSETS,
    }  # fmt: skip
    return " and ".join(what for what, given in declined.items() if given)


def _block(cell: Cell, shape: Shape, chip: Chip) -> Candidate:
    if reason := _declined(cell, shape):
        return Candidate("block", None, reason)
    found = fit(cell, shape.dtype, shape.hidden, shape.batch, shape.zoneout or shape.recurrent_dropout, chip)
    if isinstance(found, str):
        return Candidate("block", None, found)
    blocks = -(-shape.batch // found.layout.rows)
    together = min(found.resident, -(-blocks // chip.processors))
    rounds = -(-blocks // (chip.processors * found.resident))
    seconds = 0.0
    for backward in (False, True)[: 1 + shape.train]:
        fixed = len(found.products[backward]) * BARRIER + LATENCY
        each = _of_block(found, chip, backward)
        seconds += shape.steps * max(rounds * (fixed + together * each), _memory(cell, shape, chip, backward))
    return Candidate(
        "block", seconds, f"{blocks} blocks of {found.layout.threads} threads, {found.layout.rows} rows each, "
        f"{_in_registers(found)}", found.variants,
    )  # fmt: skip


def _grid(cell: Cell, shape: Shape, chip: Chip) -> Candidate:
    if reason := _declined(cell, shape):
        return Candidate("grid", None, reason)
    if not chip.cooperative:
        return Candidate("grid", None, "the device runs no blocks that wait for each other")
    options = bool(shape.zoneout or shape.recurrent_dropout)
    found = _best_spread(cell, shape.dtype, shape.hidden, shape.batch, options, chip)
    if isinstance(found, str):
        return Candidate("grid", None, found)
    layout, groups = found.layout, -(-shape.batch // found.layout.rows)
    seconds = 0.0
    for backward in (False, True)[: 1 + shape.train]:
        step = _spread_step(found, shape.batch, chip, backward)
        seconds += shape.steps * max(step, _memory(cell, shape, chip, backward))
    launches = -(-groups // (chip.processors // layout.blocks))
    return Candidate(
        "grid", seconds, f"{groups} group(s) of {layout.blocks} blocks of {layout.threads} threads, {layout.rows} rows "
        f"and {layout.units} units each, {_in_registers(found)}", found.variants, launches,
    )  # fmt: skip


@lru_cache(1024)  # the same for every T
def _best_spread(cell: Cell, dtype: str, hidden: int, batch: int, options: bool, chip: Chip) -> Fit | str:
    """The way to lay a layer on a grid that takes least in training."""
    found = spread(cell, dtype, hidden, batch, options, chip)
    if isinstance(found, str):
        return found
    return min(found, key=lambda one: sum(_spread_step(one, batch, chip, backward) for backward in (False, True)))


def _spread_step(found: Fit, batch: int, chip: Chip, backward: bool) -> float:
    """Seconds of a step on a grid, of all launches."""
    layout, products = found.layout, found.products[backward]
    seen = sum(product.seen for product in products) / L2_BYTES / chip.clock
    groups = -(-batch // layout.rows)
    launches = -(-groups // (chip.processors // layout.blocks))
    return launches * (len(products) * GROUP_BARRIER + LATENCY + _of_block(found, chip, backward) + seen)


def _of_block(found: Fit, chip: Chip, backward: bool) -> float:
    """Seconds that a block computes in a step."""
    layout, products = found.layout, found.products[backward]
    rate = chip.warp_tensor if layout.tensor else chip.float32
    multiplied = layout.rows * layout.units * sum(product.gates * product.terms for product in products) / rate
    weights = found.shared_weights[backward] * (layout.rows // layout.together)
    shared = (weights + sum(product.read for product in products)) / SHARED_BYTES
    return (1 + backward) * layout.own * GATES + max(multiplied, shared) / chip.clock


def _in_registers(found: Fit) -> str:
    return f"{100 * (1 - found.shared_weights[0] / found.all_weights):.0f}% of the weights in registers"


def _step(cell: Cell, shape: Shape, chip: Chip) -> Candidate:
    output = shape.projected or shape.hidden
    gates, products = len(cell.gates), 0 if shape.diagonal else 1 + (cell.gated is not None)
    launches = (
        1 + products + (cell.gated is not None and products > 0) + 2 * (shape.projected > 0) + 3 * (shape.dense > 0)
    )
    terms = shape.hidden * (output * (0 if shape.diagonal else gates) + shape.projected + shape.dense * shape.hidden)
    rate = {2: chip.tensor, 4: chip.float32, 8: chip.float32 / 2}[shape.itemsize] * chip.processors * GEMM_SHARE
    of_products = shape.batch * terms / rate / chip.clock
    seconds = 0.0
    for backward in (False, True)[: 1 + shape.train]:
        moved = _memory(cell, shape, chip, backward) + 2 * _bytes(
            shape.batch * gates * shape.hidden * shape.itemsize, chip
        )
        seconds += shape.steps * (launches * LAUNCH + max(of_products, moved))
    return Candidate("step", seconds, f"{launches} launches a step, replayed as a graph; serves every layer")


def _memory(cell: Cell, shape: Shape, chip: Chip, backward: bool) -> float:
    """Seconds that a step's arrays take from and to main memory: products of the input, saved values, states."""
    arrays = len(cell.gates) + 2 + (cell.saved if shape.train else 0) + (2 * cell.cell_state if shape.train else 0)
    return (1 + backward / 2) * _bytes(shape.batch * shape.hidden * arrays * shape.itemsize, chip)


def _bytes(count: float, chip: Chip) -> float:
    return count / MEMORY_BYTES / chip.processors / chip.clock
