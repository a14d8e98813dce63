"""How much accuracy is left where headers say nothing or the same in other words, and where values look otherwise.

    python bench/robust.py                              the two lakes that ship with gpumatch
    python bench/robust.py NAME=TASK:LAKE …             others, whose queries are tables of the lake

Every lake is written anew and matched again; what changes is drawn by the table's name, so a rerun changes the same.

    col_N         a table's columns are called col_1, col_2, …
    half col_N    those of half of the tables are
    synonyms      another word of synonyms.json stands for about half of the words that it has
    translated    half of the tables have the headers' words in French, as far as translations.json has them
    formats       about half of the columns write their values otherwise: case, accents, thousands separators, a last
                  .0, ISO dates as d/m/y, units, numbers as ids with a prefix

Whole rankings (-k 0), ties averaged; the difference in MAP with a paired bootstrap over the queries.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from cases import Case, cases_with_truths  # beside this file: Python puts a script's folder on its path
from jobs import append, say
from rich.console import Console
from rich.table import Table as Printed

from gpumatch import pipeline
from gpumatch.config import Settings
from gpumatch.lake import Table, open_lake
from gpumatch.metrics import compare
from gpumatch.run import Run

FIELDS = ("date", "commit", "lake", "task", "kind", "queries", "MAP", "changed", "share", "from", "to")
# Every other word, table or column: lakes in which some differ are harder, and likelier, than those in which all do.
SHARE = 0.5
# Values are taken for numbers or dates where more than this share of a column's are.
ALIKE = 0.8
_WORD = re.compile(r"[A-Za-z0-9]+%?")


def _words(name: str) -> Any:  # noqa: ANN401
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


SYNONYMS: dict[str, list[str]] = _words("synonyms.json")
TRANSLATIONS: dict[str, str] = _words("translations.json")


# --- other headers


def numbered(table: Table) -> Table:
    """Call columns by their number."""
    return replace(table, header=tuple(f"col_{i}" for i in range(1, len(table.header) + 1)))


def half_numbered(table: Table) -> Table:
    """Call the columns of some tables by their number."""
    return numbered(table) if random.Random(table.name).random() < SHARE else table


def synonymous(table: Table) -> Table:
    """Say some words otherwise; the same for the same table, whatever the others."""
    draw = random.Random(f"{table.name} {table.header}")

    def one(found: re.Match[str]) -> str:
        others = SYNONYMS.get(found[0].lower(), [])
        return draw.choice(others) if others and draw.random() < SHARE else found[0]

    return replace(table, header=tuple(_WORD.sub(one, name) for name in table.header))


def translated(table: Table) -> Table:
    """Say all words of some tables in French."""
    if random.Random(table.name).random() >= SHARE:
        return table
    header = (_WORD.sub(lambda found: TRANSLATIONS.get(found[0].lower(), found[0]), name) for name in table.header)
    return replace(table, header=tuple(header))


# --- other formats

_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_ISO_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_THOUSANDS = re.compile(r"(?<=\d)(?=(?:\d{3})+(?!\d))")


def _grouped(number: str) -> str:
    whole, point, decimals = number.partition(".")
    return _THOUSANDS.sub(",", whole) + point + decimals


def _unaccented(text: str) -> str:
    return "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign)).lower()


# What a value looks like → the other ways to write it. The first that fits most of a column's values is taken.
FORMATS: list[tuple[re.Pattern[str], list[Callable[[str], str]]]] = [
    (_ISO_DATE, [lambda date: _ISO_DATE.sub(r"\3/\2/\1", date), lambda date: _ISO_DATE.sub(r"\3.\2.\1", date)]),
    (_INTEGER, [_grouped, "{}.0".format, "{} kg".format, "{}%".format, "cust_{}".format]),
    (_NUMBER, [_grouped, "{} kg".format, "{}%".format]),
    (re.compile(r".*", re.DOTALL), [str.upper, str.title, _unaccented]),
]


def reformatted(table: Table) -> Table:
    """Write the values of some columns otherwise; values that do not look like the rest of their column stay."""
    draw = random.Random(table.name)
    columns, types = list(table.columns), list(table.types)
    for i, column in enumerate(table.columns):
        cells = column.to_pylist()
        values = [cell for cell in cells if cell]
        if not values or draw.random() >= SHARE:
            continue
        looks, ways = next(
            (looks, ways)
            for looks, ways in FORMATS
            if sum(map(bool, map(looks.fullmatch, values))) > ALIKE * len(values)
        )
        way = draw.choice(ways)
        columns[i] = pa.array([way(cell) if cell and looks.fullmatch(cell) else cell for cell in cells], pa.string())
        types[i] = None  # what was declared of the old values need not be true of the new ones
    return replace(table, columns=tuple(columns), types=tuple(types))


KINDS: dict[str, Callable[[Table], Table]] = {
    "col_N": numbered,
    "half col_N": half_numbered,
    "synonyms": synonymous,
    "translated": translated,
    "formats": reformatted,
}


def main() -> None:
    """Measure every case, print one table and append it to bench/results/robust.csv."""
    lines = []
    for case, truth in cases_with_truths(sys.argv[1:]):
        if case.queries:
            sys.exit(f"{case.name}: the queries have to be tables of the lake, so that all tables change alike")
        before = _answers(case.lake, case)
        for kind, changed in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                _write(case, changed, Path(folder))
                lines.append(_line(case, kind, compare(before, _answers(Path(folder), case), truth)))
            say(f"{case.name}, {kind}")
    _report(lines)
    append("robust.csv", FIELDS, lines)


def _answers(lake: Path, case: Case) -> list[dict[str, Any]]:
    return list(pipeline.match(lake, Run(Settings(task=case.task, k=0))))


def _write(case: Case, changed: Callable[[Table], Table], folder: Path) -> None:
    """Write the lake as a tables.json of changed tables, its queries beside it."""
    tables = [
        {
            "table_name": table.name,
            "columns": [
                {"name": name, "type": kind, "sample_values": [cell or "" for cell in column.to_pylist()]}
                for name, kind, column in zip(table.header, table.types, table.columns, strict=True)
            ],
        }
        for table in map(changed, open_lake(case.lake).tables())
    ]
    (folder / "tables.json").write_text(json.dumps(tables), encoding="utf-8")
    if case.query_path is not None:
        shutil.copy(case.query_path, folder)


def _line(case: Case, kind: str, found: Any) -> dict[str, Any]:  # noqa: ANN401 - gpumatch.metrics.Comparison
    change = found.differences["MAP"]
    return {
        "lake": case.name, "task": case.task, "kind": kind, "queries": found.n_queries, "MAP": change.a,
        "changed": change.b, "share": change.difference / change.a, "from": change.low / change.a,
        "to": change.high / change.a,
    }  # fmt: skip


def _report(lines: list[dict[str, Any]]) -> None:
    table = Printed(title="MAP with other headers or formats")
    for heading in ("lake", "task", "kind", "queries", "MAP", "changed", "change", "95%"):
        table.add_column(heading, justify="left" if heading in ("lake", "task", "kind") else "right")
    for line in lines:
        table.add_row(
            line["lake"], line["task"], line["kind"], str(line["queries"]), f"{line['MAP']:.3f}",
            f"{line['changed']:.3f}", f"{line['share']:+.1%}", f"{line['from']:+.1%} to {line['to']:+.1%}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
