"""How likely a column holds another's values only because it holds so many, against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.kernels.chance import Chance, beyond_chance, chance_between

LEVELS = 4
share = st.sampled_from([0.0, 0.125, 0.5, 1.0])
column = st.tuples(share, st.lists(share, min_size=LEVELS, max_size=LEVELS), st.integers(-1, LEVELS - 1), st.booleans())


def chance_of(columns):
    fixed, dense, level, keyed = ([one[i] for one in columns] for i in range(4))
    dense = np.array(dense, np.float32).reshape(len(columns), LEVELS)
    return Chance(np.array(fixed, np.float32), dense, np.array(level, np.int32), np.array(keyed, np.bool_))


@settings(deadline=None)  # the first call compiles
@given(st.lists(column, max_size=4), st.lists(column, max_size=4))
def test_between_is_the_likelier_way(q, c):
    left, right = np.divmod(np.arange(len(q) * len(c)), max(1, len(c)))
    found = chance_between(chance_of(q), chance_of(c), left, right)
    assert found.dtype == np.float64
    for i, j, chance in zip(left, right, found, strict=True):
        (fix, dense, level, keyed), (other_fix, other_dense, other_level, other_keyed) = q[i], c[j]
        up_to = min(level, other_level)
        expected = max(fix, other_fix, *((dense[up_to], other_dense[up_to]) if up_to >= 0 else ()))
        assert chance == (0 if keyed and other_keyed else expected)


def test_row_numbers_hold_any_number_that_is_no_larger():
    """Of 1 to 8, a column of sparse large numbers holds what it does by chance, and says so only up to there."""
    rows, large = (0, [1, 1, 1, 1], 3, False), (0, [1, 0.5, 0.25, 0.125], 3, False)
    few = (0, [1, 1, 0, 0], 1, False)
    of_all = chance_of([rows, large, few])
    assert chance_between(of_all, of_all, np.array([0, 1, 1]), np.array([1, 2, 1])).tolist() == [1, 1, 0.125]


@pytest.mark.parametrize(
    ("share", "most", "chance", "size", "expected"),
    [
        (0.7, 0.9, 0, 10, 0.7),  # nothing is found by chance
        (0.9, 0.9, 0.5, 100, 0.9 * (1 - 0.5 - 0.1) / 0.5),  # all of it, in 100 draws of one in two
        (0.45, 0.9, 0.5, 100, 0),  # what chance finds
        (0.9, 0.9, 0.5, 4, 0),  # four of four are no more than luck
        (0.9, 0.9, 1, 10, 0),
        (0, 0, 0.5, 0, 0),
    ],
)
def test_beyond_chance(share, most, chance, size, expected):
    (found,) = beyond_chance(*(np.array([one], np.float32) for one in (share, most, chance, size)))
    assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-6)
