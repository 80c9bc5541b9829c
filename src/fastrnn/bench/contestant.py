"""What a contestant is: something that turns a problem into one callable to be timed, and names what it computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import Array
from fastrnn.bench.cases import Case
from fastrnn.bench.problem import Problem


class Run(NamedTuple):
    """A contestant set up for one case.

    call: what is timed. outputs: calls it (once, or once per checked step of a stream that has not begun yet) and
    returns its results by name: y, h_n, c_n, and for training d_x, d_h_0, d_c_0 and d_<parameter>; for a stream only y.
    """

    call: Callable[[], Any]
    outputs: Callable[[], dict[str, Array]]


@dataclass(frozen=True)
class Contestant:
    """One column of the report.

    name: the column. role: "fastrnn", "peer", or, shown without being a peer, "module" (fastrnn inside PyTorch) or
        "reference". packages: what must be installed.
    prepare(case, problem, threads) -> Run.
    refuses(case) -> why it does not run this case, or "".
    padded: ignores the lengths, so it does another job: takes part where there are lengths, is never the best peer.
    """

    name: str
    role: str
    packages: tuple[str, ...]
    prepare: Callable[[Case, Problem, int], Run]
    refuses: Callable[[Case], str]
    padded: bool = False

    def enters(self, case: Case) -> bool:
        """Whether it has a place in the row of this case."""
        return not self.padded or case.kind == "lengths"

    def missing(self) -> str:
        """Return the first package that is not installed, or ""."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), "")


def named(y: Any, states: Sequence[Any], gradients: Iterable[Any] = (), params: Iterable[str] = ()) -> dict[str, Array]:
    """Name the results of a sequence, as in `Run`; gradients in the order x, states, parameters."""
    suffixes = ("h", "c")[: len(states)]
    names = ["y", *(f"{s}_n" for s in suffixes)]
    values = [y, *states]
    gradients = list(gradients)
    if gradients:
        names += ["d_x", *(f"d_{s}_0" for s in suffixes), *(f"d_{p}" for p in params)]
    return {name: np.array(value) for name, value in zip(names, [*values, *gradients], strict=True)}


def first_outputs(call: Callable[[], Any], steps: int) -> dict[str, Array]:
    """Name the results of the first `steps` calls of a stream: y [T, B, H]."""
    return {"y": np.stack([np.array(call()) for _ in range(steps)])}
