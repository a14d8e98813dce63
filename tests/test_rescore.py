"""Every signal of every recipe against its oracle, and scores that do not depend on how the work is cut."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import some_pairs
from threadpoolctl import threadpool_info, threadpool_limits

from gpumatch import chunks, rescore, rescore_columns
from gpumatch.features import Side
from gpumatch.index import Index, TableSet
from gpumatch.recipes import KEY, LAYERS, SIGNALS, Recipe, recipe_for, signals_of
from gpumatch.rescore import explain_tables, score_tables
from gpumatch.rescore_columns import score_columns

CLOSE = {"rtol": 0, "atol": 1e-5}
# The same sums in other shapes: only their last bits may differ.
SAME = {"rtol": 0, "atol": 1e-6}
TABLE_RECIPES = {f"{task} {layer}": recipe_for(task, layer) for task in ("join", "union") for layer in LAYERS}
COLUMN_RECIPES = {f"column {layer}": recipe_for("column", layer) for layer in LAYERS}
# What a file of weights may ask for.
for task, recipes in (("union", TABLE_RECIPES), ("column", COLUMN_RECIPES)):
    everything = dict.fromkeys(signals_of(task, "L1+L2"), 1.0)
    recipes[f"every signal of a {task}"] = replace(recipe_for(task, "L1+L2"), weights=everything)
WORLDS = ["handmade", *range(3)]


@dataclass
class World:
    """A lake and queries from outside it, twice: as the oracle's tables and as gpumatch's."""

    oracle: object
    lake: list
    lake_set: TableSet
    outside: list
    outside_set: TableSet

    def __post_init__(self):
        self.frequencies = self.oracle.Lake(self.lake)
        self.index = Index.of(self.lake_set, {})
        self.c = Side(self.lake_set, self.index, "cpu")
        self.queries = {
            "lake": (self.lake, self.c),
            "lake again": (self.lake, Side(self.lake_set, self.index, "cpu")),
            "outside": (self.outside, Side(self.outside_set, self.index, "cpu")),
        }

    def expect_tables(self, tables, recipe, pair_q, pair_c):
        signals = [self.oracle.TABLE_SIGNALS[name] for name in recipe.weights]
        pairs = [(tables[i], self.lake[j]) for i, j in zip(pair_q, pair_c, strict=True)]
        found = [[signal(self.frequencies, q, c) for signal in signals] for q, c in pairs]
        return np.array(found).reshape(len(pair_q), len(signals))

    def expect_columns(self, tables, recipe, pair_q, pair_c):
        signals = [self.oracle.COLUMN_SIGNALS[name] for name in recipe.weights]
        left = [(table, column) for table in tables for column in table.columns]
        right = [(table, column) for table in self.lake for column in table.columns]
        found = [
            [signal(self.frequencies, *left[i], *right[j]) for signal in signals]
            for i, j in zip(pair_q, pair_c, strict=True)
        ]
        return np.array(found).reshape(len(pair_q), len(signals))


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def world(request, oracle):
    return make_world(oracle, request.param)


@pytest.fixture(scope="module")
def one_world(oracle):
    return make_world(oracle, 0)


def make_world(oracle, which):
    lake, outside = oracle.handmade() if which == "handmade" else oracle.random_lake(which)
    seed = 0 if which == "handmade" else which
    return World(oracle, *oracle.table_set(lake, seed), *oracle.table_set(outside, seed + 100))


def without_vectors(world):
    sets = (TableSet(tables.profiles, None) for tables in (world.lake_set, world.outside_set))
    return World(world.oracle, world.lake, next(sets), world.outside, next(sets))


def every_pair(n_q, n_c):
    return np.repeat(np.arange(n_q), n_c), np.tile(np.arange(n_c), n_q)


def without_keys(recipe):
    return replace(recipe, weights={name: w for name, w in recipe.weights.items() if name != "key_containment"})


# --- the oracle


def test_every_signal_of_a_recipe_has_a_formula_code_and_an_oracle(oracle):
    computed = rescore._TABLE_SIGNALS | rescore._MAXSIM_SIGNALS
    for recipe in TABLE_RECIPES.values():
        assert recipe.weights.keys() <= SIGNALS.keys() & computed.keys() & oracle.TABLE_SIGNALS.keys()
    for recipe in COLUMN_RECIPES.values():
        assert (
            recipe.weights.keys()
            <= SIGNALS.keys() & rescore_columns._COLUMN_SIGNALS.keys() & oracle.COLUMN_SIGNALS.keys()
        )
    assert oracle.TABLE_SIGNALS.keys() == computed.keys() == set(signals_of("join", "L1+L2"))
    assert oracle.COLUMN_SIGNALS.keys() == rescore_columns._COLUMN_SIGNALS.keys() == set(signals_of("column", "L1+L2"))


@pytest.mark.parametrize("queries", ["lake", "lake again", "outside"])
@pytest.mark.parametrize("recipe", TABLE_RECIPES.values(), ids=TABLE_RECIPES)
def test_tables(world, recipe, queries):
    tables, side = world.queries[queries]
    for pairs in (every_pair(len(tables), len(world.lake)), some_pairs(len(tables), len(world.lake))):
        got = score_tables(side, world.c, *pairs, recipe, 1)
        assert got.dtype == np.float32
        expected = world.expect_tables(tables, recipe, *pairs)
        for column, name in enumerate(recipe.weights):
            np.testing.assert_allclose(got[:, column], expected[:, column], **CLOSE, err_msg=name)


@pytest.mark.parametrize("queries", ["lake", "lake again", "outside"])
@pytest.mark.parametrize("recipe", COLUMN_RECIPES.values(), ids=COLUMN_RECIPES)
def test_columns(world, recipe, queries):
    tables, side = world.queries[queries]
    n_q, n_c = (sum(len(table.columns) for table in some) for some in (tables, world.lake))
    pairs = some_pairs(n_q, n_c, most=60)
    got = score_columns(side, world.c, *pairs, recipe, 1)
    assert got.dtype == np.float32
    expected = world.expect_columns(tables, recipe, *pairs)
    for column, name in enumerate(recipe.weights):
        np.testing.assert_allclose(got[:, column], expected[:, column], **CLOSE, err_msg=name)


def test_the_oracle_sees_something(world):
    # An agreement on zeros would prove nothing.
    tables, _ = world.queries["outside"]
    for recipe in TABLE_RECIPES.values():
        found = world.expect_tables(tables, recipe, *every_pair(len(tables), len(world.lake)))
        assert (np.nanmax(found, axis=0) > 0.1).all()
        assert (np.nanmax(found, axis=0) - np.nanmin(found, axis=0) > 0.1).all()


@pytest.mark.parametrize("queries", ["lake", "outside"])
def test_signals_stay_in_the_range_that_recipes_state(world, queries):
    tables, side = world.queries[queries]
    n_columns = [sum(len(table.columns) for table in some) for some in (tables, world.lake)]
    for recipe, score, pairs in (
        *((recipe, score_tables, every_pair(len(tables), len(world.lake))) for recipe in TABLE_RECIPES.values()),
        *((recipe, score_columns, every_pair(*n_columns)) for recipe in COLUMN_RECIPES.values()),
    ):
        signals = score(side, world.c, *pairs, recipe, 1)
        assert not np.isinf(signals).any()
        for column, name in enumerate(recipe.weights):
            low, high = SIGNALS[name].range
            assert low <= np.nanmin(signals[:, column])
            assert np.nanmax(signals[:, column]) <= high, name


def test_a_table_is_like_itself(world):
    full = np.array([i for i, table in enumerate(world.lake) if table.columns and all(c.values for c in table.columns)])
    for recipe in TABLE_RECIPES.values():
        signals = score_tables(world.c, world.c, full, full, without_keys(recipe), 1)  # a key is never wholly sure
        # float16 vectors are of unit length to 1e-3 only
        np.testing.assert_allclose(signals[~np.isnan(signals)], 1, rtol=0, atol=1e-3)
        assert np.isnan(signals).mean() < 0.2


@pytest.mark.parametrize("recipe", [*TABLE_RECIPES.values(), *COLUMN_RECIPES.values()])
def test_signals_are_symmetric_between_lake_tables_exactly_where_recipes_say_so(world, recipe):
    of_columns = recipe.task == "column"
    n = sum(len(table.columns) for table in world.lake) if of_columns else len(world.lake)
    score = score_columns if of_columns else score_tables
    signals = score(world.c, world.c, *every_pair(n, n), recipe, 1).reshape(n, n, -1)
    for column, name in enumerate(recipe.weights):
        gap = np.nanmax(np.abs(signals[:, :, column] - signals[:, :, column].T))
        assert gap <= 1e-6 if SIGNALS[name].symmetric else gap > 1e-3, name
    assert recipe.symmetric == all(SIGNALS[name].symmetric for name in recipe.weights)


name = st.sampled_from(["id", "Id ", "a", "", "city", "city name"])
cell = st.sampled_from([None, "", "-", "1", "2", "1,000", "oslo", "Oslo", "oslo 1", "?!"])


@st.composite
def spec(draw):
    header = draw(st.lists(name, max_size=3))
    n_rows = draw(st.integers(0, 4))
    columns = [draw(st.lists(cell, min_size=n_rows, max_size=n_rows)) for _ in header]
    return {"header": header, "columns": columns}


@settings(max_examples=40, deadline=None)
@given(
    lake=st.lists(spec(), min_size=1, max_size=4),
    outside=st.lists(spec(), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_any_tables(oracle, lake, outside, seed):
    tiny = World(oracle, *oracle.table_set(lake, seed), *oracle.table_set(outside, seed + 1))
    tables, side = tiny.queries["outside"]
    pairs = every_pair(len(tables), len(lake))
    for recipe in (TABLE_RECIPES["join L1"], TABLE_RECIPES["union L1+L2"]):
        got = score_tables(side, tiny.c, *pairs, recipe, 1)
        np.testing.assert_allclose(got, tiny.expect_tables(tables, recipe, *pairs), **CLOSE)
    n_q, n_c = (sum(len(table.columns) for table in some) for some in (tables, tiny.lake))
    recipe, pairs = COLUMN_RECIPES["column L1+L2"], every_pair(n_q, n_c)
    got = score_columns(side, tiny.c, *pairs, recipe, 1)
    np.testing.assert_allclose(got, tiny.expect_columns(tables, recipe, *pairs), **CLOSE)


# --- matching columns


def matches(world, tables, found, pair_q, pair_c, pair):
    """The matches of one pair as (column in its query table, column in its lake table, score)."""
    first_q = np.cumsum([0, *(len(table.columns) for table in tables)])
    first_c = np.cumsum([0, *(len(table.columns) for table in world.lake)])
    of = found.pair == pair
    query, candidate = found.query[of] - first_q[pair_q[pair]], found.candidate[of] - first_c[pair_c[pair]]
    return list(zip(query.tolist(), candidate.tolist(), found.score[of].tolist(), strict=True))


@pytest.mark.parametrize("queries", ["lake", "outside"])
@pytest.mark.parametrize("recipe", TABLE_RECIPES.values(), ids=TABLE_RECIPES)
def test_matching_columns_are_each_others_best(world, recipe, queries):
    tables, side = world.queries[queries]
    pair_q, pair_c = some_pairs(len(tables), len(world.lake), seed=1)
    recipe = without_keys(recipe)
    signals, found = explain_tables(side, world.c, pair_q, pair_c, recipe, 1)
    np.testing.assert_array_equal(signals, score_tables(side, world.c, pair_q, pair_c, recipe, 1))
    assert (np.diff(found.pair) >= 0).all()
    for pair, (i, j) in enumerate(zip(pair_q, pair_c, strict=True)):
        alike = world.oracle.similarity(world.frequencies, tables[i], world.lake[j], recipe.dense)
        given_matches = matches(world, tables, found, pair_q, pair_c, pair)
        rows, lanes = [a for a, _, _ in given_matches], [b for _, b, _ in given_matches]
        assert len(set(rows)) == len(rows)
        assert len(set(lanes)) == len(lanes)
        assert given_matches == sorted(given_matches, key=lambda match: (-match[2], match[0], match[1]))
        for a, b, score in given_matches:
            assert 0 <= a < len(tables[i].columns)
            assert 0 <= b < len(world.lake[j].columns)
            assert score > 0
            assert score == pytest.approx(alike[a, b], abs=1e-5)
            assert score >= max(alike[a].max(), alike[:, b].max()) - 1e-5
        for a, b in zip(*np.nonzero(alike > 1e-4), strict=True):
            others = max(np.delete(alike[a], b).max(initial=0), np.delete(alike[:, b], a).max(initial=0))
            if alike[a, b] > others + 1e-4:
                assert (a, b) in zip(rows, lanes, strict=True)


def explain_one(oracle, lake, query, recipe):
    tiny = World(oracle, *oracle.table_set(lake, 0), *oracle.table_set([query], 1))
    pair_q, pair_c = every_pair(1, len(lake))
    _, found = explain_tables(tiny.queries["outside"][1], tiny.c, pair_q, pair_c, recipe, 1)
    return [matches(tiny, tiny.outside, found, pair_q, pair_c, pair) for pair in range(len(lake))]


def test_matches_by_hand(oracle):
    lake = [
        {"header": ["b", "city", "id"], "columns": [["x"], ["oslo"], ["7"]]},
        {"header": ["zzzzz"], "columns": [["nothing"]]},
        {"header": [], "columns": []},
    ]
    query = {"header": ["id", "city", "city x"], "columns": [["7"], ["oslo"], ["oslo"]]}
    first, *rest = explain_one(oracle, lake, query, TABLE_RECIPES["join L1"])
    assert [(a, b, round(score, 5)) for a, b, score in first] == [(0, 2, 1.0), (1, 1, 1.0)]
    assert rest == [[], []]


def test_equal_columns_match_the_first_with_the_first(oracle):
    lake = [{"header": ["id", "id", "id"], "columns": [["7"]] * 3}]
    query = {"header": ["x", "id", "id"], "columns": [["8"], ["7"], ["7"]]}
    (found,) = explain_one(oracle, lake, query, TABLE_RECIPES["join L1"])
    assert found[0][:2] == (1, 0)
    assert len({a for a, _, _ in found}) == len({b for _, b, _ in found}) == len(found)


# --- how the work is cut


@pytest.fixture
def tiny_chunks(monkeypatch):
    def cut(cells, queries):
        monkeypatch.setattr(chunks, "CHUNK_CELLS", cells)
        monkeypatch.setattr(chunks, "CHUNK_QUERIES", queries)

    return cut


def all_of(world, queries, recipe, column_recipe, threads, seed=2):
    """Everything that re-scoring gives for some pairs."""
    tables, side = world.queries[queries]
    pairs = some_pairs(len(tables), len(world.lake), seed)
    itself = pairs[0] if queries == "lake" else np.full(len(pairs[0]), -1)
    signals = score_tables(side, world.c, *pairs, recipe, threads, itself)
    explained, found = explain_tables(side, world.c, *pairs, recipe, threads, itself)
    n_q, n_c = (sum(len(table.columns) for table in some) for some in (tables, world.lake))
    columns = score_columns(side, world.c, *some_pairs(n_q, n_c, seed, most=4), column_recipe, threads)
    return signals, explained, columns, found


def assert_same(got, expected):
    for ours, theirs in zip(got[:3], expected[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, **SAME)
    for field in ("pair", "query", "candidate"):
        np.testing.assert_array_equal(getattr(got[3], field), getattr(expected[3], field))
    np.testing.assert_allclose(got[3].score, expected[3].score, **SAME)


@pytest.mark.parametrize(
    ("cells", "queries", "threads"),
    [(1, 1, 1), (1, 100, 2), (7, 2, 3), (40, 3, 1), (150, 2, 2), (10**6, 1, 3), (10**6, 2, 1), (10**6, 12, 2)],
)
def test_chunk_bounds_and_threads_change_nothing(one_world, tiny_chunks, cells, queries, threads):
    recipes = TABLE_RECIPES["union L1+L2"], COLUMN_RECIPES["column L1+L2"]
    expected = all_of(one_world, "outside", *recipes, 1)
    tiny_chunks(cells, queries)
    assert_same(all_of(one_world, "outside", *recipes, threads), expected)


@pytest.mark.parametrize("name", ["join L1", "union L1+L2"])
def test_chunk_bounds_change_nothing_in_any_lake(world, tiny_chunks, name):
    recipes = TABLE_RECIPES[name], COLUMN_RECIPES[f"column {name.split()[1]}"]
    expected = all_of(world, "lake", *recipes, 1)
    tiny_chunks(20, 2)
    assert_same(all_of(world, "lake", *recipes, 2), expected)


@pytest.mark.parametrize("name", [*TABLE_RECIPES, *COLUMN_RECIPES])
def test_threads_change_not_a_bit(one_world, tiny_chunks, name):
    tiny_chunks(60, 2)
    recipes = TABLE_RECIPES.get(name, TABLE_RECIPES["join L1"]), COLUMN_RECIPES.get(name, COLUMN_RECIPES["column L1"])
    one, two, three = (all_of(one_world, "outside", *recipes, threads) for threads in (1, 2, 3))
    for many in (two, three):
        for ours, theirs in zip(many[:3], one[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for field in ("pair", "query", "candidate", "score"):
            np.testing.assert_array_equal(getattr(many[3], field), getattr(one[3], field))


@pytest.mark.parametrize("threads", [1, 2])
def test_products_get_their_threads_back(one_world, threads):
    def now():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = now()
        all_of(one_world, "lake", TABLE_RECIPES["join L1"], COLUMN_RECIPES["column L1"], threads)
        assert now() == before


@pytest.mark.parametrize("name", ["join", "union"])
def test_tensors_give_what_arrays_give(world, name):
    recipes = TABLE_RECIPES[f"{name} L1+L2"], COLUMN_RECIPES["column L1+L2"]
    on_tensors = copy(world)
    on_tensors.c = Side(world.lake_set, world.index, "cpu:0")
    on_tensors.queries = {
        "lake": (world.lake, on_tensors.c),
        "outside": (world.outside, Side(world.outside_set, world.index, "cpu:0")),
    }
    for queries in ("lake", "outside"):
        got, expected = (all_of(one, queries, *recipes, 1) for one in (on_tensors, world))
        for ours, theirs in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_allclose(ours, theirs, **SAME)


def test_a_device_that_has_no_room_for_features_gets_the_rows_of_a_chunk(one_world, monkeypatch):
    recipes = TABLE_RECIPES["union L1+L2"], COLUMN_RECIPES["column L1+L2"]
    answers = []
    for room in (True, False):
        monkeypatch.setattr("gpumatch.features.keeps", lambda nbytes, free, total, room=room: room)
        there = copy(one_world)
        there.c = Side(there.lake_set, there.index, "cpu:0")
        there.queries = {"outside": (there.outside, Side(there.outside_set, there.index, "cpu:0"))}
        answers.append(all_of(there, "outside", *recipes, 1))
        for feature in (there.c.stats, there.c.pooled, there.c.tokens.start, there.c._vector_rows):
            assert isinstance(feature, torch.Tensor if room else np.ndarray)
    assert_same(*answers)


# --- the order of pairs


@pytest.mark.parametrize("name", ["join L1", "union L1+L2"])
def test_the_order_of_queries_and_survivors_changes_nothing(world, tiny_chunks, name):
    tiny_chunks(60, 3)
    tables, side = world.queries["outside"]
    recipe, n = TABLE_RECIPES[name], len(world.lake)
    expected = score_tables(side, world.c, *every_pair(len(tables), n), recipe, 1).reshape(len(tables), n, -1)
    rng = np.random.default_rng(4)
    for _ in range(3):
        queries = rng.permutation(len(tables))
        pair_q, pair_c = np.repeat(queries, n), np.concatenate([rng.permutation(n) for _ in queries])
        got = score_tables(side, world.c, pair_q, pair_c, recipe, 2)
        np.testing.assert_allclose(got, expected[pair_q, pair_c], **SAME)


@pytest.mark.parametrize("name", COLUMN_RECIPES)
def test_the_order_of_query_columns_changes_nothing(one_world, tiny_chunks, name):
    tiny_chunks(60, 3)
    tables, side = one_world.queries["outside"]
    n_q, n_c = (sum(len(table.columns) for table in some) for some in (tables, one_world.lake))
    recipe = COLUMN_RECIPES[name]
    expected = score_columns(side, one_world.c, *every_pair(n_q, n_c), recipe, 1).reshape(n_q, n_c, -1)
    pair_q, pair_c = some_pairs(n_q, n_c, seed=5)
    got = score_columns(side, one_world.c, pair_q, pair_c, recipe, 2)
    np.testing.assert_allclose(got, expected[pair_q, pair_c], **SAME)


def test_a_query_or_a_pair_may_come_twice(one_world):
    tables, side = one_world.queries["outside"]
    recipe, n = TABLE_RECIPES["union L1+L2"], len(one_world.lake)
    pair_q, pair_c = np.array([1, 1, 1, 0, 0, 1, 1, 2]), np.array([0, 3, 0, 3, 3, 0, n - 1, 5])
    signals, found = explain_tables(side, one_world.c, pair_q, pair_c, recipe, 1)
    np.testing.assert_allclose(signals, one_world.expect_tables(tables, recipe, pair_q, pair_c), **CLOSE)
    twins = [matches(one_world, tables, found, pair_q, pair_c, pair) for pair in range(len(pair_q))]
    assert twins[0] == twins[2] == twins[5]
    assert twins[3] == twins[4]


def test_no_pairs(one_world):
    none = np.empty(0, np.int64)
    for threads in (1, 2):
        for recipe in TABLE_RECIPES.values():
            assert score_tables(one_world.c, one_world.c, none, none, recipe, threads).shape == (0, len(recipe.weights))
            signals, found = explain_tables(one_world.c, one_world.c, none, none, recipe, threads)
            assert signals.shape == (0, len(recipe.weights))
            assert len(found.pair) == len(found.query) == len(found.candidate) == len(found.score) == 0
        for recipe in COLUMN_RECIPES.values():
            assert score_columns(one_world.c, one_world.c, none, none, recipe, threads).shape == (
                0,
                len(recipe.weights),
            )


def test_a_lake_of_tables_without_columns(oracle):
    nothing = [{"header": [], "columns": []}] * 2
    bare = World(oracle, *oracle.table_set(nothing, 0), *oracle.table_set(nothing, 1))
    for queries in ("lake", "outside"):
        tables, side = bare.queries[queries]
        for recipe in TABLE_RECIPES.values():
            signals, found = explain_tables(side, bare.c, *every_pair(2, 2), recipe, 1)
            expected = bare.expect_tables(tables, recipe, *every_pair(2, 2))
            np.testing.assert_allclose(signals, expected, **CLOSE)
            assert len(found.pair) == 0


# --- L1


def test_l1_needs_no_vectors_and_says_the_same_without_them(world):
    bare = without_vectors(world)
    for queries in ("lake", "outside"):
        for name in ("join L1", "union L1"):
            recipes = TABLE_RECIPES[name], COLUMN_RECIPES["column L1"]
            assert_same(all_of(bare, queries, *recipes, 1), all_of(world, queries, *recipes, 1))


def test_dense_evidence_without_vectors_is_refused(one_world):
    bare = without_vectors(one_world)
    tables, column = np.array([0]), np.array([0])
    for score, recipe, pairs in (
        (score_tables, TABLE_RECIPES["union L1+L2"], tables),
        (explain_tables, TABLE_RECIPES["union L1+L2"], tables),
        (score_columns, COLUMN_RECIPES["column L1+L2"], column),
    ):
        with pytest.raises(ValueError, match="vectors"):
            score(bare.c, bare.c, pairs, pairs, recipe, 1)


def test_what_a_recipe_does_not_weigh_is_not_computed(one_world, monkeypatch):
    monkeypatch.setitem(rescore._TABLE_SIGNALS, "name_overlap", None)
    monkeypatch.setattr(rescore, "_SIMILARITIES", {})
    lean = Recipe(task="join", weights={"name_cosine": 1, "name_position": 2}, density=0, blocks={}, pool=5)
    pairs = every_pair(len(one_world.lake), len(one_world.lake))
    got = score_tables(one_world.c, one_world.c, *pairs, lean, 1)
    np.testing.assert_allclose(got, one_world.expect_tables(one_world.lake, lean, *pairs), **CLOSE)


def test_signals_come_in_the_recipes_order(one_world):
    recipe = TABLE_RECIPES["union L1+L2"]
    turned = replace(recipe, weights=dict(reversed(recipe.weights.items())))
    pairs = every_pair(len(one_world.lake), len(one_world.lake))
    got = score_tables(one_world.c, one_world.c, *pairs, turned, 1)
    np.testing.assert_array_equal(got[:, ::-1], score_tables(one_world.c, one_world.c, *pairs, recipe, 1))


@pytest.mark.parametrize("queries", ["lake", "outside"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_shared_key_is_among_the_matching_columns_and_takes_the_place_of_what_matches_either(world, queries, layer):
    tables, side = world.queries[queries]
    recipe = recipe_for("join", layer)
    pair_q, pair_c = some_pairs(len(tables), len(world.lake), seed=1)
    signals, found = explain_tables(side, world.c, pair_q, pair_c, recipe, 1)
    np.testing.assert_array_equal(signals, score_tables(side, world.c, pair_q, pair_c, recipe, 1))
    _, others = explain_tables(side, world.c, pair_q, pair_c, without_keys(recipe), 1)
    n_keys = 0
    for pair, (i, j) in enumerate(zip(pair_q, pair_c, strict=True)):
        share = signals[pair, list(recipe.weights).index("key_containment")]
        given, plain = (matches(world, tables, one, pair_q, pair_c, pair) for one in (found, others))
        assert given == sorted(given, key=lambda match: (-match[2], match[0], match[1]))
        if not share > 0:
            assert given == plain
            continue
        n_keys += 1
        keys = []
        for key in given:
            a, b = tables[i].columns[key[0]], world.lake[j].columns[key[1]]
            others_of = {one for one in plain if one[0] != key[0] and one[1] != key[1]}
            found_share, n = world.oracle.key_share(world.frequencies, a, b)
            if found_share ** world.oracle.power(n) == pytest.approx(share, abs=1e-5):
                keys.append(others_of == {one for one in given if one != key} and key[2] >= share - 1e-6)
        assert any(keys)
    assert n_keys > 2 or queries == "outside"


def test_numbered_things_of_the_same_letters_may_begin_at_one(oracle):
    tables = [
        {"header": ["a"], "columns": [[f"{letters}{i:03}" for i in range(1, 41)]]} for letters in ("E", "E", "S", "")
    ] + [{"header": ["a", "b"] * 20, "columns": [["x"]] * 40}]
    world = World(oracle, *oracle.table_set(tables, 0), *oracle.table_set(tables[:1], 1))
    for recipe, score in ((recipe_for("join", "L1"), score_tables), (recipe_for("column", "L1"), score_columns)):
        name = "key_containment" if recipe.task == "join" else "rare_containment"
        found = score(world.c, world.c, *every_pair(1, 4), recipe, 1)[:, list(recipe.weights).index(name)]
        assert found[1] > 0.03
        assert (found[2:] == 0).all()


def test_a_few_values_tell_of_no_key_and_a_sample_of_many_rows_does(oracle):
    trees = ["ash", "beech", "maple"]  # not so short that others have them by chance
    tables = [{"header": [name], "columns": [trees]} for name in "ab"]
    whole = oracle.table_set(tables, 0)[1]
    of_tables, pairs = Recipe("join", {"key_containment": 1}, 0, {}, 5), every_pair(2, 2)
    of_columns = Recipe("column", {"rare_containment": 1}, 0, {}, 5)
    for rows, known in (([3, 3], True), ([3, -4], False), ([3, -101], True), ([-101, -101], True)):
        index = Index.of(TableSet(replace(whole.profiles, table_rows=np.array(rows)), whole.vectors), {})
        side = Side(index.lake, index, "cpu")
        found = score_tables(side, side, *pairs, of_tables, 1).reshape(2, 2)
        share = np.float32((3 / 4) ** oracle.power(3))
        np.testing.assert_allclose(found[0], [share, share if known else np.nan], rtol=1e-6)
        np.testing.assert_allclose(found, found.T)
        by_column = score_columns(side, side, *pairs, of_columns, 1).reshape(2, 2)
        np.testing.assert_allclose(by_column, np.where([[True] * 2, [known] * 2], share, np.nan), rtol=1e-6)


def test_what_all_values_would_tell_is_not_known_of_a_sample(oracle):
    tables = [{"header": ["a"], "columns": [["x", "y"]]}] * 2
    whole = oracle.table_set(tables, 0)[1]
    profiles = replace(whole.profiles, table_rows=np.array([2, -1]))
    index = Index.of(TableSet(profiles, whole.vectors), {})
    side = Side(index.lake, index, "cpu")
    pair_q, pair_c = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    of_tables = Recipe("join", {"value_overlap_maxsim": 1, "value_gram_maxsim": 1}, 0, {}, 5)
    np.testing.assert_allclose(
        score_tables(side, side, pair_q, pair_c, of_tables, 1), [[1, 1], [np.nan, 1], [np.nan, 1], [np.nan, 1]]
    )
    of_columns = Recipe("column", {"containment": 1, "value_jaccard": 1, "named_containment": 1}, 0, {}, 5)
    unknown = [np.nan, np.nan, 0.5]
    np.testing.assert_allclose(
        score_columns(side, side, pair_q, pair_c, of_columns, 1), [[1, 1, 1], unknown, unknown, unknown]
    )


@pytest.mark.parametrize("most", [1, 5])
def test_a_device_that_runs_out_of_memory_gets_halves(one_world, monkeypatch, most):
    """Chunks of more than `most` pairs do not fit: the answers are the same ones."""
    recipes = TABLE_RECIPES["union L1+L2"], COLUMN_RECIPES["column L1+L2"]
    expected = all_of(one_world, "outside", *recipes, 1)
    refused = 0

    def small(made):
        def make(q, c, pair_q, *rest):
            nonlocal refused
            if len(pair_q) > most:
                refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return made(q, c, pair_q, *rest)

        return make

    for module, name in ((rescore, "_Chunk"), (rescore_columns, "_ColumnPairs")):
        monkeypatch.setattr(module, name, small(getattr(module, name)))
    assert_same(all_of(one_world, "outside", *recipes, 2), expected)
    assert refused


def test_what_is_shared_of_numbers_with_a_unit_is_no_more_than_all(oracle):
    """The bare numbers are common in the lake, so that none of them says anything; those with the unit are rare."""
    weighed = [f"{number} kg" for number in range(1, 300, 3)]
    numbers = [str(number) for number in range(1, 301)]
    tables = [{"header": [name], "columns": [weighed]} for name in "ab"]
    tables += [{"header": ["n"], "columns": [numbers]}] * 20
    lake = oracle.table_set(tables, 0)[1]
    index = Index.of(TableSet(lake.profiles, lake.vectors), {})
    side, pairs = Side(index.lake, index, "cpu"), (np.array([0, 1]), np.array([1, 0]))
    of_tables, of_columns = (
        Recipe(task, {name: 1}, 0, {}, 5) for task, name in (("join", KEY), ("column", "rare_containment"))
    )
    found = score_tables(side, side, *pairs, of_tables, 1), score_columns(side, side, *pairs, of_columns, 1)
    assert all(0.5 < share < 1 for share in np.concatenate(found).flat)
    assert found[0][0] == found[0][1]
