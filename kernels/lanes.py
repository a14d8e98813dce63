"""Operations on LANES neighbouring numbers at once, for the compiled loops of other kernels.

Written in LLVM's vectors, since compilers leave loops that are this short scalar, several times slower. LLVM takes two
or four registers where a processor has none of 256 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
# A block of neighbouring cells of a table, and how many rows of products are worked on at once: they take 12 of the 16
# registers of 256 bits.
BLOCK, TILE_ROWS = 16, 6
_BLOCK = ir.VectorType(ir.FloatType(), BLOCK)
_I64, _I32 = ir.IntType(64), ir.IntType(32)


def padded(width: Any) -> Any:
    """Return the least multiple of LANES that is at least width."""
    return -(-width // LANES) * LANES


class Arrays:
    """The arguments of an intrinsic that are arrays, and where in them to work."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def pointer(self, which: int, index: Any) -> Any:
        """Return where a number of an array is."""
        array = self.context.make_array(self.signature.args[which])(self.context, self.builder, self.args[which])
        return self.builder.gep(array.data, [index])

    def block(self, which: int, index: Any) -> Any:
        """Return where BLOCK numbers begin."""
        return self.builder.bitcast(self.pointer(which, index), _BLOCK.as_pointer())

    def place(self, which: int, offset: int) -> Any:
        """Return where LANES numbers begin, whose place is an argument too."""
        return self.builder.bitcast(self.pointer(which, self.args[offset]), _VECTOR.as_pointer())

    def load(self, which: int, offset: int) -> Any:
        """Return the numbers at `place`."""
        return self.builder.load(self.place(which, offset), align=4)

    def store(self, value: Any, which: int, offset: int) -> None:
        """Write the numbers at `place`."""
        self.builder.store(value, self.place(which, offset), align=4)

    def products(self, pointers: Sequence[Any], which: int, start: Any, stride: Any, count: Any) -> list[Any]:
        """Return, for each pointer to float32, Σ pointer[t] · (the block at start + t·stride) over t below count."""
        builder, mul_add = self.builder, _mul_add(self.builder)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_BLOCK, [0.0] * BLOCK)) for _ in pointers]
        with cgutils.for_range(builder, count) as loop:
            there = builder.add(start, builder.mul(loop.index, stride))
            block = builder.load(self.block(which, there), align=4)
            for pointer, total in zip(pointers, sums, strict=True):
                in_all = _in_all(builder, builder.load(builder.gep(pointer, [loop.index])))
                builder.store(builder.call(mul_add, [in_all, block, builder.load(total)]), total)
        return [builder.load(total) for total in sums]

    def most(self, x: Any, y: Any) -> Any:
        """Return the greater of both, lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def most_of(self, x: Any, lanes: int) -> Any:
        """Return the greatest of so many lanes, a power of two."""
        step, whole = lanes // 2, ir.VectorType(_I32, lanes)
        while step:
            turned = ir.Constant(whole, [(lane + step) % lanes for lane in range(lanes)])
            x, step = self.most(x, self.builder.shuffle_vector(x, x, turned)), step // 2
        return self.builder.extract_element(x, ir.Constant(_I32, 0))


@intrinsic
def compare(typingctx: Any, cells: Any, a: Any, b: Any, product: Any, top: Any, at: Any) -> Any:
    """Combine cells[a:a+LANES] and cells[b:b+LANES], raise top[at:at+LANES] to that, and return the most of it.

    product (a boolean) or mean; where the first is below 0 it is the second alone. Arrays float32, one-dimensional.
    """
    signature = types.float32(cells, types.int64, types.int64, types.boolean, top, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = Arrays(context, builder, signature, args)
        x, y = arrays.load(0, 1), arrays.load(0, 2)
        mean = builder.fmul(builder.fadd(x, y), ir.Constant(_VECTOR, [0.5] * LANES))
        both = builder.select(args[3], builder.fmul(x, y), mean)
        said = builder.select(builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, [0.0] * LANES)), y, both)
        arrays.store(arrays.most(said, arrays.load(4, 5)), 4, 5)
        return arrays.most_of(said, LANES)

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

    Four blocks at once, since no one's sum waits for another's; each is added up term by term, so that terms of 0
    change no bit of it. Arrays float32, slots int32, one-dimensional.
    """
    numbers = types.int64
    signature = types.void(out, numbers, rows, *[numbers] * 5, slots, weights, numbers)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays, mul_add, starts = Arrays(context, builder, signature, args), _mul_add(builder), args[4:8]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_BLOCK, [0.0] * BLOCK)) for _ in starts]
        with cgutils.for_range(builder, args[10]) as loop:
            in_all = _in_all(builder, builder.load(arrays.pointer(9, loop.index)))
            row = builder.mul(builder.sext(builder.load(arrays.pointer(8, loop.index)), _I64), args[3])
            for start, total in zip(starts, sums, strict=True):
                some = builder.load(arrays.block(2, builder.add(row, start)), align=4)
                builder.store(builder.call(mul_add, [in_all, some, builder.load(total)]), total)
        for start, total in zip(starts, sums, strict=True):
            builder.store(builder.load(total), arrays.block(0, builder.add(args[1], start)), align=4)
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
        arrays = Arrays(context, builder, signature, args)
        which = [builder.add(args[2], ir.Constant(_I64, r)) for r in range(TILE_ROWS)]
        pointers = [arrays.pointer(0, builder.load(arrays.pointer(1, one))) for one in which]
        start, stride = args[4], ir.Constant(_I64, BLOCK)
        for r, total in enumerate(arrays.products(pointers, 3, start, stride, args[5])):
            there = builder.add(args[7], builder.mul(args[8], ir.Constant(_I64, r)))
            builder.store(total, arrays.block(6, there), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _mul_add(builder: Any) -> Any:
    of_three = ir.FunctionType(_BLOCK, [_BLOCK] * 3)
    return cgutils.get_or_insert_function(builder.module, of_three, f"llvm.fmuladd.v{BLOCK}f32")


def _in_all(builder: Any, number: Any) -> Any:
    """Return a block that holds a number in all of its lanes."""
    none = ir.Constant(_BLOCK, ir.Undefined)
    one = builder.insert_element(none, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(_I32, BLOCK), [0] * BLOCK))
