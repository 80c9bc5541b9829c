"""Losses, dropout, attention, truncated back-propagation and teaching against torch, brute force and each other."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastrnn
from fastrnn import ShapeError, philox
from fastrnn.nn import (
    AdditiveAttention,
    Curriculum,
    Dropout,
    Embedding,
    Linear,
    decoder_inputs,
    embedding,
    half_mse,
    mse,
    softmax_cross_entropy,
    spans,
    truncated_bptt,
)
from fastrnn.optim import SGD, Adam, AdamW, clip_by_global_norm
from tests import strict, tolerance

DTYPES = ["float32", "float64"]
F32 = np.float32


def close(name: str, got: np.ndarray, want: torch.Tensor, terms: int) -> None:
    tolerance.assert_close(name, got, want.detach().numpy(), tolerance.rounding(str(got.dtype), 0, terms))


# Losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("masked", [None, "steps", "elements"])
def test_squared_error_is_torchs(dtype, reduction, half, masked):
    rng = np.random.default_rng(1)
    y, targets = rng.standard_normal((2, 7, 3, 5)).astype(dtype)
    mask = None if masked is None else rng.random((7, 3) if masked == "steps" else (7, 3, 5)) < 0.6
    ty = torch.from_numpy(y.copy()).requires_grad_()
    picked = slice(None) if mask is None else torch.from_numpy(mask)
    want = functional.mse_loss(ty[picked], torch.from_numpy(targets)[picked], reduction=reduction)
    want = want / 2 if half else want
    want.backward()
    if mask is not None:  # what does not count may be anything
        y[~mask] = np.nan
        targets[~mask] = np.inf
    loss, backward = (half_mse if half else mse)(y, targets, mask=mask, reduction=reduction)
    assert float(loss) == pytest.approx(want.item(), rel=tolerance.rounding(dtype, 0, 105))
    for scale in (1.0, 1.0, 2.5):
        close("d_y", backward(scale), scale * ty.grad, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_with_ignored_rows_is_torchs(dtype, reduction, ignore_index, masked):
    rng = np.random.default_rng(2)
    logits, targets = 3 * rng.standard_normal((9, 4, 6)).astype(dtype), rng.integers(6, size=(9, 4))
    if ignore_index is not None:
        targets[rng.random((9, 4)) < 0.3] = ignore_index
    mask = rng.random((9, 4)) < 0.7 if masked else None
    hidden = targets.copy()
    if masked:
        hidden[~mask] = -100
    if ignore_index is not None:
        hidden[targets == ignore_index] = -100
    tl = torch.from_numpy(logits.copy()).requires_grad_()
    want = functional.cross_entropy(tl.reshape(-1, 6), torch.from_numpy(hidden).reshape(-1), reduction=reduction)
    want.backward()
    if masked:
        logits[~mask], targets[~mask] = np.nan, 99
    loss, backward = softmax_cross_entropy(logits, targets, ignore_index=ignore_index, mask=mask, reduction=reduction)
    assert float(loss) == pytest.approx(want.item(), rel=tolerance.rounding(dtype, 0, 36))
    for scale in (1.0, 1.0, -3.0):
        tolerance.assert_close("d", backward(scale), scale * tl.grad.numpy(), tolerance.rounding(dtype, 0, 6))
    assert (backward()[hidden == -100] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["one-hot", "bool", "soft"])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_of_probabilities_is_torchs(dtype, kind, masked):
    rng = np.random.default_rng(3)
    logits, classes = 3 * rng.standard_normal((8, 5, 7)).astype(dtype), rng.integers(7, size=(8, 5))
    targets = np.eye(7, dtype=bool if kind == "bool" else dtype)[classes]
    if kind == "soft":
        targets = rng.dirichlet(np.ones(7), (8, 5)).astype(dtype)
    mask = rng.random((8, 5)) < 0.7 if masked else None
    picked = slice(None) if mask is None else torch.from_numpy(mask)
    tl = torch.from_numpy(logits.copy()).requires_grad_()
    flat = tl[picked].reshape(-1, 7), torch.from_numpy(targets.astype(dtype))[picked].reshape(-1, 7)
    want = functional.cross_entropy(*flat)
    want.backward()
    loss, backward = softmax_cross_entropy(logits, targets, mask=mask)
    assert float(loss) == pytest.approx(want.item(), rel=tolerance.rounding(dtype, 0, 40))
    tolerance.assert_close("d", backward(2.0), 2 * tl.grad.numpy(), tolerance.rounding(dtype, 0, 7))
    if kind != "soft":
        by_index, d_by_index = softmax_cross_entropy(logits, classes, mask=mask)
        assert float(loss) == pytest.approx(float(by_index), rel=tolerance.EPS[dtype])
        tolerance.assert_close("index", backward(), d_by_index(), tolerance.rounding(dtype, 0, 1))


def test_an_impossible_class_of_no_probability_is_harmless():
    loss, backward = softmax_cross_entropy(np.array([[0.0, -np.inf, 0.0]]), np.array([[0.0, 0.0, 1.0]]))
    assert float(loss) == pytest.approx(np.log(2), rel=2 * tolerance.EPS["float64"])
    np.testing.assert_allclose(backward(), [[0.5, 0.0, -0.5]], rtol=tolerance.EPS["float64"])


# Dropout


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_has_the_documented_masks(backend, dtype):
    seed, p, x = 12345678901234567890, 0.3, np.random.default_rng(0).standard_normal((9, 4, 6)).astype(dtype)
    layer = Dropout(p, seed=seed)
    d = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    with fastrnn.use_backend(backend):
        for call in range(3):
            words = philox.random_words(np, seed, (call, 0, philox.DROPOUT), x.size)
            factor = (((words >> 8) / 2**24 >= p).reshape(x.shape) / (1 - p)).astype(dtype)
            y, backward = layer.forward(x, training=True)
            np.testing.assert_array_equal(y, x * factor)
            np.testing.assert_array_equal(backward(d), d * factor)
            np.testing.assert_array_equal(backward(d), d * factor)
        np.testing.assert_array_equal(layer.forward(x)[0], x)  # neither this nor a plain call takes a mask
        np.testing.assert_array_equal(layer.forward(x)[1](d), d)
        np.testing.assert_array_equal(layer(x), x)
    assert layer.calls == 3
    np.testing.assert_array_equal(Dropout(0.0, seed=1).forward(x, training=True)[0], x)
    assert Dropout(0.5).seed != Dropout(0.5).seed


# Attention


def torch_attention(layer, queries, keys, mask):
    """Loops over t, i and b, as the equations stand; rows without a key give zero."""
    P = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in layer.params.items()}
    s, h = (torch.from_numpy(array.copy()).requires_grad_() for array in (queries, keys))
    contexts, weights = [], torch.zeros(len(s), len(h), s.shape[1], dtype=s.dtype)
    for t in range(len(s)):
        row = []
        for b in range(s.shape[1]):
            there = [i for i in range(len(h)) if mask is None or mask[i, b]]
            if not there:
                row.append(torch.zeros(h.shape[2], dtype=h.dtype))
                continue
            e = torch.stack([P["v"] @ torch.tanh(P["W_a"] @ h[i, b] + P["U_a"] @ s[t, b]) for i in there])
            w = torch.softmax(e, 0)
            weights[t, there, b] = w.detach()
            row.append(sum(w[n] * h[i, b] for n, i in enumerate(there)))
        contexts.append(torch.stack(row))
    return torch.stack(contexts), weights, s, h, P


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("Tq", "Tk", "B"), [(1, 1, 1), (4, 7, 3)])
def test_attention_is_the_equations(backend, dtype, masked, Tq, Tk, B):
    rng = np.random.default_rng(4)
    layer = AdditiveAttention(5, 3, 9, dtype=dtype, seed=2)
    queries, keys = rng.standard_normal((Tq, B, 5)).astype(dtype), rng.standard_normal((Tk, B, 3)).astype(dtype)
    mask = np.arange(Tk)[:, None] < rng.permutation(np.linspace(0, Tk, B).astype(int)) if masked else None
    context, weights, s, h, P = torch_attention(layer, queries, keys, mask)
    d = rng.standard_normal((Tq, B, 3)).astype(dtype)
    if context.requires_grad:
        context.backward(torch.from_numpy(d))
    if masked:
        keys[~mask] = np.nan  # padding reaches nothing
    with fastrnn.use_backend(backend):
        got, backward = layer.forward(queries, keys, mask)
        np.testing.assert_array_equal(layer(queries, keys, mask).weights, got.weights)
    bound = tolerance.rounding(dtype, Tk, 9)
    tolerance.assert_close("context", got.context, context.detach().numpy(), bound)
    tolerance.assert_close("weights", got.weights, weights.numpy(), bound)
    for _ in range(2):
        grads = backward(d)
        wanted = {"queries": s.grad, "keys": h.grad, **{name: tensor.grad for name, tensor in P.items()}}
        for name, array in {"queries": grads.queries, "keys": grads.keys, **grads.params}.items():
            want = np.zeros_like(array) if wanted[name] is None else wanted[name].numpy()
            assert array.dtype == dtype
            if Tk == 1:  # a softmax over one key is constant: what is left is the rounding of 1 - 1
                assert np.abs(array - want).max() <= bound * np.abs(d).max()
            else:
                tolerance.assert_close(name, array, want, bound)


@pytest.mark.parametrize(("Tq", "Tk", "B"), [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_attention_over_nothing_is_zero(Tq, Tk, B):
    layer = AdditiveAttention(3, 4, 5, seed=0)
    got, backward = layer.forward(np.ones((Tq, B, 3), F32), np.ones((Tk, B, 4), F32))
    np.testing.assert_array_equal(got.context, np.zeros((Tq, B, 4)))
    grads = backward(np.ones((Tq, B, 4), F32))
    np.testing.assert_array_equal(grads.queries, np.zeros((Tq, B, 3)))
    np.testing.assert_array_equal(grads.keys, np.zeros((Tk, B, 4)))
    for name, array in grads.params.items():
        np.testing.assert_array_equal(array, np.zeros_like(layer.params[name]), err_msg=name)


# Truncated back-propagation


class Regression:
    """An LSTM and a Linear on one long sequence, with every call recorded."""

    def __init__(self, steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.lstm, self.head = fastrnn.LSTM(2, 5, dtype="float64", seed=seed), Linear(5, 1, dtype="float64", seed=seed)
        self.x, self.targets = rng.standard_normal((steps, 3, 2)), rng.standard_normal((steps, 3, 1))
        self.optimiser, self.grads, self.spans, self.advanced = SGD(0.5), [], [], []

    def params(self) -> dict[str, np.ndarray]:
        return {**self.lstm.params, **{f"head.{n}": a for n, a in self.head.params.items()}}

    def learn(self, span, state):
        part = slice(span.start, span.stop)
        y, state, rnn_backward = self.lstm.forward(self.x[part], state)
        out, head_backward = self.head.forward(y)
        counts = np.zeros(out.shape[:2], bool)
        counts[span.scored - span.start :] = True
        _, loss_backward = half_mse(out, self.targets[part], mask=counts)
        head = head_backward(loss_backward())
        grads = {**rnn_backward(head.x).params, **{f"head.{n}": a for n, a in head.params.items()}}
        updated = self.optimiser.step(self.params(), grads)
        self.lstm.update({n: a for n, a in updated.items() if not n.startswith("head.")})
        self.head.update({n[5:]: a for n, a in updated.items() if n.startswith("head.")})
        self.spans.append(tuple(span))
        self.grads.append(grads)
        return state

    def advance(self, start, stop, state):
        self.advanced.append((start, stop))
        return self.lstm(self.x[start:stop], state)[1]


def torch_truncated(problem: Regression, k1: int, k2: int) -> list[dict[str, np.ndarray]]:
    """The definition in torch, with nothing kept but the state where a span begins."""
    lstm, head = torch.nn.LSTM(2, 5).double(), torch.nn.Linear(5, 1).double()
    lstm.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in problem.lstm.params.items()})
    head.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in problem.head.params.items()})
    x, targets = torch.from_numpy(problem.x), torch.from_numpy(problem.targets)
    state, position, found = None, 0, []
    parameters = [*lstm.parameters(), *head.parameters()]
    for before in range(0, len(x), k1):
        stop = min(before + k1, len(x))
        start = max(0, stop - k2)
        with torch.no_grad():
            if start > position:
                state, position = lstm(x[position:start], state)[1], start
        y, after = lstm(x[start:stop], state)
        first = max(before, start)
        loss = ((head(y)[first - start :] - targets[first:stop]) ** 2).mean() / 2
        grads = torch.autograd.grad(loss, parameters)
        names = [*dict(lstm.named_parameters()), *(f"head.{n}" for n, _ in head.named_parameters())]
        found.append({n: g.numpy().copy() for n, g in zip(names, grads, strict=True)})
        with torch.no_grad():
            for parameter, g in zip(parameters, grads, strict=True):
                parameter -= 0.5 * g
        if k2 <= k1:
            state, position = tuple(part.detach() for part in after), stop
    return found


@pytest.mark.parametrize(
    ("k1", "k2"), [(1, 1), (4, 4), (4, 2), (5, 3), (3, 5), (3, 7), (2, 6), (1, 12), (12, 12), (50, 50)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_truncated_bptt_is_the_definition(k1, k2, seed):
    problem = Regression(12, seed)
    wanted = torch_truncated(problem, k1, k2)
    truncated_bptt(problem.learn, problem.advance, 12, k1, k2)
    assert len(problem.grads) == len(wanted) == -(-12 // k1)
    for grads, want in zip(problem.grads, wanted, strict=True):
        for name, array in want.items():
            tolerance.assert_close(name, grads[name], array, tolerance.rounding("float64", 100, 40))


def test_k1_and_k2_of_the_whole_length_are_full_back_propagation():
    problem, full = Regression(9, 3), Regression(9, 3)
    y, _, backward = full.lstm.forward(full.x)
    out, head_backward = full.head.forward(y)
    want = backward(head_backward(half_mse(out, full.targets)[1]()).x).params
    state = truncated_bptt(problem.learn, problem.advance, 9, 9, 9)
    assert problem.spans == [(0, 0, 9)]
    assert problem.advanced == []
    for name, array in want.items():
        tolerance.assert_same_bits(name, problem.grads[0][name], array)
    tolerance.assert_same_bits("state", state[0], full.lstm(full.x)[1][0])


def test_spans_cover_every_loss_once_and_reach_back_k2_steps():
    assert list(spans(10, 4, 4)) == [(0, 0, 4), (4, 4, 8), (6, 8, 10)]
    assert list(spans(10, 4, 2)) == [(2, 2, 4), (6, 6, 8), (8, 8, 10)]
    assert list(spans(7, 2, 5)) == [(0, 0, 2), (0, 2, 4), (1, 4, 6), (2, 6, 7)]
    for steps, k1, k2 in ((13, 3, 8), (5, 9, 9), (1, 1, 1)):
        scored = [t for span in spans(steps, k1, k2) for t in range(span.scored, span.stop)]
        assert scored == list(range(steps))


# Teacher forcing and curriculum


def counting_step(calls: list[np.ndarray]):
    """A model whose likeliest next token is (token + 10 * the number of the step) % 100."""

    def step(state, tokens):
        calls.append(tokens.copy())
        return np.eye(100)[(tokens + 10 * (state + 1)) % 100], state + 1

    return step


def test_teacher_forcing_by_a_ratio():
    T, B = 50, 40
    rng = np.random.default_rng(0)
    targets, start = rng.integers(100, size=(T, B)), np.arange(B)
    shifted = np.concatenate([start[None], targets[:-1]])
    calls: list[np.ndarray] = []
    np.testing.assert_array_equal(decoder_inputs(targets, start, 1.0, None, None, rng), shifted)
    free = decoder_inputs(targets, start, 0.0, counting_step(calls), 0, rng)
    np.testing.assert_array_equal(free[1:], (free[:-1] + 10 * np.arange(1, T)[:, None]) % 100)
    np.testing.assert_array_equal(free[0], start)
    assert len(calls) == T - 1
    mixed = decoder_inputs(targets, start, 0.7, counting_step(calls), 0, np.random.default_rng(1))
    own = (mixed[:-1] + 10 * np.arange(1, T)[:, None]) % 100
    assert ((mixed[1:] == shifted[1:]) | (mixed[1:] == own)).all()
    rate, deviation = (mixed[1:] == shifted[1:]).mean(), (0.7 * 0.3 / targets.size) ** 0.5
    assert abs(rate - 0.7 - 0.3 * 0.01) < 5 * deviation  # one own choice in a hundred is right by chance
    again = decoder_inputs(targets, start, 0.7, counting_step([]), 0, np.random.default_rng(1))
    np.testing.assert_array_equal(mixed, again)
    assert mixed.dtype == targets.dtype


def test_a_curriculum_sees_short_sequences_first():
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 60, size=1000)
    curriculum = Curriculum(lengths, steps=200, first=0.1)
    longest, rng = [], np.random.default_rng(6)
    for step in range(300):
        eligible = curriculum.eligible(step)
        share = min(1.0, 0.1 + 0.9 * step / 200)
        assert len(eligible) >= share * 1000
        assert lengths[eligible].max() == np.sort(lengths)[int(np.ceil(share * 1000)) - 1]
        outside = np.setdiff1d(np.arange(1000), eligible)
        assert outside.size == 0 or lengths[outside].min() > lengths[eligible].max()
        longest.append(lengths[rng.choice(eligible, 32)].max())
    assert max(longest[:20]) < 15
    assert np.all(np.diff([lengths[curriculum.eligible(s)].max() for s in range(300)]) >= 0)
    assert len(curriculum.eligible(200)) == len(curriculum.eligible(10_000)) == 1000
    assert list(Curriculum([7, 3, 9], 10, 0.01).eligible(0)) == [1]


# Arrays of another module


def on_device(layer, xp):
    layer._params = {name: xp.asarray(array) for name, array in layer._params.items()}
    return layer


def test_the_kit_works_on_arrays_that_numpy_does_not_know():
    """The same numbers on a stand-in for CuPy that refuses every `np.*` of its arrays."""
    rng = np.random.default_rng(8)
    x, ids = rng.standard_normal((6, 3, 5)), rng.integers(4, size=(6, 3))
    mask, d = rng.random((6, 3)) < 0.7, rng.standard_normal((6, 3, 5))
    queries = rng.standard_normal((2, 3, 4))
    one_hot = np.eye(5)[ids]

    def results(put, adapt):
        attention = adapt(AdditiveAttention(4, 5, 7, dtype="float64", seed=1))
        linear, embedding = (
            adapt(Linear(5, 5, dtype="float64", seed=2)),
            adapt(Embedding(4, 5, dtype="float64", seed=3)),
        )
        found = {}
        attended, backward = attention.forward(put(queries), put(x), put(mask))
        grads = backward(attended.context)
        found |= {"context": attended.context, "queries": grads.queries, "keys": grads.keys, **grads.params}
        y, backward = linear.forward(put(x))
        found |= {"y": y, **{f"linear.{n}": a for n, a in backward(put(d)).params.items()}}
        found["embedding"] = embedding.forward(put(ids))[1](put(d)).params["weight"]
        found["dropout"] = Dropout(0.4, seed=4).forward(put(x), training=True)[0]
        for name, targets, options in (
            ("index", put(ids), {"mask": put(mask), "ignore_index": 1}),
            ("one-hot", put(one_hot), {"mask": put(mask)}),
            ("all", put(ids), {}),
        ):
            loss, backward = softmax_cross_entropy(put(x), targets, **options)
            found |= {name: loss, f"d {name}": backward()}
        loss, backward = mse(put(x), put(d), mask=put(mask))
        found |= {"mse": loss, "d mse": backward()}
        params = {"w": put(x)}
        for optimiser in (SGD(0.1, 0.9, nesterov=True), Adam(), AdamW()):
            for _ in range(2):
                params = optimiser.step(params, {"w": put(d)})
        found["optimised"] = params["w"]
        clipped, found["norm"] = clip_by_global_norm(params, 0.5)
        found["clipped"] = clipped["w"]
        start = put(np.zeros(3, ids.dtype))
        found["inputs"] = decoder_inputs(
            put(ids), start, 0.5, lambda state, tokens: (put(d)[0], state), None, np.random.default_rng(0)
        )
        return found

    with fastrnn.use_backend("reference"):
        want = results(lambda a: a, lambda layer: layer)
        with strict.installed() as cupy:
            with pytest.raises(TypeError, match=r"not allowed|unsupported|does not support|ufunc"):
                np.exp(cupy.asarray(x))
            got = results(cupy.asarray, lambda layer: on_device(layer, cupy))
    for name, value in want.items():
        if isinstance(value, np.ndarray):
            assert isinstance(got[name], strict.ndarray), name
            if name == "embedding":  # summed in another order: CuPy's reduceat is not good enough
                tolerance.assert_close(name, got[name].get(), value, tolerance.rounding("float64", 0, ids.size))
            else:
                tolerance.assert_same_bits(name, got[name].get(), value)
        else:
            assert float(got[name]) == float(value), name


@pytest.mark.parametrize("N", [1, 2, 5, 64, 99])
@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_vectors_that_share_an_index_are_summed_alone_also_there(N, kind):
    """No sum over all rows comes into it: NaN and huge values of one index reach no other one."""
    rng = np.random.default_rng(N)
    values, index = rng.standard_normal((N, 3)).astype(F32), rng.integers(1, 9, size=N).astype(kind)
    values[index == 2], values[index == 3] = np.nan, 1e30
    want = np.stack([values[index == k].astype(np.float64).sum(axis=0) for k in range(256)])
    with strict.installed() as cupy:
        there = embedding.scatter_add(cupy.asarray(values), cupy.asarray(index), 256).get()
    for got in (there, embedding.scatter_add(values, index, 256)):
        for k in range(256):
            if k == 2 and (index == 2).any():
                assert np.isnan(got[k]).all()
            else:
                tolerance.assert_close(f"index {k}", got[k], want[k], tolerance.rounding("float32", 0, N))


Z2, Z23 = np.zeros(2), np.zeros((2, 3))
ATTEND, QUERIES, KEYS = AdditiveAttention(2, 2, 2), np.zeros((1, 3, 2), F32), np.zeros((4, 3, 2), F32)
cross_entropy = softmax_cross_entropy


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mse(Z23, np.zeros((3, 2))), ShapeError, r"targets: expected \[2, 3\] float64, got"),
        (lambda: mse(Z2, np.zeros(2, F32)), TypeError, "targets: expected .* float64, got"),
        (lambda: mse([1.0], np.zeros(1)), TypeError, "y: expected a numpy or cupy array, got list"),
        (lambda: mse(Z2, Z2, reduction="none"), ValueError, "reduction: expected one of 'mean', 'sum'"),
        (lambda: mse(Z2, Z2, mask=np.zeros(2, bool)), ValueError, "y: expected at least one element"),
        (lambda: mse(np.zeros(0), np.zeros(0)), ValueError, "y: expected at least one element"),
        (lambda: mse(Z23, Z23, mask=np.zeros(3, bool)), ShapeError, r"mask: expected \[2\] bool"),
        (lambda: mse(Z2, Z2, mask=np.ones(2)), TypeError, r"mask: expected \[2\] bool .*got \(2,\) float64"),
        (lambda: mse(Z2, Z2, mask=[True, True]), TypeError, "mask: expected"),
        (lambda: cross_entropy(Z23, np.full((2, 3), 0.5)), ValueError, "targets: expected probab"),
        (lambda: cross_entropy(np.zeros((1, 2)), np.array([[2.0, -1.0]])), ValueError, "targets: expected probab"),
        (lambda: cross_entropy(Z23, np.array([1, 5]), ignore_index=1), ValueError, "got 5 to 5"),
        (lambda: cross_entropy(Z23, np.array([1, 1]), ignore_index=1), ValueError, "at least one row"),
        (lambda: cross_entropy(np.zeros((1, 3)), np.eye(3)[:1], ignore_index=1), ValueError, "ignore_index"),
        (lambda: cross_entropy(Z23, np.array([0, 1]), mask=np.ones((2, 1), bool)), ShapeError, "mask"),
        (lambda: Dropout(1.0), ValueError, "p: expected 0 <= p < 1"),
        (lambda: Dropout(0.5, seed=-1), ValueError, "seed: expected at least 0"),
        (lambda: Dropout(0.5)([1.0]), TypeError, "x: expected a numpy or cupy array"),
        (lambda: Dropout(0.5).forward(np.zeros(3))[1](np.zeros(4)), ShapeError, "d_output"),
        (lambda: AdditiveAttention(0, 1, 1), ValueError, "query_size: expected at least 1"),
        (lambda: ATTEND(QUERIES, np.zeros((4, 2, 2), F32)), ShapeError, "keys: expected"),
        (lambda: ATTEND(np.zeros((1, 3, 2)), KEYS), TypeError, "queries: expected"),
        (
            lambda: ATTEND(QUERIES, KEYS, np.ones((3, 4), bool)),
            ShapeError,
            r"mask: expected \[4, 3\] bool",
        ),
        (lambda: truncated_bptt(None, None, 5, 0, 1), ValueError, "k1: expected at least 1, got 0"),
        (lambda: truncated_bptt(None, None, 5, 1, 0), ValueError, "k2: expected at least 1, got 0"),
        (lambda: truncated_bptt(None, None, 5, 1, 2.0), TypeError, "k2: expected an integer"),
        (lambda: decoder_inputs(np.zeros((2, 2), int), np.zeros(2, int), 1.5, None, None, None), ValueError, "ratio"),
        (lambda: decoder_inputs(np.zeros((2, 2)), Z2, 1.0, None, None, None), TypeError, "targets: expected"),
        (lambda: decoder_inputs(np.zeros((2, 2), int), np.zeros(3, int), 1.0, None, None, None), ShapeError, "start"),
        (lambda: Curriculum([], 5), ShapeError, "lengths: expected"),
        (lambda: Curriculum([1], 0), ValueError, "steps: expected at least 1"),
        (lambda: Curriculum([1], 5, 0.0), ValueError, "first: expected 0 < first <= 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
