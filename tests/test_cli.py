"""The command: results, bad input, Ctrl-C and resuming, in this process and in true ones."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import fastrnn
from fastrnn.commands import app, plots
from fastrnn.commands.progress import interruptible
from fastrnn.models import CharLM, Settings, Watch, text_file
from fastrnn.models.ngram import NGram

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"def f{i % 7}(x):\n    return x + {i % 10}\n\n\n" for i in range(100))
SMALL = ["--hidden", "8", "--embedding", "4", "--batch", "3", "--window", "9"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(name="text")
def _text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(text: Path, out: Path, *more: object) -> Result:
    result = run("charlm", "train", "--text", text, "--out", out, *SMALL, *more)
    assert result.exit_code == 0, result.output
    return result


def test_version():
    assert run("--version").output == f"fastrnn {fastrnn.__version__}\n"


def test_help_names_the_commands_and_the_defaults():
    assert {"charlm", "bench", "info"} <= set(re.findall(r"\w+", run("--help").output))
    text = run("charlm", "train", "--help").output
    for name, value in (("steps", Settings().steps), ("lr", Settings().lr), ("cell", "lstm")):
        assert re.search(rf"--{name}\b[^-]*default: \({value}\)", text), name


def test_info_tells_versions_processor_and_gpu():
    told = json.loads(run("info", "--json").stdout)
    assert told["versions"]["numpy"] == np.__version__
    assert told["versions"]["fastrnn"] == fastrnn.__version__
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["threads"] == fastrnn.get_num_threads()
    assert told["vector_bits"] in (128, 256, 512)
    assert told["gpu"] or told["gpu_unused_because"]
    assert np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"] in told["blas"]
    table = run("info").stdout
    for value in (told["processor"], np.__version__, f"{told['vector_bits']} bits", told["gpu_unused_because"]):
        assert str(value) in table


def test_training_reports_what_the_library_measures(text, tmp_path):
    out = tmp_path / "model"
    result = train(text, out, "--steps", 40, "--json", "--report-every", 15, "--cell", "gru", "--lr", 0.02)
    told, corpus = json.loads(result.stdout), text_file(text)
    assert re.findall(r"step +(\d+): train", result.stderr) == ["15", "30", "40"]
    model = CharLM.load(out)
    ids = [model.vocabulary.encode(part) for part in (corpus.train, corpus.held_out)]
    assert told["held_out_bits"] == model.bits_per_character(corpus.held_out)
    assert told["held_out_perplexity"] == 2 ** told["held_out_bits"]
    assert told["trigram_bits"] == NGram(ids[0], len(model.vocabulary)).bits_per_symbol(ids[1])
    assert told["held_out_unknown"] == int((ids[1] == 0).sum())
    assert told["held_out_characters"] == len(corpus.held_out)
    assert told["characters"] == 40 * 3 * 9
    assert told["model"] == {"cell": "gru", "hidden": 8, "layers": 1, "dropout": 0.0, "embedding": 4, "seed": 0}
    assert told["sample"] == model.sample("\n", 600, 0.8, seed=0)
    twin = CharLM(corpus.train, cell="gru", hidden=8, embedding=4, seed=0)
    progress = twin.fit(corpus, Settings(steps=40, batch=3, window=9, lr=0.02))
    assert told["train_bits"] == progress.train_bits
    for name, array in twin.params.items():
        assert model.params[name].tobytes() == array.tobytes(), name


def test_training_writes_a_log_and_a_plot_that_go_on_when_it_is_resumed(text, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "loss_curve", lambda history, path, *_: drawn.append((history, path.name)))
    told = json.loads(train(text, tmp_path / "a", "--steps", 40, "--json", "--report-every", 15).stdout)
    assert told["log"] == str(tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in Path(told["log"]).read_text().splitlines()]
    assert [line["step"] for line in lines] == [15, 30, 40]
    assert lines[-1]["loss"] == told["train_bits"]
    assert lines[-1]["score"] == told["held_out_bits"]  # this text is short: all of it is measured
    assert drawn == [(lines, "a.loss.png")]
    asked = iter(range(1, 41))
    stopped = CharLM(text_file(text).train, hidden=8, embedding=4, seed=0)
    settings = Settings(steps=40, batch=3, window=9)
    stopped.fit(text_file(text), settings, Watch(stop=lambda: next(asked) == 20, report_every=15))
    stopped.save(tmp_path / "b")
    run("charlm", "train", "--text", text, "--resume", tmp_path / "b", "--report-every", 15)
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert "--out: expected a name that the log" in run("charlm", "train", "--out", tmp_path / "a.jsonl").stderr


def test_training_prints_the_model_beside_the_trigram(text, tmp_path):
    told = json.loads(train(text, tmp_path / "a", "--steps", 30, "--json").stdout)
    result = train(text, tmp_path / "b", "--steps", 30, "--quiet")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert result.stderr == ""
    assert f"held-out loss  {told['held_out_bits']:.3f} bits per character" in result.stdout
    assert f"trigram model  {told['trigram_bits']:.3f} bits per character" in result.stdout
    assert told["sample"] in result.stdout


def test_the_default_text_is_the_standard_library(tmp_path):
    result = run("charlm", "train", "--out", tmp_path / "m", *SMALL, "--steps", 2, "--json", "--seed", 5)
    told = json.loads(result.stdout)
    assert told["corpus"]["name"] == f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
    assert told["corpus"]["characters"] > 1_000_000
    assert 2 < told["trigram_bits"] < 3.5
    assert told["model"]["seed"] == 5


def test_sampling_goes_on_from_the_start(text, tmp_path):
    out = tmp_path / "model"
    train(text, out, "--steps", 5)
    arguments = ["charlm", "sample", out, "--start", "def f", "--temperature", 0.5, "--length", 40, "--seed", 3]
    want = CharLM.load(out).sample("def f", 40, 0.5, seed=3)
    assert run(*arguments).stdout == want + "\n"
    assert json.loads(run(*arguments, "--json").stdout) == {"start": "def f", "sample": want}
    written = tmp_path / "written.txt"
    assert run(*arguments, "--out", written).stdout == ""
    assert written.read_text(encoding="utf-8") == want + "\n"


def test_a_complete_run_is_prolonged_by_steps_only(text, tmp_path):
    out, longer = tmp_path / "model", tmp_path / "longer"
    train(text, out, "--steps", 6)
    before = out.read_bytes()
    refused = run("charlm", "train", "--text", text, "--resume", out)
    assert refused.exit_code == 2
    assert "steps: expected more than the 6 already taken, got 6" in refused.stderr
    result = run("charlm", "train", "--text", text, "--resume", out, "--steps", 9, "--out", longer, "--json")
    assert json.loads(result.stdout)["steps"] == 9
    assert out.read_bytes() == before
    run("charlm", "train", "--text", text, "--resume", out, "--steps", 9)
    assert out.read_bytes() == longer.read_bytes()


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["train", "--text", "missing.txt"], "missing.txt: No such file or directory"),
        (lambda: Path("e.txt").write_text(""), ["train", "--text", "e.txt"], "e.txt: expected .* got an empty file"),
        (lambda: Path("b").write_bytes(b"\xff" * 9), ["train", "--text", "b"], "b: expected UTF-8 text, got byte 0xff"),
        (
            lambda: Path("a").write_text("a" * 9999),
            ["train", "--text", "a"],
            "expected at least two different characters",
        ),
        (
            lambda: Path("s").write_text("ab" * 500),
            ["train", "--text", "s"],
            r"at least batch \* window \+ 1 = \d+ char",
        ),
        (None, ["train", "--text", "."], "Is a directory"),
        (
            None,
            ["train", "--text", "text.py", "--out", "no/such/folder"],
            "--out: expected a file in an existing folder",
        ),
        (None, ["train", "--text", "text.py", "--out", "."], "--out: expected a file in a folder"),
        (None, ["train", "--text", "text.py", "--cell", "transformer"], "cell: expected one of 'lstm', 'gru', 'rnn'"),
        (None, ["train", "--text", "text.py", "--hidden", "0"], "hidden: expected at least 1, got 0"),
        (None, ["train", "--text", "text.py", "--steps", "0"], "steps: expected at least 1, got 0"),
        (None, ["train", "--text", "text.py", "--lr", "-1"], "lr: expected a number greater than 0"),
        (None, ["train", "--text", "text.py", "--dropout", "0.5"], "dropout: expected 0 with one layer"),
        (None, ["train", "--text", "text.py", "--threads", "0"], "num_threads: expected at least 1, got 0"),
        (None, ["train", "--text", "text.py", "--report-every", "0"], "report_every: expected at least 1, got 0"),
        (None, ["train", "--text", "text.py", "--seed", "-1"], "seed: expected at least 0"),
        (None, ["train", "--text", "text.py", "--resume", "none"], "none: No such file or directory"),
        (None, ["train", "--text", "text.py", "--resume", "model", "--hidden", "9"], "--hidden: expected nothing"),
        (None, ["train", "--resume", "model", "--steps", "9"], "text: expected 'text.py' as at the start of the run"),
        (
            lambda: spoil(Path("model")),
            ["train", "--resume", "model"],
            "model: expected a safetensors file, got a damaged",
        ),
        (lambda: spoil(Path("model")), ["sample", "model"], "model: expected a safetensors file, got a damaged"),
        (
            lambda: fastrnn.GRU(2, 2).save("model"),
            ["sample", "model"],
            "expected a checkpoint of a CharLM, got one of 'GRU'",
        ),
        (None, ["sample", "none"], "none: No such file or directory"),
        (None, ["sample", "model", "--start", "Größe"], "start: expected .* got the unknown 'Göß'"),
        (None, ["sample", "model", "--start", ""], "start: expected at least one character"),
        (None, ["sample", "model", "--temperature", "-1"], "temperature: expected at least 0"),
        (None, ["sample", "model", "--length", "-1"], "length: expected at least 0"),
        (None, ["train", "--steps", "many"], "--steps"),
        (None, ["train", "--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(prepare, arguments, message, text, tmp_path, monkeypatch):
    train(text, tmp_path / "model", "--steps", 2)
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("charlm", *arguments)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    if arguments[-1] not in ("many", "red"):  # those are the option parser's
        assert re.fullmatch(r"(.*held out\n)?error: .*\n", result.stderr), result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ctrl_c_is_noted_once_and_obeyed_at_once_the_second_time():
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with interruptible(said.append) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def python(*arguments: object, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-m", "fastrnn.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_writes_a_checkpoint_that_goes_on_to_the_same_bits(text, tmp_path):
    out, corpus = tmp_path / "model", text_file(text)
    total = 1_000_000  # more than can be done before the signal
    process = python(
        "charlm", "train", "--text", text, "-o", out, *SMALL, "--steps", total, "--report-every", 5, folder=tmp_path
    )
    try:
        deadline = time.monotonic() + 300  # only against a hanging process
        while not out.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, messages
    assert output == ""
    stopped = re.search(rf"stopped after step (\d+) of {total}; go on with\n  fastrnn (.*)\n", messages)
    assert stopped is not None, messages
    assert stopped[2] == f"charlm train --resume {out} --text {text}"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.jsonl", "text.py"}
    step, stop_at = int(stopped[1]), int(stopped[1]) + 7
    whole = CharLM(corpus.train, hidden=8, embedding=4, seed=0)
    asked = iter(range(1, total))
    settings = Settings(steps=total, batch=3, window=9)
    whole.fit(corpus, settings, Watch(stop=lambda: next(asked) == stop_at, report_every=5))
    resumed, more = CharLM.load(out), iter(range(step + 1, total))
    resumed.resume(corpus, watch=Watch(stop=lambda: next(more) == stop_at, report_every=5))
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "resumed")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_help_loads_nothing_heavy(tmp_path):
    heavy = ("cupy", "matplotlib", "numba", "onnxruntime", "torch")
    code = f"""
import sys
from fastrnn.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print([name for name in {heavy} if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_cli_extra_one_line_says_so(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from fastrnn.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"ImportError: the command needs {missing}: pip install 'fastrnn[cli]'\n"


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ([], "loop_rnn_relu."),
        pytest.param(["--layer-norm"], "loop_rnn_relu_normalised.", marks=pytest.mark.nightly),  # compiles for 20 s
    ],
)
def test_warmup_leaves_nothing_for_a_later_process_to_compile(tmp_path: Path, options: list[str], loop: str) -> None:
    environment = {**os.environ, "FASTRNN_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}

    def warm() -> dict[str, Path]:
        command = "from fastrnn.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", command, "warmup", "--cell", "rnn_relu", "--dtype", "float64", "--json", *options],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        told = json.loads(done.stdout)
        assert told["cache"] == str(tmp_path)
        assert list(told["seconds"]) == ["rnn_relu float64"]
        return {path.name: path for path in tmp_path.rglob("*.nbc")}

    first = {name: path.stat().st_mtime_ns for name, path in warm().items()}
    found = " ".join(first)
    assert loop in found
    assert all(name in found for name in ("layer_forward", "layer_backward", "gemm_tn", "pack_back", "random_words"))
    assert ("split_forward" in found) is ("--layer-norm" not in options)
    assert {name: path.stat().st_mtime_ns for name, path in warm().items()} == first


@pytest.mark.parametrize("arguments", [["--cell", "lstmm"], ["--dtype", "float16"]])
def test_warmup_refuses_what_there_is_not(arguments: list[str]) -> None:
    result = run("warmup", *arguments)
    assert result.exit_code == 2
    assert arguments[1] in result.stderr
