"""Dropout: elements set to zero at random while training."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np

from fastrnn import backends, philox, validation
from fastrnn.arrays import Array, array_module, at, describe


class Dropout:
    """Inverted dropout: `y = x / (1 - p)` where an element is kept, 0 where it is dropped.

    The masks are those of `fastrnn.philox`: key = seed, counter = (call, 0, DROPOUT, flat index), kept if u >= p. Give
    every Dropout, and every layer with dropout, a seed of its own: one seed, one series of masks.

    Args:
        p: probability of dropping an element, in [0, 1).
        seed: 64-bit seed of the masks; drawn at random if None.

    Raises:
        ValueError, TypeError: p or seed out of range; of another type.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """

    def __init__(self, p: float, *, seed: int | None = None) -> None:
        self.p = validation.probability("p", p)
        self.seed = secrets.randbits(64) if seed is None else validation.integer("seed", seed, 0, 2**64 - 1)
        self.calls = 0  # training calls so far: the masks' counter, to be kept in a checkpoint

    def to(self, device: str) -> Dropout:
        """Return the layer: it has no parameters, and its masks, the same on every device, are made where x is.

        Raises:
            ValueError: no device's name. ImportError: CuPy is missing. RuntimeError: there is no such GPU.
        """
        validation.device(device)
        return self

    def __call__(self, x: Array) -> Array:
        """Return x as it is: dropout acts in training calls of `forward` alone."""
        return self.forward(x)[0]

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Callable[[Array], Array]]:
        """Return y and its backward.

        Args:
            x: any shape, float32 or float64.
            training: switches dropout on, and takes the next mask.

        Returns:
            y of x's shape (x itself where nothing is dropped), and `backward(d_output) -> d_x`, through the same mask.

        Raises:
            TypeError: x is no array of floats. ShapeError, TypeError: d_output does not fit.
        """
        xp = array_module(x)
        if xp is None:
            raise TypeError(f"x: expected a numpy or cupy array, got {describe(x)}")
        validation.dtype_name(x.dtype, "x")
        scale: Array | None = None
        if training and self.p:
            backend = backends.module(backends.current("cpu" if xp is np else "cuda"))
            with at(x):
                words = backend.random_words(xp, self.seed, (self.calls, 0, philox.DROPOUT), x.size)
                scale = philox.keep_scale(xp, words, self.p, x.shape, x.dtype)
        self.calls += training

        def backward(d_output: Array) -> Array:
            validation.beside("d_output", d_output, x.shape, like=x)
            with at(x):
                return d_output if scale is None else d_output * scale

        with at(x):
            return x if scale is None else x * scale, backward
