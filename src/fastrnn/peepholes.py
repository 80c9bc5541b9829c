"""Dense peepholes, in NumPy: gates that see the cell state through a matrix V, a stage of the loop as U's product is.

    ah += c_prev V^T    of the gates that come before c (LSTM's i and f)
    ah += c V^T         of the gate that reads c out (o), on which c itself does not depend

The rows of V [n*H, H] belong to the gates of Cell.peepholes, the last of which is the one that sees c. So the cell's
equations, which know no weights, are evaluated twice: once for c, or for the gradient of that last gate, and once with
what its product adds. V sees what diagonal peepholes see: c as the step makes it, before zoneout, not normalised.

Source: Gers, Schmidhuber, Cummins, Learning to forget, 2000, with a matrix in place of each vector.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cells.cell import Step, StepGradient


def gates(cell: Cell) -> tuple[list[int], int]:
    """The gates that see c_prev, and the one that sees c."""
    *before, last = (cell.gates.index(name) for name in cell.peepholes)
    return before, last


def forward(
    xp: ModuleType, cell: Cell, v: Array | None, ax: Array, ah: Array, h_prev: Array, c_prev: Array | None, p: Any
) -> Step:
    """One step of the cell; `v` is None for a layer without dense peepholes."""
    if v is None or c_prev is None:
        return cell.forward(xp, ax, ah, h_prev, c_prev, p)
    (before, last), (batch, hidden) = gates(cell), c_prev.shape
    seen = ah.copy()
    seen[:, before] += (c_prev @ v[:-hidden].T).reshape(batch, len(before), hidden)
    c = cell.forward(xp, ax, seen, h_prev, c_prev, p).c
    seen[:, last] += c @ v[-hidden:].T
    return cell.forward(xp, ax, seen, h_prev, c_prev, p)


def backward(
    cell: Cell, v: Array | None, equations: Callable[..., StepGradient], given: tuple[Any, ...], dc: Any, p: Any
) -> StepGradient:
    """Gradients of one step by the cell's own backward equations; `given` are their arguments before dc."""
    if v is None:
        return equations(*given, dc, p)
    before, last = gates(cell)
    da_last = equations(*given, dc, p).dah[:, last]
    batch, hidden = da_last.shape
    grads = equations(*given, dc + da_last @ v[-hidden:], p)
    da_before = grads.dah[:, before].reshape(batch, len(before) * hidden)
    return grads._replace(dc_prev=grads.dc_prev + da_before @ v[:-hidden])


def gradient(xp: ModuleType, cell: Cell, dah: Array, c_prev: Array, c: Array) -> Array:
    """dV [n*H, H], for dah [T, B, G, H] and the cell states [T, B, H], over T*B at once."""
    (before, last), hidden = gates(cell), c.shape[-1]
    rows = c.shape[0] * c.shape[1]
    of_before = dah[:, :, before].reshape(rows, len(before) * hidden).T @ c_prev.reshape(rows, hidden)
    of_last = dah[:, :, last].reshape(rows, hidden).T @ c.reshape(rows, hidden)
    product: Array = xp.concatenate((of_before, of_last))
    return product
