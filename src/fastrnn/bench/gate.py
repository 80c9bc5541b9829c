"""Correctness before speed: a contestant's results against the float64 ones, array by array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case
from fastrnn.bench.contestant import Contestant
from fastrnn.bench.problem import Problem

# Seven times the largest error of any contestant over the public table: 2.9e-6, torch's LSTM at T=100, B=64, H=512.
# float64 contestants are as precise as the oracle, so both share the blame for a difference.
LIMITS = {"float32": 2e-5, "float64": 1e-12}


class Verdict(NamedTuple):
    """The worst array of a contestant, its relative error, and what is wrong with it ("" if it is right)."""

    array: str
    error: float
    wrong: str


def judge(expected: Mapping[str, Array], got: Mapping[str, Array], dtype: str) -> Verdict:
    """Compare results by name.

    Args:
        expected: float64 arrays by name; every one of them must be there.
        got: the contestant's arrays.
        dtype: what their dtype must be.

    Returns:
        The array with the largest max|got - expected| / max|expected|, which must not exceed LIMITS[dtype].
    """
    for name, want in expected.items():
        if name not in got:
            return Verdict(name, np.inf, f"{name} is missing")
        if got[name].shape != want.shape or got[name].dtype != dtype:
            found = f"{got[name].shape} {got[name].dtype}"
            return Verdict(name, np.inf, f"{name}: expected {want.shape} {dtype}, got {found}")
    errors = {name: _error(want, got[name]) for name, want in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    right = errors[worst] <= LIMITS[dtype]
    return Verdict(worst, errors[worst], "" if right else f"{worst} off by {errors[worst]:.1e}")


def _error(want: Array, got: Array) -> float:
    """max|got - want| relative to max|want|; infinite where got is not finite, or not zero where all of want is."""
    difference = float(np.abs(got - want).max(initial=0.0))
    scale = float(np.abs(want).max(initial=0.0))
    if not np.isfinite(difference) or (scale == 0 and difference > 0):
        return float("inf")
    return difference / scale if scale else 0.0


def expected(oracle: Contestant, case: Case, problem: Problem) -> dict[str, Array]:
    """Return the oracle's results on the very same numbers in float64, by name, as `Run.outputs` has them.

    Raises:
        ValueError: the oracle does not have this cell.
    """
    wide = replace(case, dtype="float64", mode="infer" if case.kind == "step" else "train")
    if reason := oracle.refuses(wide):
        raise ValueError(f"oracle: {oracle.name} cannot check {case.name}: {reason}")
    results = _results(oracle, wide, problem)
    return {name: value for name, value in results.items() if case.mode == "train" or not name.startswith("d_")}


@lru_cache(maxsize=2)  # with and without padding; both modes of a case ask, one after the other
def _results(oracle: Contestant, case: Case, problem: Problem) -> dict[str, Array]:
    return oracle.prepare(case, problem.as_float64(), 1).outputs()
