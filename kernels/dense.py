"""Rows of a matrix of vectors in, their products with a few vectors out."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.devices import clipped
from gpumatch.kernels.halves import widened
from gpumatch.kernels.lanes import BLOCK, TILE_ROWS, clip_cells, write_products

# Rows widened to float32 at once: few enough that they are still in the cache when they are multiplied.
_ROWS = 512


def products(queries: Any, rows: Any) -> Any:
    """Return out[i, j] = <queries[i], rows[j]>, float32 [n, m]; arrays of NumPy, CuPy or torch.

    Args:
        queries: float32 [n, D].
        rows: float32 or float16 [m, D].
    """
    return queries @ (rows.astype(np.float32, copy=False) if hasattr(rows, "astype") else rows.float()).T


def row_products(vectors: Any, rows: Any, others: Any, wanted: np.ndarray | None = None, *, clip: bool = False) -> Any:
    """Return out[j, i] = <vectors[rows[j]], others[i]>, float32 [m, a].

    On a CPU by tiles that stay in registers: as fast as a BLAS, and each can be left out.

    Args:
        vectors: float32 or float16 [n, D], a NumPy array or a torch tensor.
        rows: int64 [m].
        others: float32 [a, D].
        wanted: bool [m, blocks], which BLOCKs of a row are wanted; others may be left 0. None for all.
        clip: whether to clip the products to [0, 1].
    """
    if not isinstance(vectors, np.ndarray):
        table = vectors[rows].float() @ others.T
        return clipped(table) if clip else table
    (a, dim), m = others.shape, len(rows)
    blocks, tiles = -(-a // BLOCK), -(-m // TILE_ROWS)
    out = np.zeros((tiles * TILE_ROWS, blocks * BLOCK), np.float32)
    if not (a and m):
        return out[:m, :a]
    of_tile = np.ones((tiles, blocks), np.bool_)
    if wanted is not None:
        of_tile = np.logical_or.reduceat(wanted, np.arange(0, m, TILE_ROWS), axis=0)
    lanes = np.zeros((blocks * BLOCK, dim), np.float32)
    lanes[:a] = others
    lanes = lanes.reshape(blocks, BLOCK, dim).transpose(0, 2, 1).reshape(-1)
    rows = np.append(rows, np.full(len(out) - m, rows[-1]))  # the last row fills up the last tile
    step = len(out) if vectors.dtype == np.float32 else _ROWS // TILE_ROWS * TILE_ROWS
    for start in range(0, len(out), step):
        some, to = rows[start : start + step], out[start : start + step]
        held, at = vectors, some
        if vectors.dtype != np.float32:
            held, at = widened(vectors[some]), np.arange(len(some))
        tile = start // TILE_ROWS
        some_tiles = of_tile[tile : tile + len(some) // TILE_ROWS]
        _write(held.reshape(-1), at * dim, lanes, dim, some_tiles, clip, to.reshape(-1))
    return out[:m, :a]


@compiled
def _write(rows, starts, lanes, dim, wanted, clip, out):
    width = wanted.shape[1] * BLOCK
    for tile in range(len(wanted)):
        for block in range(wanted.shape[1]):
            if wanted[tile, block]:
                first = tile * TILE_ROWS
                at, to = block * BLOCK * dim, first * width + block * BLOCK
                write_products(rows, starts, first, lanes, at, dim, out, to, width)
                if clip:
                    for r in range(TILE_ROWS):
                        clip_cells(out, to + r * width)
