"""Vectors in, each query's K best rows out, most rows ruled out by products of 16-bit integers.

Every vector is written as 16-bit integers (`shorts`); the inequality of Cauchy and Schwarz bounds what the rounding can
have changed. Rows whose product could, by that bound, be among the best are multiplied again in float64; the answer is
the one that float64 alone would give.

The bound: with v = v' + e, v' whole steps, |e| ≤ step·√W/2 =: h, |<q,x> - <q',x'>| ≤ h_q·|x| + (|q| + h_q)·h_x. For
unit vectors of 384 numbers it is .0005.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gpumatch.kernels.compiled import compiled, compiled_sum
from gpumatch.kernels.heaps import NOTHING, floor_of, key_of, replace_least
from gpumatch.kernels.operands import I16, I64, Operands
from gpumatch.kernels.shorts import FLOATS, QUERIES, ROWS, as_float, pack, sums

# The rounding error, half a step and a little, and what float32 adds to it.
_HALF, _FLOAT = 0.51, 1e-6
# Bytes of the rows that are worked on together: they stay in the cache while all queries pass.
_PACKED_BYTES = 100_000
# Rows that a thread takes at a time.
_TAKEN = 4096
# The place of the only bit of a number below 2**16, by the number modulo 37.
_PLACE = np.zeros(37, np.int64)
_PLACE[[(1 << place) % 37 for place in range(16)]] = np.arange(16)


def screened_topk(
    queries: np.ndarray, rows: np.ndarray, k: int, exclude: np.ndarray | None, threads: int
) -> np.ndarray:
    """Return the keys (`heaps`) of the K best rows of every query, in no order, int64 [n, k].

    Args:
        queries: float32 [n, W], W at most MAX_WIDTH.
        rows: float32 or float16 [N, W].
        k: how many to keep.
        exclude: int64 [n], a row that query i must not get, or -1.
        threads: each goes through rows of its own and keeps the best of them.

    Raises:
        ValueError: NaN or an infinite number, or a best score that a key cannot hold.
    """
    n, width = queries.shape
    if not np.isfinite(queries).all():
        raise ValueError("NaN or an infinite number among the queries")
    asked = _Queries.of(queries)
    data = np.ascontiguousarray(rows)
    data = data.view(np.uint16) if data.dtype == np.float16 else data
    hidden = np.full(n, -1, np.int64) if exclude is None else exclude
    blocks = max(1, _PACKED_BYTES // (4 * ROWS * max(1, -(-width // 2))))
    starts, lock = iter(range(0, len(rows), _TAKEN)), threading.Lock()

    def work(_: int) -> np.ndarray:
        best = np.full((n, k), NOTHING, np.int64)
        least = np.full(len(asked.step), np.inf, np.float32)
        least[:n] = -np.inf if k else np.inf
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return best
            stop = min(start + _TAKEN, len(rows))
            bad = _screen(
                data, start, stop, blocks * ROWS, queries, hidden, asked.packed, asked.step, asked.more, asked.times,
                least, best,
            )  # fmt: skip
            if bad >= 0:
                raise ValueError(f"NaN, an infinite number or a score that is too large at row {bad}")

    with ThreadPoolExecutor(threads) as pool:
        parts = np.concatenate(list(pool.map(work, range(threads))), axis=1)
    return np.partition(parts, parts.shape[1] - k, axis=1)[:, parts.shape[1] - k :] if k else parts


class _Queries:
    """Queries as integers, and the numbers that make a row's bound: row_step·(step·sum + more) + row_norm·times."""

    def __init__(self, packed: np.ndarray, step: np.ndarray, more: np.ndarray, times: np.ndarray) -> None:
        self.packed, self.step, self.more, self.times = packed, step, more, times

    @classmethod
    def of(cls, queries: np.ndarray) -> _Queries:
        n, width = queries.shape
        size = -(-n // QUERIES) * QUERIES
        packed = np.zeros(size * 2 * (-(-width // 2)), np.int16)
        step, norm = np.zeros(size, np.float32), np.zeros(size, np.float32)
        if (bad := pack(np.ascontiguousarray(queries, np.float32), 0, n, QUERIES, packed, step, norm)) >= 0:
            raise ValueError(f"NaN, an infinite number, or numbers too large for a sum of squares in query {bad}")
        half = np.float32(_HALF * np.sqrt(width))
        return cls(packed, step, (norm + half * step) * half, half * step + np.float32(_FLOAT) * norm)


@compiled
def _screen(rows, start, stop, group, queries, hidden, asked, q_step, q_more, q_times, least, best):
    """Go through rows start to stop; return a row that cannot be scored, or -1."""
    n, pairs = len(queries), (rows.shape[1] + 1) // 2
    packed = np.empty(group * 2 * pairs, np.int16)
    step, norm, masks = np.empty(group, np.float32), np.empty(group, np.float32), np.empty(QUERIES, np.uint16)
    for a in range(start, stop, group):
        b = min(stop, a + group)
        bad = pack(rows, a, b, ROWS, packed, step, norm)
        if bad >= 0:
            return bad
        for first in range(0, n, QUERIES):
            for block in range(0, b - a, ROWS):
                if not reaching(
                    packed,
                    block * 2 * pairs,
                    asked,
                    first * 2 * pairs,
                    pairs,
                    step,
                    norm,
                    block,
                    q_step,
                    q_more,
                    q_times,
                    least,
                    first,
                    masks,
                ):
                    continue
                for i in range(first, min(first + QUERIES, n)):
                    bad = _score(rows, a + block, b, masks[i - first], queries[i], hidden[i], i, least, best[i])
                    if bad >= 0:
                        return bad
    return -1


@compiled
def _score(rows, begin, end, mask, query, hidden, i, least, heap):
    """Score the rows of a mask, up to row `end`, and keep the best; return a row that cannot be scored, or -1."""
    mask = np.int64(mask)
    while mask:
        row = begin + _PLACE[(mask & -mask) % 37]
        mask &= mask - 1
        if row >= end or row == hidden:
            continue
        key = key_of(_dot(query, rows[row]), row)
        if key == NOTHING:
            return row
        if key > heap[0]:
            replace_least(heap, key)
            floor = floor_of(heap)
            least[i] = floor - abs(floor) * 2e-7  # float32 may round it up
    return -1


@compiled_sum
def _dot(query, row):
    total = 0.0
    for i in range(len(query)):
        total += np.float64(query[i]) * np.float64(as_float(row[i]))
    return total


@intrinsic
def reaching(
    typingctx,
    packed,
    at,
    asked,
    asked_at,
    pairs,
    step,
    norm,
    row,
    q_step,
    q_more,
    q_times,
    least,
    query,
    masks,
):
    """Set the bits of masks for the ROWS rows that may score `least` with each of QUERIES queries; tell if any may.

    Args:
        packed, asked: int16, as `pack` writes rows and queries; the block begins at `at` and `asked_at`.
        pairs: ⌈W/2⌉.
        step, norm: float32, of the rows from `row` on.
        q_step, q_more, q_times, least: float32, of the queries from `query` on.
        masks: uint16 [QUERIES].
    """
    numbers = types.int64
    signature = types.boolean(
        packed, numbers, asked, numbers, numbers, step, norm, numbers, q_step, q_more, q_times, least, numbers, masks
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        here = Operands(context, builder, signature, args)
        row_step, row_norm = here.load(5, args[7], FLOATS), here.load(6, args[7], FLOATS)
        anywhere = ir.Constant(I16, 0)
        for i, total in enumerate(sums(here)):
            at = here.plus(args[12], i)
            of_q, more, times, wanted = (here.in_all(here.load(which, at), FLOATS) for which in (8, 9, 10, 11))
            most = builder.fadd(builder.fmul(total, of_q), more)
            most = builder.fadd(builder.fmul(most, row_step), builder.fmul(row_norm, times))
            mask = builder.bitcast(builder.fcmp_unordered(">=", most, wanted), I16)
            here.store(mask, 13, ir.Constant(I64, i))
            anywhere = builder.or_(anywhere, mask)
        return builder.icmp_unsigned("!=", anywhere, ir.Constant(I16, 0))

    return signature, codegen
