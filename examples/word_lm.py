"""A word-level language model, with torch.nn.LSTM or fastrnn.torch.LSTM by one flag, from the same seed.

    python examples/word_lm.py --lstm torch
    python examples/word_lm.py --lstm fastrnn

Embedding, an LSTM of two layers with dropout, a softmax with the embedding's own weights, truncated back-propagation
through time, clipping; the text is the source of the Python standard library. Both have the same initial values and
read the same words in the same order, so without dropout the losses are the same up to rounding. With dropout they are
alike: the rates are the same, the masks are not, since torch draws every element of a mask between its layers from its
generator, and fastrnn one number a call.
"""

import argparse
import collections
import math
import re
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear

import fastrnn.torch
from fastrnn.models.corpus import python_stdlib
from fastrnn.models.streams import Streams

LSTMS = {"torch": torch.nn.LSTM, "fastrnn": fastrnn.torch.LSTM}


def words_of(text):
    """Names, numbers, single signs and ends of lines."""
    return re.findall(r"\w+|[^\w\s]|\n", text)


def numbered(words, count):
    """The `count` - 1 commonest words and their numbers from 1; 0 stands for all others."""
    common = collections.Counter(words).most_common(count - 1)
    return {word: number for number, (word, _) in enumerate(common, 1)}


class WordModel(torch.nn.Module):
    """What word comes next."""

    def __init__(self, lstm, words, hidden, layers, dropout):
        super().__init__()
        self.embedding = torch.nn.Embedding(words, hidden)
        self.lstm = LSTMS[lstm](hidden, hidden, layers, dropout=dropout)
        self.dropout = torch.nn.Dropout(dropout)
        self.bias = torch.nn.Parameter(torch.zeros(words))
        torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, ids, state):
        """Logits [T, B, V] for ids [T, B], and the state after them."""
        y, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return linear(self.dropout(y), self.embedding.weight, self.bias), state


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--lstm", choices=list(LSTMS), default="fastrnn")
    for name, default in (
        ("steps", 1000), ("batch", 20), ("window", 35), ("hidden", 256), ("layers", 2), ("words", 8000), ("seed", 0),
        ("report-every", 50), ("characters", 4_000_000),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("dropout", 0.2), ("lr", 5.0), ("clip", 0.25)):
        parser.add_argument(f"--{name}", type=float, default=default)
    return parser.parse_args(words)


def train(options):
    """Train, and return the loss of every step and the words per second of every report."""
    words = words_of(python_stdlib(options.characters).train)
    numbers = numbered(words, options.words)
    ids = np.array([numbers.get(word, 0) for word in words])
    streams = Streams(ids, options.batch, options.window, options.seed)
    torch.manual_seed(options.seed)
    model = WordModel(options.lstm, options.words, options.hidden, options.layers, options.dropout)
    optimizer, losses, speeds, state = torch.optim.SGD(model.parameters(), lr=options.lr), [], [], None
    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        inputs, targets, fresh = streams.next()
        state = None if fresh else tuple(part.detach() for part in state)  # gradients end at the window
        logits, state = model(torch.from_numpy(inputs.copy()), state)
        loss = cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.copy()).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        losses.append(loss.item())
        if step % options.report_every == 0:
            now, recent = time.perf_counter(), losses[-options.report_every :]
            speeds.append(options.report_every * inputs.size / (now - start))
            mean, start = sum(recent) / len(recent), now
            print(
                f"step {step:5}: loss {mean:.4f}, perplexity {math.exp(mean):.1f}, {speeds[-1]:.0f} words/s", flush=True
            )
    return losses, speeds


if __name__ == "__main__":
    train(arguments())
