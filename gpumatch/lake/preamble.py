"""The first rows of a delimited text in, how many of them are before the header out.

Pure. Exports may begin with titles, dates and comments, which are left out. A header that is mistaken for one would be
left out too, so in doubt the first row is the header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from gpumatch.lake.dialect import is_number

_Row = Sequence[str]
LOOKED_AT = 1_000
# The most lines before the header: more would be a table of their own.
_LINES = 50
# The least share of the rows, from the header to the last one of the usual length, that must have this length.
_ALIKE = 0.9
_COMMENTS = ("#", "//", ";", "%", "--")


def rows_before(rows: Sequence[_Row]) -> int:
    """Return how many rows, blank ones included, are before the header; 0 if that is not certain.

    The header is the first row of the length that most rows have. The very first row is not the header if it is
    narrower than that, or a comment, and two of these are true: it is a comment; it is one cell, and the other row
    three; a blank line comes after it; the other row reads as a header. Less is not enough: the last columns, or a
    column of row numbers, may have no name.

    Args:
        rows: a table's rows from its start; the first LOOKED_AT of them are looked at.
    """
    some = rows[:LOOKED_AT]
    filled = [i for i, row in enumerate(some) if any(map(str.strip, row))]
    (length, n), *_ = Counter(len(some[i]) for i in filled).most_common(1) or [(0, 0)]
    if length < 2 or 2 * n <= len(filled) or (len(some[filled[0]]) == length and _is_wide(some[filled[0]])):
        return 0
    # a delimiter at the end of every row makes no column
    width = max(_width(some[i]) for i in filled if len(some[i]) == length)
    at = next((i for i in filled if _is_wide(some[i]) and (len(some[i]) == length or _width(some[i]) == width)), 0)
    before, body = [i for i in filled if i < at], [some[i] for i in filled if i >= at]
    while body and len(body[-1]) != length:  # sources and notes below the table
        body.pop()
    alike = sum(len(row) == length for row in body[1:])
    if not 0 < len(before) <= _LINES or not 0 < alike >= _ALIKE * (len(body) - 1):
        return 0
    first, last = some[before[0]], some[before[-1]]
    title, comment, named = _width(first) == 1 and width > 2, _is_comment(first), _names_columns(body[0], body[1:])
    apart = at - before[0] > len(before) and any(map(str.strip, some[at + 1]))  # not every second line is blank
    nameless = not named and before[-1] == at - 1 and _width(last) == width - 1 and not _is_comment(last)
    if nameless or not (comment or _width(first) < width) or comment + title + apart + named < 2:
        return 0
    return at


def _is_wide(row: _Row) -> bool:
    """Tell whether a row has more than one filled cell; titles may be followed by delimiters."""
    return sum(map(bool, map(str.strip, row))) > 1


def _width(row: _Row) -> int:
    """Return the number of a row's cells up to the last that is not blank."""
    return len(row) - sum(1 for _ in takewhile(lambda cell: not cell.strip(), reversed(row)))


def _is_comment(row: _Row) -> bool:
    return row[0].lstrip().startswith(_COMMENTS)


def _names_columns(row: _Row, below: Sequence[_Row]) -> bool:
    """Tell whether a row reads as a header: distinct names, no numbers but years, none of them also in its column."""
    names = [cell.strip() for cell in row if cell.strip()]
    if len(set(names)) < len(names) or any(is_number(name) and not _is_year(name) for name in names):
        return False
    return not any(
        cell.strip() and cell.strip() == name.strip() for other in below for name, cell in zip(row, other, strict=False)
    )


def _is_year(name: str) -> bool:
    return len(name) == 4 and name.isdecimal() and "1500" <= name < "2200"
