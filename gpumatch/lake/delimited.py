"""The bytes of a delimited text in, a `Table` out, or `Unreadable`.

Small files are read in one piece, and if they are clean parsed only once; of large ones never more than a few MB are
held beside the rows that are kept.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from gpumatch.collector import held_back
from gpumatch.kernels.delimited import Cells, split_cells
from gpumatch.lake.decoding import decode, decoder, encoding_of, other_encoding, refuse_nul, replaces
from gpumatch.lake.dialect import (
    DELIMITERS,
    MAX_LINE_CHARS,
    PREFIX_CHARS,
    Dialect,
    better_quoting,
    find_dialect,
    named_separator,
    read_rows,
    text_lines,
)
from gpumatch.lake.files import SMALL_BYTES, Source, looks_like
from gpumatch.lake.preamble import LOOKED_AT, rows_before
from gpumatch.lake.rules import Limits, Unreadable
from gpumatch.lake.sample import Sample, Table, string_array

# Bytes of a large file that are decoded at once.
_CHUNK_BYTES = 1 << 20
# Cells of a large file that are gathered before they become Arrow columns.
_BLOCK_CELLS = 1 << 16
# Characters that a blank line may contain: Ctrl-Z used to end files.
_BLANKS = " \t\f\v\x1a"
_DASHES = re.compile(r"\s*:?-{2,}:?\s*|\s*")
_JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[\[{\]"])')


# Who writes blanks before quotes does so from the header or the first rows on.
_BEGINNING = 4096


class _Again(Exception):
    """The file has to be read from its start in another way."""


def read_delimited(source: Source, head: bytes, name: str, delimiter: str, limits: Limits) -> Table:
    """Read a file of delimited text whose first SMALL_BYTES + 1 bytes are `head`; see `read_csv`."""
    if len(head) <= SMALL_BYTES:
        source.check_unchanged()
        return read_csv(head, name, delimiter, limits)
    refuse_other_format(head)
    source.refuse_bomb()
    with held_back():  # a list for every row
        table = _Large(source, name, delimiter, limits, head).read()
    source.check_unchanged()
    return table


def read_csv(data: bytes, name: str, delimiter: str, limits: Limits) -> Table:
    """Read delimited text whose first row is the header.

    Rows shorter than the header are filled with nulls; cells beyond the header are dropped. Lines that are certainly
    not the header, before it, are left out.

    Args:
        data: all of the file.
        delimiter: the one that the file's extension promises; the file may have another one.

    Raises:
        Unreadable: it is no text, or something other than a table.
    """
    refuse_other_format(data)
    text, encoding = decode(data)
    if not text or text.isspace():
        raise Unreadable("empty", f"{len(data)} bytes, none of them text")
    if text[0] in "[{ \t\r\n":
        _refuse_json(text, complete=True)
    if replaces(encoding):
        _note_replaced(text, encoding, limits)
    # if the extension's delimiter and doubled quotes give rows of one width, nothing speaks against them
    odd = '\\"' in text or named_separator(text) or f'{delimiter} "' in text[:_BEGINNING]
    cells = None if odd else split_cells(text.encode(), delimiter)
    if cells is not None:
        return _table_of(cells, name, limits)
    with held_back():  # a list for every row
        header, *body = _best_rows(text, delimiter, limits)
        sample = Sample(name, header, (None,) * len(header), limits)
        sample.add_rows(body[1:] if body and _is_rule(body[0]) else body)
    return sample.finish()


def _table_of(cells: Cells, name: str, limits: Limits) -> Table:
    header, first = cells.row(0), 1
    if len(header) > 1 and not any(map(str.strip, header[1:])):  # perhaps a title followed by delimiters
        some = [cells.row(r) for r in range(min(LOOKED_AT, cells.n_rows))]
        first = 1 + _rows_before(some, limits)
        header = some[first - 1]
    sample = Sample(name, header, (None,) * len(header), limits)
    if b"--" in cells.text and cells.n_rows > first and _is_rule(cells.row(first)):
        first += 1
    sample.add_cells(string_array(*cells.by_column(first, sample.width)), cells.n_rows - first)
    return sample.finish()


def _best_rows(text: str, delimiter: str, limits: Limits) -> list[list[str]]:
    """Return the rows in the dialect that fits best."""
    own, others, text = _told(text, delimiter)
    dialect = _dialect_of(_prefix(text), own, others, complete=len(text) <= PREFIX_CHARS)
    try:
        rows = list(read_rows(text_lines(text), dialect))
    except csv.Error:
        dialect = better_quoting(text, dialect)
        try:
            rows = list(read_rows(text_lines(text), dialect))
        except csv.Error as error:
            raise Unreadable("long-field", str(error)) from error
    rows = _without_blank_lines(rows[_rows_before(rows, limits) :])
    if not rows:
        raise Unreadable("empty", "no line with a cell")
    return rows


def _told(text: str, delimiter: str) -> tuple[str, Sequence[str], str]:
    """Return the delimiter to expect, others to try, and the text below a line that names the delimiter, if any."""
    named = named_separator(text)
    return (named[0], (), named[1]) if named else (delimiter, DELIMITERS, text)


def _dialect_of(text: str, own: str, others: Sequence[str], *, complete: bool) -> Dialect:
    """Return the dialect that fits best; of a column whose cells hold other delimiters, the one that leaves it whole.

    Another delimiter than the file's own would give its rows more cells than there are names.
    """
    dialect = find_dialect(text, own, others, complete=complete)
    if dialect.delimiter == own:
        return dialect
    with contextlib.suppress(csv.Error):
        rows = list(read_rows(text_lines(text), dialect))
        names = next((row for row in rows if row), [])
        if len(names) == 1 and not rows_before(rows):
            plain = Dialect(own)
            if all(len(row) < 2 for row in read_rows(text_lines(text), plain)):
                return plain
    return dialect


def _prefix(text: str) -> str:
    """Return whole lines from the start of a text, or a piece of its first line if that is too long."""
    if len(text) <= PREFIX_CHARS:
        return text
    end = max(text.rfind("\n", 0, PREFIX_CHARS), text.rfind("\r", 0, PREFIX_CHARS)) + 1
    return text[: end or PREFIX_CHARS]


def _rows_before(rows: list[list[str]], limits: Limits) -> int:
    """Return how many rows stand before the header, and note them."""
    n = rows_before(rows)
    lines = [" ".join(row).strip() for row in rows[:n] if any(map(str.strip, row))]
    if lines:
        found = f"lines before the header: {len(lines)}, of which the first is {lines[0][:80]!r}"
        limits.notes.append(("preamble", found))
    return n


def _without_blank_lines(rows: Iterable[list[str]], width: int = 0) -> list[list[str]]:
    """Leave out lines without a cell, and lines of blanks unless the table is one column wide."""
    kept = [row for row in rows if row]
    if not width:
        first = next((i for i, row in enumerate(kept) if len(row) > 1 or row[0].strip(_BLANKS)), len(kept))
        kept = kept[first:]
        width = len(kept[0]) if kept else 0
    return kept if width == 1 else [row for row in kept if len(row) > 1 or row[0].strip(_BLANKS)]


def _is_rule(row: Sequence[str]) -> bool:
    """Tell whether a row is the line of dashes below the header of a Markdown table."""
    return "--" in "".join(row) and all(_DASHES.fullmatch(cell) for cell in row)


def _note_replaced(text: str, encoding: str, limits: Limits) -> None:
    if n := text.count("\ufffd"):
        limits.notes.append(("bytes-replaced", f"{n:,} places that are no {encoding.removeprefix('mended ')}"))


# --- what is no table


def refuse_other_format(head: bytes) -> None:
    """Refuse a file whose first bytes are those of something else.

    Raises:
        Unreadable: with what it looks like.
    """
    kind = looks_like(head)
    if kind is not None:
        raise Unreadable("other-format", f"it looks like {kind}")


def _refuse_json(text: str, *, complete: bool) -> None:
    """Refuse JSON and JSON Lines, but not a header such as [id],[name]."""
    if not _JSON_START.match(text):
        return
    text = text.lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text if complete else text[:_CHUNK_BYTES])
        found = not text[end:].lstrip(" \t,")[:1].strip()
    except RecursionError:
        found = True
    except ValueError as error:  # only its start is known, which is JSON so far
        found = not complete and getattr(error, "pos", 0) > _CHUNK_BYTES // 2
    if found:
        raise Unreadable("other-format", "it looks like JSON")


# --- large files


class _Large:
    """A file that is read piece by piece, and from its start again if a guess about it proves wrong."""

    def __init__(self, source: Source, name: str, delimiter: str, limits: Limits, head: bytes) -> None:
        self._source, self._name, self._limits, self._delimiter = source, name, limits, delimiter
        self._notes = len(limits.notes)
        self._encoding = encoding_of(head, complete=False)
        self._dialect: Dialect | None = None
        self._replaced = 0
        # how many pieces were read, and in which of them the last row ended: a row must not go on for ever
        self._piece = self._row_piece = 0

    def read(self) -> Table:
        while True:
            self._source.restart()
            self._replaced = self._piece = self._row_piece = 0
            del self._limits.notes[self._notes :]
            try:
                return self._table()
            except _Again:
                continue

    def _table(self) -> Table:
        sample: Sample | None = None
        for block in self._blocks(self._rows()):
            before = 0 if sample is not None else _rows_before(block, self._limits)
            rows = _without_blank_lines(block[before:], 0 if sample is None else sample.width)
            if sample is None:
                if not rows:
                    continue
                header, *rows = rows
                sample = Sample(self._name, header, (None,) * len(header), self._limits)
                if rows and _is_rule(rows[0]):
                    rows = rows[1:]
            sample.add_rows(rows)
        if sample is None:
            raise Unreadable("empty", f"{self._source.size} bytes, none of them text")
        if self._replaced:
            self._limits.notes.append(("bytes-replaced", f"{self._replaced:,} places that are no {self._encoding}"))
        return sample.finish()

    def _blocks(self, rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
        """Yield rows in blocks of bounded size."""
        block: list[list[str]] = []
        cells, first = 0, 0
        try:
            for row in rows:
                self._row_piece = self._piece
                block.append(row)
                cells += 1 + len(row)
                if cells > _BLOCK_CELLS or self._piece - first > 4:
                    yield block
                    block, cells, first = [], 0, self._piece
        except csv.Error as error:
            self._try_other_quoting(error)
        yield block

    def _try_other_quoting(self, error: csv.Error) -> None:
        dialect = self._dialect
        if dialect is None or dialect.quoting in ("line", "none"):
            raise Unreadable("long-field", str(error)) from error
        stray = dialect.strict and "expected after" in str(error)
        self._dialect = dialect._replace(strict=False) if stray else Dialect(dialect.delimiter, "line", strict=False)
        raise _Again

    def _rows(self) -> Iterator[list[str]]:
        pieces = self._pieces()
        first = next(pieces, "")
        _refuse_json(first, complete=False)
        own, others, rest = _told(first, self._delimiter)
        if self._dialect is None:
            self._dialect = _dialect_of(_prefix(rest), own, others, complete=False)
        return read_rows(self._lines(rest, pieces), self._dialect)

    def _lines(self, first: str, pieces: Iterator[str]) -> Iterator[str]:
        yield from text_lines(first)
        for piece in pieces:
            self._piece += 1
            if (self._piece - self._row_piece) * _CHUNK_BYTES > 2 * MAX_LINE_CHARS:
                raise Unreadable("long-line", f"a row of more than {MAX_LINE_CHARS:,} characters")
            yield from text_lines(piece)

    def _pieces(self) -> Iterator[str]:
        """Yield pieces of text that end where a line ends."""
        step, replaced = decoder(self._encoding), replaces(self._encoding)
        open_line, before = "", b""
        while True:
            data = self._source.read(_CHUNK_BYTES)
            try:
                text = step(data, not data)
            except UnicodeDecodeError as error:
                self._encoding = other_encoding(data or before)
                raise _Again from error
            before = data
            refuse_nul(text)
            if replaced:
                self._replaced += text.count("\ufffd")
            text = open_line + text
            if not data:
                yield text
                return
            # a \r at the very end may be the first half of a line end
            end = max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
            open_line = text[end:]
            if len(open_line) > MAX_LINE_CHARS:
                raise Unreadable("long-line", f"a line of more than {MAX_LINE_CHARS:,} characters")
            if end:
                yield text[:end]
