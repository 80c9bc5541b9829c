"""Names, shapes and initial values of a layer's parameters, in torch's names, layouts and order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fastrnn.arrays import Array


def names(
    layer: int, direction: int, bias: bool, projection: bool, units: bool, dense: bool, norm: bool, norm_c: bool
) -> tuple[str | None, ...]:
    """Parameter names of one layer and direction in the order of Weights, None where there is no such parameter."""
    suffix = f"_l{layer}" + ("_reverse" if direction else "")

    def name(stem: str, present: bool) -> str | None:
        return stem + suffix if present else None

    return (
        name("weight_ih", True), name("weight_hh", True), name("bias_ih", bias), name("bias_hh", bias),
        name("weight_hr", projection), name("weight_p", units), name("weight_ch", dense), name("norm_ih", norm),
        name("norm_hh", norm), name("norm_c", norm_c), name("norm_c_bias", norm_c),
    )  # fmt: skip


def shapes(
    input_size: int, hidden_size: int, proj_size: int, gates: int, num_layers: int, num_directions: int, bias: bool,
    unit_parameters: int, dense: int, diagonal: bool, norm: bool, norm_c: bool,
) -> Iterator[tuple[str, tuple[int, ...]]]:  # fmt: skip
    """Yield the name and shape of every parameter."""
    output = proj_size or hidden_size
    for layer in range(num_layers):
        inputs = input_size if layer == 0 else num_directions * output
        for direction in range(num_directions):
            n = names(layer, direction, bias, proj_size > 0, unit_parameters > 0, dense > 0, norm, norm_c)
            rows = gates * hidden_size
            every = (
                (rows, inputs), (rows,) if diagonal else (rows, output), (rows,), (rows,), (proj_size, hidden_size),
                (unit_parameters, hidden_size), (dense * hidden_size, hidden_size), (rows,), (rows,), (hidden_size,),
                (hidden_size,),
            )  # fmt: skip
            for name, shape in zip(n, every, strict=True):
                if name is not None:
                    yield name, shape


def initialise(name: str, shape: tuple[int, ...], hidden_size: int, init: str, rng: np.random.Generator) -> Array:
    """Initial values of one parameter, float64.

    "uniform": U(-1/sqrt(H), 1/sqrt(H)) for all, as torch. The others have zero biases and peepholes and, gate by gate,
    "xavier": U(-a, a), a = sqrt(6 / (rows + columns)); "orthogonal": U orthogonal, the rest xavier;
    "identity": U the identity, the rest xavier. A diagonal U has xavier's bound of the full matrix, random signs
    (orthogonal) or ones. Layer normalisation always starts with gains of one and a bias of zero.
    """
    if name.startswith("norm"):
        return np.zeros(shape) if name.startswith("norm_c_bias") else np.ones(shape)
    if init == "uniform":
        bound = 1 / math.sqrt(hidden_size)
        return rng.uniform(-bound, bound, shape)
    if name.startswith("weight_hh") and len(shape) == 1:
        if init == "xavier":
            return _xavier((hidden_size, hidden_size), rng, shape)
        return np.ones(shape) if init == "identity" else rng.choice(np.array([-1.0, 1.0]), shape)
    if len(shape) == 1 or name.startswith(("weight_p", "weight_ch")):
        return np.zeros(shape)
    if name.startswith("weight_hr"):
        return _xavier(shape, rng)
    gates = shape[0] // hidden_size
    block = (hidden_size, shape[1])
    if name.startswith("weight_hh") and init == "identity":
        return np.tile(np.eye(*block), (gates, 1))
    make = _orthogonal if name.startswith("weight_hh") and init == "orthogonal" else _xavier
    return np.concatenate([make(block, rng) for _ in range(gates)])


def _xavier(matrix: tuple[int, ...], rng: np.random.Generator, shape: tuple[int, ...] | None = None) -> Array:
    """Values [shape] as for a matrix of this shape."""
    bound = math.sqrt(6 / sum(matrix))
    return rng.uniform(-bound, bound, shape or matrix)


def _orthogonal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A matrix with orthonormal columns (or rows, where it is wide), uniform over all such matrices."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diagonal(r))  # without this the distribution is not uniform (Mezzadri 2007)
    return q if rows >= columns else q.T
