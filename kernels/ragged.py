"""Offsets in, flat index arrays out: the arithmetic of ragged (CSR) rows.

On the host, whatever device the data is on; never copies the data that the offsets describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Csr:
    """Sparse rows, NumPy arrays or torch tensors: row r has the entries start[r]:start[r+1].

    start int64 [n+1], token int32 or int64 [nnz] ascending within a row, weight float32 [nnz]; width tokens.
    """

    start: Any
    token: Any
    weight: Any
    width: int


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


def firsts(row: np.ndarray, value: np.ndarray, n: int, most: int) -> np.ndarray:
    """Return the first values of each of n rows, int64 [n, most], -1 where there are fewer.

    Args:
        row, value: int64 [x], by rising row.
    """
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < most
    out = np.full((n, most), -1)
    out[row[kept], place[kept]] = value[kept]
    return out
