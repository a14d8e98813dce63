"""Pairs of tables that search proposed in, exact evidence and matching columns out.

All pairs of all queries at once, in ragged chunks of bounded size: no padding of tables, no loop over candidates. A
chunk computes a similarity once between its distinct columns, and `kernels.maxsim` looks it up for each pair, since the
survivors of alike queries are alike. The formulas are the ones that `recipes` names; what a recipe does not weigh is
not computed.

Axes of a chunk: P pairs, G distinct queries with A columns (lanes) in all, T distinct candidate tables with M columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from gpumatch import chunks
from gpumatch.features import Side
from gpumatch.kernels.devices import clipped, host
from gpumatch.kernels.hashing import distinct
from gpumatch.kernels.maxsim import MEAN, PRODUCT, Pairs, Similarity, matching_columns, maxsim, wanted_blocks
from gpumatch.kernels.profiles import profile_table
from gpumatch.kernels.ragged import Csr, gather_segments, offsets_of
from gpumatch.kernels.shares import Shares
from gpumatch.kernels.sparse import dot_table
from gpumatch.recipes import KEY, Recipe
from gpumatch.shared_keys import shared_keys

R = TypeVar("R")


def score_tables(
    q: Side,
    c: Side,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    recipe: Recipe,
    threads: int,
    itself: np.ndarray | None = None,
    cells: int | None = None,
) -> np.ndarray:
    """Return the signals of every pair of tables, float32 [P, len(recipe.weights)], columns in the recipe's order.

    Args:
        pair_q, pair_c: int64 [P], query and lake tables; the pairs of a query stand together, best survivors first.
        threads: chunks worked on at once (on a CPU).
        itself: int64 [P], the lake table that the query is, or -1; None where alike queries stand together already.
        cells: of a chunk, at most; None for what is good on a CPU.
    """
    order = chunks.alike_together(pair_q, pair_c, itself)
    parts = _over_chunks(q, c, pair_q[order], pair_c[order], threads, lambda chunk, _: chunk.signals(recipe), cells)
    signals = np.empty((len(pair_q), len(recipe.weights)), np.float32)
    signals[order] = np.concatenate([signals[:0], *parts])
    return signals


@dataclass(frozen=True)
class ColumnPairs:
    """Matching columns of some table pairs: pair, query, candidate int64 [n], score float32 [n]."""

    pair: np.ndarray
    query: np.ndarray
    candidate: np.ndarray
    score: np.ndarray


def explain_tables(
    q: Side,
    c: Side,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    recipe: Recipe,
    threads: int,
    itself: np.ndarray | None = None,
) -> tuple[np.ndarray, ColumnPairs]:
    """Return the signals of every pair, with arguments as `score_tables`, and which of its columns match.

    Columns match when they are each other's best by the mean of what is known of them: how alike their names and value
    tokens are and, where the recipe has them, the vectors of both; or when they are the key that the tables share, if
    the recipe has `key_containment`. Sorted by pair, then falling score, then column.
    """
    order = chunks.alike_together(pair_q, pair_c, itself)

    def work(chunk: _Chunk, start: int) -> tuple[np.ndarray, ...]:
        chunk.compare([*_MATCHING[recipe.dense], *_parts(recipe)])
        pair, query, candidate, score = chunk.matching(recipe.dense)
        if KEY in recipe.weights:
            pair, query, candidate, score = chunk.with_keys(pair, query, candidate, score)
        return chunk.signals(recipe), order[pair + start], query, candidate, score

    none = np.empty(0, np.int64)
    nothing = np.empty((0, len(recipe.weights)), np.float32), none, none, none, np.empty(0, np.float32)
    parts = [nothing, *_over_chunks(q, c, pair_q[order], pair_c[order], threads, work)]
    found, pair, query, candidate, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    signals = np.empty_like(found)
    signals[order] = found
    by = np.argsort(pair, kind="stable")
    return signals, ColumnPairs(pair[by], query[by], candidate[by], score[by])


# Of the query's side and of the lake's: the distinct rows, and the place of each column's among them.
_Rows = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class _Chunk:
    """Some pairs of tables, and the similarities between their distinct columns."""

    def __init__(self, q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray) -> None:
        self.q, self.c = q, c
        self.groups, self.pair_group = distinct(pair_q)
        self.tables, self.pair_table = distinct(pair_c)
        self.lanes, self.q_width = gather_segments(q.table_cols, self.groups)
        self.columns, self.c_width = gather_segments(c.table_cols, self.tables)
        self._pairs = self._pairs_by(())
        self._number: dict[str, int] = {}  # of each similarity among those of the pairs

    def signals(self, recipe: Recipe) -> np.ndarray:
        """Return the recipe's signals, float32 [P, S]."""
        late = [name for name in recipe.weights if name in _MAXSIM_SIGNALS]
        found = {name: _TABLE_SIGNALS[name](self) for name in recipe.weights if name not in _MAXSIM_SIGNALS}
        if late:
            self.compare(_parts(recipe))
            terms = list(dict.fromkeys(_MAXSIM_SIGNALS[name][:3] for name in late))
            numbers = [(operation, self._number[a], self._number[b]) for operation, a, b in terms]
            forward, backward = maxsim(self._pairs, np.array(numbers, np.int64))
            for name in late:
                at, symmetric = terms.index(_MAXSIM_SIGNALS[name][:3]), _MAXSIM_SIGNALS[name][3]
                ways: tuple[np.ndarray, ...] = (forward[:, at], backward[:, at])
                if known := _KNOWN.get(_MAXSIM_SIGNALS[name][1]):
                    ways = known(self, *ways)
                found[name] = (ways[0] + ways[1]) / 2 if symmetric else ways[0]
        return np.stack([found[name] for name in recipe.weights], axis=1).astype(np.float32)

    def over_named(self, forward: np.ndarray, backward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means over all columns, float32 [P], as means over the named ones; NaN where a table has none."""
        q, c = self.q.named_columns[self.groups], self.c.named_columns[self.tables]
        q_share = (self.q_width / np.maximum(1, q)).astype(np.float32)[self.pair_group]
        c_share = (self.c_width / np.maximum(1, c)).astype(np.float32)[self.pair_table]
        return self.where_named(forward * q_share), self.where_named(backward * c_share)

    def where_named(self, signal: np.ndarray) -> np.ndarray:
        """Return a signal of names, float32 [P], or NaN where one of the two tables has no name that says anything."""
        q, c = self.q.named_columns[self.groups] > 0, self.c.named_columns[self.tables] > 0
        # A table without columns has no names either, and is nothing like any other: that is known.
        q, c = q | (self.q_width == 0), c | (self.c_width == 0)
        return np.where(q[self.pair_group] & c[self.pair_table], signal, np.float32(np.nan))

    def where_whole(self, *signals: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return signals of all values, float32 [P], NaN where a sample of one table's is all that is known."""
        q, c = self.q.sampled_tables[self.groups], self.c.sampled_tables[self.tables]
        return tuple(np.where(q[self.pair_group] | c[self.pair_table], np.float32(np.nan), one) for one in signals)

    def matching(self, dense: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the column pairs that are each other's best: (pair, query column, candidate column, score)."""
        self.compare(_MATCHING[dense])
        pair, lane, column, score = matching_columns(self._pairs, [self._number[name] for name in _MATCHING[dense]])
        return pair, self.lanes[lane], self.columns[column], score

    def compare(self, names: Sequence[str]) -> None:
        """Compute these similarities between the columns, unless they are there: best all that are needed at once."""
        if new := [name for name in dict.fromkeys(names) if name not in self._number]:
            self._pairs = self._pairs_by([*self._pairs.similarities, *(_SIMILARITIES[name](self) for name in new)])
            self._number |= {name: len(self._number) + i for i, name in enumerate(new)}

    def _pairs_by(self, similarities: Sequence[Similarity]) -> Pairs:
        starts = offsets_of(self.q_width), offsets_of(self.c_width)
        return Pairs(similarities, *starts, self.pair_group, self.pair_table)

    def between(
        self,
        q_row: np.ndarray | None,
        c_row: np.ndarray | None,
        table: Callable[[np.ndarray, np.ndarray, np.ndarray | None], Any],
    ) -> Similarity:
        """Compute a similarity between distinct rows only.

        Args:
            q_row, c_row: int64 [C], each column's row of what is compared, or None where each has its own.
            table: of distinct query rows int64 [a] and candidate rows int64 [u], their similarities float32 [u, a], in
                [0, 1]; it is told which blocks of them are wanted (bool [u, blocks]), or None for all.
        """
        q_rows, q_at = (self.lanes, np.arange(len(self.lanes))) if q_row is None else distinct(q_row[self.lanes])
        c_rows, c_at = (self.columns, np.arange(len(self.columns))) if c_row is None else distinct(c_row[self.columns])
        wanted = None
        if self.q.device == "cpu":
            wanted = wanted_blocks(self._pairs_by(()), q_at, c_at, len(c_rows), len(q_rows))
        return Similarity(table(q_rows, c_rows, wanted), q_at, c_at)

    @cached_property
    def by_name(self) -> _Rows:
        """The distinct names of both sides."""
        return self.named_rows(self.q.name_row, self.c.name_row)

    def named_rows(self, q_row: np.ndarray, c_row: np.ndarray) -> _Rows:
        """Return the distinct rows of both sides, each as 2·row + whether the name says something.

        The same name can say something in one table and nothing in another.
        """
        q_said, c_said = self.q.terms.named[self.lanes], self.c.terms.named[self.columns]
        return distinct(2 * q_row[self.lanes] + q_said), distinct(2 * c_row[self.columns] + c_said)

    def between_names(self, rows: _Rows, table: Callable[..., Any], unknown: float) -> Similarity:
        """Compute, as `between`, a similarity of names (`named_rows`); `unknown` where a name says nothing."""
        (q_rows, q_at), (c_rows, c_at) = rows
        found = table(q_rows >> 1, c_rows >> 1)
        q_silent, c_silent = (q_rows & 1) == 0, (c_rows & 1) == 0
        if q_silent.any() or c_silent.any():
            found[self.c.put(c_silent)] = unknown
            found[:, self.q.put(q_silent)] = unknown
        return Similarity(found, q_at, c_at)

    def sparse_cosines(self, q: Csr, c: Csr) -> Callable[..., Any]:
        """Return what computes, for `between` and `between_names`, the products of unit-length sparse rows."""
        return lambda a, b, wanted=None: dot_table(*self.q.some(q, a), *self.c.some(c, b), wanted, clip=True)

    def table_dots(self, q: Csr, c: Csr) -> np.ndarray:
        """Return the dot product of the two tables' sparse rows, float32 [P]."""
        return self._of_pairs(dot_table(*self.q.some(q, self.groups), *self.c.some(c, self.tables)))

    def header_cosines(self) -> np.ndarray:
        """Return the cosine of the two tables' header texts, float32 [P]."""
        q_rows, q_at = distinct(self.q.header_row[self.groups])
        c_rows, c_at = distinct(self.c.header_row[self.tables])
        table = host(self.c.cosines(c_rows, self.q.vectors(q_rows)))
        cosines: np.ndarray = table[c_at[self.pair_table], q_at[self.pair_group]]
        return cosines

    def pooled_cosines(self) -> np.ndarray:
        """Return the cosine of the two tables' pooled vectors, float32 [P]."""
        (q, groups), (c, tables) = self.q.some(self.q.pooled, self.groups), self.c.some(self.c.pooled, self.tables)
        return self._of_pairs(c[tables] @ q[groups].T).clip(0, 1)

    @cached_property
    def _keys(self) -> tuple[Shares, np.ndarray, np.ndarray]:
        """What the queries share with lake tables; and which pairs share a key, and where it stands there."""
        found = shared_keys(self.q, self.c, self.groups)
        n = len(self.c.table_cols)
        key = np.repeat(np.arange(len(self.groups)), np.diff(found.start)) * n + found.table
        wanted = self.pair_group * n + self.tables[self.pair_table]
        at = np.searchsorted(key, wanted)
        pair = np.flatnonzero(at < len(key))
        pair = pair[key[at[pair]] == wanted[pair]]
        return found, pair, at[pair]

    def key_containment(self) -> np.ndarray:
        """Return how much of a key two tables share, float32 [P]; NaN where either is hardly known."""
        found, pair, at = self._keys
        answer = np.zeros(len(self.pair_group), np.float32)
        answer[pair] = found.share[at]
        q, c = self.q.glimpsed_tables[self.groups], self.c.glimpsed_tables[self.tables]
        answer[q[self.pair_group] | c[self.pair_table]] = np.nan
        return answer

    def with_keys(
        self, pair: np.ndarray, query: np.ndarray, candidate: np.ndarray, score: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return matching columns with the two that are a shared key in place of what matches either otherwise."""
        found, of_key, at = self._keys
        if not len(of_key):
            return pair, query, candidate, score
        place = np.full(len(self.pair_group), -1)
        place[of_key] = np.arange(len(of_key))
        key_query, key_candidate, key_score = found.query[at], found.candidate[at], found.share[at].astype(np.float32)
        of = place[pair]
        same_query, same_candidate = (query == key_query[of]) & (of >= 0), (candidate == key_candidate[of]) & (of >= 0)
        same = same_query & same_candidate
        key_score[of[same]] = np.maximum(key_score[of[same]], score[same])
        stays = ~(same_query | same_candidate)
        columns = zip((pair, query, candidate, score), (of_key, key_query, key_candidate, key_score), strict=True)
        joined = [np.concatenate([had[stays], more]) for had, more in columns]
        order = np.lexsort((joined[2], joined[1], -joined[3], joined[0]))
        return joined[0][order], joined[1][order], joined[2][order], joined[3][order]

    def count_kernel(self) -> np.ndarray:
        """Return exp(-|ln(1+columns_q) - ln(1+columns_c)|), float32 [P]."""
        q, c = np.log1p(self.q_width), np.log1p(self.c_width)
        answer: np.ndarray = np.exp(-np.abs(q[self.pair_group] - c[self.pair_table]))
        return answer

    def _of_pairs(self, table: Any) -> np.ndarray:  # noqa: ANN401 - of either library
        """Look up, for every pair, the cell of a table [T, G]."""
        answer: np.ndarray = host(table)[self.pair_table, self.pair_group]
        return answer


def _names(k: _Chunk) -> Similarity:
    return k.between_names(k.by_name, k.sparse_cosines(k.q.name_grams, k.c.name_grams), -1)


def _same_names(k: _Chunk) -> Similarity:
    q, c = k.q, k.c

    def same(a: np.ndarray, b: np.ndarray) -> Any:  # noqa: ANN401
        return q.put((c.name_id[b][:, None] == q.name_id[a]).astype(np.float32))

    return k.between_names(k.by_name, same, 0)


def _tokens(k: _Chunk) -> Similarity:
    return k.between(k.q.token_row, k.c.token_row, k.sparse_cosines(k.q.tokens, k.c.tokens))


def _name_vectors(k: _Chunk) -> Similarity:
    q, c = k.q, k.c
    rows = k.named_rows(q.name_vector_row, c.name_vector_row)
    return k.between_names(rows, lambda a, b: c.cosines(b, q.vectors(a)), -1)


def _value_vectors(k: _Chunk) -> Similarity:
    q, c = k.q, k.c
    return k.between(q.value_row, c.value_row, lambda a, b, wanted: c.cosines(b, q.vectors(a), wanted))


def _value_grams(k: _Chunk) -> Similarity:
    return k.between(None, None, k.sparse_cosines(k.q.value_grams, k.c.value_grams))


def _shared_values(k: _Chunk) -> Similarity:
    q, c = k.q, k.c

    def contained(a: np.ndarray, b: np.ndarray, wanted: np.ndarray | None) -> Any:  # noqa: ANN401
        shared = dot_table(*q.some(q.values, a), *c.some(c.values, b), wanted)
        return clipped(shared / q.put(np.maximum(1, q.value_count[a])))

    return k.between(None, None, contained)


def _profiles(k: _Chunk) -> Similarity:
    q, c = k.q, k.c

    def table(a: np.ndarray, b: np.ndarray, wanted: np.ndarray | None) -> Any:  # noqa: ANN401
        (of_q, q_at), (of_c, c_at) = q.some(q.stats, a), c.some(c.stats, b)
        return profile_table(of_q[q_at], of_c[c_at], wanted)

    return k.between(None, None, table)


# What can be said of two columns.
_SIMILARITIES: dict[str, Callable[[_Chunk], Similarity]] = {
    "names": _names,
    "same name": _same_names,
    "tokens": _tokens,
    "name vectors": _name_vectors,
    "value vectors": _value_vectors,
    "profiles": _profiles,
    "value grams": _value_grams,
    "shared values": _shared_values,
}

# MaxSim of the mean or the product of two similarities; both ways averaged, or from the query's side. Where the first
# is not known, the second is taken alone.
_MAXSIM_SIGNALS: dict[str, tuple[int, str, str, bool]] = {
    "lexical_maxsim": (MEAN, "names", "tokens", False),
    "lexical_maxsim_both": (MEAN, "names", "tokens", True),
    "name_value_maxsim": (PRODUCT, "names", "tokens", True),
    "profile": (PRODUCT, "same name", "profiles", False),
    "profile_both": (PRODUCT, "same name", "profiles", True),
    "token_profile_maxsim": (PRODUCT, "tokens", "profiles", True),
    "dense_maxsim": (MEAN, "name vectors", "value vectors", False),
    "dense_maxsim_both": (MEAN, "name vectors", "value vectors", True),
    "dense_value_maxsim": (MEAN, "value vectors", "value vectors", False),
    "dense_profile_maxsim": (PRODUCT, "value vectors", "profiles", True),
    "value_gram_maxsim": (MEAN, "value grams", "value grams", True),
    "value_overlap_maxsim": (MEAN, "shared values", "shared values", False),
}

# The similarities whose mean says which columns match, without vectors and with them.
_MATCHING = {False: ("names", "tokens"), True: ("names", "tokens", "name vectors", "value vectors")}

# What of both ways is known, of MaxSims whose first similarity is not of all columns or not of all values.
_KNOWN: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "same name": _Chunk.over_named,
    "shared values": _Chunk.where_whole,
}

_TABLE_SIGNALS: dict[str, Callable[[_Chunk], np.ndarray]] = {
    "name_overlap": lambda k: k.where_named(k.table_dots(k.q.name_shares, k.c.name_sets).clip(0, 1)),
    "name_cosine": lambda k: k.where_named(k.table_dots(k.q.names, k.c.names).clip(0, 1)),
    "name_position": lambda k: k.where_named(k.table_dots(k.q.positions, k.c.positions).clip(0, 1)),
    "column_count": _Chunk.count_kernel,
    "header_text": lambda k: k.where_named(k.header_cosines()),
    "pooled_columns": _Chunk.pooled_cosines,
    "key_containment": _Chunk.key_containment,
}


def _parts(recipe: Recipe) -> list[str]:
    """Return the similarities of columns that a recipe's signals are made of."""
    return [part for name in recipe.weights if name in _MAXSIM_SIGNALS for part in _MAXSIM_SIGNALS[name][1:3]]


def _over_chunks(
    q: Side,
    c: Side,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    threads: int,
    work: Callable[[_Chunk, int], R],
    cells: int | None = None,
) -> Iterator[R]:
    """Yield the work of every chunk of some pairs of tables, in order; it is told which pair its chunk begins with."""

    def on(some: slice) -> R:
        return work(_Chunk(q, c, pair_q[some], pair_c[some]), some.start)

    yield from chunks.over(
        on, chunks.plan(q.table_cols, c.table_cols, pair_q, pair_c, q.device, cells), threads, q.device
    )
