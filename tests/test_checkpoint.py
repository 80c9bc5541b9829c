"""Checkpoints: whole round trips, files that are damaged or not ours, writes that are interrupted."""

import json
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, CELLS, DTYPES, Case, draw, evaluate, make_layer
from safetensors import safe_open
from safetensors.numpy import save_file
from tolerance import assert_same_bits

import fastrnn
from fastrnn import checkpoint

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "many": {"num_layers": 2, "bidirectional": True, "bias": False, "dropout": 0.5, "batch_first": True},
    "projection": {"proj_size": 3, "num_layers": 2},
    "normalised": {"layer_norm": True, "bidirectional": True},
    "regularised": {"zoneout": 0.2, "recurrent_dropout": 0.3, "recurrent": "diagonal", "training": True},
    "mask": {"recurrent": "mask", "num_layers": 2},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(cell, "reference", **option), id=f"{cell}-{name}")
        for cell in CELLS
        for name, option in OPTIONS.items()
        if CELLS[cell].cell_state or name != "projection"
    ],
)
def test_round_trip(case: Case, dtype: str, tmp_path: Path) -> None:
    layer = make_layer(case, dtype)
    layer.calls = 17
    path = tmp_path / "a.safetensors"
    layer.save(path)
    loaded = fastrnn.load(str(path))
    assert type(loaded) is type(layer)
    assert repr(loaded) == repr(layer)
    assert (loaded.seed, loaded.calls, loaded.dtype) == (layer.seed, 17, dtype)
    assert list(loaded.params) == list(layer.params)
    for name, value in layer.params.items():
        assert_same_bits(name, loaded.params[name], value)
        assert not loaded.params[name].flags.writeable
    problem = draw(case).astype(dtype)
    want = evaluate(layer, case, problem)
    for name, value in evaluate(loaded, case, problem).items():
        assert_same_bits(name, value, want[name])


@pytest.mark.parametrize("init", ["uniform", "xavier", "orthogonal", "identity"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_round_trip_of_every_initialisation(cell: str, init: str, tmp_path: Path) -> None:
    layer = make_layer(Case(cell), init=init)
    layer.save(tmp_path / "a")
    for name, value in fastrnn.load(tmp_path / "a").params.items():
        assert_same_bits(name, value, layer.params[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_with_the_same_masks(backend: str, tmp_path: Path) -> None:
    case = Case("gru", backend, num_layers=2, dropout=0.5)
    layer, x = make_layer(case), draw(case).x
    with fastrnn.use_backend(backend):
        layer.forward(x, training=True)
        layer.save(tmp_path / "a")
        unbroken = [layer.forward(x, training=True).y for _ in range(3)]
        loaded = fastrnn.load(tmp_path / "a")
        resumed = [loaded.forward(x, training=True).y for _ in range(3)]
    for one, other in zip(unbroken, resumed, strict=True):
        assert_same_bits("y", other, one)


def test_numpy_numbers_can_be_saved(tmp_path: Path) -> None:
    seed = np.uint64(2**64 - 1)
    layer = fastrnn.LSTM(np.int64(3), np.int32(4), bias=np.bool_(True), forget_bias=np.float32(1), seed=seed)
    layer.save(tmp_path / "a")
    assert fastrnn.load(tmp_path / "a").seed == seed


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    layer = fastrnn.GRU(3, 4, reset_after=False, seed=9)
    layer.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        description = json.loads(file.metadata()["fastrnn"])
        assert set(file.keys()) == set(layer.params)
        for name, value in layer.params.items():
            assert_same_bits(name, file.get_tensor(name), value)
    assert description["format"] == 1
    assert description["class"] == "GRU"
    assert description["arguments"]["hidden_size"] == 4
    assert description["arguments"]["reset_after"] is False
    assert description["arguments"]["seed"] == 9


# Files that are not what they should be


def described(**changes: Any) -> dict[str, str]:
    """The metadata of a good file but for these changes; a value of ... leaves the key out."""
    arguments = {**fastrnn.RNN(3, 4, seed=0)._arguments, **changes.pop("arguments", {})}
    whole = {"format": 1, "class": "RNN", "arguments": arguments, "calls": 0, **changes}
    return {"fastrnn": json.dumps({key: value for key, value in whole.items() if value is not ...})}


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    whole = {**fastrnn.RNN(3, 4, seed=0).state_dict(), **changes}
    return {name: value for name, value in whole.items() if value is not ...}


FOREIGN: dict[str, tuple[dict[str, np.ndarray], dict[str, str] | None]] = {
    "no-metadata": (tensors(), None),
    "other-metadata": (tensors(), {"format": "pt"}),
    "no-json": (tensors(), {"fastrnn": "{"}),
    "json-list": (tensors(), {"fastrnn": "[1]"}),
    "no-format": (tensors(), described(format=...)),
    "later-format": (tensors(), described(format=2)),
    "no-class": (tensors(), described(**{"class": ...})),
    "unknown-class": (tensors(), described(**{"class": "Linear"})),
    "class-a-list": (tensors(), described(**{"class": ["RNN"]})),
    "no-arguments": (tensors(), {"fastrnn": '{"format": 1, "class": "RNN"}'}),
    "arguments-a-list": (tensors(), {"fastrnn": '{"format": 1, "class": "RNN", "arguments": [3, 4], "calls": 0}'}),
    "unknown-argument": (tensors(), described(arguments={"colour": 1})),
    "refused-argument": (tensors(), described(arguments={"dropout": 2.0})),
    "unknown-nonlinearity": (tensors(), described(arguments={"nonlinearity": "sigmoid"})),
    "size-beyond-memory": (tensors(), described(arguments={"hidden_size": 10**9})),
    "wrong-size": (tensors(), described(arguments={"hidden_size": 5})),
    "wrong-number-of-layers": (tensors(), described(arguments={"num_layers": 2})),
    "no-calls": (tensors(), described(calls=...)),
    "negative-calls": (tensors(), described(calls=-1)),
    "missing-tensor": (tensors(bias_hh_l0=...), described()),
    "unknown-tensor": (tensors(extra=np.ones(2, np.float32)), described()),
    "transposed-tensor": (tensors(weight_ih_l0=np.ones((3, 4), np.float32)), described()),
    "wrong-dtype": (tensors(bias_ih_l0=np.ones(4)), described()),
}


def test_the_description_above_makes_a_good_file(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "good", described())
    assert repr(fastrnn.load(tmp_path / "good")) == "RNN(3, 4)"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_a_value_error_that_names_it(name: str, tmp_path: Path) -> None:
    content, metadata = FOREIGN[name]
    path = tmp_path / "foreign"
    save_file(content, path, metadata)
    with pytest.raises(ValueError, match=r"foreign: expected .+, got .+") as caught:
        fastrnn.load(path)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_layer_of_16_bits_is_not_called_foreign(dtype: str, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a", described(arguments={"dtype": dtype}))
    with pytest.raises(TypeError, match=f'device: expected a GPU for .*/a, a layer of {dtype}, .*device="cuda:0"$'):
        fastrnn.load(tmp_path / "a")
    with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda:N', got 'gpu'"):
        fastrnn.load(tmp_path / "a", "gpu")


def good_bytes(tmp_path: Path) -> bytes:
    fastrnn.LSTM(3, 4, seed=0).save(tmp_path / "good")
    return (tmp_path / "good").read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one-byte": lambda data: data[:1],
    "header-cut": lambda data: data[:100],
    "data-cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "text": lambda data: b"not a checkpoint\n" * 100,
    "zeros": lambda data: bytes(len(data)),
    "huge-header": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "json-broken": lambda data: data[:8] + b"[" + data[9:],
    "pickle": lambda data: b"\x80\x04K\x01." + data,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_a_value_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(DAMAGES[name](good_bytes(tmp_path)))
    with pytest.raises(ValueError, match=r"damaged: expected .+, got .+") as caught:
        fastrnn.load(path)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("seed", range(40))
def test_one_wrong_byte_in_the_header(seed: int, tmp_path: Path) -> None:
    """A ValueError, or a layer with the very same numbers: the byte was a digit of the seed, say."""
    data = bytearray(good_bytes(tmp_path))
    rng = np.random.default_rng(seed)
    header = struct.unpack("<Q", data[:8])[0]
    data[int(rng.integers(8, 8 + header))] ^= int(rng.integers(1, 256))
    (tmp_path / "damaged").write_bytes(data)
    good = fastrnn.load(tmp_path / "good")
    try:
        layer = fastrnn.load(tmp_path / "damaged")
    except ValueError as error:
        damage = error
    else:
        assert list(layer.params) == list(good.params)
        for name, value in good.params.items():
            assert_same_bits(name, layer.params[name], value)
        return
    assert type(damage) is ValueError
    assert "damaged: expected" in str(damage)


def test_what_is_not_a_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        fastrnn.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        fastrnn.load(tmp_path)
    layer = fastrnn.RNN(3, 4)
    with pytest.raises(FileNotFoundError, match=f"'{re.escape(str(tmp_path / 'no'))}'$"):
        layer.save(tmp_path / "no" / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        layer.save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


# Writes


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error("interrupted")

    return function


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("function", ["fsync", "replace", "chmod", "fdopen"])
@pytest.mark.parametrize("existing", [True, False])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    function: str, error: type[BaseException], existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old, new = tmp_path / "a.safetensors", fastrnn.RNN(3, 4, seed=0), fastrnn.RNN(3, 4, seed=1)
    if existing:
        old.save(path)
    before = path.read_bytes() if existing else None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, function, raising(error))
        with pytest.raises(error, match="interrupted"):
            new.save(path)
    assert [file.name for file in tmp_path.iterdir()] == (["a.safetensors"] if existing else [])
    if existing:
        assert path.read_bytes() == before
    new.save(path)
    assert_same_bits("weight_ih_l0", fastrnn.load(path).params["weight_ih_l0"], new.params["weight_ih_l0"])


def test_the_data_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushed and synced whole, then renamed: at no time is there a file under the name that is not whole."""
    steps: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def replaced(source: Any, target: Any) -> None:
        steps.append(("replace", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", synced)
    monkeypatch.setattr(checkpoint.os, "replace", replaced)
    fastrnn.RNN(3, 4).save(tmp_path / "a")
    size = (tmp_path / "a").stat().st_size
    assert steps[:2] == [("fsync", size), ("replace", size)]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    fastrnn.RNN(3, 4).save(tmp_path / "a")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_file_name_of_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fastrnn.RNN(3, 4, seed=5).save("here.safetensors")
    assert fastrnn.load("here.safetensors").seed == 5
