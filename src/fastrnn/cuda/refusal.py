"""What the CUDA backend refuses: the same for a call, for fastrnn.plan and for the table, which asks without CuPy."""

from __future__ import annotations

from fastrnn.cells import Cell
from fastrnn.cuda import source


def refuse(cell: Cell, layer_norm: bool, dense: bool) -> None:
    """Say why there is no loop for this cell with these options.

    Raises:
        ValueError: there is none.
    """
    cell.rendering("cuda")
    if cell.separate and (cell.separate != cell.gates[-1:] or cell.gated):
        raise ValueError(
            "cell: expected no separate gate but the last, and none beside a gated product, on the backend 'cuda', "
            f"got {', '.join(cell.separate)} of {cell.name!r}"
        )
    if dense and not source.dense(cell):
        raise ValueError(
            "peephole: expected 'dense' for a cell whose first gates see c_prev and whose last sees c, without unit "
            f"parameters and gated or separate gates, on the backend 'cuda', got {', '.join(cell.peepholes)} of the "
            f"gates {', '.join(cell.gates)} of {cell.name!r}; call it under fastrnn.use_backend('reference')"
        )
    if layer_norm and not source.reads_out(cell):
        raise ValueError(f"layer_norm: expected False, since the struct of {cell.name!r} has no readout, got True")
