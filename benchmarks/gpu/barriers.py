"""The barrier micro-benchmark: kinds of barrier between blocks, over numbers of blocks; see barriers.cu."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.gpu import device
from benchmarks.gpu.record import Record

KINDS = {"counter": 0, "flags": 1, "cluster": 2, "cooperative groups": 3, "syncthreads": 4}
BLOCKS = {"cluster": (2, 4, 8, 16), "syncthreads": (1,)}  # a cluster of 16 is more than every chip promises
THREADS, FEW, MANY = 256, 100, 2100


def source(kind: str, blocks: int) -> str:
    """The kernel of one kind; a cluster's size is fixed when it is compiled."""
    text = Path(__file__).with_name("barriers.cu").read_text(encoding="utf-8")
    return f"#define KIND {KINDS[kind]}\n#define BLOCKS {blocks}\n{text}"


def block_counts(kind: str, multiprocessors: int) -> list[int]:
    """Numbers of blocks that fit on the device at once."""
    counts = BLOCKS.get(kind, (2, 8, 16, 32, 64, multiprocessors))
    return sorted({count for count in counts if count <= multiprocessors})


def run(record: Record) -> None:
    """Measure every kind."""
    import cupy

    multiprocessors = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["multiProcessorCount"]
    for kind in KINDS:
        for blocks in block_counts(kind, multiprocessors):
            record.run(f"{kind} {blocks}", lambda kind=kind, blocks=blocks: measure(kind, blocks))


def measure(kind: str, blocks: int) -> dict[str, Any]:
    """Microseconds a barrier: the difference of two numbers of rounds, so that the launch does not count."""
    import cupy

    kernel = _kernel(kind, blocks)
    exchange, out = cupy.empty(2 * blocks, "uint32"), cupy.empty(blocks, "uint32")
    flags = cupy.empty(blocks, "uint32")

    def call(rounds: int) -> None:
        flags.fill(0)
        kernel((blocks,), (THREADS,), (exchange, out, flags, cupy.uint32(rounds)))

    for rounds in (1, FEW, MANY):
        call(rounds)
        if not (out.get() == rounds).all():
            raise AssertionError(f"wrong: {out.get()[:4]} after {rounds} rounds, the barrier does not hold")
    times = device.times({"few": lambda: call(FEW), "many": lambda: call(MANY)})
    return {"us": 1e3 * (times["many"]["ms"] - times["few"]["ms"]) / (MANY - FEW), "times": times}


@cache
def _kernel(kind: str, blocks: int) -> Any:
    import cupy

    module = cupy.RawModule(
        code=source(kind, blocks), options=("--std=c++17",),
        enable_cooperative_groups=kind not in ("cluster", "syncthreads"),
    )  # fmt: skip
    return module.get_function("exchange_rounds")
