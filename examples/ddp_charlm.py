"""A character model on several processes: PyTorch's DistributedDataParallel around fastrnn.torch, gloo on the CPU.

    torchrun --nproc-per-node 2 examples/ddp_charlm.py

Each process reads its own columns of the batch, and the gradients are averaged, so a step is the same as that of one
process with the whole batch: `python examples/ddp_charlm.py` prints the same losses.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastrnn.torch
from fastrnn.models.corpus import python_stdlib
from fastrnn.models.streams import Streams
from fastrnn.models.vocabulary import Vocabulary


class CharModel(torch.nn.Module):
    """What comes next, for every character: embedding, LSTM, linear."""

    def __init__(self, symbols, hidden, layers):
        super().__init__()
        self.embedding = torch.nn.Embedding(symbols, hidden)
        self.lstm = fastrnn.torch.LSTM(hidden, hidden, layers)
        self.head = torch.nn.Linear(hidden, symbols)

    def forward(self, ids, state):
        """Logits [T, B, V] for ids [T, B], and the state after them."""
        y, state = self.lstm(self.embedding(ids), state)
        return self.head(y), state


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("steps", 200), ("batch", 32), ("window", 64), ("hidden", 128), ("layers", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--characters", type=int, default=2_000_000, help="of the standard library's source text")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--report-every", type=int, default=20)
    return parser.parse_args(words)


def train(options):
    """Train, and return the model with the gradients of its last step, and the loss of every step."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if options.batch % processes:
        raise ValueError(f"batch: expected a multiple of the {processes} processes, got {options.batch}")
    text = python_stdlib(options.characters).train
    vocabulary = Vocabulary.of(text)
    streams = Streams(vocabulary.encode(text), options.batch, options.window, options.seed)
    mine = slice(rank * options.batch // processes, (rank + 1) * options.batch // processes)

    torch.manual_seed(options.seed)
    model = CharModel(len(vocabulary), options.hidden, options.layers)
    network = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer, losses, state = torch.optim.Adam(model.parameters(), lr=options.lr), [], None
    for step in range(1, options.steps + 1):
        inputs, targets, fresh = streams.next()
        inputs, targets = torch.from_numpy(inputs[:, mine].copy()), torch.from_numpy(targets[:, mine].copy())
        state = None if fresh else tuple(part.detach() for part in state)
        logits, state = network(inputs, state)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # here the processes average their gradients
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach() / processes
        if dist.is_initialized():
            dist.all_reduce(mean)
        losses.append(mean.item())
        if rank == 0 and step % options.report_every == 0:
            print(f"step {step:5}: {losses[-1] / torch.log(torch.tensor(2.0)):.3f} bits per character", flush=True)
    return model, losses


if __name__ == "__main__":
    given = arguments()
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")
    train(given)
    if dist.is_initialized():
        dist.destroy_process_group()
