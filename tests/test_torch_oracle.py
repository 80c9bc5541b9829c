"""torch as an independent oracle, for everything that torch has: outputs, states, all gradients, packed sequences.

torch runs in float64 on the very numbers that the layer gets, so a float32 layer is measured by its own rounding alone.
What torch has not (identity RNN, GRU with reset before the product) is written here as a torch loop of a few lines,
with autograd for the gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, DTYPES, Case, Problem, assert_results, by_name, draw, evaluate, make_layer
from tolerance import assert_close, rounding

import fastrnn

TORCH: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False, "B": 1},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True, "H": 17},
    "stacked-bidirectional": {"num_layers": 2, "bidirectional": True, "bias": False},
    "batch-first": {"batch_first": True, "bidirectional": True},
    "unbatched": {"unbatched": True, "B": 1, "num_layers": 2, "bidirectional": True, "batch_first": True},
    "state-none": {"state": "none", "num_layers": 2},
    "lengths": {"lengths": "random", "B": 9, "T": 8},
    "lengths-full": {"lengths": "full"},
    "lengths-stacked-bidirectional": {"lengths": "random", "num_layers": 2, "bidirectional": True, "B": 7, "T": 11},
    "lengths-batch-first": {"lengths": "random", "batch_first": True, "num_layers": 2, "bidirectional": True},
    "y-only": {"losses": ("y",), "H": 33},
    "state-only": {"losses": ("state",), "num_layers": 2, "bidirectional": True},
    "ones": {"T": 1, "B": 1, "I": 1, "H": 1},
    "long": {"T": 60, "B": 2, "H": 7, "seed": 1},
}
PROJECTIONS: dict[str, dict[str, Any]] = {
    "projection": {"proj_size": 3},
    "projection-stacked-bidirectional": {"proj_size": 2, "num_layers": 2, "bidirectional": True, "lengths": "random"},
    "projection-no-bias": {"proj_size": 1, "bias": False, "batch_first": True, "seed": 3},
}
CASES = [
    pytest.param(case, id=str(case))
    for backend in BACKENDS
    for dtype in DTYPES
    for cell in TORCH
    for option in [*OPTIONS.values(), *(PROJECTIONS.values() if cell == "lstm" else ())]
    for case in [replace(Case(cell, backend, dtype, losses=("y", "state")), **option)]
]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """These cases are small: waking torch's threads for each of their steps takes longer than the steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torch_twin(case: Case, layer: Any) -> Any:
    """torch's layer with the same options and, in float64, the same parameters."""
    kind, options = TORCH[case.cell]
    if case.proj_size:
        options = {**options, "proj_size": case.proj_size}
    twin = kind(
        case.I, case.H, case.num_layers, bias=case.bias, batch_first=case.batch_first, bidirectional=case.bidirectional,
        dtype=torch.float64, **options,
    )  # fmt: skip
    twin.load_state_dict({name: tensor(value) for name, value in layer.params.items()})
    return twin


def tensor(value: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def torch_results(case: Case, problem: Problem, twin: Any) -> dict[str, np.ndarray]:
    """What `evaluate` returns, by torch and autograd."""
    x = tensor(problem.x, grad=True)
    zeros = by_name(case, problem.d_state, "_0")  # for their shapes
    initial = (
        {name: np.zeros_like(value) for name, value in zeros.items()}
        if problem.state is None
        else by_name(case, problem.state, "_0")
    )
    state = {name: tensor(value, grad=True) for name, value in initial.items()}
    given = tuple(state.values()) if case.cell_state else state["h_0"]
    if problem.lengths is None:
        y, final = twin(x, given)
    else:
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        packed = pack(x, torch.tensor(problem.lengths), batch_first=case.batch_first, enforce_sorted=False)
        packed_y, final = twin(packed, given)
        y, _ = pad(packed_y, batch_first=case.batch_first, total_length=case.T)
    outputs = {"y": y} | by_name(case, final)
    upstream = {"y": problem.d_output} | by_name(case, problem.d_state)
    wanted = {name: value for name, value in outputs.items() if ("y" if name == "y" else "state") in case.losses}
    total = sum((value * tensor(upstream[name])).sum() for name, value in wanted.items())
    total.backward()
    leaves = {"x": x} | state | dict(twin.named_parameters())
    return {name: value.detach().numpy() for name, value in outputs.items()} | {
        f"d {name}": np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy() for name, leaf in leaves.items()
    }


def torch_problem(case: Case) -> Problem:
    """The case's numbers; lengths are at least 1, since torch refuses 0."""
    problem = draw(case)
    return problem if problem.lengths is None else replace(problem, lengths=np.maximum(problem.lengths, 1))


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_states_and_gradients(case: Case) -> None:
    layer, problem = make_layer(case), torch_problem(case)
    want = torch_results(case, problem, torch_twin(case, layer))
    got = {name: value for name, value in evaluate(layer, case, problem).items() if not name.startswith("cells")}
    assert_results(case, problem, got, want)


def cell_steps(case: Case, params: dict[str, torch.Tensor], x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The cells that torch has not, one layer, one direction: y [T, B, H]."""
    gates, hidden, ys = {"rnn_identity": 1, "gru_reset_before": 3}[case.cell], case.H, []
    w, u = params["weight_ih_l0"].view(gates, hidden, -1), params["weight_hh_l0"].view(gates, hidden, hidden)
    b = (params["bias_ih_l0"] + params["bias_hh_l0"]).view(gates, hidden)
    for x_t in x:
        if gates == 1:
            h = x_t @ w[0].T + h @ u[0].T + b[0]
        else:
            r, z = (torch.sigmoid(x_t @ w[k].T + h @ u[k].T + b[k]) for k in range(2))
            h = z * h + (1 - z) * torch.tanh(x_t @ w[2].T + (r * h) @ u[2].T + b[2])
        ys.append(h)
    return torch.stack(ys)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cell", ["rnn_identity", "gru_reset_before"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_that_torch_has_not(backend: str, dtype: str, cell: str, seed: int) -> None:
    case = Case(cell, backend, dtype, T=6, B=2 + seed, I=3, H=9 + 4 * seed, losses=("y", "state"), seed=seed)
    layer, problem = make_layer(case), draw(case)
    leaves = {"x": problem.x, "h_0": problem.state} | dict(layer.params)
    tensors = {name: tensor(value, grad=True) for name, value in leaves.items()}
    y = cell_steps(case, tensors, tensors["x"], tensors["h_0"][0])
    total = (y * tensor(problem.d_output)).sum() + (y[-1] * tensor(problem.d_state[0])).sum()
    total.backward()
    want = {"y": y.detach().numpy(), "h_n": y[-1:].detach().numpy()}
    want |= {f"d {name}": leaf.grad.numpy() for name, leaf in tensors.items()}
    assert_results(case, problem, evaluate(layer, case, problem), want)


NAMES = [
    pytest.param(replace(Case(cell), **option), id=f"{cell}-{name}")
    for cell in TORCH
    for name, option in [*OPTIONS.items(), *(PROJECTIONS.items() if cell == "lstm" else ())]
    if name in ("plain", "no-bias", "stacked-bidirectional", "projection", "projection-stacked-bidirectional")
]


@pytest.mark.parametrize("case", NAMES)
def test_state_dict_has_torchs_names_shapes_and_order(case: Case) -> None:
    layer = make_layer(case)
    ours = [(name, value.shape) for name, value in layer.state_dict().items()]
    theirs = [(name, tuple(value.shape)) for name, value in torch_twin(case, layer).state_dict().items()]
    assert ours == theirs


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", NAMES)
def test_torchs_state_dict_loads_and_gives_torchs_numbers(case: Case, backend: str) -> None:
    case = replace(case, backend=backend, dtype="float32")
    torch.manual_seed(0)
    twin, problem, layer = torch_twin(case, make_layer(case)).float(), draw(case), make_layer(replace(case, seed=5))
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer.load_state_dict(twin.state_dict())
    for name, value in twin.state_dict().items():
        np.testing.assert_array_equal(layer.params[name], value.numpy(), err_msg=name)
    with torch.no_grad():
        state = tuple(map(torch.tensor, problem.state)) if case.cell_state else torch.tensor(problem.state)
        y, final = twin(torch.tensor(problem.x), state)
    want = {"y": y.numpy()} | {name: value.numpy() for name, value in by_name(case, final).items()}
    with fastrnn.use_backend(backend):
        y_ours, final_ours = layer(problem.x, problem.state)
    for name, value in ({"y": y_ours} | by_name(case, final_ours)).items():
        assert_close(name, value, want[name], rounding("float32", case.T * case.num_layers, case.width))
    twin.weight_ih_l0.data.zero_()
    assert layer.params["weight_ih_l0"].any(), "the layer must own its numbers"


def test_names_of_torch_in_positional_order() -> None:
    """Arguments go in torch's order, so that a call moves over unchanged."""
    make: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = [
        (fastrnn.RNN, torch.nn.RNN, (3, 4, 2, "relu", False, True, 0.1, True)),
        (fastrnn.GRU, torch.nn.GRU, (3, 4, 2, False, True, 0.1, True)),
        (fastrnn.LSTM, torch.nn.LSTM, (3, 4, 2, False, True, 0.1, True, 2)),
    ]
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    for ours, theirs, arguments in make:
        layer, twin = ours(*arguments), theirs(*arguments)
        assert [getattr(layer, name) for name in names] == [getattr(twin, name) for name in names]
    assert fastrnn.RNN(3, 4, 1, "relu").nonlinearity == torch.nn.RNN(3, 4, 1, "relu").nonlinearity == "relu"
