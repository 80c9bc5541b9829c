"""Worked examples with known answers: an RNN by hand, a maze agent, gradients that keep their size or vanish."""

from dataclasses import dataclass

import numpy as np
import pytest
from cases import BACKENDS
from tolerance import assert_close, rounding

import fastrnn


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_vanilla_rnn_by_hand(backend: str, dtype: str) -> None:
    """Two steps of h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h), y_t = W_hy h_t + b_y, to the printed digits."""
    rnn = fastrnn.RNN(2, 2, dtype=dtype)
    rnn.update({
        "weight_ih_l0": np.array([[0.5, 0.3], [-0.2, 0.4]], dtype),
        "weight_hh_l0": np.array([[0.1, -0.3], [0.6, 0.2]], dtype),
        "bias_ih_l0": np.array([0.1, -0.2], dtype),
        "bias_hh_l0": np.zeros(2, dtype),
    })  # fmt: skip
    with fastrnn.use_backend(backend):
        h, h_n = rnn(np.eye(2, dtype=dtype))
    y = h @ np.array([0.7, -0.1], dtype) + dtype_of(h)(0.3)
    np.testing.assert_array_equal(np.round(h[0], 3), np.array([0.537, -0.380], dtype))
    np.testing.assert_array_equal(np.round(h[1], 3)[0], dtype_of(h)(0.514))
    # 0.418803: the example prints 0.418, cut off and not rounded; from h_1 rounded to three digits one gets 0.41877
    assert 0.4187 < h[1, 1] < 0.4189
    np.testing.assert_array_equal(np.round(y, 3), np.array([0.714, 0.618], dtype))
    np.testing.assert_array_equal(h_n[0], h[1])


def dtype_of(array: np.ndarray) -> type:
    return array.dtype.type


# The maze agent. A move is one of up, right, left, down.
MOVES = np.array([(0, 1), (1, 0), (-1, 0), (0, -1)])
OPPOSITE = [3, 2, 1, 0]


@dataclass
class Maze:
    """A path that does not branch: its cells, the first of them below the agent's start."""

    cells: list[tuple[int, int]]

    def sees(self, position: tuple[int, int]) -> np.ndarray:
        """x: which neighbours (up, right, left, down) lie on the path."""
        return np.array([tuple(position + move) in set(self.cells) for move in MOVES], np.float64)

    @property
    def moves(self) -> list[int]:
        """The only way along the path."""
        steps = np.diff(np.array(self.cells), axis=0)
        return [int(np.flatnonzero((step == MOVES).all(axis=1))[0]) for step in steps]


def random_maze(seed: int, length: int = 40) -> Maze:
    """A walk that enters upwards and never comes next to itself, so that the path does not branch."""
    rng = np.random.default_rng(seed)
    while True:
        cells = [(0, 0), (0, 1)]
        while len(cells) < length:
            here, earlier = np.array(cells[-1]), set(cells[:-1])
            options = [
                step
                for step in (tuple(map(int, here + move)) for move in MOVES)
                if step not in earlier and not any(tuple(map(int, step + move)) in earlier for move in MOVES)
            ]
            if not options:
                break
            cells.append(options[rng.integers(len(options))])
        if len(cells) == length and set(Maze(cells).moves) == {0, 1, 2, 3}:
            return Maze(cells)


def agent() -> fastrnn.RNN:
    """h_{t+1} = W x_t + U h_t + b with W = I, b = 0 and U the negative of the swap of up/down and left/right."""
    rnn = fastrnn.RNN(4, 4, nonlinearity="identity", bias=False, dtype="float64")
    rnn.update({"weight_ih_l0": np.eye(4), "weight_hh_l0": -np.eye(4)[OPPOSITE]})
    return rnn


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_linear_rnn_follows_any_path_that_does_not_branch(backend: str, seed: int) -> None:
    maze, rnn = random_maze(seed), agent()
    with fastrnn.use_backend(backend), rnn.stream() as stream:
        stream.set_state(np.eye(4)[None, :1])  # it came in moving up
        position, moves = np.array(maze.cells[1]), [0]
        while len(moves) < len(maze.moves):
            move = stream.step(maze.sees(tuple(position))[None])[0]
            np.testing.assert_array_equal(np.sort(move), [0, 0, 0, 1])  # exactly one direction
            moves.append(int(move.argmax()))
            position = position + MOVES[moves[-1]]
        # the same by one call on all that it saw
        seen = np.stack([maze.sees(cell) for cell in maze.cells[1:-1]])
        y, _ = rnn(seen, np.eye(4)[:1])
    assert moves == maze.moves
    assert tuple(position) == maze.cells[-1]
    np.testing.assert_array_equal(y, np.eye(4)[maze.moves[1:]])


@pytest.mark.parametrize("seed", range(5))
def test_without_memory_no_network_can_follow_it(seed: int) -> None:
    """Somewhere on the path the same input needs two different moves: what sees x alone must fail at one of them."""
    maze = random_maze(seed)
    needed: dict[tuple[float, ...], set[int]] = {}
    for cell, move in zip(maze.cells[1:-1], maze.moves[1:], strict=True):
        needed.setdefault(tuple(maze.sees(cell)), set()).add(move)
    assert max(map(len, needed.values())) == 2
    without_memory = agent()
    without_memory.update({"weight_hh_l0": np.zeros((4, 4))})
    seen = np.stack([maze.sees(cell) for cell in maze.cells[1:-1]])
    y, _ = without_memory(seen)
    followed = y.argmax(axis=1)
    assert (followed != np.array(maze.moves[1:])).any()
    for value in {tuple(x) for x in seen}:  # equal inputs, equal moves
        assert len({int(move) for x, move in zip(seen, followed, strict=True) if tuple(x) == value}) == 1


@pytest.mark.parametrize("diagonal", [(1.2, 2.0, 1.1), (0.8, 0.1, 0.9), (-0.5, 1.0, 0.0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_linear_rnn_without_input_is_a_power_of_its_matrix(backend: str, diagonal: tuple[float, ...]) -> None:
    """h_t = U^t h_0, and by the transpose dL/dh_0 = U^T dL/dh_T."""
    steps, U, h_0 = 30, np.array(diagonal), np.array([[1.0, -2.0, 0.5]])
    rnn = fastrnn.RNN(2, 3, nonlinearity="identity", bias=False, dtype="float64", seed=0)
    rnn.update({"weight_hh_l0": np.diag(U)})
    with fastrnn.use_backend(backend):
        y, _, backward = rnn.forward(np.zeros((steps, 2)), h_0)
        d_final = np.array([[3.0, 1.0, -1.0]])
        grads = backward(d_state=d_final)
    for unit in range(3):
        powers = U[unit] ** np.arange(1, steps + 1)
        assert_close(f"h of unit {unit}", y[:, unit], powers * h_0[0, unit], rounding("float64", steps, 1))
        want = np.array([powers[-1] * d_final[0, unit]])
        assert_close(f"d h_0 of unit {unit}", grads.state[0, unit : unit + 1], want, rounding("float64", steps, 1))


def gradient_norms(rnn: fastrnn.RNN, x: np.ndarray, h_0: np.ndarray) -> np.ndarray:
    """||dL/dh_t|| for every t, for L = sum(h_T): the gradient of the initial state of the run from t on."""
    states = np.concatenate([h_0[None], rnn(x, h_0[None])[0]])
    norms = []
    for t in range(len(x)):
        result = rnn.forward(x[t:], states[t][None])
        norms.append(np.linalg.norm(result.backward(d_state=np.ones_like(result.state)).state))
    return np.array(norms)


def test_identity_and_relu_keep_the_gradient_where_tanh_loses_it() -> None:
    """200 steps: within one decade for the relu network with U = I, vanished for tanh with small weights."""
    T, B, I, H = 200, 4, 5, 33
    rng = np.random.default_rng(0)
    x, h_0 = rng.standard_normal((T, B, I)) * 0.1, np.abs(rng.standard_normal((B, H)))
    irnn = fastrnn.RNN(I, H, nonlinearity="relu", init="identity", dtype="float64", seed=1)
    norms = gradient_norms(irnn, x, h_0)
    assert norms.max() / norms.min() < 10
    assert norms.min() > 1
    tanh = fastrnn.RNN(I, H, dtype="float64", seed=1)
    tanh.update({"weight_hh_l0": 0.1 * tanh.params["weight_hh_l0"]})
    small = gradient_norms(tanh, x, h_0)
    assert small[0] < 1e-100 * small[-1]
    assert np.isfinite(small).all()


def test_the_norms_above_are_those_of_one_backward_pass() -> None:
    """||dL/dh_t|| from restarted runs agrees with one backward pass, whose dx is W^T times the same gradient."""
    rnn = fastrnn.RNN(3, 3, nonlinearity="identity", bias=False, dtype="float64", seed=2)
    rnn.update({"weight_ih_l0": np.eye(3)})
    x, h_0 = np.random.default_rng(3).standard_normal((9, 1, 3)), np.zeros((1, 3))
    dx = rnn.forward(x).backward(d_state=np.ones((1, 1, 3))).x
    want = np.linalg.norm(dx[:-1, 0], axis=1)  # h_t + W x_t: the gradient of x_t is that of h_t, one step later
    assert_close("norms", gradient_norms(rnn, x, h_0)[1:], want, rounding("float64", 9, 3))
