"""The core's options in fastrnn.torch: against the core's layer by value, in every mode of torch's gradients."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from tolerance import CANCELLATION, EPS, assert_close, assert_same_bits, error, rounding
from torch.func import functional_call
from torch_cases import H, I, by_steps, kernels_only, leaves, random

import fastrnn
import fastrnn.torch
from fastrnn.torch.spec import Spec

T, B = 6, 5
F64 = torch.float64
NODE = torch.ops.fastrnn.recurrence.default
MASK = np.random.default_rng(3).random((H, H)) < 0.6
ALL: dict[str, dict[str, Any]] = {
    "diagonal": {"recurrent": "diagonal"},
    "mask": {"recurrent": MASK},
    "layer-norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "recurrent-dropout": {"recurrent_dropout": 0.4},
    "recompute": {"save": "recompute"},
    "everything": {
        "recurrent": "diagonal", "layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4, "save": "recompute",
        "bias": False,
    },
}  # fmt: skip
OF_LSTM: dict[str, dict[str, Any]] = {
    "peephole": {"peephole": True},
    "dense": {"peephole": "dense"},
    "coupled": {"coupled": True},
    "coupled-peephole": {"coupled": True, "peephole": True},
    "coupled-dense-norm": {"coupled": True, "peephole": "dense", "layer_norm": True},
    "zoneout-of-each": {"zoneout": (0.1, 0.5)},
    "projection": {"proj_size": 3, "zoneout": (0.0, 0.4), "recurrent_dropout": 0.2, "layer_norm": True},
    "projection-recompute": {"proj_size": 3, "save": "recompute"},
    "cells": {"return_cells": True, "zoneout": 0.3, "peephole": True, "save": "recompute"},
}
CASES = [
    pytest.param(kind, options | extra, id=f"{kind}{'-before' * bool(extra)}-{name}")
    for kind, extra in (("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("RNN", {"nonlinearity": "relu"}))
    for name, options in (ALL | OF_LSTM if kind == "LSTM" else ALL).items()
]
# Gradchecks that are not left to the nightly run: each option is in one of them.
SHORT = {"LSTM-cells", "LSTM-coupled-dense-norm", "GRU-before-everything", "RNN-mask"}
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


def build(kind: str, options: dict[str, Any], *sizes: int, **more: Any) -> Any:
    """A module whose gains are not one, which would hide a gain that is left out."""
    torch.manual_seed(1)
    module = getattr(fastrnn.torch, kind)(*(sizes or (I, H)), dtype=F64, **options, **more)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("norm"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def core_of(kind: str, options: dict[str, Any], module: Any, **more: Any) -> Any:
    """The core's layer with the same options and parameters."""
    options = {name: value for name, value in options.items() if name != "return_cells"}
    layer = getattr(fastrnn, kind)(module.input_size, module.hidden_size, dtype="float64", **options, **more)
    layer.load_state_dict(module.state_dict())
    return layer


def arrays(value: Any) -> list[np.ndarray]:
    return [value] if isinstance(value, np.ndarray) else [a for part in value for a in arrays(part)]


SHAPE = {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True}


def by_module(module: Any, training: bool) -> list[torch.Tensor]:
    """Outputs and the gradients of x, the states and the parameters, with lengths, resets and NaN as padding."""
    lengths, reset = torch.tensor([2, 6, 0, 5, 6]), torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < 0.2
    x = random(B, T, I, dtype=F64)
    with torch.no_grad():
        x[0, 2:] = float("nan")
    widths = (module.proj_size or H, H)[: 1 + (module.mode == "LSTM")]
    hx = tuple(random(4, B, width, dtype=F64, seed=k) for k, width in enumerate(widths))
    torch.manual_seed(5)
    module.train(training)
    outputs = leaves(module(x, hx if len(hx) == 2 else hx[0], lengths=lengths, reset=reset))
    d_outputs = [random(*o.shape, dtype=F64, seed=k, grad=False) for k, o in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, [x, *hx, *module.parameters()], d_outputs)]


def by_core(
    kind: str, options: dict[str, Any], module: Any, training: bool, rounded: Callable[[Any], Any] = lambda a: a
) -> list[np.ndarray]:
    """The same from the core's layer, whose masks have the seed that the module's call drew; inputs rounded."""
    torch.manual_seed(5)
    layer = core_of(kind, options, module, seed=int(torch.randint(2**63 - 1, (1,))), **SHAPE)
    layer.update({name: rounded(value) for name, value in layer.params.items()})
    lengths, reset = np.array([2, 6, 0, 5, 6]), torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < 0.2
    x = random(B, T, I, dtype=F64, grad=False).numpy()
    x[0, 2:] = np.nan
    widths = (module.proj_size or H, H)[: 1 + (module.mode == "LSTM")]
    hx = tuple(random(4, B, width, dtype=F64, seed=k, grad=False).numpy() for k, width in enumerate(widths))
    x, hx = rounded(x), tuple(map(rounded, hx))
    result = layer.forward(x, hx if len(hx) == 2 else hx[0], lengths=lengths, reset=reset.numpy(), training=training)
    outputs = arrays(result[:2]) + (result.cells if module.return_cells else [])
    given = [random(*o.shape, dtype=F64, seed=k, grad=False).numpy() for k, o in enumerate(outputs)]
    of_state, of_cells = given[1 : 1 + len(hx)], given[1 + len(hx) :]
    grads = result.backward(given[0], tuple(of_state) if len(hx) == 2 else of_state[0], of_cells or None)
    return [*outputs, grads.x, *arrays(grads.state), *grads.params.values()]


def assert_near(
    kind: str, options: dict[str, Any], module: Any, training: bool, got: list[torch.Tensor], want: list[np.ndarray]
) -> None:
    """Assert every array; where terms cancel, as inside layer normalisation, what rounded inputs do is allowed for."""
    allowed = [rounding("float64", 2 * T, 6 * H)] * len(want)
    if any(error(g.detach().numpy(), w) > a for g, w, a in zip(got, want, allowed, strict=True)):
        rng = np.random.default_rng(0)

        def rounded(value: np.ndarray) -> np.ndarray:
            return value * (1 + EPS["float64"] * rng.choice([-0.5, 0.5], value.shape))

        for _ in range(4):
            other = by_core(kind, options, module, training, rounded)
            errors = [CANCELLATION * error(o, w) for o, w in zip(other, want, strict=True)]
            allowed = list(map(max, allowed, errors))
    for k, (g, w, a) in enumerate(zip(got, want, allowed, strict=True)):
        assert_close(f"array {k}", g.detach().numpy(), w, a)


@pytest.mark.parametrize(
    ("kind", "options", "training"),
    [
        pytest.param(*case.values, training, id=f"{case.id}-{'train' if training else 'eval'}")
        for case in CASES
        for training in (True, False)
        if training or "zoneout" in case.values[1]  # which is the only option that acts in both, and differently
    ],
)
def test_the_core_by_value(kind: str, options: dict[str, Any], training: bool) -> None:
    """On one backend the very bits; by the loop of torch operations up to rounding."""
    with fastrnn.use_backend("reference"):
        module = build(kind, options, **SHAPE)
        with kernels_only():
            found = by_module(module, training)
        want = by_core(kind, options, module, training)
        for got, value in zip(found, want, strict=True):
            assert np.abs(value).max() > 0
            assert_same_bits("value", got.detach().numpy(), np.ascontiguousarray(value))
        with by_steps():
            found = by_module(module, training)
        assert_near(kind, options, module, training, found, want)


# The compiled kernels that other tests compile too.
COMPILED = [
    case
    for case in CASES
    if case.id in (
        "LSTM-diagonal", "LSTM-mask", "LSTM-zoneout", "LSTM-recurrent-dropout", "LSTM-recompute", "LSTM-layer-norm",
        "LSTM-coupled-peephole", "LSTM-projection", "GRU-zoneout", "GRU-recompute",
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), COMPILED)
def test_the_core_by_value_on_compiled_kernels(kind: str, options: dict[str, Any]) -> None:
    module = build(kind, options, **SHAPE)
    with kernels_only():
        found = by_module(module, training=True)
    with fastrnn.use_backend("reference"):
        assert_near(kind, options, module, True, found, by_core(kind, options, module, training=True))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_parameters_have_the_cores_names_shapes_and_order(kind: str, options: dict[str, Any]) -> None:
    module = build(kind, options, **SHAPE)
    layer = core_of(kind, options, module, **SHAPE)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert list(shapes.items()) == [(name, value.shape) for name, value in layer.params.items()]
    assert list(module.state_dict()) == list(layer.state_dict())
    assert all(isinstance(p, torch.nn.Parameter) for p in module.parameters())
    assert [p for ps in module.all_weights for p in ps] == list(module.parameters())
    other = build(kind, options, **SHAPE)
    other.load_state_dict({name: torch.from_numpy(value + 1) for name, value in layer.state_dict().items()})
    for name, value in layer.params.items():
        assert torch.equal(other.state_dict()[name], torch.tensor(value) + 1)


def test_initial_values() -> None:
    module = fastrnn.torch.LSTM(I, H, 2, layer_norm=True, peephole=True, recurrent=torch.from_numpy(MASK))
    for name, value in module.named_parameters():
        if name.startswith("norm"):
            assert (value == (0 if "bias" in name else 1)).all(), name
        else:
            assert 0.1 < value.abs().max() <= 1 / H**0.5, name
    assert (module.weight_hh_l1.view(4, H, H)[:, ~MASK] == 0).all()
    assert (module.weight_hh_l1.view(4, H, H)[:, MASK] != 0).all()
    with torch.no_grad():
        module.norm_c_l0.fill_(7)
    module.reset_parameters()
    assert (module.norm_c_l0 == 1).all()


INITS = [("LSTM", {}), ("LSTM", {"coupled": True, "peephole": True, "layer_norm": True}), ("GRU", {}), ("RNN", {})]


@pytest.mark.parametrize("shape", [{"num_layers": 2, "bidirectional": True}, None], ids=["layers", "cell"])
@pytest.mark.parametrize("init", ["xavier", "orthogonal", "identity"])
@pytest.mark.parametrize(("kind", "options"), INITS, ids=str)
def test_initial_values_gate_by_gate(
    kind: str, options: dict[str, Any], init: str, shape: dict[str, Any] | None
) -> None:
    torch.manual_seed(3)
    make, n = getattr(fastrnn.torch, kind if shape else f"{kind}Cell"), 40
    module = make(I, n, init=init, dtype=F64, **options, **(shape or {}))
    drawn, seen = torch.get_rng_state(), set()
    for name, value in module.named_parameters():
        if name.startswith("norm"):
            assert (value == (0 if name.startswith("norm_c_bias") else 1)).all(), name
        elif value.dim() == 1 or name.startswith("weight_p"):
            assert (value == 0).all(), name
        else:
            for gate in value.detach().split(n):
                seen.add(gate.sum().item())
                if init == "identity" and name.startswith("weight_hh"):
                    assert torch.equal(gate, torch.eye(n, dtype=F64)), name
                elif init == "orthogonal" and name.startswith("weight_hh"):
                    assert_close(name, (gate @ gate.T).numpy(), np.eye(n), rounding("float64", 1, 10 * n))
                else:
                    bound = (6 / sum(gate.shape)) ** 0.5
                    assert 0.9 * bound < gate.abs().max() <= bound, name
                    assert abs(gate.mean()) < 5 * bound / (3 * gate.numel()) ** 0.5, name  # five standard deviations
    gates = sum(
        value.shape[0] // n for name, value in module.named_parameters() if name.startswith(("weight_i", "weight_hh"))
    )
    assert len(seen) >= gates / 2 + 1, "each gate has values of its own"
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    module.reset_parameters()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn), "values are drawn once"


def test_initial_values_of_a_projection_and_of_diagonals() -> None:
    torch.manual_seed(8)
    module = fastrnn.torch.LSTM(I, 40, proj_size=7, init="orthogonal", dtype=F64)
    for gate in module.weight_hh_l0.detach().split(40):
        assert_close("hh", (gate.T @ gate).numpy(), np.eye(7), rounding("float64", 1, 400))
    bound = (6 / (7 + 40)) ** 0.5
    assert 0.9 * bound < module.weight_hr_l0.abs().max() <= bound
    found = {
        init: fastrnn.torch.GRU(I, 40, recurrent="diagonal", init=init).weight_hh_l0.detach()
        for init in ("xavier", "orthogonal", "identity")
    }
    assert 0.9 * 0.075**0.5 < found["xavier"].abs().max() <= 0.075**0.5
    assert (found["identity"] == 1).all()
    assert (found["orthogonal"].abs() == 1).all()
    assert 30 < (found["orthogonal"] == 1).sum() < 90
    masked = fastrnn.torch.RNN(I, H, recurrent=MASK, init="orthogonal").weight_hh_l0
    assert (masked[~MASK] == 0).all()
    assert (masked[MASK] != 0).all()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_forget_bias(kind: str, coupled: bool) -> None:
    """All else is torch's, to the bit, where the parameters are."""
    torch.manual_seed(4)
    module = getattr(fastrnn.torch, kind)(I, H, forget_bias=1.5, init="uniform", coupled=coupled)
    torch.manual_seed(4)
    theirs = getattr(torch.nn, kind)(I, H)
    first, f = next(module.parameters()), 0 if coupled else 1
    if not coupled:
        assert torch.equal(first, next(theirs.parameters()))
    for name, value in module.named_parameters():
        gates = value.detach().split(H)
        if name.startswith("bias"):
            assert (gates[f] == (1.5 if name.startswith("bias_ih") else 0)).all(), name
        rest = [gate for k, gate in enumerate(gates) if k != f or not name.startswith("bias")]
        assert all((gate != 0).all() and gate.abs().max() <= 1 / 3 for gate in rest), name
        if not coupled:
            their = dict(theirs.named_parameters())[name].split(H)
            assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(gates, their, strict=True)) if k != f), name


@pytest.mark.parametrize("options", [{"init": "uniform"}, {"zoneout": 0.2}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_uniform_initial_values_are_torchs_to_the_bit(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(6)
    ours = getattr(fastrnn.torch, kind)(I, H, **options)
    drawn = torch.get_rng_state()
    torch.manual_seed(6)
    theirs = getattr(torch.nn, kind)(I, H)
    assert torch.equal(torch.get_rng_state(), drawn)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name


# Every mode of gradients


def function_of(module: Any, reset: bool = True) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The module as a function of x and its parameters, with the same masks each time; and arguments."""
    names = [name for name, _ in module.named_parameters()]
    call = {"reset": torch.tensor([[False, True], [True, False], [False, False]])} if reset else {}

    def f(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(4)
        return tuple(leaves(functional_call(module, dict(zip(names, weights, strict=True)), (x,), call)))

    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    return f, (random(3, 2, 2, dtype=F64), *weights)


def small(options: dict[str, Any]) -> dict[str, Any]:
    """The options for three units."""
    options = {**options, "proj_size": 2} if "proj_size" in options else options
    return {**options, "recurrent": MASK[:3, :3]} if options.get("recurrent") is MASK else options


@pytest.mark.parametrize(
    ("kind", "options"),
    [case if case.id in SHORT else pytest.param(*case.values, id=case.id, marks=pytest.mark.nightly) for case in CASES],
)
def test_gradcheck_in_every_mode(kind: str, options: dict[str, Any]) -> None:
    with fastrnn.use_backend("reference"):
        f, arguments = function_of(build(kind, small(options), 2, 3))
        assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, arguments, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("options", [{"layer_norm": True, "zoneout": 0.3}, {"recurrent": "diagonal", "peephole": True}])
def test_vmap_over_weights(options: dict[str, Any]) -> None:
    with fastrnn.use_backend("reference"):
        modules = [build("LSTM", options), build("LSTM", options)]
        with torch.no_grad():
            for parameter in modules[1].parameters():
                parameter.mul_(1.5)
        parameters, buffers = torch.func.stack_module_state([module.eval() for module in modules])
        x = random(T, B, I, dtype=F64, grad=False)
        y = torch.func.vmap(lambda p, b: functional_call(modules[0], (p, b), (x,))[0])(parameters, buffers)
        with by_steps():
            for got, module in zip(y, modules, strict=True):
                assert_close("y", got.detach().numpy(), module(x)[0].detach().numpy(), rounding("float64", T, 6 * H))


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("kind", "options"), [case for case in CASES if case.id in ("LSTM-mask", "LSTM-projection", "GRU-everything")]
)
def test_compiled_graphs_stay_whole_with_the_same_numbers(kind: str, options: dict[str, Any]) -> None:
    with fastrnn.use_backend("reference"):
        module = build(kind, options, **{**SHAPE, "dropout": 0.0})  # so that the other masks are alone
        want = by_module(module, training=True)
        run = torch.compile(module, fullgraph=True, backend="aot_eager")
        run.mode, run.return_cells, run.proj_size = module.mode, module.return_cells, module.proj_size
        for a, b in zip(by_module(run, training=True), want, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("fresh")
def test_the_operator_keeps_torchs_rules_with_options() -> None:
    options = {"peephole": True, "coupled": True, "layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.2}
    with fastrnn.use_backend("reference"):
        module = build("LSTM", options, save="recompute")
        constants = Spec(
            "LSTM", I, H, 1, True, False, False, 0, False, False, True, False, True, False, True, 0.3, 0.3, 0.2, True
        )
        arguments = (
            random(T, B, I, dtype=F64), None, None, list(module.parameters()), None, None, torch.tensor([7]), 0.0,
            *constants,
        )  # fmt: skip
        torch.library.opcheck(NODE, arguments)
        exported = torch.export.export(module.eval(), (random(T, B, I, dtype=F64, grad=False),))
        assert [node.target for node in exported.graph.nodes].count(NODE) == 1
        x = random(T, B, I, dtype=F64, grad=False, seed=9)
        assert torch.equal(exported.module()(x)[0], module(x)[0])


# What an option means


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_options_that_change_nothing_give_the_plain_modules_bits(kind: str) -> None:
    plain = build(kind, SHAPE)
    of_lstm = {"peephole": False, "coupled": False} if kind == "LSTM" else {}
    want = by_module(plain, training=True)
    for options in (
        {"zoneout": 0.0, "recurrent_dropout": 0.0, "layer_norm": False, "recurrent": "full", **of_lstm},
        {"recurrent": np.ones((H, H)), "save": "gates", "precision": "highest"}, {"save": "recompute"},
    ):  # fmt: skip
        module = build(kind, SHAPE, **options)
        assert list(module.state_dict()) == list(plain.state_dict())
        module.load_state_dict(plain.state_dict())
        for k, (a, b) in enumerate(zip(by_module(module, training=True), want, strict=True)):
            if options.get("save") != "recompute" or k < 2:
                assert_same_bits("value", a.detach().numpy(), b.detach().numpy())
            else:  # segments add up the weights' gradients in another order
                assert_close("gradient", a.detach().numpy(), b.detach().numpy(), rounding("float64", 2 * T, 6 * H))


def test_peepholes_of_zero_and_a_diagonal_as_a_mask() -> None:
    plain, seen = build("LSTM", {}), build("LSTM", {"peephole": True})
    zero = {name: torch.zeros_like(p) for name, p in seen.state_dict().items() if "weight_p" in name}
    seen.load_state_dict({**plain.state_dict(), **zero})
    masked, diagonal = build("LSTM", {"recurrent": np.eye(H)}), build("LSTM", {"recurrent": "diagonal"})
    of_diagonal = masked.weight_hh_l0.detach().view(4, H, H).diagonal(dim1=1, dim2=2).reshape(-1)
    diagonal.load_state_dict({**masked.state_dict(), "weight_hh_l0": of_diagonal})
    x = random(T, B, I, dtype=F64, grad=False)
    with torch.no_grad(), fastrnn.use_backend("reference"):
        for a, b in ((seen, plain), (diagonal, masked)):
            assert_close("y", a(x)[0].numpy(), b(x)[0].numpy(), rounding("float64", T, 2 * H))


def test_what_a_mask_leaves_out_has_no_effect_and_no_gradient() -> None:
    module, x = build("GRU", {"recurrent": MASK}), random(T, B, I, dtype=F64)
    want = module(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.view(3, H, H)[:, ~MASK] = float("nan")
    y = module(x)[0]
    assert torch.equal(y, want)
    grad = torch.autograd.grad(y.square().sum(), module.weight_hh_l0)[0].view(3, H, H)
    assert (grad[:, ~MASK] == 0).all()
    assert (grad[:, MASK] != 0).all()


@pytest.mark.parametrize("options", [{"zoneout": 0.4}, {"recurrent_dropout": 0.4}, {"dropout": 0.4}], ids=str)
def test_masks_repeat_under_torchs_seed(options: dict[str, Any]) -> None:
    module, x = build("GRU", {"num_layers": 2, **options}), random(T, B, I, dtype=F64)

    def run() -> torch.Tensor:
        return torch.autograd.grad(module(x)[0].square().sum(), x)[0]

    torch.manual_seed(3)
    first, second = run(), run()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)
    assert torch.equal(run(), second)
    assert torch.equal(torch.rand(1), after)
    module.eval()
    assert torch.equal(run(), run())


def test_nothing_is_drawn_where_nothing_is_random() -> None:
    x = random(T, B, I, dtype=F64)
    evaluated = build("LSTM", {"zoneout": 0.3, "recurrent_dropout": 0.2, "dropout": 0.3, "num_layers": 2}).eval()
    diagonal = build("LSTM", {"recurrent": "diagonal"})
    for module in (build("LSTM", {}), diagonal, evaluated, build("LSTMCell", {})):
        before = torch.get_rng_state()
        module(x if "Cell" not in repr(module) else x[0])
        assert torch.equal(torch.get_rng_state(), before)


def test_recompute_keeps_less_for_the_backward_pass() -> None:
    kept = {}
    for save in ("gates", "recompute"):
        module, sizes = build("LSTM", {"save": save}), []
        x = random(100, 2, I, dtype=F64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            module(x)[0].sum().backward()
        kept[save] = sum(sizes) - x.numel() - sum(p.numel() for p in module.parameters())
    assert kept["recompute"] <= 2 * 10 * 2 * H  # h and c at the start of ten segments
    assert kept["gates"] > 100 * 2 * 4 * H


# Cells

OF_CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "peephole": ("LSTM", {"peephole": True}),
    "coupled-norm": ("LSTM", {"coupled": True, "layer_norm": True, "bias": False}),
    "zoneout": ("LSTM", {"zoneout": (0.2, 0.4)}),
    "gru-mask": ("GRU", {"recurrent": MASK}),
    "gru-zoneout": ("GRU", {"zoneout": 0.4}),
    "rnn-diagonal-norm": ("RNN", {"recurrent": "diagonal", "layer_norm": True, "nonlinearity": "relu"}),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", OF_CELLS)
def test_a_cell_is_a_layer_of_one_step(name: str, training: bool) -> None:
    kind, options = OF_CELLS[name]
    with fastrnn.use_backend("reference"):
        cell, layer = build(f"{kind}Cell", options).train(training), build(kind, options).train(training)
        layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
        found = []
        for module in (cell, layer):
            x, hx = random(B, I, dtype=F64), tuple(random(B, H, dtype=F64, seed=k) for k in range(1 + (kind == "LSTM")))
            torch.manual_seed(2)
            if module is cell:
                final = leaves(cell(x, hx if len(hx) == 2 else hx[0]))
            else:
                given = [s[None] for s in hx]
                final = [s[0] for s in leaves(layer(x[None], tuple(given) if len(hx) == 2 else given[0])[1])]
            grads = torch.autograd.grad(sum(s.square().sum() for s in final), [x, *hx, *module.parameters()])
            found.append([*final, *grads])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


# Refusals, by the core's rules


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"zoneout": 0.2, "proj_size": 3}),
        ("LSTM", {"recurrent": "diagonal", "proj_size": 3}),
        ("LSTM", {"recurrent": np.ones((2, 2))}),
        ("LSTM", {"recurrent": np.full((H, H), 0.5)}),
        ("LSTM", {"recurrent": "band"}),
        ("LSTM", {"peephole": "all"}),
        ("LSTM", {"peephole": 1}),
        ("LSTM", {"coupled": 1}),
        ("LSTM", {"layer_norm": "yes"}),
        ("LSTM", {"zoneout": 1.0}),
        ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}),
        ("LSTM", {"save": "nothing"}),
        ("LSTM", {"precision": "medium"}),
        ("GRU", {"zoneout": (0.1, 0.2)}),
        ("GRU", {"recurrent_dropout": -0.1}),
        ("RNN", {"recurrent_dropout": True}),
        ("RNN", {"init": "zeros"}),
        ("GRU", {"init": None}),
        ("LSTM", {"forget_bias": "1"}),
        ("LSTM", {"forget_bias": 1.0, "bias": False}),
    ],
    ids=str,
)
def test_what_the_core_refuses_is_refused_in_its_words(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as core:
        getattr(fastrnn, kind)(I, H, **options)
    with pytest.raises(type(core.value)) as ours:
        getattr(fastrnn.torch, kind)(I, H, **options)
    assert str(ours.value) == str(core.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("GRU", "peephole"), ("RNN", "coupled"), ("GRUCell", "peephole"), ("LSTMCell", "recurrent_dropout"),
     ("LSTMCell", "save"), ("RNNCell", "foo"), ("LSTM", "seed"), ("GRU", "forget_bias")],
)  # fmt: skip
def test_what_a_module_does_not_have_is_named(kind: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected one of torch's arguments or fastrnn's options"):
        getattr(fastrnn.torch, kind)(I, H, **{name: True})


def test_dense_peepholes_say_where_they_run() -> None:
    module = build("LSTM", {"peephole": "dense"})
    with pytest.raises(ValueError, match=r"peephole: .* on the backend 'cpu', got 'dense'"):
        module(random(T, B, I, dtype=F64))


# Life of a module


@pytest.mark.parametrize(("kind", "options"), [c for c in CASES if c.id in ("LSTM-everything", "GRU-mask")])
def test_repr_copies_pickles_and_conversions(kind: str, options: dict[str, Any]) -> None:
    with fastrnn.use_backend("reference"):
        module = build(kind, options).eval()
        x = random(T, B, I, dtype=F64, grad=False)
        want, file = module(x)[0], io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for other in (
            copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False),
        ):  # fmt: skip
            assert repr(other) == repr(module)
            assert torch.equal(other(x)[0], want)
        narrow = copy.deepcopy(module).float()
        assert_close("y", narrow(x.float())[0].detach().numpy(), want.detach().numpy(), rounding("float32", T, H))
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}, "a mask is no parameter"
    assert fastrnn.torch.LSTM(I, H, 2, **options, device="meta")(x.float().to("meta"))[1][1].shape == (2, B, H)


def test_options_are_shown() -> None:
    module = fastrnn.torch.LSTM(3, 4, 2, peephole=True, zoneout=(0.1, 0.2), recurrent=np.ones((4, 4)), save="recompute")
    assert repr(module) == (
        "LSTM(3, 4, num_layers=2, peephole=True, recurrent='mask', zoneout=(0.1, 0.2), save='recompute')"
    )
    assert repr(fastrnn.torch.GRUCell(3, 4, layer_norm=True)) == "GRUCell(3, 4, layer_norm=True)"
    assert repr(fastrnn.torch.LSTM(3, 4, peephole=False, init="uniform")) == "LSTM(3, 4)"
    initial = fastrnn.torch.LSTM(3, 4, init="orthogonal", forget_bias=1)
    for module in (initial, copy.deepcopy(initial), pickle.loads(pickle.dumps(initial))):
        assert repr(module) == "LSTM(3, 4, init='orthogonal', forget_bias=1.0)"
        module.reset_parameters()
        assert (module.bias_ih_l0[4:8] == 1).all()
        assert (module.bias_ih_l0[:4] == 0).all()
    model = torch.nn.ModuleList([initial])
    assert (fastrnn.torch.replace(model).swapped, fastrnn.torch.restore(model).swapped) == ([], [])
    assert initial.init == "orthogonal"


def test_a_module_with_options_is_no_torch_module_to_replace_or_restore() -> None:
    model = torch.nn.ModuleList([build("LSTM", {"peephole": True}), torch.nn.LSTM(I, H)])
    assert fastrnn.torch.replace(model).swapped == ["1"]
    assert fastrnn.torch.restore(model).swapped == ["1"]
    assert type(model[0]) is fastrnn.torch.LSTM
    assert model[0].peephole is True


def test_parametrized_weights_and_hooks() -> None:
    with fastrnn.use_backend("reference"):
        module = build("LSTM", {"layer_norm": True, "peephole": True, "recurrent": MASK})
        x = random(T, B, I, dtype=F64)
        want = module(x)[0]
        for name in ("weight_hh_l0", "norm_c_l0"):
            torch.nn.utils.parametrizations.weight_norm(module, name)
        assert_close("y", module(x)[0].detach().numpy(), want.detach().numpy(), rounding("float64", T, 2 * H))
        module(x)[0].sum().backward()
        assert all(p.grad is not None for p in module.parameters())
