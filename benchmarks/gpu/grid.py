"""fastrnn beside cuDNN in one run: B 1 to 256, H 128 to 2048, T 50 to 1000, by dtype and cell."""

from __future__ import annotations

from itertools import product

from benchmarks.gpu.compare import Case, compare
from benchmarks.gpu.record import Record

DTYPES, CELLS = ("bfloat16", "float32", "float16"), ("lstm", "gru", "rnn_tanh")
STEPS, BATCHES, HIDDEN = (250, 50, 1000), (16, 1, 64, 256), (512, 1024, 128, 256, 2048)


def cases() -> list[Case]:
    """The most telling ones first: several short visits add up."""
    return [Case(*of) for of in product(CELLS, DTYPES, STEPS, BATCHES, HIDDEN)]


def run(record: Record) -> None:
    """Measure every case."""
    for case in sorted(cases(), key=lambda case: STEPS.index(case.T)):
        record.run(str(case), lambda case=case: compare(case))
