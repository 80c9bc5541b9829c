"""Checkpoints: safetensors files with JSON in the metadata key `fastrnn`, read whole or not at all, written whole."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastrnn.arrays import Array

FORMAT = 1
KEY = "fastrnn"


def write(path: str | os.PathLike[str], tensors: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description; the file appears whole under its name, or the old one stays.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    write_bytes(path, save(dict(tensors), metadata={KEY: json.dumps({"format": FORMAT, **description})}))


def write_foreign(path: str | os.PathLike[str], tensors: Mapping[str, Array]) -> None:
    """Write tensors as `write` does, without a description, for others to read.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    write_bytes(path, save(dict(tensors)))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole under its name, or not at all: the old one stays then.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the tensors and the description of a file that `write` made.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or not fastrnn's.
    """
    description = describe(path)  # before the tensors, perhaps large
    return tensors(path), description


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the description alone; raises as `read`."""
    return _described(path, _opened(path, lambda file: file.metadata() or {}))


def read_foreign(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Array]:
    """Return the tensors of a safetensors file that others wrote, those whose names begin with `prefix`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or fastrnn's own, whose description would be lost.
    """
    if _opened(path, lambda file: KEY in (file.metadata() or {})):
        raise ValueError(
            f"{path}: expected a safetensors file of another origin, got a fastrnn checkpoint; read it by fastrnn.load"
        )
    return tensors(path, prefix)


def tensors(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Array]:
    """Return the tensors alone, those whose names begin with `prefix`; raises as `read`."""

    def get(file: Any) -> dict[str, Array]:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    found: dict[str, Array] = _opened(path, get)
    return found


def _opened(path: str | os.PathLike[str], use: Callable[[Any], Any]) -> Any:
    """What `use` returns of the opened file."""
    from safetensors import SafetensorError, safe_open

    with Path(path).open("rb"):
        pass  # a missing or unreadable file is an OSError, not a damaged checkpoint
    try:
        with safe_open(path, framework="np") as file:
            return use(file)
    except (SafetensorError, AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a safetensors file, got a damaged or foreign one ({error})") from error


def _described(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description in a file's metadata."""
    try:
        description: dict[str, Any] = json.loads(metadata[KEY])
        version = description["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a fastrnn checkpoint, got a safetensors file of another origin") from error
    if version != FORMAT:
        raise ValueError(f"{path}: expected checkpoint format {FORMAT}, got {version!r}")
    return description
