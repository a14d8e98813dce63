"""A lake, an optional --queries argument and a task in, a `QuerySet` out: every query row, resolved or with its reason.

Keeps the order of the rows: line i of the results is row i, even if its table cannot be found.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpumatch.errors import LakeError, UsageError
from gpumatch.lake.database import is_database_file
from gpumatch.lake.decoding import decode
from gpumatch.lake.dialect import text_lines
from gpumatch.lake.files import first_line
from gpumatch.lake.list_of_queries import lists_queries, own_delimiter, query_list
from gpumatch.lake.listing import read_json, read_whole
from gpumatch.lake.rules import Unreadable
from gpumatch.lake.source import Lake, is_flat, open_lake
from gpumatch.lake.tables import READERS, extension_of

TASKS = ("join", "union")


@dataclass(frozen=True)
class Query:
    """One query row: a table, optionally one of its columns, the task to run, and optionally what is sought, in words.

    table: None if there are only words.
    """

    table: str | None
    column: str | None
    task: str
    text: str | None = None


@dataclass
class QuerySet:
    """The query rows, and the lake of their tables if these are outside the searched lake.

    rows: in the order of the queries file.
    outside: the query tables as a lake of their own, or None when they are tables of the searched lake.
    twins: name of an outside table → name of the lake table that is the same file, which its answers leave out.
    listed: the file that lists the rows, or None.
    """

    rows: list[Query]
    outside: Lake | None = None
    twins: dict[str, str] = field(default_factory=dict)
    listed: Path | None = None


def find_queries(lake: Lake, queries: str | Path | None, task: str, columns: Sequence[str] = ()) -> QuerySet:
    """Return the query rows: of the `queries` file, of the tables it names, or of the lake itself.

    Args:
        lake: the searched lake.
        queries: a JSON or CSV list of query rows; or a folder, glob or table file whose tables are queries from
            outside the lake; or None for the queries file in the lake folder, and without one every table. Among tables
            a queries.csv that has neither query_table nor query_text is a table.
        task: "join", "union", or "auto" to use each row's task_type.
        columns: names of columns to join each query table from outside the lake on; none for tables as wholes.

    Raises:
        LakeError: the file cannot be read as query rows.
        UsageError: task "auto" and a row without a task_type; or columns without tables from outside or without "join".
    """
    if queries == "":
        raise LakeError("the path of the queries (--queries, queries=) is empty; give . for the current folder")
    listed = _list_of(lake, queries)
    if columns and (listed is not None or queries is None):
        raise UsageError(
            "columns to join on (--column, column=) go with tables from outside the lake (--queries, queries=), and "
            "there are none; give them, or name the columns as query_column in a list of queries"
        )
    if listed is not None:
        try:
            return QuerySet(read_query_rows(listed, task), listed=listed)
        except LakeError as error:
            if queries is not None:
                raise
            raise LakeError(
                f"{error}; a {listed.name} beside tables lists the queries: mend it, rename it, or give --queries"
            ) from error
    if queries is None:
        return QuerySet(table_queries(lake.names, (), task, "the lake"))
    path = Path(queries)
    if not path.exists() and not glob.has_magic(str(queries)):
        raise LakeError(f"no queries at {path}: give a queries.json or .csv, or a folder, file or glob of tables")
    outside = open_lake(path, sample_rows=lake.sample_rows, follow_links=lake.follow_links)
    rows = table_queries(outside.names, columns, task, str(path))
    lake_names = {identity: name for name, identity in reversed(lake.identities().items())}
    twins = {name: lake_names[identity] for name, identity in outside.identities().items() if identity in lake_names}
    return QuerySet(rows, outside, twins)


def _list_of(lake: Lake, queries: str | Path | None) -> Path | None:
    """Return the file that lists query rows: the one that is given, or the one in the lake folder; or None."""
    if queries is None:
        as_json, as_csv = (lake.root / f"queries.{extension}" for extension in ("json", "csv"))
        if as_json.is_file():
            return as_json
        # beside the tables it may be a table itself
        return as_csv if as_csv.is_file() and (not is_flat(lake.root) or lists_queries(as_csv)) else None
    path = Path(queries)
    if not path.is_file() or is_database_file(path):
        return None
    if path.suffix.lower() == ".json":
        return path
    if extension_of(path.name) is None:
        raise LakeError(f"{path} is neither a queries file (.json, .csv) nor a table ({', '.join(READERS)})")
    return path if lists_queries(path) else None


def table_queries(names: Iterable[str], columns: Sequence[str], task: str, where: str) -> list[Query]:
    """Return a query row for each table, or for each of the given columns of each table.

    Raises:
        UsageError: task "auto", which needs a list of queries; or columns with a task other than "join".
    """
    if columns and task != "join":
        raise UsageError(f"a column is what to join on, and the task is {task}: give --task join, or no column")
    return [Query(name, column, _task_of({}, task, where)) for name in names for column in columns or (None,)]


def read_query_rows(path: Path, task: str) -> list[Query]:
    """Read a queries file: rows with query_table, query_text or both, optional query_column, optional task_type.

    Raises:
        LakeError: not JSON or CSV rows, or a row without query_table and query_text.
        UsageError: as in `find_queries`.
    """
    rows = query_rows(_records(path), task, str(path))
    if not rows:
        raise LakeError(f"{path} holds no query rows")
    return rows


def query_rows(records: Iterable[Mapping[str, object]], task: str, source: str) -> list[Query]:
    """Return query rows of records with the fields of a queries file; `source` is what errors call them.

    Raises:
        LakeError: a record without query_table and query_text.
        UsageError: as in `find_queries`.
    """
    rows = []
    for position, row in enumerate(records, start=1):
        where = f"{source}, row {position}"
        table, text = row.get("query_table") or None, row.get("query_text") or None
        column = row.get("query_column")
        column = str(column) if column not in (None, "") else None
        if not isinstance(text, str | None) or (text is not None and not text.strip()):
            raise LakeError(f"{where}: query_text is {text!r}; write in words what is looked for, or leave it out")
        if not isinstance(table, str | None) or (table is None and text is None):
            fields = ", ".join(map(str, row)) or "none"
            raise LakeError(f"{where}: no query_table and no query_text; its fields are {fields}")
        if table is None and column is not None:
            raise LakeError(f"{where}: query_column {column!r} without query_table; name the table that has it")
        rows.append(Query(table, column, _task_of(row, task, where), text))
    return rows


def _task_of(row: Mapping[str, object], task: str, where: str) -> str:
    if task != "auto":
        return task
    declared = str(row.get("task_type") or "").lower()
    if declared not in TASKS:
        found = f"task_type {declared!r}" if declared else "no task_type"
        raise UsageError(f"{where}: {found}; add --task join or --task union")
    return declared


def _records(path: Path) -> list[dict[str, object]]:
    try:
        if path.suffix.lower() == ".json":
            rows = read_json(path)
        else:
            text = decode(read_whole(path))[0]
            own = own_delimiter(path)
            delimiter, text = query_list(text, own) or (own, text)
            rows = list(csv.DictReader(text_lines(text), delimiter=delimiter))
    except (Unreadable, ValueError, csv.Error, RecursionError) as error:
        raise LakeError(f"{path} cannot be read as query rows: {first_line(error)}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LakeError(f"{path}: expected a list of objects with query_table or query_text")
    return rows
