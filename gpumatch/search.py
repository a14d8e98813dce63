"""Query rows and an index in, the survivors of every query out: one streamed product, no loop over queries.

Search only proposes; what it proposes is scored exactly by `rescore`. Never holds the scores of all queries against all
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpumatch.blocks import RowMaker, chunks, column_layout
from gpumatch.index import Index, TableSet
from gpumatch.kernels.devices import put
from gpumatch.kernels.topk import stream_topk
from gpumatch.memory import is_out_of_memory
from gpumatch.recipes import Recipe

# A query's best rows are often itself again under other names: the fall is measured from this place on.
_TENTH = 9
# Scores of one tile: 4M float32 and their 64-bit keys are some 100 MB.
_TILE_SCORES = 4_000_000
_MAX_TILE = 65_536
# Rows of the lake's columns are kept up to this size: 100,000 columns with vectors are 490 MB.
_KEPT_BYTES = 512 * 2**20
_ROWS_AT_ONCE = 4096


def table_rows(index: Index, queries: TableSet, tables: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the query rows of some tables (int64 [n]) of `queries`, float32 [n, width]."""
    return _maker(index, queries, recipe).tables(tables)


def search_tables(
    index: Index, wanted: np.ndarray, k: int, exclude: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k lake tables whose rows score best for each query, and their scores.

    Args:
        wanted: float32 [n, width], the rows of tables (`table_rows`), of texts (`texts.text_rows`), or their sum.
        exclude: int64 [n], the lake table that is the query itself, or -1.

    Returns:
        (int64 [n, k], float32 [n, k]), best first, equal scores by table name; -1 and -inf beyond the last.
    """
    rows = _on(wanted, device)

    def tile(start: int, stop: int) -> Any:  # noqa: ANN401
        return rows @ _on(index.rows[start:stop], device).T

    return _topk(tile, len(index.rows), len(wanted), k, exclude)


def survivors(ids: np.ndarray, scores: np.ndarray, recipe: Recipe, k: int) -> np.ndarray:
    """Return the ids of the rows that are scored exactly, and -1 for those that search alone rules out.

    A query's scores fall steeply where few tables are like it, and hardly where many are nearly the same. What stays is
    above the last score by `recipe.cut` of the way from there to the tenth; and the best `recipe.least`, or k, always.

    Args:
        ids, scores: int64 and float32 [n, width], best first, -1 and -inf for none.
        k: matches asked for, 0 for all survivors.
    """
    if not recipe.cut or not ids.size:
        return ids
    there = ids >= 0
    scores, found = np.where(there, scores, 0), there.sum(axis=1, keepdims=True)
    last, tenth = (
        np.take_along_axis(scores, np.clip(found - 1, 0, place), axis=1) for place in (recipe.pool - 1, _TENTH)
    )
    stays = scores >= last + np.float32(recipe.cut) * (tenth - last)
    stays[:, : max(recipe.least, k)] = True
    return np.where(stays, ids, -1)


def search_columns(
    index: Index,
    queries: TableSet,
    columns: np.ndarray,
    wanted: np.ndarray,
    recipe: Recipe,
    k: int,
    exclude: np.ndarray,
    device: str,
) -> np.ndarray:
    """Return the k lake columns that score best for each query column, their table's row counted in.

    Args:
        columns: int64 [n], query columns of `queries`.
        wanted: float32 [n, width], the query rows of their tables, as `search_tables` takes them.
        exclude: int64 [n], the lake table that holds the query itself, or -1; none of its columns is proposed.

    Returns:
        int64 [n, k] lake columns, best first; -1 where there are fewer than k.
    """
    if not index.lake.profiles.n_columns:
        return np.full((len(columns), k), -1)
    own, tables = _on(_maker(index, queries, recipe).columns(columns), device), _on(wanted, device)
    rows_of = _lake_columns(index)
    table_of = index.lake.terms.column_table

    def tile(start: int, stop: int) -> Any:  # noqa: ANN401
        scores = own @ _on(rows_of(start, stop), device).T
        of = table_of[start:stop]
        rows = _on(index.rows[of[0] : of[-1] + 1], device)
        scores += (tables @ rows.T)[:, of - of[0]]
        scores[np.nonzero(of == exclude[:, None])] = -1e3
        return scores

    ids, _ = _topk(tile, index.lake.profiles.n_columns, len(columns), k, None)
    own_columns = (ids >= 0) & (table_of[np.maximum(ids, 0)] == exclude[:, None])
    return np.where(own_columns, -1, ids)


def _lake_columns(index: Index) -> Callable[[int, int], np.ndarray]:
    """Return what gives the rows of the lake's columns start to stop: kept for the next batch where they are few."""
    lake = RowMaker(index.lake.terms, index.lake.vectors, index.lake.profiles.table_cols, index.lake.dim)
    shape = index.lake.profiles.n_columns, column_layout(index.lake.dim).width
    if 2 * shape[0] * shape[1] > _KEPT_BYTES:
        return lambda start, stop: lake.columns(np.arange(start, stop)).astype(np.float16)
    if "column rows" not in index.derived:
        rows = np.empty(shape, np.float16)
        for some in chunks(shape[0], _ROWS_AT_ONCE):
            rows[some] = lake.columns(some)
        index.derived["column rows"] = rows
    kept: np.ndarray = index.derived["column rows"]
    return lambda start, stop: kept[start:stop]


def _maker(index: Index, queries: TableSet, recipe: Recipe) -> RowMaker:
    vectors = queries.vectors if index.lake.vectors is not None else None
    return RowMaker(
        queries.terms, vectors, queries.profiles.table_cols, index.lake.dim, index.vocabularies, recipe.blocks
    )


def _topk(
    tile: Callable[[int, int], Any], n_rows: int, n: int, k: int, exclude: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    size = max(1, min(_MAX_TILE, _TILE_SCORES // max(1, n)))
    while True:
        try:
            return stream_topk(tile, n_rows, k, tile=size, exclude=exclude)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size = (size + 1) // 2


def _on(rows: np.ndarray, device: str) -> Any:  # noqa: ANN401
    """Return rows as float32 on the device, where they are widened."""
    there = put(rows, device)
    return there.astype(np.float32, copy=False) if isinstance(there, np.ndarray) else there.float()
