"""What a cell is: the equations of one time step, knowing nothing of time, devices, weights or batching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from fastrnn.arrays import Array


class Step(NamedTuple):
    """What one step yields: h [B, H], c [B, H] or None, saved [B, V, H] for the backward pass (V may be 0)."""

    h: Array
    c: Array | None
    saved: Array


class StepGradient(NamedTuple):
    """Gradients of one step: dax, dah [B, G, H]; dh_prev, dc_prev [B, H], None where the cell has no such path.

    dh_prev holds only the direct path (GRU's z * dh); the path through the recurrent product belongs to the loop.
    dp [B, N, H] is each row's part of the gradient of the unit parameters, None where the cell has none.
    """

    dax: Array
    dah: Array
    dh_prev: Array | None
    dc_prev: Array | None
    dp: Array | None = None


Forward: TypeAlias = Callable[[ModuleType, Array, Array, Array, "Array | None", Any], Step]
Backward: TypeAlias = Callable[
    [ModuleType, Array, Array, "Array | None", Array, "Array | None", Array, "Array | None", Any],
    StepGradient,
]


@dataclass(frozen=True)
class GatedProduct:
    """A second recurrent product, of a gated state s with the last gate's weights (GRU, reset before the product).

    forward(xp, ax, ah, h_prev) -> s [B, H], where ah holds all gates but the last.
    backward(xp, saved, h_prev, ds) -> (gradient of gate 0's pre-activation, dh_prev), both [B, H], to be added to what
    the cell's own backward gives.
    """

    forward: Callable[[ModuleType, Array, Array, Array], Array]
    backward: Callable[[ModuleType, Array, Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Readout:
    """How h is read out of the cell state, set apart so that a loop can normalise what is read: v is c, or LN(c).

    forward(xp, saved, v) -> h
    backward(xp, saved, v, dh) -> (do, dv), the gradients of the output gate and of v
    inside: the rest of the cell's backward, called like it, with do in place of dh and dv's part already in dc

    The cell's own step is the one with v = c.
    """

    forward: Callable[[ModuleType, Array, Array], Array]
    backward: Callable[[ModuleType, Array, Array, Array], tuple[Array, Array]]
    inside: Backward


@dataclass(frozen=True)
class Cell:
    """One recurrent cell.

    forward(xp, ax, ah, h_prev, c_prev, p) -> Step
    backward(xp, saved, h_prev, c_prev, h, c, dh, dc, p) -> StepGradient
        ax, ah [B, G, H]: pre-activations from the input and from the recurrent product, each with its bias.
        h [B, H] is the step's own output, before any projection. p [N, H]: the unit parameters (peepholes).

    name: key in the registry. gates: in cuDNN/torch order. cell_state: whether the cell carries c besides h.
    separate: the gates whose ax and ah do not enter as the sum ax + ah (GRU's candidate: n = tanh(ax + r * ah)).
    unit_parameters: N, the rows of `weight_p`; 0 where the cell has none, p is then None.
    numba: (module, name) of the Numba rendering, see fastrnn.cpu.cells; None without one, and the CPU backend then
        refuses the cell.
    cuda: (source, struct) of the CUDA rendering: a C++ struct as csrc/cells/cell.cuh describes it, in the text `source`
        or in a file of csrc/cells, "gru.cuh"; None likewise.
    saved, uses_h: what its loop must know: V, the number of values that a step of the struct saves, and whether the
        struct's backward reads h. The compiler compares both, and all else here, with the struct.
    uses_h_prev: whether the equations read h_prev, which with a projection is not H wide; only a cell that says False,
        and has no gated product, is given one. A rendering or struct that says otherwise is refused.
    readout: of a cell state; a cell that has one and no readout is refused with layer_norm.
    peepholes: the gates that may see the cell state through a matrix, see fastrnn.peepholes: all but the last see
        c_prev, the last, on which c must not depend, sees c.
    """

    name: str
    gates: tuple[str, ...]
    forward: Forward
    backward: Backward
    numba: tuple[str, str] | None = None
    cuda: tuple[str, str] | None = None
    saved: int = 0
    uses_h: bool = False
    uses_h_prev: bool = True
    cell_state: bool = False
    separate: tuple[str, ...] = ()
    unit_parameters: int = 0
    gated: GatedProduct | None = None
    readout: Readout | None = None
    peepholes: tuple[str, ...] = ()

    def rendering(self, backend: str) -> tuple[str, str]:
        """Return `numba` or `cuda`, what the backend "cpu" or "cuda" runs.

        Raises:
            ValueError: the cell has none for it.
        """
        kind, found = {"cpu": ("Numba", self.numba), "cuda": ("CUDA", self.cuda)}[backend]
        if found is None:
            raise ValueError(
                f"cell: expected one with a {kind} rendering on the backend {backend!r}, got {self.name!r}; "
                "give it one, or call it under fastrnn.use_backend('reference')"
            )
        return found


def sigmoid(xp: ModuleType, a: Array) -> Array:
    """sigma(a) = 1 / (1 + exp(-a)), without overflow; NaN stays NaN."""
    limit = 88.0 if a.dtype == xp.float32 else 709.0
    one = a.dtype.type(1)
    result: Array = one / (one + xp.exp(xp.minimum(-a, a.dtype.type(limit))))
    return result
