"""Rows in which few of many places hold a number in, their products with queries out, on a CPU.

Hashed terms fill a tenth of their places or less. Of places that are mostly zero only the other numbers are multiplied,
list by list as in an inverted index; the remaining places are multiplied as a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.halves import widened
from gpumatch.kernels.ragged import offsets_of

# A place is sparse if fewer than one row in so many holds a number there.
_SPARSE = 6
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Split:
    """N rows of W numbers.

    dense: float32 [N, D], the places `filled`, int64 [D].
    sparse: int64 [S], the other places that any row fills; the rows that fill place s are holder[start[s]:start[s+1]],
        int32, with the numbers held, float32.
    """

    dense: np.ndarray
    filled: np.ndarray
    sparse: np.ndarray
    start: np.ndarray
    holder: np.ndarray
    held: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Split:
        """Take rows apart, float16 or float32 [N, W]."""
        # As bits, without the sign: loops cannot be compiled for float16.
        kind = np.dtype(f"u{rows.dtype.itemsize}")
        bits, magnitude = np.ascontiguousarray(rows).view(kind), kind.type(np.iinfo(kind).max >> 1)
        count = np.zeros(rows.shape[1], np.int64)
        _count(bits, magnitude, count)
        few = _SPARSE * count < len(rows)
        filled, sparse = np.flatnonzero(~few), np.flatnonzero(few & (count > 0))
        start = offsets_of(count[sparse])
        holder, held = np.empty(int(start[-1]), np.int32), np.empty(int(start[-1]), kind)
        _collect(bits, magnitude, sparse, start[:-1].copy(), holder, held)
        held = widened(held.view(rows.dtype))
        dense = np.empty((len(rows), len(filled)), np.float32)
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            dense[at : at + _ROWS_AT_ONCE] = widened(rows[at : at + _ROWS_AT_ONCE][:, filled])
        return cls(dense, filled, sparse, start, holder, held)

    def __len__(self) -> int:
        return len(self.dense)

    def products(self, queries: np.ndarray) -> np.ndarray:
        """Return the inner products of queries, float32 [n, W], with all rows, float32 [n, N]."""
        out: np.ndarray = queries[:, self.filled] @ self.dense.T
        _add(np.ascontiguousarray(queries[:, self.sparse]), self.start, self.holder, self.held, out)
        return out


@compiled
def _count(bits, magnitude, count):
    """Count the rows that hold a number in each place."""
    for i in range(len(bits)):
        for j in range(bits.shape[1]):
            count[j] += (bits[i, j] & magnitude) != 0


@compiled
def _collect(bits, magnitude, sparse, at, holder, held):
    """Write the rows that hold a number in some places, list by list from `at` on, and the bits of the numbers."""
    for i in range(len(bits)):
        for s in range(len(sparse)):
            there = bits[i, sparse[s]]
            if there & magnitude:
                holder[at[s]], held[at[s]] = i, there
                at[s] += 1


@compiled
def _add(queries, start, holder, held, out):
    for i in range(len(queries)):
        row = out[i]
        for s in range(queries.shape[1]):
            weight = queries[i, s]
            if weight != 0:
                for at in range(start[s], start[s + 1]):
                    row[holder[at]] += weight * held[at]
