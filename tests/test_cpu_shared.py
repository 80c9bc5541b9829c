"""One sequence whose units several threads share: the bits of one thread, whoever comes late or not at all."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
from cases import CELLS, DTYPES, Case, draw, evaluate, make_layer, use_threads
from test_cpu import same_bits
from tolerance import assert_same_bits

import fastrnn
from fastrnn.cpu import layout, pool
from fastrnn.cpu.shared import Shared

Task = Callable[[], None]
PLAIN = [name for name, cell in CELLS.items() if not cell.gated]
SIZES = [(1, 5, 33), (2, 1, 40), (300, 3, 48), (9, 1024, 257)]  # T, I, H: more than a chunk of steps, spread rows of x


def of_one(cell: str, dtype: str, size: tuple[int, int, int], **options: Any) -> Case:
    steps, inputs, hidden = size
    return Case(cell, "cpu", dtype, T=steps, B=1, I=inputs, H=hidden, lengths="none", reset="none", **options)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads share each pass that is made."""
    found, start = list[int](), Shared.__init__

    def init(self: Shared, cell: Any, packed: Any, run: Any, save: bool, parts: int) -> None:
        found.append(parts)
        start(self, cell, packed, run, save, parts)

    monkeypatch.setattr(Shared, "__init__", init)
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", PLAIN)
def test_the_bits_of_one_thread(cell: str, dtype: str, size: tuple[int, int, int], made: list[int]) -> None:
    case = of_one(cell, dtype, size, bidirectional=True)
    problem, layer = draw(case), make_layer(case)
    with use_threads(1):
        want = evaluate(layer, case, problem)
        y, state = layer(problem.x, problem.state)
    assert not made
    for number in (2, 3):
        with use_threads(number):
            for _ in range(2):
                same_bits(evaluate(layer, case, problem), want)
                got, got_state = layer(problem.x, problem.state)
                assert_same_bits("y", got, y)
                assert_same_bits("state", np.stack(got_state), np.stack(state))
    blocks = layer._packed["cpu"][0][0].sizes.Hp // layer._packed["cpu"][0][0].sizes.U
    assert set(made) == {min(2, blocks), min(3, blocks)}


def never(first: Task, helpers: Sequence[Task]) -> bool:
    first()
    return True


def before(first: Task, helpers: Sequence[Task]) -> bool:
    for helper in helpers:
        helper()
    first()
    return True


def between(first: Task, helpers: Sequence[Task]) -> bool:
    """The last one comes first, the others once all is done."""
    helpers[-1]()
    first()
    for helper in helpers[:-1]:
        helper()
    return True


def together(first: Task, helpers: Sequence[Task]) -> bool:
    """All at once, and all to their end."""
    barrier = Barrier(1 + len(helpers))

    def at_once(task: Task) -> None:
        barrier.wait()
        task()

    with ThreadPoolExecutor(1 + len(helpers)) as threads:
        list(threads.map(at_once, [first, *helpers]))
    return False


@pytest.mark.parametrize("lead", [never, before, between, together])
@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_who_comes_late_or_never(cell: str, save: bool, lead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = of_one(cell, "float32", (70, 5, 65))
    problem, layer, led = draw(case), make_layer(case), list[int]()

    def run() -> dict[str, np.ndarray]:
        if save:
            return evaluate(layer, case, problem)
        y, state = layer(problem.x, problem.state)
        return {"y": y, "state": np.stack(state)}

    with use_threads(1):
        want = run()
    monkeypatch.setattr(pool, "lead", lambda first, helpers: led.append(len(helpers)) or lead(first, helpers))
    for number in (2, 4):
        with use_threads(number):
            for _ in range(5):
                same_bits(run(), want)
    assert set(led) == {1, 3}


def test_more_threads_than_processors_again_and_again() -> None:
    """Waiting, taking over and catching up happen where the system puts them."""
    case = of_one("lstm", "float32", (200, 8, 64))
    problem, layer = draw(case), make_layer(case)
    with use_threads(1):
        want, _ = layer(problem.x, problem.state)
    with use_threads(2 * (os.cpu_count() or 1)), ThreadPoolExecutor(3) as callers:
        for got, _ in callers.map(lambda _: layer(problem.x, problem.state), range(120)):
            assert_same_bits("y", got, want)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_late_thread_writes_what_is_there_and_nothing_that_belongs_to_the_caller(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been put aside before its first step, and wakes when the caller has changed all that is the caller's."""
    case = of_one(cell, "float64", (9, 5, 40))
    problem, layer, late, start = draw(case), make_layer(case), list[Task](), Shared.__init__
    places = list[Shared]()
    monkeypatch.setattr(Shared, "__init__", lambda self, *rest: places.append(self) or start(self, *rest))

    def lead(first: Task, helpers: Sequence[Task]) -> bool:
        first()
        late.extend(helpers)
        return False

    with use_threads(3):
        layer(problem.x, problem.state)  # compiles, alone
        monkeypatch.setattr(pool, "lead", lead)
        y, state, _ = layer.forward(problem.x, problem.state)
    place = places[-1]
    written = [array for array in place.saved[:3] if array.size]
    then = [array.copy() for array in written]
    for array in (problem.x, y, *(state if isinstance(state, tuple) else (state,))):
        array[...] = np.nan
    assert len(late) == 2
    for helper in late:
        place._at.fill(-1)
        for array in written[2:]:
            array[...] = np.nan
        helper()
        for got, want in zip(written, then, strict=True):
            assert_same_bits("saved", got, want)
    assert np.isnan(y).all()


def test_memory_waits_only_once_all_have_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = of_one("lstm", "float32", (9, 5, 40))
    problem, layer, lead = draw(case), make_layer(case), pool.lead
    with use_threads(2):
        monkeypatch.setattr(pool, "lead", lambda first, helpers: lead(first, helpers) and False)
        layer(problem.x, problem.state)
        (packed,) = layer._packed["cpu"][0]
        assert not packed.places
        monkeypatch.setattr(pool, "lead", before)
        layer(problem.x, problem.state)
        assert len(packed.places) == 1


def test_the_leader_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, ran = Event(), Event(), list[int]()

    def helper() -> None:
        begun.set()
        go.wait(10)

    monkeypatch.setattr(pool, "_executors", {})
    assert not pool.lead(lambda: begun.wait(10) and None, [helper]), "it is still at work"
    assert pool.lead(lambda: None, [lambda: ran.append(1)]), "the only thread is busy, so this one has not begun"
    go.set()
    next(iter(pool._executors.values()))[0].shutdown()
    assert not ran, "what has not begun never will"


@pytest.mark.parametrize("refuse", ["never", "at the second"])
def test_the_leader_needs_nobody(refuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is to be had at the interpreter's end, or where the system gives no more."""
    ran, given = list[str](), list[Any]()

    class Refusing(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            if refuse == "never" or given:
                raise RuntimeError("cannot schedule new futures after shutdown")
            given.append(super().submit(*arguments, **options))
            return given[0]

    monkeypatch.setattr(pool, "_pool", lambda size, stands_back: Refusing(size))
    assert isinstance(pool.lead(lambda: ran.append("first"), [lambda: None] * 2), bool)
    assert ran == ["first"]


def test_what_is_taken_back_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, array = Event(), Event(), np.zeros(9)

    def busy() -> None:
        begun.set()
        go.wait(10)

    monkeypatch.setattr(pool, "_executors", {})
    pool.lead(lambda: begun.wait(10) and None, [busy])
    held = sys.getrefcount(array)
    pool.lead(lambda: None, [partial(array.fill, 1.0)])
    assert sys.getrefcount(array) == held
    go.set()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
@pytest.mark.parametrize("own", [0, 15])
def test_helpers_stand_back_and_others_do_not(own: int) -> None:
    code = f"""
import os
from threading import Event
from fastrnn.cpu import pool
os.nice({own})
base = os.getpriority(os.PRIO_PROCESS, 0)
found, ended = [], Event()
def helper():
    found.append(os.getpriority(os.PRIO_PROCESS, 0))
    ended.set()
pool.lead(lambda: ended.wait(10), [helper])
pool.run([lambda: None, lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0))])
assert found == [min(19, base + pool.STEPS_BACK), base], (base, found)
"""
    path = str(Path(fastrnn.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}, timeout=100)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, True), ({"proj_size": 5}, False), ({"layer_norm": True}, False), ({"zoneout": 0.1}, False),
        ({"recurrent": "diagonal"}, False), ({"recurrent_dropout": 0.1}, True), ({"peephole": True}, True),
    ],
)  # fmt: skip
def test_explain_says_who_shares(options: dict[str, Any], shares: bool, made: list[int]) -> None:
    layer: Any = fastrnn.LSTM(5, 64, seed=0, **options)
    with use_threads(2):
        for lengths in (None, [20], [19]):
            made.clear()
            text = fastrnn.plan(layer, 20, lengths=lengths).explain()
            layer(np.zeros((20, 1, 5), np.float32), lengths=lengths)
            assert ("share the units" in text) is (shares and lengths != [19]) is bool(made)
            assert ("measured times" in text) is bool(made)


def test_small_calls_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastrnn.threads, "_number", 8)
    assert layout.unit_parts(10**6, layout.PART_BYTES, 64, 0) == 1
    assert layout.unit_parts(1, 2 * layout.PART_BYTES, 64, 0) == 1
    assert layout.unit_parts(10**6, 3 * layout.PART_BYTES, 64, 0) == 3
    assert layout.unit_parts(10**6, 99 * layout.PART_BYTES, 5, layout.MOST_STATES) == 5
    assert layout.unit_parts(10**6, 99 * layout.PART_BYTES, 5, layout.MOST_STATES + 1) == 1
