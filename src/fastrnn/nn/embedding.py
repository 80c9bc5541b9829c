"""Table of vectors looked up by index."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastrnn.arrays import Array, array_module, at, brought, describe, zeroed
from fastrnn.nn.layer import Gradients, Layer
from fastrnn.validation import beside, dtype_name, integer


class Embedding(Layer):
    """Table lookup: `y = weight[x]`.

    The parameter `weight` [num_embeddings, embedding_dim] starts from torch's default, N(0, 1).

    Args:
        num_embeddings: number of rows; indices are 0 <= x < num_embeddings.
        embedding_dim: last axis of y.
        dtype: float32 or float64.
        seed: of the initial values; None takes fresh entropy.

    Raises:
        ValueError, TypeError: a size that is not a positive integer; another dtype.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        self.num_embeddings = integer("num_embeddings", num_embeddings, 1)
        self.embedding_dim = integer("embedding_dim", embedding_dim, 1)
        rng = np.random.default_rng(seed)
        draw = rng.standard_normal((self.num_embeddings, self.embedding_dim))
        super().__init__({"weight": draw.astype(dtype_name(dtype))})

    def __call__(self, x: Array) -> Array:
        """Return y [..., embedding_dim]."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Callable[[Array], Gradients]]:
        """Return y and its backward.

        Args:
            x: [...] integers in [0, num_embeddings), any integer type. On the host also for a layer on a GPU: they are
                checked there, and an array of the GPU has to be waited for.

        Returns:
            y [..., embedding_dim], and `backward(d_output) -> Gradients`, whose x is None and whose
            params["weight"] is dense, summed in the order of x: the same bits on every run.

        Raises:
            TypeError: x is not an array of integers, or d_output has another dtype.
            ValueError: an index out of range.
            ShapeError: d_output does not fit.
        """
        weight = self._params["weight"]
        check_indices("x", x, self.num_embeddings, like=weight)
        index: Array = brought(x, weight)

        def backward(d_output: Array) -> Gradients:
            beside("d_output", d_output, (*index.shape, self.embedding_dim), like=weight)
            with at(weight):
                return Gradients(None, {"weight": scatter_add(d_output, index, self.num_embeddings)})

        with at(weight):
            return weight[index], backward


def check_indices(name: str, x: Array, count: int, like: Array) -> None:
    """Check that x holds integers in [0, count), on the host or beside `like`, or raise TypeError or ValueError."""
    xp = array_module(x)
    if xp is None or xp not in (np, array_module(like)) or x.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: expected an array of integers beside a {type(like).__module__} array, got {describe(x)}"
        )
    if x.size and (int(x.min()) < 0 or int(x.max()) >= count):
        raise ValueError(f"{name}: expected indices in [0, {count}), got {int(x.min())} to {int(x.max())}")


def scatter_add(values: Array, index: Array, count: int) -> Array:
    """Sum the vectors that share an index: `out[k] = sum of values[n] where index[n] = k`.

    A stable sort and sums over runs: 4 times as fast as `numpy.add.at` on [4096, 256] values (0.7 against 2.9 ms at
    [4096, 64]), and, unlike atomic additions on a GPU, always in the same order. Nothing waits for a GPU.

    Args:
        values: [..., E].
        index: [...] integers in [0, count).
        count: rows of the result.

    Returns:
        [count, E], zero for an index that does not occur.
    """
    xp = array_module(values)
    assert xp is not None, "validated before"
    out = xp.zeros((count, values.shape[-1]), values.dtype)
    if index.size == 0:
        return out  # type: ignore[no-any-return]
    order = xp.argsort(index.reshape(-1), kind="stable")
    ranked, rows = index.reshape(-1)[order], values.reshape(-1, values.shape[-1])[order]
    if xp is not np:
        return _last_of_runs(xp, ranked, _summed_within_runs(ranked, rows), count)
    starts = np.flatnonzero(np.concatenate((np.ones(1, bool), ranked[1:] != ranked[:-1])))
    out[ranked[starts]] = np.add.reduceat(rows, starts, axis=0)
    return out  # type: ignore[no-any-return]


def _summed_within_runs(ranked: Array, rows: Array) -> Array:
    """Add to each row those before it with the same index, in about log2 N passes over all.

    CuPy's `add.reduceat` takes differences of sums over all rows: they round as the largest of them does, and a NaN of
    one index would reach every later one.
    """
    reach = 1
    while reach < len(rows):
        other = ranked[reach:] != ranked[:-reach]
        later = rows[reach:]
        later += zeroed(rows[:-reach], other[:, None])
        reach *= 2
    return rows


def _last_of_runs(xp: ModuleType, ranked: Array, rows: Array, count: int) -> Array:
    """Return the last row of each index [count, E], zero where there is none; no host needs to know how many."""
    every = xp.arange(count)
    ranked = ranked.astype(every.dtype)
    last = xp.maximum(xp.searchsorted(ranked, every, side="right") - 1, 0)
    return zeroed(rows[last], (ranked[last] != every)[:, None])
