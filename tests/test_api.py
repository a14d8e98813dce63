"""The Python face: build, open, match with frames of every kind, evaluate."""

import pandas
import polars
import pyarrow
import pytest

import gpumatch

LAKE = {
    "a.csv": "city,country\nOslo,Norway\nRome,Italy\n",
    "b.csv": "city,country\nParis,France\nRome,Italy\n",
    "c.csv": "title,artist\nHelp!,Beatles\n",
}
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


def test_several_named_frames(index):
    found = index.match(
        {"x": pandas.DataFrame(FRAME), "y": pandas.DataFrame({"title": ["Yesterday"]})}, task="union", k=1
    )
    assert [(row["query_table"], row["matches"][0]["table"]) for row in found][1] == ("y", "c.csv")
    assert list(found.to_pandas()["query_table"]) == ["x", "y"]
    assert found.to_polars()["rank"].to_list() == [1, 1]


def test_every_table_of_the_lake(index):
    assert index.tables == sorted(LAKE)
    found = index.match(task="join")
    assert len(found) == len(LAKE)
    truth = [{"query_table": "a.csv", "candidate_table": "b.csv"}]
    assert gpumatch.evaluate(found, truth).means["Hit@1"] == 1


def test_errors_are_gpumatch_errors(index, tmp_path):
    with pytest.raises(gpumatch.GpumatchError, match="task='join'"):
        index.match(pandas.DataFrame(FRAME))
    with pytest.raises(gpumatch.GpumatchError, match="is no index"):
        gpumatch.open(tmp_path)


def test_only_the_listed_names():
    assert set(gpumatch.__all__) <= set(dir(gpumatch)) | set(gpumatch._HOMES)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = gpumatch.nothing_here


def test_settings_that_cannot_be_are_refused_with_what_is_allowed(index):
    with pytest.raises(gpumatch.GpumatchError, match=r"layer = 'L9', but it takes L1, L1\+L2 or"):
        index.match(FRAME, task="join", layer="L9")
    with pytest.raises(gpumatch.GpumatchError, match="layr is no setting; layer is"):
        gpumatch.build("lake", "idx", layr="L1")
