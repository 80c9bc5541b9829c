"""What one layer cannot do without, counted, and the time that a machine of given peaks needs for it at least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Demands of a call.

    flops: of the matrix products, a multiply-add as two; element-wise work is not counted. Training does three times
        the forward pass: dax and dah times the weights, and both weight gradients.
    recurrent: bytes of U, read once per time step and pass, from whichever cache holds it (its very first reading is
        in `once`). recurrent_size: bytes of U itself.
    once: bytes of every array that the caller gives or gets, each counted once (dU, dW, db, dx, states included).
    """

    flops: int
    recurrent_size: int
    recurrent: int
    once: int

    @property
    def traffic(self) -> int:
        """Bytes of both kinds together."""
        return self.recurrent + self.once

    def __add__(self, other: Work) -> Work:
        """Work of two calls, one after the other; the larger U decides from which cache it is read."""
        return Work(
            self.flops + other.flops, max(self.recurrent_size, other.recurrent_size), self.recurrent + other.recurrent,
            self.once + other.once,
        )  # fmt: skip


def work(
    *, steps: int, batch: int, rows: int, longest: int, I: int, G: int, H: int, itemsize: int, states: int,
    train: bool, P: int = 0, diagonal: bool = False, dense: int = 0,
) -> Work:  # fmt: skip
    """Count what one layer in one direction must compute and move.

    Args:
        steps: T, the rows of y.
        batch: B.
        rows: time steps of all sequences together, T*B without lengths.
        longest: time steps of the longest sequence, T without lengths.
        I: width of the input.
        G: gates.
        H: hidden size.
        itemsize: bytes of an element.
        states: how many state arrays the cell carries: h, or h and c.
        train: forward and backward with every gradient, else forward alone.
        P: width of the projection, 0 without one.
        diagonal: U is a vector per gate.
        dense: gates that see the cell state through a matrix; their matrices count as part of U.
    """
    passes, output = 3 if train else 1, P or H
    U = G * H * (1 if diagonal else output) + dense * H * H
    weights = G * H * I + U + 2 * G * H + P * H
    arrays = rows * I + steps * batch * output + 2 * batch * (output + (states - 1) * H)
    return Work(
        flops=passes * 2 * rows * (G * H * I + U + P * H),
        recurrent_size=U * itemsize,
        recurrent=max(0, (2 if train else 1) * longest - 1) * U * itemsize,
        once=(2 if train else 1) * (weights + arrays) * itemsize,
    )


def times(
    needs: Work, flops_per_s: float, read_once_per_s: float, read_weights_per_s: float
) -> tuple[float, float, float]:
    """Seconds that each single demand takes at least: products, arrays read and written once, recurrent weights.

    It takes U to pass whole through the core in every step; a kernel that keeps a part of U in registers or in a nearer
    cache from step to step can go below the third, never below the first two.

    Args:
        needs: the work.
        flops_per_s: measured peak of fused multiply-adds.
        read_once_per_s: measured bandwidth over a working set of `needs.once` bytes.
        read_weights_per_s: measured bandwidth over a working set of `needs.recurrent_size` bytes.
    """
    return needs.flops / flops_per_s, needs.once / read_once_per_s, needs.recurrent / read_weights_per_s


def floor(needs: Work, flops_per_s: float, read_once_per_s: float, read_weights_per_s: float) -> float:
    """The roofline: seconds below which the slowest of the three demands of `times` cannot be met on this machine."""
    return max(times(needs, flops_per_s, read_once_per_s, read_weights_per_s))
