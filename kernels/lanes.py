"""Operations on LANES neighbouring numbers at once, for the compiled loops of other kernels.

Written in LLVM's vectors, since compilers leave loops that are this short scalar, several times slower. LLVM takes two
or four registers where a processor has none of 256 bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
# Of a sum of rows: eight of the 16 registers of 256 bits hold parts of it.
SUM_LANES, SUM_TERMS = 16, 4
_SUM = ir.VectorType(ir.FloatType(), SUM_LANES)
_I64, _I32 = ir.IntType(64), ir.IntType(32)


def padded(width: Any) -> Any:
    """Return the least multiple of LANES that is at least width."""
    return -(-width // LANES) * LANES


class _Arrays:
    """The arguments of an intrinsic that are arrays, and where in them to work."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def place(self, which: int, offset: int) -> Any:
        array = self.context.make_array(self.signature.args[which])(self.context, self.builder, self.args[which])
        return self.builder.bitcast(self.builder.gep(array.data, [self.args[offset]]), _VECTOR.as_pointer())

    def load(self, which: int, offset: int) -> Any:
        return self.builder.load(self.place(which, offset), align=4)

    def store(self, value: Any, which: int, offset: int) -> None:
        self.builder.store(value, self.place(which, offset), align=4)

    def most(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def most_of(self, x: Any) -> Any:
        step = LANES // 2
        while step:
            turned = [(lane + step) % LANES for lane in range(LANES)]
            x = self.most(
                x, self.builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(ir.IntType(32), LANES), turned))
            )
            step //= 2
        return self.builder.extract_element(x, ir.Constant(ir.IntType(32), 0))


@intrinsic
def compare(typingctx: Any, cells: Any, a: Any, b: Any, product: Any, top: Any, at: Any) -> Any:
    """Combine cells[a:a+LANES] and cells[b:b+LANES], raise top[at:at+LANES] to that, and return the most of it.

    product (a boolean) or mean; where the first is below 0 it is the second alone. Arrays float32, one-dimensional.
    """
    signature = types.float32(cells, types.int64, types.int64, types.boolean, top, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = _Arrays(context, builder, signature, args)
        x, y = arrays.load(0, 1), arrays.load(0, 2)
        mean = builder.fmul(builder.fadd(x, y), ir.Constant(_VECTOR, [0.5] * LANES))
        both = builder.select(args[3], builder.fmul(x, y), mean)
        said = builder.select(builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, [0.0] * LANES)), y, both)
        arrays.store(arrays.most(said, arrays.load(4, 5)), 4, 5)
        return arrays.most_of(said)

    return signature, codegen


@intrinsic
def write_sum(
    typingctx: Any, out: Any, at: Any, rows: Any, lane: Any, stride: Any, slots: Any, weights: Any, count: Any
) -> Any:
    """Do out[at:at+SUM_LANES] = Σ weights[t] · rows[slots[t]·stride + lane :][:SUM_LANES] over t below count.

    SUM_TERMS terms at once, none of which waits for another: beyond count, up to their next multiple, weights are 0 and
    slots in range. Arrays float32, slots int32, one-dimensional.
    """
    numbers = types.int64
    signature = types.void(out, numbers, rows, numbers, numbers, slots, weights, numbers)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def place(which: int, index: Any) -> Any:
            array = context.make_array(signature.args[which])(context, builder, args[which])
            return builder.gep(array.data, [index])

        of_three = ir.FunctionType(_SUM, [_SUM] * 3)
        mul_add = cgutils.get_or_insert_function(builder.module, of_three, f"llvm.fmuladd.v{SUM_LANES}f32")
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_SUM, [0.0] * SUM_LANES)) for _ in range(SUM_TERMS)]
        none, spread = ir.Constant(_SUM, ir.Undefined), ir.Constant(ir.VectorType(_I32, SUM_LANES), [0] * SUM_LANES)
        bounds = ir.Constant(_I64, 0), args[7], ir.Constant(_I64, SUM_TERMS)
        with cgutils.for_range_slice(builder, *bounds) as (first, _):
            for t, total in enumerate(sums):
                term = builder.add(first, ir.Constant(_I64, t))
                slot = builder.sext(builder.load(place(5, term)), _I64)
                start = builder.add(args[3], builder.mul(slot, args[4]))
                row = builder.load(builder.bitcast(place(2, start), _SUM.as_pointer()), align=4)
                weight = builder.insert_element(none, builder.load(place(6, term)), ir.Constant(_I32, 0))
                in_all = builder.shuffle_vector(weight, none, spread)
                builder.store(builder.call(mul_add, [in_all, row, builder.load(total)]), total)
        whole = builder.load(sums[0])
        for total in sums[1:]:
            whole = builder.fadd(whole, builder.load(total))
        builder.store(whole, builder.bitcast(place(0, args[1]), _SUM.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, codegen
