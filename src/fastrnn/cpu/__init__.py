"""The CPU backend: Numba kernels in loop.py, matmul.py and pack.py; see fastrnn.recurrence for what a backend is."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numba
import numpy as np

from fastrnn import philox, threads
from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cpu import build, microkernel, pool, products
from fastrnn.cpu.cells import Rendering
from fastrnn.cpu.layout import flat, plain, row_slices
from fastrnn.cpu.vector import vector_bytes
from fastrnn.recurrence import Columns, Final, Given, Initial, Run, Weights

CHUNK_ROWS = 256  # rows (t, b) of one input product: enough to use each panel often, few enough to stay in a cache

THREAD_WORDS = 20_000  # fewer random words are not worth waking a thread for

empty = np.empty  # tests replace it by one that fills with NaN


class Sizes(NamedTuple):
    """Sizes of one layer; Hp and Pp are H and P in whole blocks of U units."""

    I: int
    G: int
    H: int
    P: int
    U: int

    @property
    def Hp(self) -> int:
        return -(-self.H // self.U) * self.U

    @property
    def Pp(self) -> int:
        return -(-self.P // self.U) * self.U

    def padded(self, n: int) -> int:
        return -(-n // self.U) * self.U


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass; shapes as in loop.layer_forward."""

    hs: Array
    cs: Array
    gates: Array
    m: Array
    s: Array


class Packed:
    """The weights of one layer and direction in panels; those for the backward pass are made when it first needs them."""

    def __init__(self, cell: Cell, weights: Weights) -> None:
        self.cell, self.weights, self.dtype = cell, weights, weights.ih.dtype
        microkernel.ready(numba.from_dtype(self.dtype))  # kernels from the cache link to it
        self.loop = build.load("loop", cell)
        self.rendering: Rendering = self.loop.CELL
        self.sizes = Sizes(
            weights.ih.shape[1], len(cell.gates), weights.ih.shape[0] // len(cell.gates), weights.hh.shape[1],
            2 * vector_bytes() // self.dtype.itemsize,
        )  # fmt: skip
        n = self.sizes
        self.w = self._forward(weights.ih, n.G, n.H, n.I)
        self.u = self._forward(weights.hh, n.G, n.H, n.P)
        self.hr = np.empty(0, self.dtype) if weights.hr is None else self._forward(weights.hr, 1, n.P, n.H)
        self.bias, self.unit = self._biases()

    def _biases(self) -> tuple[Array, Array]:
        """bias [G, Hp]: b_ih plus the b_hh that may be added to it; unit [units, Hp]: the other b_hh."""
        n, w = self.sizes, self.weights
        bias, unit = np.zeros((n.G, n.Hp), self.dtype), np.zeros((self.rendering.units, n.Hp), self.dtype)
        if w.b_ih is not None and w.b_hh is not None:
            b_hh = w.b_hh.reshape(n.G, n.H).copy()
            separate = [self.cell.gates.index(name) for name in self.cell.separate]
            unit[:, : n.H] = b_hh[separate]
            b_hh[separate] = 0
            bias[:, : n.H] = w.b_ih.reshape(n.G, n.H) + b_hh
        return bias.reshape(-1), unit.reshape(-1)

    def _forward(self, w: Array, G: int, H: int, K: int) -> Array:
        panels = np.zeros(self.sizes.padded(H) * K * G, self.dtype)
        build.load("pack").pack_forward(plain(w), panels, G, H, K)
        return panels

    def _backward(self, w: Array, order: tuple[int, ...], H: int, rows: int, C: int) -> Array:
        panels = np.zeros(self.sizes.padded(C) * len(order) * rows, self.dtype)
        build.load("pack").pack_backward(plain(w), np.array(order, np.int64), panels, H, rows, C)
        return panels

    @cached_property
    def w_back(self) -> Array:
        """[Ip/U, G*Hp, U]: dx = dax W."""
        n = self.sizes
        return self._backward(self.weights.ih, tuple(range(n.G)), n.H, n.Hp, n.I)

    @cached_property
    def u_back(self) -> Array:
        """[Pp/U, G*Hp, U]: dh = dah U; without the last gate for a gated cell."""
        n, order = self.sizes, self.rendering.dah_gates
        return self._backward(self.weights.hh, order[:-1] if self.cell.gated else order, n.H, n.Hp, n.P)

    @cached_property
    def u_gated(self) -> Array:
        """[Hp/U, Hp, U]: gradient of the gated state."""
        n = self.sizes
        if self.cell.gated is None:
            return np.empty(0, self.dtype)
        return self._backward(self.weights.hh, self.rendering.dah_gates[-1:], n.H, n.Hp, n.H)

    @cached_property
    def hr_back(self) -> Array:
        """[Hp/U, P, U]: dm = dh W_hr."""
        n = self.sizes
        if self.weights.hr is None:
            return np.empty(0, self.dtype)
        return self._backward(self.weights.hr, (0,), n.P, n.P, n.H)


def pack(cell: Cell, weights: Weights) -> Packed:
    """Bring the weights into panels."""
    return Packed(cell, weights)


def _lengths(run: Run) -> Array:
    return np.full(run.x.shape[1], run.x.shape[0]) if run.lengths is None else run.lengths


def recur_forward(cell: Cell, packed: Packed, run: Run, save: bool) -> Final:
    """Run the recurrence; see fastrnn.recurrence."""
    n, dtype, r = packed.sizes, packed.dtype, packed.rendering
    steps, batch = run.x.shape[:2]
    lengths = _lengths(run)
    slots, kept = (steps + 1, steps) if save else (2, 1)
    hs, cs = empty((slots, batch, n.Pp), dtype), empty((slots, batch, n.Hp) if cell.cell_state else 0, dtype)
    gates = empty((steps, batch, r.saved, n.Hp) if save else 0, dtype)
    m = empty((kept, batch, n.Hp) if packed.hr.size else 0, dtype)
    s = empty((kept, batch, n.Hp) if cell.gated else 0, dtype)
    first, last = (lengths, 0 * lengths) if run.reverse else (0 * lengths, lengths)
    rows = np.arange(batch)
    at = (first, rows) if save else (first & 1, rows)
    hs[(*at, slice(n.P))] = run.h0
    if run.c0 is not None:
        cs[(*at, slice(n.H))] = run.c0
    x, y = flat(run.x), flat(run.y.array)
    clear = np.empty(0, np.bool_) if run.clear is None else plain(run.clear)
    flops = 2.0 * n.G * n.H * (n.I + n.P)

    def work(rows: Array, lengths: Array) -> None:
        chunk = max(CHUNK_ROWS, rows.size)
        chunk = min(chunk, max(1, int(lengths.sum())))
        chunk = max(chunk, rows.size)
        tile = rows.size * n.G * n.Hp if cell.gated else packed.loop.TILE_ROWS * n.G * n.U
        packed.loop.layer_forward(
            rows, lengths, *x, clear, run.clear is not None, run.reverse, packed.w, packed.bias, packed.u, packed.unit,
            packed.hr, hs.reshape(-1), cs.reshape(-1), gates.reshape(-1), m.reshape(-1), s.reshape(-1), *y, run.y.first,
            empty(chunk * n.G * n.Hp, dtype), empty(tile, dtype), np.empty(chunk + 6 * rows.size, np.int64),
            np.empty(rows.size, np.bool_), steps, batch, n.I, n.H, n.P, save,
        )  # fmt: skip

    pool.run([partial(work, *part) for part in row_slices(lengths, flops)])
    if run.lengths is not None:
        run.y.view[np.arange(steps)[:, None] >= lengths] = 0
    at = (last, rows) if save else (last & 1, rows)
    h_n = hs[(*at, slice(n.P))]
    c_n = cs[(*at, slice(n.H))] if cell.cell_state else None
    return Final(h_n, c_n, Saved(hs, cs, gates, m, s) if save else None)


def cells(cell: Cell, packed: Packed, run: Run, saved: Saved) -> Array:
    """c after every step [T, B, H], zero past the end."""
    steps = run.x.shape[0]
    c = saved.cs[:steps] if run.reverse else saved.cs[1:]
    c = c[:, :, : packed.sizes.H].copy()
    if run.lengths is not None:
        c[np.arange(steps)[:, None] >= run.lengths] = 0
    return c


def random_words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Array:
    """`count` random 32-bit words; see fastrnn.philox."""
    words = np.empty(count, np.uint32)
    key = np.array([seed & philox.MASK, seed >> 32], np.uint64)
    prefix = np.array([value & philox.MASK for value in counter], np.uint64)
    fill = build.load("masks").random_words
    parts = max(1, min(threads.get_num_threads(), count // THREAD_WORDS))
    bounds = [count * k // parts // 4 * 4 for k in range(parts)] + [count]
    pool.run([partial(fill, words, first, last, key, prefix) for first, last in pairwise(bounds)])
    return words


def recur_backward(
    cell: Cell, packed: Packed, run: Run, saved: Saved, given: Given, dx: Array, accumulate: bool
) -> Initial:
    """Back-propagate through time, then the products over all T*B; see fastrnn.recurrence."""
    n, dtype, r = packed.sizes, packed.dtype, packed.rendering
    steps, batch = run.x.shape[:2]
    dh, dc = np.zeros((batch, n.Pp), dtype), np.zeros((batch, n.Hp) if cell.cell_state else 0, dtype)
    if given.h_n is not None:
        dh[:, : n.P] = given.h_n
    if given.c_n is not None:
        dc[:, : n.H] = given.c_n
    planes = empty((steps, batch, r.planes, n.Hp), dtype)
    dproj = empty((steps, batch, n.Pp) if packed.hr.size else 0, dtype)
    dy, dcells = _columns(given.y, dtype), _columns(given.cells, dtype)
    clear = np.empty(0, np.bool_) if run.clear is None else plain(run.clear)

    def work(rows: Array, lengths: Array) -> None:
        packed.loop.layer_backward(
            rows, lengths, clear, run.clear is not None, run.reverse, packed.u_back, packed.u_gated, packed.hr_back,
            packed.unit, saved.hs.reshape(-1), saved.cs.reshape(-1), saved.gates.reshape(-1), *dy, *dcells,
            dh.reshape(-1), dc.reshape(-1), planes.reshape(-1), dproj.reshape(-1), empty(rows.size * n.Hp, dtype),
            empty(rows.size * n.Hp, dtype), empty(rows.size * n.Pp, dtype), np.empty(4 * rows.size, np.int64), steps, batch, n.H, n.P,
        )  # fmt: skip

    pool.run([partial(work, *part) for part in row_slices(_lengths(run), 2.0 * n.G * n.H * n.P)])
    weights = products.after_loop(packed, run, saved, planes.reshape(-1), dproj.reshape(-1), dx, accumulate)
    return Initial(dh[:, : n.P], dc[:, : n.H] if cell.cell_state else None, weights)


def _columns(columns: Columns | None, dtype: object) -> tuple[Array, int, int, int]:
    """An array, the strides of t and b, and the first column; an empty one stands for zero."""
    if columns is None:
        return np.empty(0, dtype), 0, 0, 0  # type: ignore[call-overload]
    return *flat(columns.array), columns.first
