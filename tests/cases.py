"""What the tests run: a case (cell, backend, dtype, sizes, options), its numbers, and one way to evaluate it.

The cells come from the registry: a new one is tested by every file here as soon as LAYERS below can build it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import tolerance

import fastrnn
import fastrnn.layers
from fastrnn.arrays import to_host
from fastrnn.cells import CELLS
from fastrnn.recurrence import Backend

LAYERS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": fastrnn.RNN,
    "rnn_relu": lambda *a, **k: fastrnn.RNN(*a, nonlinearity="relu", **k),
    "rnn_identity": lambda *a, **k: fastrnn.RNN(*a, nonlinearity="identity", **k),
    "lstm": fastrnn.LSTM,
    "lstm_peephole": lambda *a, **k: fastrnn.LSTM(*a, peephole=True, **k),
    "lstm_coupled": lambda *a, **k: fastrnn.LSTM(*a, coupled=True, **k),
    "lstm_coupled_peephole": lambda *a, **k: fastrnn.LSTM(*a, coupled=True, peephole=True, **k),
    "gru": fastrnn.GRU,
    "gru_reset_before": lambda *a, **k: fastrnn.GRU(*a, reset_after=False, **k),
}
LAYERS |= {name: fastrnn.layers.LAYERS[name] for name in CELLS if name not in LAYERS}  # those of conftest.py
BACKENDS = ("reference", "cpu")
DENSE_CELLS = tuple(name for name, cell in CELLS.items() if cell.peepholes and not cell.unit_parameters)
FUNCTIONS = [name for name in vars(Backend) if not name.startswith("_")]  # of every backend
DTYPES = ("float32", "float64")
LOSSES = ("y", "state", "cells")
CALL = 3  # which training call, and so which dropout masks, every evaluation uses


@dataclass(frozen=True)
class Case:
    """One configuration; the defaults are the plain case, and an id names what differs from it."""

    cell: str
    backend: str = "reference"
    dtype: str = "float64"
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 5
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    proj_size: int = 0
    dropout: float = 0.0
    zoneout: float = 0.0  # of h (not with a projection) and of c
    recurrent_dropout: float = 0.0
    layer_norm: bool = False
    dense: bool = False  # peepholes, of DENSE_CELLS; see test_dense_peepholes.py
    recurrent: str = "full"  # "diagonal", "mask" (a random one)
    save: str = "gates"
    training: bool = False  # implied by dropout
    lengths: str = "none"  # "random" (unsorted, one zero where B > 1), "full", "zero" (all of them)
    reset: str = "none"  # "random", "first" (at step 0 only), "all"
    state: str = "given"  # "none", "h" (the cell state left out)
    unbatched: bool = False
    strided: bool = False  # every array that is handed in is a view with gaps
    losses: tuple[str, ...] = LOSSES  # which gradients arrive from outside
    seed: int = 0

    def __str__(self) -> str:
        options = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)[7:]
            if getattr(self, field.name) != field.default and field.name != "losses"
        ]
        loss = [] if self.losses == LOSSES else ["loss=" + "+".join(self.losses)]
        size = f"T{self.T}B{self.B}I{self.I}H{self.H}"
        return "-".join([self.cell, self.backend, self.dtype.replace("float", "f"), size, *options, *loss])

    @property
    def width(self) -> int:
        """The longest sum behind an element of y: what rounding grows with."""
        directions = 1 + self.bidirectional
        return max(self.I, directions * self.H) * self.num_layers

    @property
    def output_size(self) -> int:
        return self.proj_size or self.H

    @property
    def is_training(self) -> bool:
        return self.training or self.dropout > 0

    @property
    def cell_state(self) -> bool:
        return CELLS[self.cell].cell_state


# What is tried on every cell; "projection..." and others that speak of a cell state only on cells that have one.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked-bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"batch_first": True, "num_layers": 2},
    "unbatched": {"unbatched": True, "B": 1, "bidirectional": True, "reset": "random"},
    "lengths": {"lengths": "random"},
    "lengths-zero": {"lengths": "zero"},
    "lengths-stacked-bidirectional": {"lengths": "random", "num_layers": 2, "bidirectional": True, "B": 5},
    "reset": {"reset": "random"},
    "reset-first": {"reset": "first", "bidirectional": True},
    "reset-all": {"reset": "all", "num_layers": 2},
    "reset-bidirectional": {"reset": "random", "num_layers": 2, "bidirectional": True},
    "reset-lengths-bidirectional": {"reset": "random", "lengths": "random", "bidirectional": True, "B": 5},
    "dropout": {"dropout": 0.4, "num_layers": 3},
    "state-none": {"state": "none"},
    "zoneout": {"zoneout": 0.3, "num_layers": 2},
    "zoneout-training": {"zoneout": 0.3, "training": True, "lengths": "random", "reset": "random"},
    "recurrent-dropout": {"recurrent_dropout": 0.4, "training": True, "reset": "random", "B": 4},
    "recompute": {"save": "recompute", "T": 11, "num_layers": 2, "reset": "random"},
    "recompute-everything": {
        "save": "recompute", "T": 7, "num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3,
        "lengths": "random", "reset": "random", "B": 4, "zoneout": 0.1, "recurrent_dropout": 0.2, "strided": True,
    },
    "diagonal": {"recurrent": "diagonal", "num_layers": 2},
    "mask": {"recurrent": "mask", "num_layers": 2},
    "diagonal-regularised": {
        "recurrent": "diagonal", "zoneout": 0.2, "recurrent_dropout": 0.3, "dropout": 0.3, "num_layers": 2,
        "bidirectional": True, "lengths": "random", "reset": "random", "bias": False,
    },
    "everything": {
        "num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3, "lengths": "random",
        "reset": "random", "strided": True, "B": 4, "zoneout": 0.1, "recurrent_dropout": 0.2,
    },
    "norm": {"layer_norm": True, "bidirectional": True},
    "norm-no-bias-mask": {"layer_norm": True, "bias": False, "recurrent": "mask", "num_layers": 2, "seed": 3},
    "norm-everything": {
        "layer_norm": True, "num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3,
        "lengths": "random", "reset": "random", "strided": True, "B": 4, "zoneout": 0.1, "recurrent_dropout": 0.2,
    },
    "norm-recompute": {"layer_norm": True, "save": "recompute", "T": 11, "reset": "random", "lengths": "random"},
    "norm-zoneout": {"layer_norm": True, "zoneout": 0.3, "num_layers": 2},
    "norm-diagonal": {
        "layer_norm": True, "recurrent": "diagonal", "recurrent_dropout": 0.3, "training": True, "bidirectional": True,
        "lengths": "random", "reset": "random",
    },
    "norm-state-none": {"layer_norm": True, "state": "none"},
    "norm-T1-B1": {"layer_norm": True, "T": 1, "B": 1, "I": 2},
    "norm-H1": {"layer_norm": True, "H": 1},
    "norm-H67": {"layer_norm": True, "H": 67, "T": 2, "B": 2, "lengths": "random", "reset": "random"},
    **{f"loss-{name}": {"losses": (name,), "num_layers": 2, "bidirectional": True} for name in LOSSES},
    "T1": {"T": 1},
    "B1": {"B": 1},
    "H1": {"H": 1},
    "ones": {"T": 1, "B": 1, "I": 1, "H": 1},
    "I1-H33": {"I": 1, "H": 33, "T": 2, "B": 2},
    "I33-H2": {"I": 33, "H": 2, "T": 3, "B": 2},
    "seed1": {"seed": 1, "T": 9},
    "seed2": {"seed": 2, "bidirectional": True},
}  # fmt: skip
PROJECTIONS = {
    "projection": {"proj_size": 3},
    "projection-stacked-bidirectional": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
    "projection-everything": {**OPTIONS["everything"], "proj_size": 3},
    "projection-no-bias": {"proj_size": 1, "bias": False},
    "projection-recompute": {"proj_size": 3, "save": "recompute", "T": 10, "bidirectional": True, "lengths": "random"},
    "projection-zoneout": {"proj_size": 3, "zoneout": 0.3, "training": True, "recurrent_dropout": 0.2},
    "state-h": {"state": "h"},
    "norm-projection": {"layer_norm": True, "proj_size": 3, "zoneout": 0.2, "recurrent_dropout": 0.2, "training": True},
    "norm-projection-recompute": {
        "layer_norm": True,
        "proj_size": 2,
        "save": "recompute",
        "num_layers": 2,
        "bidirectional": True,
        "B": 4,
        "lengths": "random",
        "reset": "random",
    },
}
DENSE = {  # on CUDA alone of the compiled backends, and on DENSE_CELLS
    "dense": {},
    "dense-no-bias-mask": {"bias": False, "recurrent": "mask", "num_layers": 2, "seed": 4},
    "dense-ragged": {"lengths": "random", "reset": "random", "bidirectional": True, "B": 5},
    "dense-everything": OPTIONS["everything"],
    "dense-zoneout-training": OPTIONS["zoneout-training"],
    "dense-projection-everything": PROJECTIONS["projection-everything"],
    "dense-diagonal-regularised": OPTIONS["diagonal-regularised"],
    "dense-recompute-everything": OPTIONS["recompute-everything"],
    "dense-norm-everything": OPTIONS["norm-everything"],
    "dense-norm-projection": PROJECTIONS["norm-projection"],
    "dense-norm-diagonal": OPTIONS["norm-diagonal"],
    "dense-norm-recompute": {**OPTIONS["norm-recompute"], "bidirectional": True},
    **{f"dense-{name}": {**option, "seed": 5} for name, option in OPTIONS.items() if name.startswith("loss-")},
    "dense-state-h": {"state": "h", "reset": "first"},
    "dense-ones": OPTIONS["ones"],
    "dense-B1-H33": {"B": 1, "H": 33, "reset": "random"},
    "dense-H1": {"H": 1, "lengths": "random"},
    "dense-norm-H67": OPTIONS["norm-H67"],
}


def option_cases(backend: str, dtype: str) -> Iterator[tuple[str, Case]]:
    """Every option on every cell, with the name of the option."""
    for cell in CELLS:
        for name, option in {**OPTIONS, **(PROJECTIONS if CELLS[cell].cell_state else {})}.items():
            if CELLS[cell].cell_state or option.get("losses") != ("cells",):
                yield name, Case(cell, backend, dtype, **option)


def cuda_cases(dtype: str) -> Iterator[tuple[str, Case]]:
    """As option_cases, for the CUDA backend, and its dense peepholes."""
    yield from option_cases("cuda", dtype)
    for cell in DENSE_CELLS:
        for name, option in DENSE.items():
            yield name, Case(cell, "cuda", dtype, dense=True, **option)


# Cells whose kernels are compiled everyday; a pair of them, forward and backward, takes 10 to 20 s.
EVERYDAY = {  # of (normalised, dtype); of the others all
    (True, "float32"): ("rnn_tanh", "lstm", "lstm_coupled_peephole", "gru", "gru_reset_before", "mgu"),
    (True, "float64"): ("lstm",),
    (False, "float64"): ("rnn_tanh", "rnn_relu", "lstm", "lstm_coupled_peephole", "gru", "gru_reset_before", "mgu"),
}
OTHER_GPU_DTYPES = ("float64", "float16", "bfloat16")
OFTEN_ON_CUDA = ("rnn_tanh", "lstm", "lstm_peephole", "gru", "gru_reset_before", "leaky_lstm")  # cells, in 16 bits too


def often_on_cuda(cell: str, dtype: str) -> bool:
    """Whether kernels of a cell and dtype are built everyday; the others take minutes of a core."""
    return dtype in DTYPES or cell in OFTEN_ON_CUDA


def takes_long(case: Case) -> bool:
    """Whether a case is left to the nightly run, for the time that it takes.

    Kernels of the CPU that are not in EVERYDAY; half of the reference's and of the GPU's cases in float32, and of the
    GPU's other dtypes all but one a case: chosen by a hash, so that every option and every cell that is often built has
    each of them.
    """
    turn = zlib.crc32(str(replace(case, dtype="float32")).encode())
    if case.backend == "reference" or (case.backend == "cuda" and case.dtype == "float32"):
        return turn % 2 == 1
    if case.backend == "cuda":
        return not often_on_cuda(case.cell, case.dtype) or case.dtype != OTHER_GPU_DTYPES[turn % len(OTHER_GPU_DTYPES)]
    return case.backend == "cpu" and rarely_compiled(vars(case))


def rarely_compiled(options: Mapping[str, Any]) -> bool:
    """Whether these options ask for a kernel of the CPU that is not compiled everyday."""
    kind = bool(options.get("layer_norm")), options.get("dtype", "float32")
    return options.get("cell", "lstm") not in EVERYDAY.get(kind, tuple(CELLS))


@dataclass(frozen=True)
class Problem:
    """The numbers of a case, laid out as the layer takes them, in the case's dtype."""

    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    reset: np.ndarray | None
    d_output: np.ndarray
    d_state: Any
    d_cells: list[np.ndarray] | None

    def astype(self, dtype: str) -> "Problem":
        """The very same numbers in another dtype."""

        def cast(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(map(cast, value))
            return value if value is None else value.astype(dtype)

        return replace(
            self, x=cast(self.x), state=cast(self.state), d_output=cast(self.d_output), d_state=cast(self.d_state),
            d_cells=cast(self.d_cells),
        )  # fmt: skip


def make_layer(case: Case, dtype: str | None = None, **options: Any) -> Any:
    """A layer with the case's options; in another dtype it has the very same parameters."""
    if case.proj_size:
        options["proj_size"] = case.proj_size
    if case.zoneout:
        options["zoneout"] = (0.0, case.zoneout) if case.proj_size else case.zoneout
    if case.recurrent == "mask":
        options["recurrent"] = np.random.default_rng(case.H).random((case.H, case.H)) < 0.6
    else:
        options["recurrent"] = case.recurrent
    if case.dense:
        options["peephole"] = "dense"
    layer = LAYERS[case.cell](
        case.I, case.H, case.num_layers, bias=case.bias, batch_first=case.batch_first, dropout=case.dropout,
        bidirectional=case.bidirectional, recurrent_dropout=case.recurrent_dropout, save=case.save,
        layer_norm=case.layer_norm,
        dtype=dtype or case.dtype, seed=case.seed, **options,
    )  # fmt: skip
    if case.layer_norm:  # gains of one and biases of zero would hide a gain that is left out
        rng = np.random.default_rng(case.seed + 17)
        gains = {name: to_host(value) for name, value in layer.params.items() if name.startswith("norm")}
        layer.update({n: (v + 0.5 * rng.standard_normal(v.shape)).astype(layer.dtype) for n, v in gains.items()})
    if layer.dtype != case.dtype:
        layer.update({name: value.astype(case.dtype).astype(layer.dtype) for name, value in layer.params.items()})
    return layer


def draw(case: Case) -> Problem:
    """Random numbers for a case; every gradient from outside is drawn, whether the case uses it or not."""
    assert case.B == 1 or not case.unbatched, "unbatched input has no batch"
    rng = np.random.default_rng([case.seed, case.T, case.B, case.I, case.H])
    directions = 1 + case.bidirectional
    middle = () if case.unbatched else (case.B,)

    def normal(*shape: int) -> np.ndarray:
        value = rng.standard_normal(shape).astype(case.dtype)
        return with_gaps(value) if case.strided else value

    def over_time(width: int) -> np.ndarray:
        return normal(case.B, case.T, width) if case.batch_first and middle else normal(case.T, *middle, width)

    def states() -> tuple[np.ndarray, ...]:
        widths = (case.output_size, case.H) if case.cell_state else (case.output_size,)
        return tuple(normal(case.num_layers * directions, *middle, width) for width in widths)

    x, d_output, state, d_state = over_time(case.I), over_time(directions * case.output_size), states(), states()
    d_cells = [over_time(directions * case.H) for _ in range(case.num_layers)] if case.cell_state else None
    given = {"given": state, "h": (state[0], None), "none": None}[case.state]
    return Problem(
        x, given if case.cell_state or given is None else given[0], _lengths(case, rng), _reset(case, rng),
        d_output, d_state if case.cell_state else d_state[0], d_cells,
    )  # fmt: skip


def with_gaps(value: np.ndarray) -> np.ndarray:
    """The same array as a view that skips every other element, NaN, of a larger one."""
    gaps = np.full([2 * n for n in value.shape], np.nan, value.dtype)
    view = gaps[tuple(slice(1, None, 2) for _ in value.shape)]
    view[...] = value
    return view


def _lengths(case: Case, rng: np.random.Generator) -> np.ndarray | None:
    if case.lengths == "none":
        return None
    if case.lengths != "random":
        return np.full(case.B, case.T if case.lengths == "full" else 0)
    lengths = rng.integers(1, case.T + 1, case.B) if case.T else np.zeros(case.B, int)
    if case.B > 1:
        lengths[rng.integers(case.B)] = 0
    return lengths


def _reset(case: Case, rng: np.random.Generator) -> np.ndarray | None:
    if case.reset == "none":
        return None
    reset = rng.random((case.T, case.B)) < 0.4 if case.reset == "random" else np.full((case.T, case.B), True)
    if case.reset == "first":
        reset[1:] = False
    return reset[:, 0] if case.unbatched else np.ascontiguousarray(reset.T) if case.batch_first else reset


def evaluate(layer: Any, case: Case, problem: Problem, backend: str | None = None) -> dict[str, np.ndarray]:
    """Every output and every gradient of a case by name, outputs first; gradients begin with "d "."""
    with fastrnn.use_backend(backend or case.backend):
        layer.calls = CALL
        result = layer.forward(
            problem.x, problem.state, lengths=problem.lengths, reset=problem.reset, training=case.is_training
        )
        y, state, backward = result
        grads = backward(*upstream(case, problem))
        cells = {f"cells_l{k}": c for k, c in enumerate(result.cells)} if case.cell_state else {}
    return (
        {"y": y} | by_name(case, state) | cells | {"d x": grads.x}
        | {f"d {name}": value for name, value in by_name(case, grads.state, "_0").items()}
        | {f"d {name}": value for name, value in grads.params.items()}
    )  # fmt: skip


def by_name(case: Case, state: Any, suffix: str = "_n") -> dict[str, np.ndarray]:
    """A state as h_n, or as h_n and c_n."""
    return {f"h{suffix}": state[0], f"c{suffix}": state[1]} if case.cell_state else {f"h{suffix}": state}


def upstream(case: Case, problem: Problem) -> tuple[Any, Any, Any]:
    """The gradients that arrive from outside, None for those that the case leaves out."""
    return (
        problem.d_output if "y" in case.losses else None,
        problem.d_state if "state" in case.losses else None,
        problem.d_cells if "cells" in case.losses else None,
    )


def expected(case: Case, problem: Problem) -> dict[str, np.ndarray]:
    """The reference's results in float64, on the very same numbers."""
    return evaluate(make_layer(case, "float64"), case, problem.astype("float64"), "reference")


def assert_results(case: Case, problem: Problem, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Assert every array of `want` by name, dtype and value, and that `got` has no other."""
    assert list(got) == list(want)
    steps, sensitivity = case.T * case.num_layers, None
    for name, value in want.items():
        assert got[name].dtype == case.dtype, f"{name}: {got[name].dtype}"
        allowed = tolerance.rounding(case.dtype, steps, case.width)
        if tolerance.error(got[name], value) > allowed:
            sensitivity = sensitivity or input_rounding(case, problem)
            allowed = max(allowed, tolerance.CANCELLATION * sensitivity[name])
        tolerance.assert_close(name, got[name], value, allowed)


def input_rounding(case: Case, problem: Problem) -> dict[str, float]:
    """The error that one rounding of every input makes, by name: what no implementation can be asked to beat.

    It is far larger than eps where terms cancel, as they do now and then in arrays of one or two elements.

    LayerNorm is blind to the scale and the mean of a row, so gradients along them cancel inside whatever the inputs
    are: there the reference computes in the case's own dtype as well. It does so on several roundings of the inputs,
    since one may err by little by luck: d x of one LSTM of one input erred by 8e-6 of itself on the numbers drawn and
    by 5e-5 (median; the CPU's kernels too) on numbers one rounding away. What it loses in a dtype that NumPy lacks is
    taken from float32: it grows with eps.
    """
    rng, worst = np.random.default_rng(0), dict[str, float]()
    exact = expected(case, problem)
    own = case.dtype if case.dtype in DTYPES else "float32"

    def run(dtype: str, eps: float) -> dict[str, np.ndarray]:
        def rounded(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(map(rounded, value))
            return None if value is None else value * (1 + eps * rng.choice([-0.5, 0.5], value.shape))

        layer, other = make_layer(case, dtype), problem.astype("float64")
        layer.update({name: rounded(value).astype(dtype) for name, value in make_layer(case, "float64").params.items()})
        names = ("x", "state", "d_output", "d_state", "d_cells")
        other = replace(other, **{name: rounded(getattr(other, name)) for name in names})
        return evaluate(layer, case, other.astype(dtype), "reference")

    runs = [("float64", case.dtype, 1.0)]
    if case.layer_norm:
        runs.append((own, own, tolerance.EPS[case.dtype] / tolerance.EPS[own]))
    for computed, rounded_to, factor in 4 * runs:
        for name, value in run(computed, tolerance.EPS[rounded_to]).items():
            worst[name] = max(worst.get(name, 0.0), factor * tolerance.error(value, exact[name]))
    return worst


class NaNEmpty:
    """NumPy, but for `empty`, which fills with NaN: what is read before it is written, or never written, shows."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = float) -> np.ndarray:
        array = np.empty(shape, dtype)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    def empty_like(self, array: np.ndarray) -> np.ndarray:
        return self.empty(array.shape, array.dtype)


@contextmanager
def nan_scratch() -> Iterator[None]:
    """Fill every array that the layers or the compiled backend allocate with NaN."""
    from fastrnn import sequence
    from fastrnn.cpu import backward, forward, layout, products, shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "array_module", lambda array: NaNEmpty())
        for module in (forward, backward, layout, products, shared):
            patch.setattr(module, "empty", NaNEmpty().empty)
            patch.setattr(module, "np", NaNEmpty())
        yield


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Use this many threads whatever the size of the work, and whatever they have lately gained."""
    from fastrnn import cpu, threads
    from fastrnn.cpu import forward, layout, products

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_number", number)
        patch.setattr(layout, "PART_BYTES", 1)
        patch.setattr(layout, "SHARED_BYTES", 0)
        patch.setattr(forward, "timed", lambda *_: None)
        for module in (layout, products):
            patch.setattr(module, "THREAD_FLOPS", 1.0)
        patch.setattr(cpu, "THREAD_WORDS", 4)
        yield


@contextmanager
def without_reference() -> Iterator[None]:
    """Make every function of the reference and every NumPy equation of the cells raise: nobody may lean on them."""

    from fastrnn import reference

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a compiled backend called the reference")

    with pytest.MonkeyPatch.context() as patch:
        for name in FUNCTIONS:
            patch.setattr(reference, name, refuse)
        kept = {name: (cell.forward, cell.backward, cell.gated, cell.readout) for name, cell in CELLS.items()}
        for cell in CELLS.values():  # frozen, so not by MonkeyPatch
            object.__setattr__(cell, "forward", refuse)
            object.__setattr__(cell, "backward", refuse)
            if cell.gated is not None:
                object.__setattr__(cell, "gated", type(cell.gated)(refuse, refuse))
            if cell.readout is not None:
                object.__setattr__(cell, "readout", type(cell.readout)(refuse, refuse, refuse))
        try:
            yield
        finally:
            for name, (forward, backward, gated, readout) in kept.items():
                object.__setattr__(CELLS[name], "forward", forward)
                object.__setattr__(CELLS[name], "backward", backward)
                object.__setattr__(CELLS[name], "gated", gated)
                object.__setattr__(CELLS[name], "readout", readout)
