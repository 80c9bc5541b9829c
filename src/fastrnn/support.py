"""Which cell has which option on which backend: asked of the registry and of the checks that every call passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastrnn.bench.ours import make
from fastrnn.cells import CELLS, Cell
from fastrnn.cpu.refusal import refuse as refuse_on_cpu
from fastrnn.cuda.refusal import refuse as refuse_on_cuda

BACKENDS = {"reference": "R", "cpu": "C", "cuda": "G"}
REFUSE = {"cpu": refuse_on_cpu, "cuda": refuse_on_cuda}
BEGIN, END = "<!-- options:begin -->", "<!-- options:end -->"
INPUTS, HIDDEN = 3, 4
# Options of the constructors, each with a value that is not the default. What is left out, every layer has on every
# backend: layers, directions, biases or none, batch_first, states, lengths, reset, streams, dtypes, initial values.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "proj_size": {"proj_size": 2},
    "dense peepholes": {"peephole": "dense"},
    "diagonal": {"recurrent": "diagonal"},
    "mask": {"recurrent": [[float((i + j) % 2) for i in range(HIDDEN)] for j in range(HIDDEN)]},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.1},
    "recurrent_dropout": {"recurrent_dropout": 0.1},
    "recompute": {"save": "recompute"},
}


class Entry(NamedTuple):
    """One cell with one option: the backends that run it, forward and backward, and why the others do not."""

    cell: str
    option: str
    backends: tuple[str, ...]
    reasons: dict[str, str]  # by backend


def entries() -> Iterator[Entry]:
    """Yield every cell of the registry with every option."""
    for name, cell in CELLS.items():
        for option, arguments in OPTIONS.items():
            reasons = {backend: why for backend in BACKENDS if (why := _refusal(cell, arguments, backend))}
            yield Entry(name, option, tuple(backend for backend in BACKENDS if backend not in reasons), reasons)


def _refusal(cell: Cell, arguments: dict[str, Any], backend: str) -> str:
    """What a layer of this cell with these arguments is told on this backend; "" if it runs."""
    try:
        layer = make(cell.name, INPUTS, HIDDEN, **arguments)
        if backend != "reference":
            REFUSE[backend](cell, layer.layer_norm, layer._dense > 0)
    except TypeError:
        return "the cell's layer takes no such argument beside its own"
    except ValueError as error:
        return str(error)
    return ""


def table() -> str:
    """Return the table in Markdown: a row a cell, a column an option, a letter a backend, and a note for every hole."""
    found = list(entries())
    lines = [f"| cell | {' | '.join(OPTIONS)} |", f"|---|{'---|' * len(OPTIONS)}"]
    notes: dict[str, int] = {}
    for cell in CELLS:
        marks = []
        for entry in (entry for entry in found if entry.cell == cell):
            missing: dict[str, list[str]] = {}
            for backend, why in entry.reasons.items():
                missing.setdefault(why, []).append(backend)
            numbers = [notes.setdefault(f"{', '.join(names)}: {why}", len(notes) + 1) for why, names in missing.items()]
            letters = " ".join(BACKENDS[backend] for backend in entry.backends) or "-"
            marks.append(letters + "".join(f" ({number})" for number in numbers))
        lines.append(f"| `{cell}` | {' | '.join(marks)} |")
    legend = ", ".join(f"{letter} {backend}" for backend, letter in BACKENDS.items())
    lines += ["", f"{legend}: forward and every gradient."]
    lines += ["", *(f"- ({number}) {note}." for note, number in notes.items())]
    return "\n".join(lines)
