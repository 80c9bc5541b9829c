"""Sizes that others have published figures for; fastrnn beside cuDNN on each.

Sources: DeepBench, code/kernels/rnn_problems.h; FlashRNN (2024), the figure of speeds; Haste's benchmark grid; and
pytorch#149194 (packed against padded sequences, two layers), whose sizes but for T are ours: B = 32, H = 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from benchmarks.gpu.compare import Case, compare
from benchmarks.gpu.record import Record

PACKED_STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000)
GRU_STEPS, GRU_HIDDEN = (1500, 750, 375, 187), (2816, 2048, 1536, 2560)


def deepbench_training() -> Iterator[tuple[str, int, int, int]]:
    """Cell, H, B, T of the 53 training problems."""
    yield from (("rnn_tanh", H, B, 50) for H in (1760, 2048, 2560) for B in (16, 32, 64, 128))
    yield from (("lstm", H, B, 25) for H in (512, 1024, 2048, 4096) for B in (16, 32, 64, 128))
    yield from (("lstm", 1536, B, 50) for B in (8, 16, 32))
    yield from (("lstm", 256, B, 150) for B in (16, 32, 64))
    yield from (("gru", H, 32, T) for H in GRU_HIDDEN for T in GRU_STEPS)
    yield from (("gru", H, B, T) for H, B, T in ((512, 32, 1), (1024, 32, 1500), (1024, 64, 1500)))


def deepbench_inference() -> Iterator[tuple[str, int, int, int]]:
    """Cell, H, B, T of the 69 inference problems of servers."""
    few = (1, 2, 4)
    yield from (("lstm", H, B, 25) for H in (512, 1024, 2048) for B in few)
    yield from (("lstm", H, B, T) for H, T in ((1536, 50), (256, 150)) for B in few)
    yield from (("gru", H, B, T) for H in GRU_HIDDEN for B in few for T in GRU_STEPS)
    yield from (("gru", H, B, T) for H, T in ((512, 1), (1024, 1500)) for B in few)


def cases() -> dict[str, list[Case]]:
    """The cases of each table."""
    cells, dtypes = ("lstm", "gru"), ("float16", "bfloat16")
    point = {(B, 1024) for B in (2, 4, 8, 16, 32, 64, 128, 256)} | {(16, T) for T in (256, 512, 1024, 2048)}
    return {
        "packed": [Case("lstm", "float32", T, 32, 256, 2, "triangular") for T in PACKED_STEPS],
        "flashrnn": [Case("lstm", dtype, T, B, 768) for dtype in dtypes for B, T in sorted(point)],
        "haste": [
            Case(cell, "float32", 50, B, H)
            for cell, B, H in product(cells, (1, 16, 32, 64, 128), (128, 256, 512, 1024, 2048, 4096))
        ],
        "deepbench training": [Case(cell, "float32", T, B, H) for cell, H, B, T in deepbench_training()],
        "deepbench inference": [Case(cell, "float16", T, B, H) for cell, H, B, T in deepbench_inference()],
    }


def run(record: Record) -> None:
    """Measure every case of every table."""
    for table, rows in cases().items():
        for case in rows:
            record.run(f"{table} {case}", lambda case=case: compare(case))
