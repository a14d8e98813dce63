"""A tables.json in, its entries out; and one entry in, one `Table` out.

An entry that is no table is listed; only a file that is no list of tables is an error.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gpumatch.errors import LakeError
from gpumatch.lake.decoding import decode
from gpumatch.lake.files import Source, first_line
from gpumatch.lake.rules import Limits, Skipped, Unreadable
from gpumatch.lake.sample import Sample, Table

# A limit, since JSON takes about five times its size as Python objects, and all of it has to be held.
MAX_LISTING_BYTES = 512 << 20
# int() refuses more digits, as its time is quadratic.
_DIGITS = 4_300


@dataclass
class Listing:
    """The entries of a tables.json.

    path: the file.
    rows: name → entry.
    broken: the entries that are no table, in the form that a fingerprint needs.
    """

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the JSON holds
    """Read a JSON file in any Unicode encoding, packed or not.

    Raises:
        Unreadable: the file cannot be read or is too large.
        ValueError, RecursionError: it is no JSON, or nested too deep.
    """
    data = read_whole(path)
    text, encoding = decode(data)
    if not encoding.startswith("utf-"):
        data.decode()  # JSON is Unicode: say where it is not
    return json.loads(text, parse_int=_int)


def read_whole(path: Path) -> bytes:
    """Return all bytes of a list of tables or of queries, unpacked.

    Raises:
        Unreadable: the file cannot be read or is too large.
    """
    with Source(path) as source:
        data = source.read(MAX_LISTING_BYTES + 1)
        if len(data) > MAX_LISTING_BYTES:
            found = f"a list of more than {MAX_LISTING_BYTES:,} bytes"
            raise Unreadable("too-large", f"{found}; give its tables as files, or its queries in parts")
        source.check_unchanged()
    return data


def _int(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS else digits


def read_listing(path: Path) -> Listing:
    """Read a tables.json.

    Raises:
        LakeError: it cannot be read, or holds no list with a table in it.
    """
    try:
        entries = read_json(path)
    except (Unreadable, ValueError, RecursionError) as error:
        raise LakeError(f"{path} is no tables.json: {first_line(error)}") from error
    if not isinstance(entries, list):
        raise LakeError(f"{path}: expected a list of tables, found {type(entries).__name__}")
    listing = Listing(path)
    for position, row in enumerate(entries):
        name = utf8(row.get("table_name")) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            listing.skipped.append(Skipped(f"{path.name}[{position}]", "table-name", "no table_name"))
        elif name in listing.rows:
            found = f"{path.name}[{position}] has the name of an earlier table"
            listing.skipped.append(Skipped(name, "repeated-name", found))
        else:
            listing.rows[name] = row
            continue
        listing.broken.append(f"{position}:{canonical(row)}")
    if not listing.rows:
        raise LakeError(f"{path} holds no tables: expected rows with table_name and columns")
    return listing


def canonical(entry: object) -> str:
    """Return an entry as JSON, the same text for the same entry however it was written."""
    try:
        return json.dumps(entry, sort_keys=True)
    except RecursionError:  # parsed, but too deep to write; such values are no table's anyway
        return "nested too deep"


def table_from_entry(row: dict[str, Any], name: str, limits: Limits) -> Table:
    """Make a table of an entry's columns and sample values.

    Raises:
        Unreadable: its columns or their values are no lists.
    """
    columns = row.get("columns")
    if not isinstance(columns, list) or not all(isinstance(column, dict) for column in columns):
        raise Unreadable("columns", f"columns is {type(columns).__name__}, expected a list of objects")
    header, types, cells = [], [], []
    try:
        for column in columns:
            header.append(utf8(str(_either(column, "name", "column_name") or "")))
            types.append(_declared_type(_either(column, "type", "data_type")))
            values = column.get("sample_values") or []
            if not isinstance(values, list):
                raise Unreadable("sample-values", f"sample_values of column {header[-1]!r} is {type(values).__name__}")
            cells.append([None if value is None else str(value) for value in values])
    except RecursionError as error:
        raise Unreadable("sample-values", "nested too deep") from error
    sample = Sample(name, header, types, limits)
    sample.add_rows(list(zip_longest(*cells[: sample.width])))
    return sample.finish(sampled=True)


_NUMERIC = re.compile(
    r"(unsigned\s+)?((big|small|tiny|medium|u)?int(eger)?\d*|num(ber|eric)?|float\d*|double|decimal\d*|real|long|short)\b"
)


def _declared_type(declared: object) -> str | None:
    if declared is None:
        return None
    return "numeric" if _NUMERIC.match(str(declared).lower()) else "string"


def _either(row: dict[str, Any], one: str, other: str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    return row[one] if row.get(one) is not None else row.get(other)


def utf8(text: Any) -> Any:  # noqa: ANN401 - a JSON value; what is no string is judged elsewhere
    """Replace lone surrogates, which JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text
