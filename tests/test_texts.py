"""What is looked for in words: its signals against their formulas, its rows against the product, and whole runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from gpumatch import pipeline
from gpumatch.blocks import HASHED, table_layout
from gpumatch.cli import app
from gpumatch.config import Settings
from gpumatch.errors import UsageError
from gpumatch.explain import explain
from gpumatch.index import Index
from gpumatch.kernels.backends import TorchBackend
from gpumatch.metrics import evaluate, pool_recall
from gpumatch.recipes import UNKNOWN, recipe_for
from gpumatch.records import load_truth
from gpumatch.results import to_line
from gpumatch.run import Run
from gpumatch.search import search_tables, table_rows
from gpumatch.text import spelled, words
from gpumatch.texts import Texts, text_rows, text_signals

SAID = ["city population", "the Total_area of a City in Oslo", "nobody says this", "populationByCity", "1 2 3", "col 1"]
SIGNALS = ["text_names", "text_values", "text_header"]


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module", params=["handmade", 0], ids=str)
def world(request, oracle):
    specs = oracle.handmade()[0] if request.param == "handmade" else oracle.random_lake(request.param)[0]
    tables, lake = oracle.table_set(specs, 0)
    vectors = np.random.default_rng(3).normal(size=(len(SAID), lake.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return tables, Index.of(lake, {}), Texts.of(SAID, vectors)


def every_pair(index, texts):
    n = index.lake.profiles.n_tables
    text, table = np.repeat(np.arange(len(texts.words)), n), np.tile(np.arange(n), len(texts.words))
    order = np.random.default_rng(0).permutation(len(text))
    return text[order], table[order]


# --- signals


def idf_of(columns):
    """What a word weighs, of a list with the words of every column."""
    df = {}
    for column in columns:
        for word in set(column):
            df[word] = df.get(word, 0) + 1
    return lambda word: 1 + math.log((1 + len(columns)) / (1 + df.get(word, 0)))


def share(text, has, idf):
    said = set(words(spelled(text)))
    return sum(idf(word) for word in said if word in has) / sum(map(idf, said)) if said else 0.0


def named_columns(index, table):
    profiles, terms = index.lake.profiles, index.lake.terms
    columns = range(profiles.table_cols[table], profiles.table_cols[table + 1])
    return [c for c in columns if terms.named[c]], len(columns)


def test_names_are_compared_by_the_share_of_the_texts_words(world):
    _, index, texts = world
    profiles, every = index.lake.profiles, range(index.lake.profiles.n_tables)
    said = [words(spelled(header)) for header in profiles.headers]
    named = [named_columns(index, table)[0] for table in every]
    idf = idf_of([said[c] for some in named for c in some])
    pairs = every_pair(index, texts)
    for text, table, got in zip(*pairs, text_signals(texts, index, *pairs, SIGNALS), strict=True):
        if not named[table] and named_columns(index, table)[1]:
            assert np.isnan(got[0])
            assert np.isnan(got[2])
            continue
        has = {word for c in named[table] for word in said[c]}
        assert got[0] == pytest.approx(share(SAID[text], has, idf), abs=1e-5)
        header = index.lake.vectors.rows[index.lake.vectors.header[table]].astype(np.float64)
        assert got[2] == pytest.approx(max(0, float(header @ texts.vectors[text])), abs=1e-3)


def test_values_are_compared_by_the_share_of_the_texts_words(world):
    tables, index, texts = world
    tokens = [[list(column.tokens) for column in table.columns] for table in tables]
    idf = idf_of([column for table in tokens for column in table])
    text, table = every_pair(index, texts)
    got = text_signals(texts, index, text, table, ["text_values"])[:, 0]
    expected = [
        share(SAID[i], {w for column in tokens[j] for w in column}, idf) for i, j in zip(text, table, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert got.max() > 0.2


def test_signals_come_in_the_order_that_is_asked_for(world):
    _, index, texts = world
    pairs = every_pair(index, texts)
    one, other = text_signals(texts, index, *pairs, SIGNALS), text_signals(texts, index, *pairs, SIGNALS[::-1])
    np.testing.assert_array_equal(one, other[:, ::-1])
    none = np.empty(0, np.int64)
    assert text_signals(texts, index, none, none, SIGNALS).shape == (0, 3)


def test_a_header_needs_vectors(world):
    _, index, texts = world
    with pytest.raises(ValueError, match="there are no vectors"):
        text_signals(Texts(texts.words, None), index, np.array([0]), np.array([0]), ["text_header"])


# --- rows


def test_a_texts_row_is_its_words_and_its_vector(world):
    _, index, texts = world
    blocks = recipe_for("text", "L1+L2").blocks
    rows = text_rows(texts, np.array([1, -1, 0, 1]), index, blocks)
    layout = table_layout(index.lake.dim)
    assert rows.shape == (4, layout.width)
    assert (rows[1] == 0).all()
    np.testing.assert_array_equal(rows[0], rows[3])
    for block, (start, stop) in layout.spans.items():
        length = np.linalg.norm(rows[2, start:stop])
        assert length == pytest.approx(blocks.get(block, 0), abs=1e-5)
    start = layout.spans["header"][0]
    assert np.count_nonzero(rows[2, start : start + HASHED]) == 2  # "city population"
    lexical = text_rows(Texts(texts.words, None), np.array([0]), index, recipe_for("text", "L1").blocks)
    assert (lexical[:, layout.spans["header_text"][0] :] == 0).all()


def test_a_text_beside_a_table_adds_up(world):
    _, index, texts = world
    n = index.lake.profiles.n_tables
    which, every, nothing = np.arange(n) % len(SAID), np.arange(n), np.full(n, -1)
    recipe = recipe_for("union", "L1+L2")
    rows = text_rows(texts, which, index, recipe_for("text", "L1+L2").blocks)

    def scores(*found):
        ids, score = found
        return np.take_along_axis(score, np.argsort(ids, axis=1), axis=1)

    of_table = table_rows(index, index.lake, every, recipe)
    backend = TorchBackend("cpu", 1)
    own, of_text, both = (
        scores(*search_tables(index, wanted, n, nothing, backend)) for wanted in (of_table, rows, of_table + rows)
    )
    np.testing.assert_allclose(both, own + of_text, rtol=0, atol=5e-6)
    assert np.abs(of_text).max() > 0.5


# --- whole runs

LAKE = {
    "people.csv": "municipality,age_group,population\nOslo,0-5,100\nBergen,6-12,90\n",
    "people2.csv": "municipality,age_group,population\nRome,0-5,100\nMilan,6-12,90\n",
    "songs.csv": "title,artist,seconds\nHelp!,Beatles,138\nYesterday,Beatles,125\n",
    "roads.csv": "road,length,surface\nE6,3000,asphalt\nE18,1900,asphalt\n",
    "blank.csv": "col_1,col_2\nOslo,1\nRome,2\n",
}
TEXT = "population by age group and municipality"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def lake(tmp_path):
    folder = tmp_path / "lake"
    folder.mkdir()
    for name, text in LAKE.items():
        (folder / name).write_text(text)
    return folder


def ask(lake, cache, queries, *, offset=0, max_queries=None, **settings):
    path = lake.parent / "q.json"
    path.write_text(json.dumps(queries))
    run = Run(Settings(**{"task": "union", "k": 0, "cache_dir": cache} | settings))
    return list(pipeline.match(lake, run, queries=path, offset=offset, max_queries=max_queries))


@pytest.mark.parametrize("layer", ["L1", "L1+L2"])
@pytest.mark.parametrize("task", ["join", "union"])
def test_a_text_alone_finds_its_tables(lake, cache, layer, task):
    (row,) = ask(lake, cache, [{"query_text": TEXT}], task=task, layer=layer)
    assert list(row) == ["query_table", "query_column", "query_text", "task", "pool", "matches"]
    assert (row["query_table"], row["query_column"], row["query_text"], row["task"]) == (None, None, TEXT, task)
    assert row["pool"] == len(row["matches"]) == len(LAKE)
    assert [match["table"] for match in row["matches"][:2]] == ["people.csv", "people2.csv"]
    weights = recipe_for("text", layer).weights
    for match in row["matches"]:
        assert match["evidence"].keys() == weights.keys()
        assert match["columns"] == []
        assert match["layer"] == ("L1" if layer == "L1" else "L2")
        known = {name: value for name, value in match["evidence"].items() if value is not None}
        total = sum(weight * (1 if name in known else UNKNOWN) for name, weight in weights.items())
        assert match["score"] == pytest.approx(sum(weights[n] * v for n, v in known.items()) / total, abs=2e-4)
    blank = next(match for match in row["matches"] if match["table"] == "blank.csv")
    assert blank["evidence"]["text_names"] is None


def test_values_are_found_too(lake, cache):
    (row,) = ask(lake, cache, [{"query_text": "songs of the Beatles"}], layer="L1")
    assert row["matches"][0]["table"] == "songs.csv"
    assert row["matches"][0]["evidence"]["text_values"] > 0


@pytest.mark.parametrize("layer", ["L1", "L1+L2"])
@pytest.mark.parametrize("task", ["join", "union"])
def test_a_text_beside_a_table_adds_its_signals_at_their_weights(lake, cache, layer, task):
    alone, text, both = ask(
        lake,
        cache,
        [{"query_table": "songs.csv"}, {"query_text": TEXT}, {"query_table": "songs.csv", "query_text": TEXT}],
        task=task,
        layer=layer,
    )
    weights = recipe_for(task, layer).weights | recipe_for("text", layer).weights
    assert both["weights"] == weights | {"density": recipe_for(task, layer).density}
    assert (both["query_table"], both["query_text"]) == ("songs.csv", TEXT)
    evidence = [{match["table"]: match["evidence"] for match in row["matches"]} for row in (alone, text, both)]
    assert {name: evidence[0][name] | evidence[1][name] for name in evidence[0]} == evidence[2]
    after, meant = [match["table"] for match in both["matches"]], {"people.csv", "people2.csv"}
    assert set(after[:2]) == meant
    scores = [{match["table"]: match["score"] for match in row["matches"]} for row in (alone, both)]
    before, now = (min(of[table] for table in meant) - max(of[table] for table in of.keys() - meant) for of in scores)
    assert now > max(before, 0)  # the text brings them further ahead of all others
    assert "songs.csv" not in after
    if task == "join":
        for match in both["matches"]:
            known = {name: value for name, value in match["evidence"].items() if value is not None}
            total = sum(weight * (1 if name in known else UNKNOWN) for name, weight in weights.items())
            score = sum(weights[name] * value for name, value in known.items()) / total
            assert match["score"] == pytest.approx(score, abs=2e-4)


def test_a_text_beside_a_column(lake, cache):
    queries = [{"query_table": "people.csv", "query_column": "municipality", "query_text": "songs of the Beatles"}]
    (row,) = ask(lake, cache, queries, task="join", layer="L1")
    assert row["weights"].keys() >= {"named_containment", "text_names", "text_values"}
    songs = next(match for match in row["matches"] if match["table"] == "songs.csv")
    assert songs["evidence"]["text_values"] > 0
    assert songs["columns"][0]["query"]["name"] == "municipality"


def test_rows_without_a_text_are_what_they_were(lake, cache):
    plain = ask(lake, cache, [{"query_table": "people.csv"}, {"query_table": "roads.csv"}])
    mixed = ask(lake, cache, [{"query_table": "people.csv"}, {"query_text": TEXT}, {"query_table": "roads.csv"}])
    assert [to_line(row) for row in plain] == [to_line(mixed[0]), to_line(mixed[2])]


def test_batches_and_parts_give_the_same_lines(lake, cache):
    queries = [
        {"query_table": name, "query_text": text} if name else {"query_text": text}
        for text in (TEXT, "roads", "songs of the Beatles")
        for name in (None, "people.csv", "roads.csv")
    ]
    whole = ask(lake, cache, queries, k=2, layer="L1")
    assert [row["query_text"] for row in whole] == [query["query_text"] for query in queries]
    for batch in (1, 4):
        assert [row["matches"] for row in ask(lake, cache, queries, k=2, batch=batch, layer="L1")] == [
            row["matches"] for row in whole
        ]
    part = ask(lake, cache, queries, k=2, layer="L1", offset=2, max_queries=4)
    assert [to_line(row) for row in part] == [to_line(row) for row in whole[2:6]]


def test_a_text_whose_table_is_not_there_has_no_matches(lake, cache):
    gone, text = ask(lake, cache, [{"query_table": "gone.csv", "query_text": TEXT}, {"query_text": TEXT}], layer="L1")
    assert gone["matches"] == []
    assert text["matches"]


def test_texts_have_no_confidence_to_go_by(lake, cache):
    (row,) = ask(lake, cache, [{"query_text": TEXT}], layer="L1")
    assert {match["confidence"] for match in row["matches"]} == {None}
    with pytest.raises(UsageError, match=r"^--min-confidence goes by .* rows with query_text, as in .* have none"):
        ask(lake, cache, [{"query_table": "songs.csv"}, {"query_text": TEXT}], layer="L1", min_confidence=0.5)


def test_a_lake_of_no_tables_that_match_and_an_index(lake, cache, tmp_path):
    pipeline.update_index(lake, tmp_path / "idx", Run(Settings(cache_dir=cache)))
    (tmp_path / "q.csv").write_text(f"query_text\n{TEXT}\n")
    run = Run(Settings(task="union", k=0, cache_dir=cache))
    from_index = list(pipeline.match(tmp_path / "idx", run, queries=tmp_path / "q.csv"))
    assert from_index == ask(lake, cache, [{"query_text": TEXT}])


def test_results_of_texts_are_scored_and_explained(lake, cache, tmp_path):
    queries = [{"query_text": TEXT}, {"query_table": "songs.csv", "query_text": TEXT}, {"query_table": "songs.csv"}]
    rows = ask(lake, cache, queries, layer="L1")
    truth = tmp_path / "truth.csv"
    truth.write_text(
        f"query_table,query_text,candidate_table\n,{TEXT},people.csv\n,{TEXT},people2.csv\n"
        f"songs.csv,{TEXT},people.csv\nsongs.csv,,roads.csv\nsongs.csv,,songs.csv\n"
    )
    found = evaluate(rows, load_truth(truth), resamples=10)
    assert (found.n_queries, found.n_unanswered, found.coverage) == (3, 0, 1)
    assert pool_recall(rows, load_truth(truth), resamples=10).recall == 1
    only = evaluate(rows[:1], load_truth(truth), resamples=10, queries=[("\0" + TEXT, None)])
    assert only.means["Hit@1"] == only.means["R@5"] == 1
    for row in rows[:2]:
        explained = explain([row], TEXT, "people.csv")
        assert explained.query_table == (row["query_table"] or TEXT)
        assert {"text_names", "text_values"} <= {part.signal for part in explained.parts}
        total = sum(part.contribution for part in explained.parts) + explained.density
        assert total == pytest.approx(explained.score, abs=1e-3)
    with pytest.raises(UsageError, match="none of the 3 query tables"):
        explain(rows, "other words", "people.csv")


def test_a_stopped_run_depends_on_the_texts(lake, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(cache))
    match, out = pipeline.match, tmp_path / "out.jsonl"
    queries = tmp_path / "q.csv"

    def run(*more):
        command = ["match", lake, "--task", "union", "--layer", "L1", "--queries", queries, "-o", out, *more]
        return CliRunner().invoke(app, [str(part) for part in command])

    def breaks(*arguments, **options):
        yield next(match(*arguments, **options))
        raise OSError("disk on fire")

    for second, says in (("roads", "has 1 rows of this run already"), ("songs", "was begun with another queries")):
        queries.write_text("query_text\nroads\nroads\n")
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "match", breaks)
            assert run("-q").exit_code == 1
        queries.write_text(f"query_text\nroads\n{second}\n")
        found = run()
        assert found.exit_code == 0
        assert says in " ".join(found.stderr.split())
        assert [json.loads(line)["query_text"] for line in out.read_text().splitlines()] == ["roads", second]


def test_explain_with_a_lake_needs_no_table_of_a_text(lake, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(cache))
    rows = ask(lake, cache, [{"query_text": TEXT}], layer="L1")
    (tmp_path / "out.jsonl").write_text("".join(map(to_line, rows)))
    command = ["explain", tmp_path / "out.jsonl", TEXT, "people.csv", "--lake", lake]
    found = CliRunner().invoke(app, [str(part) for part in command])
    assert found.exit_code == 0
    assert "text_names" in found.stdout
    assert "no columns match" in found.stdout
