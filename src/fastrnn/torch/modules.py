"""torch.nn's recurrent modules, by name, argument, parameter and initial value, on fastrnn's kernels.

They are torch's own base classes, with another `forward`. LSTM, GRU and RNN do not derive from torch.nn.LSTM and so on:
torch.compile breaks the graph at every instance of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._C import _is_tracing, _len_torch_dispatch_stack
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from fastrnn import validation
from fastrnn.arrays import describe
from fastrnn.torch import function, gpu, operator, options, packed
from fastrnn.torch.function import Call, Masks
from fastrnn.torch.options import Options
from fastrnn.torch.snapshot import Snapshot
from fastrnn.torch.spec import DTYPES, Spec, device_of, on_gpu

OF_CELL = ("input_size", "hidden_size", "training", *options.OF_CALLS)  # attributes that a call depends on
MADE = ("_prepared", "_snapshot")  # what calls make, of one object alone


class Prepared(NamedTuple):
    """What follows from a module's attributes alone, for as long as they stay the same."""

    attributes: Any  # None inside torch.compile and torch.export
    spec: Spec
    rate: float | None  # of dropout between the layers; None where nothing is random
    names: Sequence[str]  # of the weights
    weights: Any  # them, from a module's parameters


class _Module(Options):
    """What modules over sequences and modules of one step share: the weights, and the path of a call."""

    _read: ClassVar[Any]  # from a module, all attributes that a call depends on, to be compared with the last call's
    _prepared: Prepared | None = None
    _snapshot: Snapshot | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle keep: what calls made is made anew."""
        layers = isinstance(self, torch.nn.RNNBase)  # which leaves something out itself
        state: Any = super().__getstate__() if layers else self.__dict__.copy()
        for name in MADE:
            state.pop(name, None)
        return state  # type: ignore[no-any-return]

    def _prepare(self, attributes: Any) -> Prepared:
        """Read the attributes."""
        raise NotImplementedError

    def _settings(self) -> Prepared:
        """What the attributes say; read again where one of them has changed."""
        if is_compiling():  # which guards each attribute by itself
            return self._prepare(None)
        attributes, known = self._read(self), self._prepared
        if known is None or known.attributes != attributes:
            self._prepared = known = self._prepare(attributes)
        return known

    def _weights(self, known: Prepared) -> Sequence[Tensor]:
        module: Any = self
        try:
            weights: Sequence[Tensor] = known.weights(module._parameters)
        except KeyError:  # parametrizations and torch.func.functional_call make them attributes instead
            weights = [getattr(module, name) for name in known.names]
        if self.recurrent == "mask":
            pairs = zip(known.names, weights, strict=True)
            return [self._masked(weight) if name.startswith("weight_hh") else weight for name, weight in pairs]
        return weights

    def _rates(self) -> tuple[float, float]:
        """Zoneout of h and of c."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, self.zoneout)

    def _run(
        self, known: Prepared, x: Tensor, h: Tensor | None, c: Tensor | None, lengths: Any = None, reset: Any = None
    ) -> list[Tensor]:
        """One call: outputs as function.forward's, in the dtype that torch's own would have."""
        weights = self._weights(known)
        if (
            not is_compiling()
            and (last := self._snapshot) is not None
            and last.usual
            and last.known is known
            and last.alike(*weights)
            and get_eval_frame_callback() is None
            and forward_ad._current_level < 0
            and _is_plain(x, last.dtype)
            and (h is None or _is_plain(h, last.dtype))
            and (c is None or _is_plain(c, last.dtype))
        ):  # as the last call, for which nothing before `_on_cpu` had anything to do
            return self._on_cpu(known, x, h, c, weights, lengths, reset, last)
        first = weights[0]
        device, dtype, wanted = device_of(first), first.dtype, None
        if not on_gpu(device):
            if torch.is_autocast_enabled("cpu") and dtype == torch.float32:
                wanted = _autocast_dtype(known.spec, x, h)
                x, h, c = (None if t is None else t.float() for t in (x, h, c))
        elif torch.is_autocast_enabled("cuda") and dtype != torch.float64:
            dtype = torch.get_autocast_dtype("cuda")
            x, h, c, *weights = (_autocast(t, dtype) for t in (x, h, c, *weights))
            first = weights[0]
        function.check(x, h, c, first)
        compiling = is_compiling()  # not as `known` was made: a graph may have been broken since
        if compiling and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
            raise NotImplementedError(operator.NO_TRANSFORM)
        if compiling or _is_traced(x):
            lengths, reset = (None if t is None else torch.as_tensor(t) for t in (lengths, reset))
            found = operator.run(known.spec, x, h, c, weights, lengths, reset, known.rate)
        elif get_eval_frame_callback() is None:
            found = self._eager(known, device, x, h, c, weights, lengths, reset)
        else:  # after a graph break: tracing the functions below would be wrong
            found = torch.compiler.disable(self._eager)(known, device, x, h, c, weights, lengths, reset)
        return found if wanted is None else [t.to(wanted) for t in found]

    def _eager(
        self, known: Prepared, device: str, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor],
        lengths: Any, reset: Any,
    ) -> list[Tensor]:  # fmt: skip
        spec = known.spec
        if device != "cpu":
            return gpu.run(gpu.call_of(spec, device, x, _masks(known), lengths, reset), x, h, c, weights)
        if function.steps_needed((x, h, c, *weights)):
            reset = function.on_host(reset) if isinstance(reset, Tensor) else reset
            call = Call.of(spec, DTYPES[x.dtype]).on(_masks(known), function.counts(lengths), reset)
            return function.by_steps(call, function.sizes(call, x, h, c), x, h, c, weights)
        last = self._snapshot
        alike = last if last is not None and last.known is known and last.alike(*weights) else None
        return self._on_cpu(known, x, h, c, weights, lengths, reset, alike)

    def _on_cpu(
        self, known: Prepared, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], lengths: Any,
        reset: Any, alike: Snapshot | None,
    ) -> list[Tensor]:  # fmt: skip
        """A checked call on the kernels. alike: the snapshot that has said so of these weights."""
        if alike is not None and alike.lie(weights):
            snapshot = alike if alike.is_true() else alike.renewed()
        else:
            last = self._snapshot
            if last is None or not last.holds(known.spec, weights):
                last = Snapshot(known.spec, weights)
            snapshot = last.seen(known, weights)
        if snapshot is not alike:
            self._snapshot = snapshot
        call = snapshot.call
        if not (known.rate is lengths is reset is None):
            reset = function.on_host(reset) if isinstance(reset, Tensor) else reset
            call = call.on(_masks(known), lengths, reset)
        if torch.is_grad_enabled() and function.has_gradient(x, h, c, *weights):
            return list(function.run_with_graph(call, [], x, h, c, *weights))
        return function.forward(call, x, h, c, save=False)[0]


def _masks(known: Prepared) -> Masks | None:
    """The random masks of one call, if it has any."""
    return None if known.rate is None else Masks(known.rate, int(torch.randint(2**63 - 1, (1,), device="cpu")))


def _is_plain(t: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is one of the CPU, of this dtype, and of no class that wants to see what is done with it."""
    return type(t) is Tensor and t.dtype is dtype and t.is_cpu


def _autocast(t: Any, dtype: torch.dtype) -> Any:
    """What autocast makes of an argument on a GPU: floating numbers but float64 in its dtype."""
    cast = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
    return t.to(dtype) if cast else t


def _is_traced(x: Tensor) -> bool:
    """Whether something other than the kernels is to see the call: a mode, a tracer, a tensor without numbers."""
    plain = type(x) is Tensor or isinstance(x, torch.nn.Parameter)
    return bool(not plain or x.is_meta or _len_torch_dispatch_stack() or _is_tracing())


def _autocast_dtype(spec: Spec, x: Tensor, h: Tensor | None) -> torch.dtype:
    """The dtype that torch's modules return under autocast on the CPU, where they run at all."""
    if x.dtype == torch.float64:
        return x.dtype
    if spec.mode.startswith("RNN"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype if h is None else torch.promote_types(x.dtype, h.dtype)


def _pair(hx: Any) -> tuple[Any, Any]:
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"hx: expected a pair (h_0, c_0), got {describe(hx)}")
    return hx[0], hx[1]


class _Layers(_Module, torch.nn.RNNBase):
    """Modules over sequences.

    forward(input, hx=None, lengths=None, reset=None) takes and returns what torch's does, and
        lengths: [B] integers, 0 <= length <= T, in any order; the output is zero past the end, the state is held.
        reset: bool, laid out as input without its last axis; True zeroes the state before that step.
        With return_cells it returns a third value: c after every step, for each layer, laid out as the output.
    """

    _read = attrgetter(
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "proj_size",
        "return_cells", "dropout", "training", *options.OF_CALLS,
    )  # fmt: skip
    return_cells = False

    def __init__(self, mode: str, arguments: dict[str, Any], extra: dict[str, Any]) -> None:
        self.return_cells = validation.boolean("return_cells", extra.pop("return_cells", False))
        if self.return_cells and mode != "LSTM":
            raise ValueError(f"return_cells: expected False, {type(self).__name__} has no cell state, got True")
        if "proj_size" in extra:
            raise ValueError(f"proj_size: expected none, only LSTM has a projection, got {extra['proj_size']!r}")
        options.known(mode, extra, options.OF_LAYERS)
        if extra:
            self._incomplete = True
        super().__init__("RNN_TANH" if mode.startswith("RNN") else mode[:4].rstrip("_"), **arguments)
        self.mode = mode
        if extra:
            of_calls = ("batch_first", "dropout", "device", "dtype")
            torchs = {name: value for name, value in arguments.items() if name not in of_calls}
            self._all_weights = self._adopt(mode, torchs, extra)
            self._flat_weights_names = [name for names in self._all_weights for name in names]
            self._init_flat_weights()
            self.reset_parameters()

    def flatten_parameters(self) -> None:
        """Do nothing: the weights may lie anywhere."""

    def forward(self, input: Any, hx: Any = None, lengths: Any = None, reset: Any = None) -> Any:  # noqa: A002
        """Run the layers; see the class."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, lengths, reset)
        known = self._settings()
        h, c = _pair(hx) if self.mode == "LSTM" else (hx, None)
        return _arranged(known.spec, self._run(known, input, h, c, lengths, reset))

    def _packed(self, sequences: PackedSequence, hx: Any, lengths: Any, reset: Any) -> Any:
        for name, value in (("lengths", lengths), ("reset", reset)):
            if value is not None:
                raise ValueError(f"{name}: expected None with a PackedSequence, got {describe(value)}")
        padded = packed.pad(sequences)
        known = self._settings()
        if known.spec.batch_first:
            known = known._replace(spec=known.spec._replace(batch_first=False))
        spec = known.spec
        h, c = _pair(hx) if self.mode == "LSTM" else (hx, None)
        h, c = (None if s is None else padded.sort(s) for s in (h, c))
        y, *rest = self._run(known, padded.x, h, c, padded.lengths)
        states, cells = rest[: 1 + spec.cell_state], rest[1 + spec.cell_state :]
        return _arranged(spec, [padded.pack(y), *map(padded.unsort, states), *map(padded.pack, cells)])

    def _prepare(self, attributes: Any) -> Prepared:
        zoneout = self._rates()
        spec = Spec(
            self.mode, self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first,
            self.bidirectional, self.proj_size, False, self.return_cells, self.peephole is True,
            self.peephole == "dense", self.coupled, self.recurrent == "diagonal", self.layer_norm, *zoneout,
            self.recurrent_dropout, self.save_mode == "recompute",
        )  # fmt: skip
        rate = self.dropout if self.num_layers > 1 else 0.0
        random = self.training and (rate or self.recurrent_dropout or zoneout != (0.0, 0.0))
        names = self._flat_weights_names
        return Prepared(attributes, spec, rate if random else None, names, itemgetter(*names))


def _arranged(spec: Spec, found: list[Any]) -> Any:
    """The outputs as a module over sequences returns them."""
    state = (found[1], found[2]) if spec.mode == "LSTM" else found[1]
    return (found[0], state, tuple(found[3:])) if spec.cells else (found[0], state)


class RNN(_Layers):
    """torch.nn.RNN on fastrnn's kernels; `nonlinearity` may be "identity" too.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype: as
            torch.nn.RNN.
        options: fastrnn.RNN's that torch lacks, by keyword, as for LSTM.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: Any = None,
        dtype: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        validation.choice("nonlinearity", nonlinearity, ("tanh", "relu", "identity"))
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            {
                "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "bias": bias,
                "batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional, "device": device,
                "dtype": dtype,
            },
            options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class LSTM(_Layers):
    """torch.nn.LSTM on fastrnn's kernels.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            torch.nn.LSTM. return_cells: also return c after every step, with its gradient.
        options: fastrnn.LSTM's that torch lacks, by keyword, with its names and meaning and the parameters that they
            bring: peephole, coupled, recurrent, layer_norm, zoneout, recurrent_dropout, save, precision; init and
            forget_bias, for the values that `reset_parameters` draws from torch's generator.

    The random masks of a training call (dropout, recurrent dropout, zoneout) follow from one number that each call
    draws from torch's generator, so torch.manual_seed repeats them; a call without such masks draws nothing.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Any = None, dtype: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            "LSTM",
            {
                "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "bias": bias,
                "batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional,
                "proj_size": proj_size, "device": device, "dtype": dtype,
            },
            options,
        )  # fmt: skip


class GRU(_Layers):
    """torch.nn.GRU on fastrnn's kernels.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.GRU.
        options: fastrnn.GRU's that torch lacks, by keyword, as for LSTM; reset_after=False puts the reset before the
            product.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, device: Any = None, dtype: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        reset_after = validation.boolean("reset_after", options.pop("reset_after", True))
        super().__init__(
            "GRU" if reset_after else "GRU_RESET_BEFORE",
            {
                "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "bias": bias,
                "batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional, "device": device,
                "dtype": dtype,
            },
            options,
        )  # fmt: skip


def _of_cell(*names: str) -> Any:
    """What reads a cell's attributes of these names, and whether it has biases."""
    read = attrgetter("_parameters", *names)

    def read_all(module: Any) -> Any:
        parameters, *found = read(module)
        return found, parameters.get("bias_ih") is None

    return staticmethod(read_all)


class _Cell(_Module):
    """Modules of one step, on the base class of torch's own."""

    _read = _of_cell(*OF_CELL)
    _mode: str  # key of KINDS
    _names: tuple[str, ...] = ()  # of the parameters, where there are more or fewer than torch's

    def _extend(self, mode: str, extra: dict[str, Any]) -> None:
        """Take the options that torch lacks."""
        options.known(mode, extra, options.OF_CELLS)
        if extra:
            module: Any = self
            torchs = {name: getattr(module, name) for name in ("input_size", "hidden_size", "bias")}
            (names,) = self._adopt(mode, torchs, extra)
            self._names = tuple(names)
            self.reset_parameters()

    def _prepare(self, attributes: Any) -> Prepared:
        module: Any = self
        bias, zoneout = module.bias_ih is not None, self._rates()
        spec = Spec(
            self._mode, module.input_size, module.hidden_size, 1, bias, False, False, 0, True, False,
            self.peephole is True, self.peephole == "dense", self.coupled, self.recurrent == "diagonal",
            self.layer_norm, *zoneout, 0.0, False,
        )  # fmt: skip
        torchs = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if bias else ("weight_ih", "weight_hh")
        rate = 0.0 if module.training and zoneout != (0.0, 0.0) else None
        names = self._names or torchs
        return Prepared(attributes, spec, rate, names, itemgetter(*names))

    def _step(self, x: Any, h: Any, c: Any = None) -> list[Tensor]:
        return self._run(self._settings(), x, h, c)


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on fastrnn's kernels; the same arguments, and options as for LSTMCell."""

    _read = _of_cell("nonlinearity", *OF_CELL)

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", device: Any = None,
        dtype: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        if options:
            self._incomplete = True
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        if options:
            validation.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
            self._extend(f"RNN_{nonlinearity.upper()}", options)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002
        """One step: [B, I] or [I] and h to the next h."""
        return self._step(input, hx)[0]

    @property
    def _mode(self) -> str:  # type: ignore[override]
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"nonlinearity: expected 'tanh' or 'relu', got {self.nonlinearity!r}")
        return f"RNN_{self.nonlinearity.upper()}"


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on fastrnn's kernels.

    Args:
        input_size, hidden_size, bias, device, dtype: as torch.nn.LSTMCell.
        options: fastrnn.LSTM's that mean something for a single step, by keyword: peephole, coupled, recurrent,
            layer_norm, zoneout, whose masks are new at each call, init and forget_bias. Their parameters have the
            layer's names without the number of the layer.
    """

    _mode = "LSTM"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        if options:
            self._incomplete = True
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._extend("LSTM", options)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:  # noqa: A002
        """One step: [B, I] or [I] and (h, c) to the next (h, c)."""
        h, c = self._step(input, *_pair(hx))
        return h, c


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on fastrnn's kernels; the same arguments, and options as for LSTMCell."""

    _mode = "GRU"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        if options:
            self._incomplete = True
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._extend("GRU", options)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002
        """One step: [B, I] or [I] and h to the next h."""
        return self._step(input, hx)[0]
