"""How pairs are cut into chunks: all of them once, within bounds, alike queries together, one thread a chunk."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import some_pairs
from threadpoolctl import threadpool_info, threadpool_limits

from gpumatch import chunks
from gpumatch.chunks import alike_order, alike_together, over, plan
from gpumatch.kernels.ragged import offsets_of


@pytest.fixture
def case(request, monkeypatch):
    """Some pairs, the widths of both sides' tables, and the plan of the pairs under the bounds of the test."""
    cells, queries = request.param
    monkeypatch.setattr(chunks, "CHUNK_CELLS", cells)
    monkeypatch.setattr(chunks, "CHUNK_QUERIES", queries)
    rng = np.random.default_rng(cells)
    q_width, c_width = rng.integers(0, 8, 40), rng.integers(0, 7, 30)
    pair_q, pair_c = some_pairs(40, 30, most=9)
    slices = plan(offsets_of(q_width), offsets_of(c_width), pair_q, pair_c, "cpu")
    return cells, queries, q_width, c_width, pair_q, pair_c, slices


BOUNDS = [(1, 1), (7, 3), (100, 2), (300, 12), (2000, 12), (10**6, 5), (10**6, 1)]


@pytest.mark.parametrize("case", BOUNDS, indirect=True)
def test_a_plan_covers_every_pair_once_within_its_bounds(case):
    cells, queries, q_width, c_width, pair_q, pair_c, slices = case
    np.testing.assert_array_equal(np.concatenate([np.arange(len(pair_q))[some] for some in slices]), range(len(pair_q)))
    for some in slices:
        asked = np.unique(pair_q[some])
        assert len(asked) <= queries
        lanes, rows = np.maximum(1, q_width[asked]).sum(), c_width[pair_c[some]].sum()
        assert some.stop - some.start == 1 or lanes * rows <= cells


@pytest.mark.parametrize("case", BOUNDS[1:-1], indirect=True)
def test_a_plan_cuts_only_where_more_would_not_fit(case):
    cells, queries, q_width, c_width, pair_q, pair_c, slices = case
    for some in slices[:-1]:
        # a query is kept together, unless it is too big for a chunk
        same = pair_q[some.stop - 1] == pair_q[some.stop]
        more = slice(some.start, some.stop + (1 if same else np.count_nonzero(pair_q == pair_q[some.stop])))
        asked = np.unique(pair_q[more])
        lanes, rows = np.maximum(1, q_width[asked]).sum(), c_width[pair_c[more]].sum()
        assert len(asked) > queries or lanes * rows > cells


@pytest.mark.parametrize("threads", [1, 3])
def test_a_chunk_is_worked_on_by_one_thread(threads):
    def work(some):
        return threading.current_thread(), {
            lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"
        }

    with threadpool_limits(2, user_api="blas"):
        workers, of_products = zip(*over(work, [slice(i, i + 1) for i in range(9)], threads, "cpu"), strict=True)
    assert (threading.main_thread() in workers) is (threads == 1)
    assert len(set(workers)) <= threads
    assert all(one == {1} for one in of_products)


def test_alike_queries_stand_together():
    # Tables 0, 2 and 4 are each other's survivors, and so are 1, 3 and 5.
    ids = np.array([[2, 4, -1], [3, 5, 0], [4, 0, 1], [5, 1, -1], [0, 2, 3], [1, 3, -1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_QUERIES", 3)
        assert alike_order(ids, np.arange(6)).tolist() == [0, 2, 4, 1, 3, 5]
        # queries from outside that have the same best survivor
        assert alike_order(np.array([[7], [8], [7], [-1]]), np.full(4, -1)).tolist() == [0, 2, 1, 3]


def test_a_chunk_takes_no_more_alike_queries_than_it_holds_and_the_same_table_twice(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_QUERIES", 3)
    every = np.arange(5)
    alike = np.array([np.roll(every, -i)[1:] for i in every])
    assert alike_order(alike, every).tolist() == [0, 1, 2, 3, 4]
    assert alike_order(alike[:, ::-1], every).tolist() == [0, 4, 3, 1, 2]
    # two queries that are one lake table are not among their own survivors
    for table in (0, 5):
        assert alike_order(np.array([[3], [4], [3]]), np.array([table, 7, table])).tolist() == [0, 2, 1]


def test_the_pairs_of_alike_queries_stand_together(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_QUERIES", 2)
    # queries 8 and 0 have the same best survivor, and so have 3 and 5, which have one pair more
    pair_q, pair_c = np.array([[8, 8, 3, 3, 3, 0, 0, 5, 5, 5], [1, 2, 4, 6, 7, 1, 9, 4, 2, 3]])
    outside = np.full(10, -1)
    assert alike_together(pair_q, pair_c, outside).tolist() == [0, 1, 5, 6, 2, 3, 4, 7, 8, 9]
    assert alike_together(pair_q, pair_c, None).tolist() == list(range(10))
    # as lake tables: 8 has 1 among its survivors, which is query 0
    itself = np.where(pair_q == 0, 1, 20 + pair_q)
    assert alike_together(pair_q, pair_c, itself).tolist() == [0, 1, 5, 6, 2, 3, 4, 7, 8, 9]


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 20), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_any_order_has_every_query_once(n, k, seed):
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(n + 5)[:k] for _ in range(n)]).reshape(n, k)
    ids[rng.uniform(size=ids.shape) < 0.2] = -1
    itself = np.where(rng.uniform(size=n) < 0.5, rng.permutation(n), -1)
    assert sorted(alike_order(ids, itself).tolist()) == list(range(n))
