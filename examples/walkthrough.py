"""From the equations of one step to a trained model: run it, and read it beside what it prints.

1. one step by hand   2. the same by the layer   3. back through time   4. a network that follows a maze
5. a trained model
"""

import numpy as np

import fastrnn
from fastrnn.models import Forecaster, Schedule
from fastrnn.models.forecast import autoregressive, noisy_sine, seasonal_naive

print("1. One step by hand: h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h), y_t = W_hy h_t + b_y")
W_xh, W_hh = np.array([[0.5, 0.3], [-0.2, 0.4]]), np.array([[0.1, -0.3], [0.6, 0.2]])
W_hy, b_h, b_y = np.array([0.7, -0.1]), np.array([0.1, -0.2]), 0.3
x = np.eye(2)  # x_1 = [1, 0], x_2 = [0, 1]
h, by_hand = np.zeros(2), []
for t in range(2):
    h = np.tanh(W_xh @ x[t] + W_hh @ h + b_h)
    by_hand.append(h)
    # h_2 = [0.514, 0.41880...]: the lecture that this example is from cuts it off to 0.418
    print(f"   h_{t + 1} = [{h[0]:.3f}, {h[1]:.3f}]   y_{t + 1} = {W_hy @ h + b_y:.3f}")

print("2. The same by the layer, for all steps in one call")
rnn = fastrnn.RNN(2, 2, dtype="float64")
rnn.update({"weight_ih_l0": W_xh, "weight_hh_l0": W_hh, "bias_ih_l0": b_h, "bias_hh_l0": np.zeros(2)})
hs, h_n, backward = rnn.forward(x)
print(f"   largest difference: {np.abs(hs - by_hand).max():.0e}")

print("3. Back through time: L = y_1 + y_2, so dL/dh_t from outside is W_hy at both steps")
grads = backward(np.stack([W_hy, W_hy]))
eps = 1e-6


def loss(w: np.ndarray) -> float:
    """L as a function of W_hh alone."""
    rnn.update({"weight_hh_l0": w})
    total: float = (rnn(x)[0] @ W_hy + b_y).sum()
    return total


nudge = np.array([[0.0, 1.0], [0.0, 0.0]])
numeric = (loss(W_hh + eps * nudge) - loss(W_hh - eps * nudge)) / (2 * eps)
print(f"   dL/dW_hh[0, 1] = {grads.params['weight_hh_l0'][0, 1]:.6f} by backward, {numeric:.6f} by differences")

print("4. A maze: h_{t+1} = x_t + U h_t, U the negative of the swap of up/down and left/right")
MOVES = {"up": (0, 1), "right": (1, 0), "left": (-1, 0), "down": (0, -1)}
NAMES = list(MOVES)
path = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2), (4, 3), (3, 3)]
agent = fastrnn.RNN(4, 4, nonlinearity="identity", bias=False, dtype="float64")
agent.update({"weight_ih_l0": np.eye(4), "weight_hh_l0": -np.eye(4)[[3, 2, 1, 0]]})
position, taken, seen = path[1], [], []
with agent.stream() as stream:
    stream.set_state(np.array([[[1.0, 0.0, 0.0, 0.0]]]))  # it came in moving up
    while position != path[-1]:
        view = np.array([[(position[0] + dx, position[1] + dy) in path for dx, dy in MOVES.values()]], float)
        move = NAMES[int(stream.step(view)[0].argmax())]
        seen.append(tuple(view[0]))
        taken.append(move)
        position = position[0] + MOVES[move][0], position[1] + MOVES[move][1]
print(f"   {' '.join(taken)}: out after {len(taken)} moves")
same = next((i, j) for i in range(len(seen)) for j in range(i) if seen[i] == seen[j] and taken[i] != taken[j])
print(
    f"   without memory no network can: at moves {same[1]} and {same[0]} it sees the same, {taken[same[1]]} and",
    end=" ",
)
print(f"{taken[same[0]]} are right")

print("5. A trained model: the next value of a noisy sine from the 20 before")
series = noisy_sine()
model = Forecaster(cell="gru", seed=0)
model.fit(series, Schedule(steps=500, batch=64, lr=5e-3))
print(
    f"   RMSE on the last fifth: {model.rmse(series)[1]:.3f} GRU, {autoregressive(series, 20, 1):.3f} linear model,",
    end=" ",
)
print(f"{seasonal_naive(series, 20, 1)[1]:.3f} the period before")
