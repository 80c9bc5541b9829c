"""Kernels compiled ahead of time: CMake, with an nvcc that only notes how it was called, and what loads the result."""

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastrnn.cells import CELLS
from fastrnn.cuda import source

ROOT = Path(__file__).parents[1]
NVCC = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out=$2; shift ;; --options-file) options="$options $(tr '\n' ' ' < "$2")"; shift ;;
    -*) options="$options $1" ;; *) in=$1 ;;
  esac
  shift
done
echo "$options" > "$out"; cat "$in" >> "$out"
"""


def configure(build: Path, path: str, chips: str = "75;90") -> subprocess.CompletedProcess[str]:
    options = [f"-DFASTRNN_CUDA_ARCHS={chips}", f"-DCMAKE_INSTALL_PREFIX={build / 'to'}"]
    return subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, *options], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )


@pytest.fixture
def nvcc(tmp_path: Path) -> str:
    """The path on which the nvcc of this file is found first."""
    file = tmp_path / "bin" / "nvcc"
    file.parent.mkdir()
    file.write_text(NVCC)
    file.chmod(0o755)
    return f"{file.parent}:{os.environ['PATH']}"


@pytest.mark.skipif(not shutil.which("cmake") or os.name == "nt", reason="needs CMake and a POSIX shell")
@pytest.mark.parametrize("chips", ["75;90a", pytest.param("80;100a;120", marks=pytest.mark.nightly)])
def test_cmake_compiles_what_the_loader_looks_for(
    chips: str, nvcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tmp_path / "build"
    configured = configure(build, nvcc, chips)
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["cmake", "--build", build, "--target", "install"], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    made = {path.name: path.read_text() for path in (build / "to" / "fastrnn" / "csrc" / "cubins").iterdir()}
    wanted = {
        source.cubin(variant, chip): (variant, chip)
        for variant in source.variants()
        if CELLS[variant.cell].cuda[0].endswith(".cuh")  # not those that conftest.py registers
        for chip in chips.split(";")
        if not (variant.dtype == "bfloat16" and chip == "75")
    }
    assert made.keys() == wanted.keys()
    for name, (variant, chip) in wanted.items():
        options, _, code = made[name].partition("\n")
        assert options.split() == ["-cubin", f"-arch=sm_{chip}", *source.AHEAD]
        assert code == source.assemble(variant)
    monkeypatch.setattr(source, "folder", lambda: build / "to" / "fastrnn" / "csrc")
    for name, (variant, chip) in wanted.items():
        found = source.compiled(variant, int(chip.rstrip("a")))
        assert found is not None
        assert found.name == name


@pytest.mark.skipif(not shutil.which("cmake") or os.name == "nt", reason="needs CMake and a POSIX shell")
@pytest.mark.parametrize("chip", ["sm_90", "all", "9", "90b", "a90", "09", "1000"])
def test_a_chip_that_there_cannot_be_is_one_clear_error(chip: str, nvcc: str, tmp_path: Path) -> None:
    configured = configure(tmp_path / "build", nvcc, f"80;{chip}")
    assert configured.returncode != 0
    message = f"FASTRNN_CUDA_ARCHS: expected chips as 80;90a;120, got '{chip}'"
    assert message in " ".join(configured.stderr.split())
    assert configured.stderr.count("CMake Error") == 1
    assert "Traceback" not in configured.stderr


def test_other_options_are_another_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = source.variants()[0]
    before = source.cubin(variant, "90")
    monkeypatch.setattr(source, "AHEAD", ("--std=c++17",))
    assert source.cubin(variant, "90") != before


@pytest.mark.skipif(not shutil.which("cmake") or bool(shutil.which("nvcc")), reason="needs CMake, and no nvcc")
def test_without_nvcc_cmake_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    configured = configure(tmp_path, os.environ["PATH"])
    assert configured.returncode != 0
    assert "needs nvcc, which was not found" in " ".join(configured.stderr.split())


def test_a_cubin_is_loaded_if_it_is_of_this_source(
    cupy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import kernels

    own = kernels.source  # imported anew, on the stand-in

    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(kernels.cupy, "RawModule", lambda **given: loaded.append(given))
    variant, path = own.Variant("lstm", "float32", 4), tmp_path / "cubins"
    name = own.cubin(variant, "90a")  # the stand-in's chip
    path.mkdir()
    monkeypatch.setattr(own, "folder", lambda: tmp_path)
    (path / name).touch()
    (path / own.cubin(own.Variant("lstm", "float32", 1), "80")).touch()  # another chip's
    kernels._load.__wrapped__(variant, 0)
    kernels._load.__wrapped__(own.Variant("lstm", "float32", 1), 0)
    monkeypatch.setattr(own, "assemble", lambda variant: "changed")
    kernels._load.__wrapped__(variant, 0)
    assert loaded[0] == {"path": str(path / name)}
    assert loaded[2] == {"code": "changed", "options": own.OPTIONS}
    assert loaded[1].keys() == {"code", "options"}
