"""The yardstick of a character model: a smoothed n-gram that counts what followed the preceding characters."""

from __future__ import annotations

import numpy as np

from fastrnn.arrays import Array


class NGram:
    """Interpolated Kneser-Ney model of order n over symbols 0 <= s < size.

        p(s | u) = (max(count(u s) - D, 0) + D * followers(u) * p(s | u without its first symbol)) / count(u)

    D = n1 / (n1 + 2 n2) from the numbers of n-grams seen once and twice. The lower orders count in how many contexts a
    symbol appears instead of how often; the lowest is interpolated with 1 / size, so nothing has probability zero.

    Args:
        ids: [N] int64, the training text, N >= order.
        size: number of symbols; size**order must fit 63 bits.
        order: n; 3 sees the two preceding symbols.

    Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999), section 2.7.
    """

    def __init__(self, ids: Array, size: int, order: int = 3) -> None:
        self.size, self.order = size, order
        grams, counts = np.unique(_keys(ids, order, size), return_counts=True)
        self._levels = [_Level(grams, counts, size)]
        for n in range(order - 1, 0, -1):
            # Each n-gram counts once for every different symbol before it.
            grams, counts = np.unique(grams % size**n, return_counts=True)
            self._levels.insert(0, _Level(grams, counts, size))

    def bits_per_symbol(self, ids: Array) -> float:
        """Return the mean of -log2 p over all symbols of `ids` [N] that have order - 1 others before them.

        Raises:
            ValueError: no symbol has.
        """
        if len(ids) < self.order:
            raise ValueError(f"ids: expected at least {self.order} symbols, got {len(ids)}")
        p = np.full(len(ids) - self.order + 1, 1 / self.size)
        for n, level in enumerate(self._levels, start=1):
            p = level.interpolate(_keys(ids, n, self.size)[self.order - n :], p)
        return float(-np.log2(p).mean())


class _Level:
    """Counts of one order: of n-grams, and of their contexts (all but the last symbol)."""

    def __init__(self, grams: Array, counts: Array, size: int) -> None:
        self._size, self._grams, self._counts = size, grams, counts
        self._contexts, index = np.unique(grams // size, return_inverse=True)
        self._totals = np.bincount(index, counts)
        self._followers = np.bincount(index)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        # A text without n-grams seen once says nothing of D; any D > 0 keeps unseen symbols possible.
        self._discount = once / (once + 2 * twice) if once else 0.5

    def interpolate(self, grams: Array, lower: Array) -> Array:
        """p of each n-gram's last symbol, given p of the order below [N]; that alone where the context is new."""
        count = _look_up(self._grams, self._counts, grams)
        total = _look_up(self._contexts, self._totals, grams // self._size)
        followers = _look_up(self._contexts, self._followers, grams // self._size)
        kept = np.maximum(count - self._discount, 0) + self._discount * followers * lower
        return np.where(total > 0, kept / np.maximum(total, 1), lower)


def _keys(ids: Array, n: int, size: int) -> Array:
    """Each run of n symbols as one integer, [N - n + 1], the last symbol in the lowest place."""
    count = len(ids) - n + 1
    keys = np.zeros(count, np.int64)
    for i in range(n):
        keys = keys * size + ids[i : i + count]
    return keys


def _look_up(keys: Array, values: Array, wanted: Array) -> Array:
    """values[i] where keys[i] (ascending) is the wanted one, else 0."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
