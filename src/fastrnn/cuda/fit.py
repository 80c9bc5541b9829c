"""How the weights of a layer lie on a chip for the plans `block` and `grid`: registers first, shared memory second.

csrc/onchip.cuh, the products and who takes part count the same at compile time and refuse to compile where they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from fastrnn.cells import Cell
from fastrnn.cuda.chip import Chip
from fastrnn.cuda.source import FIRST_BFLOAT16, OnChip, item_bytes

MOST_REGISTERS = 255  # of a thread
SPARE = (0, 8, 16, 24, 32, 48, -8, -16)  # registers of a thread that further tries leave to the compiler besides
FMA_THREADS, MMA_WARPS = 320, 16  # most of a block. Not yet measured.
MMA_ROWS, FMA_ROWS = 8, (1, 2, 4, 8)  # of a block
TOGETHER = 8  # rows that a product takes at a time
PARTITIONS = 4  # of a processor, on all chips
RESERVED = 1 << 10  # bytes of shared memory that a processor has besides for each block, of which a block gets none
VECTOR, QUAD, PAIR = 16, 4, 32  # bytes of a vector; terms of a quad and of a fragment, see fma.cuh, mma.cuh
# Of `grid`. Not yet measured.
SPLIT_UNITS, SPLIT_WARPS = (16, 32, 48, 64), range(4, 13)  # of a block, with tensor cores
SHARED_UNITS, SHARED_SLICES, SHARED_THREADS = (4, 8, 12, 16, 24, 32), (8, 16, 32), (128, 384)  # without
GROUP_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


class Layout(NamedTuple):
    """A block: how its threads share the units and rows."""

    plan: str
    tensor: bool
    units: int
    rows: int
    slices: int  # threads that share a unit's terms, without tensor cores
    groups: int  # of 16 units that a warp has, with
    threads: int
    all_units: int  # that a product sees
    blocks: int  # that share the units

    @property
    def split(self) -> bool:
        """Whether warps share the terms: split.cuh."""
        return self.tensor and self.plan == "grid"

    @property
    def together(self) -> int:
        """Rows that a product takes at a time."""
        return min(self.rows, TOGETHER)

    @property
    def own(self) -> int:
        """Pairs of a unit and a row that a thread has."""
        if self.split:
            return -(-self.units * self.rows // self.threads)
        if self.tensor:
            return 4 * self.groups
        times, sharers = self.rows // self.together, max(1, self.slices // self.together)
        return max(1, self.together // self.slices) * -(-times // sharers)


class Product(NamedTuple):
    """A product of onchip.cuh: `gates` results a unit, each a sum of `terms`."""

    layout: Layout
    gates: int
    terms: int

    @property
    def parts(self) -> int:
        """Of the weights of a thread: quads of all gates, or fragments."""
        if self.layout.tensor:
            warps = self.layout.threads // 32 if self.layout.split else 1
            return -(-self.terms // PAIR) // warps * self.layout.groups * self.gates
        return self.terms // self.layout.slices // QUAD

    @property
    def registers(self) -> int:
        """Of a part."""
        return 2 * VECTOR // 4 if self.layout.tensor else self.gates * QUAD

    @property
    def sums(self) -> int:
        """Registers of the sums."""
        if not self.layout.tensor:
            return self.gates * self.layout.together
        together = self.layout.groups * self.gates
        return 4 * together * (1 if together >= 4 else 2 if together >= 2 else 4)

    @property
    def seen(self) -> int:
        """Bytes of what it reads besides weights."""
        if self.layout.split:
            return self.layout.rows * self.terms * 2
        if self.layout.tensor:
            padded = -(-self.terms // PAIR) * PAIR
            shifted = (self.layout.rows // 2 - 1) * VECTOR  # so that rows written at once are in different banks
            return self.layout.rows * (padded if padded % (2 * PAIR) else padded + PAIR) * 2 + shifted
        each = self.terms // self.layout.slices
        return self.layout.rows * self.layout.slices * (each if each % 8 else each + QUAD) * 4

    @property
    def scratch(self) -> int:
        """Bytes of shared memory for the warps' sums."""
        if not self.layout.split:
            return 0
        return self.layout.threads // 32 * self.gates * self.layout.rows * (self.layout.units + 4) * 4

    @property
    def read(self) -> int:
        """Bytes of shared memory that all warps together read, and write, besides weights.

        What several lanes read at once counts once.
        """
        return 2 * self.scratch if self.layout.split else self.seen * (self.layout.threads // 32)

    def staged(self, places: int) -> int:
        """Bytes of shared memory for what it reads, in this many places in turn."""
        if self.layout.plan == "grid":
            places = 0 if self.layout.tensor else 1
        return places * self.seen

    def outside(self, kept: int) -> int:
        """Bytes of the weights in shared memory if this many parts are in registers."""
        return (self.parts - kept) * self.layout.threads * self.registers * 4


class Fit(NamedTuple):
    """How a layer lies on a chip; pairs are for the forward and the backward pass.

    What the compiler does with registers is not to be foreseen to the last: it may spill with fewer weights in them
    where it did not with more. So there are several variants, and who compiles them takes for each pass the first that
    spills nothing (kernels.load_on_chip); tests/test_cuda_compile.py compiles every third size.
    """

    variants: tuple[OnChip, ...]
    layout: Layout
    products: tuple[list[Product], list[Product]]
    shared_weights: tuple[int, int]  # bytes of the weights that are in shared memory
    resident: int  # blocks that a processor runs at once, at least

    @property
    def all_weights(self) -> int:
        """Bytes of the weights."""
        return sum(product.outside(0) for product in self.products[0])


@lru_cache(1024)  # it is asked again for every other T
def fit(cell: Cell, dtype: str, hidden: int, batch: int, options: bool, chip: Chip) -> Fit | str:
    """Return how a layer lies on one block of a chip; a reason where it does not."""
    layouts = _layouts(dtype, hidden, batch, chip)
    if isinstance(layouts, str):
        return layouts
    lacking = list[Lack]()
    for layout in layouts:
        found = _fit(cell, dtype, layout, options, chip)
        if isinstance(found, Fit):
            return found
        lacking.append(found)
    return _reason("a block with all weights", min(lacking), chip)


def spread(cell: Cell, dtype: str, hidden: int, batch: int, options: bool, chip: Chip) -> list[Fit] | str:
    """Return how a layer may lie on blocks that share its units; a reason where it does not."""
    if reason := _unserved(dtype, chip):
        return reason
    fits, lacking = list[Fit](), list[Lack]()
    for units, slices, threads, all_units in _slices(dtype, hidden):
        blocks = -(-hidden // units)
        if blocks > chip.processors:
            continue
        tensor, needed = slices == 0, -(-batch // (chip.processors // blocks))  # rows, for one launch to do
        served = [rows for rows in GROUP_ROWS if rows >= TOGETHER or not tensor]
        enough = next((k for k, rows in enumerate(served) if rows >= needed), len(served) - 1)
        for rows in served[enough::-1]:  # with fewer there are more launches
            layout = Layout("grid", tensor, units, rows, slices, units // 16, threads, all_units, blocks)
            found = _fit(cell, dtype, layout, options, chip)
            if isinstance(found, Fit):
                fits.append(found)
                break
            lacking.append(found)
    if fits:
        return fits
    if not lacking:
        return f"{hidden} units are more than {chip.processors} processors share"
    return _reason("a slice of its weights", min(lacking), chip)


class Lack(NamedTuple):
    """What a layout needs more of than there is; compared, one that lacks registers is the larger."""

    registers: int  # of a thread besides weights; 0 if they suffice
    shared: int  # bytes


def _reason(what: str, needed: Lack, chip: Chip) -> str:
    if needed.registers:
        return f"{what} leaves a thread fewer than the {needed.registers} registers that it needs besides"
    return f"{what} needs {needed.shared >> 10} KiB of shared memory besides all registers, of {chip.shared >> 10}"


def _slices(dtype: str, hidden: int) -> Iterator[tuple[int, int, int, int]]:
    """Ways to share units: units of a block, slices of the terms (0 with tensor cores), threads, terms."""
    if item_bytes(dtype) == 2:
        for units in SPLIT_UNITS:
            for warps in SPLIT_WARPS:
                yield units, 0, 32 * warps, -(-hidden // (PAIR * warps)) * PAIR * warps
        return
    for units in SHARED_UNITS:
        for slices in SHARED_SLICES:
            if SHARED_THREADS[0] <= units * slices <= SHARED_THREADS[1]:
                yield units, slices, -(-units * slices // 32) * 32, -(-hidden // (QUAD * slices)) * QUAD * slices


@lru_cache(4096)  # the same for many batches
def _fit(cell: Cell, dtype: str, layout: Layout, options: bool, chip: Chip) -> Fit | Lack:
    """How a layer lies on blocks of this layout; or what it lacks."""
    most, inner = registers_of(layout.threads, chip), len(cell.gates) - (cell.gated is not None)
    products = tuple(
        [Product(layout, *first)] + [Product(layout, 1, layout.all_units)] * (cell.gated is not None)
        for first in ((inner, layout.all_units), (1, inner * layout.all_units))
    )
    needed = [needs(cell, layout, of[0].sums, bool(number), options, chip) for number, of in enumerate(products)]
    if max(needed) > most:
        return Lack(max(needed), 0)
    tries = [
        [_placed(cell, layout, of, most - needed[number] - spare) for spare in SPARE]
        for number, of in enumerate(products)
    ]
    enough = 2 if layout.own >= 4 and not layout.tensor else 1  # of the tries besides the first: else all may spill
    if (shared := max(of_pass[enough].shared for of_pass in tries)) > chip.shared:
        return Lack(0, shared)
    forward, backward = ([one for one in dict.fromkeys(of_pass) if one.shared <= chip.shared] for of_pass in tries)
    vectors = [sum(product.outside(0) for product in of) // layout.threads // VECTOR for of in products]
    shown = [0, 0]
    if layout.plan == "grid":
        shown = [(of[0].seen + sum(product.seen for product in of)) // item_bytes(dtype) for of in products]
    told = (
        layout.plan, cell.name, dtype, layout.units, layout.all_units, layout.blocks, layout.rows, layout.slices,
        layout.threads, options,
    )  # fmt: skip
    variants = list[OnChip]()
    for k in range(max(len(forward), len(backward))):  # a pass that has no more tries keeps its last
        one, other = forward[min(k, len(forward) - 1)], backward[min(k, len(backward) - 1)]
        variants.append(OnChip(*told, *one.kept, *other.kept, one.shared, other.shared, *vectors, *shown))  # type: ignore[call-arg]
    shared = (chip.shared + RESERVED) // (max(forward[0].shared, backward[0].shared) + RESERVED)
    resident = max(1, min(shared, chip.registers // (layout.threads * most)))
    return Fit(tuple(variants), layout, products, (forward[0].weights, backward[0].weights), resident)  # type: ignore[arg-type]


class Placed(NamedTuple):
    """Where the weights of a pass are; `kept` parts of both products in registers, the others in shared memory."""

    kept: tuple[int, ...]
    shared: int  # bytes that the pass needs
    weights: int  # of them, weights


def _placed(cell: Cell, layout: Layout, products: list[Product], left: int) -> Placed:
    """Where the weights of a pass are if a thread has this many registers left for them."""
    vectors = (len(cell.gates) + bool(cell.separate) + cell.unit_parameters) * layout.units * 4
    kept = list[int]()
    for product in products:
        kept.append(max(0, min(product.parts, left // product.registers)))
        left -= kept[-1] * product.registers
    weights = sum(map(Product.outside, products, kept))
    staged = products[0].staged(2) + sum(product.staged(1) for product in products[1:])
    shared = vectors + staged + weights + max(product.scratch for product in products)
    return Placed((*kept, 0)[:2], shared, weights)


def _unserved(dtype: str, chip: Chip) -> str:
    """Why there is no product of this dtype; empty if there is."""
    if dtype == "float64":
        return "it computes in float32"
    if item_bytes(dtype) == 2 and chip.capability < FIRST_BFLOAT16:
        return "its products of 16 bits need compute capability 8.0"
    return ""


def _layouts(dtype: str, hidden: int, batch: int, chip: Chip) -> list[Layout] | str:
    """Layouts of a block with all units, the best first; a reason where there is none."""
    if reason := _unserved(dtype, chip):
        return reason
    if item_bytes(dtype) == 2:
        if hidden > 32 * MMA_WARPS:
            return f"{hidden} units are more than {32 * MMA_WARPS}"
        # With two groups of units a warp there are fewer threads, which have more registers each.
        return [
            Layout("block", True, units, MMA_ROWS, 1, groups, 2 * units // groups, units, 1)
            for groups in (1, 2) for units in (-(-hidden // (16 * groups)) * 16 * groups,)
            if units <= 16 * groups * MMA_WARPS
        ]  # fmt: skip
    units = -(-hidden // 16) * 16
    slices = next((n for n in (8, 4, 2, 1) if units * n <= FMA_THREADS and units % (QUAD * n) == 0), 0)
    if not slices:
        return f"{hidden} units are more than {FMA_THREADS} threads"
    threads = -(-units * slices // 32) * 32
    most = next((n for n in FMA_ROWS if -(-batch // n) <= chip.processors), FMA_ROWS[-1])
    served = [rows for rows in FMA_ROWS if rows <= most]  # with fewer a thread needs less besides weights
    return [Layout("block", False, units, rows, slices, 0, threads, units, 1) for rows in served[::-1]]


def registers_of(threads: int, chip: Chip) -> int:
    """The most that a thread can have: a quarter of a processor runs a quarter of the warps, rounded up."""
    warps = -(-threads // 32 // PARTITIONS)
    return min(MOST_REGISTERS, chip.registers // PARTITIONS // (32 * warps) // 8 * 8)


def needs(cell: Cell, layout: Layout, sums: int, backward: bool, options: bool, chip: Chip) -> int:
    """Registers of a thread that hold no weights, about: what NVRTC 12.9 was seen to need without spilling.

    Besides the sums: without tensor cores 72 forward and 104 backward for one pair a thread, 40 and 36 more for four;
    with them, four pairs of a plain cell, by its gates, 76 to 88 forward and 86 to 110 backward, of others 112 and 110.
    Forward, four pairs of a gated cell need 8 more, the options as much again, with tensor cores for every cell, and
    chips since sm_100 24 more with tensor cores.
    """
    gated, own = cell.gated is not None, layout.own
    if not layout.tensor:
        return sums + (92 + 12 * own if backward else 58 + (14 + 2 * gated * (1 + options)) * own)
    late = 6 * (chip.capability >= 100)
    if layout.split:
        return sums + (72 + (16 + 4 * gated) * own if backward else 60 + (12 + 8 * gated + 2 * options + late) * own)
    more = 0 if backward else (2 * (gated + options) + late) * own
    known = cell.cuda is not None and cell.cuda[0].endswith(".cuh")  # a user's cell is taken for the hardest
    if known and not (cell.separate or gated or cell.unit_parameters):
        gates = len(cell.gates)
        return sums + more + (46 + (8 + 2 * gates) * own if backward else 40 + (8 + gates) * own)
    return sums + more + (46 if backward else 48) + 16 * own
