"""Batches for truncated back-propagation through time."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.arrays import Array


class Streams:
    """`batch` readers, each walking through its own contiguous part of a text, `window` symbols at a time.

    The state after one window is the initial state of the next. When the parts are read to their ends, an epoch is
    over: the parts are cut anew from a random offset, so that windows begin elsewhere, and the state starts from zero.

    Args:
        ids: [N] int64, the text, N > batch * window.
        batch: B, number of readers.
        window: T, steps back-propagated through.
        seed: of the offsets.

    Raises:
        ValueError: the text is too short.
    """

    def __init__(self, ids: Array, batch: int, window: int, seed: int) -> None:
        if len(ids) <= batch * window:
            raise ValueError(
                f"text: expected at least batch * window + 1 = {batch * window + 1} characters to train on, "
                f"got {len(ids)}; a smaller batch or window needs less"
            )
        self._ids, self._batch, self._window = ids, batch, window
        self._rng = np.random.default_rng(seed)
        self._offset, self._position = 0, 0
        self._cut()

    def next(self) -> tuple[Array, Array, bool]:
        """Return inputs [T, B], the symbols after them [T, B], and whether the state must start from zero."""
        if self._position + self._window > self._length:
            self._offset = int(self._rng.integers(min(self._window, len(self._ids) - self._batch * self._window)))
            self._position = 0
            self._cut()
        at, self._position = self._position, self._position + self._window
        return self._inputs[at : at + self._window], self._targets[at : at + self._window], at == 0

    def state(self) -> dict[str, Any]:
        """Return all that decides the next windows, in types that JSON has."""
        return {"offset": self._offset, "position": self._position, "rng": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, on the same text."""
        self._offset, self._position = int(state["offset"]), int(state["position"])
        self._rng.bit_generator.state = state["rng"]
        self._cut()

    def _cut(self) -> None:
        self._length = (len(self._ids) - 1 - self._offset) // self._batch
        end = self._offset + self._length * self._batch
        self._inputs = self._ids[self._offset : end].reshape(self._batch, self._length).T
        self._targets = self._ids[self._offset + 1 : end + 1].reshape(self._batch, self._length).T
