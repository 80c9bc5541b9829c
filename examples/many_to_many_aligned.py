"""Many to many, aligned: an output for every input. Two numbers in binary -> their sum, lowest bit first.

The network sees 10 bits in training and adds numbers of 60 bits afterwards: what it keeps is the carry.
"""

import numpy as np

import fastrnn
from fastrnn.nn import Linear, softmax_cross_entropy
from fastrnn.optim import Adam


def sums(rng, bits, count):
    """Bits of two numbers [T, B, 2], and of their sum [T, B]; the highest bit of each number is 0."""
    a, b = rng.integers(2, size=(2, bits, count))
    a[-1] = b[-1] = 0
    total, carry = np.zeros_like(a), np.zeros(count, int)
    for t in range(bits):
        total[t] = (a[t] + b[t] + carry) % 2
        carry = (a[t] + b[t] + carry) // 2
    return np.stack([a, b], axis=2).astype(np.float32), total


rng = np.random.default_rng(0)
rnn, head, adam = fastrnn.RNN(2, 16, seed=0), Linear(16, 2, seed=1), Adam(lr=0.01)
for _ in range(500):
    x, total = sums(rng, 10, 64)
    h, _, rnn_backward = rnn.forward(x)
    logits, head_backward = head.forward(h)
    _, loss_backward = softmax_cross_entropy(logits, total)
    head_grads = head_backward(loss_backward())
    rnn_grads = rnn_backward(head_grads.x)  # every step has a loss of its own
    params = {**rnn.params, **head.params}
    updated = adam.step(params, {**rnn_grads.params, **head_grads.params})
    rnn.update({name: updated[name] for name in rnn.params})
    head.update({name: updated[name] for name in head.params})

x, total = sums(np.random.default_rng(1), 60, 1000)
right = (head(rnn(x)[0]).argmax(axis=2) == total).all(axis=0).mean()
print(f"sums of 60 bits that are right in every bit: {right:.1%}")
