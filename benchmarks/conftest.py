"""Options of `pytest --benchmark-only benchmarks`."""

import pytest

from fastrnn.bench.measure import ORACLES


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """In this process alone: cases that run side by side would spoil each other's times."""
    return 0


def pytest_addoption(parser):
    group = parser.getgroup("fastrnn bench")
    group.addoption("--bench-threads", type=int, default=1, help="threads of each contestant")
    group.addoption("--bench-dtype", choices=("float32", "float64"), default="float32", help="dtype of the cases")
    group.addoption("--bench-quick", action="store_true", help="the small cases only")
    group.addoption("--bench-oracle", choices=tuple(ORACLES), default="fastrnn", help="whose float64 results are right")
