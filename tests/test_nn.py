"""The training kit against torch, by value: outputs, losses and every gradient."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastrnn
from fastrnn import ShapeError
from fastrnn.nn import Embedding, Linear, softmax_cross_entropy
from tests import tolerance

DTYPES = ["float32", "float64"]


def close(name: str, got: np.ndarray, want: torch.Tensor, terms: int) -> None:
    """Each element of `got` is a sum of `terms` products, added in another order than torch's."""
    want_array = want.detach().numpy()
    assert got.dtype == want_array.dtype, name
    assert got.shape == want_array.shape, name
    assert tolerance.error(got, want_array) <= tolerance.rounding(str(got.dtype), 0, terms), name


def normal(rng: np.random.Generator, *shape: int, dtype: str) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (7,), (5, 3), (0,), (2, 1, 33)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 7), (5, 257)])
def test_linear_is_torchs(backend, dtype, bias, lead, inputs, outputs):
    rng = np.random.default_rng(1)
    ours = Linear(inputs, outputs, bias, dtype=dtype, seed=3)
    theirs = torch.nn.Linear(inputs, outputs, bias, dtype=getattr(torch, dtype))
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    x, d = normal(rng, *lead, inputs, dtype=dtype), normal(rng, *lead, outputs, dtype=dtype)
    tx = torch.from_numpy(x).requires_grad_()
    want = theirs(tx)
    want.backward(torch.from_numpy(d))
    rows = int(np.prod(lead))
    with fastrnn.use_backend(backend):
        y, backward = ours.forward(x)
        np.testing.assert_array_equal(ours(x), y)
    close("y", y, want, inputs)
    for _ in range(2):  # backward is pure: called again, it returns the same
        grads = backward(d)
        close("x", grads.x, tx.grad, outputs)
        assert set(grads.params) == set(dict(theirs.named_parameters()))
        for name, parameter in theirs.named_parameters():
            close(name, grads.params[name], parameter.grad, rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_has_the_same_bits_on_any_number_of_threads(dtype):
    rng = np.random.default_rng(6)
    layer = Linear(77, 45, dtype=dtype, seed=1)
    x, d = normal(rng, 3001, 77, dtype=dtype), normal(rng, 3001, 45, dtype=dtype)
    before, results = fastrnn.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            fastrnn.set_num_threads(number)
            y, backward = layer.forward(x)
            grads = backward(d)
            results.append({"y": y, "x": grads.x, **grads.params})
    finally:
        fastrnn.set_num_threads(before)
    for other in results[1:]:
        for name, array in results[0].items():
            assert other[name].tobytes() == array.tobytes(), name


def test_linear_follows_an_update_and_back_propagates_through_the_old_weights():
    layer, x = Linear(3, 2, bias=False, seed=0), np.eye(3, dtype=np.float32)
    old = layer.params["weight"].copy()
    _, backward = layer.forward(x)
    backward(np.zeros((3, 2), np.float32))
    layer.update({"weight": 2 * old})
    np.testing.assert_array_equal(layer(x), 2 * old.T)
    np.testing.assert_array_equal(backward(np.eye(3, 2, dtype=np.float32)).x[:2], old)
    np.testing.assert_array_equal(layer.forward(x)[1](np.eye(3, 2, dtype=np.float32)).x[:2], 2 * old)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("lead", [(), (1,), (301,), (17, 9), (0, 4)])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (11, 5), (200, 33)])
def test_embedding_is_torchs(dtype, index_dtype, lead, rows, width):
    rng = np.random.default_rng(2)
    ours = Embedding(rows, width, dtype=dtype, seed=4)
    weight = torch.from_numpy(ours.state_dict()["weight"]).requires_grad_()
    x = np.asarray(np.minimum(rng.geometric(0.2, lead), rows) - 1, index_dtype)  # uneven: many repeats, gaps between
    want = functional.embedding(torch.from_numpy(x.astype(np.int64)), weight)
    d = normal(rng, *lead, width, dtype=dtype)
    want.backward(torch.from_numpy(d))
    y, backward = ours.forward(x)
    np.testing.assert_array_equal(y, want.detach().numpy())
    np.testing.assert_array_equal(ours(x), y)
    for _ in range(2):
        grads = backward(d)
        assert grads.x is None
        close("weight", grads.params["weight"], weight.grad, x.size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(1,), (257,), (13, 5)])
@pytest.mark.parametrize("classes", [1, 2, 97])
@pytest.mark.parametrize("size", [1.0, 50.0, 1e4], ids="scale{:g}".format)
def test_cross_entropy_is_torchs(dtype, lead, classes, size):
    rng = np.random.default_rng(5)
    logits = normal(rng, *lead, classes, dtype=dtype) * np.dtype(dtype).type(size)
    targets = rng.integers(classes, size=lead)
    tl = torch.from_numpy(logits.copy()).requires_grad_()
    want = functional.cross_entropy(tl.reshape(-1, classes), torch.from_numpy(targets).reshape(-1))
    want.backward()
    before = logits.copy()
    loss, backward = softmax_cross_entropy(logits, targets)
    # The terms of the loss are as large as the logits, and cancel where the class is certain.
    bound = tolerance.rounding(dtype, 0, classes) * max(1.0, float(np.abs(logits).max()))
    assert float(loss) == pytest.approx(want.item(), rel=0, abs=bound)
    np.testing.assert_array_equal(logits, before)
    for scale in (1.0, 1.0, 3.0):
        d_logits = backward(scale)
        assert d_logits.dtype == logits.dtype
        # A probability minus one: however small the difference is, the rounding is that of a number near one.
        difference = np.abs(d_logits - scale * tl.grad.numpy()).max() * targets.size / scale
        assert difference <= tolerance.rounding(dtype, 0, classes)


def test_cross_entropy_of_a_masked_class_is_finite():
    loss, backward = softmax_cross_entropy(np.array([[0.0, -np.inf, 0.0]]), np.array([2]))
    assert float(loss) == pytest.approx(np.log(2), rel=2 * tolerance.EPS["float64"])
    np.testing.assert_allclose(backward(), [[0.5, 0.0, -0.5]], rtol=tolerance.EPS["float64"])


@pytest.mark.parametrize("make", [lambda s: Linear(300, 200, seed=s), lambda s: Embedding(300, 200, seed=s)])
def test_initial_values_are_torchs_defaults(make):
    state, twin, other = make(7).state_dict(), make(7).state_dict(), make(8).state_dict()
    for name, array in state.items():
        np.testing.assert_array_equal(array, twin[name])
        assert not np.array_equal(array, other[name])
    weight = state["weight"].astype(np.float64)
    if "bias" in state:
        bound = 1 / np.sqrt(300)
        for array in state.values():
            assert bound * 0.9 < np.abs(array).max() <= bound
        spread = bound / np.sqrt(3)  # of a uniform distribution
    else:
        spread = 1.0
        assert np.mean(weight**4) == pytest.approx(3, rel=0.05)  # kurtosis of a normal distribution
    assert weight.std() == pytest.approx(spread, rel=0.02)
    assert weight.mean() == pytest.approx(0, abs=0.02 * spread)


def test_parameters_are_written_only_by_update_and_load_state_dict():
    layer = Linear(3, 2, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        layer.params["weight"][0, 0] = 1
    given = np.ones((2, 3), np.float32)
    layer.update({"weight": given})
    given[:] = 5  # the layer keeps its own copy
    want = np.ones((3, 2), np.float32) + layer.params["bias"]
    np.testing.assert_array_equal(layer(np.eye(3, dtype=np.float32)), want)
    state = layer.state_dict()
    state["weight"][:] = 9
    np.testing.assert_array_equal(layer.params["weight"], np.ones((2, 3)))
    other = Linear(3, 2, seed=1)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.params["bias"], layer.params["bias"])


def test_an_update_that_does_not_fit_changes_nothing():
    layer = Linear(3, 2, seed=0)
    before, good = layer.state_dict(), np.zeros(2, np.float32)
    for bad, error, message in (
        ({"bias": good, "weight": np.zeros((3, 2), np.float32)}, ShapeError, r"weight: expected \[2, 3\] float32, got"),
        ({"bias": good, "weight": np.zeros((2, 3))}, TypeError, r"weight: expected \[2, 3\] float32, got .* float64"),
        ({"bias": good, "weight": [[0.0] * 3] * 2}, TypeError, "weight: expected .* as a numpy array"),
        ({"bias": good, "wait": np.zeros((2, 3), np.float32)}, ValueError, "expected names among .*got 'wait'"),
    ):
        with pytest.raises(error, match=message):
            layer.update(bad)
    with pytest.raises(ValueError, match=r"got no \['weight'\]"):
        layer.load_state_dict({"bias": good})
    for name, array in before.items():
        np.testing.assert_array_equal(layer.params[name], array)


F32 = np.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0, 2), ValueError, "in_features: expected at least 1, got 0"),
        (lambda: Linear(2, 2.0), TypeError, "out_features: expected an integer"),
        (lambda: Linear(2, 2, dtype="float16"), TypeError, "dtype: expected one of float32, float64 .*got 'float16'"),
        (lambda: Linear(2, 2, dtype="flaot32"), TypeError, "dtype: expected one of float32, float64"),
        (lambda: Embedding(-1, 2), ValueError, "num_embeddings"),
        (lambda: Linear(3, 2)(np.zeros((4, 2), F32)), ShapeError, r"x: expected \[..., 3\] float32, got \(4, 2\)"),
        (lambda: Linear(3, 2)(np.zeros((4, 3))), TypeError, r"x: expected .* float32, got \(4, 3\) float64"),
        (lambda: Linear(3, 2)(torch.zeros(4, 3)), TypeError, "x: expected .* as a numpy array, got torch.Tensor"),
        (lambda: Linear(3, 2).forward(np.zeros((4, 3), F32))[1](np.zeros((5, 2), F32)), ShapeError, "d_output"),
        (lambda: Embedding(3, 2)(np.zeros(4)), TypeError, "x: expected an array of integers"),
        (lambda: Embedding(3, 2)(np.array([0, 3])), ValueError, r"x: expected indices in \[0, 3\), got 0 to 3"),
        (lambda: Embedding(3, 2)(np.array([-1])), ValueError, r"x: expected indices in \[0, 3\)"),
        (lambda: Embedding(3, 2).forward(np.array([1]))[1](np.zeros((2, 2), F32)), ShapeError, "d_output"),
        (lambda: softmax_cross_entropy(np.zeros((2, 3)), np.array([0, 3])), ValueError, "targets: .* got 0 to 3"),
        (lambda: softmax_cross_entropy(np.zeros((2, 3)), np.array([0])), ShapeError, r"targets: expected \[2\]"),
        (lambda: softmax_cross_entropy(np.zeros((2, 3)), np.zeros((2, 2))), TypeError, "targets: .* integers"),
        (lambda: softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int)), ShapeError, "at least one row"),
        (lambda: softmax_cross_entropy(np.zeros((2, 3), int), np.zeros(2, int)), TypeError, "logits: expected one of"),
        (lambda: Linear(3, 2)(np.ma.zeros((4, 3), F32)), TypeError, "x: expected .* as a numpy array, got"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
