"""The features of both sides against the oracle, and rows that are shared exactly where columns are alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch import features
from gpumatch.features import Side
from gpumatch.index import Index, TableSet

WORLDS = ["handmade", 0, 1]


class Sides:
    """A lake and queries from outside it: the oracle's tables, and the features of both sides."""

    def __init__(self, oracle, lake, outside, seed=0):
        self.oracle = oracle
        self.tables, self.columns, self.sets, self.side = {}, {}, {}, {}
        for name, specs, its_seed in (("lake", lake, seed), ("outside", outside, seed + 100)):
            self.tables[name], self.sets[name] = oracle.table_set(specs, its_seed)
            self.columns[name] = [column for table in self.tables[name] for column in table.columns]
        self.frequencies = oracle.Lake(self.tables["lake"])
        self.index = Index.of(self.sets["lake"], {})
        for name, tables in self.sets.items():
            self.side[name] = Side(tables, self.index, "cpu")


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def sides(request, oracle):
    specs = oracle.handmade() if request.param == "handmade" else oracle.random_lake(request.param)
    return Sides(oracle, *specs)


def rows_of(csr):
    """Each sparse row's weights, float64 arrays."""
    assert (csr.start.dtype, csr.token.dtype) == (np.int64, np.int32)
    assert csr.weight.dtype == np.float32
    assert csr.start[0] == 0
    assert csr.start[-1] == len(csr.token) == len(csr.weight)
    token, weight = csr.token, csr.weight.astype(np.float64)
    rows = []
    for a, b in pairwise(csr.start.tolist()):
        assert (np.diff(token[a:b]) > 0).all()
        assert ((token[a:b] >= 0) & (token[a:b] < csr.width)).all()
        rows.append(weight[a:b])
    return rows


def known(weights, frequencies):
    """The weights of the terms that the lake has, in rising order."""
    return sorted(weight for term, weight in weights.items() if frequencies.df[term])


def assert_rows(csr, expected):
    rows = rows_of(csr)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        np.testing.assert_allclose(np.sort(row), wanted, rtol=1e-5, atol=1e-7)


each_side = pytest.mark.parametrize("which", ["lake", "outside"])

# --- names


def test_name_ids_are_equal_exactly_where_names_are(sides):
    columns = sides.columns["lake"] + sides.columns["outside"]
    ids = np.concatenate([sides.side[which].name_id[sides.side[which].name_row] for which in ("lake", "outside")])
    assert ids.dtype == np.int64
    assert (ids >= 0).all()
    names = np.array([column.name for column in columns], object)
    np.testing.assert_array_equal(ids[:, None] == ids, names[:, None] == names)


@each_side
def test_grams_have_one_row_for_each_name(sides, which):
    side, of, frequencies = sides.side[which], sides.columns[which], sides.frequencies.grams
    row = side.name_row
    names = np.array([column.name for column in of], object)
    np.testing.assert_array_equal(row[:, None] == row, names[:, None] == names)
    assert len(side.name_grams.start) - 1 == len(set(names))
    every = rows_of(side.name_grams)
    for column, at in zip(of, row, strict=True):
        expected = known(frequencies.tfidf(column.grams), frequencies)
        np.testing.assert_allclose(np.sort(every[at]), expected, rtol=1e-5)


@each_side
def test_names_sets_and_shares(sides, which):
    side, of, frequencies = sides.side[which], sides.tables[which], sides.frequencies.names
    assert_rows(side.names, [known(frequencies.tfidf(dict.fromkeys(t.names, 1)), frequencies) for t in of])
    assert_rows(side.name_sets, [[1.0] * sum(frequencies.df[name] > 0 for name in t.names) for t in of])
    shares = []
    for table in of:
        total = sum(map(frequencies.idf, table.names))
        shares.append(known({name: frequencies.idf(name) / total for name in table.names}, frequencies))
    assert_rows(side.name_shares, shares)
    assert side.named_columns.tolist() == [sum(table.named.values()) for table in of]


@each_side
def test_positions(sides, which):
    side, frequencies = sides.side[which], sides.frequencies.positions
    expected = [known(frequencies.tfidf(table.positions), frequencies) for table in sides.tables[which]]
    assert_rows(side.positions, expected)


def test_rows_of_the_lake_are_of_unit_length_and_shares_sum_to_one(sides):
    side = sides.side["lake"]
    for csr in (side.names, side.positions, side.name_grams, side.tokens):
        for row in rows_of(csr):
            assert len(row) == 0 or np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    for row in rows_of(side.name_shares):
        assert len(row) == 0 or row.sum() == pytest.approx(1, abs=1e-6)


# --- values


@each_side
def test_tokens_have_one_row_for_each_bag(sides, which):
    side, of, frequencies = sides.side[which], sides.columns[which], sides.frequencies.tokens
    row = side.token_row
    bags = np.array([frozenset(column.tokens.items()) for column in of], object)
    np.testing.assert_array_equal(row[:, None] == row, bags[:, None] == bags)
    assert len(side.tokens.start) - 1 == len(set(bags))
    every = rows_of(side.tokens)
    for column, at in zip(of, row, strict=True):
        expected = known(frequencies.tfidf(column.tokens), frequencies)
        np.testing.assert_allclose(np.sort(every[at]), expected, rtol=1e-5)


@each_side
def test_values(sides, which):
    side, of = sides.side[which], sides.columns[which]
    lake_values = set().union(*(column.values for column in sides.columns["lake"]))
    assert_rows(side.values, [[1.0] * len(column.values & lake_values) for column in of])
    assert side.value_count.tolist() == [len(column.values) for column in of]


@each_side
def test_stats(sides, which):
    expected = np.array([column.stats for column in sides.columns[which]])
    np.testing.assert_allclose(sides.side[which].stats, expected, rtol=1e-5, atol=1e-5)


def bags_of_cells(oracle, *columns):
    """The token rows of one table's columns."""
    n = max(map(len, columns))
    cells = [[*column, *[None] * (n - len(column))] for column in columns]
    spec = {"header": [f"c{i}" for i in range(len(columns))], "columns": cells}
    return Sides(oracle, [spec], []).side["lake"].token_row.tolist()


def test_bags_that_differ_in_counts_only_are_different(oracle):
    a, b, c, d = bags_of_cells(oracle, ["x", "x y"], ["x", "y"], ["y", "x"], ["x y"])
    assert b == c == d
    assert a != b


def test_bags_that_differ_in_one_term_only_are_different(oracle):
    rows = bags_of_cells(oracle, ["x"], ["y"], ["x y"], [], ["?"])
    assert rows[3] == rows[4]
    assert len(set(rows[:4])) == 4


def test_a_bag_and_its_double_are_different(oracle):
    # Sums of hashes would confuse {x: 2} with twice {x: 1} only if they were no more than sums.
    rows = bags_of_cells(oracle, ["x"], ["x", "X"], ["x", "X", "x "], ["x x x"])
    assert rows[1] == rows[2]
    assert len(set(rows)) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["x", "y", "x y", "y x", "x x", "z", "?"]), max_size=4), min_size=1, max_size=6)
)
def test_any_bags(oracle, columns):
    rows = bags_of_cells(oracle, *columns)
    bags = [oracle.Column(f"c{i}", tuple(cells), *np.zeros((2, oracle.DIM))).tokens for i, cells in enumerate(columns)]
    for i in range(len(bags)):
        for j in range(len(bags)):
            assert (rows[i] == rows[j]) == (bags[i] == bags[j])


# --- vectors


@each_side
def test_column_and_header_vectors(sides, which):
    side, tables = sides.side[which], sides.tables[which]
    for rows, kind in ((side.value_row, "value_vector"), (side.name_vector_row, "name_vector")):
        columns = side.vectors(rows)
        assert columns.dtype == np.float32
        expected = [getattr(column, kind) for column in sides.columns[which]]
        np.testing.assert_array_equal(columns, np.array(expected, np.float32))
    headers = np.array([table.header_vector for table in tables], np.float32)
    np.testing.assert_array_equal(side.vectors(side.header_row), headers)


def test_products_of_some_vectors(sides):
    side, some = sides.side["lake"], np.array([3, 0, 3, 5])
    others = side.vectors(np.array([1, 2]))
    wanted = (side.vectors(some) @ others.T).clip(0, 1)
    np.testing.assert_allclose(side.cosines(some, others), wanted, rtol=0, atol=1e-6)


def test_wide_and_narrow_vectors_are_the_same(oracle, monkeypatch):
    specs = oracle.random_lake(0)
    wide = Sides(oracle, *specs).side["lake"]
    monkeypatch.setattr(features, "_WIDE_BYTES", 0)
    narrow = Sides(oracle, *specs).side["lake"]
    some = np.array([2, 0, 2, 11])
    np.testing.assert_array_equal(wide.vectors(some), narrow.vectors(some))
    assert narrow._vector_rows.dtype == np.float16
    assert narrow.vectors(some).dtype == narrow.cosines(some, wide.vectors(some)).dtype == np.float32


def test_without_vectors_the_dense_features_say_so_and_the_rest_is_there(oracle):
    sides = Sides(oracle, *oracle.random_lake(0))
    bare = Side(TableSet(sides.sets["lake"].profiles, None), sides.index, "cpu")
    for feature in ("names", "name_sets", "name_shares", "positions", "name_grams", "tokens", "values"):
        ours, theirs = getattr(bare, feature), getattr(sides.side["lake"], feature)
        np.testing.assert_array_equal(ours.token, theirs.token)
        np.testing.assert_array_equal(ours.weight, theirs.weight)
    one = np.array([0])
    for dense in (
        lambda: bare.value_row,
        lambda: bare.vectors(one),
        lambda: bare.header_row,
    ):
        with pytest.raises(ValueError, match="vectors"):
            dense()


def test_a_feature_that_does_not_fit_after_all_stays_on_the_host(oracle, monkeypatch):
    sides = Sides(oracle, *oracle.random_lake(0))
    side = Side(sides.sets["lake"], sides.index, "cpu:0")

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(side, "put", full)
    np.testing.assert_array_equal(side.stats, sides.side["lake"].stats)
    assert isinstance(side.stats, np.ndarray)

    def broken(_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(side, "put", broken)
    with pytest.raises(RuntimeError, match="launch failure"):
        side.kept(side.host.stats)


# --- edges


def test_a_lake_without_columns_has_every_feature(oracle):
    nothing = [{"header": [], "columns": []}] * 2
    for side in Sides(oracle, nothing, nothing).side.values():
        for csr in (side.names, side.name_sets, side.name_shares, side.positions):
            assert csr.start.tolist() == [0, 0, 0]
        for csr in (side.name_grams, side.tokens, side.values):
            assert csr.start.tolist() == [0]
        for array in (side.name_id, side.name_row, side.token_row, side.value_row, side.value_count):
            assert len(array) == 0
        assert side.stats.shape == (0, 6)
        assert side.named_columns.tolist() == [0, 0]


def test_queries_that_the_lake_knows_nothing_of(oracle):
    lake = [{"header": ["a"], "columns": [["x"]]}]
    strange = [{"header": ["qqqqqq", "rrrrrr", "qqqqqq"], "columns": [["v w"], ["w"], ["v w"]]}]
    side = Sides(oracle, lake, strange).side["outside"]
    for csr in (
        side.names,
        side.name_sets,
        side.name_shares,
        side.positions,
        side.name_grams,
        side.tokens,
        side.values,
    ):
        assert len(csr.token) == 0
    a, b, c = side.name_id[side.name_row].tolist()
    assert a == c != b
    assert min(a, b) >= 1
    assert side.named_columns.tolist() == [3]
    assert side.value_count.tolist() == [1, 1, 1]
