"""The commands around the models: what they print and write, resuming, bad input."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from rich.console import Console
from typer.testing import CliRunner, Result

import fastrnn
from fastrnn.commands import app, plots, progress, running
from fastrnn.models import Autoencoder, CharLM, Forecaster, Tagger, Translator, autoencode, forecast, tag, translate

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
CONLL = "".join(f"{who} B-PER\nsaw O\n{place} B-LOC\nCity I-LOC\n\n" for who in "abcdefgh" for place in "ABCDEFGH")
WORDS = [a + b + c for a in "bdg" for b in "aeiou" for c in "lnst"]
SMALL = {
    "forecast": ["--hidden", "4", "--window", "9", "--steps", "6", "--batch", "8"],
    "tag": ["--conll", "c.conll", "--hidden", "4", "--embedding", "3", "--steps", "6", "--batch", "4"],
    "translate": ["--table", "t.tsv", "--hidden", "6", "--steps", "6", "--batch", "4", "--width", "2"],
    "autoencode": ["--lines", "w.txt", "--hidden", "6", "--code", "4", "--steps", "6", "--batch", "4"],
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.conll").write_text(CONLL)
    Path("t.tsv").write_text("".join(f"{w}\t{w[::-1]}\tback\n{w}\t{w.upper()}\tup\n" for w in WORDS))
    Path("w.txt").write_text("\n".join(WORDS))
    Path("s.csv").write_text("day,value\n" + "".join(f"{i},{v}\n" for i, v in enumerate(forecast.noisy_sine(80))))


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path.cwd().iterdir()}


@pytest.mark.parametrize("name", list(SMALL))
def test_training_writes_checkpoint_log_and_plots_and_the_same_bits_again(name):
    told = json.loads(done(name, "train", *SMALL[name], "--out", "m.safetensors", "--json").stdout)
    assert told["steps"] == 6
    first = files()
    for key, file in (("checkpoint", "m.safetensors"), ("log", "m.jsonl"), ("loss_plot", "m.loss.png")):
        assert told[key] == file
    assert first["m.loss.png"].startswith(PNG)
    if "plot" in told:
        assert first[told["plot"]].startswith(PNG)
    log = [json.loads(line) for line in first["m.jsonl"].splitlines()]
    assert log[-1]["step"] == 6
    assert log[-1]["loss"] == told["loss"]
    before = fastrnn.get_num_threads()
    result = done(
        name, "train", *SMALL[name], "-o", "n.safetensors", "-q", "--seed", 0, "--threads", 1, "--device", "cpu"
    )
    fastrnn.set_num_threads(before)
    assert result.stderr == ""
    assert files()["n.safetensors"] == first["m.safetensors"]
    assert re.search(r"^training +6 steps, \d+ s, loss", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", list(SMALL))
def test_a_complete_run_is_prolonged_by_steps_only(name):
    data = SMALL[name][:2] if name != "forecast" else []
    done(name, "train", *SMALL[name], "--out", "m")
    before = files()
    refused = run(name, "train", *data, "--resume", "--out", "m")
    assert refused.exit_code == 2
    assert "steps: expected more than the 6 already taken" in refused.stderr
    refused = run(name, "train", *data, "--resume", "--out", "m", "--hidden", 4)
    assert "error: --hidden: expected nothing, --resume goes on as the run began" in refused.stderr
    assert files() == before
    told = json.loads(done(name, "train", *data, "--resume", "--out", "m", "--steps", 9, "--json").stdout)
    assert told["steps"] == 9
    other = {"forecast": ["--csv", "s.csv"], "tag": ["--conll", "d.conll"], "translate": ["--table", "u.tsv"],
             "autoencode": ["--lines", "v.txt"]}[name]  # fmt: skip
    Path("d.conll").write_text(CONLL.replace("saw", "met"))
    Path("u.tsv").write_text("bal\tlab\tback\ngut\tGUT\tup\n")
    Path("v.txt").write_text("bal\nban\n")
    refused = run(name, "train", *other, "--resume", "--out", "m", "--steps", 12)
    assert refused.exit_code == 2
    assert re.search(r"error: data: expected \w+ as at the start of the run, got", refused.stderr), refused.stderr


def test_forecast_tells_what_the_library_measures():
    told = json.loads(done("forecast", "train", *SMALL["forecast"], "--csv", "s.csv", "--ahead", 7, "--json").stdout)
    model, series = Forecaster.load("forecast.safetensors"), forecast.csv_column(Path("s.csv"))[1]
    assert told["rmse"]["gru"] == dict(zip(("train", "test"), model.rmse(series), strict=True))
    assert told["forecast"] == model.predict(series, 7).tolist()
    assert told["seasonal_naive_rmse"] == forecast.seasonal_naive(series, 9, 1)[1]
    assert told["autoregressive_rmse"] == forecast.autoregressive(series, 9, 1)
    lines = done("forecast", "predict", "forecast.safetensors", "--csv", "s.csv", "--ahead", 7, "--out", "p.png").stdout
    np.testing.assert_allclose([float(v) for v in lines.split()], told["forecast"], rtol=1e-5)
    assert files()["p.png"].startswith(PNG)


def test_forecast_compares_the_cells():
    result = done("forecast", "train", *SMALL["forecast"], "--compare").stdout
    names = re.findall(r"^(\w[\w ]+?)(?: \(\d+\))? +[\d.]", result, re.MULTILINE)
    assert names[:5] == ["gru", "lstm", "rnn", "seasonal naive", "autoregressive"]
    told = json.loads(done("forecast", "train", *SMALL["forecast"], "--compare", "--json").stdout)
    lstm = Forecaster(cell="lstm", hidden=4, window=9, seed=0)
    lstm.fit(forecast.noisy_sine(), forecast.Schedule(steps=6, batch=8, lr=5e-3))
    assert told["rmse"]["lstm"]["test"] == lstm.rmse(forecast.noisy_sine())[1]
    assert told["model"]["cell"] == "gru"


def test_tag_measures_labels_and_suggests():
    told = json.loads(done("tag", "train", *SMALL["tag"], "--steps", 60, "--lr", 0.05, "--json").stdout)
    model, corpus = Tagger.load("tag.safetensors"), tag.split("c.conll", tag.conll(Path("c.conll")))
    assert told["held_out"] == model.scores(corpus.held_out)._asdict()
    assert told["most_frequent_label"] == tag.most_frequent_label(corpus.train, corpus.held_out)._asdict()
    Path("x.txt").write_text("a saw B City\n\nCity City\nb\n")
    sentences = [["a", "saw", "B", "City"], ["City", "City"], ["b"]]
    labels = model.tag(sentences)
    want = "\n\n".join(
        "\n".join(map("\t".join, zip(*pair, strict=True))) for pair in zip(sentences, labels, strict=True)
    )
    assert done("tag", "apply", "tag.safetensors", "x.txt").stdout == want + "\n"
    assert done("tag", "apply", "tag.safetensors", "x.txt", "--out", "y").stdout == ""
    assert Path("y").read_text() == want + "\n"
    rows = json.loads(done("tag", "suggest", "tag.safetensors", "x.txt", "--count", 2, "--json").stdout)
    assert [(r["sentence"] - 1, r["mean_log_probability"]) for r in rows] == model.least_sure(sentences)[:2]
    assert rows[0]["text"] in ("a saw B City", "City City", "b")
    listed = done("tag", "suggest", "tag.safetensors", "x.txt").stdout
    assert len(listed.splitlines()) == 3
    assert done("tag", "suggest", "tag.safetensors", "x.txt", "--out", "z").stdout == ""
    assert Path("z").read_text() == listed
    test = json.loads(done("tag", "train", *SMALL["tag"], "--test", "c.conll", "--json").stdout)
    assert test["held_out_sentences"] == 64


@pytest.mark.parametrize("level", ["token", "character"])
def test_tag_reads_source_as_it_was_trained(level, monkeypatch):
    monkeypatch.setattr(tag, "python_source", partial(tag.python_source, characters=200_000))
    told = json.loads(
        done("tag", "train", "--level", level, "--steps", 1, "--hidden", 3, "--embedding", 2, "--json").stdout
    )
    goes_on = ("comment", "number", "string", *(("keyword", "name") if level == "character" else ()))
    kinds = ("comment", "keyword", "name", "number", "string")
    assert told["labels"] == sorted({"O", *(f"B-{kind}" for kind in kinds), *(f"I-{kind}" for kind in goes_on)})
    Path("x.py").write_text("x = 'ab'\n")
    lines = done("tag", "apply", "tag.safetensors", "x.py").stdout.splitlines()
    tokens = [*"x = 'ab'", "\n"] if level == "character" else ["x", " ", "=", " ", "'", "ab", "'", "\n"]
    assert [line.split("\t")[0] for line in lines] == [t if t.strip() else repr(t) for t in tokens]


def test_translate_tells_what_the_library_translates():
    result = done("translate", "train", *SMALL["translate"], "--json")
    assert result.stderr.endswith("\nmeasuring 12 held-out examples, greedy and by a beam of 2\n")
    told = json.loads(result.stdout)
    model, corpus = Translator.load("translate.safetensors"), translate.table(Path("t.tsv"))
    assert told["held_out"] == len(corpus.held_out) == 12
    assert told["exact_greedy"] == model.exact(corpus.held_out)
    assert told["exact_beam"] == model.exact(corpus.held_out, 2)
    lines = done("translate", "apply", "translate.safetensors", "bal", "dos", "--out", "a.png").stdout.splitlines()
    wanted = {name: model.translate(["bal", "dos"], name, width=4) for name in ("back", "up")}
    want = [f"{text}\t{name}\t{wanted[name][i]}" for i, text in enumerate(("bal", "dos")) for name in ("back", "up")]
    assert lines == want
    assert files()["a.png"].startswith(PNG)
    rows = json.loads(
        done("translate", "apply", "translate.safetensors", "bal", "--to", "up", "--width", 1, "--json").stdout
    )
    assert rows == [{"text": "bal", "up": model.translate(["bal"], "up")[0]}]
    told = json.loads(done("translate", "train", "--numbers", 30, *SMALL["translate"][2:], "--json").stdout)
    assert told["examples"] + told["held_out"] == 2 * 31


def test_autoencode_tells_what_comes_back():
    result = done("autoencode", "train", *SMALL["autoencode"], "--steps", 30, "--json")
    assert result.stderr.endswith("\nmeasuring 6 held-out texts\n")
    told = json.loads(result.stdout)
    model, corpus = Autoencoder.load("autoencode.safetensors"), autoencode.lines(Path("w.txt"))
    assert told["exact"] == model.exact(corpus.held_out)
    assert list(told["examples"]) == corpus.held_out[:8]
    rows = json.loads(
        done("autoencode", "apply", "autoencode.safetensors", "bal", "gut", "--json", "--out", "v").stdout
    )
    assert [row["back"] for row in rows] == model.reconstruct(["bal", "gut"])
    np.testing.assert_array_equal(np.array([row["code"] for row in rows], np.float32), model.encode(["bal", "gut"]))
    np.testing.assert_array_equal(np.load("v"), model.encode(["bal", "gut"]))
    assert (
        done("autoencode", "apply", "autoencode.safetensors", "bal").stdout == f"bal\t{model.reconstruct(['bal'])[0]}\n"
    )


def test_gradflow_prints_norms_beside_the_closed_form_and_draws_them():
    told = json.loads(done("gradflow", "--steps", 30, "--hidden", 6, "--batch", 2, "--out", "g.png", "--json").stdout)
    assert list(told["cells"]) == ["RNN (tanh)", "LSTM", "GRU"]
    assert all(len(norms) == 31 for norms in told["cells"].values())
    for name, rate in (("U = diag(1.2, 2.0, 1.1)", 2.0), ("U = diag(0.8, 0.1, 0.9)", 0.9)):
        diagonal = told["diagonal"][name]
        np.testing.assert_allclose(diagonal["norms"], diagonal["closed_form"], rtol=1e-13)
        assert (diagonal["norms"][0] / diagonal["norms"][10]) ** 0.1 == pytest.approx(rate, rel=0.01)
    lstm = fastrnn.LSTM(6, 6, dtype="float64", seed=0)
    lstm.update({"weight_hh_l0": lstm.params["weight_hh_l0"] * 1.0})
    x = np.random.default_rng(0).standard_normal((30, 2, 6))
    np.testing.assert_array_equal(told["cells"]["LSTM"], fastrnn.gradient_flow(lstm, x).h)
    assert files()["g.png"].startswith(PNG)
    table = done("gradflow", "--steps", 30, "--hidden", 6, "--batch", 2, "--out", "g.png").stdout
    assert f"{told['cells']['GRU'][0]:12.3g}" in table
    assert "t = 30" in table
    stronger = json.loads(done("gradflow", "--steps", 30, "--scale", 3.0, "--out", "g.png", "--json").stdout)
    assert stronger["cells"]["RNN (tanh)"][0] > told["cells"]["RNN (tanh)"][0]
    stacked = json.loads(
        done("gradflow", "--steps", 9, "--layers", 2, "--scale", 2.0, "--out", "g.png", "--json").stdout
    )
    assert list(stacked["cells"])[:3] == ["RNN (tanh), layer 1", "RNN (tanh), layer 2", "LSTM, layer 1"]
    gru = fastrnn.GRU(32, 32, num_layers=2, dtype="float64", seed=0)
    gru.update({n: w * 2.0 for n, w in gru.params.items() if n.startswith("weight_hh")})
    flow = fastrnn.gradient_flow(gru, np.random.default_rng(0).standard_normal((9, 8, 32))).h
    np.testing.assert_array_equal([stacked["cells"][f"GRU, layer {k}"] for k in (1, 2)], flow)
    assert "layers: expected at least 1, got 0" in run("gradflow", "--layers", 0).stderr


def test_rivals_are_trained_in_sight_and_the_order_of_the_table_is_fixed(monkeypatch):
    result = done("forecast", "train", *SMALL["forecast"], "--compare")
    assert re.findall(r"^(\w+), to compare$", result.stderr, re.MULTILINE) == ["rnn", "lstm"]
    assert result.stderr.count("step     6: training loss") == 3
    assert done("forecast", "train", *SMALL["forecast"], "--compare", "--quiet").stderr == ""
    monkeypatch.setattr("fastrnn.commands.forecast.follow", lambda *_, **__: (None, True))
    stopped = run("forecast", "train", *SMALL["forecast"], "--compare", "--quiet")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert stopped.stderr == "stopped while comparing; forecast.safetensors is complete\n"


def test_the_command_that_goes_on_can_be_pasted_into_a_shell():
    told = running.again(
        "tag", "train", "--out", Path("my model"), device="cuda:0", conll=Path("a'b.conll"), test=None
    )  # fmt: skip
    assert told == """fastrnn tag train --out 'my model' --conll 'a'"'"'b.conll' --device cuda:0"""
    assert running.again("charlm", device="cpu", text=None) == "fastrnn charlm"


def test_results_are_written_whole_or_not_at_all(monkeypatch):
    done("tag", "train", *SMALL["tag"])
    done("autoencode", "train", *SMALL["autoencode"])
    for name in ("y", "v"):
        Path(name).write_text("old")
    before = files()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "v")

    monkeypatch.setattr(os, "fsync", full)
    for arguments in (["tag", "apply", "tag.safetensors", "w.txt", "-o", "y"],
                      ["autoencode", "apply", "autoencode.safetensors", "bal", "-o", "v"]):  # fmt: skip
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (2, "error: v: No space left on device\n")
        assert files() == before


@pytest.mark.parametrize("name", [*SMALL, "charlm"])
def test_what_cannot_be_written_is_refused_before_training(name, monkeypatch):
    Path("x.txt").write_text("".join(WORDS))
    data = {"charlm": ["--text", "x.txt"]}.get(name, SMALL.get(name, []))
    Path("m.loss.png").mkdir()
    result = run(name, "train", *data, "--out", "m")
    assert (result.exit_code, result.stderr) == (
        2, "error: --out: expected a file in a folder, got the folder m.loss.png\n"
    )  # fmt: skip

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    result = run(name, "train", *data, "--out", "n")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --out: expected a file in a folder that can be written, got . (Read-only file system)\n"
    )


def test_gradients_out_of_range_are_infinite_in_the_table_and_null_in_json(monkeypatch):
    figures, write = [], plots._write
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure) or write(figure, path))
    arguments = ["gradflow", "--steps", 1100, "--hidden", 2, "--batch", 1]
    result = done(*arguments, "--json")  # warnings are errors here
    told = json.loads(result.stdout, parse_constant=pytest.fail)
    values = told["diagonal"]["U = diag(1.2, 2.0, 1.1)"].values()
    norms, closed_form = ([math.inf if norm is None else norm for norm in column] for column in values)
    np.testing.assert_allclose(norms[100:], closed_form[100:], rtol=1e-12)  # 2^1000: its square is no float64
    assert norms[0] == closed_form[0] == math.inf
    assert " inf" in done(*arguments).stdout
    assert "nan" not in done(*arguments).stdout
    assert min(told["cells"]["RNN (tanh)"]) == 0
    drawn = np.concatenate([line.get_ydata() for axes in figures[0].axes for line in axes.get_lines()])
    assert np.nanmin(drawn) > 0


def test_every_line_of_a_gradient_plot_can_be_told_apart(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    done("gradflow", "--steps", 3, "--hidden", 2, "--batch", 1, "--layers", 4, "--out", "g.png")
    lines = [line for line in figures[0].axes[0].get_lines() if len(line.get_xdata())]
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert sorted(legend) == ["GRU", "LSTM", "RNN (tanh)", "layer 1", "layer 2", "layer 3", "layer 4"]
    colors, dashes = ([str(at(line)) for line in lines] for at in (Line2D.get_color, attrgetter("_dash_pattern")))
    assert len(set(zip(colors, dashes, strict=True))) == 12
    assert colors == [color for color in dict.fromkeys(colors) for _ in range(4)]  # one a cell


def test_a_gradient_plot_of_the_whole_range_of_float64_is_drawn():
    norms = 10.0 ** np.arange(-308, 309)  # the ticks that matplotlib tries lie far beyond what is drawn
    plots.gradient_flow({"RNN (tanh)": norms.tolist()}, {"U": ([0.0, 1e308], [np.inf, 1.0])}, Path("g.png"))
    assert files()["g.png"].startswith(PNG)


def test_plots_say_what_the_user_named_letter_by_letter(capsys):
    name = "price ($) of $\\x$"  # no mathematics
    plots.forecast(name, np.arange(9.0), 6, np.arange(3.0), [1.0], Path("f.png"))
    plots.forecast(name, np.arange(9.0), None, [], [1.0], Path("g.png"))
    plots.attention("a $", {name: ("\\$ b", np.full((5, 3), 0.3))}, Path("a.png"))
    assert capsys.readouterr().err == ""
    plots.attention("\U000f0000", {"x": ("\U000f0000 b", np.full((4, 1), 0.3))}, Path("b.png"))  # private: no font
    assert capsys.readouterr().err == (
        "b.png: drawn with boxes for characters that the font lacks: \U000f0000\n"
    )  # fmt: skip
    assert all(files()[name].startswith(PNG) for name in ("f.png", "g.png", "a.png", "b.png"))


def test_long_work_without_steps_shows_a_bar_on_a_terminal(monkeypatch):
    terminal = Console(file=StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    done("gradflow", "--steps", 3, "--hidden", 2, "--batch", 1)
    assert re.search(r"GRU .*3/3", terminal.file.getvalue())  # as it stood when the bar went


BAD = [
    (["forecast", "train", "--csv", "none.csv"], "none.csv: No such file or directory"),
    (["forecast", "train", "--csv", "gap.csv"], "gap.csv, line 3: expected a number in column 'v', got nothing"),
    (["forecast", "train", "--csv", "text.csv"], "text.csv, line 2: expected a number in column 'v', got 'x'"),
    (["forecast", "train", "--csv", "empty"], "empty: expected a header line and numbers, got an empty file"),
    (["forecast", "train", "--csv", "s.csv", "--column", "z"], "column: expected one of 'day', 'value'"),
    (["forecast", "train", "--column", "z"], "--column: expected nothing without --csv"),
    (["forecast", "train", "--window", "500"], "series: expected at least 627 values for window = 500"),
    (["forecast", "train", "--cell", "cnn"], "cell: expected one of 'rnn', 'lstm', 'gru'"),
    (["forecast", "train", "--steps", "0"], "steps: expected at least 1"),
    (["forecast", "train", "--ahead", "0"], "ahead: expected at least 1"),
    (["forecast", "train", "--out", "no/m"], "--out: expected a file in an existing folder"),
    (["forecast", "train", "--out", "."], "--out: expected a file"),
    (["tag", "train", "--out", "m.png"], "--out: expected a name that the log and the plots do not have, got m.png"),
    (["forecast", "train", "--device", "cuda:0"], r"device: .*'cuda:0'"),
    (["forecast", "train", "--device", "tpu"], "device: expected 'cpu' or 'cuda:N'"),
    (["forecast", "train", "--threads", "0"], "num_threads: expected at least 1"),
    (["forecast", "train", "--seed", "-1"], "seed: expected at least 0"),
    (["forecast", "train", "--resume"], "forecast.safetensors: No such file or directory"),
    (["forecast", "train", "--resume", "--compare"], "--compare: expected nothing"),
    (["forecast", "predict", "charlm"], "charlm: expected a checkpoint of a Forecaster, got one of 'CharLM'"),
    (["forecast", "predict", "empty", "--ahead", "0"], "ahead: expected at least 1, got 0"),
    (["forecast", "predict", "empty"], "empty: expected a safetensors file"),
    (["tag", "train", "--conll", "empty"], "empty: expected at least one sentence"),
    (["tag", "train", "--conll", "w.txt"], "w.txt, line 1: expected a token and a label"),
    (["tag", "train", "--test", "c.conll"], "--test: expected nothing without --conll"),
    (["tag", "train", "--level", "word"], "level: expected one of 'token', 'character'"),
    (["tag", "train", "--conll", "c.conll", "--level", "character"], "--level: expected nothing with --conll"),
    (["tag", "apply", "charlm", "w.txt"], "charlm: expected a checkpoint of a Tagger"),
    (["tag", "suggest", "charlm", "w.txt", "--count", "0"], "count: expected at least 1"),
    (["tag", "apply", "charlm", "bytes"], "charlm: expected a checkpoint of a Tagger"),
    (["translate", "train", "--table", "w.txt"], "w.txt, line 1: expected source<tab>target"),
    (["translate", "train", "--table", "t.tsv", "--numbers", "9"], "--numbers: expected nothing with --table"),
    (["translate", "train", "--numbers", "1"], "greatest: expected at least 19"),
    (["translate", "train", "--forcing", "2"], "forcing: expected 0 <= forcing <= 1"),
    (["translate", "train", "--width", "0"], "width: expected at least 1"),
    (["translate", "apply", "charlm", "x"], "charlm: expected a checkpoint of a Translator"),
    (["autoencode", "train", "--lines", "empty"], "empty: expected at least two different texts, got 0"),
    (["autoencode", "train", "--lines", "bytes"], "bytes: expected UTF-8 text, got byte 0xff"),
    (["autoencode", "train", "--code", "0"], "code: expected at least 1"),
    (["autoencode", "apply", "charlm", "x"], "charlm: expected a checkpoint of an Autoencoder, got one of 'CharLM'"),
    (["gradflow", "--steps", "0"], "steps: expected at least 1"),
    (["gradflow", "--init", "zeros"], "init: expected one of"),
    (["gradflow", "--scale", "nan"], "scale: expected a finite number"),
    (["gradflow", "--out", "no/g.png"], "--out: expected a file in an existing folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(arguments, message):
    Path("gap.csv").write_text("t,v\n1,2\n2,\n")
    Path("text.csv").write_text("t,v\n1,x\n")
    Path("empty").write_text("")
    Path("bytes").write_bytes(b"\xff" * 50)
    CharLM("abc", hidden=2, seed=0).save("charlm")
    before = files()
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert re.fullmatch(r"([^\n]*(held out|values, gru)\n)?error: .*\n", result.stderr), result.stderr
    assert files() == before


def test_unknown_characters_in_what_is_to_be_translated_or_encoded_are_refused():
    done("translate", "train", *SMALL["translate"])
    done("autoencode", "train", *SMALL["autoencode"])
    for arguments, message in (
        (
            ["translate", "apply", "translate.safetensors", "Xy"],
            "text: expected known characters, got the unknown 'Xy'",
        ),
        (
            ["translate", "apply", "translate.safetensors", "bal", "--to", "french"],
            "language: expected one of 'back', 'up'",
        ),
        (["translate", "apply", "translate.safetensors", ""], "text: expected at least one character"),
        (["autoencode", "apply", "autoencode.safetensors", "Xy"], "text: expected known characters"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert re.fullmatch(f"error: {re.escape(message)}.*\n", result.stderr), result.stderr


def test_an_empty_text_has_no_sentence_to_tag():
    done("tag", "train", *SMALL["tag"])
    Path("blank").write_text("\n \n")
    for command in ("apply", "suggest"):
        result = run("tag", command, "tag.safetensors", "blank")
        assert (result.exit_code, result.stderr) == (2, "error: blank: expected at least one sentence, got none\n")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "fastrnn.cli", "autoencode", "train", *SMALL["autoencode"], "--steps", "1000000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300  # only against a hanging process
        while not Path("autoencode.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, messages
    assert output == ""
    stopped = re.search(r"stopped after step (\d+) of 1000000; go on with\n  fastrnn (.*)\n", messages)
    assert stopped is not None, messages
    step = int(stopped[1])
    told = json.loads(done(*stopped[2].split(), "--steps", step + 3, "--json").stdout)
    assert told["steps"] == step + 3


def test_every_training_command_has_the_common_options():
    for name in SMALL:
        text = run(name, "train", "--help").output
        for option in ("--seed", "--device", "--threads", "--out", "--json", "--resume", "--quiet"):
            assert option in text, (name, option)


def test_the_commands_of_the_readme_exist_with_their_options():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^fastrnn (.+)$", "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)), re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        words = command.split()
        path = words[: 1 if words[0] in ("gradflow", "info", "bench") else 2]
        text = done(*path, "--help").output
        for option in (word for word in words if word.startswith("--")):
            assert option in text, command
