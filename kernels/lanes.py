"""Operations on LANES neighbouring numbers at once, for the compiled loops of other kernels.

Written with LLVM's vectors, since compilers leave such short loops scalar, several times slower. LLVM uses two or four
registers if a processor has none of 256 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.operands import F32, I32, I64, Operands

LANES = 8
_VECTOR = ir.VectorType(F32, LANES)
# Neighbouring cells of a table that are a block, and rows of products that are worked on at once: together they take 12
# of the 16 registers of 256 bits.
BLOCK, TILE_ROWS = 16, 6
FLOATS = ir.VectorType(F32, BLOCK)


def padded(width: Any) -> Any:
    """Return the least multiple of LANES that is at least width."""
    return -(-width // LANES) * LANES


def products(here: Operands, pointers: Sequence[Any], which: int, start: Any, stride: Any, count: Any) -> list[Any]:
    """Return, for each pointer to float32, Σ pointer[t] · array[start + t·stride:][:BLOCK] over t below count."""
    builder, mul_add = here.builder, _mul_add(here.builder)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * BLOCK)) for _ in pointers]
    with cgutils.for_range(builder, count) as loop:
        block = here.load(which, builder.add(start, builder.mul(loop.index, stride)), FLOATS)
        for pointer, total in zip(pointers, sums, strict=True):
            in_all = here.in_all(builder.load(builder.gep(pointer, [loop.index])), FLOATS)
            builder.store(builder.call(mul_add, [in_all, block, builder.load(total)]), total)
    return [builder.load(total) for total in sums]


def most(builder: Any, x: Any, y: Any) -> Any:
    """Return the greater of two vectors, lane by lane."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def most_of(builder: Any, x: Any) -> Any:
    """Return the greatest lane of a vector; it has a power of two of them."""
    lanes = x.type.count
    step, whole = lanes // 2, ir.VectorType(I32, lanes)
    while step:
        turned = ir.Constant(whole, [(lane + step) % lanes for lane in range(lanes)])
        x, step = most(builder, x, builder.shuffle_vector(x, x, turned)), step // 2
    return builder.extract_element(x, ir.Constant(I32, 0))


@compiled
def clip_cells(cells, at):
    """Clip cells[at:at+BLOCK] to [0, 1], float32; NaN stays."""
    block = cells[at : at + BLOCK]  # a view, whose places are known not to count from the end
    for i in range(BLOCK):
        value = block[i]
        value = np.float32(0) if value < 0 else value
        block[i] = np.float32(1) if value > 1 else value


@intrinsic
def compare(typingctx: Any, cells: Any, a: Any, b: Any, product: Any, top: Any, at: Any) -> Any:
    """Combine cells[a:a+LANES] and cells[b:b+LANES], raise top[at:at+LANES] to the result, and return its greatest.

    By product (if that boolean is true) or by mean; where the first is below 0 the second alone counts. Arrays float32,
    one-dimensional.
    """
    signature = types.float32(cells, types.int64, types.int64, types.boolean, top, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)
        x, y = here.load(0, args[1], _VECTOR), here.load(0, args[2], _VECTOR)
        mean = builder.fmul(builder.fadd(x, y), ir.Constant(_VECTOR, [0.5] * LANES))
        both = builder.select(args[3], builder.fmul(x, y), mean)
        said = builder.select(builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, [0.0] * LANES)), y, both)
        here.store(most(builder, said, here.load(4, args[5], _VECTOR)), 4, args[5])
        return most_of(builder, said)

    return signature, codegen


@intrinsic
def copy_lanes(typingctx: Any, source: Any, at: Any, count: Any, out: Any, to: Any) -> Any:
    """Do out[to:][:padded(count)] = source[at:][:count], then 0; tell whether no NaN was among it.

    Reads up to `padded(count)` numbers. Arrays float32, one-dimensional.
    """
    signature = types.boolean(source, types.int64, types.int64, out, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here, whole = Operands(context, builder, signature, args), ir.VectorType(I32, LANES)
        numbers, none = ir.Constant(whole, list(range(LANES))), ir.Constant(_VECTOR, [0.0] * LANES)
        nan = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES))
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), args[2], ir.Constant(I64, LANES)) as (lane, _):
            left = here.in_all(builder.trunc(builder.sub(args[2], lane), I32), whole)
            some = here.load(0, builder.add(args[1], lane), _VECTOR)
            some = builder.select(builder.icmp_signed("<", numbers, left), some, none)
            here.store(some, 3, builder.add(args[4], lane))
            builder.store(builder.or_(builder.load(nan), builder.fcmp_unordered("uno", some, some)), nan)
        mask = builder.bitcast(builder.load(nan), ir.IntType(LANES))
        return builder.icmp_unsigned("==", mask, ir.Constant(ir.IntType(LANES), 0))

    return signature, codegen


@intrinsic
def write_row_sums(
    typingctx: Any,
    out: Any,
    at: Any,
    rows: Any,
    stride: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    slots: Any,
    weights: Any,
    count: Any,
) -> Any:
    """Do out[at+x:][:BLOCK] = Σ weights[t] · rows[slots[t]·stride + x:][:BLOCK] over t below count, for x = a, b, c, d.

    Four blocks at once, since their sums do not wait for each other; each is added up term by term, so that terms of 0
    change no bit of it. Arrays float32, slots int32, one-dimensional.
    """
    numbers = types.int64
    signature = types.void(out, numbers, rows, *[numbers] * 5, slots, weights, numbers)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here, mul_add, starts = Operands(context, builder, signature, args), _mul_add(builder), args[4:8]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * BLOCK)) for _ in starts]
        with cgutils.for_range(builder, args[10]) as loop:
            in_all = here.in_all(here.load(9, loop.index), FLOATS)
            row = builder.mul(builder.sext(here.load(8, loop.index), I64), args[3])
            for start, total in zip(starts, sums, strict=True):
                some = here.load(2, builder.add(row, start), FLOATS)
                builder.store(builder.call(mul_add, [in_all, some, builder.load(total)]), total)
        for start, total in zip(starts, sums, strict=True):
            here.store(builder.load(total), 0, builder.add(args[1], start))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def write_products(
    typingctx: Any, rows: Any, starts: Any, first: Any, lanes: Any, at: Any, count: Any, out: Any, to: Any, stride: Any
) -> Any:
    """Do out[to+r·stride:][:BLOCK] = Σ rows[starts[first+r]+t]·lanes[at+t·BLOCK:][:BLOCK] over t below count.

    For r below TILE_ROWS. Arrays float32, starts int64, one-dimensional.
    """
    numbers = types.int64
    signature = types.void(rows, starts, numbers, lanes, numbers, numbers, out, numbers, numbers)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)
        pointers = [here.pointer(0, here.load(1, here.plus(args[2], r))) for r in range(TILE_ROWS)]
        for r, total in enumerate(products(here, pointers, 3, args[4], ir.Constant(I64, BLOCK), args[5])):
            here.store(total, 6, builder.add(args[7], builder.mul(args[8], ir.Constant(I64, r))))
        return context.get_dummy_value()

    return signature, codegen


def _mul_add(builder: Any) -> Any:
    of_three = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return cgutils.get_or_insert_function(builder.module, of_three, f"llvm.fmuladd.v{BLOCK}f32")
