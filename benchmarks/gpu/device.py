"""The device: what it is, whether it still answers, and a clock that runs on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Mapping
from typing import Any

from fastrnn.bench import machine
from fastrnn.bench.timing import Effort, interleave

EFFORT = Effort(budget=0.6, min_rounds=5, max_rounds=20)
CALLS_BEFORE = 4  # fastrnn launches, runs in place, captures, replays
PACKAGES = ("numpy", "torch", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "ml-dtypes")


def facts() -> dict[str, Any]:
    """Device, driver, versions and commit: two rows may be compared if these are the same."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "driver": runtime.driverGetVersion(),
        "cuda": runtime.runtimeGetVersion(),
        "versions": {"python": platform.python_version(), **_versions(), **_cudnn()},
        "commit": machine.commit(),
    }


def _versions() -> dict[str, str]:
    installed = {(item.name or "").lower(): item.version for item in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _cudnn() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    return {"cudnn of torch": str(torch.backends.cudnn.version())}


def answers() -> None:
    """Wait for the device; raises once a kernel has destroyed the context."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()


def clock() -> Callable[[], float]:
    """Seconds on the device, on the stream that everything here uses: an event is recorded and waited for."""
    import cupy

    last, total = cupy.cuda.Event(), 0.0
    last.record()

    def now() -> float:
        nonlocal last, total
        event = cupy.cuda.Event()
        event.record()
        event.synchronize()
        total += cupy.cuda.get_elapsed_time(last, event) * 1e-3  # float32 milliseconds: exact only while short
        last = event
        return total

    return now


def times(calls: Mapping[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Median and spread (distance of the quartiles) in milliseconds, in turns, after the calls that prepare."""
    for call in calls.values():
        for _ in range(CALLS_BEFORE):
            call()
    timings = interleave(calls, EFFORT, clock=clock())
    return {name: {"ms": 1e3 * t.median, "spread_ms": 1e3 * t.spread} for name, t in timings.items()}
