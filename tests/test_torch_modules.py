"""fastrnn.torch's modules against torch.nn's: every constructor option, outputs, states, all gradients, errors."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tolerance import assert_close, assert_same_bits, rounding
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch_cases import (
    CELLS,
    DTYPES,
    KINDS,
    OPTIONS,
    PROJECTION,
    H,
    I,
    assert_same,
    common_modules,
    double,
    hx_of,
    kernels_only,
    leaves,
    make,
    random,
    results,
    states,
    twins,
)

import fastrnn
import fastrnn.torch
from fastrnn import sequence, threads

T, B = 6, 5
CASES = [
    pytest.param(kind, options, dtype, id=f"{kind}-{name}-{str(dtype)[-2:]}")
    for kind in KINDS
    for name, options in {**OPTIONS, **(PROJECTION if kind == "LSTM" else {})}.items()
    for dtype in DTYPES
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.usefixtures("one_torch_thread"),
]


def compare(kind: str, options: dict[str, Any], dtype: torch.dtype, inputs: dict[str, torch.Tensor], run: Any) -> None:
    ours, theirs = twins(kind, dtype, **options)
    ours.eval()
    theirs.eval()
    with kernels_only():
        got = results(ours, lambda m: run(m, inputs), inputs)
    wide = double(inputs)
    assert_same(got, results(theirs, lambda m: run(m, wide), wide), dtype, T)


@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
@pytest.mark.parametrize(("kind", "options", "dtype"), CASES)
def test_batched(kind: str, options: dict[str, Any], dtype: torch.dtype, state: bool) -> None:
    shape = (B, T, I) if options.get("batch_first") else (T, B, I)
    inputs = {"x": random(*shape, dtype=dtype)} | (states(kind, options, (B,), dtype) if state else {})
    compare(kind, options, dtype, inputs, lambda m, i: m(i["x"], hx_of(i)))


@pytest.mark.parametrize(("kind", "options", "dtype"), CASES)
def test_unbatched(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    inputs = {"x": random(T, I, dtype=dtype)} | states(kind, options, (), dtype)
    compare(kind, options, dtype, inputs, lambda m, i: m(i["x"], hx_of(i)))


@pytest.mark.parametrize(
    ("lengths", "state"),
    [([6, 4, 4, 1, 1], False), ([2, 6, 1, 5, 6], True), ([6] * 5, True)],
    ids=["sorted", "unsorted", "full"],
)
@pytest.mark.parametrize(("kind", "options", "dtype"), CASES)
def test_packed(kind: str, options: dict[str, Any], dtype: torch.dtype, state: bool, lengths: list[int]) -> None:
    inputs = {"x": random(T, B, I, dtype=dtype)} | (states(kind, options, (B,), dtype) if state else {})
    sort = sorted(lengths, reverse=True) == lengths

    def run(module: Any, given: dict[str, torch.Tensor]) -> Any:
        packed = pack_padded_sequence(given["x"], torch.tensor(lengths), enforce_sorted=sort)
        y, final = module(packed, hx_of(given))
        assert isinstance(y, PackedSequence)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            ours, expected = getattr(y, name), getattr(packed, name)
            assert ours is expected or torch.equal(ours, expected), name
        return y, final

    compare(kind, options, dtype, inputs, run)


@pytest.mark.parametrize("batch", [(B,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, dtype: torch.dtype, bias: bool, state: bool, batch: tuple[int, ...]) -> None:
    inputs = {"x": random(*batch, I, dtype=dtype)} | (states(kind, {}, batch, dtype) if state else {})
    if not state:  # no gradient reaches the recurrent weights otherwise
        inputs["h"] = random(*batch, I, dtype=dtype, seed=5)

    def run(module: Any, given: dict[str, torch.Tensor]) -> Any:
        first = module(given["x"], hx_of(given))
        return (first, module(given["h"], first)) if not state else first

    compare(kind, {"bias": bias}, dtype, inputs, run)


def test_a_list_of_sequences_and_training_mode() -> None:
    ours, theirs = twins("GRU", torch.float64, num_layers=2)
    parts = [random(n, I, dtype=torch.float64, seed=n) for n in (3, 7, 1, 7)]
    inputs = {f"x{k}": part for k, part in enumerate(parts)}
    run = lambda m: m(pack_sequence(list(inputs.values()), enforce_sorted=False))  # noqa: E731
    assert_same(results(ours, run, inputs), results(theirs, run, inputs), torch.float64, 7)


# torch's own inputs


def infos() -> list[Any]:
    names = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
    found = [info for info in common_modules.module_db if info.module_cls in [getattr(torch.nn, n) for n in names]]
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("info", infos(), ids=lambda info: info.module_cls.__name__)
def test_torchs_own_module_inputs(info: Any, dtype: torch.dtype, training: bool) -> None:
    torch.manual_seed(0)
    options = {"with_packed_sequence": True} if info.module_cls in (torch.nn.RNN, torch.nn.GRU) else {}
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training, **options)
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*made.args, **made.kwargs, dtype=torch.float64).train(training)
        ours = getattr(fastrnn.torch, info.module_cls.__name__)(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        inputs = {str(k): t for k, t in enumerate(leaves(given.args))}
        with kernels_only():
            got = results(ours, lambda m, a=given: m(*a.args, **a.kwargs), inputs)
        wide, arguments = as_double(given.args)
        assert_same(got, results(theirs, lambda m, a=arguments: m(*a), wide), dtype, 5)


def as_double(value: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """The arguments in float64, and their tensors by number."""
    found: dict[str, torch.Tensor] = {}

    def convert(part: Any) -> Any:
        if isinstance(part, PackedSequence):
            return PackedSequence(convert(part.data), *part[1:])
        if isinstance(part, torch.Tensor):
            found[str(len(found))] = part.detach().double().requires_grad_()
            return found[str(len(found) - 1)]
        return tuple(map(convert, part))

    return found, convert(value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("info", infos(), ids=lambda info: info.module_cls.__name__)
def test_torchs_own_error_inputs(info: Any, dtype: torch.dtype) -> None:
    samples = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    assert samples
    for sample in samples:
        made, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        kind = getattr(fastrnn.torch, info.module_cls.__name__)
        if sample.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type):
                kind(*made.args, **made.kwargs)
        else:
            module = kind(*made.args, **{"dtype": dtype, **made.kwargs})
            arguments = given.args
            if sample.error_type is RuntimeError and "Cell" in kind.__name__:
                arguments = tuple(as_type(a, dtype) for a in arguments)
            with pytest.raises(sample.error_type):
                module(*arguments, **given.kwargs)


def as_type(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) else tuple(as_type(part, dtype) for part in value)


X = torch.ones(T, B, I)
ERRORS: dict[str, Callable[[Any], Any]] = {
    "4D": lambda nn: nn.LSTM(I, H)(X[None]),
    "1D": lambda nn: nn.GRU(I, H)(X[0, 0]),
    "width": lambda nn: nn.RNN(I, H)(X[..., :2]),
    "dtype": lambda nn: nn.GRU(I, H)(X.double()),
    "integers": lambda nn: nn.LSTM(I, H)(X.long()),
    "half": lambda nn: nn.GRU(I, H)(X.bfloat16()),
    "state dtype": lambda nn: nn.GRU(I, H)(X, torch.zeros(1, B, H).double()),
    "state batch": lambda nn: nn.GRU(I, H)(X, torch.zeros(1, 2, H)),
    "state layers": lambda nn: nn.LSTM(I, H)(X, (torch.zeros(2, B, H), torch.zeros(1, B, H))),
    "state 2D": lambda nn: nn.LSTM(I, H)(X, (torch.zeros(B, H), torch.zeros(B, H))),
    "state 3D unbatched": lambda nn: nn.RNN(I, H)(X[0], torch.zeros(1, 1, H)),
    "cell state width": lambda nn: nn.LSTM(I, H)(X, (torch.zeros(1, B, H), torch.zeros(1, B, 2))),
    "packed width": lambda nn: nn.GRU(2, H)(pack_sequence([X[:, 0]])),
    "packed state": lambda nn: nn.GRU(I, H)(pack_sequence([X[:, 0]]), torch.zeros(1, 2, H)),
    "packed 3D": lambda nn: nn.GRU(I, H)(PackedSequence(X, torch.tensor([2, 2, 1, 1]))),
    "device": lambda nn: nn.GRU(I, H)(X.to("meta")),
    "device of parameters": lambda nn: nn.GRU(I, H, device="meta")(X),
    "cell 3D": lambda nn: nn.GRUCell(I, H)(X),
    "cell state": lambda nn: nn.LSTMCell(I, H)(X[0], (torch.zeros(B, 3), torch.zeros(B, 3))),
    "cell dtype": lambda nn: nn.RNNCell(I, H)(X[0].double()),
    "cell nonlinearity": lambda nn: nn.RNNCell(I, H, nonlinearity="identity")(X[0]),
    "nonlinearity": lambda nn: nn.RNN(I, H, nonlinearity="step"),
    "dropout above 1": lambda nn: nn.LSTM(I, H, 2, dropout=1.5),
    "dropout a bool": lambda nn: nn.LSTM(I, H, 2, dropout=True),
    "dropout below 0": lambda nn: nn.LSTM(I, H, 2, dropout=-0.1),
    "proj_size too wide": lambda nn: nn.LSTM(I, H, proj_size=H),
    "proj_size of a GRU": lambda nn: nn.GRU(I, H, proj_size=2),
    "unknown keyword": lambda nn: nn.GRU(I, H, foo=1),
    "num_layers": lambda nn: nn.GRU(I, H, 0),
    "bias": lambda nn: nn.GRU(I, H, bias=1),
    "wrong weight": lambda nn: with_weight(nn.GRU(I, H), torch.zeros(3, 3))(X),
    "weight dtype": lambda nn: with_weight(nn.RNN(I, H), torch.zeros(H, H).double())(X),
    "written after forward": lambda nn: written_after_forward(nn.GRU(I, H)),
    "twice backward": lambda nn: twice_backward(nn.LSTM(I, H)),
    "state dict": lambda nn: nn.GRU(I, H).load_state_dict({}),
}


def with_weight(module: Any, weight: torch.Tensor) -> Any:
    module.weight_hh_l0 = torch.nn.Parameter(weight)
    return module


def written_after_forward(module: Any) -> None:
    x = X.clone()
    y = module(x)[0]
    x += 1
    y.sum().backward()


def twice_backward(module: Any) -> None:
    y = module(X)[0]
    y.sum().backward()
    y.sum().backward()


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_of_torchs_classes(name: str) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever torch raises
        ERRORS[name](torch.nn)
    with kernels_only(), pytest.raises(type(theirs.value)):
        ERRORS[name](fastrnn.torch)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: fastrnn.torch.LSTM(I, H)(X.numpy())),
        ("x", lambda: fastrnn.torch.LSTM(I, H)(None)),
        ("hx", lambda: fastrnn.torch.LSTM(I, H)(X, torch.zeros(1, B, H))),
        ("h_0", lambda: fastrnn.torch.GRU(I, H)(X, [1])),
        ("reset", lambda: fastrnn.torch.GRU(I, H)(X, reset=torch.zeros(T, B))),
        ("lengths", lambda: fastrnn.torch.GRU(I, H)(X, lengths=[0.5] * B)),
        ("parameters", lambda: fastrnn.torch.GRU(I, H, dtype=torch.bfloat16)(X.bfloat16())),
        ("foo", lambda: fastrnn.torch.GRU(I, H, foo=1)),
        ("peephole", lambda: fastrnn.torch.GRU(I, H, peephole=True)),
        ("return_cells", lambda: fastrnn.torch.LSTM(I, H, return_cells=1)),
    ],
)
def test_wrong_types_are_named(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("lengths", lambda: fastrnn.torch.GRU(I, H)(X, lengths=[T + 1] * B)),
        ("lengths", lambda: fastrnn.torch.GRU(I, H)(X, lengths=[T])),
        ("lengths", lambda: fastrnn.torch.GRU(I, H)(pack_sequence([X[:, 0]]), lengths=[T])),
        ("reset", lambda: fastrnn.torch.GRU(I, H)(pack_sequence([X[:, 0]]), reset=torch.zeros(T, 1).bool())),
        ("reset", lambda: fastrnn.torch.GRU(I, H)(X, reset=torch.zeros(B, T).bool())),
        ("return_cells", lambda: fastrnn.torch.GRU(I, H, return_cells=True)),
    ],
)
def test_wrong_values_are_named(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call()


# What torch lacks, against the core


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "RNN_identity", "GRU_before"])
def test_lengths_and_reset(kind: str, batch_first: bool) -> None:
    extra = {"RNN_identity": {"nonlinearity": "identity"}, "GRU_before": {"reset_after": False}}.get(
        kind, KINDS.get(kind)
    )
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, **extra}  # type: ignore[dict-item]
    module = getattr(fastrnn.torch, kind.split("_")[0])(I, H, **options)
    core = getattr(fastrnn, kind.split("_")[0])(I, H, **options)
    core.load_state_dict(module.state_dict())
    x, lengths = random(*((B, T, I) if batch_first else (T, B, I))), torch.tensor([3, 0, 6, 1, 5])
    reset = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.3
    with kernels_only():
        y, final = module(x, lengths=lengths, reset=reset)
    y_core, state, backward = core.forward(x.detach().numpy(), lengths=lengths.numpy(), reset=reset.numpy())
    for got, want in zip(leaves((y, final)), leaves_of_arrays((y_core, state)), strict=True):
        assert_same_bits("output", got.detach().numpy(), want)
    dy = random(*y.shape, grad=False, seed=4)
    grads = torch.autograd.grad(y, [x, *module.parameters()], dy)
    core_grads = backward(dy.numpy())
    for name, got, want in zip("x" + "w" * 99, grads, [core_grads.x, *core_grads.params.values()], strict=False):
        assert_same_bits(name, got.numpy(), np.ascontiguousarray(want))
    assert (y.detach().transpose(0, 1) if batch_first else y.detach())[3:, 0].abs().max() == 0
    as_list = module(x, lengths=lengths.tolist(), reset=reset.numpy())[0]
    assert torch.equal(as_list, y)


def leaves_of_arrays(value: Any) -> list[np.ndarray]:
    return [value] if isinstance(value, np.ndarray) else [a for part in value for a in leaves_of_arrays(part)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_return_cells_is_c_after_every_step_with_its_gradient(batch_first: bool) -> None:
    module = fastrnn.torch.LSTM(I, H, batch_first=batch_first, return_cells=True, dtype=torch.float64)
    x = random(*((B, T, I) if batch_first else (T, B, I)), dtype=torch.float64)
    with kernels_only():
        y, (_, c_n), (c,) = module(x)
        got = torch.autograd.grad((c * y).sum(), [x, *module.parameters()])
    cell = torch.nn.LSTMCell(I, H, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    states, found = None, []
    for x_t in x.transpose(0, 1) if batch_first else x:
        states = cell(x_t, states)
        found.append(states)
    hs, cs = (torch.stack(parts, dim=1 if batch_first else 0) for parts in zip(*found, strict=True))
    assert_close("c", c.detach().numpy(), cs.detach().numpy(), rounding("float64", T, H))
    assert_close(
        "c_n",
        c_n[0].detach().numpy(),
        cs.select(1 if batch_first else 0, -1).detach().numpy(),
        rounding("float64", T, H),
    )
    want = torch.autograd.grad((cs * hs).sum(), [x, *cell.parameters()])
    for a, b in zip(got, want, strict=True):
        assert_close("gradient", a.numpy(), b.numpy(), rounding("float64", T, H))
    packed = pack_sequence([x[0], x[1, :2]]) if batch_first else pack_sequence([x[:, 0], x[:2, 1]])
    y_packed, _, (c_packed,) = module(packed)
    assert torch.equal(c_packed.batch_sizes, y_packed.batch_sizes)
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(c_packed, batch_first)[0][0, 0], c[0, 0])


# Parameters


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_same_parameters_from_the_same_generator_state(kind: str) -> None:
    for options in [{}, {"bias": False}, *([] if "Cell" in kind else [{"num_layers": 2, "bidirectional": True}])]:
        torch.manual_seed(3)
        theirs = make(torch.nn, kind, **options)
        after = torch.rand(1)
        torch.manual_seed(3)
        ours = make(fastrnn.torch, kind, **options)
        assert torch.equal(torch.rand(1), after), "another number of draws"
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q), name
        assert repr(ours) == repr(theirs)
        ours.reset_parameters()
        theirs.load_state_dict(ours.state_dict())


def test_positional_arguments_are_torchs() -> None:
    for kind, arguments in (
        ("RNN", (3, 4, 2, "relu", False, True, 0.1, True)),
        ("GRU", (3, 4, 2, False, True, 0.1, True)),
        ("LSTM", (3, 4, 2, False, True, 0.1, True, 2, "cpu", torch.float64)),
        ("RNNCell", (3, 4, False, "relu", "cpu", torch.float64)),
        ("LSTMCell", (3, 4, False, "cpu", torch.float64)),
    ):
        ours, theirs = getattr(fastrnn.torch, kind)(*arguments), getattr(torch.nn, kind)(*arguments)
        assert repr(ours) == repr(theirs)
        assert [p.dtype for p in ours.parameters()] == [p.dtype for p in theirs.parameters()]
        for name in ("mode", "nonlinearity", "dropout", "batch_first", "bidirectional", "proj_size", "bias"):
            assert getattr(ours, name, None) == getattr(theirs, name, None), name
        if "Cell" not in kind:
            assert isinstance(ours, torch.nn.RNNBase)
            assert [p.shape for ps in ours.all_weights for p in ps] == [
                p.shape for ps in theirs.all_weights for p in ps
            ]
            assert ours.flatten_parameters() is None


WRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: [p.mul_(1.5) for p in m.parameters()],
    "data in place": lambda m: [p.data.mul_(1.5) for p in m.parameters()],
    "one element by data": lambda m: m.bias_hh_l0.data[3].fill_(9.0),
    "last element by data": lambda m: list(m.parameters())[-1].data[-1].fill_(9.0),
    "data": lambda m: [setattr(p, "data", p.data * 1.5) for p in m.parameters()],
    "data transposed": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data.t()),
    "numpy": lambda m: np.copyto(m.weight_hh_l0.detach().numpy(), 0.1),
    "load_state_dict": lambda m: m.load_state_dict(make(fastrnn.torch, "RNN", I, H, num_layers=2).state_dict()),
    "a new parameter": lambda m: setattr(m, "weight_hh_l0", torch.nn.Parameter(torch.ones(H, H))),
    "optimizer": lambda m: optimise(m),
    "to NaN": lambda m: m.weight_ih_l0.data[0, 0].fill_(float("nan")),
    "sign of zero": lambda m: m.bias_ih_l0.data.fill_(-0.0),
}


def optimise(module: Any) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        module(X)[0].sum().backward()
        optimizer.step()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("training", [True, False])
def test_packed_weights_are_never_stale(write: str, training: bool) -> None:
    torch.manual_seed(2)
    module = fastrnn.torch.RNN(I, H, 2).train(training)
    before = module(X)[0].detach()
    with torch.no_grad():
        WRITES[write](module)
        fresh = fastrnn.torch.RNN(I, H, 2)
        fresh.load_state_dict(module.state_dict())
        want = fresh(X)[0]
        assert_same_bits(write, module(X)[0].numpy(), want.numpy())
    assert write == "sign of zero" or not torch.equal(before, want)
    assert_same_bits(f"{write}, with gradients", module(X)[0].detach().numpy(), want.numpy())


def test_a_weight_that_is_transposed_and_back_is_seen_each_time() -> None:
    """The same memory each time, in another order."""
    module, found = fastrnn.torch.RNN(I, H), []
    with torch.no_grad():
        for _ in range(3):
            found.append(module(X)[0])
            module.weight_hh_l0.data = module.weight_hh_l0.data.t()
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # module, its options, what is set afterwards
    "batch_first": ("GRU", {}, {"batch_first": True}),
    "zoneout": ("LSTM", {}, {"zoneout": 0.5}),
    "zoneout of c": ("LSTM", {"zoneout": (0.1, 0.0)}, {"zoneout": (0.1, 0.5)}),
    "training": ("GRU", {"num_layers": 2, "dropout": 0.5}, {"training": False}),
    "dropout": ("GRU", {"num_layers": 2, "dropout": 0.5}, {"dropout": 0.1}),
    "recurrent_dropout": ("LSTM", {}, {"recurrent_dropout": 0.4}),
    "return_cells": ("LSTM", {}, {"return_cells": True}),
    "nonlinearity of a cell": ("RNNCell", {}, {"nonlinearity": "relu"}),
    "zoneout of a cell": ("GRUCell", {}, {"zoneout": 0.5}),
    "biases of a cell": ("LSTMCell", {}, {"bias_ih": None, "bias_hh": None}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_attribute_that_changes_is_seen_by_the_next_call(change: str) -> None:
    """As by a module that never had another one."""
    kind, options, later = CHANGES[change]
    x = X[0] if "Cell" in kind else X
    torch.manual_seed(1)
    module = getattr(fastrnn.torch, kind)(I, H, **options)
    fresh = copy.deepcopy(module)
    before = leaves(module(x))
    for name, value in later.items():
        setattr(module, name, value)
        setattr(fresh, name, value)
    found = []
    for m in (module, module, fresh):
        torch.manual_seed(2)
        found.append(leaves(m(x)))
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    same = [torch.equal(a, b) for a, b in zip(before, found[0], strict=False)]
    assert not all(same) or len(before) != len(found[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_a_wrong_shape_is_refused_every_time(kind: str) -> None:
    module, x = make(fastrnn.torch, kind), X[0] if "Cell" in kind else X
    hx = torch.zeros(*([] if "Cell" in kind else [1]), B, H)
    module(x)
    for _ in range(2):
        with pytest.raises(fastrnn.ShapeError, match=r"^x: expected"):
            module(x[..., :2])
        with pytest.raises(fastrnn.ShapeError, match=r"h_0: expected"):
            module(x, (hx[..., :2], hx) if kind == "LSTM" else hx[..., :2])
        module(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_write_anywhere_in_a_large_weight_is_seen(dtype: torch.dtype) -> None:
    module = fastrnn.torch.LSTM(31, 45, dtype=dtype).eval()
    x = random(2, 3, 31, dtype=dtype, grad=False)
    with torch.no_grad():
        before = module(x)[0]
        for name, parameter in module.named_parameters():
            flat = parameter.data.view(-1)
            for place in {0, 511, 512, 1023, 1024, 2048, flat.numel() // 2, flat.numel() - 1}:
                if place < flat.numel():
                    old = flat[place].item()
                    flat[place] = float("nan")
                    assert module(x)[0].isnan().any(), f"{name}[{place}]"
                    flat[place] = old
        assert torch.equal(module(x)[0], before)


def test_unchanged_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn import cpu

    module, packs, pack = fastrnn.torch.GRU(I, H, 2), [], cpu.pack
    monkeypatch.setattr(cpu, "pack", lambda *a: packs.append(1) or pack(*a))
    for _ in range(3):
        module(X)[0].sum().backward()
        with torch.no_grad():
            module.eval()(X)
        module.train()
    assert len(packs) == 2
    module.bias_hh_l0.data += 1
    module(X)
    assert len(packs) == 4


def test_a_write_by_data_between_forward_and_backward_does_not_reach_the_gradient() -> None:
    module, x = fastrnn.torch.GRU(I, H), random(T, B, I)
    want = torch.autograd.grad(module(x)[0].sum(), x)[0]
    y = module(x)[0]
    module.weight_hh_l0.data.zero_()
    assert_same_bits("dx", torch.autograd.grad(y.sum(), x)[0].numpy(), want.numpy())


def test_no_copy_of_x_and_y(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = sequence.forward
    monkeypatch.setattr(sequence, "forward", lambda *a, **k: seen.append((a[3].x, forward(*a, **k))) or seen[-1][1])
    for batch_first in (False, True):
        x = torch.ones(T, B, I)
        with torch.no_grad():
            y, _ = fastrnn.torch.GRU(I, H, batch_first=batch_first)(x.transpose(0, 1) if batch_first else x)
        assert seen[-1][0].ctypes.data == x.data_ptr()
        assert seen[-1][1].y.ctypes.data == y.data_ptr()
        assert y.is_contiguous()


# Life of a module


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_copies_pickles_and_files(kind: str) -> None:
    module = make(fastrnn.torch, kind)
    x = X[0] if "Cell" in kind else X
    want = leaves(module(x))
    assert module._snapshot is not None
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):  # fmt: skip
        assert other._snapshot is None, "packed weights travelled"
        for a, b in zip(leaves(other(x)), want, strict=True):
            assert torch.equal(a, b)
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for p in moved.parameters():
            p.zero_()
    assert torch.equal(leaves(module(x))[0], want[0])


def test_dtype_and_device_conversions() -> None:
    module = fastrnn.torch.GRU(I, H)
    narrow = module(X)[0]
    wide = module.double()(X.double())[0]
    assert wide.dtype == torch.float64
    assert_close("y", narrow.detach().numpy(), wide.detach().numpy(), rounding("float32", T, H))
    assert fastrnn.torch.LSTM(I, H, 2, device="meta")(X.to("meta"))[1][1].shape == (2, B, H)


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, module: Any) -> None:
        self.module = module

    def __len__(self) -> int:
        return 2

    def __getitem__(self, k: int) -> Any:
        with torch.no_grad():
            return self.module(X)[0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_a_data_loader_and_shared_memory() -> None:
    module = fastrnn.torch.GRU(I, H).share_memory()
    want = module(X)[0].detach()
    assert all(p.is_shared() for p in module.parameters())
    loader = torch.utils.data.DataLoader(Rows(module), num_workers=1, multiprocessing_context="fork", timeout=60)
    assert [torch.equal(y[0], want) for y in loader] == [True, True]


def test_hooks_see_the_call() -> None:
    seen = []
    module = torch.nn.Sequential(fastrnn.torch.GRU(I, H))
    module[0].register_forward_pre_hook(lambda m, a: seen.append("pre"))
    module[0].register_forward_hook(lambda m, a, o: seen.append("forward"))
    module[0].register_full_backward_hook(lambda m, i, o: seen.append("backward"))
    module(X.clone().requires_grad_())[0].sum().backward()
    assert seen == ["pre", "forward", "backward"]


def test_parametrized_and_clipped_like_torchs() -> None:
    ours, theirs = twins("LSTM", torch.float64)
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    x = random(T, B, I, dtype=torch.float64)
    for lr in (0.1, 0.1):
        norms = []
        for module in (ours, theirs):
            module.zero_grad()
            module(x)[0].square().sum().backward()
            norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5).item())
            torch.optim.SGD(module.parameters(), lr=lr).step()
        assert abs(norms[0] - norms[1]) <= rounding("float64", 3 * T, H) * norms[1]
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(name, p.detach().numpy(), q.detach().numpy(), rounding("float64", 3 * T, H))


def test_threads_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward, backward = [], sequence.forward, sequence.backward
    monkeypatch.setattr(sequence, "forward", lambda *a, **k: seen.append(threads.get_num_threads()) or forward(*a, **k))
    monkeypatch.setattr(
        sequence, "backward", lambda *a, **k: seen.append(threads.get_num_threads()) or backward(*a, **k)
    )
    before, own = torch.get_num_threads(), threads.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            fastrnn.torch.GRU(I, H)(X)[0].sum().backward()
            assert seen[-2:] == [number, number]
    finally:
        torch.set_num_threads(before)
    assert threads.get_num_threads() == own


# Dropout and autocast


def test_dropout_between_layers() -> None:
    """The identity network shows the masks: ones or zeros times 1 / (1 - p), new ones each call, torch's seed."""
    p, n = 0.3, 64
    module = fastrnn.torch.RNN(n, n, 2, nonlinearity="identity", bias=False, dropout=p, dtype=torch.float64)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.zeros(n, n) if "hh" in name else torch.eye(n))
    x = torch.ones(20, 30, n, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    with kernels_only():
        first, second = module(x)[0], module(x)[0]
        torch.manual_seed(5)
        again = module(x)[0]
    assert torch.equal(first, again)
    kept = (first != 0).double()
    assert not torch.equal(kept, (second != 0).double())
    assert torch.equal(first, kept * (1 / (1 - p)))
    assert abs(kept.mean().item() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5  # five standard deviations
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], kept * (1 / (1 - p)))
    assert torch.equal(module.eval()(x)[0], x)


def test_dropout_of_everything_and_of_a_single_layer() -> None:
    ours, theirs = twins("LSTM", torch.float64, num_layers=2, dropout=1.0)
    x = {"x": random(T, B, I, dtype=torch.float64)}
    got, want = results(ours, lambda m: m(x["x"]), x), results(theirs, lambda m: m(x["x"]), x)
    assert_same(got, want, torch.float64, T)
    with pytest.warns(UserWarning, match="num_layers"):
        single = fastrnn.torch.GRU(I, H, dropout=0.5)
    assert torch.equal(single(X)[0], single.eval()(X)[0])


@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_autocast_returns_torchs_dtypes(kind: str, x_dtype: torch.dtype, state: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = make(fastrnn.torch, kind), make(torch.nn, kind)
    x = (X[0] if "Cell" in kind else X).to(x_dtype)
    hx = {name: s.detach() for name, s in states(kind, {}, (B,), torch.float32).items()} if state else {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = leaves(ours(x, hx_of(hx)))
        if (kind, x_dtype) == ("LSTM", torch.float32):
            want = [torch.float32] * 3  # torch runs this on processors with bfloat16 only; as its GRU
        else:
            want = [t.dtype for t in leaves(theirs(x, hx_of(hx)))]
    assert [t.dtype for t in y] == want
    exact = leaves(ours(x.float(), hx_of(hx)))
    for a, b in zip(y, exact, strict=True):
        assert torch.equal(a, b.to(a.dtype)), "computed in float32, rounded once"
    y[0].float().sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in ours.parameters())
