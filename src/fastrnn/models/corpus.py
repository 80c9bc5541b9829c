"""Text to train on and text held out from training."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Not modules one reads: tests, bundled applications, tables made by scripts.
LEFT_OUT = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}
STDLIB_CHARACTERS = 8_000_000  # more than the default run reads; keeps the start quick
HELD_OUT_FILES = 20  # one in so many
SHOWN = 80  # characters of a line of the user's, in a message
HELD_OUT_PART = 0.1  # of a single file


class Corpus(NamedTuple):
    """A text in two parts that share nothing."""

    name: str
    train: str
    held_out: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both parts."""
        digest = hashlib.sha256()
        for part in (self.train, "\0", self.held_out):
            digest.update(part.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def python_stdlib(characters: int = STDLIB_CHARACTERS) -> Corpus:
    """Return the source text of this machine's Python standard library; whole files are held out.

    Files come in the order of the SHA-256 of their relative paths, which mixes subjects and is the same everywhere;
    one in 20 of them is held out.

    Args:
        characters: stop after the file that reaches this many, if one is held out by then.

    Raises:
        FileNotFoundError: this Python has no source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = ([], [])
    total = 0
    for digest, path in sorted((_digest(path.relative_to(root)), path) for path in _modules(root)):
        if total >= characters and all(parts):
            break
        with tokenize.open(path) as file:  # obeys the file's own encoding line
            text = file.read()
        parts[digest % HELD_OUT_FILES == 0].append(text)
        total += len(text)
    if not all(parts):
        raise FileNotFoundError(
            f"text: expected the standard library's .py files in {root}, got none; give a text file"
        )
    return Corpus(f"Python {sys.version_info.major}.{sys.version_info.minor} standard library", *map("\n".join, parts))


def text_file(path: Path) -> Corpus:
    """Return the text of a UTF-8 file; its last tenth is held out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, or holds fewer than 30 characters.
    """
    text = read_text(path)
    held_out = int(len(text) * HELD_OUT_PART)
    if held_out < 3:
        raise ValueError(f"{path}: expected a text of at least 30 characters, got {len(text) or 'an empty file'}")
    return Corpus(path.name, text[:-held_out], text[-held_out:])


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8; with the place.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset {error.start}"
        ) from error


def quoted(text: str) -> str:
    """Return what a message shows of a text from a file: enough to find it."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _modules(root: Path) -> Iterator[Path]:
    for name in sys.stdlib_module_names - LEFT_OUT:
        yield from root.glob(f"{name}.py")
        yield from (p for p in root.glob(f"{name}/**/*.py") if LEFT_OUT.isdisjoint(p.relative_to(root).parts))


def _digest(path: Path) -> int:
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest(), "big")
