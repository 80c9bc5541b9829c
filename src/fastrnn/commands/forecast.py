"""The commands `fastrnn forecast train` and `predict`: a thin shell around fastrnn.models.Forecaster."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.commands import options
from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson, Device, Quiet, Resume, Seed, Threads, only_steps_with_resume, prepare
from fastrnn.commands.running import INTERRUPTED, again, follow, outputs, report, run_rows
from fastrnn.commands.running import train as run

Csv = Annotated[Path | None, typer.Option(help="A CSV file with a header line.", show_default="a noisy sine")]
Column = Annotated[str | None, typer.Option(help="Its column.", show_default="the last")]
FIXED = ("cell", "hidden", "layers", "window", "horizon", "scaling", "relative", "noise", "batch", "lr", "seed")
SCORE = "RMSE on the test part"
app = typer.Typer(help="Time-series forecaster: train, predict.", no_args_is_help=True)


@app.command()
def train(
    context: typer.Context,
    csv: Csv = None,
    column: Column = None,
    compare: Annotated[bool, typer.Option("--compare", help="Train RNN, LSTM and GRU and print a table.")] = False,
    cell: Annotated[str, typer.Option(help="rnn, lstm or gru.")] = "gru",
    hidden: Annotated[int, typer.Option(help="Width of the layer.")] = 32,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = 1,
    window: Annotated[int, typer.Option(help="Values read.")] = 20,
    horizon: Annotated[int, typer.Option(help="Values predicted at once.")] = 1,
    scaling: Annotated[str, typer.Option(help="standard or minmax.")] = "standard",
    relative: Annotated[
        bool, typer.Option("--relative", help="To the mean of each window: for a series with a trend.")
    ] = False,
    noise: Annotated[float, typer.Option(help="Added to the windows in training.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Updates of the parameters.")] = 1000,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 5e-3,
    ahead: Annotated[int, typer.Option(help="Values to forecast beyond the end.")] = 50,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the checkpoint goes.")] = Path("forecast.safetensors"),
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train on the first 80% of a series, measure on the rest beside two baselines, forecast beyond the end."""
    with one_line_errors():
        files = outputs(out)
        prepare(device, threads, *files.values())
        from fastrnn import validation
        from fastrnn.commands import plots
        from fastrnn.models import Forecaster, Schedule, forecast

        schedule: Schedule | None = Schedule(steps=steps, batch=batch, lr=lr, evaluate_every=50)
        if resume:
            only_steps_with_resume(context, (*FIXED, "compare"))
            model = Forecaster.load(out, device)
            schedule = schedule if options.given(context, "steps") else None
        else:
            sizes: dict[str, Any] = {
                "hidden": hidden, "layers": layers, "window": window, "horizon": horizon, "scaling": scaling,
                "relative": relative, "noise": noise, "seed": seed, "device": device,
            }  # fmt: skip
            model = Forecaster(cell=cell, **sizes)
        name, series = _series(csv, column, model.seed)
        future = validation.integer("ahead", ahead, 1)
        test = forecast.windows(series, model.window, model.horizon)[1]  # refuses a short series before all else
        result = run(
            lambda observer: model.fit(series, schedule, observer, resume=resume), model, files,
            title=f"{name}: {len(series):,} values, {model.arguments['cell']}", score=SCORE, quiet=quiet,
            again=again("forecast", "train", "--resume", "--out", out, device=device, csv=csv, column=column),
            loss="training loss (squared error of scaled values)",
        )  # fmt: skip
        table = {model.arguments["cell"]: model.rmse(series)}
        if compare:
            for other in [name for name in forecast.CELLS if name not in table]:
                rival = Forecaster(cell=other, **sizes)
                _, stopped = follow(
                    partial(rival.fit, series, schedule), title=f"{other}, to compare", score=SCORE, quiet=quiet
                )
                if stopped:
                    typer.echo(f"stopped while comparing; {out} is complete", err=True)
                    raise typer.Exit(INTERRUPTED)
                table[other] = rival.rmse(series)
        period, naive = forecast.seasonal_naive(series, model.window, model.horizon)
        result |= {
            "series": name, "values": len(series), "model": model.arguments,
            "rmse": {cell: {"train": a, "test": b} for cell, (a, b) in sorted(table.items())},
            "seasonal_naive_rmse": naive, "period": period,
            "autoregressive_rmse": forecast.autoregressive(series, model.window, model.horizon),
            "forecast": model.predict(series, future).tolist(), "plot": str(files["plot"]),
        }  # fmt: skip
        split = int(forecast.TRAIN_PART * len(series))
        predicted = model.predict_windows(test.x)[:, -1]
        plots.forecast(name, series, split, predicted, result["forecast"], files["plot"])
    typer.echo(json.dumps(result, indent=2) if as_json else _report(result))


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="What `train` wrote.", show_default=False)],
    csv: Csv = None,
    column: Column = None,
    ahead: Annotated[int, typer.Option(help="Values to forecast.")] = 50,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A PNG to draw.", show_default="none")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Print the values that follow a series, one a line."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        from fastrnn import validation
        from fastrnn.commands import plots
        from fastrnn.models import Forecaster

        validation.integer("ahead", ahead, 1)
        model = Forecaster.load(checkpoint, device)
        name, series = _series(csv, column, model.seed)
        values = model.predict(series, ahead).tolist()
        if out is not None:
            plots.forecast(name, series, None, [], values, out)
    typer.echo(json.dumps({"forecast": values}) if as_json else "\n".join(f"{value:.6g}" for value in values))


def _series(csv: Path | None, column: str | None, seed: int) -> tuple[str, Any]:
    from fastrnn.models import forecast
    from fastrnn.models.corpus import quoted

    if csv is None:
        if column is not None:
            raise ValueError(f"--column: expected nothing without --csv, got {column!r}")
        return "noisy sine", forecast.noisy_sine(seed=seed)
    name, values = forecast.csv_column(csv, column)
    return f"{csv.name}, column {quoted(name)}", values


def _report(result: dict[str, Any]) -> str:
    lines = [f"{'RMSE':<24}{'train':>10}{'test':>10}"]
    lines += [f"{cell:<24}{r['train']:10.4g}{r['test']:10.4g}" for cell, r in result["rmse"].items()]
    lines.append(f"{'seasonal naive (' + str(result['period']) + ')':<24}{'':10}{result['seasonal_naive_rmse']:10.4g}")
    lines.append(f"{'autoregressive':<24}{'':10}{result['autoregressive_rmse']:10.4g}")
    ahead = " ".join(f"{value:.4g}" for value in result["forecast"][:8])
    return "\n".join(["", *lines, "", report({**run_rows(result), "forecast": f"{ahead} ..."})])
