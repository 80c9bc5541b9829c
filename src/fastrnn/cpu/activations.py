"""exp, sigmoid, tanh and relu on SIMD vectors: branch-free, the same lines for float32 and float64.

exp(x) = 2**n exp(r) with n = round(x / ln 2) and r = x - n ln 2, |r| <= 0.3466. Adding a number whose last mantissa bit
is worth 1 rounds x / ln 2 and leaves n in the low bits of the sum, from where a shift makes 2**n: no conversion to
integer that NaN would upset. Errors are in units in the last place (ulp) of the exact result;
tests/test_cpu_activations.py asserts them.
"""

from typing import Any

from numba import njit

from fastrnn.cpu.vector import (
    absolute,
    constant,
    copysign,
    exponent_from_low_bits,
    fma,
    maximum,
    minimum,
    polynomial,
    select,
)

_LOG2_E = 1.4426950408889634
# ln 2 in two terms; n * _LN2_HIGH is exact for every n that occurs, with or without a fused multiply-add.
_LN2_HIGH_F32, _LN2_LOW_F32 = 0.693359375, -2.1219444005469058e-4
_LN2_HIGH_F64, _LN2_LOW_F64 = 0.693145751953125, 1.4286068203094173e-6
# 1.5 * 2**mantissa + bias: the low bits of the sum hold n + bias, which is the exponent field of 2**n.
_ROUND_F32 = 12582912.0 + 127.0
_ROUND_F64 = 6755399441055744.0 + 1023.0
# (exp(r) - 1 - r) / r**2: minimax for the relative error of exp(r) - 1, which is 2.4e-10 and 2.6e-19.
_EXP_F32 = (0.5000000044348196, 0.16666666373047370, 0.0416663602189823, 0.008333388662787224, 0.0013940680810249294,
            0.00019846327503373015)  # fmt: skip
_EXP_F64 = (0.5, 0.16666666666666677, 0.04166666666666651, 0.008333333333321655, 0.0013888888888962173,
            0.00019841269886070674, 2.48015871731137e-05, 2.7557244256937155e-06, 2.755740201343646e-07,
            2.5109023470560234e-08, 2.0875563164404544e-09)  # fmt: skip


@njit(forceinline=True)
def _split(x: Any) -> Any:
    """n + a rounding constant (n and the exponent bias in its low bits), and n itself."""
    shift = constant(x, _ROUND_F32, _ROUND_F64)
    rounded = fma(x, _LOG2_E, shift)
    return rounded, rounded - shift


@njit(forceinline=True)
def _expm1_reduced(x: Any, n: Any) -> Any:
    """exp(r) - 1 for r = x - n ln 2."""
    r = fma(n, constant(x, -_LN2_HIGH_F32, -_LN2_HIGH_F64), x)
    r = fma(n, constant(x, -_LN2_LOW_F32, -_LN2_LOW_F64), r)
    return fma(r * r, polynomial(r, _EXP_F32, _EXP_F64), r)


@njit(forceinline=True)
def exp(x: Any) -> Any:
    """exp(x) within 1 ulp, subnormal results included; exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN."""
    x = maximum(constant(x, -104.5, -746.5), minimum(constant(x, 89.5, 710.5), x))
    shift = constant(x, _ROUND_F32, _ROUND_F64)
    _, n = _split(x)
    # 2**n in two factors, since n reaches -151 and 129 where one exponent field holds -126 to 127.
    half = fma(n, 0.5, shift)
    rest = (n - (half - shift)) + shift
    return (_expm1_reduced(x, n) + 1.0) * exponent_from_low_bits(half) * exponent_from_low_bits(rest)


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) within 2.5 ulp; results below the normal range may become 0. NaN gives NaN."""
    # Within these limits n runs from -(bias) to bias + 1, where the exponent field alone is 0 and infinity.
    y = maximum(constant(x, -88.0, -709.0), minimum(constant(x, 89.0, 710.0), -x))
    rounded, n = _split(y)
    return 1.0 / (1.0 + (_expm1_reduced(y, n) + 1.0) * exponent_from_low_bits(rounded))


@njit(forceinline=True)
def tanh(x: Any) -> Any:
    """tanh(|x|) = t / (t + 2), t = exp(2|x|) - 1, with the sign of x, within 2.5 ulp; tanh(-0) = -0, NaN gives NaN."""
    # Beyond the limit the result rounds to 1.
    y = minimum(constant(x, 10.0, 20.0), absolute(x))
    y = y + y
    rounded, n = _split(y)
    power = exponent_from_low_bits(rounded)
    t = fma(power, _expm1_reduced(y, n), power - 1.0)
    return copysign(t / (t + 2.0), x)


@njit(forceinline=True)
def relu(x: Any) -> Any:
    """max(x, 0), exactly; relu(-0) = -0, relu(NaN) = NaN."""
    return select(x < 0.0, 0.0, x)
