"""The fused product and filter against float64: on a device, or as Triton's interpreter runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import assert_best_keys, vectors

triton_topk = pytest.importorskip("gpumatch.kernels.triton_topk", exc_type=ModuleNotFoundError)
BLOCK_Q, BLOCK_R, fused_topk = triton_topk.BLOCK_Q, triton_topk.BLOCK_R, triton_topk.fused_topk
DEVICE = "cuda" if torch.cuda.is_available() else "cpu:0"


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """So that there are slabs, and ones that do not fit."""
    monkeypatch.setattr(triton_topk, "ROOM", 64)


def assert_best(queries, rows, k, exclude=None):
    there = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
    assert_best_keys(fused_topk(queries, rows, k, exclude, DEVICE), queries, there, k, exclude)


@pytest.mark.parametrize("n_rows", [0, 1, 31, 33, 64, 65, 123, BLOCK_R - 1, BLOCK_R, BLOCK_R + 1])
def test_odd_shapes(n_rows):
    for n, width, k in ((0, 3, 2), (1, 1, 1), (3, 33, 5), (BLOCK_Q + 1, 31, 2), (5, 123, 64)):
        assert_best(vectors(n, width, 1), vectors(n_rows, width, 2, np.float16), k)


@pytest.mark.parametrize("k", [1, 31, 100])
def test_slabs_of_any_size_and_rows_on_the_device(k, monkeypatch):
    queries, rows = vectors(9, 40, 3), vectors(400, 40, 4, np.float16)
    assert_best(queries, torch.from_numpy(rows).to(DEVICE), k)
    monkeypatch.setattr(triton_topk, "_FILL", 1)
    assert_best(queries, rows, k)
    monkeypatch.setattr(triton_topk, "_EXACT_CELLS", 1)
    monkeypatch.setattr(triton_topk, "_SLAB_BYTES", 1)
    assert_best(queries, rows, k)


def test_more_rows_than_there_is_room_for_are_taken_in_halves(monkeypatch):
    """All scores are the same, or rise: everything has to be noted."""
    monkeypatch.setattr(triton_topk, "_FILL", 0.01)  # slabs that are far too large
    rows = np.ones((260, 8), np.float16)
    assert_best(np.ones((2, 8), np.float32), rows, 5)
    rising = rows * np.linspace(0.1, 1, 260, dtype=np.float16)[:, None]
    assert_best(np.ones((2, 8), np.float32), rising, 5)


def test_a_query_that_scores_all_rows_alike_has_no_other_looked_at_again(monkeypatch):
    monkeypatch.setattr(triton_topk, "_FILL", 0.01)
    looked, whole = [], triton_topk._Search._filter

    def counted(self, rows, start, least, of):
        looked.append((len(least), len(rows)))
        return whole(self, rows, start, least, of)

    monkeypatch.setattr(triton_topk._Search, "_filter", counted)
    queries, rows = vectors(6, 16, 10), vectors(700, 16, 11, np.float16)
    assert_best(queries, rows, 4, np.full(6, 3))
    alone = sum(n * m for n, m in looked)
    looked.clear()
    queries = np.insert(queries, 2, 0, axis=0)
    assert_best(queries, rows, 4, np.array([3, 3, 1, 3, 3, 3, 3]))
    assert sum(n * m for n, m in looked if n > 1) <= alone / 6 * 7
    assert {n for n, _ in looked} == {7, 1}


def test_ties_go_to_the_lower_row():
    rows = np.repeat(vectors(6, 16, 5, np.float16), 50, axis=0)
    assert_best(rows[::50].astype(np.float32), rows, 37)
    assert_best(np.zeros((2, 16), np.float32), rows, 8)


def test_the_excluded_row_is_never_given():
    rows = vectors(200, 16, 6, np.float16)
    hidden = np.array([3, 199, 0, 64, 63, -1])
    for k in (1, 9, 64):
        assert_best(rows[hidden].astype(np.float32), rows, k, hidden)


def test_queries_that_float16_cannot_hold():
    """They are rounded for the product and allowed for."""
    rng = np.random.default_rng(7)
    queries = rng.normal(size=(8, 50)).astype(np.float32) * rng.choice([1e-6, 1e-3, 1, 5], (8, 50)).astype(np.float32)
    queries[3] *= 1e-30
    rows = (rng.normal(size=(300, 50)) * rng.choice([0, 1e-3, 1, 4], (300, 1))).astype(np.float16)
    assert_best(queries, rows, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad):
    queries, rows = vectors(3, 20, 8), vectors(150, 20, 9, np.float16)
    rows[130, 19] = bad
    with pytest.raises(ValueError, match="among rows"):
        fused_topk(queries, rows, 4, None, DEVICE)
    queries[2, 0] = bad
    with pytest.raises(ValueError, match="among the queries"):
        fused_topk(queries, rows[:50], 4, None, DEVICE)


def test_a_best_score_that_a_key_cannot_hold_is_refused():
    rows = np.ones((50, 4), np.float16)
    rows[20] = 501
    with pytest.raises(ValueError, match="more than"):
        fused_topk(np.ones((1, 4), np.float32), rows, 3, None, DEVICE)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 5), n_rows=st.integers(1, 150), width=st.integers(1, 9), k=st.integers(1, 20), seed=st.integers()
)
def test_any_small_numbers(n, n_rows, width, k, seed):
    """Few different numbers: scores are exact and often tie."""
    rng = np.random.default_rng(abs(seed))
    both = rng.choice([0, 0.25, -0.25, 1, -1, 3], (n + n_rows, width)).astype(np.float32)
    assert_best(both[:n].copy(), both[n:].astype(np.float16), k, rng.integers(-1, n_rows, n))
