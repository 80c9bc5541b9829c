"""Options that the model commands share, and what each does with them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Of all that is random; the same seed gives the same bits.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, or cuda:N on a GPU, with CuPy.")]
Threads = Annotated[
    int | None, typer.Option(help="Of every layer; the result does not depend on it.", show_default="all cores")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where it goes.", show_default="printed")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of the checkpoint --out.")]


def prepare(device: str, threads: int | None, *outputs: Path) -> None:
    """Refuse what cannot be done before anything is computed, and set the number of threads.

    Raises:
        ValueError, ImportError: a device or number of threads that there is not.
        OSError: an output that could not be written.
    """
    import fastrnn
    from fastrnn import validation

    try:
        validation.device(device)
    except RuntimeError as error:  # no such GPU: bad input here
        raise ValueError(str(error)) from error
    if threads is not None:
        fastrnn.set_num_threads(threads)
    for path in outputs:
        if not path.parent.is_dir():
            raise NotADirectoryError(f"--out: expected a file in an existing folder, got {path}")
        if path.is_dir():
            raise IsADirectoryError(f"--out: expected a file in a folder, got the folder {path}")
    for folder in dict.fromkeys(path.parent for path in outputs):
        _try_to_write(folder)


def deliver(written: str, out: Path | None) -> None:
    """Print a result, or write it to a file, whole or not at all; raises OSError where that fails."""
    from fastrnn.checkpoint import write_bytes

    if out is None:
        typer.echo(written)
    else:
        write_bytes(out, f"{written}\n".encode("utf-8", "surrogatepass"))


def _try_to_write(folder: Path) -> None:
    """Raise PermissionError unless a file can be made there; os.access does not know for root, nor everywhere."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PermissionError(
            f"--out: expected a file in a folder that can be written, got {folder} ({error.strerror})"
        ) from error


def given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return str(context.get_parameter_source(name)).endswith("COMMANDLINE")


def only_steps_with_resume(context: typer.Context, names: tuple[str, ...]) -> None:
    """Refuse options that a resumed run could not obey.

    Raises:
        ValueError: one of the options `names` was given beside --resume.
    """
    for name in names:
        if given(context, name):
            raise ValueError(f"--{name.replace('_', '-')}: expected nothing, --resume goes on as the run began")
