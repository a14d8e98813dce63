"""Rows of a table in, those that are kept out: the same ones however they arrive."""

import pyarrow as pa
import pytest

from gpumatch.lake.rules import Limits
from gpumatch.lake.sample import Sample


def kept(blocks, limit, as_cells):
    """The columns and notes of a table of two columns whose rows arrive in blocks."""
    limits = Limits(limit)
    sample = Sample("t", ["a", "b"], (None, None), limits)
    for rows in blocks:
        if as_cells:
            sample.add_cells(pa.array([row[i] for i in range(2) for row in rows]), len(rows))
        else:
            sample.add_rows(rows)
    return [column.to_pylist() for column in sample.finish().columns], limits.notes


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_cells_of_whole_columns_are_kept_like_rows(size):
    rows = [(str(i), f"b{i}") for i in range(100)]
    blocks = [rows[i : i + size] for i in range(0, 100, size)]
    whole = kept([rows], 5, as_cells=False)
    assert whole[1] == [("rows-sampled", "5 of 100 rows")]
    assert len(whole[0][0]) == 5
    assert all(b == f"b{a}" for a, b in zip(*whole[0], strict=True))
    assert kept(blocks, 5, as_cells=True) == kept(blocks, 5, as_cells=False) == whole
