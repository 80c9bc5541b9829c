"""Weights that move: torch, Keras, ONNX, safetensors, and the other convention of the GRU's update gate.

    from_torch   from_keras   from_onnx   from_safetensors      make a layer
    to_torch     to_keras     to_onnx     to_safetensors        go back: there and back again gives the same bits
    flip_update_gate                                            h = z * n + (1 - z) * h_prev, and back

Only `to_torch` needs torch, only `from_onnx` and `to_onnx`, which are fastrnn.onnx's, need onnx, none needs Keras.
"""

from typing import Any

from fastrnn.convert.files import from_safetensors, to_safetensors
from fastrnn.convert.keras import from_keras, to_keras
from fastrnn.convert.torch import from_torch, to_torch
from fastrnn.convert.updates import flip_update_gate

__all__ = [
    "flip_update_gate", "from_keras", "from_onnx", "from_safetensors", "from_torch", "to_keras", "to_onnx",
    "to_safetensors", "to_torch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import fastrnn.onnx, and with it onnx, when one of its functions is asked for."""
    if name in ("from_onnx", "to_onnx"):
        from fastrnn import onnx

        return getattr(onnx, name)
    raise AttributeError(f"module 'fastrnn.convert' has no attribute {name!r}")
