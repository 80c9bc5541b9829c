"""Hypothesis profiles, and cells of one's own, shared by all tests; the marker `nightly` stands in pyproject.toml."""

import sys
from pathlib import Path

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
