"""torch.nn's recurrent modules, by name, argument, parameter and initial value, on fastrnn's kernels.

They are torch's own base classes, with another `forward`. LSTM, GRU and RNN do not derive from torch.nn.LSTM and so on:
torch.compile breaks the graph at every instance of those.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from fastrnn import backends, validation
from fastrnn.arrays import describe
from fastrnn.errors import TensorError
from fastrnn.torch import function, operator, packed
from fastrnn.torch.function import Call, Dropout, Recurrence
from fastrnn.torch.snapshot import Snapshot
from fastrnn.torch.spec import DTYPES, KINDS, Spec, layer

# Options of the core's layers that the modules refuse by name. The loop of steps.py must learn one before it goes.
NOT_YET = (
    "peephole", "coupled", "recurrent", "layer_norm", "zoneout", "recurrent_dropout", "precision", "save",
)  # fmt: skip


class _Module:
    """What modules over sequences and modules of one step share: the weights, and the path of a call."""

    _snapshot: Snapshot | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle keep: packed weights are made anew."""
        layers = isinstance(self, torch.nn.RNNBase)  # which leaves something out itself
        state: Any = super().__getstate__() if layers else self.__dict__.copy()
        state.pop("_snapshot", None)
        return state  # type: ignore[no-any-return]

    def _weights(self, names: Sequence[str]) -> list[Tensor]:
        held = self._parameters  # type: ignore[attr-defined]
        # Parametrizations and torch.func.functional_call make them attributes instead.
        return [held[name] if held.get(name) is not None else getattr(self, name) for name in names]

    def _run(
        self, spec: Spec, rate: float, x: Tensor, h: Tensor | None, c: Tensor | None, names: Sequence[str],
        lengths: Any = None, reset: Any = None,
    ) -> list[Tensor]:  # fmt: skip
        """One call: outputs as function.forward's, in the dtype that torch's own would have."""
        weights = self._weights(names)
        if torch.is_autocast_enabled("cpu") and weights[0].dtype == torch.float32:
            wanted = _autocast_dtype(spec, x, h)
            x, h, c = (None if t is None else t.float() for t in (x, h, c))
            found = self._path(spec, rate, x, h, c, weights, lengths, reset)
            return [t.to(wanted) for t in found]
        return self._path(spec, rate, x, h, c, weights, lengths, reset)

    def _path(
        self, spec: Spec, rate: float, x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor],
        lengths: Any, reset: Any,
    ) -> list[Tensor]:  # fmt: skip
        weight = weights[0]
        for t in (x, h, c):  # the usual case without a further call
            if (t is not None or t is x) and not (isinstance(t, Tensor) and t.is_cpu and t.dtype == weight.dtype):
                _check(x, h, c, weight)
        if weight.dtype not in DTYPES or not weight.is_cpu:
            _check(x, h, c, weight)
        compiling = torch.compiler.is_compiling()
        if compiling and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
            raise NotImplementedError(operator.NO_TRANSFORM)
        if compiling or _is_traced(x):
            lengths, reset = (None if t is None else torch.as_tensor(t) for t in (lengths, reset))
            return operator.run(spec, x, h, c, weights, lengths, reset, rate)
        eager = self._eager
        if torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
            eager = torch.compiler.disable(eager)  # after a graph break: tracing the functions below would be wrong
        return eager(spec, rate, x, h, c, weights, lengths, reset)

    def _eager(
        self, spec: Spec, rate: float, x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor],
        lengths: Any, reset: Any,
    ) -> list[Tensor]:  # fmt: skip
        core, backend = layer(spec, DTYPES[x.dtype]), backends.current()
        dropout = Dropout(rate, int(torch.randint(2**63 - 1, (1,), device="cpu"))) if rate else None
        reset = reset.detach().cpu().numpy().copy() if isinstance(reset, Tensor) else reset
        if function.steps_needed((x, h, c, *weights)):
            call = Call(spec, core, None, dropout, lengths, reset)
            return function.by_steps(call, function.sizes(call, x, h, c), x, h, c, weights)
        snapshot = self._snapshot
        if snapshot is None or not snapshot.holds(core, backend, weights):
            self._snapshot = snapshot = Snapshot(core, backend, weights)
        call = Call(spec, core, snapshot, dropout, lengths, reset)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, c, *weights)):
            return list(Recurrence.apply(call, [], x, h, c, *weights))
        return function.forward(call, x, h, c, save=False)[0]


def _is_traced(x: Tensor) -> bool:
    """Whether something other than the kernels is to see the call: a mode, a tracer, a tensor without numbers."""
    plain = type(x) is Tensor or isinstance(x, torch.nn.Parameter)
    return bool(torch._C._len_torch_dispatch_stack() or x.is_meta or not plain or torch._C._is_tracing())


def _check(x: Tensor, h: Any, c: Any, weight: Tensor) -> None:
    """What torch checks before shapes; shapes are the core's affair."""
    for name, given in (("x", x), ("h_0", h), ("c_0", c)):
        if given is None and name != "x":
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {describe(given)}")
        if given.dtype != weight.dtype:
            raise TensorError(f"{name}: expected {weight.dtype}, as the parameters, got {given.dtype}")
        if given.device != weight.device:
            raise TensorError(f"{name}: expected a tensor on {weight.device}, as the parameters, got {given.device}")
    if weight.dtype not in DTYPES:
        raise TensorError(f"parameters: expected torch.float32 or torch.float64 on the CPU, got {weight.dtype}")
    if weight.device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"device: expected the CPU, the only one in this version, got {weight.device}")


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

    return_cells = False

    def __init__(self, mode: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
        self.return_cells = validation.boolean("return_cells", options.pop("return_cells", False))
        if self.return_cells and mode != "LSTM":
            raise ValueError(f"return_cells: expected False, {type(self).__name__} has no cell state, got True")
        _refuse(mode, options)
        super().__init__("RNN_TANH" if mode.startswith("RNN") else mode[:4].rstrip("_"), **arguments)
        self.mode = mode

    def flatten_parameters(self) -> None:
        """Do nothing: the weights may lie anywhere."""

    def forward(self, input: Any, hx: Any = None, lengths: Any = None, reset: Any = None) -> Any:  # noqa: A002
        """Run the layers; see the class."""
        padded = None
        if isinstance(input, PackedSequence):
            for name, value in (("lengths", lengths), ("reset", reset)):
                if value is not None:
                    raise ValueError(f"{name}: expected None with a PackedSequence, got {describe(value)}")
            padded = packed.pad(input)
            input, lengths = padded.x, padded.lengths  # noqa: A001
        h, c = _pair(hx) if self.mode == "LSTM" else (hx, None)
        if padded is not None:
            h, c = (None if s is None else padded.sort(s) for s in (h, c))
        spec = Spec(
            self.mode, self.input_size, self.hidden_size, self.num_layers, self.bias,
            self.batch_first and padded is None, self.bidirectional, self.proj_size, False, self.return_cells,
        )  # fmt: skip
        rate = self.dropout if self.training and self.num_layers > 1 else 0.0
        y, *rest = self._run(spec, rate, input, h, c, self._flat_weights_names, lengths, reset)
        states, cells = rest[: 1 + spec.cell_state], rest[1 + spec.cell_state :]
        if padded is not None:
            y, states, cells = padded.pack(y), [padded.unsort(s) for s in states], [padded.pack(t) for t in cells]
        state = tuple(states) if spec.cell_state else states[0]
        return (y, state, tuple(cells)) if self.return_cells else (y, state)


def _refuse(mode: str, options: dict[str, Any]) -> None:
    """Refuse by name every option of the core's layers that these modules do not have yet, and every unknown one."""
    if "proj_size" in options:
        raise ValueError(f"proj_size: expected none, only LSTM has a projection, got {options['proj_size']!r}")
    known = inspect.signature(KINDS[mode][0]).parameters
    for name, value in options.items():
        if name not in NOT_YET or name not in known:
            raise TypeError(f"{name}: expected one of torch's arguments or fastrnn's options, got an unknown keyword")
        validation.only(name, value, known[name].default)


class RNN(_Layers):
    """torch.nn.RNN on fastrnn's kernels; `nonlinearity` may be "identity" too.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype: as
            torch.nn.RNN. options: fastrnn.RNN's that torch lacks, by keyword; this version refuses each by name.
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
        options: fastrnn.LSTM's that torch lacks, by keyword; this version refuses each by name.
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
        options: fastrnn.GRU's that torch lacks, by keyword; reset_after=False puts the reset before the product, this
            version refuses the others by name.
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


class _Cell(_Module):
    """Modules of one step, on the base class of torch's own."""

    def _step(self, mode: str, x: Any, h: Any, c: Any = None) -> list[Tensor]:
        bias = self.bias_ih is not None  # type: ignore[attr-defined]
        spec = Spec(mode, self.input_size, self.hidden_size, 1, bias, False, False, 0, True, False)  # type: ignore[attr-defined]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if bias else ("weight_ih", "weight_hh")
        return self._run(spec, 0.0, x, h, c, names)


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on fastrnn's kernels; the same arguments."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002
        """One step: [B, I] or [I] and h to the next h."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"nonlinearity: expected 'tanh' or 'relu', got {self.nonlinearity!r}")
        return self._step(f"RNN_{self.nonlinearity.upper()}", input, hx)[0]


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on fastrnn's kernels; the same arguments."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:  # noqa: A002
        """One step: [B, I] or [I] and (h, c) to the next (h, c)."""
        h, c = self._step("LSTM", input, *_pair(hx))
        return h, c


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on fastrnn's kernels; the same arguments."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # noqa: A002
        """One step: [B, I] or [I] and h to the next h."""
        return self._step("GRU", input, hx)[0]
