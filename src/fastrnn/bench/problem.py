"""The numbers that every contestant gets: weights, inputs, states and upstream gradients, the same for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case, work
from fastrnn.roofline import Work

STREAM_CHECKED_STEPS = 8


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of a case, all of one dtype, in torch's names and layouts.

    x [T, B, I]; states: h_0 [1, B, H], for LSTM c_0 too; params: weight_ih_l0 [G*H, I], weight_hh_l0 [G*H, H],
    bias_ih_l0 [G*H], bias_hh_l0 [G*H]; d_y [T, B, H]; d_states as states; lengths [B] int64 or None.
    A streaming problem starts from zero states and has the first few steps, which are checked.
    """

    dtype: str
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
            dtype="float64",
            x=self.x.astype(wide),
            states=tuple(s.astype(wide) for s in self.states),
            params={name: p.astype(wide) for name, p in self.params.items()},
            d_y=self.d_y.astype(wide),
            d_states=tuple(s.astype(wide) for s in self.d_states),
        )


def problem_of(case: Case) -> Problem:
    """Return the problem of a case; the modes of one shape share one object, so that its results are computed once."""
    return _draw(replace(case, mode="", steps=STREAM_CHECKED_STEPS if case.kind == "step" else case.steps))


@lru_cache(maxsize=1)
def _draw(case: Case) -> Problem:
    T, B, H, inputs, states = case.steps, case.batch, case.hidden_size, case.input_size, case.states
    rng, rows, bound = np.random.default_rng([T, B, inputs, H]), case.gates * H, 1 / np.sqrt(H)

    def uniform(*size: int) -> Array:
        return rng.uniform(-bound, bound, size).astype(case.dtype)

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(case.dtype)

    return Problem(
        case.dtype,
        x=normal(T, B, inputs),
        states=tuple(normal(1, B, H) * (case.kind != "step") for _ in range(states)),
        params={
            "weight_ih_l0": uniform(rows, inputs),
            "weight_hh_l0": uniform(rows, H),
            "bias_ih_l0": uniform(rows),
            "bias_hh_l0": uniform(rows),
            **({"weight_p_l0": uniform(case.unit_parameters, H)} if case.unit_parameters else {}),
        },
        d_y=normal(T, B, H),
        d_states=tuple(normal(1, B, H) for _ in range(states)),
        lengths=rng.integers(1, T + 1, B) if case.kind == "lengths" else None,
    )
