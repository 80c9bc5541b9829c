"""What must hold without any oracle, on every backend, and a fuzz over all options together.

Where the compiled backend promises equal bits, bits are compared; the reference's products are BLAS's, whose rounding
depends on the shape, so there the comparison is by tolerance.
"""

import random
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cases import (
    BACKENDS,
    CALL,
    CELLS,
    DENSE_CELLS,
    LOSSES,
    Case,
    Problem,
    assert_results,
    by_name,
    draw,
    evaluate,
    expected,
    make_layer,
    nan_scratch,
    rarely_compiled,
    upstream,
    use_threads,
    with_gaps,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, assert_same_bits, rounding

import fastrnn

EVERYTHING: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "lengths": "random", "reset": "random"}


def cases(*options: dict[str, Any], T: int = 7, B: int = 5, H: int = 21) -> list[Case]:
    """Each option on every cell and backend, in float32; those with a projection on cells that can have one."""
    return [
        replace(Case(cell, backend, "float32", T=T, B=B, H=H), **option)
        for backend in BACKENDS
        for cell in CELLS
        for option in options
        if CELLS[cell].cell_state or "proj_size" not in option
    ]


def same(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Equal bits on a compiled backend, equal within rounding on the reference."""
    assert list(got) == list(want)
    for name, value in want.items():
        if case.backend == "reference":
            close(case, name, got[name], value)
        else:
            assert_same_bits(name, got[name], value)


def close(case: Case, name: str, got: np.ndarray, want: np.ndarray) -> None:
    assert_close(name, got, want, rounding(case.dtype, case.T * case.num_layers, case.width))


def same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert_same_bits(name, got[name], value)


def is_weight(name: str) -> bool:
    return name.startswith(("d weight", "d bias", "d norm"))


PLAIN, PROJECTION = {}, {"proj_size": 9}
NORMALISED = {**EVERYTHING, "layer_norm": True}
SOME = cases(PLAIN, EVERYTHING, PROJECTION, NORMALISED)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_permuting_the_batch_permutes_the_result(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    order = np.random.default_rng(1).permutation(case.B)

    def permuted(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(permuted, value))
        return None if value is None else value[order] if value.ndim == 1 else value[:, order]

    other = Problem(*(permuted(getattr(problem, name)) for name in Problem.__dataclass_fields__))
    want = evaluate(layer, case, problem)
    got = evaluate(layer, case, other)
    same(
        case,
        {name: value for name, value in got.items() if not is_weight(name)},
        {name: permuted(value) for name, value in want.items() if not is_weight(name)},
    )
    for name in filter(is_weight, want):  # a sum over the batch, in another order
        close(case, name, got[name], want[name])


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(
    "case",
    cases(PLAIN, {"num_layers": 3, "lengths": "random", "reset": "random"}, {"num_layers": 2, "proj_size": 9}),
    ids=str,
)
def test_a_split_sequence_equals_one_run(case: Case, at: int) -> None:
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    first, second = (
        replace(
            problem, x=problem.x[piece], d_output=problem.d_output[piece],
            reset=None if problem.reset is None else problem.reset[piece],
            lengths=None if problem.lengths is None else np.clip(problem.lengths - start, 0, stop - start),
            d_cells=None if problem.d_cells is None else [d[piece] for d in problem.d_cells],
        )
        for start, stop in ((0, at), (at, case.T))
        for piece in [slice(start, stop)]
    )  # fmt: skip
    with fastrnn.use_backend(case.backend):
        one = layer.forward(first.x, first.state, lengths=first.lengths, reset=first.reset)
        two = layer.forward(second.x, one.state, lengths=second.lengths, reset=second.reset)
        later = two.backward(*upstream(case, second))
        earlier = one.backward(first.d_output, later.state, first.d_cells)
    pieces = {"y": np.concatenate([one.y, two.y])} | by_name(case, two.state)
    if case.cell_state:
        cells = [np.concatenate(pair) for pair in zip(one.cells, two.cells, strict=True)]
        pieces |= {f"cells_l{k}": c for k, c in enumerate(cells)}
    pieces |= {"d x": np.concatenate([earlier.x, later.x])}
    pieces |= {f"d {name}": value for name, value in by_name(case, earlier.state, "_0").items()}
    same(case, pieces, {name: value for name, value in want.items() if not is_weight(name)})
    for name, value in earlier.params.items():  # a sum over time, in another order
        close(case, name, value + later.params[name], want[f"d {name}"])


PADDED = cases(
    {"lengths": "random"},
    EVERYTHING,
    NORMALISED,
    {"lengths": "random", "batch_first": True, "num_layers": 2, "proj_size": 9},
    {"lengths": "random", "num_layers": 2, "bidirectional": True, "dropout": 0.4},
)


def filled(case: Case, problem: Problem, value: float) -> Problem:
    """The problem with `value` wherever there is padding: in x and in every gradient that arrives over time."""
    steps = np.arange(case.T)
    padding = steps[:, None] >= problem.lengths
    padding = padding.T if case.batch_first else padding

    def fill(array: np.ndarray) -> np.ndarray:
        return np.where(padding[..., None], np.array(value, array.dtype), array)

    return replace(
        problem, x=fill(problem.x), d_output=fill(problem.d_output),
        d_cells=None if problem.d_cells is None else [fill(d) for d in problem.d_cells],
    )  # fmt: skip


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padding_reaches_nothing(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, filled(case, problem, 0.0))
    assert all(np.isfinite(value).all() for value in want.values())
    for garbage in (np.nan, np.inf, 1e30):
        same_bits(evaluate(layer, case, filled(case, problem, garbage)), want)
    padding = np.arange(case.T)[:, None] >= problem.lengths
    for name, value in want.items():
        if name in ("y", "d x") or name.startswith("cells"):
            value = value.swapaxes(0, 1) if case.batch_first else value
            assert not value[padding].any(), f"{name} is not zero past the end"
            assert value[~padding].any()


@pytest.mark.parametrize("case", PADDED, ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy, in the reference
def test_the_state_of_an_empty_sequence_reaches_nothing(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    assert problem.lengths is not None
    (row,) = np.flatnonzero(problem.lengths == 0)

    def with_state(value: float) -> dict[str, np.ndarray]:
        parts = [part.copy() for part in (problem.state if case.cell_state else [problem.state])]
        for part in parts:
            part[:, row] = value
        state = tuple(parts) if case.cell_state else parts[0]
        return evaluate(layer, case, replace(problem, state=state))

    got, want = with_state(np.nan), with_state(0.0)
    for name in ("h_n", "c_n") if case.cell_state else ("h_n",):
        assert np.isnan(got[name][:, row]).all()
        got[name][:, row] = 0
    same_bits(got, want)


@pytest.mark.parametrize("case", cases({"lengths": "random"}, EVERYTHING), ids=str)
def test_each_sequence_of_a_padded_batch_is_as_if_alone(case: Case) -> None:
    layer, problem = make_layer(case), filled(case, draw(case), np.nan)
    together = evaluate(layer, case, problem)
    assert problem.lengths is not None
    alone: list[dict[str, np.ndarray]] = []
    for b, length in enumerate(problem.lengths):
        row = slice(b, b + 1)

        def of_row(value: Any, row: slice = row) -> Any:
            return tuple(v[:, row] for v in value) if isinstance(value, tuple) else value[:, row]

        single = Problem(
            problem.x[:length, row], of_row(problem.state), None,
            None if problem.reset is None else problem.reset[:length, row], problem.d_output[:length, row],
            of_row(problem.d_state), None if problem.d_cells is None else [d[:length, row] for d in problem.d_cells],
        )  # fmt: skip
        alone.append(evaluate(layer, replace(case, B=1, T=int(length)), single))
        for name, value in alone[-1].items():
            if not is_weight(name):
                over_time = name in ("y", "d x") or name.startswith("cells")
                close(case, name, together[name][: length if over_time else None, row], value)
    for name in filter(is_weight, together):
        close(case, name, together[name], sum(one[name] for one in alone))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_saving_or_not_gives_the_same_bits(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    with fastrnn.use_backend(case.backend):
        y, state = layer(problem.x, problem.state, lengths=problem.lengths, reset=problem.reset)
        saved = layer.forward(problem.x, problem.state, lengths=problem.lengths, reset=problem.reset)
    same_bits({"y": y} | by_name(case, state), {"y": saved.y} | by_name(case, saved.state))


@pytest.mark.parametrize("case", SOME + cases({"num_layers": 3, "dropout": 0.5}), ids=str)
def test_backward_is_pure(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    copy = problem.astype(case.dtype)
    with fastrnn.use_backend(case.backend):
        result = layer.forward(
            problem.x, problem.state, lengths=problem.lengths, reset=problem.reset, training=case.is_training
        )
    given = upstream(case, problem)
    first, second = result.backward(*given), result.backward(*given)
    result.y[...] = np.nan  # what was handed out is the caller's: writing to it must not reach a later backward pass
    for value in by_name(case, result.state).values():
        value[...] = np.nan
    for value in (*by_name(case, second.state, "_0").values(), *second.params.values(), second.x):
        value[...] = np.nan
    layer.update({name: value + 1 for name, value in layer.params.items()})  # of later calls, not of this one
    third, freed = result.backward(*given), result.backward(*given, free=True)
    for grads in (third, freed):
        assert_same_bits("x", grads.x, first.x)
        same_bits(by_name(case, grads.state), by_name(case, first.state))
        same_bits(grads.params, first.params)
    with pytest.raises(RuntimeError, match="free=True"):
        result.backward(*given)
    for name in Problem.__dataclass_fields__:
        np.testing.assert_equal(getattr(problem, name), getattr(copy, name), err_msg=f"{name} was written to")


@pytest.mark.parametrize("case", SOME, ids=str)
def test_no_gradient_from_outside_means_no_gradient(case: Case) -> None:
    result = evaluate(make_layer(case), replace(case, losses=()), draw(case))
    for name, value in result.items():
        if name.startswith("d "):
            assert not value.any(), name


@pytest.mark.parametrize("case", [c for c in SOME if c.cell_state], ids=str)
def test_cells_are_the_cell_states_step_by_step(case: Case) -> None:
    case = replace(case, bidirectional=False, num_layers=1)
    layer, problem = make_layer(case), draw(case)
    cells = evaluate(layer, case, problem)["cells_l0"]
    assert cells.shape == (case.T, case.B, case.H)
    state = problem.state
    for t in range(case.T):
        reset = None if problem.reset is None else problem.reset[t : t + 1]
        with fastrnn.use_backend(case.backend):
            _, state = layer(problem.x[t : t + 1], state, reset=reset)
        here = np.full(case.B, True) if problem.lengths is None else t < problem.lengths
        close(case, f"c at {t}", cells[t], np.where(here[:, None], state[1][0], 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("case", cases(PLAIN, EVERYTHING, PROJECTION, NORMALISED, H=33), ids=str)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # of NumPy, in the reference
def test_nan_in_one_row_stays_in_that_row(case: Case, bad: float) -> None:
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    row = 2
    others = [b for b in range(case.B) if b != row]
    for name in ("x", "state", "d_output", "d_state", "d_cells"):
        value = getattr(problem, name)
        if value is None:
            continue
        parts = [part.copy() for part in (value if isinstance(value, (tuple, list)) else [value])]
        for part in parts:
            part[:, row] = bad
        poisoned = type(value)(parts) if isinstance(value, (tuple, list)) else parts[0]
        got = evaluate(layer, case, replace(problem, **{name: poisoned}))
        for array in want:
            if not is_weight(array):
                assert_same_bits(f"{array} with {bad} in {name}", got[array][:, others], want[array][:, others])


@pytest.mark.parametrize("case", cases(PLAIN, {**EVERYTHING, "batch_first": True}), ids=str)
def test_layout_in_memory_does_not_matter(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)

    def laid_out(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(laid_out, value))
        return value if value is None else with_gaps(value) if value.dtype == case.dtype else np.asfortranarray(value)

    other = Problem(*(laid_out(getattr(problem, name)) for name in Problem.__dataclass_fields__))
    assert not other.x.flags.c_contiguous
    same(case, evaluate(layer, case, other), evaluate(layer, case, problem))


@pytest.mark.parametrize("case", cases(PLAIN, {**EVERYTHING}), ids=str)
def test_read_only_inputs_are_enough(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    want = evaluate(layer, case, problem)
    for name in Problem.__dataclass_fields__:
        value = getattr(problem, name)
        for part in value if isinstance(value, (tuple, list)) else [value]:
            if part is not None:
                part.flags.writeable = False
    same_bits(evaluate(layer, case, problem), want)


EMPTY = [
    replace(case, **size)
    for case in cases(PLAIN, EVERYTHING, NORMALISED, {"proj_size": 9, "num_layers": 2, "batch_first": True})
    for size in ({"T": 0}, {"B": 0}, {"T": 0, "B": 0}, {"lengths": "zero"})
]


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_sequences_return_the_initial_state(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    with nan_scratch():
        result = evaluate(layer, case, problem)
    assert result["y"].shape == (*problem.x.shape[:2], (1 + case.bidirectional) * case.output_size)
    assert not result["y"].any()
    initial, d_final = by_name(case, problem.state), by_name(case, problem.d_state, "_0")
    for name, value in by_name(case, problem.state).items():
        assert_same_bits(name, result[name], initial[name])
        assert_same_bits(f"d {name}", result[f"d {name[0]}_0"], d_final[f"{name[0]}_0"])
        assert value.size or case.B == 0
    for name, value in result.items():
        if is_weight(name) or name == "d x" or name.startswith("cells"):
            assert not value.any(), name
    assert result["d x"].shape == problem.x.shape
    for name, value in layer.params.items():
        assert result[f"d {name}"].shape == value.shape
    with fastrnn.use_backend(case.backend):
        y, state = layer(problem.x, problem.state, lengths=problem.lengths)
    same_bits({"y": y} | by_name(case, state), {name: result[name] for name in ("y", *initial)})


# Fuzz: every draw has at least four options that are not the default.

CHOICES: dict[str, tuple[Any, ...]] = {  # the first is the default
    "cell": ("rnn_tanh", *(name for name in CELLS if name != "rnn_tanh")),
    "dtype": ("float32", "float64"),
    "num_layers": (1, 2, 3),
    "bidirectional": (False, True),
    "bias": (True, False),
    "batch_first": (False, True),
    "proj_size": (0, 1, 5),
    "dropout": (0.0, 0.3),
    "zoneout": (0.0, 0.2),
    "recurrent_dropout": (0.0, 0.25),
    "layer_norm": (False, True),
    "recurrent": ("full", "diagonal", "mask"),
    "save": ("gates", "recompute"),
    "training": (False, True),
    "lengths": ("none", "random", "full", "zero"),
    "reset": ("none", "random", "first", "all"),
    "state": ("none", "given", "h"),
    "unbatched": (False, True),
    "strided": (False, True),
    "losses": (LOSSES, ("y",), ("state",), ("cells",), ("state", "cells")),
    "threads": (1, 2, 3),
}
SIZES = {"T": st.integers(1, 9), "B": st.integers(1, 9), "I": st.integers(1, 20), "H": st.integers(6, 40)}


def possible(options: dict[str, Any]) -> bool:
    """Whether these options may occur together."""
    cell_state = CELLS[options.get("cell", "lstm")].cell_state
    needs_cell_state = options.get("proj_size") or options.get("state") == "h" or options.get("losses") == ("cells",)
    unbatched_lengths = options.get("unbatched") and options.get("lengths", "none") != "none"
    pointless_dropout = options.get("dropout") and options.get("num_layers", 2) == 1
    implied_training = options.get("dropout") and options.get("training")
    projected_mask = options.get("proj_size") and options.get("recurrent", "full") != "full"
    without_c = needs_cell_state and not cell_state
    without_gates = options.get("dense") and options.get("cell", "lstm") not in DENSE_CELLS
    return not (
        without_c or without_gates or unbatched_lengths or pointless_dropout or implied_training or projected_mask
    )


Choices = dict[str, tuple[Any, ...]]


def possible_pairs(choices: Choices) -> set[Any]:
    return {
        ((a, x), (b, y))
        for a, b in combinations(choices, 2)
        for x in choices[a]
        for y in choices[b]
        if possible({a: x, b: y})
    }


@st.composite
def option_draws(draw_from: st.DrawFn) -> dict[str, Any]:
    """A value for every option; what cannot go together is brought together by changing the cell, or left out."""
    drawn = {name: draw_from(st.sampled_from(values)) for name, values in CHOICES.items()}
    options = {name: drawn[name] for name in ("cell", "num_layers")}
    for name in draw_from(st.permutations([name for name in CHOICES if name not in options])):
        if not possible({**options, name: drawn[name]}) and name in ("proj_size", "state", "losses"):
            options["cell"] = "lstm"
        if not possible({**options, name: drawn[name]}) and name == "dropout" and not options.get("training"):
            options["num_layers"] = 2
        options[name] = drawn[name] if possible({**options, name: drawn[name]}) else CHOICES[name][0]
    return {name: options[name] for name in CHOICES}


def is_unusual(options: dict[str, Any], choices: Choices = CHOICES) -> bool:
    return sum(options[name] != values[0] for name, values in choices.items()) >= 4


fuzz_draws = st.tuples(option_draws().filter(is_unusual), st.fixed_dictionaries(SIZES), st.integers(0, 2**32))


def check_fuzz(options: dict[str, Any], sizes: dict[str, int], seed: int) -> None:
    """The compiled backend against the reference, and the bits of an unsaved run and of one thread."""
    threads = options.pop("threads")
    if options["unbatched"]:
        sizes = {**sizes, "B": 1}
    case = Case(**options, **sizes, backend="cpu", seed=seed)
    layer, problem = make_layer(case), draw(case)
    want = expected(case, problem)
    with use_threads(threads), nan_scratch():
        got = evaluate(layer, case, problem)
    assert_results(case, problem, got, want)
    with use_threads(1):
        same_bits(evaluate(layer, case, problem), got)
        if not case.is_training:
            y, state = layer(problem.x, problem.state, lengths=problem.lengths, reset=problem.reset)
            same_bits({"y": y} | by_name(case, state), {name: got[name] for name in ("y", *by_name(case, state))})


def pairs(options: dict[str, Any]) -> set[Any]:
    return set(combinations(options.items(), 2))


def complete(options: dict[str, Any], rng: random.Random, choices: Choices) -> dict[str, Any] | None:
    """These options and a possible value for every other one; None if some other has none."""
    chosen = dict(options)
    for name in rng.sample(list(choices), len(choices)):
        if name not in chosen:
            fitting = [value for value in choices[name] if possible({**chosen, name: value})]
            if not fitting:
                return None
            chosen[name] = rng.choice(fitting)
    return {name: chosen[name] for name in choices}


def all_pairs(choices: Choices) -> list[dict[str, Any]]:
    """Options in which every possible pair of values occurs: each entry the best of many random ones."""
    rng, missing, found = random.Random(0), possible_pairs(choices), []
    while missing:
        first = dict(min(missing, key=repr))  # a set's own order differs from process to process
        drawn = [options for _ in range(60) if (options := complete(first, rng, choices))]
        found.append(max(filter(partial(is_unusual, choices=choices), drawn), key=lambda o: len(pairs(o) & missing)))
        missing -= pairs(found[-1])
    return found


def covering(choices: Choices) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """Options and sizes in which every possible pair of options' values occurs."""
    rng, result = random.Random(1), []
    for options in all_pairs(choices):
        sizes = {"T": rng.randint(1, 9), "B": rng.randint(1, 9), "I": rng.randint(1, 20), "H": rng.randint(6, 40)}
        result.append((options, {**sizes, "B": 1} if options["unbatched"] else sizes))
    return result


@pytest.mark.parametrize("rare", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_every_pair_of_option_values_together(rare: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """rare: the sets whose kernels no everyday test compiles."""
    sets, wanted = covering(CHOICES), possible_pairs(CHOICES)
    assert set().union(*(pairs(options) for options, _ in sets)) >= wanted
    now = [(seed, *drawn) for seed, drawn in enumerate(sets) if rarely_compiled(drawn[0]) == rare]
    with capsys.disabled():
        print(
            f"\nall {len(wanted)} possible pairs of option values occur in {len(sets)} sets of options: {len(now)} here"
        )
    for seed, options, sizes in now:
        check_fuzz(dict(options), sizes, seed)


@settings(max_examples=200)
@given(fuzz_draws.filter(lambda drawn: not rarely_compiled(drawn[0])))
def test_fuzz_over_all_options_together(drawn: tuple[dict[str, Any], dict[str, int], int]) -> None:
    options, sizes, seed = drawn
    check_fuzz(dict(options), sizes, seed)


@pytest.mark.nightly
@given(fuzz_draws)
def test_long_fuzz_over_all_options_together(drawn: tuple[dict[str, Any], dict[str, int], int]) -> None:
    options, sizes, seed = drawn
    check_fuzz(dict(options), sizes, seed)


@pytest.mark.parametrize("case", cases({"num_layers": 3, "dropout": 0.5}, {**EVERYTHING, "dropout": 0.5}), ids=str)
def test_dropout_repeats_by_call_and_acts_only_in_training(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)

    def run(training: bool) -> np.ndarray:
        with fastrnn.use_backend(case.backend):
            return layer.forward(problem.x, lengths=problem.lengths, reset=problem.reset, training=training).y

    layer.calls = CALL
    first, second = run(True), run(True)
    assert layer.calls == CALL + 2
    without = run(False)
    assert layer.calls == CALL + 2, "only training calls count"
    layer.calls = CALL
    assert_same_bits("the same call", run(True), first)
    assert_same_bits("the next call", run(True), second)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, without)
    with fastrnn.use_backend(case.backend):
        assert_same_bits("a plain call", layer(problem.x, lengths=problem.lengths, reset=problem.reset)[0], without)


# Degenerate options


def equal_up_to_rounding(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, value in want.items():
        close(case, name, got[name], value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coupled", ["", "_coupled"])
def test_zero_peepholes_are_none(backend: str, coupled: str) -> None:
    case = Case(f"lstm{coupled}_peephole", backend, "float32", H=21, **EVERYTHING)
    plain = replace(case, cell=f"lstm{coupled}")
    layer, bare, problem = make_layer(case), make_layer(plain), draw(case)
    zeros = {name: np.zeros_like(value) for name, value in layer.params.items() if name.startswith("weight_p")}
    assert len(zeros) == 4
    layer.update({**bare.params, **zeros})
    got, want = evaluate(layer, case, problem), evaluate(bare, plain, problem)
    assert all(got[f"d {name}"].any() for name in zeros)
    same_bits({name: got[name] for name in want}, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("peephole", ["", "_peephole"])
def test_coupled_gates_are_an_lstm_whose_input_gate_is_the_negated_forget_gate(backend: str, peephole: str) -> None:
    case = Case(f"lstm_coupled{peephole}", backend, "float64", H=21, **EVERYTHING)
    plain = replace(case, cell=f"lstm{peephole}")
    layer, full, problem = make_layer(case), make_layer(plain), draw(case)

    def negated(value: np.ndarray, rows: int) -> np.ndarray:
        return np.concatenate((-value[:rows], value))  # sigma(-a) = 1 - sigma(a)

    def rows_of(name: str) -> int:
        return 1 if name.startswith("weight_p") else case.H

    full.update({name: negated(value, rows_of(name)) for name, value in layer.params.items()})
    got, want = evaluate(layer, case, problem), evaluate(full, plain, problem)
    for name in layer.params:
        d, rows = want[f"d {name}"], rows_of(name)
        want[f"d {name}"] = np.concatenate((d[rows : 2 * rows] - d[:rows], d[2 * rows :]))
    equal_up_to_rounding(case, got, want)
