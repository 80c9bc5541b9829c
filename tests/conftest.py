"""Hypothesis profiles, cells of one's own, and the stand-in for CuPy; the marker `nightly` stands in pyproject.toml."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# No deadline: no test asserts a time, and the first example of a shape may compile kernels.
# Derandomised: a red run is red again on the next machine; the nightly profile explores instead.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("everyday", derandomize=True, max_examples=40, **_common)
settings.register_profile("nightly", max_examples=2000, **_common)
settings.load_profile("everyday")

# Cells that no core file knows: registered before the tests are collected, they go through all that the others do.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "cells"))
import leaky_lstm  # noqa: E402, F401
import minimal_gated_unit  # noqa: E402, F401
from cases import Case, often_on_cuda, takes_long  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the nightly run what takes long and adds least; of thousands that need a GPU skip one where none is."""
    of_gpu = [item for item in items if item.path.name == "test_gpu.py"]
    needed = of_gpu[0].get_closest_marker("skipif") if of_gpu and not config.option.collectonly else None
    if needed is not None and needed.args[0]:
        config.hook.pytest_deselected(items=of_gpu[1:])
        left_out = set(of_gpu[1:])
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if isinstance(case, Case) and takes_long(case) and item.path.name != "test_gpu.py":  # there time is no matter
            item.add_marker(pytest.mark.nightly)


@pytest.fixture
def registry() -> Iterator[None]:
    """Take back what a test registers."""
    from fastrnn import layers
    from fastrnn.cells import CELLS

    cells, kinds = dict(CELLS), dict(layers.LAYERS)
    yield
    for mapping, before in ((CELLS, cells), (layers.LAYERS, kinds)):
        mapping.clear()
        mapping.update(before)


@pytest.fixture(scope="module")
def cupy(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """The stand-in for CuPy, installed as `cupy`, with every CUDA kernel compiled for this processor."""
    import cupy_standin
    import host_kernels

    if reason := host_kernels.missing_tools():
        pytest.skip(reason)
    compiler = host_kernels.Compiler(pytestconfig.cache.mkdir("fastrnn_host_kernels"))
    with cupy_standin.installed(compiler) as cupy:
        from fastrnn.cuda import choice, source

        everyday = "not nightly" in pytestconfig.option.markexpr
        variants = [v for v in source.variants() if not everyday or often_on_cuda(v.cell, v.dtype)]
        compiler.build([source.assemble(variant) for variant in variants] + [source.masks()])
        with choice.forced("step"):  # which serves everything; test_cuda_onchip.py is for the others
            yield cupy


@pytest.fixture
def nothing_to_replay(cupy: ModuleType) -> None:
    """A test that begins with passes that are launched kernel by kernel."""
    from fastrnn.cuda import places

    places.forget()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For small cases: waking torch's threads for each of their steps takes longer than the steps."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
