"""The reference, before it is trusted: directional finite differences in float64 of every array with a gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import CALL, Case, Problem, by_name, draw, evaluate, make_layer, option_cases, upstream
from tolerance import FINITE_DIFFERENCE, FINITE_DIFFERENCE_DENSE, FINITE_DIFFERENCE_NORMALISED

import fastrnn

STEPS = (1e-3,)  # lengths of steps along a direction of unit length, tried in turn: see tolerance.FINITE_DIFFERENCE
STEPS_NORMALISED, STEPS_DENSE = (1e-4, 1e-3, 1e-5), (1e-3, 1e-2)
CASES = [pytest.param(case, id=f"{case.cell}-{name}") for name, case in option_cases("reference", "float64")]


def away_from_kinks(layer: Any, case: Case, problem: Problem) -> Problem:
    """For relu: make every unit clearly on or clearly off at every step, so that no difference straddles a kink.

    With x > 0 and rows of W that have one sign, W x_t is far from 0; U and the biases are made small against it. An
    unbiased unit that sees only dropped or padded zeros sits on the kink, so the biases get the sign of their row.
    """
    if case.cell != "rnn_relu":
        return problem
    params = {}
    for name, value in layer.params.items():
        stem = name.split("_l")[0]
        bias = 0.5 if case.layer_norm else 0.05
        size = {"weight_ih": 0.2, "weight_hh": 0.02, "bias_ih": bias, "bias_hh": bias, "norm_ih": 0.1, "norm_hh": 0.02}
        magnitude = size[stem] * (0.5 + np.abs(value))
        sign = np.where(np.arange(len(value)) % 2, -1.0, 1.0)
        params[name] = np.where(value < 0, -1, 1) * magnitude if stem == "weight_hh" else (magnitude.T * sign).T
    layer.update(params)
    state = None if problem.state is None else np.abs(problem.state)
    return replace(problem, x=0.5 + np.abs(problem.x), state=state)


def loss(layer: Any, case: Case, problem: Problem) -> float:
    """The scalar whose gradient `evaluate` returns: every output times its gradient from outside, summed."""
    with fastrnn.use_backend(case.backend):
        layer.calls = CALL
        result = layer.forward(
            problem.x, problem.state, lengths=problem.lengths, reset=problem.reset, training=case.is_training
        )
    d_output, d_state, d_cells = upstream(case, problem)
    total = 0.0 if d_output is None else float(np.sum(result.y * d_output))
    if d_state is not None:
        outer = by_name(case, d_state)
        total += sum(float(np.sum(value * outer[name])) for name, value in by_name(case, result.state).items())
    if d_cells is not None:
        total += sum(float(np.sum(c * d)) for c, d in zip(result.cells, d_cells, strict=True))
    return total


def directional(f: Callable[[float], float], step: float) -> float:
    """f'(0) by the central stencil of fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


def moved(layer: Any, case: Case, problem: Problem, name: str, value: np.ndarray) -> float:
    """The loss with one array replaced."""
    if name == "x":
        return loss(layer, case, replace(problem, x=value))
    if name in ("h_0", "c_0"):
        arrays = by_name(case, problem.state, "_0") | {name: value}
        return loss(layer, case, replace(problem, state=tuple(arrays.values()) if case.cell_state else value))
    before = layer.params[name]
    layer.update({name: value})
    result = loss(layer, case, problem)
    layer.update({name: before})
    return result


def check_gradients(case: Case, gradients: Callable[..., dict[str, np.ndarray]] = evaluate) -> dict[str, float]:
    """Compare every gradient with differences of the loss along random directions; returns the errors by name."""
    layer, problem = make_layer(case), draw(case)
    problem = away_from_kinks(layer, case, problem)
    grads = {name[2:]: value for name, value in gradients(layer, case, problem).items() if name.startswith("d ")}
    if problem.state is None or case.state == "h":  # left out means zeros, at which the gradient still exists
        zeros = tuple(np.zeros_like(grads[name]) for name in by_name(case, problem.d_state, "_0"))
        h_0 = zeros[0] if problem.state is None else problem.state[0]
        problem = replace(problem, state=(h_0, zeros[1]) if case.cell_state else h_0)
    values = {"x": problem.x} | by_name(case, problem.state, "_0") | dict(layer.params)
    assert list(grads) == list(values)
    steps, allowed = STEPS, FINITE_DIFFERENCE
    if case.layer_norm:
        steps, allowed = STEPS_NORMALISED, FINITE_DIFFERENCE_NORMALISED
    elif case.dense:
        steps, allowed = STEPS_DENSE, FINITE_DIFFERENCE_DENSE
    rng, errors = np.random.default_rng(99), {}
    for name, value in values.items():
        for _ in range(2):
            v = rng.standard_normal(value.shape)
            v /= np.sqrt(np.sum(v * v)) or 1.0

            def along(e: float, name: str = name, value: np.ndarray = value, v: np.ndarray = v) -> float:
                return moved(layer, case, problem, name, value + e * v)

            analytic = float(np.sum(grads[name] * v))
            # of the size that a random direction leads one to expect, so that cancellation hides nothing
            size = np.sqrt(np.sum(grads[name] ** 2) / value.size)
            error = np.inf
            for step in steps:
                error = min(error, abs(analytic - directional(along, step)))
                if error <= allowed * size:
                    break
            errors[name] = max(errors.get(name, 0.0), error / size if size else error)
    wrong = {name: error for name, error in errors.items() if not error <= allowed}
    assert not wrong, f"relative errors {wrong}, allowed {allowed}"
    return errors


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_differences_of_the_loss(case: Case) -> None:
    check_gradients(case)


def last_cache_only(layer: Any, case: Case, problem: Problem) -> dict[str, np.ndarray]:
    """The classic mistake: one cache per cell, overwritten at each step, so backward sees the last step at every t."""
    from fastrnn import reference

    forward = reference.recur_forward

    def forgetful(*args: Any) -> Any:
        finals = forward(*args)
        for saved in (final.saved for final in finals):
            saved.gates[:] = [saved.gates[-1]] * len(saved.gates)
            for array in (saved.h_prev, saved.c_prev, saved.h, saved.c):
                array[:] = array[-1]
        return finals

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "recur_forward", forgetful)
        return evaluate(layer, case, problem)


def test_the_one_cache_mistake_is_caught() -> None:
    with pytest.raises(AssertionError, match="weight_hh_l0"):
        check_gradients(Case("lstm"), last_cache_only)
    with pytest.raises(AssertionError, match="weight_ih_l0"):
        check_gradients(Case("lstm", losses=("state",)), last_cache_only)
    check_gradients(Case("lstm", T=1), last_cache_only)  # with one step the mistake is none: the check is not at fault
