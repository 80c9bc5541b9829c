"""From the files of csrc/ to one string a variant: CuPy's kernel cache sees neither files nor what they include."""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastrnn.cells import CELLS, Cell
from fastrnn.normalisation import EPSILON

INCLUDE = re.compile(r'^#include "(.+)"$')
SCALARS = {"float32": "float", "float64": "double", "float16": "Half", "bfloat16": "BFloat16"}
VECTOR_BYTES = 16  # one load or store instruction moves at most this much
OPTIONS = ("--std=c++17", "--fmad=false")  # a product and a sum are rounded each: one result, however it is compiled
AHEAD = (*OPTIONS, "-ftz=true")  # for nvcc; CuPy adds the last by itself
STEP_THREADS = 256  # of a block of the step plan, at most
FIRST_BFLOAT16 = 80  # compute capability, times ten, of the first chip that multiplies bfloat16


class Variant(NamedTuple):
    """One compiled module: a cell, the dtype of its arrays, how many elements a thread moves at once, the options.

    options: whether it has the code for a diagonal U, recurrent dropout, zoneout and dense peepholes, all four; a plain
    pass does without, and would pay for it in registers. normalised: layer normalisation, with the options.
    """

    cell: str
    dtype: str
    width: int
    options: bool = False
    normalised: bool = False

    def __str__(self) -> str:
        kind = "_normalised" if self.normalised else "_options" * self.options
        return f"{self.cell}_{self.dtype}_w{self.width}{kind}"


class OnChip(NamedTuple):
    """One compiled module of a plan on the chip: how a layer lies there, see fastrnn.cuda.fit and csrc/onchip.cuh.

    units: of a block; all_units: that a product sees; blocks: that share the units of a group's rows.
    forward to backward_last: how much of the weights of each pass and product is in registers, in its own unit.
    vectors: of a thread's weights. bytes: of shared memory. shown: elements that the blocks of a group exchange.
    """

    plan: str
    cell: str
    dtype: str
    units: int
    all_units: int
    blocks: int
    rows: int
    slices: int
    threads: int
    options: bool
    forward: int
    forward_last: int
    backward: int
    backward_last: int
    forward_bytes: int
    backward_bytes: int
    forward_vectors: int
    backward_vectors: int
    forward_shown: int
    backward_shown: int

    def __str__(self) -> str:
        units = f"{self.units}of{self.all_units}" if self.plan == "grid" else str(self.units)
        return f"{self.cell}_{self.dtype}_{self.plan}{units}x{self.rows}{'_options' * self.options}"


def item_bytes(dtype: str) -> int:
    """Return the size of an element of a dtype, also of those that NumPy does not know."""
    return 2 if dtype == "bfloat16" else int(dtype[5:]) // 8


def widths(dtype: str) -> tuple[int, int]:
    """Return the two widths that a dtype has variants for: one element, and a whole vector."""
    return 1, VECTOR_BYTES // item_bytes(dtype)


def variants() -> list[Variant]:
    """Return every variant there is."""
    return [
        Variant(name, dtype, width, options, normalised)
        for name, cell in CELLS.items()
        if cell.cuda is not None
        for dtype in SCALARS
        for width in widths(dtype)
        for options, normalised in ((False, False), (True, False), (True, True))
        if not normalised or reads_out(cell)
    ]


def reads_out(cell: Cell) -> bool:
    """Whether the struct of a cell has what layer normalisation needs: a readout, if it has a cell state."""
    text = cell.cuda[0] if cell.cuda else ""
    return not cell.cell_state or text.endswith(".cuh") or "readout_backward" in text


def dense(cell: Cell) -> int:
    """Return how many gates of a cell see c_prev through a matrix where there are dense peepholes.

    0 where the kernels have none for it: they take the gates that see c_prev for the first ones and the gate that sees
    c for the last, and launch a step twice, which must not add to anything that a launch adds to.
    """
    *before, _ = cell.peepholes or ("",)
    in_order = cell.peepholes == (*cell.gates[: len(before)], cell.gates[-1])
    return len(before) if in_order and not (cell.unit_parameters or cell.separate or cell.gated) else 0


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
    cell, seen = CELLS[variant.cell], set[Path]()
    parts = [
        *_cell(cell, variant.dtype, seen),
        f"constexpr int THREADS = {STEP_THREADS};",
        f"constexpr int W = {variant.width};",
        f"constexpr bool options = {str(variant.options).lower()};",
        f"constexpr bool normalised = {str(variant.normalised).lower()};",
        f"constexpr double epsilon = {EPSILON};",
        f"constexpr int dense = {dense(cell) if variant.options else 0};",
        expand("gated.cuh" if cell.gated else "step.cuh", seen),
        expand("normalised.cuh", seen) if variant.normalised else "",
    ]
    return "\n".join(parts) + "\n"


@cache
def assemble_on_chip(variant: OnChip) -> str:
    """Return the source of the kernels of a plan on the chip for one layout."""
    seen: set[Path] = set()
    product = "fma" if item_bytes(variant.dtype) == 4 else "split" if variant.plan == "grid" else "mma"
    layout = {"fma": ("rows", "slices"), "split": ("rows",), "mma": ()}[product]  # mma.cuh has 8 rows
    told = (
        "units", "all_units", "threads", *layout, "forward", "forward_last", "backward", "backward_last",
        "forward_bytes", "backward_bytes", "forward_shown", "backward_shown",
    )  # fmt: skip
    parts = [
        *_cell(CELLS[variant.cell], variant.dtype, seen),
        *(f"constexpr int {name.upper()} = {getattr(variant, name)};" for name in told),
        f"constexpr bool options = {str(variant.options).lower()};",
        *(expand(f"{name}.cuh", seen) for name in (product, variant.plan, "onchip")),
    ]
    return "\n".join(parts) + "\n"


def _cell(cell: Cell, dtype: str, seen: set[Path]) -> list[str]:
    """The beginning of every source: the cell, and the type of the arrays."""
    given, struct = cell.rendering("cuda")
    return [
        expand("memory.cuh", seen),
        expand("cells/cell.cuh", seen),
        expand(f"cells/{given}", seen) if given.endswith(".cuh") else given,
        f"using Cell = {struct};",
        f"using S = {SCALARS[dtype]};",
        _agreement(cell),
    ]


def _agreement(cell: Cell) -> str:
    """Lines that the compiler refuses where the struct is not the cell that the loop takes it for."""
    told = {
        "gates": len(cell.gates), "saved": cell.saved, "parameters": cell.unit_parameters,
        "cell_state": cell.cell_state, "separate": bool(cell.separate), "gated": cell.gated is not None,
        "uses_h": cell.uses_h, "uses_h_prev": cell.uses_h_prev,
    }  # fmt: skip
    return "\n".join(
        f'static_assert(Cell::{name} == {int(value)}, "{cell.name}: {name}: expected {value}, as registered");'
        for name, value in told.items()
    )


@cache
def masks() -> str:
    """Return the source of the random words."""
    return expand("masks.cuh") + "\n"


def cubin(variant: Variant, chip: str) -> str:
    """Return the name of a variant compiled ahead of time for a chip, "90a"; other source or options, another name."""
    made_of = "\0".join((*AHEAD, assemble(variant)))
    return f"{variant}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.sm_{chip}.cubin"


def compiled(variant: Variant, chip: int) -> Path | None:
    """Return where the one for a chip, 90 for sm_90, is; None where it was not compiled ahead of time.

    One for sm_90a runs on sm_90 alone, one for sm_100f on its family, and both are as good there as one for sm_90.
    """
    paths = [folder() / "cubins" / cubin(variant, f"{chip}{kind}") for kind in ("", "a", "f")]
    return next((path for path in paths if path.is_file()), None)


def write(target: Path, chips: list[str]) -> None:
    """Write the source of every variant, as each cubin's name and .cu in the end, and the options, a file for nvcc."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "options").write_text("\n".join(AHEAD) + "\n", encoding="utf-8")
    for variant in variants():
        for chip in chips:
            if variant.dtype != "bfloat16" or int(chip.rstrip("af")) >= FIRST_BFLOAT16:
                (target / f"{cubin(variant, chip)}.cu").write_text(assemble(variant), encoding="utf-8")


if __name__ == "__main__":  # for csrc/cubins.cmake
    write(Path(sys.argv[1]), sys.argv[2:])
