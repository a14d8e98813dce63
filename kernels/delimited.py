"""The bytes of a delimited text in, the bytes of its cells out.

Reads what Python's csv module reads with `strict=True`, cell for cell, and only if every row is as wide as the first:
any other text is left to a reader that can detect what is odd about it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpumatch.kernels.compiled import compiled

_QUOTE, _LF, _CR = ord('"'), ord("\n"), ord("\r")


@dataclass(frozen=True)
class Cells:
    """The cells of a table, row after row.

    text: UTF-8.
    begin, end: int32 [n], cell i is text[begin[i]:end[i]]; blank lines have none.
    doubled: bool [n], cells in which two quotes stand for one.
    width: cells of a row.
    """

    text: bytes
    begin: np.ndarray
    end: np.ndarray
    doubled: np.ndarray
    width: int

    @property
    def n_rows(self) -> int:
        """Number of rows, the header among them."""
        return len(self.begin) // self.width

    def row(self, r: int) -> list[str]:
        """Return the cells of one row."""
        part = slice(r * self.width, (r + 1) * self.width)
        bounds = zip(self.begin[part].tolist(), self.end[part].tolist(), strict=True)
        cells = [self.text[a:b].decode() for a, b in bounds]
        if b'""' not in self.text:
            return cells
        return [c.replace('""', '"') if twice else c for c, twice in zip(cells, self.doubled[part], strict=True)]

    def by_column(self, first: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of the first columns, column after column, without the rows before `first`.

        Returns:
            (text uint8 [b], offsets int32 [width · rows + 1]: cell i is text[offsets[i]:offsets[i+1]]).
        """
        text = np.frombuffer(self.text, np.uint8)
        out = np.empty(len(text), np.uint8)
        offsets = np.empty(width * (self.n_rows - first) + 1, np.int32)
        _by_column(text, self.begin, self.end, self.doubled, self.width, first, width, out, offsets)
        return out[: offsets[-1]], offsets


def split_cells(text: bytes, delimiter: str) -> Cells | None:
    """Return the cells of a text; None if its rows differ in width or have only one cell, or its quotes are odd.

    Args:
        text: UTF-8 without NUL, less than 2 GiB.
        delimiter: one ASCII character.
    """
    begin, end, doubled, width = _split(np.frombuffer(text, np.uint8), ord(delimiter))
    return Cells(text, begin, end, doubled, width) if width else None


@compiled
def _split(text, delimiter):
    most = 2
    for byte in text:
        most += _ends_a_cell(byte, delimiter)
    begin, end, doubled = np.empty(most, np.int32), np.empty(most, np.int32), np.zeros(most, np.bool_)
    size, at, n, row, width = len(text), 0, 0, 0, 0
    while at < size:
        if n == row and text[at] != delimiter and _ends_a_cell(text[at], delimiter):
            at += 1  # a blank line, or the second half of a line end
            continue
        begin[n], end[n], doubled[n], at = _cell(text, at, delimiter)
        n += 1
        if at < size and text[at] == delimiter:
            at += 1
            if at < size:
                continue
            begin[n], end[n] = at, at
            n += 1
        at += 1
        width = width or n
        if at > size + 1 or n - row != width or width < 2:
            return begin[:0], end[:0], doubled[:0], 0
        row = n
    return begin[:n], end[:n], doubled[:n], width


@compiled
def _ends_a_cell(byte, delimiter):
    return byte in (delimiter, _LF, _CR)


@compiled
def _cell(text, at, delimiter):
    """Return where the cell at `at` begins and ends, whether quotes are doubled, and where the text goes on.

    It goes on beyond the text's end if a quote is never closed, or if neither a delimiter nor a line end follows it.
    """
    size, begin, doubled = len(text), at, False
    if text[at] != _QUOTE:
        while at < size and not _ends_a_cell(text[at], delimiter):
            at += 1
        return begin, at, doubled, at
    at += 1
    while at < size and (text[at] != _QUOTE or (at + 1 < size and text[at + 1] == _QUOTE)):
        doubled |= text[at] == _QUOTE
        at += 2 if text[at] == _QUOTE else 1
    closed = at < size and (at + 1 == size or _ends_a_cell(text[at + 1], delimiter))
    return begin + 1, at, doubled, at + 1 if closed else size + 1


@compiled
def _by_column(text, begin, end, doubled, width, first, columns, out, offsets):
    n, at = 0, 0
    offsets[0] = 0
    for column in range(columns):
        for cell in range(first * width + column, len(begin), width):
            i = begin[cell]
            while i < end[cell]:
                out[at] = text[i]
                at += 1
                i += 2 if doubled[cell] and text[i] == _QUOTE else 1
            n += 1
            offsets[n] = at
