"""Vectors as 16-bit integers times a step of their own, and the sums of their products in LLVM's vectors.

A processor multiplies and adds twice as many 16-bit integers as float32 numbers at a time (vpmaddwd with AVX2, vpdpwssd
with AVX-512 VNNI). The step is chosen by a vector's length, so that by Cauchy and Schwarz no sum of products leaves 32
bits, whatever the width, and by its largest number, which has to fit 16 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gpumatch.kernels.compiled import compiled, compiled_sum
from gpumatch.kernels.operands import F32, I16, I32, I64, Operands

# A block of rows against a block of queries: its sums fill 12 of the 16 registers of 256 bits.
ROWS, QUERIES = 16, 6
# |i_q|·|i_x| stays below 2**31, rounding (√W/2 at most, MAX_WIDTH) included.
_NORM = 46_000.0
MAX_WIDTH = 400_000
_LARGEST = 32_767.0
_LEAST_STEP = 1e-30
# Adding and taking away 1.5·2**23 rounds a float32 to an integer.
ROUND_FLOAT = np.float32(12_582_912)


@compiled
def pack(rows, start, stop, lanes, packed, step, norm):
    """Write rows start to stop as integers; return a row that holds NaN or too large a number, or -1.

    packed: [blocks of `lanes` rows, pairs of numbers, lanes, 2]; missing rows of the last block are 0.
    """
    width = rows.shape[1]
    pairs = (width + 1) // 2
    whole = np.zeros(2 * pairs, np.int16)
    two, there = whole.view(np.int32), packed.view(np.int32)
    for i in range(-(-(stop - start) // lanes) * lanes):
        at = (i // lanes * pairs * lanes + i % lanes) * 2
        if start + i >= stop:
            step[i], norm[i] = 0, 0
            for pair in range(pairs):
                packed[at + pair * lanes * 2], packed[at + pair * lanes * 2 + 1] = 0, 0
            continue
        row = rows[start + i]
        size, most = np.sqrt(square(row)), _most(row)
        if not size < np.inf:
            return start + i
        step[i] = max(max(size / np.float32(_NORM), most / np.float32(_LARGEST)), np.float32(_LEAST_STEP))
        norm[i] = size
        times = np.float32(1) / step[i]
        for j in range(width):
            whole[j] = np.int16(as_float(row[j]) * times + ROUND_FLOAT - ROUND_FLOAT)
        # Two numbers at a time; a loop of its own, since the rounding above is vectorised and this cannot be.
        at //= 2
        for pair in range(pairs):
            there[at + pair * lanes] = two[pair]
    return -1


@compiled_sum
def square(row):
    """Return the sum of the squares of float32 numbers, or of float16 numbers given as their bits."""
    total = np.float32(0)
    for i in range(len(row)):
        total += as_float(row[i]) * as_float(row[i])
    return total


@compiled_sum
def _most(row):
    most = np.float32(0)
    for i in range(len(row)):
        most = max(most, abs(as_float(row[i])))
    return most


@intrinsic
def as_float(typingctx: Any, x: Any) -> Any:
    """Return a float32 as it is, and the bits of a float16 (uint16) as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        if _widens_halves(*context.codegen().magic_tuple()):
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), F32)
        # Exponent and mantissa, moved to where float32 has them, stand for 2**-112 of the number. Infinity and NaN have
        # a full exponent in float16, and get a full one here.
        bits = builder.zext(args[0], I32)
        rest = builder.shl(builder.and_(bits, ir.Constant(I32, 0x7FFF)), ir.Constant(I32, 13))
        number = builder.fmul(builder.bitcast(rest, F32), ir.Constant(F32, 2.0**112))
        beyond = builder.icmp_unsigned(">=", rest, ir.Constant(I32, 0x7C00 << 13))
        full = builder.or_(rest, ir.Constant(I32, 0x7F800000))
        magnitude = builder.select(beyond, full, builder.bitcast(number, I32))
        sign = builder.shl(builder.and_(bits, ir.Constant(I32, 0x8000)), ir.Constant(I32, 16))
        return builder.bitcast(builder.or_(magnitude, sign), F32)

    return types.float32(x), codegen


@cache
def _widens_halves(triple: str, cpu: str, features: str) -> bool:
    """Tell whether the processor widens float16 (x86 with F16C); else LLVM would call a function that is missing."""
    module = llvm.parse_assembly("define float @f(half %x) {\n %y = fpext half %x to float\n ret float %y\n}")
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    written = machine.emit_assembly(module)
    return not any(name in written for name in ("__extendhfsf2", "__gnu_h2f_ieee"))


SUMS, FLOATS = ir.VectorType(I32, ROWS), ir.VectorType(F32, ROWS)
SHORTS, PRODUCTS = ir.VectorType(I16, 2 * ROWS), ir.VectorType(I32, 2 * ROWS)


def sums(here: Operands) -> list[Any]:
    """Multiply a block of rows with one of queries; return each query's sums, a vector of ROWS.

    The arguments begin with: the rows, where the block begins in them, the queries, where their block begins (both as
    `pack` writes them), the number of pairs. LLVM makes vpmaddwd or vpdpwssd of the products and sums of neighbours.
    """
    builder, args = here.builder, here.args
    totals = [cgutils.alloca_once(builder, SUMS) for _ in range(QUERIES)]
    for total in totals:
        builder.store(ir.Constant(SUMS, [0] * ROWS), total)
    with cgutils.for_range(builder, args[4]) as pair:
        x = here.load(0, builder.add(args[1], builder.mul(pair.index, ir.Constant(I64, 2 * ROWS))), SHORTS)
        x = builder.sext(x, PRODUCTS)
        begin = builder.add(args[3], builder.mul(pair.index, ir.Constant(I64, 2 * QUERIES)))
        for i, total in enumerate(totals):
            two = here.load(2, here.plus(begin, 2 * i), I32)
            q = builder.sext(builder.bitcast(here.in_all(two, SUMS), SHORTS), PRODUCTS)
            products = builder.mul(x, q)
            neighbours = builder.add(_every_other(builder, products, 0), _every_other(builder, products, 1))
            builder.store(builder.add(builder.load(total), neighbours), total)
    return [builder.sitofp(builder.load(total), FLOATS) for total in totals]


def _every_other(builder: Any, vector: Any, first: int) -> Any:
    wanted = ir.Constant(ir.VectorType(I32, ROWS), list(range(first, 2 * ROWS, 2)))
    return builder.shuffle_vector(vector, vector, wanted)
