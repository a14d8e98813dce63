"""Query, key and value of every token in, what each token gathers from its own text out, on a CPU.

Attention: Vaswani et al., NeurIPS 2017. Both of its products are computed in small tiles that stay in registers, by
LLVM's vectors: texts are some twenty tokens long, and a BLAS is not made for matrices of that size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gpumatch.kernels.compiled import compiled, compiled_sum
from gpumatch.kernels.lanes import BLOCK, FLOATS, most, most_of, products
from gpumatch.kernels.operands import F32, I32, I64, Operands
from gpumatch.kernels.shorts import ROUND_FLOAT

# Rows of a tile of results, a BLOCK wide: eight of the 16 registers of 256 bits.
TILE_ROWS = 4

# Two float32 numbers whose sum is ln 2 to twice the digits.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOG2_E = np.float32(1.4426950408889634)
_LEAST = np.float32(-87)  # exp below it is no normal float32
_NOTHING = np.float32(-1e30)


@compiled
def attend(asked, start, heads, out):
    """Write what every token gathers from its text.

    Args:
        asked: float32 [tokens or more, 3W], query, key and value of each token side by side.
        start: int64 [n+1], text i has the tokens start[i] to start[i+1].
        heads: how many; each takes W/heads numbers, a multiple of 16.
        out: float32 [tokens, W].
    """
    width, stride = out.shape[1], asked.shape[1]
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    most = 0
    for text in range(len(start) - 1):
        most = max(most, start[text + 1] - start[text])
    room = -(-most // BLOCK) * BLOCK
    keys, score = np.zeros(size * room, np.float32), np.empty(TILE_ROWS * room, np.float32)
    flat, to = asked.reshape(-1), out.reshape(-1)
    for text in range(len(start) - 1):
        begin, length = start[text], start[text + 1] - start[text]
        room = -(-length // BLOCK) * BLOCK
        for head in range(heads):
            at = begin * stride + head * size
            for j in range(length):
                for d in range(size):
                    keys[d * room + j] = flat[at + width + j * stride + d]
            for i in range(0, length, TILE_ROWS):
                # The last row stands in for rows beyond it.
                b, c, d = min(i + 1, length - 1), min(i + 2, length - 1), min(i + 3, length - 1)
                for lane in range(0, room, BLOCK):
                    write_tile(
                        flat, at + i * stride, at + b * stride, at + c * stride, at + d * stride,
                        keys, lane, room, size,
                        score, lane, room + lane, 2 * room + lane, 3 * room + lane,
                    )  # fmt: skip
                for row in range(TILE_ROWS):
                    _softmax(score[row * room : (row + 1) * room], length, scale)
                of = begin * width + head * size
                for lane in range(0, size, BLOCK):
                    write_tile(
                        score, 0, room, 2 * room, 3 * room,
                        flat, at + 2 * width + lane, stride, length,
                        to, of + i * width + lane, of + b * width + lane, of + c * width + lane, of + d * width + lane,
                    )  # fmt: skip


@compiled
def _softmax(score, length, scale):
    """Turn the first `length` scores, times scale, into shares of 1, in place; the others become 1e-38 or less."""
    score[length:] = _NOTHING
    most = _greatest(score, len(score))
    for j in range(len(score)):
        score[j] = exp((score[j] - most) * scale)
    share = np.float32(1) / total(score)
    for j in range(len(score)):
        score[j] *= share


@compiled_sum
def total(row):
    """Return the sum of float32 numbers, added up in any order."""
    answer = np.float32(0)
    for i in range(len(row)):
        answer += row[i]
    return answer


@compiled
def exp(x):
    """Return exp of a float32 of at most 0 by Cephes' polynomial, off by 2e-7 of it; loops over it are vectorised."""
    x = max(x, _LEAST)
    n = x * _LOG2_E + ROUND_FLOAT - ROUND_FLOAT
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    poly = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    poly = (poly * r + np.float32(8.3334519073e-3)) * r + np.float32(4.1665795894e-2)
    poly = (poly * r + np.float32(1.6666665459e-1)) * r + np.float32(5.0000001201e-1)
    return (poly * r * r + r + np.float32(1)) * _power_of_two(n)


@intrinsic
def _power_of_two(typingctx: Any, n: Any) -> Any:
    """Return 2**n of a whole float32 between -126 and 127, written as the exponent's bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], I32), ir.Constant(I32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(I32, 23)), F32)

    return types.float32(n), codegen


@intrinsic
def write_tile(typingctx, rows, a, b, c, d, lanes, at, stride, count, out, to_a, to_b, to_c, to_d):
    """Do out[to_r:to_r+16] = Σ rows[r+t]·lanes[at+t·stride:][:16] over t below count, for the rows r = a, b, c and d.

    Args:
        rows, lanes, out: float32, one-dimensional.
    """
    numbers = types.int64
    signature = types.void(rows, *[numbers] * 4, lanes, *[numbers] * 3, out, *[numbers] * 4)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)
        pointers = [here.pointer(0, row) for row in args[1:5]]
        for to, total in zip(args[10:], products(here, pointers, 5, args[6], args[7], args[8]), strict=True):
            here.store(total, 9, to)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _greatest(typingctx, row, count):
    """Return the greatest of row[:count], float32, count a multiple of BLOCK and not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)

        def some(at: Any) -> Any:
            return here.load(0, at, FLOATS)

        best, step = cgutils.alloca_once_value(builder, some(ir.Constant(I64, 0))), ir.Constant(I64, BLOCK)
        with cgutils.for_range_slice(builder, step, args[1], step) as (at, _):
            builder.store(most(builder, builder.load(best), some(at)), best)
        return most_of(builder, builder.load(best))

    return types.float32(row, types.int64), codegen
