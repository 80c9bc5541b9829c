"""fastrnn.torch under torch.compile, torch.export and tracing: one node in a whole graph, with eager mode's numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch.fx.experimental.proxy_tensor import make_fx
from torch_cases import KINDS, H, I, hx_of, kernels_only, leaves, make, random, states

import fastrnn.torch
from fastrnn.torch.spec import Spec

T, B = 5, 3
NODE = torch.ops.fastrnn.recurrence.default
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(f: Any, **options: Any) -> Any:
    return torch.compile(f, fullgraph=True, backend="aot_eager", **options)


def gradients(outputs: Any, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(sum(t.square().sum() for t in leaves(outputs)), inputs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_stays_whole_and_the_numbers_the_same(kind: str, dynamic: bool) -> None:
    options = {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.5}
    module = make(fastrnn.torch, kind, **options)
    run = compiled(module, dynamic=dynamic)
    for batch, steps in ((B, T), (B + 1, T + 2)):
        x, hx = random(batch, steps, I), hx_of(states(kind, options, (batch,), torch.float32))
        inputs = [x, *leaves(hx), *module.parameters()]
        with kernels_only():
            torch.manual_seed(2)
            got = run(x, hx)
            d_got = gradients(got, inputs)
            torch.manual_seed(2)
            want = module(x, hx)
            d_want = gradients(want, inputs)
        for a, b in zip([*leaves(got), *d_got], [*leaves(want), *d_want], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str) -> None:
    cell, x = make(fastrnn.torch, kind), random(B, I)
    run = compiled(lambda x: cell(x, cell(x)))
    for a, b in zip(leaves(run(x)), leaves(cell(x, cell(x))), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(gradients(run(x), [x]), gradients(cell(x, cell(x)), [x]), strict=True):
        assert torch.equal(a, b)


def test_lengths_reset_cells_projection_and_unbatched() -> None:
    module = fastrnn.torch.LSTM(I, H, 2, proj_size=3, return_cells=True)
    x, lengths = random(T, B, I), torch.tensor([2, 0, 5])
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.3
    run = compiled(lambda x, n, r: module(x, lengths=n, reset=r))
    for got, want in ((run(x, lengths, reset), module(x, lengths=lengths, reset=reset)),):
        for a, b in zip(leaves(got), leaves(want), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(gradients(got, [x])[0], gradients(want, [x])[0])
    single = x[:, 0].detach()
    assert torch.equal(compiled(module)(single)[0], module(single)[0])


def test_packed_sequences_compile_too() -> None:
    module, x = fastrnn.torch.GRU(I, H), random(T, B, I, grad=False)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
    assert torch.equal(compiled(lambda p: module(p)[0].data)(packed), module(packed)[0].data)


def test_new_weights_are_seen() -> None:
    module, x = fastrnn.torch.GRU(I, H), random(T, B, I, grad=False)
    run = compiled(module)
    before = run(x)[0]
    module.weight_hh_l0.data.mul_(2)
    assert torch.equal(run(x)[0], module(x)[0])
    assert not torch.equal(before, module(x)[0])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_export(kind: str, strict: bool) -> None:
    module = make(fastrnn.torch, kind, num_layers=2, batch_first=True).eval()
    sizes = ({0: torch.export.Dim("B", min=2), 1: torch.export.Dim("T", min=2)},)
    exported = torch.export.export(module, (random(B, T, I, grad=False),), dynamic_shapes=sizes, strict=strict)
    assert [node.target for node in exported.graph.nodes].count(NODE) == 1
    x = random(7, 9, I, grad=False)
    with kernels_only():
        for a, b in zip(leaves(exported.module()(x)), leaves(module(x)), strict=True):
            assert torch.equal(a, b)


def test_tracing_and_dispatch_modes_see_one_operation() -> None:
    module, x = fastrnn.torch.LSTM(I, H), random(T, B, I, grad=False)
    graph = make_fx(lambda x: module(x)[0])(x)
    assert [node.target for node in graph.graph.nodes].count(NODE) == 1
    assert torch.equal(graph(x + 1), module(x + 1)[0])
    traced = torch.jit.trace(module, (x,))
    assert torch.equal(traced(x + 1)[0], module(x + 1)[0])
    fake = torch._subclasses.FakeTensorMode()
    with fake:
        y, (h, c) = fastrnn.torch.LSTM(I, H, 2, bidirectional=True)(torch.empty(T, B, I))
    assert (y.shape, h.shape, c.shape) == ((T, B, 2 * H), (4, B, H), (4, B, H))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_operator_keeps_torchs_rules(kind: str) -> None:
    """torch.library.opcheck: schema, aliasing, fake shapes and strides, gradients when traced."""
    options = {"proj_size": 3} if kind == "LSTM" else {}
    module = make(fastrnn.torch, kind, num_layers=2, bidirectional=True, batch_first=True, **options)
    given = list(states(kind, {"num_layers": 2, "bidirectional": True, **options}, (B,), torch.float32).values())
    proj_size, plain = options.get("proj_size", 0), (False,) * 5 + (0.0,) * 3 + (False,)
    constants = Spec(kind, I, H, 2, True, True, True, proj_size, False, kind == "LSTM", *plain)
    arguments = (
        random(B, T, I), given[0], given[1] if kind == "LSTM" else None, list(module.parameters()), None, None, None,
        0.0, *constants,
    )  # fmt: skip
    torch.library.opcheck(NODE, arguments)


@pytest.mark.parametrize(("name", "x_dtype", "h_dtype"), [("x", torch.float64, None), ("h_0", None, torch.float64)])
def test_the_operator_checks_dtypes_itself(name: str, x_dtype: torch.dtype | None, h_dtype: torch.dtype | None) -> None:
    """An exported program calls it without the module; shapes that were checked before must not hide a dtype."""
    module, x, h = fastrnn.torch.GRU(I, H), random(T, B, I, grad=False), torch.zeros(1, B, H)
    rest = list(module.parameters()), None, None, None, 0.0, *module._settings().spec
    assert torch.equal(NODE(x, h, None, *rest)[0], module(x, h)[0])
    with pytest.raises(TypeError, match=rf"^{name}: expected torch.float32"):
        NODE(x.to(x_dtype or x.dtype), h.to(h_dtype or h.dtype), None, *rest)


def test_what_a_traced_graph_cannot_have_is_refused_by_name() -> None:
    module, x = fastrnn.torch.GRU(I, H).requires_grad_(False), random(T, B, I, grad=False)

    def tangent(x: torch.Tensor) -> Any:
        return torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))[1]

    def dual(f: Any, x: torch.Tensor) -> Any:
        with torch.autograd.forward_ad.dual_level():
            y = f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))[0]
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    for f in (lambda: compiled(tangent)(x), lambda: dual(compiled(module), x)):
        with pytest.raises(Exception, match=r"expected no torch.func transform and no forward-mode tangents"):
            f()
        torch._dynamo.reset()
    for f, want in (
        (lambda: torch.compile(tangent, backend="aot_eager")(x), tangent(x)),
        (lambda: dual(torch.compile(module, backend="aot_eager"), x), tangent(x)),
    ):
        assert torch.allclose(f(), want)
        torch._dynamo.reset()
    exported = torch.export.export(module, (x,)).module()
    with pytest.raises(NotImplementedError, match="forward-mode tangents"):
        dual(exported, x)
    y = compiled(module)(x.requires_grad_())[0]
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum(), x)
