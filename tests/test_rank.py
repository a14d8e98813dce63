"""The order of answers, and pools: what a lake table's own survivors score, with and without the symmetric shortcut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from gpumatch import rank, recipes, search
from gpumatch.config import Settings
from gpumatch.features import Side
from gpumatch.index import Index, TableSet
from gpumatch.kernels.backends import TorchBackend
from gpumatch.lake import Query
from gpumatch.rank import DENSITY_NEIGHBOURS, Asked, answer, best_first, densities, ensure_pools, sure_enough
from gpumatch.recipes import recipe_for, weighted
from gpumatch.rescore import score_tables
from gpumatch.run import Run
from gpumatch.search import search_tables, table_rows

UNION = recipe_for("union", "L1+L2")


@pytest.fixture(autouse=True)
def one_thread():
    """These products are too small to share."""
    with threadpool_limits(1):
        yield


def make_run(**given_settings):
    return Run(Settings(device="cpu", threads=1, **given_settings))


@pytest.fixture(scope="module", params=["handmade", 0], ids=str)
def lake(request, oracle):
    return make_lake(oracle, request.param)


@pytest.fixture(scope="module")
def one_lake(oracle):
    return make_lake(oracle, 0)


def make_lake(oracle, which):
    specs = oracle.handmade()[0] if which == "handmade" else oracle.random_lake(which)[0]
    return oracle.table_set(specs, 0)[1]


def index_of(lake):
    return Index.of(lake, {"encoder": "fake"})


# --- a device


@pytest.mark.parametrize("trouble", ["", "RuntimeError: Failed to find C compiler."])
def test_a_device_without_its_kernels_is_warned_of_once(one_lake, monkeypatch, trouble):
    monkeypatch.setattr(rank, "device_bytes", lambda device, unknown: (10**9, 10**9))
    monkeypatch.setattr(rank, "fused_trouble", lambda: trouble)
    every, run = np.arange(one_lake.profiles.n_tables), make_run()
    work = rank._Work(index_of(one_lake), Asked([], one_lake, every, every, every), run, "cuda")
    assert work.plan is work.plan is not None
    assert [trouble in said for said in run.stats.warnings] == ([True] if trouble else [])


# --- best_first


def ranked(ids, scores, k):
    """The k best of each row (0: all) as (row, candidate, score)."""
    ids, scores, _ = best_first(ids, scores)
    row, place = np.nonzero(ids[:, : k or None] >= 0)
    return row, ids[row, place], scores[row, place]


def rank_by_hand(ids, scores, k):
    found = []
    for row, (some, values) in enumerate(zip(ids.tolist(), scores.astype(np.float64), strict=True)):
        pairs = sorted((-round(float(v), 6), c) for c, v in zip(some, values, strict=True) if c >= 0)
        found += [(row, c, -v) for v, c in (pairs[:k] if k else pairs)]
    return found


def as_list(found):
    row, candidate, score = found
    return list(zip(row.tolist(), candidate.tolist(), score.tolist(), strict=True))


def test_ties_after_rounding_go_by_table_number():
    ids = np.array([[7, 3, 5, 1, -1]])
    scores = np.array([[0.5, 0.50000004, 0.4999999, 0.499998, -np.inf]], np.float32)
    assert as_list(ranked(ids, scores, 0)) == [(0, 3, 0.5), (0, 5, 0.5), (0, 7, 0.5), (0, 1, 0.499998)]
    assert as_list(ranked(ids, scores, 2)) == [(0, 3, 0.5), (0, 5, 0.5)]


def test_no_candidates():
    none = np.full((2, 3), -1)
    for k in (0, 2):
        assert as_list(ranked(none, np.full((2, 3), -np.inf, np.float32), k)) == []
        assert as_list(ranked(none[:, :0], np.empty((2, 0), np.float32), k)) == []
        assert as_list(ranked(none[:0], np.empty((0, 3), np.float32), k)) == []


def test_a_score_without_a_candidate_is_not_looked_at():
    ids, scores = np.array([[-1, 4, -1]]), np.array([[9, 0.25, np.nan]], np.float32)
    assert as_list(ranked(ids, scores, 1)) == [(0, 4, 0.25)]


def test_negative_scores_rank_too():
    ids, scores = np.array([[2, 1, 0]]), np.array([[-0.25, 0, -0.0000001]], np.float32)
    assert [(c, s) for _, c, s in as_list(ranked(ids, scores, 0))] == [(0, 0), (1, 0), (2, -0.25)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 9), st.integers(0, 12))
def test_ranked_against_sorting(seed, n, width, k):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(20)[:width] for _ in range(n)]) - 3
    ids = np.maximum(ids, -1)
    # Few different scores, some of them closer than the rounding.
    scores = (rng.integers(0, 3, ids.shape) / 4 + rng.integers(-1, 2, ids.shape) * 3e-7).astype(np.float32)
    assert as_list(ranked(ids, scores, k)) == rank_by_hand(ids, scores, k)


# --- what is sure enough


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 4), st.sampled_from([0, 0.25, 0.5, 1]))
def test_sure_enough_against_brute_force(seed, n, k, least):
    rng = np.random.default_rng(seed)
    row, confidences = np.sort(rng.integers(0, 4, n)), rng.integers(0, 5, n) / 4
    left, seen = [], dict.fromkeys(range(4), 0)
    for one, sure in zip(row.tolist(), confidences.tolist(), strict=True):
        left.append(sure >= least and (not k or seen[one] < k))
        seen[one] += left[-1]
    assert sure_enough(row, confidences, least, k).tolist() == left


# --- pools


def pools_by_hand(index, recipe, width):
    n = index.lake.profiles.n_tables
    every = np.arange(n)
    ids, _ = search_tables(index, table_rows(index, index.lake, every, recipe), width, every, TorchBackend("cpu", 1))
    scores = np.full(ids.shape, -np.inf, np.float32)
    side = Side(index.lake, index, "cpu")
    row, place = np.nonzero(ids >= 0)
    scores[row, place] = weighted(score_tables(side, side, row, ids[row, place], recipe, 1), recipe)
    return ids, scores


@pytest.mark.parametrize("layer", recipes.LAYERS)
@pytest.mark.parametrize("width", [3, 300])
@pytest.mark.parametrize("rows_at_once", [1, 5, 2048])
def test_pools_hold_every_survivor_and_its_score(lake, monkeypatch, layer, width, rows_at_once):
    monkeypatch.setattr(rank, "SEARCHED_AT_ONCE", rows_at_once)
    index, recipe = index_of(lake), replace(recipe_for("union", layer), pool=width)
    assert recipe.symmetric
    pools = rank._lake_pools(index, recipe, make_run())
    n = lake.profiles.n_tables
    assert pools.ids.shape == pools.scores.shape == (n, min(width, n - 1))
    assert (pools.ids != np.arange(n)[:, None]).all()
    assert (pools.ids.dtype, pools.scores.dtype, pools.density.dtype) == (np.int32, np.float32, np.float32)
    side = Side(lake, index, "cpu")
    row, place = np.nonzero(pools.ids >= 0)
    expected = weighted(score_tables(side, side, row, pools.ids[row, place].astype(np.int64), recipe, 1), recipe)
    np.testing.assert_allclose(pools.scores[row, place], expected, rtol=0, atol=1e-6)
    assert (pools.scores[pools.ids < 0] == -np.inf).all()
    if rows_at_once > n:  # the same product, so the same survivors
        np.testing.assert_array_equal(pools.ids, pools_by_hand(index, recipe, min(width, n - 1))[0])


@pytest.mark.parametrize(("width", "least"), [(2, 100), (300, 100), (300, 2)])
def test_the_symmetric_shortcut_changes_no_score(lake, monkeypatch, width, least):
    monkeypatch.setattr(recipes, "_LEAST", least)
    index, recipe = index_of(lake), replace(UNION, pool=width)
    short = rank._lake_pools(index, recipe, make_run())
    monkeypatch.setattr(recipes.Recipe, "symmetric", property(lambda self: False))
    whole = rank._lake_pools(index, recipe, make_run())
    np.testing.assert_array_equal(short.ids, whole.ids)
    there = short.ids >= 0
    np.testing.assert_allclose(short.scores[there], whole.scores[there], rtol=0, atol=1e-6)
    np.testing.assert_allclose(short.density, whole.density, rtol=0, atol=1e-6)


def test_the_shortcut_halves_the_pairs(one_lake):
    run, n = make_run(), one_lake.profiles.n_tables
    rank._lake_pools(index_of(one_lake), UNION, run)
    assert run.stats.stages["rescore"].items == n * (n - 1) // 2
    assert run.stats.stages["search"].items == n


def test_an_asymmetric_recipe_scores_both_ways(one_lake):
    recipe = replace(recipe_for("join", "L1+L2"), density=0.5)
    assert not recipe.symmetric
    index, run, n = index_of(one_lake), make_run(), one_lake.profiles.n_tables
    pools = rank._lake_pools(index, recipe, run)
    assert run.stats.stages["rescore"].items == n * (n - 1)
    ids, scores = pools_by_hand(index, recipe, n - 1)
    np.testing.assert_array_equal(pools.ids, ids)
    np.testing.assert_allclose(pools.scores, scores, rtol=0, atol=1e-6)


def test_density_is_the_mean_of_the_ten_best(lake):
    assert DENSITY_NEIGHBOURS == 10
    pools = rank._lake_pools(index_of(lake), UNION, make_run())
    for scores, density in zip(pools.scores, pools.density, strict=True):
        best = sorted(scores[np.isfinite(scores)].astype(np.float64), reverse=True)[:10]
        assert density == pytest.approx(np.mean(best), abs=1e-6)
    assert pools.ids.shape[1] > 10 or lake.profiles.n_tables <= 11


@pytest.mark.parametrize("n", [1, 2])
def test_pools_of_small_lakes(oracle, n):
    specs = [{"header": ["city"], "columns": [["oslo"]]}] * n
    pools = rank._lake_pools(index_of(oracle.table_set(specs, 0)[1]), UNION, make_run())
    np.testing.assert_array_equal(pools.ids, [[-1]] if n == 1 else [[1], [0]])
    assert np.isfinite(pools.density).all()
    np.testing.assert_allclose(pools.density, [0] if n == 1 else pools.scores[:, 0], rtol=1e-6)
    assert (pools.density > 0).all() == (n == 2)


def test_pools_of_an_empty_lake(oracle):
    pools = rank._lake_pools(index_of(oracle.table_set([], 0)[1]), UNION, make_run())
    assert pools.ids.shape[0] == pools.scores.shape[0] == len(pools.density) == 0


def test_only_recipes_with_a_density_get_pools_and_only_once(one_lake):
    index, run = index_of(one_lake), make_run()
    assert not ensure_pools(index, [recipe_for("join", "L1+L2"), recipe_for("column", "L1")], run)
    assert not index.pools
    assert ensure_pools(index, [UNION, recipe_for("join", "L1")], run)
    assert list(index.pools) == [UNION.key()]
    assert not ensure_pools(index, [UNION], run)
    assert ensure_pools(index, [recipe_for("union", "L1")], run)
    assert len(index.pools) == 2


# --- keys


def keyed_lake(oracle):
    """Nine tables that look alike, and two that look otherwise and hold what the first one's second column does."""
    keys = [f"{chr(97 + i % 26)}{i * i}x" for i in range(40)]
    alike = [{"header": ["city", "ref"], "columns": [["oslo"] * 40, [f"{i}{key}" for key in keys]]} for i in range(8)]
    first = {"header": ["city", "ref"], "columns": [["oslo"] * 40, keys]}
    others = [{"header": ["weight", name, "height"], "columns": [["7"] * 40, keys, ["9"] * 40]} for name in ("k", "kk")]
    return oracle.table_set([first, *alike, *others], 0)[1]


@pytest.mark.parametrize("layer", recipes.LAYERS)
def test_tables_that_share_a_key_are_proposed_and_come_first_whatever_search_says(oracle, monkeypatch, layer):
    lake = keyed_lake(oracle)
    index, name = index_of(lake), lake.profiles.tables[0]
    asked = asked_for(lake, [Query(name, None, "join")])
    recipe = replace(recipe_for("join", layer), pool=3, cut=0)
    work = rank._Work(index, asked, make_run(layer=layer), "cpu")
    without = replace(recipe, weights={"name_cosine": 1.0})
    ids = [work.propose(np.array([0]), rank._Way(one), 0)[0] for one in (recipe, without)]
    searched, proposed = (some[some >= 0].tolist() for some in (ids[1], ids[0]))
    assert len(searched) == 3
    assert proposed[:3] == searched
    assert sorted(proposed[3:]) == [9, 10]
    monkeypatch.setattr(rank, "MOST_SHARING", 1)
    ids = work.propose(np.array([0]), rank._Way(recipe), 0)[0]
    assert len(ids[ids >= 0]) == 4
    (answered,) = answer(index, asked, make_run(layer=layer, k=2), 0, 1)
    assert {match["table"] for match in answered["matches"]} == {lake.profiles.tables[i] for i in (9, 10)}
    for match in answered["matches"]:
        assert match["evidence"]["key_containment"] > 0.3
        assert (match["columns"][0]["query"]["index"], match["columns"][0]["candidate"]["index"]) == (1, 1)


# --- answer


def asked_for(lake, rows, exclude=None):
    place = {name: i for i, name in enumerate(lake.profiles.tables)}
    table = np.array([place.get(row.table, -1) for row in rows], np.int64)
    column = np.array(
        [-1 if row.column is None else lake.profiles.table_cols[place[row.table]] + int(row.column) for row in rows],
        np.int64,
    )
    return Asked(rows, lake, table, column, table if exclude is None else exclude)


def every_query(lake):
    """Each table as a join and a union query, each table's first column as a join query, and one that is not there."""
    names, widths = lake.profiles.tables, np.diff(lake.profiles.table_cols)
    rows = [Query(name, None, task) for name in names for task in ("join", "union")]
    rows += [Query(name, "0", "join") for name, width in zip(names, widths, strict=True) if width]
    return [*rows, Query("nowhere", None, "union")]


def tables_of(answers):
    return [[(m["table"], round(m["score"], 5)) for m in row["matches"]] for row in answers]


def test_stored_pools_answer_as_a_search_does(lake):
    index, rows = index_of(lake), every_query(lake)
    ensure_pools(index, [UNION], make_run())
    stored = list(answer(index, asked_for(lake, rows), make_run(k=0), 0, len(rows)))
    again = TableSet(lake.profiles, lake.vectors)  # the same tables as queries from outside
    asked = replace(asked_for(lake, rows), tables=again)
    searched = list(answer(index, asked, make_run(k=0), 0, len(rows)))
    for ours, theirs in zip(stored, searched, strict=True):
        assert {k: v for k, v in ours.items() if k != "matches"} == {k: v for k, v in theirs.items() if k != "matches"}
        assert {m["table"]: pytest.approx(m["score"], abs=3e-6) for m in theirs["matches"]} == {
            m["table"]: m["score"] for m in ours["matches"]
        }


@pytest.mark.parametrize("k", [0, 2, 3, 7])
def test_pools_that_are_cut_answer_as_a_search_does(one_lake, monkeypatch, k):
    monkeypatch.setattr(recipes, "_LEAST", 2)
    monkeypatch.setattr(search, "_TENTH", 1)
    index, n = index_of(one_lake), one_lake.profiles.n_tables
    rows = [Query(name, None, "union") for name in one_lake.profiles.tables]
    ensure_pools(index, [UNION], make_run())
    sizes = (index.pools[UNION.key()].ids >= 0).sum(1)
    assert sizes.min() >= 2
    assert sizes.max() < n - 1
    stored = list(answer(index, asked_for(one_lake, rows), make_run(k=k), 0, n))
    again = TableSet(one_lake.profiles, one_lake.vectors)
    for batch in (1, 3, 256):
        run = make_run(k=k, batch=batch)
        assert tables_of(answer(index, replace(asked_for(one_lake, rows), tables=again), run, 0, n)) == tables_of(
            stored
        )
    # What is asked for is there: a pool that is smaller is widened.
    assert [len(row["matches"]) for row in stored] == [min(k, n - 1) if k else size for size in sizes]


def test_answers_come_best_first_ties_by_name_without_the_query(lake):
    index, rows = index_of(lake), every_query(lake)
    ensure_pools(index, [UNION], make_run())
    answers = list(answer(index, asked_for(lake, rows), make_run(k=0), 0, len(rows)))
    assert [(a["query_table"], a["query_column"], a["task"]) for a in answers] == [
        (row.table, row.column, row.task) for row in rows
    ]
    for found in answers:
        keys = [(-match["score"], match["table"]) for match in found["matches"]]
        assert keys == sorted(keys)
        names = [match["table"] for match in found["matches"]]
        assert len(set(names)) == len(names)
        assert found["query_table"] not in names
        if found["query_table"] == "nowhere":
            assert names == []
        elif found["query_column"] is None:
            assert len(names) == lake.profiles.n_tables - 1
        else:
            assert all(match["columns"][0]["query"]["index"] == 0 for match in found["matches"])


def test_union_scores_have_their_share_of_density_taken_off(lake):
    index, n = index_of(lake), lake.profiles.n_tables
    ensure_pools(index, [UNION], make_run())
    pools = index.pools[UNION.key()]
    rows = [Query(name, None, "union") for name in lake.profiles.tables]
    for t, found in enumerate(answer(index, asked_for(lake, rows), make_run(k=0), 0, n)):
        raw = dict(zip(pools.ids[t].tolist(), pools.scores[t].tolist(), strict=True))
        for match in found["matches"]:
            c = lake.profiles.tables.index(match["table"])
            assert match["score"] == pytest.approx(raw[c] - 0.25 * pools.density[c], abs=2e-6)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_k_cuts_the_full_answer(lake, k):
    index, rows = index_of(lake), every_query(lake)
    ensure_pools(index, [UNION], make_run())
    whole = list(answer(index, asked_for(lake, rows), make_run(k=0), 0, len(rows)))
    cut = list(answer(index, asked_for(lake, rows), make_run(k=k), 0, len(rows)))
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours["matches"] == theirs["matches"][:k]


@pytest.mark.parametrize("layer", recipes.LAYERS)
@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_is_below_is_left_out_and_k_counts_what_is_left(lake, layer, k):
    index, rows = index_of(lake), every_query(lake)
    ensure_pools(index, [recipe_for("union", layer)], make_run(layer=layer))
    asked = asked_for(lake, rows)
    whole = list(answer(index, asked, make_run(layer=layer, k=0), 0, len(rows)))
    sure = sorted({match["confidence"] for row in whole for match in row["matches"]})
    for least in (0, sure[len(sure) // 2], sure[-1], 1):
        run = make_run(layer=layer, k=k, min_confidence=least)
        cut = list(answer(index, asked, run, 0, len(rows)))
        for ours, theirs in zip(cut, whole, strict=True):
            left = [match for match in theirs["matches"] if match["confidence"] >= least]
            assert ours == theirs | {"matches": left[:k] if k else left}


def test_a_match_is_as_sure_in_every_batch_and_beside_any_query(one_lake):
    index, rows = index_of(one_lake), every_query(one_lake)
    ensure_pools(index, [UNION], make_run())

    def sure(rows, **given_settings):
        answers = answer(index, asked_for(one_lake, rows), make_run(**given_settings), 0, len(rows))
        return {
            (row["query_table"], row["query_column"], row["task"], match["table"]): match["confidence"]
            for row in answers
            for match in row["matches"]
        }

    whole = sure(rows, k=0)
    assert len(set(whole.values())) > 20
    for found in (sure(rows, k=2), sure(rows, k=0, batch=1), sure(rows[::-3], k=5, batch=4)):
        assert found == {key: pytest.approx(whole[key], abs=5e-4) for key in found}  # evidence is rounded before


@pytest.mark.parametrize("n", [0, 1, 2, 4, 11])
def test_neighbours_that_a_small_lake_lacks_count_nothing(oracle, n):
    index = index_of(oracle.table_set(oracle.random_lake(0)[0][:n], 0)[1])
    np.testing.assert_array_equal(densities(index, UNION), np.zeros(n))  # no pools yet
    ensure_pools(index, [UNION], make_run())
    best = -np.sort(-index.pools[UNION.key()].scores, axis=1)[:, :10]
    expected = np.where(np.isfinite(best), best, 0).sum(1) / 10
    np.testing.assert_allclose(densities(index, UNION), expected[:n], rtol=0, atol=1e-6)


def test_a_part_gives_the_lines_of_the_whole(one_lake):
    index, rows = index_of(one_lake), every_query(one_lake)
    ensure_pools(index, [UNION], make_run())
    asked = asked_for(one_lake, rows)
    for batch in (4, 256):
        whole = list(answer(index, asked, make_run(batch=batch), 0, len(rows)))
        for start, stop in ((0, 1), (2, 9), (5, 5), (len(rows) - 1, len(rows)), (3, len(rows))):
            assert list(answer(index, asked, make_run(batch=batch), start, stop)) == whole[start:stop]


def test_nothing_is_ranked_for_no_row(one_lake, monkeypatch):
    index, rows = index_of(one_lake), every_query(one_lake)
    monkeypatch.setattr(rank._Work, "ranked", lambda work, rows: pytest.fail("a batch is ranked"))
    for start, stop in ((0, 0), (5, 5), (5, 3)):
        assert list(answer(index, asked_for(one_lake, rows), make_run(batch=4), start, stop)) == []


def test_the_layer_says_whether_vectors_counted(one_lake):
    index = index_of(one_lake)
    rows = [Query(one_lake.profiles.tables[0], None, task) for task in ("join", "union")]
    for layer in recipes.LAYERS:
        run = make_run(layer=layer)
        ensure_pools(index, [recipe_for("union", layer)], run)
        join, union = answer(index, asked_for(one_lake, rows), run, 0, 2)
        for found in (join, union):
            assert {match["layer"] for match in found["matches"]} == {"L1" if layer == "L1" else "L2"}
        for found, task in ((join, "join"), (union, "union")):
            assert all(m["evidence"].keys() == recipe_for(task, layer).weights.keys() for m in found["matches"])


def test_stages_count_their_work(one_lake):
    """Queries searched, pairs scored, pairs explained and matches written, of tables and of columns."""
    index, rows, run = index_of(one_lake), every_query(one_lake), make_run(k=3)
    n = one_lake.profiles.n_tables
    of_columns = [row for row in rows if row.column is not None]
    items = {}
    for name, some in (
        ("tables", [row for row in rows if row.task == "join" and row.column is None]),
        ("columns", of_columns),
    ):
        run = make_run(k=3)
        answers = list(answer(index, asked_for(one_lake, some), run, 0, len(some)))
        items[name] = {stage: done.items for stage, done in run.stats.stages.items()}
        assert items[name]["write"] == sum(len(found["matches"]) for found in answers)
    assert items["tables"].items() >= {"search": n, "rescore": n * (n - 1), "explain": 3 * n}.items()
    others = sum(one_lake.profiles.n_columns - width for width in np.diff(one_lake.profiles.table_cols) if width)
    assert items["columns"].items() >= {"search": len(of_columns), "rescore": others}.items()


def test_progress_counts_pools_and_rows(one_lake, monkeypatch):
    monkeypatch.setattr(rank, "SEARCHED_AT_ONCE", 4)
    index, rows, n, seen = index_of(one_lake), every_query(one_lake), one_lake.profiles.n_tables, []
    run = make_run(batch=4)
    run.progress = lambda *at: seen.append(at)
    ensure_pools(index, [UNION], run)
    assert seen == [("index", min(n, done), n) for done in range(4, n + 4, 4)]
    seen.clear()
    list(answer(index, asked_for(one_lake, rows), run, 2, 9))
    assert seen == [("match", 2, 7), ("match", 6, 7), ("match", 7, 7)]


@pytest.mark.parametrize(("pool", "k", "searched"), [(4, 4, False), (4, 5, True), (300, 50, False), (300, 0, False)])
def test_stored_pools_are_searched_anew_only_where_more_is_wanted(one_lake, monkeypatch, pool, k, searched):
    recipe = replace(UNION, pool=pool)
    monkeypatch.setattr(Run, "recipe", lambda self, task: recipe)
    index, run = index_of(one_lake), make_run(k=k)
    ensure_pools(index, [recipe], make_run())
    rows = [Query(name, None, "union") for name in one_lake.profiles.tables]
    answers = list(answer(index, asked_for(one_lake, rows), run, 0, len(rows)))
    assert ("search" in run.stats.stages) is searched
    assert {len(found["matches"]) for found in answers} == {min(k or 99, one_lake.profiles.n_tables - 1)}


def test_scores_have_six_decimals_and_evidence_four(one_lake):
    index, rows = index_of(one_lake), every_query(one_lake)
    ensure_pools(index, [UNION], make_run())
    matches = [
        m for found in answer(index, asked_for(one_lake, rows), make_run(), 0, len(rows)) for m in found["matches"]
    ]
    scores = np.array([match["score"] for match in matches])
    evidence = np.array([x for match in matches for x in match["evidence"].values() if x is not None])
    of_columns = np.array([pair["score"] for match in matches for pair in match["columns"]])
    for values, decimals in ((scores, 6), (evidence, 4), (of_columns[of_columns < 1], 4)):
        assert (np.round(values, decimals) == values).all()
        assert (np.round(values, decimals - 1) != values).any()
