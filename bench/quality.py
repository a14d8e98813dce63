"""Accuracy on lakes with a truth, layer by layer, and what the pools hold beside an exact sparse TF-IDF product.

    python bench/quality.py                                   the two lakes that ship with gpumatch
    python bench/quality.py NAME=TASK:LAKE[:QUERIES] …        other lakes; truth and queries lie in the lake's folder

Whole rankings (-k 0), ties averaged. `pool` is the recall of the survivors that search proposes; `sparse` the recall of
as many by the exact product of the same lexical blocks, unhashed.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array, diags_array

from gpumatch import pipeline
from gpumatch.config import Settings
from gpumatch.demo import lake_path
from gpumatch.lake import open_lake
from gpumatch.metrics import METRICS, evaluate, load_truth
from gpumatch.recipes import LAYERS, recipe_for
from gpumatch.run import Run
from gpumatch.terms import Terms, spread
from gpumatch.vocabulary import Bags, Vocabulary

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("Hit@1", "Hit@3", "Hit@5", "R@5", "P@10", "MAP")


@dataclass(frozen=True)
class Case:
    """A lake, the task to run on it, and its query tables where they lie outside."""

    name: str
    task: str
    lake: Path
    queries: Path | None


def main() -> None:
    """Measure every case, print one table and append it to bench/results/quality.csv."""
    cases = [_case(text) for text in sys.argv[1:]] or [
        Case(f"OpenData {task} subset", task, lake_path(task), None) for task in ("join", "union")
    ]
    lines = [_measure(case, layer) for case in cases for layer in LAYERS]
    _report(lines)
    _append(lines)


def _case(text: str) -> Case:
    name, _, rest = text.partition("=")
    task, lake, *queries = rest.split(":")
    return Case(name, task, Path(lake), Path(queries[0]) if queries else None)


def _measure(case: Case, layer: str) -> dict[str, Any]:
    run = Run(Settings(task=case.task, layer=layer, k=0))
    rows = list(pipeline.match(case.lake, run, queries=case.queries))
    truth = load_truth(
        next(
            case.lake / f"ground_truth.{ext}"
            for ext in ("json", "csv")
            if (case.lake / f"ground_truth.{ext}").is_file()
        )
    )
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
        "intervals": found.intervals,
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
    rows = vocabulary.tfidf(bags)
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


def _append(lines: list[dict[str, Any]]) -> None:
    path = ROOT / "bench" / "results" / "quality.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = ["date", "commit", "lake", "task", "layer", "queries", *METRICS, "MAP from", "MAP to", "pool", "sparse"]
    fresh = not path.exists()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        if fresh:
            writer.writeheader()
        for line in lines:
            low, high = line["intervals"]["MAP"]
            rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()}
            today = datetime.date.today().isoformat()
            writer.writerow(
                rounded
                | {"date": today, "commit": commit.stdout.strip(), "MAP from": round(low, 4), "MAP to": round(high, 4)}
            )


if __name__ == "__main__":
    main()
