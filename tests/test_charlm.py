"""The character language model: against torch, on texts it can learn by heart, stopped and resumed, and its parts."""

import collections
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import fastrnn
from fastrnn.models import CharLM, Corpus, Progress, Settings, Watch, python_stdlib, text_file
from fastrnn.models.ngram import NGram
from fastrnn.models.streams import Streams
from fastrnn.models.vocabulary import Vocabulary
from tests import tolerance

FOX = "the quick brown fox jumps over the lazy dog; "
TOY = Corpus("toy", FOX * 20, FOX * 4)
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


class TorchTwin(torch.nn.Module):
    """The same model in torch, with the same parameters."""

    def __init__(self, model: CharLM) -> None:
        super().__init__()
        a, size = model.arguments, len(model.vocabulary)
        self.embedding = torch.nn.Embedding(size, a["embedding"])
        self.rnn = TORCH[a["cell"]](a["embedding"], a["hidden"], a["layers"])
        self.head = torch.nn.Linear(a["hidden"], size)
        self.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in model.params.items()})

    def loss(self, ids: np.ndarray, targets: np.ndarray, state: object = None) -> tuple[torch.Tensor, object]:
        y, state = self.rnn(self.embedding(torch.from_numpy(ids.copy())), state)
        logits = self.head(y).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets.copy()).flatten()), state


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_loss_and_every_gradient_are_torchs(cell, layers):
    model = CharLM(FOX, cell=cell, hidden=17, layers=layers, embedding=5, seed=1)
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(len(model.vocabulary), size=(2, 9, 3))
    twin = TorchTwin(model)
    _, state, _ = model.forward(ids, targets)
    loss, _, backward = model.forward(ids, targets, state)
    given = tuple(map(torch.from_numpy, state)) if cell == "lstm" else torch.from_numpy(state)
    want, _ = twin.loss(ids, targets, given)
    want.backward()
    assert float(loss) == pytest.approx(want.item(), rel=tolerance.rounding("float32", 9, 17))
    grads, wanted = backward(), dict(twin.named_parameters())
    assert set(grads) == set(wanted)
    for name, tensor in wanted.items():
        assert tolerance.error(grads[name], tensor.grad.numpy()) < tolerance.rounding("float32", 9, 17), name


def test_training_takes_torchs_steps():
    """Windows in order, state carried over, clipping, Adam and the falling learning rate: the loss of every step."""
    model, settings = (
        CharLM(FOX, hidden=12, embedding=6, seed=3),
        Settings(steps=12, batch=3, window=8, lr=0.05, clip=0.1),
    )
    twin = TorchTwin(model)
    adam = torch.optim.Adam(twin.parameters())
    # 9 windows an epoch: at the tenth step the text is cut anew and the state starts from zero.
    corpus = Corpus("toy", (FOX * 6)[:217], FOX)
    streams, state = Streams(model.vocabulary.encode(corpus.train), 3, 8, seed=3), None
    bits, wanted = [], []
    for step in range(12):
        inputs, targets, fresh = streams.next()
        assert fresh == (step in (0, 9))
        loss, state = twin.loss(inputs, targets, None if fresh else state)
        state = tuple(part.detach() for part in state)
        adam.param_groups[0]["lr"] = 0.05 * (1 - step / 12)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        adam.step()
        bits.append(loss.item() / math.log(2))
        weights = 0.98 ** np.arange(len(bits))[::-1]
        wanted.append((weights * bits).sum() / weights.sum())
    seen: list[Progress] = []
    model.fit(corpus, settings, Watch(seen.append))
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.characters for p in seen] == [24 * step for step in range(1, 13)]
    np.testing.assert_allclose([p.train_bits for p in seen], wanted, rtol=tolerance.rounding("float32", 96, 12))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    ("length", "characters"),
    [(2, None), (127, None), (129, 50), (1000, None), (9001, None), (9001, 4000), (9001, 9001)],
)
def test_bits_per_character_are_torchs(cell, length, characters):
    """Scored in pieces with the state carried, and from several places; unknown characters as the unknown symbol."""
    model = CharLM(FOX, cell=cell, hidden=9, embedding=4, seed=4)
    text = (FOX + "Ünknown\U0001f98a" + FOX[::-1]) * 100
    ids = model.vocabulary.encode(text[:length])
    readers = max(1, min(64, length // 128))
    part = (length - 1) // readers
    inputs = ids[: readers * part].reshape(readers, part).T
    targets = ids[1 : readers * part + 1].reshape(readers, part).T
    if characters is not None:
        inputs, targets = inputs[: characters // readers], targets[: characters // readers]
    with torch.no_grad():
        want = TorchTwin(model).loss(inputs, targets)[0].item() / math.log(2)
    got = model.bits_per_character(text[:length], characters)
    assert got == pytest.approx(want, rel=tolerance.rounding("float32", part, 9))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_repeated_text_is_learnt_by_heart(cell):
    model = CharLM(FOX, cell=cell, hidden=40, embedding=12, seed=5)
    progress = model.fit(TOY, Settings(steps=250, batch=4, window=24, lr=0.01))
    held_out = model.bits_per_character(TOY.held_out)
    # What the character before alone tells: nine words begin after a space, so that much is lost without a memory.
    counts = collections.Counter(zip(FOX, FOX[1:] + FOX[0], strict=True))
    singles = collections.Counter(FOX)
    memoryless = -sum(n * math.log2(n / singles[a]) for (a, _), n in counts.items()) / len(FOX)
    assert memoryless > 0.9
    assert held_out < 0.1 * memoryless
    assert progress.step == 250
    for temperature in (0.0, 0.1):
        assert model.sample(FOX[:6], length=100, temperature=temperature, seed=0) == (FOX * 3)[:106]


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["fastrnn"])  # noqa: SIM118


def stop_after(steps: int) -> Watch:
    asked = iter(range(1, 1000))
    return Watch(stop=lambda: next(asked) == steps)


@pytest.mark.parametrize(
    ("cell", "layers", "dropout"),
    [("lstm", 1, 0.0), ("lstm", 2, 0.4), ("gru", 2, 0.0), ("gru", 3, 0.2), ("rnn", 1, 0.0)],
)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(cell, layers, dropout, seed, tmp_path):
    # 19 windows fit an epoch, so the text is cut anew, by random numbers, after the stop or just before it.
    corpus, settings = Corpus("toy", FOX * 14, FOX), Settings(steps=40, batch=3, window=11, lr=0.01)
    options = {"cell": cell, "hidden": 8, "layers": layers, "dropout": dropout, "embedding": 4, "seed": seed}
    whole = CharLM(FOX, **options)
    whole.fit(corpus, settings)
    whole.save(tmp_path / "whole")
    for broken_at in (1, 19, 30):
        first = CharLM(FOX, **options)
        assert first.fit(corpus, settings, stop_after(broken_at)).step == broken_at
        first.save(tmp_path / "first")
        second = CharLM.load(tmp_path / "first")
        second.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()
        assert second.resume(corpus).step == 40
        second.save(tmp_path / "second")
        (got, description), (want, wanted_description) = contents(tmp_path / "second"), contents(tmp_path / "whole")
        assert description == wanted_description
        assert got.keys() == want.keys()
        for name, array in want.items():
            assert got[name].tobytes() == array.tobytes(), f"{name}, broken off at {broken_at}"
        first.resume(corpus)  # and without the detour over a file
        for name, array in whole.params.items():
            assert first.params[name].tobytes() == array.tobytes(), name


def test_the_seed_decides_every_bit():
    def trained(seed: int) -> dict[str, np.ndarray]:
        model = CharLM(FOX, hidden=8, layers=2, dropout=0.3, embedding=4, seed=seed)
        model.fit(TOY, Settings(steps=5, batch=2, window=7))
        return model.params

    one, same, other = trained(1), trained(1), trained(2)
    for name, array in one.items():
        assert array.tobytes() == same[name].tobytes(), name
        assert not np.array_equal(array, other[name]), name
    assert CharLM(FOX).seed != CharLM(FOX).seed


def test_checkpoints_while_training_are_those_of_a_stop(tmp_path):
    options, settings = {"hidden": 6, "embedding": 3, "seed": 0}, Settings(steps=20, batch=2, window=5)
    written = []
    model = CharLM(FOX, **options)
    watch = Watch(lambda p: written.append((tmp_path / "c").exists()), report_every=6, save_to=tmp_path / "c")
    model.fit(TOY, settings, watch)
    assert written == [False] * 5 + [True] * 15
    model.save(tmp_path / "end")
    assert (tmp_path / "end").read_bytes() == (tmp_path / "c").read_bytes()
    stopped = CharLM(FOX, **options)
    asked = iter(range(1, 100))
    stopped.fit(TOY, settings, Watch(stop=lambda: next(asked) == 8, report_every=6, save_to=tmp_path / "d"))
    assert CharLM.load(tmp_path / "d").resume(TOY).step == 20


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model"
    model = CharLM(FOX, hidden=6, seed=0)
    model.save(path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{function}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                CharLM(FOX, hidden=6, seed=1).save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_longer_run_can_follow_a_complete_one(tmp_path):
    model = CharLM(FOX, hidden=6, seed=0)
    model.fit(TOY, Settings(steps=4, batch=2, window=5))
    with pytest.raises(ValueError, match="steps: expected more than the 4 already taken, got 4"):
        model.resume(TOY)
    model.save(tmp_path / "m")
    assert CharLM.load(tmp_path / "m").resume(TOY, steps=7).step == 7


def test_temperature_shapes_the_draws():
    model = CharLM("abc", hidden=4, seed=0)
    logits = np.array([50.0, 1.0, 0.0, -1.0], np.float32)  # the unknown symbol first, likeliest by far and never drawn
    model.update({"head.weight": np.zeros((4, 4), np.float32), "head.bias": logits})
    count = 2000
    for temperature in (0.5, 1.0, 2.0):
        p = np.exp(logits[1:].astype(float) / temperature)
        p /= p.sum()
        drawn = collections.Counter(model.sample("a", count, temperature, seed=6)[1:])
        for c, expected in zip("abc", p, strict=True):
            assert abs(drawn[c] - count * expected) < 5 * math.sqrt(count * expected * (1 - expected)), (c, temperature)
    assert model.sample("a", 50, 0.0) == "a" * 51
    assert model.sample("c", 50, 1e-300, seed=0) == "c" + "a" * 50
    assert model.sample("ab", 0) == "ab"
    assert model.sample("a", 50, seed=1) == model.sample("a", 50, seed=1) != model.sample("a", 50, seed=2)


def damaged(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def without_a_tensor(path: Path) -> None:
    tensors, description = contents(path)
    del tensors["head.bias"]
    save_file(tensors, path, {"fastrnn": json.dumps(description)})


def with_a_wrong_moment(path: Path) -> None:
    tensors, description = contents(path)
    tensors["adam.m.head.bias"] = np.zeros(3, np.float32)
    save_file(tensors, path, {"fastrnn": json.dumps(description)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "expected a safetensors file, got a damaged or foreign one"),
        (without_a_tensor, "expected a checkpoint of a CharLM, got a damaged one.*head.bias"),
        (with_a_wrong_moment, "expected a checkpoint of a CharLM, got a damaged one.*adam moments of head.bias"),
        (lambda path: fastrnn.LSTM(2, 3).save(path), "expected a checkpoint of a CharLM, got one of 'LSTM'"),
        (lambda path: save_file({"a": np.zeros(2)}, path), "expected a fastrnn checkpoint"),
        (lambda path: path.write_text("not a checkpoint"), "expected a safetensors file"),
        (lambda path: path.write_bytes(b""), "expected a safetensors file"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(spoil, message, tmp_path):
    model = CharLM(FOX, hidden=6, seed=0)
    model.fit(TOY, Settings(steps=2, batch=2, window=5))
    model.save(tmp_path / "m")
    CharLM.load(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(ValueError, match=f"m: {message}"):
        CharLM.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: CharLM("aaaa"), ValueError, "text: expected at least two different characters, got 'a'"),
        (lambda m: CharLM(FOX, cell="LSTM"), ValueError, "cell: expected one of 'lstm', 'gru', 'rnn', got 'LSTM'"),
        (lambda m: CharLM(FOX, hidden=0), ValueError, "hidden: expected at least 1, got 0"),
        (lambda m: CharLM(FOX, layers=0), ValueError, "layers: expected at least 1, got 0"),
        (lambda m: CharLM(FOX, embedding=-1), ValueError, "embedding: expected at least 1, got -1"),
        (lambda m: CharLM(FOX, layers=2, dropout=1.0), ValueError, "dropout: expected 0 <= p < 1"),
        (lambda m: CharLM(FOX, dropout=0.1), ValueError, "dropout: expected 0 with one layer"),
        (lambda m: CharLM(FOX, seed=-1), ValueError, "seed: expected at least 0"),
        (lambda m: m.sample("Ü the ß"), ValueError, "start: .* got the unknown 'Üß'"),
        (lambda m: m.sample(""), ValueError, "start: expected at least one character"),
        (lambda m: m.sample("t", temperature=-0.1), ValueError, "temperature: expected at least 0, got -0.1"),
        (lambda m: m.sample("t", temperature=math.nan), ValueError, "temperature: expected a finite number"),
        (lambda m: m.sample("t", length=-1), ValueError, "length: expected at least 0, got -1"),
        (lambda m: m.bits_per_character("t"), ValueError, "text: expected at least two characters"),
        (lambda m: m.resume(TOY), ValueError, "resume: expected a model with a training run"),
        (lambda m: m.fit(Corpus("s", FOX, FOX)), ValueError, "expected at least batch \\* window \\+ 1 = 2049 char"),
        (lambda m: Settings(steps=0), ValueError, "steps: expected at least 1, got 0"),
        (lambda m: Settings(lr=0.0), ValueError, "lr: expected a number greater than 0"),
        (lambda m: Settings(clip=-1.0), ValueError, "clip: expected a number greater than 0"),
        (lambda m: Settings(lr=math.inf), ValueError, "lr: expected a finite number"),
        (lambda m: m.fit(TOY, Settings(steps=1, batch=2, window=5), Watch(report_every=0)), ValueError, "report_every"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    model = CharLM(FOX, hidden=4, seed=0)
    before = model.params
    with pytest.raises(error, match=message):
        call(model)
    for name, array in before.items():
        np.testing.assert_array_equal(model.params[name], array)


def test_an_update_that_does_not_fit_changes_nothing():
    model = CharLM(FOX, hidden=4, seed=0)
    before, good = model.params, np.zeros_like(model.params["embedding.weight"])
    for bad, error, message in (
        ({"body.weight": good}, ValueError, "params: expected names among .* got 'body.weight'"),
        ({"head.bias": good}, fastrnn.ShapeError, r"head.bias: expected \[\d+\] float32"),
        ({"rnn.bias_ih_l0": np.zeros(16)}, TypeError, r"rnn.bias_ih_l0: expected \[16\] float32, got \(16,\) float64"),
    ):
        with pytest.raises(error, match=message):
            model.update({"embedding.weight": good, **bad})
    for name, array in before.items():
        np.testing.assert_array_equal(model.params[name], array)


def test_training_needs_no_held_out_text():
    seen: list[Progress] = []
    model = CharLM(FOX, hidden=4, seed=0)
    model.fit(Corpus("s", FOX, ""), Settings(steps=5, batch=2, window=5), Watch(seen.append, report_every=2))
    assert [p.held_out_bits for p in seen] == [None] * 5
    again: list[Progress] = []
    CharLM(FOX, hidden=4, seed=0).fit(TOY, Settings(steps=5, batch=2, window=5), Watch(again.append, report_every=2))
    assert [p.held_out_bits is None for p in again] == [True, False, True, False, False]


def test_another_text_is_not_resumed():
    model = CharLM(FOX, hidden=4, seed=0)
    model.fit(TOY, Settings(steps=4, batch=2, window=5), stop_after(2))
    with pytest.raises(ValueError, match=r"text: expected 'toy' as at the start of the run .* got 'other'"):
        model.resume(Corpus("other", TOY.train + ".", TOY.held_out))
    assert model.resume(TOY).step == 4


def test_a_diverging_run_says_so_and_cannot_be_resumed():
    model = CharLM(FOX, hidden=4, seed=0)
    model.fit(TOY, Settings(steps=9, batch=2, window=5), stop_after(3))
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"lr: the loss became (nan|inf) at step \d+"):
        model.fit(TOY, Settings(steps=50, batch=2, window=5, lr=1e38))
    with pytest.raises(ValueError, match="resume: expected a model with a training run"):
        model.resume(TOY)


# --- vocabulary


def test_vocabulary_is_a_round_trip_and_names_the_unknown():
    text = "na\u00efve \U0001f98a\n\tz"
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.min() == 1
    assert ids.max() == len(vocabulary) - 1 == len(set(text))
    assert vocabulary.encode("zQ\U0001f98b\u00ef").tolist() == [ids[-1], 0, 0, ids[2]]
    assert vocabulary.unknown("zQ\U0001f98bQ") == "Q\U0001f98b"
    assert vocabulary.encode("").shape == (0,)


# --- the text in windows


@pytest.mark.parametrize(("batch", "window", "length"), [(1, 1, 2), (3, 4, 13), (2, 5, 64), (4, 7, 200)])
def test_streams_read_every_part_in_order(batch, window, length):
    ids = np.arange(length)
    streams = Streams(ids, batch, window, seed=1)
    offsets = set()
    for _ in range(20):  # epochs
        inputs, targets, fresh = streams.next()
        assert fresh
        offset = int(inputs[0, 0])
        offsets.add(offset)
        part = (length - 1 - offset) // batch
        np.testing.assert_array_equal(inputs[0], offset + part * np.arange(batch))
        for _ in range(part // window - 1):
            following, following_targets, fresh = streams.next()
            assert not fresh
            np.testing.assert_array_equal(following[0], inputs[-1] + 1)
            inputs, targets = following, following_targets
        np.testing.assert_array_equal(inputs, inputs[0] + np.arange(window)[:, None])
        np.testing.assert_array_equal(targets, inputs + 1)
        assert inputs.shape == (window, batch)
    assert offsets <= set(range(window))
    assert len(offsets) == min(window, length - batch * window)


def test_streams_restored_give_the_same_windows():
    ids, streams = np.random.default_rng(0).integers(9, size=100), Streams(np.zeros(100, int), 2, 7, seed=3)
    streams = Streams(ids, 2, 7, seed=3)
    for _ in range(16):  # two epochs and some
        streams.next()
    other = Streams(ids, 2, 7, seed=99)
    other.restore(json.loads(json.dumps(streams.state())))
    for _ in range(30):
        for got, want in zip(other.next(), streams.next(), strict=True):
            np.testing.assert_array_equal(got, want)


# --- the yardstick


def test_a_text_without_a_whole_n_gram_is_refused() -> None:
    model = NGram(np.arange(5), 5)
    assert np.isfinite(model.bits_per_symbol(np.arange(3)))
    with pytest.raises(ValueError, match="ids: expected at least 3 symbols, got 2"):
        model.bits_per_symbol(np.arange(2))


def kneser_ney(text: str, size: int, context: str, symbol: str) -> float:
    """The formula of NGram's docstring, order 3, with dictionaries and strings."""
    counts = {3: collections.Counter(text[i : i + 3] for i in range(len(text) - 2))}
    for n in (2, 1):
        counts[n] = collections.Counter(gram[1:] for gram in counts[n + 1])

    def p(context: str, symbol: str, n: int) -> float:
        if n == 0:
            return 1 / size
        lower = p(context[1:], symbol, n - 1)
        once, twice = (sum(count == k for count in counts[n].values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        following = {gram[-1]: count for gram, count in counts[n].items() if gram[:-1] == context}
        total = sum(following.values())
        if total == 0:
            return lower
        return (max(following.get(symbol, 0) - discount, 0) + discount * len(following) * lower) / total

    return p(context, symbol, 3)


@pytest.mark.parametrize("text", [FOX * 2 + "lazy foxes", "abab", "abcabcabcabc" * 3, "mississippi"])
def test_the_trigram_model_is_kneser_neys(text):
    vocabulary = Vocabulary.of(text)
    size = len(vocabulary)
    model = NGram(vocabulary.encode(text), size)
    symbols = vocabulary.characters + "\uffff"  # the last is unknown
    rng = np.random.default_rng(0)
    contexts = {text[:2], text[1:3], symbols[-1] + text[0], text[0] + symbols[-1]}
    contexts |= {"".join(rng.choice(list(symbols), 2)) for _ in range(10)}
    for context in contexts:
        total = 0.0
        for symbol in symbols:
            p = 2 ** -model.bits_per_symbol(vocabulary.encode(context + symbol))
            assert p == pytest.approx(kneser_ney(text, size, context, symbol), rel=1e3 * tolerance.EPS["float64"])
            total += p
        assert total == pytest.approx(1, rel=1e3 * tolerance.EPS["float64"])


def test_the_trigram_model_averages_over_a_text():
    text, other = FOX * 3, "the lazy fox; Q"
    vocabulary = Vocabulary.of(text)
    want = [kneser_ney(text, len(vocabulary), other[i - 2 : i], other[i]) for i in range(2, len(other))]
    got = NGram(vocabulary.encode(text), len(vocabulary)).bits_per_symbol(vocabulary.encode(other))
    assert got == pytest.approx(-np.log2(want).mean(), rel=1e3 * tolerance.EPS["float64"])


# --- the text


def test_the_standard_library_is_one_text_with_whole_files_held_out():
    corpus, again, longer = python_stdlib(300_000), python_stdlib(300_000), python_stdlib(600_000)
    assert corpus == again
    assert corpus.fingerprint == again.fingerprint != longer.fingerprint
    assert longer.train.startswith(corpus.train)
    assert longer.held_out.startswith(corpus.held_out)
    assert 300_000 <= len(corpus.train) + len(corpus.held_out) < 700_000
    whole = python_stdlib(10**9)
    assert 10 < len(whole.train) / len(whole.held_out) < 40
    for module in (json, collections, math.__class__, Path):
        source = getattr(module, "__file__", None)
        if source is not None:
            text = Path(source).read_text(encoding="utf-8")
            assert (text in whole.train) != (text in whole.held_out)  # in one of them and whole
    assert "class IdbAdapter" not in whole.train  # idlelib


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a text of at least 30 characters, got an empty file"),
        (b"too short", "expected a text of at least 30 characters, got 9"),
        (b"a" * 30 + b"\xff" + b"b" * 30, "expected UTF-8 text, got byte 0xff at offset 30"),
    ],
)
def test_a_text_file_that_is_none_is_refused(data, message, tmp_path):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"t.txt: {message}"):
        text_file(tmp_path / "t.txt")
    with pytest.raises(FileNotFoundError):
        text_file(tmp_path / "missing.txt")


def test_the_end_of_a_text_file_is_held_out(tmp_path):
    text = "".join(chr(33 + i % 90) for i in range(205)) + "é"
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + text.encode().replace(b"0", b"\r\n"))
    corpus = text_file(tmp_path / "t.txt")
    assert corpus.train + corpus.held_out == text.replace("0", "\n")
    assert len(corpus.held_out) == 20
    assert corpus.name == "t.txt"
