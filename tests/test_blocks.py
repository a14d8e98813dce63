"""Rows of blocks against loops over strings, dictionaries and float64; what a lake row and a query row hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from gpumatch.blocks import (
    HASHED,
    WIDEST,
    WIDTHS,
    Layout,
    RowMaker,
    chunks,
    column_layout,
    pooled_vectors,
    table_layout,
    width_rows,
)
from gpumatch.embed import Vectors
from gpumatch.index import Index, TableSet
from gpumatch.recipes import LAYERS, recipe_for
from gpumatch.text import words

CLOSE = {"rtol": 0, "atol": 1e-6}
TABLE_RECIPES = [recipe_for(task, layer) for task in ("join", "union") for layer in LAYERS]
COLUMN_RECIPES = [recipe_for("column", layer) for layer in LAYERS]

# --- the same blocks in loops


def hash_of(text):
    return xxhash.xxh3_64_intdigest(text.encode())


def name_terms(column):
    """The words of a name, and the name as a whole."""
    return Counter(hash_of(term) for term in [*words(column.name), "\x1f" + column.name])


def token_terms(column):
    return Counter({hash_of(token): count for token, count in column.tokens.items()})


def position_terms(table):
    return Counter(
        hash_of(column.name) ^ ((position + 1) * 0x9E3779B97F4A7C15 % 2**64)
        for position, column in enumerate(table.columns)
        if table.named[column]
    )


class Idf:
    def __init__(self, documents):
        self.n = len(documents)
        self.df = Counter(term for document in documents for term in document)

    def __call__(self, term):
        return 1 + np.log((1 + self.n) / (1 + self.df[term]))


class Weighing:
    """The squared idf of a query row; `Weighing([])` weighs nothing, as for a lake row."""

    def __init__(self, tables):
        columns = [column for table in tables for column in table.columns]
        self.words = Idf([name_terms(column) for column in columns])
        self.tokens = Idf([token_terms(column) for column in columns])
        self.positions = Idf([position_terms(table) for table in tables])


def hashed(terms, idf):
    out = np.zeros(HASHED)
    for term, count in terms.items():
        sign = -1 if term >= 2**63 else 1
        out[term % HASHED] += sign * count * (1 if idf is None else idf(term) ** 2)
    return out


def unit(block):
    length = np.linalg.norm(block)
    return block / length if length > 1e-12 else np.zeros_like(block)


def table_blocks(table, weighing, dim):
    """The blocks of a table row in their order, each of unit length or 0."""
    names = sum((name_terms(column) for column in table.columns if table.named[column]), Counter())
    tokens = sum((token_terms(column) for column in table.columns), Counter())
    blocks = {
        "header": hashed(names, weighing and weighing.words),
        "position": hashed(position_terms(table), weighing and weighing.positions),
        "values": hashed(tokens, weighing and weighing.tokens),
        "width": width_rows()[len(table.columns)].astype(np.float64),
        "columns": sum((vector_of(column, table) for column in table.columns), np.zeros(dim)),
        "header_text": table.header_vector * any(table.named.values()),
    }
    return {name: unit(block) for name, block in blocks.items()}


def vector_of(column, table):
    return column.name_vector * table.named[column] + column.value_vector


def column_blocks(column, table, weighing):
    names = name_terms(column) if table.named[column] else {}
    blocks = {
        "column_name": hashed(names, weighing and weighing.words),
        "column_values": hashed(token_terms(column), weighing and weighing.tokens),
        "column": vector_of(column, table),
    }
    return {name: unit(block) for name, block in blocks.items()}


def row_of(blocks, recipe, dense=True):
    kept = [name for name in blocks if dense or name not in ("columns", "header_text", "column")]
    return np.concatenate([blocks[name] * (1 if recipe is None else recipe.blocks.get(name, 0)) for name in kept])


# --- worlds


@pytest.fixture(scope="module", params=["handmade", 0], ids=str)
def world(request, oracle):
    """(lake tables, lake index, outside tables, their TableSet)."""
    which = request.param
    lake, outside = oracle.handmade() if which == "handmade" else oracle.random_lake(which)
    seed = 0 if which == "handmade" else which
    tables, lake_set = oracle.table_set(lake, seed)
    return tables, Index.of(lake_set, {}), *oracle.table_set(outside, seed + 100)


def columns_of(tables):
    return [(column, table) for table in tables for column in table.columns]


def maker_of(tables, **how):
    return RowMaker(tables.terms, tables.vectors, tables.profiles.table_cols, **{"dim": tables.dim, **how})


def spans_of(rows, layout):
    return {name: rows[:, start:stop] for name, (start, stop) in layout.spans.items()}


# --- lake rows


def test_lake_rows_are_the_blocks_unweighted(world, oracle):
    tables, index, _, _ = world
    expected = [row_of(table_blocks(table, None, oracle.DIM), None) for table in tables]
    np.testing.assert_allclose(maker_of(index.lake).tables(np.arange(len(tables))), expected, **CLOSE)
    columns = columns_of(tables)
    expected = [row_of(column_blocks(*column, None), None) for column in columns]
    np.testing.assert_allclose(maker_of(index.lake).columns(np.arange(len(columns))), expected, **CLOSE)


def test_an_index_stores_the_lake_rows_as_float16(world):
    _, index, _, _ = world
    rows = maker_of(index.lake).tables(np.arange(index.lake.profiles.n_tables))
    assert index.rows.dtype == np.float16
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(index.rows, rows.astype(np.float16))


def test_every_block_of_a_row_is_of_unit_length_or_zero(world):
    _, index, _, outside = world
    for side in (index.lake, outside):
        maker = maker_of(side, vocabularies=index.vocabularies if side is outside else None)
        n_tables, n_columns = side.profiles.n_tables, side.profiles.n_columns
        parts = [
            *spans_of(maker.tables(np.arange(n_tables)), table_layout(side.dim)).values(),
            *spans_of(maker.columns(np.arange(n_columns)), column_layout(side.dim)).values(),
        ]
        for block in parts:
            lengths = np.linalg.norm(block.astype(np.float64), axis=1)
            assert ((np.abs(lengths - 1) < 1e-5) | (lengths == 0)).all()
        assert any((np.linalg.norm(block, axis=1) == 0).any() for block in parts) or side is outside


def test_a_table_without_columns_has_only_its_width(oracle):
    _, side = oracle.table_set([{"header": [], "columns": []}], 3)
    parts = spans_of(maker_of(side).tables(np.array([0])), table_layout(side.dim))
    said = {"width": width_rows()[0]}
    for name, block in parts.items():
        np.testing.assert_allclose(block[0], said.get(name, np.zeros(block.shape[1])), **CLOSE)


def test_products_of_widths_come_close_to_the_signal():
    rows, x = width_rows(), np.log1p(np.arange(WIDEST + 1))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    wrong = np.abs(rows @ rows.T - np.exp(-np.abs(x[:, None] - x)))
    assert wrong.mean() < 0.04
    assert wrong.max() < 0.1
    like_five = rows[:30] @ rows[5]
    assert (np.diff(like_five[:6]) > 0).all()
    assert (np.diff(like_five[5:]) < 0).all()


def test_more_columns_than_the_widest_are_as_wide(oracle):
    n = WIDEST + 5
    _, side = oracle.table_set([{"header": [f"c{i}" for i in range(n)], "columns": [[]] * n}], 3)
    width = spans_of(maker_of(side).tables(np.array([0])), table_layout(side.dim))["width"]
    np.testing.assert_array_equal(width[0], width_rows()[WIDEST])


def test_names_that_say_nothing_are_in_no_row(oracle):
    """Else tables without names would be proposed for one another, whatever they hold."""
    cells = [["oslo", "bergen"], ["1", "2"]]
    _, side = oracle.table_set([{"header": ["col_1", "col_2"], "columns": cells}], 3)
    parts = spans_of(maker_of(side).tables(np.array([0])), table_layout(side.dim))
    assert {name for name, block in parts.items() if not block.any()} == {"header", "position", "header_text"}


def test_columns_that_cancel_out_pool_to_zero():
    rows = np.array([[1, 0], [-1, 0], [0, 1]], np.float16)
    place = np.array([0, 1, 2, 2], np.int32)
    vectors = Vectors(rows, place, place, np.empty(0, np.int32))
    pooled = pooled_vectors(vectors, np.ones(4, np.bool_), np.arange(4), np.array([0, 0, 2, 2]), 4)
    np.testing.assert_array_equal(pooled, [[0, 0], [0, 0], [0, 1], [0, 0]])
    named = np.array([True, False, True, True])
    pooled = pooled_vectors(vectors, named, np.arange(2), np.array([0, 0]), 1)
    np.testing.assert_array_equal(pooled, [[1, 0]])


# --- query rows


@pytest.mark.parametrize("recipe", TABLE_RECIPES, ids=lambda recipe: f"{recipe.task} {len(recipe.blocks)}")
def test_query_rows_are_weighed_by_the_recipe_and_squared_idf(world, oracle, recipe):
    lake, index, tables, outside = world
    weighing = Weighing(lake)
    for some, side in ((tables, outside), (lake, index.lake)):
        maker = maker_of(side, vocabularies=index.vocabularies, weights=recipe.blocks)
        expected = [row_of(table_blocks(table, weighing, oracle.DIM), recipe) for table in some]
        np.testing.assert_allclose(maker.tables(np.arange(len(some))), expected, **CLOSE)


@pytest.mark.parametrize("recipe", COLUMN_RECIPES, ids=LAYERS)
def test_query_columns_are_weighed_by_the_recipe_and_squared_idf(world, recipe):
    lake, index, tables, outside = world
    weighing, columns = Weighing(lake), columns_of(tables)
    maker = maker_of(outside, vocabularies=index.vocabularies, weights=recipe.blocks)
    expected = [row_of(column_blocks(*column, weighing), recipe) for column in columns]
    np.testing.assert_allclose(maker.columns(np.arange(len(columns))), expected, **CLOSE)


def test_one_inner_product_is_the_weighted_sum_of_the_block_similarities(world, oracle):
    lake, index, tables, outside = world
    recipe, weighing = recipe_for("union", "L1+L2"), Weighing(lake)
    maker = maker_of(outside, vocabularies=index.vocabularies, weights=recipe.blocks)
    got = maker.tables(np.arange(len(tables))) @ index.rows.astype(np.float32).T
    for i, q in enumerate(tables):
        query = table_blocks(q, weighing, oracle.DIM)
        for j, c in enumerate(lake):
            candidate = table_blocks(c, None, oracle.DIM)
            expected = sum(weight * query[name] @ candidate[name] for name, weight in recipe.blocks.items())
            assert got[i, j] == pytest.approx(expected, abs=2e-3)  # float16 rows


def test_without_vectors_dense_blocks_stay_zero(world):
    _, index, _, outside = world
    full = maker_of(outside, vocabularies=index.vocabularies)
    bare = replace(full, vectors=None)
    every = np.arange(outside.profiles.n_tables)
    with_vectors = spans_of(full.tables(every), table_layout(outside.dim))
    for name, block in spans_of(bare.tables(every), table_layout(outside.dim)).items():
        dense = name in ("columns", "header_text")
        np.testing.assert_array_equal(block, np.zeros_like(block) if dense else with_vectors[name])


def test_l1_rows_are_the_lexical_part_of_the_full_ones(world):
    _, index, _, _ = world
    n, bare = index.lake.profiles.n_tables, TableSet(index.lake.profiles, None)
    lexical = Index.of(bare, {})
    np.testing.assert_array_equal(lexical.rows, index.rows[:, : 3 * HASHED + WIDTHS])
    assert lexical.rows.shape == (n, table_layout(None).width)


# --- how the work is cut


def test_rows_in_any_order_and_number_are_the_same_rows(world):
    _, index, _, _ = world
    maker, n = maker_of(index.lake, vocabularies=index.vocabularies), index.lake.profiles.n_tables
    every = maker.tables(np.arange(n))
    some = np.random.default_rng(0).integers(0, n, 2 * n)
    np.testing.assert_array_equal(maker.tables(some), every[some])
    np.testing.assert_array_equal(np.concatenate([maker.tables(np.array([t])) for t in range(n)]), every)
    assert maker.tables(np.empty(0, np.int64)).shape == (0, every.shape[1])
    n = index.lake.profiles.n_columns
    every = maker.columns(np.arange(n))
    some = np.random.default_rng(1).integers(0, n, 2 * n)
    np.testing.assert_array_equal(maker.columns(some), every[some])
    assert maker.columns(np.empty(0, np.int64)).shape == (0, every.shape[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_an_index_is_the_same_however_many_rows_are_made_at_once(world, monkeypatch, at_once, threads):
    _, index, _, _ = world
    monkeypatch.setattr("gpumatch.index._ROWS_AT_ONCE", at_once)
    np.testing.assert_array_equal(Index.of(index.lake, {}, threads).rows, index.rows)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 6])
def test_chunks_cover_everything_once_and_in_order(n, size):
    parts = list(chunks(n, size))
    assert all(0 < len(part) <= size for part in parts)
    assert [int(i) for part in parts for i in part] == list(range(n))


def test_layouts():
    layout = Layout.of({"a": 2, "b": 0, "c": 3})
    assert layout.spans == {"a": (0, 2), "b": (2, 2), "c": (2, 5)}
    assert layout.width == 5
    assert Layout.of({}).width == 0
    assert (HASHED, WIDTHS) == (1024, 24)  # stored indexes hold rows of that layout
    assert table_layout(7).width == 3 * HASHED + WIDTHS + 14
    assert table_layout(None).width == 3 * HASHED + WIDTHS
    assert column_layout(7).width == 2 * HASHED + 7
    assert column_layout(None).width == 2 * HASHED
    for recipe in (*TABLE_RECIPES, *COLUMN_RECIPES):
        assert recipe.blocks.keys() <= table_layout(7).spans.keys() | column_layout(7).spans.keys()
