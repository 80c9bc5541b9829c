"""The gradient's norm at every step: against restarted runs, torch, and the closed form of a diagonal matrix."""

import numpy as np
import pytest
import torch
from tolerance import assert_close, rounding

import fastrnn
from fastrnn import gradient_flow

MAKE = {
    "rnn": lambda **o: fastrnn.RNN(3, 5, dtype="float64", seed=1, **o),
    "lstm": lambda **o: fastrnn.LSTM(3, 5, dtype="float64", seed=1, **o),
    "projected": lambda **o: fastrnn.LSTM(3, 5, proj_size=2, dtype="float64", seed=1, **o),
    "gru": lambda **o: fastrnn.GRU(3, 5, dtype="float64", seed=1, **o),
}
TORCH = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "projected": torch.nn.LSTM, "gru": torch.nn.GRU}


def torch_flow(kind: str, layer: fastrnn.RNN, x, d_output, d_h, d_c):
    """Every state is a leaf of the graph of its own, whose gradient autograd keeps."""
    options = {"proj_size": 2} if kind == "projected" else {}
    theirs = TORCH[kind](3, 5, **options).double()
    theirs.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in layer.params.items()})
    width = 2 if kind == "projected" else 5
    h = torch.zeros(1, x.shape[1], width, dtype=torch.float64, requires_grad=True)
    c = torch.zeros(1, x.shape[1], 5, dtype=torch.float64, requires_grad=True)
    hs, cs = [h], [c]
    for x_t in torch.from_numpy(x):
        if kind in ("lstm", "projected"):
            _, (h, c) = theirs(x_t[None], (h, c))
            c.retain_grad()
            cs.append(c)
        else:
            _, h = theirs(x_t[None], h)
        h.retain_grad()
        hs.append(h)
    loss = (h * torch.from_numpy(d_h)).sum() if d_h is not None else 0
    if d_c is not None:
        loss = loss + (c * torch.from_numpy(d_c)).sum()
    if d_output is not None:
        loss = loss + sum((hs[t + 1][0] * torch.from_numpy(d_output[t])).sum() for t in range(len(x)))
    loss.backward()
    return (np.array([s.grad.norm().item() if s.grad is not None else 0.0 for s in states]) for states in (hs, cs))


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("given", ["default", "output", "state", "both"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_norms_are_torchs(kind, given, batch_first):
    rng, layer = np.random.default_rng(2), MAKE[kind](batch_first=batch_first)
    width, lstm = 2 if kind == "projected" else 5, kind in ("lstm", "projected")
    x, d_output = rng.standard_normal((7, 4, 3)), rng.standard_normal((7, 4, width))
    d_h, d_c = rng.standard_normal((1, 4, width)), rng.standard_normal((1, 4, 5)) if lstm else None
    if given in ("default", "output"):
        d_h, d_c = None, None
    if given in ("default", "state"):
        d_output = None
    turned = (lambda a: None if a is None else np.ascontiguousarray(a.swapaxes(0, 1))) if batch_first else lambda a: a
    d_state = None if d_h is None else (d_h, d_c) if lstm else d_h
    flow = gradient_flow(layer, turned(x), None, turned(d_output), d_state)
    if given == "default":
        d_h = np.ones((1, 4, width))
    h, c = torch_flow(kind, layer, x, d_output, d_h, d_c)
    assert_close("h", flow.h, h, rounding("float64", 7, 5))
    if lstm:
        assert_close("c", flow.c, c, rounding("float64", 7, 5))
    else:
        assert flow.c is None


def test_unbatched_input_and_initial_state():
    layer, rng = MAKE["gru"](), np.random.default_rng(3)
    x, h_0 = rng.standard_normal((6, 3)), rng.standard_normal((1, 5))
    flow = gradient_flow(layer, x, h_0)
    assert_close("h", flow.h, gradient_flow(layer, x[:, None], h_0[:, None]).h, rounding("float64", 6, 5))
    assert len(gradient_flow(layer, x[:0], h_0).h) == 1
    assert gradient_flow(MAKE["lstm"](), x[:0]).c.tolist() == [0.0]
    assert gradient_flow(layer, x, np.full_like(h_0, np.nan)).h[-1] == pytest.approx(5**0.5)  # of ones, whatever h_T is


@pytest.mark.parametrize("diagonal", [(1.2, 2.0, 1.1), (0.8, 0.1, 0.9)], ids=["explodes", "vanishes"])
def test_a_diagonal_matrix_has_the_closed_form(diagonal):
    """h_t = U h_{t-1} + x_t: dL/dh_t = U^(T-t) for L = sum(h_T)."""
    T, U = 40, np.array(diagonal)
    rnn = fastrnn.RNN(3, 3, nonlinearity="identity", bias=False, dtype="float64", seed=0)
    rnn.update({"weight_ih_l0": np.eye(3), "weight_hh_l0": np.diag(U)})
    flow = gradient_flow(rnn, np.zeros((T, 3)))
    left = np.arange(T, -1, -1)
    want = np.sqrt((U ** (2.0 * left[:, None])).sum(axis=1))
    np.testing.assert_allclose(flow.h, want, rtol=rounding("float64", T, 3))
    rate = (flow.h[0] / flow.h[10]) ** 0.1  # the largest eigenvalue wins
    assert rate == pytest.approx(max(diagonal), rel=1e-3)


def torch_stack(kind, layer, x, h_0, c_0, d_output, d_h, d_c):
    """The norms of every layer and direction, each a network of torch's own whose states are leaves of the graph."""
    D, width = 1 + layer.bidirectional, d_h.shape[2]
    y, states, loss = torch.from_numpy(x), [], 0
    for depth in range(layer.num_layers):
        outputs = []
        for d in range(D):
            k, end = D * depth + d, f"_l{depth}" + "_reverse" * d
            options = {"proj_size": 2} if kind == "projected" else {}
            theirs = TORCH[kind](y.shape[2], 5, **options).double()
            own = {
                f"{n.removesuffix(end)}_l0": torch.from_numpy(a.copy())
                for n, a in layer.params.items()
                if n.endswith(end)
            }
            theirs.load_state_dict(own)
            h, c = (torch.from_numpy(s[k : k + 1].copy()).requires_grad_() for s in (h_0, c_0))
            hs, cs, out = [h], [c], {}
            for t in range(len(x))[:: -1 if d else 1]:
                if kind in ("lstm", "projected"):
                    _, (h, c) = theirs(y[t : t + 1], (h, c))
                    c.retain_grad()
                    cs.append(c)
                else:
                    _, h = theirs(y[t : t + 1], h)
                h.retain_grad()
                hs.append(h)
                out[t] = h
            outputs.append(torch.cat([out[t] for t in range(len(x))]))
            states.append((hs, cs))
            loss = loss + (h * torch.from_numpy(d_h[k : k + 1])).sum()
            if kind in ("lstm", "projected") and d_c is not None:
                loss = loss + (c * torch.from_numpy(d_c[k : k + 1])).sum()
        y = torch.cat(outputs, dim=2)
    if d_output is not None:
        loss = loss + (y * torch.from_numpy(d_output)).sum()
    loss.backward()
    assert y.shape[2] == D * width
    return [
        np.array([[0.0 if s.grad is None else s.grad.norm().item() for s in each[i]] for each in states])
        for i in (0, 1)
    ]


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(2, False), (3, False), (1, True), (2, True)])
@pytest.mark.parametrize("given", ["default", "all"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_norms_of_layers_and_directions_are_torchs(kind, num_layers, bidirectional, given, batch_first):
    layer = MAKE[kind](num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first)
    rng, lstm, width = np.random.default_rng(4), kind in ("lstm", "projected"), 2 if kind == "projected" else 5
    D = 1 + bidirectional
    x, d_output = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, D * width))
    h_0, d_h = rng.standard_normal((2, num_layers * D, 4, width))
    c_0, d_c = rng.standard_normal((2, num_layers * D, 4, 5))
    state, d_state = ((h_0, c_0), (d_h, d_c)) if lstm else (h_0, d_h)
    if given == "default":
        d_output, d_state, d_h, d_c = None, None, np.zeros_like(d_h), None
        d_h[-D:] = 1
    turned = (lambda a: None if a is None else np.ascontiguousarray(a.swapaxes(0, 1))) if batch_first else lambda a: a
    flow = gradient_flow(layer, turned(x), state, turned(d_output), d_state)
    h, c = torch_stack(kind, layer, x, h_0, c_0, d_output, d_h, d_c)
    assert_close("h", flow.h, h, rounding("float64", 6 * num_layers, 5))
    if lstm:
        assert_close("c", flow.c, c, rounding("float64", 6 * num_layers, 5))
    else:
        assert flow.c is None


def test_a_stack_of_every_option_is_the_sum_of_its_steps():
    """dL/dh_0 and dL/dc_0 of the whole backward pass have the first norms, whatever the cell sees."""
    options = {"layer_norm": True, "peephole": True, "zoneout": 0.2, "dropout": 0.3}
    layer = MAKE["lstm"](num_layers=2, bidirectional=True, **options)
    x, d = np.random.default_rng(5).standard_normal((2, 4, 2, 10))
    x = x[:, :, :3]
    flow, grads = gradient_flow(layer, x, None, d), layer.forward(x).backward(d)
    for got, gradient in zip(flow, grads.state, strict=True):
        assert got.shape == (4, 5)
        assert_close("initial", got[:, 0], np.sqrt((gradient**2).sum(axis=(1, 2))), rounding("float64", 8, 5))
    unbatched = gradient_flow(layer, x[:, 0], None, d[:, 0])
    assert_close("h", unbatched.h, gradient_flow(layer, x[:, :1], None, d[:, :1]).h, rounding("float64", 4, 5))


def test_a_gradient_that_does_not_fit_is_refused():
    with pytest.raises(fastrnn.ShapeError, match="d_output"):
        gradient_flow(fastrnn.GRU(2, 2), np.zeros((3, 2), np.float32), d_output=np.zeros((2, 2), np.float32))
