"""The commands `fastrnn translate train` and `apply`: a thin shell around fastrnn.models.Translator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.commands import options
from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import AsJson, Device, Quiet, Resume, Seed, Threads, only_steps_with_resume, prepare
from fastrnn.commands.running import again, measuring, outputs, report, run_rows
from fastrnn.commands.running import train as run

FIXED = ("hidden", "embedding", "attention", "forcing", "curriculum", "batch", "lr", "seed")
Width = Annotated[int, typer.Option(help="Of the beam search; 1 is greedy.")]
app = typer.Typer(help="Encoder-decoder with attention: train, apply.", no_args_is_help=True)


@app.command()
def train(
    context: typer.Context,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Lines of source, target and perhaps language, with tabs between.",
            show_default="numbers to English and German words",
        ),
    ] = None,
    numbers: Annotated[int, typer.Option(help="Without --table: the greatest number.")] = 9999,
    hidden: Annotated[int, typer.Option(help="Width of the layers.")] = 96,
    embedding: Annotated[int, typer.Option(help="Width of a character's vector.")] = 32,
    attention: Annotated[int, typer.Option(help="Width of the attention's hidden layer.")] = 64,
    forcing: Annotated[float, typer.Option(help="Ratio of teacher forcing, in [0, 1].")] = 1.0,
    curriculum: Annotated[int, typer.Option(help="Steps in which short targets come first; 0: none.")] = 0,
    steps: Annotated[int, typer.Option(help="Updates of the parameters.")] = 1000,
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 4e-3,
    width: Width = 4,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the checkpoint goes.")] = Path(
        "translate.safetensors"
    ),
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a translator, count what it translates exactly of texts it has not seen, and draw its attention."""
    with one_line_errors():
        files = outputs(out)
        prepare(device, threads, *files.values())
        from fastrnn import validation
        from fastrnn.commands import plots
        from fastrnn.models import Schedule, Translator, translate

        validation.integer("width", width, 1)
        schedule: Schedule | None = Schedule(steps=steps, batch=batch, lr=lr, evaluate_every=100)
        if resume:
            only_steps_with_resume(context, FIXED)
            model = Translator.load(out, device)
            schedule = schedule if options.given(context, "steps") else None
        held_out_seed = model.seed if resume else seed
        if table is not None and options.given(context, "numbers"):
            raise ValueError("--numbers: expected nothing with --table")
        corpus = (
            translate.numbers(numbers, seed=held_out_seed)
            if table is None
            else translate.table(table, seed=held_out_seed)
        )
        everything = [*corpus.train, *corpus.held_out]
        if not resume:
            model = Translator(
                "".join(e.source for e in everything), "".join(e.target for e in everything),
                sorted({e.language for e in everything}), hidden=hidden, embedding=embedding, attention=attention,
                seed=seed, device=device,
            )  # fmt: skip
        result = run(
            lambda o: model.fit(corpus, schedule, o, forcing=forcing, curriculum=curriculum, resume=resume),
            model, files,
            title=f"{len(corpus.train):,} examples to train on, {len(corpus.held_out):,} of other texts held out",
            score="share of held-out texts wrong", quiet=quiet,
            again=again(
                "translate", "train", "--resume", "--out", out, device=device, table=table,
                numbers=None if table else numbers,
            ),
        )  # fmt: skip
        measuring(f"{len(corpus.held_out):,} held-out examples, greedy and by a beam of {width}", quiet)
        text = max((e.source for e in corpus.held_out), key=lambda source: (len(source) <= 30, len(source)))
        plots.attention(text, {name: model.attend(text, name) for name in model.languages}, files["plot"])
        shown = {
            source: {n: model.translate([source], n, width=width)[0] for n in model.languages} for source in [text]
        }
        result |= {
            "examples": len(corpus.train), "held_out": len(corpus.held_out), "width": width,
            "exact_greedy": model.exact(corpus.held_out), "exact_beam": model.exact(corpus.held_out, width),
            "examples_shown": shown, "plot": str(files["plot"]),
        }  # fmt: skip
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else _report(result))


@app.command()
def apply(
    checkpoint: Annotated[Path, typer.Argument(help="What `train` wrote.", show_default=False)],
    texts: Annotated[list[str], typer.Argument(help="What to translate.", show_default=False)],
    to: Annotated[str | None, typer.Option(help="The language.", show_default="all")] = None,
    width: Width = 4,
    length_penalty: Annotated[float, typer.Option(help="Of the beam search; more favours longer texts.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A PNG of the attention for the first text.", show_default="none")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Translate texts with a trained model."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        from fastrnn.commands import plots
        from fastrnn.models import Translator

        model = Translator.load(checkpoint, device)
        languages = model.languages if to is None else [to]
        written = {name: model.translate(texts, name, width=width, length_penalty=length_penalty) for name in languages}
        if out is not None:
            plots.attention(texts[0], {name: model.attend(texts[0], name) for name in languages}, out)
    result = [{"text": text, **{name: written[name][i] for name in languages}} for i, text in enumerate(texts)]
    lines = [f"{row['text']}\t{name}\t{row[name]}" for row in result for name in languages]
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(lines))


def _report(result: dict[str, Any]) -> str:
    shown = [f"  {text} -> {t}" for text, row in result["examples_shown"].items() for t in row.values()]
    rows = {
        "exact": f"{result['exact_greedy']:.2%} of {result['held_out']:,} held-out examples, greedy; "
        f"{result['exact_beam']:.2%} by a beam of {result['width']}",
        **run_rows(result),
    }  # fmt: skip
    return "\n".join(["", report(rows), *shown])
