"""Query rows and an index in, the survivors of every query out: one streamed product, no loop over queries.

Search only proposes; what it proposes is scored exactly by `rescore`. Never holds the scores of all queries against all
rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from gpumatch.blocks import RowMaker, chunks, column_layout, table_layout
from gpumatch.index import Index, TableSet
from gpumatch.kernels.backends import Backend, Part, Product
from gpumatch.kernels.overlap import Sets
from gpumatch.kernels.ragged import firsts, gather_segments, offsets_of
from gpumatch.memory import DevicePlan, give_back, is_out_of_memory
from gpumatch.recipes import Recipe

# How far scores fall is measured from this place on: a query's very best rows are often copies of it.
_TENTH = 9
# Scores of one tile: 4M float32 and their 64-bit keys are some 100 MB.
_TILE_SCORES = 4_000_000
_MAX_TILE = 65_536
# Rows of the lake's columns are kept up to this size: 100,000 columns with vectors are 490 MB.
_KEPT_BYTES = 512 * 2**20
_ROWS_AT_ONCE = 4096
# Query rows that a thread makes at once.
_QUERIES_AT_ONCE = 256
# Lake columns that hold at least this share of a query column's values are proposed, this many at most.
HELD, MOST_HELD = 0.5, 50
# Pairs of a query column and a lake column that may be found at once: yes and no are in very many columns.
_HELD_AT_ONCE = 16_000_000


def table_rows(index: Index, queries: TableSet, tables: np.ndarray, recipe: Recipe, threads: int = 1) -> np.ndarray:
    """Return the query rows of some tables (int64 [n]) of `queries`, float32 [n, width]."""
    maker = _maker(index, queries, recipe)
    rows = np.empty((len(tables), table_layout(index.lake.dim).width), np.float32)

    def make(some: np.ndarray) -> None:
        rows[some] = maker.tables(tables[some])

    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(make, chunks(len(tables), _QUERIES_AT_ONCE)), maxlen=0)
    return rows


def search_tables(
    index: Index, wanted: np.ndarray, k: int, exclude: np.ndarray, backend: Backend, plan: DevicePlan | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k lake tables whose rows score best for each query, and their scores.

    Args:
        wanted: float32 [n, width], the rows of tables (`table_rows`), of texts (`texts.text_rows`), or their sum.
        exclude: int64 [n], the lake table that is the query itself, or -1.
        plan: how a device's memory is divided; None on a CPU.

    Returns:
        (int64 [n, k], float32 [n, k]), best first, equal scores by table name; -1 and -inf beyond the last.
    """
    return _best(backend, Product([Part(wanted, index.rows)], len(index.rows)), k, exclude, plan)


def survivors(ids: np.ndarray, scores: np.ndarray, recipe: Recipe, k: int) -> np.ndarray:
    """Return the ids of the rows that are scored exactly, and -1 for those that search alone rules out.

    A query's scores fall steeply if few tables are like it, and hardly if many are. Rows stay that score above the last
    one by at least `recipe.cut` of the way from there to the tenth; and the best `recipe.least`, or k, always.

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
    backend: Backend,
    plan: DevicePlan | None = None,
) -> np.ndarray:
    """Return the k lake columns that score best for each query column, and those that hold most of its values.

    A column's score includes its table's. Hashed values tell little of large columns, or where few values are in common
    with very many; so columns that hold at least HELD of a query column's distinct values are proposed whatever they
    score: MOST_HELD of them, those that hold most first, of equal ones the smallest.

    Args:
        columns: int64 [n], query columns of `queries`.
        wanted: float32 [n, width], the query rows of their tables, as `search_tables` takes them.
        exclude: int64 [n], the lake table that holds the query itself, or -1; none of its columns is proposed.
        plan: as `search_tables` takes it.

    Returns:
        int64 [n, k + MOST_HELD] lake columns, none twice; -1 where there are fewer.
    """
    own, table_of = _maker(index, queries, recipe).columns(columns), index.lake.terms.column_table
    parts = [Part(own, _lake_columns(index)), Part(wanted, index.rows, table_of)]
    ids, _ = _best(backend, Product(parts, index.lake.profiles.n_columns, table_of), k, exclude, plan)
    holding = np.full((len(columns), MOST_HELD), -1)
    for some in chunks(len(columns), max(1, _HELD_AT_ONCE // max(1, index.lake.profiles.n_columns))):
        holding[some] = _holding(index, queries, columns[some], ids[some], exclude[some], backend)
    return np.concatenate([ids, holding], axis=1)


def _holding(
    index: Index, queries: TableSet, columns: np.ndarray, ids: np.ndarray, exclude: np.ndarray, backend: Backend
) -> np.ndarray:
    """Return lake columns that hold at least HELD of each query column's values and are not among ids.

    Returns:
        int64 [n, MOST_HELD], -1 where there are fewer.
    """
    asked, lake = queries.profiles, index.lake.profiles
    flat, size = gather_segments(asked.value_start, columns)
    least = np.maximum(1, np.ceil(HELD * size)).astype(np.int64)
    found = backend.overlaps(Sets(offsets_of(size), asked.values[flat]), Sets(lake.value_start, lake.values), least)
    query = np.repeat(np.arange(len(columns)), np.diff(found.start))
    new = index.lake.terms.column_table[found.column] != exclude[query]
    key = query * (lake.n_columns + 1)
    known = np.sort((np.arange(len(ids))[:, None] * (lake.n_columns + 1) + ids)[ids >= 0])
    new &= ~np.isin(key + found.column, known)
    query, column, count = query[new], found.column[new], found.count[new]
    order = np.lexsort((column, np.diff(lake.value_start)[column], -count, query))
    return firsts(query[order], column[order], len(columns), MOST_HELD)


def kept_bytes(index: Index) -> int:
    """Return how many bytes of rows of the lake's columns are kept while columns are searched; 0 where too many."""
    nbytes = 2 * index.lake.profiles.n_columns * column_layout(index.lake.dim).width
    return nbytes if nbytes <= _KEPT_BYTES else 0


def _lake_columns(index: Index) -> np.ndarray | Callable[[int, int], np.ndarray]:
    """Return the rows of the lake's columns, kept for the next batch; if they are many, a function that makes some."""
    lake = RowMaker(index.lake.terms, index.lake.vectors, index.lake.profiles.table_cols, index.lake.dim)
    shape = index.lake.profiles.n_columns, column_layout(index.lake.dim).width
    if not kept_bytes(index):
        return lambda start, stop: lake.columns(np.arange(start, stop)).astype(np.float16)
    if "column rows" not in index.derived:
        rows = np.empty(shape, np.float16)
        for some in chunks(shape[0], _ROWS_AT_ONCE):
            rows[some] = lake.columns(some)
        index.derived["column rows"] = rows
    kept: np.ndarray = index.derived["column rows"]
    return kept


def _maker(index: Index, queries: TableSet, recipe: Recipe) -> RowMaker:
    vectors = queries.vectors if index.lake.vectors is not None else None
    return RowMaker(
        queries.terms, vectors, queries.profiles.table_cols, index.lake.dim, index.vocabularies, recipe.blocks
    )


def _best(
    backend: Backend, product: Product, k: int, exclude: np.ndarray, plan: DevicePlan | None
) -> tuple[np.ndarray, np.ndarray]:
    if plan is None:
        tile = max(1, min(_MAX_TILE, _TILE_SCORES // max(1, len(product.parts[0].queries))))
    else:
        tile, product = plan.tile_rows, replace(product, stays=plan.rows > 0)
    while True:
        try:
            return backend.best(product, k, exclude, tile)
        except Exception as error:
            if not is_out_of_memory(error) or (tile == 1 and not product.stays):
                raise
            give_back(error)
        # The memory that was planned for is no longer there.
        tile, product = (tile + 1) // 2, replace(product, stays=False)
