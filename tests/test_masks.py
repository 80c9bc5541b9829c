"""The masks of dropout, recurrent dropout and zoneout as the layers draw them: where they act, and that chance alone
rules them.

What a layer draws is read off its passes, and the counters that it asks for are written down. A backend draws the
documented masks to the bit (see fastrnn.philox), so the statistics of one are those of all. They are of signs of
probability 1/2: if masks are independent, so are the products of two of their elements, and the mean of n such products
exceeds BOUND / sqrt(n) with a probability below 2 exp(-BOUND^2 / 2) = 5e-11 (Hoeffding). The four thousand means here
raise one false alarm in five million seeds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from types import ModuleType
from typing import Any

import host_kernels
import numpy as np
import pytest
from cases import BACKENDS, DTYPES, use_threads

import fastrnn
from fastrnn import backends, philox, sequence

L, D, T, B, H = 3, 2, 12, 24, 32
RATE, SEED, CALLS = 0.5, 0xFEDCBA9876543210, 3
BOUND = 7.0
RARE = 1e-10  # false alarms of one rate, see `test_rates`
KINDS = {"dropout": philox.DROPOUT, "recurrent": philox.RECURRENT, "h": philox.ZONEOUT_H, "c": philox.ZONEOUT_C}
Masks = dict[tuple[int, int, int, str], np.ndarray]  # call, layer, direction, kind -> True where dropped or held


@contextmanager
def recorded(backend: str) -> Iterator[tuple[list[sequence.Output], list[tuple[Any, ...]]]]:
    """The passes of every call in the block, and the (seed, counter, count) of all random words that it asks for."""
    outputs: list[sequence.Output] = []
    asked: list[tuple[Any, ...]] = []
    module, forward, random_words = backends.module(backend), sequence.forward, backends.module(backend).random_words

    def output(*args: Any, **kwargs: Any) -> sequence.Output:
        outputs.append(forward(*args, **kwargs))
        return outputs[-1]

    def words(xp: ModuleType, seed: int, counter: tuple[int, int, int], count: int) -> Any:
        asked.append((seed, counter, count))
        return random_words(xp, seed, counter, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "forward", output)
        patch.setattr(module, "random_words", words)
        yield outputs, asked


def host(array: Any) -> np.ndarray:
    result: np.ndarray = getattr(array, "_host", array)
    return result


def masks_of(output: sequence.Output, call: int) -> Masks:
    found: Masks = {}
    for layer, this in enumerate(output.passes):
        if this.scale is not None:
            found[call, layer, 0, "dropout"] = host(this.scale) == 0
        for direction, run in enumerate(this.runs):
            assert run.zone is not None, "the layer has zoneout"
            found[call, layer, direction, "recurrent"] = host(run.keep) == 0
            found[call, layer, direction, "h"] = host(run.zone.h) == 1
            found[call, layer, direction, "c"] = host(run.zone.c) == 1
    return found


def make(device: str = "cpu", dtype: str = "float32", **rates: Any) -> fastrnn.LSTM:
    rates = {"dropout": RATE, "recurrent_dropout": RATE, "zoneout": RATE} | rates
    return fastrnn.LSTM(2, H, L, bidirectional=True, dtype=dtype, seed=SEED, device=device, **rates)


def drawn(layer: fastrnn.LSTM, x: Any, backend: str, calls: int) -> tuple[Masks, list[tuple[Any, ...]]]:
    """The masks of this many training calls, with a plain call and an evaluation between them, which draw none."""
    with fastrnn.use_backend(backend), recorded(backend) as (outputs, asked):
        for _ in range(calls):
            layer.forward(x, training=True)
            layer.forward(x)
            layer(x)
    masks: Masks = {}
    for call in range(calls):
        masks |= masks_of(outputs[3 * call], call)
    return masks, asked


def documented(call: int, layer: int, direction: int, kind: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """key = seed, counter = (call, 2 * layer + direction, kind, flat index); u = (w >> 8) / 2**24 < p is dropped."""
    words = philox.random_words(np, SEED, (call, 2 * layer + direction, KINDS[kind]), int(np.prod(shape)))
    return ((words >> 8) / 2**24 < rate).reshape(shape)


def check_documented(masks: Masks, rate: float = RATE) -> None:
    for key, mask in masks.items():
        np.testing.assert_array_equal(mask, documented(*key, mask.shape, rate), err_msg=str(key))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_draws_the_documented_masks_with_any_number_of_threads(backend: str, dtype: str) -> None:
    for threads in (1, 2, 3):
        with use_threads(threads):
            masks, _ = drawn(make(dtype=dtype), np.ones((T, B, 2), dtype), backend, 2)
        assert len(masks) == 2 * (L * D * 3 + L - 1)
        check_documented(masks)


@pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools())
@pytest.mark.usefixtures("nothing_to_replay")
def test_the_cuda_backend_draws_the_documented_masks(cupy: ModuleType) -> None:
    """At every call of one shape: launched, in place, captured in a graph."""
    masks, _ = drawn(make("cuda:0"), cupy.ones((3, 5, 2), np.float32), "cuda", 4)
    assert len(masks) == 4 * (L * D * 3 + L - 1)
    check_documented(masks)


def counted(held: np.ndarray, reverse: bool) -> np.ndarray:
    """A state that grows by one at every step, but where it is held."""
    steps = np.where(held, 0.0, 1.0)
    return np.cumsum(steps[::-1], axis=0)[::-1] if reverse else np.cumsum(steps, axis=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zoneout_holds_the_elements_of_its_masks(backend: str) -> None:
    """c = 1 * c_prev + 1 * 1 in every layer, by the biases; h = h_prev + 1 in an RNN."""
    lstm = fastrnn.LSTM(2, H, L, bidirectional=True, zoneout=(0.0, RATE), seed=SEED)
    rnn = fastrnn.RNN(2, H, L, "identity", bidirectional=True, zoneout=RATE, seed=SEED)
    lstm.update({n: np.full_like(v, 1e3) if "bias" in n else np.zeros_like(v) for n, v in lstm.params.items()})
    one, eye = np.full(H, 0.5, np.float32), np.eye(H, dtype=np.float32)
    rnn.update({n: eye if "_hh" in n else np.zeros_like(v) for n, v in rnn.params.items() if "weight" in n})
    rnn.update({name: one for name in rnn.params if "bias" in name})
    x = np.ones((T, B, 2), np.float32)
    with fastrnn.use_backend(backend):
        cells, y = lstm.forward(x, training=True).cells, rnn.forward(x, training=True).y
    for direction in range(D):
        columns = slice(direction * H, (direction + 1) * H)
        for layer, c in enumerate(cells):
            held = documented(0, layer, direction, "c", (T, B, H), RATE)
            np.testing.assert_array_equal(c[:, :, columns], counted(held, direction == 1))
        held = documented(0, L - 1, direction, "h", (T, B, H), RATE)
        np.testing.assert_array_equal(y[:, :, columns], counted(held, direction == 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_recurrent_dropout_hides_the_elements_of_its_mask_at_every_step(backend: str) -> None:
    """h = keep * h_prev + 1, where keep is 0 or 2: one forever, or 2^steps - 1."""
    rnn = fastrnn.RNN(2, H, L, "identity", bidirectional=True, recurrent_dropout=RATE, seed=SEED)
    eye = np.eye(H, dtype=np.float32)
    rnn.update({n: eye if "_hh" in n else np.zeros_like(v) for n, v in rnn.params.items() if "weight" in n})
    rnn.update({n: np.full(H, 0.5, np.float32) for n in rnn.params if "bias" in n})
    with fastrnn.use_backend(backend):
        y = rnn.forward(np.ones((T, B, 2), np.float32), training=True).y
    steps = np.arange(1, T + 1)[:, None, None]
    for direction in range(D):
        hidden = documented(0, L - 1, direction, "recurrent", (B, H), RATE)
        want = np.where(hidden, 1.0, 2.0**steps - 1)
        got = y[:, :, direction * H : (direction + 1) * H]
        np.testing.assert_array_equal(got, want[::-1] if direction else want)


def test_no_counter_is_used_twice() -> None:
    """Over calls, layers, directions and kinds. Philox is a permutation of its counters: others give other words."""
    _, asked = drawn(make(), np.ones((T, B, 2), np.float32), "reference", CALLS)
    assert len(asked) == CALLS * (L * D * 3 + L - 1)
    assert len({counter for _, counter, _ in asked}) == len(asked)
    assert {seed for seed, _, _ in asked} == {SEED}
    assert all(0 <= word < 2**32 for _, counter, _ in asked for word in counter)
    assert all(count <= 2**34 for _, _, count in asked)  # a block's number has 32 bits


def test_plain_calls_draw_nothing() -> None:
    with recorded("reference") as (_, asked), fastrnn.use_backend("reference"):
        make()(np.ones((T, B, 2), np.float32))
        make().forward(np.ones((T, B, 2), np.float32))
    assert asked == []


def signs(masks: Masks) -> dict[tuple[int, int, int, str], np.ndarray]:
    return {key: np.where(mask, -1.0, 1.0) for key, mask in masks.items()}


def check_mean(name: str, products: np.ndarray) -> None:
    """The mean of independent fair signs."""
    mean, allowed = float(products.mean()), BOUND / products.size**0.5
    assert abs(mean) <= allowed, f"{name}: mean {mean:.4f} of {products.size}, allowed {allowed:.4f}"


@pytest.fixture(scope="module")
def fair() -> dict[tuple[int, int, int, str], np.ndarray]:
    """Signs of every mask of a few calls at a rate of one half."""
    masks, _ = drawn(make(), np.ones((T, B, 2), np.float32), "reference", CALLS)
    return signs(masks)


def test_elements_of_a_mask_are_independent(fair: dict[tuple[int, int, int, str], np.ndarray]) -> None:
    """Of each other in time, in the batch and over units, at every distance up to half of the mask."""
    for key, sign in fair.items():
        check_mean(f"{key}", sign)
        for axis, size in enumerate(sign.shape):
            moved = np.moveaxis(sign, axis, 0)
            for lag in range(1, size // 2 + 1):
                check_mean(f"{key} {lag} apart along axis {axis}", moved[lag:] * moved[:-lag])


def test_masks_are_independent_of_each_other(fair: dict[tuple[int, int, int, str], np.ndarray]) -> None:
    """Those of two calls, layers, directions or kinds; element by element, and in the order of the words."""
    for (name, one), (other_name, other) in combinations(fair.items(), 2):
        n = min(one.size, other.size)
        check_mean(f"{name} and {other_name}", one.reshape(-1)[:n] * other.reshape(-1)[:n])


@pytest.mark.parametrize(
    ("dropout", "recurrent", "h", "c"), [(0.1, 0.3, 0.8, 0.2), (0.75, 0.05, 0.4, 0.9)], ids=["low", "high"]
)
def test_rates(dropout: float, recurrent: float, h: float, c: float) -> None:
    """Each kind has its own; a mean of n exceeds its bound with a probability below RARE (Hoeffding)."""
    layer = make(dropout=dropout, recurrent_dropout=recurrent, zoneout=(h, c))
    masks, _ = drawn(layer, np.ones((T, B, 2), np.float32), "reference", CALLS)
    for kind, rate in {"dropout": dropout, "recurrent": recurrent, "h": h, "c": c}.items():
        elements = np.concatenate([mask.reshape(-1) for key, mask in masks.items() if key[3] == kind])
        allowed = (np.log(2 / RARE) / (2 * elements.size)) ** 0.5
        assert allowed < 0.03
        assert abs(elements.mean() - rate) <= allowed, f"{kind}: {elements.mean():.4f}, expected {rate}"
