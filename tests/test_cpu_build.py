"""The kernel cache: a second process compiles nothing, and an edit of any source involved is never answered from it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastrnn

WORDS = """
from fastrnn import backends
from fastrnn.cpu import build

words = backends.module("cpu").random_words(None, 5, (1, 2, 3), 4)
print(sum(build.load("masks").random_words.stats.cache_hits.values()), build.cache_root().is_absolute())
print(words.tolist())
"""
LOOP = """
import numpy as np
import fastrnn
from fastrnn.cpu import build

rnn = fastrnn.RNN(1, 1, nonlinearity="identity", bias=False)
rnn.update({"weight_ih_l0": np.ones((1, 1), "f"), "weight_hh_l0": np.zeros((1, 1), "f")})
print(rnn(np.full((1, 1, 1), 3, "f"))[0].item())
kernel = build.load("loop", rnn._network.cell).layer_forward
print(sum(kernel.stats.cache_hits.values()))
"""


def run(program: str, package: Path, cache: Path | str, cwd: Path | None = None) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "FASTRNN_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the sources that a test may edit."""
    source = Path(fastrnn.__file__).parent
    shutil.copytree(source, tmp_path / "src" / "fastrnn", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "src"


def edit(path: Path, old: str, new: str) -> None:
    text, stamp = path.read_text(), path.stat().st_mtime_ns
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(stamp, stamp))  # the time of the file must not be what gives the edit away


def test_a_second_process_compiles_nothing_and_an_edited_source_is_compiled_again(
    package: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = run(LOOP + WORDS, package, cache)
    assert first[:3] == ["3.0", "0", "0 True"]
    assert run(LOOP + WORDS, package, cache) == ["3.0", "1", "1 True", first[3]]
    # an inlined equation, in a file that no cached kernel stands in
    edit(package / "fastrnn/cpu/cells/rnn.py", '    """phi(a) = a."""\n    return a\n', "    return a + a\n")
    # a constant from outside the backend, compiled into a kernel
    edit(package / "fastrnn/philox.py", "ROUNDS = 10", "ROUNDS = 9\n")
    changed = run(LOOP + WORDS, package, cache)
    assert changed[:3] == ["6.0", "0", "0 True"]
    assert changed[3] != first[3]


def test_a_relative_cache_folder_holds_after_a_change_of_folder(package: Path, tmp_path: Path) -> None:
    assert run(WORDS, package, "here", cwd=tmp_path)[0] == "0 True"
    assert list((tmp_path / "here").rglob("*.nbc"))
    assert run(WORDS, package, "here", cwd=tmp_path)[0] == "1 True"


def test_a_new_folder_removes_those_unused_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastrnn.cpu import build

    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    names = {"old": "a" * 20, "used": "b" * 20, "other": "not-ours"}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    long_ago = time.time() - build.UNUSED_SECONDS - 60
    for which in ("old", "other"):
        os.utime(tmp_path / names[which], (long_ago, long_ago))
    assert build._folder("c" * 20) == tmp_path / ("c" * 20)
    build._folders.pop()
    assert {path.name for path in tmp_path.iterdir()} == {names["used"], names["other"], "c" * 20}


def test_a_cache_folder_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastrnn.cpu import build

    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="no kernel cache in .*below.*every process compiles anew"):
        folder = build._folder("0" * 20)
    assert folder.is_dir()
    assert build._folders.pop() == folder
    shutil.rmtree(folder.parent)
    build._temporary_root.cache_clear()
