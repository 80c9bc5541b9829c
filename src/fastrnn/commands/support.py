"""The command `fastrnn support`: which cell has which option on which backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson


def support(
    readme: Annotated[Path | None, typer.Option(help="Fill the section between this file's options markers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which cell has which option on which backend, asked of the registry and of the checks of every call."""
    from fastrnn import support as found
    from fastrnn.bench import report, results

    with one_line_errors():
        if readme is not None:
            text = readme.read_text(encoding="utf-8")
            results.write_text(readme, report.insert(text, found.table(), found.BEGIN, found.END))
    entries = [entry._asdict() for entry in found.entries()] if as_json else None
    typer.echo(json.dumps(entries, indent=2) if as_json else found.table())
