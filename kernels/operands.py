"""The arguments of an intrinsic in, LLVM numbers and vectors made of them out."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()


class Operands:
    """The arguments of an intrinsic; those that are arrays are one-dimensional."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self._context, self.builder, self._signature, self.args = context, builder, signature, args

    def pointer(self, which: int, index: Any) -> Any:
        """Return the address of a number of an array."""
        array = self._context.make_array(self._signature.args[which])(self._context, self.builder, self.args[which])
        return self.builder.gep(array.data, [index])

    def load(self, which: int, index: Any, kind: Any = None) -> Any:
        """Return a number of an array, or a value of another `kind` (a vector, say) that begins there."""
        pointer = self.pointer(which, index)
        if kind is not None:
            pointer = self.builder.bitcast(pointer, kind.as_pointer())
        return self.builder.load(pointer, align=self._align(which))

    def store(self, value: Any, which: int, index: Any) -> None:
        """Write a number or a vector from there on."""
        pointer = self.builder.bitcast(self.pointer(which, index), value.type.as_pointer())
        self.builder.store(value, pointer, align=self._align(which))

    def plus(self, value: Any, more: int) -> Any:
        """Return an int64 plus a constant."""
        return self.builder.add(value, ir.Constant(I64, more))

    def in_all(self, value: Any, kind: Any) -> Any:
        """Return a vector that holds a number in all of its lanes."""
        none = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(none, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))

    def _align(self, which: int) -> int:
        """Return the bytes that an array's numbers, and so vectors of them too, are aligned to."""
        return int(self._signature.args[which].dtype.bitwidth) // 8
