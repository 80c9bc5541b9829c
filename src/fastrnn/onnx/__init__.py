"""ONNX's RNN, LSTM and GRU: import into layers, export of layers, and a backend that runs ONNX models on fastrnn.

    layer = fastrnn.onnx.from_onnx("model.onnx")        # one layer of all recurrent nodes that follow each other
    model = fastrnn.onnx.to_onnx(layer, lengths=True)   # time, batch and lengths are inputs of any size
    fastrnn.onnx.operators(model)                       # each recurrent node by itself, also in the direction "reverse"
    y, h_n = fastrnn.onnx.prepare(model).run([x])       # a whole model, its recurrent nodes on fastrnn's kernels

Past the end of a sequence y is zero, in ONNX as here. An empty sequence keeps its initial state here; ONNX does not say
what it has there, and ONNX Runtime gives zero.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise ImportError("fastrnn.onnx: expected the package onnx, got none; install fastrnn[onnx]") from error

from fastrnn.onnx.backend import Backend, is_compatible, prepare, run_model, run_node, supports_device
from fastrnn.onnx.export import to_onnx
from fastrnn.onnx.graph import from_onnx, operators
from fastrnn.onnx.operator import Operator

__all__ = [
    "Backend", "Operator", "from_onnx", "is_compatible", "operators", "prepare", "run_model", "run_node",
    "supports_device", "to_onnx",
]  # fmt: skip
