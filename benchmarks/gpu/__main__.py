"""The command; see the package's docstring.

Each section runs in a process of its own: a kernel that destroys the context, or a library that ends the process, costs
one row, and the next process goes on after it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import barriers, check, cudnn, device, grid, summary, tables
from benchmarks.gpu.record import DeviceLostError, Record, read

SECTIONS = {"check": check, "barriers": barriers, "cudnn": cudnn, "grid": grid, "tables": tables}
ONCE_MORE = 75  # status of a process that another one should take over from
GRACE = 120.0  # seconds for the last row, before the process is ended


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier run in it is gone on with.")],
    section: Annotated[list[str] | None, typer.Option(help="Sections to run; all if none is named.")] = None,
    seconds: Annotated[float, typer.Option(help="After which a section begins no further row.")] = 330.0,
    again: Annotated[bool, typer.Option(help="Try rows that failed once more.")] = False,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the sections on the GPU of this machine."""
    unknown = [name for name in section or [] if name not in SECTIONS]
    if unknown:
        raise typer.BadParameter(f"expected one of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if reason := missing():
        sys.exit(f"benchmarks.gpu: {reason}")
    out.mkdir(parents=True, exist_ok=True)
    for name in section or SECTIONS:
        if worker:
            sys.exit(work(out, name, seconds, again))
        drive(out, name, seconds, again)
    table = summary.text(out, SECTIONS)
    (out / "summary.txt").write_text(table + "\n", encoding="utf-8")
    typer.echo(table)


def missing() -> str:
    """What this machine lacks; empty if nothing."""
    from fastrnn import validation

    try:
        validation.device("cuda:0")
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def work(out: Path, name: str, seconds: float, again: bool) -> int:
    """Run a section in this process; return its status."""
    record = Record(out / f"{name}.json", device.facts(), seconds, again=again, alive=device.answers)
    try:
        SECTIONS[name].run(record)
    except DeviceLostError as error:
        typer.echo(f"{name}: the device was lost {error}", err=True)
        return ONCE_MORE
    if record.left_out:
        typer.echo(f"{name}: time is up, {record.left_out} rows are left: give the command again")
    return 0


def drive(out: Path, name: str, seconds: float, again: bool) -> None:
    """Run a section in processes of their own, until one ends well or nothing more comes of it."""
    end, path = time.monotonic() + seconds, out / f"{name}.json"
    while (left := end - time.monotonic()) > 0:
        before = len(read(path)["rows"])
        command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--section", name, "--worker"]
        try:
            status = subprocess.run(
                [*command, "--seconds", str(left), *["--again"] * again], timeout=left + GRACE
            ).returncode
        except subprocess.TimeoutExpired:
            status = ONCE_MORE
        if status == 0:
            return
        typer.echo(f"{name}: the process ended with status {status}", err=True)
        if len(read(path)["rows"]) == before:
            return
        again = False  # a row that ends the process would be tried for ever


if __name__ == "__main__":
    typer.run(main)
