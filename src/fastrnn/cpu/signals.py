"""What threads inside a kernel tell each other: numbers in memory, written and read in order.

Source: LLVM's atomic loads and stores, with the release-acquire pairs of the C++ memory model.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastrnn.cpu.vector import element_pointer, target_features

SPACING = 16  # int64 numbers from one thread's to the next: two cache lines, which some processors fetch as a pair
_WORD = 8
_SYSTEM = 15  # the scope of ARM's barrier


def _is_words(array: Any) -> bool:
    """Whether the Numba type is a flat array of int64."""
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == types.int64


@intrinsic
def tell(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write array[index] = value, behind everything that this thread wrote before."""
    if not _is_words(array) or not isinstance(index, types.Integer) or not isinstance(value, types.Integer):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "release", _WORD)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def told(typingctx: Any, array: Any, index: Any) -> Any:
    """Read array[index]; what its writer wrote before can be read from here on."""
    if not _is_words(array) or not isinstance(index, types.Integer):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, signature.args[0], *args)
        return builder.load_atomic(pointer, "acquire", _WORD)

    return types.int64(array, types.intp), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Let a moment pass, as a thread that asks again and again should."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if "neon" in target_features():
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            barrier = cgutils.get_or_insert_function(
                builder.module, kind, "llvm.aarch64.isb"
            )  # its yield takes no time
            builder.call(barrier, [ir.Constant(ir.IntType(32), _SYSTEM)])
        elif "sse2" in target_features():
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen
