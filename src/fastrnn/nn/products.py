"""The three products of a linear map, plain or compiled; compiled, no bit depends on the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from fastrnn import backends, threads
from fastrnn.arrays import Array, array_module


class Plain:
    """The products of the array's own module.

    Args:
        weight: [M, K].
    """

    def __init__(self, weight: Array) -> None:
        self.weight = weight

    def forward(self, x: Array) -> Array:
        """Return x W^T [N, M] of x [N, K]."""
        y: Array = x @ self.weight.T
        return y

    def dx(self, d: Array) -> Array:
        """Return d W [N, K] of d [N, M]."""
        dx: Array = d @ self.weight
        return dx

    def dW(self, d: Array, x: Array) -> Array:
        """Return d^T x [M, K] of d [N, M] and x [N, K]."""
        dW: Array = d.T @ x
        return dW


class Compiled(Plain):
    """The products of the CPU backend; the weights are packed once.

    On a machine shared with other processes this is also the faster way: NumPy's BLAS, whose threads wait for each
    other by spinning, took 80 to 290 ms for the two backward products at [4096, 256] x [166, 256]; one thread, 18 ms.
    """

    def __init__(self, weight: Array) -> None:
        import numba

        from fastrnn.cpu import build, layout, microkernel, vector

        super().__init__(weight)
        microkernel.ready(numba.from_dtype(weight.dtype))
        self._matmul, self._pack, self._layout = build.load("matmul"), build.load("panels"), layout
        self._plain = layout.plain
        self._block = 2 * vector.vector_bytes() // weight.dtype.itemsize

    def forward(self, x: Array) -> Array:
        """Return x W^T [N, M] of x [N, K]."""
        return self._rows_times(x, self._forward_panels, self.weight.shape[0])

    def dx(self, d: Array) -> Array:
        """Return d W [N, K] of d [N, M]."""
        return self._rows_times(d, self._backward_panels, self.weight.shape[1])

    def dW(self, d: Array, x: Array) -> Array:
        """Return d^T x [M, K] of d [N, M] and x [N, K]."""
        (M, K), N = self.weight.shape, x.shape[0]
        width = self._padded(K)
        x = np.ascontiguousarray(x) if width == K else np.pad(x, ((0, 0), (0, width - K)))
        d_flat, x_flat = self._plain(np.ascontiguousarray(d)), self._plain(x)
        dW, at = np.empty((M, width), x.dtype), np.arange(N, dtype=np.int64)

        def work(first: int, end: int) -> None:
            columns = first * self._block, end * self._block
            self._matmul.gemm_tn(d_flat, at * M, x_flat, at * width, M, *columns, dW.reshape(-1), width, False)

        self._share(work, width // self._block, 2.0 * N * M * K)
        return np.ascontiguousarray(dW[:, :K])

    @cached_property
    def _forward_panels(self) -> Array:
        M, K = self.weight.shape
        (panels,) = self._layout.aligned([self._padded(M) * K], self.weight.dtype)
        self._pack.pack_forward(self._plain(self.weight), panels, 1, M, K)
        return panels

    @cached_property
    def _backward_panels(self) -> Array:
        M, K = self.weight.shape
        (panels,) = self._layout.aligned([self._padded(K) * M], self.weight.dtype)
        self._pack.pack_backward(self._plain(self.weight), np.zeros(1, np.int64), panels, M, M, K)
        return panels

    def _rows_times(self, a: Array, panels: Array, columns: int) -> Array:
        rows, k = a.shape
        flat, out, at = (
            self._plain(np.ascontiguousarray(a)),
            np.empty((rows, columns), a.dtype),
            np.arange(rows, dtype=np.int64),
        )

        def work(first: int, end: int) -> None:
            here = at[first:end]
            self._matmul.product_panels(flat, here * k, panels, k, columns, out.reshape(-1), here * columns, False)

        self._share(work, rows, 2.0 * rows * columns * k)
        return out

    def _share(self, work: Callable[[int, int], None], count: int, flops: float) -> None:
        """Call work(first, end) on shares of range(count), on as many threads as the work is worth."""
        from fastrnn.cpu import pool

        parts = int(max(1, min(threads.get_num_threads(), count, flops // self._layout.THREAD_FLOPS)))
        pool.run([partial(work, count * part // parts, count * (part + 1) // parts) for part in range(parts)])

    def _padded(self, columns: int) -> int:
        return -(-columns // self._block) * self._block


def of(weight: Array) -> Plain:
    """Return the products of the backend in use for a weight [M, K]."""
    compiled = array_module(weight) is np and backends.current() == "cpu"
    return Compiled(weight) if compiled else Plain(weight)


class Packed:
    """The products with one weight, packed once for each backend until the weight changes."""

    def __init__(self) -> None:
        self._products: dict[str, Plain] = {}  # by backend

    def of(self, weight: Array) -> Plain:
        """Return the products of the backend in use for a weight [M, K]."""
        backend = backends.current() if array_module(weight) is np else ""  # CuPy has one kind of products
        if backend not in self._products or self._products[backend].weight is not weight:
            self._products[backend] = of(weight)
        return self._products[backend]
