"""Products of gathered rows against float64."""

from __future__ import annotations

import numpy as np
import pytest

from gpumatch.kernels import dense, reference
from gpumatch.kernels.dense import row_products
from gpumatch.kernels.lanes import BLOCK


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("m", "a", "dim"), [(0, 3, 4), (3, 0, 4), (1, 1, 1), (33, 31, 33), (1500, 7, 16)])
def test_row_products(m, a, dim, dtype, device, put, back, monkeypatch):
    monkeypatch.setattr(dense, "_ROWS", 31)
    rng = np.random.default_rng([m, a, dim])
    vectors, rows = rng.normal(size=(40, dim)).astype(dtype), rng.integers(0, 40, m)
    others = rng.normal(size=(a, dim)).astype(np.float32)
    got = back(row_products(put(vectors, device), put(rows, device), put(others, device)))
    assert got.dtype == np.float32
    assert got.shape == (m, a)
    wanted = reference.row_products(vectors, rows, others)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    clipped = back(row_products(put(vectors, device), put(rows, device), put(others, device), clip=True))
    np.testing.assert_allclose(clipped, wanted.clip(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_only_wanted_blocks_need_be_right(dtype, monkeypatch):
    monkeypatch.setattr(dense, "_ROWS", 31)
    rng = np.random.default_rng(0)
    vectors, rows = rng.normal(size=(40, 24)).astype(dtype), rng.integers(0, 40, 100)
    others = rng.normal(size=(50, 24)).astype(np.float32)
    wanted = np.zeros((100, 4), np.bool_)
    wanted[[0, 13, 50, 99, 99], [3, 0, 1, 2, 3]] = True
    got, whole = row_products(vectors, rows, others, wanted), row_products(vectors, rows, others)
    right = np.repeat(wanted, BLOCK, axis=1)[:, :50]
    np.testing.assert_array_equal(got[right], whole[right])
    assert (got == 0).sum() > 3_000


def test_a_product_has_the_same_bits_whatever_is_beside_it():
    vectors = np.random.default_rng(0).normal(size=(90, 50)).astype(np.float32)
    whole = row_products(vectors, np.arange(90), vectors)
    rng = np.random.default_rng(0)
    for n in (1, 5, 30, 70):
        some, others = rng.permutation(90)[:n], rng.permutation(90)[:n]
        np.testing.assert_array_equal(row_products(vectors, others, vectors[some]), whole[np.ix_(others, some)])
