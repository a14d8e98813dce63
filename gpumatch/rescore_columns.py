"""Pairs of columns that search proposed in, exact evidence out; `rescore` does the same for tables.

All pairs of all query columns at once, in chunks of bounded size. The formulas are the ones that `recipes` names; what
a recipe does not weigh is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from gpumatch import chunks
from gpumatch.canonical import comparable
from gpumatch.features import Side, containment_evidence
from gpumatch.kernels.chance import beyond_chance, chance_between
from gpumatch.kernels.devices import host
from gpumatch.kernels.hashing import distinct
from gpumatch.kernels.maxsim import MEAN, Pairs, Similarity, maxsim
from gpumatch.kernels.ragged import Csr, gather_segments, offsets_of
from gpumatch.kernels.sparse import dot_table
from gpumatch.recipes import Recipe

# Values that are compared by how they are spelled: of a query column, and of a lake column. 60 and 200 answer the same.
QUERY_VALUES, LAKE_VALUES = 30, 100
# Columns of whole numbers of which one is as likely as that to hold any number of the other: row numbers, or years.
_RUNNING = 0.9


def score_columns(
    q: Side,
    c: Side,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    recipe: Recipe,
    threads: int,
    cells: int | None = None,
) -> np.ndarray:
    """Return the signals of every pair of columns, float32 [P, len(recipe.weights)].

    Args:
        pair_q, pair_c: int64 [P], query and lake columns; the pairs of a query column stand together.
        cells: of a chunk, at most; None for what is good on a CPU.
    """
    spelled = q.spelled_values(QUERY_VALUES), c.spelled_values(LAKE_VALUES)

    def work(some: slice) -> np.ndarray:
        pairs = _ColumnPairs(q, c, pair_q[some], pair_c[some], *spelled)
        return np.stack([_COLUMN_SIGNALS[name](pairs) for name in recipe.weights], axis=1).astype(np.float32)

    # A column is worth one cell at least, so that the pairs of a chunk are bounded too.
    q_cells, c_cells = (offsets_of(np.maximum(1, np.diff(start))) for start, _ in spelled)
    parts = chunks.over(work, chunks.plan(q_cells, c_cells, pair_q, pair_c, q.device, cells), threads, q.device)
    return np.concatenate([np.empty((0, len(recipe.weights)), np.float32), *parts])


class _ColumnPairs:
    """Some pairs of columns: left int64 [P] of the query side, right int64 [P] of the lake.

    q_values, c_values: what `Side.spelled_values` gives of the two sides.
    """

    def __init__(
        self,
        q: Side,
        c: Side,
        left: np.ndarray,
        right: np.ndarray,
        q_values: tuple[np.ndarray, np.ndarray],
        c_values: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.q, self.c = q, c
        self.left, self.right = left, right
        self.q_table, self.c_table = q.terms.column_table[left], c.terms.column_table[right]
        self.q_values, self.c_values = q_values, c_values
        self.coded = q.coded[left] | c.coded[right]
        self.chance = chance_between(q.chance, c.chance, left, right)
        both = (q.chance.level[left] >= 0) & (c.chance.level[right] >= 0)
        self.running = both & (self.chance >= _RUNNING)
        self.marked = (q.letter[left] > 0) & (c.letter[right] > 0)
        self.apart = ~comparable(q.letter[left], c.letter[right])

    def dots(self, q: Csr, q_row: np.ndarray, c: Csr, c_row: np.ndarray) -> np.ndarray:
        """Return the dot product of each pair's sparse rows, float32 [P]; q_row and c_row int64 [P]."""
        return self._of_pairs(q_row, c_row, lambda a, b: dot_table(*self.q.some(q, a), *self.c.some(c, b)))

    def where_named(self, signal: np.ndarray) -> np.ndarray:
        """Return a signal of the columns' names, float32 [P], or NaN where one of the two says nothing."""
        named = self.q.terms.named[self.left] & self.c.terms.named[self.right]
        return np.where(named, signal, np.float32(np.nan))

    @cached_property
    def shared(self) -> np.ndarray:
        """|Q∩C| of each pair, float32 [P]; NaN where a sample of the values is all that is known."""
        sampled = self.q.sampled[self.left] | self.c.sampled[self.right]
        return np.where(sampled, np.nan, self.values_alike(self.q.values, self.c.values))

    def values_alike(self, q: Csr, c: Csr) -> np.ndarray:
        """Return the dot product of the rows of two columns' values, float32 [P], 0 where they number other things."""
        return np.where(self.apart, np.float32(0), self.dots(q, self.left, c, self.right))

    def containment(self) -> np.ndarray:
        """Return |Q∩C|/|Q| of each pair."""
        answer: np.ndarray = self.shared / np.maximum(1, self.q.value_count[self.left])
        return answer

    def jaccard(self) -> np.ndarray:
        """Return |Q∩C|/|Q∪C| of each pair."""
        both = self.q.value_count[self.left] + self.c.value_count[self.right] - self.shared
        answer: np.ndarray = self.shared / np.maximum(1, both)
        return answer

    def rare_containment(self) -> np.ndarray:
        """Return what the query's values in the candidate say, float32 [P]; NaN where Q is hardly known."""
        shared = self.values_alike(self.q.rare_values, self.c.values)
        if self.marked.any():
            marked = self.values_alike(self.q.rare_marked_values, self.c.marked_values)
            shared = np.where(self.marked, marked, shared)
        size = self.q.value_count[self.left]
        of_plain, of_marked = self.q.most_shared
        most = np.where(self.marked, of_marked[self.left], of_plain[self.left])
        beyond = beyond_chance(shared / (1 + size), most, self.chance, size)
        found = containment_evidence(beyond, size)
        return np.where(self.q.glimpsed[self.left], np.nan, found)

    def number_range(self) -> np.ndarray:
        """Return how much of the numbers' ranges is common to both, float32 [P]; NaN where one has no numbers."""
        (q_low, q_high), (c_low, c_high) = self.q.number_range[self.left].T, self.c.number_range[self.right].T
        common = np.minimum(q_high, c_high) - np.maximum(q_low, c_low)
        whole = np.maximum(q_high, c_high) - np.minimum(q_low, c_low)
        alike = np.where(whole > 0, np.maximum(0, common) / np.where(whole > 0, whole, 1), 1)  # one number, the same
        return np.where(np.isnan(whole), np.nan, alike)

    def number_distribution(self) -> np.ndarray:
        """Return how alike the numbers are distributed, float32 [P]; NaN where one column has none."""
        q, c = self.q.host.stats[self.left].astype(np.float64), self.c.host.stats[self.right].astype(np.float64)
        known = ~np.isnan(self.q.number_range[self.left, 0] + self.c.number_range[self.right, 0])
        # A column of one number has no width; a hundredth keeps the formula finite.
        q_sd, c_sd = np.maximum(q[:, 4], 0.01), np.maximum(c[:, 4], 0.01)
        both = q_sd**2 + c_sd**2
        answer = np.sqrt(2 * q_sd * c_sd / both) * np.exp(-((q[:, 3] - c[:, 3]) ** 2) / (4 * both))
        return np.where(known, answer, np.nan)

    def named_containment(self) -> np.ndarray:
        """Return half of 1 + containment beyond chance where the names are the same, else 0."""
        q, c = self.q.name_id[self.q.name_row[self.left]], self.c.name_id[self.c.name_row[self.right]]
        contained = np.nan_to_num(self.containment())
        contained = beyond_chance(contained, np.ones(len(contained)), self.chance, self.q.value_count[self.left])
        return self.where_named((q == c) * (1 + contained) / 2)

    def name_cosine(self) -> np.ndarray:
        """Return the cosine of the tables' names, NaN where a table has none that says anything."""
        q, c = self.q, self.c
        known = (q.named_columns[self.q_table] > 0) & (c.named_columns[self.c_table] > 0)
        return np.where(known, self.dots(q.names, self.q_table, c.names, self.c_table).clip(0, 1), np.float32(np.nan))

    def name_grams(self) -> np.ndarray:
        """Return the cosine of the names' grams, float32 [P]."""
        q, c = self.q, self.c
        cosine = self.dots(q.name_grams, q.name_row[self.left], c.name_grams, c.name_row[self.right])
        return self.where_named(cosine.clip(0, 1))

    def name_vectors(self) -> np.ndarray:
        """Return the cosine of the names' vectors, float32 [P]."""
        q, c = self.q, self.c
        rows = q.name_vector_row[self.left], c.name_vector_row[self.right]
        return self.where_named(self._of_pairs(*rows, lambda i, j: c.cosines(j, q.vectors(i))))

    def value_grams(self) -> np.ndarray:
        """Return the cosine of the values' grams, float32 [P]; NaN where both columns are running."""
        cosine = self.values_alike(self.q.value_grams, self.c.value_grams).clip(0, 1)
        return np.where(self.running, np.float32(np.nan), cosine)

    def value_cosine(self) -> np.ndarray:
        """Return the cosine of the canonical values, float32 [P]; NaN unless one column is coded, or if both run."""
        cosine = self.values_alike(self.q.weighed_values, self.c.weighed_values).clip(0, 1)
        return np.where(self.coded & ~self.running, cosine, np.float32(np.nan))

    def value_maxsim(self) -> np.ndarray:
        """Return MaxSim, from the query's side, of the values' grams, float32 [P]; NaN where one column is coded."""
        q_columns, pair_q = distinct(self.left)
        c_columns, pair_c = distinct(self.right)
        q_flat, q_width = gather_segments(self.q_values[0], q_columns)
        c_flat, c_width = gather_segments(self.c_values[0], c_columns)
        q_rows, q_at = distinct(self.q_values[1][q_flat])
        c_rows, c_at = distinct(self.c_values[1][c_flat])
        (q, q_some), (c, c_some) = self.q.some(self.q.text_grams, q_rows), self.c.some(self.c.text_grams, c_rows)
        table = dot_table(q, q_some, c, c_some, clip=True)
        pairs = Pairs([Similarity(table, q_at, c_at)], offsets_of(q_width), offsets_of(c_width), pair_q, pair_c)
        forward, _ = maxsim(pairs, np.array([[MEAN, 0, 0]]))
        return np.where(self.coded, np.float32(np.nan), forward[:, 0])

    def _of_pairs(self, q_row: np.ndarray, c_row: np.ndarray, table: Callable[..., Any]) -> np.ndarray:
        q_rows, q_at = distinct(q_row)
        c_rows, c_at = distinct(c_row)
        answer: np.ndarray = host(table(q_rows, c_rows))[c_at, q_at]
        return answer


_COLUMN_SIGNALS: dict[str, Callable[[_ColumnPairs], np.ndarray]] = {
    "name_cosine": _ColumnPairs.name_cosine,
    "name_grams": _ColumnPairs.name_grams,
    "name_vectors": _ColumnPairs.name_vectors,
    "value_grams": _ColumnPairs.value_grams,
    "value_maxsim": _ColumnPairs.value_maxsim,
    "value_cosine": _ColumnPairs.value_cosine,
    "named_containment": _ColumnPairs.named_containment,
    "rare_containment": _ColumnPairs.rare_containment,
    "containment": _ColumnPairs.containment,
    "value_jaccard": _ColumnPairs.jaccard,
    "number_range": _ColumnPairs.number_range,
    "number_distribution": _ColumnPairs.number_distribution,
}
