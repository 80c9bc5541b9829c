"""Numba renderings of the cells: one step of vectors of hidden units, all gates of a unit side by side.

A rendering's functions take and return vectors (fastrnn.cpu.vector.Vec) and tuples of them:

    forward(ax, ah, h_prev, c_prev, unit) -> h, c, saved
    backward(saved, h_prev, c_prev, c, dh, dc, unit) -> planes, dh_prev, dc_prev, dp

ax holds all biases that may be added to it; unit holds the recurrent biases of the cell's `separate` gates, then its
unit parameters, to whose gradients the step adds dp. A cell
without c hands c_prev and dc through. One that needs its own output again saves it, since a reset zeroes the state.
`planes` are the gradients of the pre-activations, see Rendering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rendering:
    """What the loop needs to know of a cell at compile time.

    The gradients of one step lie in `planes` planes [planes, H], arranged so that those of ax and those of ah are
    each contiguous: dax is planes [dax_first, dax_first + G) in the order of the gates; dah starts at dah_first, and
    its planes belong to the gates dah_gates. A cell whose ax and ah enter as a sum has one plane a gate for both.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    gates: int
    saved: int  # V, number of vectors that forward saves
    planes: int
    dah_gates: tuple[int, ...]
    dax_first: int = 0
    dah_first: int = 0
    units: int = 0  # number of vectors in `unit`
    separate: int = 0  # of them recurrent biases
    cell_state: bool = False
    reads_h: bool = True  # whether the step itself, besides the product, reads h_prev, as Cell.uses_h_prev says
    gate: Callable[..., Any] | None = None  # (ax_0, ah_0, h_prev) -> gated state of a second product
    gate_backward: Callable[..., Any] | None = None  # (saved, h_prev, ds) -> what to add to plane 0, dh_prev
    readout: Callable[..., Any] | None = None  # (saved, v) -> h, see fastrnn.cells.Readout, as the next two
    readout_backward: Callable[..., Any] | None = None  # (saved, v, dh) -> do, dv
    inside: Callable[..., Any] | None = None  # backward with do in place of dh
