"""Many to one: a sequence as input, a single output. Brackets of any length -> whether they are balanced."""

import numpy as np

import fastrnn
from fastrnn.nn import Linear, softmax_cross_entropy
from fastrnn.optim import Adam

T = 16


def brackets(rng, count, steps):
    """One-hot brackets [T, B, 2], lengths [B] and whether each sequence is balanced [B]; about half are."""
    lengths = 2 * rng.integers(1, steps // 2 + 1, size=count)
    steps_up = np.zeros((steps, count), int)
    for b, length in enumerate(lengths):
        depth = 0
        for t in range(length):  # a random walk that ends where it began ...
            left = length - t
            up = depth == 0 or (depth < left and rng.random() < 0.5)
            depth += 1 if up else -1
            steps_up[t, b] = up
        kind = rng.integers(4)
        if kind == 2:  # ... or one bracket of it turned round
            t = rng.integers(length)
            steps_up[t, b] = 1 - steps_up[t, b]
        elif kind == 3:  # ... or all: as many open as close, but in the wrong order
            steps_up[:length, b] = 1 - steps_up[:length, b]
    signs = np.where(np.arange(steps)[:, None] < lengths, 2 * steps_up - 1, 0)
    depth = signs.cumsum(axis=0)
    balanced = (depth.min(axis=0) >= 0) & (depth[-1] == 0)
    return np.eye(2, dtype=np.float32)[steps_up], lengths, balanced.astype(int)


rng = np.random.default_rng(0)
lstm, head, adam = fastrnn.LSTM(2, 24, seed=0), Linear(24, 2, seed=1), Adam(lr=0.01)
for _ in range(400):
    x, lengths, balanced = brackets(rng, 64, T)
    _, (h_n, _), lstm_backward = lstm.forward(x, lengths=lengths)  # h_n is each sequence's own last state
    logits, head_backward = head.forward(h_n[0])
    _, loss_backward = softmax_cross_entropy(logits, balanced)
    head_grads = head_backward(loss_backward())
    lstm_grads = lstm_backward(None, (head_grads.x[None], None))  # the loss sees the last state alone
    params = {**lstm.params, **head.params}
    updated = adam.step(params, {**lstm_grads.params, **head_grads.params})
    lstm.update({name: updated[name] for name in lstm.params})
    head.update({name: updated[name] for name in head.params})

x, lengths, balanced = brackets(np.random.default_rng(1), 1000, T)
right = (head(lstm(x, lengths=lengths)[1][0][0]).argmax(axis=1) == balanced).mean()
print(f"balanced: {balanced.mean():.1%} of 1000; judged right: {right:.1%}")
