"""How well columns find their partners: among all columns of a lake, or of one other table.

    python bench/columns.py --match NAME=join:LAKE … --align NAME=join:LAKE …

The truth has columns. `match` ranks, for every query column, the tables of the lake by
their best column (`gpumatch match --task join -k 0`). `align` ranks, for every column of a query table, the columns of
the table that the truth names (`gpumatch align --top 0`), and tells which true pairs its one-to-one alignment has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cases import SYNTAX, cases_with_truths  # beside this file: Python puts a script's folder on its path
from jobs import append
from rich.console import Console
from rich.table import Table

from gpumatch import pipeline
from gpumatch.config import Settings
from gpumatch.lake import open_lake
from gpumatch.metrics import evaluate
from gpumatch.recipes import LAYERS
from gpumatch.run import Run

FIELDS = ("date", "commit", "lake", "by", "layer", "queries", "MRR", "MRR from", "MRR to", "Hit@1", "aligned")

Row = dict[str, Any]


def main() -> None:
    """Measure every case, print one table and append it to bench/results/columns.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for by in ("match", "align"):
        parser.add_argument(f"--{by}", nargs="+", default=[], metavar=SYNTAX)
    options = vars(parser.parse_args())
    if not any(options.values()):
        parser.error("give --match or --align a lake whose truth has columns")
    lines = [
        {"lake": case.name, "by": by, "layer": layer} | _measure(case.lake, by, layer, truth)
        for by, texts in options.items()
        if texts
        for case, truth in cases_with_truths(texts)
        for layer in LAYERS
    ]
    _report(lines)
    append("columns.csv", FIELDS, lines)


def _measure(lake: Path, by: str, layer: str, truth: list[Row]) -> Row:
    run = Run(Settings(task="join", layer=layer, k=0))
    if by == "match":
        rows, aligned = list(pipeline.match(lake, run)), ""
    else:
        rows, aligned = _aligned(lake, run, truth)
    found = evaluate(rows, truth, level="column")
    low, high = found.intervals["MRR"]
    return {
        "queries": found.n_queries, "MRR": found.means["MRR"], "MRR from": low, "MRR to": high,
        "Hit@1": found.means["Hit@1"], "aligned": aligned,
    }  # fmt: skip


def _aligned(lake: Path, run: Run, truth: list[Row]) -> tuple[list[Row], float]:
    """Return a result row for every query column, as match writes them, and the share of true pairs aligned."""
    tables = open_lake(lake)
    wanted = {(row["query_table"], row["query_column"], row["candidate_column"]) for row in truth}
    rows, kept = [], set()
    for query, candidate in sorted({(row["query_table"], row["candidate_table"]) for row in truth}):
        found = pipeline.align(tables.table(query), tables.table(candidate), run)
        kept |= {(query, found.query[i], found.candidate[j]) for i, j in found.pairs}
        for line in found.rows(0):
            matches = [
                {"table": candidate, "score": one["score"], "columns": [one | {"query": line["query_column"]}]}
                for one in line["columns"]
            ]
            asked = {"query_table": query, "query_column": line["query_column"]["name"], "task": "join"}
            rows.append(asked | {"matches": matches})
    return rows, len(wanted & kept) / len(wanted)


def _report(lines: list[Row]) -> None:
    table = Table(title="Columns, ties averaged")
    for heading in ("lake", "by", "layer", "queries", "MRR", "95%", "Hit@1", "true pairs aligned"):
        table.add_column(heading, justify="left" if heading in ("lake", "by", "layer") else "right")
    for line in lines:
        table.add_row(
            line["lake"], line["by"], line["layer"], str(line["queries"]), f"{line['MRR']:.3f}",
            f"{line['MRR from']:.3f} to {line['MRR to']:.3f}", f"{line['Hit@1']:.3f}",
            f"{line['aligned']:.3f}" if line["aligned"] != "" else "",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
