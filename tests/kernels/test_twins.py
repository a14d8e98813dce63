"""The other side of pairs in pools, against a dictionary of all pairs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.kernels.twins import twins


def twins_by_hand(ids, order):
    rank = {t: i for i, t in enumerate(order.tolist())}
    out = np.full(ids.shape, -1)
    place = {(t, s): t * ids.shape[1] + i for t, row in enumerate(ids.tolist()) for i, s in enumerate(row) if s >= 0}
    for t, row in enumerate(ids.tolist()):
        for i, s in enumerate(row):
            if s >= 0 and rank[s] < rank[t]:
                out[t, i] = place.get((s, t), -1)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_twins_against_brute_force(seed, n, width):
    rng = np.random.default_rng(seed)
    ids = np.full((n, width), -1)
    for t in range(n):
        others = rng.permutation(np.delete(np.arange(n), t))[: rng.integers(0, width + 1)]
        ids[t, : len(others)] = others
    order = rng.permutation(n)
    np.testing.assert_array_equal(twins(ids, order), twins_by_hand(ids, order))


def test_twins_of_nothing():
    np.testing.assert_array_equal(twins(np.full((1, 1), -1), np.arange(1)), [[-1]])
    np.testing.assert_array_equal(twins(np.array([[1], [0]]), np.arange(2)), [[-1], [0]])
    np.testing.assert_array_equal(twins(np.array([[1], [0]]), np.array([1, 0])), [[1], [-1]])
