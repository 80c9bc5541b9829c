"""Compiled kernels: loaded when first used, one module a variant and device, and launched on CuPy's current stream.

CuPy compiles with NVRTC and keeps the result on disk, under a key of the source, the options and the chip.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastrnn.arrays import Array
from fastrnn.cells import Cell
from fastrnn.cuda import source
from fastrnn.cuda.chip import chip
from fastrnn.cuda.source import OnChip, Variant

THREADS = 128  # of a block: few enough that B = 1, H = 1024 still spreads over 8 blocks. Not yet measured.
ROW_THREADS = source.STEP_THREADS  # of a block that sums over a row. Not yet measured.
GRID_ROWS = 65535  # the limit of a grid's second dimension; kernels stride over the rest
WIDE_ELEMENTS = 1 << 18  # from this many on, whole vectors: 2048 threads on each of 132 processors. Not yet measured.
SUMS_BYTES = 2 * ROW_THREADS // 32 * 8  # shared memory for two sums of each warp, in float64 if need be
FLAG_WORDS = 64  # of a group of blocks: csrc/grid.cuh, two flags and LINE words for each
WHOLE_ROWS = {  # kernels that sum over rows in a normalised variant, a block a row
    "step_forward", "step_backward", "gate_forward", "gate_backward", "input_moments", "gains_backward"
}  # fmt: skip


class Kernels:
    """The kernels of one variant on the current device."""

    def __init__(self, module: Any, width: int, normalised: bool = False) -> None:
        self.width = width
        self._module, self._whole_rows = module, WHOLE_ROWS if normalised else set[str]()
        self._functions: dict[str, Any] = {}

    def launch(self, name: str, rows: int, units: int, *args: Any) -> None:
        """Run a kernel on all units of all rows; None is a null pointer, an int is 64 bits wide."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.get_function(name)
        if name in self._whole_rows:  # as many threads whatever the width, since they share the order of the sums
            threads = min(ROW_THREADS, -(-units // 32) * 32)
            function((1, min(GRID_ROWS, rows)), (threads, 1), tuple(map(_argument, args)), shared_mem=SUMS_BYTES)
            return
        lanes = -(-units // self.width)
        across = min(THREADS, -(-lanes // 32) * 32)
        down = min(rows, THREADS // across)
        grid = (-(-lanes // across), min(GRID_ROWS, -(-rows // down)))
        function(grid, (across, down), tuple(map(_argument, args)))


def _argument(value: Any) -> Any:
    if value is None:
        return np.uintp(0)  # CuPy would hand the driver no argument at all for None
    return np.int64(value) if isinstance(value, int) else value


def load(
    cell: Cell, dtype: str, rows: int, units: tuple[int, ...], strided: tuple[Array | None, ...], options: bool,
    normalised: bool,
) -> Kernels:  # fmt: skip
    """Return the kernels for arrays of this many rows and units.

    units: every width of a row that the kernels see. strided: arrays [T, B, width] from outside. Whole vectors need
    all of them to be made of whole vectors. options, normalised: see Variant.
    """
    width = source.widths(dtype)[1]
    wide = rows * min(units) >= WIDE_ELEMENTS and all(n % width == 0 for n in units)
    wide = wide and all(array is None or _aligned(array) for array in strided)
    variant = Variant(cell.name, dtype, width if wide else 1, options or normalised, normalised)
    return _load(variant, cupy.cuda.Device().id)


def _aligned(array: Array) -> bool:
    """Whether every row of an array [T, B, width] begins at a whole vector."""
    return not any(n % source.VECTOR_BYTES for n in (array.data.ptr, *array.strides[:2]))  # type: ignore[attr-defined]


@cache
def _load(variant: Variant, device: int) -> Kernels:
    capability = int(cupy.cuda.Device(device).compute_capability)
    if variant.dtype == "bfloat16" and capability < source.FIRST_BFLOAT16:
        raise TypeError(f"dtype: bfloat16 needs a GPU of compute capability 8.0, device {device} has less")
    ahead = source.compiled(variant, capability)
    if ahead is not None:
        return Kernels(cupy.RawModule(path=str(ahead)), variant.width, variant.normalised)
    module = cupy.RawModule(code=source.assemble(variant), options=source.OPTIONS)
    return Kernels(module, variant.width, variant.normalised)


class Pass(NamedTuple):
    """A kernel on the chip, of one direction through time."""

    function: Any
    shared_bytes: int
    shown: int  # elements that the blocks of a group exchange

    @property
    def spills(self) -> bool:
        """Whether the compiler keeps registers in memory."""
        return bool(self.function.local_size_bytes)


def passes(module: Any, variant: OnChip) -> dict[str, Pass]:
    """Return both kernels of a variant by name, ready to be launched."""
    found = {
        "onchip_forward": Pass(module.get_function("onchip_forward"), variant.forward_bytes, variant.forward_shown),
        "onchip_backward": Pass(module.get_function("onchip_backward"), variant.backward_bytes, variant.backward_shown),
    }
    for one in found.values():
        one.function.max_dynamic_shared_size_bytes = one.shared_bytes
    return found


class OnChipKernels:
    """The kernels of one layout of a plan on the chip on the current device; both passes may be of two variants of it.

    Variants of a layout pack the weights alike, `variant` is any of them.
    """

    def __init__(self, module: Any, variant: OnChip, passes: dict[str, Pass]) -> None:
        self.passes, self._variant = passes, variant
        self._packing = {name: module.get_function(name) for name in ("onchip_pack_forward", "onchip_pack_backward")}

    def launch(self, name: str, rows: int, *args: Any) -> Callable[[], None]:
        """Return what runs a kernel on all rows, and allocates nothing; None is a null pointer, an int has 64 bits.

        Blocks that share units wait for each other, so no more of them are launched than run at once.
        """
        function, shared_bytes, shown = self.passes[name]
        variant, groups = self._variant, -(-rows // self._variant.rows)
        block, given = (variant.threads,), tuple(map(_argument, args))
        if variant.plan == "block":
            nothing = tuple(map(_argument, (None, None, 0)))
            return partial(function, (groups,), block, (*given, *nothing), shared_mem=shared_bytes)
        exchange, flags = cupy.zeros((groups, shown), variant.dtype), cupy.zeros((groups, FLAG_WORDS), np.uint32)
        at_once = chip(cupy.cuda.Device().id).processors // variant.blocks

        def run() -> None:
            for first in range(0, groups, at_once):
                grid = (variant.blocks, min(at_once, groups - first))
                function(grid, block, (*given, exchange, flags, np.int64(first)), shared_mem=shared_bytes)

        return run

    def packed(self, name: str, weights: Array) -> Array:
        """Run the kernel that brings the recurrent weights into the order in which the threads load them."""
        variant = self._variant
        vectors = variant.forward_vectors if name == "onchip_pack_forward" else variant.backward_vectors
        count = vectors * variant.blocks * variant.threads * source.VECTOR_BYTES // weights.itemsize
        out: Array = cupy.empty(count, weights.dtype)
        arguments = tuple(map(_argument, (weights, out, weights.shape[1])))
        self._packing[name]((vectors, variant.blocks), (variant.threads,), arguments)
        return out


@cache
def load_on_chip(variants: tuple[OnChip, ...], device: int) -> OnChipKernels:
    """Return the kernels of one layout: of each pass that of the first variant that spills no registers.

    device: the current one. Warns where one spills in all variants: results are right, but slower than the plan's model
    has it.
    """
    first = None
    for variant in variants:
        code, together = source.assemble_on_chip(variant), variant.plan == "grid"
        module = cupy.RawModule(code=code, options=source.OPTIONS, enable_cooperative_groups=together)
        found = passes(module, variant)
        if first is None:  # more blocks pack than run at once, so not by a module whose kernels all must
            first = OnChipKernels(cupy.RawModule(code=code, options=source.OPTIONS), variant, found)
        for name, one in found.items():
            if first.passes[name].spills and not one.spills:
                first.passes[name] = one
        if not any(one.spills for one in first.passes.values()):
            return first
    assert first is not None, "a layout has variants"
    warnings.warn(
        f"{variants[0]}: this compiler keeps registers in memory in all of {len(variants)} variants; with "
        'fastrnn.cuda.choice.forced("step") the layer runs step by step',
        RuntimeWarning, stacklevel=2,
    )  # fmt: skip
    return first


@cache
def load_masks(device: int) -> Kernels:
    """Return the kernel of the random words."""
    return Kernels(cupy.RawModule(code=source.masks(), options=source.OPTIONS), 4)
