"""The plan that runs a layer, on chips that are not here: what is known of each is written down, and nothing is run."""

import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import host_kernels
import pytest
from cases import CELLS, make_layer
from cases import Case as LayerCase

import fastrnn
from fastrnn.recurrence import Shape

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("cupy"),
]


def chips() -> dict[str, Any]:
    from fastrnn.cuda.chip import Chip

    return {
        "H100": Chip(90, 132, 1.755e9, 227 << 10, 65536),
        "A100": Chip(80, 108, 1.41e9, 163 << 10, 65536),
        "RTX 4090": Chip(89, 128, 2.52e9, 99 << 10, 65536),
        "T4": Chip(75, 40, 1.59e9, 64 << 10, 65536),
    }


def plan_of(cell: str, dtype: str, hidden: int, batch: int, chip: str, train: bool = True, **options: Any) -> Any:
    from fastrnn.cuda import choice

    shape = Shape(100, batch, 100 * batch, 100, hidden, hidden, 0, dtype, train, False)._replace(**options)
    return choice._choose(CELLS[cell], shape, chips()[chip], None)


def plan_grid(cell: str, dtype: str, hidden: int, batch: int) -> Any:
    from fastrnn.cuda import choice

    shape = Shape(100, batch, 100 * batch, 100, hidden, hidden, 0, dtype, True, False)
    return next(one for one in choice.candidates(CELLS[cell], shape, chips()["H100"]) if one.plan == "grid")


# The largest H that the plan `block` serves for any batch, by chip and dtype.
LARGEST: dict[tuple[str, str], dict[str, int]] = {
    ("H100", "float32"): {"lstm": 128, "gru": 144, "gru_reset_before": 144, "rnn_tanh": 256, "lstm_peephole": 128},
    ("H100", "bfloat16"): {"lstm": 176, "gru": 192, "gru_reset_before": 192, "rnn_tanh": 320, "lstm_peephole": 160},
    ("A100", "float32"): {"lstm": 128, "gru": 128, "gru_reset_before": 128, "rnn_tanh": 256, "lstm_peephole": 128},
    ("A100", "bfloat16"): {"lstm": 144, "gru": 160, "gru_reset_before": 160, "rnn_tanh": 288, "lstm_peephole": 144},
    ("RTX 4090", "float32"): {"lstm": 112, "gru": 128, "gru_reset_before": 128, "rnn_tanh": 224, "lstm_peephole": 112},
    ("RTX 4090", "bfloat16"): {"lstm": 128, "gru": 128, "gru_reset_before": 128, "rnn_tanh": 256, "lstm_peephole": 128},
    ("T4", "float32"): {"lstm": 96, "gru": 128, "gru_reset_before": 128, "rnn_tanh": 208, "lstm_peephole": 96},
}  # fmt: skip


# The largest H for which it is taken too, whatever the batch, where that is less: beyond, for small batches, `grid` is.
TAKEN: dict[tuple[str, str], dict[str, int]] = {
    ("H100", "float32"): {"gru": 128},
    ("A100", "float32"): {"lstm": 112, "rnn_tanh": 224, "lstm_peephole": 112},
    ("H100", "bfloat16"): {"lstm": 128, "gru": 128, "rnn_tanh": 224, "lstm_peephole": 128},
    ("A100", "bfloat16"): {"lstm": 128, "gru": 128, "rnn_tanh": 208, "lstm_peephole": 128},
    ("RTX 4090", "bfloat16"): {"rnn_tanh": 224},
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7, 16, 64, 256, 2000])
@pytest.mark.parametrize(("chip", "dtype"), LARGEST)
def test_block_is_taken_in_its_whole_range(chip: str, dtype: str, batch: int) -> None:
    from fastrnn.cuda import choice

    for cell, most in LARGEST[chip, dtype].items():
        for hidden in {*range(1, most + 1, 13), most}:
            plan = plan_of(cell, dtype, hidden, batch, chip).plan
            assert plan in (("block",) if hidden <= TAKEN.get((chip, dtype), {}).get(cell, most) else ("block", "grid"))
        shape = Shape(100, batch, 100 * batch, 100, 2 * most, 2 * most, 0, dtype, True, False)
        assert choice.candidates(CELLS[cell], shape, chips()[chip])[0].seconds is None


# Where the plan `grid` is taken: from the first H to the last, for 1, 16 and 64 rows of the batch.
GRID: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = {
    ("H100", "float32"): {
        "lstm": [(192, 1536), (192, 1024), (192, 640)], "gru": [(192, 1792), (192, 1024), (192, 1024)],
    },
    ("H100", "bfloat16"): {
        "lstm": [(192, 2048), (192, 1792), (192, 1024)], "gru": [(256, 2048), (256, 2048), (256, 1024)],
        "gru_reset_before": [(256, 2048), (256, 2048), (256, 1280)],
        "rnn_tanh": [(384, 4096), (384, 4096), (384, 2048)], "lstm_peephole": [(192, 1792), (192, 1792), (192, 1024)],
    },
    ("A100", "bfloat16"): {
        "lstm": [(192, 1536), (192, 1536), (192, 768)], "gru": [(192, 1536), (192, 1536), (192, 1024)],
    },
    ("RTX 4090", "float32"): {"lstm": [(128, 1024), (128, 768), (128, 512)]},
    ("RTX 4090", "bfloat16"): {"lstm": [(192, 1792), (192, 1792), (192, 1024)]},
    ("T4", "float32"): {"lstm": [(128, 640), (128, 640), (128, 256)]},
}  # fmt: skip


@pytest.mark.parametrize(("chip", "dtype"), GRID)
def test_grid_is_taken_in_its_whole_range(chip: str, dtype: str) -> None:
    for cell, ranges in GRID[chip, dtype].items():
        for batch, (first, last) in zip((1, 16, 64), ranges, strict=True):
            for hidden in {*range(first, last, 311), last}:
                taken = plan_of(cell, dtype, hidden, batch, chip)
                assert taken.plan == "grid", (cell, hidden, batch)
                layout = taken.variants[0]
                assert layout.units * layout.blocks >= hidden > layout.units * (layout.blocks - 1)
                assert layout.all_units >= hidden
                assert layout.blocks <= chips()[chip].processors
            assert plan_of(cell, dtype, 4 * last, batch, chip).plan == "step", (cell, batch)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"diagonal": True}, "a diagonal U"),
        ({"layer_norm": True}, "layer_norm"),
        ({"dense": 2}, "dense peepholes"),
        ({"projected": 3}, "a projection"),
        ({"dtype": "float64"}, "it computes in float32"),
        ({"hidden": 2048, "inputs": 2048}, "2048 units are"),
        ({"steps": 1, "batch": 1 << 23}, r"2\^31 steps, or elements in a step"),  # 4 gates of 64 units
        ({"steps": 1 << 31}, r"2\^31 steps, or elements in a step"),
        (
            {"hidden": 448, "dtype": "bfloat16"},
            r"a block with all weights leaves a thread fewer than the \d+ registers that",
        ),
        ({"hidden": 250}, r"a block with all weights needs \d+ KiB of shared memory besides all registers, of 227"),
    ],
)
def test_what_block_does_not_serve_is_said_and_runs_step_by_step(options: dict[str, Any], reason: str) -> None:
    from fastrnn.cuda import choice

    shape = Shape(100, 16, 1600, 100, 64, 64, 0, "float32", True, False)._replace(**options)
    block, grid, step = choice.candidates(CELLS["lstm"], shape, chips()["H100"])
    assert block.seconds is None
    assert re.search(reason, block.reason), block.reason
    assert step.seconds is not None
    if "hidden" not in options:
        assert (grid.seconds, grid.reason) == (None, block.reason)
        assert choice._choose(CELLS["lstm"], shape, chips()["H100"], "block") == step


@pytest.mark.parametrize(
    ("cell", "dtype", "hidden", "batch", "reason"),
    [
        ("lstm", "bfloat16", 9000, 1, "9000 units are more than 132 processors share"),
        ("lstm", "bfloat16", 4096, 1, r"a slice of its weights needs \d+ KiB of shared memory besides all registers,"),
        ("rnn_tanh", "float32", 4096, 1, r"a slice of its weights needs \d+ KiB of shared memory besides all regist"),
    ],
)
def test_what_grid_does_not_serve_is_said(cell: str, dtype: str, hidden: int, batch: int, reason: str) -> None:
    from fastrnn.cuda import choice

    shape = Shape(100, batch, 100 * batch, 100, hidden, hidden, 0, dtype, True, False)
    _, grid, step = choice.candidates(CELLS[cell], shape, chips()["H100"])
    assert grid.seconds is None
    assert re.search(reason, grid.reason), grid.reason
    assert choice._choose(CELLS[cell], shape, chips()["H100"], "grid") == step


def test_blocks_of_one_launch_all_run_at_once() -> None:
    """And no more launches than it takes."""
    for batch in (1, 8, 9, 100, 1000):
        for hidden in (200, 512, 1024, 2048):
            found = plan_grid("lstm", "bfloat16", hidden, batch)
            layout = found.variants[0]
            groups, at_once = -(-batch // layout.rows), 132 // layout.blocks
            assert at_once >= 1
            assert found.launches == -(-groups // at_once)


def test_the_last_batch_whose_offsets_have_32_bits() -> None:
    assert plan_of("lstm", "float32", 64, (1 << 23) - 1, "H100").plan == "block"


def test_what_a_warp_multiplies_is_no_more_than_its_own_instruction_does() -> None:
    """Against the data sheets' dense FLOP/s of 16 bits with sums in float32; cuBLAS has all of them, mma.sync not."""
    from fastrnn.cuda.chip import Chip

    for capability, processors, clock, flops, whole in (
        (75, 40, 1.59e9, 65e12, True),  # T4
        (80, 108, 1.41e9, 312e12, True),  # A100
        (89, 142, 2.52e9, 362e12, True),  # L40S
        (90, 132, 1.83e9, 989e12, False),  # H100 SXM
        (100, 148, 1.85e9, 2250e12, False),  # B200
    ):
        chip = Chip(capability, processors, clock, 0, 0)
        assert 2 * chip.tensor * processors * clock == pytest.approx(flops, rel=0.03)
        assert (chip.warp_tensor == chip.tensor) is whole


def test_another_number_of_steps_lies_on_the_chip_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import fit

    before = plan_of("lstm", "float32", 77, 16, "H100")
    monkeypatch.delattr(fit, "_placed")  # of any plan
    assert plan_of("lstm", "float32", 77, 16, "H100", steps=77).variants == before.variants


def test_a_call_of_another_length_goes_the_way_of_the_one_before_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of it too: states that were rounded differently would not be those that made y."""
    from fastrnn.cuda import choice

    monkeypatch.setattr(choice, "_forced", None)
    shape = Shape(100, 16, 1600, 100, 256, 256, 0, "float32", True, False)
    taken = choice.variants(CELLS["lstm"], shape)
    assert taken
    assert choice.variants(CELLS["lstm"], shape._replace(steps=1 << 31)) == ()
    monkeypatch.delattr(choice, "candidates")
    for steps in (1, 77, (1 << 31) - 1):
        assert choice.variants(CELLS["lstm"], shape._replace(steps=steps, rows=5 * steps, longest=steps)) == taken


def test_a_new_batch_is_laid_on_the_chip_as_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many rows go together: to lay a layer anew takes tens of milliseconds."""
    from fastrnn.cuda import fit

    before = plan_of("lstm", "bfloat16", 512, 16, "H100")
    assert before.plan == "grid"
    monkeypatch.delattr(fit, "_placed")
    assert plan_of("lstm", "bfloat16", 512, 15, "H100").variants == before.variants


def test_16_bits_need_tensor_cores_that_know_them() -> None:
    assert plan_of("lstm", "float16", 64, 16, "T4").plan == "step"
    assert plan_of("lstm", "float32", 64, 16, "T4").plan == "block"


def test_rows_share_a_block_only_where_processors_are_few() -> None:
    assert plan_of("lstm", "float32", 64, 132, "H100").variants[0].rows == 1
    assert plan_of("lstm", "float32", 64, 133, "H100").variants[0].rows == 2
    assert plan_of("lstm", "float32", 64, 4000, "H100").variants[0].rows == 8


def test_fewer_rows_share_a_block_where_weights_leave_room_for_no_more() -> None:
    assert plan_of("lstm", "float32", 112, 4000, "H100").variants[0].rows == 8
    assert 1 < plan_of("lstm", "float32", 112, 4000, "RTX 4090").variants[0].rows < 8


@pytest.mark.parametrize(("chip", "dtype"), LARGEST)
def test_every_variant_fits_and_is_another(chip: str, dtype: str) -> None:
    """Also where those of one pass that leave more registers to the compiler do not fit, and those of the other do."""
    from fastrnn.cuda import fit

    apart = 0
    for cell, most in LARGEST[chip, dtype].items():
        for batch in (1, 4000):
            found = fit.fit(CELLS[cell], dtype, most, batch, False, chips()[chip])
            variants = found.variants
            assert len(set(variants)) == len(variants) > 1
            assert max(max(one.forward_bytes, one.backward_bytes) for one in variants) <= chips()[chip].shared
            forward = {(one.forward, one.forward_last) for one in variants}
            backward = {(one.backward, one.backward_last) for one in variants}
            assert max(len(forward), len(backward)) == len(variants)
            apart += len(forward) != len(backward)
    assert apart, "one pass ran out of tries somewhere"


@pytest.mark.parametrize("chip", ["H100", "A100", "RTX 4090", "T4"])
def test_the_model_grows_with_the_work(chip: str) -> None:
    """More steps, more rows than there are processors, more units, training: none is for nothing."""
    from fastrnn.cuda import choice

    def seconds(plan: str, **options: Any) -> float:
        shape = Shape(100, 16, 1600, 100, 64, 64, 0, "float32", False, False)._replace(**options)
        found = {one.plan: one.seconds for one in choice.candidates(CELLS["lstm"], shape, chips()[chip])}
        assert found[plan] is not None
        return found[plan]  # type: ignore[return-value]

    for plan in ("block", "grid", "step"):
        plain = seconds(plan)
        for options in ({"steps": 200}, {"batch": 100_000}, {"train": True}):
            assert seconds(plan, **options) > 1.5 * plain, (plan, options)
        assert seconds(plan, hidden=96) >= plain


@pytest.mark.parametrize(
    ("hidden", "dtype", "batch", "how"),
    [
        (64, "float32", 16, ("block", 1, "both directions at the same time")),
        (64, "float32", 132, ("block", None, "both directions at the same time")),
        (512, "bfloat16", 16, ("grid", None, "both directions at the same time")),
        (2048, "bfloat16", 1, ("grid", 2, "one direction after the other")),
        (4096, "bfloat16", 64, ("step", 2, "one direction after the other")),
    ],
)
def test_two_directions_share_the_chip_where_both_fit(hidden: int, dtype: str, batch: int, how: Any) -> None:
    one, two = (plan_of("lstm", dtype, hidden, batch, "H100", directions=n) for n in (1, 2))
    plan, times, reason = how
    assert (one.plan, two.plan) == (plan, plan)
    assert two.reason.endswith(reason)
    assert "direction" not in one.reason
    assert one.seconds <= two.seconds < 2 * one.seconds * (1 + 1e-9)
    if times is not None:
        assert two.seconds == pytest.approx(times * one.seconds)
    if plan == "grid" and "same" in reason:
        layout = two.variants[0]
        assert 2 * layout.blocks * -(-batch // layout.rows) <= 132


def test_explain_names_each_plan_its_time_and_why() -> None:
    from fastrnn.cuda import choice

    layer = make_layer(LayerCase("lstm", "cuda", "float32", I=64, H=64), device="cuda:0")
    with choice.forced("block"):
        told = fastrnn.plan(layer, 100, 16, training=True).explain()
    assert re.search(
        r"plan block: \d+\.\d\d us a step by the model, taken; 16 blocks of 256 threads, 1 rows each", told
    )
    assert re.search(
        r"plan grid: \d+\.\d\d us a step by the model, not taken; \d+ group\(s\) of \d+ blocks of \d+ threads, "
        r"\d+ rows and \d+ units each, \d+% of the weights in registers", told,
    )  # fmt: skip
    assert re.search(r"plan step: \d+\.\d\d us a step by the model, not taken; 2 launches a step", told)
    assert "the model's constants are not measured yet" in told
    assert "direction" not in told
    case = LayerCase("lstm", "cuda", "float32", I=64, H=64, bidirectional=True)
    both, again = (make_layer(replace(case, save=save), device="cuda:0") for save in ("gates", "recompute"))
    assert "both directions at the same time" in fastrnn.plan(both, 100, 16, training=True).explain()
    assert "both directions" not in fastrnn.plan(again, 100, 16, training=True).explain()
    assert "all steps in one launch" in told
    again = make_layer(LayerCase("lstm", "cuda", "float32", I=64, H=64, save="recompute"), device="cuda:0")
    with choice.forced("block"):
        assert "all steps of a segment in one launch" in fastrnn.plan(again, 100, 16, training=True).explain()
    with choice.forced("grid"):
        many = fastrnn.plan(layer, 100, 150_000).explain()
        assert re.search(r"all steps in \d{2,} launches, each of other rows", many)
        told = fastrnn.plan(layer, 100, 16).explain()
    assert "all steps in one launch" in told
    assert "the grid plan: the recurrent weights stay on the chip, shared out to blocks that wait for each" in told
    assert fastrnn.plan(layer, 100, 16).fused is False  # the tests let the step plan run elsewhere


def test_the_faster_plan_runs() -> None:
    from fastrnn.cuda import choice

    shape = Shape(100, 16, 1600, 100, 64, 64, 0, "float32", True, False)
    chip = chips()["H100"]
    block, grid, step = choice.candidates(CELLS["lstm"], shape, chip)
    assert block.seconds is not None
    assert grid.seconds is not None
    assert step.seconds is not None
    assert block.seconds < grid.seconds < step.seconds
    assert choice._choose(CELLS["lstm"], shape, chip, None) == block
    assert choice._choose(CELLS["lstm"], shape, chip, "grid") == grid
    assert choice._choose(CELLS["lstm"], shape, chip, "step") == step


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_call_that_saves_nothing_goes_the_way_of_one_that_does(cell: str) -> None:
    """Else save="recompute" would take gradients at states that were rounded differently from those that made y."""
    for dtype in ("float32", "bfloat16"):
        for hidden in (16, 64, 128, 192, 256):
            for batch in (1, 256, 4000, 8000, 16000, 64000):
                plans = {plan_of(cell, dtype, hidden, batch, "H100", train).plan for train in (False, True)}
                assert len(plans) == 1, (dtype, hidden, batch)


def test_a_chip_is_asked_for_what_it_is(cupy: ModuleType) -> None:
    from fastrnn.cuda.chip import chip

    assert chip(0) == chips()["H100"]


@pytest.mark.parametrize(
    ("capability", "told", "cooperative"), [("90", 1, True), ("70", 1, True), ("90", 0, False), ("61", 1, False)]
)
def test_blocks_wait_for_each_other_only_where_the_device_runs_them_together(
    capability: str, told: int, cooperative: bool, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import choice
    from fastrnn.cuda.chip import chip

    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
    monkeypatch.setitem(cupy.cuda.Device.attributes, "CooperativeLaunch", told)
    this = chip.__wrapped__(0)
    assert this.cooperative is cooperative
    shape = Shape(100, 16, 1600, 100, 256, 256, 0, "float32", True, False)
    _, grid, _ = choice.candidates(CELLS["lstm"], shape, this)
    assert (grid.seconds is not None) is cooperative
    assert cooperative or grid.reason == "the device runs no blocks that wait for each other"
    assert (choice._choose(CELLS["lstm"], shape, this, "grid").plan == "grid") is cooperative
