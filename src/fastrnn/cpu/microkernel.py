"""The register-blocked product: a few rows times a few panels of weights, sums kept in registers over the whole of k.

A panel is one unit block wide: U = 2 vectors of columns. Every variant sums each element by one chain of fused
multiply-adds in the order of k, so a result depends on neither the rows nor the panels that share its call.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from fastrnn.cpu import build
from fastrnn.cpu.vector import (
    BLOCK,
    Vec,
    element_pointer,
    fma_ir,
    is_flat,
    lanes,
    load_ir,
    splat_ir,
    store_ir,
    vector_ir,
    vector_registers,
)


def unit_block(array: Any) -> int:
    """Number of columns U of a panel for the dtype of `array`, a compile-time constant inside kernels."""
    raise NotImplementedError("unit_block is for compiled kernels; outside them use unit_block_of")


@overload(unit_block)
def _unit_block(array: Any) -> Any:
    columns = unit_block_of(array.dtype)

    def implementation(array: Any) -> Any:  # Numba compares the signatures, annotations included
        return columns

    return implementation


def unit_block_of(dtype: Any) -> int:
    """Number of columns U of a panel for the Numba type `dtype`."""
    return BLOCK * lanes(dtype)


def _make(rows: int, pairs: int) -> Any:
    """The micro-kernel of `rows` rows and `pairs` unit blocks; see `product_rows` for its arguments."""

    def micro(
        typingctx: Any, a: Any, a_offsets: Any, first: Any, a_kstride: Any, w: Any, w_offset: Any, w_kstride: Any,
        w_pairstride: Any, k: Any, out: Any, out_offset: Any, out_rowstride: Any, out_pairstride: Any, accumulate: Any,
    ) -> Any:  # fmt: skip
        if not (is_flat(a) and is_flat(w) and is_flat(out) and a.dtype == w.dtype == out.dtype):
            return None
        vec, size, flag = Vec(a.dtype), types.intp, types.boolean
        sig = types.void(a, a_offsets, size, size, w, size, size, size, size, out, size, size, size, flag)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit(context, builder, signature.args, args, vec, rows, pairs)
            return context.get_dummy_value()

        return sig, codegen

    micro.__name__ = f"micro_{rows}x{pairs}"
    return intrinsic(micro)


def _emit(context: Any, builder: Any, kinds: Any, args: Any, vec: Vec, rows: int, pairs: int) -> None:
    (a, a_offsets, first, a_kstride, w, w_offset, w_kstride, w_pairstride, k,
     out, out_offset, out_rowstride, out_pairstride, accumulate) = args  # fmt: skip
    intp = k.type

    def number(value: int) -> Any:
        return ir.Constant(intp, value)

    def at(pointer: Any, *terms: Any) -> Any:
        for term in terms:
            pointer = builder.gep(pointer, [term])
        return pointer

    row_pointers = []
    for row in range(rows):
        index = builder.add(first, number(row))
        offset = builder.load(element_pointer(context, builder, kinds[1], a_offsets, index))
        row_pointers.append(element_pointer(context, builder, kinds[0], a, offset))
    panels = element_pointer(context, builder, kinds[4], w, w_offset)
    panel_pointers = [at(panels, builder.mul(w_pairstride, number(pair))) for pair in range(pairs)]
    if rows >= 3:  # with fewer there is too little to do until the result's lines are here
        result = element_pointer(context, builder, kinds[9], out, out_offset)
        for row in range(rows):
            _prefetch(builder, at(result, builder.mul(out_rowstride, number(row))))

    before, loop, after = builder.block, builder.append_basic_block("k.loop"), builder.append_basic_block("k.done")
    builder.cbranch(builder.icmp_signed(">", k, number(0)), loop, after)
    builder.position_at_end(loop)
    counters = [builder.phi(intp) for _ in range(3)]  # kk, kk * a_kstride, kk * w_kstride
    _, a_index, w_index = counters
    sums = [builder.phi(vector_ir(vec)) for _ in range(rows * pairs * BLOCK)]
    weights = [
        load_ir(builder, vec, at(pointer, w_index, number(half * vec.lanes)))
        for pointer in panel_pointers
        for half in range(BLOCK)
    ]
    updated = []
    for row, pointer in enumerate(row_pointers):
        value = splat_ir(builder, builder.load(at(pointer, a_index)), vec.lanes)
        of_row = sums[row * len(weights) : (row + 1) * len(weights)]
        updated += [fma_ir(builder, vec, value, weight, total) for weight, total in zip(weights, of_row, strict=True)]
    advance = zip(counters, (number(1), a_kstride, w_kstride), strict=True)
    following = [builder.add(counter, stride) for counter, stride in advance]
    zero = ir.Constant(vector_ir(vec), [0.0] * vec.lanes)
    for phi, value in zip(counters + sums, following + updated, strict=True):
        phi.add_incoming(number(0) if phi.type == intp else zero, before)
        phi.add_incoming(value, loop)
    again = builder.cbranch(builder.icmp_signed("<", following[0], k), loop, after)
    again.set_metadata("llvm.loop", _rolled(builder.module))

    builder.position_at_end(after)
    totals = []
    for value in updated:
        total = builder.phi(vector_ir(vec))
        total.add_incoming(zero, before)
        total.add_incoming(value, loop)
        totals.append(total)
    _store_totals(builder, vec, totals, rows, pairs, at(element_pointer(context, builder, kinds[9], out, out_offset)),
                  out_rowstride, out_pairstride, accumulate)  # fmt: skip


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the line that `pointer` points to, to write to it."""
    i32 = ir.IntType(32)
    byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", (), ir.FunctionType(ir.VoidType(), [byte.type, i32, i32, i32])
    )
    builder.call(function, [byte, i32(1), i32(3), i32(1)])


def _rolled(module: Any) -> Any:
    """Loop metadata against unrolling: it gains nothing on a full set of sums and costs half of the compile time."""
    loop = module.add_metadata([f"loop {len(module.metadata)}", module.add_metadata(["llvm.loop.unroll.disable"])])
    loop.operands = (loop, loop.operands[1])  # LLVM asks that the node names itself first
    return loop


def _store_totals(
    builder: Any, vec: Vec, totals: list[Any], rows: int, pairs: int, out: Any, rowstride: Any, pairstride: Any,
    accumulate: Any,
) -> None:  # fmt: skip
    """Write the sums, or add them to what stands there."""
    pointers = []
    for row in range(rows):
        for pair in range(pairs):
            place = builder.add(builder.mul(rowstride, ir.Constant(rowstride.type, row)),
                                builder.mul(pairstride, ir.Constant(rowstride.type, pair)))  # fmt: skip
            starts = (builder.add(place, ir.Constant(rowstride.type, half * vec.lanes)) for half in range(BLOCK))
            pointers += [builder.gep(out, [start]) for start in starts]
    with builder.if_else(cgutils.as_bool_bit(builder, accumulate)) as (adding, writing):
        with adding:
            for pointer, total in zip(pointers, totals, strict=True):
                store_ir(builder, vec, builder.fadd(load_ir(builder, vec, pointer), total), pointer)
        with writing:
            for pointer, total in zip(pointers, totals, strict=True):
                store_ir(builder, vec, total, pointer)


# Rows of the largest variant: its sums leave registers for two weights and one broadcast value.
MAIN_ROWS = 12 if vector_registers() == 32 else 6
_main = _make(MAIN_ROWS, 1)
_6x1, _5x1, _4x1, _3x1 = (_make(rows, 1) for rows in (6, 5, 4, 3))
_2x2, _2x1 = (_make(2, pairs) for pairs in (2, 1))
_1x4, _1x3, _1x2, _1x1 = (_make(1, pairs) for pairs in (4, 3, 2, 1))


@register_jitable(error_model="numpy")
def every_row(
    a: Any, a_offsets: Any, first: int, n_rows: int, a_kstride: int,
    w: Any, w_offset: int, w_kstride: int, w_pairstride: int, n_pairs: int, k: int,
    out: Any, out_offset: int, out_rowstride: int, out_pairstride: int, accumulate: bool,
) -> None:  # fmt: skip
    """`product_rows` as code to compile, which only fastrnn.cpu.entry does; for the arguments see there."""
    row = 0
    while n_rows - row >= 3:
        rows = n_rows - row
        if rows >= MAIN_ROWS:
            rows = MAIN_ROWS
        elif rows > 6:
            rows = 6
        for pair in range(n_pairs):
            at = w_offset + pair * w_pairstride
            to = out_offset + row * out_rowstride + pair * out_pairstride
            if rows == MAIN_ROWS:
                _main(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                      out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
            elif rows == 5:
                _5x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                     out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
            elif rows == 4:
                _4x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                     out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
            elif rows == 3:
                _3x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                     out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
            elif MAIN_ROWS > 6:
                _6x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                     out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        row += rows
    pair = 0
    while row < n_rows and pair < n_pairs:
        at = w_offset + pair * w_pairstride
        to = out_offset + row * out_rowstride + pair * out_pairstride
        pairs = n_pairs - pair
        if n_rows - row == 2 and pairs >= 2:
            pairs = 2
            _2x2(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        elif n_rows - row == 2:
            _2x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        elif pairs >= 4:
            pairs = 4
            _1x4(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        elif pairs == 3:
            _1x3(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        elif pairs == 2:
            _1x2(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        else:
            _1x1(a, a_offsets, first + row, a_kstride, w, at, w_kstride, w_pairstride, k,
                 out, to, out_rowstride, out_pairstride, accumulate)  # fmt: skip
        pair += pairs


_entries: dict[Any, Any] = {}  # dtype: the compiled entry, kept alive because machine code points to it


def ready(dtype: Any) -> None:
    """Compile the product for the Numba type `dtype`, or load it, and let kernels link to it.

    Every kernel calls this one piece of machine code: compiled into each of them it would cost 1 s a kernel.
    """
    with build.lock:  # a second entry would take the first one's place, to which kernels may have been linked
        if dtype not in _entries:
            _entries[dtype] = build.load("entry").compiled(dtype)
            binding.add_symbol(_symbol(dtype), _entries[dtype].address)


def _symbol(dtype: Any) -> str:
    return f"fastrnn_product_rows_{dtype}"


@intrinsic
def product_rows(
    typingctx: Any, a: Any, a_first: Any, a_offsets: Any, first: Any, n_rows: Any, a_kstride: Any,
    w: Any, w_offset: Any, w_kstride: Any, w_pairstride: Any, n_pairs: Any, k: Any,
    out: Any, out_offset: Any, out_rowstride: Any, out_pairstride: Any, accumulate: Any,
) -> Any:  # fmt: skip
    """out[r, p, 0:U] (+)= sum_kk a[r, kk] w[p, kk, 0:U] for any rows and panels, bit-equal however they are split.

    Args:
        typingctx: given by Numba, not by the caller.
        a: flat array; element kk of row r stands at a_first + a_offsets[first + r] + kk * a_kstride.
        a_first: added to every row's offset. (A slice a[a_first:] would count a reference up and down at each call.)
        a_offsets: int64 [>= first + n_rows], so that the rows of a call may lie anywhere.
        first: the first row's place in a_offsets.
        n_rows: number of rows.
        a_kstride: distance of consecutive kk in `a`, elements.
        w: flat array, dtype of `a`; U columns of panel p for kk stand at w_offset + p * w_pairstride + kk * w_kstride.
        w_offset: place of the first panel.
        w_kstride: distance of consecutive kk in `w`, elements.
        w_pairstride: distance of consecutive panels in `w`, elements.
        n_pairs: number of panels, each one unit block wide.
        k: length of the sums; 0 gives zeros.
        out: flat array, dtype of `a`; row r and panel p stand at out_offset + r * out_rowstride + p * out_pairstride.
        out_offset: place of the first result.
        out_rowstride: distance of rows in `out`, elements.
        out_pairstride: distance of panels in `out`, elements.
        accumulate: add the sums to what stands in `out` instead of overwriting it.
    """
    if not (is_flat(a) and is_flat(w) and is_flat(out) and a.dtype == w.dtype == out.dtype):
        return None
    if a_offsets != types.Array(types.int64, 1, "C"):  # its bare address goes on
        return None
    ready(a.dtype)
    size = types.intp
    sig = types.void(a, size, a_offsets, *[size] * 3, w, *[size] * 5, out, *[size] * 3, size)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]
        a_data, a_first, *others = values
        values = [builder.gep(a_data, [a_first]), *others]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _symbol(a.dtype)), values)
        return context.get_dummy_value()

    return sig, codegen
