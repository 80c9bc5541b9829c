"""Safetensors files with torch's names, without fastrnn's own description."""

from __future__ import annotations

import os
from typing import Any

from fastrnn import checkpoint
from fastrnn.convert.torch import from_torch, torch_parameters
from fastrnn.layers import Recurrent


def from_safetensors(path: str | os.PathLike[str], *, prefix: str = "", **options: Any) -> Recurrent[Any]:
    """Make a layer from a safetensors file with torch's names, as libraries around torch write them.

    Arguments as for `from_torch`. A file that a layer's `save` wrote is refused: it may have options that names and
    shapes do not tell, and `fastrnn.load` reads it.

    Raises:
        OSError: the file cannot be read. ValueError: it is damaged, or a fastrnn checkpoint; and as `from_torch`.
    """
    return from_torch(checkpoint.read_foreign(path, prefix), prefix=prefix, **options)


def to_safetensors(layer: Recurrent[Any], path: str | os.PathLike[str], *, prefix: str = "") -> None:
    """Write a layer's parameters by torch's names, atomically, for readers that do not know fastrnn.

    Raises:
        OSError: the file cannot be written. TypeError: no layer. ValueError: an option that torch.nn lacks, by name.
    """
    checkpoint.write_foreign(path, {prefix + name: value for name, value in torch_parameters(layer).items()})
