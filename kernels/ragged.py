"""Offsets in, flat index arrays out: the arithmetic of ragged (CSR) rows.

On the host, whatever device the data is on; never copies the data that the offsets describe.
"""

from __future__ import annotations

import numpy as np

from gpumatch.kernels.compiled import compiled


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return int64 [n+1] offsets of n consecutive segments of the given lengths (int [n])."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather_segments(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the entries of the given rows lie in the flat data, row after row.

    Args:
        offsets: int64 [n+1], segment r is offsets[r]:offsets[r+1].
        rows: int64 [m], rows to gather; they may repeat.

    Returns:
        (flat int64 [total], lengths int64 [m]).
    """
    lengths = (offsets[1:] - offsets[:-1])[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    flat = np.arange(total, dtype=np.int64)
    flat += np.repeat(offsets[:-1][rows] - (ends - lengths), lengths)
    return flat, lengths


def first_of(*keys: np.ndarray) -> np.ndarray:
    """Return the positions, ascending, at which each combination of keys (int64 [n] each) is seen first."""
    _, first = np.unique(np.stack(keys), axis=1, return_index=True)
    return np.sort(first)


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys in the order in which they come first, and the place of each key among them.

    Args:
        keys: int64 [n], at least 0.

    Returns:
        (int64 [d], int64 [n]).
    """
    at = np.empty(len(keys), np.int64)
    found = np.empty(len(keys), np.int64)
    n = _distinct(np.ascontiguousarray(keys, np.int64), found, at)
    return found[:n], at


@compiled
def _distinct(keys, found, at):
    bits = 4
    while (1 << bits) < 2 * len(keys):
        bits += 1
    shift, mask = np.uint64(64 - bits), (1 << bits) - 1
    cells = np.full(1 << bits, -1, np.int64)
    n = 0
    for i in range(len(keys)):
        # The odd constant 2**64 / the golden ratio spreads any keys over the cells: Knuth, TAOCP 3, 6.4.
        cell = np.int64((np.uint64(keys[i]) * np.uint64(0x9E3779B97F4A7C15)) >> shift)
        while cells[cell] != -1 and found[cells[cell]] != keys[i]:
            cell = (cell + 1) & mask
        if cells[cell] == -1:
            cells[cell] = n
            found[n] = keys[i]
            n += 1
        at[i] = cells[cell]
    return n
