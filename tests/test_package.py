"""The package as a package: version, imports, typing marker, bare checkout; no file of it names a machine."""

import os
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "fastrnn"
LAZY = ("cupy", "llvmlite", "matplotlib", "numba", "onnx", "onnxruntime", "rich", "torch", "typer")


def run_python(code: str, *, cwd: Path, **environ: str) -> str:
    """Standard output of `code` in a new interpreter that sees this checkout and no other setting of the caller."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTRNN"))}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(
        command, cwd=cwd, env=env | {"PYTHONPATH": str(ROOT / "src")} | environ, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_version_is_written_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastrnn.__version__)
    written = [
        path.relative_to(ROOT).as_posix()
        for path in [*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
        if f'"{fastrnn.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert written == ["src/fastrnn/__init__.py"]
    assert f"## [{fastrnn.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_installed_metadata_has_the_same_version() -> None:
    try:
        installed = metadata.version("fastrnn")
    except metadata.PackageNotFoundError:
        pytest.skip("a bare checkout: nothing is installed")
    assert installed == fastrnn.__version__


def test_import_loads_no_heavy_library(tmp_path: Path) -> None:
    code = f"import sys, fastrnn; print([m for m in {LAZY!r} if m in sys.modules])"
    assert run_python(code, cwd=tmp_path).strip() == "[]"


def test_import_time_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from time import perf_counter as now; start = now(); import fastrnn; print(now() - start)"
    seconds = [float(run_python(code, cwd=tmp_path)) for _ in range(5)]
    with capsys.disabled():
        print(f"\nimport fastrnn: median {statistics.median(seconds):.3f} s of {len(seconds)}, NumPy included")


def test_bare_checkout_computes(tmp_path: Path) -> None:
    code = (
        "import fastrnn, numpy as np; lstm = fastrnn.LSTM(3, 5, seed=0); x = np.ones((4, 2, 3), np.float32)\n"
        "y, (h_n, c_n) = lstm(x); assert np.array_equal(y[-1], h_n[0]); print(fastrnn.__file__, y.shape)"
    )
    assert run_python(code, cwd=tmp_path).strip() == f"{PACKAGE / '__init__.py'} (4, 2, 5)"


def test_every_public_name_exists_and_is_documented() -> None:
    contract = {"LSTM", "GRU", "RNN", "ShapeError", "load", "set_num_threads", "use_backend"}
    assert contract <= set(fastrnn.__all__)
    for name in fastrnn.__all__:
        value = getattr(fastrnn, name)
        assert not callable(value) or (value.__doc__ or "").strip(), f"fastrnn.{name} has no docstring"
    assert issubclass(fastrnn.ShapeError, ValueError)
    assert issubclass(fastrnn.ShapeError, RuntimeError)


def test_typing_marker_is_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (Path(fastrnn.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "command",
    ['pip install ".[cli]" && fastrnn charlm train', 'pip install ".[test]" && pytest'],
    ids=["main-job", "tests"],
)
def test_readme_gives_the_command_on_its_own_line(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_torch_is_pinned_wherever_the_project_installs_it_for_itself() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("bench", "test"):
        line = re.search(rf"^{extra} = \[.*\]$", pyproject, re.MULTILINE)
        assert line is not None
        assert '"torch==2.13.0"' in line[0]


def test_tracked_files_name_no_machine() -> None:
    folder = r"(?<![\w.*}/])/(?:home|root|Users|work|opt|tmp)/\w"
    registry = r"--(?:extra-)?index-url|--find-links|trusted-host"
    pattern = re.compile(f"{folder}|{registry}")
    texts = [path for path in tracked_files() if b"\0" not in path.read_bytes() and path != Path(__file__)]
    assert len(texts) > 20
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
