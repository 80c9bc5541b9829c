"""The products over all T*B that follow the backward loop: gradients of the weights, of the biases and of x.

Each thread makes its columns of the weight gradients and its rows of dx; the sums over T*B have one fixed order.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastrnn import threads
from fastrnn.arrays import Array
from fastrnn.cpu import build, pool
from fastrnn.cpu.layout import THREAD_FLOPS, columns_of, flat
from fastrnn.cpu.packed import Packed
from fastrnn.recurrence import Run, Weights

if TYPE_CHECKING:
    from fastrnn.cpu import Saved


class Places(NamedTuple):
    """For every step (t, b) that exists, where its row starts in each array; [K] int64 each."""

    x: Array
    h_prev: Array
    step: Array  # t * B + b
    dx: Array


def _places(run: Run, dx: Array, Pp: int) -> tuple[Array, Array, Places]:
    """x and dx as flat arrays, and the places of their rows."""
    steps, batch = run.x.shape[:2]
    t, b = np.divmod(np.arange(steps * batch), batch) if batch else (np.empty(0, np.int64), np.empty(0, np.int64))
    if run.lengths is not None:
        here = t < run.lengths[b]
        t, b = t[here], b[here]
    x, x_step, x_row = flat(run.x)
    out, dx_step, dx_row = flat(dx)
    before = t + 1 if run.reverse else t
    return x, out, Places(
        t * x_step + b * x_row, (before * batch + b) * Pp, t * batch + b, t * dx_step + b * dx_row
    )  # fmt: skip


def after_loop(
    packed: Packed, run: Run, saved: Saved, planes: Array, dproj: Array, dx: Array, accumulate: bool
) -> Weights:
    """Write or add to dx and return the gradients of the weights.

    planes: [T, B, planes, Hp]. dproj: [T, B, Pp] with a projection. Rows of steps that do not exist are never read.
    """
    n, r, w, dtype = packed.sizes, packed.rendering, packed.weights, packed.dtype
    x, dx_flat, at = _places(run, dx, n.Pp)
    if run.lengths is not None and not accumulate:
        dx[...] = 0
    hs, width = saved.hs.reshape(-1), n.G * n.Hp
    dax = at.step * (r.planes * n.Hp) + r.dax_first * n.Hp
    dah = at.step * (r.planes * n.Hp) + r.dah_first * n.Hp
    ih, hh = np.empty(n.I * width, dtype), np.empty(n.P * width, dtype)
    hr = np.empty(n.H * n.Pp if w.hr is not None else 0, dtype)
    b_ih, b_hh = np.empty((2, width), dtype)
    ungated = width - n.Hp if packed.cell.gated else width
    kernels = build.load("matmul")

    def work(part: int, parts: int) -> None:
        first, end = columns_of(width, n.U, part, parts)
        kernels.gemm_tn(x, at.x, planes, dax, n.I, first, end, ih, width, False)
        kernels.gemm_tn(hs, at.h_prev, planes, dah, n.P, min(first, ungated), min(end, ungated), hh, width, False)
        if packed.cell.gated and end > ungated:
            s = saved.s.reshape(-1)
            kernels.gemm_tn(s, at.step * n.Hp, planes, dah, n.H, max(first, ungated), end, hh, width, False)
        if w.hr is not None:
            columns = columns_of(n.Pp, n.U, part, parts)
            kernels.gemm_tn(saved.m.reshape(-1), at.step * n.Hp, dproj, at.step * n.Pp, n.H, *columns, hr, n.Pp, False)
        if w.b_ih is not None:
            kernels.column_sums(planes, dax, first, end, b_ih)
            kernels.column_sums(planes, dah, first, end, b_hh)
        rows = slice(at.dx.size * part // parts, at.dx.size * (part + 1) // parts)
        kernels.product_panels(planes, dax[rows], packed.w_back, width, 1, n.I, dx_flat, at.dx[rows], 0, accumulate)

    flops = 2.0 * at.dx.size * width * (2 * n.I + n.P)
    parts = int(max(1, min(threads.get_num_threads(), flops // THREAD_FLOPS)))
    pool.run([partial(work, part, parts) for part in range(parts)])
    order, gates = r.dah_gates, tuple(range(n.G))
    return Weights(
        _unpack(packed, ih, gates, n.I), _unpack(packed, hh, order, n.P),
        None if w.b_ih is None else b_ih.reshape(n.G, n.Hp)[:, : n.H].reshape(-1),
        None if w.b_hh is None else b_hh.reshape(n.G, n.Hp)[np.argsort(order), : n.H].reshape(-1),
        None if w.hr is None else np.ascontiguousarray(hr.reshape(n.H, n.Pp)[:, : n.P].T),
    )  # fmt: skip


def _unpack(packed: Packed, c: Array, order: tuple[int, ...], K: int) -> Array:
    """[G*H, K] of c [K, G, Hp], whose gates stand in this order."""
    n = packed.sizes
    dw = np.empty((n.G * n.H, K), packed.dtype)
    build.load("pack").unpack_gradient(c, np.array(order, np.int64), dw.reshape(-1), n.H, n.Hp, K)
    return dw
