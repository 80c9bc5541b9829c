"""How every command speaks: results on standard output, all else on standard error, bad input in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

BAD_INPUT = 2


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the library says about bad input into one line on standard error and exit status 2."""
    try:
        yield
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ImportError, ValueError) as error:
        fail(str(error))


def fail(message: str) -> None:
    """Say what is wrong and exit with status 2."""
    typer.echo("error: " + " ".join(message.split()), err=True)
    raise typer.Exit(BAD_INPUT)
