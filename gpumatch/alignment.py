"""Two tables in; how alike every two of their columns are, which belong together, and what to join on, out.

Columns are scored as in a join query by column, all pairs of the two tables at once; document frequencies are those of
the two tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpumatch.features import Side, lake_side
from gpumatch.index import Index, TableSet
from gpumatch.keys import JoinKey, join_keys
from gpumatch.lake import Table
from gpumatch.recipes import SCORE_DECIMALS, Recipe, weighted
from gpumatch.rescore_columns import score_columns
from gpumatch.run import Run

# Sums of scores that differ by less are equal.
_TIE = 1e-7

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the columns of two tables match.

    query, candidate: the headers of their A and B columns.
    alike: float64 [A, B] in [0, 1].
    pairs: int64 [n, 2], the one-to-one alignment: no column twice, and the sum of `alike` over its pairs the largest.
    keys: what to join on, best first; None if it was not asked for.
    """

    query: tuple[str, ...]
    candidate: tuple[str, ...]
    alike: np.ndarray
    pairs: np.ndarray
    keys: list[JoinKey] | None = None

    def rows(self, top: int) -> Iterator[Row]:
        """Yield a line for each query column: its `top` best candidates (0: all), and always the aligned one."""
        aligned = dict(self.pairs.tolist())
        for i, name in enumerate(self.query):
            order = np.lexsort((np.arange(len(self.candidate)), -self.alike[i]))
            shown = order[: top or None].tolist()
            partner = aligned.get(i)
            shown += [partner] if partner is not None and partner not in shown else []
            columns = [
                {"candidate": {"index": j, "name": self.candidate[j]}, "score": float(self.alike[i, j])}
                | ({"aligned": True} if j == partner else {})
                for j in shown
            ]
            yield {"query_column": {"index": i, "name": name}, "columns": columns}

    def key_rows(self, top: int) -> Iterator[Row]:
        """Yield a line for each of the `top` best keys (0: all)."""
        for key in (self.keys or [])[: top or None]:
            columns = [
                {
                    "query": {"index": i, "name": self.query[i]},
                    "candidate": {"index": j, "name": self.candidate[j]},
                    "score": alike,
                }
                for (i, j), alike in zip(key.columns, key.alike, strict=True)
            ]
            fit = key.fit
            yield {
                "columns": columns,
                "score": round(key.score, SCORE_DECIMALS),
                "key_side": fit and fit.side,
                "query_uniqueness": fit and round(fit.q_unique, SCORE_DECIMALS),
                "candidate_uniqueness": fit and round(fit.c_unique, SCORE_DECIMALS),
                "query_containment": fit and round(fit.q_in_c, SCORE_DECIMALS),
                "candidate_containment": fit and round(fit.c_in_q, SCORE_DECIMALS),
                "expected_rows": fit and fit.rows,
            }


def align(query: Table, candidate: Table, both: TableSet, run: Run, *, keys: bool) -> Alignment:
    """Match the columns of two tables.

    Args:
        both: profiles and vectors of the two, the query first.
        keys: whether to look for what to join on.
    """
    n_q, n_c = len(query.columns), len(candidate.columns)
    recipe = _between_two_tables(run.recipe("column"))
    device = run.device_for(0)
    with run.stats.stage("rescore", "pairs", device) as stage:
        side = lake_side(Index.of(both, {}), device)
        q, c = np.arange(n_q), n_q + np.arange(n_c)
        alike = either = _alike(side, q, c, recipe, run.settings.threads)
        if keys:  # a foreign key is in the other table's key, whichever of the two is the query
            either = np.maximum(alike, _alike(side, c, q, recipe, run.settings.threads).T)
        stage.items += alike.size
    with run.stats.stage("align", "columns") as stage:
        stage.items += n_q
        pairs = one_to_one(alike)
        return Alignment(
            query.header, candidate.header, alike, pairs, join_keys(query, candidate, either) if keys else None
        )


def _alike(side: Side, q: np.ndarray, c: np.ndarray, recipe: Recipe, threads: int) -> np.ndarray:
    """Return the scores of columns q (int64 [A]) with columns c (int64 [B]), float64 [A, B], rounded."""
    signals = score_columns(side, side, np.repeat(q, len(c)), np.tile(c, len(q)), recipe, threads)
    return np.round(weighted(signals, recipe).astype(np.float64), SCORE_DECIMALS).reshape(len(q), len(c))


def one_to_one(alike: np.ndarray) -> np.ndarray:
    """Return the pairs (i, j), int64 [n, 2], with the largest sum of alike [A, B]; no row and no column comes twice.

    Kuhn, The Hungarian method for the assignment problem, 1955, in SciPy's form (Crouse 2016). Pairs of value 0 are
    left out; of equal sums the one whose columns stand at like places.
    """
    from scipy.optimize import linear_sum_assignment

    apart = np.abs(np.subtract.outer(np.arange(alike.shape[0]), np.arange(alike.shape[1])))
    i, j = linear_sum_assignment(alike - _TIE / max(1, apart.size) * apart, maximize=True)
    kept = alike[i, j] > 0
    return np.stack([i[kept], j[kept]], axis=1).astype(np.int64)


def _between_two_tables(recipe: Recipe) -> Recipe:
    """Leave out the signal that is the same for all pairs of columns: how alike the tables' column names are."""
    return replace(recipe, weights={name: x for name, x in recipe.weights.items() if name != "name_cosine"})
