"""Operations on LANES neighbouring numbers at once, for the compiled loops of other kernels.

Written in LLVM's vectors, since compilers leave loops that are this short scalar, several times slower. LLVM takes two
or four registers where a processor has none of 256 bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


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
def add_scaled(typingctx: Any, out: Any, at: Any, x: Any, start: Any, factor: Any) -> Any:
    """Do out[at:at+LANES] += factor · x[start:start+LANES]; arrays float32, one-dimensional."""
    signature = types.void(out, types.int64, x, types.int64, types.float32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = _Arrays(context, builder, signature, args)
        factors = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(LANES):
            factors = builder.insert_element(factors, args[4], ir.Constant(ir.IntType(32), lane))
        scaled = builder.fmul(factors, arrays.load(2, 3))
        arrays.store(builder.fadd(arrays.load(0, 1), scaled), 0, 1)
        return context.get_dummy_value()

    return signature, codegen
