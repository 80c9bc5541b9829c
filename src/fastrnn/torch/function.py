"""One call on the kernels, and its place in torch's graph of gradients; that of a call on a GPU is in gpu.py."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import backends, sequence, threads
from fastrnn.arrays import Array, computed_in, describe
from fastrnn.errors import TensorError
from fastrnn.recurrence import Columns, Run, Weights
from fastrnn.torch import steps
from fastrnn.torch.spec import Spec, device_of, dtypes, layer, on_gpu

NOWHERE = Columns(np.empty((0, 0, 0)), 0, 0)  # where an output was written does not matter to its gradient
# The hooks by which a user moves what autograd keeps, None where there are none; before torch 2.8 nobody tells.
hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: True)


class Masks(NamedTuple):
    """The random masks of a training call: the rate of dropout between the layers, and the seed of all masks."""

    dropout: float
    seed: int


class Call(NamedTuple):
    """One call: its constants, its weights, and the arguments that have no gradient."""

    spec: Spec
    layer: Any  # the core's, without parameters
    network: sequence.Network  # with the masks of this call
    backend: Any = None
    packed: Any = None  # weights; None where the steps run as torch operations
    masks: Masks | None = None  # None where nothing is random
    lengths: Any = None  # on the host
    reset: Any = None  # NumPy's array; on a GPU a tensor there
    device: str = "cpu"
    number: int | None = None  # of the call as the core counts training calls, 0, for the seed is each call's own

    @classmethod
    def of(cls, spec: Spec, dtype: str, device: str = "cpu") -> Call:
        """A call without weights or arguments."""
        core = layer(spec, dtype, device)
        return cls(spec, core, core._network, device=device)

    def arrays(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """The tensors' memory as arrays of the device's library; on a GPU inside `bridge.current`, as the next."""
        array = numpy if self.device == "cpu" else bridge().array
        return [None if t is None else array(t) for t in tensors]

    def tensors(self, arrays: Sequence[Array | None]) -> list[Any]:
        """The arrays' memory as tensors."""
        tensor = torch.from_numpy if self.device == "cpu" else bridge().tensor
        return [None if a is None else tensor(a) for a in arrays]

    def on_host(self) -> Call:
        """The call without its device, weights and 16 bits: what the loop of torch operations takes its masks from."""
        if self.device == "cpu":
            return self
        reset = on_host(self.reset) if isinstance(self.reset, Tensor) else self.reset
        return Call.of(self.spec, computed_in(self.layer.dtype)).on(self.masks, self.lengths, reset)

    def on(self, masks: Masks | None, lengths: Any, reset: Any) -> Call:
        """The call with these arguments."""
        call = self._replace(masks=masks, lengths=lengths, reset=reset)
        if masks is None:
            return call
        return call._replace(network=self.network._replace(**masks._asdict()), number=0)

    def inputs(self, x: Array, h: Array | None, c: Array | None) -> tuple[sequence.Inputs, bool]:
        """Check the arguments; return them as the core takes them, and whether they were batched."""
        spec, layer = self.spec, self.layer
        if spec.single:
            x, h, c = x[None], None if h is None else h[None], None if c is None else c[None]
        if self.device == "cpu" and self.lengths is None and self.reset is None:
            batched, h_0, c_0 = _checked(layer, x.shape, h is None or h.shape, c is None or c.shape)
            if batched:
                h = np.zeros(h_0, x.dtype) if h is None else h
                c = np.zeros(c_0, x.dtype) if c is None and c_0 is not None else c
                return sequence.Inputs(x.transpose(1, 0, 2) if spec.batch_first else x, h, c, None, None), True
        reset = self.arrays([self.reset])[0] if isinstance(self.reset, Tensor) else self.reset
        return layer._inputs(x, _state(layer, h, c), self.lengths, reset)  # type: ignore[no-any-return]

    def time_first(self, a: Array | None, batched: bool) -> Array | None:
        """x, or an array over time, from the module's layout to [T, B, N]."""
        if a is None:
            return None
        a = a[None] if self.spec.single else a
        if not batched:
            return a[:, None]
        return a.transpose(1, 0, 2) if self.spec.batch_first else a

    def laid_out(self, a: Array, h: Array, c: Array | None, batched: bool) -> list[Array]:
        """An array over time and the states, or their gradients, in the module's layout."""
        parts = [a, h] if c is None else [a, h, c]
        if not batched:
            parts = [part[:, 0] for part in parts]
        elif self.spec.batch_first:
            parts[0] = a.transpose(1, 0, 2)
        return [part[0] for part in parts] if self.spec.single else parts


@lru_cache(maxsize=4096)
def _checked(layer: Any, *shapes: Any) -> tuple[bool, tuple[int, ...], tuple[int, ...] | None]:
    """Check the shapes of x, h_0 and c_0, True where there is none; return whether batched, and both states' shapes.

    Cached, since most calls are like the last one, and the check takes a tenth of the time of a small call.
    """
    x, h, c = (None if shape is True else _no_memory(shape, layer.dtype) for shape in shapes)
    inputs, batched = layer._inputs(x, _state(layer, h, c), None, None)
    return batched, inputs.h0.shape, None if inputs.c0 is None else inputs.c0.shape


def _state(layer: Any, h: Array | None, c: Array | None) -> Any:
    """The state as the core takes it."""
    if not layer._network.cell.cell_state:
        return h
    return None if h is None and c is None else (h, c)


def check(x: Tensor, h: Any, c: Any, weight: Tensor) -> None:
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
    device = device_of(weight)
    if not (device in ("cpu", "meta") or (on_gpu(device) and torch.version.hip is None)):
        raise NotImplementedError(f"device: expected the CPU or a GPU of NVIDIA's, got {weight.device}")
    if weight.dtype not in dtypes(device):
        names, place = " or ".join(map(str, dtypes(device))), device if on_gpu(device) else "the CPU"
        raise TensorError(f"parameters: expected {names} on {place}, got {weight.dtype}")


def bridge() -> Any:
    """The module by which tensors of a GPU and CuPy's arrays share memory: not before one is met, it imports CuPy."""
    return importlib.import_module("fastrnn.torch.bridge")


def on_host(tensor: Tensor) -> Array:
    """A copy of a tensor's numbers on the host, also where a torch.func transform is to see all operations."""
    with torch._C._DisableFuncTorch():
        return tensor.detach().cpu().numpy().copy()  # type: ignore[no-any-return]


def counts(lengths: Any) -> Any:
    """Lengths on the host; what cannot be lengths as it is, for the core to refuse."""
    return on_host(lengths) if isinstance(lengths, Tensor) and not lengths.is_floating_point() else lengths


def numpy(tensor: Tensor) -> Array:
    """The tensor's memory as an array."""
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()  # type: ignore[no-any-return]


def forward(call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, save: bool) -> tuple[list[Tensor], Any]:
    """Run the kernels; return y, h_n, c_n, c of every layer (those that the call has), and what backward needs."""
    spec, layer, network, backend, packed, *_, device, number = call
    array, tensor = (numpy, torch.from_numpy) if device == "cpu" else (bridge().array, bridge().tensor)
    token = threads.lend(torch.get_num_threads())
    try:
        inputs, batched = call.inputs(array(x), None if h is None else array(h), None if c is None else array(c))
        y, h_n, c_n, passes = sequence.forward(
            network, backend, packed, inputs, save=save or spec.cells, call=number,
            batch_first=spec.batch_first and batched,
        )  # fmt: skip
        arrays = call.laid_out(y, h_n, c_n, batched)
        if spec.single:
            del arrays[0]
        if spec.cells:
            arrays += [layer._laid_out(c_t, batched) for c_t in sequence.cells(network, backend, packed, passes)]
    finally:
        threads.take_back(token)
    return list(map(tensor, arrays)), (inputs, batched, passes)


def backward(
    call: Call, inputs: sequence.Inputs, batched: bool, passes: list[sequence.Pass], given: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x, h_0, c_0 and the weights, where needed, from those of the outputs, None standing for zero."""
    spec, rest, dy = call.spec, call.arrays(given), None
    if spec.single:
        rest = [None if g is None else g[None] for g in rest]
    else:
        dy = call.time_first(rest.pop(0), batched)
    dh, dc = rest[0], rest[1] if spec.cell_state else None
    if not batched:
        dh, dc = (None if g is None else g[:, None] for g in (dh, dc))
    dcells = [call.time_first(g, batched) for g in rest[2:]] if spec.cells else None
    token = threads.lend(torch.get_num_threads())
    try:
        grads = sequence.backward(
            call.network, call.backend, call.packed, inputs, passes, dy, dh, dc, dcells,
            batch_first=spec.batch_first and batched,
        )  # fmt: skip
    finally:
        threads.take_back(token)
    found: list[Any] = call.laid_out(grads.x, grads.h0, grads.c0, batched)
    if not spec.cell_state:
        found.append(None)
    for of_direction in grads.weights:
        found += [value for value in of_direction if value is not None]
    return call.tensors([a if need else None for a, need in zip(found, needed, strict=True)])


class _Number(int):
    """Stands for an array that is kept as a tensor: x is -1, the others count from 0."""


PLAIN = {type(None), int, np.ndarray}  # values that have no parts


class _Kept:
    """The arrays of a pass as tensors, each once.

    A class: only the garbage collector frees functions that call themselves, and until it runs they would hold what a
    step saved.
    """

    def __init__(self, x: Array) -> None:
        self.tensors, self._numbers = list[Tensor](), {id(x): _Number(-1)}

    def numbers(self, values: Any) -> Any:
        """A list or a NamedTuple with its arrays taken out, but for empty ones."""
        known = map(self._numbers.get, map(id, values))
        found = [self._new(value) if number is None else number for number, value in zip(known, values, strict=True)]
        return found if type(values) is list else type(values)._make(found)

    def _new(self, value: Any) -> Any:
        if type(value) is not np.ndarray:
            return value if value is None or type(value) is int else self.numbers(value)
        if not value.size:
            return value
        number = self._numbers[id(value)] = _Number(len(self.tensors))
        self.tensors.append(torch.from_numpy(value))
        return number

    def run(self, run: Run, again: bool) -> Run:
        """The run without its arrays and without the memory of its output.

        again: segments of it will be run again, which needs to know the shape of the output.
        """
        y = run.y._replace(array=_no_memory(run.y.array.shape, run.y.array.dtype)) if again else NOWHERE
        x, h0, c0, lengths, clear, reverse, _, keep, zone = run
        x, keep, zone = self.numbers([x, keep, zone])
        return Run(x, h0, c0, lengths, clear, reverse, y, keep, zone)


class _Fetched:
    """The arrays that were put away, by number."""

    def __init__(self, x: Array, tensors: Sequence[Tensor]) -> None:
        self._arrays = [*map(Tensor.numpy, tensors), x]

    def arrays(self, values: Any) -> Any:
        """Put them back."""
        found = [
            self._arrays[value] if type(value) is _Number else value if type(value) in PLAIN else self.arrays(value)
            for value in values
        ]
        return found if type(values) is list else type(values)._make(found)

    def run(self, run: Run) -> Run:
        """The run with its arrays."""
        x, h0, c0, lengths, clear, reverse, y, keep, zone = run
        x, keep, zone = self.arrays([x, keep, zone])
        return Run(x, h0, c0, lengths, clear, reverse, y, keep, zone)


def put_away(inputs: sequence.Inputs, batched: bool, passes: list[sequence.Pass]) -> tuple[Any, list[Tensor]]:
    """Take the arrays out of `passes`, as tensors for autograd to keep, to free, and to hand to its hooks."""
    kept, stripped = _Kept(inputs.x), []
    for runs, saved, scale in passes:
        again = [type(each) is list for each in saved]
        stripped.append((list(map(kept.run, runs, again)), kept.numbers(saved), kept.numbers([scale])))
    return (inputs._replace(x=NOWHERE.array), batched, stripped), kept.tensors  # autograd keeps x itself


def fetch(call: Call, stripped: Any, x: Array, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Undo `put_away`."""
    inputs, batched, passes = stripped
    inputs = inputs._replace(x=call.time_first(x, batched))
    fetched = _Fetched(inputs.x, tensors)
    found = [
        sequence.Pass(list(map(fetched.run, runs)), fetched.arrays(saved), *fetched.arrays(scale))
        for runs, saved, scale in passes
    ]
    return inputs, batched, found


def issue(contents: Any) -> Tensor:
    """A tensor for autograd to keep, and to free, in the place of `contents`: a tenth of the time of `put_away`."""
    ticket = torch.empty(0)
    ticket.contents = contents
    return ticket


def redeem(ticket: Tensor) -> Any:
    """The contents; None if this is what a hook of this one tensor has made of the ticket."""
    return getattr(ticket, "contents", None)


def _no_memory(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros of a shape and dtype in the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)


class Recurrence(torch.autograd.Function):
    """A call as one node of the graph."""

    @staticmethod
    def forward(call: Call, kept: list[Any], x: Tensor, h: Any, c: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        """Run the kernels; leave what backward needs in `kept`, as tensors that hooks may move where there are any."""
        outputs, contents = forward(call, x, h, c, save=True)
        kept += (None, [issue(contents)]) if hooks(False) is None else put_away(*contents)
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Give the tensors to autograd, which watches over writes to them and frees them."""
        ctx.call, kept, *given = inputs
        ctx.stripped, tensors = kept
        ctx.given = len(given)
        ctx.save_for_backward(*given, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        """Gradients by the kernels; by torch operations where they must be differentiable themselves."""
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        arguments, tensors = saved[: ctx.given], saved[ctx.given :]
        x, h, c, *_ = arguments
        if must_be_differentiable(given):
            inputs = sizes(ctx.call, x, h, c)
            return None, None, *differentiable(ctx.call, inputs, arguments, needed, given)
        if ctx.stripped is not None:
            contents = fetch(ctx.call, ctx.stripped, numpy(x), tensors)
        else:
            contents = redeem(tensors[0]) or forward(ctx.call, x, h, c, save=True)[1]
        inputs, batched, passes = contents
        return None, None, *backward(ctx.call, inputs, batched, passes, given, needed)


# Torch's engine directly: Function.apply inspects forward's signature each time, for 50 us. What else it does concerns
# torch.func transforms alone, which never come here.
run_with_graph = super(torch.autograd.Function, Recurrence).apply


def has_gradient(x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor) -> bool:
    """Whether autograd must know of the call; the weights first, since they mostly say it."""
    return any(t.requires_grad for t in weights) or any(t is not None and t.requires_grad for t in (x, h, c))


def steps_needed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward-mode tangents or a torch.func transform must see every operation."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def must_be_differentiable(given: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass must consist of operations that torch can see."""
    return torch.is_grad_enabled() or steps_needed(given) or _batched()


def _batched() -> bool:
    """Whether a gradient may stand for many, as torch.autograd.grad(is_grads_batched=True) has them."""
    level: int = torch._C._vmapmode_increment_nesting()  # torch tells the depth in no other way
    torch._C._vmapmode_decrement_nesting()
    return level > 1


def by_steps(call: Call, inputs: sequence.Inputs, x: Tensor, h: Any, c: Any, weights: Sequence[Tensor]) -> list[Tensor]:
    """The call as torch operations; of `inputs` only the sizes, lengths and reset matter."""
    lengths, reset = (None if a is None else torch.from_numpy(a).to(x.device) for a in (inputs.lengths, inputs.reset))
    given = iter(weights)
    grouped = [Weights._make(None if n is None else next(given) for n in names) for names in call.layer._names()]
    with torch.autocast(x.device.type, enabled=False):  # the arguments have the dtype to compute in
        return steps.run(call.spec, x, h, c, grouped, lengths, reset, _masks(call, inputs, x))


def sizes(call: Call, x: Tensor, h: Tensor | None, c: Tensor | None) -> sequence.Inputs:
    """Check a call's arguments of which a torch.func transform hides the numbers."""

    def stand_in(tensor: Tensor | None) -> Any:
        return None if tensor is None else _no_memory(tuple(tensor.shape), call.layer.dtype)

    return call.inputs(*map(stand_in, (x, h, c)))[0]


def _masks(call: Call, inputs: sequence.Inputs, like: Tensor) -> steps.Masks:
    """The factors and shares of a call: those of the kernels, as tensors of the dtype and on the device of `like`."""

    def tensor(array: Array | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(like.device, like.dtype)

    network, backend = call.network, backends.module("cpu")
    y = np.empty((*inputs.x.shape[:2], network.num_directions * network.output_size), call.layer.dtype)
    scales = []
    if call.number is not None:
        factors = [sequence._dropout(np, network, backend, y, call.number, k) for k in range(network.num_layers - 1)]
        scales = list(map(tensor, factors))
    runs = [
        sequence._run(np, network, backend, inputs, inputs.x, y, k, k % network.num_directions, call.number)
        for k in range(network.num_layers * network.num_directions)
    ]
    zones = [(None, None) if run.zone is None else tuple(map(tensor, run.zone)) for run in runs]
    return steps.Masks(scales, [tensor(run.keep) for run in runs], zones)


def differentiable(
    call: Call, inputs: sequence.Inputs, arguments: Sequence[Any], needed: Sequence[bool], given: Sequence[Any]
) -> list[Tensor | None]:
    """The gradients again, as torch operations on the call's arguments."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, since one argument may have been computed from another: each gradient is through this call alone.
        aliases = [None if a is None else a.view_as(a) for a in arguments]
        outputs = by_steps(call, inputs, aliases[0], aliases[1], aliases[2], aliases[3:])
        pairs = [(o, g) for o, g in zip(outputs, given, strict=True) if g is not None]
        wanted = [a for a, need in zip(aliases, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, allow_unused=True
            )
        )
    return [next(found) if need else None for need in needed]
