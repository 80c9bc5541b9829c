"""Philox4x32-10, the counter-based random numbers behind every mask: the same on every backend and thread count.

Word w of the stream (seed, counter) is output w % 4 of the block whose 128-bit counter is
(call, 2 * layer + direction, kind, w // 4) and whose 64-bit key is the seed; an element with word w is kept when
u = (w >> 8) / 2**24 >= p.

Source: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fastrnn.arrays import Array

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF
DROPOUT, RECURRENT, ZONEOUT_H, ZONEOUT_C = range(4)  # kinds of masks; each has its own streams


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """Return `count` words [count] uint32 of the stream (seed, counter = (call, 2 * layer + direction, kind)).

    seed: 0 <= seed < 2**64. count: at most 2**34, since a block index has 32 bits.
    """
    blocks = -(-count // 4)
    c = [xp.full(blocks, value & MASK, dtype=xp.uint64) for value in counter]
    c.append(xp.arange(blocks, dtype=xp.uint64))
    key = [seed & MASK, seed >> 32 & MASK]
    for _ in range(ROUNDS):
        p0, p1 = c[0] * xp.uint64(MULTIPLIERS[0]), c[2] * xp.uint64(MULTIPLIERS[1])
        low = xp.uint64(MASK)
        shift = xp.uint64(32)
        c = [(p1 >> shift) ^ c[1] ^ xp.uint64(key[0]), p1 & low, (p0 >> shift) ^ c[3] ^ xp.uint64(key[1]), p0 & low]
        key = [(k + w) & MASK for k, w in zip(key, WEYL, strict=True)]
    words: Array = xp.stack(c, axis=1).reshape(blocks * 4)[:count].astype(xp.uint32)
    return words


def threshold(p: float) -> int:
    """Return the smallest 24-bit integer w >> 8 that is kept: keep when (w >> 8) >= p * 2**24."""
    scaled = p * 2.0**24
    return int(scaled) + (scaled > int(scaled))


def kept(xp: ModuleType, words: Array, p: float) -> Array:
    """Return which elements are kept: bool, of the shape of `words`."""
    result: Array = (words >> xp.uint32(8)) >= xp.uint32(threshold(p))
    return result


def keep_scale(xp: ModuleType, words: Array, p: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return the inverted-dropout factors: 1 / (1 - p) where kept, else 0."""
    factor = 1.0 / (1.0 - p) if p < 1 else 0.0  # torch's modules allow p = 1
    scale: Array = (kept(xp, words, p).reshape(shape) * factor).astype(dtype)
    return scale
