"""replace and restore: the same objects with other kernels, and back; what cannot be swapped is named."""

import copy
import pickle
from typing import Any

import pytest
import torch
from tolerance import assert_close, rounding
from torch_cases import kernels_only

import fastrnn.torch

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Own(torch.nn.LSTM):
    """Somebody's subclass."""


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.encoder = torch.nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
        self.layers = torch.nn.ModuleList([torch.nn.GRU(12, 6, batch_first=True), torch.nn.RNN(6, 6, batch_first=True)])
        self.cells = torch.nn.ModuleDict(
            {
                "a": torch.nn.LSTMCell(6, 6),
                "b": torch.nn.GRUCell(6, 6),
                "c": torch.nn.RNNCell(6, 6, nonlinearity="relu"),
            }
        )
        self.same = self.encoder
        self.head = torch.nn.Linear(6, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y = self.encoder(self.embed(tokens))[0]
        for layer in self.layers:
            y = layer(y)[0]
        h = y[:, -1]
        return self.head(self.cells["c"](self.cells["b"](self.cells["a"](h)[0], h)))


NAMES = ["encoder", "layers.0", "layers.1", "cells.a", "cells.b", "cells.c"]
TOKENS = torch.arange(40).reshape(4, 10) * 7 % 11


def losses(model: torch.nn.Module, steps: int = 5) -> torch.Tensor:
    optimizer, found = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(TOKENS), TOKENS[:, 0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def test_a_model_trains_to_the_same_losses() -> None:
    torch.manual_seed(0)
    theirs = Model().double()
    ours = copy.deepcopy(theirs)
    want = losses(theirs)
    assert fastrnn.torch.replace(ours).swapped == NAMES
    with kernels_only():
        got = losses(ours)
    assert_close("losses", got.numpy(), want.numpy(), rounding("float64", 5 * 5 * 10, 12))
    assert want[-1] < want[0]


def test_everything_else_stays() -> None:
    model = Model().eval()
    before = dict(model.named_modules())
    parameters, names, shown = list(model.parameters()), list(model.state_dict()), repr(model)
    seen: list[str] = []
    model.encoder.register_forward_hook(lambda *a: seen.append("hook"))
    report = fastrnn.torch.replace(model)
    assert report.swapped == NAMES
    assert report.kept == {}
    assert dict(model.named_modules()) == before, "other objects"
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.same is model.encoder
    assert type(model.encoder) is fastrnn.torch.LSTM
    assert not model.encoder.training
    assert (list(model.state_dict()), repr(model)) == (names, shown)
    with kernels_only():
        model(TOKENS)
    assert seen == ["hook"]
    assert fastrnn.torch.replace(model) == fastrnn.torch.Report()


def test_restore_undoes_it_also_on_copies() -> None:
    model = Model()
    want = model(TOKENS)
    fastrnn.torch.replace(model)
    model(TOKENS)
    model.extra = fastrnn.torch.GRU(3, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert fastrnn.torch.restore(other).swapped == NAMES
        kinds = [type(dict(other.named_modules())[name]) for name in NAMES]
        nn = torch.nn
        assert kinds == [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell]
        assert type(other.extra) is fastrnn.torch.GRU, "was fastrnn's from the start"
        assert torch.equal(other(TOKENS), want)
        assert set(other.encoder.__dict__) == set(Model().encoder.__dict__)
        assert fastrnn.torch.restore(other) == fastrnn.torch.Report()


def test_a_bare_module() -> None:
    module = torch.nn.GRU(3, 4)
    assert fastrnn.torch.replace(module).swapped == [""]
    assert type(module) is fastrnn.torch.GRU
    assert fastrnn.torch.restore(module).swapped == [""]


def overridden() -> Any:
    module = torch.nn.GRU(3, 4)
    module.forward = lambda x: x
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_left_alone_and_why() -> None:
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(3, 4), "weight_hh_l0")
    given = {
        "own": (Own(3, 4), "subclass of torch.nn.LSTM"),
        "normed": (parametrized, "parametrized"),
        "narrow": (torch.nn.GRU(3, 4, dtype=torch.bfloat16), "bfloat16"),
        "patched": (overridden(), "overridden"),
        "scripted": (torch.jit.script(torch.nn.GRU(3, 4)), "TorchScript"),
    }
    model = torch.nn.ModuleDict({name: module for name, (module, _) in given.items()})
    model["linear"] = torch.nn.Linear(3, 3)
    kinds = {name: type(module) for name, module in model.items()}
    report = fastrnn.torch.replace(model)
    assert report.swapped == []
    assert list(report.kept) == list(given)
    for name, (_, reason) in given.items():
        assert reason in report.kept[name]
        assert f"kept {name}: " in str(report)
    assert {name: type(module) for name, module in model.items()} == kinds


def test_restore_says_what_it_cannot_undo() -> None:
    module = torch.nn.GRU(3, 4)
    fastrnn.torch.replace(module)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with kernels_only():
        module(torch.ones(2, 1, 3))
    assert "parametrization" in fastrnn.torch.restore(module).kept[""]
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert fastrnn.torch.restore(module).swapped == [""]
    assert type(module) is torch.nn.GRU
