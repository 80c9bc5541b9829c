"""The recurrence as a loop of torch operations: slow, and differentiable as often and in any mode that torch has.

Double backward, forward-mode tangents and torch.func transforms run here; all masks are those of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from fastrnn.normalisation import EPSILON
from fastrnn.torch.spec import Spec


class Masks(NamedTuple):
    """What dropout and zoneout do to one call."""

    scales: Sequence[Tensor | None]  # [T, B, D*P]: dropout's factors for the output of each layer but the last
    keep: Sequence[Tensor | None]  # [B, P], a layer and direction: recurrent dropout's factors
    zones: Sequence[tuple[Tensor | None, ...]]  # shares of the old h and c, each [T, B, H], or [1, 1, H] for rates


class Product(NamedTuple):
    """Weights of one product and what follows it: gates stand one after the other."""

    w: Tensor  # [n*H, K], or [n*H] for a diagonal in each gate
    bias: Tensor | None  # [n*H]
    gain: Tensor | None  # [n*H], with layer normalisation

    def __call__(self, a: Tensor) -> Tensor:
        """a [..., K] times w transposed, normalised, plus bias: [..., n*H]."""
        if self.w.dim() == 2 and self.gain is None:
            return linear(a, self.w, self.bias)
        if self.w.dim() == 2:
            product = linear(a, self.w)
        else:
            product = torch.cat([a] * (self.w.shape[0] // a.shape[-1]), dim=-1) * self.w
        if self.gain is not None:
            return layer_norm(product, product.shape[-1:], self.gain, self.bias, EPSILON)
        return product if self.bias is None else product + self.bias

    def split(self, first: int) -> tuple[Product, Product]:
        """The product of the first rows, and that of the others."""
        parts = [(None, None) if part is None else (part[:first], part[first:]) for part in self]
        a, b = zip(*parts, strict=True)
        return Product(*a), Product(*b)


# A cell: (ax [B, G*H], U, the other weights, h, c, factors of what U sees) -> h, c. The equations: fastrnn.cells.


def _rnn(phi: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """h = phi(ax + ah)."""

    def step(ax: Tensor, u: Product, w: Any, h: Tensor, c: None, keep: Any) -> tuple[Tensor, None]:
        return phi(ax + u(h * keep)), None

    return step


def _lstm(ax: Tensor, u: Product, w: Any, h: Tensor, c: Tensor, keep: Any) -> tuple[Tensor, Tensor]:
    """i, f, o = sigma(ax + ah), g = tanh(ax + ah), c = f * c_prev + i * g, h = o * tanh(c); coupled: i = 1 - f.

    i and f see c_prev through p or V, o sees c; with layer normalisation h = o * tanh(LN(c)).
    """
    *inputs, g, o = (ax + u(h * keep)).split(c.shape[-1], dim=-1)
    *i, f = ((a + _seen(w, gate, c)).sigmoid() for gate, a in enumerate(inputs))
    c = f * c + (i[0] if i else 1 - f) * g.tanh()
    v = c if w.norm_c is None else layer_norm(c, c.shape[-1:], w.norm_c, w.norm_c_bias, EPSILON)
    return (o + _seen(w, len(inputs), c)).sigmoid() * v.tanh(), c


def _seen(w: Any, row: int, c: Tensor) -> Tensor | int:
    """What a gate sees of the cell state: nothing, each unit its own, or all through a matrix."""
    if w.ch is not None:
        return linear(c, w.ch.split(c.shape[-1])[row])
    return 0 if w.p is None else w.p[row] * c


def _gru(ax: Tensor, u: Product, w: Any, h: Tensor, c: None, keep: Any) -> tuple[Tensor, None]:
    """r, z = sigma(ax + ah), n = tanh(ax + r * ah), h = (1 - z) * n + z * h_prev."""
    (axr, axz, axn), (ahr, ahz, ahn) = ax.chunk(3, dim=-1), u(h * keep).chunk(3, dim=-1)
    r, z = (axr + ahr).sigmoid(), (axz + ahz).sigmoid()
    n = (axn + r * ahn).tanh()
    return (1 - z) * n + z * h, None


def _gru_reset_before(ax: Tensor, u: Product, w: Any, h: Tensor, c: None, keep: Any) -> tuple[Tensor, None]:
    """As _gru, but n = tanh(ax + U (r * h_prev))."""
    gates = 2 * h.shape[-1]
    u_rz, u_n = u.split(gates)
    r, z = (ax[..., :gates] + u_rz(h * keep)).sigmoid().chunk(2, dim=-1)
    n = (ax[..., gates:] + u_n(r * h * keep)).tanh()
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
    spec: Spec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Any], lengths: Tensor | None,
    reset: Tensor | None, masks: Masks,
) -> list[Tensor]:  # fmt: skip
    """Outputs in the order of a call, from tensors in the module's layout.

    weights: recurrence.Weights of tensors, one entry a layer and direction. lengths: [B] int64. reset: [T, B] bool.
    """
    if spec.single:
        x, h, c = (None if t is None else t.unsqueeze(0) for t in (x, h, c))
    batched = x.dim() == 3
    if batched and spec.batch_first:
        x = x.transpose(0, 1)
    elif not batched:
        x, h, c = (None if t is None else t.unsqueeze(1) for t in (x, h, c))
    y, h_n, c_n, cells = _layers(spec, x, h, c, weights, lengths, reset, masks)
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
    spec: Spec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Any], lengths: Tensor | None,
    reset: Tensor | None, masks: Masks,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """y, h_n, c_n and c of every layer, time first; c_n is of no use where the cell has no such state."""
    valid = None if lengths is None else torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths
    if valid is not None:
        x = torch.where(valid.unsqueeze(-1), x, 0)  # padding may hold NaN, and NaN times a gradient of 0 is NaN
        reset = None if reset is None else reset & valid
    finals, cells = list[tuple[Tensor, Tensor]](), list[Tensor]()
    for layer in range(spec.num_layers):
        ys, cs = [], []
        for reverse in range(1 + spec.bidirectional):
            k = len(finals)
            h_0 = x.new_zeros(x.shape[1], spec.proj_size or spec.hidden_size) if h is None else h[k]
            c_0 = x.new_zeros(x.shape[1], spec.hidden_size) if c is None else c[k]
            y, c_t, *final = _direction(
                spec, weights[k], x, h_0, c_0, valid, reset, masks.keep[k], masks.zones[k], bool(reverse)
            )
            ys.append(y)
            cs.append(c_t)
            finals.append((final[0], final[1]))
        x = torch.cat(ys, dim=-1)
        cells.append(torch.cat(cs, dim=-1))
        scale = masks.scales[layer] if layer < len(masks.scales) else None
        x = x if scale is None else x * scale
    h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
    return x, h_n, c_n, cells


def _mixed(share: Tensor | None, t: int, old: Tensor, new: Tensor) -> Tensor:
    """Zoneout: share * old + (1 - share) * new."""
    if share is None:
        return new
    share = share[t if len(share) > 1 else 0]
    return share * old + (1 - share) * new


def _direction(
    spec: Spec, w: Any, x: Tensor, h: Tensor, c: Tensor, valid: Tensor | None, reset: Tensor | None,
    keep: Tensor | None, zone: tuple[Tensor | None, ...], reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y [T, B, P], c after every step [T, B, H], h_n and c_n."""
    cell, steps, ys, cs = CELLS[spec.mode], x.shape[0], list[Tensor](), list[Tensor]()
    ax, u = Product(w.ih, w.b_ih, w.norm_ih)(x), Product(w.hh, w.b_hh, w.norm_hh)
    for t in range(steps)[::-1] if reverse else range(steps):
        cleared = t + 1 if reverse else t  # the reverse direction comes from the step that was to be reset
        if reset is not None and cleared < steps:
            h, c = (torch.where(reset[cleared].unsqueeze(-1), 0, s) for s in (h, c))
        h_t, c_t = cell(ax[t], u, w, h, c if spec.cell_state else None, 1 if keep is None else keep)
        h_t = _mixed(zone[0], t, h, h_t) if w.hr is None else linear(h_t, w.hr)
        c_t = c if c_t is None else _mixed(zone[1], t, c, c_t)
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
