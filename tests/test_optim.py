"""Adam and clipping against torch, step by step."""

import numpy as np
import pytest
import torch

from fastrnn import ShapeError
from fastrnn.optim import SGD, Adam, AdamW, ReduceLROnPlateau, clip_by_global_norm
from tests import tolerance

SHAPES = {"weight": (7, 33), "bias": (1,), "table": (3, 5, 2)}
STEPS = 25


def start(seed: int, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0)}],
    ids=["default", "other", "b0"],
)
def test_adam_is_torchs_at_every_step(dtype, options):
    params = start(0, dtype)
    theirs = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in params.items()}
    adam, torch_adam = Adam(**options), torch.optim.Adam(theirs.values(), foreach=False, **options)
    for step in range(STEPS):
        lr = adam.lr * 0.9
        adam.lr = torch_adam.param_groups[0]["lr"] = lr  # a schedule may set it
        grads = {name: array * 10.0 ** (step % 5 - 3) for name, array in start(step + 1, dtype).items()}
        for name, tensor in theirs.items():
            tensor.grad = torch.from_numpy(grads[name].copy())
        torch_adam.step()
        before = {name: array.copy() for name, array in params.items()}
        updated = adam.step(params, grads)
        for name in SHAPES:
            np.testing.assert_array_equal(params[name], before[name], err_msg=f"{name}: input written")
            assert updated[name].dtype == dtype
            error = tolerance.error(updated[name], theirs[name].detach().numpy())
            assert error <= tolerance.rounding(dtype, step, 1), f"{name} after step {step}"
        params = updated


def test_adam_restored_from_its_state_goes_on_with_the_same_bits():
    params = start(0, "float32")
    adam = Adam()
    for seed in (1, 2, 3):
        params = adam.step(params, start(seed, "float32"))
    state = adam.state_dict()
    restored = Adam()
    restored.load_state_dict(state)
    want = adam.step(params, start(4, "float32"))
    state["m.weight"][:] = 0  # a copy: nobody's business
    for name, array in restored.step(params, start(4, "float32")).items():
        np.testing.assert_array_equal(array, want[name])


def test_adam_refuses_a_step_whole():
    params, grads = start(0, "float32"), start(1, "float32")
    adam = Adam()
    adam.step(params, grads)
    before = adam.state_dict()
    for bad, error, message in (
        ({**grads, "table": grads["table"][:1]}, ShapeError, r"grads\['table'\]: expected \[3, 5, 2\] float32"),
        ({**grads, "table": grads["table"].astype("float64")}, TypeError, r"grads\['table'\]"),
        ({"weight": grads["weight"]}, ValueError, "grads: expected the names"),
    ):
        with pytest.raises(error, match=message):
            adam.step(params, bad)
    with pytest.raises(ValueError, match="params: expected the names"):
        adam.step({"bias": params["bias"]}, {"bias": grads["bias"]})
    for name, array in adam.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    with pytest.raises(ValueError, match="state: expected step, m"):
        adam.load_state_dict({"step": np.array(1), "m.a": np.zeros(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1.0}, "lr"), ({"lr": float("nan")}, "lr"), ({"betas": (0.9, 1.0)}, "betas"), ({"eps": -1e-8}, "eps")],
)
def test_adam_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}: expected"):
        Adam(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": "0.1"}, "lr"), ({"lr": None}, "lr"), ({"betas": 0.9}, "betas"), ({"betas": (0.9,)}, "betas"),
     ({"betas": ("a", 0.9)}, "betas"), ({"eps": True}, "eps")],
)  # fmt: skip
def test_adam_refuses_options_of_another_type(options, message):
    with pytest.raises(TypeError, match=f"^{message}: expected"):
        Adam(**options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("theta", [0.01, 1.0, 1e6])
def test_clipping_scales_all_gradients_together(dtype, theta):
    grads = start(3, dtype)
    tensors = [torch.from_numpy(array.astype("float64")).requires_grad_() for array in grads.values()]
    for tensor, array in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.from_numpy(array.astype("float64"))
    want = torch.nn.utils.clip_grad_norm_(tensors, theta).item()
    before = {name: array.copy() for name, array in grads.items()}
    clipped, norm = clip_by_global_norm(grads, theta)
    assert norm == pytest.approx(want, rel=tolerance.rounding("float64", 0, 262))
    for name, array in clipped.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(grads[name], before[name])
        exact = before[name].astype("float64") * min(1.0, theta / want)
        np.testing.assert_allclose(array, exact, rtol=2 * tolerance.EPS[dtype], atol=0, err_msg=name)
    if norm > theta:
        assert clip_by_global_norm(clipped, 2 * theta)[1] == pytest.approx(theta, rel=tolerance.rounding(dtype, 0, 1))


def test_clipping_refuses_what_it_cannot_scale():
    with pytest.raises(ValueError, match=r"grads\['b'\]: expected a finite norm"):
        clip_by_global_norm({"a": np.ones(2), "b": np.array([1.0, np.nan])}, 1.0)
    with pytest.raises(ValueError, match="theta"):
        clip_by_global_norm({"a": np.ones(2)}, 0.0)
    with pytest.raises(TypeError, match="numpy or cupy"):
        clip_by_global_norm({"a": torch.ones(2)}, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (AdamW, torch.optim.AdamW, {}),
        (AdamW, torch.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.3}),
        (AdamW, torch.optim.AdamW, {"weight_decay": 0.0}),
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.7, "nesterov": True}),
    ],
)
def test_other_optimisers_are_torchs_at_every_step(dtype, ours, theirs, options):
    params = start(0, dtype)
    tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in params.items()}
    optimiser, want = ours(**options), theirs(tensors.values(), foreach=False, **options)
    for step in range(STEPS):
        optimiser.lr = want.param_groups[0]["lr"] = optimiser.lr * 0.95
        grads = start(step + 1, dtype)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name].copy())
        want.step()
        before = {name: array.copy() for name, array in (params | grads).items()}
        updated = optimiser.step(params, grads)
        for name in SHAPES:
            np.testing.assert_array_equal((params | grads)[name], before[name], err_msg=f"{name}: input written")
            assert updated[name].dtype == dtype
            error = tolerance.error(updated[name], tensors[name].detach().numpy())
            assert error <= tolerance.rounding(dtype, step, 1), f"{name} after step {step}"
        params = updated


def test_momentum_restored_from_its_state_goes_on_with_the_same_bits():
    params, sgd = start(0, "float32"), SGD(0.1, 0.9)
    for seed in (1, 2):
        params = sgd.step(params, start(seed, "float32"))
    state, restored = sgd.state_dict(), SGD(0.1, 0.9)
    restored.load_state_dict(state)
    want = sgd.step(params, start(3, "float32"))
    state["m.weight"][:] = 0
    for name, array in restored.step(params, start(3, "float32")).items():
        np.testing.assert_array_equal(array, want[name])
    with pytest.raises(ValueError, match="params: expected the names"):
        restored.step({"bias": params["bias"]}, {"bias": params["bias"]})
    with pytest.raises(ValueError, match="state: expected m"):
        restored.load_state_dict({"step": np.array(1)})


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    "options",
    [{}, {"factor": 0.5, "patience": 0}, {"patience": 2, "cooldown": 3, "threshold": 0.05}, {"min_lr": 0.02},
     {"patience": 1, "eps": 0.03}],
    ids=str,
)  # fmt: skip
def test_plateau_has_torchs_sequence(mode, threshold_mode, options):
    options = {"patience": 3, "mode": mode, "threshold_mode": threshold_mode, **options}
    tensor = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([tensor], lr=0.1)
    want = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, **options)
    plateau, lr, reductions = ReduceLROnPlateau(**options), 0.1, 0
    rng = np.random.default_rng(0)
    for step in range(120):
        trend = (1 / (1 + step) if step < 60 else -0.1 + 0.001 * (step % 7)) * (1 if mode == "min" else -1)
        value = float(trend + 0.05 * rng.standard_normal())
        if step % 10 == 0:  # a run that is broken off and restored goes on alike
            state, plateau = plateau.state_dict(), ReduceLROnPlateau(**options)
            plateau.load_state_dict(state)
        before, lr = lr, plateau.step(value, lr)
        want.step(value)
        assert lr == optimiser.param_groups[0]["lr"], step
        reductions += lr < before
    assert reductions >= 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SGD(-1.0), ValueError, "lr: expected"),
        (lambda: SGD(0.1, 1.0), ValueError, "momentum: expected 0 <= p < 1"),
        (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov: expected False without momentum"),
        (lambda: SGD(0.1, 0.5, nesterov=1), TypeError, "nesterov: expected a bool"),
        (lambda: AdamW(weight_decay=-0.1), ValueError, "weight_decay: expected at least 0"),
        (lambda: ReduceLROnPlateau("least"), ValueError, "mode: expected one of 'min', 'max'"),
        (lambda: ReduceLROnPlateau(factor=1.0), ValueError, "factor: expected 0 < factor < 1"),
        (lambda: ReduceLROnPlateau(patience=-1), ValueError, "patience: expected at least 0"),
        (lambda: ReduceLROnPlateau(threshold=-1.0), ValueError, "threshold: expected at least 0"),
        (lambda: ReduceLROnPlateau(threshold_mode="x"), ValueError, "threshold_mode: expected one of"),
    ],
)
def test_options_out_of_range_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
