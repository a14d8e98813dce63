"""Pairs of tables (or of columns) that search proposed in, exact evidence and scores out.

All pairs of all queries at once, in ragged chunks of bounded size: no padding of tables, no loop over candidates. A
chunk computes a similarity once between its distinct columns and then looks it up for each pair, since the survivors of
alike queries are alike. The formulas are the ones that `recipes` names; what a recipe does not weigh is not computed.

Axes of a chunk: P pairs, G groups (queries), m candidate columns of all its pairs one after another, L lanes (columns
of the widest query).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch

from gpumatch.features import Side
from gpumatch.kernels.maxsim import maxsim_backward, maxsim_forward, segment_max, spread_table
from gpumatch.kernels.ragged import first_of, gather_segments, offsets_of
from gpumatch.kernels.sparse import Csr, dot_table
from gpumatch.memory import Halving
from gpumatch.recipes import Recipe

R = TypeVar("R")

# Cells m·L of a chunk's column similarities: a worker holds about a dozen float32 matrices of that size, 50 MB.
CHUNK_CELLS = 1_000_000
# A chunk's tables of distinct columns hold the columns of all its queries, each pair needs those of one: the more
# queries, the more survivors are shared, and the more cells nobody asked for. See bench/LOG.md for the sweep.
CHUNK_QUERIES = 12
# Pairs of columns that are scored at once; their float32 vectors are 50 MB at 384 dimensions.
CHUNK_PAIRS = 32_768
# Queries are grouped by their best survivors: as many as this say what a query is about.
_KEY_SURVIVORS = 50


def score_tables(
    q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray, recipe: Recipe, threads: int, *, in_order: bool = False
) -> np.ndarray:
    """Return the signals of every pair of tables, float32 [P, len(recipe.weights)], columns in the recipe's order.

    Args:
        pair_q, pair_c: int64 [P], query and lake tables; the pairs of a query stand together, best survivors first.
        threads: chunks worked on at once (on a CPU).
        in_order: alike queries stand side by side already.
    """
    order = np.arange(len(pair_q)) if in_order else _alike_together(q.table_cols, pair_q, pair_c)
    pair_q, pair_c = pair_q[order], pair_c[order]

    def work(some: slice) -> np.ndarray:
        return _Chunk(q, c, pair_q[some], pair_c[some]).signals(recipe)

    parts = _map(work, _plan(q.table_cols, c.table_cols, pair_q, pair_c), threads, q.device)
    signals = np.empty((len(pair_q), len(recipe.weights)), np.float32)
    signals[order] = np.concatenate([signals[:0], *parts])
    return signals


def score_columns(q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray, recipe: Recipe, threads: int) -> np.ndarray:
    """Return the signals of every pair of columns, float32 [P, len(recipe.weights)].

    Args:
        pair_q, pair_c: int64 [P], query and lake columns; the pairs of a query column stand together.
    """

    def work(some: slice) -> np.ndarray:
        pairs = _ColumnPairs(q, c, pair_q[some], pair_c[some])
        return torch.stack([_COLUMN_SIGNALS[name](pairs) for name in recipe.weights], dim=1).cpu().numpy()

    first = np.append(np.flatnonzero(np.diff(pair_q, prepend=-1))[::CHUNK_QUERIES], len(pair_q))
    plan = [
        slice(start, min(start + CHUNK_PAIRS, int(stop)))
        for begin, stop in pairwise(first)
        for start in range(int(begin), int(stop), CHUNK_PAIRS)
    ]
    parts = _map(work, plan, threads, q.device)
    return np.concatenate([np.empty((0, len(recipe.weights)), np.float32), *parts])


@dataclass(frozen=True)
class ColumnPairs:
    """Matching columns of some table pairs: pair, query, candidate int64 [n], score float32 [n]."""

    pair: np.ndarray
    query: np.ndarray
    candidate: np.ndarray
    score: np.ndarray


def explain_tables(
    q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray, recipe: Recipe, threads: int
) -> tuple[np.ndarray, ColumnPairs]:
    """Return the signals of every pair, as `score_tables`, and which of its columns match.

    Columns match when they are each other's best by the mean of their similarities (names, value tokens and, where the
    recipe has them, vectors). Sorted by pair, then falling score, then column.
    """
    order = _alike_together(q.table_cols, pair_q, pair_c)
    pair_q, pair_c = pair_q[order], pair_c[order]

    def work(some: slice) -> tuple[np.ndarray, ...]:
        chunk = _Chunk(q, c, pair_q[some], pair_c[some])
        pair, query, candidate, score = chunk.best_columns(recipe.dense)
        return chunk.signals(recipe), order[pair + some.start], query, candidate, score

    none = np.empty(0, np.int64)
    nothing = np.empty((0, len(recipe.weights)), np.float32), none, none, none, np.empty(0, np.float32)
    parts = [nothing, *_map(work, _plan(q.table_cols, c.table_cols, pair_q, pair_c), threads, q.device)]
    found, pair, query, candidate, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    signals = np.empty_like(found)
    signals[order] = found
    by = np.lexsort((candidate, query, -score, pair))
    pair, query, candidate, score = pair[by], query[by], candidate[by], score[by]
    kept = _one_to_one(pair, query, candidate)
    return signals, ColumnPairs(pair[kept], query[kept], candidate[kept], score[kept])


def _one_to_one(pair: np.ndarray, query: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the positions, ascending, of a greedy choice that uses no column of a pair twice; all int64 [n]."""
    left, chosen = np.arange(len(pair)), []
    while len(left):
        first = np.intersect1d(first_of(pair[left], query[left]), first_of(pair[left], candidate[left]))
        taken = left[first]
        chosen.append(taken)
        # Columns that look alike (two of one name and the same values) leave a choice, and this round made it.
        used_q = np.isin(pair[left] * (query.max() + 1) + query[left], pair[taken] * (query.max() + 1) + query[taken])
        used_c = np.isin(
            pair[left] * (candidate.max() + 1) + candidate[left], pair[taken] * (candidate.max() + 1) + candidate[taken]
        )
        left = left[~(used_q | used_c)]
    return np.sort(np.concatenate([left, *chosen]))


def weighted(signals: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return Σ weight·signal / Σ weight, float32 [P], of signals float32 [P, S]; the density is not taken off yet.

    What is not known (NaN) counts nothing.
    """
    weights = np.array(list(recipe.weights.values()), np.float64)
    known = np.nan_to_num(signals.astype(np.float64))
    answer: np.ndarray = (known @ weights / weights.sum()).astype(np.float32)
    return answer


class _Chunk:
    """Some pairs of tables and the column similarities between them, each made when first asked for."""

    def __init__(self, q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray) -> None:
        self.q, self.c = q, c
        first = np.flatnonzero(np.diff(pair_q, prepend=-1))
        groups = pair_q[first]
        group_of_pair = np.repeat(np.arange(len(groups)), np.diff(np.append(first, len(pair_q))))
        q_columns, q_width = gather_segments(q.table_cols, groups)
        # Candidates' columns are looked up among those of the chunk's distinct candidates: a third as many, or fewer.
        tables, table_at = np.unique(pair_c, return_inverse=True)
        columns, width = gather_segments(c.table_cols, tables)
        c_place, c_width = gather_segments(offsets_of(width), table_at)
        lane_column = np.full((len(groups), int(q_width.max(initial=0))), -1, np.int64)
        lane_column[np.arange(lane_column.shape[1]) < q_width[:, None]] = q_columns

        put = q.put
        self.pair_q, self.pair_c = put(pair_q), put(pair_c)
        self.pair_group = put(group_of_pair)
        self.pair_start = put(offsets_of(c_width))
        self.pair_of_row = put(np.repeat(np.arange(len(pair_c)), c_width))
        self.q_width, self.c_width = put(q_width[group_of_pair]), put(c_width)
        self.groups = put(groups)
        # int64 [G, L], the query column of each lane, -1 beyond a query's columns.
        self.lane_column = put(lane_column)
        self.tables, self.table_at = put(tables), put(table_at)
        self.columns, self.c_place = put(columns), put(c_place)
        self.c_columns, self.c_group = put(columns[c_place]), put(np.repeat(group_of_pair, c_width))

    # --- column similarities, float32 [m, L], in [0, 1], 0 beyond a query's columns

    @cached_property
    def names(self) -> torch.Tensor:
        """Cosine of the names' grams."""
        q, c = self.q, self.c
        return self._spread(q.name_row, c.name_row, lambda a, b: dot_table(q.name_grams, a, c.name_grams, b))

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Cosine of the value tokens."""
        q, c = self.q, self.c
        return self._spread(q.token_row, c.token_row, lambda a, b: dot_table(q.tokens, a, c.tokens, b))

    @cached_property
    def dense(self) -> torch.Tensor:
        """Cosine of the column vectors; what points away counts as nothing in common."""
        q, c = self.q, self.c
        return self._spread(q.vector_row, c.vector_row, lambda a, b: c.vectors(b) @ q.vectors(a).T)

    @cached_property
    def profiles(self) -> torch.Tensor:
        """exp(-‖stats_q - stats_c‖²/2) where the names are the same, else 0."""
        lane_name = torch.where(self.lane_column < 0, -1, self.q.name_id[self.lane_column.clamp(min=0)])
        name = torch.index_select(self.c.name_id, 0, self.c_columns)
        same = name[:, None] == torch.index_select(lane_name, 0, self.c_group)
        row, lane = torch.nonzero(same, as_tuple=True)
        q_column = self.lane_column[self.c_group[row], lane]
        gap = torch.index_select(self.c.stats, 0, self.c_columns[row]) - torch.index_select(self.q.stats, 0, q_column)
        out = torch.zeros(same.shape, dtype=torch.float32, device=same.device)
        out[row, lane] = torch.exp(-0.5 * (gap**2).sum(1))
        return out

    def _spread(
        self, q_row: torch.Tensor, c_row: torch.Tensor, table: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Compute a similarity between the chunk's distinct rows, and look it up for every pair of columns."""
        there = self.lane_column >= 0
        q_rows, q_place = torch.unique(q_row[self.lane_column[there]], return_inverse=True)
        c_rows, c_at = torch.unique(torch.index_select(c_row, 0, self.columns), return_inverse=True)
        q_at = torch.full_like(self.lane_column, -1)
        q_at[there] = q_place
        c_at = torch.index_select(c_at, 0, self.c_place)
        return spread_table(table(q_rows, c_rows).clamp_(0, 1), c_at, q_at, self.c_group)

    # --- signals, float32 [P]

    def signals(self, recipe: Recipe) -> np.ndarray:
        """Return the recipe's signals, float32 [P, S]."""
        return torch.stack([_TABLE_SIGNALS[name](self) for name in recipe.weights], dim=1).cpu().numpy()

    def forward(self, similarities: torch.Tensor) -> torch.Tensor:
        """Return MaxSim from the query's side."""
        return maxsim_forward(similarities, self.pair_start, self.q_width)

    def both(self, similarities: torch.Tensor) -> torch.Tensor:
        """Return MaxSim, both ways averaged."""
        return (self.forward(similarities) + maxsim_backward(similarities, self.pair_start)) / 2

    def table_dots(self, q: Csr, c: Csr) -> torch.Tensor:
        """Return the dot product of the two tables' sparse rows."""
        return dot_table(q, self.groups, c, self.tables)[self.table_at, self.pair_group]

    def table_cosines(
        self, q: Callable[[torch.Tensor], torch.Tensor], c: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return the cosine of the two tables' vectors; q and c give the vectors float32 [n, D] of tables int64 [n]."""
        return (c(self.tables) @ q(self.groups).T)[self.table_at, self.pair_group].clamp_(0, 1)

    def best_columns(self, dense: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the column pairs that are each other's best: (pair, query column, candidate column, score)."""
        parts = [self.names, self.tokens, *([self.dense] if dense else [])]
        score = torch.stack(parts).mean(0)
        best_row = torch.index_select(segment_max(score, self.pair_start), 0, self.pair_of_row)
        best_lane = score.amax(1, keepdim=True) if score.shape[1] else score
        row, lane = torch.nonzero((score > 0) & (score == best_row) & (score == best_lane), as_tuple=True)
        q_column = self.lane_column[self.c_group[row], lane]
        found = (self.pair_of_row[row], q_column, self.c_columns[row], score[row, lane])
        pair, query, candidate, value = (part.cpu().numpy() for part in found)
        return pair, query, candidate, value


def _jaccard(k: _Chunk) -> torch.Tensor:
    shared = k.table_dots(k.q.name_sets, k.c.name_sets)
    return shared / (k.q.set_size[k.pair_q] + k.c.set_size[k.pair_c] - shared).clamp(min=1)


_TABLE_SIGNALS: dict[str, Callable[[_Chunk], torch.Tensor]] = {
    "name_overlap": lambda k: k.table_dots(k.q.name_shares, k.c.name_sets).clamp_(0, 1),
    "name_cosine": lambda k: k.table_dots(k.q.names, k.c.names).clamp_(0, 1),
    "name_jaccard": _jaccard,
    "name_position": lambda k: k.table_dots(k.q.positions, k.c.positions).clamp_(0, 1),
    "lexical_maxsim": lambda k: k.forward((k.names + k.tokens) / 2),
    "name_value_maxsim": lambda k: k.both(k.names * k.tokens),
    "profile": lambda k: k.forward(k.profiles),
    "profile_both": lambda k: k.both(k.profiles),
    "column_count": lambda k: torch.exp(-(torch.log1p(k.q_width.float()) - torch.log1p(k.c_width.float())).abs()),
    "dense_maxsim": lambda k: k.both(k.dense),
    "pooled_columns": lambda k: k.table_cosines(k.q.pooled_vectors, k.c.pooled_vectors),
    "header_text": lambda k: k.table_cosines(k.q.header_vectors, k.c.header_vectors),
}


class _ColumnPairs:
    """Some pairs of columns: left int64 [P] of the query side, right int64 [P] of the lake."""

    def __init__(self, q: Side, c: Side, pair_q: np.ndarray, pair_c: np.ndarray) -> None:
        self.q, self.c = q, c
        self.left, self.right = q.put(pair_q), q.put(pair_c)
        self.q_table, self.c_table = q.put(q.terms.column_table[pair_q]), q.put(c.terms.column_table[pair_c])

    def dots(self, q: Csr, q_row: torch.Tensor, c: Csr, c_row: torch.Tensor) -> torch.Tensor:
        """Return the dot product of each pair's sparse rows, q_row and c_row int64 [P]."""
        q_rows, q_at = torch.unique(q_row, return_inverse=True)
        c_rows, c_at = torch.unique(c_row, return_inverse=True)
        return dot_table(q, q_rows, c, c_rows)[c_at, q_at]

    def containment(self) -> torch.Tensor:
        """Return |Q∩C|/|Q| of each pair, NaN where a sample of the values is all that is known."""
        shared = self.dots(self.q.values, self.left, self.c.values, self.right)
        sampled = self.q.sampled[self.left] | self.c.sampled[self.right]
        return torch.where(sampled, torch.nan, shared / self.q.value_count[self.left].clamp(min=1))

    def same_name(self) -> torch.Tensor:
        """Return 1 where the names are the same, else 0."""
        return (self.q.name_id[self.left] == self.c.name_id[self.right]).float()


_COLUMN_SIGNALS: dict[str, Callable[[_ColumnPairs], torch.Tensor]] = {
    "same_name": lambda k: k.same_name(),
    "containment": lambda k: k.containment(),
    "named_containment": lambda k: k.same_name() * (1 + k.containment().nan_to_num()),
    "name_cosine": lambda k: k.dots(k.q.names, k.q_table, k.c.names, k.c_table).clamp_(0, 1),
    "name_grams": lambda k: k.dots(k.q.name_grams, k.q.name_row[k.left], k.c.name_grams, k.c.name_row[k.right]).clamp_(
        0, 1
    ),
    "value_tokens": lambda k: k.dots(k.q.tokens, k.q.token_row[k.left], k.c.tokens, k.c.token_row[k.right]).clamp_(
        0, 1
    ),
    "dense_column": lambda k: (
        (k.q.vectors(k.q.vector_row[k.left]) * k.c.vectors(k.c.vector_row[k.right])).sum(1).clamp_(0, 1)
    ),
}


def alike_order(ids: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return an order of queries, int64 [n], that puts alike ones together.

    Queries of one width leave no lanes empty; alike queries share survivors, and a chunk computes what they share once.
    The keys are the width's power of two, the smallest number among the best survivors (one hash of a MinHash), and the
    very best survivor.

    Args:
        ids: int64 [n, K], the survivors of each query, best first, -1 for none.
        width: int64 [n], columns of each query.
    """
    if not ids.shape[1]:
        return np.arange(len(ids))
    best = ids[:, :_KEY_SURVIVORS]
    smallest = np.where(best >= 0, best, np.iinfo(np.int64).max).min(axis=1)
    return np.lexsort((ids[:, 0], smallest, np.ceil(np.log2(np.maximum(1, width)))))


def _alike_together(q_cols: np.ndarray, pair_q: np.ndarray, pair_c: np.ndarray) -> np.ndarray:
    """Return an order of the pairs, int64 [P], that keeps a query's together and puts alike queries side by side."""
    first = np.flatnonzero(np.diff(pair_q, prepend=-1))
    length = np.diff(np.append(first, len(pair_q)))
    group = np.repeat(np.arange(len(first)), length)
    place = np.arange(len(pair_q)) - first[group]
    head = place < _KEY_SURVIVORS
    ids = np.full((len(first), _KEY_SURVIVORS), -1, np.int64)
    ids[group[head], place[head]] = pair_c[head]
    rank = np.empty(len(first), np.int64)
    rank[alike_order(ids, np.diff(q_cols)[pair_q[first]])] = np.arange(len(first))
    return np.argsort(rank[group], kind="stable")


def _plan(q_cols: np.ndarray, c_cols: np.ndarray, pair_q: np.ndarray, pair_c: np.ndarray) -> list[slice]:
    """Cut pairs into chunks of bounded size; a query is cut only where it alone is too big."""
    first = np.append(np.flatnonzero(np.diff(pair_q, prepend=-1)), len(pair_q))
    q_width = np.diff(q_cols)
    rows = offsets_of(np.diff(c_cols)[pair_c])
    slices: list[slice] = []
    start = lanes = queries = 0
    for lo, hi in pairwise(first.tolist()):
        width = max(1, int(q_width[pair_q[lo]]))
        lanes, queries = max(lanes, width), queries + 1
        if lo > start and (queries > CHUNK_QUERIES or (rows[hi] - rows[start]) * lanes > CHUNK_CELLS):
            slices.append(slice(start, lo))
            start, lanes, queries = lo, width, 1
        while hi - start > 1 and (rows[hi] - rows[start]) * lanes > CHUNK_CELLS:
            cut = int(np.searchsorted(rows, rows[start] + CHUNK_CELLS // lanes, side="right")) - 1
            cut = min(max(cut, start + 1), hi - 1)
            slices.append(slice(start, cut))
            start = cut
    if start < len(pair_q):
        slices.append(slice(start, len(pair_q)))
    return slices


def _map(work: Callable[[slice], R], plan: Sequence[slice], threads: int, device: str) -> Iterator[R]:
    """Yield the work of every chunk, in order; of a chunk that runs out of memory, the work of its halves."""
    halving = Halving()

    def pieces(chunk: slice) -> list[R]:
        return [done for _, done in halving(work, chunk.start, chunk.stop)]

    if device != "cpu":
        yield from chain.from_iterable(map(pieces, plan))
        return
    # One chunk a thread: chunks are alike in size, and small products gain nothing from several threads each.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if threads <= 1 or len(plan) <= 1:
            yield from chain.from_iterable(map(pieces, plan))
        else:
            with ThreadPoolExecutor(threads) as pool:
                yield from chain.from_iterable(pool.map(pieces, plan))
    finally:
        torch.set_num_threads(before)
