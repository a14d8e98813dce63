"""Entries that a column shows for the first time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.kernels.entries import first_seen


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_the_first_of_each_kind(entries):
    entries.sort(key=lambda entry: entry[1])  # by column, as they come
    code, column = np.array(entries, np.int64).reshape(-1, 2).T
    seen = [i for i, entry in enumerate(entries) if entry not in entries[:i]]
    assert first_seen(code, column).tolist() == seen
