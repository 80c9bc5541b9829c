"""Characters as indices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastrnn.arrays import Array

UNKNOWN = 0


class Vocabulary:
    """The characters a model knows; index 0 stands for every other one.

    Args:
        characters: the known characters, at least two, none twice; the first has index 1.

    Raises:
        ValueError: fewer than two characters, or one twice.
    """

    def __init__(self, characters: str) -> None:
        if len(characters) < 2 or len(set(characters)) < len(characters):
            raise ValueError(f"text: expected at least two different characters, got {characters!r}")
        self.characters = characters
        self._index = np.full(max(map(ord, characters)) + 1, UNKNOWN, np.int64)
        self._index[[ord(c) for c in characters]] = np.arange(1, len(characters) + 1)

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the characters of `text` in the order of their code points."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return 1 + len(self.characters)

    def encode(self, text: str) -> Array:
        """Return the index of each character of `text`, [N] int64; 0 where it is unknown."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = points < len(self._index)
        ids: Array = np.where(known, self._index[np.where(known, points, 0)], UNKNOWN)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the characters of indices that are not 0."""
        return "".join(self.characters[i - 1] for i in ids)

    def unknown(self, text: str) -> str:
        """Return the characters of `text` that are unknown, each once, in order of appearance."""
        return "".join(c for c in dict.fromkeys(text) if c not in self.characters)
