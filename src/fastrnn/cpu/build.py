"""Compiled kernels that start fast the second time and can never be stale.

Numba's disk cache knows only the file that a function stands in: it forgets to look at what that function inlines, and
it never hits for a function that is bound to a cell at run time. So each kernel module is written out, bound to its
cell, to a folder whose name is a hash of every source and version that the machine code depends on, and Numba caches
it there. An edit of any of them makes another folder.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import llvmlite
import numba
from numba import njit
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.core.compiler_lock import global_compiler_lock

from fastrnn.cells import Cell

F = TypeVar("F", bound=Callable[..., Any])
VARIABLE = "FASTRNN_CACHE_DIR"
BINDING = "from fastrnn.cpu.cells.lstm import LSTM as CELL"
PLAIN = "NORMALISED = False"
FROM_LOOP = "from fastrnn.cpu.loop import "
UNUSED_SECONDS = 60 * 24 * 3600  # two months
_folders: list[Path] = []
_modules: dict[tuple[str, str | None, bool], ModuleType] = {}
# Numba's own: a second lock would be taken in the other order by a thread whose compilation comes back here.
lock = global_compiler_lock


def kernel(function: F) -> F:
    """Compile `function` without the GIL; cache it on disk if it stands in a folder that `load` made."""
    compiled: F = njit(nogil=True, error_model="numpy", cache=is_cached(function))(function)
    return compiled


def is_cached(function: Callable[..., Any]) -> bool:
    """Whether `function` stands in a folder that `load` made, so that Numba may keep its machine code there."""
    return Path(function.__code__.co_filename).parent in _folders


def load(name: str, cell: Cell | None = None, normalised: bool = False) -> ModuleType:
    """Return the kernel module fastrnn.cpu.<name> from the cache folder, bound to `cell` if one is given.

    normalised: with layer normalisation, which is a module of its own: what has none is compiled without it.
    """
    key = name, None if cell is None else cell.name, normalised
    if key not in _modules:
        with lock:
            if key not in _modules:
                _modules[key] = _made(name, cell, normalised)
    return _modules[key]


def _made(name: str, cell: Cell | None, normalised: bool) -> ModuleType:
    source = Path(__file__).with_name(f"{name}.py")
    text, title = source.read_text(encoding="utf-8"), name
    package = source.parent.parent
    files = sorted([*source.parent.rglob("*.py"), *package.glob("*.py")])  # masks.py compiles philox.py in
    if cell is not None:
        module, rendering = cell.rendering("cpu")
        origin = importlib.import_module(module).__file__
        assert origin is not None, "a rendering stands in a file"
        files.append(Path(origin))
        bound = {BINDING: f"from {module} import {rendering} as CELL", PLAIN: f"NORMALISED = {normalised}"}
        if name != "loop":  # it takes the cell from there
            bound = {FROM_LOOP: f"from {load('loop', cell, normalised).__name__} import "}
        for line, value in bound.items():
            if line not in text:
                raise AssertionError(f"{source}: expected {line!r}")
            text = text.replace(line, value)
        title = f"{name}_{cell.name}{'_normalised' * normalised}"
    folder = _folder(_digest(files))
    path = folder / f"{title}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _write(path, text)
    spec = importlib.util.spec_from_file_location(f"fastrnn.cpu._built.{title}", path)
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = built
    spec.loader.exec_module(built)
    return built


def _digest(files: list[Path]) -> str:
    """Hash of everything that the machine code depends on."""
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    versions = (
        sys.version,
        numba.__version__,
        llvmlite.__version__,
        platform.machine(),
        str(config.CPU_NAME),
        features,
    )
    digest = hashlib.sha256("\n".join(versions).encode())
    for file in files:
        digest.update(f"\0{file.name}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _folder(digest: str) -> Path:
    path = cache_root() / digest
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        path = _temporary_root() / digest
        path.mkdir(exist_ok=True)
        message = (
            f"no kernel cache in {cache_root()} ({error}): every process compiles anew; set {VARIABLE} to a folder"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if path not in _folders:
        _folders.append(path)
        os.utime(path)
        _forget_old(path.parent)
    return path


def _forget_old(root: Path) -> None:
    """Remove the folders of other sources and versions that no process has opened for a long time."""
    for other in root.iterdir():
        with suppress(FileNotFoundError):  # another process may be removing the same one
            if re.fullmatch(r"[0-9a-f]{20}", other.name) and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def cache_root() -> Path:
    """Return the folder of the kernel cache: FASTRNN_CACHE_DIR, else fastrnn in the user's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fastrnn"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"


@cache
def _temporary_root() -> Path:
    # A fixed name under the shared temporary folder could hold somebody else's code.
    root = tempfile.mkdtemp(prefix="fastrnn-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


def _write(path: Path, text: str) -> None:
    """Write atomically: another process may be reading the same file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
