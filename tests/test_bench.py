"""What the benchmarks compare gpumatch with is what they say it is: the same scores, sound arithmetic, sane peers."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from word_encoder import WordEncoder

from gpumatch import pipeline, recipes
from gpumatch.config import Settings
from gpumatch.features import Side
from gpumatch.index import Index
from gpumatch.lake import Table, open_lake
from gpumatch.metrics import evaluate
from gpumatch.profile import profile_tables
from gpumatch.recipes import LAYERS, recipe_for, weighted
from gpumatch.rescore import score_tables
from gpumatch.run import Run
from gpumatch.weights import load_recipes

BENCH = Path(__file__).resolve().parent.parent / "bench"
TASKS = ("join", "union")


@pytest.fixture(scope="module")
def bench():
    """Import a module of bench/, whose files are scripts that find each other on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


PLACES = ["Oslo", "Bergen", "Rome", "Paris", "Lyon", "Turin", "Milan", "Nice", "Bodo", "Narvik", "Kyoto", "Lima"]
SONGS = ["Help", "Yesterday", "Michelle", "Girl", "Julia", "Misery", "Something", "Because", "Rain", "Taxman"]


def write_lake(folder):
    """Write a lake where cities_a.csv goes best with cities_b.csv, and songs.csv with albums.csv."""
    tables = {
        "cities_a.csv": ["city,people", *(f"{name},{100 + 7 * i}" for i, name in enumerate(PLACES[:10]))],
        "cities_b.csv": ["city,people", *(f"{name},{100 + 7 * i}" for i, name in enumerate(PLACES[1:], 1))],
        "trips.csv": ["town,price", *(f"{name},{3000 + i}" for i, name in enumerate(PLACES[:3]))],
        "songs.csv": ["title,artist", *(f"{name},Beatles" for name in SONGS)],
        "albums.csv": ["title,artist", *(f"{name},Beatles" for name in SONGS[:8])],
        "notes.csv": ["a,b", "x,y"],
    }
    (folder / "tables").mkdir(parents=True)
    for name, lines in tables.items():
        (folder / "tables" / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def lake(tmp_path):
    return write_lake(tmp_path / "lake")


def columns_of(*columns):
    return tuple(pa.array(column, pa.string()) for column in columns)


def prepared(bench, lake, task, tmp_path):
    """Return (gpumatch's rows of all tables of a lake, a folder with its vectors and density as files)."""
    run = Run(Settings(task=task, k=0, cache_dir=tmp_path / "cache", device="cpu"), encoder=WordEncoder())
    index = pipeline.open_index(open_lake(lake), [recipe_for(task, LAYERS[1])], run)
    bench("baseline_cpu").write_prepared(index, task, tmp_path / "prepared")
    return list(pipeline.match(index, run)), tmp_path / "prepared"


# --- the predecessor's design


@pytest.mark.parametrize("which", ["handmade", 0, 1])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("task", TASKS)
def test_a_pair_scores_what_gpumatch_scores(bench, oracle, tmp_path, task, layer, which):
    """Odd tables and random ones, every pair, every signal."""
    specs, _ = oracle.handmade() if which == "handmade" else oracle.random_lake(which)
    _, tables = oracle.table_set(specs, 0)
    index, recipe, n = Index.of(tables, {}), recipe_for(task, layer), len(specs)
    side = Side(tables, index, "cpu")
    q, c = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    expected = score_tables(side, side, q, c, recipe, 1)

    per_pair = bench("per_pair")
    bench("baseline_cpu").write_prepared(index, task, tmp_path)
    features = per_pair.LakeFeatures(tables.profiles)
    vectors = per_pair.SharedVectors(tmp_path, tables.profiles.table_cols)
    queries = [per_pair.Query(features, t, vectors) for t in range(n)]
    found = [queries[i].signals(j, recipe.weights) for i, j in zip(q.tolist(), c.tolist(), strict=True)]
    assert np.nanmax(expected) - np.nanmin(expected) > 0.5
    np.testing.assert_allclose([list(one.values()) for one in found], expected, atol=1e-5)
    scores = [per_pair.weighted(one, recipe) for one in found]
    np.testing.assert_allclose(scores, weighted(expected, recipe), atol=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("task", TASKS)
def test_a_query_is_answered_as_gpumatch_answers_it(bench, lake, tmp_path, task, own):
    """Both layers, density taken off, vectors from files or from the worker's own encoder."""
    rows, folder = prepared(bench, lake, task, tmp_path)
    per_pair = bench("per_pair")
    profiles = profile_tables(open_lake(lake).tables())
    features, density = per_pair.LakeFeatures(profiles), np.load(folder / "density.npy")
    if own:
        vectors = per_pair.OwnVectors(WordEncoder(), profiles)
    else:
        vectors = per_pair.SharedVectors(folder, profiles.table_cols)
    for t, row in enumerate(rows):
        found = per_pair.Query(features, t, vectors).answer(task, density)
        assert [profiles.tables[c] for c, _ in found] == [match["table"] for match in row["matches"]]
        np.testing.assert_allclose([score for _, score in found], [m["score"] for m in row["matches"]], atol=1e-4)
    if own and task == "union":
        texts = vectors.texts
        vectors.need(list(range(len(rows))))
        assert vectors.texts == texts > 0  # what it has encoded it remembers


def test_the_pool_answers_in_processes_of_its_own(bench, lake, tmp_path):
    rows, folder = prepared(bench, lake, "union", tmp_path)
    spec = {
        "lake": str(lake), "task": "union", "folder": str(folder), "form": "shared", "workers": 2, "start": "fork",
        "tables": [4, 1, 0], "out": str(tmp_path / "out.json"),
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(BENCH)}
    subprocess.run([sys.executable, str(BENCH / "pool.py"), json.dumps(spec)], env=environment, check=True)
    told = json.loads((tmp_path / "out.json").read_text())
    assert sorted(told["answers"]) == ["0", "1", "4"]
    for t, matches in told["answers"].items():
        expected = {match["table"]: match["score"] for match in rows[int(t)]["matches"]}
        assert dict(matches) == pytest.approx(expected, abs=1e-4)
    assert told["encode_share"] == 0
    assert 0 < told["sample_seconds_per_query"] < told["start_seconds"] + 60


@pytest.mark.parametrize(
    ("texts", "seconds", "encoding"),
    [
        (10_000, 1000, 600),  # a worker meets fewer texts than there are
        (1_000, 600, 200),  # it meets all of them, and encodes each once
    ],
)
def test_a_job_is_extrapolated_without_encoding_twice(bench, texts, seconds, encoding):
    run = {"queries": 500, "sample_seconds_per_query": 2, "encode_share": 0.6, "texts": texts, "seconds_per_text": 0.2}
    found = bench("compare").extrapolated(run)
    assert found == pytest.approx(
        {"job_seconds": seconds, "encode_seconds": encoding, "seconds_per_query": seconds / 500}
    )


def test_ratios_and_both_halves_together(bench):
    compare = bench("compare")
    join = {
        "form": "own", "start": "spawn", "workers": 8, "lake": "a", "tables": 10, "queries": 100, "sample": 1,
        "start_seconds": 2.0, "job_seconds": 300.0, "encode_seconds": 0.0, "peak_mb": 900.0, "score_gap": 1e-6,
        "overlap": 1.0, "ties": 0.0, "not_in_its_pool": 0.0, "not_in_gpumatchs_pool": 0.0, "other": 0.0,
    }  # fmt: skip
    union = join | {
        "lake": "b", "queries": 300, "sample": 3, "job_seconds": 700.0, "encode_seconds": 50.0, "peak_mb": 1800.0,
        "score_gap": 1e-5, "overlap": 0.96, "ties": 0.04,
    }  # fmt: skip
    stages = {name: {"seconds": 1.0} for name in ("read", "encode", "index", "search", "rescore", "write")}
    ours = [{"seconds": s, "peak_bytes": 600 * 2**20, "stats": {"stages": stages}} for s in (4.0, 5.0, 90.0)]
    halves = [half | compare.ratios(half, ours) for half in (join, union)]
    assert halves[0]["gpumatch_answering_seconds"] == 3  # reading, encoding and indexing are start-up
    assert halves[0]["times_faster"] == 60  # the median of three runs
    line = compare.both(*halves)
    line |= compare.ratios(line, ours, line["gpumatch_answering_seconds"])
    assert (line["job_seconds"], line["seconds_per_query"], line["peak_mb"]) == (1000, 2.5, 1800)
    assert (line["overlap"], line["ties"]) == pytest.approx((0.97, 0.03))  # weighed by the samples
    assert (line["times_faster"], line["times_less_memory"], line["gpumatch_answering_seconds"]) == (200, 3, 6)


def falling(names, start=0.9, step=0.01):
    return [(name, start - step * place) for place, name in enumerate(names)]


def test_agreement_says_why_answers_differ(bench):
    compare = bench("compare")
    ten, more = list("abcdefghij"), list("abcdefghijklm")

    def reasons(answers, found):
        told = compare.agreement({0: answers}, {0: found})
        assert told["overlap"] == pytest.approx(1 - sum(told[reason] for reason in compare.REASONS))
        return told["overlap"], {reason for reason in compare.REASONS if told[reason]}

    assert reasons(falling(more), falling(more)) == (1, set())
    assert reasons(falling(more), falling(more[:4])) == (1, set())  # fewer than ten
    # gpumatch has "z", which the baseline never scored.
    assert reasons(falling(more), [*falling(ten[:9]), ("z", 0.815)]) == (pytest.approx(0.9), {"not_in_its_pool"})
    # "k" scores as the baseline's tenth does.
    tied = [*falling(ten), ("k", 0.81)]
    assert reasons(tied, [*falling(ten[:9]), ("k", 0.81)]) == (pytest.approx(0.9), {"ties"})
    # The baseline's "e" beats gpumatch's tenth, "k", and gpumatch never saw it.
    unseen = [pair for pair in falling(more) if pair[0] != "e"]
    assert reasons(falling(more), unseen) == (pytest.approx(0.9), {"not_in_gpumatchs_pool"})
    # The two score "k" differently.
    assert reasons(falling(more), [("k", 0.95), *falling(ten)]) == (pytest.approx(0.9), {"other"})


def test_agreement_finds_the_largest_difference_of_scores(bench):
    told = bench("compare").agreement({3: [("a", 0.5), ("b", 0.25)]}, {3: [("a", 0.5), ("b", 0.125)]})
    assert told["score_gap"] == 0.125


# --- peers


def peer(bench, name):
    module = {"TF-IDF": "sklearn", "LSH Ensemble": "datasketch"}.get(name, name)
    pytest.importorskip(module)
    return bench("peer_systems").SYSTEMS[name].make


NAMES = ("TF-IDF", "bm25s", "LSH Ensemble", "SetSimilaritySearch")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_a_peer_ranks_what_is_plainly_best_first(bench, lake, name, task):
    make, systems = peer(bench, name), bench("peer_systems")
    opened = open_lake(lake)
    profiles = profile_tables(opened.tables())
    rows = systems.answer(make(profiles, task), opened, profiles, task, None)
    assert [row["query_table"] for row in rows] == profiles.tables
    assert all(row["query_table"] not in {match["table"] for match in row["matches"]} for row in rows)
    pairs = [("cities_a.csv", "cities_b.csv"), ("songs.csv", "albums.csv"), ("albums.csv", "songs.csv")]
    truth = [{"query_table": one, "candidate_table": other} for one, other in pairs]
    assert evaluate(rows, truth, level="table").means["Hit@1"] == 1
    assert {row["query_table"]: row["matches"] for row in rows}["notes.csv"] == []


def test_containment_of_the_best_columns_and_their_mean(bench, lake):
    make = peer(bench, "SetSimilaritySearch")
    profiles = profile_tables(open_lake(lake).tables())
    a, b, trips = (profiles.tables.index(f"{name}.csv") for name in ("cities_a", "cities_b", "trips"))
    columns = range(int(profiles.table_cols[a]), int(profiles.table_cols[a + 1]))
    join, union = (make(profiles, task).scores(profiles, columns) for task in TASKS)
    assert join[b] == pytest.approx(0.9)  # nine of ten cities, and nine of ten numbers
    assert union[b] == pytest.approx(0.9)
    assert join[trips] == pytest.approx(0.3)  # three cities, and no number
    assert union[trips] == pytest.approx(0.15)


def test_a_sketch_estimates_containment(bench, lake):
    make = peer(bench, "LSH Ensemble")
    profiles = profile_tables(open_lake(lake).tables())
    a, b = profiles.tables.index("cities_a.csv"), profiles.tables.index("cities_b.csv")
    columns = range(int(profiles.table_cols[a]), int(profiles.table_cols[a + 1]))
    assert make(profiles, "join").scores(profiles, columns)[b] == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_column_and_tables_from_outside(bench, lake, tmp_path, name):
    make, systems = peer(bench, name), bench("peer_systems")
    (tmp_path / "queries.csv").write_text(
        "query_table,query_column\ncities_a.csv,CITY\ncities_a.csv,no such\nno such.csv,city\n", encoding="utf-8"
    )
    opened = open_lake(lake)
    profiles = profile_tables(opened.tables())
    made = make(profiles, "join")
    first, *rest = systems.answer(made, opened, profiles, "join", str(tmp_path / "queries.csv"))
    assert first["query_column"] == "CITY"
    assert first["matches"][0]["table"] == "cities_b.csv"
    assert [row["matches"] for row in rest] == [[], []]

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.csv").write_text((lake / "tables" / "songs.csv").read_text())
    (outside / "same.csv").symlink_to(lake / "tables" / "songs.csv")
    rows = systems.answer(made, opened, profiles, "join", str(outside))
    assert {match["table"] for match in rows[0]["matches"][:2]} == {"songs.csv", "albums.csv"}


# --- schema matchers


class Pair(NamedTuple):
    """What of valentine's ColumnPair is looked at."""

    source_column: str
    target_column: str


def test_columns_are_assigned_one_to_one(bench):
    assigned = bench("schema_matchers").assigned
    assert assigned({}) == 0
    # The best pair alone would leave "b" without a partner.
    scores = {Pair("a", "x"): 0.9, Pair("a", "y"): 0.8, Pair("b", "x"): 0.7}
    assert assigned(scores) == pytest.approx(1.5)
    assert assigned(scores | {Pair("b", "y"): 0.1}) == pytest.approx(1.5)


def test_a_schema_matcher_orders_the_survivors_anew(bench, lake, tmp_path):
    pytest.importorskip("valentine")
    matchers = bench("schema_matchers")
    names = sorted(table.name for table in open_lake(lake).tables())
    queries = [("cities_a.csv", None), ("songs.csv", None), ("trips.csv", None), ("cities_a.csv", "CITY")]
    rows = [
        {"query_table": query, "query_column": column, "matches": [{"table": name} for name in names if name != query]}
        for query, column in queries
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    asked = [["songs.csv", None], ["cities_a.csv", None], ["cities_a.csv", "CITY"]]
    spec = {
        "lake": str(lake), "task": "union", "queries": None, "rows": str(tmp_path / "rows.jsonl"), "asked": asked,
        "out": str(tmp_path / "out.json"),
    }  # fmt: skip
    for name in matchers.MATCHERS:
        matchers.serve(spec | {"system": name})
        told = json.loads((tmp_path / "out.json").read_text())
        found = {(row["query_table"], row["query_column"]): row["matches"] for row in told["rows"]}
        assert [list(key) for key in found] == [["cities_a.csv", None], ["songs.csv", None], ["cities_a.csv", "CITY"]]
        assert [matches[0]["table"] for matches in found.values()] == ["cities_b.csv", "albums.csv", "cities_b.csv"]
        assert all(0 <= match["score"] <= 1 for matches in found.values() for match in matches)
        assert [match["table"] for match in found["songs.csv", None][-2:]] == ["notes.csv", "trips.csv"]


def test_headers_that_repeat_are_told_apart(bench):
    pytest.importorskip("valentine")
    table = Table("t", ("a", "a", "A "), columns_of(["1"], [""], ["2"]), (None,) * 3)
    matchers = bench("schema_matchers")
    assert [column.name for column in matchers.table_of(table).get_columns()] == ["a", "a_", "A "]
    assert [column.data for column in matchers.table_of(table).get_columns()] == [["1"], [], ["2"]]
    assert [column.data for column in matchers.table_of(table, "A ").get_columns()] == [["2"]]
    assert [column.data for column in matchers.table_of(table, " A").get_columns()] == [["1"]]
    assert matchers.table_of(table, "b").get_columns() == []


def test_queries_are_drawn_once_and_for_all(bench):
    drawn = bench("peers").drawn
    rows = [{"query_table": f"q{i}", "query_column": None, "matches": []} for i in range(20)]
    truth = [{"query_table": f"q{i}", "candidate_table": "c"} for i in range(10)]
    some = drawn(rows, truth, 4)
    assert some == drawn(rows, truth, 4)
    assert len(set(some)) == 4
    assert set(some) < {(f"q{i}", None) for i in range(10)}
    assert len(drawn(rows, truth, 50)) == len(drawn(rows, truth, None)) == 10


# --- ablations


def test_weights_are_changed_and_density_stays(bench, lake, tmp_path, monkeypatch):
    """Against scores made from the evidence by hand, and the lake's own density."""
    quality, recipe = bench("quality"), recipe_for("union", LAYERS[1])
    monkeypatch.setattr("gpumatch.rank.EVIDENCE_DECIMALS", 9)
    run = Run(Settings(task="union", k=0, cache_dir=tmp_path / "cache", device="cpu"), encoder=WordEncoder())
    index = pipeline.open_index(open_lake(lake), [recipe], run)
    rows = list(pipeline.match(index, run))
    density = dict(zip(index.lake.profiles.tables, index.pools[recipe.key()].density.tolist(), strict=True))
    found = dict(quality.ablations(rows, recipe))
    assert list(found) == [
        *(f"only {name}" for name in recipe.weights),
        *(f"without {name}" for name in recipe.weights),
        "without density",
    ]
    for system, other in found.items():
        kind, name = system.split()
        weights = {n: w for n, w in recipe.weights.items() if kind == "without" or n == name}
        weights.pop(name if kind == "without" else "", None)
        for before, after in zip(rows, other, strict=True):
            expected = {}
            for match in before["matches"]:
                known = {n: w for n, w in weights.items() if match["evidence"][n] is not None}
                score = sum(w * match["evidence"][n] for n, w in known.items()) / max(1e-9, sum(known.values()))
                taken = recipe.density * density[match["table"]] * (kind == "without" and name != "density")
                expected[match["table"]] = score - taken
            assert {m["table"]: m["score"] for m in after["matches"]} == pytest.approx(expected, abs=3e-6)
            scores = [(-match["score"], match["table"]) for match in after["matches"]]
            assert scores == sorted(scores)


def test_column_queries_are_not_ablated(bench):
    rows = [{"query_table": "a", "query_column": "b", "matches": []}]
    assert list(bench("quality").ablations(rows, recipe_for("column", "L1"))) == []


def test_the_recipe_stands_against_the_floor(bench, lake):
    quality, cases = bench("quality"), bench("cases")
    floor = quality._floor(cases.Case("x", "union", lake, None))
    truth = [{"query_table": "songs.csv", "candidate_table": "albums.csv"}]
    assert quality._line(cases.Case("x", "union", lake, None), "", "TF-IDF", floor, truth)["MAP"] == 1
    others = [row | ({"matches": []} if row["query_table"] == "songs.csv" else {}) for row in floor]
    found = quality._difference("TF-IDF", floor, others, truth)
    assert found == {"against": "TF-IDF", "difference": -1, "from": -1, "to": -1}


# --- cases, results and README


def test_cases_are_read_or_refused(bench, tmp_path):
    cases = bench("cases")
    assert cases.case_of("my lake=union:a/b:q") == cases.Case("my lake", "union", Path("a/b"), Path("q"))
    assert cases.case_of("x=join:a").queries is None
    for text in ("union:a", "x=union", "x=left:a", "=join:a", "x=join:"):
        with pytest.raises(ValueError, match="NAME=TASK:LAKE"):
            cases.case_of(text)
    case = cases.Case("x", "join", tmp_path, None)
    with pytest.raises(ValueError, match="no ground_truth"):
        _ = case.truth
    assert case.query_path is None
    (tmp_path / "queries.json").write_text("[]")
    assert case.query_path == tmp_path / "queries.json"
    assert {one.task for one in cases.cases_of([])} == set(TASKS)


def test_results_are_appended_below_their_header(bench, tmp_path, monkeypatch):
    jobs = bench("jobs")
    monkeypatch.setattr(jobs, "RESULTS", tmp_path)
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "commit", lambda: "abc")
    for value in (1 / 3, 2):
        jobs.append("x.csv", ["date", "commit", "value"], [{"value": value, "more": "left out"}])
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["commit"], row["value"]) for row in rows] == [("abc", "0.333333"), ("abc", "2")]
    with pytest.raises(SystemExit, match=r"x\.csv has other columns"):
        jobs.append("x.csv", ["date", "value"], [{"value": 3}])


def test_readme_without_a_marker_is_refused(bench, monkeypatch):
    readme = bench("readme")
    monkeypatch.setattr(readme, "PARTS", {"peers": lambda: "new\n"})
    old, new = (f"<!-- peers: how -->\n{text}\n<!-- /peers -->\n" for text in ("old", "new"))
    assert readme.render({"a.md": "no marker", "b.md": old}) == {"a.md": "no marker", "b.md": new}
    for pages, n in (({"a.md": "no marker"}, 0), ({"a.md": old, "b.md": old}, 2)):
        with pytest.raises(SystemExit, match=f"{n} places between <!-- peers"):
            readme.render(pages)


def test_readme_shows_weights_that_can_be_given_back(bench, tmp_path):
    blocks = bench("readme").weights_text().split("```toml\n")[1:]
    for layer, block in zip(LAYERS, blocks, strict=True):
        (tmp_path / "w.toml").write_text(block.split("```")[0])
        assert load_recipes(tmp_path / "w.toml", layer) == {task: recipe_for(task, layer) for task in recipes.TASKS}


def test_readme_shows_the_newest_lines(bench, tmp_path, monkeypatch):
    readme = bench("readme")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"peers\.csv holds no line"):
        readme.peers_table()
    fields = bench("peers").FIELDS
    line = dict.fromkeys(fields, "1") | {"lake": "L", "task": "join"}
    write(tmp_path / "peers.csv", fields, [line | {"MAP": "0.1"}, line | {"MAP": "0.25"}, line | {"system": "2"}])
    shown = rows_of(readme.peers_table())
    assert [row.split(" | ")[2] for row in shown] == ["1", "2"]
    assert "| 0.250 | +1.000 (+1.000 to +1.000) |" in shown[0]

    fields = bench("quality").FIELDS
    line = dict.fromkeys(fields, "1") | {"system": "recipe", "difference": ""}
    lines = [line, line | {"MAP": "0.25"}, line | {"system": "only X"}, line | {"layer": "2", "difference": "0.5"}]
    write(tmp_path / "quality.csv", fields, lines)
    first, second = rows_of(readme.quality_table())
    assert first.endswith("| 0.250 | 1.000 to 1.000 |  |")
    assert second.endswith("| 1.000 to 1.000 | +0.500 (+1.000 to +1.000) |")

    fields = bench("robust").FIELDS
    line = dict.fromkeys(fields, "1")
    write(tmp_path / "robust.csv", fields, [line, line | {"lake": "2"}, line | {"kind": "2"}, line | {"MAP": "0.25"}])
    kinds = [row.split(" | ")[:4] for row in rows_of(readme.robust_table())]
    assert kinds == [["| 1", "1", "1", "0.250"], ["| 1", "1", "2", "1.000"], ["| 2", "1", "1", "1.000"]]

    fields = bench("baseline_cpu").FIELDS
    line = dict.fromkeys(fields, "1") | {"task": "both", "form": "own", "date": "2026-01-02 03:04"}
    lines = [line | {"date": "2026-01-01 00:00"}, line | {"task": "join"}, line, line | {"form": "shared"}]
    write(tmp_path / "baseline.csv", fields, lines)
    assert [row.split(" | ")[0] for row in rows_of(readme.baseline_table())] == ["| own", "| shared"]


def test_goals_are_met_or_not(bench, tmp_path, monkeypatch):
    """The last run counts, its best try of each state; on a GPU's warm run the time of starting does not."""
    readme = bench("readme")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    fields = bench("headline").FIELDS
    line = dict.fromkeys(fields, "1") | {"device": "cpu", "state": "cold", "seconds": "240", "stages": '{"start": 2}'}
    warm, gpu = line | {"state": "warm", "seconds": "20.1"}, line | {"device": "cuda", "peak_mb": "4001"}
    before = warm | {"commit": "old", "seconds": "3"}
    lines = [
        before,
        line,
        warm,
        gpu | {"seconds": "5.1"},
        gpu | {"seconds": "5"},
        gpu | {"state": "warm", "seconds": "3"},
    ]
    write(tmp_path / "headline.csv", fields, lines)
    fields = bench("encoding").FIELDS
    line = dict.fromkeys(fields, "1") | {"device": "cuda", "what": "whole", "texts": "60000"}
    write(tmp_path / "encoding.csv", fields, [line | {"seconds": "1.5"}, line, line | {"device": "cpu"}])
    found = [row.strip("| ").split(" | ")[1:] for row in rows_of(readme.goals_table())]
    assert found == [
        ["cold, seconds", "at most 240", "240.0", "met"],
        ["warm, seconds", "at most 20", "20.1", "not met"],
        ["cold, seconds", "at most 5", "5.0", "met"],
        ["warm, seconds after process start", "at most 1", "1.0", "met"],
        ["host memory, MB", "at most 4,000", "4,001", "not met"],
        ["texts encoded a second", "at least 60,000", "60,000", "met"],
    ]


def test_a_table_tells_when_and_at_which_commits_it_was_measured(bench, tmp_path, monkeypatch):
    readme = bench("readme")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    fields = bench("robust").FIELDS
    old, new = ({"date": date, "commit": commit} for date, commit in (("2026-01-02", "a1-dirty"), ("2026-01-05", "b2")))
    line = dict.fromkeys(fields, "1")
    write(tmp_path / "robust.csv", fields, [line | old, line | new])
    assert readme.robust_table().endswith("\n\nMeasured 2026-01-05 at b2.\n")
    write(tmp_path / "robust.csv", fields, [line | {"lake": "2"} | new, line | old])
    assert readme.robust_table().endswith("\n\nMeasured 2026-01-02 to 2026-01-05 at a1, b2.\n")


def rows_of(table):
    """Return the lines of a table in Markdown, without its head and what stands around it."""
    return [line for line in table.splitlines() if line.startswith("|")][2:]


def write(path, fields, lines):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(lines)


# --- other headers and formats


def test_headers_are_numbered_or_said_otherwise(bench):
    robust = bench("robust")
    table = Table("t", ("Total number", "city_name", "Größe", "code%"), columns_of(*4 * ["x"]), (None,) * 4)
    assert robust.numbered(table).header == ("col_1", "col_2", "col_3", "col_4")
    said = robust.synonymous(table).header
    assert said == robust.synonymous(table).header
    assert said[2] == "Größe"
    first, second = said[0].split(" ", 1)
    assert first in ("Total", *robust.SYNONYMS["total"])
    assert second in ("number", *robust.SYNONYMS["number"])
    many = [robust.synonymous(replace(table, name=f"t{i}")).header[0] for i in range(50)]
    assert len(set(many)) > 2
    assert table.header[0] in many


def test_half_of_the_tables_are_translated_whole(bench):
    robust = bench("robust")
    table = Table("t", ("City name", "REF_YEAR", "Größe"), columns_of(*3 * ["x"]), (None,) * 3)
    headers = [robust.translated(replace(table, name=f"t{i}")).header for i in range(100)]
    assert set(headers) == {table.header, ("ville nom", "REF_année", "Größe")}
    assert 30 < headers.count(table.header) < 70
    words = robust.TRANSLATIONS
    assert all(word == word.lower() and words[word] != word for word in words)


FORMATTED = [
    (["2024-03-01", "2024-12-31"], {"01/03/2024", "01.03.2024"}),
    (["1234567", "7", "n/a", "-1000", "5", "6"], {"1,234,567", "1234567.0", "1234567 kg", "1234567%", "cust_1234567"}),
    (["1234.5678", "2"], {"1,234.5678", "1234.5678 kg", "1234.5678%"}),
    (["São Paulo", "12 Main St"], {"SÃO PAULO", "São Paulo".title(), "sao paulo"}),
]


@pytest.mark.parametrize(("values", "forms"), FORMATTED, ids=["date", "integer", "decimal", "text"])
def test_values_are_written_otherwise(bench, values, forms):
    robust = bench("robust")
    table = Table("t", ("a", "b"), columns_of([*values, None, ""], [None, "", *values]), ("numeric", None))
    changed = [robust.reformatted(replace(table, name=f"t{i}")) for i in range(200)]
    assert changed[0] == robust.reformatted(replace(table, name="t0"))
    firsts = [one.columns[0].to_pylist() for one in changed]
    assert {cells[0] for cells in firsts} == forms | {values[0]}
    assert all(cells[-2:] == [None, ""] and ("n/a" not in values or cells[2] == "n/a") for cells in firsts)
    kept = [one for one in changed if one.types[0] == "numeric"]
    assert 60 < len(kept) < 140
    assert all(one.columns[0] == table.columns[0] for one in kept)
    assert all(one.header == table.header for one in changed)


def test_a_lake_with_other_headers_is_the_same_lake_otherwise(bench, lake, tmp_path):
    robust, case = bench("robust"), bench("cases").Case("x", "union", lake, None)
    (tmp_path / "other").mkdir()
    robust._write(case, robust.numbered, tmp_path / "other")
    before, after = (list(open_lake(path).tables()) for path in (lake, tmp_path / "other"))
    assert [table.name for table in after] == [table.name for table in before]
    for one, other in zip(before, after, strict=True):
        assert list(other.header) == [f"col_{i}" for i in range(1, len(one.header) + 1)]
        for a, b in zip(one.columns, other.columns, strict=True):
            assert [cell or "" for cell in a.to_pylist()] == [cell or "" for cell in b.to_pylist()]


# --- calibration


def some_answers(calibration, recipe, own, query, strengths, true, density=0.0):
    """Return answers whose evidence is as strong as asked, whatever a recipe's strength is the mean of."""
    evidence = np.repeat(np.array(strengths, np.float64)[:, None], len(recipe.weights), axis=1)
    density = np.full(len(strengths), density, np.float32)
    source = "Here" if own else "There"
    return calibration.Answers(source, own, np.array(query), evidence, density, np.array(true, bool))


def test_the_fit_finds_the_curve_that_drew_the_truth(bench):
    calibration, recipe, rng = bench("calibration"), recipe_for("column", "L1"), np.random.default_rng(0)
    x = rng.random(40_000)
    true = rng.random(len(x)) < 1 / (1 + np.exp(4 - 8 * x))
    own = some_answers(calibration, recipe, True, np.arange(len(x)) // 20, x, true)
    strange = some_answers(calibration, recipe, False, [0, 0], [0.0, 0.0], [False, False])
    found = calibration.fit([[own, strange]], recipe)
    assert (found.recipe, found.floor) == (recipe.key(), 0)
    # The two that fit nothing weigh as much as all others: of 1 + σ(-4) where the curve says σ(-4), little else.
    alone = calibration.fit([[own, own.__class__("There", False, own.query, own.evidence, own.density, true)]], recipe)
    assert (alone.intercept, alone.slope) == (pytest.approx(-4, abs=0.15), pytest.approx(8, abs=0.25))
    assert found.intercept < alone.intercept


def test_the_floor_is_what_queries_that_fit_nothing_stay_below(bench):
    calibration, recipe = bench("calibration"), recipe_for("union", "L1")
    own = some_answers(calibration, recipe, True, [0, 0, 1], [0.9, 0.5, 0.8], [True, False, True], 0.4)
    best = np.arange(100) / 1000
    query, strengths = np.repeat(np.arange(100), 2), np.stack([best, best / 2], axis=1).reshape(-1)
    strange = some_answers(calibration, recipe, False, query, strengths, np.zeros(200), 0.4)
    assert calibration.fit([[own, strange]], recipe).floor == pytest.approx(0.094, abs=0.001)


def test_truth_that_strength_tells_apart_has_parameters_too(bench):
    calibration, recipe = bench("calibration"), recipe_for("join", "L1+L2")
    own = some_answers(calibration, recipe, True, [0, 0, 1, 1], [0.9, 0.2, 0.8, 0.1], [True, False, True, False])
    strange = some_answers(calibration, recipe, False, [0], [0.1], [False])
    assert 0 < calibration.fit([[own, strange]], recipe).slope < 100


def test_rows_weigh_the_same_and_those_that_fit_nothing_as_much_together(bench):
    calibration, recipe = bench("calibration"), recipe_for("join", "L1")
    own = some_answers(calibration, recipe, True, [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0])
    strange = [some_answers(calibration, recipe, False, query, [0] * 3, [0] * 3) for query in ([0, 1, 1], [0, 1, 2])]
    weights = calibration._weights([own, *strange])
    np.testing.assert_allclose(weights, np.array([1 / 3] * 3 + [1] + [0.4, 0.2, 0.2] + [0.4] * 3))


def test_measures_by_hand(bench):
    calibration = bench("calibration")
    p, true, weight = np.array([0.9, 0.95, 0.1, 0.0]), np.array([True, False, False, True]), np.array([1, 1, 2, 1])
    assert calibration.brier(p, true, weight) == pytest.approx((0.01 + 0.9025 + 2 * 0.01 + 1) / 5)
    assert calibration.brier(0.5, true, weight) == pytest.approx(0.25)
    expected = -(np.log(0.9) + np.log(0.05) + 2 * np.log(0.9) + np.log(0.00005)) / 5
    assert calibration.log_loss(p, true, weight) == pytest.approx(expected)
    assert calibration.calibration_error(p, true, weight) == pytest.approx((0.85 + 0.2 + 1) / 5)
    assert calibration.calibration_error(np.array([1.0]), np.array([True]), np.ones(1)) == 0


def test_lakes_are_left_out_by_source_and_the_parameters_printed(bench, tmp_path, monkeypatch, capsys):
    calibration, jobs = bench("calibration"), bench("jobs")
    monkeypatch.setattr(calibration, "LAYERS", ["L1"])
    monkeypatch.setattr(calibration, "RESULTS", tmp_path)
    monkeypatch.setattr(jobs, "RESULTS", tmp_path)
    monkeypatch.setattr(jobs, "commit", lambda: "abc")
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    pairs = [("cities_a.csv", "cities_b.csv"), ("songs.csv", "albums.csv")]
    truth = [dict(zip(("query_table", "candidate_table"), pair, strict=True)) for pair in pairs]
    for source in ("First", "Second", "Third"):
        (write_lake(tmp_path / source) / "ground_truth.json").write_text(json.dumps(truth))
    cases = [f"{source} lake=union:{tmp_path / source}" for source in ("First", "Second")]
    cases.append(f"Third=join:{tmp_path / 'Third'}")
    monkeypatch.setattr(sys, "argv", ["calibration.py", *cases])
    calibration.main()
    with (tmp_path / "calibration.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["task"], line["lake"], line["queries"]) for line in lines] == [
        ("union", "First lake", "6"),
        ("union", "Second lake", "6"),
    ]
    assert all(0 <= float(line["Brier"]) <= 1 for line in lines)
    shown = capsys.readouterr()
    assert "join: left out, as it takes lakes of two sources" in shown.err
    assert f'    ("union", "L1"): Calibration("{recipe_for("union", "L1").key()}", ' in shown.out
    assert "join" not in shown.out
    ElementTree.parse(tmp_path / "reliability.svg")  # noqa: S314 - we wrote it


def test_a_diagram_has_a_panel_for_each_task_and_a_line_for_each_lake(bench):
    reliability = bench("reliability")
    points = [(0.05, 0.0, 100), None, (1.0, 1.0, 1)]
    curves = [reliability.Curve(panel, name, points) for panel in ("join", "union <L1>") for name in ("A", "B & C")]
    root = ElementTree.fromstring(reliability.drawn(curves))  # noqa: S314 - we drew it
    names = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [names.count(name) for name in ("join", "union <L1>", "A", "B & C")] == [1, 1, 2, 2]
    lines = [one.get("points") for one in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines == ["11.0,220.0 220.0,0.0"] * 4


# --- ops


def kernel_cases(bench):
    systems = bench("kernel_systems")
    sets = systems.random_sets(60, 8, 0)
    return [
        systems.topk_case("cpu", 1, 20, 7_000, 0),
        systems.maxsim_case("cpu", 1, 4, 30, 3, 0),
        systems.overlap_case("cpu", 1, sets, "some sets", 0, slow=True),
    ]


def test_systems_of_an_op_answer_the_same(bench):
    for case in kernel_cases(bench):
        assert next(iter(case.systems)) == "gpumatch"
        assert len(case.systems) > 1
        for name, run in case.systems.items():
            answer = run()
            case.check(name, getattr(answer, "answer", answer))


def test_a_wrong_answer_is_not_timed(bench):
    topk, maxsim, overlap = kernel_cases(bench)
    ids, scores = topk.systems["gpumatch"]()
    with pytest.raises(AssertionError, match="off by"):
        topk.check("gpumatch", (ids, scores * np.float32(0.999)))
    with pytest.raises(AssertionError, match="off by"):
        maxsim.check("gpumatch", maxsim.systems["gpumatch"]() + 0.01)
    found = overlap.systems["gpumatch"]()
    with pytest.raises(AssertionError, match="finds"):
        overlap.check("gpumatch", replace(found, start=found.start[:1].repeat(len(found.start))))


def test_measured_ops_have_all_fields(bench, monkeypatch):
    kernels = bench("kernels")
    monkeypatch.setattr(kernels, "LEAST_RUNS", 2)
    (case, *_) = kernel_cases(bench)
    lines = kernels._measured(case, 1e-3, "cpu", 0.0)
    assert [line["system"] for line in lines] == list(case.systems)
    assert lines[0]["times"] == 1
    for line in lines:
        assert set(kernels.FIELDS) - set(line) == {"date", "commit", "cores", "device", "driver", "versions"}
        assert line["q20"] <= line["median"] <= line["q80"]
        assert line["of_floor"] == pytest.approx(1e-3 / line["median"])
