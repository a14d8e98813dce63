"""Matches as JSON Lines, Arrow, pandas and polars: the same answers in each."""

from __future__ import annotations

import json
import sys

import pytest

from gpumatch.errors import GpumatchError
from gpumatch.results import Matches, to_line


def column(index, name):
    return {"index": index, "name": name}


def match(table, score, layer="L2", columns=(), evidence=None):
    return {
        "table": table,
        "score": score,
        "confidence": 0.25,
        "layer": layer,
        "columns": [{"query": q, "candidate": c, "score": s} for q, c, s in columns],
        "evidence": evidence or {},
    }


ROWS = [
    {
        "query_table": "a.csv",
        "query_column": None,
        "task": "union",
        "matches": [
            match(
                "b.csv",
                1 / 3,
                columns=[(column(0, "id"), column(2, "Id"), 1.0), (column(1, "été 😀\u2028"), column(0, ""), 0.1234)],
                evidence={"name_cosine": 0.5, "dense_maxsim": -0.0001},
            ),
            match("c\nd.csv", -0.25, evidence={"name_cosine": 0.0}),
        ],
    },
    {"query_table": "nothing.csv", "query_column": None, "task": "join", "matches": []},
    {
        "query_table": '"odd" \\ 表\r\x85\x00',
        "query_column": "id",
        "query_text": "ids",
        "task": "join",
        "matches": [match("b.csv", 1e-06, "L1", [(column(0, "id"), column(0, "id"), 1.0)], {"same": 1.0})],
    },
]
FLAT = [
    ("a.csv", None, None, "union", 1, "b.csv", 1 / 3, 0.25, "L2"),
    ("a.csv", None, None, "union", 2, "c\nd.csv", -0.25, 0.25, "L2"),
    (ROWS[2]["query_table"], "id", "ids", "join", 1, "b.csv", 1e-06, 0.25, "L1"),
]
NAMES = ["query_table", "query_column", "query_text", "task", "rank", "table", "score", "confidence", "layer"]


def flat_matches(rows):
    return [one for row in rows for one in row["matches"]]


def test_json_lines_come_back_the_same(tmp_path):
    text = Matches(ROWS).to_json()
    assert [json.loads(line) for line in text.split("\n")[:-1]] == ROWS
    assert text.endswith("\n")
    (tmp_path / "out.jsonl").write_bytes(text.encode())
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]] == ROWS
    assert "été" in text  # written as text, not as escapes
    assert text == "".join(to_line(row) for row in ROWS)
    assert json.loads(text.split("\n")[0]).keys() == ROWS[0].keys()


def test_a_score_keeps_every_bit(tmp_path):
    rows = [{**ROWS[1], "matches": [match("t", score) for score in (0.1 + 0.2, 5e-324, 1.7976931348623157e308)]}]
    (tmp_path / "out.jsonl").write_text(Matches(rows).to_json())
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]] == rows


def test_a_repr_is_one_line():
    assert repr(Matches(ROWS)) == f"<Matches: {len(ROWS)} queries, {sum(len(row['matches']) for row in ROWS)} matches>"


def test_length_and_order():
    matches = Matches(ROWS)
    assert len(matches) == 3
    assert list(matches) == ROWS
    assert len(Matches([])) == 0
    assert Matches([]).to_json() == ""


def test_arrow_has_one_row_a_match():
    table = Matches(ROWS).to_arrow()
    assert table.column_names == [*NAMES, "columns", "evidence", "verdict"]
    found = table.to_pylist()
    assert [tuple(row[name] for name in NAMES) for row in found] == FLAT
    for row, one in zip(found, flat_matches(ROWS), strict=True):
        assert row["columns"] == one["columns"]
        assert dict(row["evidence"]) == one["evidence"]


def test_pandas_has_the_same_rows():
    frame = Matches(ROWS).to_pandas()
    assert list(frame.columns) == [*NAMES, "columns", "evidence", "verdict"]
    found = [tuple(None if value != value else value for value in row) for row in frame[NAMES].itertuples(index=False)]
    assert found == FLAT
    for columns, evidence, one in zip(frame["columns"], frame["evidence"], flat_matches(ROWS), strict=True):
        assert list(columns) == one["columns"]
        assert dict(evidence) == one["evidence"]


def test_polars_has_the_same_rows():
    frame = Matches(ROWS).to_polars()
    assert frame.columns == [*NAMES, "columns", "evidence", "verdict"]
    assert frame.select(NAMES).rows() == FLAT
    for row, one in zip(frame.to_dicts(), flat_matches(ROWS), strict=True):
        assert row["columns"] == one["columns"]
        evidence = row["evidence"]
        as_dict = evidence if isinstance(evidence, dict) else {item["key"]: item["value"] for item in evidence}
        assert as_dict == one["evidence"]


@pytest.mark.parametrize("rows", [[], ROWS[1:2]])
def test_no_matches_keep_their_columns(rows):
    matches = Matches(rows)
    assert matches.to_arrow().schema == Matches(ROWS).to_arrow().schema
    assert matches.to_arrow().num_rows == 0
    names = [*NAMES, "columns", "evidence", "verdict"]
    assert list(matches.to_pandas().columns) == matches.to_polars().columns == names


def test_without_polars_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(GpumatchError, match=r"pip install 'gpumatch\[frames\]'"):
        Matches(ROWS).to_polars()


def test_names_that_are_no_unicode_can_be_written():
    # A file name in Latin-1 reaches Python with a lone surrogate; one such file must not end a run.
    row = {**ROWS[1], "query_table": "caf\udce9.csv"}
    assert json.loads(to_line(row).encode()) == row
