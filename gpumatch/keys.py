"""The rows of two tables and which of their columns look alike in; what to join them on, out.

A key is one pair of columns, or two or three if one is not enough: a year and a country, say. Values are compared in
their canonical forms; a row with an empty cell in its key joins nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from gpumatch.canonical import canonical_cells, comparable
from gpumatch.lake import Table

# A side is the key side if at least this share of its rows have a key of their own.
UNIQUE = 0.95
# How many pairs of columns are tried alone, and how many of those that share values are tried together.
ALONE, TOGETHER = 20, 10
MOST_COLUMNS = 3
# What one more pair of columns must add to `Fit.good`.
_WORTH = 0.05

Pair = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How the rows of two tables meet.

    q_unique, c_unique: share of a table's rows that a key tells apart, its distinct keys / its rows.
    q_in_c, c_in_q: containment, the share of a table's distinct keys that the other table has too.
    rows: rows of the inner join; larger: of the larger of the two tables.
    """

    q_unique: float
    c_unique: float
    q_in_c: float
    c_in_q: float
    rows: int
    larger: int

    @property
    def good(self) -> float:
        """In [0, 1]: the share of one side's keys that the other has, times how unique they are on the other."""
        return max(self.q_in_c * self.c_unique, self.c_in_q * self.q_unique)

    @property
    def joined(self) -> float:
        """In [0, 1]: about how much of the larger table takes part in the join."""
        return min(1.0, self.rows / max(1, self.larger))

    @property
    def side(self) -> str | None:
        """Which side is the key: "query", "candidate", "both", or None."""
        unique = (self.q_unique >= UNIQUE, self.c_unique >= UNIQUE)
        return {(True, True): "both", (True, False): "query", (False, True): "candidate"}.get(unique)


@dataclass(frozen=True)
class JoinKey:
    """A key: its pairs of columns (query table's, candidate table's), how alike each pair is, and how good the key is.

    score: mean likeness of the columns · fit.good · (1 + fit.joined)/2, in [0, 1]; fit is None if only a sample of
        rows is known.
    """

    columns: tuple[Pair, ...]
    alike: tuple[float, ...]
    fit: Fit | None

    @property
    def score(self) -> float:
        """How good the key is."""
        return self.likeness if self.fit is None else self.likeness * self.fit.good * (1 + self.fit.joined) / 2

    @property
    def likeness(self) -> float:
        """How alike its columns are, on the mean."""
        return sum(self.alike) / len(self.alike)


def join_keys(q: Table, c: Table, alike: np.ndarray) -> list[JoinKey]:
    """Return keys to join two tables on, best first.

    Args:
        alike: float [A, B] in [0, 1], how alike the columns of the two tables are, from either side.
    """
    order = np.argsort(-alike, axis=None, kind="stable")[:ALONE]
    pairs: list[Pair] = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, alike.shape), strict=True)]
    pairs = [pair for pair in pairs if alike[pair] > 0]
    if q.sampled or c.sampled:
        return [JoinKey((pair,), (float(alike[pair]),), None) for pair in pairs]
    rows = _Rows(q, c)
    found: dict[tuple[Pair, ...], Fit] = {(pair,): rows.fit((pair,)) for pair in pairs}
    sharing = [pair for pair in pairs if found[pair,].rows][:TOGETHER]
    for n in range(2, MOST_COLUMNS + 1):
        for columns in combinations(sharing, n):
            parts = [found.get(part) for part in combinations(columns, n - 1)]
            if any(part is None or part.good >= 1 for part in parts) or not _one_to_one(columns):
                continue
            fit = rows.fit(columns)
            if fit.good >= max(part.good for part in parts if part is not None) + _WORTH:
                found[columns] = fit
    keys = [JoinKey(columns, tuple(float(alike[pair]) for pair in columns), fit) for columns, fit in found.items()]
    return sorted(keys, key=lambda key: (-round(key.score, 6), -round(key.likeness, 6), len(key.columns), key.columns))


def _one_to_one(columns: Sequence[Pair]) -> bool:
    return all(len(set(side)) == len(columns) for side in zip(*columns, strict=True))


class _Rows:
    """The rows of two tables, coded so that equal canonical values have equal numbers."""

    def __init__(self, q: Table, c: Table) -> None:
        self._tables = q, c
        self._cells: dict[tuple[int, int], tuple[pa.Array, np.ndarray]] = {}
        self._codes: dict[Pair, np.ndarray] = {}

    def fit(self, columns: Sequence[Pair]) -> Fit:
        """Measure how the rows of both tables meet on some columns."""
        code = self._code(columns[0])
        for pair in columns[1:]:
            more = self._code(pair)
            known = (code >= 0) & (more >= 0)
            both = np.where(known, code * (int(more.max(initial=0)) + 1) + more, -1)
            code = np.unique(both, return_inverse=True)[1].reshape(-1) - int((both < 0).any())
        n_q, n_c = (table.n_rows for table in self._tables)
        width = int(code.max(initial=-1)) + 1
        q, c = (np.bincount(part[part >= 0], minlength=width) for part in (code[:n_q], code[n_q:]))
        shared, of_q, of_c = int(((q > 0) & (c > 0)).sum()), int((q > 0).sum()), int((c > 0).sum())
        unique, contained = (of_q / max(1, n_q), of_c / max(1, n_c)), (shared / max(1, of_q), shared / max(1, of_c))
        return Fit(*unique, *contained, int((q * c).sum()), max(n_q, n_c))

    def _code(self, pair: Pair) -> np.ndarray:
        """Return a number for each row's value, first the query table's and then the other's; -1 for none."""
        if pair not in self._codes:
            (q, letter), (c, other) = (self._canonical(side, column) for side, column in enumerate(pair))
            both = pa.concat_arrays([q, c]).dictionary_encode().indices.fill_null(-1)
            code = both.to_numpy(zero_copy_only=False).astype(np.int64)
            if not comparable(letter, other)[0]:  # then the two columns have no value in common
                code[len(q) :][code[len(q) :] >= 0] += int(code.max(initial=-1)) + 1
            self._codes[pair] = code
        return self._codes[pair]

    def _canonical(self, side: int, column: int) -> tuple[pa.Array, np.ndarray]:
        """Return the canonical value of each row, null for none, and the column's letter."""
        if (side, column) not in self._cells:
            self._cells[side, column] = canonical_cells(self._tables[side].columns[column])
        return self._cells[side, column]
