"""A file of delimited text in; whether it lists queries (its header has query_table or query_text) out.

Reads no more than the header.
"""

from __future__ import annotations

import csv
from pathlib import Path

from gpumatch.lake.decoding import decode
from gpumatch.lake.dialect import DELIMITERS, named_separator
from gpumatch.lake.files import Source
from gpumatch.lake.rules import Unreadable
from gpumatch.lake.tables import extension_of
from gpumatch.records import delimiter_by_header

# How much is read of a file that may list queries; a header is shorter.
_HEADER_BYTES = 1 << 16


def lists_queries(path: Path) -> bool:
    """Tell whether a queries.csv is a list of queries, by query_table or query_text in its header, or a table."""
    try:
        with Source(path) as source:
            text = "" if extension_of(path.name) == ".parquet" else decode(source.read(_HEADER_BYTES))[0]
        return query_list(text, own_delimiter(path)) is not None
    except (Unreadable, ValueError, csv.Error):  # then it is opened as a lake, and that says why
        return False


def query_list(text: str, own: str) -> tuple[str, str] | None:
    """Return the delimiter by which a text's header has query_table or query_text, and the text from there; or None.

    The extension's own delimiter is tried first.
    """
    named = named_separator(text)
    delimiters, text = ((named[0],), named[1]) if named else ((own, *DELIMITERS), text)
    delimiter = delimiter_by_header(text, delimiters)
    return None if delimiter is None else (delimiter, text)


def own_delimiter(path: Path) -> str:
    """Return the delimiter that a file's extension promises."""
    return "\t" if extension_of(path.name) == ".tsv" else ","
