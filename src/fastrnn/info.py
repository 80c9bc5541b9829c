"""What fastrnn finds on this machine, for `fastrnn info` and for reports of problems."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import numpy as np

import fastrnn
from fastrnn import backends
from fastrnn.bench import machine

CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")


def facts() -> dict[str, Any]:
    """Return versions, processor, SIMD features and vector width, threads, BLAS, and the GPU or why there is none."""
    from fastrnn.cpu.vector import vector_bytes

    gpus, reason = gpu()
    return {
        **machine.describe(),
        "vector_bits": 8 * vector_bytes(),
        "threads": fastrnn.get_num_threads(),
        "backend": backends.current(),
        "blas": blas(),
        "gpu": gpus,
        "gpu_unused_because": reason,
        "versions": {**machine.versions(), **cupy_version()},
    }


def blas() -> str:
    """Name and version of the BLAS that NumPy was built with."""
    library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{library.get('name', 'unknown')} {library.get('version', '')}".strip()


def cupy_version() -> dict[str, str]:
    """Version of CuPy under the name of its package, which differs by CUDA version; empty without one."""
    found = [item for item in importlib.metadata.distributions() if (item.name or "").lower() in CUPY]
    return {item.name: item.version for item in found}


def gpu() -> tuple[list[str], str]:
    """Return the names of the GPUs that CuPy sees, and why fastrnn does not use one."""
    if importlib.util.find_spec("cupy") is None:
        return [], "CuPy is not installed: pip install 'fastrnn[cuda12]' or 'fastrnn[cuda13]'"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    except Exception as error:  # an absent driver shows as any of several classes, some of them CuPy's own
        return [], f"CuPy finds no usable GPU: {error}"
    return names, ""
