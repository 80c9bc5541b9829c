"""One to many: a single input, a sequence as output. A digit -> its name, character by character."""

import numpy as np

import fastrnn
from fastrnn.models.numerals import ENGLISH
from fastrnn.nn import Embedding, Linear, softmax_cross_entropy
from fastrnn.optim import Adam

NAMES = [name + "." for name in ENGLISH[:10]]  # the full stop ends a name
CHARACTERS = sorted(set("".join(NAMES)))
T = max(map(len, NAMES))
targets = np.zeros((T, 10), int)  # [T, B], all ten digits side by side
for digit, name in enumerate(NAMES):
    targets[: len(name), digit] = [CHARACTERS.index(c) for c in name]
lengths = np.array([len(name) for name in NAMES])
written = np.arange(T)[:, None] < lengths

digit_vector, character_vector = Embedding(10, 24, seed=0), Embedding(len(CHARACTERS) + 1, 8, seed=1)
gru, head, adam = fastrnn.GRU(8, 24, seed=2), Linear(24, len(CHARACTERS), seed=3), Adam(lr=0.01)
layers = {"digit": digit_vector, "character": character_vector, "gru": gru, "head": head}
START = len(CHARACTERS)
before = np.concatenate([np.full((1, 10), START), targets[:-1]])  # teacher forcing: what should have been written
for _ in range(300):
    h_0, digit_backward = digit_vector.forward(np.arange(10))  # the one input is the initial state
    x, character_backward = character_vector.forward(before)
    h, _, gru_backward = gru.forward(x, h_0[None], lengths=lengths)
    logits, head_backward = head.forward(h)
    _, loss_backward = softmax_cross_entropy(logits, targets, mask=written)
    head_grads = head_backward(loss_backward())
    gru_grads = gru_backward(head_grads.x)
    grads = {
        "digit": digit_backward(gru_grads.state[0]), "character": character_backward(gru_grads.x), "gru": gru_grads,
        "head": head_grads,
    }  # fmt: skip
    params = {f"{part}.{name}": a for part, layer in layers.items() for name, a in layer.params.items()}
    updated = adam.step(params, {f"{part}.{name}": a for part, g in grads.items() for name, a in g.params.items()})
    for part, layer in layers.items():
        layer.update({name: updated[f"{part}.{name}"] for name in layer.params})

spoken = []
for digit in range(10):
    with gru.stream() as stream:  # one step at a time, each fed with what the last one wrote
        stream.set_state(digit_vector(np.array([[digit]])))
        name, last = "", START
        while not name.endswith(".") and len(name) < 10:
            last = int(head(stream.step(character_vector(np.array([last])))).argmax())
            name += CHARACTERS[last]
    spoken.append(name)
print(" ".join(spoken))
print(f"digits named right: {np.mean([a == b for a, b in zip(spoken, NAMES, strict=True)]):.1%}")
