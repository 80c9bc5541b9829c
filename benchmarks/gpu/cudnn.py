"""What cuDNN needs: torch's module as shipped, then each algorithm called directly, on the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu import device
from benchmarks.gpu.compare import Case, Problem, Torch, error, judge, release, to_cupy, to_torch
from benchmarks.gpu.cudnn_library import ALGORITHMS, GATES, Library, Rnn
from benchmarks.gpu.record import Record

# FlashRNN's point first, where cuDNN is known to be at its best; then where it takes other ways.
CASES = [
    *(Case(cell, "float16", 1024, 16, 768) for cell in ("lstm", "gru")), Case("lstm", "float16", 1024, 1, 128),
    Case("lstm", "bfloat16", 1024, 16, 768), Case("lstm", "float32", 1024, 16, 768),
    *(Case("lstm", "float16", 512, batch, hidden) for hidden in (128, 512, 1024) for batch in (1, 16, 64, 128)),
    *(Case("gru", dtype, 512, 16, hidden) for dtype in ("float16", "float32") for hidden in (128, 512, 1024)),
    *(Case("rnn_tanh", "float16", 512, 16, hidden) for hidden in (512, 1024)),
]  # fmt: skip


def run(record: Record) -> None:
    """Measure every case with torch, then with every algorithm."""
    for case in CASES:
        record.run(f"{case} torch", lambda case=case: by_torch(case))
    for case in CASES:
        for algorithm in ALGORITHMS:
            record.run(f"{case} {algorithm}", lambda case=case, algorithm=algorithm: directly(case, algorithm))


def by_torch(case: Case) -> dict[str, Any]:
    """torch as shipped: it chooses the algorithm."""
    release()
    peer = Torch(case, Problem(case))
    return {"times": device.times({"infer": peer.infer, "train": peer.train}), "allow_tf32": False}


def directly(case: Case, algorithm: str) -> dict[str, Any]:
    """One algorithm, checked against float64 beside torch's own results."""
    import torch

    release()
    problem = Problem(case)
    d_y = problem.block_gradient()
    want = Torch(case, problem, torch.float64).results(d_y, problem.block())
    peer = error(Torch(case, problem).results(d_y), want, problem)
    sizes = (case.T, case.B, case.H, case.H, case.layers)
    with Rnn(Library(), zeros, case.cell, case.dtype, algorithm, sizes) as rnn:
        direct = Direct(case, problem, rnn)
        own = error(direct.results(d_y), want, problem)
        judge(own, peer, case.dtype)
        calls: dict[str, Callable[[], object]] = {"infer": direct.infer, "train": direct.train}
        return {"times": device.times(calls), "error": own[0], "torch error": peer[0]}


class Direct:
    """cuDNN called with one algorithm."""

    def __init__(self, case: Case, problem: Problem, rnn: Rnn) -> None:
        self.case, self.rnn = case, rnn
        self.params = {name: to_cupy(value) for name, value in problem.params.items()}
        self.x, self.d_y = to_cupy(problem.x), to_cupy(problem.d_y)
        self.y, self.dx = (to_cupy(problem.x.new_empty(problem.x.shape)) for _ in range(2))
        self._each_gate(self.rnn.weight_space, self.params, to_space=True)

    def _each_gate(self, space: Any, arrays: dict[str, Any], to_space: bool) -> None:
        """Copy between torch's parameters and cuDNN's weight space."""
        import cupy

        for name, gate, address in self.rnn.places(space):
            part = arrays[name].reshape(GATES[self.case.cell], -1)[gate]
            source, target = (part.data.ptr, address) if to_space else (address, part.data.ptr)
            cupy.cuda.runtime.memcpy(target, source, part.nbytes, cupy.cuda.runtime.memcpyDeviceToDevice)

    def infer(self) -> None:
        self.rnn.forward(self.x.data.ptr, self.y.data.ptr, training=False)

    def train(self) -> None:
        self._train(self.d_y)

    def _train(self, d_y: Any) -> None:
        self.rnn.weight_gradient.fill(0)
        self.rnn.forward(self.x.data.ptr, self.y.data.ptr, training=True)
        self.rnn.backward(self.x.data.ptr, self.y.data.ptr, d_y.data.ptr, self.dx.data.ptr)

    def results(self, d_y: Any) -> dict[str, Any]:
        """y and gradients in float64."""
        self._train(to_cupy(d_y))
        grads = {name: value.copy() for name, value in self.params.items()}
        self._each_gate(self.rnn.weight_gradient, grads, to_space=False)
        named = {"y": self.y, "d x": self.dx, **{f"d {name}": value for name, value in grads.items()}}
        return {name: to_torch(value) for name, value in named.items()}


def zeros(size: int) -> Any:
    """So many bytes of the device; at least one, so that there is an address."""
    import cupy

    return cupy.zeros(max(size, 1), "uint8")
