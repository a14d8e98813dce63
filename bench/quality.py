"""Accuracy on lakes with a truth, layer by layer: the recipe beside the floor, its signals, and what the pools hold.

    python bench/quality.py                                   the two lakes that ship with gpumatch
    python bench/quality.py NAME=TASK:LAKE[:QUERIES] …        other lakes; truth and queries lie in the lake's folder
    python bench/quality.py --ablate …                        each signal alone, and the recipe without it, too

Whole rankings (-k 0), ties averaged. `pool` is the recall of the survivors that search proposes; `sparse` the recall of
as many by the exact product of the same lexical blocks, unhashed. TF-IDF is the floor: words of headers and values,
sublinear tf, cosine with every table of the lake (`peer_systems.py`).

`difference` is a line's MAP less that of the line that it stands against, at table level, with a paired bootstrap over
the queries: the recipe against the floor, everything else against the recipe. An ablation ranks the recipe's survivors
anew by other weights: `only X` is X and nothing else, `without X` all the rest, less the density that the recipe takes
off, as it was; `without density` takes none off.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from cases import SYNTAX, Case, cases_with_truths, for_rows  # a script finds what lies beside it
from jobs import append, say
from peer_systems import TfIdf, answer
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array, diags_array

from gpumatch import pipeline, rank
from gpumatch.config import Settings
from gpumatch.lake import open_lake
from gpumatch.metrics import METRICS, compare, evaluate
from gpumatch.profile import profile_tables
from gpumatch.recipes import LAYERS, Recipe, recipe_for, weighted
from gpumatch.run import Run
from gpumatch.terms import Terms, spread
from gpumatch.vocabulary import Bags, Vocabulary

SHOWN = ("Hit@1", "Hit@5", "R@5", "P@10", "MAP")
RECIPE, FLOOR = "recipe", "TF-IDF"
FIELDS = (
    "date", "commit", "lake", "task", "layer", "system", "queries", *METRICS, "MAP from", "MAP to", "pool", "sparse",
    "against", "difference", "from", "to",
)  # fmt: skip

Line = dict[str, Any]
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure every case, print one table and append it to bench/results/quality.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar=SYNTAX)
    parser.add_argument("--ablate", action="store_true", help="every signal alone, and the recipe without it")
    options = parser.parse_args()
    lines: list[Line] = []
    for case, truth in cases_with_truths(options.cases):
        floor = _floor(case)
        truth = for_rows(truth, floor)
        lines.append(_line(case, "", FLOOR, floor, truth, level="table"))
        for layer in LAYERS:
            say(f"{case.name}, {layer}")
            rows = _recipe(case, layer)
            measured = _line(case, layer, RECIPE, rows, truth) | _pools(case, layer, rows, truth)
            lines.append(measured | _difference(FLOOR, floor, rows, truth))
            for system, other in ablations(rows, recipe_for(case.task, layer)) if options.ablate else ():
                lines.append(_line(case, layer, system, other, truth) | _difference(RECIPE, rows, other, truth))
    _report(lines)
    append("quality.csv", FIELDS, lines)


def _recipe(case: Case, layer: str) -> Rows:
    run = Run(Settings(task=case.task, layer=layer, k=0))
    with patch.object(rank, "EVIDENCE_DECIMALS", 9):  # to be weighed anew, evidence must not be rounded as for people
        return list(pipeline.match(case.lake, run, queries=case.queries))


def _floor(case: Case) -> Rows:
    lake = open_lake(case.lake)
    profiles = profile_tables(lake.tables())
    return answer(TfIdf(profiles, case.task), lake, profiles, case.task, case.queries and str(case.queries))


def _line(case: Case, layer: str, system: str, rows: Rows, truth: Rows, level: str = "auto") -> Line:
    found = evaluate(rows, truth, level=level)
    interval = zip(("MAP from", "MAP to"), (round(value, 4) for value in found.intervals["MAP"]), strict=True)
    about = {"lake": case.name, "task": case.task, "layer": layer, "system": system, "queries": found.n_queries}
    return about | found.means | dict(interval)


def _difference(against: str, a: Rows, b: Rows, truth: Rows) -> Line:
    found = compare(a, b, truth, level="table").differences["MAP"]
    return {"against": against, "difference": found.difference, "from": found.low, "to": found.high}


# --- signals


def ablations(rows: Rows, recipe: Recipe) -> Iterator[tuple[str, Rows]]:
    """Yield (name, rows) of each signal of a recipe of table pairs alone, and of the recipe without it.

    Args:
        rows: the recipe's result rows, with the evidence of every survivor.
    """
    if any(row["query_column"] is not None for row in rows):
        return  # a table's best column by other weights need not be the one whose evidence there is
    weights = recipe.weights
    for name in weights:
        yield f"only {name}", _weighed(rows, recipe, {name: 1.0}, density=False)
    for name in weights:
        yield f"without {name}", _weighed(rows, recipe, {n: w for n, w in weights.items() if n != name}, density=True)
    if recipe.density:
        yield "without density", _weighed(rows, recipe, weights, density=False)


def _weighed(rows: Rows, recipe: Recipe, weights: dict[str, float], density: bool) -> Rows:
    """Return the rows in the order of other weights, with the density that their scores have lost, or without."""
    names = list(recipe.weights)
    chosen = [names.index(name) for name in weights]
    other = replace(recipe, weights=weights)
    answers = []
    for row in rows:
        matches = row["matches"]
        signals = np.array([[match["evidence"][name] for name in names] for match in matches], np.float64)
        signals = signals.reshape(len(matches), len(names))
        scores = weighted(signals[:, chosen], other).astype(np.float64)
        if density:
            scores += [match["score"] for match in matches] - weighted(signals, recipe).astype(np.float64)
        found = zip(np.round(scores, rank.SCORE_DECIMALS).tolist(), matches, strict=True)
        ordered = sorted(((-score, match["table"]) for score, match in found))
        answers.append(row | {"matches": [{"table": table, "score": -score} for score, table in ordered]})
    return answers


# --- pools


def _pools(case: Case, layer: str, rows: Rows, truth: Rows) -> Line:
    proposed = {row["query_table"]: [match["table"] for match in row["matches"]] for row in rows}
    sparse = None if case.queries else _exact_sparse(case, layer, {name: len(pool) for name, pool in proposed.items()})
    return {"pool": _recall(proposed, truth), "sparse": "" if sparse is None else _recall(sparse, truth)}


def _recall(pools: Mapping[str, Iterable[str]], truth: Rows) -> float:
    """Return the mean share of a query's true candidates that are in its pool."""
    wanted: dict[str, set[str]] = {}
    for row in truth:
        if row["query_table"] in pools and row["candidate_table"] != row["query_table"]:
            wanted.setdefault(row["query_table"], set()).add(row["candidate_table"])
    return float(np.mean([len(true & set(pools[query])) / len(true) for query, true in wanted.items()]))


def _exact_sparse(case: Case, layer: str, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return as many tables a query as search proposed, by the exact product of the unhashed lexical blocks."""
    index = pipeline.open_index(open_lake(case.lake), [], Run(Settings(task=case.task, layer=layer)))
    terms, vocabularies = index.lake.terms, index.vocabularies
    blocks = {
        "header": _tfidf(vocabularies.words, _by_table(spread(terms.name_words, terms.column_name), terms)),
        "position": _tfidf(vocabularies.positions, terms.positions),
        "values": _tfidf(vocabularies.tokens, _by_table(terms.tokens, terms)),
    }
    weights = recipe_for(case.task, layer).blocks
    names = index.lake.profiles.tables
    place = {name: i for i, name in enumerate(names)}
    asked = np.array([place[name] for name in sizes])
    scores = sum(weights.get(name, 0) * (rows[asked] @ rows.T).toarray() for name, rows in blocks.items())
    scores[np.arange(len(asked)), asked] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return {name: [names[i] for i in order[row, : sizes[name]]] for row, name in enumerate(sizes)}


def _by_table(bags: Bags, terms: Terms) -> Bags:
    """Return the sums of the columns' bags, a bag for each table; bags has one bag for each column."""
    n = len(terms.positions)
    owner = terms.column_table[bags.owner]
    distinct, place = np.unique(bags.term, return_inverse=True)
    summed = csr_array((bags.tf, (owner, place)), shape=(n, len(distinct)))
    summed.sum_duplicates()
    return Bags(summed.indptr.astype(np.int64), distinct[summed.indices], summed.data)


def _tfidf(vocabulary: Vocabulary, bags: Bags) -> csr_array:
    weighed = vocabulary.tfidf(bags)
    rows = csr_array((weighed.weight, weighed.token, weighed.start), shape=(len(bags), weighed.width))
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).reshape(-1))
    return csr_array(diags_array(1 / np.maximum(lengths, 1e-12)) @ rows)


def _report(lines: list[Line]) -> None:
    table = Table(title="Whole rankings, ties averaged")
    words = ("lake", "task", "layer", "system", "against")
    for heading in (
        "lake",
        "task",
        "layer",
        "system",
        "queries",
        *SHOWN,
        "pool",
        "sparse",
        "difference",
        "95%",
        "against",
    ):
        table.add_column(heading, justify="left" if heading in words else "right")
    for line in lines:
        numbers = [f"{line[name]:.3f}" if line.get(name, "") != "" else "" for name in (*SHOWN, "pool", "sparse")]
        apart = (
            [f"{line['difference']:+.3f}", f"{line['from']:+.3f} to {line['to']:+.3f}"]
            if "against" in line
            else ["", ""]
        )
        table.add_row(
            line["lake"], line["task"], line["layer"], line["system"], str(line["queries"]), *numbers, *apart,
            line.get("against", ""),
        )  # fmt: skip
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
