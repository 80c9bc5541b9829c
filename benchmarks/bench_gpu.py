"""A few CUDA cases under pytest-benchmark; `python -m benchmarks.gpu` is the whole of it, beside cuDNN and checked."""

import pytest

from benchmarks.gpu.__main__ import missing
from benchmarks.gpu.compare import Case, Ours, Problem, Torch

CASES = [
    Case(cell, dtype, 100, batch, 512)
    for cell in ("lstm", "gru", "rnn_tanh")
    for dtype in ("float32", "bfloat16")
    for batch in (1, 64)
]


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # where there is no GPU
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("contestant", [Ours, Torch])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_gpu(case, contestant, mode, benchmark):
    if reason := missing():
        pytest.skip(reason)
    from benchmarks.gpu import device

    call = getattr(contestant(case, Problem(case)), mode)
    for _ in range(device.CALLS_BEFORE):
        call()

    def and_wait():
        call()
        device.answers()

    benchmark.group = f"{case} {mode}"
    benchmark(and_wait)
