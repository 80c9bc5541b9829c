"""The layers RNN, LSTM and GRU: parameters, initialisation, calls. The maths lives in the cells and the loops."""

from __future__ import annotations

import inspect
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import numpy as np

from fastrnn import backends, checkpoint, initialisation, sequence, validation
from fastrnn.arrays import Array, Order, on, to_device, to_host, zeroed
from fastrnn.cells import CELLS
from fastrnn.recurrence import Weights
from fastrnn.stream import Stream

S = TypeVar("S")
MASK = "recurrent"  # name of the mask's tensor in a checkpoint
PUBLIC = {
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size",
    "nonlinearity", "reset_after", "peephole", "coupled", "recurrent", "layer_norm", "zoneout",
    "recurrent_dropout", "dtype", "device", "seed",
}  # fmt: skip


@dataclass(frozen=True)  # not a NamedTuple, which cannot be generic before Python 3.11
class Gradients(Generic[S]):
    """Gradients of the loss with respect to the input, the initial state and the parameters, by name."""

    x: Array
    state: S
    params: dict[str, Array]


class Forward(tuple[Any, ...], Generic[S]):
    """What `forward` returns: the triple (y, state, backward), which also has `.cells`."""

    y = property(lambda self: cast(Array, self[0]), doc="Output, laid out as the layer's.")
    state = property(lambda self: cast(S, self[1]), doc="State after the last step.")
    backward = property(lambda self: cast("Callable[..., Gradients[S]]", self[2]), doc="The backward pass.")
    _cells: Callable[[], list[Array]]

    @classmethod
    def _make(cls, y: Array, state: Any, backward: Callable[..., Any], cells: Callable[[], list[Array]]) -> Forward[S]:
        result = cls((y, state, backward))
        result._cells = cells
        return result

    @property
    def cells(self) -> list[Array]:
        """c after every step, per layer, laid out as y; copied out of the saved values when asked for."""
        return self._cells()


class Recurrent(Generic[S]):
    """Parameters by name, packed copies of them per backend, and the calls."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int = 0
    recurrent: str | Array
    layer_norm: bool
    zoneout: float | tuple[float, float]
    recurrent_dropout: float
    save_mode: str
    dtype: str
    device: str
    seed: int
    _written: Order  # the parameters

    @staticmethod
    def _cell(arguments: Mapping[str, Any]) -> str:
        """Name of the cell in the registry."""
        raise NotImplementedError

    def __init__(self, arguments: dict[str, Any]) -> None:
        arguments = validation.constructor(arguments)
        if arguments["seed"] is None:
            arguments["seed"] = secrets.randbits(64)
        if arguments["dropout"] and arguments["num_layers"] == 1:
            warnings.warn("dropout acts between layers: it has no effect with num_layers=1", UserWarning, stacklevel=3)
        self._configure(arguments)
        self.calls = 0  # training calls so far: the dropout masks' counter; part of a checkpoint
        self._adopt(dict(self._initial_parameters(arguments)))

    @classmethod
    def _restored(cls, arguments: dict[str, Any], params: Mapping[str, Array], calls: object) -> Any:
        """A layer with these parameters; nothing of the claimed sizes is made before the parameters fit them."""
        layer = cls.__new__(cls)
        arguments = validation.constructor(arguments)
        validation.integer("seed", arguments["seed"], 0)
        layer._configure(arguments)
        layer.calls = validation.integer("calls", calls, 0)
        shapes = dict(layer._shapes())
        if params.keys() != shapes.keys():
            raise ValueError(f"parameters {', '.join(params)}")
        layer._adopt(
            {name: validation.array(name, params[name], layer.dtype, shape).copy() for name, shape in shapes.items()}
        )
        return layer

    @classmethod
    def _without_parameters(cls, **arguments: Any) -> Any:
        """A layer that checks calls and knows names and shapes, for an adapter whose library owns the parameters."""
        bound = inspect.signature(cls).bind(**arguments)
        bound.apply_defaults()
        layer = cls.__new__(cls)
        layer._configure(validation.constructor(bound.arguments))
        return layer

    def _configure(self, arguments: dict[str, Any]) -> None:
        """Set what follows from the constructor's arguments alone."""
        self._arguments = arguments
        for name in PUBLIC & arguments.keys():
            setattr(self, name, arguments[name])
        self.save_mode = arguments["save"]  # `save` is the method
        self._network = sequence.Network(
            CELLS[self._cell(arguments)], self.hidden_size, self.proj_size, self.num_layers, 1 + self.bidirectional,
            self.dropout, self.recurrent_dropout,
            self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, self.zoneout), self.seed,
            self.save_mode == "recompute",
        )  # fmt: skip
        validation.layer_norm(self.layer_norm, self._network.cell)
        validation.projection(self.proj_size, self._network.cell)
        self._values: dict[str, Array] = {}
        self._params: dict[str, Array] = {}
        self._place_mask()

    @property
    def _dense(self) -> int:
        """Gates that see c through a matrix."""
        return len(self._network.cell.peepholes) if self._arguments.get("peephole") == "dense" else 0

    @property
    def _is_diagonal(self) -> bool:
        return isinstance(self.recurrent, str) and self.recurrent == "diagonal"

    def _masked(self, name: str, value: Array) -> Array:
        """A recurrent weight, or its gradient, with zeros where the mask has them."""
        if self._missing is None or not name.startswith("weight_hh"):
            return value
        return zeroed(value, self._missing)

    def _place_mask(self) -> None:
        """Keep where U has no entries, on the device of the parameters."""
        gates = len(self._network.cell.gates)
        mask = None if isinstance(self.recurrent, str) else np.tile(~self.recurrent, (gates, 1))
        self._missing = None if mask is None else to_device(mask, self.device)

    def _adopt(self, values: dict[str, Array]) -> None:
        """Take these arrays, which nobody else may hold, as the parameters of their names."""
        with on(self.device):
            values = {name: self._masked(name, to_device(value, self.device)) for name, value in values.items()}
            others = values.keys() < self._values.keys()  # which stay, and may be another stream's
            if others:
                self._written.reached()
            self._written = Order(self.device, self._written if others else None)
        self._values |= values  # as kernels want them: Numba would compile anew for a read-only array
        if self.device == "cpu":
            read_only = {name: np.asarray(memoryview(cast(Any, value)).toreadonly()) for name, value in values.items()}
            self._params |= read_only
        self._packed: dict[str, tuple[list[Any], Order]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """How to copy and pickle: the class of a registered cell is found by its name there, not in a module."""
        kinds = [name for name, kind in LAYERS.items() if kind is type(self)]
        return _blank, (kinds[0] if kinds else type(self),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle keep: packed weights are made anew."""
        params = {name: to_host(value) for name, value in self.state_dict().items()}
        return {"arguments": self._arguments, "params": params, "calls": self.calls}

    def __setstate__(self, state: dict[str, Any]) -> None:
        validation.device(state["arguments"]["device"])  # the one that it was pickled on may not be here
        self._configure(state["arguments"])
        self.calls = state["calls"]
        self._adopt({name: value.copy() for name, value in state["params"].items()})

    def _initial_parameters(self, arguments: dict[str, Any]) -> list[tuple[str, Array]]:
        rng, result = np.random.default_rng(self.seed), []
        for name, shape in self._shapes():
            value = initialisation.initialise(name, shape, self.hidden_size, arguments["init"], rng)
            if arguments.get("forget_bias") is not None and name.startswith("bias"):
                forget = self._network.cell.gates.index("f") * self.hidden_size
                value[forget : forget + self.hidden_size] = (
                    arguments["forget_bias"] if name.startswith("bias_ih") else 0
                )
            result.append((name, value.astype(self.dtype)))
        return result

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        network = self._network
        return initialisation.shapes(
            self.input_size, self.hidden_size, self.proj_size, len(network.cell.gates), self.num_layers,
            network.num_directions, self.bias, network.cell.unit_parameters, self._dense, self._is_diagonal,
            self.layer_norm, self.layer_norm and network.cell.cell_state,
        )  # fmt: skip

    @property
    def params(self) -> Mapping[str, Array]:
        """The parameters by torch's names: a read-only mapping that follows `update`, of arrays that do not.

        An array of a GPU cannot be made read-only, so there each access hands out a copy.
        """
        return MappingProxyType(self._params) if self.device == "cpu" else _Copies(self)

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters by copies of these arrays, all or none.

        Raises:
            ValueError: a name that the layer does not have. ShapeError, TypeError: wrong shape, dtype or array type.
        """
        with on(self.device):
            self._adopt(validation.parameters(params, self._values, partial=True, what="params", where=self.device))

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters, by torch's names and in torch's layouts."""
        with on(self.device), self._written.shared():
            return {name: value.copy() for name, value in self._values.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace all parameters, also from a torch state_dict on the CPU, all or none.

        Raises:
            ValueError: missing or unknown names. ShapeError, TypeError: wrong shape, dtype or array type.
        """
        with on(self.device):
            new = validation.parameters(state_dict, self._values, partial=False, what="state_dict", where=self.device)
        self.update(new)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to a safetensors file, atomically; `fastrnn.load` reads it back."""
        name = next(name for name, kind in LAYERS.items() if isinstance(self, kind))
        with on(self.device), self._written.shared():
            arguments, tensors = {**self._arguments, "device": "cpu"}, {n: to_host(v) for n, v in self._values.items()}
        if not isinstance(self.recurrent, str):
            arguments["recurrent"], tensors[MASK] = "mask", self.recurrent
        checkpoint.write(path, tensors, {"class": name, "arguments": arguments, "calls": self.calls})

    def to(self, device: str) -> Recurrent[S]:
        """Move the parameters to `device`, "cpu" or "cuda:N", where calls run from then on; return the layer.

        Raises:
            ImportError: CuPy is missing. RuntimeError: there is no such GPU. TypeError: the device lacks the dtype.
        """
        device = validation.device(device)
        validation.dtype_name(self.dtype, where=device)
        if device != self.device:
            with on(self.device), self._written.shared():
                moved = {name: to_device(value, device) for name, value in self._values.items()}
            self._arguments, self.device, self._params = {**self._arguments, "device": device}, device, {}
            with on(device):
                self._place_mask()
                self._adopt(moved)
        return self

    def __call__(
        self, x: Array, state: S | None = None, lengths: Any = None, reset: Array | None = None
    ) -> tuple[Array, S]:
        """Run the layer deterministically and keep nothing for a backward pass.

        Args:
            x: [T, B, I], with batch_first [B, T, I], or unbatched [T, I], in the layer's dtype.
            state: initial state; zeros if None. h [L*D, B, P] (unbatched [L*D, P]); for LSTM the pair (h, c).
            lengths: [B] integers, 0 <= length <= T, in any order; y is zero past the end and the state is held. On the
                host also for a layer on a GPU: they are checked there, and an array of the GPU has to be waited for.
            reset: bool, laid out as x without its last axis; True zeroes the state before that step.

        Returns:
            y laid out as x with D*P in place of I, and the state after the last step.

        Raises:
            ShapeError: a wrong shape. TypeError: a wrong dtype or array type. ValueError: lengths out of range.
        """
        name = backends.current(self.device)
        with on(self.device):
            inputs, batched = self._inputs(x, state, lengths, reset)
            packed, weights = self._packed_for(name)
            output = sequence.forward(
                self._network, backends.module(name), packed, inputs, save=False, call=None,
                batch_first=self.batch_first and batched,
            )  # fmt: skip
            weights.left()
        return self._laid_out(output.y, batched), self._state(output.h_n, output.c_n, batched)

    def forward(
        self, x: Array, state: S | None = None, lengths: Any = None, reset: Array | None = None, training: bool = False
    ) -> Forward[S]:
        """Run the layer and return its own backward pass too.

        Arguments as for a plain call. training: switches dropout on.

        Returns:
            (y, state, backward), which also has `.cells`.
            backward(d_output=None, d_state=None, d_cells=None, *, free=False) -> grads, with grads.x, grads.state and
            grads.params; each argument has the shape of what it is the gradient of, None stands for zero. It is pure:
            calling it again gives the same, with the parameters of this forward call. free=True gives the saved
            values back afterwards.
        """
        name, device = backends.current(self.device), self.device
        with on(device):
            inputs, batched = self._inputs(x, state, lengths, reset)
            backend, (packed, weights) = backends.module(name), self._packed_for(name)
            call = None
            if training:
                call, self.calls = self.calls, self.calls + 1
            time_last = self.batch_first and batched
            output = sequence.forward(
                self._network, backend, packed, inputs, save=True, call=call, batch_first=time_last
            )
            weights.left()
            order = Order(device)  # the backward pass may be called on another of the GPU's streams
        passes: list[sequence.Pass] = output.passes

        def saved() -> list[sequence.Pass]:
            if not passes:
                raise RuntimeError("backward: expected saved values, got none: free=True gave them back")
            return passes

        def backward(
            d_output: Array | None = None, d_state: Any = None, d_cells: Sequence[Array | None] | None = None, *,
            free: bool = False,
        ) -> Gradients[S]:  # fmt: skip
            given = validation.gradients(
                d_output=d_output, d_state=d_state, d_cells=d_cells, inputs=inputs, num_layers=self.num_layers,
                output_width=output.y.shape[2], cells_width=self._network.num_directions * self.hidden_size,
                cell_state=self._network.cell.cell_state, batched=batched, batch_first=self.batch_first,
                where=device,
            )  # fmt: skip
            with on(device), order.kept():
                grads = sequence.backward(
                    self._network, backend, packed, inputs, saved(), *given, batch_first=time_last
                )
                weights.left()
                by_name = self._by_name(grads.weights)
            if free:
                passes.clear()
            return Gradients(self._laid_out(grads.x, batched), self._state(grads.h0, grads.c0, batched), by_name)

        def cells() -> list[Array]:
            if not self._network.cell.cell_state:
                raise AttributeError(f"cells: {type(self).__name__} has no cell state")
            with on(device), order.kept():
                return [self._laid_out(c, batched) for c in sequence.cells(self._network, backend, packed, saved())]

        return Forward._make(
            self._laid_out(output.y, batched), self._state(output.h_n, output.c_n, batched), backward, cells
        )

    def stream(self, batch: int = 1) -> Stream:
        """Open a stateful stream that takes one step at a time, on a snapshot of the parameters.

        Args:
            batch: number of sequences side by side.

        Raises:
            ValueError: the layer is bidirectional, or batch is not positive.
        """
        if self.bidirectional:
            raise ValueError("bidirectional: expected False for a stream (what is to come is unknown), got True")
        name = backends.current(self.device)
        with on(self.device):
            packed, weights = self._packed_for(name)
        return Stream(
            self._network, backends.module(name), packed, weights, self.input_size, batch, self.dtype, self.device
        )

    def _inputs(self, x: object, state: object, lengths: object, reset: object) -> tuple[sequence.Inputs, bool]:
        network = self._network
        return validation.call(
            x=x, state=state, lengths=lengths, reset=reset, input_size=self.input_size,
            states=self.num_layers * network.num_directions, output_size=network.output_size,
            hidden_size=self.hidden_size, cell_state=network.cell.cell_state, dtype=self.dtype,
            batch_first=self.batch_first, where=self.device,
        )  # fmt: skip

    def _names(self) -> list[tuple[str | None, ...]]:
        """Names of the parameters, one entry a layer and direction."""
        cell = self._network.cell
        return [
            initialisation.names(
                layer, direction, self.bias, self.proj_size > 0, cell.unit_parameters > 0, self._dense > 0,
                self.layer_norm, self.layer_norm and cell.cell_state,
            )
            for layer in range(self.num_layers)
            for direction in range(self._network.num_directions)
        ]  # fmt: skip

    def _packed_for(self, backend: str) -> tuple[list[Any], Order]:
        """The packed weights, which the current stream may read, and what they are to be `left` to afterwards."""
        cache = self._packed
        if backend not in cache:
            values, pack = self._values, backends.module(backend).pack
            weights = [[None if name is None else values[name] for name in names] for names in self._names()]
            with self._written.shared():
                packed = [pack(self._network.cell, Weights(*w)) for w in weights]  # type: ignore[arg-type]
                cache[backend] = packed, Order(self.device, self._written)
        packed, order = cache[backend]
        order.reached()
        return packed, order

    def _by_name(self, weights: list[Weights]) -> dict[str, Array]:
        return {
            name: self._masked(name, cast(Array, value))
            for names, values in zip(self._names(), weights, strict=True)
            for name, value in zip(names, values, strict=True)
            if name is not None
        }

    def _laid_out(self, a: Array, batched: bool) -> Array:
        if not batched:
            return a[:, 0]
        return a.transpose(1, 0, 2) if self.batch_first else a

    def _state(self, h: Array, c: Array | None, batched: bool) -> S:
        parts = [part if batched else part[:, 0] for part in (h, c) if part is not None]
        return cast(S, tuple(parts) if len(parts) == 2 else parts[0])

    def __repr__(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False, "dropout": 0.0,
                    "bidirectional": False, "proj_size": 0, "reset_after": True, "peephole": False,
                    "coupled": False, "recurrent": "full", "layer_norm": False, "zoneout": 0.0,
                    "recurrent_dropout": 0.0, "save": "gates", "dtype": "float32", "device": "cpu"}  # fmt: skip
        shown += [
            f"{name}={'mask' if isinstance(value, np.ndarray) else repr(value)}"
            for name, default in defaults.items()
            if isinstance(value := self._arguments.get(name, default), np.ndarray) or value != default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _blank(kind: Any) -> Any:
    """A layer without anything, of a class or of a name in LAYERS."""
    kind = LAYERS[kind] if isinstance(kind, str) else kind
    return kind.__new__(kind)


class _Copies(Mapping[str, Array]):
    """The parameters of a layer on a GPU: a mapping that hands out copies."""

    def __init__(self, layer: Recurrent[Any]) -> None:
        self._layer = layer

    def __getitem__(self, name: str) -> Array:
        with on(self._layer.device), self._layer._written.shared():
            return self._layer._values[name].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layer._values)

    def __len__(self) -> int:
        return len(self._layer._values)


def constructor_arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, from its `locals()`."""
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


class LSTM(Recurrent[tuple[Array, Array]]):
    """Long short-term memory over whole sequences; gates i f g o, parameters and arguments as torch.nn.LSTM.

        i, f, o = sigma(W x_t + b_ih + U h_{t-1} + b_hh)    g = tanh(the same)
        c_t = f * c_{t-1} + i * g                           h_t = o * tanh(c_t)     (then W_hr h_t with proj_size)
        peephole: i and f see p * c_{t-1}, o sees p * c_t   coupled: i = 1 - f
        layer_norm: LN(W x_t) and LN(U h_{t-1}) in place of the products, h_t = o * tanh(LN(c_t))

    Args:
        input_size: I. hidden_size: H. num_layers: L. bias: whether b_ih and b_hh exist.
        batch_first: x and y as [B, T, ...]; states stay [L*D, B, ...].
        dropout: rate between layers, in [0, 1), in training calls only. bidirectional: D = 2.
        proj_size: P; 0 means no projection, h is then H wide.
        peephole: whether i, f and o see the cell state, each unit its own, through weight_p_l0 [3, H], rows i f o.
        "dense": all units, c_{t-1} V^T and c_t V^T in place of p * c_{t-1} and p * c_t, with V = weight_ch_l0 [3H, H],
        rows i f o; on a GPU, and under `use_backend("reference")`. coupled: i = 1 - f; the gates are f g o, and of the
        peepholes there are f o.
        forget_bias: v sets the forget part of bias_ih to v and of bias_hh to 0.
        init: "uniform" (torch's), "xavier", "orthogonal", "identity". dtype: "float32" or "float64"; on a
            GPU also "float16", "bfloat16". device: "cpu" or "cuda:N", which needs CuPy and takes its arrays.
        seed: 64-bit seed of the initial values and of the dropout masks; drawn at random if None.
        recurrent: "full"; "diagonal", weight_hh_l0 is then [4H] and each unit sees only itself; or a mask [H, H] of 0
        and 1 on U in every gate. Not with proj_size.
        zoneout: the rate at which h and c hold their old values, one number or (z_h, z_c): by random masks in training
        calls, by its expectation in others; z_h must be 0 with proj_size.
        recurrent_dropout: rate at which the recurrent product, in training calls, misses elements of h_{t-1}, the same
        ones throughout a sequence.
        save: "gates", or "recompute": keep states at the ends of segments of sqrt(T) steps alone and run each segment
        again in the backward pass; less memory, one forward pass more.
        layer_norm: LN(a) = gain * (a - mean(a)) / sqrt(var(a) + 1e-5), over the row of all gates and units (of c, the
        units), with gains norm_ih_l0 and norm_hh_l0 [4H], norm_c_l0 [H] and, for c alone, the bias norm_c_bias_l0 [H],
        which does not go by `bias`; gains start at 1, the bias at 0. Peepholes and the cell state itself see c, not
        LN(c). Keeps 8H numbers a step more for the backward pass, unless save is "recompute".
        precision: fixed at this value in this version, others are refused by name.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000; projection: Sak, Senior, Beaufays 2014;
    zoneout: Krueger et al. 2017; recurrent dropout: Gal, Ghahramani 2016; layer normalisation: Ba, Kiros, Hinton 2016.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, *, peephole: bool | str = False,
        coupled: bool = False, recurrent: Any = "full", layer_norm: bool = False, zoneout: Any = 0.0,
        recurrent_dropout: float = 0.0, forget_bias: float | None = None, init: str = "uniform",
        dtype: Any = "float32", device: str = "cpu", precision: str = "highest", save: str = "gates",
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(constructor_arguments(locals()))

    @staticmethod
    def _cell(arguments: Mapping[str, Any]) -> str:
        return f"lstm{'_coupled' * arguments['coupled']}{'_peephole' * (arguments['peephole'] is True)}"


class GRU(Recurrent[Array]):
    """Gated recurrent unit over whole sequences; gates r z n, parameters and arguments as torch.nn.GRU.

        r, z = sigma(W x_t + b_ih + U h_{t-1} + b_hh)       h_t = (1 - z) * n + z * h_{t-1}
        reset_after=True:   n = tanh(W x_t + b_ih + r * (U h_{t-1} + b_hh))
        reset_after=False:  n = tanh(W x_t + b_ih + U (r * h_{t-1}) + b_hh)
        layer_norm: LN(W x_t) and LN(U h_{t-1}) in place of the products, of all three gates together; the biases follow

    Args:
        reset_after: which form; True is cuDNN's and torch's. The others as for LSTM.
        layer_norm: as for LSTM, with norm_ih_l0 and norm_hh_l0 [3H]. With reset_after=False there are two recurrent
        products, of which the second needs r and so the first: each is normalised over its own width, r and z over 2H,
        n over H.

    Source: Cho et al. 2014 (reset before the product); cuDNN and torch (reset after).
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, *, reset_after: bool = True, recurrent: Any = "full",
        layer_norm: bool = False, zoneout: float = 0.0, recurrent_dropout: float = 0.0, init: str = "uniform",
        dtype: Any = "float32", device: str = "cpu", precision: str = "highest", save: str = "gates",
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(constructor_arguments(locals()))

    @staticmethod
    def _cell(arguments: Mapping[str, Any]) -> str:
        return "gru" if arguments["reset_after"] else "gru_reset_before"


class RNN(Recurrent[Array]):
    """Vanilla (Elman) RNN over whole sequences; parameters and arguments as torch.nn.RNN.

        h_t = phi(W x_t + b_ih + U h_{t-1} + b_hh)          phi: tanh, relu or identity

    Args:
        nonlinearity: "tanh", "relu" or "identity". The others as for LSTM; layer_norm: LN(W x_t) and LN(U h_{t-1}),
        with gains norm_ih_l0 and norm_hh_l0 [H].

    Source: Elman 1990; relu with init="identity": Le, Jaitly, Hinton 2015.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *, recurrent: Any = "full",
        layer_norm: bool = False, zoneout: float = 0.0, recurrent_dropout: float = 0.0, init: str = "uniform",
        dtype: Any = "float32", device: str = "cpu", precision: str = "highest", save: str = "gates",
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(constructor_arguments(locals()))

    @staticmethod
    def _cell(arguments: Mapping[str, Any]) -> str:
        return f"rnn_{arguments['nonlinearity']}"


LAYERS: dict[str, type[Recurrent[Any]]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


def load(path: str | os.PathLike[str], device: str = "cpu") -> Recurrent[Any]:
    """Read a layer that its `save` wrote, onto a device.

    Args:
        path: the file.
        device: "cpu" or "cuda:N", wherever the layer was when it was saved; float16 and bfloat16 need a GPU.

    Raises:
        OSError: the file cannot be read. ValueError: it is damaged, foreign, or not a layer's; or no device.
        TypeError: the device lacks the layer's dtype. ImportError, RuntimeError: CuPy or the GPU is missing.
    """
    device, description = validation.device(device), checkpoint.describe(path)
    with _layers_own(path):
        kind, arguments = LAYERS[description["class"]], {**description["arguments"], "device": device}
        if arguments.keys() != inspect.signature(kind).parameters.keys():
            raise ValueError(f"arguments {', '.join(arguments)}")
        elsewhere = device == "cpu" and arguments["dtype"] in validation.GPU_DTYPES
        if not elsewhere:  # before the tensors, for which NumPy must know the dtype
            validation.dtype_name(arguments["dtype"], where=device)
    if elsewhere:
        raise TypeError(
            f"device: expected a GPU for {path}, a layer of {arguments['dtype']}, which the CPU lacks, got 'cpu'; "
            'pass device="cuda:0"'
        )
    tensors = checkpoint.tensors(path)
    with _layers_own(path):
        if arguments["recurrent"] == "mask":
            arguments["recurrent"] = tensors.pop(MASK)
        return cast("Recurrent[Any]", kind._restored(arguments, tensors, description["calls"]))


@contextmanager
def _layers_own(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of whatever fails in the block that the file is not a layer's."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of one of {', '.join(LAYERS)}, got another ({error})"
        ) from error
