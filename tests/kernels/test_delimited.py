"""Cells of clean delimited texts: the csv module's, cell for cell, or None."""

import csv
import io
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpumatch.kernels.delimited import split_cells


def by_csv(text, delimiter):
    """The rows as Python's csv module reads them strictly, blank lines left out; None where widths differ."""
    try:
        rows = [r for r in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if r]
    except csv.Error:
        return None
    return rows if len(rows[0]) > 1 and len(set(map(len, rows))) == 1 else None


def by_kernel(text, delimiter):
    cells = split_cells(text.encode(), delimiter)
    return cells and [cells.row(r) for r in range(cells.n_rows)]


CELLS = st.sampled_from(
    ["a", "", "é漢", " b", 'x"y', '"q"', '"a""b"', '""""', '"l\nm"', '"l\r\nm"', ' "z"', '"', '"a"b']
)
CELLS_OF_LINES = st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=4)


@settings(deadline=None)  # the first example compiles the kernel
@given(CELLS_OF_LINES, st.sampled_from(["\n", "\r\n", "\r", "\n\n"]), st.sampled_from([",", "\t"]), st.booleans())
@example([["a", "b"], ["1", ""]], "\n", ",", False)  # a delimiter is the last byte
def test_lines_of_cells_are_what_the_csv_module_reads(lines, end, delimiter, ended):
    text = end.join(delimiter.join(line) for line in lines) + (end if ended else "")
    assert by_kernel(text, delimiter) == by_csv(text, delimiter)


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from('a",\n\r é'), min_size=1, max_size=14).filter(lambda text: not text.isspace()))
def test_any_text_is_what_the_csv_module_reads(text):
    assert by_kernel(text, ",") == by_csv(text, ",")


@pytest.mark.parametrize(
    "text", ["a\n1\n", 'a,b\n1,"2\n', 'a,b\n1,"2"x\n', "a,b\n1\n", "a,b\n1,2,3\n", 'a,"b', 'a,"'], ids=ascii
)
def test_what_is_odd_is_left_to_others(text):
    assert split_cells(text.encode(), ",") is None


@settings(deadline=None)
@given(CELLS_OF_LINES, st.integers(0, 3))
def test_cells_lie_column_after_column(lines, first):
    text = "\n".join(",".join(line) for line in lines)
    cells = split_cells(text.encode(), ",")
    if cells is None or first > cells.n_rows:
        return
    rows = by_csv(text, ",")
    for width in range(1, cells.width + 1):
        data, offsets = cells.by_column(first, width)
        found = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]
        assert found == [row[i] for i in range(width) for row in rows[first:]]
        assert offsets[-1] == len(data)
