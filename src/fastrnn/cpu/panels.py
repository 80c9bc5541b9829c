"""Weights into panels: a panel holds, for one block of units, everything that a product streams through.

All arrays are flat and C-contiguous; their shapes stand beside them. U is the block of units, two vectors wide.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from fastrnn.cpu.build import kernel
from fastrnn.cpu.microkernel import unit_block
from fastrnn.cpu.vector import load, load_columns, store, store_tuple


@register_jitable(error_model="numpy")
def zero(panels: Any, start: int, count: int) -> None:
    """panels[start : start + count] = 0."""
    for k in range(count):
        panels[start + k] = 0.0


@kernel
def pack_forward(w: Any, panels: Any, G: int, H: int, K: int) -> None:
    """Panels [Hp/U, G, K, U], zero past H, of w [G, H, K]: for products a [.., K] times w transposed."""
    U = unit_block(w)
    lanes = U // 2
    for first in range(0, H, U):
        for g in range(G):
            source, target = (g * H + first) * K, first * G * K + g * U * K
            whole = K // lanes * lanes if first + U <= H else 0
            for j in range(0, U, lanes):
                for k in range(0, whole, lanes):
                    store_tuple(panels, target + k * U + j, U, load_columns(w, source + j * K + k, K))
            if first + U > H:
                zero(panels, target, K * U)
            for j in range(min(U, H - first)):
                for k in range(whole, K):
                    panels[target + k * U + j] = w[source + j * K + k]


@kernel
def pack_backward(w: Any, order: Any, panels: Any, H: int, rows: int, C: int) -> None:
    """Panels [Cp/U, G, rows, U], zero past C, of the gates `order` of w [*, H, C]: for products a [.., G, rows] w.

    rows >= H: each gate's rows past H are zero.
    """
    U = unit_block(w)
    K = order.size * rows
    for first in range(0, C, U):
        width = min(U, C - first)
        for g in range(order.size):
            for r in range(H):
                source = (order[g] * H + r) * C + first
                target = (first // U * K + g * rows + r) * U
                if width == U:
                    store(panels, target, load(w, source))
                    store(panels, target + U // 2, load(w, source + U // 2))
                else:
                    zero(panels, target, U)
                    for j in range(width):
                        panels[target + j] = w[source + j]
            zero(panels, (first // U * K + g * rows + H) * U, (rows - H) * U)
