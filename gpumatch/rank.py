"""Resolved query rows and an index in, result rows out: survivors proposed, scored, ranked, cut and explained.

Works batch by batch, all queries of a batch at once. Knows neither files nor flags.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpumatch.chunks import CHUNK_QUERIES, alike_order
from gpumatch.collector import held_back
from gpumatch.confidence import confidence, strength
from gpumatch.features import Side, lake_side
from gpumatch.index import Index, Pools, TableSet
from gpumatch.kernels.devices import device_bytes
from gpumatch.kernels.entries import first_seen
from gpumatch.kernels.fused import fused_trouble
from gpumatch.kernels.ragged import firsts, offsets_of
from gpumatch.kernels.twins import twins
from gpumatch.lake import Query
from gpumatch.machine import available_memory
from gpumatch.memory import DevicePlan, device_plan
from gpumatch.profile import Profiles
from gpumatch.recipes import KEY, SCORE_DECIMALS, TASKS, Recipe, recipe_for, weighted
from gpumatch.rescore import ColumnPairs, explain_tables, score_tables
from gpumatch.rescore_columns import score_columns
from gpumatch.run import Run
from gpumatch.search import kept_bytes, search_columns, search_tables, survivors, table_rows
from gpumatch.shared_keys import shared_keys
from gpumatch.texts import Texts, text_rows, text_signals
from gpumatch.weights import weights_of

if TYPE_CHECKING:  # runs without a language model never load it
    from gpumatch.judge.judge import Judged
    from gpumatch.kernels.backends import Backend

# A candidate's density is the mean of this many of its best scores.
DENSITY_NEIGHBOURS = 10
# Lake tables that share a key with a query's are proposed whatever they are else, so many at most.
MOST_SHARING = 50
EVIDENCE_DECIMALS = 4
# Lake tables whose pools are searched and scored at once.
SEARCHED_AT_ONCE = 85 * CHUNK_QUERIES
# What one thread of a CPU does in a second of a product, and its time for a pair.
_THREAD_OPERATIONS, _PAIR_SECONDS = 3e10, 2e-5

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """Query rows resolved to tables and columns.

    rows: the n query rows.
    tables: the set of tables that their tables belong to; the index's own if the queries are lake tables.
    table: int64 [n], the table of each row, or -1 if it has none.
    column: int64 [n], its column, or -1 if the row names none.
    exclude: int64 [n], the lake table that is the query itself, or -1.
    texts: the query texts; text: int64 [n], which of them each row has, or -1.
    """

    rows: Sequence[Query]
    tables: TableSet
    table: np.ndarray
    column: np.ndarray
    exclude: np.ndarray
    texts: Texts = field(default_factory=lambda: Texts.of([], None))
    text: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class _Way:
    """How some query rows are scored: by their table or column, by their text, or by both together."""

    table: Recipe | None
    text: Recipe | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe with the signals of both; all else in it is the table's, or without a table the text's."""
        first, *others = [one for one in (self.table, self.text) if one is not None]
        return replace(first, weights=first.weights | others[0].weights) if others else first


@dataclass(frozen=True)
class Ranked:
    """Some query rows that are answered in the same way, and their survivors, best first.

    at: int64 [n], their places in the batch; rows: int64 [n], their numbers among all query rows.
    ids: int64 [n, width], lake tables; for rows with a column lake columns, each the best of its table; -1 for none.
    scores: float64 [n, width], rounded, density taken off; -inf for none.
    sizes: int64 [n], how many tables search proposed.
    strength: float32 [n, width], what confidence is made of; NaN where it is not wanted.
    signals: float32 [n, width, S], if candidates are columns; for tables they are made anew for the printed matches.
    column_table: int64 [C], the table of each lake column, if candidates are columns.
    """

    way: _Way
    at: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray
    strength: np.ndarray
    signals: np.ndarray | None = None
    column_table: np.ndarray | None = None

    def tables(self, ids: np.ndarray) -> np.ndarray:
        """Return the lake tables of some candidates; -1 stays."""
        if self.column_table is None:
            return ids
        return np.where(ids >= 0, self.column_table[np.maximum(ids, 0)], -1)


@dataclass(frozen=True)
class Explained:
    """All that results say of the P survivors that may be printed, best first in each row.

    found: what verdicts say of each row of the group, or nothing.
    row: int64 [P], ascending, the row in the group; place: int64 [P], its place in the ranking; table: int64 [P].
    score, sure: float64 [P], score and confidence; left: bool [P], which are sure enough; evidence: float64 [P, S];
    pairs: their matching columns.
    """

    ranked: Ranked
    found: Sequence[Judged]
    row: np.ndarray
    place: np.ndarray
    table: np.ndarray
    score: np.ndarray
    sure: np.ndarray
    left: np.ndarray
    evidence: np.ndarray
    pairs: ColumnPairs


# The query rows of a batch, and their rankings, a group for each way of answering.
Batch = tuple[np.ndarray, list[Ranked]]
# Yields each batch with the verdicts on all its rows, group after group, or with an empty list.
Judging = Callable[[Iterator[Batch]], Iterator[tuple[Batch, Sequence["Judged"]]]]


def unjudged(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Sequence[Judged]]]:
    """Yield batches without verdicts."""
    for batch in batches:
        yield batch, []


def answer(index: Index, asked: Asked, run: Run, start: int, stop: int, judging: Judging = unjudged) -> Iterator[Row]:
    """Yield the result rows of the query rows start to stop.

    Args:
        judging: adds to each batch how far verdicts move its candidates.
    """
    work = _Work(index, asked, run, answering_device(index, asked, run))
    # Rows are made in Python, all else mostly in compiled loops, so the next batch is ranked meanwhile. Not so with
    # judges: they have a thread of their own, and keep what they are asked batch by batch.
    explained = work.explained(judging(_batches(work, start, stop)))
    if run.settings.threads > 1 and not run.judging:
        explained = one_ahead(explained)
    for rows, groups in explained:
        answers = work.told(rows, groups)
        first, last = int(rows[0]), int(rows[-1]) + 1
        yield from answers[max(first, start) - first : min(last, stop) - first]
        run.step("match", min(last, stop) - start, stop - start)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield an iterator's items, computing the next in another thread while one is used; items must not be None."""
    pool = ThreadPoolExecutor(1, "gpumatch-ahead")
    try:
        pending: Future[T | None] = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item
    finally:  # at the end nothing is left to wait for, and whoever stops a run does not want to wait
        pool.shutdown(wait=False)


def rankings(index: Index, asked: Asked, run: Run, start: int, stop: int) -> Iterator[Batch]:
    """Yield the batches that hold the query rows start to stop, ranked; no result rows are made."""
    for rows, ranked in _batches(_Work(index, asked, run, answering_device(index, asked, run)), start, stop):
        yield rows, ranked
        run.step("match", min(int(rows[-1]) + 1, stop) - start, stop - start)


def _batches(work: _Work, start: int, stop: int) -> Iterator[Batch]:
    """Yield batches, ranked.

    They are cut by row number alone, and a batch is computed whole even if only a part of it is asked for: products of
    another shape round differently, and the lines of a part must be the same as in the whole.
    """
    if start >= stop:  # nothing is left, be it amid a batch
        return
    size = work.run.settings.batch
    for first in range(start // size * size, stop, size):
        yield work.ranked(np.arange(first, min(first + size, len(work.asked.rows))))


def ensure_pools(index: Index, recipes: Sequence[Recipe], run: Run) -> bool:
    """Make the pools that recipes with a density need and the index lacks; tell whether any was made."""
    missing = [recipe for recipe in recipes if recipe.density and recipe.key() not in index.pools]
    for recipe in missing:
        index.pools[recipe.key()] = _lake_pools(index, recipe, run)
    return bool(missing)


def densities(index: Index, recipe: Recipe) -> np.ndarray:
    """Return how alike each lake table is to its nearest others, float32 [T]; 0 for recipes without density.

    The mean of its ten best scores. Neighbours that a small lake lacks count as 0: otherwise the only other table of a
    lake could not stand out from its own density.
    """
    n, pools = index.lake.profiles.n_tables, index.pools.get(recipe.key())
    if pools is None:
        return np.zeros(n, np.float32)
    answer: np.ndarray = pools.density * np.float32(min(DENSITY_NEIGHBOURS, n - 1) / DENSITY_NEIGHBOURS)
    return answer


def _lake_pools(index: Index, recipe: Recipe, run: Run) -> Pools:
    """Score every lake table against its own survivors among the lake's tables."""
    n = index.lake.profiles.n_tables
    if not n:
        return Pools(np.empty((0, 1), np.int32), np.empty((0, 1), np.float32), np.empty(0, np.float32))
    every = np.arange(n)
    asked = Asked([], index.lake, every, np.full(n, -1), every)
    work = _Work(index, asked, run, _pool_device(index, recipe, run))
    ids = np.concatenate([work.propose(rows, _Way(recipe), 0) for rows in _runs(every)])
    ids = ids[:, : max(1, n - 1)]  # no table survives itself
    order = alike_order(ids, every)
    # Pairs that an earlier chunk has scored from the other side are left out, and with them most of their columns.
    twin = twins(ids, order) if recipe.symmetric else np.full(ids.shape, -1)
    scores = np.full(ids.shape, -np.inf, np.float32)
    for done, rows in enumerate(_runs(order)):
        scores[rows] = work.score(rows, np.where(twin[rows] < 0, ids[rows], -1), _Way(recipe), None)[0]
        run.step("index", min(n, (done + 1) * SEARCHED_AT_ONCE), n)
    scores[twin >= 0] = scores.reshape(-1)[twin[twin >= 0]]
    best = -np.sort(-scores, axis=1)[:, :DENSITY_NEIGHBOURS]
    there = np.isfinite(best)
    density = np.where(there, best, 0).sum(1) / np.maximum(1, there.sum(1))
    return Pools(ids.astype(np.int32), scores, density.astype(np.float32))


def _runs(tables: np.ndarray) -> list[np.ndarray]:
    return [tables[start : start + SEARCHED_AT_ONCE] for start in range(0, len(tables), SEARCHED_AT_ONCE)]


def devices(index: Index, asked: Asked, run: Run) -> list[str]:
    """Return the device that answers query rows, and for each recipe with pools the device that makes them."""
    return [answering_device(index, asked, run), *(_pool_device(index, run.recipe(task), run) for task in TASKS)]


def _pool_device(index: Index, recipe: Recipe, run: Run) -> str:
    return run.device_for(len(index.rows) * _search_seconds(index, recipe))


def answering_device(index: Index, asked: Asked, run: Run) -> str:
    """Return the device that answers query rows: one for all of them, whatever part of them is asked for."""
    recipes = Counter(_recipe_name(row) if row.text is None else "text" for row in asked.rows)
    seconds = 0.0
    for name, n in recipes.items():
        recipe = run.recipe(name or "text")
        if not (recipe.key() in index.pools and asked.tables is index.lake):  # else the answers are there
            seconds += n * _search_seconds(index, recipe)
    return run.device_for(seconds)


def _search_seconds(index: Index, recipe: Recipe) -> float:
    """Return about how long one thread of a CPU takes to search for one query and to score what it finds."""
    pairs = min(recipe.least or recipe.pool, len(index.rows))  # these are always scored, and hardly more
    return 2 * index.rows.size / _THREAD_OPERATIONS + pairs * _PAIR_SECONDS


@dataclass(frozen=True)
class _Work:
    """An index, queries against it, and the features of both sides on the device."""

    index: Index
    asked: Asked
    run: Run
    device: str

    @property
    def plan(self) -> DevicePlan | None:
        """How the device's memory is divided, also in the run's statistics; None on a CPU."""
        if self.device == "cpu":
            return None
        if self.run.plan is None:  # made once: later the memory that it has planned for is no longer free
            lake = self.index.lake
            free, total = device_bytes(self.device, available_memory())
            self.run.plan = device_plan(
                free,
                total,
                tables=len(self.index.rows),
                width=self.index.rows.shape[1],
                more=kept_bytes(self.index) if (self.asked.column >= 0).any() else 0,
                vectors=0 if lake.vectors is None else len(lake.vectors.rows),
                dim=lake.dim or 0,
                queries=max(SEARCHED_AT_ONCE, self.run.settings.batch),
                k=max(self.run.settings.k, *(self.run.recipe(task).pool for task in TASKS)),
            )
            self.run.stats.memory_plan["device"] = asdict(self.run.plan)
            if self.device.startswith("cuda") and (trouble := fused_trouble()):
                self.run.warn(
                    f"Triton's kernels cannot run, and torch's slower ones do ({trouble}); see gpumatch doctor"
                )
        return self.run.plan

    @property
    def cells(self) -> int | None:
        return None if self.plan is None else self.plan.chunk_cells

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """The queries' features and the lake's on the device; one object if the queries are lake tables."""
        backend = self.run.settings.backend
        lake = lake_side(self.index, self.device, backend)
        if self.asked.tables is self.index.lake:
            return lake, lake
        return Side(self.asked.tables, self.index, self.device, backend), lake

    @property
    def backend(self) -> Backend:
        """The back end that searches."""
        return self.run.backend(self.device)

    def ranked(self, rows: np.ndarray) -> Batch:
        """Rank the survivors of one batch of query rows, each by the recipe of its task."""
        alike: dict[tuple[str | None, bool], list[int]] = {}
        for at, i in enumerate(rows):
            query = self.asked.rows[i]
            if query.table is None or self.asked.table[i] >= 0:
                alike.setdefault((_recipe_name(query), query.text is not None), []).append(at)
        found = []
        for (name, has_text), group in alike.items():
            way, some = self._way(name, has_text), np.array(group)
            by = self._ranked_columns if name == "column" else self._ranked_tables
            found.append(by(some, rows[some], way))
        return rows, found

    def explained(
        self, judged: Iterator[tuple[Batch, Sequence[Judged]]]
    ) -> Iterator[tuple[np.ndarray, list[Explained]]]:
        """Yield the query rows of each batch, and group by group their final best matches, explained."""
        for (rows, ranked), found in judged:
            groups, done = [], 0
            for group in ranked:
                groups.append(self._explain(group, found[done : done + len(group.rows)] if found else []))
                done += len(group.rows)
            yield rows, groups

    def told(self, rows: np.ndarray, groups: Sequence[Explained]) -> list[Row]:
        """Return the answers to a batch."""
        answers = [self._row(self.asked.rows[i]) for i in rows]
        for group in groups:
            self._tell(group, [answers[at] for at in group.ranked.at])
        return answers

    def _way(self, name: str | None, has_text: bool) -> _Way:
        return _Way(None if name is None else self.run.recipe(name), self.run.recipe("text") if has_text else None)

    def _row(self, query: Query) -> Row:
        """Return the answer to a query row without its matches; it has the weights if they are not the shipped ones."""
        recipe = self._way(_recipe_name(query), query.text is not None).recipe
        row: Row = {"query_table": query.table, "query_column": query.column}
        row |= ({} if query.text is None else {"query_text": query.text}) | {"task": query.task}
        if recipe != recipe_for(recipe.task, self.run.settings.evidence_layer):
            row["weights"] = weights_of(recipe)
        if self.run.judging:
            row["verdicts"] = {"asked": 0, "given": 0}
        return row | {"pool": 0, "matches": []}

    def propose(self, rows: np.ndarray, way: _Way, k: int) -> np.ndarray:
        """Return the survivors of some query rows (int64 [n]), int64 [n, width], -1 for none.

        Args:
            k: matches asked for; more than the recipe's pool widen it.
        """
        index, backend, exclude = self.index, self.backend, self.asked.exclude[rows]
        width = min(max(way.recipe.pool, k), index.lake.profiles.n_tables)
        with self.run.stats.stage("search", "queries", self.device) as stage:
            stage.items += len(rows)
            wanted = self._rows_of(rows, way)
            ids = survivors(*search_tables(index, wanted, width, exclude, backend, self.plan), way.recipe, k)
            if way.table is None or KEY not in way.table.weights:
                return ids
            return np.concatenate([ids, self._sharing(rows, ids)], axis=1)

    def _sharing(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the lake tables that share a key with each query row's and are none of its ids (int64 [n, width]).

        Returns:
            int64 [n, MOST_SHARING], those that share most; -1 where there are fewer.
        """
        n = self.index.lake.profiles.n_tables
        found = shared_keys(*self.sides, self.asked.table[rows])
        row = np.repeat(np.arange(len(rows)), np.diff(found.start))
        known = (np.arange(len(rows))[:, None] * n + ids)[ids >= 0]
        new = (found.table != self.asked.exclude[rows][row]) & ~np.isin(row * n + found.table, known)
        row, table, share = row[new], found.table[new], found.share[new]
        order = np.lexsort((table, -share, row))
        return firsts(row[order], table[order], len(rows), MOST_SHARING)

    def _rows_of(self, rows: np.ndarray, way: _Way) -> np.ndarray:
        """Return the rows that the index's table rows are multiplied with, float32 [n, width]."""
        parts, threads = [], self.run.settings.threads
        if way.table is not None:
            parts.append(table_rows(self.index, self.asked.tables, self.asked.table[rows], way.table, threads))
        if way.text is not None:
            parts.append(text_rows(self.asked.texts, self.asked.text[rows], self.index, way.text.blocks))
        wanted: np.ndarray = sum(parts[1:], start=parts[0])
        return wanted

    def _with_text(self, signals: np.ndarray, rows: np.ndarray, tables: np.ndarray, way: _Way) -> np.ndarray:
        """Return signals, float32 [P, S], followed by those of the rows' texts with the lake tables (int64 [P])."""
        if way.text is None:
            return signals
        found = text_signals(self.asked.texts, self.index, self.asked.text[rows], tables, list(way.text.weights))
        return np.concatenate([signals, found], axis=1)

    def score(
        self, rows: np.ndarray, ids: np.ndarray, way: _Way, itself: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the survivors' scores, density not taken off, and their `confidence.strength`, float32 [n, width].

        -inf and NaN where ids is -1.

        Args:
            rows: int64 [n], query rows; ids: int64 [n, width], lake tables.
            itself: int64 [n], the lake table that each query is, or -1; None if alike tables are side by side already.
        """
        with self.run.stats.stage("rescore", "pairs", self.device) as stage:
            row, place = np.nonzero(ids >= 0)
            stage.items += len(row)
            asked, candidate = rows[row], ids[row, place]
            signals = np.empty((len(row), 0), np.float32)
            if way.table is not None:
                threads, of_pair = self.run.settings.threads, None if itself is None else itself[row]
                tables = self.asked.table[asked]
                signals = score_tables(*self.sides, tables, candidate, way.table, threads, of_pair, self.cells)
            signals = self._with_text(signals, asked, candidate, way)
            scores, strengths = np.full(ids.shape, -np.inf, np.float32), np.full(ids.shape, np.nan, np.float32)
            scores[row, place] = weighted(signals, way.recipe)
            if self.run.judging:
                strengths[row, place] = strength(signals, way.recipe)
        return scores, strengths

    def _explained(self, rows: np.ndarray, candidate: np.ndarray, way: _Way) -> tuple[np.ndarray, ColumnPairs]:
        """Return the signals of query rows and lake tables (int64 [P]), and which of their columns match."""
        none = np.empty(0, np.int64)
        signals, pairs = np.empty((len(rows), 0), np.float32), ColumnPairs(none, none, none, np.empty(0, np.float32))
        if way.table is not None:
            tables, itself, threads = self.asked.table[rows], self.asked.exclude[rows], self.run.settings.threads
            # Few pairs a query, and their evidence is wanted on the host.
            on_host = self.sides[0].host, self.sides[1].host
            signals, pairs = explain_tables(*on_host, tables, candidate, way.table, threads, itself)
        return self._with_text(signals, rows, candidate, way), pairs

    def _ranked_tables(self, at: np.ndarray, rows: np.ndarray, way: _Way) -> Ranked:
        k, n = self.run.settings.k, self.index.lake.profiles.n_tables
        pools = None if way.table is None else self.index.pools.get(way.table.key())
        stored = pools is not None and self.asked.tables is self.index.lake and way.text is None
        if pools is not None and stored and min(k, n - 1) <= way.recipe.least:
            tables = self.asked.table[rows]
            ids, scores = pools.ids[tables].astype(np.int64), pools.scores[tables]
            strengths = scores  # with a density the confidence is made of the score
        else:
            ids = self.propose(rows, way, k)
            scores, strengths = self.score(rows, ids, way, self.asked.exclude[rows])
        if pools is not None:
            scores = scores - way.recipe.density * pools.density[np.maximum(ids, 0)]
        ids, rounded, order = best_first(ids, scores)
        return Ranked(way, at, rows, ids, rounded, (ids >= 0).sum(axis=1), np.take_along_axis(strengths, order, 1))

    def _ranked_columns(self, at: np.ndarray, rows: np.ndarray, way: _Way) -> Ranked:
        recipe, asked, profiles = way.table or way.recipe, self.asked.column[rows], self.index.lake.profiles
        width = min(max(recipe.pool, self.run.settings.k), profiles.n_columns)
        with self.run.stats.stage("search", "queries", self.device) as stage:
            wanted, exclude, backend = self._rows_of(rows, way), self.asked.exclude[rows], self.backend
            ids = search_columns(
                self.index, self.asked.tables, asked, wanted, recipe, width, exclude, backend, self.plan
            )
            stage.items += len(rows)
        with self.run.stats.stage("rescore", "pairs", self.device) as stage:
            row, place = np.nonzero(ids >= 0)
            candidate = ids[row, place]
            table = self.index.lake.terms.column_table[candidate]
            signals = score_columns(*self.sides, asked[row], candidate, recipe, self.run.settings.threads, self.cells)
            signals = self._with_text(signals, rows[row], table, way)
            score = np.round(weighted(signals, way.recipe).astype(np.float64), SCORE_DECIMALS)
            stage.items += len(row)
        # By falling score, ties by table and column; the first column of a table is its best, and stands for it.
        order = np.lexsort((candidate, table, -score, row))
        order = order[first_seen(table[order], row[order])]
        sizes = np.bincount(row[order], minlength=len(rows))
        row, slot = row[order], np.arange(len(order)) - offsets_of(sizes)[row[order]]
        shape = len(rows), int(sizes.max(initial=0))
        ids, scores = np.full(shape, -1), np.full(shape, -np.inf)
        ids[row, slot], scores[row, slot] = candidate[order], score[order]
        of = np.full((*shape, signals.shape[1]), np.nan, np.float32)
        of[row, slot] = signals[order]
        strengths = np.full(shape, np.nan, np.float32)
        if self.run.judging:
            strengths[row, slot] = strength(signals[order], way.recipe)
        return Ranked(way, at, rows, ids, scores, sizes, strengths, of, self.index.lake.terms.column_table)

    def _explain(self, group: Ranked, found: Sequence[Judged]) -> Explained:
        """Find the survivors that come first after verdicts (none, or one a row), with confidence and evidence."""
        k, least = self.run.settings.k, self.run.settings.min_confidence
        ids, scores, places = group.ids, group.scores, np.broadcast_to(np.arange(group.ids.shape[1]), group.ids.shape)
        if found:
            scores = scores.copy()
            for i, judged in enumerate(found):
                n = len(judged.moves)
                scores[i, :n] = np.round(scores[i, :n] + judged.moves, SCORE_DECIMALS)
            order = np.lexsort((ids, group.tables(ids), -scores), axis=1)
            ids, scores, places = (np.take_along_axis(array, order, 1) for array in (ids, scores, places))
        if k and not least:
            ids, scores, places = ids[:, :k], scores[:, :k], places[:, :k]
        row, slot = np.nonzero(ids >= 0)
        candidate, score, place = ids[row, slot], scores[row, slot], places[row, slot]
        with self.run.stats.stage("explain", "pairs") as stage:
            table = group.tables(candidate)
            if group.signals is None:
                signals, pairs = self._explained(group.rows[row], candidate, group.way)
                density = densities(self.index, group.way.recipe)[table]
            else:
                signals, density = group.signals[row, place], np.zeros(len(row))
                of_row, of_score = self.asked.column[group.rows[row]], group.scores[row, place].astype(np.float32)
                pairs = ColumnPairs(np.arange(len(row)), of_row, candidate, of_score)
            evidence = np.round(signals.astype(np.float64), EVIDENCE_DECIMALS)
            sure = confidence(evidence, group.way.recipe, density)
            stage.items += len(row)
        left = sure_enough(row, sure, least, k)
        return Explained(group, found, row, place, table, score, sure, left, evidence, pairs)

    def _tell(self, group: Explained, answers: Sequence[Row]) -> None:
        """Put the matches into the answers of some query rows."""
        found, pairs, row = group.found, group.pairs, group.row
        with self.run.stats.stage("write", "matches") as stage, held_back():
            some = group.left[pairs.pair]
            columns = self._column_pairs(pairs.query[some], pairs.candidate[some], pairs.score[some])
            start = offsets_of(np.bincount(pairs.pair[some], minlength=len(row))).tolist()
            for row_of, pool in zip(answers, group.ranked.sizes.tolist(), strict=True):
                row_of["pool"] = pool
            names, at = self.index.lake.profiles.tables, np.flatnonzero(group.left)
            table, score, sure, of = (x.tolist() for x in (group.table, group.score, group.sure, row))
            layer = "L2" if group.ranked.way.recipe.dense else "L1"
            for i, said in zip(at.tolist(), _evidence(group.evidence[at], group.ranked.way.recipe), strict=True):
                match = {
                    "table": names[table[i]],
                    "score": score[i],
                    "confidence": None if math.isnan(sure[i]) else sure[i],
                    "layer": layer,
                    "columns": columns[start[i] : start[i + 1]],
                    "evidence": said,
                }
                if found and (verdict := self._verdict(group.ranked, of[i], int(group.place[i]), found[of[i]])):
                    match["layer"] = "L3" if verdict.get("moved") else match["layer"]
                    match["verdict"] = verdict
                answers[of[i]]["matches"].append(match)
            for row_of, judged in zip(answers, found, strict=bool(found)):
                row_of["verdicts"] = judged.counts()
            stage.items += len(at)

    def _verdict(self, group: Ranked, i: int, place: int, judged: Judged) -> Row | None:
        """Return the verdict on a candidate, or on one with the same column names."""
        verdict = judged.verdict(place, float(group.scores[i, place]))
        if verdict is not None and (of := judged.speaker(place)) != place:
            verdict["of"] = self.index.lake.profiles.tables[int(group.tables(group.ids[i])[of])]
        return verdict

    def _column_pairs(self, query: np.ndarray, candidate: np.ndarray, score: np.ndarray) -> list[Row]:
        rounded = np.round(score.astype(np.float64), EVIDENCE_DECIMALS).tolist()
        asked, lake = self._said
        sides = zip(asked.columns(query), lake.columns(candidate), rounded, strict=True)
        return [{"query": q, "candidate": c, "score": s} for q, c, s in sides]

    @cached_property
    def _said(self) -> tuple[_Said, _Said]:
        """The queries' columns and the lake's, as results name them."""
        lake = _Said(self.index.lake.profiles)
        return lake if self.asked.tables is self.index.lake else _Said(self.asked.tables.profiles), lake


def best_first(ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, rounded scores float64, order int64), each [n, width], best first, ties by table number.

    Args:
        ids: int64 [n, width], -1 for no candidate; scores: float32 [n, width].
    """
    rounded = np.where(ids >= 0, np.round(scores.astype(np.float64), SCORE_DECIMALS), -np.inf)
    order = np.lexsort((ids, -rounded), axis=1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rounded, order, 1), order


def sure_enough(row: np.ndarray, confidences: np.ndarray, least: float, k: int) -> np.ndarray:
    """Tell which matches are left, bool [P]: those of confidence `least` or more, of these each row's first k (0: all).

    Args:
        row: int64 [P], rising; confidences: float64 [P].
    """
    enough = ~(confidences < least)  # an unknown one, NaN, is never below
    if not k:
        return enough
    count: np.ndarray = np.cumsum(enough)
    before = (count - enough)[np.searchsorted(row, row)]
    answer: np.ndarray = enough & (count - before <= k)
    return answer


def _recipe_name(row: Query) -> str | None:
    """Return the name of the recipe by which a row's table or column is scored, None where it has none."""
    if row.table is None:
        return None
    return "column" if row.column is not None and row.task == "join" else row.task


def _evidence(rounded: np.ndarray, recipe: Recipe) -> list[dict[str, float | None]]:
    plain = rounded.astype(object)
    plain[np.isnan(rounded)] = None  # not known: JSON's null
    return [dict(zip(recipe.weights, values, strict=True)) for values in plain.tolist()]


class _Said:
    """How results name the columns of some tables: made once for each column, since most are in many matches."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._made: list[Row | None] = [None] * profiles.n_columns
        self._is_made = np.zeros(profiles.n_columns, np.bool_)

    def columns(self, columns: np.ndarray) -> list[Row | None]:
        """Return how results name columns, int64 [n]; see `_Said`."""
        made, headers = self._made, self._profiles.headers
        new = np.unique(columns[~self._is_made[columns]])
        table = np.searchsorted(self._profiles.table_cols, new, side="right") - 1
        index = (new - self._profiles.table_cols[table]).tolist()
        for i, c in zip(index, new.tolist(), strict=True):
            made[c] = {"index": i, "name": headers[c]}
        self._is_made[new] = True
        return [made[c] for c in columns.tolist()]
