"""Sequence autoencoder: a text of any length -> bidirectional GRU -> one vector -> GRU -> the text again."""

from __future__ import annotations

import hashlib
import keyword
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import GRU, beam_search, validation
from fastrnn.arrays import Array, brought, module_of, to_host
from fastrnn.models import parts
from fastrnn.models.corpus import python_stdlib, read_text
from fastrnn.models.fitting import Observer, Point, Schedule, Snapshot, fit, schedule_of
from fastrnn.models.parts import Parts, on_its_device
from fastrnn.models.vocabulary import Vocabulary
from fastrnn.nn import Embedding, Linear, log_softmax, softmax_cross_entropy

SCHEDULE = Schedule(steps=3000, batch=128, lr=5e-3, evaluate_every=250)
QUALITY = 0.9  # of the held-out identifiers, after training by the default: exactly right
ESTIMATE = 500  # held-out texts measured during training
SHORTEST, LONGEST = 3, 12  # characters of the identifiers that `identifiers` returns


class Corpus(NamedTuple):
    """Texts to learn from and texts only measured, all different."""

    name: str
    train: list[str]
    held_out: list[str]


class Autoencoder:
    """Autoencoder of short texts.

    Args:
        characters: the characters that may occur, each once, or any text that contains them.
        code: width of the vector.
        hidden: H, width of the decoder and of each direction of the encoder.
        embedding: width of a character's vector.
        seed: of the initial values and of the order of the texts; drawn at random if None.
        device: "cpu" or "cuda:N", where to compute; all that is random is the same on both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        ImportError, RuntimeError: CuPy or the GPU is missing.

    Source: Srivastava, Mansimov, Salakhutdinov, "Unsupervised learning of video representations using LSTMs" (2015).
    """

    def __init__(
        self, characters: str, *, code: int = 64, hidden: int = 128, embedding: int = 32, seed: int | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        for name, size in (("code", code), ("hidden", hidden), ("embedding", embedding)):
            validation.integer(name, size, 1)
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.seed = validation.integer("seed", seed, 0, 2**63 - 1)
        self.vocabulary = Vocabulary.of(characters)
        self.arguments = {
            "characters": self.vocabulary.characters, "code": code, "hidden": hidden, "embedding": embedding,
            "seed": self.seed,
        }  # fmt: skip
        self.facts: dict[str, Any] = {"longest": 0}  # of the texts learnt from
        self.code = code
        self.end = len(self.vocabulary)  # ends a text, and stands before its first character
        seeds = iter(int(s) for s in np.random.SeedSequence(self.seed).generate_state(6))
        self.embedding = Embedding(self.end + 1, embedding, seed=next(seeds))
        self.encoder = GRU(embedding, hidden, bidirectional=True, seed=next(seeds))
        self.squeeze = Linear(2 * hidden, code, seed=next(seeds))
        self.expand = Linear(code, hidden, seed=next(seeds))
        self.decoder = GRU(embedding + code, hidden, seed=next(seeds))
        self.head = Linear(hidden, self.end + 1, seed=next(seeds))
        self.parts = Parts(
            embedding=self.embedding, encoder=self.encoder, squeeze=self.squeeze, expand=self.expand,
            decoder=self.decoder, head=self.head,
        )  # fmt: skip
        self.run: Snapshot | None = None  # of the last training run, to resume it
        self.to(device)

    def loss(self, batch: tuple[Array, Array]) -> tuple[Any, Callable[[], dict[str, Array]]]:
        """Return the mean cross-entropy of a batch (ids [T, B], each text with its end, lengths [B]), and the backward.

        code = tanh(squeeze [h_forward, h_backward]);   the decoder starts from tanh(expand code) and reads, at each
        step, the character before and the code.
        """
        (ids, lengths), xp = batch, module_of(self.parts.device)
        x, embedding_backward = self.embedding.forward(ids)
        _, h_n, encoder_backward = self.encoder.forward(x, lengths=lengths)
        squeezed, squeeze_backward = self.squeeze.forward(xp.concatenate([h_n[0], h_n[1]], axis=1))
        code = xp.tanh(squeezed)
        expanded, expand_backward = self.expand.forward(code)
        h_0 = xp.tanh(expanded)
        before = np.concatenate([np.full_like(ids[:1], self.end), ids[:-1]])
        t, before_backward = self.embedding.forward(before)
        E = t.shape[2]
        inputs = xp.concatenate([t, xp.broadcast_to(code, (len(ids), *code.shape))], axis=2)
        s, _, decoder_backward = self.decoder.forward(inputs, h_0[None], lengths=lengths)
        logits, head_backward = self.head.forward(s)
        value, loss_backward = softmax_cross_entropy(logits, ids, mask=np.arange(len(ids))[:, None] < lengths)

        def backward() -> dict[str, Array]:
            head = head_backward(loss_backward())
            decoder = decoder_backward(head.x)
            expand = expand_backward(decoder.state[0] * (1 - h_0 * h_0))
            d_code = expand.x + decoder.x[:, :, E:].sum(axis=0)
            squeeze = squeeze_backward(d_code * (1 - code * code))
            H = s.shape[2]
            encoder = encoder_backward(None, xp.stack([squeeze.x[:, :H], squeeze.x[:, H:]]))
            weight = embedding_backward(encoder.x).params["weight"]
            weight += before_backward(xp.ascontiguousarray(decoder.x[:, :, :E])).params["weight"]
            return Parts.gradients(
                embedding={"weight": weight}, encoder=encoder.params, squeeze=squeeze.params, expand=expand.params,
                decoder=decoder.params, head=head.params,
            )  # fmt: skip

        return value, backward

    def fit(
        self, corpus: Corpus, schedule: Schedule | None = None, observer: Observer | None = None, *,
        resume: bool = False,
    ) -> Point:  # fmt: skip
        """Train on texts; the held-out ones are only measured.

        Args:
            corpus: the texts.
            schedule: how to train; `SCHEDULE` if None.
            observer: what to do beside it.
            resume: go on with the run that was stopped or loaded.

        Returns:
            Where the run stands; its score is the share of held-out texts that are not exactly reconstructed.

        Raises:
            ValueError: an empty text or an unknown character; as `fitting.fit`.
        """
        self._check(corpus.train)
        self.facts = {"longest": max(map(len, corpus.train))}
        schedule = schedule_of(self, schedule, SCHEDULE, resume)
        estimate = corpus.held_out[:: max(1, len(corpus.held_out) // ESTIMATE)]

        def batch_at(step: int) -> tuple[Array, Array]:
            rng = np.random.default_rng([self.seed, step])
            return self._ids([corpus.train[i] for i in rng.choice(len(corpus.train), schedule.batch)])

        data = hashlib.sha256(repr(corpus).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return fit(self, batch_at, lambda: 1 - self.exact(estimate), schedule, observer, data, resume=resume)

    @on_its_device
    def encode(self, texts: Sequence[str]) -> Array:
        """Return the vector of each text, [N, code] of NumPy in (-1, 1).

        Raises:
            ValueError: an empty text, or an unknown character.
        """
        self._check(texts)
        if not texts:
            return np.empty((0, self.code), np.float32)
        (ids, lengths), xp = self._ids(texts), module_of(self.parts.device)
        _, h_n = self.encoder(self.embedding(ids), lengths=lengths)
        return to_host(xp.tanh(self.squeeze(xp.concatenate([h_n[0], h_n[1]], axis=1))))

    @on_its_device
    def decode(self, codes: Array, width: int = 1) -> list[str]:
        """Return the text of each vector [N, code], by beam search; width 1 is the greedy choice.

        Raises:
            ShapeError, TypeError: the vectors do not fit.
        """
        like = self.head.params["weight"]
        validation.beside("codes", codes, (None, self.code), like=like, host=True)
        if len(codes) == 0:
            return []
        codes, xp = brought(codes, like), module_of(self.parts.device)
        state = xp.tanh(self.expand(codes))[None], codes[None]
        found = beam_search(
            self._step, state, np.full(len(codes), self.end), end=self.end, width=width,
            max_length=2 * self.facts["longest"] + 10,
        )  # fmt: skip
        return [
            self.vocabulary.decode(token for token in hypotheses[0].tokens if 0 < token < self.end)
            for hypotheses in found
        ]

    def reconstruct(self, texts: Sequence[str], width: int = 1) -> list[str]:
        """Return what is left of each text after it was one vector."""
        return self.decode(self.encode(texts), width)

    def exact(self, texts: Sequence[str], width: int = 1) -> float:
        """Return the share of texts that are reconstructed exactly."""
        return sum(a == b for a, b in zip(self.reconstruct(texts, width), texts, strict=True)) / len(texts)

    def to(self, device: str) -> Autoencoder:
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
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Autoencoder:
        """Read a model that `save` wrote, wherever it was, onto a device.

        Raises:
            ImportError, RuntimeError: CuPy or the GPU is missing.
            OSError: the file cannot be read.
            ValueError: it is damaged, foreign, or not an autoencoder's.
        """
        return parts.load(path, cls, device)

    def _check(self, texts: Sequence[str]) -> None:
        for text in texts:
            if not text:
                raise ValueError("text: expected at least one character, got ''")
            if unknown := self.vocabulary.unknown(text):
                raise ValueError(f"text: expected known characters, got the unknown {unknown!r} in {text!r}")

    def _ids(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Indices [T, B] of texts, each with its end, padded, and their lengths [B]."""
        lengths = np.array([len(text) + 1 for text in texts])
        ids = np.zeros((int(lengths.max()), len(texts)), np.int64)
        for b, text in enumerate(texts):
            ids[: len(text), b], ids[len(text), b] = self.vocabulary.encode(text), self.end
        return ids, lengths

    def _step(self, state: tuple[Array, Array], tokens: Array) -> tuple[Array, tuple[Array, Array]]:
        h, codes = state
        xp = module_of(self.parts.device)
        s, h = self.decoder(xp.concatenate([self.embedding(tokens[None]), codes], axis=2), h)
        return log_softmax(self.head(s)[0]), (h, codes)


def corpus_of(name: str, texts: Sequence[str], held_out: float = 0.1, seed: int = 0) -> Corpus:
    """Hold out a share of the different texts, chosen at random.

    Raises:
        ValueError: fewer than two different texts.
    """
    different = sorted(set(texts))
    if len(different) < 2:
        raise ValueError(f"{name}: expected at least two different texts, got {len(different)}")
    order = np.random.default_rng(seed).permutation(len(different))
    count = max(1, int(held_out * len(different)))
    return Corpus(name, [different[i] for i in order[count:]], [different[i] for i in order[:count]])


def identifiers(seed: int = 0) -> Corpus:
    """Return the identifiers of 3 to 12 ASCII characters in the source of Python's standard library.

    Raises:
        FileNotFoundError: this Python has no source files.
    """
    source = python_stdlib()
    words = set(
        re.findall(rf"\b[A-Za-z_][A-Za-z0-9_]{{{SHORTEST - 1},{LONGEST - 1}}}\b", source.train + source.held_out)
    )
    return corpus_of(f"identifiers of the {source.name}", sorted(words - set(keyword.kwlist)), seed=seed)


def lines(path: Path, held_out: float = 0.1, seed: int = 0) -> Corpus:
    """Read the different lines of a UTF-8 file that are not blank, without the blanks at their ends.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, or has fewer than two different lines.
    """
    texts = [line.strip() for line in read_text(path).splitlines()]
    return corpus_of(path.name, [text for text in texts if text], held_out, seed)
