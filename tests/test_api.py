"""The Python face: build, open, match with frames of every kind, evaluate."""

import os
import time

import numpy
import pandas
import polars
import pyarrow
import pytest
from threadpoolctl import threadpool_info
from word_encoder import WordEncoder

import gpumatch
from gpumatch import api, stats
from gpumatch.config import Settings
from gpumatch.errors import MemoryLimitError
from gpumatch.run import Run

LAKE = {
    "a.csv": "city,country\nOslo,Norway\nRome,Italy\n",
    "b.csv": "city,country\nParis,France\nRome,Italy\n",
    "c.csv": "title,artist\nHelp!,Beatles\n",
}
SAMPLED = "1 tables were read in part (more rows than are kept; joins on what the others hold may be missed)"
FRAME = {"city": ["Turin", "Rome"], "country": ["Italy", "Italy"]}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    (folder / "lake").mkdir()
    for name, text in LAKE.items():
        (folder / "lake" / name).write_text(text)
    gpumatch.build(folder / "lake", folder / "idx", layer="L1", cache_dir=folder / "cache")
    return gpumatch.open(folder / "idx", layer="L1", cache_dir=folder / "cache")


@pytest.mark.parametrize(
    "make", [pandas.DataFrame, polars.DataFrame, pyarrow.table, dict], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("task", ["join", "union"])
def test_any_frame_gives_the_same_matches(index, make, task):
    found = index.match(make(FRAME), task=task)
    assert [row["query_table"] for row in found] == ["query"]
    assert [match["table"] for match in found.rows[0]["matches"]][2] == "c.csv"
    assert found.rows == index.match({"query": pyarrow.table(FRAME)}, task=task).rows


def test_frames_are_asked_by_column(index):
    found = index.match(pandas.DataFrame(FRAME), column="country", task="join")
    assert [(row["query_table"], row["query_column"]) for row in found] == [("query", "country")]
    assert [match["columns"][0]["query"] for match in found.rows[0]["matches"][:2]] == [
        {"index": 1, "name": "country"}
    ] * 2
    assert found.rows == index.match(FRAME, column=["city", "country"], task="join").rows[1:]


def test_columns_may_be_named_by_numbers_as_in_frames(index):
    frame = pandas.DataFrame({0: FRAME["city"], 1: FRAME["country"]})
    for column, asked in ((0, ["0"]), ([0, "1"], ["0", "1"]), (frame.columns[1:], ["1"])):
        found = index.match(frame, column=column, task="join")
        assert [row["query_column"] for row in found] == asked
    assert found.rows == index.match(frame.to_dict("list"), column="1", task="join").rows
    for wrong in ([], 1.5, [None], [["0"]], {}):
        with pytest.raises(gpumatch.GpumatchError, match=r"column=.*; give the name of a column, or a list of names"):
            index.match(frame, column=wrong, task="join")


def test_several_named_frames(index):
    found = index.match(
        {"x": pandas.DataFrame(FRAME), "y": pandas.DataFrame({"title": ["Yesterday"]})}, task="union", k=1
    )
    assert [(row["query_table"], row["matches"][0]["table"]) for row in found][1] == ("y", "c.csv")
    assert list(found.to_pandas()["query_table"]) == ["x", "y"]
    assert found.to_polars()["rank"].to_list() == [1, 1]


def test_query_tables_whose_names_are_one_as_text_are_refused(index):
    with pytest.raises(gpumatch.errors.UsageError, match=r"2 query tables are named '1' \(the keys 1, '1'\)"):
        index.match({1: pandas.DataFrame(FRAME), "2": FRAME, "1": pandas.DataFrame({"city": ["Rome"]})}, task="union")


def test_an_index_shows_what_it_holds(index):
    assert repr(index) == f"<Index {index._stored.folder}: 3 tables, 6 columns, no vectors>"


def test_every_table_of_the_lake(index):
    assert index.tables == sorted(LAKE)
    found = index.match(task="join")
    assert len(found) == len(LAKE)
    truth = [{"query_table": "a.csv", "candidate_table": "b.csv"}]
    assert gpumatch.evaluate(found, truth).means["Hit@1"] == 1


def test_a_truth_is_rows_or_their_file(index, tmp_path):
    found, truth = index.match(task="join"), [{"query_table": "a.csv", "candidate_table": "b.csv"}]
    frame = pandas.DataFrame(truth)
    frame.to_csv(tmp_path / "t.csv", index=False)
    for path in (tmp_path / "t.csv", str(tmp_path / "t.csv")):
        assert gpumatch.evaluate(found, path) == gpumatch.evaluate(found, truth)
    with pytest.raises(gpumatch.GpumatchError, match=r"gone\.csv: cannot be read"):
        gpumatch.evaluate(found, tmp_path / "gone.csv")
    for wrong in (frame, polars.DataFrame(truth), {"a.csv": ["b.csv"]}, 3):
        with pytest.raises(
            gpumatch.GpumatchError, match=r"truth is of type .*; give the path of a truth file .*, or a"
        ):
            gpumatch.evaluate(found, wrong)


def test_errors_are_gpumatch_errors(index, tmp_path):
    with pytest.raises(gpumatch.GpumatchError, match="task='join'"):
        index.match(pandas.DataFrame(FRAME))
    for wrong in (3, {"x": 3}, [FRAME]):
        with pytest.raises(gpumatch.GpumatchError, match=r"is of type (int|list); give a path"):
            index.match(wrong, task="join")
    with pytest.raises(gpumatch.GpumatchError, match="'b' is of type int"):
        gpumatch.align(FRAME, 3, layer="L1")
    with pytest.raises(gpumatch.GpumatchError, match="is no index"):
        gpumatch.open(tmp_path)


class Long(WordEncoder):
    def encode(self, texts):
        return super().encode(texts) * 2


def test_what_is_no_table_says_how_tables_are_given(index):
    rows = pandas.DataFrame(FRAME).to_dict("records")
    for wrong in ({"new": rows}, {"new": rows, "old": pandas.DataFrame(FRAME)}, {"old": {"new": rows}}):
        with pytest.raises(gpumatch.GpumatchError, match=r"'new' is a list of dicts; give a table as a frame, such as"):
            index.match(wrong, task="join")
    with pytest.raises(gpumatch.GpumatchError, match=r"'a' is a path, 'b.csv'; give a path alone, queries='b.csv'"):
        index.match({"a": "b.csv"}, task="join")


def test_a_column_that_cannot_be_read_is_named(index):
    bad = {"city": ["Rome"], "x": numpy.array([1j])}
    for frame in (bad, {"x": ["Rome", 1]}):
        with pytest.raises(gpumatch.GpumatchError, match=r"^table 'bad': column 'x': .*; give columns of one type"):
            index.match({"good": pandas.DataFrame(FRAME), "bad": frame}, task="join")
    with pytest.raises(gpumatch.GpumatchError, match=r"'q': .*[Cc]olumn 1.* length"):
        index.match({"q": {"a": pyarrow.array([1]), "b": pyarrow.array([1, 2])}}, task="join")


def test_errors_of_the_cache_and_of_files_are_gpumatch_errors(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.csv").write_text(LAKE["a.csv"])
    given = {"layer": "L1+L2", "encoder": WordEncoder()}
    with pytest.raises(gpumatch.GpumatchError, match=r"^cannot create the cache folder .*choose another folder"):
        gpumatch.build(tmp_path / "a.csv", tmp_path / "idx", cache_dir=tmp_path / "file" / "cache", **given)
    with pytest.raises(gpumatch.GpumatchError, match=r"has norm 1\.9.*, not 1; the encoder is broken"):
        gpumatch.build(
            tmp_path / "a.csv", tmp_path / "idx", cache_dir=tmp_path / "cache", **given | {"encoder": Long()}
        )

    def full(*given):
        raise OSError(28, "No space left on device")

    found = index.match(FRAME, task="join")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(gpumatch.GpumatchError, match=r"No space left .*free space"):
        found.write(tmp_path / "m.csv")


def test_a_frame_and_the_same_data_as_csv_give_the_same_results(index, tmp_path):
    frame = pandas.DataFrame({"city": [f"Rome {i % 7}" for i in range(40)], "people": range(40), "x" * 9_000: "Italy"})
    frame.to_csv(tmp_path / "query", index=False)
    (tmp_path / "query").rename(tmp_path / "query.csv")
    found = [
        index.match(query, task="join", sample_rows=15) for query in ({"query.csv": frame}, tmp_path / "query.csv")
    ]
    assert found[0].rows == found[1].rows
    assert found[0].warnings == found[1].warnings == [f"rows-sampled: {SAMPLED}; query.csv: 15 of 40 rows"]


def test_what_was_not_read_or_found_is_told(tmp_path):
    lake = tmp_path / "lake"
    lake.mkdir()
    (lake / "a.csv").write_text(LAKE["a.csv"])
    (lake / "b.csv").write_text("\n")
    (lake / "queries.csv").write_text("query_table,query_column\na.csv,\na.csv,town\ngone.csv,\n")
    settings = {"layer": "L1", "cache_dir": tmp_path / "cache", "sample_rows": 1}
    built = gpumatch.build(lake, tmp_path / "idx", **settings)
    opened = gpumatch.open(tmp_path / "idx", **settings)
    for one in (built, opened):
        assert [(skipped["name"], skipped["rule"]) for skipped in one.skipped] == [("b.csv", "empty")]
        assert one.warnings == [f"rows-sampled: {SAMPLED}; a.csv: 1 of 2 rows"]
    assert "read" in built.stats["stages"]
    assert "open" in opened.stats["stages"]
    found = opened.match(lake / "queries.csv", task="join")
    assert [len(row["matches"]) for row in found] == [0, 0, 0]
    rules = ["empty", "query-table", "query-column"]
    assert [skipped["rule"] for skipped in found.skipped] == rules
    assert found.skipped[2]["found"] == "it has no column 'town'"
    assert found.warnings == opened.warnings
    (lake / "c.csv").write_text(LAKE["c.csv"])
    assert "tables: 1 added; gpumatch index" in gpumatch.open(tmp_path / "idx", **settings).warnings[0]
    assert found.stats["settings"]["task"] == "join"
    assert gpumatch.Matches([]).skipped == []


def test_a_run_that_goes_over_its_memory_ends(index, tmp_path, monkeypatch):
    runs = []

    class Watched(api.Run):
        def __post_init__(self):
            super().__post_init__()
            runs.append(self)

    class Waiting(WordEncoder):
        def encode(self, texts):
            deadline = time.monotonic() + 5
            while not runs[-1].stats.over_limit and time.monotonic() < deadline:
                time.sleep(0.001)
            return super().encode(texts)

    monkeypatch.setattr(api, "Run", Watched)
    monkeypatch.setattr(stats, "_SAMPLE_SECONDS", 0.001)
    (tmp_path / "a.csv").write_text(LAKE["a.csv"])
    with pytest.raises(MemoryLimitError, match=r"are more than --max-memory 1\.00 MB \(in stage .*--layer L1"):
        gpumatch.build(
            tmp_path / "a.csv", tmp_path / "idx", encoder=Waiting(), max_memory="1MB", cache_dir=tmp_path / "cache"
        )


def test_an_index_that_does_not_fit_is_named(index, tmp_path):
    folder = index._stored.folder
    with pytest.raises(gpumatch.GpumatchError, match=f"^{folder} was indexed for L1.* -o {folder}$"):
        index.match(FRAME, task="join", layer="L1+L2", encoder=None)


def test_only_the_listed_names():
    assert set(gpumatch.__all__) <= set(dir(gpumatch)) | set(gpumatch._HOMES)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = gpumatch.nothing_here


def test_settings_that_cannot_be_are_refused_with_what_is_allowed(index):
    with pytest.raises(gpumatch.GpumatchError, match=r"layer = 'L9', but it takes L1, L1\+L2 or"):
        index.match(FRAME, task="join", layer="L9")
    with pytest.raises(gpumatch.GpumatchError, match="layr is no setting; layer is"):
        gpumatch.build("lake", "idx", layr="L1")


# --- query rows that are not in a file


def test_rows_of_queries_name_tables_of_the_lake(index, tmp_path):
    rows = [{"query_table": "a.csv", "query_column": "city"}, {"query_table": "b.csv"}]
    (tmp_path / "queries.csv").write_text("query_table,query_column\na.csv,city\nb.csv,\n")
    expected = index.match(tmp_path / "queries.csv", task="join").rows
    assert [(row["query_table"], row["query_column"]) for row in expected] == [("a.csv", "city"), ("b.csv", None)]
    for given in (
        rows,
        tuple(rows),
        pandas.DataFrame(rows),
        polars.DataFrame(rows),
        pandas.DataFrame(rows).to_dict("records"),
    ):
        assert index.match(given, task="join").rows == expected
    each = index.match([rows[1] | {"task_type": "union"}])
    assert [(row["query_table"], row["task"]) for row in each] == [("b.csv", "union")]
    words = index.match([{"query_text": "songs"}], task="union")
    assert words[0]["query_text"] == "songs"


def test_every_row_of_a_frame_of_queries_is_one(index):
    frame = pandas.DataFrame({"query_table": ["a.csv", "b.csv"] * 30, "query_column": [pandas.NA, "city"] * 30})
    found = index.match(frame, task="join", sample_rows=5)
    assert [(row["query_table"], row["query_column"]) for row in found] == [("a.csv", None), ("b.csv", "city")] * 30
    assert not found.warnings
    assert found.rows == index.match(frame.to_dict("records"), task="join").rows
    assert found.explain("a.csv", "b.csv", pandas.NA, "join")


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"query_table": "a.csv"}, 3], {}, "queries, row 2: no query_table and no query_text; its fields are none"),
        ([{"query_table": "a.csv"}], {"column": "city"}, "give query_column in the rows, and no column="),
        ([{"query_table": "gone.csv"}], {}, "none of the 1 query tables is in the lake"),
        ([{"query_text": "songs"}], {"min_confidence": 0.5}, "rows with query_text have none"),
    ],
)
def test_rows_that_cannot_be_asked(index, rows, more, said):
    with pytest.raises(gpumatch.GpumatchError, match=said):
        index.match(rows, task="join", **more)


def test_of_columns_of_one_name_the_first_is_asked_and_that_is_told(index):
    frame = pandas.DataFrame([["Rome", "Italy"]], columns=["x", "x"])
    found = index.match(frame, column="x", task="join")
    assert found.warnings == [
        "1 query columns have a name that others of their table have: the first is taken (of query, 'x')"
    ]
    assert not index.match(frame.set_axis(["x", "y"], axis=1), column="x", task="join").warnings


# --- what is set where an index is opened


def test_task_and_k_may_be_set_where_an_index_is_opened(index, monkeypatch):
    place = {"layer": "L1", "cache_dir": index._settings.cache_dir}
    opened = gpumatch.open(index._stored.folder, **place, task="union", k=1)
    assert [(row["task"], len(row["matches"])) for row in opened.match(FRAME)] == [("union", 1)]
    assert [(row["task"], len(row["matches"])) for row in opened.match(FRAME, task="join", k=0)] == [("join", 3)]
    monkeypatch.setenv("GPUMATCH_K", "2")
    assert len(gpumatch.open(index._stored.folder, **place).match(FRAME, task="join")[0]["matches"]) == 2


def test_an_index_for_l1_answers_at_l1(index):
    opened = gpumatch.open(index._stored.folder, cache_dir=index._settings.cache_dir)
    assert opened.match(FRAME, task="join").rows == index.match(FRAME, task="join").rows
    with pytest.raises(gpumatch.GpumatchError, match="L1"):
        gpumatch.open(index._stored.folder, layer="L1+L2").match(FRAME, task="join")


def test_an_encoder_may_be_named(index, tmp_path):
    for make in (
        lambda: gpumatch.build(tmp_path, tmp_path / "idx", encoder=tmp_path / "gone"),
        lambda: gpumatch.align(FRAME, FRAME, encoder=str(tmp_path / "gone")),
    ):
        (tmp_path / "a.csv").write_text(LAKE["a.csv"])
        with pytest.raises(gpumatch.GpumatchError, match="gone"):
            make()


def test_a_lake_is_files_and_an_index_a_folder(index, tmp_path, monkeypatch):
    for lake in (pandas.DataFrame(FRAME), {"a": FRAME}, ["a.csv"]):
        with pytest.raises(gpumatch.GpumatchError, match="a lake is files, and this is a"):
            gpumatch.build(lake, tmp_path / "idx", layer="L1")
    for make in (lambda: gpumatch.build(tmp_path, ""), lambda: gpumatch.open("")):
        with pytest.raises(gpumatch.GpumatchError, match="the index's path is ''"):
            make()
    monkeypatch.setenv("HOME", str(index._stored.folder.parent))
    assert gpumatch.open("~/idx", layer="L1").tables == index.tables


# --- what comes out goes in again


def test_frames_of_matches_go_on(index, tmp_path):
    found = index.match(FRAME, task="join", k=2)
    frame = found.to_pandas()
    assert frame["evidence"][0] == {name: value for name, value in found[0]["matches"][0]["evidence"].items()}
    frame.to_parquet(tmp_path / "frame.parquet")
    first = frame.iloc[0]
    assert found.explain(first.query_table, first.table, first.query_column)
    found.write(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == found.to_json()
    assert (len(found), found[0], found[-1]) == (1, found.rows[0], found.rows[0])


def test_a_truth_from_a_frame_may_lack_columns(index):
    found = index.match([{"query_table": "a.csv"}, {"query_table": "b.csv", "query_column": "city"}], task="join")
    truth = [("a.csv", "b.csv", None), ("b.csv", "a.csv", "city")]
    frame = pandas.DataFrame(truth, columns=["query_table", "candidate_table", "query_column"])
    frame.loc[0, "query_column"] = float("nan")
    assert gpumatch.evaluate(found, frame.to_dict("records")).n_queries == 2


def test_alignments_are_compared_as_objects():
    one, other = (gpumatch.align(FRAME, FRAME, layer="L1") for _ in range(2))
    assert one != other
    assert len({one, other}) == 2


# --- values of frames


def test_numbers_in_frames_are_as_in_files(tmp_path):
    """pandas turns whole numbers into floats where one is missing, and Arrow writes large and small floats shortly."""
    large, small = numpy.arange(40) * 977 + 123_456_789_012, numpy.arange(1, 41) ** 2 / 10**7
    (tmp_path / "a.csv").write_text("id,p\n" + "".join(f"{i},{p:.7f}\n" for i, p in zip(large, small, strict=True)))
    frame = pandas.DataFrame({"id": [*large.tolist(), None], "p": [*small.tolist(), None]})
    assert frame["id"].dtype == float
    for given in (frame, frame.astype("category"), polars.DataFrame({name: frame[name].tolist() for name in frame})):
        alike = gpumatch.align(tmp_path / "a.csv", given, layer="L1").alike
        assert alike[0, 0] > 0.9
        assert alike[1, 1] > 0.9


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (pandas.period_range("2019-01", periods=2, freq="M"), ["2019-01", "2019-02"]),
        (pandas.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
        (pandas.Categorical([1e11, None]), ["100000000000", None]),
    ],
    ids=["periods", "intervals", "categories"],
)
def test_pandas_own_types_are_as_they_are_shown(column, cells):
    (table,) = api._tables({"t": pandas.DataFrame({"x": column})}, Run(Settings(layer="L1")))
    assert table.columns[0].to_pylist() == cells


def test_what_can_be_used_is_listed():
    assert set(gpumatch.__all__) <= set(dir(gpumatch))


# --- what a run leaves as it was


def thread_limits():
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return blas, pyarrow.cpu_count(), os.environ.get("RAYON_NUM_THREADS")


def test_limits_of_threads_end_with_the_last_run(index, monkeypatch):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    before, meanwhile = thread_limits(), []
    real = api.pipeline.match

    def match(*args, **more):
        meanwhile.append(thread_limits())
        if len(meanwhile) == 1:  # another run begins and ends within this one
            index.match(FRAME, task="join", threads=2)
            assert thread_limits() != before
        return real(*args, **more)

    monkeypatch.setattr(api.pipeline, "match", match)
    index.match(FRAME, task="join", threads=1)
    assert [(arrow, rayon) for _, arrow, rayon in meanwhile] == [(1, "1"), (2, "1")]
    assert set(meanwhile[0][0]) == {1}
    assert thread_limits() == before
    with pytest.raises(gpumatch.GpumatchError):
        index.match(FRAME, task="join", threads=1, column="gone")
    assert thread_limits() == before
