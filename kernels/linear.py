"""Vectors and a layer's weights in, the layer's outputs out, by products of 16-bit integers (`shorts`).

A vector or a row of weights is at most 46,000 steps long, some thirty times as fine as float16. An output is off by
some 1e-5 of the product of both lengths, by 2e-5·√W of it at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.operands import I64, Operands
from gpumatch.kernels.shorts import FLOATS, QUERIES, ROWS, pack, sums

# Vectors that are multiplied with a block of weights while it is in the cache.
TOGETHER = 8 * QUERIES


@dataclass(frozen=True)
class Weights:
    """A layer's weights as integers.

    packed: as `shorts.pack` writes rows; step: float32 [n], of each; bias: float32 [n]; width: W.
    """

    packed: np.ndarray
    step: np.ndarray
    bias: np.ndarray
    width: int

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray | None) -> Weights:
        """Round weights.

        Args:
            weight: float32 [n, W], n a multiple of ROWS.
            bias: float32 [n], or None for none.

        Raises:
            ValueError: n is no multiple of ROWS, or there is NaN or an infinite number among the weights.
        """
        n, width = weight.shape
        if n % ROWS:
            raise ValueError(f"{n} outputs are no multiple of {ROWS}")
        packed, step, norm = np.empty(n * 2 * (-(-width // 2)), np.int16), *np.empty((2, n), np.float32)
        if pack(np.ascontiguousarray(weight, np.float32), 0, n, ROWS, packed, step, norm) >= 0:
            raise ValueError("NaN or an infinite number among the weights")
        return cls(packed, step, np.zeros(n, np.float32) if bias is None else bias.astype(np.float32), width)


def linear(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Return x · weightᵀ + bias, float32 [m, n].

    Args:
        x: float32 [m, W].
        weights: of n outputs.

    Raises:
        ValueError: NaN or an infinite number, or vectors of another width.
    """
    if x.shape[1] != weights.width:
        raise ValueError(f"vectors of {x.shape[1]} numbers, weights of {weights.width}")
    m, n = len(x), len(weights.step)
    # The last block of vectors is written whole.
    out = np.empty((-(-m // QUERIES) * QUERIES, n), np.float32)
    if _linear(np.ascontiguousarray(x), weights.packed, weights.step, weights.bias, out.reshape(-1)) >= 0:
        raise ValueError("NaN or an infinite number among the vectors")
    return out[:m]


@compiled
def _linear(x, packed, step, bias, out):
    asked = np.empty(TOGETHER * 2 * ((x.shape[1] + 1) // 2), np.int16)
    q_step, q_norm = np.empty(TOGETHER, np.float32), np.empty(TOGETHER, np.float32)
    for a in range(0, len(x), TOGETHER):
        bad = multiply(x, a, min(len(x), a + TOGETHER), packed, step, bias, asked, q_step, q_norm, out, a * len(step))
        if bad >= 0:
            return bad
    return -1


@compiled
def multiply(x, start, stop, packed, step, bias, asked, q_step, q_norm, out, to):
    """Write the outputs of TOGETHER vectors at most, x[start:stop], to out[to:]; return the first bad vector, or -1.

    out: float32, flat; the last block of QUERIES vectors is written whole.
    asked: int16 [TOGETHER·2·⌈W/2⌉], q_step, q_norm: float32 [TOGETHER], scratch space.
    """
    n, pairs = len(step), (x.shape[1] + 1) // 2
    bad = pack(x, start, stop, QUERIES, asked, q_step, q_norm)
    if bad >= 0:
        return bad
    for row in range(0, n, ROWS):
        for q in range(0, stop - start, QUERIES):
            write_sums(
                packed,
                row * 2 * pairs,
                asked,
                q * 2 * pairs,
                pairs,
                step,
                bias,
                row,
                q_step,
                q,
                out,
                to + q * n + row,
                n,
            )
    return -1


@intrinsic
def write_sums(
    typingctx,
    packed,
    at,
    asked,
    asked_at,
    pairs,
    step,
    bias,
    row,
    q_step,
    query,
    out,
    to,
    width,
):
    """Do out[to + i·width + r] = Σ·q_step[query+i]·step[row+r] + bias[row+r] for QUERIES queries i and ROWS rows r.

    Args:
        packed, asked: int16, as `shorts.pack` writes rows and queries; the block begins at `at` and `asked_at`.
        pairs: ⌈W/2⌉.
        step, bias, q_step, out: float32.
    """
    numbers = types.int64
    signature = types.void(
        packed, numbers, asked, numbers, numbers, step, bias, numbers, q_step, numbers, out, numbers, numbers
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)
        row_step, row_bias = here.load(5, args[7], FLOATS), here.load(6, args[7], FLOATS)
        for i, total in enumerate(sums(here)):
            of_q = here.in_all(here.load(8, here.plus(args[9], i)), FLOATS)
            value = builder.fadd(builder.fmul(builder.fmul(total, of_q), row_step), row_bias)
            here.store(value, 10, builder.add(args[11], builder.mul(args[12], ir.Constant(I64, i))))
        return context.get_dummy_value()

    return signature, codegen
