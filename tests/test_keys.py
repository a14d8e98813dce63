"""Keys to join on against tables joined by hand, and against a slow join."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.keys import Fit, JoinKey, join_keys
from gpumatch.lake import Table


def table(*columns, sampled=False):
    arrays = tuple(pa.array(cells, pa.string()) for cells in columns)
    return Table("t", tuple(f"c{i}" for i in range(len(columns))), arrays, (None,) * len(columns), sampled)


def first(q, c, alike):
    return join_keys(q, c, np.array(alike, float))[0]


CUSTOMERS = table(["1", "2", "3", "4"], ["Ann", "Bob", "Cy", "Di"])
ORDERS = table(["a", "b", "c"], ["2", "2", "9"])


def test_the_side_of_the_key_and_what_a_join_gives():
    key = first(ORDERS, CUSTOMERS, [[0, 0], [0.5, 0]])
    assert key.columns == ((1, 0),)
    assert key.fit == Fit(q_unique=2 / 3, c_unique=1, q_in_c=1 / 2, c_in_q=1 / 4, rows=2, larger=4)
    assert key.fit.side == "candidate"
    assert key.fit.joined == 0.5
    assert key.score == pytest.approx(0.5 * 1 / 2 * 3 / 4)
    turned = first(CUSTOMERS, ORDERS, [[0, 0.5], [0, 0]])
    assert turned.columns == ((0, 1),)
    assert turned.fit == Fit(1, 2 / 3, 1 / 4, 1 / 2, 2, 4)
    assert turned.fit.side == "query"
    assert turned.score == key.score
    assert first(CUSTOMERS, CUSTOMERS, [[1, 0], [0, 0]]).fit.side == "both"
    assert first(table(["x", "x"]), table(["x", "x"]), [[1]]).fit == Fit(0.5, 0.5, 1, 1, 4, 2)
    assert first(table(["x", "x"]), table(["x", "x"]), [[1]]).fit.side is None


def test_a_second_and_a_third_column_where_one_is_not_enough():
    years, countries, months = ["2020", "2020", "2021", "2021"], ["no", "se", "no", "se"], ["1", "2", "1", "2"]
    q, c = table(years, countries), table(years[::-1], countries[::-1])
    alike = [[0.9, 0.1], [0.1, 0.8]]
    key = first(q, c, alike)
    assert key.columns == ((0, 0), (1, 1))
    assert key.alike == (0.9, 0.8)
    assert key.fit == Fit(1, 1, 1, 1, 4, 4)
    assert key.score == pytest.approx(0.85)
    # country and month say the same: two of the three are enough, and all three are no better
    wide = table(years, countries, months)
    found = join_keys(wide, wide, np.eye(3))
    assert len(found[0].columns) == 2
    assert all(len(one.columns) < 3 for one in found)
    cube = [list(cells) for cells in zip(*product("ab", "cd", "ef"), strict=True)]
    key = first(table(*cube), table(*cube), np.eye(3))
    assert key.columns == ((0, 0), (1, 1), (2, 2))
    assert key.fit == Fit(1, 1, 1, 1, 8, 8)


def test_one_column_is_enough_where_it_is_a_key():
    q = table(["1", "2", "3"], ["x", "x", "y"])
    assert [key.columns for key in join_keys(q, q, np.eye(2))] == [((0, 0),), ((1, 1),)]


def test_no_column_twice_in_a_key():
    # both columns together would tell all rows of `two` apart, and each alone has all values of `one`
    one, two = table(list("aabb")), table(list("aabb"), list("abab"))
    assert {key.columns for key in join_keys(one, two, np.ones((1, 2)))} == {((0, 0),), ((0, 1),)}
    assert {key.columns for key in join_keys(two, one, np.ones((2, 1)))} == {((0, 0),), ((1, 0),)}


def test_values_are_compared_in_their_canonical_forms_and_empty_cells_join_nothing():
    q = table(["cust_007", "cust_42", None, ""], ["ÉVRY", "x", "-", "--"])
    c = table(["7", "42", "", None], ["evry", "Oslo", "-", "---"])
    found = {key.columns: key.fit for key in join_keys(q, c, np.eye(2))}
    assert found[((0, 0),)] == Fit(0.5, 0.5, 1, 1, 2, 4)
    assert found[((1, 1),)] == Fit(0.5, 0.5, 0.5, 0.5, 1, 4)


def test_keys_that_number_other_things_join_nothing():
    orders, suppliers = table(["CUST-1", "CUST-2", "CUST-2", None]), table(["SUPP-1", "SUPP-2", ""])
    (key,) = join_keys(orders, suppliers, np.array([[0.5]]))
    assert key.fit == Fit(0.5, 2 / 3, 0, 0, 0, 4)
    (key,) = join_keys(orders, table(["customer_1", "customer_2", "customer_3"]), np.array([[0.5]]))
    assert key.fit == Fit(0.5, 1, 1, 2 / 3, 3, 4)


def test_samples_tell_nothing_of_rows():
    q = table(["1", "2"], sampled=True)
    assert join_keys(q, CUSTOMERS, np.array([[0.5, 0.25]])) == [
        JoinKey(((0, 0),), (0.5,), None),
        JoinKey(((0, 1),), (0.25,), None),
    ]
    assert join_keys(q, CUSTOMERS, np.array([[0.5, 0.25]]))[0].score == 0.5


@pytest.mark.parametrize("n", [0, 1])
def test_tables_without_rows_or_columns(n):
    nothing = table(*[[]] * n)
    for key in join_keys(nothing, CUSTOMERS, np.full((n, 2), 0.5)):
        assert key.fit == Fit(0, 1, 0, 0, 0, 4)
    assert len(join_keys(nothing, CUSTOMERS, np.full((n, 2), 0.5))) == 2 * n
    assert join_keys(CUSTOMERS, CUSTOMERS, np.zeros((2, 2))) == []


CELLS = st.sampled_from(["a", "b", "c", "A", "", None])


@given(st.data(), st.integers(1, 3), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_against_a_slow_join(data, width, n_q, n_c):
    q, c = ([data.draw(st.lists(CELLS, min_size=n, max_size=n)) for _ in range(width)] for n in (n_q, n_c))
    keys = join_keys(table(*q), table(*c), np.ones((width, width)))
    for key in keys:
        left, right = (
            Counter(
                tuple(cell.lower() for cell in row)
                for row in zip(*(side[pair[at]] for pair in key.columns), strict=True)
                if all(row)
            )
            for at, side in enumerate((q, c))
        )
        shared = left.keys() & right.keys()
        assert key.fit == Fit(
            len(left) / max(1, n_q),
            len(right) / max(1, n_c),
            len(shared) / max(1, len(left)),
            len(shared) / max(1, len(right)),
            sum(left[row] * right[row] for row in shared),
            max(n_q, n_c),
        )
        assert 0 <= key.score <= 1
    assert [key.score for key in keys] == sorted((key.score for key in keys), reverse=True)


def test_of_two_keys_the_one_that_joins_more_rows():
    """Eight departments: each of a hundred people is in one, and eight people have a number that is one's, too."""
    people = table([str(n) for n in range(100)], [str(n % 8) for n in range(100)])
    key = first(people, table([str(n) for n in range(8)]), [[0.5], [0.5]])
    assert key.columns == ((1, 0),)
    assert (key.fit.rows, key.score) == (100, 0.5)


def test_what_joins_no_row_comes_last_however_alike():
    q, c = table(["a", "b", "c"], ["1x", "2y", "3z"]), table(["d", "e", "f"], ["3z", "2y", "1x"])
    found = join_keys(q, c, np.array([[0.9, 0.1], [0.1, 0.2]]))
    assert [key.columns for key in found[:2]] == [((1, 1),), ((0, 0),)]
    assert [key.score for key in found[:2]] == [pytest.approx(0.2), 0]
