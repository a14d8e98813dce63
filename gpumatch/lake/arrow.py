"""A Parquet file or a frame in, a `Table` of text columns out, or `Unreadable`.

Every column becomes text, nested ones JSON; columns of numbers are declared numeric.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpumatch.canonical import written_out
from gpumatch.errors import LakeError
from gpumatch.lake.files import BOMB_BYTES, BOMB_RATIO, SMALL_BYTES, Source, first_line, looks_like
from gpumatch.lake.rules import Limits, Unreadable
from gpumatch.lake.sample import Sample, Table

# Rows, cells and bytes of a file that are decoded at once.
_BATCH_ROWS, _BATCH_CELLS, _BATCH_BYTES = 8_192, 1 << 20, 16 << 20
# A packed Parquet file has to be unpacked before any of it can be read.
MAX_UNPACKED_BYTES = 256 << 20
# What says nothing at the end of a time: midnight of a date, and zeros of a fraction.
_SAYS_NOTHING = r"(?: 00:00:00(?:\.0+)?Z?|(?:\.0+|(\.\d*[1-9])0+)(Z|[-+]\d{4}|))$"
# What pyarrow and the conversion to Python objects raise for frames that it has no type for, and for damaged files.
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)
_DAMAGE = (*_UNFIT, OSError, ArithmeticError, LookupError)


def read_parquet_file(source: Source, head: bytes, name: str, limits: Limits) -> Table:
    """Read a Parquet file, in one piece only where it is small or packed.

    Args:
        head: its first SMALL_BYTES + 1 bytes, already read.

    Raises:
        Unreadable: as `read_parquet`, and if it looks like something else, or is packed and too large.
    """
    kind = None if head.startswith((b"PAR1", b"PARE")) else looks_like(head)
    if kind is not None:
        raise Unreadable("other-format", f"it looks like {kind}")
    if len(head) > SMALL_BYTES and source.packed is None:
        with source.seekable() as file:
            table = _read(file, source.size, name, limits)
    else:
        rest = source.read(MAX_UNPACKED_BYTES - len(head)) if len(head) > SMALL_BYTES else b""
        if len(head) + len(rest) == MAX_UNPACKED_BYTES:
            raise Unreadable("too-large", f"packed Parquet of more than {MAX_UNPACKED_BYTES:,} bytes")
        table = read_parquet(head + rest, name, limits)
    source.check_unchanged()
    return table


def read_parquet(data: bytes, name: str, limits: Limits) -> Table:
    """Read the bytes of a Parquet file.

    Raises:
        Unreadable: the file is truncated, damaged, encrypted or no Parquet file, or there is no memory for it.
    """
    if not data:
        raise Unreadable("empty", "0 bytes")
    return _read(pa.BufferReader(data), len(data), name, limits)


def _read(file: pa.NativeFile, size: int, name: str, limits: Limits) -> Table:
    try:
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        schema, about = parquet.schema_arrow, parquet.metadata
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        cells = about.num_rows * max(1, about.num_columns)
        # cells are counted too, since runs of equal ones take no bytes: eight are decoded in the time of one byte
        if max(unpacked, cells // 8) > max(BOMB_BYTES, BOMB_RATIO * size):
            raise Unreadable("bomb", f"{size} bytes give {about.num_rows} rows of {about.num_columns} columns")
        sample = Sample(name, [str(one) for one in schema.names], [declared_type(one.type) for one in schema], limits)
        rows = _batch_rows(about.num_rows, unpacked, sample.width)
        names = None if len(schema) == sample.width else schema.names[: sample.width]
        if sample.width:
            add_batches(sample, parquet.iter_batches(rows, columns=names, use_threads=False))
        return sample.finish()
    except MemoryError as error:  # damaged files ask for absurd sizes, undamaged ones perhaps for more than is free
        raise Unreadable("memory", first_line(error)) from error
    except _DAMAGE as error:
        raise Unreadable("parquet", first_line(error)) from error


def _batch_rows(n_rows: int, n_bytes: int, n_columns: int) -> int:
    most = min(_BATCH_BYTES * n_rows // max(1, n_bytes), _BATCH_CELLS // max(1, n_columns))
    return min(_BATCH_ROWS, max(1, most))


def add_batches(sample: Sample, batches: Any) -> None:  # noqa: ANN401 - an iterable of record batches
    """Add the rows of record batches to a sample; only rows that are kept become text."""
    for batch in batches:
        columns = batch.columns[: sample.width]
        wanted = sample.wanted(batch.num_rows)
        if wanted is not None:
            at = pa.array(wanted)
            columns = [column.take(at) for column in columns]
        sample.add_columns([as_text(column) for column in columns])


def table_from_frame(frame: Any, name: str, limits: Limits) -> Table:  # noqa: ANN401 - any Arrow-exporting frame
    """Turn a frame or a dict of columns into a `Table`, within the bounds that a file has.

    Args:
        frame: of pandas, polars or pyarrow, or anything with the Arrow PyCapsule protocol. Named levels of a pandas
            index become the first columns; levels without a name, or with a column's name, are left out.

    Raises:
        LakeError: it is none of these, or something in it cannot be a column.
    """
    try:
        found = _arrow(frame)
    except _UNFIT as error:
        raise LakeError(f"table {name!r}: {first_line(error)}; give columns of one type and one length") from error
    if found is None:
        raise LakeError(
            f"table {name!r} is of type {type(frame).__name__}; give a path, a pandas, polars or pyarrow frame"
            f"{' (its to_frame() is one)' if hasattr(frame, 'to_frame') else ''}, or a dict of columns"
        )
    types = [declared_type(field.type) for field in found.schema]
    sample = Sample(name, [str(one) for one in found.column_names], types, limits)
    add_batches(sample, found.to_batches(max_chunksize=_BATCH_ROWS))
    return sample.finish()


def _arrow(frame: Any) -> pa.Table | None:  # noqa: ANN401
    if isinstance(frame, pa.Table):
        return frame
    # pandas: headers may repeat, cells may be of any type, and the columns that it was grouped by are a named index
    if hasattr(frame, "iloc") and hasattr(frame, "columns"):
        header = [str(c) for c in frame.columns]
        keys = {i: str(n) for i, n in enumerate(frame.index.names) if n is not None and str(n) not in header}
        arrays = [_pandas_column(frame.index.get_level_values(i).to_series()) for i in keys]
        arrays += [_pandas_column(frame.iloc[:, i]) for i in range(frame.shape[1])]
        return pa.table(arrays, names=[*keys.values(), *header])
    if isinstance(frame, dict):
        columns = [_dict_column(str(name), values) for name, values in frame.items()]
        return pa.table(columns, names=[str(name) for name in frame])
    if not hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "to_frame"):  # a Series is a stream of no rows
        return None
    try:
        return pa.table(frame)
    except pa.ArrowException:
        if not hasattr(frame, "get_columns"):
            raise
        return pa.table([_polars_column(one) for one in frame.get_columns()], names=frame.columns)


def _pandas_column(series: Any) -> pa.Array:  # noqa: ANN401 - pandas is optional
    with _of_column(series.name):
        try:
            array = pa.array(series, from_pandas=True)
            # Periods and intervals are pandas' own, to Arrow numbers from some day on, and structs.
            return _as_shown(series) if str(getattr(array.type, "extension_name", "")).startswith("pandas.") else array
        except (pa.ArrowException, OverflowError):
            return _as_shown(series)


def _as_shown(series: Any) -> pa.Array:  # noqa: ANN401
    return pa.array([None if gone else str(v) for v, gone in zip(series, series.isna(), strict=True)], pa.string())


def _polars_column(series: Any) -> pa.ChunkedArray:  # noqa: ANN401 - polars is optional
    try:
        return pa.chunked_array(series)
    except pa.ArrowException:  # a type that is polars' alone
        return pa.chunked_array([[None if v is None else str(v) for v in series]], pa.string())


def _dict_column(name: str, values: Any) -> pa.ChunkedArray:  # noqa: ANN401 - whatever Arrow takes
    with _of_column(name):
        return pa.table({name: values}).column(0)


@contextmanager
def _of_column(name: object) -> Iterator[None]:
    """Make conversion errors name the column."""
    try:
        yield
    except _UNFIT as error:
        raise pa.ArrowInvalid(f"column {str(name)!r}: {first_line(error)}") from error


def declared_type(arrow_type: pa.DataType) -> str | None:
    """Return "numeric" for number types, and None if the cells have to tell."""
    kinds = pa.types
    numeric = kinds.is_integer(arrow_type) or kinds.is_floating(arrow_type) or kinds.is_decimal(arrow_type)
    return "numeric" if numeric else None


def as_text(column: pa.Array) -> pa.Array:
    """Turn an Arrow array of any type into a string array; times as they are written whatever their resolution is."""
    if pa.types.is_dictionary(column.type):
        if len(column.dictionary) > len(column):
            return as_text(column.dictionary_decode())
        return as_text(column.dictionary).take(column.indices)
    try:
        text = pc.cast(column, pa.string())
        text.validate(full=True)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested types, and bytes that are no text
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.cast(column, pa.large_binary())
        return pa.array([_shown(v) for v in column.to_pylist()], pa.string())
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        text = pc.replace_substring_regex(text, _SAYS_NOTHING, r"\1\2")
    return written_out(text) if pa.types.is_floating(column.type) else text


def _shown(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=_shown)
    return None if value is None else str(value)
