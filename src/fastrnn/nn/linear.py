"""Affine map of the last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.arrays import Array, at
from fastrnn.nn import products
from fastrnn.nn.layer import Gradients, Layer, uniform
from fastrnn.validation import beside, dtype_name, integer


class Linear(Layer):
    """Affine map of the last axis: `y = x weight^T + bias`.

    Parameters `weight` [out_features, in_features] and `bias` [out_features] start from torch's default,
    U(-1/sqrt(in_features), 1/sqrt(in_features)). On the backend "cpu" no bit depends on the number of threads; on
    "reference", and for CuPy arrays, the products are those of the array's module.

    Args:
        in_features: last axis of x.
        out_features: last axis of y.
        bias: whether to add one.
        dtype: float32 or float64.
        seed: of the initial values; None takes fresh entropy.

    Raises:
        ValueError, TypeError: a size that is not a positive integer; another dtype.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        kind, bound, rng = np.dtype(dtype_name(dtype)), self.in_features**-0.5, np.random.default_rng(seed)
        params = {"weight": uniform(rng, (self.out_features, self.in_features), bound, kind)}
        if bias:
            params["bias"] = uniform(rng, (self.out_features,), bound, kind)
        super().__init__(params)
        self._packed = products.Packed()

    def __call__(self, x: Array) -> Array:
        """Return y [..., out_features]."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Callable[[Array], Gradients]]:
        """Return y and its backward.

        Args:
            x: [..., in_features], the layer's dtype and device.

        Returns:
            y [..., out_features], and `backward(d_output) -> Gradients` with x and params.

        Raises:
            ShapeError, TypeError: x or d_output do not fit.
        """
        weight, bias = self._params["weight"], self._params.get("bias")
        beside("x", x, (self.in_features,), like=weight, lead="..., ")
        rows, product = x.reshape(-1, self.in_features), self._packed.of(weight)
        with at(weight):
            y = product.forward(rows)
            if bias is not None:
                y += bias
        shape = (*x.shape[:-1], self.out_features)

        def backward(d_output: Array) -> Gradients:
            beside("d_output", d_output, shape, like=weight)
            with at(weight):
                d = d_output.reshape(-1, self.out_features)
                params = {"weight": product.dW(d, rows)}
                if bias is not None:
                    params["bias"] = d.sum(axis=0)
                return Gradients(product.dx(d).reshape(x.shape), params)

        return y.reshape(shape), backward
