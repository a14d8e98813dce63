"""Entries (code, column) in, which of them are the first of their kind out."""

from __future__ import annotations

import numpy as np

from gpumatch.kernels.compiled import compiled


def first_seen(code: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the positions, ascending, at which a column shows a code for the first time.

    Args:
        code: int64 [m], at least 0, of a text or anything else.
        column: int64 [m], ascending, at least 0, the column that shows it.
    """
    last = np.full(int(code.max(initial=-1)) + 1, -1)
    return np.flatnonzero(_first_seen(code, column, last))


@compiled
def _first_seen(code, column, last):
    first = np.empty(len(code), np.bool_)
    for i in range(len(code)):
        first[i] = last[code[i]] != column[i]
        last[code[i]] = column[i]
    return first
