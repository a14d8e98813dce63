"""Results for people: a page in which names are text, a table in which they are no formulas, and Arrow on disk."""

import csv
import io
import json
import sys
from html.parser import HTMLParser

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from gpumatch.cli import app, main
from gpumatch.errors import UsageError
from gpumatch.results import Matches

BAD = "<script>alert(1)</script>\" onload='x' \x1b[31m&amp;\u202e"


def row(query="q.csv", tables=("a.csv", "b.csv"), **more):
    pair = {"query": {"index": 0, "name": query}, "candidate": {"index": 1, "name": tables[0]}, "score": 1.0}
    matches = [
        {
            "table": table, "score": 0.5, "confidence": 0.25, "layer": "L1", "columns": [pair],
            "evidence": {"name_cosine": 0.125, "containment": None},
        }
        for table in tables
    ]  # fmt: skip
    return {"query_table": query, "query_column": None, "task": "join", "matches": matches, **more}


FOREIGN = {"query_table": "q", "matches": [{"table": "a", "score": 1}]}


class Page(HTMLParser):
    """The tags of a page and its text, by the element that it stands in."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_every_match_and_fetches_nothing():
    page = Page(Matches([row(), row("r.csv", ("c.csv",), query_column="id", query_text="by year")]).to_html())
    said = " ".join(" ".join(page.texts).split())
    assert "2 queries, 3 matches" in said
    assert "q.csv = a.csv name_cosine 0.12" in said
    for text in ("q.csv", "r.csv · by year", "id", "0.5000", "0.25", "c.csv"):
        assert text in said
    tags = [tag for tag, _ in page.tags]
    assert tags.count("details") == 2
    assert not {"script", "link", "img", "iframe", "a"} & set(tags)
    (policy,) = (found["content"] for tag, found in page.tags if "http-equiv" in found)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_names_are_text_wherever_they_stand():
    matched = row(BAD, (BAD, BAD), query_column=BAD, query_text=BAD, task=BAD)
    matched["matches"][0]["evidence"] = {BAD: 1.0}
    matched["matches"][0]["verdict"] = {"says": BAD, "words": BAD}
    places = 5 + 2 + 2 + 3  # the query and its best match, tables, pairs of columns; a signal, a verdict, its words
    for text in (Matches([matched]).to_html(), Matches([matched])._repr_html_()):
        page = Page(text)
        assert "script" not in [tag for tag, _ in page.tags]
        assert all(
            set(found) <= {"class", "value", "lang", "charset", "name", "content", "http-equiv"}
            for _, found in page.tags
        )
        assert "".join(page.texts).count("<script>alert(1)</script>") == places
        assert all(line.isprintable() for line in text.splitlines())


def test_names_are_shown_as_they_are_written():
    name = "東京\u3000人口 n\u00b0\u00a05 می\u200cخواهم.csv"
    matched = row(name)
    assert name in Page(Matches([matched]).to_html()).texts
    matched = row("a\u202ecsv.exe\x1b[0m\ud800")
    text = Matches([matched]).to_html()
    assert "a\\u202ecsv.exe\\x1b[0m\\ud800" in Page(text).texts
    text.encode()


def test_a_notebook_is_shown_the_first():
    shown = Matches([row(f"q{n}.csv", [f"t{m}.csv" for m in range(30)]) for n in range(7)])._repr_html_()
    assert "q4.csv" in shown
    assert "q5.csv" not in shown
    assert "t9.csv" in shown
    assert "t10.csv" not in shown
    assert "… and 2 more queries" in shown


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_of_a_spreadsheet_is_a_formula(formula):
    lines = list(csv.DictReader(io.StringIO(Matches([row(formula, (formula, "b"))]).to_csv(), newline="")))
    assert [line["rank"] for line in lines] == ["1", "2"]
    told = f"'{formula}".replace("\r", r"\r")
    assert (lines[0]["query_table"], lines[0]["table"]) == (told, told)
    assert lines[1]["table"] == "b"
    assert lines[1]["score"] == "0.5"


def test_no_escape_sequence_stays_in_a_csv():
    assert r"\x1b[31m" in Matches([row(BAD)]).to_csv()
    assert "\x1b" not in Matches([row(BAD, (BAD, "b"))]).to_csv()


def test_results_of_other_systems_are_shown_as_far_as_they_go():
    bad = FOREIGN | {
        "matches": [FOREIGN["matches"][0] | {"columns": "x", "evidence": 7, "verdict": 1, "confidence": "y"}]
    }
    for rows in ([FOREIGN], [bad]):
        assert "<td>a<td" in Matches(rows).to_html()
        assert Matches(rows).to_csv().splitlines()[1].startswith("q,,,,1,a,1")
    assert Matches([FOREIGN]).to_arrow().to_pylist()[0]["table"] == "a"
    with pytest.raises(UsageError, match="not as gpumatch match writes them"):
        Matches([bad]).to_arrow()


def test_a_name_that_is_no_unicode_is_written_as_far_as_it_goes(tmp_path):
    matches = Matches([row("a\udcff")])
    for kind in ("html", "csv", "parquet"):
        matches.write(tmp_path / f"out.{kind}")
    assert parquet.read_table(tmp_path / "out.parquet")["query_table"][0].as_py() == "a?"
    assert r"a\udcff" in (tmp_path / "out.csv").read_text()


def test_the_command_writes_the_kind_that_the_name_says(tmp_path, monkeypatch, capsys):
    rows = [row(), row(task="union")]  # a query may be there for both tasks
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    matches = Matches(rows)
    for kind in ("jsonl", "html", "csv", "parquet"):
        out = tmp_path / "new" / f"out.{kind}"
        assert CliRunner().invoke(app, ["report", str(tmp_path / "r.jsonl"), "-o", str(out)]).exit_code == 0
        if kind == "parquet":
            assert parquet.read_table(out).equals(matches.to_arrow())
        else:
            assert (
                out.read_bytes()
                == {"jsonl": matches.to_json(), "html": matches.to_html(), "csv": matches.to_csv()}[kind].encode()
            )
    matches.write_html(tmp_path / "page")
    assert (tmp_path / "page").read_text() == matches.to_html()
    monkeypatch.setattr(sys, "argv", ["gpumatch", "report", str(tmp_path / "r.jsonl"), "-o", "out.xls"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert (
        capsys.readouterr().err
        == "gpumatch: cannot write out.xls: give a name that ends in .jsonl, .html, .csv, .parquet\n"
    )
