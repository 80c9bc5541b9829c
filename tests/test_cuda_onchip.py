"""The plans `block` and `grid`, whole sequences in one launch, run on the CPU as test_cuda.py says.

The tensor cores' product runs by the layout of fragments that PTX documents, and what it does is compared element by
element with the tables of that document here.
"""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cases
import cupy_standin
import host_kernels
import numpy as np
import pytest
from cases import CELLS, Case, assert_results, draw, expected, make_layer, option_cases
from host_kernels import KernelError
from test_cuda import (
    backward_is_pure,
    evaluate_on_device,
    on_device,
    padding_reaches_nothing,
    same_bits_if_nothing_is_saved,
)
from tolerance import assert_same_bits

import fastrnn
from fastrnn.cells import Cell, GatedProduct, Step, StepGradient, sigmoid
from fastrnn.recurrence import Shape

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("plan"),
]
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def plan(cupy: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let one plan run, `block` unless a test has others as parameters, and nothing else that could."""
    from fastrnn.cuda import choice, fit

    name = getattr(request, "param", "block")
    if name == "grid":  # small blocks, several for each row also of small layers
        choice._best_spread.cache_clear()
        for constant, value in (
            ("SPLIT_UNITS", (16,)), ("SPLIT_WARPS", (2,)), ("SHARED_UNITS", (4,)), ("SHARED_SLICES", (16,)),
            ("SHARED_THREADS", (64, 64)),
        ):  # fmt: skip
            monkeypatch.setattr(fit, constant, value)
    with choice.forced(name):
        cupy_standin.launches.clear()
        yield name
    choice._best_spread.cache_clear()
    choice._choose.cache_clear()


OFTEN = ("rnn_tanh", "lstm", "lstm_peephole", "gru", "gru_reset_before")  # cells whose kernels are built everyday
OFTEN_ON_GRID = ("lstm", "gru_reset_before")


def nightly(rarely: bool) -> Any:
    return [pytest.mark.nightly] if rarely else []


both = pytest.mark.parametrize("plan", ["block", "grid"], indirect=True)


def both_often() -> Any:
    """Cells under both plans; under `grid` two of them everyday."""
    rows = [("block", cell, False) for cell in OFTEN] + [("grid", cell, cell not in OFTEN_ON_GRID) for cell in OFTEN]
    params = [pytest.param(plan, cell, marks=nightly(rarely), id=f"{plan}-{cell}") for plan, cell, rarely in rows]
    return pytest.mark.parametrize(("plan", "cell"), params, indirect=["plan"])


LAUNCHES = ["onchip_pack_forward", "onchip_forward", "onchip_pack_backward", "onchip_backward"]


def loops() -> set[str]:
    return set(cupy_standin.launches) - {"random_words"}


def served(case: Case) -> bool:
    return not (case.layer_norm or case.proj_size or case.recurrent == "diagonal" or case.dense)


CASES = [case for dtype in DTYPES for _, case in option_cases("cuda", dtype) if served(case)]
SIZES = [(1, 2, 5, 1), (2, 33, 1, 7), (7, 3, 33, 33), (3, 9, 4, 16), (2, 2, 3, 100)]
CASES += [
    Case(cell, "cuda", dtype, *size, bidirectional=True, seed=k)
    for cell in CELLS for dtype in DTYPES for k, size in enumerate(SIZES)
]  # fmt: skip


def rare(plan: str, case: Case) -> bool:
    """Whether its kernels are built for the nightly run alone: all take minutes of a core."""
    large = (33 if case.dtype == "float32" else 16) < case.H
    if plan == "grid":
        return case.cell not in OFTEN_ON_GRID or case.dtype == "float16" or large
    return case.cell not in OFTEN or case.dtype == "float16" or large


@pytest.mark.parametrize(
    ("plan", "case"),
    [
        pytest.param(plan, case, marks=nightly(rare(plan, case)), id=f"{plan}-{case}")
        for plan in ("block", "grid") for case in CASES
    ],
    indirect=["plan"],
)  # fmt: skip
def test_agrees_with_the_reference(plan: str, case: Case) -> None:
    problem = draw(case)
    want = expected(case, problem)
    assert_results(case, problem, evaluate_on_device(case, problem), want)
    assert loops() == set(LAUNCHES)


@pytest.mark.parametrize(
    ("plan", "cell", "dtype", "options"),
    [
        pytest.param(plan, cell, dtype, options, id=f"{plan}-{cell}-{dtype}-{options}", marks=nightly(not often))
        for cell in CELLS for options in ({}, {"zoneout": 0.2})
        for plan, dtype in (("block", "float32"), ("grid", "float32"), ("grid", "bfloat16"))
        for often in [cell == "lstm" and not options and (plan, dtype) != ("grid", "float32")]
    ],
    indirect=["plan"],
)  # fmt: skip
def test_a_row_has_the_same_bits_however_many_are_run_together(
    plan: str, cell: str, dtype: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a chip of fewer processors a block gets more rows, and in the end there are several launches."""
    from fastrnn.cuda import fit, kernels

    rows = 8 if dtype == "float32" else 24
    units = 17 if plan == "grid" else 13
    case = Case(cell, "cuda", dtype, T=4, B=rows, H=units, lengths="random", reset="random", **options)
    problem, layer, results, layouts = draw(case), make_layer(case, device="cuda:0"), [], list[Any]()
    load, blocks = kernels.load_on_chip, 1
    monkeypatch.setattr(kernels, "load_on_chip", lambda *a: layouts.append(a[0][0]) or load(*a))
    if plan == "grid":
        blocks = 2 if dtype == "bfloat16" else 5
        monkeypatch.setattr(fit, "GROUP_ROWS", (1, 2, 4, 8, 16))
    for groups in (8, 4, 2, 1):
        few_processors(monkeypatch, groups * blocks)
        cupy_standin.launches.clear()
        results.append(evaluate_on_device(case, problem, layer))
    for other in results[1:]:
        for name in ("y", "h_n", "d x", "d h_0"):
            assert_same_bits(name, other[name], results[0][name])
    assert len({layout.rows for layout in layouts}) == (4 if dtype == "float32" else 2)
    assert {layout.blocks for layout in layouts} == {blocks}
    assert (cupy_standin.launches.count("onchip_forward") > 1) is (dtype == "bfloat16")


@pytest.mark.parametrize("plan", ["grid"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        pytest.param("lstm", {}),
        *(pytest.param(cell, {"zoneout": 0.2}, marks=pytest.mark.nightly) for cell in CELLS),
    ],
)  # fmt: skip
def test_groups_of_many_rows_in_several_launches_agree_with_the_reference(
    cell: str, options: dict[str, Any], dtype: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups_of_many_rows(cell, dtype, monkeypatch, **options)


def groups_of_many_rows(cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """24 rows: three times those that a product takes at once, which two threads share, or 160 threads 384 pairs."""
    from fastrnn.cuda import fit

    monkeypatch.setattr(fit, "GROUP_ROWS", (24,))
    monkeypatch.setattr(fit, "SPLIT_WARPS", (5,))
    few_processors(monkeypatch, 7)  # two groups at once, of three blocks
    H = 9 if dtype == "float32" else 33
    case = Case(
        cell, "cuda", dtype, T=5, B=53, H=H, bidirectional=True, lengths="random", reset="random", **options
    )  # fmt: skip
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))
    assert [cupy_standin.launches.count(name) for name in LAUNCHES] == [2, 4, 2, 4]


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3}], ids=str)
@both_often()
def test_a_call_that_saves_nothing_has_the_same_bits(cell: str, options: dict[str, Any]) -> None:
    same_bits_if_nothing_is_saved(
        Case(cell, "cuda", "float32", T=6, lengths="random", reset="random", bidirectional=True, **options)
    )
    assert loops() == set(LAUNCHES[:2])


@pytest.mark.parametrize("plan", ["block", pytest.param("grid", marks=pytest.mark.nightly)], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3, "recurrent_dropout": 0.3, "training": True}], ids=str)
def test_padding_reaches_nothing(plan: str, dtype: str, options: dict[str, Any]) -> None:
    for cell in OFTEN if plan == "block" else OFTEN_ON_GRID:
        padding_reaches_nothing(Case(cell, "cuda", dtype, T=6, B=4, lengths="random", bidirectional=True, **options))
    assert loops() == set(LAUNCHES)


@both_often()
def test_backward_is_pure(cell: str) -> None:
    backward_is_pure(Case(cell, "cuda", "float32", reset="random", num_layers=2))
    assert loops() == set(LAUNCHES)


@both
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_nothing_to_do(T: int, B: int) -> None:
    case = Case("lstm", "cuda", "float32", T=T, B=B, bidirectional=True)
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))


def test_of_each_pass_the_first_variant_that_spills_nothing_is_run(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import choice, kernels

    shape = Shape(5, 3, 15, 5, 128, 128, 0, "float32", True, False)
    variants = choice.choose(CELLS["lstm"], shape).variants
    assert len(variants) > 3
    spilling = set[Any]()

    class Function:
        def __init__(self, variant: Any, name: str) -> None:
            self.variant, self.local_size_bytes = variant, 8 * ((variant, name.split("_")[1]) in spilling)

    class Module:
        def __init__(self, code: Any, **_: Any) -> None:
            self.variant = code

        def get_function(self, name: str) -> Any:
            return Function(self.variant, name)

    monkeypatch.setattr(kernels.cupy, "RawModule", Module)
    monkeypatch.setattr(kernels.source, "assemble_on_chip", lambda variant: variant)
    load = kernels.load_on_chip.__wrapped__
    for forward, backward in ((0, 0), (1, 1), (0, 2), (3, 1)):
        spilling |= {(v, "forward") for v in variants[:forward]} | {(v, "backward") for v in variants[:backward]}
        found = load(variants, 0).passes
        for name, taken in (("forward", variants[forward]), ("backward", variants[backward])):
            one = found[f"onchip_{name}"]
            assert one.function.variant == taken
            assert one.shared_bytes == one.function.max_dynamic_shared_size_bytes == getattr(taken, f"{name}_bytes")
            assert one.shown == getattr(taken, f"{name}_shown")
        spilling.clear()
    spilling |= {(v, "forward") for v in variants}
    with pytest.warns(
        RuntimeWarning, match=r"lstm_float32_block128x1: this compiler keeps registers in memory in all of"
    ):
        found = load(variants, 0).passes
    assert {one.function.variant for one in found.values()} == {variants[0]}


def test_a_layer_goes_the_way_of_the_faster_plan_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import choice

    monkeypatch.setattr(choice, "_forced", None)
    for dtype, H, plan in (("float32", 5, "block"), ("float32", 300, "grid"), ("float64", 5, "step")):
        case = Case("lstm", "cuda", dtype, T=2, B=1, H=H)
        cupy_standin.launches.clear()
        layer = make_layer(case, device="cuda:0")
        layer(on_device(draw(case)).x)
        assert loops() == ({"step_forward"} if plan == "step" else {"onchip_pack_forward", "onchip_forward"})
        assert re.search(rf"plan {plan}: [^\n]* us a step by the model, taken", fastrnn.plan(layer, 2, 1).explain())


PLACES = """
extern "C" __global__ void places(int* written, int* read) {
  for (int j = 0; j < own; ++j) put(written + j * THREADS + threadIdx.x, FirstBackward::place(row_of(j), unit_of(j)));
  put(read + threadIdx.x, FirstBackward::place(lane() / 4, lane() % 4 * 8));
}
"""


@pytest.mark.parametrize("hidden", [16, 128, 176])
def test_lanes_of_the_tensor_cores_meet_in_no_bank(hidden: int, cupy: ModuleType) -> None:
    """A bank has one word of 4 bytes at a time; loads of 16 bytes are made by eight lanes at once."""
    from fastrnn.cuda import choice, source

    shape = Shape(5, 3, 15, 5, hidden, hidden, 0, "bfloat16", True, False)
    variant = choice.choose(CELLS["rnn_tanh"], shape).variants[0]
    kernel = host_kernels.Kernel(cupy.RawModule.compiler, source.assemble_on_chip(variant) + PLACES, "places")
    written, read = np.zeros((4, variant.threads), np.int32), np.zeros(variant.threads, np.int32)
    kernel((1,), (variant.threads,), (written, read))
    assert not (read % 8).any(), "16 bytes are aligned"
    for words in (written // 2).reshape(-1, 32):
        assert len({*words % 32}) == len({*words}) == 16
    for words in (read // 2).reshape(-1, 8):
        assert len({*((words[:, None] + range(4)) % 32).ravel()}) == 32


# s = f * h_prev and h = n: nothing but the gated state sees h_prev, which the loop must fetch all the same.
ONLY_GATED = """
struct OnlyGated : CellTraits {
  static constexpr int gates = 2, saved = 2;
  static constexpr bool gated = true;
  template <class A> static __device__ void forward(const A* ax, const A* ah, A, A, const A*, A& h, A&, A* saved) {
    saved[0] = sigmoid(ax[0] + ah[0]), h = saved[1] = tanh(ax[1] + ah[1]);
  }
  template <class A>
  static __device__ void backward(const A* saved, A, A, A, A, const A*, A dh, A&, A* dax, A&, A& dh_prev, A*) {
    dax[1] = dh * tanh_slope(saved[1]), dh_prev = A(0);
  }
  template <class A> static __device__ A gate(A ax, A ah, A h_prev) { return sigmoid(ax + ah) * h_prev; }
  template <class A> static __device__ void gate_backward(A f, A h_prev, A ds, A& da, A& dh_prev) {
    da = ds * h_prev * sigmoid_slope(f), dh_prev = ds * f;
  }
};
"""


def test_a_gated_cell_that_reads_h_prev_nowhere_else(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(xp: ModuleType, ax: Any, ah: Any, h_prev: Any, c_prev: Any, p: Any) -> Step:
        a = ax + ah
        n = xp.tanh(a[:, 1])
        return Step(n, None, xp.stack((sigmoid(xp, a[:, 0]), n), axis=1))

    def backward(xp: ModuleType, saved: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, dh: Any, *_: Any) -> Any:
        da = xp.stack((0 * dh, dh * (1 - saved[:, 1] ** 2)), axis=1)
        return StepGradient(da, da, 0 * dh, None)

    def state(xp: ModuleType, ax: Any, ah: Any, h_prev: Any) -> Any:
        return sigmoid(xp, ax[:, 0] + ah[:, 0]) * h_prev

    def state_backward(xp: ModuleType, saved: Any, h_prev: Any, ds: Any) -> tuple[Any, Any]:
        f = saved[:, 0]
        return ds * h_prev * f * (1 - f), ds * f

    layer = fastrnn.register(
        Cell(
            "only_gated", ("f", "n"), forward, backward, cuda=(ONLY_GATED, "OnlyGated"), saved=2, uses_h_prev=False,
            gated=GatedProduct(state, state_backward),
        )
    )  # fmt: skip
    monkeypatch.setitem(cases.LAYERS, "only_gated", layer)
    case = Case("only_gated", "cuda", "float32", T=6, lengths="random", reset="random")
    problem = draw(case)
    assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))
    assert loops() == set(LAUNCHES)


@both
@pytest.mark.parametrize("train", [False, True])
def test_two_directions_run_on_two_streams(plan: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = list[tuple[str, Any]]()
    call = cupy_standin.RawKernel.__call__

    def noted(kernel: Any, *args: Any, **kwargs: Any) -> None:
        streams.append((kernel._kernel.name, cupy_standin._streams[-1]))
        call(kernel, *args, **kwargs)

    monkeypatch.setattr(cupy_standin.RawKernel, "__call__", noted)
    for name in ("empty", "zeros"):
        own = getattr(cupy_standin, name)

        def allocated(*args: Any, own: Any = own, **kwargs: Any) -> Any:
            assert len(cupy_standin._streams) == 1, "on the second stream nothing may be allocated"
            return own(*args, **kwargs)

        monkeypatch.setattr(cupy_standin, name, allocated, raising=False)
    case = Case("lstm", "cuda", "float32", bidirectional=True, num_layers=2)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    if train:
        layer.forward(problem.x, problem.state).backward(problem.d_output, problem.d_state)
    else:
        layer(problem.x, problem.state)
    for name in LAUNCHES[1 :: 2 if train else 4]:
        of_name = [stream for launched, stream in streams if launched == name]
        assert len(of_name) == 4
        assert len(set(of_name)) == 2
        assert of_name[::2] == of_name[:1] * 2, "the same for every layer"


@both
@pytest.mark.parametrize("waits", [1, 2], ids=["before", "after"])
def test_directions_wait_for_what_they_read_and_are_waited_for(
    plan: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of the two, work on two streams would touch the same memory in no order."""
    case = Case("lstm", "cuda", "float32", bidirectional=True)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    wait, count = cupy_standin.Stream.wait_event, iter(range(1, 100))

    def forgets(stream: Any, event: Any) -> None:
        if next(count) != waits:
            wait(stream, event)

    monkeypatch.setattr(cupy_standin.Stream, "wait_event", forgets)
    with pytest.raises(AssertionError, match="race between streams"):
        layer.forward(problem.x, problem.state).backward(problem.d_output)


def test_what_fails_in_one_direction_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import beside

    waits = list[Any]()
    wait = cupy_standin.Stream.wait_event
    monkeypatch.setattr(
        cupy_standin.Stream, "wait_event", lambda stream, event: waits.append(stream) or wait(stream, event)
    )

    def fails() -> None:
        raise ZeroDivisionError

    for pair in ((fails, lambda: None), (lambda: None, fails)):
        waits.clear()
        with pytest.raises(ZeroDivisionError):
            beside.at_once(*pair)
        assert waits[-1] is cupy_standin._streams[-1]
        assert len(waits) == 2


def test_kernels_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one of CuPy's hashes the source and asks the driver, at its first launch."""
    case = Case("lstm", "cuda", "float32")
    layer, x = make_layer(case, device="cuda:0"), on_device(draw(case)).x
    layer(x)
    monkeypatch.delattr(cupy_standin.RawModule, "get_function")
    layer(x)
    assert cupy_standin.launches == LAUNCHES[:2] * 2


@both
def test_one_launch_each_way() -> None:
    case = Case("gru", "cuda", "float32", T=7)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    for _ in range(3):  # no graph is captured either
        cupy_standin.launches.clear()
        cupy_standin.replays.clear()
        layer.forward(problem.x, problem.state).backward(problem.d_output, problem.d_state)
        assert cupy_standin.launches == LAUNCHES
        assert cupy_standin.replays == []


def forget_layouts() -> None:
    """Let them be found anew; how many registers a kernel needs has changed."""
    from fastrnn.cuda import choice, fit

    for found in (fit.fit, fit._fit, choice._best_spread, choice._choose):
        found.cache_clear()


@pytest.mark.parametrize("left", [0, 8])
@pytest.mark.parametrize(
    ("plan", "cell", "dtype"),
    [
        pytest.param(plan, cell, dtype, marks=nightly(cell != "rnn_tanh" or dtype == "float32"))
        for plan in ("block", "grid") for cell in ("rnn_tanh", "lstm", "lstm_coupled", "gru_reset_before")
        for dtype in ("float32", "bfloat16")
    ],
    indirect=["plan"],
)  # fmt: skip
def test_weights_in_shared_memory(plan: str, cell: str, dtype: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small layers all weights are in registers: here a thread has this many left for them, and 3 or 5 pairs."""
    from fastrnn.cuda import fit

    monkeypatch.setattr(fit, "needs", lambda *_: fit.MOST_REGISTERS - left)
    monkeypatch.setattr(fit, "registers_of", lambda *_: fit.MOST_REGISTERS)
    forget_layouts()
    case = Case(cell, "cuda", dtype, T=4, B=3, H=80 if plan == "block" else 150, lengths="random")
    problem = draw(case)
    try:
        assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))
    finally:
        forget_layouts()
    assert loops() == set(LAUNCHES)


# Each mistake is planted in the sources of one cell; what catches it is a race, bounds, or a wrong number.
MISTAKES = {
    "forward barrier": ("    state.wait(1 - parity);  // the state is there\n", ""),
    "backward barrier": ("    gradients.wait(1 - parity);  // the gates' gradients are there\n", ""),
    "gated barrier forward": ("      gated_state.wait(0);\n", ""),
    "gated barrier backward": ("      last_gradient.wait(0);\n", ""),
    "one place for the state": ("(state.at(parity)", "(state.at(0)", " state.show(1 - parity,", " state.show(0,"),
    "one place for the gradients": (
        "(gradients.at(parity)", "(gradients.at(0)", " gradients.show(1 - parity,", " gradients.show(0,"
    ),
    "padding is run": ("if (t < mine.length[j]) {\n        A from_x", "if (true) {\n        A from_x"),
    "padding sends gradients": ("arrives[j] = here && !now[j].cleared;", "arrives[j] = true;"),
    "reset is not seen": (
        "rounded<Seen>(cleared_next[j] ? A(0) : widen(made[j].sees))",
        "rounded<Seen>(widen(made[j].sees))",
    ),
    "the state is not cleared": ("      if (cleared_next[j]) h[j] = c[j] = A(0);\n", ""),
    "the first reset": (
        "if (clear && fetch(clear + time(begin) * B + mine.b[j])) h[j] = c[j] = A(0);",
        "if (false);",
    ),
    "the state before a late first step": ("      put(hs + entry, rounded<S>(h[j]));\n", ""),
    "gradients of padding": ("for (int t = steps; t < T; ++t) write_zeros(t, mine.b[j], u);", ""),
    "y of padding": ("      put(y + t * y_step + mine.b[j] * y_row + u, rounded<S>(A(0)));\n", ""),
    "gated state of padding": (
        "      if (Cell::gated && keeps) put(s + t * in_step",
        "      if (false) put(s + t * in_step",
    ),
    "weights beyond H": ("return u < H && k < H ? fetch", "return k < H ? fetch"),
    "the last product": ("direct[j] + (arrives[j] ? from_first[j][0] * factor[j] : A(0))", "direct[j]"),
    "dropout backward": ("dh_t += from_later[j][0] * factor[j];", "dh_t += from_later[j][0];"),
    "zoneout of c backward": (
        "held_c = share * dc_t[j], dc_t[j] = (A(1) - share) * dc_t[j];",
        "held_c = share * dc_t[j];",
    ),
    "rounding of the state": ("h[j] = widen(made[j].h), c[j] = c_new;", "h[j] = h_new, c[j] = c_new;"),
}  # fmt: skip
# Those that only blocks which share units can make, and the dtype of the product that makes them.
MISTAKES_OF_GRID = {
    "counts too few": ("float32", "(flag, arrived += gridDim.x);", "(flag, arrived += gridDim.x - 1);"),
    "another group's flag": ("float32", "(group.number * 2 + which) * LINE", "which * LINE"),
    "one flag for two products": ("float32", "(group.number * 2 + which) * LINE", "group.number * 2 * LINE"),
    "another group's place": ("float32", "static_cast<int64>(group.number) * of + begin", "begin"),
    "one place for two products": ("float32", "static_cast<int64>(group.number) * of + begin", "group.number * of"),
    "read before all is copied": ("float32", "      __syncthreads();  // the copy is there\n", ""),
    "added before all warps are there": ("bfloat16", "    __syncthreads();  // all warps' sums are there\n", ""),
    "one group's rows": ("bfloat16", "return number * ROWS;", "return 0;"),
    "one block's units": ("bfloat16", "return blockIdx.x; }", "return 0; }"),
}  # fmt: skip
# Those that only groups of many rows, or several launches, can make.
MISTAKES_OF_MANY_ROWS = {
    "groups of the first launch": ("float32", "number(static_cast<int>(first) + blockIdx.y)", "number(blockIdx.y)"),
    "steps of the first row": ("float32", "b < first_row + ROWS && b < B", "b < first_row + 1 && b < B"),
    "rows of the first time": ("float32", "from + time * together * row + slice() * stride", "from + slice() * stride"),
    "sums of the last time": ("float32", "if (times == 1 || time_of(j) == time)", "if (true)"),
    "rows of the next group": ("float32", "UNITS * SLICES && time_of(j) < times; }", "UNITS * SLICES; }"),
    "the wrong half of the sums": ("float32", "rows > 1 && (slice() & bit);", "rows > 1 && (slice() & 1);"),
    "pairs of the next group": ("bfloat16", "return j * THREADS + threadIdx.x < pairs_owned;", "return true;"),
    "rows of the first tile": ("bfloat16", ".multiply(mine + r * row / 8, sums);", ".multiply(mine, sums);"),
    "sums over those of the first tile": ("bfloat16", "* ROWS + r + k % 2) * width", "* ROWS + k % 2) * width"),
    "the other place at last": ("bfloat16", "gradients.at(steps % 2)", "gradients.at(0)"),
}


def planted(monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    """Let the kernels on the chip have a mistake: what stands there before, what then, and so on."""
    from fastrnn.cuda import kernels, source

    own = source.assemble_on_chip

    def with_mistake(variant: Any) -> str:
        code = own(variant)
        for before, after in zip(changes[::2], changes[1::2], strict=True):
            if code.count(before) != 1:  # no assertion: the test waits for one
                raise LookupError(f"{before!r} stands {code.count(before)} times in the source")
            code = code.replace(before, after)
        return code

    monkeypatch.setattr(source, "assemble_on_chip", with_mistake)
    kernels.load_on_chip.cache_clear()


PLANTED_OFTEN = ("forward barrier", "gated barrier backward", "padding sends gradients", "another group's flag")


def mistakes() -> list[Any]:
    of_block = [("block", name, "float32", changes) for name, changes in MISTAKES.items()]
    of_grid = [("grid", name, dtype, changes) for name, (dtype, *changes) in MISTAKES_OF_GRID.items()]
    return [
        pytest.param(*one, id=f"{one[0]}-{one[1]}", marks=nightly(one[1] not in PLANTED_OFTEN))
        for one in of_block + of_grid
    ]


@pytest.mark.parametrize(("plan", "name", "dtype", "changes"), mistakes(), indirect=["plan"])
def test_mistakes_are_seen(
    plan: str, name: str, dtype: str, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn.cuda import kernels

    planted(monkeypatch, *changes)
    cell = "gru_reset_before" if "gated" in name or "two products" in name else "lstm"
    case = Case(
        cell, "cuda", dtype, T=8, B=5 if plan == "block" else 20, H=13 if plan == "block" else 33, bidirectional=True,
        lengths="random", reset="random", zoneout=0.2,
        recurrent_dropout=0.0 if "late" in name else 0.3, training=True,  # with it, dU reads another array
    )  # fmt: skip
    problem = draw(case)

    def run() -> None:
        """With a block for each row, where it stops early, and with one for all, where it goes on past shorter ones."""
        if "rounding" in name:
            in_two_halves("gru")
        for processors in (132, 1 if plan == "block" else 6):
            few_processors(monkeypatch, processors)
            assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))

    try:
        with pytest.raises((AssertionError, KernelError)):
            run()
    finally:
        kernels.load_on_chip.cache_clear()


@pytest.mark.nightly
@pytest.mark.parametrize("plan", ["grid"], indirect=True)
@pytest.mark.parametrize("name", MISTAKES_OF_MANY_ROWS)
def test_mistakes_of_groups_of_many_rows_are_seen(plan: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import kernels

    dtype, *changes = MISTAKES_OF_MANY_ROWS[name]
    planted(monkeypatch, *changes)
    try:
        with pytest.raises((AssertionError, KernelError)):
            groups_of_many_rows("lstm", dtype, monkeypatch)
    finally:
        kernels.load_on_chip.cache_clear()


def few_processors(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the chip have this many."""
    from fastrnn.cuda import chip

    few = chip.chip(0)._replace(processors=count)
    monkeypatch.setattr("fastrnn.cuda.choice.chip", lambda device: few)
    monkeypatch.setattr("fastrnn.cuda.kernels.chip", lambda device: few)


def in_two_halves(cell: str) -> None:
    """Assert that a pass may begin anywhere: with the state that stands in memory there."""
    case = Case(cell, "cuda", "bfloat16", T=8, B=5, H=13)
    layer, problem = make_layer(case, device="cuda:0"), on_device(draw(case))
    whole, _ = layer(problem.x, problem.state)
    _, half = layer(problem.x[:4], problem.state)
    later, _ = layer(problem.x[4:], half)
    assert_same_bits("y", later._host, whole._host[4:])


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "gru_reset_before"])  # c is float32 inside
def test_a_pass_may_begin_anywhere(cell: str) -> None:
    in_two_halves(cell)


WARP = """
extern "C" __global__ void multiply(const unsigned* a, const unsigned* b, float* sums) {
  unsigned of_a[4], of_b[2];
  float mine[4];
  for (int k = 0; k < 4; ++k) of_a[k] = fetch(a + threadIdx.x * 4 + k), mine[k] = fetch(sums + threadIdx.x * 4 + k);
  for (int k = 0; k < 2; ++k) of_b[k] = fetch(b + threadIdx.x * 2 + k);
  mma<TYPE>(mine, of_a, of_b);
  for (int k = 0; k < 4; ++k) put(sums + threadIdx.x * 4 + k, mine[k]);
}
"""


def fragments(matrix: np.ndarray, places: list[list[tuple[int, int]]]) -> np.ndarray:
    """What each of 32 lanes holds of a matrix, elements in the order of `places`."""
    return np.array([[matrix[at] for at in lane] for lane in places], matrix.dtype)


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": row and column of the i-th element of a lane.
A_PLACES = [
    [(lane // 4 + (8 if i in (2, 3, 6, 7) else 0), lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)) for i in range(8)]
    for lane in range(32)
]
B_PLACES = [[(lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4) for i in range(4)] for lane in range(32)]
C_PLACES = [[(lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2) for i in range(4)] for lane in range(32)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_tensor_cores_product_on_the_host_has_the_documented_layout(dtype: str, cupy: ModuleType) -> None:
    from fastrnn.cuda import source

    code = source.expand("memory.cuh") + WARP.replace("TYPE", source.SCALARS[dtype])
    kernel = host_kernels.Kernel(cupy.RawModule.compiler, code, "multiply")
    rng = np.random.default_rng(0)

    def product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        held = fragments(c.astype(np.float32), C_PLACES)
        words = [
            np.ascontiguousarray(fragments(m.astype(dtype), p)).view(np.uint32)
            for m, p in ((a, A_PLACES), (b, B_PLACES))
        ]
        kernel((1,), (32,), (*words, held))
        out = np.full((16, 8), np.nan)
        for lane, places in enumerate(C_PLACES):
            for value, at in zip(held[lane], places, strict=True):
                out[at] = value
        return out

    whole = [rng.integers(-8, 9, shape).astype(float) for shape in ((16, 16), (16, 8), (16, 8))]
    np.testing.assert_array_equal(product(*whole), whole[0] @ whole[1] + whole[2])
    for k in range(256):  # every element alone
        single = np.zeros((16, 16))
        single[k // 16, k % 16] = 1
        np.testing.assert_array_equal(product(single, whole[1], whole[2]), single @ whole[1] + whole[2])
    for k in range(128):
        single = np.zeros((16, 8))
        single[k // 8, k % 8] = 1
        np.testing.assert_array_equal(product(whole[0], single, whole[2]), whole[0] @ single + whole[2])
