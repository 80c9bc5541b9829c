"""Options of `pytest --benchmark-only benchmarks`."""

from fastrnn.bench.measure import ORACLES


def pytest_addoption(parser):
    group = parser.getgroup("fastrnn bench")
    group.addoption("--bench-threads", type=int, default=1, help="threads of each contestant")
    group.addoption("--bench-dtype", choices=("float32", "float64"), default="float32", help="dtype of the cases")
    group.addoption("--bench-quick", action="store_true", help="the small cases only")
    group.addoption("--bench-oracle", choices=tuple(ORACLES), default="fastrnn", help="whose float64 results are right")
