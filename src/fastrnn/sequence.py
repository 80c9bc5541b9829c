"""Layers and directions: how single recurrences, each run by a backend, make a stacked bidirectional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import memory, philox, recompute
from fastrnn.arrays import Array, array_module
from fastrnn.cells import Cell
from fastrnn.recurrence import Backend, Columns, Given, Initial, Run, Weights, Zone


class Network(NamedTuple):
    """What is fixed for all calls of a layer object."""

    cell: Cell
    hidden_size: int
    proj_size: int  # 0 without a projection
    num_layers: int
    num_directions: int
    dropout: float
    recurrent_dropout: float
    zoneout: tuple[float, float]  # of h, of c
    seed: int
    recompute: bool  # keep the states at the ends of segments alone

    @property
    def output_size(self) -> int:
        """P: width of h."""
        return self.proj_size or self.hidden_size


class Inputs(NamedTuple):
    """Arguments of one call after validation, time first and batched."""

    x: Array  # [T, B, I]
    h0: Array  # [L*D, B, P]
    c0: Array | None  # [L*D, B, H]
    lengths: Array | None  # [B] int64
    reset: Array | None  # [T, B] bool


class Pass(NamedTuple):
    """One layer's runs, what their backward passes need, and the dropout factors applied to its output."""

    runs: list[Run]
    saved: list[Any]
    scale: Array | None  # [T, B, D*P]


class Output(NamedTuple):
    """Result of a forward pass, time first and batched."""

    y: Array  # [T, B, D*P]
    h_n: Array  # [L*D, B, P]
    c_n: Array | None  # [L*D, B, H]
    passes: list[Pass]


class Gradients(NamedTuple):
    """Result of a backward pass, time first and batched; weights in the order layer, direction."""

    x: Array
    h0: Array
    c0: Array | None
    weights: list[Weights]


def forward(
    network: Network,
    backend: Backend,
    packed: Sequence[Any],
    inputs: Inputs,
    *,
    save: bool,
    call: int | None,
    batch_first: bool,
) -> Output:
    """Run all layers and directions.

    packed: one entry a layer and direction. save: keep what `backward` needs.
    call: number of the training call, which selects the dropout masks; None switches dropout off.
    batch_first: lay y out as [B, T, D*P] in memory and return it as a view [T, B, D*P].
    """
    passes: list[Pass] = []
    xp, x, backend = array_module(inputs.x), inputs.x, _loops(network, backend)
    assert xp is not None, "validated before"
    h_n = xp.empty_like(inputs.h0)
    c_n = None if inputs.c0 is None else xp.empty_like(inputs.c0)
    for layer in range(network.num_layers):
        last = layer == network.num_layers - 1
        y = _allocate(xp, inputs.x, network.num_directions * network.output_size, batch_first and last)
        this = Pass([], [], None if last or call is None else _dropout(xp, network, backend, y, call, layer))
        first = layer * network.num_directions
        runs = [_run(xp, network, backend, inputs, x, y, first + d, d, call) for d in range(network.num_directions)]
        finals = backend.recur_forward(network.cell, packed[first : first + len(runs)], runs, save)
        for k, final in enumerate(finals, first):
            h_n[k] = final.h_n
            if c_n is not None:
                c_n[k] = final.c_n
            if save:
                this.saved.append(final.saved)
        if save:
            this.runs.extend(runs)
        passes.append(this)
        x = y if this.scale is None else y * this.scale
    return Output(x, h_n, c_n, passes)


def backward(
    network: Network, backend: Backend, packed: Sequence[Any], inputs: Inputs, passes: list[Pass], dy: Array | None,
    dh_n: Array | None, dc_n: Array | None, dcells: Sequence[Array | None] | None, *, batch_first: bool,
) -> Gradients:  # fmt: skip
    """Back-propagate through all layers and directions; None stands for a gradient of zero."""
    xp, backend = array_module(inputs.x), _loops(network, backend)
    assert xp is not None, "validated before"
    dh0, dc0 = xp.empty_like(inputs.h0), None if inputs.c0 is None else xp.empty_like(inputs.c0)
    weights: list[Weights] = []
    width = network.output_size
    for layer in range(network.num_layers)[::-1]:
        this, first = passes[layer], layer * network.num_directions
        if dy is not None and this.scale is not None:
            dy = dy * this.scale
        x = this.runs[0].x
        dx = _allocate(xp, x, x.shape[2], batch_first and layer == 0)
        dc_layer = None if dcells is None else dcells[layer]
        given = [
            Given(
                None if dy is None else Columns(dy, direction * width, width),
                None if dc_layer is None else Columns(dc_layer, direction * network.hidden_size, network.hidden_size),
                None if dh_n is None else dh_n[first + direction],
                None if dc_n is None else dc_n[first + direction],
            )
            for direction in range(len(this.runs))
        ]
        of_layer = packed[first : first + len(given)]
        initials = backend.recur_backward(network.cell, of_layer, this.runs, this.saved, given, dx, False)
        for k, initial in enumerate(initials, first):
            _store_initial(initial, k, dh0, dc0)
        weights = [initial.weights for initial in initials] + weights
        dy = dx
    assert dy is not None, "every network has a layer"
    return Gradients(dy, dh0, dc0, weights)


def cells(network: Network, backend: Backend, packed: Sequence[Any], passes: list[Pass]) -> list[Array]:
    """c after every step, per layer [T, B, D*H], zero past the end."""
    result, backend = [], _loops(network, backend)
    for layer, this in enumerate(passes):
        xp = array_module(this.runs[0].x)
        assert xp is not None, "validated before"
        first = layer * network.num_directions
        parts = [
            backend.cells(network.cell, packed[first + d], run, saved)
            for d, (run, saved) in enumerate(zip(this.runs, this.saved, strict=True))
        ]
        result.append(xp.concatenate(parts, axis=2) if len(parts) > 1 else parts[0])
    return result


def _loops(network: Network, backend: Backend) -> Backend:
    return recompute.Segmented(backend) if network.recompute else backend


def _allocate(xp: Any, x: Array, width: int, batch_first: bool) -> Array:
    """An uninitialised array [T, B, width]; batch_first gives it the memory layout of [B, T, width]."""
    steps, batch = x.shape[:2]
    empty = memory.empty if xp is np else xp.empty
    if batch_first:
        transposed: Array = empty((batch, steps, width), x.dtype).transpose(1, 0, 2)
        return transposed
    array: Array = empty((steps, batch, width), x.dtype)
    return array


def _dropout(xp: Any, network: Network, backend: Backend, y: Array, call: int, layer: int) -> Array | None:
    """The factors 0 or 1 / (1 - p) for the output of one layer; None when p is 0."""
    if network.dropout == 0:
        return None
    words = backend.random_words(xp, network.seed, (call, 2 * layer, philox.DROPOUT), y.size)
    return philox.keep_scale(xp, words, network.dropout, y.shape, y.dtype)


def _run(
    xp: Any, network: Network, backend: Backend, inputs: Inputs, x: Array, y: Array, k: int, direction: int,
    call: int | None,
) -> Run:  # fmt: skip
    width, stream = network.output_size, 2 * (k // network.num_directions) + direction
    return Run(
        x, inputs.h0[k], None if inputs.c0 is None else inputs.c0[k], inputs.lengths,
        _clear(xp, inputs, reverse=direction == 1), direction == 1, Columns(y, direction * width, width),
        None if call is None else _recurrent_keep(xp, network, backend, inputs, call, stream),
        zone(xp, network, x.dtype) if call is None else _random_zone(xp, network, backend, x, call, stream),
    )  # fmt: skip


def _recurrent_keep(
    xp: Any, network: Network, backend: Backend, inputs: Inputs, call: int, stream: int
) -> Array | None:
    """[B, P]: one factor 0 or 1 / (1 - p) for the whole sequence; None when p is 0."""
    if network.recurrent_dropout == 0:
        return None
    shape = inputs.h0.shape[1:]
    words = backend.random_words(xp, network.seed, (call, stream, philox.RECURRENT), shape[0] * shape[1])
    return philox.keep_scale(xp, words, network.recurrent_dropout, shape, inputs.h0.dtype)


def zone(xp: Any, network: Network, dtype: Any) -> Zone | None:
    """Zoneout by its expectation: the rates themselves."""
    if network.zoneout == (0.0, 0.0):
        return None
    h, c = (xp.full((1, 1, network.hidden_size), rate, dtype) for rate in network.zoneout)
    return Zone(None if network.proj_size else h, c if network.cell.cell_state else None)


def _random_zone(xp: Any, network: Network, backend: Backend, x: Array, call: int, stream: int) -> Zone | None:
    """Zoneout by masks: an element that is not kept, u < p, holds its old state."""
    if network.zoneout == (0.0, 0.0):
        return None
    shape = (*x.shape[:2], network.hidden_size)

    def held(rate: float, kind: int) -> Array:
        words = backend.random_words(xp, network.seed, (call, stream, kind), shape[0] * shape[1] * shape[2])
        mask: Array = (~philox.kept(xp, words, rate)).reshape(shape).astype(x.dtype)
        return mask

    return Zone(
        None if network.proj_size else held(network.zoneout[0], philox.ZONEOUT_H),
        held(network.zoneout[1], philox.ZONEOUT_C) if network.cell.cell_state else None,
    )


def _clear(xp: Any, inputs: Inputs, reverse: bool) -> Array | None:
    """[T, B]: zero the state before step t. The reverse direction, which comes from t + 1, clears on reset[t + 1]."""
    if inputs.reset is None:
        return None
    clear = inputs.reset
    if inputs.lengths is not None:
        clear = clear & (xp.arange(clear.shape[0])[:, None] < inputs.lengths)
    if reverse:
        clear = xp.concatenate((clear[1:], xp.zeros_like(clear[:1])))
    return xp.ascontiguousarray(clear)  # type: ignore[no-any-return]


def _store_initial(initial: Initial, k: int, dh0: Array, dc0: Array | None) -> None:
    dh0[k] = initial.h0
    if dc0 is not None:
        dc0[k] = initial.c0
