"""What a call would run, stage by stage, and how fast this machine could run it at best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from fastrnn import backends, recompute, roofline, validation
from fastrnn.arrays import describe, on
from fastrnn.cells import Cell
from fastrnn.layers import Recurrent
from fastrnn.recurrence import Loop, Shape
from fastrnn.sequence import Network

BOUNDS = ("products", "arrays", "recurrent weights")  # the demands in the order of `roofline.times`


@dataclass(frozen=True)
class Plan:
    """How a backend would run a layer of shape [T, B, I], and what that takes.

    backend: its name. loops: one entry a layer, the same for all its directions. work: of all layers and directions
    together. outside: what happens outside of the loops, and what it costs.
    """

    layer: str
    shape: Shape
    backend: str
    directions: int
    loops: tuple[Loop, ...]
    work: roofline.Work
    outside: tuple[str, ...]

    @property
    def fused(self) -> bool:
        """Whether every layer runs all its steps inside one compiled kernel, gates and all options included."""
        return all(loop.fused for loop in self.loops)

    @property
    def threads(self) -> int:
        """Threads that work at once, at most."""
        return max(loop.threads for loop in self.loops)

    def floor(self) -> float | None:
        """Seconds that this machine needs at least (a roofline); None where its peaks cannot be measured, on a GPU.

        The first call of a process measures the machine for about a second.
        """
        times = self._times()
        return None if times is None else max(times)

    def _times(self) -> tuple[float, float, float] | None:
        if self.backend == "cuda":
            return None
        from fastrnn.cpu import peaks

        needs, threads = self.work, self.threads
        return roofline.times(
            needs, peaks.flops(self.shape.dtype, threads), peaks.bandwidth(needs.once, threads),
            peaks.bandwidth(needs.recurrent_size, threads),
        )  # fmt: skip

    def explain(self) -> str:
        """Which kernel runs and why, how it is blocked and threaded, what runs outside of it, and the floor."""
        shape, needs = self.shape, self.work
        mode = "forward and backward" if shape.train else "forward"
        lines = [
            self.layer,
            f"call      T = {shape.steps}, B = {shape.batch}, {shape.rows} steps in all, {shape.dtype}, {mode}",
            f"backend   {self.backend}",
        ]
        for number, loop in enumerate(self.loops):
            name = f"layer {number}"
            times = f" x {self.directions} directions" if self.directions > 1 else ""
            lines.append(f"{name:<10}{loop.kernel}{times}; {'fused' if loop.fused else 'step by step'}: {loop.why}")
            lines += [f"{'':<10}{stage}" for stage in loop.stages]
        lines += [f"{'outside' if k == 0 else '':<10}{text}" for k, text in enumerate(self.outside or ("nothing",))]
        lines.append(
            f"work      {needs.flops / 1e9:.4g} GFLOP in products, {needs.once / 1e6:.4g} MB in and out, "
            f"{needs.recurrent / 1e6:.4g} MB of recurrent weights, read at every step"
        )
        return "\n".join([*lines, f"floor     {self._floor_text()}"])

    def _floor_text(self) -> str:
        times = self._times()
        if times is None:
            return "not known: the peaks of a GPU are not measured"
        bound = BOUNDS[times.index(max(times))]
        each = ", ".join(f"{name} {1e3 * seconds:.4g} ms" for name, seconds in zip(BOUNDS, times, strict=True))
        return f"{1e3 * max(times):.4g} ms on {self.threads} thread(s), bound by {bound} ({each})"


def plan(layer: Recurrent[Any], steps: int, batch: int = 1, *, lengths: Any = None, training: bool = False) -> Plan:
    """Tell how a call of this layer would run now: on the backend and with the threads in force here.

    Args:
        layer: RNN, LSTM or GRU, or a registered cell's layer.
        steps: T, at least 1.
        batch: B, at least 1.
        lengths: [B] integers as in the call itself; None for sequences that all have T steps.
        training: forward and backward instead of a plain call.

    Returns:
        A Plan; `print(plan.explain())` shows it, `plan.floor()` is its roofline in seconds.

    Raises:
        TypeError: no layer of this package, or a number of the wrong type. ValueError: a number out of range, or what
            the backend refuses, as the call would. ShapeError: lengths of another shape.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected a layer of fastrnn such as fastrnn.LSTM, got {describe(layer)}")
    network = layer._network
    steps, batch = validation.integer("steps", steps, 1), validation.integer("batch", batch, 1)
    training = validation.boolean("training", training)
    given = validation.steps_of(lengths, steps, batch) if lengths is not None else None
    name = backends.current(layer.device)
    backend, cell, directions = backends.module(name), network.cell, network.num_directions
    whole = Shape(
        steps=steps, batch=batch, rows=steps * batch if given is None else int(given.sum()),
        longest=steps if given is None else int(given.max()), inputs=layer.input_size, hidden=network.hidden_size,
        projected=network.proj_size, dtype=layer.dtype, train=training, diagonal=layer._is_diagonal,
        layer_norm=layer.layer_norm, dense=layer._dense, zoneout=any(network.zoneout),
        recurrent_dropout=training and network.recurrent_dropout > 0,
        segment=recompute.segment(steps) if training and network.recompute else 0,
        directions=1 if training and network.recompute else directions,  # segments of one direction at a time
    )  # fmt: skip
    shapes = [whole, *[whole._replace(inputs=directions * network.output_size)] * (network.num_layers - 1)]
    with on(layer.device):
        loops = tuple(backend.describe(cell, shape) for shape in shapes)
    return Plan(
        repr(layer), whole, name, directions, loops,
        reduce(add, [_work(cell, shape) for shape in shapes for _ in range(directions)]),
        tuple(_outside(network, whole, given is not None)),
    )  # fmt: skip


def _work(cell: Cell, shape: Shape) -> roofline.Work:
    return roofline.work(
        steps=shape.steps, batch=shape.batch, rows=shape.rows, longest=shape.longest, I=shape.inputs,
        G=len(cell.gates), H=shape.hidden, itemsize=shape.itemsize, states=1 + cell.cell_state, train=shape.train,
        P=shape.projected, diagonal=shape.diagonal, dense=shape.dense,
    )  # fmt: skip


def _outside(network: Network, shape: Shape, ragged: bool) -> list[str]:
    """What sequence.py does around the loops of such a call."""
    found = []
    elements = shape.steps * shape.batch * shape.hidden
    if ragged:
        found.append(f"y past the end of each sequence set to zero: {shape.steps * shape.batch - shape.rows} rows")
    if shape.train and network.num_layers > 1 and network.dropout:
        found.append(f"dropout between layers: a mask of {shape.steps * shape.batch} rows drawn and multiplied")
    if shape.train and any(network.zoneout):
        held = ["h"] * (not network.proj_size) + ["c"] * network.cell.cell_state
        found.append(f"zoneout: a mask of {elements} elements for {' and one for '.join(held)}, drawn before the loop")
    if shape.train and network.recurrent_dropout:
        found.append(f"recurrent dropout: a mask of {shape.batch} rows drawn before the loop")
    if shape.segment:
        found.append(f'save="recompute": one more forward pass, in segments of {shape.segment} steps')
    return found
