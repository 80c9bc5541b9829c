"""The plan that runs a layer, on chips that are not here: what is known of each is written down, and nothing is run."""

import re
from types import ModuleType
from typing import Any

import host_kernels
import pytest
from cases import CELLS, make_layer
from cases import Case as LayerCase

import fastrnn
from fastrnn.recurrence import Shape

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("cupy"),
]


def chips() -> dict[str, Any]:
    from fastrnn.cuda.chip import Chip

    return {
        "H100": Chip(90, 132, 1.755e9, 227 << 10, 65536),
        "A100": Chip(80, 108, 1.41e9, 163 << 10, 65536),
        "RTX 4090": Chip(89, 128, 2.52e9, 99 << 10, 65536),
        "T4": Chip(75, 40, 1.59e9, 64 << 10, 65536),
    }


def plan_of(cell: str, dtype: str, hidden: int, batch: int, chip: str, train: bool = True, **options: Any) -> Any:
    from fastrnn.cuda import choice

    shape = Shape(100, batch, 100 * batch, 100, hidden, hidden, 0, dtype, train, False)._replace(**options)
    return choice._choose(CELLS[cell], shape, chips()[chip], None)


# The largest H of the plan `block` by cell and dtype on each chip, training; what is above runs step by step. 
LARGEST = {
}


@pytest.mark.parametrize("batch", [1, 7, 16, 64, 256])
@pytest.mark.parametrize(("chip", "cell", "dtype"), LARGEST)
def test_block_is_taken_in_its_whole_range(chip: str, cell: str, dtype: str, batch: int) -> None:
    most = LARGEST[chip, cell, dtype]
    for hidden in (1, 7, 16, 33, 64, 100, most):
        if hidden <= most:
            assert plan_of(cell, dtype, hidden, batch, chip).plan == "block", hidden
    assert plan_of(cell, dtype, most + 1, batch, chip).plan == "step"
