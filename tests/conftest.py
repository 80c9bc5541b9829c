"""Hypothesis profiles and the stand-in for CuPy; the pytest marker `nightly` is declared in pyproject.toml."""

from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# No deadline: no test asserts a time, and the first example of a shape may compile kernels.
# Derandomised: a red run is red again on the next machine; the nightly profile explores instead.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("everyday", derandomize=True, max_examples=40, **_common)
settings.register_profile("nightly", max_examples=2000, **_common)
settings.load_profile("everyday")


@pytest.fixture(scope="module")
def cupy(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """The stand-in for CuPy, installed as `cupy`, with every CUDA kernel compiled for this processor."""
    import cupy_standin
    import host_kernels

    compiler = host_kernels.Compiler(pytestconfig.cache.mkdir("fastrnn_host_kernels"))
    with cupy_standin.installed(compiler) as cupy:
        from fastrnn.cuda import source

        compiler.build([source.assemble(variant) for variant in source.variants()] + [source.masks()])
        yield cupy


@pytest.fixture
def nothing_to_replay(cupy: ModuleType) -> None:
    """A test that begins with passes that are launched kernel by kernel."""
    from fastrnn.cuda import places

    places.forget()
