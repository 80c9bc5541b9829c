"""What the CPU backend refuses: the same for a call, before it packs weights, for fastrnn.plan and for the table."""

from __future__ import annotations

import importlib

from fastrnn.cells import Cell
from fastrnn.cpu.cells import Rendering


def refuse(cell: Cell, layer_norm: bool, dense: bool) -> None:
    """Say why there is no loop for this cell with these options.

    Raises:
        ValueError: there is none.
    """
    if dense:  # its loop makes c a block of units at a time; V would need whole rows of it between two gates of a step
        raise ValueError(
            "peephole: expected False or True on the backend 'cpu', got 'dense'; "
            "call it under fastrnn.use_backend('reference')"
        )
    module, name = cell.rendering("cpu")
    rendering: Rendering = getattr(importlib.import_module(module), name)
    if rendering.reads_h != cell.uses_h_prev:
        raise ValueError(
            f"cell: expected reads_h={cell.uses_h_prev} of the rendering of {cell.name!r}, as uses_h_prev of the "
            f"cell, got {rendering.reads_h}"
        )
    if layer_norm and cell.cell_state and rendering.readout is None:
        raise ValueError(f"layer_norm: expected False, since the rendering of {cell.name!r} has no readout, got True")
