"""How far a confidence can be believed on lakes that it was not fitted on, and the parameters that gpumatch ships.

    python bench/calibration.py NAME=TASK:LAKE[:QUERIES] …      truth and queries lie in the lake's folder

Lakes whose names begin with the same word are of one source. A lake is asked its own queries, and those of every other
source, which fit nothing there and weigh as much together. Every query row weighs the same, with its first 20 matches.
A join query that names its column is answered, fitted and measured as "column": table and column have to be listed, and
only tables that the truth lists for some query are judged, since it says nothing of the columns of the others.

For every lake the parameters are fitted without anything of its source, and what they say is held against its truth:
Brier score and log loss, beside those of the share of its matches that is true (which nobody knows beforehand) and of
that share on the other lakes, and the calibration error over ten bins. *Mixed* adds the queries that fit nothing; what
is said of the best match of each of these is `nothing fits`: the mean, and what 99 of 100 stay below.

Shipped: OpenData and WebTable joins and unions (LakeBench's subsets), UGEN-V1 unions, AutoFJ and GDC by column, the
WebTable union lake and UGEN-V1 cut by `splits.py`, and AutoFJ joins once more by table, its queries without columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, cases_with_truths  # beside this file: Python puts a script's folder on its path
from jobs import RESULTS, append, say
from reliability import Curve, drawn
from rich.console import Console
from rich.table import Table

from gpumatch.confidence import DECIMALS, Calibration, logistic, margin, strength
from gpumatch.config import Settings
from gpumatch.index import Index
from gpumatch.lake import Query, find_queries, open_lake
from gpumatch.pipeline import column_of, open_index
from gpumatch.profile import Profiles
from gpumatch.rank import Asked, answer, densities
from gpumatch.recipes import LAYERS, Recipe, recipe_for
from gpumatch.run import Run

TASKS = ("join", "union", "column")
MATCHES, BINS = 20, 10
# How many of the queries that fit nothing have their best strength below the floor.
FLOOR_QUANTILE = 0.95
MEASURES = (
    "Brier", "Brier, its rate", "Brier, others' rate", "log loss", "log loss, its rate", "calibration error",
    "mixed Brier", "mixed Brier, its rate", "mixed calibration error", "nothing fits", "nothing fits, 99%",
)  # fmt: skip
FIELDS = ("date", "commit", "task", "layer", "lake", "queries", "matches", *MEASURES, "floor", "intercept", "slope")


@dataclass(frozen=True)
class Lake:
    """A case as one task: its query rows, and where their tables are."""

    case: Case
    task: str
    rows: list[Query]
    tables: Path
    truth: frozenset[tuple[str | None, ...]]

    @property
    def source(self) -> str:
        """What its name begins with."""
        return self.case.name.split()[0]


@dataclass(frozen=True)
class Answers:
    """The matches of some query rows in a lake.

    source: of the queries; own: whether they are the lake's; query: int64 [P], which row; evidence: float64 [P, S];
    density: float32 [P]; true: bool [P].
    """

    source: str
    own: bool
    query: np.ndarray
    evidence: np.ndarray
    density: np.ndarray
    true: np.ndarray

    def best(self, values: np.ndarray) -> np.ndarray:
        """Return the largest value of each query row."""
        largest = np.full(int(self.query.max(initial=-1)) + 1, -np.inf)
        np.maximum.at(largest, self.query, values)
        return largest[np.isfinite(largest)]


def main() -> None:
    """Measure every lake left out, print, draw and append what was found, and print the parameters of all lakes."""
    lakes = [_lake(case, truth) for case, truth in cases_with_truths(sys.argv[1:])]
    lines, curves, shipped = [], [], []
    for task, layer in product(TASKS, LAYERS):
        recipe = recipe_for(task, layer)
        asked = [(lake, list(_asked(lake, lakes, layer))) for lake in lakes if lake.task == task]
        if len({lake.source for lake, _ in asked}) < 2 or len({lake.source for lake in lakes}) < 3:
            say(f"{task}: left out, as it takes lakes of two sources, and a third whose queries fit nothing in either")
            continue
        for lake, answers in asked:
            others = [_without(parts, lake.source) for other, parts in asked if other.source != lake.source]
            fitted = fit(others, recipe)
            said = [_confidence(part, recipe, fitted) for part in answers]
            about = {"task": task, "layer": layer, "lake": lake.case.name}
            lines.append(about | vars(fitted) | _measured(answers, said, _rate(others)))
            curves.append(_curve(f"{task}, {layer}", lake.case.name, answers, said))
            say(f"{task}, {layer}: {lake.case.name} left out")
        shipped.append((task, layer, fit([parts for _, parts in asked], recipe)))
    _report(lines, curves)
    append("calibration.csv", FIELDS, lines)
    (RESULTS / "reliability.svg").write_text(drawn(curves), encoding="utf-8")
    for task, layer, fitted in shipped:
        parameters = f"{fitted.floor}, {fitted.intercept}, {fitted.slope}"
        print(f'    ("{task}", "{layer}"): Calibration("{fitted.recipe}", {parameters}),')


# --- what lakes answer


def _lake(case: Case, truth: list[dict[str, Any]]) -> Lake:
    found = find_queries(open_lake(case.lake), case.queries, case.task)
    by_column = case.task == "join" and any(row.column for row in found.rows)
    keys = ("query_table", "query_column", "candidate_table", "candidate_column")
    listed = frozenset(tuple(row.get(key) for key in (keys if by_column else keys[::2])) for row in truth)
    rows = [row for row in found.rows if row.column or not by_column]
    tables = case.lake if found.outside is None else case.queries or case.lake
    return Lake(case, "column" if by_column else case.task, list(dict.fromkeys(rows)), tables, listed)


def _asked(lake: Lake, lakes: Sequence[Lake], layer: str) -> Iterator[Answers]:
    """Yield what a lake answers to its own queries, and then to those of each lake of another source."""
    yield _answers(lake, lake, layer)
    for other in lakes:
        if other.source != lake.source:
            yield _answers(lake, other, layer)


def _answers(lake: Lake, asker: Lake, layer: str) -> Answers:
    index, tables = _index(lake.case.lake, layer), _index(asker.tables, layer).lake
    rows = _rows(lake, asker, tables.profiles)
    place = {name: i for i, name in enumerate(tables.profiles.tables)}
    table = np.array([place[row.table] for row in rows], np.int64)
    columns = [-1 if row.column is None else column_of(tables.profiles, place[row.table], row.column) for row in rows]
    itself = table if tables is index.lake else np.full(len(rows), -1)
    asked = Asked(rows, tables, table, np.array(columns, np.int64), itself)
    lake_place = {name: i for i, name in enumerate(index.lake.profiles.tables)}
    run = Run(Settings(layer=layer, k=MATCHES))
    found = list(answer(index, asked, run, 0, len(rows)))
    judged = {listed[2] for listed in lake.truth} if asker is lake and lake.task == "column" else lake_place
    matches = [(i, row, match) for i, row in enumerate(found) for match in row["matches"] if match["table"] in judged]
    recipe = recipe_for(lake.task, layer)
    evidence = [[match["evidence"][name] for name in recipe.weights] for _, _, match in matches]
    candidate = np.array([lake_place[match["table"]] for _, _, match in matches], np.int64)
    return Answers(
        asker.source,
        asker is lake,
        np.array([i for i, _, _ in matches], np.int64),
        np.array(evidence, np.float64).reshape(len(matches), len(recipe.weights)),
        densities(index, recipe)[candidate],
        np.array([asker is lake and _named(row, match, lake.task) in lake.truth for _, row, match in matches], bool),
    )


def _rows(lake: Lake, asker: Lake, profiles: Profiles) -> list[Query]:
    """Return the asker's query rows as this lake's task takes them; without a column, its table's first one."""
    first = {name: profiles.headers[profiles.table_cols[i]] for i, name in enumerate(profiles.tables)}
    by_column = lake.task == "column"
    there = [row for row in asker.rows if row.table in first]
    columns = [(row.column or first[row.table]) if by_column else None for row in there]
    task = "join" if by_column else lake.task
    return list(dict.fromkeys(Query(row.table, column, task) for row, column in zip(there, columns, strict=True)))


def _named(row: dict[str, Any], match: dict[str, Any], task: str) -> tuple[str | None, ...]:
    if task != "column":
        return row["query_table"], match["table"]
    return row["query_table"], row["query_column"], match["table"], match["columns"][0]["candidate"]["name"]


@cache
def _index(path: Path, layer: str) -> Index:
    return open_index(open_lake(path), [recipe_for("union", layer)], Run(Settings(layer=layer)))


# --- fitting and measuring


def fit(lakes: Sequence[Sequence[Answers]], recipe: Recipe) -> Calibration:
    """Return the parameters of the greatest likelihood, by Newton's method, targets smoothed as Platt does."""
    parts = [part for lake in lakes for part in lake]
    strange = np.concatenate([part.best(strength(part.evidence, recipe)) for part in parts if not part.own])
    floor = round(float(np.quantile(strange, FLOOR_QUANTILE)), 3) if recipe.density else 0.0
    margins = np.concatenate([_margin(part, recipe, floor) for part in parts])
    true = np.concatenate([part.true for part in parts])
    weight = np.concatenate([_weights(lake) for lake in lakes])
    target = np.where(true, (true.sum() + 1) / (true.sum() + 2), 1 / ((~true).sum() + 2))
    design = np.stack([np.ones_like(margins), margins], axis=1)
    found = np.zeros(2)
    for _ in range(100):
        p = logistic(design @ found)
        step = np.linalg.solve((design.T * (weight * p * (1 - p))) @ design, design.T @ (weight * (target - p)))
        found += step
        if np.abs(step).max() < 1e-9:
            break
    else:
        sys.exit(f"{recipe.task}: the parameters do not converge; give lakes with more queries")
    return Calibration(recipe.key(), floor, *(round(float(one), 3) for one in found))


def _weights(lake: Sequence[Answers]) -> np.ndarray:
    """Return the weight of every match: 1 a query row, and as much for all that fit nothing as for the lake's own."""
    rows = {own: sum(len(np.unique(part.query)) for part in lake if part.own == own) for own in (True, False)}
    return np.concatenate([
        (1 if part.own else rows[True] / rows[False]) / np.bincount(part.query)[part.query] for part in lake
    ])  # fmt: skip


def _without(lake: Sequence[Answers], source: str) -> list[Answers]:
    return [part for part in lake if part.source != source]


def _margin(part: Answers, recipe: Recipe, floor: float) -> np.ndarray:
    return margin(strength(part.evidence, recipe), recipe, part.density, floor).astype(np.float64)


def _confidence(part: Answers, recipe: Recipe, fitted: Calibration) -> np.ndarray:
    """Return what `gpumatch.confidence.confidence` would say with these parameters."""
    return np.round(logistic(fitted.intercept + fitted.slope * _margin(part, recipe, fitted.floor)), DECIMALS)


def _rate(lakes: Sequence[Sequence[Answers]]) -> float:
    """Return the share of the matches of these lakes' own queries that is true."""
    own = [(part.true, _weights([part])) for lake in lakes for part in lake if part.own]
    return float(sum(true @ weight for true, weight in own) / sum(weight.sum() for _, weight in own))


def _measured(answers: Sequence[Answers], said: Sequence[np.ndarray], rate: float) -> dict[str, Any]:
    """Return MEASURES, first of the lake's own queries, then of these and as many that fit nothing."""
    own, p, weight = answers[0], said[0], _weights(answers[:1])
    all_p, all_true, all_weight = np.concatenate(said), np.concatenate([one.true for one in answers]), _weights(answers)
    strange = np.concatenate([part.best(one) for part, one in zip(answers[1:], said[1:], strict=True)])
    its, mixed = np.average(own.true, weights=weight), np.average(all_true, weights=all_weight)
    values = (
        brier(p, own.true, weight), its * (1 - its), brier(rate, own.true, weight), log_loss(p, own.true, weight),
        log_loss(its, own.true, weight), calibration_error(p, own.true, weight), brier(all_p, all_true, all_weight),
        mixed * (1 - mixed), calibration_error(all_p, all_true, all_weight), strange.mean(), np.quantile(strange, 0.99),
    )  # fmt: skip
    counts = {"queries": len(np.unique(own.query)), "matches": len(p)}
    return counts | {name: float(value) for name, value in zip(MEASURES, values, strict=True)}


def brier(p: np.ndarray | float, true: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted mean of (p - true)² (Brier, Monthly Weather Review, 1950)."""
    return float(np.average((p - true) ** 2, weights=weight))


def log_loss(p: np.ndarray | float, true: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted mean of -ln of the probability given to what is; 0 is taken for what rounds to it."""
    least = 0.5 * 10**-DECIMALS
    given = np.where(true, p, 1 - np.asarray(p))
    return float(np.average(-np.log(np.maximum(given, least)), weights=weight))


def calibration_error(p: np.ndarray, true: np.ndarray, weight: np.ndarray) -> float:
    """Return Σ over bins of weight·|mean p - share true| (Naeini et al., AAAI 2015)."""
    gaps = np.bincount(_bins(p), weight * (p - true), minlength=BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def _bins(p: np.ndarray) -> np.ndarray:
    return np.minimum((p * BINS).astype(np.int64), BINS - 1)


def _curve(panel: str, lake: str, answers: Sequence[Answers], said: Sequence[np.ndarray]) -> Curve:
    """Return, bin by bin, what is said of the matches of the lake's own queries and what is true."""
    own, p = answers[0], said[0]
    number, p_sum, true_sum = (np.bincount(_bins(p), one, minlength=BINS) for one in (None, p, own.true))
    points = [(p_sum[i] / n, true_sum[i] / n, int(n)) if n else None for i, n in enumerate(number)]
    return Curve(panel, lake, points)


# --- telling it


def _report(lines: Sequence[dict[str, Any]], curves: Sequence[Curve]) -> None:
    table = Table(title="Each lake left out; mixed: with as many queries that fit nothing")
    for heading in ("task", "layer", "lake", "queries", *MEASURES):
        table.add_column(heading, justify="left" if heading in ("task", "layer", "lake") else "right")
    for line in lines:
        numbers = [f"{line[name]:.3f}" for name in MEASURES]
        table.add_row(line["task"], line["layer"], line["lake"], str(line["queries"]), *numbers)
    console = Console(width=200)
    console.print(table)
    table = Table(title="Share that is true of the matches said to be so probable, and their number")
    for heading in ("", "lake", *(f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}" for i in range(BINS))):
        table.add_column(heading, justify="right" if "to" in heading else "left")
    for curve in curves:
        cells = ["" if point is None else f"{point[1]:.2f} ({point[2]})" for point in curve.points]
        table.add_row(curve.panel, curve.name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
