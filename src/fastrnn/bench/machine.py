"""What a run was measured on and with: processor, features, versions, commit."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fastrnn

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "onnx", "threadpoolctl")
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bf16", "amx-tile", "amx-bf16", "neon", "sve")


def processor() -> str:
    """Name of the processor."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Processor, SIMD features that the compiler may use, cores of this process, system."""
    from fastrnn.cpu.vector import target_features

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "features": [name for name in FEATURES if name in target_features()],
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
    }


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; empty where the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def busy() -> tuple[float, float] | None:
    """Seconds of processor time used so far by everyone, and by this process; None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), time.process_time()


def others(before: tuple[float, float] | None, after: tuple[float, float] | None, seconds: float) -> float | None:
    """Share of all processors' time that other processes used between two calls of `busy`, `seconds` apart."""
    if before is None or after is None:
        return None
    foreign = (after[0] - before[0]) - (after[1] - before[1])
    return round(max(0.0, foreign) / (seconds * (os.cpu_count() or 1)), 3)


def versions() -> dict[str, str]:
    """Versions of Python, fastrnn and the packages that are installed."""
    found = {"python": platform.python_version(), "fastrnn": fastrnn.__version__}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """Commit of the source tree that fastrnn is imported from, "+" if it has changes; "" outside a checkout."""
    folder = str(Path(fastrnn.__file__).parent)
    if not _output("git", "-C", folder, "ls-files", "__init__.py"):  # installed, perhaps inside a foreign repository
        return ""
    changed = _output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return _output("git", "-C", folder, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _output(*command: str) -> str:
    """What a program prints, or "" if it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Hold fastrnn, torch and NumPy's BLAS to `threads` threads; ONNX Runtime is told when a session is made.

    Without threadpoolctl NumPy's BLAS cannot be held; the report then says so.
    """
    with ExitStack() as stack:
        stack.callback(fastrnn.set_num_threads, fastrnn.get_num_threads())
        fastrnn.set_num_threads(threads)
        if importlib.util.find_spec("torch") is not None:
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if importlib.util.find_spec("threadpoolctl") is not None:
            threadpoolctl = importlib.import_module("threadpoolctl")  # has no type information
            stack.enter_context(threadpoolctl.threadpool_limits(threads, user_api="blas"))
        yield
