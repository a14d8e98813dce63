"""Rows in file order in, a `Table` within bounds out: at most so many columns, rows, and characters a cell.

Which rows are kept depends on their numbers alone, never on how they arrive: each row number has a fixed pseudo-random
priority, and the rows of the smallest ones are kept, in file order. That is a uniform sample without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpumatch.lake.rules import Limits

# A limit, since scoring two tables costs the product of their widths: 4 million column pairs for two of this width.
MAX_COLUMNS = 2_000
# The most cells of one table: about 200 MB while they are Python strings, a tenth of that as Arrow columns.
MAX_CELLS = 2_000_000
# The most characters of a cell: longer ones are documents, of which the encoder reads less than a tenth anyway.
MAX_CELL_CHARS = 8_192
# The most bytes of a table's text; long cells leave room for fewer rows.
MAX_TEXT_BYTES = 64 << 20
# Any other number gives another sample, and so other indexes.
_SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Table:
    """A table as read.

    name: its path below the lake root, with extension.
    header: the column names as written, n_columns of them; they may repeat or be blank.
    columns: Arrow string arrays, one a column, all of the same length; null and "" both mean no value.
    types: the declared type of each column ("numeric" or "string"), or None where it has to be inferred.
    sampled: True if the cells are only a sample, so that row counts and containment mean nothing.
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

    @property
    def n_bytes(self) -> int:
        """Bytes of the buffers that hold the cells; those that columns share count once."""
        size: int = pa.chunked_array(self.columns, pa.string()).get_total_buffer_size()
        return size


def rows_kept(n_columns: int, sample_rows: int) -> int:
    """Return how many rows of a table of that width are kept at most."""
    return min(sample_rows, max(1, MAX_CELLS // max(1, n_columns)))


class Sample:
    """A table in the making: take blocks of rows in file order, then `finish`.

    width: how many columns are kept, the first ones.
    seen: how many rows went by.
    """

    def __init__(self, name: str, header: Sequence[str], types: Sequence[str | None], limits: Limits) -> None:
        self.width = min(len(header), MAX_COLUMNS)
        self.seen = 0
        self._name, self._limits, self._full_width = name, limits, len(header)
        self._dropped = self._widest = 0  # how many rows lose cells beyond the header, and how long the longest is
        self._header = tuple(one[:MAX_CELL_CHARS] for one in header[: self.width])
        self._types = tuple(types[: self.width])
        self._limit = rows_kept(self.width, limits.sample_rows)
        self._threshold: int | None = None  # rows of this priority or more cannot be in the sample
        self._numbers: list[Any] = []  # uint64 [rows] a block: the rows' numbers in the file
        self._blocks: list[list[pa.Array]] = []
        self._rows = self._bytes = self._cut = 0
        if self.width < len(header):
            limits.notes.append(("columns-cut", f"the first {self.width:,} of {len(header):,} columns"))

    def add_rows(self, rows: Sequence[Sequence[str | None]]) -> None:
        """Take the next rows; shorter ones are filled with nulls, longer ones cut."""
        if max(map(len, rows), default=0) > self._full_width:
            self._count_dropped(rows)
        wanted = self.wanted(len(rows))
        if wanted is not None:
            rows = [rows[i] for i in wanted.tolist()]
        self._add_table(cells_by_column(rows, self.width), len(rows))

    def _count_dropped(self, rows: Sequence[Sequence[str | None]]) -> None:
        for row in rows:
            if any(cell and not cell.isspace() for cell in row[self._full_width :]):
                self._dropped += 1
                self._widest = max(self._widest, len(row))

    def add_cells(self, cells: pa.Array, n_rows: int) -> None:
        """Take the next rows, all of their cells in one string array, column after column."""
        wanted = self.wanted(n_rows)
        if wanted is not None:
            flat = np.arange(self.width)[:, None] * n_rows + wanted
            cells, n_rows = cells.take(pa.array(flat.reshape(-1))), len(wanted)
        self._add_table(cells, n_rows)

    def _add_table(self, cells: pa.Array, n_rows: int) -> None:
        cells = self._shortened(cells)
        self._add([cells.slice(i * n_rows, n_rows) for i in range(self.width)])

    def wanted(self, n_rows: int) -> Any:  # noqa: ANN401 - int64 [some], or None for all
        """Count the next n rows as seen and return the positions of those to add; `add_columns` must follow."""
        numbers = np.arange(self.seen, self.seen + n_rows, dtype=np.uint64)
        self.seen += n_rows
        if self._threshold is None:
            self._numbers.append(numbers)
            return None
        at = np.flatnonzero(_priorities(numbers) < np.uint64(self._threshold))
        self._numbers.append(numbers[at])
        return at

    def add_columns(self, columns: list[pa.Array]) -> None:
        """Take the columns of the rows that `wanted` named."""
        self._add([self._shortened(column) for column in columns[: self.width]])

    def _add(self, columns: list[pa.Array]) -> None:
        self._blocks.append(columns)
        self._rows += len(self._numbers[-1])
        if self._rows > 2 * self._limit or self._bytes > 2 * MAX_TEXT_BYTES:
            self._prune()

    def _shortened(self, column: pa.Array) -> pa.Array:
        """Cut long cells, and count them and the bytes of text."""
        text = column.buffers()[2]
        if text is None:
            return column
        self._bytes += column.nbytes if column.offset else text.size
        if text.size <= MAX_CELL_CHARS:
            return column
        if (pc.max(pc.binary_length(column)).as_py() or 0) <= MAX_CELL_CHARS:
            return column
        self._cut += pc.sum(pc.greater(pc.utf8_length(column), MAX_CELL_CHARS)).as_py() or 0
        return pc.utf8_slice_codeunits(column, 0, MAX_CELL_CHARS)

    def _prune(self) -> None:
        """Keep the rows of the smallest priorities: as many as may be kept and as the text has room for."""
        columns, numbers = self._joined()
        priorities = _priorities(numbers)
        order = np.argsort(priorities)
        sizes = sum((_sizes(column) for column in columns), np.zeros(len(numbers), np.int64))
        room = int(np.searchsorted(np.cumsum(sizes[order]), MAX_TEXT_BYTES, "right"))
        keep = min(self._limit, max(1, room), len(order))
        if keep < len(order):
            self._threshold = int(priorities[order[keep]])
        at = np.sort(order[:keep])
        self._blocks = [[column.take(pa.array(at)) for column in columns]]
        self._numbers = [numbers[at]]
        self._rows, self._bytes = keep, sum(column.nbytes for column in self._blocks[0])

    def _joined(self) -> tuple[list[pa.Array], Any]:
        if len(self._blocks) == 1:
            return self._blocks[0], self._numbers[0]
        if not self._blocks:
            return [pa.array([], pa.string()) for _ in range(self.width)], np.zeros(0, np.uint64)
        columns = [pa.concat_arrays(parts) for parts in zip(*self._blocks, strict=True)]
        return columns, np.concatenate(self._numbers)

    def finish(self, *, sampled: bool = False) -> Table:
        """Return the table, and note what it lacks; `sampled`: the rows that went by were a sample already."""
        if self._rows > self._limit or self._bytes > MAX_TEXT_BYTES:
            self._prune()
        columns, _ = self._joined()
        if self._dropped:
            found = f"rows: {self._dropped:,}, of up to {self._widest:,} cells below a header of {self._full_width:,}"
            self._limits.notes.append(("cells-dropped", found))
        if self._cut:
            self._limits.notes.append(("cells-cut", f"{self._cut:,} cells of more than {MAX_CELL_CHARS:,} characters"))
        if self._rows < self.seen:
            sampled = True
            self._limits.notes.append(("rows-sampled", f"{self._rows:,} of {self.seen:,} rows"))
        return Table(self._name, self._header, tuple(columns), self._types, sampled)


def _priorities(numbers: Any) -> Any:  # noqa: ANN401 - uint64 [rows]
    """Return SplitMix64 of the row numbers: integers only, so that every machine has the same."""
    mixed = (numbers + np.uint64(1)) * np.uint64(_SEED)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _sizes(column: pa.Array) -> Any:  # noqa: ANN401 - int64 [rows]
    return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


# --- Arrow columns


def cells_by_column(rows: Sequence[Sequence[str | None]], width: int) -> pa.Array:
    """Return all cells as one string array, column after column; short rows are filled with nulls, long ones cut.

    One array for the whole table, since for short arrays the call itself takes most of the time.
    """
    if set(map(len, rows)) - {width}:
        rows = [[*row[:width], *[None] * (width - len(row))] for row in rows]
    return text_array(list(chain.from_iterable(zip(*rows, strict=True))))


def string_array(text: Any, offsets: Any) -> pa.Array:  # noqa: ANN401
    """Return a string array of UTF-8 bytes, uint8 [b]; string i is text[offsets[i]:offsets[i+1]], offsets int32."""
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text))


def text_array(cells: Sequence[str | None]) -> pa.Array:
    """Turn cells into a string array; a lone surrogate, which JSON can spell and UTF-8 cannot, becomes "?"."""
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:
        return pa.array([c if c is None else c.encode("utf-8", "replace").decode() for c in cells], pa.string())
