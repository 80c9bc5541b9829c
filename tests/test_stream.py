"""Streams: one step a call equals the whole sequence; the parameters are a snapshot; the state can be read and set."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, CELLS, DTYPES, Case, by_name, draw, make_layer
from tolerance import assert_close, assert_same_bits, rounding

import fastrnn

OPTIONS: list[dict[str, Any]] = [
    {}, {"num_layers": 3, "B": 1}, {"bias": False, "H": 1}, {"proj_size": 5, "num_layers": 2},
    {"zoneout": 0.3, "recurrent": "mask"}, {"recurrent": "diagonal", "num_layers": 2, "recurrent_dropout": 0.5},
    {"zoneout": 0.3, "proj_size": 5}, {"layer_norm": True, "num_layers": 2, "zoneout": 0.3, "bias": False},
    {"layer_norm": True, "proj_size": 5},
]  # fmt: skip
CASES = [
    pytest.param(case, id=str(case))
    for backend in BACKENDS
    for dtype in DTYPES
    for cell in CELLS
    for option in OPTIONS
    if CELLS[cell].cell_state or "proj_size" not in option
    for case in [replace(Case(cell, backend, dtype, T=7, H=21), **option)]
]


@pytest.mark.parametrize("case", CASES)
def test_a_stream_equals_the_whole_sequence(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    with fastrnn.use_backend(case.backend):
        y, state = layer(problem.x)
        with layer.stream(case.B) as stream:
            ys = [stream.step(x).copy() for x in problem.x]
            end = stream.state
    allowed = rounding(case.dtype, case.T * case.num_layers, case.width)
    assert_close("y", np.stack(ys), y, allowed)
    for name, value in by_name(case, state).items():
        assert_close(name, by_name(case, end)[name], value, allowed)


@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_bits_of_a_call_on_one_step(case: Case) -> None:
    layer, problem = make_layer(case), draw(case)
    state = problem.state
    with fastrnn.use_backend(case.backend), layer.stream(case.B) as stream:
        stream.set_state(state)
        for x in problem.x:
            y, state = layer(x[None], state)
            assert_same_bits("y", stream.step(x), y[0])
            for name, value in by_name(case, state).items():
                assert_same_bits(name, by_name(case, stream.state)[name], value)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_is_a_snapshot(backend: str, cell: str) -> None:
    case = Case(cell, backend, "float32")
    layer, problem = make_layer(case), draw(case)
    with fastrnn.use_backend(backend):
        want, _ = layer(problem.x)
        stream = layer.stream(case.B)
        layer.update({name: value * 0 for name, value in layer.params.items()})
        other, _ = layer(problem.x)
    got = np.stack([stream.step(x).copy() for x in problem.x])  # on the backend that it was opened on
    assert_close("y", got, want, rounding(case.dtype, case.T, case.width))
    assert not np.allclose(other, want)


def test_a_closed_stream_still_has_its_state() -> None:
    case = Case("lstm", "cpu", "float32", num_layers=2)
    layer, problem = make_layer(case), draw(case)
    with layer.stream(case.B) as stream:
        for x in problem.x:
            stream.step(x)
    _, state = layer(problem.x)
    for name, value in by_name(case, state).items():
        assert_close(name, by_name(case, stream.state)[name], value, rounding(case.dtype, case.T, case.width))


def test_state_is_a_copy_and_none_sets_zeros() -> None:
    case = Case("lstm", "cpu", proj_size=3, num_layers=2)
    layer, problem = make_layer(case), draw(case)
    with layer.stream(case.B) as stream:
        first = stream.step(problem.x[0]).copy()
        h, c = stream.state
        h[...] = c[...] = np.nan
        assert np.isfinite(stream.step(problem.x[1])).all()
        stream.set_state(None)
        assert_same_bits("y", stream.step(problem.x[0]), first)
        given = (problem.state[0].copy(), problem.state[1].copy())
        stream.set_state(given)
        after = stream.step(problem.x[0]).copy()
        given[0][...] = np.nan
        stream.set_state(problem.state)
        assert_same_bits("y", stream.step(problem.x[0]), after)
        stream.set_state((problem.state[0], None))
        zero_c = layer(problem.x[:1], (problem.state[0], np.zeros_like(problem.state[1])))[0][0]
        assert_same_bits("y", stream.step(problem.x[0]), zero_c)


def test_two_streams_do_not_share_a_state() -> None:
    case = Case("gru", "cpu", B=1)
    layer, problem = make_layer(case), draw(case)
    with layer.stream() as one, layer.stream() as two:
        first = one.step(problem.x[0]).copy()
        one.step(problem.x[1])
        assert_same_bits("y", two.step(problem.x[0]), first)


@pytest.mark.parametrize("name", ["x", "set_state"])
def test_a_refused_argument_changes_nothing(name: str) -> None:
    case = Case("lstm", "cpu", "float32", B=2)
    layer, problem = make_layer(case), draw(case)
    with layer.stream(2) as stream:
        stream.step(problem.x[0])
        before = stream.state
        refused = {
            "x": lambda: stream.step(problem.x[0][:1]),
            "set_state": lambda: stream.set_state((problem.state[0], problem.state[1][:, :1])),
        }
        with pytest.raises(fastrnn.ShapeError):
            refused[name]()
        for kind, value in zip("hc", stream.state, strict=True):
            assert_same_bits(kind, value, before["hc".index(kind)])
