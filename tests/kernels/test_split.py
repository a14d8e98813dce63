"""Rows taken apart into what is full and what is mostly zero: the same products, the same top-K."""

from __future__ import annotations

import numpy as np
import pytest

from gpumatch.kernels import backends, reference, topk
from gpumatch.kernels.backends import Part, Product, TorchBackend
from gpumatch.kernels.split import Split


def rows_of(n, seed=0, dtype=np.float16):
    """Rows whose places are full, filled in one of ten rows, and empty."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 60))
    rows[:, 20:45] *= rng.random((n, 25)) < 0.1
    rows[:, 45:] = 0
    return rows.astype(dtype)


def scores_of(queries, rows):
    return queries.astype(np.float64) @ rows.astype(np.float64).T


@pytest.mark.parametrize("n", [0, 1, 7, 1023, 1024, 2100])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_products_are_those_of_whole_rows(n, dtype):
    rows = rows_of(n, dtype=dtype)
    queries = np.random.default_rng(1).normal(size=(9, 60)).astype(np.float32)
    queries[:, ::3] = 0
    split = Split.of(rows)
    assert len(split) == n
    found = split.products(queries)
    assert (found.shape, found.dtype) == ((9, n), np.float32)
    np.testing.assert_allclose(found, queries.astype(np.float64) @ rows.astype(np.float64).T, atol=1e-4)


def test_what_is_mostly_zero_is_kept_as_lists():
    split = Split.of(rows_of(2000))
    assert split.filled.tolist() == list(range(20))
    assert split.sparse.tolist() == list(range(20, 45))
    assert split.dense.shape == (2000, 20)
    assert len(split.holder) == np.count_nonzero(rows_of(2000)[:, 20:45])


@pytest.mark.parametrize("rows", [np.zeros((5, 8), np.float16), np.ones((5, 8), np.float16), np.zeros((3, 0))])
def test_rows_that_are_all_of_one_kind(rows):
    queries = np.ones((2, rows.shape[1]), np.float32)
    np.testing.assert_array_equal(Split.of(rows).products(queries), queries @ rows.T.astype(np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_top_k_is_the_references(threads):
    rows, queries = rows_of(900), rows_of(150, seed=2, dtype=np.float32)
    exclude = np.where(np.arange(150) % 3, np.arange(150), -1)
    ids, scores = topk.topk(queries, Split.of(rows), 40, exclude=exclude, threads=threads)
    wanted_ids, wanted_scores = reference.topk(scores_of(queries, rows), 40, exclude)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(scores, wanted_scores, atol=5e-6)


def test_not_a_number_is_refused():
    rows, queries = rows_of(30), rows_of(2, dtype=np.float32)
    rows[7, 30] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        topk.topk(queries, Split.of(rows), 4)


def test_a_back_end_keeps_the_rows_of_one_lake_taken_apart(monkeypatch):
    monkeypatch.setattr(backends, "_WORTH_SPLITTING", 100)
    made, of = [], Split.of
    monkeypatch.setattr(backends.Split, "of", lambda rows: made.append(len(rows)) or of(rows))
    backend, rows, queries = TorchBackend("cpu", 2), rows_of(300), rows_of(20, dtype=np.float32)
    nobody = np.full(20, -1)
    found = [backend.best(Product([Part(queries, rows)], 300), 50, nobody, 64) for _ in range(2)]
    assert made == [300]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][0], reference.topk(scores_of(queries, rows), 50)[0])
    backend.best(Product([Part(queries, rows_of(200))], 200), 50, nobody, 64)
    backend.best(Product([Part(queries, rows)], 300), 2, nobody, 64)  # screened
    assert made == [300, 200]
