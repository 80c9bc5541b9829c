"""Loops captured in CUDA graphs and replayed, on the stand-in for CuPy: the bits of launched ones, and no stale memory.

The stand-in's capture records addresses without keeping their memory; see cupy_standin.
"""

import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import numpy as np
import pytest
from cases import CELLS, Case, assert_results, cuda_cases, draw, expected, make_layer
from test_cuda import DENSE, REGULARISED, SOME, evaluate_on_device, on_cells, on_device, to_device
from tolerance import assert_close, assert_same_bits, rounding

import fastrnn

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("nothing_to_replay"),
]
REPLAYED = [case for _, case in cuda_cases("float32") if case.T >= 4]
REPLAYED += [Case(cell, "cuda", "float32", T=5, B=1, H=1) for cell in CELLS]
REPLAYED += [case for name, case in cuda_cases("bfloat16") if name in SOME]
REPLAYED = [replace(case, T=11) if case.save == "recompute" else case for case in REPLAYED]  # segments of 4, 4, 3
# Each runs five times over: by a hash a third of them everyday, all in the nightly run.
REPLAYED = [
    pytest.param(case, marks=[pytest.mark.nightly] if zlib.crc32(str(case).encode()) % 3 else [], id=str(case))
    for case in REPLAYED
]


@pytest.mark.parametrize("case", REPLAYED)
def test_a_replayed_pass_has_the_bits_of_a_launched_one(case: Case, cupy: ModuleType) -> None:
    """Other weights, inputs, lengths, resets and gradients each time; all that a graph reads must be renewed."""
    from fastrnn.cuda import places

    for seed in range(3, 8):  # launched, run in places, captured, replayed, replayed
        other = replace(case, seed=seed)
        problem, layer = draw(other), make_layer(other, device="cuda:0")
        cupy_standin.launches.clear()
        cupy_standin.replays.clear()
        replayed = evaluate_on_device(other, problem, layer)
    passes = case.num_layers * (1 + case.bidirectional)
    if case.save == "gates":
        assert len(cupy_standin.replays) == 2 * passes
        assert set(cupy_standin.launches) <= {"random_words", "gains_backward"}  # not in the loop over time
    else:  # in segments, the last of which is too short
        assert len(cupy_standin.replays) > 2 * passes
    places.forget()
    cupy_standin.replays.clear()
    launched = evaluate_on_device(other, problem, layer)
    if case.save == "gates":  # segments of one pass are alike, and so may be replayed in it
        assert cupy_standin.replays == []
    for name, value in launched.items():
        assert_same_bits(name, replayed[name], value)
    assert_results(other, problem, replayed, expected(other, problem))


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("recurrent", ["full", "diagonal"])
@pytest.mark.parametrize(("cell", "options"), on_cells({}, DENSE))
def test_updates_reach_replayed_passes(
    cell: str, options: Any, recurrent: str, layer_norm: bool, cupy: ModuleType
) -> None:
    """One parameter at a time, so that none leans on another's change; a launched pass reads the parameters itself."""
    from fastrnn.cuda import places

    projected = recurrent == "full" and CELLS[cell].cell_state
    options = {**options, "recurrent": recurrent, "layer_norm": layer_norm}
    case = Case(cell, "cuda", "float32", proj_size=3 if projected else 0, **options)
    layer, x, rng = make_layer(case, device="cuda:0"), to_device(draw(case).x), np.random.default_rng(0)
    for _ in range(4):
        before = layer(x)[0]
    for name, value in layer.params.items():
        layer.update({name: value + to_device(rng.standard_normal(value.shape).astype("float32"))})
        after = layer(x)[0]
        assert len(cupy_standin.replays) > 0
        assert not np.array_equal(after._host, before._host), name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(places, "FEWEST_STEPS", case.T + 1)
            assert_same_bits(name, after._host, layer(x)[0]._host)
        before = after


def test_passes_that_are_needed_keep_their_memory(cupy: ModuleType) -> None:
    case = Case("lstm", "cuda", num_layers=2)
    layer, given = make_layer(case, device="cuda:0"), [on_device(draw(replace(case, seed=k))) for k in range(6)]
    want = [layer.forward(p.x, p.state).backward(p.d_output, p.d_state).x._host.copy() for p in given]
    alive = [layer.forward(p.x, p.state) for p in given]  # all at once
    for _ in range(2):
        for one, problem, expected_dx in zip(alive, given, want, strict=True):
            assert_same_bits("d x", one.backward(problem.d_output, problem.d_state).x._host, expected_dx)
    for one, problem, expected_dx in zip(alive, given, want, strict=True):
        got = one.backward(problem.d_output, problem.d_state, free=True).x
        assert_same_bits("d x", got._host, expected_dx)
        layer.forward(problem.x, problem.state)  # in memory that has been given back


def waiting_bytes() -> int:
    from fastrnn.cuda import places

    return sum(place.bytes for of_shape in places._waiting.values() for place in of_shape)


def test_memory_for_replays_is_bounded(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    def run(T: int) -> int:
        case = Case("gru", "cuda", T=T)
        layer, x = make_layer(case, device="cuda:0"), to_device(draw(case).x)
        cupy_standin.replays.clear()
        for _ in range(4):
            layer(x)
        return len(cupy_standin.replays)

    assert run(5) == 2
    place = places._returned[-1][1]
    monkeypatch.setattr(places, "memory", lambda device: (place.bytes - 1) / places.ONE_PLACE)
    assert run(5) == 0
    monkeypatch.setattr(places, "ONE_PLACE", 1)
    monkeypatch.setattr(places, "memory", lambda device: 2.5 * place.bytes / places.ALL_WAITING)
    for T in (5, 6, 7, 8, 9):
        assert run(T) >= 2
        assert waiting_bytes() <= 2.5 * place.bytes
    assert waiting_bytes() > 0
    monkeypatch.setattr(places, "MOST_SHAPES", 3)
    for T in range(5, 15):
        run(T)
        assert len(places._waiting) <= 3


def test_of_the_places_of_a_shape_those_that_fit_are_kept(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers of one size have three places at a time; with room for two of them, two are replayed."""
    from fastrnn.cuda import places

    case = Case("gru", "cuda", I=5, num_layers=3)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))

    def replayed() -> int:
        for _ in range(5):
            cupy_standin.replays.clear()
            layer.forward(problem.x, problem.state).backward(problem.d_output, problem.d_state)
        return len(cupy_standin.replays) // 2  # of forward and backward

    assert replayed() == 3
    bytes_ = places._returned[-1][1].bytes
    monkeypatch.setattr(places, "ONE_PLACE", 1)
    monkeypatch.setattr(places, "memory", lambda device: 2.5 * bytes_ / places.ALL_WAITING)
    assert replayed() == 2


@pytest.mark.parametrize(
    ("cell", "options"),
    on_cells(
        {}, REGULARISED, {**REGULARISED, "recurrent": "diagonal"}, {**REGULARISED, "layer_norm": True}, DENSE,
        {**DENSE, "dtype": "bfloat16"}, {**DENSE, **REGULARISED, "layer_norm": True},
    ),
)  # fmt: skip
def test_the_memory_of_a_place_is_counted(cell: str, options: Any, cupy: ModuleType) -> None:
    """All but what has one step's size: weights, workspace, what both loops write; also of a pass that saves nothing.

    The sizes that `fastrnn.plan` knows give the same count.
    """
    from fastrnn.cuda import places

    case = Case(cell, "cuda", T=5, B=3, H=64, **{"dtype": "float32", **options})
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    for save in (True, False):
        for _ in range(2):
            if save:
                backward = layer.forward(problem.x, problem.state, training=case.training).backward
                backward(problem.d_output, problem.d_state, problem.d_cells)
                del backward
            else:
                layer(problem.x, problem.state)
        place = places._returned[-1][1]
        written = [a for mine, _ in place._backward.values() for a in (*mine[:2], *mine.d)]
        assert bool(written) == save
        of_loops = [*place.states[:-1], *(place.states.norm or ()), *place.scratch, *written]
        arrays = [*of_loops, place.run.y.array, *places._looped(place.run)]
        over_time = {id(a): a for a in arrays if a is not None and a.shape[0] >= case.T}
        lasting = [*over_time.values(), place._workspace, *(a for a in place.packed.looped if a is not None)]
        assert sum(a.nbytes for a in lasting) <= place.bytes
        planned = fastrnn.plan(layer, case.T, case.B, training=save and case.training).shape
        assert place.bytes == places.needed(CELLS[cell], planned._replace(train=save))


LARGE = Case("lstm", "cuda", "float32", T=200, B=64, I=1024, H=1024)


@pytest.mark.parametrize(
    ("case", "gib", "training", "told"),
    [
        (LARGE, 80, True, ""), (LARGE, 80, False, ""), (LARGE, 8, False, ""),
        (LARGE, 8, True, r"a graph's own memory would be 1\.\d+ GiB, of at most 1 on this device"),
        (LARGE, 2, False, r"a graph's own memory would be 0\.\d+ GiB, of at most 0\.25 on this device"),
        (replace(LARGE, B=1), 2, True, ""), (replace(LARGE, T=3), 80, False, "fewer than 4 steps"),
        (replace(LARGE, save="recompute"), 8, True, ""),  # segments of 15 steps
        (replace(LARGE, save="recompute", T=9), 80, True, "fewer than 4 steps"),  # of 3
    ],
    ids=str,
)  # fmt: skip
def test_which_shapes_are_replayed(
    case: Case, gib: int, training: bool, told: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import places

    monkeypatch.setattr(places, "memory", lambda device: gib << 30)
    layer = make_layer(case, device="cuda:0")
    explained = fastrnn.plan(layer, case.T, case.B, training=training).explain()
    kind = "segment" if case.save == "recompute" and training else "pass"
    replayed = f"launched in the first {kind} of a shape, replayed as one CUDA graph from the third"
    assert re.search(f"each {kind} launched kernel by kernel: {told}\n" if told else replayed, explained)


@pytest.mark.parametrize("training", [False, True])
def test_explain_tells_what_a_pass_does(training: bool, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for a place that keeps nothing for a backward pass, and none for one that does."""
    from fastrnn.cuda import places

    for cell in ("lstm", "gru"):
        case = Case(cell, "cuda", "float32", T=6, B=4, H=64)
        layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
        shape = fastrnn.plan(layer, case.T, case.B).shape
        less, more = (places.needed(CELLS[cell], shape._replace(train=save)) for save in (False, True))
        for limit in (less - 1, (less + more) // 2, more):
            monkeypatch.setattr(places, "memory", lambda device: limit / places.ONE_PLACE)  # noqa: B023
            cupy_standin.replays.clear()
            for _ in range(3):
                layer.forward(problem.x) if training else layer(problem.x)
            explained = fastrnn.plan(layer, case.T, case.B, training=training).explain()
            assert (
                ("CUDA graph from the third" in explained)
                == bool(cupy_standin.replays)
                == (limit >= (more if training else less))
            )


@pytest.mark.parametrize("options", [{}, DENSE, {**DENSE, "layer_norm": True, "zoneout": 0.3}], ids=str)
def test_a_stream_is_replayed_and_may_be_captured(options: Any, cupy: ModuleType) -> None:
    case = Case("lstm", "cuda", T=8, num_layers=2, **options)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    want, _ = layer(problem.x)
    with layer.stream(case.B) as stream:
        for t in range(4):
            cupy_standin.launches.clear()
            cupy_standin.replays.clear()
            y = stream.step(problem.x[t])
            assert_close("y", y._host, want._host[t], rounding("float64", case.T, case.width))
        assert cupy_standin.launches == []
        assert len(cupy_standin.replays) == 2
        x = cupy.empty(problem.x.shape[1:], case.dtype)
        with cupy_standin.Stream(non_blocking=True) as own:
            own.begin_capture()
            y = stream.step(x)
            graph = own.end_capture()
        for t in range(4, 8):
            x[...] = problem.x[t]
            graph.launch()
            assert_close("y", y._host, want._host[t], rounding("float64", case.T, case.width))


def test_a_step_that_nothing_was_run_before_is_not_captured(cupy: ModuleType) -> None:
    """Kernels would be loaded, and a new thread's first product would make cuBLAS allocate."""
    case = Case("lstm", "cuda")
    layer, x = make_layer(case, device="cuda:0"), cupy.zeros((case.B, case.I), case.dtype)

    def captured(stream: Any) -> Any:
        with cupy_standin.Stream(non_blocking=True) as own:
            own.begin_capture()
            try:
                return stream.step(x)
            finally:
                own.end_capture()

    with layer.stream(case.B) as stream, ThreadPoolExecutor(1) as thread:
        with pytest.raises(RuntimeError, match="stream: expected a step by the same thread before the first"):
            captured(stream)
        stream.step(x)
        captured(stream)
        with pytest.raises(RuntimeError, match="stream: expected a step by the same thread before the first"):
            thread.submit(captured, stream).result()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_new_thread_launches_what_it_would_capture(cell: str, cupy: ModuleType) -> None:
    """Its first product must not come in a capture; its second pass is captured as any other's."""
    case = Case(cell, "cuda", "float32", T=6)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))

    def gradient(backward: Any) -> np.ndarray:
        return backward(problem.d_output, problem.d_state).x._host

    def replays(backward: Any) -> tuple[int, np.ndarray]:
        cupy_standin.replays.clear()
        got = gradient(backward)
        return len(cupy_standin.replays), got

    for _ in range(2):  # launched, run in a place
        want = gradient(layer.forward(problem.x, problem.state).backward)
    backward = layer.forward(problem.x, problem.state).backward
    with ThreadPoolExecutor(1) as thread:
        for replayed in (0, 1, 1):
            count, got = thread.submit(replays, backward).result()
            assert count == replayed
            assert_same_bits("d x", got, want)


def test_all_layers_of_a_stream_share_one_workspace(cupy: ModuleType) -> None:
    case = Case("gru", "cuda", num_layers=3)
    stream = make_layer(case, device="cuda:0").stream(case.B)
    assert len({id(layer.workspace) for layer in stream._layers}) == 1


def test_cupys_own_products_are_not_captured(cupy: ModuleType) -> None:
    """CuPy refuses every call of cuBLAS on a stream that captures, and so does the stand-in."""
    a = cupy.zeros((2, 2), "float32")
    with cupy_standin.Stream(non_blocking=True) as own:
        own.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            cupy.matmul(a, a, out=cupy_standin.ndarray(np.zeros((2, 2), np.float32)))
        own.end_capture()


def capturing(stream: cupy_standin.Stream) -> None:
    stream.begin_capture()


def default_of_a_thread(stream: cupy_standin.Stream) -> None:
    """Its handle is the same in every thread, so that no wait between two of them could be seen to be needed."""
    stream.ptr = 2


@pytest.mark.parametrize(
    ("become", "expected"),
    [
        (capturing, "stream: expected a current stream that captures no CUDA graph"),
        (default_of_a_thread, r"stream: expected CuPy's null stream .* got the per-thread default"),
    ],
)
def test_a_stream_that_no_pass_can_run_on_is_refused(cupy: ModuleType, become: Any, expected: str) -> None:
    case = Case("gru", "cuda")
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    backward = layer.forward(problem.x, problem.state).backward
    with cupy_standin.Stream(non_blocking=True) as own:
        become(own)
        for call in (
            lambda: layer(problem.x), lambda: layer.forward(problem.x),
            lambda: backward(problem.d_output, problem.d_state),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match=expected):
                call()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("cell", "options"), on_cells({}, DENSE))
def test_no_product_is_left_to_cupy(
    cell: str, options: Any, dtype: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sums in modes of its own."""
    case = Case(cell, "cuda", dtype, lengths="random", proj_size=3 if CELLS[cell].cell_state else 0, **options)
    problem, layer = draw(case), make_layer(case, device="cuda:0")
    want = expected(case, problem)
    monkeypatch.setattr(cupy_standin, "matmul", None)
    monkeypatch.setattr(cupy_standin.ndarray, "__matmul__", None)
    assert_results(case, problem, evaluate_on_device(case, problem, layer), want)


def _passes_on_two_streams(dense: bool = False) -> None:
    """Forward on one stream, backward on another, often enough to be replayed, and the memory used anew."""
    case = Case("lstm", "cuda", num_layers=2, dropout=0.3, dense=dense)
    first, second = (cupy_standin.Stream(non_blocking=True) for _ in range(2))
    with first:
        layer = make_layer(case, device="cuda:0")
    for seed in range(6):
        with first:
            problem = on_device(draw(replace(case, seed=seed)))
            backward = layer.forward(problem.x, problem.state).backward
        with second:
            d_output = to_device(draw(replace(case, seed=seed)).d_output)
            once = backward(d_output).x._host.copy()
        for stream in (first, second, first):
            with stream:
                assert_same_bits("d x", backward(d_output).x._host, once)
        with second:
            layer(to_device(draw(case).x))  # with weights that were packed on the first


def test_the_handle_is_given_back_as_it_was(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched, in place, captured, replayed; and after an error."""
    from fastrnn.cuda import backend

    seen = list[Any]()

    def fails(*args: Any) -> None:
        seen.append(cupy_standin.Cublas.workspace)
        raise ValueError("planted")

    monkeypatch.setattr(cupy_standin.Cublas, "math_mode", 3)  # tf32
    case = Case("lstm", "cuda")
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    for _ in range(4):
        layer.forward(problem.x).backward(problem.d_output)
        assert (cupy_standin.Cublas.workspace, cupy_standin.Cublas.math_mode) == (None, 3)
    monkeypatch.setattr(backend, "forward_steps", fails)
    with pytest.raises(ValueError, match="planted"):
        layer(problem.x[:3])  # too short to be replayed
    assert seen[0].nbytes == 32 << 20
    assert (cupy_standin.Cublas.workspace, cupy_standin.Cublas.math_mode) == (None, 3)


@pytest.mark.parametrize("dense", [False, True])
def test_backward_on_another_stream_is_ordered(dense: bool, cupy: ModuleType) -> None:
    cupy_standin.waits.clear()
    _passes_on_two_streams(dense)
    assert cupy_standin.waits == []


@pytest.mark.parametrize("method", ["reached", "kept"])
def test_streams_without_order_are_caught(method: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn import arrays

    monkeypatch.setattr(arrays.Order, method, lambda self: nullcontext())
    with pytest.raises(AssertionError, match="race between streams"):
        _passes_on_two_streams()


@pytest.mark.parametrize("waiting", [1, 2])
def test_each_wait_is_needed(waiting: int, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the backward pass for the forward pass, and that of the first stream for the backward pass."""
    wait, streams = cupy_standin.Stream.wait_event, list[Any]()

    def broken(self: Any, event: Any) -> None:
        if self not in streams:
            streams.append(self)
        if streams.index(self) + 1 != waiting:
            wait(self, event)

    monkeypatch.setattr(cupy_standin.Stream, "wait_event", broken)
    with pytest.raises(AssertionError, match="race between streams"):
        _passes_on_two_streams()


READERS: dict[str, Any] = {
    "call": lambda layer: layer(cupy_standin.array(np.ones((2, 1, 3), np.float32))),
    "forward": lambda layer: layer.forward(cupy_standin.array(np.ones((2, 1, 3), np.float32))),
    "stream": lambda layer: layer.stream().step(cupy_standin.array(np.ones((1, 3), np.float32))),
    "state_dict": lambda layer: layer.state_dict(),
    "params": lambda layer: dict(layer.params),
    "to": lambda layer: layer.to("cpu"),
    "update": lambda layer: layer.update({"bias_ih_l0": cupy_standin.array(np.ones(20, np.float32))}),
}


@pytest.mark.parametrize("how", READERS)
def test_parameters_are_read_on_another_stream_after_they_are_written(how: str, cupy: ModuleType) -> None:
    """And given back to the stream whose memory they are after they have been read."""
    first, second, third = (cupy_standin.Stream(non_blocking=True) for _ in range(3))
    with first:
        layer = fastrnn.LSTM(3, 5, seed=0, device="cuda:0")
    with second:
        READERS[how](layer)
    if how != "stream":  # which still has them
        assert second.reached(first, second.time) or how == "update"
    if layer.device == "cuda:0":
        with third:  # also what was packed on the second, or written there and on the first
            READERS["call"](layer)
        if how != "stream":
            assert third.reached(first, third.time)
        if how in ("call", "forward", "update"):
            assert third.reached(second, third.time)


@pytest.mark.parametrize("closed", [True, False])
def test_a_stream_goes_on_on_another_stream(closed: bool, cupy: ModuleType) -> None:
    case = Case("lstm", "cuda", T=6)
    first, second = (cupy_standin.Stream(non_blocking=True) for _ in range(2))
    with first:
        layer, x = make_layer(case, device="cuda:0"), draw(case).x
        want = layer(to_device(x))[0]._host
        stream = layer.stream(case.B)
    with stream if closed else nullcontext():
        for t, current in enumerate((first, second, second, first, second, second)):
            with current:
                y = stream.step(to_device(x[t]))
                assert_close("y", y._host, want[t], rounding("float64", case.T, case.width))
        with first:
            _ = stream.state
        with second:
            stream.set_state(None)
    with second:
        _ = stream.state  # also once it is closed
    del stream
    assert second.reached(first, second.time)  # the memory is the first's again


def test_a_place_keeps_memory_of_its_own_stream_alone(cupy: ModuleType) -> None:
    """CuPy gives memory back to the stream that was current when it was allocated, for which nobody would wait."""
    from fastrnn.cuda import places

    case = Case("lstm", "cuda")
    first, second = (cupy_standin.Stream(non_blocking=True) for _ in range(2))
    with first:
        layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    with second:
        d_output = to_device(draw(case).d_output)
    for _ in range(4):
        with first:
            backward = layer.forward(problem.x).backward
        with second:
            got = backward(d_output).x._host
    del backward
    assert places._returned[-1][1]._backward == {}
    with first:
        again = layer.forward(problem.x).backward
        assert_same_bits("d x", again(to_device(draw(case).d_output)).x._host, got)
    del again
    assert len(places._returned[-1][1]._backward) == 1


@pytest.mark.parametrize(("rows", "inner", "columns"), [(3, 5, 7), (1, 5, 7), (3, 1, 7), (3, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products(turned: tuple[bool, bool], rows: int, inner: int, columns: int, cupy: ModuleType) -> None:
    from fastrnn.cuda.products import multiply

    rng = np.random.default_rng(0)

    def drawn(shape: tuple[int, int], turn: bool) -> np.ndarray:
        return rng.integers(-9, 9, shape[::-1] if turn else shape).astype(np.float32)

    a, b = drawn((rows, inner), turned[0]), drawn((inner, columns), turned[1])
    left, right = (array.T if turn else array for array, turn in zip((a, b), turned, strict=True))
    given = [to_device(array).T if turn else to_device(array) for array, turn in zip((a, b), turned, strict=True)]
    out = multiply(*given, out=cupy.empty((rows, columns), "float32"))
    assert_same_bits("product", out._host, left @ right)

    def of_a_wider_one(array: np.ndarray, turn: bool) -> Any:
        wider = np.full((array.shape[0], array.shape[1] + 5), np.nan, np.float32)
        wider[:, 2:-3] = array
        return to_device(wider)[:, 2:-3].T if turn else to_device(wider)[:, 2:-3]

    apart = [of_a_wider_one(array, turn) for array, turn in zip((a, b), turned, strict=True)]
    for one, other in ((apart[0], given[1]), (given[0], apart[1]), apart):
        out = multiply(one, other, out=cupy.empty((rows, columns), "float32"))
        assert_same_bits("product with rows apart", out._host, left @ right)
    with pytest.raises(AssertionError, match="stand side by side"):
        multiply(
            cupy.zeros((6, 6), "float32")[::2, ::2], cupy.zeros((3, 3), "float32"), out=cupy.empty((3, 3), "float32")
        )


# Wrong captures: what, a change of the code under test, what is seen
def _reads_the_callers_arrays(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    make = places.Place.__init__

    def broken(self: Any, cell: Any, packed: Any, run: Any, save: bool) -> None:
        make(self, cell, packed, run, save)
        self._forward._launches = partial(places.forward_steps, cell, self.packed, run, self.states, self.scratch)

    patch.setattr(places.Place, "__init__", broken)


def _keeps_the_weights(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    patch.setattr(places.Place, "holds", lambda self, packed: True)


def _keeps_the_masks(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    looped = places._looped
    patch.setattr(places, "_looped", lambda run: (*looped(run)[:2], None, None, None))


def _keeps_sums(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import backward

    take = backward.Backward.take
    patch.setattr(backward.Backward, "take", lambda self, given: take(self._replace(dp=None, ddiagonal=None), given))


def _allocates(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    steps = places.forward_steps
    patch.setattr(places, "forward_steps", lambda *args: (cupy_standin.empty(3), steps(*args)))


def _waits(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    steps = places.forward_steps
    patch.setattr(places, "forward_steps", lambda *args: (bool(args[3].hs[0, 0, 0] > 0), steps(*args)))


def _is_cold(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import graphs, kernels

    make = graphs.Replayed.__init__

    def broken(self: Any, *args: Any) -> None:
        make(self, *args)
        self._warm = True
        kernels._load.cache_clear()
        cupy_standin._warm.clear()

    patch.setattr(graphs.Replayed, "__init__", broken)


def _gives_back_too_early(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import places

    def broken(key: Any, place: Any) -> Any:
        places.give_back(key, place)
        return places.Saved(place.states, place)

    patch.setattr(places, "until_dropped", broken)


def _leaves_the_workspace_to_the_handle(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import graphs

    patch.setattr(graphs, "using", lambda memory: nullcontext())


def _sets_the_stream_after_the_workspace(patch: pytest.MonkeyPatch) -> None:
    gemm = cupy_standin.Cublas.cublasGemmEx

    def broken(self: Any, handle: int, *args: Any) -> int:
        self.cublasSetStream_v2(handle, cupy_standin._streams[-1].ptr)
        return gemm(self, handle, *args)

    patch.setattr(cupy_standin.Cublas, "cublasGemmEx", broken)


def _frees_the_workspace(patch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import graphs, products

    make = graphs._capture

    def broken(launches: Any) -> Any:
        replayed = launches.__self__
        replayed._memory = products.workspace()
        graph = make(launches)
        del replayed._memory
        return graph

    patch.setattr(graphs, "_capture", broken)


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (_leaves_the_workspace_to_the_handle, "workspace of a thread"),
        (_sets_the_stream_after_the_workspace, "workspace of a thread"), (_frees_the_workspace, "freed"),
        (_reads_the_callers_arrays, "freed|off by"), (_keeps_the_weights, "off by"),
        (_keeps_the_masks, "off by"), (_keeps_sums, "d weight_p_l.: off by"),
        (_allocates, "allocated during a capture"), (_waits, "truth value"),
        (_is_cold, "first of its kind"), (_gives_back_too_early, "off by"),
    ],
)  # fmt: skip
def test_a_wrong_capture_is_caught(plant: Any, seen: str, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes() -> None:
        for seed in range(5):
            case = Case("lstm_peephole", "cuda", seed=seed, lengths="random", num_layers=2, **REGULARISED)
            problem = draw(case)
            assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))

    passes()
    from fastrnn.cuda import places

    places.forget()
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=seen):
        passes()
