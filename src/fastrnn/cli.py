"""The command `fastrnn`; its libraries come with the `cli` extra."""

from __future__ import annotations

import sys

LIBRARIES = {"click", "rich", "typer"}


def main() -> None:
    """Run the command; without the `cli` extra, say so and exit with status 1."""
    try:
        from fastrnn.commands import app
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        sys.exit(f"ImportError: the command needs {library}: pip install 'fastrnn[cli]'")
    app()


if __name__ == "__main__":
    main()
