"""A SIMD vector type for Numba, so that equations written as plain arithmetic compile to vector instructions.

LLVM's loop vectoriser is never needed: `load` a vector, write `f * c + i * g`, `store` it. No fast-math flag is ever
set and a product is fused with a sum only by `fma`, so the same expression gives the same bits wherever it is inlined.
"""

import operator
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model


@cache
def target_features() -> frozenset[str]:
    """Names of the instruction sets Numba compiles for: NUMBA_CPU_FEATURES where set, else the host's."""
    text = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(item[1:] for item in text.split(",") if item.startswith("+"))


def vector_bytes() -> int:
    """Width of a vector in bytes: 64 with AVX-512, 32 with AVX2 and FMA, else 16 (SSE2, NEON)."""
    features = target_features()
    if "avx512f" in features:
        return 64
    return 32 if {"avx2", "fma"} <= features else 16


BLOCK = 2  # registers of a unit block: what a panel is wide, and what a cell computes at once


def vector_registers() -> int:
    """Number of vector registers of the target: 32 with AVX-512 or NEON, else 16."""
    return 32 if vector_bytes() == 64 or "neon" in target_features() else 16


def has_fma() -> bool:
    """Whether the target has a fused multiply-add instruction; without one `fma` rounds twice."""
    return bool({"fma", "neon"} & target_features())


def lanes(dtype: Any) -> int:
    """Number of elements of the Numba type `dtype` in one vector."""
    return vector_bytes() * 8 // int(dtype.bitwidth)


class Vec(types.Type):  # type: ignore[misc]
    """Numba type of the float type `dtype` in all lanes of one vector register or of some, worked on side by side."""

    def __init__(self, dtype: Any, registers: int = 1) -> None:
        self.dtype, self.lanes = dtype, registers * lanes(dtype)
        super().__init__(name=f"Vec({dtype}, {self.lanes})")


class Mask(types.Type):  # type: ignore[misc]
    """Numba type of the result of comparing two vectors: one bit for each lane."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Mask({lanes})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vector_ir(vec))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, mask: Mask) -> None:
        super().__init__(manager, mask, ir.VectorType(ir.IntType(1), mask.lanes))


# LLVM building blocks, shared with microkernel.py


def vector_ir(vec: Vec) -> ir.VectorType:
    """LLVM type of `vec`."""
    return ir.VectorType(ir.FloatType() if vec.dtype == types.float32 else ir.DoubleType(), vec.lanes)


def splat_ir(builder: ir.IRBuilder, scalar: Any, lanes: int) -> Any:
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def load_ir(builder: ir.IRBuilder, vec: Vec, pointer: Any) -> Any:
    """Load `vec` from an element pointer of any alignment."""
    address = builder.bitcast(pointer, vector_ir(vec).as_pointer())
    return builder.load(address, align=vec.dtype.bitwidth // 8)


def store_ir(builder: ir.IRBuilder, vec: Vec, value: Any, pointer: Any) -> None:
    """Store `value` at an element pointer of any alignment."""
    address = builder.bitcast(pointer, vector_ir(vec).as_pointer())
    builder.store(value, address, align=vec.dtype.bitwidth // 8)


def call_ir(builder: ir.IRBuilder, vec: Vec, name: str, arguments: list[Any]) -> Any:
    """Call the LLVM intrinsic `name` that maps vectors to a vector."""
    kind = vector_ir(vec)
    overloaded = f"llvm.{name}.v{vec.lanes}f{vec.dtype.bitwidth}"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, signature, overloaded)
    return builder.call(function, arguments)


def fma_ir(builder: ir.IRBuilder, vec: Vec, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the target can."""
    # llvm.fma without the instruction is a libm call per lane, 50 times slower than the two operations.
    return call_ir(builder, vec, "fma", [a, b, c]) if has_fma() else builder.fadd(builder.fmul(a, b), c)


def element_pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a flat array."""
    struct = context.make_array(array_type)(context, builder, array)
    return builder.gep(struct.data, [offset])


def is_flat(array: Any) -> bool:
    """Whether the Numba type is a one-dimensional C-contiguous array of float32 or float64."""
    is_vector = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return is_vector and isinstance(array.dtype, types.Float)


# Memory


def _loads(name: str, registers: int, what: str) -> Any:
    def typing(typingctx: Any, array: Any, offset: Any) -> Any:
        if not is_flat(array) or not isinstance(offset, types.Integer):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return load_ir(builder, signature.return_type, element_pointer(context, builder, signature.args[0], *args))

        return Vec(array.dtype, registers)(array, types.intp), codegen

    typing.__name__ = name
    typing.__doc__ = f"The {what} array[offset : offset + lanes]; array [any] is flat, the offset in elements."
    return intrinsic(typing)


load = _loads("load", 1, "vector")
load_block = _loads("load_block", BLOCK, "unit block, as one vector,")


def _fits(vec: Any, array: Any) -> bool:
    """Whether the Numba type is a vector of the elements of the array's."""
    return isinstance(vec, Vec) and vec.dtype == array.dtype


@intrinsic
def store(typingctx: Any, array: Any, offset: Any, vec: Any) -> Any:
    """Write the vector to array[offset : offset + lanes]; array [any] is flat, the offset in elements."""
    if not is_flat(array) or not isinstance(offset, types.Integer) or not _fits(vec, array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store_ir(builder, vec, args[2], element_pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vec), codegen


@intrinsic(prefer_literal=True)
def load_blocks(typingctx: Any, array: Any, offset: Any, stride: Any, count: Any) -> Any:
    """The unit blocks at offset, offset + stride, ... of a flat array as a tuple; `count` is known at compile time."""
    if not is_flat(array) or not isinstance(count, types.IntegerLiteral):
        return None
    vec = Vec(array.dtype, BLOCK)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, stride, _ = args
        vectors = []
        for _ in range(count.literal_value):
            vectors.append(load_ir(builder, vec, element_pointer(context, builder, signature.args[0], array, offset)))
            offset = builder.add(offset, stride)
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vec, count.literal_value)(array, types.intp, types.intp, count), codegen


@intrinsic
def store_tuple(typingctx: Any, array: Any, offset: Any, stride: Any, vectors: Any) -> Any:
    """Write the tuple's vectors at offset, offset + stride, ... of a flat array."""
    if not is_flat(array) or not isinstance(vectors, types.UniTuple) or not _fits(vectors.dtype, array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, stride, values = args
        for value in cgutils.unpack_tuple(builder, values, vectors.count):
            store_ir(builder, vectors.dtype, value, element_pointer(context, builder, signature.args[0], array, offset))
            offset = builder.add(offset, stride)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), codegen


@intrinsic
def add_tuple(typingctx: Any, array: Any, offset: Any, stride: Any, vectors: Any) -> Any:
    """Add the tuple's vectors to what stands at offset, offset + stride, ... of a flat array."""
    if not is_flat(array) or not isinstance(vectors, types.UniTuple) or not _fits(vectors.dtype, array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, stride, values = args
        for value in cgutils.unpack_tuple(builder, values, vectors.count):
            pointer = element_pointer(context, builder, signature.args[0], array, offset)
            store_ir(builder, vectors.dtype, builder.fadd(load_ir(builder, vectors.dtype, pointer), value), pointer)
            offset = builder.add(offset, stride)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), codegen


@intrinsic
def load_columns(typingctx: Any, array: Any, offset: Any, stride: Any) -> Any:
    """The columns of a square block of a flat array, whose rows, `lanes` of them, start `stride` elements apart."""
    if not (is_flat(array) and isinstance(offset, types.Integer) and isinstance(stride, types.Integer)):
        return None
    vec = Vec(array.dtype)
    n = vec.lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, stride = args
        vectors = []
        for _ in range(n):
            vectors.append(load_ir(builder, vec, element_pointer(context, builder, signature.args[0], array, offset)))
            offset = builder.add(offset, stride)
        kind = ir.VectorType(ir.IntType(32), n)
        low, high = ([k // 2 + start + k % 2 * n for k in range(n)] for start in (0, n // 2))
        for _ in range(n.bit_length() - 1):  # each round riffles the upper half of the rows into the lower
            vectors = [
                builder.shuffle_vector(vectors[k // 2], vectors[k // 2 + n // 2], ir.Constant(kind, (low, high)[k % 2]))
                for k in range(n)
            ]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vec, n)(array, types.intp, types.intp), codegen


# Values


def _splats(name: str, registers: int) -> Any:
    def typing(typingctx: Any, like: Any, scalar: Any) -> Any:
        if not (isinstance(like, Vec) or is_flat(like)) or not isinstance(scalar, types.Number):
            return None
        vec = like if isinstance(like, Vec) else Vec(like.dtype, registers)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return splat_ir(builder, args[1], vec.lanes)

        return vec(like, vec.dtype), codegen

    typing.__name__ = name
    typing.__doc__ = "A vector with `scalar` in every lane, like `like`: a vector, or a flat array of its dtype."
    return intrinsic(typing)


splat = _splats("splat", 1)
splat_block = _splats("splat_block", BLOCK)


@intrinsic
def constant(typingctx: Any, like: Any, single: Any, double: Any) -> Any:
    """A vector filled with `single` where `like` is a float32 vector, with `double` where it is float64."""
    if not isinstance(like, Vec):
        return None
    chosen = 1 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return splat_ir(builder, args[chosen], like.lanes)

    return like(like, like.dtype, like.dtype), codegen


@intrinsic
def polynomial(typingctx: Any, x: Any, single: Any, double: Any) -> Any:
    """sum_k c[k] x**k by Horner's rule; c is `single` where x is a float32 vector, `double` where it is float64."""
    if not isinstance(x, Vec) or not isinstance(single, types.UniTuple) or not isinstance(double, types.UniTuple):
        return None
    chosen = 1 if x.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        coefficient = signature.args[chosen].dtype
        terms = [
            splat_ir(builder, context.cast(builder, value, coefficient, x.dtype), x.lanes)
            for value in cgutils.unpack_tuple(builder, args[chosen])
        ]
        total = terms.pop()
        while terms:
            total = fma_ir(builder, x, total, args[0], terms.pop())
        return total

    return x(x, single, double), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once (twice where the target has no such instruction); at most two of them may be scalars."""
    vectors = {kind for kind in (a, b, c) if isinstance(kind, Vec)}
    if len(vectors) != 1 or not all(isinstance(kind, (Vec, types.Number)) for kind in (a, b, c)):
        return None
    vec = vectors.pop()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [
            value if isinstance(kind, Vec) else splat_ir(builder, value, vec.lanes)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        return fma_ir(builder, vec, *operands)

    return vec(*(kind if isinstance(kind, Vec) else vec.dtype for kind in (a, b, c))), codegen


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where the mask is set, else b: nothing of the lane not chosen, NaN included, reaches the result."""
    vec = a if isinstance(a, Vec) else b
    if not isinstance(mask, Mask) or not isinstance(vec, Vec) or mask.lanes != vec.lanes:
        return None
    if not all(kind == vec or isinstance(kind, types.Number) for kind in (a, b)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [
            value if isinstance(kind, Vec) else splat_ir(builder, value, vec.lanes)
            for kind, value in zip(signature.args[1:], args[1:], strict=True)
        ]
        return builder.select(args[0], *operands)

    return vec(mask, *(kind if isinstance(kind, Vec) else vec.dtype for kind in (a, b))), codegen


def _extremum(comparison: str, name: str) -> Any:
    def typing(typingctx: Any, limit: Any, x: Any) -> Any:
        if not isinstance(x, Vec) or not isinstance(limit, (Vec, types.Number)):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bound = args[0] if isinstance(signature.args[0], Vec) else splat_ir(builder, args[0], x.lanes)
            beyond = builder.fcmp_ordered(comparison, bound, args[1])
            # A constant bound folds the NaN test away: then this is one minps or maxps.
            return builder.select(builder.or_(beyond, builder.fcmp_unordered("uno", bound, bound)), bound, args[1])

        return x(limit if isinstance(limit, Vec) else x.dtype, x), codegen

    typing.__name__ = name
    typing.__doc__ = f"The {name} of `limit` (vector or scalar) and the vector x in each lane; NaN in either gives NaN."
    return intrinsic(typing)


minimum = _extremum("<", "minimum")
maximum = _extremum(">", "maximum")


def _unary(name: str, text: str) -> Any:
    def typing(typingctx: Any, x: Any) -> Any:
        if not isinstance(x, Vec):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return call_ir(builder, x, name, list(args))

        return x(x), codegen

    typing.__name__, typing.__doc__ = name, text
    return intrinsic(typing)


absolute = _unary("fabs", "|x|, lane by lane.")
sqrt = _unary("sqrt", "The square root, lane by lane.")


@intrinsic
def copysign(typingctx: Any, magnitude: Any, sign: Any) -> Any:
    """|magnitude| with the sign bit of `sign`, lane by lane."""
    if not isinstance(magnitude, Vec) or magnitude != sign:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call_ir(builder, magnitude, "copysign", list(args))

    return magnitude(magnitude, sign), codegen


@intrinsic
def exponent_from_low_bits(typingctx: Any, x: Any) -> Any:
    """Move the lowest bits of each lane into its exponent field, clearing the rest: 2**n for low bits n + bias."""
    if not isinstance(x, Vec):
        return None
    mantissa = 23 if x.dtype == types.float32 else 52

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(x.dtype.bitwidth), x.lanes)
        shift = ir.Constant(integers, [mantissa] * x.lanes)
        return builder.bitcast(builder.shl(builder.bitcast(args[0], integers), shift), vector_ir(x))

    return x(x), codegen


@intrinsic
def lane_sum(typingctx: Any, x: Any) -> Any:
    """The sum of all lanes by repeated halving (upper half plus lower half): a fixed order."""
    if not isinstance(x, Vec):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], x.lanes
        while width > 1:
            width //= 2
            index = ir.VectorType(ir.IntType(32), width)
            lower, upper = (
                builder.shuffle_vector(value, value, ir.Constant(index, list(range(start, start + width))))
                for start in (0, width)
            )
            value = builder.fadd(lower, upper)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return x.dtype(x), codegen


# Operators: vector with vector, vector with scalar, scalar with vector


def _common(a: Any, b: Any) -> Any:
    """The vector type of an operation on a and b, or None where there is none."""
    vec = a if isinstance(a, Vec) else b
    fits = isinstance(vec, Vec) and all(kind == vec or isinstance(kind, types.Number) for kind in (a, b))
    return vec if fits else None


def _register_binary(operators: tuple[Any, ...], build: Any, is_comparison: bool) -> None:
    def generic(self: Any, args: Any, kws: Any) -> Any:
        vec = _common(*args) if len(args) == 2 else None
        if vec is None:
            return None
        result = Mask(vec.lanes) if is_comparison else vec
        return signature(result, *(kind if isinstance(kind, Vec) else vec.dtype for kind in args))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vec = _common(*sig.args)
        return build(
            builder,
            *(
                value if isinstance(kind, Vec) else splat_ir(builder, value, vec.lanes)
                for kind, value in zip(sig.args, args, strict=True)
            ),
        )

    for function in operators:
        infer_global(function)(type(f"_Vec_{function.__name__}", (AbstractTemplate,), {"generic": generic}))
        for kinds in ((Vec, Vec), (Vec, types.Float), (types.Float, Vec)):
            lower_builtin(function, *kinds)(lower)


_register_binary((operator.add, operator.iadd), ir.IRBuilder.fadd, is_comparison=False)
_register_binary((operator.sub, operator.isub), ir.IRBuilder.fsub, is_comparison=False)
_register_binary((operator.mul, operator.imul), ir.IRBuilder.fmul, is_comparison=False)
_register_binary((operator.truediv, operator.itruediv), ir.IRBuilder.fdiv, is_comparison=False)


def _compare(text: str) -> Any:
    # "!=" holds for NaN, every other comparison fails for it, as in Python.
    if text == "!=":
        return lambda builder, a, b: builder.fcmp_unordered("!=", a, b)
    return lambda builder, a, b: builder.fcmp_ordered(text, a, b)


for _text, _function in (
    ("<", operator.lt),
    ("<=", operator.le),
    (">", operator.gt),
    (">=", operator.ge),
    ("==", operator.eq),
    ("!=", operator.ne),
):
    _register_binary((_function,), _compare(_text), is_comparison=True)


@infer_global(operator.neg)
class _VecNegate(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if len(args) == 1 and isinstance(args[0], Vec) else None


@lower_builtin(operator.neg, Vec)
def _negate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])
