"""Makes a lake whose joins by value or whose unions are known: tables of another lake, cut into pieces.

    python bench/splits.py LAKE OUT            tables OUT/tables, OUT/queries.csv and OUT/ground_truth.csv
    python bench/splits.py LAKE OUT --unions
    python bench/columns.py --match NAME=join:OUT
    python bench/quality.py NAME=join:OUT:OUT/tables.csv                     the same queries without their columns

As Valentine makes its joinable pairs (Koutras et al., ICDE 2021). A key column is drawn among those of words or codes,
not of numbers, with at least ten distinct values, nearly all different; both halves keep it, and share the other
columns out among them. The query's half keeps 60% of the rows, the other all of them, or 70% where only some values are
shared. In every second pair the key has another name there. Other tables of the lake, left whole, lie among them: many
have the same headers and other values.

For unions a table is cut as the TUS benchmark cuts its tables (Nargesian et al., PVLDB 2018): eight pieces have no row
in common, and half of the columns or more each, in their order. In every second piece the columns are called col_1,
col_2, … One of the pieces is a query, whose answer are the seven others: of every second table a piece with names.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Sequence
from pathlib import Path

from gpumatch.lake import Table, open_lake

_DISTINCT, _UNIQUE = 10, 0.8
_QUERY_ROWS, _SOME_ROWS = 0.6, 0.7
_PIECES, _LEAST_COLUMNS, _LEAST_ROWS, _MOST_ROWS = 8, 4, 60, 100


def main() -> None:
    """Write the lake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unions", action="store_true")
    parser.add_argument("--pairs", type=int, default=150, help="tables that are cut")
    parser.add_argument("--others", type=int, default=900)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    (options.out / "tables").mkdir(parents=True)
    make = write_unions if options.unions else write
    make(options.lake, options.out, options.pairs, options.others, random.Random(options.seed))


def write(lake: Path, out: Path, pairs: int, others: int, chance: random.Random) -> None:
    """Cut so many tables of a lake in two, and copy so many others."""
    tables = list(open_lake(lake).tables())
    chance.shuffle(tables)
    truth: list[tuple[str, str, str, str]] = []
    for table in tables:
        keys = [] if len(truth) == pairs else _keys(table)
        if keys:
            truth.append(_cut(table, chance.choice(keys), len(truth), out / "tables", chance))
        elif others:
            _write(out / "tables" / f"whole_{others}.csv", table.header, _rows(table))
            others -= 1
    _write(out / "queries.csv", ("query_table", "query_column"), [(one[0], one[2]) for one in truth])
    _write(out / "tables.csv", ("query_table",), [one[:1] for one in truth])
    _write(out / "ground_truth.csv", ("query_table", "candidate_table", "query_column", "candidate_column"), truth)


def write_unions(lake: Path, out: Path, lots: int, others: int, chance: random.Random) -> None:
    """Cut so many tables of a lake into pieces, and copy so many others."""
    tables = list(open_lake(lake).tables())
    chance.shuffle(tables)
    queries: list[str] = []
    truth: list[tuple[str, str]] = []
    for table in tables:
        if len(queries) < lots and len(table.header) >= _LEAST_COLUMNS and table.n_rows >= _LEAST_ROWS:
            names = _pieces(table, len(queries), out / "tables", chance)
            query = names.pop(len(queries) % 2)
            truth += [(query, name) for name in names]
            queries.append(query)
        elif others:
            _write(out / "tables" / f"whole_{others}.csv", table.header, _rows(table)[:_MOST_ROWS])
            others -= 1
    _write(out / "queries.csv", ("query_table",), [(query,) for query in queries])
    _write(out / "ground_truth.csv", ("query_table", "candidate_table"), truth)


def _pieces(table: Table, number: int, out: Path, chance: random.Random) -> list[str]:
    """Write the pieces of a table, and return their names."""
    rows = _rows(table)
    chance.shuffle(rows)
    names = [f"piece_{number}_{piece}.csv" for piece in range(_PIECES)]
    for piece, name in enumerate(names):
        width = chance.randint(max(2, len(table.header) // 2), len(table.header))
        columns = sorted(chance.sample(range(len(table.header)), width))
        header = [f"col_{i}" for i in range(1, width + 1)] if piece % 2 else [table.header[i] for i in columns]
        _write(out / name, header, [[row[i] for i in columns] for row in rows[piece::_PIECES][:_MOST_ROWS]])
    return names


def _keys(table: Table) -> list[int]:
    if len(table.header) < 3 or len(set(table.header)) < len(table.header):
        return []
    return [i for i, column in enumerate(table.columns) if _is_key({*column.to_pylist()} - {None, ""}, table.n_rows)]


def _is_key(values: set[str], n_rows: int) -> bool:
    words = sum(any(character.isalpha() for character in value) for value in values)
    return len(values) >= _DISTINCT and len(values) > _UNIQUE * n_rows and words > len(values) / 2


def _rows(table: Table) -> list[tuple[str | None, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _cut(table: Table, key: int, number: int, out: Path, chance: random.Random) -> tuple[str, str, str, str]:
    """Write the two halves, and return their line of the truth."""
    rest = [i for i in range(len(table.header)) if i != key]
    chance.shuffle(rest)
    half, rows = len(rest) // 2, _rows(table)
    names = f"left_{number}.csv", f"right_{number}.csv"
    key_names = table.header[key], table.header[key] if number % 2 else f"ref_{number}"
    kept = _QUERY_ROWS, 1 if number // 2 % 2 else _SOME_ROWS
    for name, key_name, columns, share in zip(names, key_names, (rest[:half], rest[half:]), kept, strict=True):
        some = sorted(chance.sample(range(len(rows)), max(1, int(share * len(rows)))))
        header = [key_name, *(table.header[i] for i in columns)]
        _write(out / name, header, [[rows[r][i] for i in (key, *columns)] for r in some])
    return *names, *key_names


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
