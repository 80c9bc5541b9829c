"""Beam search: against the greedy choice, against every sequence there is, batched, on arrays of another module."""

import itertools

import numpy as np
import pytest

import fastrnn
from fastrnn import Hypothesis, ShapeError, beam_search
from tests import strict

V, END, LONGEST = 4, 3, 4


class Markov:
    """log p(token | last token, number of the step, sequence), random, with the batch along the state's axis 1."""

    def __init__(self, seed: int, batch: int, impossible: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        p = rng.random((batch, LONGEST, V, V)) ** 3
        p[rng.random(p.shape) < impossible] = 0
        p[..., END] += 0.05
        with np.errstate(divide="ignore"):
            self.log_p = np.log(p / p.sum(axis=-1, keepdims=True))
        self.state = (np.arange(batch)[None, :, None], (None, np.zeros((2, batch), np.int64)))
        self.calls = 0

    def step(self, state, tokens):
        self.calls += 1
        which, (nothing, count) = state
        assert nothing is None
        assert which.shape[1] == count.shape[1] == len(tokens)
        np.testing.assert_array_equal(count[0], self.calls - 1)
        return self.log_p[which[0, :, 0], count[0], tokens], (which, (None, count + 1))

    def every_sequence(self, b: int, start: int, penalty: float) -> list[Hypothesis]:
        found = []
        for length in range(1, LONGEST + 1):
            for tokens in itertools.product(range(V), repeat=length):
                if END in tokens[:-1] or (length < LONGEST and tokens[-1] != END):
                    continue
                log_prob = sum(self.log_p[b, t, (start, *tokens)[t], tokens[t]] for t in range(length))
                if log_prob > -np.inf:
                    found.append(Hypothesis(tokens, log_prob, log_prob / ((5 + length) / 6) ** penalty))
        return sorted(found, key=lambda h: -h.score)


def search(model: Markov, start, **options):
    model.calls = 0
    options = {"end": END, "max_length": LONGEST, **options}
    return beam_search(model.step, model.state, np.asarray(start), **options)


def same(got: list[Hypothesis], want: list[Hypothesis]) -> None:
    assert [h.tokens for h in got] == [h.tokens for h in want]
    np.testing.assert_allclose([h[1:] for h in got], [h[1:] for h in want], rtol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_width_one_is_greedy(seed):
    model = Markov(seed, 3)
    for b, hypotheses in enumerate(search(model, [0, 1, 2], width=1)):
        tokens, last, log_prob = [], b, 0.0
        while len(tokens) < LONGEST and last != END:
            row = model.log_p[b, len(tokens), last]
            last = int(row.argmax())
            log_prob += row[last]
            tokens.append(last)
        same(hypotheses, [Hypothesis(tuple(tokens), log_prob, log_prob)])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("impossible", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_full_width_finds_every_sequence_in_order(seed, impossible, penalty):
    model, start = Markov(seed, 2, impossible), [1, 0]
    found = search(model, start, width=V**LONGEST, length_penalty=penalty)
    for b in range(2):
        same(found[b], model.every_sequence(b, start[b], penalty))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_batch_is_its_sequences_one_by_one(penalty):
    for seed, width in itertools.product(range(5), (1, 2, 3, 7)):
        model, start = Markov(seed, 4), [2, 0, 1, 2]
        together = search(model, start, width=width, length_penalty=penalty)
        for b in range(4):
            alone = Markov(seed, 4)
            alone.state = (np.array([[[b]]]), (None, np.zeros((2, 1), np.int64)))
            (want,) = search(alone, start[b : b + 1], width=width, length_penalty=penalty)
            assert together[b] == want
            assert len(want) <= width


def test_a_wider_beam_is_never_worse_when_it_holds_everything_and_sometimes_better():
    greedy = [search(Markov(seed, 1), [0], width=1)[0][0].score for seed in range(30)]
    best = [search(Markov(seed, 1), [0], width=V**LONGEST)[0][0].score for seed in range(30)]
    assert all(b >= g for b, g in zip(best, greedy, strict=True))
    assert sum(b > g for b, g in zip(best, greedy, strict=True)) >= 3


def test_a_length_penalty_favours_longer_sequences():
    lengths = [
        np.mean([len(search(Markov(seed, 1), [0], width=99, length_penalty=p)[0][0].tokens) for seed in range(30)])
        for p in (0.0, 1.0, 5.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


def test_a_search_that_is_decided_stops_early():
    model = Markov(0, 1)
    model.log_p[:] = np.log(0.001)
    model.log_p[..., END] = np.log(0.997)
    assert search(model, [0], width=1)[0][0].tokens == (END,)
    assert model.calls == 1
    search(model, [0], width=4)
    assert model.calls == 2  # ends at once, and after each of three tokens: nothing longer can be among the four


def test_a_sequence_that_a_length_penalty_may_still_favour_is_not_given_up():
    """After two tokens the live one is worse than both finished ones, but not for the length it may still reach."""
    p = np.full((V, V), 1e-9)
    p[0, [END, 1]] = 0.5, 0.4
    p[1, [END, 2]] = 0.45, 0.55
    p[2, END] = 1.0
    found = beam_search(
        lambda state, tokens: (np.log(p)[tokens], None), None, np.array([0]), end=END, width=2, max_length=4,
        length_penalty=2.0,
    )[0]  # fmt: skip
    assert [h.tokens for h in found] == [(END,), (1, 2, END)]


def test_it_works_on_arrays_of_another_module():
    model = Markov(3, 2)
    want = search(model, [0, 1], width=3)
    with strict.installed() as cupy:

        def step(state, tokens):
            assert isinstance(tokens, strict.ndarray)
            assert isinstance(state[1][1], strict.ndarray)
            host = (state[0].get(), (None, state[1][1].get()))
            log_probs, (which, (_, count)) = model.step(host, tokens.get())
            return cupy.asarray(log_probs), (cupy.asarray(which), (None, cupy.asarray(count)))

        model.calls = 0
        state = (cupy.asarray(model.state[0]), (None, cupy.asarray(model.state[1][1])))
        got = beam_search(step, state, cupy.asarray(np.array([0, 1])), end=END, width=3, max_length=LONGEST)
    assert got == want


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "width: expected at least 1, got 0"),
        ({"width": 2.0}, TypeError, "width: expected an integer"),
        ({"max_length": 0}, ValueError, "max_length: expected at least 1"),
        ({"end": -1}, ValueError, "end: expected at least 0"),
        ({"end": 4}, ShapeError, r"log_probs: expected \[1, V\] with V > end = 4, got shape \(1, 4\)"),
        ({"length_penalty": -1.0}, ValueError, "length_penalty: expected at least 0"),
    ],
)
def test_bad_options_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        search(Markov(0, 1), [0], **{"width": 2, **options})


def test_bad_log_probabilities_are_refused():
    with pytest.raises(TypeError, match="start: expected an array of integers"):
        beam_search(lambda s, t: (None, s), None, np.zeros(1), end=0, width=1, max_length=1)
    for values, error in (
        (np.full((1, 3), np.nan), ValueError),
        (np.zeros((2, 3)), ShapeError),
        (np.zeros(3), ShapeError),
    ):
        with pytest.raises(error, match="log_probs: expected"):
            beam_search(lambda s, t, v=values: (v, s), None, np.zeros(1, int), end=0, width=1, max_length=2)
    assert fastrnn.beam_search is beam_search
