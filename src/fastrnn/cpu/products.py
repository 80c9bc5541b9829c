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
from fastrnn.cpu.blocked import row_stride
from fastrnn.cpu.layout import THREAD_FLOPS, columns_of, flat
from fastrnn.cpu.packed import Packed, Sizes
from fastrnn.memory import empty
from fastrnn.recurrence import Run, Weights

if TYPE_CHECKING:
    from fastrnn.cpu.saved import Saved


class Places(NamedTuple):
    """For every step (t, b) that exists, where its row starts in each array; [K] int64 each."""

    x: Array
    h_prev: Array
    step: Array  # t * B + b
    dx: Array


def _places(run: Run, dx: Array, n: Sizes) -> tuple[Array, Array, Places]:
    """x [T, B, Ip] and dx [T, B, I] as flat arrays, and the places of their rows."""
    steps, batch = run.x.shape[:2]
    t, b = np.arange(steps)[:, None], np.arange(batch)
    here = slice(None) if run.lengths is None else t < run.lengths

    def places(step: int, row: int) -> Array:
        return (t * step + b * row)[here].reshape(-1)

    source = run.x
    if n.padded(n.I) != n.I:  # the products read whole blocks of columns
        source = empty((steps, batch, n.padded(n.I)), run.x.dtype)
        source[:, :, : n.I], source[:, :, n.I :] = run.x, 0
    x, x_step, x_row = flat(source)
    out, dx_step, dx_row = flat(dx, written=True)
    step = places(batch, 1)
    h_prev = step * n.Ps
    if run.reverse:
        h_prev += batch * n.Ps
    return x, out, Places(places(x_step, x_row), h_prev, step, places(dx_step, dx_row))


def after_loop(
    packed: Packed, run: Run, saved: Saved, planes: Array, dproj: Array, dx: Array, accumulate: bool
) -> Weights:
    """Write or add to dx and return the gradients of the weights.

    planes: [T, B, Ls], rows [KEPT_PLANES, Hp] at the distance Ls. dproj: [T, B, Pp] with a projection. Rows of steps
    that do not exist are never read. Biases are summed here only without layer normalisation.
    """
    n, r, w, dtype = packed.sizes, packed.loop, packed.weights, packed.dtype
    biases = w.b_ih is not None and not packed.normalised
    x, dx_flat, at = _places(run, dx, n)
    if run.lengths is not None and not accumulate:
        dx[...] = 0
    Ip, width = n.padded(n.I), n.G * n.Hp
    distance = row_stride(r.KEPT_PLANES * n.Hp, n.itemsize)
    dax = at.step * distance + r.DAX_FIRST * n.Hp
    dah = at.step * distance + r.DAH_FIRST * n.Hp
    ih, hh = empty(width * Ip, dtype), empty(0 if packed.diagonal else width * n.Pp, dtype)
    hr = np.empty(n.Pp * n.Hp if w.hr is not None else 0, dtype)
    b_ih, b_hh = np.empty((2, width), dtype)
    ungated = n.G - 1 if packed.cell.gated else n.G  # the last gate of a gated cell sees the gated state instead of h
    order = r.DAH_GATES[:ungated]
    # what the recurrent product saw: the states themselves, or with recurrent dropout those that it kept
    seen = (saved.seen.reshape(-1), at.step * n.Ps) if saved.seen.size else (saved.hs.reshape(-1), at.h_prev)
    kernels = build.load("matmul")

    def work(part: int, parts: int) -> None:
        def product(a: Array, a_rows: Array, rows: int, b: Array, b_rows: Array, columns: int, out: Array) -> None:
            mine = columns_of(columns, n.U, part, parts)
            kernels.gemm_tn(a, a_rows, b, b_rows, rows, *mine, out, columns, False)

        product(planes, dax, width, x, at.x, Ip, ih)
        for plane, gate, count in () if packed.diagonal else runs(order):
            rows, into = dah + plane * n.Hp, hh[gate * n.Hp * n.Pp :]
            product(planes, rows, count * n.Hp, *seen, n.Pp, into)
        if packed.cell.gated and not packed.diagonal:
            rows, into = dah + ungated * n.Hp, hh[ungated * n.Hp * n.Pp :]
            product(planes, rows, n.Hp, saved.s.reshape(-1), at.step * n.Hs, n.Hp, into)
        if w.hr is not None:
            product(dproj, at.step * n.Pp, n.Pp, saved.m.reshape(-1), at.step * n.Hs, n.Hp, hr)
        if biases:
            mine = columns_of(width, n.U, part, parts)
            kernels.column_sums(planes, dax, *mine, b_ih)
            kernels.column_sums(planes, dah, *mine, b_hh)
        share = slice(at.dx.size * part // parts, at.dx.size * (part + 1) // parts)
        kernels.product_panels(planes, dax[share], packed.back.w, width, n.I, dx_flat, at.dx[share], accumulate)

    flops = 2.0 * at.dx.size * width * (2 * n.I + n.P)
    parts = int(max(1, min(threads.get_num_threads(), flops // THREAD_FLOPS)))
    pool.run([partial(work, part, parts) for part in range(parts)])
    if tuple(range(n.G)) != r.DAH_GATES:
        b_hh = b_hh.reshape(n.G, n.Hp)[np.argsort(r.DAH_GATES)]
    return Weights(
        _cut(ih.reshape(n.G, n.Hp, Ip), n.H, n.I),
        hh if packed.diagonal else _cut(hh.reshape(n.G, n.Hp, n.Pp), n.H, n.P),  # the loop itself made the former
        _cut(b_ih.reshape(n.G, n.Hp, 1), n.H, 1)[:, 0] if biases else None,
        _cut(b_hh.reshape(n.G, n.Hp, 1), n.H, 1)[:, 0] if biases else None,
        None if w.hr is None else _cut(hr.reshape(1, n.Pp, n.Hp), n.P, n.H),
    )  # fmt: skip


def affine_gradients(packed: Packed, sums: Array) -> dict[str, Array]:
    """Gradients of the gains and biases of a layer with normalisation, from each row's sums [B, SUMS, Hp]."""
    n, w, r = packed.sizes, packed.weights, packed.rendering
    total = sums.sum(axis=0)[:, : n.H]
    planes = total[2 * n.G + 2 :]
    found = {"norm_ih": total[: n.G].reshape(-1), "norm_hh": total[n.G : 2 * n.G].reshape(-1)}
    if w.norm_c is not None:
        found |= {"norm_c": total[2 * n.G], "norm_c_bias": total[2 * n.G + 1]}
    if w.b_ih is not None:
        found["b_ih"] = planes[r.dax_first : r.dax_first + n.G].reshape(-1)
        found["b_hh"] = planes[r.dah_first + np.argsort(r.dah_gates)].reshape(-1)
    return found


def runs(order: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Stretches of consecutive gates: (place in `order`, first gate, number of gates)."""
    found: list[tuple[int, int, int]] = []
    for place, gate in enumerate(order):
        if found and gate == found[-1][1] + found[-1][2]:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
        else:
            found.append((place, gate, 1))
    return found


def _cut(padded: Array, H: int, K: int) -> Array:
    """[G*H, K] of an array [G, >= H, >= K]; copied only where there is padding."""
    return np.ascontiguousarray(padded[:, :H, :K]).reshape(padded.shape[0] * H, K)
