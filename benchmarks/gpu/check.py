"""Whether the kernels are right on this device: the tests of tests/test_gpu.py, also under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Record
from fastrnn.cuda import source

ROOT = Path(__file__).parents[2]
DTYPES = {"float32": "cuda-f32", "float64": "cuda-f64", "float16": "cuda-f16", "bfloat16": "cuda-bf16"}  # in test ids
# compute-sanitizer's tools, and what of CUDA they watch besides memory: racecheck sees shared memory alone, synccheck
# barriers. Without any in the kernels they could find nothing, and a row that says so would mean nothing; races in the
# memory of the device, which no tool finds, are looked for by csrc/host.
TOOLS = {"memcheck": "", "initcheck": "", "racecheck": r"__shared__|dynamic_shared", "synccheck": r"__sync|_sync\("}
SECONDS = 400
NEEDED = ("pytest", "hypothesis", "numba", "ml_dtypes")  # by the tests, besides what the other sections need


def run(record: Record) -> None:
    """The tests by dtype, what belongs to none, then the small cases under each tool."""
    for dtype, mark in DTYPES.items():
        record.run(f"tests {dtype}", lambda mark=mark: tests(f"{mark}-"))
    record.run("tests other", lambda: tests(" and ".join(f"not {mark}-" for mark in DTYPES.values())))
    on_chip = map(source.expand, ("grid.cuh", "onchip.cuh"))
    for tool in tools("\n".join([*map(source.assemble, source.variants()), *on_chip])):
        record.run(tool, lambda tool=tool: sanitizer(tool))


def tools(code: str) -> list[str]:
    """The tools that can find something in kernels of this source."""
    return [tool for tool, watched in TOOLS.items() if re.search(watched, code)]


def command(expression: str, report: str) -> list[str]:
    """The command of a part of the tests; what other versions of the libraries warn of is not the question.

    In one process whether pytest-xdist is there or not: many would share the GPU, and compute-sanitizer slows each.
    """
    return [
        sys.executable, "-m", "pytest", "-q", "-o", "addopts=--strict-config --strict-markers", "-p", "no:xdist", "-p",
        "no:cacheprovider", "-W", "default", "-k", expression, f"--junitxml={report}",
        str(ROOT / "tests" / "test_gpu.py"),
    ]  # fmt: skip


def missing() -> list[str]:
    """What the tests need and this machine lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def tests(expression: str) -> dict[str, Any]:
    """Run a part of the tests; raises where one fails, with its name."""
    with tempfile.TemporaryDirectory() as folder:
        report = str(Path(folder, "report.xml"))
        output = _output(command(expression, report))
        if not Path(report).exists():
            raise RuntimeError(f"pytest wrote no report: {output[-200:]}")
        return counts(Path(report).read_text(encoding="utf-8"))


def counts(report: str) -> dict[str, Any]:
    """Tests that passed, and how long they took.

    Raises:
        AssertionError: one failed or was skipped, or there was none.
    """
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    bad = [case for case in cases if any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))]
    if bad or not cases:
        first = f", first {bad[0].get('name')}: {_message(bad[0])}" if bad else ""
        raise AssertionError(f"{len(bad)} of {len(cases)} tests did not pass{first}")
    return {"passed": len(cases), "seconds": round(sum(float(case.get("time") or 0) for case in cases), 1)}


def _message(case: ElementTree.Element) -> str:
    return next((str(child.get("message", "")).partition("\n")[0] for child in case if child.get("message")), "")


def sanitizer(tool: str) -> dict[str, Any]:
    """Run the small cases under one tool of compute-sanitizer."""
    with tempfile.TemporaryDirectory() as folder:
        report = str(Path(folder, "report.xml"))
        start = ["compute-sanitizer", "--tool", tool, "--target-processes", "all"]
        output = _output(start + command("test_small_cases", report))
        found = findings(output)
        if found:
            raise AssertionError(f"{tool}: {found} errors")
        return {"errors": 0, **counts(Path(report).read_text(encoding="utf-8"))}


def findings(output: str) -> int:
    """How many errors or hazards compute-sanitizer reports; raises where it reports nothing."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    if not summaries:
        raise RuntimeError(f"compute-sanitizer gave no summary: {output.strip()[-200:]}")
    return sum(map(int, summaries))


def _output(command: list[str]) -> str:
    if lacking := missing():
        raise RuntimeError(f"the tests need {', '.join(lacking)}, which Python does not find here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    return done.stdout + done.stderr
