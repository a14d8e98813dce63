"""One file (or one frame) in, one `Table` of Arrow string columns out, or `Unreadable` with its rule.

Never guesses silently: what cannot be read as a table raises `Unreadable`, and the caller lists it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpumatch.collector import held_back

# The csv module's default of 128 KiB refuses long text cells that are perfectly good.
csv.field_size_limit(1 << 27)


@dataclass(frozen=True)
class Table:
    """A table as read.

    name: its path below the lake root, with extension.
    header: the column names as written, n_columns of them; they may repeat or be blank.
    columns: Arrow string arrays, one a column, all of the same length; null and "" both mean no value.
    types: the declared type of each column ("numeric" or "string"), or None where it has to be inferred.
    sampled: True where the cells are only a sample, so that row counts and containment mean nothing.
    """

    name: str
    header: tuple[str, ...]
    columns: tuple[pa.Array, ...]
    types: tuple[str | None, ...]
    sampled: bool = False

    @property
    def n_rows(self) -> int:
        """Number of cells in each column."""
        return len(self.columns[0]) if self.columns else 0


@dataclass(frozen=True)
class Skipped:
    """Something table-like that was not read: its name, the rule that it broke, and what was found."""

    name: str
    rule: str
    found: str


class Unreadable(Exception):
    """A file is not a table by `rule`; `found` says what it is instead."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"{rule}: {found}")
        self.rule = rule
        self.found = found


def read_csv(data: bytes, name: str, delimiter: str) -> Table:
    """Read delimited text whose first row is the header.

    Rows shorter than the header are filled with nulls; cells beyond the header are dropped.

    Raises:
        Unreadable: empty, holds NUL bytes, or the csv module refuses it.
    """
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise Unreadable("empty", f"{len(data)} bytes, none of them text")
    if b"\0" in data:
        raise Unreadable("nul-bytes", f"a NUL byte at offset {data.index(0)}")
    reader = csv.reader(io.StringIO(_decode(data), newline=""), delimiter=delimiter)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise Unreadable("csv", f"line {reader.line_num}: {error}") from error
    header, body = tuple(rows[0]), rows[1:]
    return Table(name, header, _columns_of(body, len(header)), (None,) * len(header))


def read_parquet(data: bytes, name: str) -> Table:
    """Read a Parquet file; every column becomes text, and nested columns their JSON-like form.

    Raises:
        Unreadable: the file is truncated or no Parquet file.
    """
    try:
        return _from_arrow(pq.ParquetFile(pa.BufferReader(data)).read(), name)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise Unreadable("parquet", (str(error).splitlines() or [type(error).__name__])[0]) from error


def table_from_frame(frame: Any, name: str) -> Table:  # noqa: ANN401 - any Arrow-exporting frame
    """Turn a pyarrow, polars or pandas frame into a `Table` (polars and others through the Arrow PyCapsule protocol).

    Raises:
        TypeError: the object has no Arrow stream.
    """
    if isinstance(frame, pa.Table):
        return _from_arrow(frame, name)
    if isinstance(frame, dict):
        return _from_arrow(pa.table(frame), name)
    if hasattr(frame, "iloc"):  # pandas: its headers may repeat, its index is no column, its cells may be of any type
        arrays = [_pandas_column(frame.iloc[:, i]) for i in range(frame.shape[1])]
        return _from_arrow(pa.table(arrays, names=[str(c) for c in frame.columns]), name)
    if hasattr(frame, "__arrow_c_stream__"):
        return _from_arrow(pa.table(frame), name)
    raise TypeError(f"a query table must be a path, a pandas, polars or pyarrow frame, not {type(frame).__name__}")


def _pandas_column(series: Any) -> pa.Array:  # noqa: ANN401 - pandas is optional
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if gone else str(v) for v, gone in zip(series, series.isna(), strict=True)], pa.string())


READERS: dict[str, Callable[[bytes, str], Table]] = {
    ".csv": lambda data, name: read_csv(data, name, ","),
    ".tsv": lambda data, name: read_csv(data, name, "\t"),
    ".parquet": read_parquet,
}


def read_table(path: Path, name: str) -> Table:
    """Read one table file by its extension.

    Raises:
        Unreadable: with the rule that it broke.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable("unreadable", error.strerror or str(error)) from error
    with held_back():  # a list for every row
        return READERS[path.suffix.lower()](data, name)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Latin-1 maps every byte; with NUL bytes already refused it is the usual other encoding of CSV exports.
        return data.decode("latin-1")


def _columns_of(rows: Sequence[Sequence[str]], width: int) -> tuple[pa.Array, ...]:
    if not rows:
        return tuple(pa.array([], pa.string()) for _ in range(width))
    if any(len(row) != width for row in rows):
        filled = [[*row[:width], *[None] * (width - len(row))] for row in rows]
        return tuple(_text_array(column) for column in zip(*filled, strict=True))
    return tuple(_text_array(column) for column in zip(*rows, strict=True))


def _text_array(cells: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        return pa.array([c if c is None else c.encode("utf-8", "replace").decode() for c in cells], pa.string())


def _from_arrow(frame: pa.Table, name: str) -> Table:
    columns, types = [], []
    for field, chunks in zip(frame.schema, frame.columns, strict=True):
        column = chunks.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no chunks at all
            column = pa.array([], field.type)
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        types.append("numeric" if numeric else None)
        columns.append(_as_text(column))
    return Table(name, tuple(map(str, frame.column_names)), tuple(columns), tuple(types))


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return _as_text(column.dictionary).take(column.indices)
    try:
        text = pc.cast(column, pa.string())
        text.validate(full=True)
        return text
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested types, and bytes that are no text
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.cast(column, pa.large_binary())
        return pa.array([_shown(v) for v in column.to_pylist()], pa.string())


def _shown(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return None if value is None else str(value)
