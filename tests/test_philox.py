"""The counter-based generator behind every mask: known answers, the documented counter, statistics, independence."""

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, Case, draw, make_layer, use_threads

import fastrnn
from fastrnn import backends, philox

# Random123's kat_vectors for philox4x32-10: counter (4 words), key (2 words), result (4 words).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


class FromBlock:
    """NumPy, but with blocks numbered from `first`: the known answers lie beyond any array that fits in memory."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def arange(self, count: int, dtype: object) -> np.ndarray:
        return np.arange(self.first, self.first + count, dtype=dtype)


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: str, key: str, result: str) -> None:
    *prefix, block = words_of(counter)
    low, high = words_of(key)
    words = philox.random_words(FromBlock(block), low | high << 32, tuple(prefix), 4)
    assert words.dtype == np.uint32
    assert words.tolist() == words_of(result)


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answer_on_every_backend(backend: str) -> None:
    words = backends.module(backend).random_words(np, 0, (0, 0, 0), 4)
    assert words.tolist() == words_of(KNOWN[0][2])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1001])
@pytest.mark.parametrize(
    ("seed", "counter"),
    [(0, (0, 0, 0)), (2**64 - 1, (2**32 - 1, 6, 0)), (0x243F6A8885A308D3, (7, 2, 1)), (1 << 32, (1, 0, 0))],
)
def test_every_backend_and_thread_count_makes_the_same_words(
    seed: int, counter: tuple[int, int, int], count: int
) -> None:
    want = philox.random_words(np, seed, counter, count)
    assert want.shape == (count,)
    for backend in BACKENDS:
        for number in (1, 3):
            with use_threads(number):
                got = backends.module(backend).random_words(np, seed, counter, count)
            assert got.dtype == np.uint32
            np.testing.assert_array_equal(got, want, err_msg=backend)


def test_a_stream_is_its_own_beginning_and_others_differ() -> None:
    base = philox.random_words(np, 5, (1, 2, 0), 4096)
    np.testing.assert_array_equal(philox.random_words(np, 5, (1, 2, 0), 10), base[:10])
    others = [(5, (2, 2, 0)), (5, (1, 4, 0)), (5, (1, 2, 1)), (6, (1, 2, 0)), (5 + (1 << 32), (1, 2, 0))]
    for seed, counter in others:
        other = philox.random_words(np, seed, counter, 4096)
        assert np.count_nonzero(base == other) <= 1  # by chance one in a million
        # differing bits of independent words: 16 of 32 on average, standard deviation of the mean 0.044
        differing = np.unpackbits((base ^ other).view(np.uint8)).mean() * 32
        assert abs(differing - 16) < 5 * 0.044


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75, 0.999, 1 - 2**-24])
def test_the_rate_of_dropped_elements(p: float) -> None:
    n = 400_000
    scale = philox.keep_scale(np, philox.random_words(np, 11, (0, 0, 0), n), p, (n,), "float64")
    assert set(np.unique(scale)) <= {0.0, 1 / (1 - p)}
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs((scale == 0).mean() - p) <= 5 * deviation
    # neighbours, and elements four apart (the same word of the next block), are dropped independently
    dropped = scale == 0
    for lag in (1, 4, 64):
        both = (dropped[lag:] & dropped[:-lag]).mean()
        assert abs(both - p * p) <= 5 * (p * p * (1 - p * p) / n) ** 0.5 + 5 * deviation * p


def test_keep_means_u_at_least_p() -> None:
    """At the edge: p = 3/2**24 drops the words 0, 1 and 2 in their upper 24 bits and keeps 3."""
    words = np.array([0, 1, 2, 3, 4, 2**24 - 1], np.uint32) << 8 | 0xFF
    kept = philox.keep_scale(np, words, 3 / 2**24, (6,), "float64") > 0
    assert kept.tolist() == [False, False, False, True, True, True]
    above = philox.keep_scale(np, words, 2.5 / 2**24, (6,), "float64") > 0
    assert above.tolist() == [False, False, False, True, True, True]


def masks(backend: str, dtype: str, seed: int, call: int) -> list[np.ndarray]:
    """The masks of one dropout and of two, one after the other, times their scale, as y of a network that adds nothing:
    identity cells without a recurrent product, W = I, x = 1.
    """
    size, found = 6, []
    for layers in (2, 3):
        layer = fastrnn.RNN(size, size, layers, "identity", bias=False, dropout=0.5, seed=seed, dtype=dtype)
        eye, zero = np.eye(size, dtype=dtype), np.zeros((size, size), dtype)
        layer.update({name: eye if "ih" in name else zero for name in layer.params})
        layer.calls = call
        x = np.ones((9, 4, size), dtype)
        with fastrnn.use_backend(backend):
            y, _, backward = layer.forward(x, training=True)
            np.testing.assert_array_equal(backward(x).x, y)  # the same mask in both directions
        found.append(y)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_are_the_documented_ones(backend: str, dtype: str) -> None:
    """key = seed, counter = (call, 2 * layer + direction, kind, index over [T, B, H]); u = (w >> 8) / 2**24 >= p."""
    seed, call = 12345678901234567890, 7
    expected = []
    for layer in range(2):
        words = philox.random_words(np, seed, (call, 2 * layer, philox.DROPOUT), 9 * 4 * 6)
        expected.append(((words >> 8) / 2**24 >= 0.5).reshape(9, 4, 6) * 2.0)
    one, two = masks(backend, dtype, seed, call)
    np.testing.assert_array_equal(one, expected[0])
    np.testing.assert_array_equal(two, expected[0] * expected[1])
    assert not np.array_equal(expected[0], expected[1])


def test_masks_differ_by_call_and_seed() -> None:
    base, _ = masks("reference", "float64", 1, 0)
    for other in (masks("reference", "float64", 1, 1)[0], masks("reference", "float64", 2, 0)[0]):
        assert 0.3 < (base == other).mean() < 0.7


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_first_has_the_same_masks(backend: str) -> None:
    case = Case("gru", backend, num_layers=2, dropout=0.5, bidirectional=True)
    problem, layer = draw(case), make_layer(case)
    with fastrnn.use_backend(backend):
        y = layer.forward(problem.x, training=True).y
        turned = make_layer(Case("gru", backend, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True))
        other = turned.forward(np.ascontiguousarray(problem.x.swapaxes(0, 1)), training=True).y
    np.testing.assert_array_equal(other.swapaxes(0, 1), y)
