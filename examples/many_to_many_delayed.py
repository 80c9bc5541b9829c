"""Many to many, delayed: first the whole input, then the output. Letters -> the same letters backwards."""

import numpy as np

import fastrnn
from fastrnn.nn import Embedding, Linear, softmax_cross_entropy
from fastrnn.optim import Adam

LETTERS, N = 8, 5  # different letters; letters in a sequence
WRITE = LETTERS  # the input of the steps in which it writes


def sequences(rng, count):
    """Inputs [2N, B]: letters, then WRITE; targets [2N, B]: anything, then the letters backwards."""
    letters = rng.integers(LETTERS, size=(N, count))
    return np.concatenate([letters, np.full_like(letters, WRITE)]), np.concatenate([letters, letters[::-1]])


rng = np.random.default_rng(0)
vector, gru = Embedding(LETTERS + 1, 16, seed=0), fastrnn.GRU(16, 64, seed=1)
head, adam = Linear(64, LETTERS, seed=2), Adam(lr=0.01)
layers = {"vector": vector, "gru": gru, "head": head}
writing = np.zeros((2 * N, 64), bool)
writing[N:] = True  # the steps whose output counts
for step in range(500):
    adam.lr = 0.01 * (1 - step / 500)
    inputs, targets = sequences(rng, 64)
    x, vector_backward = vector.forward(inputs)
    h, _, gru_backward = gru.forward(x)
    logits, head_backward = head.forward(h)
    _, loss_backward = softmax_cross_entropy(logits, targets, mask=writing)
    head_grads = head_backward(loss_backward())
    gru_grads = gru_backward(head_grads.x)
    grads = {"vector": vector_backward(gru_grads.x), "gru": gru_grads, "head": head_grads}
    params = {f"{part}.{name}": a for part, layer in layers.items() for name, a in layer.params.items()}
    updated = adam.step(params, {f"{part}.{name}": a for part, g in grads.items() for name, a in g.params.items()})
    for part, layer in layers.items():
        layer.update({name: updated[f"{part}.{name}"] for name in layer.params})

inputs, targets = sequences(np.random.default_rng(1), 1000)
written = head(gru(vector(inputs))[0]).argmax(axis=2)[N:]
print(f"sequences written backwards without a mistake: {(written == targets[N:]).all(axis=0).mean():.1%}")
