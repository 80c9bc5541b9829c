"""Vector widths other than this machine's own: Numba's target is restricted or widened in a process of its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn.cpu.vector import target_features

ROOT = Path(__file__).parents[1]
X86 = platform.machine().lower() in ("x86_64", "amd64")
pytestmark = pytest.mark.skipif(not X86, reason="the names of the targets are those of x86-64")
PORTABLE = ("generic", "")  # SSE2, 16 bytes, no fused multiply-add
AVX2 = ("haswell", "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2")
AVX512 = ("skylake-avx512", AVX2[1] + ",+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd")

COMPILE = """
import re
import fastrnn, numba, numpy as np
from fastrnn.cpu import build, vector
assert vector.vector_bytes() == 64 and vector.vector_registers() == 32
code = build.load("entry").compiled(numba.{dtype})._library.get_asm_str()
blocks = re.split(r"^\\.?L?[\\w$.]+:$", code, flags=re.M)
loops = [block for block in blocks if block.count("vfmadd") >= 24]
assert loops, "no block has the 24 sums of 12 rows and 2 vectors"
for block in loops:
    assert block.count("zmm") >= 24 and "ymm" not in block, "a sum is narrower than 64 bytes"
    assert not re.search(r"zmm\\d+,.*\\(%rsp\\)|\\(%rsp\\),\\s*%zmm", block), "a sum does not stay in its register"
"""


def run(target: tuple[str, str], folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ, "NUMBA_CPU_NAME": target[0], "NUMBA_CPU_FEATURES": target[1],
        "FASTRNN_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT / "src"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "cell", "dtype"),
    [
        pytest.param(PORTABLE, "gru", "f32", id="portable-gru-f32", marks=pytest.mark.nightly),
        pytest.param(PORTABLE, "lstm", "f64", id="portable-lstm-f64", marks=pytest.mark.nightly),
        pytest.param(AVX2, "lstm", "f32", id="avx2-lstm-f32", marks=pytest.mark.nightly),
        pytest.param(AVX512, "lstm", "f32", id="avx512-lstm-f32", marks=pytest.mark.nightly),
        pytest.param(AVX512, "gru", "f64", id="avx512-gru-f64"),
    ],
)
def test_kernels_of_another_width_agree_with_the_reference(
    target: tuple[str, str], cell: str, dtype: str, tmp_path: Path
) -> None:
    needed = {part[1:] for part in target[1].split(",") if part}
    if not needed <= target_features():
        pytest.skip(f"this machine cannot run {target[0]}: it lacks {', '.join(sorted(needed - target_features()))}")
    chosen = f"test_agrees_with_the_reference and {cell}-cpu-{dtype}-T and seed"
    report = run(target, tmp_path, "-m", "pytest", "-q", "-n", "0", "tests/test_cpu.py", "-k", chosen)
    assert int(report.split(" passed")[0].split()[-1]) >= 30  # every size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_widest_vectors_compile_to_whole_registers(dtype: str, tmp_path: Path) -> None:
    run(AVX512, tmp_path, "-c", COMPILE.format(dtype=dtype))
