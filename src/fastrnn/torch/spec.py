"""What is fixed for a call of a module, in a form that torch.compile can trace and a cache can look up."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

import fastrnn

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN_TANH": (fastrnn.RNN, {"nonlinearity": "tanh"}),
    "RNN_RELU": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "RNN_IDENTITY": (fastrnn.RNN, {"nonlinearity": "identity"}),
    "LSTM": (fastrnn.LSTM, {}),
    "GRU": (fastrnn.GRU, {}),
    "GRU_RESET_BEFORE": (fastrnn.GRU, {"reset_after": False}),
}

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
GPU_DTYPES = {**DTYPES, torch.float16: "float16", torch.bfloat16: "bfloat16"}


def device_of(tensor: torch.Tensor) -> str:
    """A tensor's device by the name that the core has for it: "cpu", "cuda:N"; any other by torch's name."""
    return "cpu" if tensor.is_cpu else str(tensor.device)


def on_gpu(device: str) -> bool:
    """Whether a device of this name is one whose tensors the CUDA kernels run on."""
    return device.startswith("cuda")


def dtypes(device: str) -> dict[torch.dtype, str]:
    """The dtypes that a device has kernels for."""
    return GPU_DTYPES if on_gpu(device) else DTYPES


class Spec(NamedTuple):
    """A call's constants. mode: key of KINDS. single: one step without the axis of time, as the cells take it."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int
    single: bool
    cells: bool  # c after every step is an output too
    peephole: bool  # each unit its own
    dense: bool  # peepholes through a matrix
    coupled: bool
    diagonal: bool
    layer_norm: bool
    zoneout_h: float
    zoneout_c: float
    recurrent_dropout: float
    recompute: bool

    @property
    def cell_state(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return self.mode == "LSTM"

    @property
    def outputs(self) -> int:
        """How many tensors a call yields: y (but for a single step), h_n, c_n, and c of every layer."""
        return (not self.single) + 1 + self.cell_state + self.num_layers * self.cells


@lru_cache(maxsize=1024)
def layer(spec: Spec, dtype: str, device: str = "cpu") -> Any:
    """The core's layer, without parameters: its checks, names, shapes and layouts.

    Raises:
        ImportError: a CUDA device, and no CuPy. RuntimeError: CuPy finds no such GPU.
    """
    kind, options = KINDS[spec.mode]
    zoneout: Any = spec.zoneout_h
    if spec.cell_state:
        zoneout = (spec.zoneout_h, spec.zoneout_c)
        options = {
            "proj_size": spec.proj_size, "peephole": "dense" if spec.dense else spec.peephole, "coupled": spec.coupled,
        }  # fmt: skip
    return kind._without_parameters(
        input_size=spec.input_size, hidden_size=spec.hidden_size, num_layers=spec.num_layers, bias=bool(spec.bias),
        batch_first=spec.batch_first, bidirectional=spec.bidirectional, dtype=dtype, device=device, seed=0,
        recurrent="diagonal" if spec.diagonal else "full", layer_norm=spec.layer_norm, zoneout=zoneout,
        recurrent_dropout=spec.recurrent_dropout, save="recompute" if spec.recompute else "gates", **options,
    )  # fmt: skip
