"""Sequence tagger: tokens -> embedding -> bidirectional LSTM -> linear -> softmax over the labels of each token."""

from __future__ import annotations

import bisect
import hashlib
import io
import keyword
import os
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import LSTM, validation
from fastrnn.arrays import Array, to_host
from fastrnn.models import parts
from fastrnn.models.corpus import python_stdlib, quoted, read_text
from fastrnn.models.fitting import Observer, Point, Schedule, Snapshot, fit, schedule_of
from fastrnn.models.parts import Parts, on_its_device
from fastrnn.nn import Dropout, Embedding, Linear, log_softmax, softmax_cross_entropy

SCHEDULE = Schedule(steps=600, batch=16, lr=5e-3, evaluate_every=100)
UNKNOWN = 0  # index of every token that the model does not know
OUTSIDE = "O"
LEVELS = ("token", "character", "word")
TOKEN = re.compile(r"\w+|\n|[^\S\n]+|[^\w\s]")
EVALUATION_BATCH = 64
QUALITY = {"token": 0.95, "character": 0.92}  # entity F1 on held-out files after training by the default
STDLIB_CHARACTERS = 1_500_000
BLOCK_CHARACTERS = 200  # a block of source ends with the first line after so many, outside strings
LONGEST_BLOCK = 800  # longer ones, which long strings make, are left out
MOST_TOKENS = 5000  # known to a tagger made by `of`


class Sentence(NamedTuple):
    """Tokens and a label for each, in BIO form: B-x begins an entity of type x, I-x goes on with it, O is none."""

    tokens: list[str]
    labels: list[str]


class Corpus(NamedTuple):
    """Sentences to learn from and sentences only measured."""

    name: str
    train: list[Sentence]
    held_out: list[Sentence]


class Scores(NamedTuple):
    """How well entities were found: an entity counts if its first token, its last and its type are all right."""

    precision: float
    recall: float
    f1: float
    accuracy: float  # of the labels of single tokens


class Tagger:
    """Sequence tagger.

    Args:
        tokens: the tokens to know; every other one is the same unknown token.
        labels: the labels, "O" among them.
        hidden: H, width of each direction of the LSTM.
        embedding: width of a token's vector.
        dropout: of the vectors, while training, in [0, 1).
        level: how `sentences_of` cuts a text: "token" (words, marks and blanks of source text), "character", or "word"
            (a sentence a line, with blanks between its words).
        seed: of the initial values, the masks and the order of the sentences; drawn at random if None.
        device: "cpu" or "cuda:N", where to compute; all that is random is the same on both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        ImportError, RuntimeError: CuPy or the GPU is missing.
    """

    def __init__(
        self, tokens: Sequence[str], labels: Sequence[str], *, hidden: int = 64, embedding: int = 48,
        dropout: float = 0.2, level: str = "token", seed: int | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        for name, size in (("hidden", hidden), ("embedding", embedding)):
            validation.integer(name, size, 1)
        validation.choice("level", level, LEVELS)
        for name, values, least in (("tokens", tokens, 1), ("labels", labels, 2)):
            if len(values) < least or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected at least {least} and none twice, got {list(values)[:5]}")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.seed = validation.integer("seed", seed, 0, 2**63 - 1)
        self.tokens, self.labels, self.level = list(tokens), list(labels), level
        self._token_index = {token: i for i, token in enumerate(self.tokens, start=1)}
        self._label_index = {label: i for i, label in enumerate(self.labels)}
        self.arguments = {
            "tokens": self.tokens, "labels": self.labels, "hidden": hidden, "embedding": embedding,
            "dropout": dropout, "level": level, "seed": self.seed,
        }  # fmt: skip
        self.facts: dict[str, Any] = {}
        seeds = [int(s) for s in np.random.SeedSequence(self.seed).generate_state(4)]
        self.embedding = Embedding(len(self.tokens) + 1, embedding, seed=seeds[0])
        self.dropout = Dropout(dropout, seed=seeds[1])
        self.rnn = LSTM(embedding, hidden, bidirectional=True, seed=seeds[2])
        self.head = Linear(2 * hidden, len(self.labels), seed=seeds[3])
        self.parts = Parts(embedding=self.embedding, dropout=self.dropout, rnn=self.rnn, head=self.head)
        self.run: Snapshot | None = None  # of the last training run, to resume it
        self.to(device)

    @classmethod
    def of(cls, sentences: Sequence[Sentence], **options: Any) -> Tagger:
        """Return a tagger for the labels of these sentences and the most frequent of their tokens, at most 5000.

        A token that occurs once is left unknown, so that the model learns what to do with unknown ones.
        """
        counts = Counter(token for sentence in sentences for token in sentence.tokens)
        labels = sorted({label for sentence in sentences for label in sentence.labels} | {OUTSIDE})
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        known = [token for token in ranked[:MOST_TOKENS] if counts[token] > 1]
        return cls(sorted(known or ranked), labels, **options)

    def loss(self, batch: tuple[Array, Array, Array]) -> tuple[Any, Callable[[], dict[str, Array]]]:
        """Return the mean cross-entropy of a batch (ids [T, B], labels [T, B], lengths [B]), and the backward pass."""
        ids, labels, lengths = batch
        x, embedding_backward = self.embedding.forward(ids)
        dropped, dropout_backward = self.dropout.forward(x, training=True)
        y, _, rnn_backward = self.rnn.forward(dropped, lengths=lengths, training=True)
        logits, head_backward = self.head.forward(y)
        value, loss_backward = softmax_cross_entropy(logits, labels, mask=np.arange(len(ids))[:, None] < lengths)

        def backward() -> dict[str, Array]:
            head = head_backward(loss_backward())
            rnn = rnn_backward(head.x)
            embedding = embedding_backward(dropout_backward(rnn.x))
            return Parts.gradients(embedding=embedding.params, rnn=rnn.params, head=head.params)

        return value, backward

    def fit(
        self, corpus: Corpus, schedule: Schedule | None = None, observer: Observer | None = None, *,
        resume: bool = False,
    ) -> Point:  # fmt: skip
        """Train on sentences; the held-out ones are only measured.

        Args:
            corpus: the sentences; empty ones are passed over.
            schedule: how to train; `SCHEDULE` if None.
            observer: what to do beside it.
            resume: go on with the run that was stopped or loaded.

        Returns:
            Where the run stands; its score is 1 - F1 on the held-out sentences.

        Raises:
            ValueError: no sentence, or a label that the model does not know; as `fitting.fit`.
        """
        train = [sentence for sentence in corpus.train if sentence.tokens]
        if not train:
            raise ValueError(f"{corpus.name}: expected at least one sentence to train on, got none")
        if unknown := {label for sentence in train for label in sentence.labels} - set(self.labels):
            raise ValueError(f"labels: expected {', '.join(self.labels)}, got {', '.join(sorted(unknown))}")
        schedule = schedule_of(self, schedule, SCHEDULE, resume)

        def batch_at(step: int) -> tuple[Array, Array, Array]:
            rng = np.random.default_rng([self.seed, step])
            chosen = [train[i] for i in rng.choice(len(train), schedule.batch)]
            ids, lengths = self._ids([sentence.tokens for sentence in chosen])
            labels = np.zeros_like(ids)
            for b, sentence in enumerate(chosen):
                labels[: lengths[b], b] = [self._label_index[label] for label in sentence.labels]
            return ids, labels, lengths

        data = hashlib.sha256(repr(corpus).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return fit(self, batch_at, lambda: 1 - self.scores(corpus.held_out).f1, schedule, observer, data, resume=resume)

    @on_its_device
    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the likeliest label of every token of each sentence."""
        return [[self.labels[i] for i in log_p.argmax(axis=1)] for log_p in self._log_probs(sentences)]

    @on_its_device
    def least_sure(self, sentences: Sequence[Sequence[str]]) -> list[tuple[int, float]]:
        """Return the indices of sentences, the one that the model is least sure of first, and how sure it is.

        How sure: the mean over the tokens of the likeliest label's log-probability, in nats; 0 is certain. These are
        the sentences to be labelled next by a person. Empty ones are left out.

        Source: Settles and Craven, "An analysis of active learning strategies for sequence labeling tasks" (2008).
        """
        sure = [
            (float(log_p.max(axis=1).mean()), i) for i, log_p in enumerate(self._log_probs(sentences)) if len(log_p)
        ]
        return [(i, value) for value, i in sorted(sure)]

    def scores(self, sentences: Sequence[Sentence]) -> Scores:
        """Return precision, recall and F1 of the entities found in labelled sentences, and the accuracy of labels."""
        tagged = self.tag([sentence.tokens for sentence in sentences])
        return scores([sentence.labels for sentence in sentences], tagged)

    def sentences_of(self, text: str) -> list[list[str]]:
        """Cut a text as the model reads it: in lines, or, source text, in blocks of lines."""
        if self.level == "word":
            return [line.split() for line in text.splitlines() if line.strip()]
        blocks = [""]
        for line in text.splitlines(keepends=True):
            if len(blocks[-1]) >= BLOCK_CHARACTERS:
                blocks.append("")
            blocks[-1] += line
        return [list(block) if self.level == "character" else TOKEN.findall(block) for block in blocks if block]

    def to(self, device: str) -> Tagger:
        """Move the model to `device`, "cpu" or "cuda:N", where it computes from then on; return it.

        Raises:
            ValueError: no device's name. ImportError: CuPy is missing. RuntimeError: there is no such GPU.
        """
        self.parts.to(device)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, and its training run if there was one, atomically to a safetensors file."""
        parts.save(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Tagger:
        """Read a model that `save` wrote, wherever it was, onto a device.

        Raises:
            ImportError, RuntimeError: CuPy or the GPU is missing.
            OSError: the file cannot be read.
            ValueError: it is damaged, foreign, or not a tagger's.
        """
        return parts.load(path, cls, device)

    def _ids(self, sentences: Sequence[Sequence[str]]) -> tuple[Array, Array]:
        """Indices [T, B] of tokens, padded, and the lengths [B]."""
        lengths = np.array([len(tokens) for tokens in sentences])
        ids = np.full((int(lengths.max()), len(sentences)), UNKNOWN)
        for b, tokens in enumerate(sentences):
            ids[: len(tokens), b] = [self._token_index.get(token, UNKNOWN) for token in tokens]
        return ids, lengths

    def _log_probs(self, sentences: Sequence[Sequence[str]]) -> Iterator[Array]:
        """Log-probabilities [T, labels] of each sentence."""
        for at in range(0, len(sentences), EVALUATION_BATCH):
            ids, lengths = self._ids(sentences[at : at + EVALUATION_BATCH])
            y, _ = self.rnn(self.embedding(ids), lengths=lengths)
            log_p = to_host(log_softmax(self.head(y)))
            yield from (log_p[:length, b] for b, length in enumerate(lengths))


def entities(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the entities (first, end, type) of BIO labels; an I-x that follows no x begins one, as B-x does."""
    found, first, kind = set(), 0, ""
    for i, label in enumerate([*labels, OUTSIDE]):
        prefix, _, name = label.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            found.add((first, i, kind))
            kind = ""
        if prefix in ("B", "I") and not goes_on:
            first, kind = i, name
    return found


def scores(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Scores:
    """Return precision, recall and F1 of entities over all sentences, and the accuracy of single labels."""
    right = wanted = got = equal = total = 0
    for labels, guesses in zip(true, found, strict=True):
        of_labels, of_guesses = entities(labels), entities(guesses)
        right += len(of_labels & of_guesses)
        wanted, got = wanted + len(of_labels), got + len(of_guesses)
        equal += sum(a == b for a, b in zip(labels, guesses, strict=True))
        total += len(labels)
    precision, recall = right / got if got else 0.0, right / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return Scores(precision, recall, f1, equal / total if total else 0.0)


def most_frequent_label(train: Sequence[Sentence], sentences: Sequence[Sentence]) -> Scores:
    """Return the scores of giving each token the label it has most often in `train`, unknown ones the commonest."""
    counts: dict[str, Counter[str]] = {}
    for sentence in train:
        for token, label in zip(sentence.tokens, sentence.labels, strict=True):
            counts.setdefault(token, Counter())[label] += 1
    overall = sum(counts.values(), Counter[str]()).most_common(1)[0][0]
    guess = {token: labels.most_common(1)[0][0] for token, labels in counts.items()}
    found = [[guess.get(token, overall) for token in sentence.tokens] for sentence in sentences]
    return scores([sentence.labels for sentence in sentences], found)


def conll(path: Path) -> list[Sentence]:
    """Read sentences from a CoNLL file: a token a line, its label in the last column, an empty line between sentences.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, holds no sentence, or a line has one column or a label that is not BIO.
    """
    sentences, tokens, labels = [], list[str](), list[str]()
    for number, line in enumerate([*read_text(path).splitlines(), ""], start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            if tokens:
                sentences.append(Sentence(tokens, labels))
            tokens, labels = [], []
            continue
        if len(fields) < 2 or not re.fullmatch(r"O|[BI]-\S+", fields[-1]):
            raise ValueError(f"{path}, line {number}: expected a token and a label O, B-x or I-x, got {quoted(line)}")
        tokens.append(fields[0])
        labels.append(fields[-1])
    if not sentences:
        raise ValueError(f"{path}: expected at least one sentence, got none")
    return sentences


def split(name: str, sentences: list[Sentence], held_out: float = 0.2, seed: int = 0) -> Corpus:
    """Hold out a share of the sentences, chosen at random; equal sentences stay together.

    Raises:
        ValueError: fewer than two different sentences.
    """
    kinds = sorted({tuple(sentence.tokens) for sentence in sentences})
    if len(kinds) < 2:
        raise ValueError(f"{name}: expected at least two different sentences, got {len(kinds)}")
    order = np.random.default_rng(seed).permutation(len(kinds))
    apart = {kinds[i] for i in order[: max(1, int(held_out * len(kinds)))]}
    return Corpus(
        name, [s for s in sentences if tuple(s.tokens) not in apart], [s for s in sentences if tuple(s.tokens) in apart]
    )


def python_source(level: str = "token", characters: int = STDLIB_CHARACTERS) -> Corpus:
    """Return the standard library's source in blocks of lines, labelled by Python's tokenizer; whole files held out.

    Labels: keyword, name, number, string, comment. The tagger sees words, marks and blanks (or characters), never
    where a string or a comment begins and ends.

    Args:
        level: "token" or "character".
        characters: of source, about.

    Raises:
        ValueError: another level. FileNotFoundError: this Python has no source files.
    """
    validation.choice("level", level, LEVELS[:2])
    text = python_stdlib(characters)
    train, held_out = ([*_blocks(part, level)] for part in (text.train, text.held_out))
    seen = {tuple(sentence.tokens) for sentence in train}  # a licence, say, that stands in several files
    return Corpus(text.name, train, [sentence for sentence in held_out if tuple(sentence.tokens) not in seen])


def _blocks(text: str, level: str) -> Iterator[Sentence]:
    """Cut source text into blocks of whole lines and label them."""
    spans = list(_spans(text))
    ends, span, start = [match.end() for match in re.finditer("\n", text)], 0, 0
    for end in ends:
        while span < len(spans) and spans[span][1] <= end:
            span += 1
        inside = span < len(spans) and spans[span][0] < end
        if inside or (end - start < BLOCK_CHARACTERS and end < ends[-1]):
            continue
        if end - start <= LONGEST_BLOCK and text[start:end].strip():
            yield _labelled(text[start:end], start, spans, level)
        start = end


def _labelled(block: str, offset: int, spans: list[tuple[int, int, str]], level: str) -> Sentence:
    """Tokens of a block and their labels; `spans` are the entities of the whole text, in order."""
    pattern = re.compile(r"(?s).") if level == "character" else TOKEN
    tokens, labels = [], []
    at = bisect.bisect_left(spans, (offset,))
    begun = -1
    for match in pattern.finditer(block):
        place = offset + match.start()
        while at < len(spans) and spans[at][1] <= place:
            at += 1
        tokens.append(match[0])
        if at == len(spans) or place < spans[at][0]:
            labels.append(OUTSIDE)
        else:
            labels.append(("I-" if begun == at else "B-") + spans[at][2])
            begun = at
    return Sentence(tokens, labels)


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Entities (first, end, type) of Python source by its own tokenizer, in order; an f-string is one string."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    depth, first = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            first, depth = first if depth else begin, depth + 1
        elif name == "FSTRING_END":
            depth -= 1
            if not depth:
                yield first, end, "string"
        elif not depth and name in ("NAME", "NUMBER", "STRING", "COMMENT"):
            yield begin, end, "keyword" if name == "NAME" and keyword.iskeyword(token.string) else name.lower()
