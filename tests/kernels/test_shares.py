"""What columns share of each other's values, against sets and sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.kernels.chance import Chance
from gpumatch.kernels.shares import Columns, best_shares, holders_of, most_shared

LEAST = 0.5


# Columns with letters hold each value v as PLAIN + v, too, and share those among them.
PLAIN = 20
# Columns with this letter hold numbered keys, and those with any other numbers of some unit.
KEYED = 67


def columns_of(tables, weight, more=0):
    """Tables as lists of (values, letter, chance); each column has `more` values that have no number."""
    columns = [column for table in tables for column in table]
    sets = [[*sorted(values), *(PLAIN + value for value in sorted(values) if letter)] for values, letter, _ in columns]
    return Columns(
        np.cumsum([0, *map(len, tables)]),
        np.cumsum([0, *map(len, sets)]),
        np.array([value for values in sets for value in values], np.int32),
        PLAIN,
        np.array([len(values) + more for values, _, _ in columns], np.float32),
        np.array([letter for _, letter, _ in columns], np.uint32),
        Chance(
            np.array([chance for _, _, chance in columns], np.float32),
            np.zeros((len(columns), 1), np.float32),
            np.full(len(columns), -1, np.int32),
            np.array([KEYED in letter.to_bytes(4, "little") for _, letter, _ in columns], np.bool_),
        ),
        np.array([[most(column, weight, first, more) for column in columns] for first in (0, PLAIN)]),
    )


def most(column, weight, first, more):
    """What a column shares with one that holds all its values, as those from `first` on."""
    values = column[0]
    return (sum(weight[first + value] for value in values) + more) / (1 + len(values) + more)


def fit(letter, other):
    parts = zip(letter.to_bytes(4, "little"), other.to_bytes(4, "little"), strict=True)
    return all(a == b or not (a and b) for a, b in parts)


def share_of(a, b, weight, more=0):
    (values, letter, chance), (others, other, by_chance) = a, b
    first = PLAIN if letter and other else 0
    n, by_chance = min(len(values) + more, len(others)), max(chance, by_chance)
    if all(KEYED in one.to_bytes(4, "little") for one in (letter, other)):
        by_chance = 0
    usual = by_chance + 2 * (by_chance * (1 - by_chance) / max(1, n)) ** 0.5
    smaller = [(one, unknown) for one, unknown in ((a, more), (b, 0)) if len(one[0]) + unknown == n]
    usual_share = usual * max(most(one, weight, first, unknown) for one, unknown in smaller)
    beyond = sum(weight[first + value] for value in values & others) / (1 + n) - usual_share
    return max(0, beyond) / (1 - by_chance) if usual < 1 else 0


def by_hand(query, lake, weight, more):
    """Return {lake table: (share, query column, lake column)} of one table, columns numbered within their tables."""
    best = {}
    for t, table in enumerate(lake):
        for i, a in enumerate(query):
            for j, b in enumerate(table):
                share = share_of(a, b, weight, more)
                if (
                    min(len(a[0]) + more, len(b[0])) > 1
                    and fit(a[1], b[1])
                    and share > max(LEAST, best.get(t, (0,))[0])
                ):
                    best[t] = share, i, j
    return best


def check(queries, lake, weight, tables, more=0):
    q, c = columns_of(queries, weight, more), columns_of(lake, weight)
    found = best_shares(q, np.array(tables, np.int64), c, holders_of(c, weight), LEAST)
    assert len(found.start) == len(tables) + 1
    for i, t in enumerate(tables):
        some, expected = slice(*found.start[i : i + 2]), by_hand(queries[t], lake, weight, more)
        assert found.table[some].tolist() == sorted(expected)
        np.testing.assert_allclose(found.share[some], [expected[u][0] for u in found.table[some]], rtol=1e-12)
        for u, a, b in zip(found.table[some], found.query[some], found.candidate[some], strict=True):
            one, other = queries[t][a - q.table_cols[t]], lake[u][b - c.table_cols[u]]
            assert fit(one[1], other[1])
            assert share_of(one, other, weight, more) == pytest.approx(expected[u][0])
    return found


letters = st.sampled_from([0, 0, 67, 83, 67 + 256 * 80, 67 + 256 * 81])
column = st.tuples(st.sets(st.integers(0, 11), max_size=8), letters, st.sampled_from([0.0, 0.0, 0.03125, 0.125, 1.0]))
some_tables = st.lists(st.lists(column, max_size=3), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    some_tables,
    some_tables,
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2 * PLAIN, max_size=2 * PLAIN),
    st.integers(0, 2),
)
def test_shares_against_sets(queries, lake, weight, more):
    check(queries, lake, np.array(weight), [*range(len(queries)), *range(len(queries))], more)


def test_a_key_by_hand():
    """All ten of a set are found in a larger one; and the larger one holds them, whoever asks."""
    small, large = (set(range(10)), 0, 0), (set(range(5, 5 + 10)) | set(range(10)), 0, 0)
    weight = np.ones(2 * PLAIN)
    for query, candidate in ((small, large), (large, small)):
        found = check([[({19}, 0, 0), query]], [[], [candidate]], weight, [0])
        assert (found.table.tolist(), found.query.tolist(), found.candidate.tolist()) == ([1], [1], [0])
        assert found.share.tolist() == [10 / 11]


def test_what_is_shared_by_chance_counts_less():
    numbers = set(range(10))
    plain, some, row_numbers, of_c, of_s = ((numbers, *of) for of in ((0, 0), (0, 0.03125), (0, 1), (67, 0), (83, 0)))
    lake = [[one] for one in (plain, some, row_numbers, of_c, of_s)]
    found = check([[plain], [row_numbers], [of_c]], lake, np.ones(2 * PLAIN), [0, 1, 2])
    assert found.start.tolist() == [0, 4, 4, 7]
    assert found.table.tolist() == [0, 1, 3, 4, 0, 1, 3]
    less = 10 / 11 * (1 - 1 / 32 - 2 * (1 / 32 * 31 / 32 / 10) ** 0.5) / (31 / 32)
    np.testing.assert_allclose(found.share, [10 / 11, less, 10 / 11, 10 / 11, 10 / 11, less, 10 / 11], rtol=1e-6)


def test_numbered_keys_may_begin_at_1_but_bare_numbers_are_among_theirs_by_chance():
    numbers, weight = set(range(10)), np.ones(2 * PLAIN)
    keys, bare, other_keys, unit = ((numbers, letter, 1) for letter in (KEYED, 0, KEYED + 256 * 80, 83))
    lake = [[one] for one in (keys, bare, other_keys, unit)]
    found = check([[keys], [bare], [unit]], lake, weight, [0, 1, 2])
    assert (found.start.tolist(), found.table.tolist()) == ([0, 2, 2, 2], [0, 2])


def test_numbered_things_are_as_rare_as_among_their_like():
    """Many number something from 1 on, but few number patients: PAT-1 is common as 1 and rare as PAT-1."""
    numbers, weight = set(range(10)), np.append(np.zeros(PLAIN), np.ones(PLAIN))
    patients, plain = [[(numbers, 80, 0)]], [(numbers, 0, 0)]
    assert check(patients, [*patients, plain], weight, [0]).table.tolist() == [0]
    assert check([plain], [*patients, plain], weight, [0]).table.tolist() == []


def test_nothing():
    for queries, lake, tables in (
        ([], [], []),
        ([[]], [], [0]),
        ([[]], [[]], [0]),
        ([[(set(), 0, 0)]], [[]], [0, 0]),
    ):
        assert check(queries, lake, np.ones(2 * PLAIN), tables).table.tolist() == []


def test_what_weighs_nothing_is_in_no_list():
    columns = columns_of([[({0, 1}, 0, 0)], [({1, 2}, 0, 0)]], np.ones(2 * PLAIN))
    holders = holders_of(columns, np.array([1, 0, 0.5]))
    assert (holders.start.tolist(), holders.column.tolist()) == ([0, 1, 1, 2], [0, 1])


def test_most_of_a_column_is_all_its_values_and_those_without_a_number_weigh_1():
    weight, tables = np.array([1, 0.5, 0, 0.25, *[0] * (2 * PLAIN - 4)]), [[({0, 1, 2}, 0, 0), (set(), 0, 0)]]
    columns = columns_of(tables, weight, more=2)
    found = most_shared(columns.start, columns.token, weight, columns.size)
    assert found.tolist() == [(1 + 0.5 + 0 + 2) / 6, 2 / 3]
