"""CUDA sources compiled for this machine's processor by CMake, as csrc/host/ says, and loaded kernel by kernel."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
ENTRY = re.compile(
    r'^(?:extern "C" __global__ void|KERNEL) (?:__cluster_dims__\(([^()]*)\) )?(?:__launch_bounds__\(\d+\) )?(\w+)\(',
    re.MULTILINE,
)
DTYPES = {
    "f": "float32", "d": "float64", "e": "float16", "E": "bfloat16", "?": "bool", "i": "int32", "q": "int64",
    "I": "uint32", "Q": "uint64",
}  # fmt: skip

KEPT = 3600 * 10**9  # ns that a source stays after its last use: longer than a run whose processes share the folder


class KernelError(AssertionError):
    """A kernel did what it must not: a race, an access outside its arrays, a barrier that not all threads reach."""


def missing_tools() -> str:
    """What this machine lacks for building the kernels; empty if nothing."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    lacking = [name for name, found in (("CMake", shutil.which("cmake")), ("a C++ compiler", compiler)) if not found]
    return "" if not lacking else f"host run of the CUDA kernels needs {' and '.join(lacking)}"


class Compiler:
    """A build folder; `build` compiles many sources at once, `library` any that is still missing.

    The processes of one test run share the folder, so only one at a time builds or loads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sources = folder, folder / "sources"
        self.sources.mkdir(parents=True, exist_ok=True)

    def build(self, codes: Iterable[str]) -> None:
        """Compile these sources, and forget those that none has asked for lately."""
        with self._alone():
            self._build(codes)

    def library(self, code: str) -> ctypes.CDLL:
        """The loaded library of one source."""
        path = self.folder / "csrc" / "host" / f"{self._name(code)}.so"
        with self._alone():
            if not path.exists():
                self._build([code])
            return ctypes.CDLL(str(path))

    def _build(self, codes: Iterable[str]) -> None:
        now = time.time_ns()
        for code in codes:
            path = self.sources / f"{self._name(code)}.cpp"
            if not path.exists():
                path.write_text(self._complete(code), encoding="utf-8")
            os.utime(path, ns=(now, path.stat().st_mtime_ns))  # used now; what is compiled anew depends on the other
        for path in self.sources.glob("*.cpp"):
            if path.stat().st_atime_ns < now - KEPT:
                path.unlink()
        ninja = shutil.which("ninja")  # named each time: the folder may remember that of an environment since gone
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        self._run(
            "cmake", "-S", ROOT, "-B", self.folder, *generator, "-DFASTRNN_HOST_KERNELS=ON",
            f"-DFASTRNN_HOST_SOURCES={self.sources}",
        )  # fmt: skip
        self._run("cmake", "--build", self.folder, "--parallel", "2")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def scheduler(self) -> Any:
        """The function that launches a grid."""
        launch = ctypes.CDLL(str(next((self.folder / "csrc" / "host").glob("libfastrnn_scheduler.*")))).host_launch
        launch.restype = ctypes.c_char_p
        return launch

    @staticmethod
    def _name(code: str) -> str:
        return "k" + hashlib.sha256(code.encode()).hexdigest()[:16]

    @staticmethod
    def _complete(code: str) -> str:
        entries = "".join(f"HOST_ENTRY({name}, {cluster})\n" for cluster, name in ENTRY.findall(code))
        return f'#define FASTRNN_HOST\n#include "cuda.hpp"\n// SOURCE\n{code}// ENTRIES\n{entries}'

    @staticmethod
    def _run(*command: Any) -> None:
        run = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}:\n{run.stdout}{run.stderr}")


def check_syntax(code: str, folder: Path) -> None:
    """Have the compiler read a source; raises with its messages where it refuses it."""
    file = folder / "source.cpp"
    file.write_text(Compiler._complete(code), encoding="utf-8")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    Compiler._run(compiler, "-std=c++17", "-fsyntax-only", "-I", ROOT / "csrc" / "host", file)


class Kernel:
    """One kernel; a call checks every argument against the C++ parameter and runs the grid under the scheduler."""

    def __init__(self, compiler: Compiler, code: str, name: str) -> None:
        library = compiler.library(code)
        signature = getattr(library, f"{name}_signature")
        signature.restype = ctypes.c_char_p
        self.name = name
        self.parameters = re.findall(r"[*& ].", signature().decode())
        cluster = getattr(library, f"{name}_cluster")
        cluster.restype = ctypes.POINTER(ctypes.c_uint * 3)
        self._cluster = cluster()
        self._call, self._launch = getattr(library, f"{name}_call"), compiler.scheduler()
        self._library = library

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_bytes: int = 0, seed: int = 0,
        cooperative: bool = False,
    ) -> None:  # fmt: skip
        """Run it; the blocks of a row of a cooperative launch may wait for each other, as those of a cluster."""
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        assert all(1 <= n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=True)), grid
        assert all(n >= 1 for n in block), block
        assert np.prod(block) <= 1024, block
        cluster = [grid[0], 1, 1] if cooperative else list(self._cluster.contents)
        assert cooperative or np.prod(cluster) <= 16, f"a cluster of {cluster}"
        assert not any(n % size for n, size in zip(grid, cluster, strict=True)), f"{grid} in clusters of {cluster}"
        assert len(args) == len(self.parameters), f"{self.name}: {len(args)} arguments for {len(self.parameters)}"
        values, spans = [], []
        for k, (arg, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            value, span = _argument(f"{self.name}: argument {k}", arg, parameter)
            values.append(value)
            spans += span
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        arrays = np.array(_merged(spans), np.uintp).reshape(-1)
        error = self._launch(
            self._call, pointers, np.array(grid, np.uint32).ctypes, np.array(block, np.uint32).ctypes,
            np.array(cluster, np.uint32).ctypes, ctypes.c_size_t(shared_bytes), ctypes.c_uint64(seed), arrays.ctypes,
            ctypes.c_size_t(arrays.size // 2),
        )  # fmt: skip
        if error is not None:
            raise KernelError(f"{self.name}: {error.decode()}")


def _argument(what: str, arg: Any, parameter: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The argument's bytes as an array of one element, and the memory that it makes accessible."""
    dtype = DTYPES[parameter[-1]]
    if parameter[0] == " ":
        assert isinstance(arg, np.generic), f"{what}: {type(arg).__name__}, expected np.{dtype}"
        assert arg.dtype.name == dtype, f"{what}: {arg.dtype}, expected {dtype}"
        return np.array([arg]), []
    if isinstance(arg, np.uintp):
        assert arg == 0, f"{what}: an address as an integer"
        return np.array([arg]), []
    assert isinstance(arg, np.ndarray), f"{what}: {type(arg).__name__}, expected an array of {dtype}"
    assert arg.dtype.name == dtype, f"{what}: {arg.dtype}, expected {dtype}"
    low, high = np.lib.array_utils.byte_bounds(arg)
    return np.array([arg.ctypes.data], np.uintp), [(low, high)] if arg.size else []


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Address and size of the memory that the spans cover, overlapping ones as one."""
    result: list[list[int]] = []
    for low, high in sorted(spans):
        if result and low < result[-1][1]:
            result[-1][1] = max(result[-1][1], high)
        else:
            result.append([low, high])
    return [(low, high - low) for low, high in result]
