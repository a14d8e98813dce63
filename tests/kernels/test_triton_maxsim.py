"""MaxSim in one Triton kernel, against loops and against torch; interpreted where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import similarities

from gpumatch.kernels import maxsim, reference
from gpumatch.kernels.maxsim import MEAN, PRODUCT, Pairs, Similarity

triton_maxsim = pytest.importorskip("gpumatch.kernels.triton_maxsim", exc_type=ModuleNotFoundError)
BLOCK, maxsim_fused = triton_maxsim.BLOCK, triton_maxsim.maxsim_fused
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Around the powers of two that tiles are made of, and what fills no tile.
WIDTHS = [0, 1, 17, 31, 33, 65, 123]
TERMS = np.array([(MEAN, 0, 1), (PRODUCT, 0, 1), (MEAN, 1, 1), (PRODUCT, 2, 1), (MEAN, 2, 0)])


def starts(widths):
    return np.cumsum([0, *widths]).astype(np.int64)


def made(q_widths, c_widths, seed=0):
    """All pairs of some tables, in any order, and three similarities; the last is not known everywhere."""
    rng = np.random.default_rng([seed, sum(q_widths), sum(c_widths)])
    lanes, columns = sum(q_widths), sum(c_widths)
    found = similarities(lanes, columns, 0.3, rng)
    found = [similarity(one.table, one.q_at, one.c_at) for one in found]
    pairs = rng.permutation([(g, t) for g in range(len(q_widths)) for t in range(len(c_widths))])
    return Pairs(found, starts(q_widths), starts(c_widths), *pairs.reshape(-1, 2).astype(np.int64).T)


def similarity(table, q_at=None, c_at=None):
    """A similarity of an array or a tensor; each of its rows and columns is one column's where nothing is said."""
    table = torch.as_tensor(table).to(DEVICE)
    of_rows, of_columns = (np.arange(n) for n in table.shape)
    return Similarity(table, of_columns if q_at is None else q_at, of_rows if c_at is None else c_at)


def one_pair(*similarities):
    q_start, c_start = starts([len(similarities[0].q_at)]), starts([len(similarities[0].c_at)])
    return Pairs(similarities, q_start, c_start, np.array([0]), np.array([0]))


def check(pairs, terms):
    of_each = zip(*((one.table.cpu().numpy(), one.q_at, one.c_at) for one in pairs.similarities), strict=True)
    wanted = reference.maxsim(*of_each, pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c, terms)
    for found, expected in zip(maxsim_fused(pairs, terms), wanted, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (len(pairs.pair_q), len(terms))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_pair_of_widths():
    check(made(WIDTHS, WIDTHS[::-1]), np.array([(MEAN, 2, 1)]))


def test_several_terms_at_once():
    check(made([0, 1, BLOCK + 1], [2, 0, BLOCK]), TERMS)


def test_one_query_of_many_pairs_and_a_pair_twice():
    pairs = made([3, 7], [4, 1, 5])
    pair_q, pair_c = np.array([1, 1, 1, 1, 0, 1]), np.array([2, 0, 1, 2, 2, 2])
    check(Pairs(pairs.similarities, pairs.q_start, pairs.c_start, pair_q, pair_c), TERMS)


@pytest.mark.parametrize(("q_widths", "c_widths"), [([0], [0]), ([0, 0], [3, 1]), ([2], [0, 0]), ([0, 2], [1, 0])])
def test_a_side_without_columns_is_like_nothing(q_widths, c_widths):
    pairs = made(q_widths, c_widths)
    check(pairs, TERMS)
    nothing = (np.diff(pairs.q_start)[pairs.pair_q] == 0) | (np.diff(pairs.c_start)[pairs.pair_c] == 0)
    for found in maxsim_fused(pairs, TERMS):
        assert ((found == 0).all(axis=1) == nothing).all()


def test_no_columns_no_rows():
    check(one_pair(similarity(np.empty((0, 0), np.float32))), np.array([(MEAN, 0, 0)]))


def test_no_terms_and_no_pairs():
    pairs, none = made([3], [2]), np.empty((0, 3), np.int64)
    assert [part.shape for part in maxsim_fused(pairs, none)] == [(1, 0)] * 2
    nothing = Pairs(pairs.similarities, pairs.q_start, pairs.c_start, none[:, 0], none[:, 0])
    assert [part.shape for part in maxsim_fused(nothing, TERMS)] == [(0, len(TERMS))] * 2


def test_one_pair_by_hand():
    # Three query columns, two candidate columns.
    pairs = one_pair(similarity(np.array([[0.2, 0.9, 0.1], [0.4, 0.3, 0.0]], np.float32)))
    forward, backward = maxsim_fused(pairs, np.array([(MEAN, 0, 0), (PRODUCT, 0, 0)]))
    np.testing.assert_allclose(forward, [[(0.4 + 0.9 + 0.1) / 3, (0.16 + 0.81 + 0.01) / 3]], rtol=1e-6)
    np.testing.assert_allclose(backward, [[(0.9 + 0.4) / 2, (0.81 + 0.16) / 2]], rtol=1e-6)


def test_what_is_not_known_leaves_the_other_alone():
    known = made([5], [BLOCK + 2]).similarities[0]
    nowhere = similarity(np.full((1, 1), -1, np.float32), known.q_at * 0, known.c_at * 0)
    rows = known.table.clone()
    rows[::2] = -1
    pairs = one_pair(known, nowhere, similarity(rows, known.q_at, known.c_at))
    for found in maxsim_fused(pairs, np.array([(MEAN, 0, 0), (MEAN, 1, 0), (PRODUCT, 1, 0), (MEAN, 2, 0)])):
        assert (found > 0).all()
        assert (found == found[:, :1]).all()
    check(pairs, np.array([(PRODUCT, 2, 0), (PRODUCT, 0, 0)]))


def test_a_table_may_stand_twice():
    pairs = made([3, 2], [4, 1])
    one, other, _ = pairs.similarities
    twice = Pairs([one, other, one], pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c)
    check(twice, TERMS)
    for found in maxsim_fused(twice, np.array([(PRODUCT, 0, 0), (PRODUCT, 0, 2), (PRODUCT, 2, 0)])):
        assert (found == found[:, :1]).all()


def test_tables_need_not_be_contiguous():
    numbers = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (14, 8)).astype(np.float32))
    tables = numbers.T[:, ::2], numbers[:8, 1:], numbers[:8, 2:3].expand(8, 7)
    assert not any(table.is_contiguous() for table in tables)
    check(one_pair(*map(similarity, tables)), TERMS)


def test_identical_columns_are_one_both_ways():
    for found in maxsim_fused(one_pair(similarity(np.ones((33, 31), np.float32))), np.array([(PRODUCT, 0, 0)])):
        np.testing.assert_allclose(found, [[1.0]], rtol=1e-6)


def test_the_forward_of_the_transpose_is_the_backward():
    pairs = made([9], [BLOCK + 1])
    turned = [Similarity(one.table.T, one.c_at, one.q_at) for one in pairs.similarities]
    (a, b), (c, d) = maxsim_fused(pairs, TERMS), maxsim_fused(one_pair(*turned), TERMS)
    np.testing.assert_allclose(a, d, rtol=1e-6)
    np.testing.assert_allclose(b, c, rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=3), st.lists(st.integers(0, 40), max_size=3), st.integers(0, 2**32 - 1))
def test_any_pairs(q_widths, c_widths, seed):
    check(made(q_widths, c_widths, seed), TERMS[[1, 4]])


def test_torch_says_the_same():
    pairs = made([7, 0, 2 * BLOCK + 3], [BLOCK, 5, 0, 1])
    terms = TERMS[[0, 3]]
    for found, expected in zip(maxsim_fused(pairs, terms), maxsim._on_device(pairs, terms), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# --- who is asked


@pytest.mark.parametrize(("on_gpu", "triton", "asked"), [(1, 1, "triton"), (1, 0, "torch"), (0, 1, "torch")])
def test_the_kernel_works_where_there_is_a_gpu_and_triton(on_gpu, triton, asked, monkeypatch):
    table = SimpleNamespace(is_cuda=bool(on_gpu), shape=(1, 1), min=lambda: 0.0)
    one = Similarity(table, np.arange(1), np.arange(1))
    monkeypatch.setattr(triton_maxsim, "maxsim_fused", lambda pairs, terms: ("triton", pairs, terms))
    monkeypatch.setattr(maxsim, "_on_device", lambda pairs, terms: ("torch", pairs, terms))
    monkeypatch.setattr(maxsim, "fused_trouble", lambda: "" if triton else "RuntimeError: Failed to find C compiler.")
    pairs = Pairs([one], starts([1]), starts([1]), np.array([0]), np.array([0]))
    assert maxsim.maxsim(pairs, TERMS) == (asked, pairs, TERMS)


def test_nan_is_refused():
    one = similarity(np.array([[0.5, np.nan]], np.float32))
    with pytest.raises(ValueError, match="NaN among the similarities"):
        maxsim.maxsim(one_pair(one), np.array([(MEAN, 0, 0)]))
