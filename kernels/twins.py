"""The tables' pools in; for each pair the place of the same pair in the other table's pool out."""

from __future__ import annotations

import numpy as np

from gpumatch.kernels.compiled import compiled


def twins(ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return, for each pair (t, s) in the tables' pools, where the pair (s, t) is if s comes before t, else -1.

    Args:
        ids: int64 [n, K], the pool of each table, none twice, -1 for none.
        order: int64 [n], the tables in the order in which they are scored.

    Returns:
        int64 [n, K], positions in the flat [n·K].
    """
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    twin = np.full(ids.shape, -1)
    _twins(np.ascontiguousarray(ids), rank, twin.reshape(-1))
    return twin


@compiled
def _twins(ids, rank, twin):
    n, width = ids.shape
    begin, holder = _holders(ids)
    place = np.full(n, -1, np.int64)
    for s in range(n):
        for j in range(width):
            if ids[s, j] >= 0:
                place[ids[s, j]] = s * width + j
        for at in range(begin[s], begin[s + 1]):
            t = holder[at] // width
            if rank[s] < rank[t]:
                twin[holder[at]] = place[t]
        for j in range(width):
            if ids[s, j] >= 0:
                place[ids[s, j]] = -1


@compiled
def _holders(ids):
    """Return (begin, pairs): the pairs whose second table is s are pairs[begin[s]:begin[s+1]]."""
    n, width = ids.shape
    begin = np.zeros(n + 1, np.int64)
    for one in ids.flat:
        if one >= 0:
            begin[one] += 1
    begin = np.cumsum(begin)
    holder = np.empty(begin[n], np.int64)
    for t in range(n):
        for j in range(width):
            if ids[t, j] >= 0:
                begin[ids[t, j]] -= 1
                holder[begin[ids[t, j]]] = t * width + j
    return begin, holder
