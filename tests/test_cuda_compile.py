"""The compile gate: every variant for every chip, with no GPU; none may spill, and what each needs is printed."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nvrtc
import pytest
from cases import CELLS

from benchmarks.gpu import barriers

pytestmark = pytest.mark.skipif(bool(nvrtc.unavailable()), reason=nvrtc.unavailable())
CHIPS = ("sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120")
REGISTERS, SHARED = 255, 48 << 10  # of a thread; bytes of a block that asks for no more: the same on all these chips
KERNELS = {"step_forward", "project_forward", "step_backward", "project_backward", "initial_backward"}
GATED = {"gate_forward", "gate_backward"}
NORMALISED = {"input_moments", "gains_backward", "diagonal_forward", "diagonal_backward"}


def offered(dtype: str, chip: str) -> bool:
    """Whether the backend has this dtype on this chip: cuBLAS multiplies bfloat16 from sm_80 on."""
    return not (dtype == "bfloat16" and chip == "sm_75")


def everyday(variant: Any, chip: str) -> bool:
    """Whether it is compiled everyday: for Hopper all; for the other chips each cell's plain kernels, in one dtype.

    All for all, in the nightly run, take twenty minutes of a core. Whole vectors need the most registers.
    """
    return chip == "sm_90a" or (variant.width > 1 and not variant.options and variant.dtype == "float32")


EVERY = [
    pytest.param(cell, chip, now, marks=[] if now else [pytest.mark.nightly])
    for cell in CELLS
    for chip in CHIPS
    for now in (True, False)
    if now or chip != "sm_90a"
]


@pytest.mark.parametrize(("cell", "chip", "now"), EVERY)
def test_every_variant_compiles_without_spills(
    cell: str, chip: str, now: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastrnn.cuda import source

    if not nvrtc.knows(chip):
        pytest.skip(f"this NVRTC does not know {chip}")
    rows = []
    variants = [v for v in source.variants() if v.cell == cell and offered(v.dtype, chip) and everyday(v, chip) is now]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda v: nvrtc.compile_for(chip, source.assemble(v), source.OPTIONS), variants))
    for variant, usage in zip(variants, compiled, strict=True):
        optional = (GATED if CELLS[cell].gated else set()) | (NORMALISED if variant.normalised else set())
        assert set(usage) == KERNELS | optional
        for name, used in usage.items():
            what = f"{variant} {name} for {chip}"
            assert used.spills == 0, f"{what} spills {used.spills} bytes"
            assert used.stack == 0, f"{what} keeps {used.stack} bytes of registers in memory"
            assert 0 < used.registers <= REGISTERS, what
            assert used.shared <= SHARED, f"{what} needs {used.shared} bytes of shared memory"
            assert used.code > 0, what
            if variant.width > 1 and not variant.normalised:  # whose statistics go along a row, a lane an element
                assert used.singles == 0, f"{what} loads or stores single elements"
            rows.append(f"{chip:8} {variant!s:40} {name:17} {used.registers:9} {used.shared:6} {used.code:6}")
    with capsys.disabled():
        print(f"\n{'chip':8} {'variant':40} {'kernel':17} registers shared   code", *rows, sep="\n")


ON_CHIP = {"onchip_pack_forward", "onchip_pack_backward", "onchip_forward", "onchip_backward"}
HARDEST = ("lstm", "gru_reset_before")  # cells of which everyday one layout a dtype is compiled


def limits(chip: str) -> Any:
    """What a block of each of these chips may have (CUDA C++ Programming Guide, technical specifications)."""
    from fastrnn.cuda.chip import Chip

    capability = int("".join(filter(str.isdigit, chip)))
    shared, processors = {75: (64, 40), 80: (163, 108), 90: (227, 132), 100: (227, 148), 120: (99, 170)}[capability]
    return Chip(capability, processors, 1.5e9, shared << 10, 65536)


def layouts(cell: str, dtype: str, chip: str) -> list[Any]:
    """Layouts of the block plan, with one row of the batch and with many, in steps of 48 units from the largest down.

    All, in steps of 16, take an hour of a core for one chip.
    """
    from fastrnn.cuda.fit import fit

    found = list[Any]()
    for batch, options in ((1, False), (1, True), (2000, False), (2000, True)):
        of_sizes = [fit(CELLS[cell], dtype, units, batch, options, limits(chip)) for units in range(16, 513, 16)]
        found += [one.variants for one in of_sizes if not isinstance(one, str)][::-1][::3][::-1]
    return list(dict.fromkeys(found))


SPREAD = (192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792, 2048)


def spread_layouts(cell: str, dtype: str, chip: str) -> list[Any]:
    """Layouts of the grid plan that the model takes, with one row of the batch, with some and with many."""
    from fastrnn.cuda.choice import _best_spread

    found = list[Any]()
    for batch, options in ((1, False), (16, False), (64, True), (256, False)):
        of_sizes = [_best_spread(CELLS[cell], dtype, units, batch, options, limits(chip)) for units in SPREAD]
        found += [one.variants for one in of_sizes if not isinstance(one, str)]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    ("plan", "cell", "chip", "now"),
    [
        pytest.param(plan, cell, chip, now, marks=[] if now else [pytest.mark.nightly])
        for plan in ("block", "grid") for cell in CELLS for chip in CHIPS for now in (True, False)
        if not now or (chip == "sm_90a" and cell in HARDEST)
    ],
)  # fmt: skip
def test_the_plans_on_the_chip_compile_without_spills_up_to_their_largest_size(
    plan: str, cell: str, chip: str, now: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastrnn.cuda import source
    from fastrnn.cuda.fit import registers_of

    if not nvrtc.knows(chip):
        pytest.skip(f"this NVRTC does not know {chip}")
    dtypes = ("float32", "bfloat16") if now else ("float32", "bfloat16", "float16")
    served = [{"block": layouts, "grid": spread_layouts}[plan](cell, dtype, chip) for dtype in dtypes]
    assert (chip == "sm_75") is (served[1] == []), "16 bits need tensor cores that know them"
    assert served[0]
    tried = [one for of_dtype in served[:2] for one in (of_dtype[-1:] if now else of_dtype)]
    tried += [one for of_dtype in served[2:] for one in of_dtype[-1:]]  # float16's layouts are bfloat16's

    def first_without_spills(variants: Any) -> Any:
        """Of each kernel, as kernels.load_on_chip."""
        found = dict[str, Any]()
        for variant in variants:
            usage = nvrtc.compile_for(chip, source.assemble_on_chip(variant), source.OPTIONS)
            assert set(usage) == ON_CHIP
            for name, used in usage.items():
                if name not in found and not (used.spills or used.stack):
                    found[name] = variant, used
            if len(found) == len(usage):
                return found
        return f"{variants[0]} for {chip}: {ON_CHIP - set(found)} spill in all of {len(variants)} variants"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(first_without_spills, tried))
    assert not [one for one in compiled if isinstance(one, str)]
    rows = []
    for variants, found in zip(tried, compiled, strict=True):
        most = registers_of(variants[0].threads, limits(chip))  # with more, the launch would fail
        assert all(0 < used.registers <= most for _, used in found.values())
        assert all(used.shared == 0 for _, used in found.values()), "what a kernel needs is given by the launch"
        (forward, of_forward), (backward, of_backward) = found["onchip_forward"], found["onchip_backward"]
        needed = max(forward.forward_bytes, backward.backward_bytes)
        assert needed <= limits(chip).shared
        registers = f"{of_forward.registers:4} {of_backward.registers:4}"
        place = f"{variants.index(forward) + 1} and {variants.index(backward) + 1} of {len(variants)}"
        rows.append(f"{chip:8} {variants[0]!s:48} {forward.threads:7} {registers:9} {needed >> 10:4}  {place}")
    with capsys.disabled():
        print(f"\n{'chip':8} {'layout':48} threads registers  KiB  variants", *rows, sep="\n")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_products_and_sums_are_rounded_each(dtype: str) -> None:
    """Else the compiler could fuse them in one width and not in another. This kernel calls no function that fuses."""
    from fastrnn.cuda import source

    cell = next(name for name, cell in CELLS.items() if cell.gated)
    for variant in (v for v in source.variants() if v[:2] == (cell, dtype)):
        code = source.assemble(variant)
        assert "fma." not in nvrtc.ptx_of("gate_backward", "sm_90", code, source.OPTIONS)
        assert "fma." in nvrtc.ptx_of("gate_backward", "sm_90", code, ("--std=c++17",))  # what is seen without


@pytest.mark.parametrize("chip", CHIPS)
def test_the_random_words_compile(chip: str) -> None:
    from fastrnn.cuda import source

    if not nvrtc.knows(chip):
        pytest.skip(f"this NVRTC does not know {chip}")
    usage = nvrtc.compile_for(chip, source.masks(), source.OPTIONS)
    assert set(usage) == {"random_words"}
    assert usage["random_words"].spills == 0


@pytest.mark.parametrize("chip", CHIPS)
def test_the_barrier_of_a_group_of_blocks_is_what_its_order_rests_on(chip: str) -> None:
    """Nothing that runs on the CPU has this body of it: there the group is a cluster."""
    from fastrnn.cuda import source

    if not nvrtc.knows(chip):
        pytest.skip(f"this NVRTC does not know {chip}")
    kernel = """
extern "C" __global__ void meet(float* shown, unsigned* flag, float* y) {
  put(shown + threadIdx.x, 1.f);
  group_arrive(flag), group_wait(flag, gridDim.x);
  put(y + threadIdx.x, fetch(shown + (threadIdx.x ^ 1)));
}
"""
    text = nvrtc.ptx_of("meet", chip, source.expand("memory.cuh") + kernel, source.OPTIONS)
    found = re.findall(r"(?:st|ld|red)\.(?:\w+\.)*global|bar\.sync|@\S+ bra", text)
    assert [what.split(" ")[-1] for what in found] == [
        "st.global", "bar.sync", "bra", "red.release.gpu.global",  # all have written, then one thread arrives;
        "bra", "ld.acquire.gpu.global", "bra", "bar.sync", "ld.global", "st.global",  # one looks until all are there
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in barriers.KINDS if kind != "cooperative groups"])  # needs headers
def test_the_barriers_compile(kind: str) -> None:
    chips = ("sm_90a",) if kind == "cluster" else ("sm_75", "sm_90a")
    for chip in chips:
        usage = nvrtc.compile_for(chip, barriers.source(kind, 8), ("--std=c++17",))
        assert usage["exchange_rounds"].spills == 0


def test_the_gate_sees_spills_and_errors() -> None:
    spilling = """
extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
  float a[200];
  for (int k = 0; k < 200; ++k) a[k] = x[k * blockDim.x + threadIdx.x];
  for (int n = 0; n < 9; ++n)
    for (int k = 0; k < 200; ++k) a[k] = a[k] * a[(k + 7) % 200] + n;
  for (int k = 0; k < 200; ++k) y[k * blockDim.x + threadIdx.x] = a[k];
}
"""
    assert nvrtc.compile_for("sm_80", spilling, ())["spills"].spills > 0
    with pytest.raises(RuntimeError, match='identifier "undeclared" is undefined'):
        nvrtc.compile_for("sm_80", "__global__ void f() { undeclared(); }", ())


def test_bfloat16_is_declined_where_the_chip_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import kernels
    from fastrnn.cuda.source import Variant

    assert [chip for chip in CHIPS if not offered("bfloat16", chip)] == ["sm_75"]

    class Turing:
        compute_capability = "75"

        def __init__(self, device: int) -> None:
            pass

    monkeypatch.setattr(kernels.cupy.cuda, "Device", Turing)
    with pytest.raises(TypeError, match=r"dtype: bfloat16 needs a GPU of compute capability 8.0"):
        kernels._load.__wrapped__(Variant("lstm", "bfloat16", 1), 0)
