"""Survivors against a float64 product of the same rows, whatever the tiles, the lake and the number asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from gpumatch import recipes, search
from gpumatch.blocks import HASHED, WIDTHS, RowMaker
from gpumatch.index import Index, TableSet
from gpumatch.kernels import backends
from gpumatch.kernels.backends import CupyBackend, FaissBackend, TorchBackend
from gpumatch.memory import device_plan
from gpumatch.recipes import LAYERS, Recipe, recipe_for
from gpumatch.search import search_columns, search_tables, survivors, table_rows

CPU = TorchBackend("cpu", 1)
# Scores are float32 sums of some 1 to 4, counted in steps of 1e-6.
STEP = 3e-6
TABLE_RECIPES = {f"{task} {layer}": recipe_for(task, layer) for task in ("join", "union") for layer in LAYERS}
COLUMN_RECIPES = {layer: recipe_for("column", layer) for layer in LAYERS}
TILES = [(1, 1), (60, 7), (4_000_000, 65_536)]


def tables_found(index, queries, tables, recipe, *rest):
    return search_tables(index, table_rows(index, queries, tables, recipe), *rest)[0]


def columns_found(index, queries, columns, recipe, *rest):
    """Those that score best; what is proposed for its values alone comes after them."""
    wanted = table_rows(index, queries, queries.terms.column_table[columns], recipe)
    return search_columns(index, queries, columns, wanted, recipe, *rest)[:, : rest[0]]


@pytest.fixture(autouse=True)
def one_thread():
    """These products are too small to share."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def tiles(monkeypatch):
    def cut(scores, most):
        monkeypatch.setattr(search, "_TILE_SCORES", scores)
        monkeypatch.setattr(search, "_MAX_TILE", most)

    return cut


@pytest.fixture(scope="module", params=["handmade", 0], ids=str)
def world(request, oracle):
    """A lake's index, and tables from outside it."""
    return make_world(oracle, request.param)


@pytest.fixture(scope="module")
def one_world(oracle):
    return make_world(oracle, 0)


def make_world(oracle, which):
    lake, outside = oracle.handmade() if which == "handmade" else oracle.random_lake(which)
    seed = 0 if which == "handmade" else which
    return Index.of(oracle.table_set(lake, seed)[1], {}), oracle.table_set(outside, seed + 100)[1]


def bare(tables):
    return TableSet(tables.profiles, None)


# --- the product once more


def query_maker(index, queries, recipe):
    vectors = None if index.lake.vectors is None else queries.vectors
    return RowMaker(
        queries.terms, vectors, queries.profiles.table_cols, index.lake.dim, index.vocabularies, recipe.blocks
    )


def table_scores(index, queries, tables, recipe):
    rows = query_maker(index, queries, recipe).tables(tables).astype(np.float64)
    return rows @ index.rows.astype(np.float64).T


def column_scores(index, queries, columns, recipe):
    maker, lake = query_maker(index, queries, recipe), index.lake
    rows = RowMaker(lake.terms, lake.vectors, lake.profiles.table_cols, lake.dim)
    own = rows.columns(np.arange(lake.profiles.n_columns)).astype(np.float16).astype(np.float64)  # as those of tables
    table = np.searchsorted(lake.profiles.table_cols, np.arange(len(own)), side="right") - 1
    asked = np.searchsorted(queries.profiles.table_cols, columns, side="right") - 1
    scores = maker.columns(columns).astype(np.float64) @ own.T
    return scores + table_scores(index, queries, asked, recipe)[:, table], table


def assert_survivors(ids, scores, k, hidden):
    """The k best, best first; hidden: bool [n, r], what must not be proposed; ids may differ only within STEP."""
    assert ids.dtype == np.int64
    assert ids.shape == (len(scores), k)
    for row, score, gone in zip(ids, scores, hidden, strict=True):
        there = row[row >= 0]
        assert len(there) == min(k, int((~gone).sum()))
        assert (row[len(there) :] == -1).all()
        assert len(set(there.tolist())) == len(there)
        assert not gone[there].any()
        assert (np.diff(score[there]) <= STEP).all()
        left = np.setdiff1d(np.flatnonzero(~gone), there)
        if len(left) and len(there):
            assert score[left].max() <= score[there].min() + STEP


def none_hidden(n, r):
    return np.zeros((n, r), bool)


def nothing(n):
    return np.full(n, -1)


# --- survivors

STEEP = np.array([[1.0, 0.9, 0.4, 0.3, 0.2, 0.1]], np.float32)
IDS = np.arange(6)[None]


def pooled(pool, cut):
    return Recipe("t", {}, 0, {"header": 1}, pool, cut)


@pytest.fixture
def least(monkeypatch):
    """Few enough survivors for tables of a few rows; the fall is measured from the best on."""

    def at_least(n, reference=0):
        monkeypatch.setattr(recipes, "_LEAST", n)
        monkeypatch.setattr(search, "_TENTH", reference)

    return at_least


@pytest.mark.parametrize(
    ("cut", "stay"),
    [(0.0, 6), (0.1, 5), (0.25, 3), (0.5, 2), (0.95, 1), (1.0, 1)],
)
def test_what_stays_stands_out_from_the_last(least, cut, stay):
    least(1)
    assert survivors(IDS, STEEP, pooled(6, cut), 0).tolist() == [[*range(stay), *[-1] * (6 - stay)]]


def test_tables_nearly_the_same_all_stay_and_a_steep_fall_leaves_the_least(least):
    least(2)
    scores = np.stack([np.full(50, 0.7), np.where(np.arange(50) < 1, 1, 1e-3 * np.arange(50, 0, -1))])
    ids = np.tile(np.arange(50), (2, 1))
    assert ((survivors(ids, scores.astype(np.float32), pooled(50, 0.3), 0) >= 0).sum(1) == [50, 2]).all()


def test_the_fall_is_measured_from_the_tenth_on():
    assert search._TENTH == 9
    scores = np.concatenate([[4], np.linspace(2, 1, 299)])[None].astype(np.float32)  # itself under another name
    ids = np.arange(300)[None]
    tenth, last = scores[0, 9], scores[0, -1]
    stay = (survivors(ids, scores, pooled(300, 0.3), 0) >= 0).sum()
    assert stay == (scores >= last + np.float32(0.3) * (tenth - last)).sum()
    assert 200 < stay < 215


def test_k_widens_and_the_least_stay_for_any_k(least):
    least(3)
    for k, stay in ((0, 3), (1, 3), (3, 3), (4, 4), (6, 6), (9, 6)):
        assert (survivors(IDS, STEEP, pooled(6, 0.9), k) >= 0).sum() == stay
    wide = np.concatenate([STEEP, [[0.05, 0.01]]], axis=1).astype(np.float32)
    few = survivors(np.arange(8)[None], wide, pooled(6, 0.25), 0)  # a wider search asks for more, and cuts the same
    assert (few[0] >= 0).sum() == 3


def test_rows_that_are_not_there_are_no_last_score(least):
    least(1)
    ids = np.concatenate([IDS, [[-1, -1]]], axis=1)
    scores = np.concatenate([STEEP, [[-np.inf, -np.inf]]], axis=1).astype(np.float32)
    found = survivors(ids, scores, pooled(8, 0.25), 0)
    assert found.tolist() == [[0, 1, 2, -1, -1, -1, -1, -1]]
    none = np.full((2, 3), -1)
    assert (survivors(none, np.full((2, 3), -np.inf, np.float32), pooled(3, 0.3), 0) == -1).all()
    for shape in ((0, 3), (2, 0)):
        assert survivors(np.empty(shape, np.int64), np.empty(shape, np.float32), pooled(3, 0.3), 0).shape == shape


def test_scores_fall_with_the_place_and_are_the_products(world):
    index, outside = world
    recipe, n = TABLE_RECIPES["union L1+L2"], outside.profiles.n_tables
    ids, scores = search_tables(index, table_rows(index, outside, np.arange(n), recipe), 4, nothing(n), CPU)
    expected = np.take_along_axis(table_scores(index, outside, np.arange(n), recipe), np.maximum(ids, 0), axis=1)
    np.testing.assert_allclose(scores[ids >= 0], expected[ids >= 0], rtol=0, atol=STEP)
    assert (np.diff(scores, axis=1) <= 0).all()


# --- tables


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", TABLE_RECIPES)
def test_outside_tables_against_the_product(world, tiles, name, tile):
    index, outside = world
    tiles(*tile)
    recipe, n, r = TABLE_RECIPES[name], outside.profiles.n_tables, index.lake.profiles.n_tables
    tables = np.random.default_rng(0).permutation(n)
    scores = table_scores(index, outside, tables, recipe)
    for k in (1, 4, r, r + 5):
        ids = tables_found(index, outside, tables, recipe, k, nothing(n), CPU)
        assert_survivors(ids, scores, k, none_hidden(n, r))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", TABLE_RECIPES)
def test_lake_tables_never_find_what_is_excluded(world, tiles, name, tile):
    index, _ = world
    tiles(*tile)
    recipe, n = TABLE_RECIPES[name], index.lake.profiles.n_tables
    every = np.arange(n)
    exclude = every.copy()
    exclude[::3] = -1
    exclude[1] = 0  # another table than the query
    scores = table_scores(index, index.lake, every, recipe)
    hidden = every == exclude[:, None]
    for k in (1, 3, n - 1, n, n + 2):
        ids = tables_found(index, index.lake, every, recipe, k, exclude, CPU)
        assert_survivors(ids, scores, k, hidden)


def test_a_lake_table_finds_itself_or_its_twin_first(world):
    index, _ = world
    recipe, every = recipe_for("union", "L1+L2"), np.arange(index.lake.profiles.n_tables)
    found = tables_found(
        index, index.lake, every, Recipe("t", {}, 0, {"header_text": 1}, 1), 1, nothing(len(every)), CPU
    )
    rows, header = index.lake.vectors.rows, index.lake.vectors.header
    said = index.lake.terms.named_columns > 0  # other headers are in no row
    assert (rows[header[found[said, 0]]] == rows[header[said]]).all()
    assert tables_found(index, index.lake, every, recipe, 0, nothing(len(every)), CPU).shape == (len(every), 0)


def test_no_queries(one_world):
    index, outside = one_world
    empty = np.empty(0, np.int64)
    assert tables_found(index, outside, empty, recipe_for("join", "L1"), 5, empty, CPU).shape == (0, 5)
    assert columns_found(index, outside, empty, recipe_for("column", "L1"), 5, empty, CPU).shape == (0, 5)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_equal_tables_come_in_table_order(oracle, tiles, tile):
    tiles(*tile)
    alike = {"header": ["city", "id"], "columns": [["oslo"], ["7"]]}
    other = {"header": ["city"], "columns": [["bergen"]]}
    index = Index.of(bare(oracle.table_set([other, alike, alike, other, alike, other, alike], 0)[1]), {})
    queries = bare(oracle.table_set([alike, other], 1)[1])
    ids = tables_found(index, queries, np.array([0, 1]), recipe_for("union", "L1"), 7, np.array([2, -1]), CPU)
    np.testing.assert_array_equal(ids, [[1, 4, 6, 0, 3, 5, -1], [0, 3, 5, 1, 2, 4, 6]])


# --- small lakes


ONE = {"header": ["city"], "columns": [["oslo"]]}
TWO = {"header": ["id", "city"], "columns": [["1"], ["oslo"]]}
BLANK = {"header": [], "columns": []}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("lake", [[], [ONE], [BLANK], [BLANK, BLANK], [ONE, TWO], [BLANK, TWO]], ids=len)
def test_small_lakes(oracle, lake, layer):
    index = Index.of(oracle.table_set(lake, 0)[1], {})
    queries = oracle.table_set([TWO, BLANK], 1)[1]
    for task in ("join", "union"):
        recipe = recipe_for(task, layer)
        ids = tables_found(index, queries, np.array([0, 1]), recipe, 3, nothing(2), CPU)
        scores = table_scores(index, queries, np.array([0, 1]), recipe)
        assert_survivors(ids, scores, 3, none_hidden(2, len(lake)))
    if lake:
        ids = tables_found(index, index.lake, np.array([0]), recipe, 1, np.array([0]), CPU)
        assert (ids == -1).all() == (len(lake) == 1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("lake", [[ONE], [ONE, TWO], [BLANK, TWO], [BLANK, ONE, BLANK]], ids=len)
def test_columns_in_small_lakes(oracle, lake, layer):
    index = Index.of(oracle.table_set(lake, 0)[1], {})
    queries, recipe = oracle.table_set([TWO], 1)[1], COLUMN_RECIPES[layer]
    ids = columns_found(index, queries, np.array([0, 1]), recipe, 4, nothing(2), CPU)
    scores, _ = column_scores(index, queries, np.array([0, 1]), recipe)
    assert_survivors(ids, scores, 4, none_hidden(*scores.shape))


@pytest.mark.parametrize("lake", [[], [BLANK], [BLANK, BLANK]], ids=len)
def test_a_lake_without_columns_has_none_to_propose(oracle, lake):
    index = Index.of(oracle.table_set(lake, 0)[1], {})
    queries = oracle.table_set([TWO], 1)[1]
    ids = columns_found(index, queries, np.array([0, 1]), COLUMN_RECIPES["L1"], 4, nothing(2), CPU)
    np.testing.assert_array_equal(ids, np.full((2, 4), -1))


# --- columns


@pytest.mark.parametrize("tile", TILES[1:], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_outside_columns_against_the_product(world, tiles, layer, tile):
    index, outside = world
    tiles(*tile)
    columns = np.random.default_rng(1).permutation(outside.profiles.n_columns)[:6]
    scores, _ = column_scores(index, outside, columns, COLUMN_RECIPES[layer])
    r = index.lake.profiles.n_columns
    for k in (9, r + 3):
        ids = columns_found(index, outside, columns, COLUMN_RECIPES[layer], k, nothing(len(columns)), CPU)
        assert_survivors(ids, scores, k, none_hidden(len(columns), r))


def test_rows_of_columns_that_are_too_many_to_keep_give_the_same(world, tiles, monkeypatch):
    index, outside = world
    columns, exclude = np.arange(outside.profiles.n_columns), np.full(outside.profiles.n_columns, -1)
    args = outside, columns, COLUMN_RECIPES["L1+L2"], 9, exclude, CPU
    kept = columns_found(index, *args)
    fresh = Index.of(index.lake, {})
    monkeypatch.setattr(search, "_KEPT_BYTES", 0)
    np.testing.assert_array_equal(columns_found(fresh, *args), kept)
    assert "column rows" in index.derived
    assert "column rows" not in fresh.derived


@pytest.mark.parametrize("tile", TILES[1:], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_lake_columns_never_find_their_own_table(world, tiles, layer, tile):
    index, _ = world
    tiles(*tile)
    columns = np.random.default_rng(2).permutation(index.lake.profiles.n_columns)[:6]
    scores, table = column_scores(index, index.lake, columns, COLUMN_RECIPES[layer])
    exclude = np.where(np.arange(len(columns)) % 4 == 3, -1, table[columns])
    hidden = table == exclude[:, None]
    for k in (9, len(table)):
        ids = columns_found(index, index.lake, columns, COLUMN_RECIPES[layer], k, exclude, CPU)
        assert_survivors(ids, scores, k, hidden)


def test_equal_columns_come_in_lake_order(oracle, tiles):
    alike = {"header": ["city", "city"], "columns": [["oslo"], ["oslo"]]}
    index = Index.of(bare(oracle.table_set([alike, alike, alike], 0)[1]), {})
    for tile in TILES:
        tiles(*tile)
        args = index, index.lake, np.array([2, 5]), COLUMN_RECIPES["L1"], 6, np.array([1, -1]), CPU
        np.testing.assert_array_equal(columns_found(*args), [[0, 1, 4, 5, -1, -1], [0, 1, 2, 3, 4, 5]])


# --- layers


@pytest.mark.parametrize("name", ["join L1", "union L1"])
def test_l1_needs_no_vectors_and_proposes_the_same_without_them(world, name):
    index, outside = world
    recipe, n, r = TABLE_RECIPES[name], outside.profiles.n_tables, index.lake.profiles.n_tables
    tables, lexical = np.arange(n), Index.of(bare(index.lake), {})
    assert lexical.rows.shape[1] == 3 * HASHED + WIDTHS
    scores = table_scores(index, outside, tables, recipe)
    found = {
        "all": tables_found(index, outside, tables, recipe, r, nothing(n), CPU),
        "queries without vectors": tables_found(index, bare(outside), tables, recipe, r, nothing(n), CPU),
        "lake without vectors": tables_found(lexical, outside, tables, recipe, r, nothing(n), CPU),
        "none": tables_found(lexical, bare(outside), tables, recipe, r, nothing(n), CPU),
    }
    for ids in found.values():
        assert_survivors(ids, scores, r, none_hidden(n, r))


def test_l1_columns_need_no_vectors(world):
    index, outside = world
    columns, recipe = np.arange(outside.profiles.n_columns)[:10], COLUMN_RECIPES["L1"]
    scores, table = column_scores(index, outside, columns, recipe)
    for some in (index, Index.of(bare(index.lake), {})):
        ids = columns_found(some, bare(outside), columns, recipe, 8, nothing(len(columns)), CPU)
        assert_survivors(ids, scores, 8, none_hidden(len(columns), len(table)))


@pytest.mark.parametrize("most", [1, 3])
def test_a_device_that_runs_out_of_memory_gets_smaller_tiles(one_world, monkeypatch, most):
    index, outside = one_world
    recipe, n, lake_columns = TABLE_RECIPES["union L1+L2"], outside.profiles.n_tables, outside.profiles.n_columns
    column_recipe = COLUMN_RECIPES["L1+L2"]

    def answers():
        return (
            tables_found(index, outside, np.arange(n), recipe, 4, nothing(n), CPU),
            columns_found(index, outside, np.arange(lake_columns), column_recipe, 4, nothing(lake_columns), CPU),
        )

    expected, refused, whole = answers(), [], TorchBackend.best

    def small(self, product, k, exclude, tile):
        if tile > most:
            refused.append(tile)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, product, k, exclude, tile)

    monkeypatch.setattr(TorchBackend, "best", small)
    for ours, theirs in zip(answers(), expected, strict=True):
        assert (ours == theirs).mean() > 0.95  # near ties may change places where tiles round otherwise
    assert refused
    assert len(refused) <= 2 * 17


@pytest.mark.parametrize(("free", "room", "stays"), [(10**9, True, True), (0, True, False), (10**9, False, False)])
def test_rows_stay_on_a_device_as_planned_unless_they_do_not_fit_after_all(one_world, monkeypatch, free, room, stays):
    index, outside = one_world
    recipe, n, whole = TABLE_RECIPES["join L1"], outside.profiles.n_tables, backends.put
    rows = table_rows(index, outside, np.arange(n), recipe)
    shape = {"tables": len(index.rows), "width": index.rows.shape[1], "vectors": 0, "dim": 0, "queries": n, "k": 3}

    def put(array, device):
        if array is index.rows and not room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(array, device)

    monkeypatch.setattr(backends, "put", put)
    backend = TorchBackend("cpu:0", 1)
    found = search_tables(index, rows, 3, nothing(n), backend, device_plan(free, 10**9, **shape))
    assert bool(backend._kept) == stays
    for ours, theirs in zip(found, search_tables(index, rows, 3, nothing(n), CPU), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=STEP)


def test_a_tile_of_one_row_that_does_not_fit_is_an_error(one_world, monkeypatch):
    def never(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchBackend, "best", never)
    with pytest.raises(torch.OutOfMemoryError):
        tables_found(*one_world, np.arange(2), TABLE_RECIPES["join L1"], 3, nothing(2), CPU)


@pytest.mark.parametrize("other", ["cpu:0", "faiss", "cupy"])
@pytest.mark.parametrize("layer", LAYERS)
def test_back_ends_find_the_same(one_world, layer, other):
    """Arrays of NumPy stand in for those of CuPy, which wants a device."""
    if other == "faiss":
        pytest.importorskip("faiss")
    made = {"cpu:0": lambda: TorchBackend("cpu:0", 1), "faiss": lambda: FaissBackend("cpu", 1)}
    backend = made.get(other, lambda: CupyBackend(np))()
    index, outside = one_world
    n = outside.profiles.n_tables
    tables, exclude = np.arange(n), np.arange(n) % index.lake.profiles.n_tables
    columns = np.arange(outside.profiles.n_columns)
    of = exclude[outside.terms.column_table]
    recipe = TABLE_RECIPES[f"union {layer}"]
    rows = table_rows(index, outside, tables, recipe)
    (ids, scores), (others, found) = (search_tables(index, rows, 6, exclude, some) for some in (CPU, backend))
    np.testing.assert_allclose(found, scores, atol=STEP)
    apart = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=-np.inf)) > STEP
    clear = apart[:, 1:] & apart[:, :-1]  # near ties may change places where products round otherwise
    assert (ids == others)[clear].all()
    ours, theirs = (
        columns_found(index, outside, columns, COLUMN_RECIPES[layer], 9, of, some) for some in (CPU, backend)
    )
    assert (ours == theirs).mean() > 0.95
    assert ((ours < 0) == (theirs < 0)).all()


# --- columns that hold most of a query column's values


def held(oracle, lake, query, k=1, exclude=-1, backend=CPU):
    """What is proposed for its values alone: (table, column) of those of a lake for the only column of a query."""
    index = Index.of(bare(oracle.table_set([{"header": h, "columns": c} for h, c in lake], 0)[1]), {})
    queries = bare(oracle.table_set([{"header": ["code"], "columns": [query]}], 1)[1])
    wanted = table_rows(index, queries, np.array([0]), COLUMN_RECIPES["L1"])
    args = index, queries, np.array([0]), wanted, COLUMN_RECIPES["L1"], k, np.array([exclude])
    (ids,) = search_columns(*args, backend)
    found = ids[ids >= 0]
    assert len(set(found.tolist())) == len(found)
    assert (ids[k:][np.argmax(ids[k:] < 0) :] == -1).all() or (ids >= 0).all()
    table = index.lake.terms.column_table
    place = [(int(table[c]), int(c - index.lake.profiles.table_cols[table[c]])) for c in ids[k:][ids[k:] >= 0]]
    return place


CODES = ["oslo", "rome", "paris", "lima", "quito", "cairo", "delhi", "seoul"]
# Nearer than anything by its name, and shares no value.
NAMESAKE = ["code"], [["z1", "z2"]]


def test_what_holds_half_of_the_values_is_proposed_fullest_and_smallest_first(oracle):
    lake = [
        NAMESAKE,
        (["a", "b"], [["x"] * 8, [*CODES[:4], "p", "q", "r", "s"]]),
        (["c"], [[*CODES[:3], "t"]]),  # less than half
        (["d"], [[*CODES, "u", "v"]]),
        (["e"], [CODES]),
    ]
    assert held(oracle, lake, CODES) == [(4, 0), (3, 0), (1, 1)]
    assert held(oracle, lake, CODES, backend=FaissBackend("cpu", 1)) == [(4, 0), (3, 0), (1, 1)]
    assert held(oracle, lake, CODES, exclude=4) == [(3, 0), (1, 1)]
    assert held(oracle, lake, CODES, k=6) == []  # every column scores, and is there already
    assert held(oracle, lake, [""]) == []


def test_no_more_are_proposed_than_the_most(oracle, monkeypatch):
    monkeypatch.setattr(search, "MOST_HELD", 3)
    lake = [NAMESAKE, *((["other"], [CODES]) for _ in range(6))]
    assert held(oracle, lake, CODES) == [(1, 0), (2, 0), (3, 0)]


def test_queries_are_looked_up_a_few_at_a_time_where_columns_are_many(one_world, monkeypatch):
    index, outside = one_world
    columns = np.arange(outside.profiles.n_columns)
    wanted = table_rows(index, outside, outside.terms.column_table[columns], COLUMN_RECIPES["L1"])
    args = index, outside, columns, wanted, COLUMN_RECIPES["L1"], 2, nothing(len(columns)), CPU
    whole = search_columns(*args)
    assert (whole[:, 2:] >= 0).any()
    monkeypatch.setattr(search, "_HELD_AT_ONCE", 1)
    np.testing.assert_array_equal(search_columns(*args), whole)
