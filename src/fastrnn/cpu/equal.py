"""Whether memory still holds the bits it held: how an adapter learns that parameters it does not own have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from fastrnn.cpu.build import kernel

BLOCK = 4096  # bytes between two looks at the outcome: enough for SIMD, few enough to stop early


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to 32-bit words."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.intp), codegen


@kernel
def same_bits(addresses: Any, words: Any, copy: Any) -> bool:
    """Whether the 32-bit words at each address are those of `copy`, which holds all of them one after the other.

    addresses, words: [n] int64, where each stretch begins and its number of words. copy: int32. The caller keeps the
    memory alive.
    """
    start = 0
    for k in range(addresses.size):
        live, kept = carray(_pointer(addresses[k]), (words[k],)), copy[start : start + words[k]]
        for first in range(0, words[k], BLOCK // 4):
            a, b = live[first : first + BLOCK // 4], kept[first : first + BLOCK // 4]
            difference = np.int32(0)  # 32 bits and indices from 0: otherwise LLVM makes no SIMD code of this
            for i in range(a.size):
                difference |= a[i] ^ b[i]
            if difference != 0:
                return False
        start += words[k]
    return True
