"""The whole flow on small real lakes: layers, queries, offsets, and results that depend on nothing they should not."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from gpumatch import pipeline, profile
from gpumatch.config import Settings
from gpumatch.demo import lake_path
from gpumatch.errors import IndexError_, LakeError, UsageError
from gpumatch.index import Index
from gpumatch.lake import source
from gpumatch.lake.rules import Unreadable
from gpumatch.metrics import evaluate
from gpumatch.records import load_truth
from gpumatch.results import to_line
from gpumatch.run import Run

NEAR = 1e-3


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One vector cache for all tests here: texts are encoded once."""
    return tmp_path_factory.mktemp("cache")


def answers(source, cache_dir, *, queries=None, columns=(), offset=0, max_queries=None, **settings):
    run = Run(Settings(**{"task": "union", "cache_dir": cache_dir} | settings))
    rows = list(pipeline.match(source, run, queries=queries, columns=columns, offset=offset, max_queries=max_queries))
    return rows, run.stats


def write_lake(folder, tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


CITIES = {
    "cities_a.csv": "city,country,people\nOslo,Norway,700000\nBergen,Norway,290000\nRome,Italy,2800000\n",
    "cities_b.csv": "city,country,people\nParis,France,2100000\nRome,Italy,2800000\nLyon,France,520000\n",
    "towns.tsv": "town\tcountry\tinhabitants\nNarvik\tNorway\t14000\nBodo\tNorway\t52000\n",
    "songs.csv": "title,artist,seconds\nHelp!,Beatles,138\nYesterday,Beatles,125\n",
    "albums.csv": "album,artist,year\nHelp!,Beatles,1965\nRevolver,Beatles,1966\n",
    "empty_rows.csv": "city,country,people\n",
}


@pytest.fixture
def cities(tmp_path):
    return write_lake(tmp_path / "lake", CITIES)


def same_results(a, b):
    """The same results: equal order except among scores closer than 1e-3, and scores within 1e-3."""
    assert [(r["query_table"], r["query_column"]) for r in a] == [(r["query_table"], r["query_column"]) for r in b]
    for one, other in zip(a, b, strict=True):
        scores = {m["table"]: m["score"] for m in other["matches"]}
        assert {m["table"] for m in one["matches"]} == set(scores)
        for match in one["matches"]:
            assert match["score"] == pytest.approx(scores[match["table"]], abs=NEAR)
        order = [scores[m["table"]] for m in one["matches"]]
        assert all(x >= y - 2 * NEAR for x, y in pairwise(order))


@pytest.mark.parametrize("layer", ["L1", "L1+L2"])
@pytest.mark.parametrize("task", ["join", "union"])
def test_the_shape_of_a_result(cities, cache, task, layer):
    rows, _ = answers(cities, cache, task=task, layer=layer)
    assert [row["query_table"] for row in rows] == sorted(CITIES)
    first = next(row for row in rows if row["query_table"] == "cities_a.csv")
    assert first["task"] == task
    assert first["query_column"] is None
    best = first["matches"][0]
    assert best["table"] in ("cities_b.csv", "empty_rows.csv")
    assert "cities_a.csv" not in {match["table"] for match in first["matches"]}
    assert best["layer"] == ("L2" if layer == "L1+L2" else "L1")
    by_name = {match["table"]: match for match in first["matches"]}
    pairs = {(pair["query"]["name"], pair["candidate"]["name"]) for pair in by_name["cities_b.csv"]["columns"]}
    assert pairs == {("city", "city"), ("country", "country"), ("people", "people")}
    scores = [match["score"] for match in first["matches"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= value <= 1 for match in first["matches"] for value in match["evidence"].values())
    json.dumps(rows, allow_nan=False)


def test_k_cuts_the_same_ranking_and_the_pool_stays(cities, cache):
    whole, _ = answers(cities, cache, k=0)
    cut, _ = answers(cities, cache, k=2)
    assert [row["matches"][:2] for row in whole] == [row["matches"] for row in cut]
    for row, fewer in zip(whole, cut, strict=True):
        assert row["pool"] == fewer["pool"] == len(row["matches"]) == len(CITIES) - 1


def test_scores_follow_from_the_evidence(cities, cache):
    from gpumatch.recipes import recipe_for

    weights = recipe_for("join", "L1+L2").weights
    rows, _ = answers(cities, cache, task="join")
    for match in (match for row in rows for match in row["matches"]):
        score = sum(weights[name] * value for name, value in match["evidence"].items()) / sum(weights.values())
        assert match["score"] == pytest.approx(score, abs=2e-4)


def test_queries_from_outside_the_lake(cities, cache, tmp_path):
    query = write_lake(tmp_path / "new", {"q.csv": "city,country,people\nTurin,Italy,850000\nRome,Italy,2800000\n"})
    rows, _ = answers(cities, cache, queries=query)
    assert [row["query_table"] for row in rows] == ["q.csv"]
    assert rows[0]["matches"][0]["table"] in ("cities_a.csv", "cities_b.csv")
    assert len(rows[0]["matches"]) == len(CITIES)


def test_a_query_file_that_is_a_lake_file_is_left_out_by_identity(cities, cache, tmp_path):
    rows, _ = answers(cities, cache, queries=cities / "songs.csv")
    assert "songs.csv" not in {match["table"] for match in rows[0]["matches"]}
    copy = write_lake(tmp_path / "copies", {"songs.csv": CITIES["songs.csv"]})
    rows, _ = answers(cities, cache, queries=copy)
    assert rows[0]["matches"][0]["table"] == "songs.csv"


def test_lake_queries_and_outside_queries_score_alike(cities, cache, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(cities, copies)
    inside, _ = answers(cities, cache, k=0)
    outside, _ = answers(cities, cache, k=0, queries=copies)
    for row in outside:
        row["matches"] = [match for match in row["matches"] if match["table"] != row["query_table"]]
    same_results(inside, outside)


def test_column_queries_are_answered_at_column_level(tmp_path, cache):
    lake = write_lake(
        tmp_path / "lake",
        {
            "tables/orders.csv": "id,customer\n1,ann\n2,bobby\n3,cecil\n",
            "tables/people.csv": "customer,age\nann,31\nbobby,44\ncecil,27\ndot,19\n",
            "tables/parts.csv": "part,customer\nbolt,zed\nnut,yan\n",
            "queries.csv": "query_table,query_column,task_type\norders.csv,customer,join\norders.csv,,join\n",
        },
    )
    rows, _ = answers(lake, cache, task="auto")
    assert [(row["query_table"], row["query_column"]) for row in rows] == [
        ("orders.csv", "customer"),
        ("orders.csv", None),
    ]
    matches = rows[0]["matches"]
    assert [match["table"] for match in matches] == ["people.csv", "parts.csv"]
    assert rows[0]["pool"] == 2
    assert matches[0]["columns"] == [
        {
            "query": {"index": 1, "name": "customer"},
            "candidate": {"index": 0, "name": "customer"},
            "score": pytest.approx(matches[0]["score"], abs=1e-4),
        }
    ]
    assert matches[0]["evidence"]["named_containment"] == 1
    assert matches[1]["evidence"]["named_containment"] == 0.5


def test_a_table_from_outside_is_asked_by_its_column(tmp_path, cache):
    orders, people = "id,customer\n1,ann\n2,bob\n3,cid\n", "customer,age\nann,31\nbob,44\ncid,27\ndot,19\n"
    tables = {"orders.csv": orders, "people.csv": people, "parts.csv": "part,customer\nbolt,zed\nnut,yan\n"}
    lake = write_lake(tmp_path / "lake", tables)
    write_lake(tmp_path, {"q.csv": "query_table,query_column\norders.csv,customer\norders.csv,id\n"})
    expected, _ = answers(lake, cache, task="join", layer="L1", queries=tmp_path / "q.csv")
    found, _ = answers(
        lake, cache, task="join", layer="L1", queries=lake / "orders.csv", columns=["customer", "id"]
    )  # the same file, so not among its own matches
    assert found == expected
    copy = write_lake(tmp_path / "new", {"copy.csv": orders})
    rows, stats = answers(lake, cache, task="join", layer="L1", queries=copy, columns=["customer", "no such"])
    assert [match["table"] for match in rows[0]["matches"]] == ["orders.csv", "people.csv", "parts.csv"]
    assert rows[0]["matches"][1]["columns"][0]["query"] == {"index": 1, "name": "customer"}
    assert rows[1]["matches"] == []
    assert [(one["name"], one["rule"]) for one in stats.skipped] == [("copy.csv", "query-column")]
    with pytest.raises(LakeError, match=r"copy\.csv: it has no column 'no such', but 'id', 'customer'\)"):
        answers(lake, cache, task="join", layer="L1", queries=copy, columns=["no such"])


@pytest.mark.parametrize("layer", ["L1", "L1+L2"])
def test_the_column_that_holds_the_values_comes_before_those_of_its_name(tmp_path, cache, layer):
    def codes(*numbers):
        return [hashlib.sha256(str(n).encode()).hexdigest()[:8] for n in numbers]

    tables = {
        f"t{i}.csv": "token,grade\n" + "".join(f"{c},A\n" for c in codes(*range(i * 50, i * 50 + 50))) for i in range(9)
    }
    asked = codes(*range(1000, 1040))
    tables["registry.csv"] = "uid\n" + "\n".join([*asked, *codes(*range(2000, 2200))]) + "\n"
    tables["some.csv"] = "uid\n" + "\n".join([*asked[:20], *codes(*range(3000, 3020))]) + "\n"
    new = write_lake(tmp_path / "new", {"q.csv": "token,grade\n" + "".join(f"{c},B\n" for c in asked)})
    lake = write_lake(tmp_path / "lake", tables)
    rows, _ = answers(lake, cache, task="join", layer=layer, queries=new, columns=["token"], k=0)
    (found,) = ([match for match in row["matches"] if match["table"]] for row in rows)
    assert found[0]["table"] == "registry.csv"
    assert found[0]["evidence"]["rare_containment"] == pytest.approx((40 / 41) ** (1 + 4 * 2 ** (-40 / 8)), abs=1e-4)
    assert found[0]["confidence"] > 0.5 > max(match["confidence"] for match in found[1:])
    half = next(match for match in found if match["table"] == "some.csv")
    assert half["evidence"]["rare_containment"] == pytest.approx((20 / 41) ** (1 + 4 * 2 ** (-20 / 8)), abs=1e-4)


def test_keys_of_other_things_are_no_partners_though_their_numbers_are(tmp_path, cache):
    def table(header, prefix, more=""):
        return header + "\n" + "".join(f"{prefix}{n}{more}\n" for n in range(1001, 1031))

    tables = {
        "suppliers.csv": table("supplier_id,buyer", "SUPP-", ",x"),
        "customers.csv": table("uid,age", "CUST-", ",44"),
    }
    lake = write_lake(tmp_path / "lake", tables | {"plain.csv": table("number,size", "", ",3")})
    new = write_lake(tmp_path / "new", {"orders.csv": table("buyer,total", "cust_", ",9")})
    rows, _ = answers(lake, cache, task="join", layer="L1", queries=new, columns=["buyer"], k=0)
    found = {match["table"]: match["evidence"] for match in rows[0]["matches"]}
    assert {name: evidence["containment"] for name, evidence in found.items()} == {
        "customers.csv": 1, "plain.csv": 1, "suppliers.csv": 0,
    }  # fmt: skip
    assert list(found)[-1] == "suppliers.csv"
    assert (found["suppliers.csv"]["value_grams"], found["suppliers.csv"]["rare_containment"]) == (0, 0)


def test_containment_is_not_known_of_samples(tmp_path, cache):
    columns = [{"name": "customer", "type": "string", "sample_values": ["ann", "bob"]}]
    tables = [{"table_name": name, "columns": columns} for name in ("a", "b")]
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    (tmp_path / "queries.json").write_text(json.dumps([{"query_table": "a", "query_column": "customer"}]))
    rows, _ = answers(tmp_path, cache, task="join")
    evidence = rows[0]["matches"][0]["evidence"]
    assert (evidence["containment"], evidence["rare_containment"]) == (None, None)
    assert evidence["named_containment"] == 0.5


def test_what_was_seen_of_a_sampled_candidate_counts(tmp_path, cache):
    """Or it would come before all whose values are known not to be the query's."""
    tables = {"few.csv": "customer\nann\nbob\n", "many.csv": "customer\n" + "".join(f"c{n}x\n" for n in range(99))}
    lake = write_lake(tmp_path, tables | {"queries.csv": "query_table,query_column\nfew.csv,customer\n"})
    rows, _ = answers(lake, cache, task="join", sample_rows=50)
    evidence = rows[0]["matches"][0]["evidence"]
    assert (evidence["containment"], evidence["rare_containment"]) == (None, 0)


def test_twin_columns_are_matched_one_to_one(tmp_path, cache):
    text = "id,id,x\n7,7,q\n"
    lake = write_lake(tmp_path / "lake", {"a.csv": text, "b.csv": text})
    rows, _ = answers(lake, cache, layer="L1")
    pairs = [(pair["query"]["index"], pair["candidate"]["index"]) for pair in rows[0]["matches"][0]["columns"]]
    assert sorted(pairs) == [(0, 0), (1, 1), (2, 2)]


def test_rows_that_cannot_be_answered_keep_their_line(tmp_path, cache):
    lake = write_lake(
        tmp_path / "lake",
        {f"tables/{name}": text for name, text in CITIES.items()}
        | {"queries.csv": "query_table,query_column\ngone.csv,\nsongs.csv,nothing\nsongs.csv,\n"},
    )
    rows, stats = answers(lake, cache, task="join")
    assert [len(row["matches"]) > 0 for row in rows] == [False, False, True]
    assert [(one["name"], one["rule"]) for one in stats.skipped] == [
        ("gone.csv", "query-table"),
        ("songs.csv", "query-column"),
    ]


def test_no_query_in_the_lake_says_where_to_look(cities, cache, tmp_path):
    (tmp_path / "q.csv").write_text("query_table\nelsewhere.csv\n")
    with pytest.raises(LakeError, match=r"elsewhere\.csv.*--queries FOLDER"):
        answers(cities, cache, queries=tmp_path / "q.csv")


def test_a_lake_of_nothing_but_bad_files_says_what_is_wrong_with_them(tmp_path, cache):
    lake = write_lake(tmp_path / "lake", {"a.csv": ""})
    with pytest.raises(LakeError, match=r"none of the query tables can be read \(a\.csv: empty: 0 bytes"):
        answers(lake, cache, layer="L1")


def test_query_files_that_cannot_be_read_are_named(cities, cache, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(LakeError, match=r"none of the query tables can be read \(bad\.parquet: parquet:"):
        answers(cities, cache, queries=tmp_path / "bad.parquet", layer="L1")


def test_an_unreadable_file_is_skipped_and_listed_also_from_the_cached_index(cities, cache):
    (cities / "broken.csv").write_bytes(b"a,b\n\0\0")
    for _ in range(2):
        rows, stats = answers(cities, cache)
        assert len(rows) == len(CITIES) + 1
        assert [(one["name"], one["rule"]) for one in stats.skipped] == [("broken.csv", "nul-bytes")]


@pytest.fixture
def ill(monkeypatch):
    """A list of table names that cannot be read for now, though their bytes are there and stay the same."""
    names, read = [], source.read_table

    def sometimes(path, name, *arguments):
        if name in names:
            raise Unreadable("unreadable", "Too many open files")
        return read(path, name, *arguments)

    monkeypatch.setattr(source, "read_table", sometimes)
    return names


def test_a_failure_that_passes_is_not_kept_in_the_cached_index(cities, cache, ill):
    whole, _ = answers(cities, cache, layer="L1", index_cache=False)
    ill.append("songs.csv")
    (cities / "new.csv").write_text(CITIES["songs.csv"])  # so that the lake is no other test's
    for _ in range(2):
        rows, stats = answers(cities, cache, layer="L1")
        assert [(one["name"], one["rule"]) for one in stats.skipped] == [("songs.csv", "unreadable")]
        assert [len(row["matches"]) > 0 for row in rows if row["query_table"] == "songs.csv"] == [False]
    ill.clear()
    for stored in (False, True):
        rows, stats = answers(cities, cache, layer="L1")
        assert stats.skipped == []
        assert all(row["matches"] for row in rows)
        assert ("read" not in stats.stages) == stored
    (cities / "new.csv").unlink()
    assert answers(cities, cache, layer="L1")[0] == whole


def test_an_index_that_is_asked_for_is_written_incomplete_and_mended_later(cities, cache, tmp_path, ill):
    folder, settings = tmp_path / "idx", Settings(cache_dir=cache, layer="L1")
    ill.append("songs.csv")
    for _ in range(2):
        index, built = pipeline.update_index(cities, folder, Run(settings))
        assert built
        assert [one["name"] for one in index.about["skipped"]] == ["songs.csv"]
    _, stats = answers(folder, cache, layer="L1")
    assert [one["name"] for one in stats.skipped] == ["songs.csv"]
    ill.clear()
    assert [pipeline.update_index(cities, folder, Run(settings))[1] for _ in range(2)] == [True, False]
    assert answers(folder, cache, layer="L1")[1].skipped == []


def test_task_auto_needs_a_task_type(cities, cache):
    with pytest.raises(UsageError, match="--task join or --task union"):
        answers(cities, cache, task="auto")


def test_l1_never_loads_torch_vectors_or_the_encoder(cities, tmp_path):
    code = (
        "import sys; from pathlib import Path; from gpumatch import pipeline; from gpumatch.run import Run;"
        "from gpumatch.config import Settings;"
        f"run = Run(Settings(task='union', layer='L1', cache_dir=Path({str(tmp_path / 'c')!r})));"
        f"rows = list(pipeline.match({str(cities)!r}, run));"
        "assert len(rows) == 6 and rows[0]['matches'], rows;"
        "assert 'sentence_transformers' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_warm_run_encodes_nothing_and_loads_no_encoder(cities, cache):
    answers(cities, cache, index_cache=False)
    code = (
        "import sys; from pathlib import Path; from gpumatch import pipeline; from gpumatch.run import Run;"
        "from gpumatch.config import Settings;"
        f"run = Run(Settings(task='union', index_cache=False, cache_dir=Path({str(cache)!r})));"
        f"list(pipeline.match({str(cities)!r}, run));"
        "assert run.stats.counters['texts'] > 0 and run.stats.counters['encoded'] == 0;"
        "assert 'sentence_transformers' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the same results whatever does not matter


@pytest.fixture(scope="session")
def demo_rows(cache):
    """The shipped union lake, every survivor, as the settings come."""
    return answers(lake_path("union"), cache, k=0, threads=2)[0]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("done", [False, True])
def test_the_share_of_texts_goes_by_what_is_profiled_not_by_what_is_read(cities, cache, monkeypatch, threads, done):
    shares = []
    monkeypatch.setattr(pipeline.Embedder, "give", lambda embedder, texts, share=1: shares.append((len(texts), share)))
    monkeypatch.setattr(pipeline.Embedder, "finish", lambda embedder: sys.exit())
    monkeypatch.setattr(profile, "BATCH_CELLS", 1)
    monkeypatch.setattr(profile.Future, "done", lambda future: done)  # how far reading is ahead
    with pytest.raises(SystemExit):
        answers(cities, cache, threads=threads, index_cache=False)
    # a table without rows waits for the next, and the last batch is empty
    assert shares == [(7, 1 / 6), (7, 2 / 6), (7, 3 / 6), (14, 5 / 6), (7, 1), (0, 1)]


def test_accuracy_on_the_shipped_lakes(demo_rows, cache):
    union = evaluate(demo_rows, load_truth(lake_path("union") / "ground_truth.json"), resamples=10).means
    assert union["Hit@1"] >= 0.69
    assert union["MAP"] >= 0.49
    rows, _ = answers(lake_path("join"), cache, task="join", k=0)
    join = evaluate(rows, load_truth(lake_path("join") / "ground_truth.json"), resamples=10).means
    assert join["Hit@1"] >= 0.70
    assert join["MAP"] >= 0.62


@pytest.mark.parametrize("settings", [{"batch": 7}, {"batch": 1000}, {"threads": 1}, {"threads": 3}], ids=str)
def test_same_results_for_any_batch_and_threads(demo_rows, cache, settings):
    rows, _ = answers(lake_path("union"), cache, k=0, index_cache=False, **settings)
    same_results(demo_rows, rows)


@pytest.mark.parametrize("task", ["join", "union"])
def test_a_device_gives_the_same_results_by_the_plan_of_its_memory(cities, cache, monkeypatch, task):
    """torch's tensors, which here are the same processor's; most of the device's memory is taken by others."""
    plain, told = answers(cities, cache, task=task, layer="L1")
    assert set(told.memory_plan) == {"host"}
    monkeypatch.setattr(Run, "device_for", lambda run, seconds: "cpu:0")
    for free in (10**10, 60_000):
        monkeypatch.setattr("gpumatch.rank.device_bytes", lambda device, unknown, free=free: (free, free))
        rows, told = answers(cities, cache, task=task, layer="L1", index_cache=False)
        same_results(plain, rows)
        where = {name: stage.device for name, stage in told.stages.items() if stage.device}
        assert where == {"search": "cpu:0", "rescore": "cpu:0"}
        plan = told.memory_plan["device"]
        assert plan["free"] == free
        assert (plan["rows"] > 0) == (free == 10**10)
        assert plan["tile_rows"] == (6 if free == 10**10 else 1)


def test_same_results_for_any_file_order(demo_rows, cache, tmp_path):
    for name in ("queries.json", "ground_truth.json"):
        shutil.copy(lake_path("union") / name, tmp_path / name)
    tables = json.loads((lake_path("union") / "tables.json").read_text(encoding="utf-8"))
    random.Random(3).shuffle(tables)
    (tmp_path / "tables.json").write_text(json.dumps(tables), encoding="utf-8")
    rows, _ = answers(tmp_path, cache, k=0)
    assert "".join(map(to_line, rows)) == "".join(map(to_line, demo_rows))


@pytest.mark.parametrize("seed", ["0", "1234"])
def test_same_bytes_for_any_hash_seed(demo_rows, cache, tmp_path, seed, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", seed)
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(cache))
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "gpumatch", "match", str(lake_path("union")), "--task", "union", "-k", "0"]
    subprocess.run([*command, "--threads", "2", "--no-index-cache", "-q", "-o", str(out)], check=True)
    assert out.read_text(encoding="utf-8") == "".join(map(to_line, demo_rows))


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (17, 30), (99, 5), (40, 0), (250, 5)])
@pytest.mark.parametrize("batch", [16, 256])
def test_lines_of_a_part_are_lines_of_the_whole(cache, offset, count, batch):
    settings = {"k": 5, "batch": batch, "task": "join"}
    whole, _ = answers(lake_path("join"), cache, **settings)
    part, _ = answers(lake_path("join"), cache, offset=offset, max_queries=count, **settings)
    assert [to_line(row) for row in part] == [to_line(row) for row in whole[offset : offset + count]]


# --- index folders


def test_an_index_answers_like_its_lake(cities, cache, tmp_path):
    index, built = pipeline.update_index(cities, tmp_path / "idx", Run(Settings(cache_dir=cache)))
    assert built
    assert index.lake.profiles.tables == sorted(CITIES)
    for task in ("join", "union"):
        from_lake, _ = answers(cities, cache, task=task, k=0)
        from_index, _ = answers(tmp_path / "idx", cache, task=task, k=0)
        assert from_lake == from_index


def test_an_index_is_brought_up_to_date(cities, cache, tmp_path):
    folder = tmp_path / "idx"
    settings = Settings(cache_dir=cache)
    pipeline.update_index(cities, folder, Run(settings))
    assert pipeline.update_index(cities, folder, Run(settings))[1] is False
    (cities / "more.csv").write_text("city,country,people\nNice,France,340000\n")
    run = Run(settings)
    index, built = pipeline.update_index(cities, folder, run)
    assert built
    assert "more.csv" in index.lake.profiles.tables
    assert 0 < run.stats.counters["encoded"] <= 4
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


def test_more_tables_beside_the_lakes_than_in_it_are_told(cities):
    (cities / "tables").mkdir()
    (cities / "tables" / "a.csv").write_text("x\n1\n")
    (cities / "tables" / "b.csv").write_text("x\n1\n")
    aside = source.open_lake(cities).left_aside()
    assert len(aside) > 2
    run = Run(Settings(layer="L1", cache=False, task="join"))
    list(pipeline.match(cities, run))
    (warning,) = run.stats.warnings
    assert f"its {len(aside)} other table files, such as {aside[0]}, are not read" in warning
    for name in aside[2:]:
        (cities / name).unlink()
    list(pipeline.match(cities, run := Run(Settings(layer="L1", cache=False, task="join"))))
    assert run.stats.warnings == []


def test_an_index_that_is_older_than_its_lake_says_so_until_it_is_up_to_date(cities, tmp_path, monkeypatch):
    folder, settings = tmp_path / "idx", Settings(layer="L1", cache_dir=tmp_path / "cache")

    def indexed(lake=cities, folder=folder):
        pipeline.update_index(lake, folder, Run(settings))

    def warned(folder=folder):
        with monkeypatch.context() as patch:
            patch.setattr(source, "open_file", None)  # no file of the lake is read for that
            run = Run(settings)
            pipeline.load_index(folder, run)
        return run.stats.warnings

    (cities / "bad.csv").write_text("")
    indexed()
    assert warned() == []
    (cities / "songs.csv").unlink()
    (cities / "x.csv").write_text("a\n1\n")
    (cities / "y.csv").write_text("a\n1\n")
    mend = f"gpumatch index {cities} -o {folder} brings it up to date"
    assert warned() == [f"{folder} is older than its lake {cities}: tables: 2 added, 1 removed; {mend}"]
    indexed()
    assert warned() == []
    (cities / "x.csv").write_text("a\n2\n")
    assert warned() == [f"{folder} is older than its lake {cities}: files were written to; {mend}"]
    indexed()
    os.utime(cities / "x.csv", (1, 1))  # with the same content the index is as it was, and is not told of again
    assert len(warned()) == 1
    indexed()
    assert warned() == []
    cities.rename(tmp_path / "moved")
    assert warned() == []
    indexed(tmp_path / "moved")
    (tmp_path / "moved" / "x.csv").unlink()
    assert "tables: 1 removed; gpumatch index" in warned()[0]
    one = tmp_path / "tables.json"
    one.write_text('[{"table_name": "t", "columns": [{"name": "a", "sample_values": ["1"]}]}]')
    indexed(one, tmp_path / "one")
    assert warned(tmp_path / "one") == []
    os.utime(one, (1, 1))
    assert f"{one}: its file was written to; " in warned(tmp_path / "one")[0]


def test_an_index_is_asked_what_its_lake_lists(cities, cache, tmp_path, monkeypatch):
    def asked(source, **settings):
        said = []
        run = Run(Settings(cache_dir=cache, layer="L1", **settings), say=said.append)
        return list(pipeline.match(source, run)), said

    write_lake(tmp_path, {"queries.csv": "query_table,task_type\nsongs.csv,join\n"})
    monkeypatch.chdir(tmp_path)  # where the command is called says nothing of the lake
    pipeline.update_index(cities, tmp_path / "idx", Run(Settings(cache_dir=cache, layer="L1")))
    rows, said = asked(tmp_path / "idx", task="union")
    assert ([row["query_table"] for row in rows], said) == (sorted(CITIES), [])
    write_lake(cities, {"queries.csv": "query_table,task_type\ntowns.tsv,join\nalbums.csv,union\n"})
    expected = asked(cities, task="auto")
    assert expected[1] == [f"{cities / 'queries.csv'} lists the queries; --queries takes others"]
    assert asked(tmp_path / "idx", task="auto") == asked(Index.load(tmp_path / "idx"), task="auto") == expected
    write_lake(cities, {"queries.csv": "table,task\nsongs.csv,join\n"})
    rows, said = asked(tmp_path / "idx", task="union")
    assert [row["query_table"] for row in rows] == sorted(CITIES)
    reason = "has no column query_table or query_text: it is a table, and every table is a query"
    assert "is older than its lake" in said[0]  # by the table that queries.csv is now
    assert said[1:] == [f"warning: {cities / 'queries.csv'} {reason}"]
    cities.rename(tmp_path / "moved")
    rows, said = asked(Index.load(tmp_path / "idx"), task="union")
    assert [row["query_table"] for row in rows] == sorted(CITIES)
    assert len(said) == 1
    assert f"{cities}, the lake that was indexed, is gone" in said[0]


def test_matching_changes_nothing_in_an_index_folder(cities, cache, tmp_path):
    folder, settings = tmp_path / "idx", Settings(cache_dir=cache)
    weights = tmp_path / "w.toml"
    weights.write_text("[union]\nname_cosine = 1\n")
    pipeline.update_index(cities, folder, Run(settings))
    opened = Index.load(folder)

    def written():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}

    before = written()
    for asked in ({"layer": "L1"}, {"weights": weights}):
        assert answers(folder, cache, k=0, **asked)[0] == answers(cities, cache, k=0, index_cache=False, **asked)[0]
    assert written() == before
    (cities / "more.csv").write_text("city,country,people\nNice,France,340000\n")
    pipeline.update_index(cities, folder, Run(settings))
    answers(opened, cache, layer="L1")  # opened before the lake was indexed anew
    assert "more.csv" in Index.load(folder).lake.profiles.tables


def test_an_l1_index_serves_l1_only(cities, cache, tmp_path):
    pipeline.update_index(cities, tmp_path / "idx", Run(Settings(cache_dir=cache, layer="L1")))
    assert answers(tmp_path / "idx", cache, layer="L1")[0]
    with pytest.raises(UsageError, match="--layer L1"):
        answers(tmp_path / "idx", cache)


def test_a_full_index_serves_l1_without_an_encoder(cities, cache, tmp_path):
    pipeline.update_index(cities, tmp_path / "idx", Run(Settings(cache_dir=cache)))
    same_results(answers(cities, cache, layer="L1", k=0)[0], answers(tmp_path / "idx", cache, layer="L1", k=0)[0])


def test_a_damaged_cached_index_is_rebuilt_and_a_named_one_refused(cities, cache, tmp_path):
    own = tmp_path / "cache"
    first, _ = answers(cities, own, layer="L1")
    for array in (own / "indexes").rglob("rows.npy"):
        array.write_bytes(array.read_bytes()[:-1] + b"\x7f")
    assert answers(cities, own, layer="L1")[0] == first
    pipeline.update_index(cities, tmp_path / "idx", Run(Settings(cache_dir=own, layer="L1")))
    damaged = next((tmp_path / "idx").rglob("rows.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IndexError_, match=r"rows\.npy is damaged.*gpumatch index LAKE"):
        answers(tmp_path / "idx", own, layer="L1")


def test_nothing_is_kept_without_a_cache(cities, tmp_path):
    own = tmp_path / "cache"
    answers(cities, own, cache=False)
    assert not own.exists()


def test_an_index_that_cannot_be_kept_ends_no_run(cities, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "indexes").write_text("")  # as root may write wherever the disk lets it
    rows, stats = answers(cities, tmp_path / "cache", layer="L1")
    assert rows == answers(cities, tmp_path / "cache", layer="L1", index_cache=False)[0]
    assert len(stats.warnings) == 1
    assert stats.warnings[0].startswith("the index is not kept for later runs: cannot create the cache folder")
    assert stats.warnings[0].endswith("--no-index-cache")


def test_one_table_and_no_neighbours(tmp_path, cache):
    lake = write_lake(tmp_path / "lake", {"only.csv": "a,b\n1,2\n"})
    for task in ("join", "union"):
        assert answers(lake, cache, task=task)[0] == [
            {"query_table": "only.csv", "query_column": None, "task": task, "pool": 0, "matches": []}
        ]
    assert Path(lake / "only.csv").exists()
