"""The command `fastrnn gradflow`: where the gradient vanishes or explodes, for RNN, LSTM and GRU side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson, Device, Seed, Threads, prepare
from fastrnn.commands.progress import each

DIAGONALS = ((1.2, 2.0, 1.1), (0.8, 0.1, 0.9))


def gradflow(
    steps: Annotated[int, typer.Option(help="T, length of the sequence.")] = 100,
    hidden: Annotated[int, typer.Option(help="H, width of the layers.")] = 32,
    batch: Annotated[int, typer.Option(help="B, sequences.")] = 8,
    layers: Annotated[int, typer.Option(help="L, layers one above the other.")] = 1,
    scale: Annotated[float, typer.Option(help="Factor on the recurrent weights.")] = 1.0,
    forget_bias: Annotated[float | None, typer.Option(help="Of the LSTM.", show_default="as initialised")] = None,
    init: Annotated[str, typer.Option(help="uniform, xavier, orthogonal or identity.")] = "uniform",
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the plot goes, a PNG.")] = Path("gradflow.png"),
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show the norm of dL/dh_t at every step t, L the sum of the last layer's last state, on random input.

    Beside it the linear network h_t = U h_{t-1} + x_t with diagonal U, whose gradient is known in closed form. A
    gradient that leaves the range of float64 is inf, with --json null.
    """
    with one_line_errors():
        prepare(device, threads, out)
        result = measure(steps, hidden, batch, scale, forget_bias, init, seed, layers, device)
        from fastrnn.commands import plots

        diagonals = {name: (d["norms"], d["closed_form"]) for name, d in result["diagonal"].items()}
        plots.gradient_flow(result["cells"], diagonals, out)
    typer.echo(json.dumps(_as_json(result | {"plot": str(out)}), indent=2) if as_json else _report(result, out))


def measure(
    steps: int, hidden: int, batch: int, scale: float, forget_bias: float | None, init: str, seed: int,
    num_layers: int = 1, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Return the norms [T+1] of each cell, of each of its layers, and of each diagonal matrix, with its closed form."""
    import numpy as np

    from fastrnn import GRU, LSTM, RNN, gradient_flow, validation
    from fastrnn.arrays import to_device

    for name, size in (("steps", steps), ("hidden", hidden), ("batch", batch), ("layers", num_layers)):
        validation.integer(name, size, 1)
    validation.real("scale", scale)
    common: dict[str, Any] = {
        "init": init, "dtype": "float64", "seed": seed, "num_layers": num_layers, "device": device,
    }  # fmt: skip
    layers: dict[str, RNN | LSTM | GRU] = {
        "RNN (tanh)": RNN(hidden, hidden, **common),
        "LSTM": LSTM(hidden, hidden, forget_bias=forget_bias, **common),
        "GRU": GRU(hidden, hidden, **common),
    }
    x = to_device(np.random.default_rng(seed).standard_normal((steps, batch, hidden)), device)
    cells: dict[str, list[float]] = {}
    for name in each(layers):
        layer = layers[name]
        layer.update({n: w * scale for n, w in layer.params.items() if n.startswith("weight_hh")})
        flows = _numbers(gradient_flow, layer, x).reshape(num_layers, -1).tolist()
        cells |= {name if num_layers == 1 else f"{name}, layer {k}": row for k, row in enumerate(flows, start=1)}
    diagonal = {}
    for entries in DIAGONALS:
        U = np.array(entries)
        rnn = RNN(3, 3, nonlinearity="identity", bias=False, dtype="float64", seed=0, device=device)
        rnn.update({"weight_ih_l0": np.eye(3), "weight_hh_l0": np.diag(U)})
        with np.errstate(over="ignore"):
            closed_form = np.hypot.reduce(U ** np.arange(steps, -1, -1)[:, None], axis=1)  # squares nothing
        norms = _numbers(gradient_flow, rnn, to_device(np.zeros((steps, 3)), device))
        diagonal[f"U = diag{entries}"] = {"norms": norms.tolist(), "closed_form": closed_form.tolist()}
    return {"steps": steps, "cells": cells, "diagonal": diagonal}


def _numbers(gradient_flow: Any, layer: Any, x: Any) -> Any:
    """The norms, with infinity where a gradient left the range of float64: from there on back it is NaN."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        h = gradient_flow(layer, x).h
    return np.where(np.isnan(h), np.inf, h)


def _as_json(value: Any) -> Any:
    """The same with null for infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    return None if value == math.inf else value


def _report(result: dict[str, Any], out: Path) -> str:
    T = result["steps"]
    rows = {**result["cells"], **{name: d["norms"] for name, d in result["diagonal"].items()}}
    columns = sorted({T, T - 1, 3 * T // 4, T // 2, T // 4, 0} & set(range(T + 1)), reverse=True)
    width = max(map(len, rows))
    lines = ["||dL/dh_t||".ljust(width) + "".join(f"{f't = {t}':>12}" for t in columns)]
    lines += [name.ljust(width) + "".join(f"{norms[t]:12.3g}" for t in columns) for name, norms in rows.items()]
    return "\n".join([*lines, "", f"plot  {out}"])
