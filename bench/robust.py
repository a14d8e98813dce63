"""How much accuracy is left where headers say nothing, or say the same in other words.

    python bench/robust.py                              the two lakes that ship with gpumatch
    python bench/robust.py NAME=TASK:LAKE …             others, whose queries are tables of the lake

Every lake is written anew with other headers and matched again: `col_N` calls a table's columns col_1, col_2, …;
`synonyms` puts another word of synonyms.json for about half of the words that it has, drawn by the table's name. Whole
rankings (-k 0), ties averaged; the difference in MAP with a paired bootstrap over the queries.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import Case, cases_with_truths  # beside this file: Python puts a script's folder on its path
from jobs import append, say
from rich.console import Console
from rich.table import Table as Printed

from gpumatch import pipeline
from gpumatch.config import Settings
from gpumatch.lake import Table, open_lake
from gpumatch.metrics import compare
from gpumatch.run import Run

FIELDS = ("date", "commit", "lake", "task", "headers", "queries", "MAP", "changed", "share", "from", "to")
SYNONYMS: dict[str, list[str]] = json.loads(Path(__file__).with_name("synonyms.json").read_text(encoding="utf-8"))
# Every other word: texts in which all are replaced are rarer than texts in which some are.
SHARE = 0.5


def numbered(table: Table) -> list[str]:
    """Call columns by their number."""
    return [f"col_{i}" for i in range(1, len(table.header) + 1)]


def synonymous(table: Table) -> list[str]:
    """Say some words otherwise; the same for the same table, whatever the others."""
    draw = random.Random(f"{table.name} {table.header}")

    def one(found: re.Match[str]) -> str:
        others = SYNONYMS.get(found[0].lower(), [])
        return draw.choice(others) if others and draw.random() < SHARE else found[0]

    return [re.sub(r"[A-Za-z0-9]+%?", one, name) for name in table.header]


HEADERS: dict[str, Callable[[Table], list[str]]] = {"col_N": numbered, "synonyms": synonymous}


def main() -> None:
    """Measure every case, print one table and append it to bench/results/robust.csv."""
    lines = []
    for case, truth in cases_with_truths(sys.argv[1:]):
        if case.queries:
            sys.exit(f"{case.name}: the queries have to be tables of the lake, so that all headers change alike")
        before = _answers(case.lake, case)
        for kind, renamed in HEADERS.items():
            with tempfile.TemporaryDirectory() as folder:
                _write(case, renamed, Path(folder))
                lines.append(_line(case, kind, compare(before, _answers(Path(folder), case), truth)))
            say(f"{case.name}, {kind}")
    _report(lines)
    append("robust.csv", FIELDS, lines)


def _answers(lake: Path, case: Case) -> list[dict[str, Any]]:
    return list(pipeline.match(lake, Run(Settings(task=case.task, k=0))))


def _write(case: Case, renamed: Callable[[Table], list[str]], folder: Path) -> None:
    """Write the lake as a tables.json with other headers, its queries beside it."""
    tables = [
        {
            "table_name": table.name,
            "columns": [
                {"name": name, "type": kind or "string", "sample_values": [cell or "" for cell in column.to_pylist()]}
                for name, kind, column in zip(renamed(table), table.types, table.columns, strict=True)
            ],
        }
        for table in open_lake(case.lake).tables()
    ]
    (folder / "tables.json").write_text(json.dumps(tables), encoding="utf-8")
    if case.query_path is not None:
        shutil.copy(case.query_path, folder)


def _line(case: Case, kind: str, found: Any) -> dict[str, Any]:  # noqa: ANN401 - gpumatch.metrics.Comparison
    change = found.differences["MAP"]
    return {
        "lake": case.name, "task": case.task, "headers": kind, "queries": found.n_queries, "MAP": change.a,
        "changed": change.b, "share": change.difference / change.a, "from": change.low / change.a,
        "to": change.high / change.a,
    }  # fmt: skip


def _report(lines: list[dict[str, Any]]) -> None:
    table = Printed(title="MAP with other headers")
    for heading in ("lake", "task", "headers", "queries", "MAP", "changed", "change", "95%"):
        table.add_column(heading, justify="left" if heading in ("lake", "task", "headers") else "right")
    for line in lines:
        table.add_row(
            line["lake"], line["task"], line["headers"], str(line["queries"]), f"{line['MAP']:.3f}",
            f"{line['changed']:.3f}", f"{line['share']:+.1%}", f"{line['from']:+.1%} to {line['to']:+.1%}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
