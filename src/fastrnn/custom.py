"""A cell of one's own: once registered, it is a layer with every option, backend and checkpoint of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrnn import validation
from fastrnn.cells import CELLS, Cell
from fastrnn.layers import LAYERS, Recurrent, constructor_arguments


class _WithoutCellState(Recurrent[Any]):
    """A layer of a registered cell that carries h alone."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, *, recurrent: Any = "full", layer_norm: bool = False,
        zoneout: float = 0.0, recurrent_dropout: float = 0.0, init: str = "uniform", dtype: Any = "float32",
        device: str = "cpu", precision: str = "highest", save: str = "gates", seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(constructor_arguments(locals()))


class _WithCellState(Recurrent[Any]):
    """A layer of a registered cell that carries h and c."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, *, recurrent: Any = "full",
        layer_norm: bool = False, zoneout: Any = 0.0, recurrent_dropout: float = 0.0, init: str = "uniform",
        dtype: Any = "float32", device: str = "cpu", precision: str = "highest", save: str = "gates",
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(constructor_arguments(locals()))


def register(cell: Cell) -> type[Recurrent[Any]]:
    """Add a cell to the registry and return its layer class, to be used as `fastrnn.GRU` or, with c, `fastrnn.LSTM` is.

    The class takes their common arguments, with c also `proj_size` if the cell says uses_h_prev=False, since a
    projection makes h_prev P wide; parameters have their names and layouts, with `weight_p_l0` [N, H] for the
    cell's unit parameters. `fastrnn.load` reads its checkpoints once the cell is registered.

    Args:
        cell: the equations, see fastrnn.cells.Cell; for the CPU backend a Numba rendering, see fastrnn.cpu.cells; for
            the CUDA backend the text of a C++ struct, see csrc/cells/cell.cuh. Calls on a backend that has no rendering
            are refused; the reference needs none.

    Raises:
        TypeError: not a Cell. ValueError: the name is taken, or is no identifier, or the CUDA text has no such struct.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a fastrnn.cells.Cell, got {validation.describe(cell)}")
    if not cell.name.isidentifier() or cell.name in CELLS or cell.name in LAYERS:
        raise ValueError(f"cell: expected a new name that is an identifier, got {cell.name!r}")
    if cell.cuda is not None and not cell.cuda[0].endswith(".cuh") and f"struct {cell.cuda[1]} " not in cell.cuda[0]:
        raise ValueError(
            f"cell: expected cuda=(source, struct), a text that has the struct, got no {cell.cuda[1]!r} in it"
        )
    base = _WithCellState if cell.cell_state else _WithoutCellState

    def name_of(arguments: Mapping[str, Any]) -> str:
        return cell.name

    layer: type[Recurrent[Any]] = type(cell.name, (base,), {"_cell": staticmethod(name_of), "__doc__": base.__doc__})
    CELLS[cell.name], LAYERS[cell.name] = cell, layer
    return layer
