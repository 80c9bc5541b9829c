"""The benchmark: one table of cases, peers in the same interleaved run, and no time without a right result.

It is part of the package, not of the folder `benchmarks/`, because `fastrnn bench` must work where only the wheel is;
`benchmarks/` holds the entry point for pytest-benchmark, which measures the same cases.
"""
