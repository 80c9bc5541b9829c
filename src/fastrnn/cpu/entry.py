"""The one compiled copy of the row product for each dtype, as a C function that kernels link to."""

from __future__ import annotations

from typing import Any

from numba import carray, cfunc, types

from fastrnn.cpu.build import is_cached
from fastrnn.cpu.microkernel import every_row


def product_rows(
    a: Any, a_offsets: Any, first: int, n_rows: int, a_kstride: int,
    w: Any, w_offset: int, w_kstride: int, w_pairstride: int, n_pairs: int, k: int,
    out: Any, out_offset: int, out_rowstride: int, out_pairstride: int, accumulate: int,
) -> None:  # fmt: skip
    """See fastrnn.cpu.microkernel.product_rows; here the arrays are bare pointers."""
    every_row(
        carray(a, (1,)), carray(a_offsets, (1,)), first, n_rows, a_kstride,
        carray(w, (1,)), w_offset, w_kstride, w_pairstride, n_pairs, k,
        carray(out, (1,)), out_offset, out_rowstride, out_pairstride, accumulate != 0,
    )  # fmt: skip


def compiled(dtype: Any) -> Any:
    """Compile the product for the Numba type `dtype`, or load it from the cache; `.address` is its address."""
    array, rows, size = types.CPointer(dtype), types.CPointer(types.int64), types.intp
    signature = types.void(array, rows, *[size] * 3, array, *[size] * 5, array, *[size] * 3, size)
    return cfunc(signature, error_model="numpy", cache=is_cached(product_rows))(product_rows)
