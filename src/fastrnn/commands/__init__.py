"""The parts of the command `fastrnn`; each imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import fastrnn
from fastrnn.bench.cli import bench
from fastrnn.commands import autoencode, charlm, forecast, tag, translate
from fastrnn.commands.gradflow import gradflow
from fastrnn.commands.info import info
from fastrnn.commands.support import support
from fastrnn.commands.warmup import warmup

app = typer.Typer(
    help="Fast recurrent layers (LSTM, GRU, RNN) for NumPy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for name, model in (
    ("charlm", charlm), ("forecast", forecast), ("tag", tag), ("translate", translate), ("autoencode", autoencode),
):  # fmt: skip
    app.add_typer(model.app, name=name)
app.command()(bench)
app.command()(gradflow)
app.command()(info)
app.command()(support)
app.command()(warmup)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastrnn {fastrnn.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fast recurrent layers (LSTM, GRU, RNN) for NumPy."""
