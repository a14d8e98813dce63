"""What the benchmarks compare gpumatch with is what they say it is: the same scores, sound arithmetic, sane peers."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpumatch import pipeline, recipes
from gpumatch.config import Settings
from gpumatch.features import Side
from gpumatch.index import Index
from gpumatch.lake import Table, open_lake
from gpumatch.metrics import evaluate
from gpumatch.profile import profile_tables
from gpumatch.recipes import LAYERS, recipe_for
from gpumatch.rescore import score_tables, weighted
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


class FakeEncoder:
    """A unit vector for every text; texts that share words have vectors that are alike."""

    model, revision, dim = "fake", "1", 24

    def lengths(self, texts):
        return np.array([len(text) for text in texts])

    def encode(self, texts):
        rows = np.stack([sum(map(self.word, text.split()), np.full(self.dim, 1e-3)) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def word(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=self.dim)


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


def prepared(bench, lake, task, tmp_path):
    """Return (gpumatch's rows of all tables of a lake, a folder with its vectors and density as files)."""
    run = Run(Settings(task=task, k=0, cache_dir=tmp_path / "cache", device="cpu"), encoder=FakeEncoder())
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
        vectors = per_pair.OwnVectors(FakeEncoder(), profiles)
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
    assert readme.render("<!-- peers: how -->\nold\n<!-- /peers -->\n") == "<!-- peers: how -->\nnew\n<!-- /peers -->\n"
    with pytest.raises(SystemExit, match="0 places between <!-- peers"):
        readme.render("no marker")


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
    shown = readme.peers_table().splitlines()
    assert len(shown) == 4
    assert "| 0.250 |" in shown[2]

    fields = bench("baseline_cpu").FIELDS
    line = dict.fromkeys(fields, "1") | {"task": "both", "form": "own", "date": "2026-01-02 03:04"}
    lines = [line | {"date": "2026-01-01 00:00"}, line | {"task": "join"}, line, line | {"form": "shared"}]
    write(tmp_path / "baseline.csv", fields, lines)
    assert [row.split(" | ")[0] for row in readme.baseline_table().splitlines()[-2:]] == ["| own", "| shared"]


def write(path, fields, lines):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(lines)


# --- other headers


def test_headers_are_numbered_or_said_otherwise(bench):
    robust = bench("robust")
    columns = tuple(pa.array(["x"]) for _ in range(4))
    table = Table("t", ("Total number", "city_name", "Größe", "code%"), columns, (None,) * 4)
    assert robust.numbered(table) == ["col_1", "col_2", "col_3", "col_4"]
    said = robust.synonymous(table)
    assert said == robust.synonymous(table)
    assert said[2] == "Größe"
    first, second = said[0].split(" ", 1)
    assert first in ("Total", *robust.SYNONYMS["total"])
    assert second in ("number", *robust.SYNONYMS["number"])
    many = [robust.synonymous(Table(f"t{i}", table.header, columns, table.types))[0] for i in range(50)]
    assert len(set(many)) > 2
    assert table.header[0] in many


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
