"""stream_topk against the reference: ties by row number, whatever the tiles; nothing hidden, repeated or made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpumatch.kernels import reference
from gpumatch.kernels.heaps import LARGEST_SCORE, RESOLUTION
from gpumatch.kernels.topk import SCREENED, stream_topk, topk

SIZES = (0, 1, 2, 31, 32, 33, 63, 65, 123)
TILES = (1, 2, 7, 31, 32, 33, 64, 1000)


def stream(scores, k, tile, exclude=None, device="cpu"):
    scores = np.asarray(scores, np.float32)
    scores = scores if device == "cpu" else torch.from_numpy(scores).to(device)
    hide = None if exclude is None else np.asarray(exclude, np.int64)
    ids, best = stream_topk(lambda a, b: scores[:, a:b], scores.shape[1], k, tile=tile, exclude=hide)
    assert ids.dtype == np.int64
    assert best.dtype == np.float32
    assert ids.shape == best.shape == (len(scores), k)
    return ids, best


def assert_same(got, expected):
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], rtol=2e-7, atol=1e-9)


def random_scores(n, rows, levels=None, seed=0):
    """Scores in [-2, 2]; with `levels`, that many different ones."""
    rng = np.random.default_rng([seed, n, rows])
    scores = rng.uniform(-2, 2, (n, rows)).astype(np.float32)
    return scores if levels is None else rng.choice(scores.reshape(-1)[:levels], (n, rows))


@pytest.mark.parametrize("k", [0, 1, 5, 33, 200])
@pytest.mark.parametrize("rows", SIZES)
def test_odd_shapes(rows, k, device):
    for n in (0, 1, 3, 17):
        scores = random_scores(n, rows)
        for tile in (1, 7, 32, 1000):
            assert_same(stream(scores, k, tile, device=device), reference.topk(scores, k))


@pytest.mark.parametrize("tile", TILES)
def test_ties_go_to_the_lower_row_whatever_the_tile(tile, device):
    scores = random_scores(9, 123, levels=4)
    for k in (1, 10, 122, 123, 124):
        assert_same(stream(scores, k, tile, device=device), reference.topk(scores, k))


@pytest.mark.parametrize("tile", TILES)
def test_all_scores_equal_is_the_order_of_the_rows(tile, device):
    for level in (0.0, -0.0, 1.0, -1.0, 0.123456):
        ids, best = stream(np.full((2, 65), level), 40, tile, device=device)
        np.testing.assert_array_equal(ids, np.tile(np.arange(40), (2, 1)))
        np.testing.assert_allclose(best, level, atol=1e-9)


@pytest.mark.parametrize("tile", TILES)
def test_noise_below_the_resolution_changes_nothing(tile, device):
    rng = np.random.default_rng(1)
    steps = rng.integers(-800_000, 800_000, 30)
    scores = rng.choice(steps, (5, 123)) * RESOLUTION
    noise = rng.uniform(-1e-7, 1e-7, scores.shape)
    expected = reference.topk(scores, 60)
    assert_same(stream(scores, 60, tile, device=device), expected)
    assert_same(stream(scores + noise, 60, tile, device=device), expected)


def test_neighbouring_steps_are_not_ties(device):
    scores = np.array([[5, 6, 5, 7]]) * RESOLUTION
    ids, _ = stream(scores, 4, 3, device=device)
    np.testing.assert_array_equal(ids, [[3, 1, 0, 2]])


def test_negative_scores_keep_their_order(device):
    scores = np.array([[-0.5, -0.1, -0.9, -0.1, -1000.0]])
    ids, best = stream(scores, 5, 2, device=device)
    np.testing.assert_array_equal(ids, [[1, 3, 0, 2, 4]])
    np.testing.assert_allclose(best, [[-0.1, -0.1, -0.5, -0.9, -1000.0]], rtol=1e-6)


@pytest.mark.parametrize("tile", TILES)
def test_products_of_vectors_do_not_depend_on_the_tile(tile, device, put):
    # Small integers over 64: every product is exact, in any order of summation.
    rng = np.random.default_rng(2)
    q = rng.integers(-4, 5, (7, 16)).astype(np.float32) / 64
    rows = np.repeat(rng.integers(-4, 5, (41, 16)), 3, axis=0).astype(np.float32)
    on_q, on_rows = put(q, device), put(rows, device)
    found = stream_topk(lambda a, b: on_q @ on_rows[a:b].T, len(rows), 50, tile=tile)
    assert_same(found, reference.topk(q.astype(np.float64) @ rows.astype(np.float64).T, 50))


# --- exclude


@pytest.mark.parametrize("tile", TILES)
def test_the_excluded_row_is_never_given(tile, device):
    scores = random_scores(6, 33, levels=3)
    exclude = np.array([-1, 0, 32, 16, 7, 31])
    for k in (1, 32, 33, 40):
        assert_same(stream(scores, k, tile, exclude, device), reference.topk(scores, k, exclude))


def test_excluding_the_best_gives_the_second_and_other_queries_keep_it(device):
    scores = np.array([[0.1, 0.9, 0.5]] * 2)
    ids, best = stream(scores, 3, 2, [1, -1], device)
    np.testing.assert_array_equal(ids, [[2, 0, -1], [1, 2, 0]])
    assert best[0, 2] == -np.inf


def test_the_only_row_excluded_leaves_nothing(device):
    ids, best = stream([[0.7]], 2, 8, [0], device)
    np.testing.assert_array_equal(ids, [[-1, -1]])
    assert (best == -np.inf).all()


# --- edges


def test_more_wanted_than_there_are(device):
    ids, best = stream([[0.2, 0.4]], 5, 1, device=device)
    np.testing.assert_array_equal(ids, [[1, 0, -1, -1, -1]])
    assert (best[0, 2:] == -np.inf).all()


def test_no_rows_and_no_queries(device):
    for n, rows in ((3, 0), (0, 5), (0, 0)):
        ids, best = stream(np.empty((n, rows)), 4, 2, device=device)
        assert (ids == -1).all()
        assert (best == -np.inf).all()


@pytest.mark.parametrize("at", [0, 30, 31, 64])
def test_nan_is_refused_and_its_tile_named(at, device):
    scores = np.zeros((2, 65), np.float32)
    scores[1, at] = np.nan
    start = at // 31 * 31
    with pytest.raises(ValueError, match=f"NaN.*rows {start} to {min(start + 31, 65)}"):
        stream(scores, 3, 31, device=device)


@pytest.mark.parametrize("level", [np.inf, -np.inf, 2001.0, -2001.0, 3e3, -1e13])
def test_a_score_that_its_key_cannot_hold_is_refused(level, device):
    with pytest.raises(ValueError, match=f"more than {LARGEST_SCORE}.*rows 1 to 2"):
        stream([[-0.5, level, 0.5]], 3, 1, device=device)


def test_the_largest_scores_are_ordered(device):
    scores = [[-0.5, LARGEST_SCORE, 0.5, -LARGEST_SCORE, LARGEST_SCORE]]
    ids, best = stream(scores, 5, 2, device=device)
    np.testing.assert_array_equal(ids, [[1, 4, 2, 0, 3]])
    np.testing.assert_allclose(best, [[2000, 2000, 0.5, -0.5, -2000]], rtol=1e-6)


def test_twice_the_same(device):
    scores = random_scores(5, 123, levels=3)
    first, second = stream(scores, 50, 31, device=device), stream(scores, 50, 31, device=device)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@given(
    scores=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
        elements=st.integers(-5, 5).map(lambda step: float(np.float32(step / 4))),
    ),
    k=st.integers(0, 25),
    tile=st.integers(1, 25),
    data=st.data(),
)
def test_any_scores_any_tile(scores, k, tile, data):
    n, rows = scores.shape
    exclude = np.array(data.draw(st.lists(st.integers(-1, max(0, rows - 1)), min_size=n, max_size=n)), np.int64)
    assert_same(stream(scores, k, tile, exclude), reference.topk(scores, k, exclude))


# --- of vectors


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("k", [0, 1, 3, 40])
@pytest.mark.parametrize("n_rows", [0, 1, 40, SCREENED - 1, SCREENED, 3 * SCREENED + 1])
def test_vectors_whether_screened_or_not(n_rows, k, kind, device):
    rng = np.random.default_rng([n_rows, k])
    queries, rows = rng.integers(-4, 5, (7, 16)).astype(np.float32) / 8, rng.integers(-4, 5, (n_rows, 16)).astype(kind)
    exclude = rng.integers(-1, max(1, n_rows), 7)
    found = topk(queries, rows, k, device=device, tile=50, exclude=exclude, threads=2)
    assert_same(found, reference.topk(queries.astype(np.float64) @ rows.astype(np.float64).T, k, exclude))
