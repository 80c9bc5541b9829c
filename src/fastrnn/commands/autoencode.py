"""The commands `fastrnn autoencode train` and `apply`: a thin shell around fastrnn.models.Autoencoder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.commands import options
from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson, Device, Quiet, Resume, Seed, Threads, only_steps_with_resume, prepare
from fastrnn.commands.running import again, measuring, outputs, report, run_rows
from fastrnn.commands.running import train as run

FIXED = ("code", "hidden", "embedding", "batch", "lr", "seed")
SHOWN = 8
app = typer.Typer(help="Sequence autoencoder: train, apply.", no_args_is_help=True)


@app.command()
def train(
    context: typer.Context,
    lines: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text; each line is one.", show_default="identifiers of Python's standard library"),
    ] = None,
    code: Annotated[int, typer.Option(help="Width of the vector.")] = 64,
    hidden: Annotated[int, typer.Option(help="Width of the layers.")] = 128,
    embedding: Annotated[int, typer.Option(help="Width of a character's vector.")] = 32,
    steps: Annotated[int, typer.Option(help="Updates of the parameters.")] = 3000,
    batch: Annotated[int, typer.Option(help="Texts a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 5e-3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the checkpoint goes.")] = Path(
        "autoencode.safetensors"
    ),
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train an autoencoder, and count the unseen texts that come back exactly from their vectors."""
    with one_line_errors():
        files = outputs(out)
        prepare(device, threads, *list(files.values())[:3])
        from fastrnn.models import Autoencoder, Schedule, autoencode

        schedule: Schedule | None = Schedule(steps=steps, batch=batch, lr=lr, evaluate_every=250)
        if resume:
            only_steps_with_resume(context, FIXED)
            model = Autoencoder.load(out, device)
            schedule = schedule if options.given(context, "steps") else None
        data_seed = model.seed if resume else seed
        corpus = autoencode.identifiers(data_seed) if lines is None else autoencode.lines(lines, seed=data_seed)
        if not resume:
            characters = "".join(corpus.train + corpus.held_out)
            model = Autoencoder(characters, code=code, hidden=hidden, embedding=embedding, seed=seed, device=device)
        result = run(
            lambda observer: model.fit(corpus, schedule, observer, resume=resume), model, files,
            title=f"{corpus.name}: {len(corpus.train):,} texts to train on, {len(corpus.held_out):,} held out",
            score="share of held-out texts not reconstructed", quiet=quiet,
            again=again("autoencode", "train", "--resume", "--out", out, device=device, lines=lines),
        )  # fmt: skip
        measuring(f"{len(corpus.held_out):,} held-out texts", quiet)
        shown = corpus.held_out[:SHOWN]
        result |= {
            "corpus": corpus.name, "train_texts": len(corpus.train), "held_out_texts": len(corpus.held_out),
            "exact": model.exact(corpus.held_out), "code": model.code,
            "examples": dict(zip(shown, model.reconstruct(shown), strict=True)),
        }  # fmt: skip
    typer.echo(json.dumps(result, indent=2) if as_json else _report(result))


@app.command()
def apply(
    checkpoint: Annotated[Path, typer.Argument(help="What `train` wrote.", show_default=False)],
    texts: Annotated[list[str], typer.Argument(help="What to encode.", show_default=False)],
    width: Annotated[int, typer.Option(help="Of the beam search; 1 is greedy.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .npy file for the vectors.", show_default="none")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Print what comes back of each text after it was one vector; with --json the vectors too."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        import numpy as np

        from fastrnn.checkpoint import write_bytes
        from fastrnn.models import Autoencoder

        model = Autoencoder.load(checkpoint, device)
        codes = model.encode(texts)
        back = model.decode(codes, width)
        if out is not None:
            buffer = io.BytesIO()
            np.save(buffer, codes)
            write_bytes(out, buffer.getvalue())
    result: list[dict[str, Any]] = [
        {"text": text, "back": b, "code": code.tolist()} for text, b, code in zip(texts, back, codes, strict=True)
    ]
    typer.echo(json.dumps(result) if as_json else "\n".join(f"{row['text']}\t{row['back']}" for row in result))


def _report(result: dict[str, Any]) -> str:
    rows = {
        "exact": f"{result['exact']:.2%} of {result['held_out_texts']:,} held-out texts, "
        f"by {result['code']} numbers each",
        **run_rows(result),
    }
    shown = [f"  {text} -> {back}" for text, back in result["examples"].items()]
    return "\n".join(["", report(rows), *shown])
