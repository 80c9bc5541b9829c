"""The command `fastrnn warmup`: compile the kernels now, so that no later process waits for them."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from fastrnn.bench.importing import Import, import_cells
from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson
from fastrnn.commands.progress import each


def warmup(
    cell: Annotated[list[str] | None, typer.Option(help="Of the registry; repeatable.", show_default="all")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable.", show_default="float32, float64")] = None,
    import_: Import = None,
    layer_norm: Annotated[bool, typer.Option("--layer-norm", help="The kernels of layers with layer_norm.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel of these cells for the CPU into the kernel cache, and say how long each took.

    Layers with layer_norm have kernels of their own: call it once more with --layer-norm for these.

    The cache is the folder that FASTRNN_CACHE_DIR names, else fastrnn in the user's cache folder.
    """
    with one_line_errors():
        from fastrnn import validation
        from fastrnn.cells import CELLS
        from fastrnn.cpu.build import cache_root

        imported = import_cells(import_ or ())
        cells, dtypes = cell or imported or list(CELLS), dtype or list(validation.DTYPES["cpu"])
        for name in cells:
            validation.choice("cell", name, tuple(CELLS))
        for name in dtypes:
            validation.choice("dtype", name, validation.DTYPES["cpu"])
        kernels = {f"{name} {kind}": (name, kind) for name in cells for kind in dtypes}
        seconds = {name: _compile(*kernels[name], layer_norm) for name in each(kernels)}
    found = {"cache": str(cache_root()), "seconds": {name: round(value, 2) for name, value in seconds.items()}}
    lines = [f"{value:8.2f} s  {name}" for name, value in seconds.items()]
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join([*lines, f"kernels in {found['cache']}"]))


def _compile(cell: str, dtype: str, layer_norm: bool) -> float:
    """Seconds for the first of each kind of call of a small layer."""
    import numpy as np

    from fastrnn.bench.ours import make
    from fastrnn.threads import Limited

    start = time.perf_counter()
    layer = make(
        cell, 2, 3, num_layers=2, dropout=0.5, dtype=dtype, seed=0, layer_norm=layer_norm
    )  # masks are drawn by a kernel too
    x = np.ones((2, 1, 2), dtype)
    layer(x)
    y, _, backward = layer.forward(x, training=True)
    backward(np.ones_like(y))
    with layer.stream() as stream:
        stream.step(x[0])
    with Limited(2):  # one long sequence, which two threads share
        make(cell, 2, 256, dtype=dtype, seed=0, layer_norm=layer_norm)(np.ones((256, 1, 2), dtype))
    return time.perf_counter() - start
