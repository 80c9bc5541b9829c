"""A module that has had its usual calls must see at once when one is not: each test changes a single thing."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from tolerance import assert_same_bits
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._dynamo.types import ConvertFrameReturn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch_cases import H, I, leaves, make, random

import fastrnn
import fastrnn.torch
from fastrnn import sequence
from fastrnn.torch import function, modules, steps
from fastrnn.torch.operator import recurrence

T, B = 4, 3
X = random(T, B, I, grad=False)
KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


def used(kind: str, **options: Any) -> tuple[Any, torch.Tensor]:
    """A module after some calls, the last of which was a usual one, and its input."""
    module, x = make(fastrnn.torch, kind, **options), X[0] if "Cell" in kind else X
    with torch.no_grad():
        for _ in range(3):
            module(x)
    assert looks(lambda: module(x)) == 0, "this call is not usual"
    return module, x


def looks(call: Callable[[], Any]) -> int:
    """How many calls of modules inside were looked at anew."""
    found, eager = [], modules._Module._eager
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modules._Module, "_eager", lambda *a: found.append(1) or eager(*a))
        call()
    return len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_usual(kind: str) -> None:
    """Other shapes, states, numbers and gradients are nothing special."""
    module, x = used(kind)
    parts = leaves(module(x))[-1 - ("LSTM" in kind) :]
    hx = tuple(parts) if "LSTM" in kind else parts[0]
    calls = [
        lambda: module(x[..., :2, :]), lambda: module(x.double().float()), lambda: module(x, hx), lambda: module(x),
        lambda: module(x.clone().requires_grad_()), lambda: [p.data.add_(0.1) for p in module.parameters()],
        lambda: module(x),
    ]  # fmt: skip
    assert [looks(call) for call in calls] == [0] * len(calls)
    with torch.enable_grad():
        assert looks(lambda: torch.enable_grad()(module)(x)) == 0


class Seen(TorchDispatchMode):
    """The operators that were called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


NODE = "fastrnn.recurrence"


@pytest.mark.parametrize("kind", KINDS)
def test_a_dispatch_mode_sees_the_call(kind: str) -> None:
    module, x = used(kind)
    with torch.no_grad(), Seen() as seen:
        module(x)
    assert any(NODE in name for name in seen.names)
    assert looks(lambda: module(x)) == 0


def test_a_tracer_sees_the_call() -> None:
    module, x = used("GRU")
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
        assert "fastrnn::recurrence" in str(traced.graph)
        assert torch.equal(traced(2 * x)[0], module(2 * x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_sees_the_call(kind: str) -> None:
    module, x = used(kind)
    nodes = list[Any]()

    def backend(graph: Any, inputs: Any) -> Any:
        nodes.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        want = leaves(module(x))
        for a, b in zip(leaves(torch.compile(module, fullgraph=True, backend=backend)(x)), want, strict=True):
            assert torch.equal(a, b)
    torch._dynamo.reset()
    assert recurrence._opoverload in nodes or any(NODE in str(node) for node in nodes)


def test_a_graph_does_not_hang_on_what_eager_calls_left() -> None:
    module, graphs = make(fastrnn.torch, "GRU"), []
    run = torch.compile(module, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        run(X)
        for _ in range(3):
            assert torch.equal(module(X)[0], run(X)[0])
            module.weight_hh_l0.mul_(1.1)
    torch._dynamo.reset()
    assert len(graphs) == 1


def test_a_call_after_a_graph_break_is_not_traced_into() -> None:
    """Dynamo is offered the module's own frames, and none of those that run the kernels."""
    module, x = used("LSTM")
    files = set[str]()

    def offered(frame: Any, *rest: Any) -> Any:
        files.add(Path(frame.f_code.co_filename).name)
        return ConvertFrameReturn()

    with torch.no_grad():
        before = set_eval_frame(offered)
        try:
            module(x)
        finally:
            set_eval_frame(before)
    assert "modules.py" in files
    assert not files & {"snapshot.py", "sequence.py", "forward.py"}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str) -> None:
    module, x = used(kind)
    fresh = copy.deepcopy(module)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):
                found = [leaves(m(x.to(dtype))) for m in (module, fresh)]
                assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
                if kind.startswith("RNN"):
                    assert found[0][0].dtype == torch.bfloat16
    with torch.no_grad():
        assert leaves(module(x))[0].dtype == torch.float32


def test_the_state_of_one_thread_is_not_anothers() -> None:
    """A module whose last usual call was in another thread, and autocast in one of them."""
    module, x = used("RNN")
    found = list[torch.dtype]()

    @torch.no_grad()
    def run() -> None:
        found.append(module(x)[0].dtype)

    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run()
            thread = Thread(target=run)
            thread.start()
            thread.join()
            run()
        run()
    assert found == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32] * 2


@pytest.mark.parametrize("kind", ["RNN", "LSTMCell"])
def test_transforms(kind: str) -> None:
    module, x = used(kind)
    first = lambda x: leaves(module(x))[0]  # noqa: E731
    with torch.no_grad():
        want = first(2 * x)
    assert torch.allclose(torch.func.vmap(first)(torch.stack([x, 2 * x]))[1], want, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(first(leaf).square().sum(), leaf)
    assert torch.allclose(torch.func.grad(lambda x: first(x).square().sum())(x), expected, atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:  # the transform is of something else, but it is there
        ran, by_steps = [], function.by_steps
        patch.setattr(function, "by_steps", lambda *a: ran.append(1) or by_steps(*a))
        torch.func.vmap(lambda a: a * first(x).sum())(torch.ones(2))
    assert ran


@pytest.mark.parametrize("where", ["x", "h", "weight"])
def test_tangents(where: str) -> None:
    module, x = used("GRU")
    h, name = torch.zeros(1, B, H), "weight_hh_l0"
    ones = {"x": torch.ones_like(x), "h": torch.ones_like(h), "weight": torch.ones(3 * H, H)}[where]
    module.requires_grad_(False)
    with torch.no_grad():
        for _ in range(2):
            module(x, h)
    with forward_ad.dual_level():
        dual = lambda t: forward_ad.make_dual(t, ones)  # noqa: E731
        if where == "weight":
            plain = module._parameters[name]
            module._parameters[name] = torch.nn.Parameter(plain, requires_grad=False)
            module._parameters[name] = dual(plain)
        y = module(dual(x) if where == "x" else x, dual(h) if where == "h" else h + 0.5)[0]
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    assert tangent.abs().max() > 0


class Tagged(torch.Tensor):
    """A class of the user's."""


@pytest.mark.parametrize("where", ["x", "h", "c"])
def test_arguments_that_are_not_plain_tensors(where: str) -> None:
    module, x = used("LSTM")
    given = {"x": x, "h": torch.zeros(1, B, H), "c": torch.zeros(1, B, H)}
    call = lambda: module(given["x"], (given["h"], given["c"]))  # noqa: E731
    name, plain = {"x": "x", "h": "h_0", "c": "c_0"}[where], given[where]
    with torch.no_grad():
        want = call()[0]
        for other, message in (
            (plain.double(), "expected torch.float32"),
            (plain.bfloat16(), "expected torch.float32"),
            (plain.to("meta"), "expected a tensor on cpu"),
            (plain.numpy(), "expected a tensor"),
            ([1.0], "expected a tensor"),
        ):
            given[where] = other
            for _ in range(2):
                with pytest.raises((TypeError, RuntimeError), match=rf"^{name}: {message}"):
                    call()
            given[where] = plain
            assert looks(call) == 0
        given[where] = plain.as_subclass(Tagged)
        assert looks(call) == (where != "x")
        with Seen() if where == "x" else nullcontext():
            assert torch.equal(call()[0].as_subclass(torch.Tensor), want)
        given[where] = torch.nn.Parameter(plain)
        assert looks(call) == 1
        assert torch.equal(call()[0], want)


def test_a_subclass_of_tensor_goes_through_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = used("GRU")
    ran, run = [], modules.operator.run
    monkeypatch.setattr(modules.operator, "run", lambda *a: ran.append(1) or run(*a))
    with torch.no_grad():
        module(x.as_subclass(Tagged))
    assert ran


def test_another_backend_and_back() -> None:
    module, x = used("LSTM")
    backends, forward = [], sequence.forward
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "forward", lambda *a, **k: backends.append(a[1].__name__) or forward(*a, **k))
        for name in (None, "reference", "reference", None, "cpu", "reference"):
            with nullcontext() if name is None else fastrnn.use_backend(name):
                module(x)
    reference, cpu = "fastrnn.reference", "fastrnn.cpu"
    assert backends == [cpu, reference, reference, cpu, cpu, reference]


def test_lengths_and_reset_and_packed_sequences() -> None:
    module, x = used("LSTM")
    lengths, reset = torch.tensor([2, 4, 1]), torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    with torch.no_grad():
        for extra in ({"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
            fresh = copy.deepcopy(module)
            for a, b in zip(leaves(module(x, **extra)), leaves(fresh(x, **extra)), strict=True):
                assert torch.equal(a, b)
            assert not torch.equal(module(x, **extra)[0], module(x)[0])
        sequences = pack_padded_sequence(x, lengths, enforce_sorted=False)
        for batch_first in (False, True, False):
            module.batch_first = batch_first
            found = leaves(module(sequences))
            y, *want = leaves(module(x.transpose(0, 1) if batch_first else x, lengths=lengths))
            packed = pack_padded_sequence(y, lengths, batch_first=batch_first, enforce_sorted=False).data
            for a, b in zip(found, [packed, *want], strict=True):
                assert torch.equal(a, b)


def test_which_parameters_have_gradients() -> None:
    module, x = used("GRU")
    for frozen in (None, "weight_hh_l0", "all", None):
        for name, p in module.named_parameters():
            p.requires_grad_(frozen not in ("all", name))
            p.grad = None
        y = module(x)[0]
        assert y.requires_grad == (frozen != "all")
        if frozen != "all":
            y.sum().backward()
            assert [n for n, p in module.named_parameters() if p.grad is None] == [n for n in (frozen,) if n]
        leaf = x.clone().requires_grad_()
        assert module(leaf)[0].requires_grad
        with torch.no_grad():
            assert not module(leaf)[0].requires_grad
        with torch.inference_mode():
            assert module(leaf)[0].is_inference()
        assert module(leaf)[0].requires_grad


def test_weights_that_look_otherwise() -> None:
    """Class, dtype, shape, strides and place of one weight, and another in its stead."""
    module, x = used("RNN")
    weight = module.weight_hh_l0
    other = torch.nn.Parameter(weight.detach().clone() * 2)
    with torch.no_grad():
        before = module(x)[0]
        for change, message in (
            (weight.data.double(), "weight_hh_l0: expected torch.float32"),
            (weight.data[:, :2], r"weight_hh_l0: expected \[9, 9\]"),
            (weight.data.to("meta"), "weight_hh_l0: expected torch.float32 on the CPU"),
        ):
            module._parameters["weight_hh_l0"] = torch.nn.Parameter(change)
            for _ in range(2):
                with pytest.raises((TypeError, ValueError), match=message):
                    module(x)
            module._parameters["weight_hh_l0"] = weight
            assert torch.equal(module(x)[0], before)
        module._parameters["weight_hh_l0"] = other
        doubled = module(x)[0]
        assert not torch.equal(doubled, before)
        other.data = other.data.t()
        transposed = module(x)[0]
        assert not torch.equal(transposed, doubled)
        assert torch.equal(module(x)[0], transposed)
        other.data = other.data.t()
        assert torch.equal(module(x)[0], doubled)


def test_a_weight_in_the_same_memory_in_another_order_after_each_call() -> None:
    """The strides alone tell, as long as nobody has seen the memory contiguous."""
    module, _ = used("RNN")
    square = module.weight_hh_l0
    with torch.no_grad():
        square.data = square.data.t()
        for _ in range(3):
            fresh = make(fastrnn.torch, "RNN")
            fresh.load_state_dict(module.state_dict())
            assert torch.equal(module(X)[0], fresh(X)[0])
            square.data.mul_(1.1)


def test_parametrizations_come_and_go() -> None:
    module, x = used("GRU")
    with torch.no_grad():
        before = module(x)[0]
        torch.nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
        doubled = module(x)[0]
        assert not torch.equal(before, doubled)
        assert torch.equal(module(x)[0], doubled)
        torch.nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0", leave_parametrized=False)
        assert torch.equal(module(x)[0], before)


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


# What a forward pass leaves for its backward pass


@contextmanager
def tickets() -> Iterator[list[weakref.ref[Any]]]:
    """Weak references to something of each forward pass that autograd keeps by a ticket."""
    found, issue = list[weakref.ref[Any]](), function.issue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "issue", lambda c: found.append(weakref.ref(c[2][0].saved[0][0])) or issue(c))
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_pass_saved_goes_with_its_graph(kind: str) -> None:
    module, x = used(kind)
    with tickets() as found:
        y = leaves(module(x))[0]
        y.sum().backward(retain_graph=True)
        assert [ref() is None for ref in found] == [False]
        y.sum().backward()
        assert [ref() is None for ref in found] == [True], "it is kept as long as the output"
        y = leaves(module(x))[0]
        del y
        assert [ref() is None for ref in found] == [True, True]


def test_a_hook_of_one_kept_tensor() -> None:
    """Whatever it makes of the ticket, the gradients are right; and hooks of all tensors see arrays, no ticket."""
    module, x = used("LSTM", num_layers=2)
    want = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    y = module(x)[0]
    for place in (0, -1):  # x, and what stands for all that the pass saved
        y.grad_fn._raw_saved_tensors[place].register_hooks(lambda t: t.clone(), lambda t: t)
    for a, b in zip(torch.autograd.grad(y.sum(), list(module.parameters())), want, strict=True):
        assert_same_bits("gradient", a.numpy(), b.numpy())
    with tickets() as found, torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        y = module(x)[0]
    assert not found
    assert len(y.grad_fn.saved_tensors) > 1 + len(want) + 1
    for a, b in zip(torch.autograd.grad(y.sum(), list(module.parameters())), want, strict=True):
        assert_same_bits("gradient", a.numpy(), b.numpy())


def test_a_write_to_x_between_forward_and_backward_is_refused() -> None:
    module, x = used("GRU")
    x = x.clone()
    y = module(x)[0]
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_loop_of_torch_operations_after_usual_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of a gradient, whose sizes, lengths and reset are found again from the arguments."""
    module, x = used("LSTM")
    ran, run = [], steps.run
    monkeypatch.setattr(steps, "run", lambda *a: ran.append(1) or run(*a))
    leaf, lengths = x.clone().requires_grad_(), np.array([4, 2, 3])
    (dx,) = torch.autograd.grad(module(leaf, lengths=lengths)[0].square().sum(), leaf, create_graph=True)
    assert ran
    assert dx[3, 1].abs().max() == 0
    (ddx,) = torch.autograd.grad(dx.square().sum(), leaf)
    assert ddx.abs().max() > 0
