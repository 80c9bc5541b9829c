"""From the files of csrc/ to one string a variant: CuPy's kernel cache sees neither files nor what they include."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastrnn.cells import CELLS

INCLUDE = re.compile(r'^#include "(.+)"$')
SCALARS = {"float32": "float", "float64": "double", "float16": "Half", "bfloat16": "BFloat16"}
VECTOR_BYTES = 16  # one load or store instruction moves at most this much
OPTIONS = ("--std=c++17",)


class Variant(NamedTuple):
    """One compiled module: a cell, the dtype of its arrays, and how many elements a thread moves at once."""

    cell: str
    dtype: str
    width: int

    def __str__(self) -> str:
        return f"{self.cell}_{self.dtype}_w{self.width}"


def item_bytes(dtype: str) -> int:
    """Return the size of an element of a dtype, also of those that NumPy does not know."""
    return 2 if dtype == "bfloat16" else int(dtype[5:]) // 8


def widths(dtype: str) -> tuple[int, int]:
    """Return the two widths that a dtype has variants for: one element, and a whole vector."""
    return 1, VECTOR_BYTES // item_bytes(dtype)


def variants() -> list[Variant]:
    """Return every variant there is."""
    return [
        Variant(name, dtype, width)
        for name, cell in CELLS.items()
        if cell.cuda is not None
        for dtype in SCALARS
        for width in widths(dtype)
    ]


@cache
def folder() -> Path:
    """Return where csrc/ is: inside the installed package, or beside src/ in a checkout."""
    package = Path(__file__).parents[1]
    for candidate in (package / "csrc", package.parents[1] / "csrc"):
        if (candidate / "step.cuh").is_file():
            return candidate
    raise FileNotFoundError(f"CUDA sources: expected step.cuh in {package / 'csrc'}: reinstall fastrnn")


def expand(name: str, seen: set[Path] | None = None) -> str:
    """Return a file of csrc/ with the files that it includes in their places, each once."""
    seen = set() if seen is None else seen
    path = (folder() / name).resolve()
    if path in seen:
        return ""
    seen.add(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        included = INCLUDE.match(line)
        if included:
            lines.append(expand(str(path.parent / included[1]), seen))
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


@cache
def assemble(variant: Variant) -> str:
    """Return the source of all kernels of a variant."""
    cell = CELLS[variant.cell]
    assert cell.cuda is not None, "refused before"
    file, struct = cell.cuda
    seen: set[Path] = set()
    parts = [
        expand(f"cells/{file}.cuh", seen),
        f"using Cell = {struct};",
        f"using S = {SCALARS[variant.dtype]};",
        f"constexpr int W = {variant.width};",
    ]
    memory = expand("memory.cuh", seen)
    loop = expand("gated.cuh" if cell.gated else "step.cuh", seen)
    return "\n".join([memory, *parts, loop]) + "\n"


@cache
def masks() -> str:
    """Return the source of the random words."""
    return expand("masks.cuh") + "\n"
