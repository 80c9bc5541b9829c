"""What a forward pass on the CPU leaves for its backward pass."""

from __future__ import annotations

from typing import NamedTuple

from fastrnn.arrays import Array


class Saved(NamedTuple):
    """Shapes as in loop.layer_forward; an empty array where a pass has no such values."""

    hs: Array
    cs: Array
    gates: Array
    m: Array
    s: Array
    raw_c: Array
    seen: Array
    hats: Array
    scales: Array
