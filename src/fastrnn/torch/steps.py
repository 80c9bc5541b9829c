"""The recurrence as a loop of torch operations: slow, and differentiable as often and in any mode that torch has.

Double backward, forward-mode tangents and torch.func transforms run here; dropout masks are those of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.torch.spec import Spec


class Direction(NamedTuple):
    """Weights of one layer in one direction, None where there are none; gates stand one after the other."""

    ih: Tensor  # [G*H, I]
    hh: Tensor  # [G*H, P]
    b_ih: Tensor | None  # [G*H]
    b_hh: Tensor | None  # [G*H]
    hr: Tensor | None  # [P, H]


def _rnn(phi: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """h = phi(ax + ah)."""

    def step(ax: Tensor, w: Direction, h: Tensor, c: None) -> tuple[Tensor, None]:
        return phi(ax + linear(h, w.hh, w.b_hh)), None

    return step


def _lstm(ax: Tensor, w: Direction, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """i, f, o = sigma(ax + ah), g = tanh(ax + ah), c = f * c_prev + i * g, h = o * tanh(c)."""
    i, f, g, o = (ax + linear(h, w.hh, w.b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(ax: Tensor, w: Direction, h: Tensor, c: None) -> tuple[Tensor, None]:
    """r, z = sigma(ax + ah), n = tanh(ax + r * ah), h = (1 - z) * n + z * h_prev."""
    (axr, axz, axn), (ahr, ahz, ahn) = ax.chunk(3, dim=-1), linear(h, w.hh, w.b_hh).chunk(3, dim=-1)
    r, z = (axr + ahr).sigmoid(), (axz + ahz).sigmoid()
    n = (axn + r * ahn).tanh()
    return (1 - z) * n + z * h, None


def _gru_reset_before(ax: Tensor, w: Direction, h: Tensor, c: None) -> tuple[Tensor, None]:
    """As _gru, but n = tanh(ax + U (r * h_prev))."""
    (u_rz, u_n), hidden = w.hh.split([2 * w.hh.shape[1], w.hh.shape[1]]), w.hh.shape[1]
    b_rz, b_n = (None, None) if w.b_hh is None else w.b_hh.split([2 * hidden, hidden])
    r, z = (ax[..., : 2 * hidden] + linear(h, u_rz, b_rz)).sigmoid().chunk(2, dim=-1)
    n = (ax[..., 2 * hidden :] + linear(r * h, u_n, b_n)).tanh()
    return (1 - z) * n + z * h, None


CELLS: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
    "RNN_IDENTITY": _rnn(lambda a: a),
    "LSTM": _lstm,
    "GRU": _gru,
    "GRU_RESET_BEFORE": _gru_reset_before,
}


def run(
    spec: Spec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], lengths: Tensor | None,
    reset: Tensor | None, scales: Sequence[Tensor | None],
) -> list[Tensor]:  # fmt: skip
    """Outputs in the order of a call, from tensors in the module's layout.

    lengths: [B] int64. reset: [T, B] bool. scales: dropout's factors [T, B, D*P] for the output of each layer but
    the last, or None.
    """
    if spec.single:
        x, h, c = (None if t is None else t.unsqueeze(0) for t in (x, h, c))
    batched = x.dim() == 3
    if batched and spec.batch_first:
        x = x.transpose(0, 1)
    elif not batched:
        x, h, c = (None if t is None else t.unsqueeze(1) for t in (x, h, c))
    y, h_n, c_n, cells = _layers(spec, x, h, c, weights, lengths, reset, scales)
    states = [h_n, c_n] if spec.cell_state else [h_n]
    states = states if batched else [s.squeeze(1) for s in states]
    if spec.single:
        return [s.squeeze(0) for s in states]
    over_time = [y, *(cells if spec.cells else [])]
    if not batched:
        over_time = [a.squeeze(1) for a in over_time]
    elif spec.batch_first:
        over_time = [a.transpose(0, 1) for a in over_time]
    return [over_time[0], *states, *over_time[1:]]


def _layers(
    spec: Spec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], lengths: Tensor | None,
    reset: Tensor | None, scales: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """y, h_n, c_n and c of every layer, time first; c_n is h_n where the cell has no such state."""
    valid = None if lengths is None else torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths
    if valid is not None:
        x = torch.where(valid.unsqueeze(-1), x, 0)  # padding may hold NaN, and NaN times a gradient of 0 is NaN
        reset = None if reset is None else reset & valid
    directions, finals, cells = _directions(spec, weights), list[tuple[Tensor, Tensor]](), list[Tensor]()
    for layer in range(spec.num_layers):
        ys, cs = [], []
        for reverse in range(1 + spec.bidirectional):
            w = directions[len(finals)]
            k = len(finals)
            h_0 = x.new_zeros(x.shape[1], w.hh.shape[1]) if h is None else h[k]
            c_0 = x.new_zeros(x.shape[1], spec.hidden_size) if c is None else c[k]
            y, c_t, *final = _direction(spec, w, x, h_0, c_0, valid, reset, bool(reverse))
            ys.append(y)
            cs.append(c_t)
            finals.append((final[0], final[1]))
        x = torch.cat(ys, dim=-1)
        cells.append(torch.cat(cs, dim=-1))
        scale = scales[layer] if layer < len(scales) else None
        x = x if scale is None else x * scale
    h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
    return x, h_n, c_n, cells


def _directions(spec: Spec, weights: Sequence[Tensor]) -> list[Direction]:
    """The weights by layer and direction, from torch's order."""
    given = iter(weights)
    return [
        Direction(
            next(given), next(given), next(given) if spec.bias else None, next(given) if spec.bias else None,
            next(given) if spec.proj_size else None,
        )
        for _ in range(spec.num_layers * (1 + spec.bidirectional))
    ]  # fmt: skip


def _direction(
    spec: Spec, w: Direction, x: Tensor, h: Tensor, c: Tensor, valid: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [T, B, P], c after every step [T, B, H], h_n and c_n."""
    cell, steps, ys, cs = CELLS[spec.mode], x.shape[0], list[Tensor](), list[Tensor]()
    ax = linear(x, w.ih, w.b_ih)
    for t in range(steps)[::-1] if reverse else range(steps):
        cleared = t + 1 if reverse else t  # the reverse direction comes from the step that was to be reset
        if reset is not None and cleared < steps:
            h, c = (torch.where(reset[cleared].unsqueeze(-1), 0, s) for s in (h, c))
        h_t, c_t = cell(ax[t], w, h, c if spec.cell_state else None)
        h_t = h_t if w.hr is None else linear(h_t, w.hr)
        c_t = c if c_t is None else c_t
        if valid is None:
            h, c = h_t, c_t
            ys.append(h)
            cs.append(c)
        else:
            here = valid[t].unsqueeze(-1)
            h, c = torch.where(here, h_t, h), torch.where(here, c_t, c)
            ys.append(torch.where(here, h, 0))
            cs.append(torch.where(here, c, 0))
    if reverse:
        ys, cs = ys[::-1], cs[::-1]
    if not ys:
        return x.new_zeros(0, *h.shape), x.new_zeros(0, *c.shape), h, c
    return torch.stack(ys), torch.stack(cs), h, c
