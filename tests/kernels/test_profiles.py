"""The Gaussian kernel of columns' statistics against loops."""

from __future__ import annotations

import numpy as np
import pytest

from gpumatch.kernels import reference
from gpumatch.kernels.lanes import BLOCK
from gpumatch.kernels.profiles import profile_table


@pytest.mark.parametrize(("a", "m", "n"), [(1, 1, 6), (31, 33, 6), (8, 123, 1), (7, 9, 33)])
def test_profile_table(a, m, n, device, put, back):
    rng = np.random.default_rng([a, m, n])
    q, c = (rng.normal(size=(rows, n)).astype(np.float32) for rows in (a, m))
    c[0] = q[0]
    got = back(profile_table(put(q, device), put(c, device)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference.profile_table(q, c), rtol=1e-5, atol=1e-6)
    assert got[0, 0] == 1


def test_numbers_far_apart_are_nothing_alike_and_near_ones_are(device, put, back):
    q, c = np.array([[80.0]], np.float32), np.array([[80.0], [80.1], [-80.0]], np.float32)
    np.testing.assert_allclose(
        back(profile_table(put(q, device), put(c, device)))[:, 0], [1, np.exp(-0.005), 0], rtol=1e-4, atol=1e-30
    )


@pytest.mark.parametrize(("a", "m"), [(0, 0), (0, 3), (3, 0)])
def test_nothing(a, m, device, put, back):
    got = profile_table(put(np.ones((a, 6), np.float32), device), put(np.ones((m, 6), np.float32), device))
    assert back(got).shape == (m, a)


def test_only_wanted_blocks_need_be_right():
    rng = np.random.default_rng(0)
    q, c = (rng.normal(size=(rows, 6)).astype(np.float32) for rows in (50, 20))
    wanted = np.zeros((20, 4), np.bool_)
    wanted[[0, 3, 7, 7, 19], [3, 0, 1, 2, 1]] = True
    got, whole = profile_table(q, c, wanted), profile_table(q, c)
    right = np.repeat(wanted, BLOCK, axis=1)[:, :50]
    np.testing.assert_array_equal(got[right], whole[right])
    assert (got[wanted.sum(1) == 0] == 0).all()
