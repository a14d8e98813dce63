"""Offsets and flat positions against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.kernels import reference
from gpumatch.kernels.ragged import firsts, gather_segments, offsets_of

LENGTHS = [
    [],
    [0],
    [1],
    [0, 0, 0],
    [0, 3, 0, 0, 2, 0],
    [31, 33, 0, 1],
    [123],
    [127, 128, 129],
    list(range(33)),
]


def same(got, expected):
    assert got.dtype == expected.dtype == np.int64
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_offsets(lengths, kind):
    lengths = np.array(lengths, kind)
    same(offsets_of(lengths), reference.offsets_of(lengths))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gather_every_segment_in_order_is_all_of_the_data(lengths):
    offsets = offsets_of(np.array(lengths, np.int64))
    flat, found = gather_segments(offsets, np.arange(len(lengths)))
    same(flat, np.arange(sum(lengths), dtype=np.int64))
    same(found, np.array(lengths, np.int64))


@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=str)
def test_gather_rows_that_repeat_and_go_backwards(lengths):
    offsets = offsets_of(np.array(lengths, np.int64))
    rng = np.random.default_rng(len(lengths))
    rows = np.concatenate([np.arange(len(lengths))[::-1], rng.integers(0, len(lengths), 20)])
    for got, expected in zip(gather_segments(offsets, rows), reference.gather_segments(offsets, rows), strict=True):
        same(got, expected)


def test_gather_no_rows():
    for part in gather_segments(np.array([0, 2, 5]), np.empty(0, np.int64)):
        same(part, np.empty(0, np.int64))


def test_gather_from_data_that_does_not_start_at_zero():
    # A slice of a longer offsets array still points into the whole data.
    offsets = np.array([0, 2, 5, 5, 9])
    flat, lengths = gather_segments(offsets[1:], np.array([2, 0]))
    same(flat, np.array([5, 6, 7, 8, 2, 3, 4]))
    same(lengths, np.array([4, 3]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_gather_any(lengths, data):
    offsets = offsets_of(np.array(lengths))
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12)), np.int64)
    for got, expected in zip(gather_segments(offsets, rows), reference.gather_segments(offsets, rows), strict=True):
        same(got, expected)


def test_firsts_of_each_row():
    row, value = np.array([0, 0, 0, 2, 3, 3]), np.array([7, 5, 9, 4, 1, 8])
    assert firsts(row, value, 5, 2).tolist() == [[7, 5], [-1, -1], [4, -1], [1, 8], [-1, -1]]
    assert firsts(row[:0], value[:0], 2, 3).tolist() == [[-1] * 3] * 2
