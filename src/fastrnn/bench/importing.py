"""Cells of the user's own, for the commands that take cells by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

Import = Annotated[
    list[str] | None,
    typer.Option("--import", help="A module, or a file.py, that registers cells of your own; repeatable."),
]


def import_cells(names: Iterable[str]) -> list[str]:
    """Import modules or files, and return the cells that they registered.

    Raises:
        ValueError: there is no such module or file, or it registers no cell.
    """
    from fastrnn.cells import CELLS

    found = list[str]()
    for name in names:
        before, path = set(CELLS), Path(name)
        is_file = path.suffix == ".py"
        folder = str((path.parent if is_file else Path()).resolve())  # a command's own path lacks the user's folder
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            importlib.import_module(path.stem if is_file else name)
        except ImportError as error:
            raise ValueError(
                f"--import: expected a module or a file.py that can be imported, got {name} ({error})"
            ) from None
        new = [cell for cell in CELLS if cell not in before]
        if not new:
            raise ValueError(f"--import: expected a module that registers a cell, got {name}")
        found += new
    return found
