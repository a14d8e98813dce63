"""dot_table against loops over dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpumatch.kernels import reference, sparse
from gpumatch.kernels.lanes import BLOCK
from gpumatch.kernels.ragged import Csr
from gpumatch.kernels.sparse import dot_table, multiplied


def rows_of(contents):
    """(start, token, weight) of rows given as {token: weight}."""
    ordered = [sorted(row.items()) for row in contents]
    start = np.cumsum([0, *map(len, ordered)]).astype(np.int64)
    token = np.array([token for row in ordered for token, _ in row], np.int64)
    return start, token, np.array([weight for row in ordered for _, weight in row], np.float32)


def random_rows(n, width, most, seed):
    rng = np.random.default_rng([seed, n, width])
    lengths = np.minimum(rng.integers(0, most + 1, n), width)
    return [dict(zip(rng.permutation(width)[:m].tolist(), rng.normal(size=m).tolist(), strict=True)) for m in lengths]


def put(array, device):
    return array if device == "cpu" else torch.from_numpy(array).to(device)


def csr(contents, width, device="cpu"):
    return Csr(*(put(part, device) for part in rows_of(contents)), width)


def dots(q, q_rows, c, c_rows, device, **how):
    got = dot_table(q, put(np.array(q_rows, np.int64), device), c, put(np.array(c_rows, np.int64), device), **how)
    got = got if device == "cpu" else got.cpu().numpy()
    assert got.dtype == np.float32
    assert got.shape == (len(c_rows), len(q_rows))
    return got


def check(q, q_rows, c, c_rows, width, device="cpu"):
    asked = csr(q, width, device), q_rows, csr(c, width, device), c_rows, device
    got, clipped = dots(*asked), dots(*asked, clip=True)
    expected = reference.dot_table(*rows_of(q), np.array(q_rows, np.int64), *rows_of(c), np.array(c_rows, np.int64))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clipped, expected.clip(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 31, 33, 123, 1025])
@pytest.mark.parametrize(("n_q", "n_c"), [(1, 1), (1, 33), (31, 1), (33, 65), (7, 123)])
def test_odd_shapes(n_q, n_c, width, device):
    q, c = random_rows(n_q, width, 20, 0), random_rows(n_c, width, 20, 1)
    check(q, range(n_q), c, range(n_c), width, device)


def test_rows_that_repeat_in_any_order(device):
    q, c = random_rows(9, 20, 8, 2), random_rows(12, 20, 8, 3)
    check(q, [3, 3, 8, 0, 3], c, [11, 0, 0, 5, 11, 2, 2], 20, device)


@pytest.mark.parametrize(("q_rows", "c_rows"), [([], []), ([], [0, 1]), ([0], []), ([0, 1], [1])])
def test_no_rows_asked_for(q_rows, c_rows, device):
    rows = random_rows(2, 10, 5, 4)
    check(rows, q_rows, rows, c_rows, 10, device)


def test_empty_rows_stay_in_their_place(device):
    q = [{}, {0: 1.0, 5: 2.0}, {}]
    c = [{}, {}, {5: 3.0}, {}, {0: 1.0, 9: 9.0}, {}]
    check(q, [0, 1, 2], c, range(6), 10, device)
    check(q, [1, 0], c, [5, 4, 3, 2, 1, 0], 10, device)


@pytest.mark.parametrize(("q", "c"), [([{}], [{1: 1.0}]), ([{1: 1.0}], [{}]), ([{}], [{}])])
def test_one_side_empty(q, c, device):
    check(q, [0], c, [0], 4, device)


def test_no_token_in_common(device):
    check([{0: 1.0, 2: 1.0}], [0], [{1: 1.0}, {3: 1.0}], [0, 1], 4, device)


def test_no_tokens_at_all(device):
    check([{}, {}], [0, 1], [{}], [0], 0, device)


def test_first_and_last_token(device):
    check([{0: 1.0, 1024: 2.0}], [0], [{0: 3.0}, {1024: 4.0}, {0: 1.0, 1024: 1.0}], [0, 1, 2], 1025, device)


def test_weights_cancel_and_explicit_zeros(device):
    check([{0: 1.0, 1: -1.0, 2: 0.0}], [0], [{0: 2.0, 1: 2.0}, {2: 5.0}], [0, 1], 3, device)


@pytest.mark.parametrize("most", [1, 3_000, 10_000])
def test_query_rows_that_are_not_written_out_all_at_once(monkeypatch, most, device):
    for name in "_MOST_WRITTEN", "_MOST_THERE", "_MOST_NONZEROS":
        monkeypatch.setattr(sparse, name, most)
    q, c = random_rows(75, 300, 20, 5), random_rows(9, 300, 40, 6)
    rows = [*range(75), 3, 3]
    lengths = np.array([len(q[i]) for i in rows])
    parts = list(sparse._parts(np.append(0, np.cumsum(lengths)), np.arange(len(rows)), most))
    assert len(parts) > 1
    assert [i for part in parts for i in range(len(rows))[part]] == list(range(len(rows)))
    check(q, rows, c, range(9), 300, device)


def test_a_later_call_finds_nothing_of_one_that_ran_out_of_memory(monkeypatch):
    rows = random_rows(20, 50, 9, 0)

    def fails(*args):
        args[8][:] = 7  # the places
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sparse, "_write_dots", fails)
        with pytest.raises(MemoryError):
            check(rows, range(20), rows, range(20), 50)
    check(rows, range(20), rows, range(20), 50)


def test_only_wanted_blocks_need_be_right(monkeypatch):
    monkeypatch.setattr(sparse, "_MOST_WRITTEN", 3_000)
    rows = csr(random_rows(60, 200, 20, 5), 200)
    every = np.arange(60)
    wanted = np.zeros((60, 4), np.bool_)
    wanted[[0, 13, 50, 59, 59], [3, 0, 1, 2, 3]] = True
    got, whole = dot_table(rows, every, rows, every, wanted), dot_table(rows, every, rows, every)
    right = np.repeat(wanted, BLOCK, axis=1)[:, :60]
    np.testing.assert_array_equal(got[right], whole[right])
    assert (got[~right] == 0).all()


def test_a_dot_product_has_the_same_bits_whatever_is_beside_it():
    rows = csr(random_rows(90, 120, 30, 7), 120)
    whole = dot_table(rows, np.arange(90), rows, np.arange(90))
    rng = np.random.default_rng(0)
    for n in (1, 5, 30, 70):
        some, others = rng.permutation(90)[:n], rng.permutation(90)[:n]
        np.testing.assert_array_equal(dot_table(rows, some, rows, others), whole[np.ix_(others, some)])


def test_a_later_call_finds_nothing_of_an_earlier_one():
    for seed, width in enumerate([50, 20, 60, 50]):
        check(random_rows(20, width, 9, seed), range(20), random_rows(9, width, 9, seed + 10), range(9), width)
        assert (sparse._scratch.of(60) == -1).all()


def test_tokens_that_few_and_that_many_rows_hold(device):
    # 100 query rows: token 0 in all of them, 1 in a tenth, 2 in one; 3 in none
    q = [{0: 1.0 + i} | ({1: 2.0} if i % 10 == 0 else {}) | ({2: 3.0} if i == 7 else {}) for i in range(100)]
    check(q, range(100), [{0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, {3: 1.0}, {2: 0.5}], [0, 1, 2], 4, device)


def test_a_row_with_itself_is_its_squared_length(device):
    rows = random_rows(33, 64, 30, 5)
    table = dots(csr(rows, 64, device), range(33), csr(rows, 64, device), range(33), device)
    np.testing.assert_allclose(np.diagonal(table), [sum(w * w for w in row.values()) for row in rows], rtol=1e-5)


def test_a_row_does_not_depend_on_its_company(device):
    rows = random_rows(33, 64, 30, 6)
    side, every = csr(rows, 64, device), np.arange(33)
    whole = dots(side, every, side, every, device)
    for some in (every[:1], every[5:6], every[::2], every[::-1].copy()):
        np.testing.assert_allclose(dots(side, some, side, every, device), whole[:, some], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dots(side, every, side, some, device), whole[some], rtol=1e-6, atol=1e-6)


def test_twice_the_same(device):
    rows = random_rows(65, 64, 30, 7)
    side, every = csr(rows, 64, device), np.arange(65)
    np.testing.assert_array_equal(dots(side, every, side, every, device), dots(side, every, side, every, device))


def test_the_inputs_are_left_alone(device):
    rows = random_rows(5, 12, 6, 8)
    side, every = csr(rows, 12, device), np.arange(5)
    dots(side, every, side, every, device)
    for part, before in zip((side.start, side.token, side.weight), rows_of(rows), strict=True):
        np.testing.assert_array_equal(part if device == "cpu" else part.cpu().numpy(), before)


row = st.dictionaries(st.integers(0, 7), st.integers(-3, 3).map(float), max_size=5)


@given(st.lists(row, min_size=1, max_size=6), st.lists(row, min_size=1, max_size=6), st.data())
def test_any_rows(q, c, data):
    q_rows = data.draw(st.lists(st.integers(0, len(q) - 1), max_size=6))
    c_rows = data.draw(st.lists(st.integers(0, len(c) - 1), max_size=6))
    check(q, q_rows, c, c_rows, 8)


@pytest.mark.parametrize("n", [0, 1, 31, 33])
def test_by_a_module_of_sparse_matrices(n):
    """SciPy's, which CuPy's is written after; integers of 32 bits, as there."""
    q, c = random_rows(n + 1, 50, 9, 4), random_rows(n, 50, 9, 5)
    there = [
        Csr(one.start.astype(np.int32), one.token.astype(np.int32), one.weight, 50) for one in (csr(q, 50), csr(c, 50))
    ]
    q_rows, c_rows = np.array([n, 0, n]), np.arange(n)[::-1].copy()
    got = multiplied(scipy.sparse, there[0], q_rows, there[1], c_rows)
    expected = reference.dot_table(*rows_of(q), q_rows, *rows_of(c), c_rows)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
