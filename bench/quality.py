"""Accuracy on lakes with a truth, layer by layer, and what the pools hold beside an exact sparse TF-IDF product.

    python bench/quality.py                                   the two lakes that ship with gpumatch
    python bench/quality.py NAME=TASK:LAKE[:QUERIES] …        other lakes; truth and queries lie in the lake's folder

Whole rankings (-k 0), ties averaged. `pool` is the recall of the survivors that search proposes; `sparse` the recall of
as many by the exact product of the same lexical blocks, unhashed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from cases import Case, cases_with_truths  # beside this file: Python puts a script's folder on its path
from jobs import append
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array, diags_array

from gpumatch import pipeline
from gpumatch.config import Settings
from gpumatch.lake import open_lake
from gpumatch.metrics import METRICS, evaluate
from gpumatch.recipes import LAYERS, recipe_for
from gpumatch.run import Run
from gpumatch.terms import Terms, spread
from gpumatch.vocabulary import Bags, Vocabulary

SHOWN = ("Hit@1", "Hit@3", "Hit@5", "R@5", "P@10", "MAP")
FIELDS = ("date", "commit", "lake", "task", "layer", "queries", *METRICS, "MAP from", "MAP to", "pool", "sparse")


def main() -> None:
    """Measure every case, print one table and append it to bench/results/quality.csv."""
    lines = [_measure(case, truth, layer) for case, truth in cases_with_truths(sys.argv[1:]) for layer in LAYERS]
    _report(lines)
    append("quality.csv", FIELDS, lines)


def _measure(case: Case, truth: list[dict[str, Any]], layer: str) -> dict[str, Any]:
    run = Run(Settings(task=case.task, layer=layer, k=0))
    rows = list(pipeline.match(case.lake, run, queries=case.queries))
    found = evaluate(rows, truth)
    proposed = {row["query_table"]: [match["table"] for match in row["matches"]] for row in rows}
    sparse = None if case.queries else _exact_sparse(case, layer, {name: len(pool) for name, pool in proposed.items()})
    return {
        "lake": case.name,
        "task": case.task,
        "layer": layer,
        "queries": found.n_queries,
        "pool": _recall(proposed, truth),
        "sparse": "" if sparse is None else _recall(sparse, truth),
        **found.means,
        **{f"MAP {end}": round(value, 4) for end, value in zip(("from", "to"), found.intervals["MAP"], strict=True)},
    }


def _recall(pools: Mapping[str, Iterable[str]], truth: list[dict[str, Any]]) -> float:
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


def _report(lines: list[dict[str, Any]]) -> None:
    table = Table(title="Whole rankings, ties averaged")
    for heading in ("lake", "task", "layer", "queries", *SHOWN, "pool", "sparse"):
        table.add_column(heading, justify="left" if heading in ("lake", "task", "layer") else "right")
    for line in lines:
        numbers = [f"{line[name]:.3f}" if line[name] != "" else "" for name in (*SHOWN, "pool", "sparse")]
        table.add_row(line["lake"], line["task"], line["layer"], str(line["queries"]), *numbers)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
