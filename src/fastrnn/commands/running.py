"""A training run as the model commands show it: a bar, a line at each measurement, Ctrl-C, checkpoint, log and plot."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastrnn.commands import plots
from fastrnn.commands.progress import interruptible

if TYPE_CHECKING:
    from fastrnn.models import Observer, Point

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def outputs(out: Path) -> dict[str, Path]:
    """Return the files that a training command writes: checkpoint, log, loss plot, result plot.

    Raises:
        ValueError: the checkpoint would have the name of another.
    """
    if out.suffix in (".jsonl", ".png"):
        raise ValueError(f"--out: expected a name that the log and the plots do not have, got {out}")
    return {
        "checkpoint": out, "log": out.parent / f"{out.stem}.jsonl", "loss_plot": out.parent / f"{out.stem}.loss.png",
        "plot": out.parent / f"{out.stem}.png",
    }  # fmt: skip


def again(*words: object, device: str, **data: object) -> str:
    """Return a command as a shell reads it, with options for the data, where there are some, and for the device."""
    options = {**data, "device": None if device == "cpu" else device}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return shlex.join(["fastrnn", *map(str, [*words, *given])])


def train(
    fit: Callable[[Observer], Point], model: Any, files: dict[str, Path], *, title: str, score: str, quiet: bool,
    again: str, loss: str = "training loss (nats)",
) -> dict[str, Any]:  # fmt: skip
    """Train with progress on standard error; return steps, loss, seconds and the files written.

    Args:
        fit: trains with an observer.
        model: which then has `run`.
        files: where what goes, as `outputs` returns it.
        title: first line, what is trained on what.
        score: what is measured, less is better.
        quiet: show nothing but what must be said.
        again: command that goes on after Ctrl-C.
        loss: what the plot calls it, with its unit.

    Raises:
        typer.Exit: the run was interrupted; its checkpoint is written.
    """
    began = time.perf_counter()
    point, stopped = follow(
        fit, title=title, score=score, quiet=quiet, save_to=files["checkpoint"], log_to=files["log"]
    )
    if stopped:
        typer.echo(f"stopped after step {point.step} of {point.steps}; go on with\n  {again}", err=True)
        raise typer.Exit(INTERRUPTED)
    plots.loss_curve(model.run.description["history"], files["loss_plot"], loss, score)
    return {
        "steps": point.step, "loss": point.loss, "seconds": time.perf_counter() - began,
        **{name: str(files[name]) for name in ("checkpoint", "log", "loss_plot")},
    }  # fmt: skip


def follow(
    fit: Callable[[Observer], Point], *, title: str, score: str, quiet: bool, **where: Path
) -> tuple[Point, bool]:
    """Train with progress on standard error; return where the run stands and whether Ctrl-C stopped it before its end.

    Args:
        fit: as for `train`.
        title: likewise.
        score: likewise.
        quiet: likewise.
        where: `save_to` and `log_to` of the observer; nothing is written without.
    """
    from fastrnn.models import Observer

    console = Console(stderr=True, highlight=False)

    def say(message: str) -> None:
        console.print(message, markup=False, soft_wrap=True)

    if not quiet:
        say(title)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(), console=console, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("compiling", total=None, loss="")

    def advance(point: Point) -> None:
        bar.update(task, description="training", completed=point.step, total=point.steps, loss=f"loss {point.loss:.4f}")
        if point.score is not None and not quiet:
            say(f"step {point.step:>5}: training loss {point.loss:.4f}, {score} {point.score:.4f}")

    with bar, interruptible(say) as interrupted:
        point = fit(Observer(advance, interrupted, **where))
    return point, point.step < point.steps and interrupted()


def measuring(what: str, quiet: bool) -> None:
    """Say what is measured once the training is over, for it may take as long as some of its steps did."""
    if not quiet:
        typer.echo(f"measuring {what}", err=True)


def report(rows: dict[str, str]) -> str:
    """Lay out a result: a name and a value a line."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def run_rows(result: dict[str, Any]) -> dict[str, str]:
    """Return the rows of a report that every run has."""
    return {
        "training": f"{result['steps']:,} steps, {result['seconds']:.0f} s, loss {result['loss']:.4f}",
        "files": " ".join(result[name] for name in ("checkpoint", "log", "loss_plot", "plot") if name in result),
    }
