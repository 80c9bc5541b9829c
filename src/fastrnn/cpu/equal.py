"""Whether two arrays hold the same bits: how an adapter learns that parameters it does not own have changed."""

from __future__ import annotations

from typing import Any

from fastrnn.cpu.build import kernel

BLOCK = 4096  # elements between two looks at the outcome: enough for SIMD, few enough to stop early


@kernel
def same_bits(a: Any, b: Any) -> bool:
    """Whether the flat integer arrays a and b, of one size, are equal."""
    for first in range(0, a.size, BLOCK):
        difference = a[first] ^ b[first]
        for k in range(first, min(first + BLOCK, a.size)):
            difference |= a[k] ^ b[k]
        if difference != 0:
            return False
    return True
