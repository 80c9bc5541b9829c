"""The commands `fastrnn charlm train` and `fastrnn charlm sample`: a thin shell around fastrnn.models.CharLM."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.commands import plots
from fastrnn.commands.console import fail, one_line_errors
from fastrnn.commands.options import Device, Out, Threads, deliver, prepare
from fastrnn.commands.progress import Bar, interruptible
from fastrnn.commands.running import INTERRUPTED, again, outputs
from fastrnn.models import CharLM, Corpus, Progress, Settings, Watch, python_stdlib, text_file
from fastrnn.models.ngram import NGram

CHECKPOINT = Path("charlm.safetensors")
ESTIMATED = "held-out loss (estimate)"
WRITTEN = ("checkpoint", "log", "loss_plot")
SAMPLE_TEMPERATURE, SAMPLE_LENGTH = 0.8, 600
DEFAULTS = {**(CharLM.__init__.__kwdefaults__ or {}), **dataclasses.asdict(Settings())}


def _option(name: str, text: str) -> Any:
    """An option that, left out, leaves the choice to the library or to the resumed checkpoint; the help shows which."""
    return typer.Option(help=text, show_default=str(DEFAULTS[name]))


app = typer.Typer(help="Character language model: train, sample.", no_args_is_help=True)


@app.command()
def train(
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 text.", show_default="the source of Python's standard library")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Where the checkpoint goes.", show_default=f"{CHECKPOINT}, or that of --resume"
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run of this checkpoint.")] = None,
    steps: Annotated[int | None, _option("steps", "Updates of the parameters.")] = None,
    cell: Annotated[str | None, _option("cell", "lstm, gru or rnn.")] = None,
    hidden: Annotated[int | None, _option("hidden", "Width of the layer.")] = None,
    layers: Annotated[int | None, _option("layers", "Recurrent layers.")] = None,
    dropout: Annotated[float | None, _option("dropout", "Between layers, in [0, 1).")] = None,
    embedding: Annotated[int | None, _option("embedding", "Width of a character's vector.")] = None,
    batch: Annotated[int | None, _option("batch", "Parts of the text read side by side.")] = None,
    window: Annotated[int | None, _option("window", "Characters back-propagated through.")] = None,
    lr: Annotated[float | None, _option("lr", "Learning rate at the start.")] = None,
    clip: Annotated[float | None, _option("clip", "Greatest norm of the gradients.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.", show_default="0")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    report_every: Annotated[int, typer.Option(help="Steps between reports, and between checkpoints.")] = 100,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a character language model, compare it with a trigram model, and print a sample.

    Checkpoint and log are written whole or not at all, after every report and at the end. Ctrl-C finishes the step,
    writes them, and says how to go on; a second Ctrl-C stops at once.
    """
    model_options = {"cell": cell, "hidden": hidden, "layers": layers, "dropout": dropout, "embedding": embedding}
    run_options = {"batch": batch, "window": window, "lr": lr, "clip": clip}
    given = _given({**model_options, **run_options, "seed": seed})
    with one_line_errors():
        if resume is not None and given:
            fail(f"--{next(iter(given))}: expected nothing, --resume goes on as the run began; got {given}")
        target = out or resume or CHECKPOINT
        files = outputs(target)
        prepare(device, threads, *(files[name] for name in WRITTEN))
        model = CharLM.load(resume, device) if resume is not None else None
        corpus = python_stdlib() if text is None else text_file(text)
        if model is None:
            settings = Settings(**_given({**run_options, "steps": steps}))
            model = CharLM(corpus.train, **_given({**model_options, "seed": seed or 0}), device=device)
        with Bar(corpus, quiet) as bar, interruptible(bar.say) as interrupted:
            watch = Watch(bar.advance, interrupted, report_every, target, files["log"])
            progress = model.resume(corpus, steps, watch) if resume is not None else model.fit(corpus, settings, watch)
        if progress.step < progress.steps:
            _say_how_to_resume(target, text, progress, device)
            raise typer.Exit(INTERRUPTED)
        plots.loss_curve(model.history, files["loss_plot"], "training loss", ESTIMATED, "bits per character")
        result = _result(model, corpus, progress, bar) | {name: str(files[name]) for name in WRITTEN}
    typer.echo(json.dumps(result, indent=2) if as_json else _report(result))


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="What `train` wrote.", show_default=False)],
    start: Annotated[str, typer.Option(help="The text to go on from.")] = "\n",
    temperature: Annotated[float, typer.Option(help="1: as learnt; less: bolder; 0: always the likeliest.")] = 0.8,
    length: Annotated[int, typer.Option(help="Characters to write.")] = 500,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", show_default="a new one")] = None,
    out: Out = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write text with a trained character language model."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        written = CharLM.load(checkpoint, device).sample(start, length, temperature, seed)
        deliver(json.dumps({"start": start, "sample": written}) if as_json else written, out)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out the options that the user left out."""
    return {name: value for name, value in options.items() if value is not None}


def _say_how_to_resume(target: Path, text: Path | None, progress: Progress, device: str) -> None:
    command = again("charlm", "train", "--resume", target, device=device, text=text)
    typer.echo(f"stopped after step {progress.step} of {progress.steps}; go on with\n  {command}", err=True)


def _result(model: CharLM, corpus: Corpus, progress: Progress, bar: Bar) -> dict[str, Any]:
    """Measure the model and the trigram on the same held-out text, and write a sample."""
    train, held_out = (model.vocabulary.encode(part) for part in (corpus.train, corpus.held_out))
    bits = model.bits_per_character(corpus.held_out)
    start = "\n" if "\n" in model.vocabulary.characters else corpus.train[0]
    return {
        "corpus": {"name": corpus.name, "sha256": corpus.fingerprint, "characters": len(corpus.train)},
        "model": {k: v for k, v in model.arguments.items() if k != "characters"},
        "vocabulary": len(model.vocabulary),
        "held_out_characters": len(corpus.held_out),
        "held_out_unknown": int((held_out == 0).sum()),
        "held_out_bits": bits,
        "held_out_perplexity": 2.0**bits,
        "trigram_bits": NGram(train, len(model.vocabulary)).bits_per_symbol(held_out),
        "train_bits": progress.train_bits,
        "steps": progress.step,
        "characters": progress.characters,
        "seconds": bar.seconds,
        "characters_per_second": bar.rate,
        "sample": model.sample(start, SAMPLE_LENGTH, SAMPLE_TEMPERATURE, seed=model.seed),
    }


def _report(result: dict[str, Any]) -> str:
    r = result
    return (
        f"\nheld-out loss  {r['held_out_bits']:.3f} bits per character (perplexity {r['held_out_perplexity']:.2f}) "
        f"on {r['held_out_characters']:,} characters, {r['held_out_unknown']} of them unknown\n"
        f"trigram model  {r['trigram_bits']:.3f} bits per character (Kneser-Ney, same text): "
        f"{r['trigram_bits'] - r['held_out_bits']:.3f} more\n"
        f"training       {r['steps']:,} steps, {r['characters']:,} characters, {r['seconds']:.0f} s, "
        f"{r['characters_per_second']:,.0f} characters per second\n"
        f"files          {' '.join(r[name] for name in WRITTEN)}\n\n"
        f"sample at temperature {SAMPLE_TEMPERATURE}\n{r['sample']}"
    )
