"""The steps of other libraries' cells, written out from their documentation in plain NumPy: nothing of fastrnn's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]  # x [I], (h, ...) -> (h, ...)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def scan(
    step: Step, x: Array, state: Sequence[Array], lengths: Sequence[int] | None = None, reverse: bool = False
) -> tuple[Array, tuple[Array, ...]]:
    """y [T, B, H], zero past the end, and the final states [B, H]; one sequence at a time, one step at a time."""
    steps, batch, _ = x.shape
    y, last = np.zeros((steps, batch, state[0].shape[1])), tuple(np.array(s, float) for s in state)
    for b in range(batch):
        now = tuple(s[b] for s in state)
        order = range(steps if lengths is None else lengths[b])
        for t in reversed(order) if reverse else order:
            now = step(x[t, b], now)
            y[t, b] = now[0]
        for s, value in zip(last, now, strict=True):
            s[b] = value
    return y, last


def bidirectional(
    steps: Sequence[Step], x: Array, states: Sequence[Sequence[Array]], lengths: Sequence[int] | None = None
) -> tuple[Array, list[tuple[Array, ...]]]:
    """As `scan` for one or two directions: y [T, B, D*H], and each direction's final states."""
    runs = [scan(step, x, states[d], lengths, d == 1) for d, step in enumerate(steps)]
    return np.concatenate([y for y, _ in runs], axis=2), [last for _, last in runs]


# Keras: kernel k, recurrent kernel r, bias b; https://keras.io/api/layers/recurrent_layers


def keras_rnn(weights: Sequence[Array], activation: Callable[[Array], Array]) -> Step:
    k, r, *b = weights
    return lambda x, s: (activation(x @ k + s[0] @ r + (b[0] if b else 0)),)


def keras_lstm(weights: Sequence[Array]) -> Step:
    k, r, *bias = weights

    def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        z = x @ k + h @ r + (bias[0] if bias else 0)
        i, f, candidate, o = np.split(z, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        return sigmoid(o) * np.tanh(c), c

    return step


def keras_gru(weights: Sequence[Array], reset_after: bool) -> Step:
    k, r, *bias = weights
    units = len(r)

    def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        if reset_after:
            input_bias, recurrent_bias = bias[0] if bias else (0, 0)
            xz, xr, xh = np.split(x @ k + input_bias, 3)
            hz, hr, hh = np.split(h @ r + recurrent_bias, 3)
            z, reset = sigmoid(xz + hz), sigmoid(xr + hr)
            candidate = np.tanh(xh + reset * hh)
        else:
            xz, xr, xh = np.split(x @ k + (bias[0] if bias else 0), 3)
            hz, hr = np.split(h @ r[:, : 2 * units], 2)
            z, reset = sigmoid(xz + hz), sigmoid(xr + hr)
            candidate = np.tanh(xh + (reset * h) @ r[:, 2 * units :])
        return (z * h + (1 - z) * candidate,)

    return step


# torch.nn: https://docs.pytorch.org/docs/stable/nn.html#recurrent-layers


def torch_step(kind: str, w: dict[str, Array], end: str, nonlinearity: str = "tanh") -> Step:
    W, U = w[f"weight_ih{end}"], w[f"weight_hh{end}"]
    b_i, b_h = (w.get(f"bias_{name}{end}", np.zeros(len(W))) for name in ("ih", "hh"))
    project = w.get(f"weight_hr{end}")

    def rnn(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        a = W @ x + b_i + U @ state[0] + b_h
        return (np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0),)

    def gru(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        (ir, iz, i_n), (hr, hz, hn) = np.split(W @ x + b_i, 3), np.split(U @ h + b_h, 3)
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        return ((1 - z) * np.tanh(i_n + r * hn) + z * h,)

    def lstm(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        i, f, g, o = np.split(W @ x + b_i + U @ h + b_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h if project is None else project @ h, c

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[kind]


def chung_gru(w: dict[str, Array]) -> Step:
    """The other convention of the update gate: z is the share of the new state. Rows r z n."""
    W, U, b = w["weight_ih_l0"], w["weight_hh_l0"], w["bias_ih_l0"] + w["bias_hh_l0"]
    size = U.shape[1]

    def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        r, z = np.split(sigmoid(W[: 2 * size] @ x + U[: 2 * size] @ h + b[: 2 * size]), 2)
        n = np.tanh(W[2 * size :] @ x + U[2 * size :] @ (r * h) + b[2 * size :])
        return (z * n + (1 - z) * h,)

    return step


# ONNX: https://onnx.ai/onnx/operators, one direction d of W, R, B, P


def onnx_step(kind: str, given: dict[str, Any], d: int, said: dict[str, Any]) -> Step:
    W, R = given["W"][d], given["R"][d]
    B = given["B"][d] if "B" in given else np.zeros(2 * len(W))
    P = given["P"][d] if "P" in given else np.zeros(3 * R.shape[1])
    (wb, rb), (pi, po, pf) = np.split(B, 2), np.split(P, 3)
    functions = {"Tanh": np.tanh, "Relu": lambda a: np.maximum(a, 0), "Affine": lambda a: a}

    def rnn(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        return (functions[said.get("activations", ["Tanh"])[0]](W @ x + R @ state[0] + wb + rb),)

    def gru(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        (wz, wr, wh), (rz, rr, rh), (wbz, wbr, wbh), (rbz, rbr, rbh) = (np.split(a, 3) for a in (W, R, wb, rb))
        z, r = sigmoid(wz @ x + rz @ h + wbz + rbz), sigmoid(wr @ x + rr @ h + wbr + rbr)
        inner = r * (rh @ h + rbh) if said.get("linear_before_reset") else rh @ (r * h) + rbh
        return ((1 - z) * np.tanh(wh @ x + inner + wbh) + z * h,)

    def lstm(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        ai, ao, af, ac = np.split(W @ x + R @ h + wb + rb, 4)
        i = sigmoid(ai + pi * c)
        f = 1 - i if said.get("input_forget") else sigmoid(af + pf * c)
        c = f * c + i * np.tanh(ac)
        return sigmoid(ao + po * c) * np.tanh(c), c

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[kind]
