"""Gradients of fastrnn.torch beyond the plain backward pass: each mode by value, or refused by name."""

import gc
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from tolerance import assert_close, assert_same_bits, rounding
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint
from torch_cases import KINDS, H, I, by_steps, hx_of, kernels_only, leaves, make, random, states, twins

import fastrnn.torch
from fastrnn.torch import steps

T, B = 3, 2
F64 = torch.float64
SMALL: dict[str, dict[str, Any]] = {
    "stacked-bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch-first-no-bias": {"batch_first": True, "bias": False},
    "dropout": {"num_layers": 3, "dropout": 0.5},
}
EXTRA: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "LSTM": [("projection", {"proj_size": 2, "num_layers": 2}), ("cells", {"return_cells": True, "num_layers": 2})],
    "GRU": [("reset-before", {"reset_after": False})],
    "RNN": [("identity", {"nonlinearity": "identity"})],
}
CASES = [
    pytest.param(kind, options, id=f"{kind}-{name}")
    for kind in ("RNN", "LSTM", "GRU")
    for name, options in [*SMALL.items(), *EXTRA[kind]]
]
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    # torch's own, at the first tangent of a process, whichever test that is
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


def small(kind: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    return getattr(fastrnn.torch, kind)(2, 3, dtype=F64, **options)


def function_of(module: Any, **call: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The module as a function of x and its parameters, with the same dropout masks each time; and arguments."""
    names = [name for name, _ in module.named_parameters()]
    shape = (B, T, 2) if module.batch_first else (T, B, 2)

    def f(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(4)
        return tuple(leaves(functional_call(module, dict(zip(names, weights, strict=True)), (x,), call)))

    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    return f, (random(*shape, dtype=F64), *weights)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_gradcheck_in_every_mode(kind: str, options: dict[str, Any]) -> None:
    f, arguments = function_of(small(kind, options))
    assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_gradgradcheck(kind: str, options: dict[str, Any]) -> None:
    f, arguments = function_of(small(kind, options))
    assert torch.autograd.gradgradcheck(f, arguments, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradcheck_with_lengths_reset_and_states(kind: str) -> None:
    module = small(kind, {"num_layers": 2, "bidirectional": True})
    lengths, reset = torch.tensor([1, 3]), torch.tensor([[False, True], [True, False], [False, True]])
    hx = tuple(random(4, B, 3, dtype=F64, seed=k) for k in (1, 2)[: 1 + (kind == "LSTM")])

    def f(x: torch.Tensor, *hx: torch.Tensor) -> Any:
        return tuple(leaves(module(x, hx if len(hx) == 2 else hx[0], lengths=lengths, reset=reset)))

    arguments = (random(T, B, 2, dtype=F64), *hx)
    assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, arguments, fast_mode=True)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_in_every_mode(kind: str) -> None:
    cell = getattr(fastrnn.torch, kind)(2, 3, dtype=F64)
    names = [name for name, _ in cell.named_parameters()]

    def f(x: torch.Tensor, *weights: torch.Tensor) -> Any:
        parameters = dict(zip(names, weights, strict=True))
        state = functional_call(cell, parameters, (x,))
        return tuple(leaves(functional_call(cell, parameters, (x, state))))

    for shape in ((B, 2), (2,)):
        arguments = (random(*shape, dtype=F64), *cell.parameters())
        assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, arguments, fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "options"), [*[(kind, {}) for kind in KINDS], ("GRU", {"reset_after": False})], ids=str
)
def test_the_loop_of_torch_operations_is_the_kernels(kind: str, options: dict[str, Any]) -> None:
    """Also where dropout, lengths and padding full of NaN are concerned."""
    module = make(fastrnn.torch, kind, num_layers=3, bidirectional=True, dropout=0.4, dtype=F64, **options)
    x, lengths = random(5, 4, I, dtype=F64), torch.tensor([2, 5, 0, 4])
    with torch.no_grad():
        x[3:, 0] = float("nan")
    hx = hx_of(states(kind, {"num_layers": 3, "bidirectional": True}, (4,), F64))

    def run() -> list[torch.Tensor]:
        torch.manual_seed(9)
        return leaves(module(x, hx, lengths=lengths))

    with kernels_only():
        want = run()
        d_want = torch.autograd.grad(sum(t.sum() for t in want), [x, *module.parameters()])
    with by_steps():
        got = run()
        d_got = torch.autograd.grad(sum(t.sum() for t in got), [x, *module.parameters()])
    for a, b in zip([*got, *d_got], [*want, *d_want], strict=True):
        assert_close("value", a.detach().numpy(), b.detach().numpy(), rounding("float64", 3 * 5, 6 * H))


# Against torch's own modules, mode by mode


def pair(kind: str) -> tuple[Any, Any, torch.Tensor]:
    ours, theirs = twins(kind, F64, num_layers=2)
    return ours, theirs, random(T, B, I, dtype=F64)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert_close("value", got.detach().numpy(), want.detach().numpy(), rounding("float64", 6 * T, 2 * H))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tangents_by_value(kind: str, frozen: bool) -> None:
    ours, theirs, x = pair(kind)
    v, found = random(T, B, I, dtype=F64, seed=3, grad=False), []
    for module in (ours, theirs):
        module.requires_grad_(not frozen)
        with forward_ad.dual_level():
            y, _ = module(forward_ad.make_dual(x.detach(), v))
            found.append(forward_ad.unpack_dual(y).tangent)
    assert found[1].abs().max() > 0
    close(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_tangents_of_weights_and_of_gradients(kind: str) -> None:
    ours, theirs, x = pair(kind)
    found = []
    for module in (ours, theirs):
        weights = {n: p.detach() for n, p in module.named_parameters()}
        ones = {n: torch.ones_like(p) for n, p in weights.items()}
        found.append(
            torch.func.jvp(lambda w, m=module: functional_call(m, w, (x.detach(),))[0], (weights,), (ones,))[1]
        )
        y = module(x)[0]
        with forward_ad.dual_level():  # a gradient that arrives with a tangent must leave with one
            dual = forward_ad.make_dual(torch.ones_like(y), torch.full_like(y, 2.0))
            dx = torch.autograd.grad(y, x, dual)[0]
            found.append(forward_ad.unpack_dual(dx).tangent)
    close(found[0], found[2])
    assert found[1].abs().max() > 0
    close(found[1], found[3])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func(kind: str) -> None:
    ours, theirs, x = pair(kind)
    x = x.detach()
    loss = lambda module: lambda x: module(x)[0].square().sum()  # noqa: E731
    close(torch.func.grad(loss(ours))(x), torch.func.grad(loss(theirs))(x))
    close(torch.func.vmap(lambda x: ours(x)[0])(torch.stack([x, 2 * x]))[1], theirs(2 * x)[0])
    parts = torch.stack([x, -x, 3 * x])
    per_sample = torch.func.vmap(torch.func.grad(loss(ours)))(parts)
    for got, part in zip(per_sample, parts, strict=True):
        leaf = part.clone().requires_grad_()
        close(got, torch.autograd.grad(loss(theirs)(leaf), leaf)[0])
    row = lambda module: lambda x0: module(torch.cat([x0, x[1:]]))[0][-1, 0, :2].square().sum()  # noqa: E731
    close(torch.func.hessian(row(ours))(x[:1]), torch.autograd.functional.hessian(row(theirs), x[:1]))


def test_ensembles_by_vmap_over_weights() -> None:
    modules = [fastrnn.torch.GRU(I, H, dtype=F64) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    x = random(T, B, I, dtype=F64, grad=False)
    y = torch.func.vmap(lambda p, b: functional_call(modules[0], (p, b), (x,))[0])(parameters, buffers)
    for got, module in zip(y, modules, strict=True):
        close(got, module(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_hessians_and_gradient_penalties(kind: str) -> None:
    ours, theirs, x = pair(kind)
    found = []
    for module in (ours, theirs):
        (dx,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
    for got, want in zip(*found, strict=True):
        close(got, want)


def test_x_that_depends_on_the_state_and_the_weights() -> None:
    """Each gradient is through one argument alone, also when the arguments hang together."""
    ours, theirs, _ = pair("GRU")
    for_each = []
    for module in (ours, theirs):
        h = random(2, B, H, dtype=F64)
        x = h[:1, :, :I] * module.weight_ih_l0[:I].sum()
        (dh,) = torch.autograd.grad(module(x, h)[0].square().sum(), h, create_graph=True)
        for_each.append((dh, *torch.autograd.grad(dh.square().sum(), [h, *module.parameters()])))
    for got, want in zip(*for_each, strict=True):
        close(got, want)


# The backward pass itself


def test_backward_is_pure() -> None:
    module, x = fastrnn.torch.LSTM(I, H, 2, dropout=0.5), random(T, B, I)
    y = module(x)[0]
    first = torch.autograd.grad(y.sum(), [x, *module.parameters()], retain_graph=True)
    again = torch.autograd.grad(y.sum(), [x, *module.parameters()], retain_graph=True)
    for a, b in zip(first, again, strict=True):
        assert_same_bits("gradient", a.numpy(), b.numpy())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_backward_needs_is_autograds_to_keep_and_to_free(backend: str) -> None:
    module, x = fastrnn.torch.LSTM(I, H, 2, bidirectional=True, dropout=0.5), random(T, B, I)
    with fastrnn.use_backend(backend):
        torch.manual_seed(0)
        y = module(x)[0]
        want = torch.autograd.grad(y.sum(), [x, *module.parameters()], retain_graph=True)
        sizes = []

        def pack(t: torch.Tensor) -> torch.Tensor:
            sizes.append(t.numel())
            return t.clone()

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            kept = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
        own = sum(t.numel() for t in (x, *module.parameters()))
        assert sum(sizes) - own > 4 * T * B * 4 * H, "the gates are not among the saved tensors"
        recomputed = torch.autograd.grad(
            checkpoint(lambda x: torch.manual_seed(0) and module(x)[0], x, use_reentrant=False).sum(),
            [x, *module.parameters()],
        )
    for a, b, c in zip(want, kept, recomputed, strict=True):
        assert_same_bits("with hooks", b.numpy(), a.numpy())
        assert_same_bits("checkpoint", c.numpy(), a.numpy())
    y.sum().backward()
    with pytest.raises(RuntimeError, match=r"second time|freed"):
        _ = y.grad_fn.saved_tensors


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    module, x = fastrnn.torch.GRU(I, H), random(T, B, I, grad=False)
    module.weight_ih_l0.requires_grad_(False)
    module(x)[0].sum().backward()
    assert [p.grad is None for p in module.parameters()] == [True, False, False, False]
    module.requires_grad_(False)
    assert not module(x)[0].requires_grad
    h = random(1, B, H)
    final = module(x, h)[1]
    assert torch.autograd.grad(final.sum(), h)[0].shape == h.shape
    with torch.inference_mode():
        assert torch.equal(module(x, h)[1], final)


def test_gradients_in_eval_mode() -> None:
    module, x = fastrnn.torch.LSTM(I, H, 2, dropout=0.5).eval(), random(T, B, I)
    with kernels_only():
        a, b = (torch.autograd.grad(module(x)[0].sum(), x)[0] for _ in range(2))
    assert torch.equal(a, b)
    assert a.abs().max() > 0


def test_the_loop_knows_every_cell_and_every_option_of_a_network() -> None:
    """A new cell, a new field of the core's network or a new weight must reach the loop of torch operations."""
    from fastrnn.recurrence import Weights
    from fastrnn.sequence import Network
    from fastrnn.torch.spec import KINDS as MODES

    assert set(steps.CELLS) == set(MODES)
    assert Network._fields == (
        "cell", "hidden_size", "proj_size", "num_layers", "num_directions", "dropout", "recurrent_dropout", "zoneout",
        "seed", "recompute",
    )  # fmt: skip
    assert Weights._fields == (
        "ih", "hh", "b_ih", "b_hh", "hr", "p", "ch", "norm_ih", "norm_hh", "norm_c", "norm_c_bias",
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"save": "recompute"}, {"dropout": 0.5}, {"zoneout": 0.2}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_what_a_step_saved_is_freed_at_once(kind: str, options: dict[str, Any]) -> None:
    """Reference cycles would hold it until the garbage collector happens to run."""
    module = make(fastrnn.torch, kind, num_layers=2, **options)
    x = torch.randn(5, 2, I, requires_grad=True)

    def step() -> None:
        y, state = module(x, lengths=[5, 3])
        (y.sum() + sum(s.sum() for s in (state if isinstance(state, tuple) else (state,)))).backward()

    for _ in range(3):  # what compiling and the first steps leave is another matter
        step()
    gc.collect()
    gc.disable()
    try:
        step()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_tangents_under_autocast_with_lengths_and_reset(kind: str) -> None:
    """In float32, as without it; lengths and reset are tensors that the transform knows nothing of."""
    module, lengths = getattr(fastrnn.torch, kind)(I, H), torch.tensor([2, 3])
    reset = torch.tensor([[False, True], [True, False], [False, True]])
    x, d = random(T, B, I, grad=False), random(T, B, I, seed=4, grad=False)

    def tangent() -> torch.Tensor:
        tangent: torch.Tensor = torch.func.jvp(lambda x: module(x, None, lengths, reset)[0], (x,), (d,))[1]
        return tangent.detach()

    want = tangent()
    weight = random(T, B, H, seed=5, grad=False)
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(module(leaf, None, lengths, reset)[0], leaf, weight)
    assert abs((want * weight).sum() - (dx * d).sum()) <= rounding("float32", 3 * T, 6 * H) * (dx * d).abs().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = tangent()
    assert torch.equal(got, want.to(got.dtype))  # RNN's outputs are autocast's dtype, as torch's
