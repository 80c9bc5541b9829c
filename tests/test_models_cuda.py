"""The training kit, the models and their commands on CuPy arrays, under the stand-in, against the CPU.

Every loss and every parameter is compared by name; a step waits for the device once. Sizes are tiny, since the kernels
run on the CPU under a scheduler.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import numpy as np
import pytest
from tolerance import assert_close, assert_same_bits, rounding, trained
from typer.testing import CliRunner

import fastrnn
from fastrnn.arrays import to_host
from fastrnn.commands import app
from fastrnn.models import (
    Autoencoder,
    CharLM,
    Forecaster,
    Observer,
    Schedule,
    Settings,
    Tagger,
    Translator,
    Watch,
    autoencode,
    corpus,
    forecast,
    tag,
    translate,
)
from fastrnn.nn import (
    AdditiveAttention,
    Dropout,
    Embedding,
    Linear,
    decoder_inputs,
    mse,
    softmax_cross_entropy,
    truncated_bptt,
)
from fastrnn.optim import SGD, Adam, AdamW, clip_by_global_norm

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("nothing_to_replay"),
]
GPU = "cuda:0"
STEPS = 3
TRAINED = trained("float32", 6 * STEPS, 16)
SENTENCES = [tag.Sentence(list("abc"), ["B-x", "I-x", "O"]), tag.Sentence(list("ca"), ["O", "B-x"])] * 2
WORDS = ["ab", "ba", "bb", "aab"]
PAIRS = [translate.Example(w, w[::-1], "back") for w in WORDS] + [translate.Example(w, w.upper(), "up") for w in WORDS]
TEXT = corpus.Corpus("toy", "abcab cabba " * 3, "cab abc ")
Make, Fit = Callable[..., Any], Callable[..., Any]
MODELS: dict[str, tuple[Make, Fit]] = {
    "forecast": (
        lambda device: Forecaster(hidden=4, window=4, horizon=2, seed=1, device=device),
        lambda model, *a, **o: model.fit(forecast.noisy_sine(24), *a, **o),
    ),
    "tag": (
        lambda device: Tagger.of(SENTENCES, hidden=3, embedding=2, dropout=0.3, seed=2, device=device),
        lambda model, *a, **o: model.fit(tag.Corpus("toy", SENTENCES, SENTENCES[:2]), *a, **o),
    ),
    "translate": (
        lambda device: Translator("ab", "abAB", ["back", "up"], hidden=3, embedding=2, seed=3, device=device),
        lambda model, *a, **o: model.fit(translate.Corpus(PAIRS[1:], PAIRS[:1]), *a, **o),
    ),
    "autoencode": (
        lambda device: Autoencoder("ab", hidden=3, embedding=2, code=2, seed=4, device=device),
        lambda model, *a, **o: model.fit(autoencode.Corpus("toy", WORDS[1:], WORDS[:1]), *a, **o),
    ),
}  # fmt: skip
SCHEDULE = Schedule(steps=STEPS, batch=3, lr=0.01, evaluate_every=2)
SETTINGS = Settings(steps=STEPS, batch=2, window=4, lr=0.01)


def same(got: Any, want: Any, tolerance: float = rounding("float32", 6, 16)) -> None:
    """Every array, by name."""
    assert list(got) == list(want)
    for name, array in want.items():
        assert_close(name, to_host(got[name]), to_host(array), tolerance)


def charlm(device: str) -> CharLM:
    return CharLM("abc ", hidden=4, layers=2, dropout=0.3, embedding=3, seed=5, device=device)


def put(value: Any) -> Any:
    return cupy_standin.ndarray(value.copy()) if isinstance(value, np.ndarray) else value


# The kit


RNG = np.random.default_rng(0)
X, IDS = RNG.standard_normal((5, 3, 4)).astype(np.float32), RNG.integers(6, size=(5, 3))
MASK = RNG.random((5, 3)) < 0.6


def of_linear(layer: Linear, place: Callable[[Any], Any]) -> dict[str, Any]:
    y, backward = layer.forward(place(X))
    grads = backward(y)
    return {"y": y, "x": grads.x, **grads.params}


def of_embedding(layer: Embedding, place: Callable[[Any], Any]) -> dict[str, Any]:
    y, backward = layer.forward(IDS)
    return {"y": y, **backward(y).params}


def of_attention(layer: AdditiveAttention, place: Callable[[Any], Any]) -> dict[str, Any]:
    (context, weights), backward = layer.forward(place(X[:2]), place(X), MASK)
    grads = backward(context)
    return {"context": context, "weights": weights, "queries": grads.queries, "keys": grads.keys, **grads.params}


def of_dropout(layer: Dropout, place: Callable[[Any], Any]) -> dict[str, Any]:
    first, _ = layer.forward(place(X), training=True)
    y, backward = layer.forward(first, training=True)
    return {"y": y, "x": backward(y)}


KIT = {
    "Linear": (lambda: Linear(4, 5, seed=1), of_linear),
    "Embedding": (lambda: Embedding(6, 4, seed=2), of_embedding),
    "AdditiveAttention": (lambda: AdditiveAttention(4, 4, 3, seed=3), of_attention),
    "Dropout": (lambda: Dropout(0.4, seed=4), of_dropout),
}


@pytest.mark.parametrize("name", list(KIT))
def test_a_layer_of_the_kit_moves_and_computes_where_it_is(name: str, cupy: ModuleType) -> None:
    make, evaluate = KIT[name]
    want, layer = evaluate(make(), lambda a: a), make()
    assert layer.to("cuda") is layer
    cupy_standin.waits.clear()
    got = evaluate(layer, put)
    assert cupy_standin.waits == []
    assert all(isinstance(value, cupy_standin.ndarray) for value in got.values())
    same(got, want)
    if name != "Dropout":
        assert layer.device == GPU
        before = make().state_dict()
        name = next(iter(before))
        layer.update({name: before[name] * 2})
        assert_same_bits(name, layer.to("cpu").params[name], before[name] * 2)
        assert layer.device == "cpu"
        layer.load_state_dict(before)
        same(evaluate(layer, lambda a: a), want, 0)


LOSSES: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "mse": lambda y, place: mse(y, place(X[::-1])),
    "mse masked": lambda y, place: mse(y, place(X[::-1]), mask=MASK),
    "classes": lambda y, place: softmax_cross_entropy(y, IDS % 4),
    "classes masked": lambda y, place: softmax_cross_entropy(y, IDS % 4, mask=MASK, ignore_index=2, reduction="sum"),
    "probabilities": lambda y, place: softmax_cross_entropy(y, np.eye(4)[IDS % 4], mask=MASK),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_waits_only_for_what_is_on_the_device(name: str, cupy: ModuleType) -> None:
    loss, backward = LOSSES[name](X, lambda a: a)
    cupy_standin.waits.clear()
    got, got_backward = LOSSES[name](put(X), put)
    d = got_backward(2.0)
    assert cupy_standin.waits == []
    same({"loss": got, "d": d}, {"loss": np.asarray(loss), "d": backward(2.0)})


def test_targets_and_masks_of_the_device_are_taken_too(cupy: ModuleType) -> None:
    want, backward = softmax_cross_entropy(X, IDS % 4, mask=MASK)
    for targets, mask in ((put(IDS % 4), put(MASK)), (IDS % 4, put(MASK)), (put(IDS % 4), MASK)):
        cupy_standin.waits.clear()
        got, got_backward = softmax_cross_entropy(put(X), targets, mask=mask)
        assert cupy_standin.waits != []
        same({"loss": got, "d": got_backward()}, {"loss": np.asarray(want), "d": backward()})
    embedding = Embedding(6, 4, seed=2)
    want = embedding.forward(IDS)[1](X).params
    same(embedding.to(GPU).forward(put(IDS))[1](put(X)).params, want)
    with pytest.raises(ValueError, match=r"x: expected indices in \[0, 6\), got 0 to 9"):
        embedding(put(np.array([0, 9])))
    with pytest.raises(TypeError, match="targets: expected"):
        softmax_cross_entropy(X, put(IDS))


@pytest.mark.parametrize("make", [lambda: SGD(0.1), lambda: SGD(0.1, 0.9, nesterov=True), Adam, AdamW])
def test_an_optimiser_steps_there_and_goes_on_with_the_other_ones_moments(make: Any, cupy: ModuleType) -> None:
    on_cpu, there = make(), make()
    w, v = {"w": X}, {"w": put(X)}
    cupy_standin.waits.clear()
    for _ in range(3):
        w, v = on_cpu.step(w, {"w": X * X}), there.step(v, {"w": put(X * X)})
    assert cupy_standin.waits == []
    same(v, w)
    back = make()
    back.load_state_dict({name: to_host(array) for name, array in there.state_dict().items()})
    same(back.step({"w": to_host(v["w"])}, {"w": X}), on_cpu.step(w, {"w": X}))


def test_clipping_waits_once(cupy: ModuleType) -> None:
    grads = {"a": X, "b": X[0] * 2, "c": X[:, 0]}
    for theta in (0.5, 1e3):
        want, norm = clip_by_global_norm(grads, theta)
        given = {name: put(array) for name, array in grads.items()}
        cupy_standin.waits.clear()
        got, got_norm = clip_by_global_norm(given, theta)
        assert cupy_standin.waits == ["copy to the host"]
        assert got_norm == pytest.approx(norm, rel=rounding("float64", 1, X.size))
        same(got, want)
    with pytest.raises(ValueError, match=r"grads\['b'\]: expected a finite norm"):
        clip_by_global_norm({"a": put(X), "b": put(X * np.float32(np.nan))}, 1.0)


def test_truncated_back_propagation_and_teaching_run_there(cupy: ModuleType) -> None:
    def trained(device: str) -> dict[str, Any]:
        place = put if device == GPU else lambda a: a
        layer, head = fastrnn.GRU(4, 3, seed=1).to(device), Linear(3, 4, seed=2).to(device)

        def learn(span: Any, state: Any) -> Any:
            y, state, backward = layer.forward(place(X[span.start : span.stop]), state)
            out, head_backward = head.forward(y)
            _, loss_backward = mse(out, place(X[span.start : span.stop] * 2))
            head_grads = head_backward(loss_backward())
            layer.update(SGD(0.1).step(layer.state_dict(), backward(head_grads.x).params))
            head.update(SGD(0.1).step(head.params, head_grads.params))
            return state

        truncated_bptt(learn, lambda start, stop, state: layer(place(X[start:stop]), state)[1], 5, 2, 3)
        return {**layer.state_dict(), **head.state_dict()}

    want = trained("cpu")
    cupy_standin.waits.clear()
    got = trained(GPU)
    assert cupy_standin.waits == []
    same(got, want)
    step = lambda place: lambda state, tokens: (place(X[0]), state)  # noqa: E731
    fed = [
        decoder_inputs(IDS, IDS[0], 0.5, step(place), None, np.random.default_rng(0)) for place in (lambda a: a, put)
    ]
    np.testing.assert_array_equal(*fed)


# The models


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_trains_as_on_the_cpu_and_waits_once_a_step(name: str, cupy: ModuleType) -> None:
    make, fit = MODELS[name]
    schedule = Schedule(steps=STEPS, batch=3, lr=0.01, evaluate_every=STEPS, patience=3)
    steps: list[list[str]] = []

    def noted(point: Any) -> None:
        steps.append(cupy_standin.waits[:])
        cupy_standin.waits.clear()

    on_cpu, there = make("cpu"), make(GPU)
    same(there.parts.params, on_cpu.parts.params, 0)
    want = fit(on_cpu, schedule)
    cupy_standin.waits.clear()
    got = fit(there, schedule, Observer(on_point=noted))
    assert steps[:-1] == [["copy to the host"]] * (STEPS - 1)  # the last step is measured and kept
    assert got.loss == pytest.approx(want.loss, rel=rounding("float32", 6 * STEPS, 16))
    same(there.parts.params, on_cpu.parts.params, TRAINED)
    assert all(isinstance(array, cupy_standin.ndarray) for array in there.parts.params.values())
    assert there.parts.calls == on_cpu.parts.calls


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("first", "then"), [("cpu", GPU), (GPU, "cpu")])
def test_a_run_goes_on_on_the_other_device(name: str, first: str, then: str, cupy: ModuleType, tmp_path: Path) -> None:
    make, fit = MODELS[name]
    whole, broken = make("cpu"), make(first)
    fit(whole, SCHEDULE)
    asked = iter(range(1, 9))
    fit(broken, SCHEDULE, Observer(stop=lambda: next(asked) == 2, save_to=tmp_path / "m"))
    loaded = type(broken).load(tmp_path / "m", then)
    assert loaded.parts.device == then
    fit(loaded, None, resume=True)
    same(loaded.parts.params, whole.parts.params, TRAINED)
    in_place = broken.to(then)
    fit(in_place, None, resume=True)
    same(in_place.parts.params, loaded.parts.params, 0)


def test_what_models_tell_is_the_same_there(cupy: ModuleType) -> None:
    told = []
    for device in ("cpu", GPU):
        forecaster, tagger, translator, autoencoder = (make(device) for make, _ in MODELS.values())
        translator.facts = autoencoder.facts = {"longest": 3}
        codes = autoencoder.encode(["ab", "b"])
        assert type(codes) is np.ndarray
        text, weights = translator.attend("ab", "up")
        state, start = translator._encode(*translator._sources(["ab", "b"])), np.full(2, translator.end + 1)
        numbers = {
            "forecast": forecaster.predict(forecast.noisy_sine(12), 3),
            "codes": codes,
            "weights": weights,
            "log_probs": to_host(translator._step(state, start)[0]),
            "sure": np.array([sure for _, sure in tagger.least_sure(["abc", "ca"])]),
        }
        words = (
            tagger.tag(["abc", "", "ca"][::2]), translator.translate(["ab", "b"], "back", width=2), text,
            autoencoder.decode(codes, width=2), autoencoder.reconstruct(["ab"]),
            autoencoder.decode(codes if device == "cpu" else put(codes)),
        )  # fmt: skip
        told.append((numbers, words))
    same(told[1][0], told[0][0])
    assert told[1][1] == told[0][1]


def test_the_character_model_trains_goes_on_and_writes_there(cupy: ModuleType, tmp_path: Path) -> None:
    on_cpu, there = charlm("cpu"), charlm(GPU)
    want = on_cpu.fit(TEXT, SETTINGS)
    cupy_standin.waits.clear()
    steps: list[list[str]] = []

    def noted(progress: Any) -> None:
        steps.append(cupy_standin.waits[:])
        cupy_standin.waits.clear()

    got = there.fit(TEXT, SETTINGS, Watch(noted))
    assert steps[:-1] == [["copy to the host"]] * (STEPS - 1)  # the last step is kept
    assert got.train_bits == pytest.approx(want.train_bits, rel=rounding("float32", 6 * STEPS, 16))
    same(there.params, on_cpu.params, TRAINED)
    bits = on_cpu.bits_per_character(TEXT.held_out)
    assert there.bits_per_character(TEXT.held_out) == pytest.approx(bits, rel=rounding("float32", 6 * STEPS, 16))
    assert there.sample("ab", 6, seed=1) == on_cpu.sample("ab", 6, seed=1)
    for first, then in ((GPU, "cpu"), ("cpu", GPU)):
        asked = iter(range(1, 9))
        charlm(first).fit(TEXT, SETTINGS, Watch(stop=lambda a=asked: next(a) == 2, save_to=tmp_path / "m"))  # type: ignore[misc]
        loaded = CharLM.load(tmp_path / "m", then)
        loaded.resume(TEXT)
        same(loaded.params, on_cpu.params, TRAINED)


def test_a_gpu_that_there_is_not_is_refused_before_anything_else(cupy: ModuleType) -> None:
    for call in (
        lambda: Linear(2, 2).to("cuda:1"), lambda: Dropout(0.1).to("cuda:1"), lambda: charlm("cuda:1"),
        lambda: Forecaster.load("none", "cuda:1"), lambda: CharLM.load("none", "cuda:1"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="device: 'cuda:1' needs a GPU of that number"):
            call()


def test_the_gradients_flow_is_the_same_there(cupy: ModuleType) -> None:
    layer = fastrnn.LSTM(4, 3, num_layers=2, bidirectional=True, seed=1)
    want = fastrnn.gradient_flow(layer, X)
    cupy_standin.waits.clear()
    layer.to(GPU)
    got = fastrnn.gradient_flow(layer, put(X))
    for name in ("h", "c"):
        assert getattr(want, name).shape == (4, 6)
        assert_close(name, getattr(got, name), getattr(want, name), rounding("float32", 5, 3))


# The commands


def done(*arguments: Any, device: str) -> str:
    """What a command tells, which computes on the device that it was given, and there alone."""
    cupy_standin.launches.clear()
    cupy_standin.replays.clear()
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", device])
    assert result.exit_code == 0, result.output
    assert bool(cupy_standin.launches or cupy_standin.replays) == (device == GPU)
    return str(result.stdout)


COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "forecast": (["--csv", "s.csv", "--hidden", "3", "--window", "4", "--compare"], ["predict", "m", "--csv", "s.csv"]),
    "tag": (["--conll", "c.conll", "--hidden", "3", "--embedding", "2"], ["apply", "m", "x.txt"]),
    "translate": (["--table", "t.tsv", "--hidden", "3", "--embedding", "2"], ["apply", "m", "ab", "--width", "1"]),
    "autoencode": (["--lines", "w.txt", "--hidden", "3", "--code", "2"], ["apply", "m", "ab"]),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_runs_there(name: str, cupy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.csv").write_text("v\n" + "".join(f"{value}\n" for value in forecast.noisy_sine(26)))
    Path("c.conll").write_text("a B-x\nb O\n\nb O\n\n" * 2 + "a B-x\n")
    Path("t.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in WORDS))
    Path("w.txt").write_text("\n".join(WORDS))
    Path("x.txt").write_text("a b\n")
    options, use = COMMANDS[name]
    told = {}
    for device in ("cpu", GPU):
        train = [name, "train", *options, "--steps", "2", "--batch", "2", "--out", "m"]
        told[device] = json.loads(done(*train, "--json", device=device)), done(name, *use, device=device)
        done(name, "train", *options[:2], "--resume", "--steps", "3", "--out", "m", device=device)
    assert told[GPU][0]["loss"] == pytest.approx(told["cpu"][0]["loss"], rel=rounding("float32", 12, 16))
    if name != "forecast":  # which prints numbers
        assert told[GPU][1] == told["cpu"][1]


def test_the_other_commands_run_there(cupy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("abcab cabba " * 4)
    told = {}
    for device in ("cpu", GPU):
        small = ["--hidden", "3", "--embedding", "2", "--steps", "2", "--batch", "2", "--window", "3"]
        monkeypatch.setattr("fastrnn.commands.charlm.SAMPLE_LENGTH", 3)
        train = done("charlm", "train", "--text", "text", *small, "--out", "m", "--json", device=device)
        sample = done("charlm", "sample", "m", "--start", "a", "--length", "3", "--seed", "1", device=device)
        options = ["--steps", "3", "--hidden", "3", "--batch", "2", "--layers", "2", "--json"]
        told[device] = json.loads(train), sample, json.loads(done("gradflow", *options, device=device))
    for key in ("train_bits", "held_out_bits"):
        assert told[GPU][0][key] == pytest.approx(told["cpu"][0][key], rel=rounding("float32", 12, 16))
    assert told[GPU][1] == told["cpu"][1]
    for cell, norms in told["cpu"][2]["cells"].items():
        assert told[GPU][2]["cells"][cell] == pytest.approx(norms, rel=rounding("float64", 3, 3))


def test_a_command_refuses_a_gpu_that_there_is_not_in_one_line(cupy: ModuleType) -> None:
    for arguments in (["gradflow"], ["charlm", "sample", "none"], ["tag", "train"]):
        result = CliRunner().invoke(app, [*arguments, "--device", "cuda:1"])
        assert result.exit_code == 2
        wanted = "error: device: 'cuda:1' needs a GPU of that number, and CuPy finds 1"
        assert result.stderr.splitlines() == [wanted]
