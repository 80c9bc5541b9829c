"""Encoder-decoder with additive attention: characters in, characters out, a start token for each language.

bidirectional GRU over the source -> keys; a GRU over the characters written so far -> queries; attention; softmax.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import GRU, beam_search, validation
from fastrnn.arrays import Array, module_of, to_device, to_host
from fastrnn.models import numerals, parts
from fastrnn.models.corpus import quoted, read_text
from fastrnn.models.fitting import Observer, Point, Schedule, Snapshot, fit, schedule_of
from fastrnn.models.parts import Parts, on_its_device
from fastrnn.models.vocabulary import Vocabulary
from fastrnn.nn import AdditiveAttention, Curriculum, Embedding, Linear, decoder_inputs, log_softmax
from fastrnn.nn import softmax_cross_entropy as cross_entropy

SCHEDULE = Schedule(steps=1000, batch=64, lr=4e-3, evaluate_every=100)
QUALITY = 0.99  # of the held-out numbers, in both languages, after training by the default: exactly right
ESTIMATE = 200  # held-out examples measured during training


class Example(NamedTuple):
    """A text, what it is in another language, and which."""

    source: str
    target: str
    language: str


class Corpus(NamedTuple):
    """Examples to learn from and examples only measured, which share no source text."""

    train: list[Example]
    held_out: list[Example]


class Translator:
    """Translator from one language to several.

    Args:
        sources: the characters that may be read, each once, or any text that contains them.
        targets: the characters that may be written, likewise.
        languages: names of the languages to translate to.
        hidden: H, width of the decoder and of each direction of the encoder.
        embedding: width of a character's vector.
        attention: width of the attention's hidden layer.
        seed: of the initial values and of the order of the examples; drawn at random if None.
        device: "cpu" or "cuda:N", where to compute; all that is random is the same on both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        ImportError, RuntimeError: CuPy or the GPU is missing.

    Source: Bahdanau, Cho, Bengio (2015), with the attention after the decoder's step, as in Luong, Pham, Manning
    (2015), so that the decoder runs over all steps in one call.
    """

    def __init__(
        self, sources: str, targets: str, languages: Sequence[str], *, hidden: int = 96, embedding: int = 32,
        attention: int = 64, seed: int | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        for name, size in (("hidden", hidden), ("embedding", embedding), ("attention", attention)):
            validation.integer(name, size, 1)
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(f"languages: expected at least one and none twice, got {list(languages)}")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.seed = validation.integer("seed", seed, 0, 2**63 - 1)
        self.sources, self.targets, self.languages = Vocabulary.of(sources), Vocabulary.of(targets), list(languages)
        self.arguments = {
            "sources": self.sources.characters, "targets": self.targets.characters, "languages": self.languages,
            "hidden": hidden, "embedding": embedding, "attention": attention, "seed": self.seed,
        }  # fmt: skip
        self.facts: dict[str, Any] = {"longest": 0}  # of the targets learnt from, without the end
        self.end = len(self.targets)  # then one start token for each language, never written
        seeds = iter(int(s) for s in np.random.SeedSequence(self.seed).generate_state(8))
        self.source = Embedding(len(self.sources), embedding, seed=next(seeds))
        self.encoder = GRU(embedding, hidden, bidirectional=True, seed=next(seeds))
        self.bridge = Linear(2 * hidden, hidden, seed=next(seeds))
        self.target = Embedding(self.end + 1 + len(self.languages), embedding, seed=next(seeds))
        self.decoder = GRU(embedding, hidden, seed=next(seeds))
        self.attention = AdditiveAttention(hidden, 2 * hidden, attention, seed=next(seeds))
        self.combine = Linear(3 * hidden, hidden, seed=next(seeds))
        self.head = Linear(hidden, self.end + 1, seed=next(seeds))
        self.parts = Parts(
            source=self.source, encoder=self.encoder, bridge=self.bridge, target=self.target, decoder=self.decoder,
            attention=self.attention, combine=self.combine, head=self.head,
        )  # fmt: skip
        self.run: Snapshot | None = None  # of the last training run, to resume it
        self.to(device)

    def loss(self, batch: Batch) -> tuple[Any, Callable[[], dict[str, Array]]]:
        """Return the mean cross-entropy of a batch in nats, and the backward pass."""
        xp = module_of(self.parts.device)
        x, source_backward = self.source.forward(batch.source)
        keys, h_n, encoder_backward = self.encoder.forward(x, lengths=batch.source_lengths)
        bridge, bridge_backward = self.bridge.forward(xp.concatenate([h_n[0], h_n[1]], axis=1))
        h_0 = xp.tanh(bridge)
        t, target_backward = self.target.forward(batch.inputs)
        s, _, decoder_backward = self.decoder.forward(t, h_0[None], lengths=batch.target_lengths)
        attended, attention_backward = self.attention.forward(s, keys, batch.source_mask)
        combined, combine_backward = self.combine.forward(xp.concatenate([s, attended.context], axis=2))
        z = xp.tanh(combined)
        logits, head_backward = self.head.forward(z)
        value, loss_backward = cross_entropy(logits, batch.targets, mask=batch.target_mask)

        def backward() -> dict[str, Array]:
            head = head_backward(loss_backward())
            combine = combine_backward(head.x * (1 - z * z))
            H = s.shape[2]
            attention = attention_backward(xp.ascontiguousarray(combine.x[:, :, H:]))
            decoder = decoder_backward(combine.x[:, :, :H] + attention.queries)
            target = target_backward(decoder.x)
            bridge = bridge_backward(decoder.state[0] * (1 - h_0 * h_0))
            d_h_n = xp.stack([bridge.x[:, :H], bridge.x[:, H:]])
            encoder = encoder_backward(attention.keys, d_h_n)
            return Parts.gradients(
                source=source_backward(encoder.x).params, encoder=encoder.params, bridge=bridge.params,
                target=target.params, decoder=decoder.params, attention=attention.params, combine=combine.params,
                head=head.params,
            )  # fmt: skip

        return value, backward

    def fit(
        self, corpus: Corpus, schedule: Schedule | None = None, observer: Observer | None = None, *,
        forcing: float = 1.0, curriculum: int = 0, resume: bool = False,
    ) -> Point:  # fmt: skip
        """Train on examples; the held-out ones are only measured.

        Args:
            corpus: the examples.
            schedule: how to train; `SCHEDULE` if None.
            observer: what to do beside it.
            forcing: ratio of teacher forcing, in [0, 1]: how many of the decoder's inputs are the true characters.
            curriculum: steps during which short targets come first; 0: all from the start.
            resume: go on with the run that was stopped or loaded, with its forcing and curriculum.

        Returns:
            Where the run stands; its score is the share of held-out examples that are not exactly right.

        Raises:
            ValueError: an example in an unknown language or with an empty text; as `fitting.fit`.
        """
        self._check(corpus.train)
        lengths = np.array([len(example.target) for example in corpus.train])
        if resume:
            forcing, curriculum = self.facts.get("forcing", forcing), self.facts.get("curriculum", curriculum)
        self.facts = {"longest": int(lengths.max()), "forcing": forcing, "curriculum": curriculum}
        if not 0 <= validation.real("forcing", forcing) <= 1:
            raise ValueError(f"forcing: expected 0 <= forcing <= 1, got {forcing}")
        stages = Curriculum(lengths, curriculum) if validation.integer("curriculum", curriculum, 0) else None
        schedule = schedule_of(self, schedule, SCHEDULE, resume)
        estimate = corpus.held_out[:: max(1, len(corpus.held_out) // ESTIMATE)]

        def batch_at(step: int) -> Batch:
            rng = np.random.default_rng([self.seed, step])
            among = np.arange(len(corpus.train)) if stages is None else stages.eligible(step)
            batch = self._batch([corpus.train[i] for i in rng.choice(among, schedule.batch)])
            if forcing == 1:
                return batch
            state = self._encode(batch.source, batch.source_lengths)
            inputs = decoder_inputs(batch.targets, batch.inputs[0], forcing, self._step, state, rng)
            return batch._replace(inputs=inputs)

        data = hashlib.sha256(repr((corpus, forcing, curriculum)).encode()).hexdigest()[:16]
        return fit(self, batch_at, lambda: 1 - self.exact(estimate), schedule, observer, data, resume=resume)

    @on_its_device
    def translate(
        self, texts: Sequence[str], language: str, *, width: int = 1, length_penalty: float = 0.0
    ) -> list[str]:
        """Return the translation of each text.

        Args:
            texts: not empty, of characters that the model knows.
            language: one of `languages`.
            width: of the beam search; 1 is the greedy choice.
            length_penalty: of the beam search.

        Raises:
            ValueError: an empty text, an unknown character or language.
        """
        self._check([Example(text, "", language) for text in texts])
        if not texts:
            return []
        state = self._encode(*self._sources(texts))
        start = np.full(len(texts), self._start(language))
        found = beam_search(
            self._step, state, start, end=self.end, width=width, max_length=self._longest(),
            length_penalty=length_penalty,
        )  # fmt: skip
        return [self._written(hypotheses[0].tokens) for hypotheses in found]

    @on_its_device
    def attend(self, text: str, language: str) -> tuple[str, Array]:
        """Return the greedy translation of a text, and what was attended to while each character was written.

        Returns:
            The translation, and weights [len(translation) + 1, len(text)], the last row for the end.

        Raises:
            ValueError: as `translate`.
        """
        translation = self.translate([text], language)[0]
        ids, lengths = self._sources([text])
        h, keys, mask = self._encode(ids, lengths)
        inputs = np.concatenate([[self._start(language)], self.targets.encode(translation)])
        s, _ = self.decoder(self.target(inputs[:, None]), h)
        return translation, to_host(self.attention(s, keys, mask).weights[:, :, 0])

    def exact(self, examples: Sequence[Example], width: int = 1) -> float:
        """Return the share of examples that are translated exactly as they should be."""
        right = 0
        for language in dict.fromkeys(example.language for example in examples):
            these = [example for example in examples if example.language == language]
            written = self.translate([example.source for example in these], language, width=width)
            right += sum(a == b.target for a, b in zip(written, these, strict=True))
        return right / len(examples)

    def to(self, device: str) -> Translator:
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
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Translator:
        """Read a model that `save` wrote, wherever it was, onto a device.

        Raises:
            ImportError, RuntimeError: CuPy or the GPU is missing.
            OSError: the file cannot be read.
            ValueError: it is damaged, foreign, or not a translator's.
        """
        return parts.load(path, cls, device)

    def _check(self, examples: Sequence[Example]) -> None:
        for source, _, language in examples:
            if language not in self.languages:
                raise ValueError(f"language: expected one of {', '.join(map(repr, self.languages))}, got {language!r}")
            if unknown := self.sources.unknown(source):
                raise ValueError(f"text: expected known characters, got the unknown {unknown!r} in {source!r}")
            if not source:
                raise ValueError("text: expected at least one character, got ''")

    def _longest(self) -> int:
        return int(1.5 * self.facts["longest"]) + 10

    def _start(self, language: str) -> int:
        return self.end + 1 + self.languages.index(language)

    def _written(self, tokens: Sequence[int]) -> str:
        return self.targets.decode(token for token in tokens if 0 < token < self.end)

    def _sources(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Indices [T, B] of texts, padded with 0, and their lengths [B]."""
        return padded([self.sources.encode(text) for text in texts])

    def _batch(self, examples: Sequence[Example]) -> Batch:
        source, source_lengths = self._sources([example.source for example in examples])
        targets, target_lengths = padded([[*self.targets.encode(e.target), self.end] for e in examples])
        starts = np.array([self._start(example.language) for example in examples])
        inputs = np.concatenate([starts[None], targets[:-1]])
        return Batch(source, source_lengths, inputs, targets, target_lengths)

    def _encode(self, ids: Array, lengths: Array) -> tuple[Array, Array, Array]:
        """The state of `_step`: h [1, B, H], keys [Tk, B, 2H] and their mask [Tk, B]."""
        keys, h_n = self.encoder(self.source(ids), lengths=lengths)
        xp = module_of(self.parts.device)
        h = xp.tanh(self.bridge(xp.concatenate([h_n[0], h_n[1]], axis=1)))
        return h[None], keys, to_device(np.arange(len(ids))[:, None] < lengths, self.parts.device)

    def _step(self, state: tuple[Array, Array, Array], tokens: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        h, keys, mask = state
        s, h = self.decoder(self.target(tokens[None]), h)
        context = self.attention(s, keys, mask).context
        xp = module_of(self.parts.device)
        z = xp.tanh(self.combine(xp.concatenate([s, context], axis=2)))
        return log_softmax(self.head(z)[0]), (h, keys, mask)


class Batch(NamedTuple):
    """Examples side by side, padded, on the host."""

    source: Array  # [Tk, B] int64
    source_lengths: Array  # [B]
    inputs: Array  # [Tq, B] int64, a start token first
    targets: Array  # [Tq, B] int64, the end last
    target_lengths: Array  # [B]

    @property
    def source_mask(self) -> Array:
        """True where there is a character, [Tk, B]."""
        return np.arange(len(self.source))[:, None] < self.source_lengths

    @property
    def target_mask(self) -> Array:
        """True where there is a target, [Tq, B]."""
        return np.arange(len(self.targets))[:, None] < self.target_lengths


def padded(rows: Sequence[Any]) -> tuple[Array, Array]:
    """Return sequences of indices side by side, [T, B] int64 with 0 past the end, and their lengths [B]."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((int(lengths.max()), len(rows)), np.int64)
    for b, row in enumerate(rows):
        ids[: len(row), b] = row
    return ids, lengths


def numbers(greatest: int = 9999, held_out: float = 0.1, seed: int = 0) -> Corpus:
    """Return the numbers 0 to `greatest` in digits, and in English and German words.

    A held-out number is held out in both languages.

    Args:
        greatest: the last number.
        held_out: share of the numbers, chosen at random.
        seed: of the choice.

    Raises:
        ValueError, TypeError: an argument out of range; of another type.
    """
    validation.integer("greatest", greatest, 19, numerals.GREATEST)
    if not 0 < validation.real("held_out", held_out) < 1:
        raise ValueError(f"held_out: expected 0 < held_out < 1, got {held_out}")
    order = np.random.default_rng(seed).permutation(greatest + 1)
    count = max(1, int(held_out * len(order)))

    def examples(of: Array) -> list[Example]:
        return [Example(str(n), say(int(n)), name) for n in of for name, say in numerals.LANGUAGES.items()]

    return Corpus(examples(order[count:]), examples(order[:count]))


def table(path: Path, held_out: float = 0.1, seed: int = 0) -> Corpus:
    """Read examples from a UTF-8 file: source, target and, if there are several, language, with tabs between.

    Lines with the same source go together to the training part or to the held-out part.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, has a line of another form, or fewer than two different sources; with the line.
    """
    examples = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) not in (2, 3) or not all(fields):
            raise ValueError(f"{path}, line {number}: expected source<tab>target[<tab>language], got {quoted(line)}")
        examples.append(Example(fields[0], fields[1], fields[2] if len(fields) == 3 else "target"))
    sources = sorted({example.source for example in examples})
    if len(sources) < 2:
        raise ValueError(f"{path}: expected at least two different source texts, got {len(sources)}")
    chosen = np.random.default_rng(seed).permutation(len(sources))[: max(1, int(held_out * len(sources)))]
    apart = {sources[i] for i in chosen}
    return Corpus([e for e in examples if e.source not in apart], [e for e in examples if e.source in apart])
