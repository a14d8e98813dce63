"""Entries that a column shows for the first time, against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.kernels import reference
from gpumatch.kernels.entries import first_seen


def check(code, column):
    order = np.argsort(column, kind="stable")  # by column, as they come
    code, column = code[order], column[order]
    found = first_seen(code, column)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, reference.first_of(code, column))


@pytest.mark.parametrize("n", [0, 1, 31, 33, 123, 1025])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_first_seen(n, levels):
    check(*np.random.default_rng([n, levels]).integers(0, levels, (2, n)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_the_first_of_each_kind(entries):
    check(*np.array(entries, np.int64).reshape(-1, 2).T)
