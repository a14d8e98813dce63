"""Result rows and truth rows in, ranking metrics with their uncertainty out.

Pure; never samples an order of ties, never re-ranks.

A *key* names a query (`records.Key`). An *item* is what a ranking lists: (table, None) at table level, (table, column)
at column level. Axes: `Q` evaluated queries, `M` metrics, `L` slots of one ranking, `B` bootstrap resamples.

Every metric is its mean over the random orders of ties, in closed form. Slot i (1-based) of a tie group of n items, r
of them relevant, that starts after position p with c relevant items above it:

    gain   P(relevant)                 = r/n
    first  P(first relevant is here)   = r/(n-i+1) · Π_{t<i-1} (n-r-t)/(n-t)  if c = 0, else 0   (hypergeometric)
    prec   E[relevant · precision]     = r/n · (c + 1 + (i-1)(r-1)/(n-1)) / (p+i)

P, R and nDCG are linear in `gain`, Hit and MRR in `first`, MAP in `prec`: nothing is enumerated or drawn. The slots
beyond the end of a ranking hold nothing relevant; a tie group that the end cuts is averaged over its printed part.
Definitions are those of trec_eval (`ir-measures`: P, R, AP, nDCG, RR, Success), with which tests compare them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpumatch.errors import LakeError, UsageError
from gpumatch.records import Key, Row, TruthPair, key_of, rounded, rows_by_key, said, truth_of, truth_pairs

HIT_CUTS = (1, 3, 5)
SET_CUTS = (1, 5, 10)
NDCG_CUT = 10
METRICS: tuple[str, ...] = (
    *(f"Hit@{k}" for k in HIT_CUTS),
    *(f"P@{k}" for k in SET_CUTS),
    *(f"R@{k}" for k in SET_CUTS),
    "MAP",
    f"nDCG@{NDCG_CUT}",
    "MRR",
)
LEVELS = ("table", "column", "auto")

_DISCOUNT = 1.0 / np.log2(np.arange(2, NDCG_CUT + 2))
# Resamples are drawn in blocks of at most this many cells, so 5,000 queries × 2,000 resamples stay below 100 MB.
_BOOTSTRAP_CELLS = 4_000_000

Item = tuple[str, str | None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerQuery:
    """Every metric of every evaluated query: values float64 [Q, M], hit1_symmetric float64 [Q], keys in truth order.

    pools: float64 [Q, 2], the share of a query's relevant items that are listed at all, and how many items are listed.
    unanswered: those of the keys that no result row has.
    """

    keys: list[Key]
    values: Floats
    pools: Floats
    hit1_symmetric: Floats
    n_rows: int
    n_covered_rows: int
    unanswered: list[Key]
    n_truth_pairs: int
    n_truth_pairs_in_lake: int | None

    @property
    def coverage(self) -> float:
        """The share of the result rows whose query has a true candidate in the lake (0 without rows)."""
        return self.n_covered_rows / self.n_rows if self.n_rows else 0.0

    @property
    def truth_coverage(self) -> float | None:
        """The share of the truth pairs whose candidate is in the lake; None where the lake is not known."""
        if self.n_truth_pairs_in_lake is None or not self.n_truth_pairs:
            return None
        return self.n_truth_pairs_in_lake / self.n_truth_pairs


@dataclass(frozen=True)
class Evaluation:
    """Means over queries, their 95% bootstrap intervals, and table-level Hit@1 with reversed truth pairs counted."""

    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    hit1_symmetric: float
    n_queries: int
    n_rows: int
    n_unanswered: int
    first_unanswered: str | None
    coverage: float
    truth_coverage: float | None

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Return (metric, mean, low, high) in print order."""
        return [(name, self.means[name], *self.intervals[name]) for name in METRICS]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` takes."""
        return {
            "n_queries": self.n_queries,
            "n_rows": self.n_rows,
            "n_unanswered": self.n_unanswered,
            "first_unanswered": self.first_unanswered,
            "coverage": self.coverage,
            "truth_coverage": self.truth_coverage,
            "hit1_symmetric": self.hit1_symmetric,
            "metrics": {name: {"mean": mean, "low": low, "high": high} for name, mean, low, high in self.rows()},
        }


class Difference(NamedTuple):
    """One metric of two systems: b - a, its 95% interval and the two-sided bootstrap p-value."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same queries, metric by metric."""

    differences: dict[str, Difference]
    n_queries: int

    def rows(self) -> list[tuple[str, float, float, float, float, float, float]]:
        """Return (metric, a, b, b - a, low, high, p) in print order."""
        return [(name, *self.differences[name]) for name in METRICS]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` takes."""
        return {
            "n_queries": self.n_queries,
            "metrics": {name: self.differences[name]._asdict() for name in METRICS},
        }


@dataclass(frozen=True)
class PoolRecall:
    """The mean share of a query's true candidates that are among its matches, and its 95% bootstrap interval.

    mean_size: matches a query; n_whole: queries that have all of their true candidates.
    """

    recall: float
    interval: tuple[float, float]
    mean_size: float
    n_queries: int
    n_whole: int
    n_unanswered: int
    first_unanswered: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` takes."""
        return asdict(self)


def evaluate(
    results: Iterable[Row],
    truth: str | Path | Iterable[Row],
    *,
    lake_tables: AbstractSet[str] | None = None,
    level: str = "auto",
    queries: Collection[Key] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Return every metric's mean over the queries and its 95% percentile interval over resampled queries.

    The arguments of `score_queries`, and the number of bootstrap resamples. The same seed gives the same intervals,
    whatever the order of the result rows.

    A table is never its own match: results and truth rows that pair two tables of one name are left out. So a query
    table from outside the lake needs a name that no table of the lake has.

    Args:
        results: `Matches`, or rows of a results file.
        truth: the path of a truth file (.json, .csv), or its rows: dicts with query_table (or query_text) and
            candidate_table, and optionally query_column and candidate_column.

    Raises:
        LakeError: no query has a true candidate in the lake, or as in `score_queries` and for a truth file.
        UsageError: `resamples` below 1, or as in `score_queries`.

    """
    scored = score_queries(results, truth_of(truth), lake_tables, level, queries=queries)
    _require_queries(scored)
    low, high = np.percentile(_bootstrap_means(scored.values, resamples, seed), [2.5, 97.5], axis=0)
    return Evaluation(
        means=_named(scored.values.mean(axis=0)),
        intervals={name: (float(low[m]), float(high[m])) for m, name in enumerate(METRICS)},
        hit1_symmetric=float(scored.hit1_symmetric.mean()),
        n_queries=len(scored.keys),
        n_rows=scored.n_rows,
        n_unanswered=len(scored.unanswered),
        first_unanswered=next(map(_shown, scored.unanswered), None),
        coverage=scored.coverage,
        truth_coverage=scored.truth_coverage,
    )


def compare(
    results_a: Iterable[Row],
    results_b: Iterable[Row],
    truth: Iterable[Row],
    *,
    lake_tables: AbstractSet[str] | None = None,
    level: str = "auto",
    queries: Collection[Key] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return b - a for every metric over the same queries, with a paired bootstrap over those queries.

    The queries come from the truth, so both systems have the same ones; what a system did not answer counts 0 for it.
    p = min(1, 2·min(share of resampled differences ≤ 0, share ≥ 0)); a printed 0 means below 2/resamples.

    Arguments and errors are those of `evaluate`.
    """
    pairs = list(truth)
    scored_a, scored_b = (
        score_queries(rows, pairs, lake_tables, level, queries=queries) for rows in (results_a, results_b)
    )
    _require_queries(scored_a)
    values = scored_b.values - scored_a.values
    # Rounded so that gains and losses which cancel give 0, not the 1e-17 that summation leaves: the sign is counted.
    resampled = np.round(_bootstrap_means(values, resamples, seed), 12)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    p = np.minimum(1.0, 2.0 * np.minimum((resampled <= 0).mean(axis=0), (resampled >= 0).mean(axis=0)))
    columns = (scored_a.values.mean(axis=0), scored_b.values.mean(axis=0), values.mean(axis=0), low, high, p)
    return Comparison(
        differences={name: Difference(*(float(c[m]) for c in columns)) for m, name in enumerate(METRICS)},
        n_queries=len(scored_a.keys),
    )


def pool_recall(
    results: Iterable[Row],
    truth: Iterable[Row],
    *,
    lake_tables: AbstractSet[str] | None = None,
    level: str = "auto",
    queries: Collection[Key] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> PoolRecall:
    """Return how much of the truth search has proposed, by results that list every table that it proposed.

    Arguments are those of `evaluate`.

    Raises:
        LakeError: a row has fewer matches than its `pool` says, or as in `evaluate`.
        UsageError: as in `evaluate`.

    """
    rows = list(results)
    scored = score_queries(rows, truth, lake_tables, level, queries=queries)
    _require_queries(scored)
    _require_pools(rows)
    low, high = np.percentile(_bootstrap_means(scored.pools[:, :1], resamples, seed), [2.5, 97.5])
    recall, size = scored.pools.mean(axis=0)
    return PoolRecall(
        recall=float(recall),
        interval=(float(low), float(high)),
        mean_size=float(size),
        n_queries=len(scored.keys),
        n_whole=int((scored.pools[:, 0] == 1).sum()),
        n_unanswered=len(scored.unanswered),
        first_unanswered=next(map(_shown, scored.unanswered), None),
    )


def score_queries(
    results: Iterable[Row],
    truth: Iterable[Row],
    lake_tables: AbstractSet[str] | None = None,
    level: str = "auto",
    *,
    queries: Collection[Key] | None = None,
) -> PerQuery:
    """Return every metric of every query that has a true candidate in the lake; an unanswered query scores 0.

    Args:
        results: rows of a results file, at most one per key; an item listed twice counts at its first place.
        truth: rows with `query_table`, `candidate_table` and optionally both columns; repeated pairs count once.
        lake_tables: the lake's table names; truth pairs with another candidate are left out. None: keep them all.
        level: "table": an item is relevant if its table is; "column": if its table and best column (`columns[0]`)
            are, each true (table, column) pair counting once in the recall; "auto": "column" for the keys that have a
            query column and a candidate column in every truth row, "table" for the others.
        queries: evaluate these keys only, for a run over a part of the queries; None: every query of the truth.

    Raises:
        LakeError: a malformed or repeated row, or results and truth that can share no key.
        UsageError: an unknown level, or "column" with a truth row that has no candidate column.

    """
    if level not in LEVELS:
        raise UsageError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    rankings = rows_by_key((f"results row {n}", row) for n, row in enumerate(results, start=1))
    pairs = truth_pairs(truth)
    _require_same_grain(rankings, pairs)
    kept = [pair for pair in pairs if queries is None or pair.key in queries]
    relevant = _relevant_items(kept, level)
    in_lake = {key: _inside(items, lake_tables) for key, items in relevant.items()}
    keys = [key for key, items in in_lake.items() if items]
    unanswered = [key for key in keys if key not in rankings]
    _require_shared(rankings, keys, unanswered)
    # The closure takes the pairs of all queries: restricting the queries must not change what is relevant to one.
    symmetric = _symmetric_tables(pairs)
    counted_rows = [key for key in rankings if queries is None or key in queries]
    return PerQuery(
        keys=keys,
        values=_stack(_score_row(rankings.get(key), in_lake[key]) for key in keys),
        pools=np.array([_pool(rankings.get(key), in_lake[key]) for key in keys]).reshape(-1, 2),
        hit1_symmetric=_stack(_score_row(rankings.get(key), symmetric[key]) for key in keys)[:, METRICS.index("Hit@1")],
        n_rows=len(counted_rows),
        n_covered_rows=sum(bool(in_lake.get(key)) for key in counted_rows),
        unanswered=unanswered,
        n_truth_pairs=sum(map(len, relevant.values())),
        n_truth_pairs_in_lake=None if lake_tables is None else sum(map(len, in_lake.values())),
    )


# --- what is asked of rows together


def _require_same_grain(rankings: Collection[Key], pairs: Collection[TruthPair]) -> None:
    """Refuse results by column against a truth by table, or the reverse: every query would silently score 0."""
    by_column_results = {key[1] is not None for key in rankings}
    by_column_truth = {pair.key[1] is not None for pair in pairs}
    if by_column_results and by_column_truth and not by_column_results & by_column_truth:
        named, other = ("truth", "results") if True in by_column_truth else ("results", "truth")
        raise LakeError(
            f"every {named} row has a query_column and no {other} row has one, so no query can be found in both; use "
            f"a truth file of the same kind, or run `gpumatch match` with a queries file that fits it (--queries FILE)"
        )


def _require_shared(rankings: Collection[Key], keys: Collection[Key], unanswered: Collection[Key]) -> None:
    """Refuse a truth of other queries: each would silently score 0."""
    if not keys or len(unanswered) < len(keys):
        return
    there = next((f" (the first of these is {_shown(key)})" for key in rankings), "")
    raise LakeError(
        f"none of the {len(keys)} queries of the truth (the first is {_shown(next(iter(keys)))}) is among those of the "
        f"results{there}; give the truth of these results, with the same names"
    )


def _shown(key: Key) -> str:
    return repr(said(key)) if key[1] is None else f"{said(key)!r}, column {key[1]!r}"


def _require_queries(scored: PerQuery) -> None:
    if scored.keys:
        return
    in_lake = "" if scored.n_truth_pairs_in_lake is None else f" ({scored.n_truth_pairs_in_lake} in the lake)"
    raise LakeError(
        f"no query has a true candidate: {scored.n_rows} result rows, {scored.n_truth_pairs} truth pairs{in_lake}; "
        "check that --truth and --lake belong to the results"
    )


def _require_pools(rows: Iterable[Row]) -> None:
    """Refuse results that list only a part of what search proposed; rows that do not tell how much it was pass."""
    for number, row in enumerate(rows, start=1):
        pool = row.get("pool")
        if isinstance(pool, int) and len(row["matches"]) < pool:
            raise LakeError(
                f"results row {number}: {said(key_of('', row))!r} lists {len(row['matches'])} of the {pool} tables "
                "that search proposed for it, and the recall of a pool needs them all; make the results with -k 0 "
                "and without --min-confidence"
            )


# --- what is relevant


def _relevant_items(pairs: Iterable[TruthPair], level: str) -> dict[Key, set[Item]]:
    """Return the distinct true items by key, in truth order."""
    by_key: dict[Key, list[TruthPair]] = {}
    for pair in pairs:
        if level == "column" and pair.column is None:
            raise UsageError(f"{pair.where}: has no candidate_column, which level 'column' needs; use level 'auto'")
        by_key.setdefault(pair.key, []).append(pair)
    relevant: dict[Key, set[Item]] = {}
    for key, own in by_key.items():
        by_column = level == "column" or (level == "auto" and key[1] is not None and all(pair.column for pair in own))
        relevant[key] = {(pair.table, pair.column if by_column else None) for pair in own}
    return relevant


def _inside(items: set[Item], lake_tables: AbstractSet[str] | None) -> set[Item]:
    return items if lake_tables is None else {item for item in items if item[0] in lake_tables}


def _symmetric_tables(pairs: Iterable[TruthPair]) -> dict[Key, set[Item]]:
    """Return the true tables by key under the truth and its reverse.

    The reverse of a pair of columns belongs to the candidate's column; of a pair of tables, to the candidate table.
    """
    relevant: dict[Key, set[Item]] = {}
    for key, table, candidate, candidate_column, _ in pairs:
        relevant.setdefault(key, set()).add((candidate, None))
        if table == key[0]:  # not of queries in words: no candidate has a text to ask back with
            back: Key = (candidate, None if key[1] is None else candidate_column)
            relevant.setdefault(back, set()).add((table, None))
    return relevant


# --- one ranking


def _score_row(row: Row | None, relevant: set[Item]) -> Floats:
    """Return the metrics of one result row (None: unanswered), float64 [M]."""
    ranking = _ranking(row, relevant)
    is_relevant = np.fromiter((item in relevant for item in ranking), dtype=bool, count=len(ranking))
    return expected_metrics(is_relevant, np.fromiter(ranking.values(), np.float64, count=len(ranking)), len(relevant))


def _pool(row: Row | None, relevant: set[Item]) -> tuple[float, int]:
    ranking = _ranking(row, relevant)
    return len(relevant & ranking.keys()) / len(relevant), len(ranking)


def _ranking(row: Row | None, relevant: set[Item]) -> dict[Item, float]:
    """Return what a result row lists (None: nothing) at the level of what is relevant, best first, with its scores."""
    by_column = any(column is not None for _, column in relevant)
    scores: dict[Item, float] = {}
    if row is not None:
        for match in row["matches"]:
            if match["table"] != row.get("query_table"):
                scores.setdefault(_item(match, by_column), rounded(match["score"]))
    return scores


def _item(match: Row, by_column: bool) -> Item:
    if not by_column:
        return match["table"], None
    # A pair has its candidate, which has its name; a bare name is taken for either too, for results of other
    # systems. What is none of these is no true column.
    columns = match.get("columns")
    column = columns[0] if isinstance(columns, list | tuple) and columns else None
    for part in ("candidate", "name"):
        column = column.get(part) if isinstance(column, Mapping) else column
    return match["table"], column if isinstance(column, str) else None


def expected_metrics(is_relevant: NDArray[np.bool_], scores: Floats, n_relevant: int) -> Floats:
    """Return the metrics of one ranking, each its mean over the orders of equal scores.

    Args:
        is_relevant: bool [L], in the ranking's order.
        scores: float64 [L], falling; equal values are ties.
        n_relevant: relevant items in the lake, listed or not; at least 1.

    Returns:
        float64 [M], in the order of `METRICS`.

    """
    if not is_relevant.any():
        return np.zeros(len(METRICS))
    gain, first, prec = _slots(is_relevant, scores)
    hits = [first[:k].sum() for k in HIT_CUTS]
    found = [gain[:k].sum() for k in SET_CUTS]
    ideal = _DISCOUNT[:n_relevant].sum()
    return np.array(
        [
            *hits,
            *(total / k for total, k in zip(found, SET_CUTS, strict=True)),
            *(total / n_relevant for total in found),
            prec.sum() / n_relevant,
            gain[:NDCG_CUT] @ _DISCOUNT[: len(gain)] / ideal,
            (first / np.arange(1, len(first) + 1)).sum(),
        ]
    )


def _slots(is_relevant: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return `gain`, `first` and `prec` of the module's docstring, each float64 [L]; one item at least is relevant."""
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    sizes = np.diff(np.append(starts, len(scores)))
    hits = np.add.reduceat(is_relevant.astype(np.int64), starts)
    n, r, p = (np.repeat(x, sizes) for x in (sizes, hits, starts))
    c = np.repeat(np.cumsum(hits) - hits, sizes)
    i = np.arange(1, len(scores) + 1) - p
    gain = r / n
    prec = gain * (c + 1 + (i - 1) * (r - 1) / np.maximum(n - 1, 1)) / (p + i)
    first = np.zeros(len(scores))
    group = int(np.flatnonzero(hits)[0])
    begin, size = int(starts[group]), int(sizes[group])
    first[begin : begin + size] = _first_hit(size, int(hits[group]))
    return gain, first, prec


def _first_hit(n: int, r: int) -> Floats:
    """Return P(the first of r relevant items is at slot i of n in random order), float64 [n]."""
    before = np.arange(n)
    # The product is 0 from slot n-r+2 on: by then one of the relevant items has been drawn.
    missed = np.cumprod(np.append(1.0, (n - r - before) / (n - before)))[:n]
    return missed * r / (n - before)


# --- means over queries


def _stack(values: Iterable[Floats]) -> Floats:
    """Return float64 [Q, M], also for no query."""
    return np.array(list(values)).reshape(-1, len(METRICS))


def _named(values: Floats) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


def _bootstrap_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Return the means of queries drawn with replacement, float64 [B, M], of values float64 [Q, M]."""
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, found {resamples}")
    rng = np.random.default_rng(seed)
    n = len(values)
    block = max(1, _BOOTSTRAP_CELLS // n)
    means = []
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        # How often each query is drawn, int64 [b, Q]: one product then gives every metric's sums at once.
        drawn = rng.integers(n, size=(b, n)) + np.arange(b)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)
        means.append(counts.astype(np.float64) @ values / n)
    return np.concatenate(means)
