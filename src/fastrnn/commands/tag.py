"""The commands `fastrnn tag train`, `apply` and `suggest`: a thin shell around fastrnn.models.Tagger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.commands import options
from fastrnn.commands.console import one_line_errors
from fastrnn.commands.options import (
    AsJson,
    Device,
    Out,
    Quiet,
    Resume,
    Seed,
    Threads,
    deliver,
    only_steps_with_resume,
    prepare,
)
from fastrnn.commands.running import again, outputs, report, run_rows
from fastrnn.commands.running import train as run

if TYPE_CHECKING:
    from fastrnn.models.tag import Corpus, Tagger

FIXED = ("level", "hidden", "embedding", "dropout", "batch", "lr", "seed")
Checkpoint = Annotated[Path, typer.Argument(help="What `train` wrote.", show_default=False)]
Text = Annotated[Path, typer.Argument(help="A UTF-8 text.", show_default=False)]
app = typer.Typer(help="Sequence tagger: train, apply, suggest.", no_args_is_help=True)


@app.command()
def train(
    context: typer.Context,
    conll: Annotated[
        Path | None,
        typer.Option(
            help="A CoNLL file: token first, BIO label last.", show_default="the source of Python's standard library"
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Another to measure on.", show_default="a fifth of the sentences of --conll")
    ] = None,
    level: Annotated[str, typer.Option(help="Of source text: token or character.")] = "token",
    hidden: Annotated[int, typer.Option(help="Width of each direction of the LSTM.")] = 64,
    embedding: Annotated[int, typer.Option(help="Width of a token's vector.")] = 48,
    dropout: Annotated[float, typer.Option(help="Of the vectors, in [0, 1).")] = 0.2,
    steps: Annotated[int, typer.Option(help="Updates of the parameters.")] = 600,
    batch: Annotated[int, typer.Option(help="Sentences a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 5e-3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the checkpoint goes.")] = Path("tag.safetensors"),
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a tagger, and measure the entities it finds in sentences it has not seen, beside a baseline."""
    with one_line_errors():
        files = outputs(out)
        prepare(device, threads, *list(files.values())[:3])
        from fastrnn.models import Schedule, Tagger
        from fastrnn.models.tag import most_frequent_label

        if conll is not None and options.given(context, "level"):
            raise ValueError("--level: expected nothing with --conll, whose tokens are its words")
        schedule: Schedule | None = Schedule(steps=steps, batch=batch, lr=lr)
        if resume:
            only_steps_with_resume(context, FIXED)
            model = Tagger.load(out, device)
            schedule = schedule if options.given(context, "steps") else None
        corpus = _corpus(conll, test, model.level if resume else level, model.seed if resume else seed)
        if not resume:
            sizes: dict[str, Any] = {"hidden": hidden, "embedding": embedding, "dropout": dropout, "seed": seed}
            model = Tagger.of(corpus.train, level="word" if conll else level, device=device, **sizes)
        result = run(
            lambda observer: model.fit(corpus, schedule, observer, resume=resume), model, files,
            title=f"{corpus.name}: {len(corpus.train):,} sentences to train on, {len(corpus.held_out):,} held out",
            score="1 - F1 on held-out sentences", quiet=quiet,
            again=again("tag", "train", "--resume", "--out", out, device=device, conll=conll, test=test),
        )  # fmt: skip
        result |= {
            "corpus": corpus.name, "train_sentences": len(corpus.train), "held_out_sentences": len(corpus.held_out),
            "labels": model.labels, "tokens": len(model.tokens),
            "held_out": model.scores(corpus.held_out)._asdict(),
            "most_frequent_label": most_frequent_label(corpus.train, corpus.held_out)._asdict(),
        }  # fmt: skip
    typer.echo(json.dumps(result, indent=2) if as_json else _report(result))


@app.command()
def apply(
    checkpoint: Checkpoint,
    text: Text,
    out: Out = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Label a text, in CoNLL form: a token and its label a line (blanks and line ends as Python shows them)."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        from fastrnn.models import Tagger

        model = Tagger.load(checkpoint, device)
        sentences = _sentences(model, text)
        labels = model.tag(sentences)
        pairs = [list(zip(tokens, tags, strict=True)) for tokens, tags in zip(sentences, labels, strict=True)]
        blocks = ["\n".join(f"{t if t.strip() else repr(t)}\t{label}" for t, label in pair) for pair in pairs]
        deliver(json.dumps(pairs) if as_json else "\n\n".join(blocks), out)


@app.command()
def suggest(
    checkpoint: Checkpoint,
    text: Text,
    count: Annotated[int, typer.Option(help="How many.")] = 10,
    out: Out = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """List the sentences of an unlabelled text that the model is least sure of, for a person to label next."""
    with one_line_errors():
        prepare(device, threads, *([] if out is None else [out]))
        from fastrnn import validation
        from fastrnn.models import Tagger

        validation.integer("count", count, 1)
        model = Tagger.load(checkpoint, device)
        sentences = _sentences(model, text)
        joint = " " if model.level == "word" else ""
        found = [
            {"sentence": i + 1, "mean_log_probability": value, "text": joint.join(sentences[i])}
            for i, value in model.least_sure(sentences)[:count]
        ]
        lines = [f"{row['mean_log_probability']:8.4f}  {row['sentence']:>5}  {row['text']!r}" for row in found]
        deliver(json.dumps(found, indent=2) if as_json else "\n".join(lines), out)


def _sentences(model: Tagger, text: Path) -> list[list[str]]:
    from fastrnn.models.corpus import read_text

    if sentences := model.sentences_of(read_text(text)):
        return sentences
    raise ValueError(f"{text}: expected at least one sentence, got none")


def _corpus(conll: Path | None, test: Path | None, level: str, seed: int) -> Corpus:
    from fastrnn.models import tag

    if conll is None:
        if test is not None:
            raise ValueError(f"--test: expected nothing without --conll, got {test}")
        return tag.python_source(level)
    if test is None:
        return tag.split(conll.name, tag.conll(conll), seed=seed)
    return tag.Corpus(conll.name, tag.conll(conll), tag.conll(test))


def _report(result: dict[str, Any]) -> str:
    lines = [f"{'held-out entities':<22}{'precision':>10}{'recall':>10}{'F1':>10}{'accuracy of labels':>20}"]
    for name, key in (("tagger", "held_out"), ("most frequent label", "most_frequent_label")):
        s = result[key]
        lines.append(f"{name:<22}{s['precision']:10.4f}{s['recall']:10.4f}{s['f1']:10.4f}{s['accuracy']:20.4f}")
    return "\n".join(["", *lines, "", report(run_rows(result))])
