"""MaxSim of ragged pairs, and the columns that match, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_inputs import similarities

from gpumatch.kernels import reference
from gpumatch.kernels.lanes import BLOCK
from gpumatch.kernels.maxsim import MEAN, PRODUCT, Pairs, Similarity, matching_columns, maxsim, wanted_blocks

WIDTHS = [[], [0], [1], [0, 3, 0], [7, 8, 9], [31, 1, 33], [123], [1] * 17, [16, 15, 17]]
TERMS = np.array([(MEAN, 0, 1), (PRODUCT, 0, 1), (MEAN, 1, 1), (PRODUCT, 2, 1), (MEAN, 2, 0)])


def starts(widths):
    return np.cumsum([0, *widths]).astype(np.int64)


def made(q_widths, c_widths, seed=0, unknown=0.3):
    """Three similarities between the columns of some tables, the last not known everywhere, and some of the pairs."""
    rng = np.random.default_rng([seed, sum(q_widths), sum(c_widths)])
    lanes, columns = sum(q_widths), sum(c_widths)
    found = similarities(lanes, columns, unknown, rng)
    every_q, every_c = np.divmod(np.arange(len(q_widths) * len(c_widths)), max(1, len(c_widths)))
    some = rng.permutation(len(every_q))[: max(1, 2 * len(every_q) // 3)]
    return Pairs(found, starts(q_widths), starts(c_widths), every_q[some], every_c[some])


def on(pairs, device, put):
    similarities = [Similarity(put(one.table, device), one.q_at, one.c_at) for one in pairs.similarities]
    return Pairs(similarities, pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c)


def expected(pairs, terms):
    of_each = zip(*((one.table, one.q_at, one.c_at) for one in pairs.similarities), strict=True)
    return reference.maxsim(*of_each, pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c, terms)


def check(pairs, terms, device, put):
    # what is not known may only stand first
    got = maxsim(on(pairs, device, put), terms)
    for found, wanted in zip(got, expected(pairs, terms), strict=True):
        assert found.dtype == np.float32
        assert found.shape == (len(pairs.pair_q), len(terms))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("c_widths", WIDTHS, ids=str)
@pytest.mark.parametrize("q_widths", WIDTHS, ids=str)
def test_maxsim(q_widths, c_widths, device, put):
    check(made(q_widths, c_widths), TERMS, device, put)


def test_one_pair_by_hand(device, put):
    # Three query columns, two candidate columns.
    table = np.array([[0.2, 0.9, 0.1], [0.4, 0.3, 0.0]], np.float32)
    one = Similarity(table, np.arange(3), np.arange(2))
    pairs = Pairs([one], starts([3]), starts([2]), np.array([0]), np.array([0]))
    forward, backward = maxsim(on(pairs, device, put), np.array([(MEAN, 0, 0)]))
    np.testing.assert_allclose(forward, [[(0.4 + 0.9 + 0.1) / 3]], rtol=1e-6)
    np.testing.assert_allclose(backward, [[(0.9 + 0.4) / 2]], rtol=1e-6)


@pytest.mark.parametrize("at", [(0, 0), (2, 1)])
def test_nan_is_refused(at, device, put):
    tables = np.zeros((2, 3, 2), np.float32)
    tables[1][at] = np.nan
    similarities = [Similarity(table, np.arange(2), np.arange(3)) for table in tables]
    pairs = Pairs(similarities, starts([2]), starts([3]), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="NaN among the similarities"):
        maxsim(on(pairs, device, put), np.array([(MEAN, 0, 1)]))
    with pytest.raises(ValueError, match="NaN among the similarities"):
        matching_columns(on(pairs, device, put))


def test_what_is_not_known_leaves_the_other_alone(device, put):
    at = np.arange(1), np.arange(1)
    known, unknown = (Similarity(np.array([[x]], np.float32), *at) for x in (0.5, -1))
    pairs = Pairs([known, unknown], starts([1]), starts([1]), np.array([0]), np.array([0]))
    terms = np.array([(MEAN, 1, 0), (PRODUCT, 1, 0), (MEAN, 0, 0), (PRODUCT, 0, 0)])
    np.testing.assert_allclose(maxsim(on(pairs, device, put), terms)[0], [[0.5, 0.5, 0.5, 0.25]])


@pytest.mark.parametrize("lanes", [[0, 1, 2], [4, 5, 6], [2, 1, 0], [3, 3, 3], [0, 2, 4], [6, 0, 1]], ids=str)
def test_columns_of_a_query_may_stand_anywhere_in_a_table(lanes, device, put):
    table = np.random.default_rng(0).uniform(size=(2, 14)).astype(np.float32)
    for part in (table[:, :7], table[:, 7:], np.asfortranarray(table[:, :7]), table[:, ::2]):
        one = Similarity(part, np.array(lanes), np.array([1, 0]))
        pairs = Pairs([one], starts([3]), starts([2]), np.array([0]), np.array([0]))
        check(pairs, np.array([(MEAN, 0, 0)]), device, put)


def test_identical_columns_are_one_both_ways(device, put):
    one = Similarity(np.ones((33, 31), np.float32), np.arange(31), np.arange(33))
    pairs = Pairs([one], starts([31]), starts([33]), np.array([0]), np.array([0]))
    for found in maxsim(on(pairs, device, put), np.array([(PRODUCT, 0, 0)])):
        np.testing.assert_allclose(found, [[1.0]], rtol=1e-6)


def test_the_forward_of_the_transpose_is_the_backward(device, put):
    pairs = made([9], [17])
    turned = [Similarity(one.table.T, one.c_at, one.q_at) for one in pairs.similarities]
    other = Pairs(turned, pairs.c_start, pairs.q_start, pairs.pair_c, pairs.pair_q)
    (a, b), (c, d) = maxsim(on(pairs, device, put), TERMS), maxsim(on(other, device, put), TERMS)
    np.testing.assert_allclose(a, d, rtol=1e-6)
    np.testing.assert_allclose(b, c, rtol=1e-6)


def test_a_pair_does_not_depend_on_its_company(device, put):
    pairs = made([3, 0, 5, 1, 33], [4, 31, 2])
    whole = maxsim(on(pairs, device, put), TERMS)
    for p in range(len(pairs.pair_q)):
        alone = Pairs(pairs.similarities, pairs.q_start, pairs.c_start, pairs.pair_q[[p]], pairs.pair_c[[p]])
        for found, of_all in zip(maxsim(on(alone, device, put), TERMS), whole, strict=True):
            np.testing.assert_allclose(found[0], of_all[p], rtol=0, atol=1e-7)


def test_no_terms_and_no_pairs(device, put):
    pairs = made([3], [2])
    none = np.empty((0, 3), np.int64)
    assert [part.shape for part in maxsim(on(pairs, device, put), none)] == [(len(pairs.pair_q), 0)] * 2
    nothing = Pairs(pairs.similarities, pairs.q_start, pairs.c_start, none[:, 0], none[:, 0])
    assert [part.shape for part in maxsim(on(nothing, device, put), TERMS)] == [(0, len(TERMS))] * 2


@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.integers(0, 9), max_size=5), st.integers(0, 2**32 - 1))
def test_any_pairs(put, q_widths, c_widths, seed):
    for device in ("cpu", "cpu:0"):
        check(made(q_widths, c_widths, seed), TERMS, device, put)


# --- matching columns


@pytest.mark.parametrize("c_widths", WIDTHS, ids=str)
@pytest.mark.parametrize("q_widths", WIDTHS, ids=str)
def test_wanted_blocks(q_widths, c_widths):
    pairs = made(q_widths, c_widths)
    for one in pairs.similarities:
        looked_up = np.zeros(one.table.shape, np.bool_)
        for g, t in zip(pairs.pair_q, pairs.pair_c, strict=True):
            rows, lanes = one.c_at[slice(*pairs.c_start[t : t + 2])], one.q_at[slice(*pairs.q_start[g : g + 2])]
            looked_up[np.ix_(rows, lanes)] = True
        padded = np.pad(looked_up, ((0, 0), (0, -looked_up.shape[1] % BLOCK)))
        expected = padded.reshape(len(padded), -1, BLOCK).any(2) if padded.size else padded[:, :0]
        np.testing.assert_array_equal(wanted_blocks(pairs, one.q_at, one.c_at, *one.table.shape), expected)


def check_matching(pairs, device, put):
    pair, lane, column, score = matching_columns(on(pairs, device, put))
    at = []
    for p, (g, t) in enumerate(zip(pairs.pair_q, pairs.pair_c, strict=True)):
        lanes, columns = (np.arange(start[i], start[i + 1]) for start, i in ((pairs.q_start, g), (pairs.c_start, t)))
        parts = np.array([one.table[np.ix_(one.c_at[columns], one.q_at[lanes])] for one in pairs.similarities])
        known = (parts >= 0).sum(0)
        worth = np.where(parts >= 0, parts, 0).sum(0, dtype=np.float32) / np.maximum(1, known).astype(np.float32)
        rows = [(-worth[j, i], lanes[i], columns[j]) for j, i in reference.matching(worth)]
        at += [(p, i, j, -s) for s, i, j in sorted(rows)]
    assert list(zip(pair.tolist(), lane.tolist(), column.tolist(), strict=True)) == [one[:3] for one in at]
    np.testing.assert_allclose(score, [one[3] for one in at], rtol=1e-6)


@pytest.mark.parametrize("c_widths", WIDTHS, ids=str)
@pytest.mark.parametrize("q_widths", WIDTHS, ids=str)
def test_matching(q_widths, c_widths, device, put):
    check_matching(made(q_widths, c_widths), device, put)


@pytest.mark.parametrize("which", [[0], [1, 0], [2], [1, 2], [0, 1, 2]], ids=str)
def test_matching_by_some_of_the_similarities(which, device, put):
    pairs = on(made([7, 8, 9], [31, 1, 33]), device, put)
    alone = Pairs([pairs.similarities[b] for b in which], pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c)
    for got, wanted in zip(matching_columns(pairs, which), matching_columns(alone), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_columns_that_look_alike_are_matched_in_their_order(device, put):
    one = Similarity(np.ones((1, 1), np.float32), np.zeros(3, np.int64), np.zeros(5, np.int64))
    pairs = Pairs([one], starts([3]), starts([5]), np.array([0]), np.array([0]))
    pair, lane, column, score = matching_columns(on(pairs, device, put))
    assert (pair.tolist(), lane.tolist(), column.tolist(), score.tolist()) == ([0] * 3, [0, 1, 2], [0, 1, 2], [1] * 3)


def test_nothing_in_common_is_no_match(device, put):
    one = Similarity(np.zeros((2, 2), np.float32), np.arange(2), np.arange(2))
    pairs = Pairs([one], starts([2]), starts([2]), np.array([0]), np.array([0]))
    assert [len(part) for part in matching_columns(on(pairs, device, put))] == [0] * 4
