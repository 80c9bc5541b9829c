"""The numbers that every contestant gets: weights, inputs, states and upstream gradients, the same for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case, Work, work
from fastrnn.cells import CELLS

STREAM_CHECKED_STEPS = 8


class Shape(NamedTuple):
    """What determines the numbers of a problem."""

    cell: str
    kind: str
    steps: int
    batch: int
    hidden: int
    dtype: str


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of a case, all of one dtype, in torch's names and layouts.

    x [T, B, I]; states: h_0 [1, B, H], for LSTM c_0 too; params: weight_ih_l0 [G*H, I], weight_hh_l0 [G*H, H],
    bias_ih_l0 [G*H], bias_hh_l0 [G*H]; d_y [T, B, H]; d_states as states; lengths [B] int64 or None.
    A streaming problem starts from zero states and has the first few steps, which are checked.
    """

    shape: Shape
    x: Array
    states: tuple[Array, ...]
    params: dict[str, Array]
    d_y: Array
    d_states: tuple[Array, ...]
    lengths: Array | None

    def work(self, case: Case) -> Work:
        """Operations and bytes of the case with this problem's lengths."""
        if self.lengths is None:
            return work(case, rows=case.steps * case.batch, longest=case.steps)
        return work(case, rows=int(self.lengths.sum()), longest=int(self.lengths.max()))

    def padded(self) -> Problem:
        """The same problem with every sequence at full length."""
        return replace(self, lengths=None)

    def as_float64(self) -> Problem:
        """The very same numbers in float64."""
        wide = np.float64
        return replace(
            self,
            shape=self.shape._replace(dtype="float64"),
            x=self.x.astype(wide),
            states=tuple(s.astype(wide) for s in self.states),
            params={name: p.astype(wide) for name, p in self.params.items()},
            d_y=self.d_y.astype(wide),
            d_states=tuple(s.astype(wide) for s in self.d_states),
        )


def problem_of(case: Case) -> Problem:
    """Return the problem of a case; the modes of one shape share one object, so that its results are computed once."""
    steps = STREAM_CHECKED_STEPS if case.kind == "step" else case.steps
    return _draw(Shape(case.cell, case.kind, steps, case.batch, case.hidden, case.dtype))


@lru_cache(maxsize=1)
def _draw(shape: Shape) -> Problem:
    cell, T, B, H = CELLS[shape.cell], shape.steps, shape.batch, shape.hidden
    rng = np.random.default_rng([T, B, H])
    gates, bound, states = len(cell.gates), 1 / np.sqrt(H), 2 if cell.cell_state else 1

    def uniform(*size: int) -> Array:
        return rng.uniform(-bound, bound, size).astype(shape.dtype)

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(shape.dtype)

    return Problem(
        shape,
        x=normal(T, B, H),
        states=tuple(normal(1, B, H) * (shape.kind != "step") for _ in range(states)),
        params={
            "weight_ih_l0": uniform(gates * H, H),
            "weight_hh_l0": uniform(gates * H, H),
            "bias_ih_l0": uniform(gates * H),
            "bias_hh_l0": uniform(gates * H),
        },
        d_y=normal(T, B, H),
        d_states=tuple(normal(1, B, H) for _ in range(states)),
        lengths=rng.integers(1, T + 1, B) if shape.kind == "lengths" else None,
    )
