"""fastrnn.plan: what would run, in how many threads, and the counted work."""

from typing import Any

import numpy as np
import pytest
from cases import CELLS, LAYERS

import fastrnn
from fastrnn import roofline
from fastrnn.bench.cases import LENGTHS_SHAPE, MAIN_CELLS, SHAPES, STREAM_SIZES, table, work
from fastrnn.cpu import peaks
from fastrnn.cpu.layout import part_count, row_slices
from fastrnn.threads import Limited

ODD = [(9, B, H) for B in (1, 3, 7, 33) for H in (1, 7, 100, 150, 300)]


@pytest.mark.parametrize("cell", MAIN_CELLS)
def test_every_row_of_the_public_table_runs_fused(cell: str) -> None:
    rows = list(table([cell]))
    assert len(rows) == 2 * len(SHAPES) + len(STREAM_SIZES) + 2
    for case in rows:
        lengths = np.arange(case.batch) + 1 if case.kind == "lengths" else None
        plan = fastrnn.plan(
            LAYERS[cell](case.input_size, case.hidden_size), case.steps, case.batch, lengths=lengths,
            training=case.mode == "train",
        )  # fmt: skip
        assert plan.fused
        assert [loop.kernel for loop in plan.loops] == [f"loop.py for `{cell}`"]
        rows_of = case.steps * case.batch if lengths is None else int(lengths.sum())
        assert plan.work == work(case, rows_of, case.steps if lengths is None else int(lengths.max()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_odd_sizes_run_fused_too(cell: str, shape: tuple[int, int, int]) -> None:
    steps, batch, hidden = shape
    layer = LAYERS[cell](hidden + 2, hidden, num_layers=2, bidirectional=True, zoneout=0.1, recurrent_dropout=0.2)
    plan = fastrnn.plan(layer, steps, batch, training=True)
    assert plan.fused
    assert len(plan.loops) == 2


@pytest.mark.parametrize(
    ("shape", "most"), [((100, 16, 256), 16), ((100, 1, 64), 1), ((3, 4, 8), 1), ((100, 3, 64), 3)]
)
@pytest.mark.parametrize("number", [1, 2, 8])
def test_the_threads_are_those_that_a_call_deals_its_rows_to(shape: Any, most: int, number: int) -> None:
    steps, batch, hidden = shape
    with Limited(number):
        plan = fastrnn.plan(fastrnn.GRU(hidden, hidden), steps, batch)
        parts = part_count(steps * batch, batch, 2.0 * 3 * hidden * 2 * hidden)
        dealt = row_slices(None, steps, batch, parts)
    assert plan.threads == len(dealt) <= min(most, number)
    assert f"{len(dealt)} thread(s) of up to {max(rows.size for rows, _ in dealt)} sequences" in plan.explain()


def test_layers_directions_projection_and_diagonal_count() -> None:
    layer = fastrnn.LSTM(5, 8, num_layers=2, bidirectional=True, proj_size=3)
    first = roofline.work(steps=7, batch=2, rows=14, longest=7, I=5, G=4, H=8, itemsize=4, states=2, train=False, P=3)
    second = roofline.work(steps=7, batch=2, rows=14, longest=7, I=6, G=4, H=8, itemsize=4, states=2, train=False, P=3)
    plan = fastrnn.plan(layer, 7, 2)
    assert plan.work == first + first + second + second
    assert first.flops == 2 * 14 * (32 * 5 + 32 * 3 + 3 * 8)
    assert first.recurrent_size == 4 * 32 * 3
    assert first.once == 4 * (32 * 5 + 32 * 3 + 64 + 3 * 8 + 14 * 5 + 14 * 3 + 2 * 2 * (3 + 8))
    assert "x 2 directions" in plan.explain()
    diagonal = fastrnn.plan(fastrnn.GRU(5, 8, recurrent="diagonal"), 7, 2).work
    assert (diagonal.flops, diagonal.recurrent_size) == (2 * 14 * (24 * 5 + 24), 4 * 24)


def test_the_reference_says_that_it_goes_step_by_step() -> None:
    with fastrnn.use_backend("reference"):
        plan = fastrnn.plan(fastrnn.RNN(3, 4), 5)
    assert not plan.fused
    assert plan.backend == "reference"
    assert "step by step" in plan.explain()


def test_what_runs_outside_of_the_loop_is_named() -> None:
    layer = fastrnn.LSTM(3, 4, num_layers=2, dropout=0.5, zoneout=0.1, recurrent_dropout=0.1, save="recompute", seed=0)
    quiet = fastrnn.plan(layer, 10, 3)
    assert quiet.outside == ()
    assert "outside   nothing" in quiet.explain()
    names = ("y past the end", "dropout between", "zoneout", "recurrent dropout", 'save="recompute"')
    loud = fastrnn.plan(layer, 10, 3, lengths=[10, 2, 0], training=True)
    assert len(loud.outside) == len(names)
    assert all(text.startswith(name) for text, name in zip(loud.outside, names, strict=True))
    assert loud.outside[0].endswith("18 rows")
    assert loud.outside[-1].endswith("4 steps")


@pytest.mark.parametrize(
    ("layer", "held"),
    [
        (fastrnn.LSTM(3, 4, zoneout=0.1), "h and one for c"),
        (fastrnn.LSTM(3, 4, proj_size=2, zoneout=(0, 0.1)), "c"),
        (fastrnn.GRU(3, 4, zoneout=0.1), "h"),
    ],
)
def test_zoneout_has_a_mask_of_each_state_that_is_held(layer: Any, held: str) -> None:
    (text,) = fastrnn.plan(layer, 10, 3, training=True).outside
    assert text == f"zoneout: a mask of 120 elements for {held}, drawn before the loop"


def test_the_floor_is_the_slowest_demand_at_measured_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "flops", lambda dtype, threads: 1e9 * threads)
    monkeypatch.setattr(peaks, "bandwidth", lambda size, threads: 1e12)
    with Limited(2):
        plan = fastrnn.plan(fastrnn.LSTM(64, 64), LENGTHS_SHAPE[0], 16)
        assert plan.threads == 2
        assert plan.floor() == plan.work.flops / 2e9
        assert "bound by products" in plan.explain()
        monkeypatch.setattr(peaks, "bandwidth", lambda size, threads: 1.0)
        assert plan.floor() == max(plan.work.once, plan.work.recurrent)
        assert "bound by recurrent weights" in plan.explain()


@pytest.mark.parametrize(
    ("error", "word", "arguments"),
    [
        (TypeError, "layer", (np.ones(3), 4)),
        (ValueError, "steps", (None, 0)),
        (TypeError, "steps", (None, 2.5)),
        (ValueError, "batch", (None, 3, 0)),
    ],
)
def test_bad_arguments_are_refused(error: type[Exception], word: str, arguments: tuple[Any, ...]) -> None:
    layer, *rest = arguments
    with pytest.raises(error, match=f"^{word}: expected"):
        fastrnn.plan(fastrnn.RNN(2, 3) if layer is None else layer, *rest)


def test_bad_lengths_are_refused() -> None:
    layer = fastrnn.RNN(2, 3)
    with pytest.raises(ValueError, match="lengths: expected 0 <= length <= 4, got 5 at index 1"):
        fastrnn.plan(layer, 4, 2, lengths=[1, 5])
    with pytest.raises(fastrnn.ShapeError, match="lengths"):
        fastrnn.plan(layer, 4, 2, lengths=[1])
