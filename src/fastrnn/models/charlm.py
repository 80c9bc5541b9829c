"""Character language model: embedding -> recurrent layer -> linear -> softmax over the next character."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn import GRU, LSTM, RNN, checkpoint, validation
from fastrnn.arrays import Array, fetched, to_host
from fastrnn.models.corpus import Corpus
from fastrnn.models.fitting import write_log
from fastrnn.models.parts import Parts, on_its_device
from fastrnn.models.training import Progress, Run, Settings, Snapshot, Watch
from fastrnn.models.vocabulary import UNKNOWN, Vocabulary
from fastrnn.nn import Embedding, Linear, softmax_cross_entropy
from fastrnn.optim.clipping import clipped, squares

CELLS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
EVALUATION_BATCH, EVALUATION_WINDOW = 64, 128
ESTIMATE_CHARACTERS = 32_768  # of the held-out text, for a loss shown during training


class CharLM:
    """Character language model.

    Args:
        characters: the known characters, each once, or any text that contains them.
        cell: "lstm", "gru" or "rnn".
        hidden: H, width of the recurrent layer.
        layers: number of recurrent layers.
        dropout: between recurrent layers while training, in [0, 1).
        embedding: width of a character's vector.
        seed: of the initial values, the dropout masks and the order of the text; drawn at random if None.
        device: "cpu" or "cuda:N", where to compute; all that is random is the same on both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        ImportError, RuntimeError: CuPy or the GPU is missing.
    """

    def __init__(
        self, characters: str, *, cell: str = "lstm", hidden: int = 256, layers: int = 1, dropout: float = 0.0,
        embedding: int = 64, seed: int | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        validation.choice("cell", cell, tuple(CELLS))
        for name, size in (("hidden", hidden), ("layers", layers), ("embedding", embedding)):
            validation.integer(name, size, 1)
        if dropout and layers == 1:
            raise ValueError(f"dropout: expected 0 with one layer, as it acts between layers, got {dropout}")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.seed = validation.integer("seed", seed, 0, 2**63 - 1)
        self.vocabulary = Vocabulary.of(characters)
        self.arguments = {
            "characters": self.vocabulary.characters, "cell": cell, "hidden": hidden, "layers": layers,
            "dropout": dropout, "embedding": embedding, "seed": self.seed,
        }  # fmt: skip
        seeds = [int(s) for s in np.random.SeedSequence(self.seed).generate_state(3)]
        self.embedding = Embedding(len(self.vocabulary), embedding, seed=seeds[0])
        self.rnn = CELLS[cell](embedding, hidden, layers, dropout=dropout, seed=seeds[1])
        self.head = Linear(hidden, len(self.vocabulary), seed=seeds[2])
        self.parts = Parts(embedding=self.embedding, rnn=self.rnn, head=self.head)
        self._snapshot: Snapshot | None = None  # of the last training run, to resume it
        self.to(device)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The estimates of the held-out loss in the last training run: step, loss, score and lr of each.

        Losses are in bits per character, that of training a running average; empty without a run.
        """
        return [] if self._snapshot is None else list(self._snapshot.description.get("history", []))

    @property
    def params(self) -> dict[str, Array]:
        """All parameters by name, read-only: `embedding.weight`, `rnn.weight_ih_l0`, `head.bias` ..."""
        return self.parts.params

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters by copies of these arrays, all or none.

        Raises:
            ValueError: a name that the model does not have.
            ShapeError, TypeError: an array that does not fit.
        """
        self.parts.update(params)

    def forward(self, ids: Array, targets: Array, state: Any = None) -> tuple[Any, Any, Callable[[], dict[str, Array]]]:
        """Return the loss of one window, the state after it, and the backward pass.

        Args:
            ids: [T, B] int64 of NumPy, wherever the model computes.
            targets: [T, B] int64, the character after each of `ids`; likewise.
            state: of the recurrent layer before the window; zeros if None.

        Returns:
            The mean cross-entropy in nats, the state after the window, and `backward() -> gradients` by name.
        """
        x, embedding_backward = self.embedding.forward(ids)
        y, state, rnn_backward = self.rnn.forward(x, state, training=True)
        logits, head_backward = self.head.forward(y)
        loss, loss_backward = softmax_cross_entropy(logits, targets)

        def backward() -> dict[str, Array]:
            head = head_backward(loss_backward())
            rnn = rnn_backward(head.x)
            embedding = embedding_backward(rnn.x)
            return self.parts.gradients(embedding=embedding.params, rnn=rnn.params, head=head.params)

        return loss, state, backward

    def fit(self, corpus: Corpus, settings: Settings | None = None, watch: Watch | None = None) -> Progress:
        """Train from the present parameters: truncated back-propagation through time, Adam, clipping.

        Args:
            corpus: the text; its training part is read, its held-out part only measured, unless it is empty.
            settings: how to train; `Settings()` if None.
            watch: what to do beside it: report, save, stop early; nothing if None.

        Returns:
            Where the run stands.

        Raises:
            ValueError: the text has no full window for every reader, or the loss is no longer finite.
            OSError: a checkpoint cannot be written.
        """
        text = {"name": corpus.name, "sha256": corpus.fingerprint}
        run = Run(settings or Settings(), self.vocabulary.encode(corpus.train), text, self.seed)
        return self._train(run, corpus, watch or Watch())

    def resume(self, corpus: Corpus, steps: int | None = None, watch: Watch | None = None) -> Progress:
        """Go on with the run that was stopped or that `load` found, to the same bits as if it had not been broken off.

        Args:
            corpus: the same text as before.
            steps: a new total, to which the learning rate falls from here on; None keeps the old one.
            watch: as for `fit`.

        Returns:
            Where the run stands.

        Raises:
            ValueError: as `fit`; also if there is no run to resume, it is complete, or it was on another text.
        """
        if self._snapshot is None:
            raise ValueError("resume: expected a model with a training run, got one without")
        text = self._snapshot.description["text"]
        if text["sha256"] != corpus.fingerprint:
            raise ValueError(
                f"text: expected {text['name']!r} as at the start of the run (SHA-256 {text['sha256'][:12]}), "
                f"got {corpus.name!r} ({corpus.fingerprint[:12]})"
            )
        run = Run.restored(self._snapshot, self.vocabulary.encode(corpus.train), steps, self.parts.device)
        return self._train(run, corpus, watch or Watch())

    @on_its_device
    def bits_per_character(self, text: str, characters: int | None = None) -> float:
        """Return the mean of -log2 p(character | all before it) over a text, the first character left out.

        Up to 64 readers walk through parts of equal length, each from a zero state; the few characters that are left
        over at the end are not scored.

        Args:
            text: at least two characters; unknown ones are scored as the unknown symbol.
            characters: score only about so many, from places spread evenly over the text.

        Raises:
            ValueError: a shorter text.
        """
        if len(text) < 2:
            raise ValueError(f"text: expected at least two characters, got {text!r}")
        ids = self.vocabulary.encode(text)
        readers = max(1, min(EVALUATION_BATCH, len(ids) // EVALUATION_WINDOW))
        length = (len(ids) - 1) // readers
        inputs = ids[: readers * length].reshape(readers, length).T
        targets = ids[1 : readers * length + 1].reshape(readers, length).T
        scored = length if characters is None else min(length, max(1, characters // readers))
        nats: Any = 0.0
        state: Any = None
        for at in range(0, scored, EVALUATION_WINDOW):
            window = slice(at, min(at + EVALUATION_WINDOW, scored))
            y, state = self.rnn(self.embedding(inputs[window]), state)
            nats = nats + softmax_cross_entropy(self.head(y), targets[window])[0] * y.shape[0]
        return fetched([nats])[0] / scored / math.log(2)

    @on_its_device
    def sample(self, start: str = "\n", length: int = 500, temperature: float = 1.0, seed: int | None = None) -> str:
        """Return `start` and `length` characters that the model writes after it.

        Args:
            start: known characters, at least one.
            length: how many to write.
            temperature: 1 follows the model's probabilities, less makes it bolder, 0 takes the likeliest always.
            seed: of the draws.

        Raises:
            ValueError: start is empty or holds characters that the model does not know; temperature is negative.
        """
        if unknown := self.vocabulary.unknown(start):
            raise ValueError(f"start: expected characters of the training text, got the unknown {unknown!r}")
        if not start:
            raise ValueError("start: expected at least one character, got ''")
        if validation.real("temperature", temperature) < 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        validation.integer("length", length, 0)
        rng, ids = np.random.default_rng(seed), list(self.vocabulary.encode(start))
        with self.rnn.stream(batch=1) as stream:
            for i in ids:
                y = stream.step(self.embedding(np.array([i])))
            while len(ids) < len(start) + length:
                ids.append(_draw(to_host(self.head(y)[0]), temperature, rng))
                y = stream.step(self.embedding(np.array(ids[-1:])))
        return self.vocabulary.decode(ids)

    def to(self, device: str) -> CharLM:
        """Move the model to `device`, "cpu" or "cuda:N", where it computes from then on; return it.

        Raises:
            ValueError: no device's name. ImportError: CuPy is missing. RuntimeError: there is no such GPU.
        """
        self.parts.to(device)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, and its training run if there was one, atomically to a safetensors file.

        Raises:
            OSError: the file cannot be written.
        """
        description = {"class": "CharLM", "arguments": self.arguments, "calls": self.rnn.calls, "run": None}
        tensors = self.parts.on_host()
        if self._snapshot is not None:
            description["run"] = self._snapshot.description
            tensors.update(self._snapshot.tensors)
        checkpoint.write(path, tensors, description)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> CharLM:
        """Read a model that `save` wrote, wherever it was, onto a device.

        Raises:
            ImportError, RuntimeError: CuPy or the GPU is missing.
            OSError: the file cannot be read.
            ValueError: it is damaged, foreign, or not a character model's.
        """
        validation.device(device)  # before the file, which may be large
        tensors, description = checkpoint.read(path)
        if description.get("class") != "CharLM":
            raise ValueError(f"{path}: expected a checkpoint of a CharLM, got one of {description.get('class')!r}")
        try:
            model = cls(**description["arguments"])
            model.update({name: tensors.pop(name) for name in model.params})
            model.rnn.calls = validation.integer("calls", description["calls"], 0)
            if description["run"] is not None:
                model._snapshot = Snapshot(description["run"], tensors)
                model._snapshot.check(model.params)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a checkpoint of a CharLM, got a damaged one ({error!r})") from error
        return model.to(device)

    @on_its_device
    def _train(self, run: Run, corpus: Corpus, watch: Watch) -> Progress:
        self._snapshot = None  # until the run stands still again: a step that raises must not be resumed
        stopped = False
        while not stopped and run.step < run.settings.steps:
            self._step(run)
            stopped = watch.stop()
            report = run.step % watch.report_every == 0 or run.step == run.settings.steps
            held_out = None
            if report and corpus.held_out:
                held_out = self.bits_per_character(corpus.held_out, ESTIMATE_CHARACTERS)
                run.note(held_out)
            if report or stopped:
                self._snapshot = run.snapshot()
                if watch.save_to is not None:
                    self.save(watch.save_to)
                if watch.log_to is not None:
                    write_log(watch.log_to, run.history)
            watch.on_progress(run.progress(held_out))
        return run.progress(None)

    def _step(self, run: Run) -> None:
        inputs, targets, state = run.next()
        value, state, backward = self.forward(inputs, targets, state)
        grads = backward()
        loss, *norms = fetched([value, *squares(grads)])  # once a step a GPU is waited for
        bits = loss / math.log(2)
        if not math.isfinite(bits):
            raise ValueError(f"lr: the loss became {bits} at step {run.step + 1}; expected less than {run.settings.lr}")
        grads, _ = clipped(grads, norms, run.settings.clip)
        self.update(run.adam.step(self.params, grads))
        run.done(bits, state)


def _draw(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    """Draw an index from softmax(logits / temperature), never the unknown symbol; the likeliest at temperature 0."""
    z = logits.astype(np.float64)
    z[UNKNOWN] = -np.inf
    if temperature == 0:
        return int(z.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf, as it should
        total = np.exp((z - z.max()) / temperature).cumsum()
    return min(int(np.searchsorted(total, rng.random() * total[-1], side="right")), len(z) - 1)
