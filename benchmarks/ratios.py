"""fastrnn beside itself, interleaved: what an odd size, a second layer, short sequences, a busy core cost.

    python -m benchmarks.ratios [--threads 1] [--budget 3] [--section odd --section busy]

Each line is the median time of the first over that of the second, and the most that is aimed at:

    odd       sizes that fill no whole vectors or tiles, beside the next ones that do
    layers    two layers, and two directions, beside twice one
    lengths   lengths drawn uniformly from 1..T, about half of all steps, beside all sequences at full length
    busy      rows of the public table while another process keeps one core busy, beside the same rows before
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import typer

import fastrnn
from fastrnn.bench.cases import LENGTHS_SHAPE, MAIN_CELLS, SHAPES
from fastrnn.bench.machine import limit_threads
from fastrnn.bench.ours import make
from fastrnn.bench.timing import Effort, interleave

MODES = ("infer", "train")
ODD = [(100, 1, 7, 16), (100, 1, 100, 112), (100, 16, 150, 160), (100, 16, 300, 304)]  # T, B, H and the next multiple
BATCHES = [(100, 256, 3, 4), (100, 256, 7, 8), (100, 256, 33, 36)]  # T, H, B and the next one
MOST = {"odd": 1.3, "layers": 1.0, "lengths": 0.65, "busy": 3.0}
SPIN = "print(flush=True)\nwhile True: pass"
HEADER = "| section | cell | mode | what | ratio | at most |\n|---|---|---|---|---|---|"
Pair = tuple[str, Callable[[], Any], Callable[[], Any], int]  # name, the one, the other, how often the other counts


def call(cell: str, mode: str, shape: tuple[int, int, int], lengths: Any = None, **options: Any) -> Callable[[], Any]:
    """A pass of a fresh layer on random numbers; training renews the parameters first, as a training loop does."""
    steps, batch, hidden = shape
    layer = make(cell, hidden, hidden, seed=0, **options)
    x = np.random.default_rng(0).standard_normal((steps, batch, hidden), dtype=np.float32)

    def infer() -> Any:
        return layer(x, lengths=lengths)

    def train() -> Any:
        layer.update(dict(layer.params))
        y, _, backward = layer.forward(x, lengths=lengths)
        return backward(y)

    return infer if mode == "infer" else train


def odd(cell: str, mode: str) -> Iterator[Pair]:
    """Odd sizes."""
    for steps, batch, size, whole in ODD:
        one, other = (call(cell, mode, (steps, batch, hidden)) for hidden in (size, whole))
        yield f"H {size} to {whole}, T {steps}, B {batch}", one, other, 1
    for steps, hidden, size, whole in BATCHES:
        one, other = (call(cell, mode, (steps, batch, hidden)) for batch in (size, whole))
        yield f"B {size} to {whole}, T {steps}, H {hidden}", one, other, 1


def layers(cell: str, mode: str) -> Iterator[Pair]:
    """Two of them."""
    for shape in SHAPES[1:5:2]:
        single = call(cell, mode, shape)
        yield f"two layers, T B H {shape}", call(cell, mode, shape, num_layers=2), single, 2
        yield f"two directions, T B H {shape}", call(cell, mode, shape, bidirectional=True), single, 2


def short(cell: str, mode: str) -> Iterator[Pair]:
    """Half of all steps."""
    steps, batch, _ = LENGTHS_SHAPE
    some = np.random.default_rng(0).integers(1, steps + 1, batch)
    share = f"{some.mean() / steps:.0%} of all steps, T B H {LENGTHS_SHAPE}"
    yield share, call(cell, mode, LENGTHS_SHAPE, some), call(cell, mode, LENGTHS_SHAPE, np.full(batch, steps)), 1


SECTIONS = {"odd": odd, "layers": layers, "lengths": short}


def busy(cells: tuple[str, ...], effort: Effort) -> Iterator[tuple[str, float]]:
    """Each row, and how often its quiet time it takes beside a process that never sleeps."""
    calls = {f"{cell} {mode}, T B H {shape}": call(cell, mode, shape) for cell in cells for mode in MODES
             for shape in SHAPES}  # fmt: skip
    for name, one in calls.items():
        quiet = interleave({"": one}, effort)[""].median
        with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None, "it was asked for"
            other.stdout.readline()  # it runs
            try:
                disturbed = interleave({"": one}, effort)[""].median
            finally:
                other.kill()
        yield name, disturbed / quiet


def main(
    threads: Annotated[int, typer.Option(help="Threads.")] = 1,
    budget: Annotated[float, typer.Option(help="Seconds for each line.")] = 3.0,
    section: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(MOST)}; repeatable.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Cells of the registry; repeatable.")] = None,
) -> None:
    """Print a Markdown table."""
    effort, cells = Effort(budget=budget, max_rounds=60), tuple(cell or MAIN_CELLS)
    typer.echo(f"fastrnn {fastrnn.__version__}, {threads} thread(s)\n\n{HEADER}")
    with limit_threads(threads):
        for name in section or MOST:
            if name == "busy":
                for row, ratio in busy(cells, effort):
                    typer.echo(
                        f"| busy | {row.replace(' ', ' | ', 1).replace(', ', ' | ', 1)} | {ratio:.2f} | {MOST[name]} |"
                    )
                continue
            for kind in cells:
                for mode in MODES:
                    for what, one, other, count in SECTIONS[name](kind, mode):
                        times = interleave({"one": one, "other": other}, effort)
                        ratio = times["one"].median / (count * times["other"].median)
                        typer.echo(f"| {name} | {kind} | {mode} | {what} | {ratio:.2f} | {MOST[name]} |")


if __name__ == "__main__":
    typer.run(main)
