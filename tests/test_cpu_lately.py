"""One thread or several, by the times of calls, on a clock that shows what these are said to take."""

import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tolerance import assert_same_bits

import fastrnn
from fastrnn.cpu import lately, layout, shared
from fastrnn.cpu.forward import Place
from fastrnn.cpu.lately import Timed
from fastrnn.cpu.shared import Shared
from fastrnn.threads import Limited

Takes = Callable[[bool], float]  # from whether a call is shared to its seconds


class Machine:
    """Calls that follow each other on its clock."""

    def __init__(self) -> None:
        self.now, self.used = 1000.0, -np.inf

    def clock(self) -> float:
        return self.now

    def call(self, takes: Takes, pause: float = 0.0, kind: str = "lstm", steps: int = 1) -> bool:
        self.now += pause
        timed = Timed(kind, steps, self.used)
        self.now += steps * takes(timed.shares)
        self.used = timed.end()
        return timed.shares

    def calls(self, number: int, takes: Takes, pause: float = 0.0) -> list[bool]:
        return [self.call(takes, pause) for _ in range(number)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(lately, "clock", found.clock)
    monkeypatch.setattr(lately, "_kinds", {})
    return found


def sharing_takes(seconds: float) -> Takes:
    """Where one thread takes 1 ms."""
    return lambda shares: seconds if shares else 1e-3


LEARNT = 3 * (1 + lately.TRIED)  # calls after which a way has been chosen, both having been tried


@pytest.mark.parametrize("pause", [0.0, 0.3])
@pytest.mark.parametrize(("seconds", "gains"), [(2e-3, False), (1.2e-3, False), (0.8e-3, True), (0.5e-3, True)])
def test_the_slower_way_is_left_and_tried_again(seconds: float, gains: bool, pause: float, machine: Machine) -> None:
    machine.calls(LEARNT, sharing_takes(seconds), pause)
    went = machine.calls(2000, sharing_takes(seconds), pause)
    other = went.count(not gains)
    assert 0 < other < 0.08 * len(went)


@pytest.mark.parametrize("slow", [2e-3, 1.0])
@pytest.mark.parametrize("gains", [False, True])
def test_a_way_that_has_become_the_faster_one_is_taken_when_it_is_tried(
    gains: bool, slow: float, machine: Machine
) -> None:
    """Nothing happens meanwhile to the way that is taken, and what the other one took before is no matter then."""
    seconds = {gains: slow, not gains: 1e-3}
    machine.calls(1000, seconds.__getitem__)
    assert machine.calls(LEARNT, seconds.__getitem__).count(gains) <= 1 + lately.TRIED
    seconds[gains] = 0.5e-3
    went = machine.calls(lately.SELDOM + LEARNT, seconds.__getitem__)
    first = went.index(gains)
    assert went[first : first + LEARNT].count(gains) == len(went[first : first + LEARNT])


def test_a_way_that_has_become_slow_is_left_within_a_few_calls(machine: Machine) -> None:
    machine.calls(1000, sharing_takes(0.5e-3))
    assert machine.calls(lately.TIMES, sharing_takes(3e-3))[0]
    assert not any(machine.calls(LEARNT, sharing_takes(3e-3)))


def test_what_trying_costs(machine: Machine) -> None:
    for seconds, best in ((6e-3, 1e-3), (1.5e-3, 1e-3), (0.5e-3, 0.5e-3)):
        machine.used, before, calls = -np.inf, machine.now, 5000
        lately._kinds.clear()
        machine.calls(calls, sharing_takes(seconds))
        assert machine.now - before < 1.06 * calls * best, seconds


def test_calls_after_a_pause_are_apart_from_those_in_a_loop(machine: Machine) -> None:
    hot, cold = list[bool](), list[bool]()
    for _ in range(100):
        cold += machine.calls(1, sharing_takes(2e-3), 2 * lately.HOT_SECONDS)
        hot += machine.calls(9, sharing_takes(0.5e-3), lately.HOT_SECONDS / 2)
    assert sum(cold[LEARNT:]) <= 2 * (1 + lately.TRIED)
    assert sum(hot[LEARNT:]) > 0.9 * len(hot[LEARNT:])


def test_kinds_and_lengths_are_apart(machine: Machine) -> None:
    """A short call may lose where a long one gains, and one layer where another gains."""
    gains = {("lstm", 100): False, ("lstm", 1000): True, ("gru", 100): True}
    went: dict[Any, list[bool]] = {key: [] for key in gains}
    for _ in range(200):
        for key, gain in gains.items():
            went[key].append(machine.call(sharing_takes(0.5e-3 if gain else 2e-3), 0.0, *key))
    for key, gain in gains.items():
        assert went[key][LEARNT:].count(gain) > 0.9 * len(went[key][LEARNT:]), key


def test_lengths_that_vary_do_not_hide_which_way_is_faster(machine: Machine) -> None:
    draw = random.Random(0)
    went = [machine.call(sharing_takes(0.9e-3), 0.0, "lstm", draw.randrange(64, 128)) for _ in range(2000)]
    assert sum(went[LEARNT:]) > 0.9 * len(went[LEARNT:])


@pytest.mark.parametrize("gains", [False, True])
def test_the_first_call_of_a_way_is_not_counted(gains: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may compile or load, and after a change it finds everything where the other way left it."""
    monkeypatch.setattr(lately, "TRIED", 1)
    monkeypatch.setattr(lately, "TIMES", 1)
    before = [None]

    def takes(shares: bool) -> float:
        first, before[:] = [shares] != before, [shares]
        return 1.0 if first else sharing_takes(0.5e-3 if gains else 2e-3)(shares)

    machine.calls(LEARNT, takes)
    assert machine.calls(400, takes).count(gains) > 380


def test_one_slow_time_decides_nothing(machine: Machine) -> None:
    shared = iter([1.0, 1.0])  # the first that is counted, too
    went = machine.calls(LEARNT, lambda shares: next(shared, 0.5e-3) if shares else 1e-3)
    assert all(went[went.index(True) :])


def test_a_call_that_ends_after_a_change_is_not_the_first_one_after_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lately, "TRIED", 1)
    machine.calls(2, sharing_takes(0.5e-3))
    late = Timed("lstm", 1, machine.used)
    machine.calls(1, sharing_takes(0.5e-3))  # the last that is tried of one thread alone
    late.end()
    shared = iter([1.0])
    assert machine.calls(3, lambda _: next(shared, 0.5e-3)) == [True] * 3


def test_memory_is_bounded(machine: Machine) -> None:
    for number in range(3 * lately.MOST_KINDS):
        for _ in range(30):
            machine.call(sharing_takes(2e-3), 0.0, f"lstm {number}")
        assert len(lately._kinds) <= lately.MOST_KINDS
    kept = [times for kind in lately._kinds.values() for times in kind._times]
    assert max(map(len, kept)) == lately.TIMES


def test_python_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes between: no error, and two ways."""
    monkeypatch.setattr(lately, "_kinds", {})
    monkeypatch.setattr(lately, "MOST_KINDS", 3)
    for name, small in (("TIMES", 2), ("TRIED", 1), ("OFTEN", 2), ("SELDOM", 3)):
        monkeypatch.setattr(lately, name, small)

    def calls(seed: int) -> set[bool]:
        draw, found = random.Random(seed), set()
        for _ in range(4000):
            timed = Timed(draw.randrange(5), 1, draw.random())
            found.add(timed.shares)
            timed.end()
        return found

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert set.union(*threads.map(calls, range(8))) == {False, True}
    finally:
        sys.setswitchinterval(interval)


@pytest.fixture
def seconds() -> dict[bool, float]:
    """What a pass of `layer` takes, from whether it is shared."""
    return {False: 2e-3, True: 1e-3}


@pytest.fixture
def went(machine: Machine, seconds: dict[bool, float], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass was shared, on a machine where it takes these seconds; one step is enough to share."""
    monkeypatch.setattr(layout, "PART_BYTES", 1)
    monkeypatch.setattr(layout, "SHARED_BYTES", 0)
    found = list[bool]()
    for kind in (Place, Shared):

        def run(self: Any, *rest: Any, start: Any = kind.run, shares: bool = kind is Shared) -> bool:
            found.append(shares)
            machine.now += seconds[shares]
            return bool(start(self, *rest))

        monkeypatch.setattr(kind, "run", run)
    return found


@pytest.mark.parametrize("save", [True, False])
def test_calls_go_the_faster_way_with_the_same_bits(save: bool, went: list[bool], seconds: dict[bool, float]) -> None:
    layer = fastrnn.GRU(5, 64, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 1, 5), dtype=np.float32)

    def call() -> list[np.ndarray]:
        y, h_n, *_ = layer.forward(x) if save else layer(x)
        return [y, h_n]

    with Limited(1):
        want = call()
    with Limited(2):
        call()  # may compile
        for faster in (True, False):
            seconds[True] = 1e-3 if faster else 4e-3
            for _ in range(lately.SELDOM + LEARNT):
                for got, expected in zip(call(), want, strict=True):
                    assert_same_bits("result", got, expected)
            went.clear()
            for _ in range(LEARNT):
                call()
            assert went.count(faster) >= LEARNT - 1 - lately.TRIED


def test_pauses_between_calls_of_a_layer_are_noticed(went: list[bool], seconds: Any, machine: Machine) -> None:
    layer, x, cold, hot = fastrnn.GRU(5, 64, seed=0), np.zeros((20, 1, 5), np.float32), list[bool](), list[bool]()
    with Limited(2):
        layer(x)  # may compile
        for _ in range(60):
            machine.now += 2 * lately.HOT_SECONDS
            for found, takes in ((cold, 4e-3), (hot, 1e-3)):
                seconds[True] = takes
                layer(x)
                found.append(went[-1])
    assert cold[LEARNT:].count(False) > 0.8 * len(cold[LEARNT:])
    assert hot[LEARNT:].count(True) > 0.8 * len(hot[LEARNT:])


def test_the_call_that_compiles_is_shared_and_not_counted(went: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_compiled", set())
    layer, x = fastrnn.GRU(5, 64, seed=0), np.zeros((20, 1, 5), np.float32)
    with Limited(2):
        layer(x)
        assert went == [True]
        assert not lately._kinds
        layer(x)
        assert len(lately._kinds) == 1


def test_calls_that_cannot_be_shared_ask_for_no_time(went: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("a time was asked for")

    layer, x = fastrnn.GRU(5, 64, seed=0), np.zeros((20, 2, 5), np.float32)
    with Limited(2):
        layer(x[:, :1])  # may compile
        monkeypatch.setattr(lately, "clock", refuse)
        layer(x)
        layer(x[:, :1], lengths=[19])
        with Limited(1):
            layer(x[:, :1])
        assert went[1:] == [False] * 3
        with pytest.raises(AssertionError, match="a time was asked for"):
            layer(x[:, :1])
