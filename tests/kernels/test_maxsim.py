"""Lookup, segment reductions and MaxSim of ragged pairs against loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.kernels import reference
from gpumatch.kernels.maxsim import maxsim_backward, maxsim_forward, segment_max, segment_mean, spread_table

SEGMENTS = [
    [],
    [0],
    [1],
    [0, 0, 0],
    [3],
    [0, 2, 0, 0, 3, 0],
    [31, 33],
    [1] * 33,
    [0, 123, 0, 1],
    [127, 128, 129],
    list(range(12)),
]
LANES = (0, 1, 31, 33, 123)


def put(array, device="cpu"):
    return torch.from_numpy(array).to(device)


def start_of(lengths):
    return np.cumsum([0, *lengths]).astype(np.int64)


def random_rows(lengths, lanes, low=0.0, seed=0):
    rng = np.random.default_rng([seed, sum(lengths), lanes])
    return rng.uniform(low, 1, (sum(lengths), lanes)).astype(np.float32)


def same(got, expected, **tolerance):
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.cpu().numpy(), expected, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


# --- segments


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("lengths", SEGMENTS, ids=str)
def test_segments(lengths, lanes, device):
    x, start = random_rows(lengths, lanes), start_of(lengths)
    same(segment_max(put(x, device), put(start, device)), reference.segment_max(x, start), rtol=0, atol=0)
    same(segment_mean(put(x, device), put(start, device)), reference.segment_mean(x, start))


def test_the_maximum_of_negative_rows_is_negative(device):
    lengths = [2, 0, 3]
    x, start = random_rows(lengths, 5, low=-1) - 1, start_of(lengths)
    got = segment_max(put(x, device), put(start, device))
    same(got, reference.segment_max(x, start), rtol=0, atol=0)
    assert (got[[0, 2]] < 0).all()
    assert (got[1] == 0).all()


def test_segments_leave_their_input_alone(device):
    x, start = random_rows([3, 0, 2], 4), start_of([3, 0, 2])
    given_x, given_start = put(x.copy(), device), put(start.copy(), device)
    segment_max(given_x, given_start)
    segment_mean(given_x, given_start)
    np.testing.assert_array_equal(given_x.cpu().numpy(), x)
    np.testing.assert_array_equal(given_start.cpu().numpy(), start)


@given(st.lists(st.integers(0, 5), max_size=10), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_any_segments(lengths, lanes, seed):
    x, start = random_rows(lengths, lanes, low=-1, seed=seed), start_of(lengths)
    same(segment_max(put(x), put(start)), reference.segment_max(x, start), rtol=0, atol=0)
    same(segment_mean(put(x), put(start)), reference.segment_mean(x, start))


# --- spread_table


@pytest.mark.parametrize(("u", "a"), [(1, 1), (1, 33), (31, 1), (33, 123), (65, 63)])
@pytest.mark.parametrize("lanes", [1, 7, 33])
@pytest.mark.parametrize("m", [0, 1, 123])
def test_spread(u, a, lanes, m, device):
    rng = np.random.default_rng([u, a, lanes, m])
    table = rng.normal(size=(u, a)).astype(np.float32)
    groups = 5
    c_at, c_group = rng.integers(0, u, m), rng.integers(0, groups, m)
    q_at = rng.integers(-1, a, (groups, lanes))
    q_at[2] = -1  # a query without columns
    got = spread_table(*(put(part, device) for part in (table, c_at, q_at, c_group)))
    same(got, reference.spread_table(table, c_at, q_at, c_group), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("u", "a", "m", "groups", "lanes"), [(0, 0, 0, 0, 0), (3, 0, 4, 2, 0), (0, 3, 0, 2, 2), (3, 0, 4, 2, 5)]
)
def test_spread_of_nothing(u, a, m, groups, lanes, device):
    table = np.ones((u, a), np.float32)
    q_at = np.full((groups, lanes), -1, np.int64)
    parts = table, np.zeros(m, np.int64), q_at, np.zeros(m, np.int64)
    same(spread_table(*(put(part, device) for part in parts)), reference.spread_table(*parts))


def test_an_empty_lane_never_reads_a_neighbour(device):
    table = np.full((3, 2), 7, np.float32)
    got = spread_table(
        put(table, device),
        put(np.array([0, 1, 2]), device),
        put(np.array([[-1, 0, -1], [1, -1, -1]]), device),
        put(np.array([0, 1, 0]), device),
    )
    same(got, np.array([[0, 7, 0], [7, 0, 0], [0, 7, 0]]), rtol=0, atol=0)


# --- maxsim


def ragged_pairs(lengths, lanes, seed=0):
    """Similarities of pairs whose query has 0 to `lanes` columns; 0 in the lanes beyond."""
    used = np.random.default_rng([seed, len(lengths), lanes]).integers(0, lanes + 1, len(lengths))
    x = random_rows(lengths, lanes, seed=seed)
    x[np.arange(lanes) >= np.repeat(used, lengths)[:, None]] = 0
    return x, start_of(lengths), used


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("lengths", SEGMENTS, ids=str)
def test_maxsim(lengths, lanes, device):
    x, start, used = ragged_pairs(lengths, lanes)
    forward = maxsim_forward(*(put(part, device) for part in (x, start, used)))
    backward = maxsim_backward(put(x, device), put(start, device))
    same(forward, reference.maxsim_forward(x, start, used))
    same(backward, reference.maxsim_backward(x, start))


def test_maxsim_of_one_pair_by_hand(device):
    # Two candidate columns (rows), three query columns, a fourth lane of a wider neighbour.
    x = np.array([[0.2, 0.9, 0.1, 0], [0.4, 0.3, 0.0, 0]], np.float32)
    parts = put(x, device), put(np.array([0, 2]), device)
    same(maxsim_forward(*parts, put(np.array([3]), device)), np.array([(0.4 + 0.9 + 0.1) / 3]))
    same(maxsim_backward(*parts), np.array([(0.9 + 0.4) / 2]))


def test_maxsim_of_identical_columns_is_one_both_ways(device):
    x = np.ones((33, 31), np.float32)
    parts = put(x, device), put(np.array([0, 33]), device)
    assert maxsim_forward(*parts, put(np.array([31]), device)).tolist() == [1.0]
    assert maxsim_backward(*parts).tolist() == [1.0]


def test_the_forward_of_the_transpose_is_the_backward():
    x = random_rows([17], 9)
    forward = maxsim_forward(put(x.T.copy()), put(start_of([9])), put(np.array([17])))
    same(forward, maxsim_backward(put(x), put(start_of([17]))).numpy())


def test_a_pair_does_not_depend_on_its_company(device):
    lengths = [3, 0, 5, 1, 33]
    x, start, used = ragged_pairs(lengths, 31)
    whole_forward = maxsim_forward(*(put(part, device) for part in (x, start, used)))
    whole_backward = maxsim_backward(put(x, device), put(start, device))
    for p, (a, b) in enumerate(pairwise(start)):
        alone, bounds = put(x[a:b].copy(), device), put(np.array([0, b - a]), device)
        forward = maxsim_forward(alone, bounds, put(used[p : p + 1], device))
        same(forward, whole_forward[p : p + 1].cpu().numpy(), rtol=0, atol=1e-7)
        backward = maxsim_backward(alone, bounds)
        same(backward, whole_backward[p : p + 1].cpu().numpy(), rtol=0, atol=1e-7)


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_any_pairs(lengths, lanes, seed):
    x, start, used = ragged_pairs(lengths, lanes, seed)
    same(maxsim_forward(put(x), put(start), put(used)), reference.maxsim_forward(x, start, used))
    same(maxsim_backward(put(x), put(start)), reference.maxsim_backward(x, start))
