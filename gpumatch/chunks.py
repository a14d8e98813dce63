"""Pairs that search proposed in, slices of bounded size out, and the work on all of them in order.

The survivors of alike queries are alike, so what is worked on at once shares much of what it compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from gpumatch.kernels.hashing import distinct
from gpumatch.kernels.ragged import gather_segments, offsets_of
from gpumatch.memory import CHUNKS_IN_WORK, Halving

R = TypeVar("R")

# Queries of a chunk. Its tables of distinct columns hold the columns of all of them, each pair needs those of one: the
# more queries, the more survivors are shared, and the more cells nobody asked for. See bench/LOG.md for the sweep. To a
# GPU cells are cheap, and each chunk costs it as much as launching its kernels.
CHUNK_QUERIES = 24
_DEVICE_QUERIES = 4 * CHUNK_QUERIES
# Candidate columns of all pairs times query columns: a worker holds a few float32 tables of at most that many cells.
# What a device has room for is planned (`memory.device_plan`).
CHUNK_CELLS = 4_000_000


def alike_order(ids: np.ndarray, itself: np.ndarray) -> np.ndarray:
    """Return an order of queries, int64 [n], in which every CHUNK_QUERIES of them share survivors, so far as they can.

    A query takes along the queries that are among its own survivors, best first; a query from outside the lake stands
    for its best survivor.

    Args:
        ids: int64 [n, K], the survivors of each query, best first, -1 for none.
        itself: int64 [n], the lake table that a query is, or -1.
    """
    if not ids.shape[1]:
        return np.arange(len(ids))
    anchor = np.where(itself >= 0, itself, ids[:, 0])
    by_anchor = np.argsort(anchor, kind="stable")
    start = np.searchsorted(anchor[by_anchor], np.arange(int(max(anchor.max(initial=0), ids.max(initial=0))) + 2))
    left = np.ones(len(ids), bool)
    groups = []
    for seed in range(len(ids)):
        if left[seed]:
            left[seed] = False
            near = ids[seed][ids[seed] >= 0]
            near = near if itself[seed] < 0 else distinct(np.append(itself[seed], near))[0]
            others = by_anchor[gather_segments(start, near)[0]]
            others = others[left[others]][: CHUNK_QUERIES - 1]
            left[others] = False
            groups.append(np.append(seed, others))
    # Groups that are short come last: the others are whole chunks wherever a chunk begins.
    groups.sort(key=len, reverse=True)
    return np.concatenate([np.empty(0, np.int64), *groups])


def alike_together(pair_q: np.ndarray, pair_c: np.ndarray, itself: np.ndarray | None) -> np.ndarray:
    """Return an order of the pairs, int64 [P], that keeps a query's together and puts alike queries side by side."""
    if itself is None:
        return np.arange(len(pair_q))
    first = np.flatnonzero(np.diff(pair_q, prepend=-1))
    length = np.diff(np.append(first, len(pair_q)))
    group = np.repeat(np.arange(len(first)), length)
    ids = np.full((len(first), int(length.max(initial=0))), -1, np.int64)
    ids[group, np.arange(len(pair_q)) - first[group]] = pair_c
    rank = np.empty(len(first), np.int64)
    rank[alike_order(ids, itself[first])] = np.arange(len(first))
    return np.argsort(rank[group], kind="stable")


def plan(
    q_cols: np.ndarray,
    c_cols: np.ndarray,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    device: str,
    cells: int | None = None,
) -> list[slice]:
    """Cut pairs into chunks of bounded size; a query is cut only where it alone is too big."""
    most, cells = CHUNK_QUERIES if device == "cpu" else _DEVICE_QUERIES, cells or CHUNK_CELLS
    first = np.append(np.flatnonzero(np.diff(pair_q, prepend=-1)), len(pair_q))
    q_width = np.diff(q_cols)
    rows = offsets_of(np.diff(c_cols)[pair_c])
    slices: list[slice] = []
    start = lanes = queries = 0
    for lo, hi in pairwise(first.tolist()):
        width = max(1, int(q_width[pair_q[lo]]))
        lanes, queries = lanes + width, queries + 1
        if lo > start and (queries > most or (rows[hi] - rows[start]) * lanes > cells):
            slices.append(slice(start, lo))
            start, lanes, queries = lo, width, 1
        while hi - start > 1 and (rows[hi] - rows[start]) * lanes > cells:
            cut = int(np.searchsorted(rows, rows[start] + cells // lanes, side="right")) - 1
            cut = min(max(cut, start + 1), hi - 1)
            slices.append(slice(start, cut))
            start = cut
    if start < len(pair_q):
        slices.append(slice(start, len(pair_q)))
    return slices


def over(work: Callable[[slice], R], chunks: Sequence[slice], threads: int, device: str) -> Iterator[R]:
    """Yield the work of every chunk, in order; of a chunk that runs out of memory, the work of its halves."""
    halving = Halving()

    def pieces(chunk: slice) -> list[R]:
        return [done for _, done in halving(work, chunk.start, chunk.stop)]

    # On a CPU one chunk a thread: chunks are alike in size, and small products gain nothing from several threads each.
    workers = threads if device == "cpu" else min(threads, CHUNKS_IN_WORK)
    with threadpool_limits(1 if device == "cpu" else None, user_api="blas"):
        # Alone, for a device's kernels are compiled when they are first called.
        alone = len(chunks) if workers <= 1 or len(chunks) <= 1 else int(device != "cpu")
        yield from chain.from_iterable(map(pieces, chunks[:alone]))
        if alone < len(chunks):
            with ThreadPoolExecutor(workers) as pool:
                yield from chain.from_iterable(pool.map(pieces, chunks[alone:]))
