"""The compiled CPU backend against the reference: every output and every gradient by name, with the reference removed.

The expected numbers are made first, in float64; then the reference and the cells' NumPy equations are replaced by
functions that raise, every allocation is filled with NaN, and the compiled backend runs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import (
    CELLS,
    DTYPES,
    Case,
    assert_results,
    draw,
    evaluate,
    expected,
    make_layer,
    nan_scratch,
    option_cases,
    use_threads,
    without_reference,
)
from tolerance import assert_same_bits

import fastrnn
from fastrnn.cpu import backward, forward, pool
from fastrnn.cpu.packed import MOST_PLACES

STEPS, INPUTS = (1, 2, 7), (1, 5, 33)
SIZES = [
    (STEPS[(h + b) % 3], B, INPUTS[(h + b // 2) % 3], H)
    for h, H in enumerate((1, 7, 16, 33, 64))
    for b, B in enumerate((1, 2, 3, 5, 7, 33))
] + [(2, 1, 5, 257), (7, 3, 33, 257)]
SIZES += [(9, 33, 515, 16)]  # sums longer than K_BLOCK and SUM_BLOCK, of the input and over time
SIZES += [(2, 3, 1024, 16), (2, 3, 5, 1024)]  # rows 4 or 8 KiB apart, which row_stride spreads
SIZE_CASES = [
    Case(cell, "cpu", dtype, *size, seed=number)
    for dtype in DTYPES
    for cell in CELLS
    for number, size in enumerate(SIZES)
]
# 16 more units than in the finite differences: whole SIMD blocks and a part of one.
OPTION_CASES = [replace(case, H=case.H + 16) for dtype in DTYPES for _, case in option_cases("cpu", dtype)]


@pytest.mark.parametrize("case", SIZE_CASES + OPTION_CASES, ids=str)
def test_agrees_with_the_reference(case: Case) -> None:
    problem = draw(case)
    want, layer = expected(case, problem), make_layer(case)
    with without_reference(), nan_scratch():
        got = evaluate(layer, case, problem)
    assert_results(case, problem, got, want)


def test_the_removed_reference_is_really_removed() -> None:
    for cell in CELLS:
        case = Case(cell, "reference")
        problem = draw(case)
        with without_reference(), pytest.raises(AssertionError, match="called the reference"):
            evaluate(make_layer(case), case, problem)
        evaluate(make_layer(case), case, problem)


def test_nan_scratch_reaches_the_backend() -> None:
    with nan_scratch():
        for module in (forward, backward):
            for array in (module.empty(3, "float32"), module.np.empty((2, 2)), module.np.empty_like(np.ones(3))):
                assert np.isnan(array).all()


def same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert_same_bits(name, got[name], value)


@pytest.mark.parametrize(
    "case",
    [
        replace(case, H=case.H + 28, B=max(case.B, 7) if case.B > 1 else 1, T=case.T + 2)
        for dtype in DTYPES
        for name, case in option_cases("cpu", dtype)
        if name in ("plain", "everything", "projection-everything", "norm-everything", "unbatched", "B1", "dropout")
    ],
    ids=str,
)
def test_same_bits_with_any_number_of_threads_and_from_run_to_run(case: Case) -> None:
    problem, layer = draw(case), make_layer(case)
    with use_threads(1):
        want = evaluate(layer, case, problem)
        same_bits(evaluate(layer, case, problem), want)
    for number in (2, 3, 8):
        with use_threads(number):
            same_bits(evaluate(layer, case, problem), want)
    same_bits(evaluate(make_layer(case), case, problem), want)  # weights packed anew, threads as by default


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_memory_of_a_pass_is_used_again_and_nothing_of_it_is_handed_out(
    cell: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shapes in turns, then more than are kept: results stay as they were, and are those of fresh memory."""
    case = Case(cell, "cpu", "float32", num_layers=2, bidirectional=True, batch_first=batch_first)
    layer, fresh, random, made = make_layer(case), make_layer(case), np.random.default_rng(0), []
    start = forward.Place.__init__
    monkeypatch.setattr(forward.Place, "__init__", lambda self, *rest: made.append(rest) or start(self, *rest))
    calls, shapes = [], (3, 3, 1, 3, 1, 4, 2, 4, 5, 6, 5, 1)
    for steps in shapes:
        x = random.standard_normal((2, steps, case.I) if batch_first else (steps, 2, case.I)).astype("float32")
        states = [random.standard_normal((4, 2, case.H)).astype("float32") for _ in range(1 + (cell == "lstm"))]
        state = tuple(states) if len(states) > 1 else states[0]
        results = flat_results(layer(x, state))
        calls.append((x, state, results, [array.copy() for array in results]))
    assert len(made) == 4 * len({*shapes}) + 4, "each shape once in each layer and direction, T = 1 once more"
    assert all(0 < len(packed.places) <= MOST_PLACES for packed in layer._packed["cpu"][0])
    monkeypatch.setattr(forward, "LARGEST", 0)
    for x, state, results, then in calls:
        for got, before, want in zip(results, then, flat_results(fresh(x, state)), strict=True):
            assert_same_bits("earlier", got, before)
            assert_same_bits("in fresh memory", got, want)
    assert not any(packed.places for packed in fresh._packed["cpu"][0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_segments_of_one_shape_keep_their_starts(cell: str) -> None:
    """Without lengths and resets, each segment runs in the memory of the one before it."""
    case = Case(cell, "cpu", "float64", T=9, lengths="none", reset="none", save="recompute")
    problem = draw(case)
    assert_results(case, problem, evaluate(make_layer(case), case, problem), expected(case, problem))


def flat_results(output: tuple[np.ndarray, Any]) -> list[np.ndarray]:
    y, state = output
    return [y, *(state if isinstance(state, tuple) else (state,))]


def test_public_number_of_threads_reaches_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough that the work is split: tasks are counted, and the bits stay."""
    case = Case("lstm", "cpu", "float32", T=9, B=33, I=64, H=64)
    problem, layer, results, counts = draw(case), make_layer(case), [], []
    run = pool.run
    monkeypatch.setattr(pool, "run", lambda tasks: (counts[-1].append(len(tasks)), run(tasks)))
    monkeypatch.setattr(fastrnn.threads, "_number", None)  # restored afterwards
    for number in (1, 2, 3):
        counts.append([])
        fastrnn.set_num_threads(number)
        results.append(evaluate(layer, case, problem))
        assert max(counts[-1]) == number
    same_bits(results[1], results[0])
    same_bits(results[2], results[0])
