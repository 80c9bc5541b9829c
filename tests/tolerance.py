"""Every tolerance of the tests, each with its reason; nothing else in tests/ says how close is close enough.

An error is the largest difference of an array relative to the largest expected element of that array, so a wrong small
element next to a large one shows down to the tolerance. Each tolerance is a number of rounding errors (eps), times a
count of operations where the error grows with it: never a percentage.
"""

import numpy as np

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# How often the error that one rounding of all inputs makes (see cases.input_rounding) a result may be off, where it
# exceeds the bounds below because terms cancel: every step rounds again, and a random draw may miss the worst rounding.
CANCELLATION = 16

# Analytic against numeric directional derivative, float64. The contract asks for 1e-7; a fourth-order stencil with
# steps of 1e-3 errs by 1e-12 (truncation) and 1e-13 (rounding) of the loss, of which a derivative may be a thousandth.
# The worst of all cases is 2.4e-10.
FINITE_DIFFERENCE = 1e-9

# The same with layer normalisation, the contract's bound: a row near zero bends on the scale of sqrt(1e-5), so the
# steps are tried from 1e-3 to 1e-5 and the best is taken. The worst of all cases is 4.8e-8.
FINITE_DIFFERENCE_NORMALISED = 1e-7

# The same with dense peepholes, the contract's bound: behind a projection or a reset at every step they move the loss
# by a millionth of it or less, of which its rounding is then more: 2e-7 in one case with steps of 1e-3, 4e-9 with 1e-2.
FINITE_DIFFERENCE_DENSE = 1e-7


def rounding(dtype: str, steps: int, width: int) -> float:
    """Outputs, states and gradients of two implementations or precisions: sums of `width` terms, over `steps` steps.

    Rounding of a sum of n terms of random sign grows as sqrt(n), and one step's error is carried to the next, where it
    adds to that step's own. 2 covers the gates (activations within 2.5 ulp, a few products). Of the arrays of the
    compiled backend 99% use less than a fifth of it; arrays that cancel use CANCELLATION instead.
    """
    return 2 * EPS[dtype] * (1 + width**0.5) * (1 + steps) ** 0.5


def trained(dtype: str, steps: int, width: int) -> float:
    """Parameters after some steps of Adam on two devices.

    Adam divides each gradient by its own size, so that one whose terms cancel moves its parameter as far as any other,
    with the rounding errors of the terms.
    """
    return CANCELLATION * rounding(dtype, steps, width)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """max |got - want| / max |want|; infinite where `got` is not finite, and where it is not zero as expected."""
    if want.size == 0:
        return 0.0
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    if not np.isfinite(difference):
        return float("inf")
    if difference == 0:
        return 0.0
    scale = float(np.abs(want).max())
    return float(difference) / scale if scale else float("inf")


def assert_close(name: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Assert shape and values of one array."""
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    worst = error(got, want)
    assert worst <= tolerance, f"{name}: off by {worst:.2e} of its largest element, allowed {tolerance:.2e}"


def assert_same_bits(name: str, got: np.ndarray, want: np.ndarray) -> None:
    """Assert that two arrays are equal to the last bit; NaN equals NaN, -0.0 does not equal 0.0."""
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"{name}: {got.dtype}, expected {want.dtype}"
    unsigned = np.dtype(f"u{want.dtype.itemsize}")
    same = (np.ascontiguousarray(got).view(unsigned) == np.ascontiguousarray(want).view(unsigned)) | (
        np.isnan(got) & np.isnan(want)
    )
    assert same.all(), f"{name}: {np.count_nonzero(~same)} of {same.size} elements differ"
