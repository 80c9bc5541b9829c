"""Every check of an argument: one place, one form of message, before anything is computed or written."""

from __future__ import annotations

import importlib.util
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np

from fastrnn import memory
from fastrnn.arrays import Array, array_module, describe, index, module_of, to_device, to_host
from fastrnn.cells import Cell
from fastrnn.errors import ShapeError
from fastrnn.sequence import Inputs

DTYPES = {"cpu": ("float32", "float64"), "cuda": ("float32", "float64", "float16", "bfloat16")}
GPU_DTYPES = tuple(name for name in DTYPES["cuda"] if name not in DTYPES["cpu"])
INITS = ("uniform", "xavier", "orthogonal", "identity")
# Options of the public interface that no loop of this version has; each is refused by name unless it has this value.
NOT_YET: dict[str, Any] = {"precision": "highest"}


def constructor(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a layer's constructor; return them as plain Python values, which JSON can hold.

    Raises:
        TypeError: a dtype that no CPU loop has, or a value of the wrong type.
        ValueError: a value out of range, or an option that this version does not have.
        ImportError, RuntimeError: a CUDA device was asked for and CuPy or a GPU is missing.
    """
    plain = dict(arguments)
    for name in ("input_size", "hidden_size", "num_layers"):
        plain[name] = integer(name, plain[name], 1)
    if "nonlinearity" in arguments:
        choice("nonlinearity", arguments["nonlinearity"], ("tanh", "relu", "identity"))
    if "peephole" in plain:
        plain["peephole"] = peephole(plain["peephole"])
    for name in ("bias", "batch_first", "bidirectional", "reset_after", "coupled", "layer_norm"):
        if name in plain:
            plain[name] = boolean(name, plain[name])
    for name in ("dropout", "recurrent_dropout"):
        plain[name] = probability(name, plain[name])
    if "proj_size" in plain:
        plain["proj_size"] = integer("proj_size", plain["proj_size"], 0)
        if plain["proj_size"] >= plain["hidden_size"]:
            raise ValueError(
                f"proj_size: expected less than hidden_size = {plain['hidden_size']}, got {plain['proj_size']}"
            )
    plain["zoneout"] = zoneout(plain["zoneout"], "proj_size" in plain, plain.get("proj_size", 0))
    plain["recurrent"] = recurrent(plain["recurrent"], plain["hidden_size"], plain.get("proj_size", 0))
    plain["device"] = device(plain["device"])
    plain["dtype"] = dtype_name(plain["dtype"], where=plain["device"])
    choice("init", plain["init"], INITS)
    choice("save", plain["save"], ("gates", "recompute"))
    for name, supported in NOT_YET.items():
        if name in plain:
            plain[name] = only(name, plain[name], supported)
    if plain.get("forget_bias") is not None:
        plain["forget_bias"] = real("forget_bias", plain["forget_bias"])
        if not plain["bias"]:
            raise ValueError(f"forget_bias: expected None with bias=False, got {plain['forget_bias']}")
    if plain["seed"] is not None:
        plain["seed"] = integer("seed", plain["seed"], 0, 2**64 - 1)
    return plain


def peephole(value: object) -> bool | str:
    """Return False, True or "dense"."""
    if isinstance(value, str):
        if value != "dense":
            raise ValueError(f"peephole: expected False, True or 'dense', got {value!r}")
        return value
    return boolean("peephole", value)


def layer_norm(value: bool, cell: Cell) -> None:
    """Refuse the option for a cell whose h cannot be read out of a normalised c."""
    if value and cell.cell_state and cell.readout is None:
        raise ValueError(f"layer_norm: expected False for {cell.name!r}, a cell with c and without a readout, got True")


def projection(proj_size: int, cell: Cell) -> None:
    """Refuse the option for a cell that reads h_prev unit by unit, which a projection makes P wide."""
    if proj_size and (cell.uses_h_prev or cell.gated is not None):
        why = "a gated product" if cell.gated is not None else "uses_h_prev=True"
        raise ValueError(f"proj_size: expected 0 for {cell.name!r}, a cell that reads h_prev ({why}), got {proj_size}")


def zoneout(value: object, cell_state: bool, proj_size: int) -> float | tuple[float, float]:
    """Return the rate of h and c, or, where there is a cell state, a pair of rates."""
    rates: float | tuple[float, float]
    if not isinstance(value, (tuple, list)):
        rates = first = probability("zoneout", value)
    elif cell_state and len(value) == 2:
        rates = first, _ = probability("zoneout", value[0]), probability("zoneout", value[1])
    else:
        raise TypeError(f"zoneout: expected a number{' or a pair' if cell_state else ''}, got {describe(value)}")
    if proj_size and first:
        raise ValueError(f"zoneout: expected (0, z_c) with proj_size, whose h has another width, got {value!r}")
    return rates


def recurrent(value: object, hidden_size: int, proj_size: int) -> str | Array:
    """Return "full", "diagonal", or a mask of zeros and ones as bool [H, H]."""
    if isinstance(value, str):
        choice("recurrent", value, ("full", "diagonal"))
        if value == "full":
            return value
        result: str | Array = value
    else:
        try:
            mask = np.asarray(value)
        except ValueError as error:
            raise TypeError(f"recurrent: expected a name or a mask, got {describe(value)}") from error
        shape = (hidden_size, hidden_size)
        if mask.dtype.kind not in "biuf":
            raise TypeError(f"recurrent: expected 'full', 'diagonal' or a mask of 0 and 1, got {describe(value)}")
        if mask.shape != shape:
            raise ShapeError(f"recurrent: expected a mask [{hidden_size}, {hidden_size}], got {describe(mask)}")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("recurrent: expected a mask of 0 and 1, got other values too")
        result = mask.astype(bool)
    if proj_size:
        raise ValueError(f"recurrent: expected 'full' with proj_size, got {describe(value)}")
    return result


def only(name: str, value: object, supported: object) -> object:
    """Return the one value that this version has for an option; refuse every other by name."""
    if isinstance(value, np.ndarray) or value != supported:
        raise ValueError(f"{name}: expected {supported!r}, the only value in this version, got {describe(value)}")
    return supported


def dtype_name(value: object, name: str = "dtype", where: str = "cpu") -> str:
    """Return the name of a layer's dtype, given by name, as a type or as np.dtype; `where` is the layer's device."""
    kind, allowed = where.partition(":")[0], DTYPES[where.partition(":")[0]]
    if value == "bfloat16" and "bfloat16" in allowed:
        if importlib.util.find_spec("ml_dtypes") is None:
            raise ImportError("dtype: 'bfloat16' needs ml_dtypes: pip install fastrnn[cuda12] or fastrnn[cuda13]")
        import ml_dtypes  # noqa: F401  # gives NumPy this dtype

    try:
        native = None if value is None else np.dtype(value)  # type: ignore[call-overload]
    except TypeError:
        native = None
    if native is None or not native.isnative or native.name not in allowed:
        place = "the CPU" if kind == "cpu" else where
        raise TypeError(f"{name}: expected one of {', '.join(allowed)} on {place}, got {value!r}")
    return str(native.name)


def boolean(name: str, value: object) -> bool:
    """Return `value` as a bool; numbers are refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {describe(value)}")
    return bool(value)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]; bool is refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name}: expected at least {low}{upper}, got {number}")
    return number


def real(name: str, value: object, low: float = -math.inf) -> float:
    """Return `value` as a finite float of at least `low`; bool is refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")
    return float(value)


def probability(name: str, value: object) -> float:
    """Return `value` as a float in [0, 1)."""
    if not 0 <= real(name, value) < 1:
        raise ValueError(f"{name}: expected 0 <= p < 1, got {value}")
    return float(value)  # type: ignore[arg-type]


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Check that `value` is one of the names in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def device(name: object) -> str:
    """Check a device's name and that the device is there; return the name with its number.

    Raises:
        ImportError: CuPy is missing. RuntimeError: CuPy finds no such GPU.
    """
    if name == "cpu":
        return "cpu"
    if not isinstance(name, str) or not re.fullmatch(r"cuda(:\d+)?", name):
        raise ValueError(f"device: expected 'cpu' or 'cuda:N', got {name!r}")
    if importlib.util.find_spec("cupy") is None:
        raise ImportError(f"device: {name!r} needs CuPy: pip install fastrnn[cuda12] or fastrnn[cuda13]")
    number, reason = name.partition(":")[2], ""
    if not (number.isdecimal() or name == "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda:N', got {name!r}")
    try:
        count = module_of(name).cuda.runtime.getDeviceCount()
    except Exception as error:  # an absent driver shows as any of several classes, some of them CuPy's own
        count, reason = 0, f" ({error})"
    if index(name) >= count:
        raise RuntimeError(f"device: {name!r} needs a GPU of that number, and CuPy finds {count or 'none'}{reason}")
    return f"cuda:{index(name)}"


def array(name: str, value: object, dtype: object, shape: Sequence[int | str], where: str = "cpu") -> Array:
    """Check that `value` is an array of this dtype and shape on the device `where`; a letter stands for any size."""
    if isinstance(value, np.memmap):
        value = np.asarray(value)
    ours = type(value) is np.ndarray if where == "cpu" else _is_on(value, where)
    if ours and value.dtype == dtype and _has_shape(value, shape):  # type: ignore[attr-defined,arg-type]
        return cast(Array, value)
    expected = f"{name}: expected [{', '.join(map(str, shape))}] {np.dtype(dtype).name}"  # type: ignore[call-overload]
    if not ours:  # on the CPU too: a masked array's mask or a matrix's algebra would be lost without a word
        library, kind = array_module(value), "a NumPy array" if where == "cpu" else f"a CuPy array on {where}"
        came = f"{type(value).__name__} " if isinstance(value, np.ndarray) else ""
        if library not in (None, np):
            came = f"a CuPy array on a layer of {'the CPU' if where == 'cpu' else 'another GPU'}: "
        raise TypeError(f"{expected} as {kind}, got {came}{describe(value)}")
    wrong = TypeError if _has_shape(cast(Array, value), shape) else ShapeError
    raise wrong(f"{expected}, got {describe(value)}")


def _is_on(value: object, where: str) -> bool:
    """Whether `value` is an array of this GPU."""
    library = array_module(value)
    return library not in (None, np) and value.device.id == index(where)  # type: ignore[attr-defined]


def beside(
    name: str, value: object, shape: tuple[int | None, ...], like: Array, lead: str = "", host: bool = False
) -> ModuleType:
    """Check that `value` has `like`'s module and dtype and ends in `shape`, and return its module.

    Args:
        name: what the error calls it.
        value: the array to check.
        shape: its last axes; None stands for any length.
        like: an array of the dtype and device that are expected.
        lead: how the error shows axes before `shape` ("..., "); without it there may be none.
        host: whether a NumPy array will do as well, whatever `like` is.
    """
    xp = array_module(like)
    assert xp is not None, "a layer's own array"
    wanted = f"{name}: expected [{lead}{', '.join('any' if n is None else str(n) for n in shape)}] {like.dtype}"
    if not (type(value) is type(like) or (host and type(value) is np.ndarray)):
        raise TypeError(f"{wanted} as a {xp.__name__} array, got {describe(value)}")
    value = cast(Array, value)
    if value.dtype != like.dtype:
        raise TypeError(f"{wanted}, got {describe(value)}")
    ends = value.shape[value.ndim - len(shape) :] if value.ndim >= len(shape) else ()
    fits = len(ends) == len(shape) and all(n is None or n == m for n, m in zip(shape, ends, strict=True))
    if not fits or (not lead and value.ndim != len(shape)):
        raise ShapeError(f"{wanted}, got {describe(value)}")
    return xp


def mask(name: str, value: object, shape: tuple[int, ...], like: Array) -> None:
    """Check that `value` is an array of bools of this shape, of NumPy's or of `like`'s module."""
    wanted = f"{name}: expected [{', '.join(map(str, shape))}] bool"
    if type(value) not in (type(like), np.ndarray) or cast(Array, value).dtype != bool:
        raise TypeError(f"{wanted} as a {type(like).__module__} array, got {describe(value)}")
    if cast(Array, value).shape != shape:
        raise ShapeError(f"{wanted}, got {describe(value)}")


def _has_shape(value: Array, shape: Sequence[int | str]) -> bool:
    if value.ndim != len(shape):
        return False
    for want, have in zip(shape, value.shape, strict=True):  # noqa: SIM110 - on the way of every call, and faster so
        if want != have and not isinstance(want, str):
            return False
    return True


def call(
    *, x: object, state: object, lengths: object, reset: object, input_size: int, states: int, output_size: int,
    hidden_size: int, cell_state: bool, dtype: object, batch_first: bool, where: str = "cpu",
) -> tuple[Inputs, bool]:  # fmt: skip
    """Check the arguments of a call and return them time first and batched, and whether they were batched."""
    usable_stream(where)
    batched = getattr(x, "ndim", 3) != 2
    letters = ("B", "T") if batch_first else ("T", "B")
    x = array("x", x, dtype, (*letters, input_size) if batched else ("T", input_size), where)
    x = x[:, None] if not batched else x.transpose(1, 0, 2) if batch_first else x
    steps, batch = x.shape[:2]
    h0, c0 = pair("state", "_0", state, states, batch, output_size, hidden_size, cell_state, dtype, batched, where)
    xp = module_of(where)
    h0 = xp.zeros((states, batch, output_size), x.dtype) if h0 is None else h0
    if cell_state and c0 is None:
        c0 = xp.zeros((states, batch, hidden_size), x.dtype)
    if lengths is not None and not batched:
        raise ValueError(f"lengths: expected None with unbatched x [T, {input_size}], got {describe(lengths)}")
    checked = None if lengths is None else to_device(steps_of(lengths, steps, batch), where)
    return Inputs(x, h0, c0, checked, _reset(reset, steps, batch, batched, batch_first, where)), batched


PER_THREAD = 2  # the handle that stands for another stream in each thread


def usable_stream(where: str) -> None:
    """Refuse to be part of a CUDA graph of the caller's, and a stream that is another one in each thread.

    A pass allocates, and what it gives back CuPy's pool would give to others, over whose data each launch of the graph
    would then write (cupy#8318). And what one thread has left on its default stream another could not wait for.
    """
    if where != "cpu":
        stream = module_of(where).cuda.get_current_stream(index(where))
        if stream.ptr == PER_THREAD:
            raise RuntimeError(
                "stream: expected CuPy's null stream or a cupy.cuda.Stream, got the per-thread default stream, for "
                "which other threads cannot wait"
            )
        if stream.is_capturing():
            raise RuntimeError(
                "stream: expected a current stream that captures no CUDA graph, got one that does: a pass allocates "
                "memory; of fastrnn, the steps of `layer.stream(batch)` may be captured"
            )


def pair(
    what: str, suffix: str, state: object, states: int, batch: int, output_size: int, hidden_size: int,
    cell_state: bool, dtype: object, batched: bool, where: str = "cpu",
) -> tuple[Array | None, Array | None]:  # fmt: skip
    """Check a state, or the gradient of one; return (h, c) as [L*D, B, P] and [L*D, B, H], None where not given.

    c is None for cells without one. `what` names the argument, `suffix` goes with h and c in messages.
    """
    if state is None:
        return None, None
    if cell_state and not (isinstance(state, (tuple, list)) and len(state) == 2):
        raise TypeError(f"{what}: expected a pair (h{suffix}, c{suffix}), got {describe(state)}")
    parts: Sequence[object] = state if cell_state else (state, None)  # type: ignore[assignment]
    middle = (batch,) if batched else ()
    result: list[Array | None] = []
    for name, part, width in (("h", parts[0], output_size), ("c", parts[1], hidden_size)):
        checked = (
            None if part is None else array(f"{what} {name}{suffix}", part, dtype, (states, *middle, width), where)
        )
        result.append(checked if checked is None or batched else checked[:, None])
    return result[0], result[1]


def steps_of(lengths: object, steps: int, batch: int) -> Array:
    """Return the lengths as int64 [B] on the host."""
    try:
        values = np.asarray(lengths if array_module(lengths) is None else to_host(lengths))
    except (TypeError, ValueError) as error:
        raise TypeError(f"lengths: expected [{batch}] integers, got {describe(lengths)}") from error
    if values.shape != (batch,):
        raise ShapeError(f"lengths: expected [{batch}] integers, got {describe(values)}")
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(f"lengths: expected [{batch}] integers, got {describe(values)}")
    wrong = np.flatnonzero((values < 0) | (values > steps))
    if wrong.size:
        raise ValueError(f"lengths: expected 0 <= length <= {steps}, got {values[wrong[0]]} at index {wrong[0]}")
    return values.astype(np.int64)


def _reset(reset: object, steps: int, batch: int, batched: bool, batch_first: bool, where: str) -> Array | None:
    """Reset as [T, B]."""
    if reset is None:
        return None
    if not batched:
        return array("reset", reset, np.bool_, (steps,), where)[:, None]
    checked = array("reset", reset, np.bool_, (batch, steps) if batch_first else (steps, batch), where)
    return checked.T if batch_first else checked


def gradients(
    *, d_output: object, d_state: object, d_cells: object, inputs: Inputs, num_layers: int, output_width: int,
    cells_width: int, cell_state: bool, batched: bool, batch_first: bool, where: str = "cpu",
) -> tuple[Array | None, Array | None, Array | None, list[Array | None] | None]:  # fmt: skip
    """Check the arguments of a backward call; return dy, dh_n, dc_n and dcells time first and batched."""
    usable_stream(where)
    steps, batch = inputs.x.shape[:2]

    def over_time(name: str, value: object, width: int) -> Array | None:
        if value is None:
            return None
        if not batched:
            return array(name, value, inputs.x.dtype, (steps, width), where)[:, None]
        shape = (batch, steps, width) if batch_first else (steps, batch, width)
        checked = array(name, value, inputs.x.dtype, shape, where)
        return checked.transpose(1, 0, 2) if batch_first else checked

    hidden = 0 if inputs.c0 is None else inputs.c0.shape[2]
    states, _, output = inputs.h0.shape
    dh_n, dc_n = pair(
        "d_state", "_n", d_state, states, batch, output, hidden, cell_state, inputs.x.dtype, batched, where
    )
    dcells = None
    if d_cells is not None:
        if not cell_state:
            raise ValueError(f"d_cells: expected None, this cell has no cell state, got {describe(d_cells)}")
        if not isinstance(d_cells, (tuple, list)) or len(d_cells) != num_layers:
            raise TypeError(
                f"d_cells: expected a sequence of {num_layers} arrays, one a layer, got {describe(d_cells)}"
            )
        dcells = [over_time(f"d_cells[{k}]", value, cells_width) for k, value in enumerate(d_cells)]
    return over_time("d_output", d_output, output_width), dh_n, dc_n, dcells


def parameters(
    given: object, expected: Mapping[str, Array], *, partial: bool, what: str, where: str = "cpu"
) -> dict[str, Array]:
    """Check parameters by name, all before any is used; return fresh contiguous copies.

    partial: whether names may be missing. `what` names the argument in messages. where: the layer's device.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{what}: expected a mapping of parameter names to arrays, got {describe(given)}")
    unknown = [str(name) for name in given if name not in expected]
    missing = [] if partial else [name for name in expected if name not in given]
    if unknown or missing:
        raise ValueError(
            f"{what}: expected the names {', '.join(expected)}, got "
            + "; ".join(
                f"{kind} {', '.join(names)}" for kind, names in (("unknown", unknown), ("no", missing)) if names
            )
        )
    return {name: _parameter(name, from_foreign(name, value), expected[name], where) for name, value in given.items()}


def _parameter(name: str, value: object, expected: Array, where: str) -> Array:
    """A fresh contiguous copy on the device `where`, which a NumPy array may be brought to."""
    place = "cpu" if isinstance(value, np.ndarray) else where
    given = array(name, value, expected.dtype, expected.shape, place)
    if place != "cpu":
        return given.copy(order="C")
    copy = memory.empty(given.shape, given.dtype)
    copy[...] = given
    return to_device(copy, where)


def from_foreign(name: str, value: object) -> object:
    """A CPU tensor of another library (torch) as a NumPy array; anything else as it is."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__") or array_module(value) is not None:
        return value
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: on a GPU, bfloat16, or with requires_grad
        raise TypeError(f"{name}: expected a NumPy array or a CPU tensor, got {describe(value)} ({error})") from error
