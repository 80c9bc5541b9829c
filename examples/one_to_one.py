"""One to one: a single input, a single output. Lit segments of a display -> the digit, also when one flickers."""

import numpy as np

import fastrnn
from fastrnn.nn import Linear, softmax_cross_entropy
from fastrnn.optim import Adam

#            top, upper left, upper right, middle, lower left, lower right, bottom
SEGMENTS = np.array([
    [1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1, 0],
    [1, 1, 0, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1],
], np.float32)  # fmt: skip

rng = np.random.default_rng(0)
rnn, head, adam = fastrnn.RNN(7, 32, seed=0), Linear(32, 10, seed=1), Adam(lr=0.01)
for _ in range(300):
    digits = rng.integers(10, size=64)
    x = SEGMENTS[digits] + 0.2 * rng.standard_normal((64, 7), np.float32)
    h, _, rnn_backward = rnn.forward(x[None])  # [T, B, I] with T = 1: a recurrent layer that never recurs
    logits, head_backward = head.forward(h[0])
    _, loss_backward = softmax_cross_entropy(logits, digits)
    head_grads = head_backward(loss_backward())
    rnn_grads = rnn_backward(head_grads.x[None])
    params = {**rnn.params, **head.params}
    updated = adam.step(params, {**rnn_grads.params, **head_grads.params})
    rnn.update({name: updated[name] for name in rnn.params})
    head.update({name: updated[name] for name in head.params})

digits = np.tile(np.arange(10), 100)
x = SEGMENTS[digits] + 0.2 * np.random.default_rng(1).standard_normal((1000, 7), np.float32)
right = (head(rnn(x[None])[0][0]).argmax(axis=1) == digits).mean()
print(f"flickering digits read right: {right:.1%}")
