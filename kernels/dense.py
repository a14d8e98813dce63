"""Rows of a matrix of vectors in, their products with a few vectors out."""

from __future__ import annotations

from typing import Any

import numpy as np

# Rows gathered at once: few enough that they are still in the cache when they are multiplied.
_ROWS = 512


def products(queries: Any, rows: Any) -> Any:
    """Return out[i, j] = <queries[i], rows[j]>, float32 [n, m]; arrays of NumPy, CuPy or torch.

    Args:
        queries: float32 [n, D].
        rows: float32 or float16 [m, D].
    """
    return queries @ (rows.astype(np.float32, copy=False) if hasattr(rows, "astype") else rows.float()).T


def row_products(vectors: Any, rows: Any, others: Any) -> Any:
    """Return out[j, i] = <vectors[rows[j]], others[i]>, float32 [m, a].

    Args:
        vectors: float32 or float16 [n, D], a NumPy array or a torch tensor.
        rows: int64 [m].
        others: float32 [a, D].
    """
    if not isinstance(vectors, np.ndarray):
        return vectors[rows].float() @ others.T
    out = np.empty((len(rows), len(others)), np.float32)
    held = np.empty((min(_ROWS, len(rows)), vectors.shape[1]), vectors.dtype)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        # "clip" lets NumPy write where it is told; the rows are in range
        np.take(vectors, some, axis=0, out=held[: len(some)], mode="clip")
        np.matmul(held[: len(some)].astype(np.float32, copy=False), others.T, out=out[start : start + len(some)])
    return out
