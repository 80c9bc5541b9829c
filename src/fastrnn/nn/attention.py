"""Additive attention: a weighted mean of the keys for each query."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, at, brought
from fastrnn.nn import products
from fastrnn.nn.layer import Layer, uniform


class Attended(NamedTuple):
    """What attention returns: the context [Tq, B, K] and the weights [Tq, Tk, B], which sum to 1 over Tk."""

    context: Array
    weights: Array


class AttentionGradients(NamedTuple):
    """Gradients of the loss with respect to the queries, the keys and the parameters."""

    queries: Array
    keys: Array
    params: dict[str, Array]


class AdditiveAttention(Layer):
    """Additive attention of queries s_t over keys h_i.

        e_{t,i} = v^T tanh(W_a h_i + U_a s_t)     w_{t,i} = softmax over i of e_{t,i}     context_t = sum_i w_{t,i} h_i

    Parameters `W_a` [A, K], `U_a` [A, Q] and `v` [A], each U(-1/sqrt(n), 1/sqrt(n)) with n the length of its rows.

    Args:
        query_size: Q, width of a query.
        key_size: K, width of a key and of the context.
        attention_size: A, width of the hidden layer.
        dtype: float32 or float64.
        seed: of the initial values; None takes fresh entropy.

    Raises:
        ValueError, TypeError: a size that is not a positive integer; another dtype.

    Source: Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate" (2015).
    """

    def __init__(
        self, query_size: int, key_size: int, attention_size: int, *, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        self.query_size = validation.integer("query_size", query_size, 1)
        self.key_size = validation.integer("key_size", key_size, 1)
        self.attention_size = validation.integer("attention_size", attention_size, 1)
        kind, rng, A = np.dtype(validation.dtype_name(dtype)), np.random.default_rng(seed), self.attention_size
        shapes = {"W_a": (A, self.key_size), "U_a": (A, self.query_size), "v": (A,)}
        super().__init__({name: uniform(rng, shape, shape[-1] ** -0.5, kind) for name, shape in shapes.items()})
        self._packed = {"W_a": products.Packed(), "U_a": products.Packed()}

    def __call__(self, queries: Array, keys: Array, mask: Array | None = None) -> Attended:
        """Return the context and the weights."""
        return self.forward(queries, keys, mask)[0]

    def forward(
        self, queries: Array, keys: Array, mask: Array | None = None
    ) -> tuple[Attended, Callable[[Array], AttentionGradients]]:
        """Return the context, the weights, and the backward pass of the context.

        Args:
            queries: s [Tq, B, Q], the layer's dtype and device.
            keys: h [Tk, B, K].
            mask: bool [Tk, B], True where there is a key; all are if None; also of NumPy for a layer on a GPU. What
                stands elsewhere reaches nothing; where a sequence has no key at all, its weights and its context are
                zero.

        Returns:
            Attended(context [Tq, B, K], weights [Tq, Tk, B]) and
            `backward(d_context) -> AttentionGradients(queries, keys, params)`.

        Raises:
            ShapeError, TypeError: an argument or d_context does not fit.
        """
        v = self._params["v"]
        xp = validation.beside("queries", queries, (None, None, self.query_size), like=v)
        validation.beside("keys", keys, (None, queries.shape[1], self.key_size), like=v)
        if mask is not None:
            validation.mask("mask", mask, keys.shape[:2], like=keys)
            mask = brought(mask, v)
        with at(v):
            return self._attended(xp, queries, keys, mask)

    def _attended(
        self, xp: ModuleType, queries: Array, keys: Array, mask: Array | None
    ) -> tuple[Attended, Callable[[Array], AttentionGradients]]:
        """What `forward` returns, of arguments that fit."""
        v = self._params["v"]
        if mask is not None:
            keys = xp.where(mask[:, :, None], keys, xp.zeros_like(keys))
        W, U = (self._packed[name].of(self._params[name]) for name in ("W_a", "U_a"))
        h, s = keys.reshape(-1, self.key_size), queries.reshape(-1, self.query_size)
        A = self.attention_size
        (Tq, B), Tk = queries.shape[:2], len(keys)
        z = W.forward(h).reshape(1, Tk, B, A) + U.forward(s).reshape(Tq, 1, B, A)
        xp.tanh(z, out=z)  # [Tq, Tk, B, A]
        w, keys_of_batch = _softmax(xp, z @ v, mask), keys.transpose(1, 0, 2)  # [B, Tk, K]

        def backward(d_context: Array) -> AttentionGradients:
            validation.beside("d_context", d_context, (*queries.shape[:2], self.key_size), like=v)
            with at(v):
                d_of_batch = d_context.transpose(1, 0, 2)
                dw = (d_of_batch @ keys_of_batch.transpose(0, 2, 1)).transpose(1, 2, 0)
                de = w * (dw - (w * dw).sum(axis=1, keepdims=True))
                d = (1 - z * z) * v
                d *= de[..., None]
                d_h, d_s = d.sum(axis=0).reshape(-1, A), d.sum(axis=1).reshape(-1, A)
                d_keys = W.dx(d_h).reshape(keys.shape) + (w.transpose(2, 1, 0) @ d_of_batch).transpose(1, 0, 2)
                params = {"W_a": W.dW(d_h, h), "U_a": U.dW(d_s, s), "v": (de[..., None] * z).sum(axis=(0, 1, 2))}
                return AttentionGradients(U.dx(d_s).reshape(queries.shape), d_keys, params)

        return Attended((w.transpose(2, 0, 1) @ keys_of_batch).transpose(1, 0, 2), w), backward


def _softmax(xp: ModuleType, e: Array, mask: Array | None) -> Array:
    """Softmax over axis 1 of e [Tq, Tk, B] where the mask [Tk, B] is True, 0 elsewhere."""
    if e.shape[1] == 0:
        return e
    if mask is not None:
        e = xp.where(mask, e, xp.full_like(e, -xp.inf))
    top = e.max(axis=1, keepdims=True)
    w = xp.exp(e - xp.where(top == -xp.inf, xp.zeros_like(top), top))
    total = w.sum(axis=1, keepdims=True)
    w /= xp.where(total == 0, xp.ones_like(total), total)
    return w  # type: ignore[no-any-return]
