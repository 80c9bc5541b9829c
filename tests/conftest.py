"""Hypothesis profiles shared by all tests; the pytest marker `nightly` is declared in pyproject.toml."""

from hypothesis import HealthCheck, settings

# No deadline: no test asserts a time, and the first example of a shape may compile kernels.
# Derandomised: a red run is red again on the next machine; the nightly profile explores instead.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("everyday", derandomize=True, max_examples=40, **_common)
settings.register_profile("nightly", max_examples=2000, **_common)
settings.load_profile("everyday")
