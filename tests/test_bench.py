"""The benchmark: its gate, its counts, its timing order and its reports. No time is asserted."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from cases import rarely_compiled
from typer import Typer
from typer.testing import CliRunner

import fastrnn
from fastrnn import layers
from fastrnn.bench import cli, gate, machine, measure, onnx_peer, ours, plot, report, results, timing, torch_peer
from fastrnn.bench.cases import MAIN_CELLS, Case, table, work
from fastrnn.bench.contestant import Contestant, Run
from fastrnn.bench.problem import problem_of
from fastrnn.bench.results import Entry, Peaks, Record, Row
from fastrnn.bench.timing import Effort
from fastrnn.cells import CELLS
from fastrnn.commands import app as commands
from fastrnn.roofline import Work, floor

REFERENCE = ours.REFERENCE
BRIEF = Effort(budget=0, min_rounds=2, few_rounds=1, max_rounds=2, min_sample=0)
KINDS = [("sequence", "infer"), ("sequence", "train"), ("step", "infer"), ("lengths", "infer"), ("lengths", "train")]


def tiny(cell, kind="sequence", mode="train", dtype="float32"):
    steps, batch = (1, 1) if kind == "step" else (3, 2)
    return Case(cell, mode, kind, steps, batch, 5, 4, dtype)


def outputs(contestant, case):
    return contestant.prepare(case, problem_of(case), 1).outputs()


# The table


def test_the_table_is_the_published_one():
    cases = list(table())
    assert len(cases) == len({c.name for c in cases}) == 3 * (2 * 7 + 2 + 2)
    assert {c.cell for c in cases} == {"lstm", "gru", "rnn_tanh"}
    sequences = {(c.steps, c.batch, c.input_size, c.hidden_size) for c in cases if c.kind == "sequence"}
    sizes = {(100, 1, 64), (100, 1, 256), (100, 1, 512), (100, 16, 256), (100, 64, 256), (100, 64, 512), (50, 64, 1024)}
    assert sequences == {(T, B, H, H) for T, B, H in sizes}
    assert {(c.mode, c.steps, c.batch, c.hidden_size) for c in cases if c.kind == "step"} == {
        ("infer", 1, 1, 64),
        ("infer", 1, 1, 512),
    }
    assert {(c.mode, c.steps, c.batch, c.hidden_size) for c in cases if c.kind == "lengths"} == {
        ("infer", 200, 32, 256),
        ("train", 200, 32, 256),
    }


def test_every_cell_of_the_registry_can_be_measured():
    assert set(MAIN_CELLS) <= set(CELLS)
    assert set(ours.LAYERS) | set(layers.LAYERS) >= set(CELLS)


@pytest.mark.parametrize(("options", "word"), [({"cells": ["lstmm"]}, "lstmm"), ({"dtype": "float16"}, "float16")])
def test_unknown_cells_and_dtypes_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        list(table(**options))


def test_flops_and_bytes_of_a_tiny_lstm_by_hand():
    # T=3 B=2 I=5 H=4 G=4: W 80, U 64, biases 32 numbers; x 30, y 24, h_0 c_0 h_n c_n 32 numbers.
    case = Case("lstm", "infer", "sequence", 3, 2, 5, 4)
    products = 2 * 6 * 16 * (5 + 4)
    given = 80 + 64 + 32 + 30 + 24 + 32
    assert work(case, rows=6, longest=3) == Work(products, 4 * 64, 4 * 2 * 64, 4 * given)
    # Training: three times the products, every array has a gradient, and U passes once more in each of 3 steps.
    train = replace(case, mode="train", dtype="float64")
    assert work(train, rows=6, longest=3) == Work(3 * products, 8 * 64, 8 * 5 * 64, 8 * 2 * given)


def test_lengths_count_only_the_steps_that_exist():
    case = Case("gru", "infer", "lengths", 9, 4, 5, 4)
    problem = problem_of(case)
    rows, longest = int(problem.lengths.sum()), int(problem.lengths.max())
    assert 4 <= rows < 9 * 4
    assert problem.work(case) == work(case, rows, longest)
    assert problem.work(case).flops == 2 * rows * 12 * 9
    assert problem.padded().work(case).flops == 2 * 36 * 12 * 9


def test_the_floor_is_the_slowest_single_demand():
    needs = Work(flops=100, recurrent_size=1, recurrent=60, once=40)
    assert needs.traffic == 100
    assert floor(needs, 10, 1e9, 1e9) == 10
    assert floor(needs, 1e9, 2, 1e9) == 20
    assert floor(needs, 1e9, 1e9, 2) == 30


# Contestants agree


def peers(case):
    return [c for c in measure.FIELD if c.role != "reference" and c.enters(case) and not c.refuses(case)]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        pytest.param(cell, dtype, marks=[pytest.mark.nightly] * rarely_compiled({"cell": cell, "dtype": dtype}))
        for cell in CELLS
        for dtype in ("float32", "float64")
    ],
)
def test_contestants_compute_the_same(cell, kind, mode, dtype):
    case = tiny(cell, kind, mode, dtype)
    problem = problem_of(case)
    assert peers(case)[0].name == "fastrnn"
    for contestant in peers(case):
        entry, run = measure.admit(contestant, case, problem, 1, REFERENCE)
        assert (entry.status, entry.note) == ("right", ""), contestant.name
        assert run is not None


def test_which_peers_take_part():
    names = {
        (cell, mode, kind): {c.name for c in peers(tiny(cell, kind, mode))}
        for cell in ("lstm", "gru_reset_before")
        for kind, mode in KINDS
    }
    always = {"fastrnn", "fastrnn.torch"}
    assert names["lstm", "infer", "step"] == {*always, "torch", "onnxruntime"}
    assert names["lstm", "train", "sequence"] == {*always, "torch"}
    assert names["gru_reset_before", "infer", "sequence"] == {*always, "onnxruntime"}
    padded = {"fastrnn padded", "torch padded", "onnxruntime padded"}
    assert names["lstm", "infer", "lengths"] == {*always, "torch", "onnxruntime", *padded}
    assert "fastrnn.torch" not in {c.name for c in peers(tiny("leaky_lstm"))}, "a cell of one's own is no torch module"
    assert onnx_peer.refuses(tiny("lstm", mode="infer", dtype="float64")) == "float32 only"


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_the_module_is_what_runs_as_fastrnn_torch(kind, mode, monkeypatch):
    """Inference without a graph, training through autograd with every gradient."""
    import torch

    import fastrnn.torch

    (module,) = (c for c in ours.CONTESTANTS if c.name == "fastrnn.torch")
    assert (module.role, module.packages) == ("module", ("torch",)), "no peer, and absent where torch is"
    seen, forward = [], fastrnn.torch.GRU.forward

    def watched(self, *args, **kwargs):
        result = forward(self, *args, **kwargs)
        seen.append((torch.is_grad_enabled(), self.training, result[0].requires_grad, kwargs["lengths"] is not None))
        return result

    monkeypatch.setattr(fastrnn.torch.GRU, "forward", watched)
    found = outputs(module, tiny("gru", kind, mode))
    train = mode == "train"
    assert set(seen) == {(train, train, train, kind == "lengths")}
    assert list(found) == (
        ["y"] if kind == "step" else ["y", "h_n", "d_x", "d_h_0", *PARAMS] if train else ["y", "h_n"]
    )


@pytest.mark.parametrize("cell", MAIN_CELLS)
def test_torch_as_oracle_says_what_the_reference_says(cell):
    case = tiny(cell, "lengths")
    problem = problem_of(case)
    ours_, torchs = (gate.expected(measure.ORACLES[o], case, problem) for o in ("fastrnn", "torch"))
    assert list(ours_) == list(torchs)
    assert gate.judge(ours_, torchs, "float64").wrong == ""
    with pytest.raises(ValueError, match="torch cannot check"):
        gate.expected(torch_peer.TORCH, tiny("gru_reset_before"), problem_of(tiny("gru_reset_before")))


def test_a_stream_keeps_its_state():
    case = tiny("lstm", "step", "infer")
    y = outputs(REFERENCE, case)["y"]
    problem = problem_of(case)
    assert y.shape == (len(problem.x), 1, 4)
    whole = replace(case, kind="sequence", steps=len(problem.x))
    expected = REFERENCE.prepare(whole, problem, 1).outputs()["y"]
    np.testing.assert_array_equal(y, expected)


# The gate


def planted(name, change):
    """The reference with one of its results spoilt, as a fastrnn to be measured."""

    def prepare(case, problem, threads):
        run = REFERENCE.prepare(case, problem, threads)

        def spoilt():
            result = run.outputs()
            result[name] = change(result[name])
            return result

        return Run(run.call, spoilt)

    return Contestant("fastrnn", "fastrnn", (), prepare, lambda case: "")


def off_by_one_element(a):
    a.flat[-1] += 1e-4 * np.abs(a).max()
    return a


def not_a_number(a):
    a.flat[0] = np.nan
    return a


PARAMS = ["d_weight_ih_l0", "d_weight_hh_l0", "d_bias_ih_l0", "d_bias_hh_l0"]
LSTM_NAMES = ["y", "h_n", "c_n", "d_x", "d_h_0", "d_c_0", *PARAMS]


def test_the_gate_sees_every_result():
    assert list(outputs(REFERENCE, tiny("lstm"))) == LSTM_NAMES
    assert list(outputs(REFERENCE, tiny("gru", mode="infer"))) == ["y", "h_n"]


@pytest.mark.parametrize("name", LSTM_NAMES)
@pytest.mark.parametrize(
    "change",
    [off_by_one_element, not_a_number, lambda a: 0 * a, lambda a: a[..., :-1], lambda a: a.astype(np.float64)],
    ids=["element", "nan", "zeros", "shape", "dtype"],
)
def test_a_wrong_result_is_refused_and_never_timed(name, change):
    case = tiny("lstm")
    field = [planted(name, change), torch_peer.TORCH]
    row, _ = measure.measure(case, 1, BRIEF, REFERENCE, field)
    wrong, peer = row.entries
    assert (wrong.status, wrong.array) == ("wrong", name)
    assert name in wrong.note
    assert (wrong.median, wrong.samples, row.ratio) == (None, (), None)
    assert peer.status == "right"
    assert len(peer.samples) == 2


def test_a_missing_result_is_refused():
    want = {"y": np.ones((2, 2)), "h_n": np.ones(2)}
    assert gate.judge(want, {"y": np.ones((2, 2), np.float32)}, "float32").wrong == "h_n is missing"


def test_where_all_is_zero_everything_else_is_wrong():
    tiny_error = np.full(3, 1e-30, np.float32)
    assert gate.judge({"y": np.zeros(3)}, {"y": tiny_error}, "float32").wrong
    assert not gate.judge({"y": np.zeros(3)}, {"y": 0 * tiny_error}, "float32").wrong


def test_a_contestant_that_raises_is_a_failure_with_its_reason():
    def prepare(case, problem, threads):
        raise RuntimeError("first line\nsecond line")

    case, broken = tiny("lstm"), replace(REFERENCE, prepare=prepare)
    entry, run = measure.admit(broken, case, problem_of(case), 1, REFERENCE)
    assert (entry.status, entry.note, run) == ("failed", "RuntimeError: first line", None)


def test_a_peer_that_is_not_installed_is_named():
    absent = replace(torch_peer.TORCH, packages=("torch", "no_such_package"))
    case = tiny("rnn_tanh")
    entry, run = measure.admit(absent, case, problem_of(case), 1, REFERENCE)
    assert (entry.status, entry.note, run) == ("absent", "no_such_package is not installed", None)


# Timing


class Clock:
    """Time that passes only when something is called."""

    now = 0.0

    def __call__(self):
        return self.now


def logged(clock, durations):
    log = []

    def call(name):
        def run():
            log.append(name)
            clock.now += durations[name]

        return run

    return log, {name: call(name) for name in durations}


def test_turns_are_interleaved_and_their_order_rotates():
    clock = Clock()
    log, calls = logged(clock, {"a": 1.0, "b": 2.0, "c": 3.0})
    effort = Effort(budget=0, min_rounds=4, few_rounds=4, max_rounds=9, min_sample=0.5)
    timings = timing.interleave(calls, effort, clock=clock)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"  # one warm-up each, then four rounds
    assert {name: t.samples for name, t in timings.items()} == {"a": (1.0,) * 4, "b": (2.0,) * 4, "c": (3.0,) * 4}


def test_short_calls_are_repeated_within_a_sample():
    clock = Clock()
    log, calls = logged(clock, {"short": 0.01})
    timings = timing.interleave(calls, Effort(budget=0, min_rounds=3, min_sample=0.095), clock=clock)
    assert timings["short"].calls == 10
    assert timings["short"].samples == pytest.approx([0.01] * 3)
    assert len(log) == 2 + 3 * (1 + 10)  # two warm-ups, and one call at the start of each turn that is not counted


def test_a_contestant_beyond_its_share_sits_out():
    clock = Clock()
    _, calls = logged(clock, {"fast": 0.25, "slow": 4.0, "orientation": 4.0})
    effort = Effort(budget=3.0, min_rounds=3, few_rounds=1, max_rounds=50, min_sample=0)
    timings = timing.interleave(calls, effort, few=["orientation"], clock=clock)
    assert {name: len(t.samples) for name, t in timings.items()} == {"fast": 4, "slow": 3, "orientation": 1}


def test_median_and_spread():
    odd = timing.Timing((5.0, 1.0, 2.0, 3.0, 4.0), 1)
    assert (odd.median, odd.spread) == (3.0, 2.0)


def test_threads_are_limited_and_given_back():
    torch = pytest.importorskip("torch")
    before = fastrnn.get_num_threads(), torch.get_num_threads()
    with machine.limit_threads(1):
        assert (fastrnn.get_num_threads(), torch.get_num_threads()) == (1, 1)
    assert (fastrnn.get_num_threads(), torch.get_num_threads()) == before


# Records and reports


def entry(contestant, seconds, status="right", **more):
    role = "peer" if contestant.startswith(("torch", "onnx")) else contestant.split()[0]
    role = "module" if contestant == "fastrnn.torch" else role
    if seconds is None:
        return Entry(contestant, role, "padded" in contestant, status, **more)
    samples = (0.9 * seconds, seconds, 1.1 * seconds)
    times = {"median": seconds, "low": 0.95 * seconds, "high": 1.05 * seconds}
    return Entry(contestant, role, "padded" in contestant, "right", "", "y", 1e-7, 1, samples, **times)


def a_record(*extra):
    def row(case, threads, *entries):
        return Row(case, threads, flops=2 * 10**9, traffic=10**9, floor=0.01, entries=entries)

    sequence, lengths = (
        Case("lstm", "infer", "sequence", 100, 16, 256, 256),
        Case("gru", "train", "lengths", 200, 32, 256, 256),
    )
    ours_ = entry("fastrnn", 0.02)
    ragged = {"fastrnn": 0.1, "fastrnn padded": 0.2, "torch": 0.5, "torch padded": 0.05}
    rows = (
        row(sequence, 1, ours_, entry("reference", 0.001), entry("torch", 0.06), entry("onnxruntime", 0.04)),
        row(replace(sequence, batch=64), 1, ours_, entry("torch", 0.16)),
        row(sequence, 2, ours_, entry("torch", None, "absent", note="torch is not installed")),
        row(lengths, 1, *(entry(n, s) for n, s in ragged.items())),
        *(row(sequence, 1, e) for e in extra),
    )
    about = {
        "processor": "Test",
        "features": ["avx2"],
        "cores": 2,
        "system": "Linux",
        "load_before": [0.1],
        "others": 0.01,
    }
    settings = {"dtype": "float32", "quick": False, "oracle": "fastrnn", "command": "fastrnn bench"}
    peaks = (Peaks(1, 1e11, 2e10), Peaks(2, 2e11, 3e10))
    return Record("2026-01-02T03:04:05+00:00", 12.5, about, {"python": "3.12"}, "abc", settings, peaks, rows)


WRONG = entry("fastrnn", None, "wrong", note="d_x off by 3.0e-02")


def test_a_record_survives_json():
    record = a_record(WRONG)
    assert results.from_json(results.to_json(record)) == record


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "rows": [{}]}', '{"format": 1, "rows": []}']
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        results.from_json(text)


def test_ratios_and_geometric_means():
    record = a_record()
    assert [row.ratio for row in record.rows] == pytest.approx([2.0, 8.0, None, 5.0])
    assert record.rows[3].best_peer(padded=True).contestant == "torch padded"
    assert record.geometric_mean(1, "infer") == pytest.approx(4.0)
    assert record.geometric_mean(1, "train") == record.geometric_mean(1, "train", "lengths") == pytest.approx(5.0)
    assert record.geometric_mean(1, "train", "sequence") is None
    assert record.geometric_mean(2, "infer") is None


def test_the_module_is_beside_fastrnn_and_no_peer():
    record = a_record()
    assert record.geometric_mean(1, "infer", of="module_ratio") is None
    assert "fastrnn.torch" not in report.markdown(record)
    times = iter((0.03, 0.06, 0.03, 0.08))  # of 0.02 and 0.02, of 0.02 on two threads, of 0.1
    rows = [replace(row, entries=(*row.entries, entry("fastrnn.torch", next(times)))) for row in record.rows]
    with_module = replace(record, rows=tuple(rows))
    assert [row.ratio for row in with_module.rows] == [row.ratio for row in record.rows]
    assert with_module.rows[2].best_peer() is None
    assert [row.module_ratio for row in with_module.rows] == pytest.approx([1.5, 3.0, 1.5, 0.8])
    assert with_module.geometric_mean(1, "infer", of="module_ratio") == pytest.approx(4.5**0.5)
    told = "Time of fastrnn.torch over fastrnn's own: infer 2.12 (sequence 2.12); train 0.80 (lengths 0.80)."
    for main in (report.full, report.short):
        assert told in report.markdown(with_module, main)
    assert report.short(with_module, 1) == report.short(record, 1)
    headings, lines = report.full(with_module, 1)
    assert dict(zip(headings, lines[0], strict=True))["fastrnn.torch ms"] == "30.0 ±10%"


def test_the_full_table():
    headings, lines = report.full(a_record(), 1)
    first = dict(zip(headings, lines[0], strict=True))
    assert first == {
        "case": "lstm infer", "T, B, I=H": "100, 16, 256", "fastrnn ms": "20.0 ±10%", "reference ms": "1.00 ±10%",
        "torch ms": "60.0 ±10%", "onnxruntime ms": "40.0 ±10%", "vs best": "2.00", "GFLOP/s": "100.0", "GB/s": "50.0",
        "floor ms": "10.0", "of floor": "50%",
    }  # fmt: skip
    headings, lines = report.padding(a_record(), 1)
    assert dict(zip(headings, lines[0], strict=True))["lengths / padded"] == "0.50"
    assert lines[0][-1] == "0.50"  # torch padded takes half of fastrnn's time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2345, "1234"),
        (0.0999, "99.9"),
        (0.09996, "100"),
        (0.012345, "12.3"),
        (0.0012345, "1.23"),
        (4.56e-4, "0.456"),
        (1.2345e-5, "0.0123"),
    ],
)
def test_milliseconds(seconds, text):
    assert report.milliseconds(seconds) == text


def test_a_wrong_result_shows_as_such_and_without_a_time():
    record = replace(a_record(), rows=a_record(WRONG).rows[-1:])
    for text in (report.markdown(record), report.markdown(record, report.short)):
        assert "WRONG" in text
        assert "lstm-infer-f32-T100B16I256H256, 1 thread(s): fastrnn WRONG: d_x off by 3.0e-02" in text
        table_lines = [line for line in text.splitlines() if line.startswith("| lstm")]
        assert all(" ±" not in line and "%" not in line for line in table_lines)


def test_absent_peers_are_named_in_the_report():
    assert "- torch: absent, torch is not installed" in report.markdown(a_record())


def test_the_readme_section_is_replaced_and_only_once():
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    section = report.markdown(a_record(), report.short)
    once = report.insert(document, section)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "| 100, 16, 256 | 20.0 ms, 2.00x onnxruntime |" in once
    assert report.insert(once, section) == once


@pytest.mark.parametrize(
    "document", ["none", report.BEGIN, f"{report.END} {report.BEGIN}", 2 * f"{report.BEGIN}{report.END}"]
)
def test_a_readme_without_the_markers_is_refused(document):
    with pytest.raises(ValueError, match="bench:begin"):
        report.insert(document, "section")


def test_the_plot_is_an_image(tmp_path):
    from matplotlib.image import imread

    plot.draw(a_record(WRONG), tmp_path / "plot.png")
    image = imread(tmp_path / "plot.png")
    assert image.shape[0] > 300
    assert np.unique(image[..., :3].reshape(-1, 3), axis=0).shape[0] > 10  # something is drawn in several colours


# The command


@pytest.fixture
def command(monkeypatch):
    """Run `fastrnn bench` on contestants that take no time to speak of."""
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    app = Typer()
    app.command()(cli.bench)

    def run(*arguments, field=(REFERENCE, torch_peer.TORCH)):
        monkeypatch.setattr(measure, "FIELD", field)
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_the_command_writes_what_it_is_asked_for(command, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{report.BEGIN}\n{report.END}\nb\n")
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "p.png", "--markdown", tmp_path / "r.md"]
    field = (*ours.CONTESTANTS, torch_peer.TORCH)
    result = command(
        "--quick", "--shape", "3,2,5,4", "--cell", "gru", "--threads", 1, "--threads", 2, *files, field=field
    )
    assert result.exit_code == 0, result.output
    record = results.from_json((tmp_path / "r.json").read_text())
    assert [(row.threads, row.case.mode) for row in record.rows] == [
        (1, "infer"),
        (1, "train"),
        (2, "infer"),
        (2, "train"),
    ]
    assert all(e.status == "right" and e.samples for row in record.rows for e in row.entries)
    assert record.versions["torch"] == version("torch")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.md").read_text() == report.markdown(record)

    result = command("--from", tmp_path / "r.json", "--readme", readme)
    assert result.exit_code == 0, result.output
    filled = readme.read_text()
    assert filled == report.insert(filled, report.markdown(record, report.short))
    assert "gru infer" in filled


def test_a_wrong_result_makes_the_command_fail_and_leaves_the_readme(command, tmp_path):
    readme = tmp_path / "README.md"
    text = f"{report.BEGIN}\n{report.END}\n"
    readme.write_text(text)
    field = (planted("d_weight_hh_l0", off_by_one_element), torch_peer.TORCH)
    result = command("--quick", "--shape", "3,2,5,4", "--cell", "lstm", "--readme", readme, field=field)
    assert result.exit_code == 1
    assert "fastrnn WRONG: d_weight_hh_l0 off by" in result.output
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "nonsense"], "nonsense"),
        (["--cell", "lstmm"], "lstmm"),
        (["--dtype", "int8"], "int8"),
        (["--shape", "1,2,3"], "T,B,I,H"),
        (["--threads", "0"], "positive"),
        (["--oracle", "haste"], "haste"),
        (["--from", "no_such_file.json"], "no_such_file.json"),
        (["--readme", "no_such_file.md"], "no_such_file.md"),
        (["--json", "no_such_folder/r.json"], "folder"),
    ],
    ids=lambda a: a[0] if isinstance(a, list) else "",
)
def test_bad_options_are_refused_before_anything_is_measured(command, arguments, word, monkeypatch):
    monkeypatch.setattr(measure, "run", lambda *a: pytest.fail("measured"))
    result = command(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(rf"error: [^\n]*{re.escape(word)}[^\n]*\n", result.stderr), result.output


def test_listing_the_cases(command):
    result = command("--list", "--only", "step")
    assert result.output.split() == [c.name for c in table() if c.kind == "step"]


def test_a_record_is_json_that_others_can_read(command, tmp_path):
    command("--quick", "--shape", "3,2,5,4", "--cell", "rnn_tanh", "--json", tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["machine"]["processor"]
    assert data["rows"][0]["case"]["cell"] == "rnn_tanh"
    assert {"flops", "traffic", "floor", "threads"} <= set(data["rows"][0])
    assert len(data["rows"][0]["entries"][1]["samples"]) == 2


def test_pytest_benchmark_runs_the_same_cases():
    root = Path(__file__).parents[1]
    briefly = ["--benchmark-min-rounds=2", "--benchmark-max-time=0.001", "--benchmark-warmup=off"]
    chosen = ["--bench-quick", "-k", "rnn_tanh-infer-step and (onnxruntime or fastrnn)"]
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", "benchmarks", *briefly, *chosen]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no xdist worker
    result = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert "3 passed" in result.stdout, result.stdout + result.stderr
    assert "benchmark 'rnn_tanh-infer-step-f32-T1B1I64H64, 1 thread(s)'" in result.stdout


def test_a_busy_machine_is_reported_loudly():
    record = a_record()
    assert "Other processes used 1% of" in report.markdown(record)
    loud = replace(record, machine={**record.machine, "others": 0.3})
    assert "The machine was busy: other processes used 30%" in report.markdown(loud, report.short)
    unknown = replace(record, machine={**record.machine, "others": None})
    assert "Load average before the run: 0.1" in report.markdown(unknown)


def test_what_others_used():
    cores = machine.os.cpu_count()
    assert machine.others((100.0, 10.0), (100.0 + 12 * cores, 10.0 + 2 * cores), 20.0) == 0.5
    assert machine.others((100.0, 10.0), (100.0, 12.0), 20.0) == 0.0
    assert machine.others(None, (1.0, 1.0), 20.0) is None


def test_the_recorded_command_measures_the_same_and_names_no_file(command, tmp_path):
    options = ["--threads", "2", "--quick", "--cell", "gru", "--shape", "3,2,5,4"]
    command(*options, "--json", tmp_path / "r.json")
    record = results.from_json((tmp_path / "r.json").read_text())
    assert record.settings["command"] == "fastrnn bench --threads 2 --quick --cell gru --shape 3,2,5,4"


# Peaks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peak_kernels_do_the_work_that_they_are_credited_with(dtype):
    from fastrnn.cpu import peaks

    width = peaks._width(dtype)
    a = np.arange(8 * peaks.UNROLL * width, dtype=dtype)
    assert peaks._read(a, width, 3) == 3 * a.sum()  # every element, every turn
    b = np.linspace(0.1, 0.9, peaks.CHAINS + 2).astype(dtype)
    v = b[2:].astype(np.float64)
    for _ in range(5):
        v = v * b[0] + b[1]
    assert peaks._multiply_add(b, 5) == pytest.approx(width * v.sum(), rel=1e-6)


def test_peaks_are_rates_of_all_threads_together(monkeypatch):
    from fastrnn.cpu import peaks

    turns = []
    monkeypatch.setattr(peaks, "TRY_SECONDS", 0.0)
    rate = peaks._best_rate([turns.append, turns.append])
    assert rate > 0
    assert turns == [1] * len(turns)
    assert len(turns) == 2 * (2 + peaks.TRIES)
    monkeypatch.setattr(peaks, "_best", {})
    monkeypatch.setattr(peaks, "_best_rate", lambda kernels: 5.0 * len(kernels))
    assert peaks.bandwidth(8193, 2) == 10.0 * 4096 * 2  # a power of two below, each thread its part
    assert peaks.bandwidth(1 << 40, 2) == 10.0 * peaks.MAIN_MEMORY
    assert peaks.bandwidth(4096 * 3, 3) == 15.0 * 4096 * 3
    assert peaks.flops("float64", 2) == 10.0 * 2 * peaks.CHAINS * peaks._width("float64") * 2


def test_the_best_of_all_measured_peaks_counts(monkeypatch):
    """Also for the rows before it: the host of a virtual machine may give two processors only later."""
    from fastrnn.cpu import peaks

    rates = {}  # what each kernel would find next, twice as much at every fourth time

    def rate(kernels):
        key = (kernels[0].func, len(kernels), len(kernels[0].args[0]))
        rates[key] = rates.get(key, 0) + 1
        return 1e9 if rates[key] % 4 == 0 else 5e8

    monkeypatch.setattr(peaks, "_best", {})
    monkeypatch.setattr(peaks, "_best_rate", rate)
    assert [peaks.flops("float32", 2, again=k > 0) for k in range(6)] == 3 * [peaks.flops("float32", 2) / 2] + 3 * [
        peaks.flops("float32", 2)
    ]
    assert [peaks.bandwidth(1 << 14, 2, again=True) for _ in range(5)][2:4] == [0.5 * 2e9 * 8192, 2e9 * 8192]
    peaks._best.clear(), rates.clear()
    field = [ours.REFERENCE, *ours.CONTESTANTS[:1]]
    settings = {"oracle": "fastrnn", "dtype": "float32"}
    record = measure.run([tiny("lstm")] * 4, [1], BRIEF, settings, lambda case, threads: None, field)
    assert len({row.floor for row in record.rows}) == 1, "by what was known in the end"
    assert record.peaks[0].flops == peaks.flops("float32", 1)
    assert peaks._best["float32", 1] == 1e9


@pytest.mark.parametrize("named", [[], ["--cell", "mgu", "--cell", "gru"]], ids=["imported", "named"])
def test_a_cell_of_ones_own_is_measured_as_the_others_are(named: list[str], tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    shutil.copy(root / "examples" / "cells" / "minimal_gated_unit.py", tmp_path / "mine.py")
    start = "from fastrnn.cli import main; main()"
    command = [sys.executable, "-c", start, "bench", "--import", "mine.py", *named, "--shape", "5,2,3,4"]
    run = subprocess.run(
        [*command, "--budget", "0", "--json", "run.json"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    record = results.from_json((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert {row.case.cell for row in record.rows} == ({"mgu", "gru"} if named else {"mgu"})
    ours_of = [row.entry("fastrnn") for row in record.rows]
    assert all(entry and entry.status == "right" and entry.samples for entry in ours_of)
    assert "--import mine.py" in record.settings["command"]


@pytest.mark.parametrize("command", ["bench", "warmup"])
def test_what_registers_no_cell_is_refused(command: str, tmp_path: Path) -> None:
    empty, broken = tmp_path / "no_cell_in_here.py", tmp_path / "broken_import.py"
    empty.write_text("", encoding="utf-8")
    broken.write_text("import there_is_no_such_module\n", encoding="utf-8")
    for given, message in (
        (empty, "a module that registers a cell"), (broken, "there_is_no_such_module"),
        (tmp_path / "absent.py", "a module or a file.py that can be imported"),
    ):  # fmt: skip
        result = CliRunner().invoke(commands, [command, "--import", str(given)])
        assert result.exit_code == 2
        assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())
