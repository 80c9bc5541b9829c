"""The command `fastrnn bench`."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.bench.importing import Import, import_cells

if TYPE_CHECKING:
    from fastrnn.bench.cases import Case, Shape
    from fastrnn.bench.results import Record


def bench(
    threads: Annotated[list[int] | None, typer.Option(help="Threads of each contestant; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    quick: Annotated[bool, typer.Option("--quick", help="Small cases, short samples: about half a minute.")] = False,
    budget: Annotated[float | None, typer.Option(min=0, help="Seconds to sample each case.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Cells of the registry; repeatable.")] = None,
    import_: Import = None,
    shape: Annotated[list[str] | None, typer.Option(help="T,B,I,H instead of the table's; repeatable.")] = None,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    oracle: Annotated[str, typer.Option(help="Whose float64 results are right: fastrnn or torch.")] = "fastrnn",
    list_cases: Annotated[bool, typer.Option("--list", help="Name the cases and stop.")] = False,
    from_: Annotated[Path | None, typer.Option("--from", help="Report a recorded run instead of measuring.")] = None,
    json: Annotated[Path | None, typer.Option(help="Record the run in this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the run into this file (PNG, SVG or PDF).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write all tables into this file.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Fill the section between this file's bench markers.")] = None,
) -> None:
    """Time fastrnn beside torch and ONNX Runtime; no time is shown for a result that is wrong.

    Exit code 1 if any result was wrong or any contestant failed; a README is then left as it is.
    """
    from fastrnn.bench import report, results
    from fastrnn.commands.console import one_line_errors  # here, since that package imports this module

    with one_line_errors():
        _check_before(plot, readme, [path for path in (json, plot, markdown, readme) if path is not None])
        if from_ is not None:
            record = results.from_json(_text(from_, "--from"))
        else:
            imported = import_cells(import_ or ())
            cases = _cases(cell or imported, dtype, quick, shape, only)
            if list_cases:
                typer.echo("\n".join(case.name for case in cases))
                return
            chosen = {
                "threads": threads,
                "dtype": dtype,
                "quick": quick,
                "budget": budget,
                "cell": cell,
                "import": import_,
                "shape": shape,
            }
            command = _command({**chosen, "only": only, "oracle": oracle})
            settings = {"dtype": dtype, "quick": quick, "oracle": oracle, "command": command}
            record = _measure(cases, threads or [1], budget, settings)
        if json is not None:
            results.write_text(json, results.to_json(record))
        if plot is not None:
            from fastrnn.bench.plot import draw

            draw(record, plot)
        if markdown is not None:
            results.write_text(markdown, report.markdown(record))
        _show(record)
        if record.broken:
            raise typer.Exit(1)
        if readme is not None:
            section = report.markdown(record, report.short)
            results.write_text(readme, report.insert(_text(readme, "--readme"), section))


def _check_before(plot: Path | None, readme: Path | None, written: list[Path]) -> None:
    """Find out before minutes of measuring whether the results can be written."""
    from fastrnn.bench import report

    for path in written:
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise ValueError(f"{path}: expected a file in a folder that exists")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'fastrnn[bench]'")
    if readme is not None:
        report.insert(_text(readme, "--readme"), "")


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}: expected a readable UTF-8 file, got {path} ({error})") from None


def _command(chosen: dict[str, Any]) -> str:
    """The command that measures the same again; where its results go is nobody's business."""
    pairs = [(name, one) for name, value in chosen.items() for one in (value if isinstance(value, list) else [value])]
    said = [(n, one) for n, one in pairs if one and (n, one) not in (("dtype", "float32"), ("oracle", "fastrnn"))]
    return " ".join(["fastrnn bench", *(f"--{n}" if one is True else f"--{n} {one}" for n, one in said)])


def _cases(cell: list[str] | None, dtype: str, quick: bool, shape: list[str] | None, only: str) -> list[Case]:
    """Choose the cases; ValueError where there is none."""
    from fastrnn.bench.cases import MAIN_CELLS, table

    cases = table(cell or MAIN_CELLS, dtype, quick, [_shape(text) for text in shape or ()])
    if chosen := [case for case in cases if only in case.name]:
        return chosen
    raise ValueError(f"--only: expected part of a case's name (see --list), got {only!r}")


def _shape(text: str) -> Shape:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--shape: expected four positive integers T,B,I,H, got {text!r}")
    steps, batch, inputs, hidden = map(int, parts)
    return steps, batch, inputs, hidden


def _measure(cases: list[Case], threads: list[int], budget: float | None, settings: dict[str, Any]) -> Record:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from fastrnn.bench import measure
    from fastrnn.bench.cases import weight
    from fastrnn.bench.timing import QUICK, Effort

    if settings["oracle"] not in measure.ORACLES:
        raise ValueError(f"--oracle: expected one of {', '.join(measure.ORACLES)}, got {settings['oracle']!r}")
    if min(threads) < 1:
        raise ValueError(f"--threads: expected positive numbers, got {min(threads)}")
    effort = QUICK if settings["quick"] else Effort()
    if budget is not None:
        effort = replace(effort, budget=budget)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(threads) * sum(weight(c, effort.budget) for c in cases))
        done = 0.0

        def progress(case: Case, number: int) -> None:
            nonlocal done
            bar.update(task, description=f"{case.name}, {number} thread(s)", completed=done)
            done += weight(case, effort.budget)

        return measure.run(cases, threads, effort, settings, progress, measure.FIELD)


def _show(record: Record) -> None:
    """Print every table, then what was absent, wrong or failed."""
    from rich.console import Console
    from rich.table import Table

    from fastrnn.bench import report

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    for threads in dict.fromkeys(row.threads for row in record.rows):
        plural = "s" * (threads > 1)
        for title, (headings, lines) in (
            (f"{threads} thread{plural}", report.full(record, threads)),
            ("Variable length beside the padded run", report.padding(record, threads)),
        ):
            shown = Table(title=title, title_justify="left")
            for k, heading in enumerate(headings):
                shown.add_column(heading, justify="right" if k > 0 else "left")
            for line in lines:
                shown.add_row(*line)
            if lines:
                console.print(shown)
        console.print(report.means(record, threads))
    for sentence in (*report.absent(record), report.THREADS, report.quiet(record).strip("*"), report.about(record)):
        console.print(sentence, highlight=False, markup=False)
    for sentence in record.broken:
        console.print(sentence, style="bold red", highlight=False, markup=False)
