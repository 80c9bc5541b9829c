"""Check every contestant of a case, then time those whose results are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from fastrnn.bench import gate, machine, onnx_peer, ours, torch_peer
from fastrnn.bench.cases import Case
from fastrnn.bench.contestant import Contestant, Run
from fastrnn.bench.problem import Problem, problem_of
from fastrnn.bench.results import Entry, Peaks, Record, Row
from fastrnn.bench.timing import Effort, Timing, interleave
from fastrnn.roofline import Work, floor

FIELD = (*ours.CONTESTANTS, *torch_peer.CONTESTANTS, *onnx_peer.CONTESTANTS)
ORACLES = {"fastrnn": ours.REFERENCE, "torch": torch_peer.TORCH}

# Seconds until the waiting workers of torch, ONNX Runtime and OpenBLAS have left the cores: 2 threads of fastrnn, LSTM,
# T = 100, B = 64, H = 256, took 47 ms alone; 5 ms after ONNX Runtime 79, 5 ms after OpenBLAS 96; after 0.3 s 54 and 51.
PAUSE, PAUSED_ROUNDS = 0.3, 12


def admit(
    contestant: Contestant, case: Case, problem: Problem, threads: int, oracle: Contestant
) -> tuple[Entry, Run | None]:
    """Set a contestant up and check it; the run is there only if its results are right."""
    entry = Entry(contestant.name, contestant.role, contestant.padded, "right")
    if reason := contestant.refuses(case):
        return replace(entry, status="refuses", note=reason), None
    if package := contestant.missing():
        return replace(entry, status="absent", note=f"{package} is not installed"), None
    expected = gate.expected(oracle, case, problem.padded() if contestant.padded else problem)
    try:
        run = contestant.prepare(case, problem, threads)
        verdict = gate.judge(expected, run.outputs(), case.dtype)
    except Exception as error:
        return replace(entry, status="failed", note=_first_line(error)), None
    checked = replace(entry, array=verdict.array, error=verdict.error if np.isfinite(verdict.error) else None)
    if verdict.wrong:
        return replace(checked, status="wrong", note=verdict.wrong), None
    return checked, run


def _first_line(error: Exception) -> str:
    """Class and first line of an error; a compiler's whole story has no place in a table."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def measure(
    case: Case, threads: int, effort: Effort, oracle: Contestant, field: Sequence[Contestant]
) -> tuple[Row, Work]:
    """Check and time one case, and measure the machine's peaks again; the threads are in force for the process.

    Returns the row with the floor as far as peaks are known, and what it follows from.
    """
    problem = problem_of(case)
    admitted = [admit(contestant, case, problem, threads, oracle) for contestant in field if contestant.enters(case)]
    calls = {entry.contestant: run.call for entry, run in admitted if run is not None}
    timings = interleave(calls, effort, few=[c.name for c in field if c.role == "reference"])
    entries = tuple(_timed(entry, timings.get(entry.contestant)) for entry, _ in admitted)
    needs = problem.work(case)
    return Row(case, threads, needs.flops, needs.traffic, _floor(needs, case.dtype, threads, True), entries), needs


def _floor(needs: Work, dtype: str, threads: int, again: bool) -> float:
    """Seconds that a case takes at least, by the best peaks that were measured."""
    from fastrnn.cpu import peaks

    sizes = needs.once, needs.recurrent_size
    return floor(needs, peaks.flops(dtype, threads, again), *(peaks.bandwidth(size, threads, again) for size in sizes))


def _timed(entry: Entry, timing: Timing | None) -> Entry:
    if timing is None:
        return entry
    low, high = np.percentile(timing.samples, (25, 75))
    return replace(
        entry, calls=timing.calls, samples=timing.samples, median=timing.median, low=float(low), high=float(high)
    )


def run(
    cases: Sequence[Case],
    threads: Sequence[int],
    effort: Effort,
    settings: dict[str, Any],
    progress: Callable[[Case, int], None],
    field: Sequence[Contestant],
) -> Record:
    """Measure all cases at every number of threads.

    Args:
        cases: rows of the table.
        threads: numbers of threads, one after the other.
        effort: how long to measure each case.
        settings: of the run, recorded as they are; "oracle" is a key of ORACLES, "dtype" that of the cases.
        progress: called with each case and number of threads before it is measured.
        field: the contestants.
    """
    from fastrnn.cpu import peaks

    start, description, load, busy = time.monotonic(), machine.describe(), machine.load(), machine.busy()
    measured: list[tuple[Row, Work]] = []
    tops: list[Peaks] = []
    for number in threads:
        patient = effort
        if number > 1 and effort.budget:
            patient = replace(effort, pause=PAUSE, max_rounds=min(effort.max_rounds, PAUSED_ROUNDS))
        with machine.limit_threads(number):
            for case in cases:
                progress(case, number)
                measured.append(measure(case, number, patient, ORACLES[settings["oracle"]], field))
            top = peaks.flops(settings["dtype"], number), peaks.bandwidth(peaks.MAIN_MEMORY, number, again=True)
            tops.append(Peaks(number, *top))
    seconds = time.monotonic() - start
    share = machine.others(busy, machine.busy(), seconds)
    return Record(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        machine={**description, "load_before": load, "others": share},
        versions=machine.versions(),
        commit=machine.commit(),
        settings=settings,
        peaks=tuple(tops),
        rows=tuple(replace(row, floor=_floor(needs, row.case.dtype, row.threads, False)) for row, needs in measured),
    )
