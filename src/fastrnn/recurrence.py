"""What travels between sequence.py and a backend: one layer, an entry a direction.

A backend is a module with seven functions:

    pack(cell, weights) -> packed                       the weights in whatever form its loop likes
    recur_forward(cell, packed, runs, save) -> Finals   writes each run.y; keeps `saved` only if asked
    recur_backward(cell, packed, runs, saved, given, dx, accumulate) -> Initials    writes or adds to dx
    cells(cell, packed, run, saved) -> c after every step
    stepper(cell, packed, x, zone, below) -> Stepper    one layer of a stream
    random_words(xp, seed, counter, count) -> Philox words
    describe(cell, shape) -> Loop                       how it would run a layer, for fastrnn.plan

Arrays are [T, B, ...]; T, B, I, G, H, P are time, batch, input, gates, hidden and projection (P = H without one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from fastrnn.arrays import Array
from fastrnn.cells import Cell


class Weights(NamedTuple):
    """Parameters of one layer in one direction, or their gradients, in torch's layout."""

    ih: Array  # [G*H, I]
    hh: Array  # [G*H, P]; [G*H] for a diagonal matrix in each gate
    b_ih: Array | None  # [G*H]
    b_hh: Array | None  # [G*H]
    hr: Array | None  # [P, H], the projection
    p: Array | None = None  # [N, H], unit parameters of the cell
    ch: Array | None = None  # [n*H, H], dense peepholes, see fastrnn.peepholes
    norm_ih: Array | None = None  # [G*H], gain of LN(x W); None without layer normalisation, as the next
    norm_hh: Array | None = None  # [G*H], gain of LN(h U)
    norm_c: Array | None = None  # [H], gain of LN(c), for a cell with c only
    norm_c_bias: Array | None = None  # [H]


class Columns(NamedTuple):
    """Columns [first, first + width) of an array [T, B, D * width] that both directions share."""

    array: Array
    first: int
    width: int

    @property
    def view(self) -> Array:
        """The columns as an array [T, B, width]."""
        return self.array[:, :, self.first : self.first + self.width]


class Zone(NamedTuple):
    """Zoneout: the share of the old state that stays, h' = share * h_prev + (1 - share) * h, and so for c.

    In training each element is 0 or 1, [T, B, H]; else it is the rate, [1, 1, H]. c is None for a cell without c, and h
    with a projection, which makes h as wide as P.
    """

    h: Array | None
    c: Array | None


class Run(NamedTuple):
    """Inputs of one pass, and where its outputs go."""

    x: Array  # [T, B, I]
    h0: Array  # [B, P]
    c0: Array | None  # [B, H]
    lengths: Array | None  # [B] int64, 0 <= length <= T
    clear: Array | None  # [T, B] bool: zero the state before step t; never True on padding
    reverse: bool
    y: Columns  # [T, B, P], zero past the end
    keep: Array | None = None  # [B, P], recurrent dropout: factors of what the recurrent product sees
    zone: Zone | None = None

    def steps(self) -> Iterator[int]:
        """Yield t in the order in which the recurrence goes."""
        return iter(range(self.x.shape[0])[:: -1 if self.reverse else 1])


class Final(NamedTuple):
    """State after the last step, h_n [B, P], c_n [B, H], and what the backward pass needs.

    c_n and its gradient may be wider than x, see fastrnn.arrays.computed_in, and a backend takes them so: between the
    segments of save="recompute" nothing is rounded that is not rounded between two steps.
    """

    h_n: Array
    c_n: Array | None
    saved: Any


class Given(NamedTuple):
    """Gradients of the loss that arrive from outside; None stands for zero."""

    y: Columns | None  # [T, B, P]
    cells: Columns | None  # [T, B, H]
    h_n: Array | None  # [B, P]
    c_n: Array | None  # [B, H]


class Initial(NamedTuple):
    """Gradients that leave: of the initial state [B, P], [B, H] and of the weights."""

    h0: Array
    c0: Array | None
    weights: Weights


class Shape(NamedTuple):
    """A call of one layer, as far as it decides how a backend runs it."""

    steps: int  # T
    batch: int  # B
    rows: int  # steps of all sequences together
    longest: int  # steps of the longest sequence
    inputs: int  # I
    hidden: int  # H
    projected: int  # P, 0 without a projection
    dtype: str
    train: bool  # forward and backward
    diagonal: bool  # U is a vector a gate
    layer_norm: bool = False
    dense: int = 0  # gates that see c through a matrix
    zoneout: bool = False
    recurrent_dropout: bool = False  # in training
    segment: int = 0  # steps that are run at once; 0 stands for all
    directions: int = 1  # that run at the same time, where a backend can

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}[self.dtype]


class Loop(NamedTuple):
    """How a backend runs one layer in one direction."""

    kernel: str
    fused: bool  # all steps inside one compiled kernel
    threads: int
    why: str  # this way
    stages: tuple[str, ...]  # a line of text each, in the order in which they run


class Stepper(Protocol):
    """One layer of a stream: reads x [B, I] where it was told, holds the state, writes y.

    h [B, P] and c [B, H] or None are the state itself: writing to them changes it. y [B, P] is overwritten by `step`.
    """

    h: Array
    c: Array | None
    y: Array

    def step(self) -> None:
        """Take one step."""


class Backend(Protocol):
    """The functions of a backend module."""

    def pack(self, cell: Cell, weights: Weights) -> Any:
        """Bring the weights of one layer and direction into the form that the loops use."""

    def recur_forward(self, cell: Cell, packed: Sequence[Any], runs: Sequence[Run], save: bool) -> list[Final]:
        """Run the recurrences, which have their x in common, and write each run.y."""

    def recur_backward(
        self, cell: Cell, packed: Sequence[Any], runs: Sequence[Run], saved: Sequence[Any], given: Sequence[Given],
        dx: Array, accumulate: bool,
    ) -> list[Initial]:  # fmt: skip
        """Back-propagate through the recurrences; write the sum of all to dx [T, B, I], in their order, or add it."""

    def cells(self, cell: Cell, packed: Any, run: Run, saved: Any) -> Array:
        """Return c after every step [T, B, H], zero past the end; only for cells that have one."""

    def stepper(self, cell: Cell, packed: Any, x: Array, zone: Zone | None, below: Any) -> Stepper:
        """Return one layer of a stream that reads x [B, I] at each step and starts from zero.

        below: the stepper whose y is x, None for the first layer. They never step at the same time, so that memory for
        the length of a step can be shared.
        """

    def random_words(self, xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
        """Return `count` words [count] uint32 of the counter-based generator, see fastrnn.philox."""

    def describe(self, cell: Cell, shape: Shape) -> Loop:
        """Tell how one layer of this shape would run; compiles and computes nothing."""
