"""exp, sigmoid, tanh and relu on SIMD vectors: the error bounds that their docstrings state, and the special values."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from numba import njit, types
from tolerance import assert_same_bits

from fastrnn.cpu import activations
from fastrnn.cpu.vector import lanes, load, store

# The bounds of the docstrings, in units in the last place of the exact result. Seen over every third float32: exp 0.98,
# sigmoid 2.48, tanh 2.40; over the float64 below: 0.93, 1.92, 2.34.
ULP = {"exp": 1.0, "sigmoid": 2.5, "tanh": 2.5}
MANTISSA = {"float32": 24, "float64": 53}
SMALLEST_EXPONENT = {"float32": -125, "float64": -1021}
# Below this input a sigmoid is subnormal and may be 0.
SIGMOID_FROM = {"float32": -87.3, "float64": -708.3}
DTYPES = ("float32", "float64")


def compiled(function: Any) -> Callable[[np.ndarray], np.ndarray]:
    """`function` of vectors as a function of arrays of any size."""

    @njit
    def loop(x, y, step):
        for i in range(0, x.size, step):
            store(y, i, function(load(x, i)))

    def apply(x: np.ndarray) -> np.ndarray:
        step = lanes(getattr(types, str(x.dtype)))
        padded = np.zeros(-(-x.size // step) * step, x.dtype)
        padded[: x.size] = x
        y = np.full_like(padded, np.nan)
        loop(padded, y, step)
        return y[: x.size]

    return apply


APPLY = {name: compiled(getattr(activations, name)) for name in ("exp", "sigmoid", "tanh", "relu")}
DOUBLE: dict[str, Any] = {"exp": np.exp, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}


def exact(name: str, x: float) -> Decimal:
    """The function in 50 digits; tanh of a small x loses some of them to cancellation."""
    value = Decimal(x)
    if name == "exp":
        return value.exp()
    if name == "sigmoid":
        return 1 / (1 + (-value).exp())
    twice = (2 * value).exp()
    return (twice - 1) / (twice + 1)


@pytest.mark.parametrize("stride", [499, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ULP)
def test_float32_error_over_every_exponent(name: str, stride: int) -> None:
    for start in range(0, 2**32, 2**24):
        bits = np.arange(start, start + 2**24, stride, dtype=np.int64).astype(np.uint32)
        x = bits.view(np.float32)
        y = APPLY[name](x)
        assert np.isnan(y[np.isnan(x)]).all()
        x, y = x[~np.isnan(x)].astype(np.float64), y[~np.isnan(x)].astype(np.float64)
        if name == "sigmoid":
            assert (y[x < SIGMOID_FROM["float32"]] < 2.0**-125).all()
            x, y = x[x >= SIGMOID_FROM["float32"]], y[x >= SIGMOID_FROM["float32"]]
        with np.errstate(over="ignore", under="ignore"):
            want = DOUBLE[name](x)
        overflow = want >= 2.0**128
        assert (y[overflow] == np.inf).all()
        want, y = want[~overflow], y[~overflow]
        exponent = np.maximum(np.frexp(want)[1], SMALLEST_EXPONENT["float32"])
        assert (np.abs(y - want) <= ULP[name] * np.ldexp(1.0, exponent - MANTISSA["float32"])).all(), hex(start)


def structured(seed: int) -> np.ndarray:
    """Finite float64 inputs: every scale, the turning points of the reduction, the ends of the range."""
    rng = np.random.default_rng(seed)
    turning = (np.arange(-2200, 2200, dtype=np.float64) / 2) * np.log(2)
    small = rng.standard_normal(2000) * 10.0 ** rng.integers(-15, 2, 2000)
    spread = np.concatenate([rng.uniform(-width, width, 4000) for width in (0.5, 2.0, 30.0, 760.0)])
    middle = turning[1800:2600]
    return np.concatenate([turning, np.nextafter(middle, 0), middle / 2, small, spread, 2.0 ** np.arange(-40, 10)])


@pytest.mark.parametrize("name", ULP)
def test_float64_error(name: str) -> None:
    x = structured(seed=1)
    if name == "sigmoid":
        x = x[x >= SIGMOID_FROM["float64"]]
    if name == "exp":
        x = x[x < 709.78]
    y = APPLY[name](x)
    with localcontext() as context:
        context.prec = 50
        for value, got in zip(x.tolist(), y.tolist(), strict=True):
            want = exact(name, value)
            exponent = max(int(np.frexp(float(want))[1]), SMALLEST_EXPONENT["float64"])
            unit = Decimal(2) ** (exponent - MANTISSA["float64"])
            assert abs(Decimal(got) - want) <= Decimal(ULP[name]) * unit, f"{name}({value!r}) = {got!r}"


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4]
AT_SPECIAL = {
    "exp": [np.nan, np.inf, 0.0, 1.0, 1.0, np.inf, 0.0],
    "sigmoid": [np.nan, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0],
    "tanh": [np.nan, 1.0, -1.0, 0.0, -0.0, 1.0, -1.0],
    "relu": [np.nan, np.inf, 0.0, 0.0, -0.0, 1e4, 0.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", AT_SPECIAL)
def test_special_values_in_every_lane(name: str, dtype: str) -> None:
    # Seven values against a power of two of lanes: over 7 * 16 elements each value visits each lane.
    x, want = (np.array(values * 16, dtype) for values in (SPECIAL, AT_SPECIAL[name]))
    assert_same_bits(name, APPLY[name](x), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_is_exact(dtype: str) -> None:
    x = np.random.default_rng(2).standard_normal(1001).astype(dtype)
    assert_same_bits("relu", APPLY["relu"](x), np.maximum(x, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd_and_exp_reaches_subnormals(dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal(1001).astype(dtype)
    assert_same_bits("tanh", APPLY["tanh"](-x), -APPLY["tanh"](x))
    smallest = np.log(np.finfo(dtype).smallest_subnormal.astype(np.float64))
    below, above = APPLY["exp"](np.array([smallest - 1, smallest + 0.01], dtype))
    assert below == 0
    assert above == np.finfo(dtype).smallest_subnormal
