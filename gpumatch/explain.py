"""Result rows and one of their matches in, why it is there out: signals, weights, columns, and the next match.

Reads nothing and computes no signal anew: a score is explained by the evidence that it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gpumatch.canonical import canonical_cells, comparable
from gpumatch.errors import UsageError
from gpumatch.recipes import LAYERS, SCORE_DECIMALS, SIGNALS, TASKS, contributions, recipe_for
from gpumatch.weights import DENSITY, weights_of

if TYPE_CHECKING:
    from gpumatch.lake import Table

SHARED = 5
# Scores that differ by less than is printed are ties, which are in the order of their names.
_TIE = 10**-SCORE_DECIMALS

Row = Mapping[str, Any]
# What rows are known by, and what tells those of one query apart.
_NAMES = dict.fromkeys(("query_table", "query_column", "query_text", "task"))
_TOLD_APART = (
    ("task", "tasks", "add --task (task=)"),
    ("query_column", "columns", "add --column (column=)"),
    ("query_text", "texts", "name it by its text"),
    ("query_table", "tables", "name it by its table"),
)


@dataclass(frozen=True)
class Part:
    """A signal's share of a score (`recipes.contributions`); value None if it is unknown."""

    signal: str
    value: float | None
    weight: float
    contribution: float
    formula: str


@dataclass(frozen=True)
class Explanation:
    """One match of one query row.

    rank: from 1; of: the matches of the row.
    confidence: how probable it is that the match is a true one; None in results of versions that did not tell it.
    parts: by falling contribution; the signals without a weight come last.
    density: what was taken off because the candidate is like everything in its lake.
    columns: [{query, candidate, score}]; if the tables were at hand with "shared", up to five common values as the
        query writes them, and "shared_as", the same as the candidate does.
    runner_up: the match that comes next, or None.
    lead: (signal, its contribution less the next match's), largest first; "density" and "verdict" among them.
    verdict: what a language model was asked and said, as in the match, or None; `words` are the model's.
    """

    query_table: str
    query_column: str | None
    task: str
    table: str
    layer: str
    rank: int
    of: int
    score: float
    confidence: float | None
    parts: list[Part]
    density: float
    columns: list[dict[str, Any]] = field(default_factory=list)
    runner_up: str | None = None
    lead: list[tuple[str, float]] = field(default_factory=list)
    verdict: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def explain(
    rows: Sequence[Row], query: str, candidate: str, column: str | None = None, task: str | None = None
) -> Explanation:
    """Explain a match.

    Args:
        rows: result rows, as `match` gives them.
        query, candidate: names of tables; or, of a query that has one, its text.
        column, task: of the row, needed where several rows of the query list the candidate; without them a row that
            has no column, and then one that has no text, comes first.

    Raises:
        UsageError: there is no such query row, or no such match in it, or several, or it is not as `match` writes it.
    """
    row = _row([_NAMES | dict(row) for row in rows], query, candidate, column, task)
    matches = row["matches"]
    at = next(i for i, match in enumerate(matches) if match["table"] == candidate)
    match = matches[at]
    after = matches[at + 1] if at + 1 < len(matches) else None
    for one in (match, after) if after else (match,):
        _check(row, one)
    parts, density = _parts(row, match)
    return Explanation(
        row["query_table"] or query, row["query_column"], row["task"], candidate, match["layer"], at + 1, len(matches),
        match["score"], match.get("confidence"), parts, density, [dict(one) for one in match["columns"]],
        after and after["table"],
        _lead(row, match, parts, density, after) if after else [],
        match.get("verdict"),
    )  # fmt: skip


def with_shared_values(found: Explanation, query: Table, candidate: Table) -> Explanation:
    """Add up to five values that matching columns have in common, as the query and as the candidate write them.

    Raises:
        UsageError: a table no longer has such a column, or has another one in its place.
    """
    for one in found.columns:
        a = _column(query, one["query"])
        shared = _shared(a, _column(candidate, one["candidate"]))
        one["shared"], one["shared_as"] = list(shared), list(shared.values())
    return found


def _column(table: Table, wanted: Mapping[str, Any]) -> pa.Array:
    at, name = wanted["index"], wanted["name"]
    there = f"as column {at} {table.header[at]!r}" if at < len(table.header) else f"{len(table.header)} columns"
    if at >= len(table.header) or table.header[at] != name:
        raise UsageError(
            f"{table.name!r} has {there}, and in these results a column {at}, {name!r}; it has changed since: make "
            "them anew with gpumatch match, or leave out --lake"
        )
    return table.columns[at]


def _shared(a: pa.Array, b: pa.Array) -> dict[str, str]:
    """Return values of a that b has too, each with how b writes it: alike, or else as it first does."""
    values, others = a.unique(), b.unique()
    (plain_values, letter), (plain_others, other) = canonical_cells(values), canonical_cells(others)
    there = set(plain_others.to_pylist()) - {None} if comparable(letter, other)[0] else set()
    shared: dict[str, str] = {}
    for value, plain in zip(values.to_pylist(), plain_values.to_pylist(), strict=True):
        if plain in there:
            shared.setdefault(plain, value.strip())
        if len(shared) == SHARED:
            break
    written: dict[str, str] = {}
    for value, plain in zip(others.to_pylist(), plain_others.to_pylist(), strict=True):
        if plain in shared and (plain not in written or value.strip() == shared[plain]):
            written[plain] = value.strip()
    return {value: written[plain] for plain, value in shared.items()}


def _row(rows: Sequence[Row], query: str, candidate: str, column: str | None, task: str | None) -> Row:
    """Return the one row of a query that lists a candidate, among those of a column and a task where these are given.

    Raises:
        UsageError: there is none, or what to add where there are several.
    """
    of_query = [row for row in rows if query in (row["query_table"], row["query_text"])]
    if not of_query:
        first = f"; the first is {rows[0]['query_table']!r}" if rows else ""
        raise UsageError(f"{query!r} is none of the {len(rows)} query tables{first}")
    for name, key, given in (("task", "task", task), ("column", "query_column", column)):
        fitting = [row for row in of_query if given in (None, row[key])]
        if not fitting:
            there = ", ".join(_different(of_query, key))
            raise UsageError(f"{query!r} was not asked for {name} {given!r} but for {there}")
        of_query = fitting
    listing = [row for row in of_query if any(match["table"] == candidate for match in row["matches"])]
    if not listing:
        matches = [match for row in of_query for match in row["matches"]]
        listed = ", ".join(str(match["table"]) for match in matches[:3]) or "none"
        raise UsageError(f"{candidate!r} is none of the {len(matches)} matches of {query!r} (the first: {listed})")
    for key, name, add in _TOLD_APART:
        listing = [row for row in listing if row[key] is None] or listing
        if len(several := _different(listing, key)) > 1:
            raise UsageError(f"{candidate!r} is a match of {query!r} for several {name} ({', '.join(several)}); {add}")
    return listing[0]


def _different(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _check(row: Row, match: Row) -> None:
    """Refuse a match that is not as `match` writes it: other systems' results tell nothing but the order."""
    evidence, columns, verdict = match.get("evidence"), match.get("columns"), match.get("verdict")
    weights = row.get("weights", {DENSITY: 0.0})
    whole = {
        "task": row.get("task") in TASKS,
        "weights": isinstance(weights, Mapping) and DENSITY in weights and all(map(_is_number, weights.values())),
        "layer": isinstance(match.get("layer"), str),
        "evidence": isinstance(evidence, Mapping) and all(v is None or _is_number(v) for v in evidence.values()),
        "confidence": match.get("confidence") is None or _is_number(match["confidence"]),
        "columns": isinstance(columns, Sequence) and all(map(is_pair, columns)),
        "verdict": verdict is None or (isinstance(verdict, Mapping) and _is_verdict(verdict)),
    }
    if missing := [name for name, good in whole.items() if not good]:
        raise UsageError(
            f"{match['table']!r} lacks {', '.join(missing)} as gpumatch match writes it; results of other systems can "
            "be scored (gpumatch eval), not explained"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def is_pair(one: object) -> bool:
    """Tell whether this is a pair of matching columns (each an index and a name) with a score."""
    if not isinstance(one, Mapping) or not _is_number(one.get("score")):
        return False
    return all(
        isinstance(side, Mapping) and isinstance(at := side.get("index"), int) and at >= 0 and "name" in side
        for side in (one.get("query"), one.get("candidate"))
    )


def _is_verdict(told: Row) -> bool:
    if told.get("says") is None:
        return "why" in told
    return "words" in told and _is_number(told.get("score_before")) and _is_number(told.get("moved"))


def _parts(row: Row, match: Row) -> tuple[list[Part], float]:
    evidence = match["evidence"]
    weights, density_share = _weights(row, evidence.keys())
    adds = contributions(weights, {name for name, value in evidence.items() if value is not None})
    parts = [
        Part(name, evidence[name], weight, adds.get(name, 0.0) * (evidence[name] or 0.0), SIGNALS[name].formula)
        for name, weight in weights.items()
    ]
    parts.sort(key=lambda part: (part.weight == 0, -part.contribution))
    density = match["score"] - _moved(match) - sum(part.contribution for part in parts) if density_share else 0.0
    return parts, density


def _moved(match: Row) -> float:
    """Return by how much a verdict has moved a match's score."""
    return float((match.get("verdict") or {}).get("moved") or 0.0)


def _weights(row: Row, signals: AbstractSet[str]) -> tuple[Mapping[str, float], float]:
    """Return the weights that a row's matches were scored with, and the share of density that was taken off."""
    task = "column" if row["query_column"] is not None and row["task"] == "join" else row["task"]
    task = "text" if row["query_table"] is None else task
    shipped = (weights_of(recipe_for(task, layer)) for layer in LAYERS)
    for told in [row["weights"]] if row.get("weights") else shipped:
        weights = {name: weight for name, weight in told.items() if name != DENSITY}
        if weights.keys() == signals <= SIGNALS.keys():
            return weights, told[DENSITY]
    raise UsageError("these results are of another version's recipe; make them anew with gpumatch match")


def _lead(row: Row, match: Row, parts: Sequence[Part], density: float, after: Row) -> list[tuple[str, float]]:
    others, other_density = _parts(row, after)
    other = {part.signal: part.contribution for part in others}
    lead = [(part.signal, part.contribution - other[part.signal]) for part in parts]
    lead += [("density", density - other_density), ("verdict", _moved(match) - _moved(after))]
    return sorted((one for one in lead if abs(one[1]) > _TIE), key=lambda one: -abs(one[1]))
