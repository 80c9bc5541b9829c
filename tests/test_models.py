"""Forecaster, tagger, translator, autoencoder: gradients against torch, runs to the bit, quality on unseen data."""

import json
import keyword
import math
import tokenize
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastrnn
from fastrnn.models import (
    Autoencoder,
    Corpus,
    Forecaster,
    Observer,
    Schedule,
    Tagger,
    Translator,
    autoencode,
    forecast,
    numerals,
    python_stdlib,
    tag,
    translate,
)
from fastrnn.models.fitting import Run, fit
from fastrnn.models.parts import Parts
from tests import tolerance

# Gradients: each example alone in torch, without padding, in double precision


def tensors(model) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a.astype(np.float64)).requires_grad_() for n, a in model.parts.params.items()}


def recur(kind, P, part, x, state=None, bidirectional=False):
    """One recurrent layer of torch on x [T, I], with the parameters of a part."""
    layer = kind(x.shape[1], P[f"{part}.weight_hh_l0"].shape[1], bidirectional=bidirectional).double()
    named = {n.removeprefix(f"{part}."): p for n, p in P.items() if n.startswith(f"{part}.")}
    return torch.func.functional_call(layer, named, (x,) if state is None else (x, state))


def linear(P, part, x):
    return functional.linear(x, P[f"{part}.weight"], P[f"{part}.bias"])


def same_gradients(model, loss, grads, P, want) -> None:
    want.backward()
    bound = tolerance.rounding("float32", 12, 40) * tolerance.CANCELLATION
    assert float(loss) == pytest.approx(want.item(), rel=bound)
    assert grads.keys() == P.keys()
    for name, tensor in P.items():
        expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        tolerance.assert_close(name, grads[name], expected, bound)


def test_forecaster_gradients_are_torchs():
    for cell, kind in (("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM), ("rnn", torch.nn.RNN)):
        model, rng = Forecaster(cell=cell, hidden=7, window=6, horizon=3, seed=1), np.random.default_rng(2)
        x, targets = rng.standard_normal((6, 5, 1), np.float32), rng.standard_normal((5, 3), np.float32)
        loss, backward = model.loss((x, targets))
        P = tensors(model)
        out = [linear(P, "head", recur(kind, P, "rnn", torch.from_numpy(x[:, b]).double())[0][-1]) for b in range(5)]
        want = functional.mse_loss(torch.stack(out), torch.from_numpy(targets).double())
        same_gradients(model, loss, backward(), P, want)


def test_tagger_gradients_are_torchs():
    model = Tagger(list("abcde"), ["O", "B-x", "I-x"], hidden=6, embedding=4, dropout=0.0, seed=3)
    rng, lengths = np.random.default_rng(4), np.array([7, 1, 4])
    ids, labels = rng.integers(6, size=(7, 3)), rng.integers(3, size=(7, 3))
    loss, backward = model.loss((ids, labels, lengths))
    P, logits, wanted = tensors(model), [], []
    for b, length in enumerate(lengths):
        x = P["embedding.weight"][torch.from_numpy(ids[:length, b])]
        logits.append(linear(P, "head", recur(torch.nn.LSTM, P, "rnn", x, bidirectional=True)[0]))
        wanted.append(torch.from_numpy(labels[:length, b]))
    same_gradients(model, loss, backward(), P, functional.cross_entropy(torch.cat(logits), torch.cat(wanted)))


def test_translator_gradients_are_torchs():
    model = Translator("abc", "xyz", ["one", "two"], hidden=5, embedding=4, attention=6, seed=5)
    examples = [
        translate.Example(*fields) for fields in (("ab", "xyzzy", "one"), ("cabba", "x", "two"), ("b", "zz", "one"))
    ]
    loss, backward = model.loss(model._batch(examples))
    P, logits, wanted = tensors(model), [], []
    for source, target, language in examples:
        ids = torch.from_numpy(model.sources.encode(source))
        keys, h_n = recur(torch.nn.GRU, P, "encoder", P["source.weight"][ids], bidirectional=True)
        h = torch.tanh(linear(P, "bridge", torch.cat([h_n[0], h_n[1]])))[None]
        written = model.targets.encode(target).tolist()
        x = P["target.weight"][torch.tensor([model.end + 1 + model.languages.index(language), *written])]
        s, _ = recur(torch.nn.GRU, P, "decoder", x, h)
        e = torch.tanh((keys @ P["attention.W_a"].T)[None] + (s @ P["attention.U_a"].T)[:, None]) @ P["attention.v"]
        context = torch.softmax(e, dim=1) @ keys
        z = torch.tanh(linear(P, "combine", torch.cat([s, context], dim=1)))
        logits.append(linear(P, "head", z))
        wanted.append(torch.tensor([*written, model.end]))
    same_gradients(model, loss, backward(), P, functional.cross_entropy(torch.cat(logits), torch.cat(wanted)))


def test_autoencoder_gradients_are_torchs():
    model = Autoencoder("abc", code=3, hidden=5, embedding=4, seed=6)
    texts = ["abcab", "c", "bba"]
    loss, backward = model.loss(model._ids(texts))
    P, logits, wanted = tensors(model), [], []
    for text in texts:
        ids = torch.tensor([*model.vocabulary.encode(text).tolist(), model.end])
        _, h_n = recur(torch.nn.GRU, P, "encoder", P["embedding.weight"][ids], bidirectional=True)
        code = torch.tanh(linear(P, "squeeze", torch.cat([h_n[0], h_n[1]])))
        x = P["embedding.weight"][torch.cat([torch.tensor([model.end]), ids[:-1]])]
        x = torch.cat([x, code.expand(len(x), -1)], dim=1)
        s, _ = recur(torch.nn.GRU, P, "decoder", x, torch.tanh(linear(P, "expand", code))[None])
        logits.append(linear(P, "head", s))
        wanted.append(ids)
        np.testing.assert_allclose(model.encode([text])[0], code.detach().numpy(), atol=1e-6)
    same_gradients(model, loss, backward(), P, functional.cross_entropy(torch.cat(logits), torch.cat(wanted)))


# Runs: the same seed, any number of threads, broken off and resumed: the same bits

SENTENCES = [tag.Sentence(list("ab c"), ["B-x", "I-x", "O", "B-y"]), tag.Sentence(list("cab"), ["O", "B-x", "O"])] * 4
SENTENCES += [tag.Sentence(list("b"), ["O"]), tag.Sentence([], [])]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "eta", "iota", "kappa"]
PAIRS = [translate.Example(w, w[::-1], "back") for w in WORDS] + [translate.Example(w, w.upper(), "up") for w in WORDS]
MODELS = {
    "forecast": (
        lambda seed: Forecaster(hidden=5, window=8, horizon=2, seed=seed),
        lambda model, *a, **o: model.fit(forecast.noisy_sine(90), *a, **o),
    ),
    "tag": (
        lambda seed: Tagger.of(SENTENCES, hidden=4, embedding=3, dropout=0.3, seed=seed),
        lambda model, *a, **o: model.fit(tag.Corpus("toy", SENTENCES, SENTENCES[:3]), *a, **o),
    ),
    "translate": (
        lambda seed: Translator("".join(WORDS), "".join(e.target for e in PAIRS), ["back", "up"], hidden=6, seed=seed),
        lambda model, *a, **o: model.fit(translate.Corpus(PAIRS[2:], PAIRS[:2]), *a, forcing=0.6, curriculum=6, **o),
    ),
    "autoencode": (
        lambda seed: Autoencoder("".join(WORDS), hidden=6, code=4, seed=seed),
        lambda model, *a, **o: model.fit(autoencode.Corpus("toy", WORDS[2:], WORDS[:2]), *a, **o),
    ),
}
SHORT = Schedule(steps=14, batch=4, lr=0.01, evaluate_every=4)


def stop_after(steps: int) -> Observer:
    asked = iter(range(1, 1000))
    return Observer(stop=lambda: next(asked) == steps)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("patience", [None, 9])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name, patience, tmp_path):
    make, run = MODELS[name]
    schedule = Schedule(**{**SHORT.__dict__, "patience": patience})
    whole = make(3)
    assert run(whole, schedule).step == 14
    whole.save(tmp_path / "whole")
    for broken_at in (1, 6, 8):
        first = make(3)
        assert run(first, schedule, stop_after(broken_at)).step == broken_at
        first.save(tmp_path / "first")
        second = type(first).load(tmp_path / "first")
        second.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()
        assert run(second, resume=True).step == 14
        second.save(tmp_path / "second")
        assert (tmp_path / "second").read_bytes() == (tmp_path / "whole").read_bytes(), broken_at
        with pytest.raises(ValueError, match="steps: expected more than the 14 already taken"):
            run(second, resume=True)
    with pytest.raises(ValueError, match="resume: expected a model with a training run, got one without"):
        run(make(3), resume=True)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_prolonged_run_keeps_everything_but_its_length(name):
    make, run = MODELS[name]
    model = make(3)
    run(model, SHORT)
    run(model, Schedule(steps=20, batch=1, lr=0.5, clip=9.0, evaluate_every=1), resume=True)
    assert model.run.description["schedule"] == {**SHORT.__dict__, "steps": 20}
    assert [line["step"] for line in model.run.description["history"]] == [4, 8, 12, 14, 16, 20]


@pytest.mark.parametrize("name", list(MODELS))
def test_the_seed_decides_every_bit_and_the_threads_none(name):
    make, run = MODELS[name]

    def trained(seed, threads):
        before = fastrnn.get_num_threads()
        fastrnn.set_num_threads(threads)
        try:
            model = make(seed)
            run(model, SHORT)
        finally:
            fastrnn.set_num_threads(before)
        return model.parts.params

    one, same, other = trained(1, 1), trained(1, 2), trained(2, 1)
    for part, array in one.items():
        assert array.tobytes() == same[part].tobytes(), part
        assert not np.array_equal(array, other[part]), part
    assert make(None).seed != make(None).seed


@pytest.mark.parametrize("name", list(MODELS))
def test_a_spoilt_or_foreign_checkpoint_is_refused(name, tmp_path):
    make, run = MODELS[name]
    model, path = make(0), tmp_path / "m"
    run(model, SHORT)
    model.save(path)
    kind = type(model)
    loaded = kind.load(path)
    for part, array in model.parts.params.items():
        assert loaded.parts.params[part].tobytes() == array.tobytes()
    assert loaded.facts == model.facts
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(ValueError, match="m: expected a safetensors file, got a damaged"):
        kind.load(path)
    start = data.index(b'\\"seed\\"')
    path.write_bytes(data[:start] + b'\\"sead\\"' + data[start + 8 :])
    with pytest.raises(ValueError, match=f"m: expected a checkpoint of an? {kind.__name__}, got a damaged one"):
        kind.load(path)
    fastrnn.GRU(2, 2).save(path)
    with pytest.raises(ValueError, match=f"m: expected a checkpoint of an? {kind.__name__}, got one of 'GRU'"):
        kind.load(path)


class Quadratic:
    """loss = sum(w^2); what the loop needs of a model and no more."""

    def __init__(self) -> None:
        self.w = np.full(3, 2.0)
        self.run, self.saved, self.device = None, [], "cpu"
        self.parts = self

    @property
    def params(self):
        return {"w": self.w}

    def update(self, params):
        self.w = params["w"]

    def loss(self, batch):
        w = self.w
        return batch * float((w * w).sum()), lambda: {"w": batch * 2 * w}

    def save(self, path):
        self.saved.append(Path(path).name)


def test_the_loop_lets_the_rate_fall_measures_logs_and_saves(tmp_path):
    model, seen = Quadratic(), []
    scores = iter([5.0, 4.0, 3.0])
    observer = Observer(seen.append, save_to=tmp_path / "c", log_to=tmp_path / "log")
    point = fit(
        model, lambda step: 1.0, lambda: next(scores), Schedule(steps=25, lr=0.1, evaluate_every=10), observer, "d"
    )
    assert [p.step for p in seen if p.score is not None] == [10, 20, 25]
    assert point == seen[-1]
    assert model.saved == ["c"] * 3
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["score"] for line in log] == [5.0, 4.0, 3.0]
    assert [line["lr"] for line in log] == pytest.approx([0.1 * (1 - 9 / 25), 0.1 * (1 - 19 / 25), 0.1 * (1 - 24 / 25)])
    assert log == model.run.description["history"]
    weights = 0.98 ** np.arange(25)[::-1]
    twin, losses, run = Quadratic(), [], Run(Schedule(steps=25, lr=0.1), "d")
    for _ in range(25):
        losses.append(float((twin.w**2).sum()))
        run.take(twin, 1.0)
    assert point.loss == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-12)
    np.testing.assert_array_equal(model.w, twin.w)


def test_patience_ends_a_run_and_the_best_parameters_return():

    def trained(patience):
        model, kept, given = Quadratic(), [], [5.0, 3.0, 4.0, 3.0, 6.0, 1.0]

        def score():
            kept.append(model.w.copy())
            return given[len(kept) - 1]

        schedule = Schedule(steps=60, lr=0.1, evaluate_every=10, patience=patience)
        return fit(model, lambda step: 1.0, score, schedule, None, "d"), model, kept

    point, model, kept = trained(2)
    np.testing.assert_array_equal(kept, trained(None)[2][:5])  # only at the end does it go back
    assert point.step == 50  # 4, 3 and 6 are no better than 3
    np.testing.assert_array_equal(model.w, kept[1])
    assert not np.array_equal(kept[1], kept[4])
    with pytest.raises(ValueError, match="a run that is not at its end"):
        Run.restored(model.run, "d", Schedule(steps=60, lr=0.1, evaluate_every=10, patience=2), "cpu")


def test_a_loss_that_is_no_number_stops_the_run():
    model = Quadratic()
    with pytest.raises(ValueError, match=r"lr: the loss became inf at step 3; expected less than 0.1"):
        fit(model, lambda step: math.inf if step == 2 else 1.0, lambda: 0.0, Schedule(steps=9, lr=0.1), None, "d")
    assert model.run is None
    run = Run(Schedule(), "this")
    run.take(Quadratic(), 1.0)
    with pytest.raises(ValueError, match="data: expected this as at the start of the run, got that"):
        Run.restored(run.snapshot(), "that", Schedule(), "cpu")


def test_parts_are_updated_all_or_none():
    model = MODELS["tag"][0](0)
    before = model.parts.params
    good = np.zeros_like(before["head.bias"])
    for bad, error in (({"body.bias": good}, ValueError), ({"head.weight": good}, fastrnn.ShapeError)):
        with pytest.raises(error):
            model.parts.update({"head.bias": good, **bad})
    for name, array in before.items():
        np.testing.assert_array_equal(model.parts.params[name], array)
    assert Parts.gradients(a={"w": good}, b={"w": good}).keys() == {"a.w", "b.w"}


# Forecast


def test_windows_are_cut_in_time_order_and_nothing_measured_is_seen_in_training():
    for length, window, horizon in ((50, 7, 3), (500, 20, 1), (40, 20, 5)):
        train, test = forecast.windows(np.arange(float(length)), window, horizon)
        split = int(0.8 * length)
        assert train.y.max() < split <= test.y.min()
        assert train.x.max() < split
        for part in (train, test):
            np.testing.assert_array_equal(np.diff(np.column_stack([part.x, part.y]), axis=1), 1)
        assert train.y[-1, -1] == split - 1
        assert test.y[0, 0] == split
        assert test.y[-1, -1] == length - 1


def test_scaling_is_fitted_on_the_training_part_alone():
    series = np.concatenate([np.tile([0.0, 2.0], 40), np.full(20, 1000.0)])
    for scaling, offset, unit in (("standard", 1.0, 1.0), ("minmax", 0.0, 2.0)):
        model = Forecaster(hidden=3, window=4, scaling=scaling, seed=0)
        model.fit(series, Schedule(steps=1, batch=4))
        assert model.facts == {"offset": offset, "unit": unit}


def test_a_climbing_series_is_forecast_relative_to_its_windows():
    """Beyond the range of the training part only what is relative goes on, and is the same at any height."""
    t = np.arange(200.0)
    series = 3 * t + 20 * np.sin(2 * np.pi * t / 10)
    errors = {}
    for relative in (False, True):
        model = Forecaster(window=12, relative=relative, noise=0.05, hidden=16, seed=0)
        model.fit(series, Schedule(steps=200, batch=32))
        errors[relative] = model.rmse(series)[1]
    assert errors[True] < 5 < errors[False]
    x = forecast.windows(series, 12, 1)[1].x
    np.testing.assert_allclose(model.predict_windows(x + 1e4), model.predict_windows(x) + 1e4, rtol=1e-7)


def test_baselines_are_what_they_say():
    period = np.tile([1.0, 5.0, 2.0, 8.0, 3.0, 0.5], 20)
    found, rmse = forecast.seasonal_naive(period, 9, 8)
    assert (found, rmse) == (6, 0.0)
    assert forecast.autoregressive(period, 9, 8) < 1e-10
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(5000)
    assert forecast.autoregressive(noise, 5, 3) == pytest.approx(1.0, rel=0.05)
    noisy = np.tile([0.0, 4.0, 9.0], 400) + 0.1 * rng.standard_normal(1200)
    found, rmse = forecast.seasonal_naive(noisy, 9, 4)
    assert found % 3 == 0
    split, horizon, errors = 960, 4, []
    for start in range(split, 1200 - horizon + 1):
        for k in range(horizon):
            known = noisy[:start]
            at = start + k
            while at >= start:
                at -= found
            errors.append(noisy[start + k] - known[at])
    assert rmse == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-12)
    walk = np.zeros(400)
    for t in range(2, 400):
        walk[t] = 1.5 * walk[t - 1] - 0.8 * walk[t - 2] + rng.standard_normal()
    split = 320
    design = np.array([[*walk[t - 3 : t], 1.0] for t in range(3, split)])
    weights = np.linalg.solve(design.T @ design, design.T @ walk[3:split])
    errors = []
    for start in range(split, 399):
        known = list(walk[:start])
        for k in range(2):
            known.append(float(np.dot(weights[:3], known[-3:]) + weights[3]))
            errors.append(known[-1] - walk[start + k])
    assert forecast.autoregressive(walk, 3, 2) == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-9)


def test_predicting_far_feeds_back_what_was_predicted():
    model = Forecaster(hidden=4, window=5, horizon=2, seed=1)
    series = forecast.noisy_sine(60)
    model.fit(series, Schedule(steps=3, batch=8))
    known = series.copy()
    for _ in range(3):
        known = np.concatenate([known, model.predict_windows(known[None, -5:])[0]])
    for steps in (1, 2, 5, 6):
        np.testing.assert_array_equal(model.predict(series, steps), known[60 : 60 + steps])
    np.testing.assert_array_equal(model.predict(series[-5:], 3), model.predict(series, 3))


def test_the_noisy_sine_is_forecast_better_than_by_both_baselines():
    series = forecast.noisy_sine()
    assert len(series) == 500
    assert np.std(series - np.sin(2 * np.pi * 0.02 * np.arange(500))) == pytest.approx(0.1, rel=0.1)
    model = Forecaster(seed=0)
    point = model.fit(series)
    train, test = model.rmse(series)
    assert point.score == test
    naive, ar = forecast.seasonal_naive(series, 20, 1)[1], forecast.autoregressive(series, 20, 1)
    assert test < 0.96 * ar < 0.96 * naive
    assert 0.09 < train < 0.12  # the noise cannot be forecast
    ahead = model.predict(series, 50)
    assert np.sqrt(np.mean((ahead - np.sin(2 * np.pi * 0.02 * np.arange(500, 550))) ** 2)) < 0.3


@pytest.mark.nightly
def test_noisy_sines_are_forecast_better_than_by_both_baselines_on_average():
    rows = []
    for seed in range(8):
        series = forecast.noisy_sine(seed=seed)
        model = Forecaster(seed=seed)
        model.fit(series)
        ar, naive = forecast.autoregressive(series, 20, 1), forecast.seasonal_naive(series, 20, 1)[1]
        rows.append((model.rmse(series)[1], ar, naive))
    ours, ar, naive = np.mean(rows, axis=0)
    assert ours < 0.98 * min(ar, naive)


def test_a_csv_column_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('date,"price, EUR",volume\n2024-01-01,1.5,7\n\n2024-01-02,-2e3,8\n')
    name, values = forecast.csv_column(path, "price, EUR")
    assert name == "price, EUR"
    np.testing.assert_array_equal(values, [1.5, -2000.0])
    name, values = forecast.csv_column(path)
    assert name == "volume"
    np.testing.assert_array_equal(values, [7.0, 8.0])
    path.write_text("\nvalue\n1\n2\n\n")
    np.testing.assert_array_equal(forecast.csv_column(path)[1], [1.0, 2.0])


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", None, "a.csv: expected a header line and numbers, got an empty file"),
        ("a,b\n1,2\n3,\n", "b", "a.csv, line 3: expected a number in column 'b', got nothing"),
        ("a,b\n1,2\n3\n", None, "a.csv, line 3: expected a number in column 'b', got nothing"),
        ("a,b\n1,x\n", None, "a.csv, line 2: expected a number in column 'b', got 'x'"),
        ("a,b\n1,nan\n", None, "a.csv, line 2: expected a number in column 'b', got 'nan'"),
        ('a,b\n"1\n",2\n1,-inf\n', None, "a.csv, line 4: expected a number in column 'b', got '-inf'"),
        ("a,b\n1," + "x" * 999, None, r"a.csv, line 2: expected a number in column 'b', got 'x{80}\.\.\.'$"),
        ("a\n1\n\n2\n", None, "a.csv, line 3: expected a number in column 'a', got nothing"),
        ('a\n"' + "1" * 200_000, None, "a.csv, line 2: expected comma-separated values .field larger"),
        ("a,b\n1,2\n", "c", "column: expected one of 'a', 'b' in .*a.csv, got 'c'"),
    ],
)
def test_a_csv_with_gaps_or_text_is_refused(text, column, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        forecast.csv_column(tmp_path / "a.csv", column)


# Tag


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("O O", set()),
        ("B-x I-x O B-x", {(0, 2, "x"), (3, 4, "x")}),
        ("B-x B-x I-x", {(0, 1, "x"), (1, 3, "x")}),
        ("B-x I-y I-y O", {(0, 1, "x"), (1, 3, "y")}),
        ("O I-x I-x", {(1, 3, "x")}),
        ("I-x B-x", {(0, 1, "x"), (1, 2, "x")}),
        ("B-a-b I-a-b", {(0, 2, "a-b")}),
        ("", set()),
    ],
)
def test_entities_of_labels(labels, want):
    assert tag.entities(labels.split()) == want


def test_entities_are_scored_whole():
    true = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    found = [["B-x", "I-x", "O", "B-x"], ["B-x", "O"]]
    assert tag.scores(true, found) == (1 / 3, 1 / 3, 1 / 3, 0.5)
    assert tag.scores(true, true) == (1, 1, 1, 1)
    assert tag.scores(true, [["O"] * 4, ["O"] * 2]) == (0, 0, 0, 2 / 6)
    found = [["B-x", "O", "O", "B-y"], ["O", "B-x"]]  # half an entity is none
    assert tag.scores(true, found) == (2 / 3, 2 / 3, pytest.approx(2 / 3), 5 / 6)
    train = [tag.Sentence(["a", "b", "a"], ["B-x", "O", "O"]), tag.Sentence(["a"], ["B-x"])]
    assert tag.most_frequent_label(train, [tag.Sentence(["a", "c"], ["B-x", "O"])]) == (
        0.5,
        1,
        pytest.approx(2 / 3),
        0.5,
    )


SOURCE = '''\
import re  # a comment

x_1 = 3.14e-2 + 0x1F if True else "a 'quoted' word"
y = f"{x_1} and {len('inner')}"
def f():
    """Two
    lines."""
    return r'\\\\d' + "a""b"
'''


@pytest.mark.parametrize("level", ["token", "character"])
def test_source_is_labelled_as_pythons_tokenizer_says(level):
    sentences = list(tag._blocks(SOURCE, level))
    assert "".join(token for s in sentences for token in s.tokens) == SOURCE
    found = []
    for sentence in sentences:
        for first, end, kind in sorted(tag.entities(sentence.labels)):
            assert sentence.labels[first] == f"B-{kind}"
            found.append((kind, "".join(sentence.tokens[first:end])))
    wanted = []
    for token in tokenize.tokenize(BytesIO(SOURCE.encode()).readline):
        if token.type == tokenize.COMMENT:
            wanted.append(("comment", token.string))
        elif token.type == tokenize.NUMBER:
            wanted.append(("number", token.string))
        elif token.type == tokenize.NAME:
            wanted.append(("keyword" if keyword.iskeyword(token.string) else "name", token.string))
        elif token.type == tokenize.STRING and not token.string.startswith("'inner"):
            wanted.append(("string", token.string))
    if ("string", "f\"{x_1} and {len('inner')}\"") not in wanted:  # from Python 3.12 on its parts are tokens
        at = wanted.index(("name", "y")) + 1
        while wanted[at] != ("keyword", "def"):
            del wanted[at]
        wanted.insert(at, ("string", "f\"{x_1} and {len('inner')}\""))
    assert found == wanted


def test_source_files_are_held_out_whole_and_blocks_cut_no_string():
    corpus = tag.python_source("token", 600_000)
    train, held_out = ({tuple(s.tokens) for s in part} for part in (corpus.train, corpus.held_out))
    assert len(train) > 300
    assert len(held_out) > 10
    assert not train & held_out
    assert all(python_stdlib(1)[1:])  # however little is asked for, something is held out
    for sentence in corpus.train[:200]:
        assert len("".join(sentence.tokens)) <= 800
        assert sentence.tokens[-1] == "\n"


def test_blocks_cut_no_string_and_what_was_seen_in_training_is_not_measured(monkeypatch):
    lines = [f"x{i} = {i}\n" for i in range(90)]
    docstring = '"""' + "a line of it\n" * 30 + '"""\n'
    text = "".join(lines) + docstring + "".join(lines[::-1])
    blocks = ["".join(sentence.tokens) for sentence in tag._blocks(text, "token")]
    assert "".join(blocks) == text
    assert [docstring in block for block in blocks].count(True) == 1
    assert all(len(block) <= 210 for block in blocks if docstring not in block)
    long = '"""' + "a line of it\n" * 70 + '"""\n'
    blocks = ["".join(sentence.tokens) for sentence in tag._blocks(text.replace(docstring, long), "token")]
    assert not any("line of it" in block for block in blocks)  # too long a block is left out whole
    both = Corpus("both", text, "".join(lines) + "y = 1\n" * 40)
    monkeypatch.setattr(tag, "python_stdlib", lambda characters: both)
    corpus = tag.python_source("token")
    held_out = {tuple(sentence.tokens) for sentence in corpus.held_out}
    assert held_out
    assert held_out.isdisjoint(tuple(sentence.tokens) for sentence in corpus.train)


def test_tokens_of_strings_are_learnt_by_their_place():
    """The quick version: a fifth of the text and of the steps, F1 far above the most frequent label."""
    corpus = tag.python_source("token", 600_000)
    model = Tagger.of(corpus.train, hidden=32, embedding=24, seed=0)
    model.fit(corpus, Schedule(steps=150, batch=16, lr=1e-2))
    baseline, found = tag.most_frequent_label(corpus.train, corpus.held_out), model.scores(corpus.held_out)
    assert 0.3 < baseline.f1 < 0.7
    assert found.f1 > baseline.f1 + 0.25
    assert found.f1 > 0.85
    sentences = [s.tokens for s in corpus.held_out]
    order = model.least_sure(sentences)
    assert [v for _, v in order] == sorted(v for _, v in order)
    assert {i for i, _ in order} == set(range(len(sentences)))
    accuracy = [tag.scores([corpus.held_out[i].labels], [model.tag([sentences[i]])[0]]).accuracy for i, _ in order]
    third = len(accuracy) // 3
    assert np.mean(accuracy[:third]) < np.mean(accuracy[-third:])  # unsure where it is wrong


@pytest.mark.nightly
@pytest.mark.parametrize("level", ["token", "character"])
def test_the_default_tagger_reaches_its_quality(level):
    corpus = tag.python_source(level)
    model = Tagger.of(corpus.train, level=level, seed=0)
    model.fit(corpus)
    assert model.scores(corpus.held_out).f1 > tag.QUALITY[level]
    assert tag.most_frequent_label(corpus.train, corpus.held_out).f1 < tag.QUALITY[level] - 0.3


def test_least_sure_is_the_mean_of_the_best_log_probability():
    model = MODELS["tag"][0](0)
    sentences = [list("abc"), [], list("c"), list("abcabc"), list("zz")]
    got = dict(model.least_sure(sentences))
    assert set(got) == {0, 2, 3, 4}
    for i, value in got.items():
        y, _ = model.rnn(model.embedding(model._ids([sentences[i]])[0]))
        logits = torch.from_numpy(model.head(y)[:, 0])
        assert value == pytest.approx(torch.log_softmax(logits, 1).max(1).values.mean().item(), rel=1e-5)


def test_a_conll_file_is_read(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n\nAda NNP B-PER\nLovelace NNP I-PER\nwrote VBD O\n\n\nLondon NNP B-LOC\n")
    sentences = tag.conll(path)
    assert sentences == [(["Ada", "Lovelace", "wrote"], ["B-PER", "I-PER", "O"]), (["London"], ["B-LOC"])]
    corpus = tag.split("a", sentences * 5, held_out=0.5)
    assert len(corpus.train) == len(corpus.held_out) == 5  # equal sentences stay together
    for text, message in (
        ("", "expected at least one sentence, got none"),
        ("word\n", "line 1: expected a token and a label O, B-x or I-x, got 'word'"),
        ("a O\nb X\n", "line 2: expected a token and a label"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            tag.conll(path)
    with pytest.raises(ValueError, match="expected at least two different sentences, got 1"):
        tag.split("a", sentences[:1] * 3)


def test_texts_are_cut_as_the_model_was_trained():
    model = MODELS["tag"][0](0)
    assert model.sentences_of("a b\n\n  c\n") == [["a", " ", "b", "\n", "\n", "  ", "c", "\n"]]
    long = "x = 1\n" * 100
    blocks = model.sentences_of(long)
    assert "".join(token for block in blocks for token in block) == long
    assert all(200 <= len("".join(block)) <= 206 for block in blocks[:-1])
    model.level = "word"
    assert model.sentences_of("Ada  wrote .\n\nYes\n") == [["Ada", "wrote", "."], ["Yes"]]
    model.level = "character"
    assert model.sentences_of("a b\n") == [["a", " ", "b", "\n"]]


# Translate


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (0, "zero", "null"), (1, "one", "eins"), (7, "seven", "sieben"), (11, "eleven", "elf"),
        (16, "sixteen", "sechzehn"), (17, "seventeen", "siebzehn"), (20, "twenty", "zwanzig"),
        (21, "twenty-one", "einundzwanzig"), (30, "thirty", "dreißig"), (66, "sixty-six", "sechsundsechzig"),
        (77, "seventy-seven", "siebenundsiebzig"), (100, "one hundred", "einhundert"),
        (101, "one hundred one", "einhunderteins"), (212, "two hundred twelve", "zweihundertzwölf"),
        (1000, "one thousand", "eintausend"), (1001, "one thousand one", "eintausendeins"),
        (1100, "one thousand one hundred", "eintausendeinhundert"),
        (9876, "nine thousand eight hundred seventy-six", "neuntausendachthundertsechsundsiebzig"),
        (21_000, "twenty-one thousand", "einundzwanzigtausend"),
        (101_101, "one hundred one thousand one hundred one", "einhunderteintausendeinhunderteins"),
        (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine",
         "neunhundertneunundneunzigtausendneunhundertneunundneunzig"),
    ],
)  # fmt: skip
def test_numbers_in_words(number, english, german):
    assert numerals.english(number) == english
    assert numerals.german(number) == german


def test_no_two_numbers_have_the_same_words_and_held_out_ones_are_apart():
    for say in numerals.LANGUAGES.values():
        assert len({say(n) for n in range(10_000)}) == 10_000
    corpus = translate.numbers()
    train, held_out = ({e.source for e in part} for part in corpus)
    assert not train & held_out
    assert len(train) == 9000
    assert len(held_out) == 1000
    assert {e.language for e in corpus.held_out if e.source == corpus.held_out[0].source} == {"english", "german"}
    for source, target, language in corpus.held_out[:50]:
        assert target == numerals.LANGUAGES[language](int(source))
    for greatest in (-1, 5, 1_000_000):
        with pytest.raises(ValueError, match="greatest: expected"):
            translate.numbers(greatest)


@pytest.fixture(scope="module")
def small_translator():
    corpus = translate.numbers(399)
    everything = [*corpus.train, *corpus.held_out]
    sources, targets = "".join(e.source for e in everything), "".join(e.target for e in everything)
    model = Translator(sources, targets, list(numerals.LANGUAGES), hidden=48, seed=0)
    model.fit(corpus, Schedule(steps=300, batch=48, lr=8e-3, evaluate_every=300))
    return model, corpus


def test_small_numbers_are_translated(small_translator):
    """The quick version of the 99%: numbers to 399, a twentieth of the default's training."""
    model, corpus = small_translator
    assert model.exact(corpus.held_out) >= 0.85
    assert model.exact(corpus.held_out, width=4) >= 0.85
    assert model.exact(corpus.train[:200]) >= 0.95
    assert model.translate(["321", "7"], "english") != model.translate(["321", "7"], "german")
    translation, weights = model.attend("321", "german")
    assert translation == model.translate(["321"], "german")[0]
    assert weights.shape == (len(translation) + 1, 3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert np.abs(weights[0] - weights[-1]).max() > 0.1  # it looks elsewhere at the end than at the beginning


def test_a_batch_is_translated_as_its_texts_one_by_one(small_translator):
    model, _ = small_translator
    texts = ["5", "123", "399", "80", "17"]
    for width in (1, 3):
        alone = [model.translate([text], "german", width=width)[0] for text in texts]
        assert model.translate(texts, "german", width=width) == alone
    assert model.translate([], "german") == []
    state = model._encode(*model._sources(texts))
    start = np.full(len(texts), model.end + 1)
    together = model._step(state, start)[0]
    for b, text in enumerate(texts):  # padding is not attended to
        alone = model._step(model._encode(*model._sources([text])), start[:1])[0]
        np.testing.assert_allclose(together[b], alone[0], rtol=1e-4)


@pytest.mark.nightly
def test_the_default_translator_reaches_its_quality():
    corpus = translate.numbers()
    everything = [*corpus.train, *corpus.held_out]
    sources, targets = "".join(e.source for e in everything), "".join(e.target for e in everything)
    model = Translator(sources, targets, sorted(numerals.LANGUAGES), seed=0)
    model.fit(corpus)
    assert model.exact(corpus.held_out) >= translate.QUALITY
    assert model.exact(corpus.held_out, width=4) >= translate.QUALITY


def test_a_curriculum_and_free_running_train_too():
    """Short targets first; with forcing 0 the decoder reads what it wrote itself."""
    make, _ = MODELS["translate"]
    model, seen = make(1), []
    original = model.loss
    model.loss = lambda batch: (seen.append(batch), original(batch))[1]
    corpus = translate.Corpus(PAIRS, PAIRS[:1])
    model.fit(corpus, Schedule(steps=30, batch=6, evaluate_every=30), curriculum=20, forcing=0.0)
    longest = [int(batch.target_lengths.max()) - 1 for batch in seen]
    assert longest[0] == 3
    assert max(longest) == 7
    assert longest[3] < max(longest)
    assert any(not np.array_equal(batch.inputs[1:], batch.targets[:-1]) for batch in seen)
    forced, seen[:] = make(1), []
    original = forced.loss
    forced.loss = lambda batch: (seen.append(batch), original(batch))[1]
    forced.fit(corpus, Schedule(steps=5, batch=6))
    assert all(np.array_equal(batch.inputs[1:], batch.targets[:-1]) for batch in seen)


def test_a_table_is_read_and_its_sources_held_out_together(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("".join(f"s{i}\tt{i}\t{name}\n" for i in range(20) for name in ("a", "b")))
    corpus = translate.table(path, held_out=0.25)
    assert {e.source for e in corpus.train}.isdisjoint(e.source for e in corpus.held_out)
    assert len(corpus.held_out) == 10
    path.write_text("a\tb\nc\td\n")
    assert {e.language for part in translate.table(path) for e in part} == {"target"}
    for text, message in (
        ("a b\n", "t.tsv, line 1: expected source<tab>target"),
        ("a\tb\n\tc\n", "t.tsv, line 2"),
        ("a\tb\na\tc\n", "expected at least two different source texts, got 1"),
        ("", "expected at least two different source texts, got 0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            translate.table(path)


# Autoencode


def test_unseen_words_come_back_from_their_vectors():
    """The quick version: pronounceable words of three syllables, of which a tenth is never seen in training."""
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    rng = np.random.default_rng(0)
    corpus = autoencode.corpus_of("words", ["".join(rng.choice(syllables, 3)) for _ in range(2000)])
    assert not set(corpus.train) & set(corpus.held_out)
    model = Autoencoder("".join(corpus.train), hidden=64, code=32, embedding=16, seed=0)
    model.fit(corpus, Schedule(steps=300, batch=64, lr=1e-2, evaluate_every=300))
    assert model.exact(corpus.held_out) >= 0.85
    codes = model.encode(corpus.held_out[:20])
    assert codes.shape == (20, 32)
    assert np.abs(codes).max() <= 1
    assert model.decode(codes) == model.reconstruct(corpus.held_out[:20])
    assert len(set(model.decode(codes))) == 20  # it is the vectors that are told apart
    assert model.decode(codes[::-1]) == model.decode(codes)[::-1]


@pytest.mark.nightly
def test_the_default_autoencoder_reaches_its_quality():
    corpus = autoencode.identifiers()
    model = Autoencoder("".join(corpus.train + corpus.held_out), seed=0)
    model.fit(corpus)
    assert model.exact(corpus.held_out) >= autoencode.QUALITY


def test_identifiers_are_distinct_and_held_out_ones_unseen():
    corpus = autoencode.identifiers()
    assert len(set(corpus.train)) == len(corpus.train) > 5000
    assert not set(corpus.train) & set(corpus.held_out)
    assert all(3 <= len(word) <= 12 and word.isidentifier() for word in corpus.train + corpus.held_out)


BAD = [
    (lambda: Forecaster(cell="GRU"), ValueError, "cell: expected one of 'rnn', 'lstm', 'gru', got 'GRU'"),
    (lambda: Forecaster(window=0), ValueError, "window: expected at least 1"),
    (lambda: Forecaster(scaling="log"), ValueError, "scaling: expected one of 'standard', 'minmax'"),
    (lambda: Forecaster(noise=-1.0), ValueError, "noise: expected at least 0"),
    (lambda: Forecaster(seed=-1), ValueError, "seed: expected at least 0"),
    (lambda: Forecaster().fit(np.zeros(100)), ValueError, "series: expected values that differ .* got 0.0 throughout"),
    (lambda: Forecaster().fit(np.arange(26.0)), ValueError, "series: expected at least 27 values for window = 20 and"),
    (lambda: Forecaster(window=1, horizon=4).fit(np.arange(15.0)), ValueError, "series: expected at least 16 values"),
    (
        lambda: Forecaster().fit(np.array([1.0, np.nan])),
        ValueError,
        "series: expected finite numbers, got nan at index 1",
    ),
    (lambda: Forecaster().fit(np.zeros((3, 3))), fastrnn.ShapeError, r"series: expected \[N\] numbers"),
    (lambda: Forecaster().fit([1.0, 2.0]), TypeError, "series: expected a NumPy array"),
    (lambda: Forecaster().predict(np.zeros(19), 1), ValueError, "series: expected at least window = 20 values, got 19"),
    (lambda: Forecaster().predict(np.zeros(20), 0), ValueError, "steps: expected at least 1"),
    (lambda: Tagger([], ["O", "B-x"]), ValueError, "tokens: expected at least 1"),
    (lambda: Tagger(["a"], ["O"]), ValueError, "labels: expected at least 2"),
    (lambda: Tagger(["a", "a"], ["O", "B-x"]), ValueError, "tokens: expected at least 1 and none twice"),
    (lambda: Tagger(["a"], ["O", "B-x"], dropout=1.0), ValueError, "p: expected 0 <= p < 1"),
    (lambda: Tagger(["a"], ["O", "B-x"], level="line"), ValueError, "level: expected one of"),
    (
        lambda: Tagger(["a"], ["O", "B-y"]).fit(tag.Corpus("c", SENTENCES, [])),
        ValueError,
        "labels: expected O, B-y, got",
    ),
    (lambda: Tagger(["a"], ["O", "B-y"]).fit(tag.Corpus("c", [], [])), ValueError, "c: expected at least one sentence"),
    (lambda: tag.python_source("word"), ValueError, "level: expected one of 'token', 'character'"),
    (lambda: Translator("ab", "xy", []), ValueError, "languages: expected at least one"),
    (lambda: Translator("ab", "xy", ["a", "a"]), ValueError, "languages: expected at least one and none twice"),
    (lambda: Translator("ab", "xy", ["a"], hidden=0), ValueError, "hidden: expected at least 1"),
    (lambda: Translator("a", "xy", ["a"]), ValueError, "expected at least two different characters"),
    (lambda: Translator("ab", "xy", ["a"]).translate(["ca"], "a"), ValueError, "text: .* unknown 'c' in 'ca'"),
    (lambda: Translator("ab", "xy", ["a"]).translate([""], "a"), ValueError, "text: expected at least one character"),
    (lambda: Translator("ab", "xy", ["a"]).translate(["a"], "b"), ValueError, "language: expected one of 'a', got 'b'"),
    (lambda: Translator("ab", "xy", ["a"]).translate(["a"], "a", width=0), ValueError, "width: expected at least 1"),
    (
        lambda: Translator("ab", "xy", ["a"]).fit(
            translate.Corpus([translate.Example("a", "x", "a")], []), forcing=1.5
        ),
        ValueError,
        "forcing: expected 0 <= forcing <= 1",
    ),
    (lambda: Autoencoder("ab", code=0), ValueError, "code: expected at least 1"),
    (lambda: Autoencoder("ab").encode(["abc"]), ValueError, "text: expected known characters, got the unknown 'c'"),
    (lambda: Autoencoder("ab").encode([""]), ValueError, "text: expected at least one character"),
    (lambda: Autoencoder("ab").decode(np.zeros((1, 3), np.float32)), fastrnn.ShapeError, "codes: expected"),
    (lambda: autoencode.corpus_of("c", ["a", "a"]), ValueError, "c: expected at least two different texts, got 1"),
    (lambda: Schedule(steps=0), ValueError, "steps: expected at least 1"),
    (lambda: Schedule(lr=0.0), ValueError, "lr: expected a number greater than 0"),
    (lambda: Schedule(clip=math.nan), ValueError, "clip: expected a finite number"),
    (lambda: Schedule(patience=-1), ValueError, "patience: expected at least 0"),
    (lambda: numerals.english(-1), ValueError, "number: expected at least 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
