"""Different keys and their places against dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.kernels import reference
from gpumatch.kernels.hashing import distinct


@pytest.mark.parametrize("keys", [[], [0], [5, 5, 5], [3, 1, 3, 2, 1], [2**62, 0, 2**62], list(range(100)) * 2])
def test_distinct(keys):
    keys = np.array(keys, np.int64)
    for got, expected in zip(distinct(keys), reference.distinct(keys), strict=True):
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 5), max_size=50))
def test_any_distinct(keys):
    keys = np.array(keys, np.int64)
    for got, expected in zip(distinct(keys), reference.distinct(keys), strict=True):
        np.testing.assert_array_equal(got, expected)
