"""Pairs of tables (or of columns) that search proposed in, exact evidence and scores out.

All pairs of all queries at once, in ragged chunks of bounded size: no padding of tables, no loop over candidates. A
chunk computes a similarity once between its distinct columns, and `kernels.maxsim` looks it up for each pair, since the
survivors of alike queries are alike. The formulas are the ones that `recipes` names; what a recipe does not weigh is
not computed.

Axes of a chunk: P pairs, G distinct queries with A columns (lanes) in all, T distinct candidate tables with M columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from gpumatch.canonical import comparable
from gpumatch.features import Side, containment_evidence
from gpumatch.kernels.devices import clipped, host
from gpumatch.kernels.hashing import distinct
from gpumatch.kernels.maxsim import MEAN, PRODUCT, Pairs, Similarity, matching_columns, maxsim, wanted_blocks
from gpumatch.kernels.profiles import profile_table
from gpumatch.kernels.ragged import Csr, gather_segments, offsets_of
from gpumatch.kernels.shares import Shares, beyond_chance
from gpumatch.kernels.sparse import dot_table
from gpumatch.memory import CHUNKS_IN_WORK, Halving
from gpumatch.recipes import KEY, LEFT_OUT, UNKNOWN, Recipe
from gpumatch.shared_keys import shared_keys

R = TypeVar("R")

# Queries of a chunk. Its tables of distinct columns hold the columns of all of them, each pair needs those of one: the
# more queries, the more survivors are shared, and the more cells nobody asked for. See bench/LOG.md for the sweep. To a
# GPU cells are cheap, and each chunk costs it as much as launching its kernels.
CHUNK_QUERIES = 24
_DEVICE_QUERIES = 4 * CHUNK_QUERIES
# Candidate columns of all pairs times query columns: a worker holds a few float32 tables of at most that many cells.
# What a device has room for is planned (`memory.device_plan`).
CHUNK_CELLS = 4_000_000
# Values that are compared by how they are spelled: of a query column, and of a lake column. 60 and 200 answer the same.
QUERY_VALUES, LAKE_VALUES = 30, 100
# Columns of which one is as likely as that to hold any number of the other (`Profiles.chance`) hold row numbers.
_RUNNING = 0.9


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
    order = _alike_together(pair_q, pair_c, itself)
    parts = _over_chunks(q, c, pair_q[order], pair_c[order], threads, lambda chunk, _: chunk.signals(recipe), cells)
    signals = np.empty((len(pair_q), len(recipe.weights)), np.float32)
    signals[order] = np.concatenate([signals[:0], *parts])
    return signals


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
    parts = _map(work, _plan(q_cells, c_cells, pair_q, pair_c, q.device, cells), threads, q.device)
    return np.concatenate([np.empty((0, len(recipe.weights)), np.float32), *parts])


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
    order = _alike_together(pair_q, pair_c, itself)

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


def weighted(signals: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the scores of pairs with signals float32 [P, S], float32 [P]; the density is not taken off yet.

    Σ weight·signal / Σ weight, where what is not known (NaN) counts as `recipes.contributions` says.
    """
    weights = np.array(list(recipe.weights.values()), np.float64)
    shares = np.array([0 if name in LEFT_OUT else UNKNOWN for name in recipe.weights])
    total = weights.sum() - np.isnan(signals) @ (weights * (1 - shares))
    answer: np.ndarray = (np.nan_to_num(signals) @ weights / np.where(total > 0, total, 1)).astype(np.float32)
    return answer


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
        # Numbered keys may well begin at 1.
        keyed = q.keyed[left] & c.keyed[right]
        chance = np.where(keyed, 0, np.maximum(q.chance[left], c.chance[right]))
        self.chance, self.running = chance, chance >= _RUNNING
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
        found = containment_evidence(beyond_chance(shared / (1 + size), self.chance, size), size)
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
        contained = beyond_chance(contained, self.chance, self.q.value_count[self.left])
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


def alike_order(ids: np.ndarray, itself: np.ndarray) -> np.ndarray:
    """Return an order of queries, int64 [n], in which every CHUNK_QUERIES of them share survivors, so far as they can.

    A query takes along the queries that are among its own survivors, best first; a query from outside the lake stands
    for its best survivor.

    Args:
        ids: int64 [n, K], the survivors of each query, best first, -1 for none.
        itself: int64 [n], the lake table that a query is, or -1.
    """
    if not ids.shape[1]:
        return np.arange(len(ids))
    anchor = np.where(itself >= 0, itself, ids[:, 0])
    by_anchor = np.argsort(anchor, kind="stable")
    start = np.searchsorted(anchor[by_anchor], np.arange(int(max(anchor.max(initial=0), ids.max(initial=0))) + 2))
    left = np.ones(len(ids), bool)
    groups = []
    for seed in range(len(ids)):
        if left[seed]:
            left[seed] = False
            near = ids[seed][ids[seed] >= 0]
            near = near if itself[seed] < 0 else distinct(np.append(itself[seed], near))[0]
            others = by_anchor[gather_segments(start, near)[0]]
            others = others[left[others]][: CHUNK_QUERIES - 1]
            left[others] = False
            groups.append(np.append(seed, others))
    # Groups that are short come last: the others are whole chunks wherever a chunk begins.
    groups.sort(key=len, reverse=True)
    return np.concatenate([np.empty(0, np.int64), *groups])


def _alike_together(pair_q: np.ndarray, pair_c: np.ndarray, itself: np.ndarray | None) -> np.ndarray:
    """Return an order of the pairs, int64 [P], that keeps a query's together and puts alike queries side by side."""
    if itself is None:
        return np.arange(len(pair_q))
    first = np.flatnonzero(np.diff(pair_q, prepend=-1))
    length = np.diff(np.append(first, len(pair_q)))
    group = np.repeat(np.arange(len(first)), length)
    ids = np.full((len(first), int(length.max(initial=0))), -1, np.int64)
    ids[group, np.arange(len(pair_q)) - first[group]] = pair_c
    rank = np.empty(len(first), np.int64)
    rank[alike_order(ids, itself[first])] = np.arange(len(first))
    return np.argsort(rank[group], kind="stable")


def _plan(
    q_cols: np.ndarray,
    c_cols: np.ndarray,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    device: str,
    cells: int | None = None,
) -> list[slice]:
    """Cut pairs into chunks of bounded size; a query is cut only where it alone is too big."""
    most, cells = CHUNK_QUERIES if device == "cpu" else _DEVICE_QUERIES, cells or CHUNK_CELLS
    first = np.append(np.flatnonzero(np.diff(pair_q, prepend=-1)), len(pair_q))
    q_width = np.diff(q_cols)
    rows = offsets_of(np.diff(c_cols)[pair_c])
    slices: list[slice] = []
    start = lanes = queries = 0
    for lo, hi in pairwise(first.tolist()):
        width = max(1, int(q_width[pair_q[lo]]))
        lanes, queries = lanes + width, queries + 1
        if lo > start and (queries > most or (rows[hi] - rows[start]) * lanes > cells):
            slices.append(slice(start, lo))
            start, lanes, queries = lo, width, 1
        while hi - start > 1 and (rows[hi] - rows[start]) * lanes > cells:
            cut = int(np.searchsorted(rows, rows[start] + cells // lanes, side="right")) - 1
            cut = min(max(cut, start + 1), hi - 1)
            slices.append(slice(start, cut))
            start = cut
    if start < len(pair_q):
        slices.append(slice(start, len(pair_q)))
    return slices


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

    yield from _map(on, _plan(q.table_cols, c.table_cols, pair_q, pair_c, q.device, cells), threads, q.device)


def _map(work: Callable[[slice], R], plan: Sequence[slice], threads: int, device: str) -> Iterator[R]:
    """Yield the work of every chunk, in order; of a chunk that runs out of memory, the work of its halves."""
    halving = Halving()

    def pieces(chunk: slice) -> list[R]:
        return [done for _, done in halving(work, chunk.start, chunk.stop)]

    # On a CPU one chunk a thread: chunks are alike in size, and small products gain nothing from several threads each.
    workers = threads if device == "cpu" else min(threads, CHUNKS_IN_WORK)
    with threadpool_limits(1 if device == "cpu" else None, user_api="blas"):
        # Alone, for a device's kernels are compiled when they are first called.
        alone = len(plan) if workers <= 1 or len(plan) <= 1 else int(device != "cpu")
        yield from chain.from_iterable(map(pieces, plan[:alone]))
        if alone < len(plan):
            with ThreadPoolExecutor(workers) as pool:
                yield from chain.from_iterable(pool.map(pieces, plan[alone:]))
