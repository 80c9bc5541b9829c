"""The cases of `fastrnn bench` under pytest-benchmark: one benchmark per case and contestant, grouped by case.

    pytest --benchmark-only benchmarks                             every case, one thread
    pytest --benchmark-only benchmarks --bench-quick -k "lstm"     the small cases of one cell

Contestants run one after the other here; `fastrnn bench` interleaves them, so quote ratios from there.
"""

import pytest

from fastrnn.bench import machine, measure
from fastrnn.bench.cases import table
from fastrnn.bench.problem import problem_of


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    cases = table(dtype=option("bench_dtype"), quick=option("bench_quick"))
    pairs = [(case, contestant) for case in cases for contestant in measure.FIELD if contestant.enters(case)]
    pairs = [(case, contestant) for case, contestant in pairs if not contestant.refuses(case)]
    names = [f"{case.name}-{contestant.name.replace(' ', '_')}" for case, contestant in pairs]
    metafunc.parametrize(("case", "contestant"), pairs, ids=names)


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # where a peer is absent or its result wrong
def test_case(case, contestant, benchmark, request):
    threads = request.config.getoption("bench_threads")
    oracle = measure.ORACLES[request.config.getoption("bench_oracle")]
    with machine.limit_threads(threads):
        entry, run = measure.admit(contestant, case, problem_of(case), threads, oracle)
        if entry.status == "absent":
            pytest.skip(entry.note)
        assert run is not None, f"{entry.status}: {entry.note}"  # a wrong result is never timed
        benchmark.group = f"{case.name}, {threads} thread(s)"
        benchmark.extra_info.update(error=entry.error, worst=entry.array)
        benchmark(run.call)
