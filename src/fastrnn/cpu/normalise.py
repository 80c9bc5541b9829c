"""Layer normalisation of one row [gates, Hp], forward and backward; the equations are in fastrnn.normalisation.

Rows are summed in vectors, in one order. Their columns past H hold rubbish, which is zeroed before it can be summed.
The variance is the mean square of what is left after the mean is taken away, so that a large mean costs no digits.
"""

from __future__ import annotations

import math
from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.vector import lane_sum, load, splat, store
from fastrnn.normalisation import EPSILON


@register_jitable(error_model="numpy")
def zero_tails(a: Any, at: int, gates: int, H: int, Hp: int) -> None:
    """a [gates, Hp] = 0 in the columns past H."""
    for gate in range(gates):
        for k in range(at + gate * Hp + H, at + (gate + 1) * Hp):
            a[k] = 0.0


@register_jitable(error_model="numpy")
def normalise(
    a: Any, at: int, gates: int, H: int, Hp: int, affine: Any, first: int, hats: Any, hat_at: int, save: bool
) -> Any:
    """a [gates, Hp] = hat * gain + shift, in place, with hat into hats where asked; return the mean and the scale.

    affine: [2, .., Hp], gains and shifts; those of this row stand from `first` on.
    """
    U, lanes, end = unit_block(a), unit_block(a) // 2, at + gates * Hp
    gains, shifts = first - at, affine.size // 2 + first - at
    zero_tails(a, at, gates, H, Hp)
    one, other = splat(a, 0.0), splat(a, 0.0)
    for k in range(at, end, U):
        one, other = one + load(a, k), other + load(a, k + lanes)
    mean = lane_sum(one + other) / (gates * H)
    for k in range(at, end, lanes):
        store(a, k, load(a, k) - mean)
    zero_tails(a, at, gates, H, Hp)
    one, other = splat(a, 0.0), splat(a, 0.0)
    for k in range(at, end, U):
        left, right = load(a, k), load(a, k + lanes)
        one, other = one + left * left, other + right * right
    scale = 1.0 / math.sqrt(lane_sum(one + other) / (gates * H) + EPSILON)
    for k in range(at, end, lanes):
        hat = load(a, k) * scale
        if save:
            store(hats, hat_at + k - at, hat)
        store(a, k, hat * load(affine, gains + k) + load(affine, shifts + k))
    return mean, scale


@register_jitable(error_model="numpy")
def normalise_backward(
    dy: Any, dy_at: int, places: Any, hat: Any, hat_at: int, H: int, Hp: int, affine: Any, first: int, scale: Any,
    out: Any, to: int, sums: Any, sums_at: int,
) -> None:  # fmt: skip
    """out [gates, Hp] = the gradient of what was normalised; sums [gates, Hp] += dy * hat.

    Gate k of dy is its plane places[k]; dy and hat are zero past H, and so is `out` then.
    """
    lanes, gates = unit_block(out) // 2, len(places)
    total, along = splat(out, 0.0), splat(out, 0.0)
    for gate in range(gates):
        source = dy_at + (places[gate] - gate) * Hp
        for k in range(gate * Hp, (gate + 1) * Hp, lanes):
            d, row = load(dy, source + k), load(hat, hat_at + k)
            store(sums, sums_at + k, load(sums, sums_at + k) + d * row)
            d = d * load(affine, first + k)
            total, along = total + d, along + d * row
            store(out, to + k, d)
    mean, share = lane_sum(total) / (gates * H), lane_sum(along) / (gates * H)
    for k in range(0, gates * Hp, lanes):
        store(out, to + k, scale * (load(out, to + k) - mean - load(hat, hat_at + k) * share))
    zero_tails(out, to, gates, H, Hp)
