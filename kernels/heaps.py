"""Scores and row numbers in, keys that order by both out; and min-heaps of the K greatest keys.

A key counts a score in steps of RESOLUTION in its upper 31 bits and the row number, complemented, in the other 32: one
integer orders by falling score and ascending row, so any top-K of keys is the same on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumatch.kernels.compiled import compiled

# Scores closer than this are one score: float32 products of the same rows differ in the last bits between tile shapes.
RESOLUTION = 1e-6
LARGEST_SCORE = 2000.0
ID_BITS = 32
LAST_ID = (1 << ID_BITS) - 1
# The key that stands for no row.
NOTHING = int(np.iinfo(np.int64).min)


def ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and scores that keys, int64 [n, k] in any order, stand for, best first.

    Returns:
        (ids int64 [n, k], scores float32 [n, k]); -1 and -inf for NOTHING.
    """
    best = np.sort(keys, axis=1)[:, ::-1]
    gone = best == NOTHING
    ids = np.where(gone, -1, LAST_ID - (best & LAST_ID))
    return ids, np.where(gone, -np.inf, (best >> ID_BITS) * RESOLUTION).astype(np.float32)


def keys_of(scores: Any, ids: Any) -> Any:
    """Return the keys, int64, of scores (float64, within LARGEST_SCORE) of rows; arrays of NumPy, CuPy or torch."""
    steps = (scores / RESOLUTION).round()
    whole = steps.astype(np.int64) if hasattr(steps, "astype") else steps.long()
    return (whole << ID_BITS) | (LAST_ID - ids)


@compiled
def key_of(score, row):
    """Return the key of a score (float64) of a row, or NOTHING where it is NaN or beyond LARGEST_SCORE."""
    if not abs(score) <= LARGEST_SCORE:
        return NOTHING
    return (np.int64(np.rint(score / RESOLUTION)) << ID_BITS) | (LAST_ID - row)


@compiled
def floor_of(heap):
    """Return a score that every row better than the heap's least key reaches: a step below it, for the rounding."""
    return -np.inf if heap[0] == NOTHING else ((heap[0] >> ID_BITS) - 1) * RESOLUTION


@compiled
def replace_least(heap, key):
    """Put a key in the place of a min-heap's least one."""
    at, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key
