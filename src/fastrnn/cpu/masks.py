"""Philox4x32-10 words, the same as fastrnn.philox makes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.cpu.build import kernel
from fastrnn.philox import MULTIPLIERS, ROUNDS, WEYL

M0, M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
W0, W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@kernel
def random_words(words: Any, first: int, last: int, key: Any, counter: Any) -> None:
    """Fill words[first : last] of words [count] uint32; key [2] and counter [3] uint64; first is a multiple of 4."""
    for block in range(first // 4, (last + 3) // 4):
        c0, c1, c2, c3 = counter[0], counter[1], counter[2], np.uint64(block)
        k0, k1 = key[0], key[1]
        for _ in range(ROUNDS):
            p0, p1 = M0 * c0, M1 * c2
            c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & LOW, (p0 >> SHIFT) ^ c3 ^ k1, p0 & LOW
            k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
        for j, word in enumerate((c0, c1, c2, c3)):
            if 4 * block + j < last:
                words[4 * block + j] = np.uint32(word)
