"""The start of a delimited text in, its delimiter and way of quoting out; and the csv module's reader for them.

Pure. The text is parsed by every candidate; the one whose rows are most alike and whose cells are least odd wins.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

DELIMITERS = (",", ";", "|", "\t", "#")
# The csv module's arguments for each way of quoting; the first ones win a tie.
QUOTINGS: dict[str, dict[str, Any]] = {
    "double": {},
    "backslash": {"escapechar": "\\", "doublequote": False},
    "spaced": {"skipinitialspace": True},  # as double, with blanks before quotes
    "single": {"quotechar": "'"},
    "line": {},  # as double, but a quote that is open at the end of its line ends there
    "none": {"quoting": csv.QUOTE_NONE},
}
# How much text the candidates parse: enough rows to compare, and a hundredth of a second for each candidate.
PREFIX_CHARS = 1 << 16
# Longer lines or cells are no part of a table; the cells of such a line would take 200 MB as Python strings.
MAX_LINE_CHARS = 8 << 20

# The csv module has one limit for the whole process. Its default of 128 KiB refuses perfectly good cells.
csv.field_size_limit(MAX_LINE_CHARS)

# The score of rows of one cell, which show no structure (alpha of van den Burg et al.).
_ALONE = 1e-3
# Factors of a candidate's score: a strict parser refuses the text; all that speaks for it is a cell in single quotes
# here and there; quotes have to be closed for it (which costs less than quotes left in cells).
_REFUSED, _SINGLE, _MENDED = 0.9, 0.98, 0.9999
# Cells as people write them, without anything that looks like another dialect's delimiter or quote.
_NUMBER = re.compile(r"\s*[-+(]?[$€£¥]?\s?\d[\d.,'\u00a0 ]*[%)]?\s*")
_ODD = re.compile(r"""[;|\t"]|,(?!\s)|#(?!\d)|^\s*'|'\s*$""")
# How many cells are checked for oddness: more would hardly change the share.
_CELLS = 5_000
_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)


class Dialect(NamedTuple):
    """How a text is delimited.

    strict: the csv module's strict parser accepts it, as far as it was looked at.
    """

    delimiter: str
    quoting: str = "double"
    strict: bool = True


def read_rows(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    """Return an iterator over the rows, empty ones for blank lines; it may raise csv.Error."""
    options = QUOTINGS[dialect.quoting]
    if dialect.quoting == "line":
        return (row for line in lines for row in csv.reader((line.rstrip("\r\n"),), delimiter=dialect.delimiter))
    return csv.reader(lines, delimiter=dialect.delimiter, strict=dialect.strict, **options)


def text_lines(text: str) -> Iterator[str]:
    """Return an iterator over the lines with their ends: LF, CR LF or CR, as csv knows them."""
    return io.StringIO(text, newline="")


def named_separator(text: str) -> tuple[str, str] | None:
    """Return the delimiter that a first line such as "sep=;" names for Excel, and the text below it."""
    found = _SEPARATOR.match(text) if text[:1] in '"sS' else None
    return (found[1], text[found.end() :]) if found else None


def is_number(cell: str) -> bool:
    """Tell whether a cell is a number as people write it, with or without a currency or percent sign."""
    return _NUMBER.fullmatch(cell) is not None


def find_dialect(text: str, own: str, others: Iterable[str] = DELIMITERS, *, complete: bool = True) -> Dialect:
    """Return the most consistent dialect of a text.

    The score is the consistency of van den Burg, Nazábal and Sutton, "Wrangling messy CSV files by detecting row and
    type patterns" (Data Mining and Knowledge Discovery 33, 2019), simplified: pattern score times share of plain cells.

    Args:
        text: the start of the file, or all of it.
        own: the delimiter of the file's extension, which wins a tie.
        others: more delimiters to try.
        complete: False if the file goes on after the text.
    """
    ready = []
    for delimiter in dict.fromkeys((own, *(one for one in others if one in text))):
        for dialect, rows in _candidates(text, delimiter, complete):
            ready.append((_pattern_score(rows) * _trust(dialect), dialect, rows))
    best, chosen = -1.0, Dialect(own)
    for pattern, dialect, rows in sorted(ready, key=lambda one: -one[0]):  # stable: ties stay in order
        if pattern <= best:  # the share of plain cells is at most 1
            break
        if (score := pattern * _plain_share(rows)) > best:
            best, chosen = score, dialect
    return chosen


def _trust(dialect: Dialect) -> float:
    if dialect.quoting == "line":
        return _MENDED
    return (1 if dialect.strict else _REFUSED) * (_SINGLE if dialect.quoting == "single" else 1)


def better_quoting(text: str, dialect: Dialect) -> Dialect:
    """Return the dialect, chosen by its rows alone, for a text that a strict parser refuses beyond its start."""
    ways = [
        dialect._replace(strict=False),
        *(Dialect(dialect.delimiter, one, strict=False) for one in ("line", "none")),
    ]
    return max(ways, key=lambda way: _pattern_score(_parsed(text, way, True)[1]))


_Parsed = tuple[Dialect, list[list[str]]]


def _candidates(text: str, delimiter: str, complete: bool) -> Iterator[_Parsed]:
    """Yield the ways of quoting for which the text gives a reason, each with its rows."""
    if '\\"' in text or f"\\{delimiter}" in text:  # where both fit, no cell is meant to show these backslashes
        yield _parsed(text, Dialect(delimiter, "backslash"), complete)[:2]
    dialect, rows, closed = _parsed(text, Dialect(delimiter), complete)
    yield dialect, rows
    if f'{delimiter} "' in text:
        yield _parsed(text, Dialect(delimiter, "spaced"), complete)[:2]
    if "'" in text:
        yield _parsed(text, Dialect(delimiter, "single"), complete)[:2]
    if not closed:  # otherwise the quotes are all in their places, which is no accident
        for quoting in ("line", "none"):
            yield _parsed(text, Dialect(delimiter, quoting, strict=quoting == "none"), complete)[:2]


def _parsed(text: str, dialect: Dialect, complete: bool) -> tuple[Dialect, list[list[str]], bool]:
    """Parse strictly, or leniently if that fails; also tell whether all quotes are closed."""
    rows: list[list[str]] = []
    lines = text_lines(text)
    try:
        rows.extend(row for row in read_rows(lines, dialect) if row)
        return dialect, rows, True
    except csv.Error:
        if not complete and not next(iter(lines), ""):  # a cell that goes on after the cut
            return dialect, rows, False
    lenient = dialect._replace(strict=False)
    try:
        return lenient, [row for row in read_rows(text_lines(text), lenient) if row], False
    except csv.Error:  # a cell that is too long
        return lenient, [], False


def _pattern_score(rows: list[list[str]]) -> float:
    """Return (1/K) Σ N (L - 1) / L over the K different row lengths L, each of N rows."""
    lengths = Counter(map(len, rows))
    return sum(n * max(_ALONE, length - 1) / length for length, n in lengths.items()) / max(1, len(lengths))


def _plain_share(rows: list[list[str]]) -> float:
    cells = [cell for row in rows[: 1 + _CELLS // max(1, len(rows[0]))] for cell in row] if rows else []
    odd = sum(1 for cell in cells if cell and _ODD.search(cell) and not is_number(cell))
    return 1 - odd / max(1, len(cells)) + 1e-9
