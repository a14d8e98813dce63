"""Folders of CSV files in a known dialect: how many of them gpumatch reads as the csv module does with that dialect.

    python bench/reading.py FORM:FOLDER …

FORM is `plain` (comma, doubled quotes), `backslash` (quotes and backslashes escaped by a backslash), or `ragged`
(plain, and a row of dashes below the header is no row, as in Markdown). What is expected is what the csv module gives:
short rows filled, cells beyond the header dropped, blank lines left out. gpumatch is told nothing.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gpumatch.lake import Table, open_lake

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "backslash": {"escapechar": "\\", "doublequote": False},
    "ragged": {},
}


def main() -> None:
    """Print a line for each folder; end with 1 where a table was read otherwise."""
    failed = False
    for spec in sys.argv[1:]:
        form, _, folder = spec.partition(":")
        if form not in FORMS or not Path(folder).is_dir():
            sys.exit(f"{spec!r}: expected FORM:FOLDER, FORM one of {', '.join(FORMS)}")
        failed |= check(form, Path(folder))
    sys.exit(failed)


def check(form: str, folder: Path) -> bool:
    """Compare all tables of a folder; tell whether any differs."""
    lake = open_lake(folder)
    files = lake.identities()
    begun = time.perf_counter()
    tables = list(lake.tables())
    seconds = time.perf_counter() - begun
    other = [table.name for table in tables if not is_same(table, expected(files[table.name][0], form))]
    rows, columns = sum(table.n_rows for table in tables), sum(len(table.columns) for table in tables)
    print(
        f"{form}: {len(tables)} tables, {rows} rows, {columns} columns in {seconds:.1f} s; "
        f"{len(other)} read otherwise, {len(lake.skipped)} skipped, {len(lake.notes)} in part"
    )
    for name in [*other[:5], *(f"{one.name}: {one.rule}: {one.found}" for one in lake.skipped[:5])]:
        print(f"  {name}")
    return bool(other or lake.skipped)


def expected(path: Path, form: str) -> list[list[str]]:
    """Return a file's rows by the csv module."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file, **FORMS[form]) if row and (len(row) > 1 or row[0].strip())]
    if form == "ragged" and rows and all(re.fullmatch(r"\s*:?-{2,}:?\s*|\s*", cell) for cell in rows[0]):
        rows = rows[1:]
    return [header, *([*row[: len(header)], *[""] * (len(header) - len(row))] for row in rows)]


def is_same(table: Table, rows: list[list[str]]) -> bool:
    """Tell whether header and cells are equal; a missing cell is as good as an empty one."""
    columns = [[cell or "" for cell in column.to_pylist()] for column in table.columns]
    return [list(table.header), *map(list, zip_longest(*columns))] == rows


if __name__ == "__main__":
    main()
