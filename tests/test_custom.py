"""A cell of one's own: those of examples/cells go through every parametrised test; here is the registration itself."""

import dataclasses
from pathlib import Path
from typing import Any

import leaky_lstm
import minimal_gated_unit
import numpy as np
import pytest
from cases import Case, draw, evaluate, make_layer
from tolerance import assert_same_bits

import fastrnn
from fastrnn import layers, support
from fastrnn.cells import CELLS, Cell

WITHOUT_READOUT = dataclasses.replace(leaky_lstm.RENDERING, readout=None)
PACKAGE = Path(fastrnn.__file__).parent


def test_no_core_file_knows_the_example_cells() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("mgu", "minimal_gated", "leaky")), path


def test_a_registered_class_is_a_layer_like_the_others() -> None:
    assert CELLS["mgu"].name == "mgu"
    layer = minimal_gated_unit.MGU(3, 5, 2, bidirectional=True, seed=0)
    assert repr(layer) == "mgu(3, 5, num_layers=2, bidirectional=True)"
    assert layer.params["weight_hh_l1_reverse"].shape == (10, 5)
    assert leaky_lstm.LeakyLSTM(3, 5).params["weight_p_l0"].shape == (1, 5)
    with pytest.raises(TypeError, match="proj_size"):
        minimal_gated_unit.MGU(3, 5, proj_size=2)
    assert leaky_lstm.LeakyLSTM(3, 5, proj_size=2).params["weight_hr_l0"].shape == (2, 5)


def test_a_great_leak_is_an_lstm() -> None:
    """sigma(40) is 1 in float32, so the leaky LSTM is then the plain one."""
    case = Case("leaky_lstm", "cpu", "float32", num_layers=2, lengths="random")
    leaky, plain, problem = make_layer(case), make_layer(dataclasses.replace(case, cell="lstm")), draw(case)
    full = {name: np.full_like(value, 40) for name, value in leaky.params.items() if name.startswith("weight_p")}
    leaky.update({**plain.params, **full})
    got, want = evaluate(leaky, case, problem), evaluate(plain, case, problem)
    for name, value in want.items():
        assert_same_bits(name, got[name], value)


def test_a_cell_without_a_rendering_is_refused_by_the_backend_that_lacks_it(registry: None) -> None:
    bare = dataclasses.replace(CELLS["mgu"], name="bare", numba=None)
    layer = fastrnn.register(bare)(3, 5, seed=0)
    twin = minimal_gated_unit.MGU(3, 5, seed=0)
    x = np.ones((4, 2, 3), np.float32)
    for call in (lambda: layer(x), lambda: layer.forward(x), lambda: layer.stream()):
        with pytest.raises(
            ValueError, match="cell: expected one with a Numba rendering on the backend 'cpu', got 'bare'"
        ):
            call()
    with fastrnn.use_backend("reference"):
        assert_same_bits("y", layer(x)[0], twin(x)[0])


@pytest.mark.parametrize(
    ("changes", "options", "word"),
    [
        ({"numba": None}, {}, "cell: expected one with a Numba rendering"),
        ({"uses_h_prev": True}, {}, "cell: expected reads_h=True"),
        ({"numba": (__name__, "WITHOUT_READOUT")}, {"layer_norm": True}, "layer_norm: expected False"),
    ],
)
def test_a_plan_and_the_table_refuse_what_a_call_refuses(
    changes: dict[str, Any], options: dict[str, Any], word: str, registry: None
) -> None:
    layer = fastrnn.register(dataclasses.replace(CELLS["leaky_lstm"], name="refused", **changes))(3, 5, **options)
    x = np.ones((4, 2, 3), np.float32)
    messages = []
    for ask in (lambda: layer(x), lambda: layer.stream(), lambda: fastrnn.plan(layer, 4, 2)):
        with pytest.raises(ValueError, match=word) as caught:
            ask()
        messages.append(str(caught.value))
    with fastrnn.use_backend("reference"):
        assert layer(x)[0].shape == (4, 2, 5)
        assert fastrnn.plan(layer, 4, 2).backend == "reference"
    option = "layer_norm" if options else "plain"
    (entry,) = (entry for entry in support.entries() if (entry.cell, entry.option) == ("refused", option))
    assert entry.backends == ("reference", "cuda")
    assert {*messages} == {entry.reasons["cpu"]}


@pytest.mark.parametrize("name", ["reader", "gated"])
def test_a_projection_is_refused_to_a_cell_that_reads_h_prev(name: str, registry: None) -> None:
    options = {"reader": {"uses_h_prev": True}, "gated": {"gated": CELLS["mgu"].gated}}[name]
    layer = fastrnn.register(dataclasses.replace(CELLS["leaky_lstm"], name=name, **options))
    with pytest.raises(ValueError, match=rf"^proj_size: expected 0 for '{name}', a cell that reads h_prev .*, got 2$"):
        layer(3, 5, proj_size=2)
    assert layer(3, 5).proj_size == 0


def test_a_rendering_that_reads_h_prev_against_its_cell_is_refused(registry: None) -> None:
    x = np.ones((4, 2, 3), np.float32)
    for name, reads in (("leaky_lstm", True), ("gru", False)):
        false = dataclasses.replace(CELLS[name], name=f"false_{name}", uses_h_prev=reads)
        layer = fastrnn.register(false)(3, 5)
        with pytest.raises(
            ValueError, match=f"cell: expected reads_h={reads} of .* 'false_{name}', .* got {not reads}"
        ):
            layer(x)


def test_a_checkpoint_of_an_unknown_cell_names_it(registry: None, tmp_path: Path) -> None:
    fastrnn.register(dataclasses.replace(CELLS["mgu"], name="passing"))(3, 5).save(tmp_path / "a")
    assert type(fastrnn.load(tmp_path / "a")).__name__ == "passing"
    del CELLS["passing"], layers.LAYERS["passing"]
    with pytest.raises(ValueError, match=r"expected a checkpoint of one of LSTM, GRU, .* got another .*'passing'"):
        fastrnn.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["lstm", "LSTM", "mgu", "two words", ""])
def test_a_name_must_be_new(name: str) -> None:
    before = dict(CELLS)
    with pytest.raises(ValueError, match=f"cell: expected a new name that is an identifier, got '{name}'"):
        fastrnn.register(dataclasses.replace(CELLS["gru"], name=name))
    assert before == CELLS


def test_the_cuda_text_must_have_the_struct(registry: None) -> None:
    text, _ = CELLS["mgu"].cuda or ("", "")
    with pytest.raises(ValueError, match=r"cell: expected cuda=\(source, struct\), .* got no 'Mgu' in it"):
        fastrnn.register(dataclasses.replace(CELLS["mgu"], name="other", cuda=(text, "Mgu")))
    assert "other" not in CELLS


def test_only_a_cell_can_be_registered() -> None:
    with pytest.raises(TypeError, match=r"cell: expected a fastrnn\.cells\.Cell, got type"):
        fastrnn.register(Cell)  # type: ignore[arg-type]
