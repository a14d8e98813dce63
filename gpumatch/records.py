"""Result rows and truth rows in, from files or from memory; the same rows, checked, and the keys of their queries out.

A *key* names a query: (query_table, query_column or None); if it has a query_text, that is added to the table's name or
takes its place. Errors in a row are told with the row's place.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpumatch.errors import LakeError, UsageError
from gpumatch.recipes import SCORE_DECIMALS
from gpumatch.text import is_missing

# Separates a table's name and a text in a key; no name contains it.
_BEFORE_TEXT = "\0"

Row = Mapping[str, Any]
Key = tuple[str, str | None]


def delimiter_by_header(text: str, delimiters: Iterable[str]) -> str | None:
    """Return the first of some delimiters by which a text's header has query_table or query_text; or None.

    The header alone decides: rows may contain any delimiter, in queries in words.

    Raises:
        csv.Error: the header is no CSV.
    """
    for delimiter in delimiters:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if names_queries(header):
            return delimiter
    return None


def names_queries(fields: Iterable[str]) -> bool:
    """Tell fields of query rows, which name a table, say in words what is sought, or both, from those of a table."""
    return not {"query_table", "query_text"}.isdisjoint(fields)


def load_results(path: Path, *, once: bool = True) -> list[dict[str, Any]]:
    """Read a results file (JSON Lines, one query a line; blank lines are skipped).

    Args:
        once: whether a query may have only one line, as is needed to look up its answer.

    Raises:
        LakeError: the file cannot be read, is empty, or has a malformed line or, with `once`, two lines for one query.

    """
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            rows.append((where, json.loads(line)))
        except (ValueError, RecursionError) as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise LakeError(
                f"{where}: not JSON ({_why(error)}{column}); results are JSON Lines, one query a line, "
                "as `gpumatch match LAKE -o results.jsonl` writes them"
            ) from error
    if not rows:
        raise LakeError(f"{path}: no result line found; write one with `gpumatch match LAKE -o {path}`")
    if once:
        rows_by_key(rows)
    else:
        for where, row in rows:
            _checked(where, row)
    return [row for _, row in rows]


def load_truth(path: Path) -> list[dict[str, Any]]:
    """Read a truth file: a JSON list of objects (.json) or a CSV with a header (.csv).

    A row names the query as the queries file does: query_table, query_text or both, and optionally query_column.

    Raises:
        LakeError: the file cannot be read, holds no row, or has a row without query_table or candidate_table.
        UsageError: another extension.

    """
    readers = {".json": _json_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: a truth file is .json or .csv, found {path.suffix!r}; pass one with `--truth FILE`")
    rows = reader(path)
    if not rows:
        raise LakeError(f"{path}: no truth row found; it needs rows with query_table and candidate_table")
    for where, row in rows:
        _truth_pair(where, row)
    return [row for _, row in rows]


def truth_of(given: Any) -> Iterable[Row]:  # noqa: ANN401 - whatever a caller takes for one
    """Return the rows of a truth, given as such or as the path of their file.

    Raises:
        LakeError, UsageError: as `load_truth`, or it is neither of the two.
    """
    if isinstance(given, str | Path):
        return load_truth(Path(given))
    if isinstance(given, Mapping) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise UsageError(
            f"the truth is of type {type(given).__name__}; give the path of a truth file (.json, .csv), or a list of "
            "dicts with query_table and candidate_table, as pandas' frame.to_dict('records')"
        )
    return given


def _read_text(path: Path) -> str:
    """Return a file's text without a byte order mark, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LakeError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise LakeError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error


def _why(error: ValueError | RecursionError) -> str:
    """Return why something is no JSON, or none that Python reads: it limits digits and depth."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "a number of too many digits" if isinstance(error, ValueError) else "nested too deep"


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise LakeError(
            f"{path}{line}: not JSON ({_why(error)}); a truth file is a JSON list of objects with query_table and "
            "candidate_table"
        ) from error
    if not isinstance(rows, list):
        raise LakeError(f"{path}: found a JSON {type(rows).__name__}, not a list; write the truth as a list of objects")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = _read_text(path)
    delimiter = ","  # spreadsheets write others where numbers have a decimal comma
    with contextlib.suppress(csv.Error):  # the reader below says in which line
        delimiter = delimiter_by_header(text, ",;\t|") or ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(f"{path}, line {reader.line_num}", dict(row)) for row in reader]
    except csv.Error as error:
        raise LakeError(
            f"{path}, line {reader.line_num}: not CSV ({error}); quote the cell or save it again"
        ) from error


def _text(where: str, row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise LakeError(f"{where}: `{field}` must be a name, found {value!r}; give every row a `{field}`")
    return value


def _text_or_none(where: str, row: Row, field: str) -> str | None:
    value = None if is_missing(row.get(field)) else row.get(field)
    if value is not None and not isinstance(value, str):
        raise LakeError(f"{where}: `{field}` must be a column's name or null, found {value!r}")
    return value or None  # CSV has no null: an empty cell stands for it


def _require_object(where: str, row: object, needs: str) -> None:
    if not isinstance(row, Mapping):
        raise LakeError(f"{where}: found a {type(row).__name__}, not an object; it needs {needs}")


class TruthPair(NamedTuple):
    """One truth row: the query's key and table, and the candidate's table and column."""

    key: Key
    query_table: str | None
    table: str
    column: str | None
    where: str


def _truth_pair(where: str, row: Row) -> TruthPair:
    _require_object(where, row, "query_table and candidate_table")
    key, table = key_of(where, row), _text(where, row, "candidate_table")
    return TruthPair(key, row.get("query_table"), table, _text_or_none(where, row, "candidate_column"), where)


def key_of(where: str, row: Row) -> Key:
    """Return the key of a checked or unchecked row; if it has none the error says `where` the row is."""
    text, column = _text_or_none(where, row, "query_text"), _text_or_none(where, row, "query_column")
    if text is None:
        return _text(where, row, "query_table"), column
    return f"{_text_or_none(where, row, 'query_table') or ''}{_BEFORE_TEXT}{text}", column


def truth_pairs(truth: Iterable[Row]) -> list[TruthPair]:
    """Return the truth without the pairs of a table with itself, which no result may list."""
    pairs = [_truth_pair(f"truth row {number}", row) for number, row in enumerate(truth, start=1)]
    return [pair for pair in pairs if pair.table != pair.query_table]


def rows_by_key(rows: Iterable[tuple[str, Row]]) -> dict[Key, Row]:
    """Return checked result rows by key; `rows` are (where the row is, row)."""
    by_key: dict[Key, Row] = {}
    places: dict[Key, str] = {}
    for where, row in rows:
        key = _checked(where, row)
        if key in by_key:
            raise LakeError(
                f"{where}: query_table {said(key)!r}, query_column {key[1]!r} was answered before at {places[key]}; "
                "keep one line per query (one task per file: `gpumatch match LAKE --task join -o results.jsonl`)"
            )
        by_key[key], places[key] = row, where
    return by_key


def _checked(where: str, row: Row) -> Key:
    _require_object(where, row, "query_table, query_column and matches")
    key = key_of(where, row)
    _check_matches(where, row)
    return key


def said(key: Key) -> str:
    """Return a key's query in words for people."""
    return key[0].replace(_BEFORE_TEXT, " ").strip()


def _check_matches(where: str, row: Row) -> None:
    matches = row.get("matches")
    if not isinstance(matches, list):
        raise LakeError(f"{where}: `matches` must be a list, found {matches!r}; an unmatched query has []")
    above = float("inf")
    for number, match in enumerate(matches, start=1):
        place = f"{where}, match {number}"
        _require_object(place, match, "table and score")
        _text(place, match, "table")
        score = match.get("score")
        # The comparison is false for NaN too, and takes integers of any size.
        if not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:
            raise LakeError(f"{place}: `score` must be a finite number, found {score!r}")
        if rounded(score) > above:
            raise LakeError(f"{place}: score {score} stands below {above}; list the matches by falling score")
        above = rounded(score)


def rounded(score: float) -> float:
    """Return a score rounded as for ties: equal results are ties."""
    return round(float(score), SCORE_DECIMALS)
