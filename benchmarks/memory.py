"""Peak memory of one training call, with everything counted: save="gates" beside save="recompute", for each cell.

    python -m benchmarks.memory [--steps 2000] [--batch 16] [--hidden 512]

Counted are all arrays that NumPy allocates between the call of `forward` and the end of `backward`: the output, the
gradients, the saved values, packed weights, scratch. x and the parameters, which exist before, are not. Both gradients
are compared first.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Annotated, Any

import numpy as np
import typer

import fastrnn
from fastrnn import memory

LAYERS: dict[str, Any] = {
    "RNN": fastrnn.RNN,
    "LSTM": fastrnn.LSTM,
    "LSTM, peephole": lambda *a, **k: fastrnn.LSTM(*a, peephole=True, **k),
    "LSTM, coupled": lambda *a, **k: fastrnn.LSTM(*a, coupled=True, **k),
    "GRU": fastrnn.GRU,
    "GRU, reset before": lambda *a, **k: fastrnn.GRU(*a, reset_after=False, **k),
}


def measure(layer: Any, x: np.ndarray, dy: np.ndarray) -> tuple[float, float, Any]:
    """Peak MiB, seconds, and the gradients of one training call on a warm layer."""
    layer.forward(x[:2])[2](dy[:2])
    memory.forget()  # or what waits from before would serve without being counted
    start = time.perf_counter()
    tracemalloc.start()
    grads = layer.forward(x, training=True)[2](dy)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak, time.perf_counter() - start, grads


def main(
    steps: Annotated[int, typer.Option(help="T")] = 2000,
    batch: Annotated[int, typer.Option(help="B")] = 16,
    hidden: Annotated[int, typer.Option(help="H, and I")] = 512,
) -> None:
    """Print one row a cell: peak MiB and seconds for both ways of saving."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((steps, batch, hidden), dtype=np.float32) for _ in range(2))
    typer.echo(f"T {steps}, B {batch}, H {hidden}, float32; x alone is {x.nbytes / 2**20:.0f} MiB")
    typer.echo("| cell | gates, MiB | recompute, MiB | ratio | seconds more |\n|---|---|---|---|---|")
    for name, make in LAYERS.items():
        found = [measure(make(hidden, hidden, save=save, seed=0), x, dy) for save in ("gates", "recompute")]
        (gates, seconds, one), (less, longer, other) = found
        for key, value in one.params.items():
            np.testing.assert_allclose(other.params[key], value, rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=key)
        ratio = less / gates
        typer.echo(f"| {name} | {gates:.0f} | {less:.0f} | {ratio:.2f} | {longer / seconds - 1:+.0%} |")


if __name__ == "__main__":
    typer.run(main)
