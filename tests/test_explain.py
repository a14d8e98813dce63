"""Why a match is there: what is said adds up to the score, and names columns, shared values and the next match."""

import json
import re
import shutil
import sys

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import gpumatch
from gpumatch.cli import app, main
from gpumatch.errors import UsageError
from gpumatch.explain import explain, with_shared_values
from gpumatch.lake import Table
from gpumatch.recipes import SIGNALS, recipe_for
from gpumatch.terminal import explanation_text

LAKE = {
    "a.csv": "city,country\nOslo,Norway\nRome,Italy\nBonn,Germany\n",
    "b.csv": "city,country\nParis,France\nROME, italy \nbonn,Germany\n",
    "c.csv": "title,artist\nHelp!,Beatles\n",
    "d.csv": "city,land,area\nRome,Italy,1\nKyiv,Ukraine,2\n",
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    for name, text in LAKE.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def index(lake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain-index")
    return gpumatch.build(lake, folder / "idx", cache_dir=folder / "cache")


@pytest.mark.parametrize("layer", ["L1", "L1+L2"])
@pytest.mark.parametrize("task", ["join", "union"])
def test_contributions_and_density_are_the_score(index, task, layer):
    matches = index.match(task=task, k=0, layer=layer)
    for row in matches:
        for rank, match in enumerate(row["matches"], start=1):
            found = matches.explain(row["query_table"], match["table"])
            assert (found.rank, found.of, found.score) == (rank, len(row["matches"]), match["score"])
            assert sum(part.contribution for part in found.parts) + found.density == pytest.approx(
                found.score, abs=1e-3
            )
            assert {part.signal: part.weight for part in found.parts} == recipe_for(task, layer).weights
            assert all(part.formula == SIGNALS[part.signal].formula for part in found.parts)
            assert (found.density == 0) == (task == "join") or found.density <= 1e-3
            assert found.columns == match["columns"]
            assert found.confidence == match["confidence"]


@pytest.mark.parametrize("task", ["join", "union"])
def test_the_lead_is_the_difference_to_the_next(index, task):
    matches = index.match(task=task, k=0)
    for row in matches:
        for match, after in zip(row["matches"], row["matches"][1:], strict=False):
            found = matches.explain(row["query_table"], match["table"])
            assert found.runner_up == after["table"]
            assert sum(gap for _, gap in found.lead) == pytest.approx(match["score"] - after["score"], abs=1e-3)
            assert [abs(gap) for _, gap in found.lead] == sorted((abs(gap) for _, gap in found.lead), reverse=True)
        assert matches.explain(row["query_table"], row["matches"][-1]["table"]).runner_up is None


def result(query="q", column=None, task="join", tables=("x", "y"), names=("name_overlap",)):
    weights = recipe_for("column" if column else task, "L1+L2").weights
    evidence = {name: (1.0 if name in names else 0.0) for name in weights}
    matches = [{"table": t, "score": 1.0, "layer": "L1", "columns": [], "evidence": evidence} for t in tables]
    return {"query_table": query, "query_column": column, "task": task, "matches": matches}


def test_rows_of_column_queries_are_told_apart_by_their_column():
    rows = [result(column="a", tables="xy"), result(column="b", tables="yz")]
    for column in "ab":
        assert explain(rows, "q", "y", column).query_column == column
    assert explain(rows[:1], "q", "x").query_column == "a"
    with pytest.raises(UsageError, match=r"'y' is a match of 'q' for several columns \(a, b\); add --column"):
        explain(rows, "q", "y")
    with pytest.raises(UsageError, match="not asked for column 'c' but for a, b"):
        explain(rows, "q", "y", "c")
    with pytest.raises(UsageError, match=r"'x' is none of the 2 matches of 'q' \(the first: y, z\)"):
        explain(rows, "q", "x", "b")
    assert explain([*rows, result()], "q", "y").query_column is None


def test_of_several_rows_the_one_that_lists_the_match_is_explained():
    rows = [result(column="a", tables="xy"), result(tables="yw"), result(task="union", tables="yz")]
    for table, task, column in (("x", "join", "a"), ("w", "join", None), ("z", "union", None)):
        found = explain(rows, "q", table)
        assert (found.task, found.query_column, found.table) == (task, column, table)
    with pytest.raises(UsageError, match=r"'y' is a match of 'q' for several tasks \(join, union\); add --task"):
        explain(rows, "q", "y")
    assert explain(rows, "q", "y", task="union").task == "union"
    assert explain(rows, "q", "y", task="join").query_column is None
    assert explain(rows, "q", "y", "a").query_column == "a"
    with pytest.raises(UsageError, match="not asked for task 'union' but for join"):
        explain(rows[:2], "q", "y", task="union")
    with pytest.raises(UsageError, match=r"'v' is none of the 6 matches of 'q' \(the first: x, y, y\)"):
        explain(rows, "q", "v")


def test_unknown_evidence_counts_nothing():
    row = result(column="a", names=("named_containment",))
    row["matches"][0]["evidence"]["containment"] = None
    parts = {part.signal: part for part in explain([row], "q", "x").parts}
    assert (parts["containment"].value, parts["containment"].contribution) == (None, 0)
    assert parts["named_containment"].contribution == pytest.approx(0.5 / 19.5)


def test_results_without_a_confidence_are_explained_without(tmp_path):
    assert explain([result()], "q", "x").confidence is None
    (tmp_path / "old.jsonl").write_text(json.dumps(result()))
    found = run(tmp_path / "old.jsonl", "q", "x")
    assert found.stdout.startswith("join, rank 1 of 2, score 1.000000 (L1)\n")


def test_ties_have_no_lead():
    assert explain([result()], "q", "x").lead == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gone", "x"), "'gone' is none of the 1 query tables; the first is 'q'"),
        (("q", "gone"), r"'gone' is none of the 2 matches of 'q' \(the first: x, y\)"),
    ],
)
def test_what_is_not_there_is_said(arguments, says):
    with pytest.raises(UsageError, match=says):
        explain([result()], *arguments)


def test_results_of_another_recipe_are_refused():
    row = result()
    row["matches"][0]["evidence"]["other"] = 1.0
    with pytest.raises(UsageError, match="another version's recipe"):
        explain([row], "q", "x")


def test_at_most_five_shared_values_as_each_table_writes_them():
    row = result()
    row["matches"][0]["columns"] = [
        {"query": {"index": 0, "name": "a"}, "candidate": {"index": 1, "name": "b"}, "score": 1}
    ]
    query = table("q", a=["Rome", None, "", "A  b", "rome", *"cdefg"])
    candidate = table("x", z=["z"], b=["ROME", "a B", "", None, *"gfedc"])
    found = with_shared_values(explain([row], "q", "x"), query, candidate)
    assert found.columns[0]["shared"] == ["Rome", "A  b", "c", "d", "e"]
    assert found.columns[0]["shared_as"] == ["ROME", "a B", "c", "d", "e"]
    assert "; shared: 'Rome' = 'ROME', 'A  b' = 'a B', 'c', 'd', 'e'" in explanation_text(found)
    for ours, theirs, shown in (
        (["CUST-7", "CUST-8"], ["7", "8"], ["7", "8"]),
        (["Rome"], ["ROME", "Rome", "rome"], ["Rome"]),
    ):
        tables = table("q", a=ours), table("x", z=["z"] * len(theirs), b=theirs)
        (column,) = with_shared_values(explain([row], "q", "x"), *tables).columns
        assert (column["shared"], column["shared_as"]) == (ours, shown)


def table(name, **columns):
    return Table(name, tuple(columns), tuple(map(pa.array, columns.values())), (None,) * len(columns))


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


COLUMN = {"query": {"index": 0, "name": "a"}, "candidate": {"index": 2, "name": "b"}, "score": 1}


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"layer": None, "evidence": None, "columns": None}, "layer, evidence, columns"),
        ({"evidence": {"name_overlap": "high"}}, "evidence"),
        ({"columns": ["a"]}, "columns"),
        ({"columns": [COLUMN | {"query": {"index": -1, "name": "a"}}]}, "columns"),
        ({"columns": [without(COLUMN, "score")]}, "columns"),
        ({"confidence": "sure"}, "confidence"),
        ({"verdict": {"says": "same"}}, "verdict"),
    ],
)
@pytest.mark.parametrize("at", [0, 1], ids=["the match", "the next"])
def test_a_match_that_is_not_ours_is_refused(at, change, lacks):
    row = result()
    row["matches"][at] = row["matches"][at] | change
    with pytest.raises(UsageError, match=f"{row['matches'][at]['table']!r} lacks {lacks} as gpumatch match writes it"):
        explain([row], "q", "x")


def test_a_row_that_is_not_ours_is_refused():
    row = result()
    assert explain([without(row, "query_column")], "q", "x").query_column is None
    with pytest.raises(UsageError, match="lacks task"):
        explain([without(row, "task")], "q", "x")
    with pytest.raises(UsageError, match="lacks weights"):
        explain([row | {"weights": {"name_overlap": 1.0}}], "q", "x")
    row["matches"][0]["evidence"] = {"other": 1.0}
    with pytest.raises(UsageError, match="another version's recipe"):
        explain([row | {"weights": {"other": 1.0, "density": 0.0}}], "q", "x")


@pytest.mark.parametrize("short", ["q", "x"])
def test_a_table_that_has_lost_columns_since_is_named(short):
    row = result()
    row["matches"][0]["columns"] = [COLUMN]
    tables = {"q": table("q", a=["v"]), "x": table("x", c=["v"], d=["v"], b=["v"])}
    found = explain([row], "q", "x")
    assert with_shared_values(found, *tables.values()).columns[0]["shared"] == ["v"]
    with pytest.raises(UsageError, match=rf"{short!r} has 0 columns, .* column [02], '[ab]'; it has changed since"):
        with_shared_values(found, *(tables | {short: table(short)}).values())


@pytest.mark.parametrize("changed", ["q", "x"])
def test_no_values_are_shown_of_a_column_that_stands_where_another_stood(changed):
    row = result()
    row["matches"][0]["columns"] = [COLUMN]
    tables = {"q": table("q", a=["v"]), "x": table("x", c=["v"], d=["v"], b=["v"])}
    other = {"q": table("q", b=["v"]), "x": table("x", b=["v"], c=["v"], d=["v"])}[changed]
    at = {"q": "0 'b', and .* column 0, 'a'", "x": "2 'd', and .* column 2, 'b'"}[changed]
    with pytest.raises(UsageError, match=rf"^{changed!r} has as column {at}; it has changed since: make them anew"):
        with_shared_values(explain([row], "q", "x"), *(tables | {changed: other}).values())


# --- the command


@pytest.mark.parametrize("unit", ["[km/h]", "[/1000]", "[bold]", "\\[x]"])
def test_brackets_are_no_markup(tmp_path, unit):
    (tmp_path / "r.jsonl").write_text(
        json.dumps(result(query=f"q{unit}", column=f"speed {unit}", tables=(f"x{unit}",)))
    )
    found = run(tmp_path / "r.jsonl", f"q{unit}", f"x{unit}")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[1].strip() == f"q{unit}, column speed {unit} → x{unit}"


def test_escape_sequences_in_names_do_not_reach_a_terminal(tmp_path):
    bad = "a\nb\x1b]0;owned\x07\u202e\udcff"
    row = result(query=bad, tables=(bad, f"{bad}2"))
    row["matches"][0]["verdict"] = {"says": None, "why": bad}
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    found = run(tmp_path / "r.jsonl", bad, bad)
    assert found.exit_code == 0
    assert all(line.isprintable() for line in found.stdout.splitlines())
    assert r"a\nb\x1b]0;owned\x07\u202e\udcff2" in found.stdout
    assert not any(line.startswith("b") for line in found.stdout.splitlines())


def test_rows_of_one_table_are_told_apart_by_their_text():
    rows = [result() | {"query_text": text} for text in ("old", "new")]
    with pytest.raises(UsageError, match=r"several texts \(old, new\); name it by its text"):
        explain(rows, "q", "x")
    rows[0]["matches"][0]["confidence"] = 0.5
    assert explain(rows, "old", "x").confidence == 0.5
    assert explain([*rows, result(tables="wx")], "q", "x").rank == 2
    with pytest.raises(UsageError, match=r"several tables \(q, p\); name it by its table"):
        explain([*rows, result(query="p") | {"query_text": "new"}], "new", "x")


def test_the_command_tells_the_tasks_of_one_file_apart(tmp_path):
    rows = [result(), result(task="union", tables="xyz")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "r.jsonl", "q", "z").stdout.startswith("union, rank 3 of 3")
    for task in ("join", "union"):
        assert run(tmp_path / "r.jsonl", "q", "x", "--task", task).stdout.startswith(f"{task}, rank 1 of ")
    assert "add --task" in str(run(tmp_path / "r.jsonl", "q", "x").exception)


@pytest.fixture
def results(index, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(index.match(task="union", k=0).to_json())
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_the_command_shows_signals_columns_values_and_the_next(results, lake):
    found = run(results, "a.csv", "b.csv", "--lake", lake)
    assert found.exit_code == 0
    assert re.match(r"union, rank 1 of 3, score 0\.\d{6}, confidence 0\.\d{4} \(L2\)\n", found.stdout)
    columns = "'city' (column 0) ↔ 'city' (column 0); shared: 'Rome' = 'ROME', 'Bonn' = 'bonn'"
    for said in ("name_position", "dense_maxsim_both", "density", columns, "ahead of the next, d.csv, by "):
        assert said in found.stdout
    assert "shared: " not in run(results, "a.csv", "b.csv").stdout
    assert "no match comes after it" in run(results, "a.csv", "c.csv").stdout
    told = json.loads(run(results, "a.csv", "b.csv", "--lake", lake, "--json").stdout)
    shared = {one["query"]["name"]: one["shared"] for one in told["columns"]}
    assert shared == {"city": ["Rome", "Bonn"], "country": ["Italy", "Germany"]}


def test_an_index_knows_which_of_the_lakes_in_a_folder_it_was_built_from(tmp_path):
    for name, values in (("tables", ["Oslo"]), ("mine", ["Rome"])):
        tables = [{"table_name": t, "columns": [{"name": "city", "sample_values": values}]} for t in "xy"]
        (tmp_path / f"{name}.json").write_text(json.dumps(tables))
    index = gpumatch.build(tmp_path / "mine.json", tmp_path / "idx", layer="L1", cache_dir=tmp_path / "cache")
    (tmp_path / "out.jsonl").write_text(index.match(task="union").to_json())
    found = run(tmp_path / "out.jsonl", "x", "y", "--lake", tmp_path / "idx")
    assert "shared: 'Rome'" in found.stdout


def test_the_lake_may_be_named_by_its_index(results, lake, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(lake, tmp_path / "lake")
    gpumatch.build(copy, tmp_path / "idx", layer="L1", cache_dir=tmp_path / "cache")
    for where in (copy, tmp_path / "idx"):
        assert "shared: 'Rome' = 'ROME', 'Bonn' = 'bonn'" in run(results, "a.csv", "b.csv", "--lake", where).stdout
    shutil.rmtree(copy)
    monkeypatch.setattr(
        sys, "argv", ["gpumatch", "explain", str(results), "a.csv", "b.csv", "--lake", str(tmp_path / "idx")]
    )
    with pytest.raises(SystemExit, match="1"):
        main()
    said = capsys.readouterr().err
    assert f"the lake behind the index {tmp_path / 'idx'}: no lake at {copy}" in said
    assert said.count("\n") == 1


def test_tables_behind_links_are_found_as_they_were_matched(tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "lake" / "a.csv").write_text(LAKE["a.csv"])
    (tmp_path / "far" / "b.csv").write_text(LAKE["b.csv"])
    (tmp_path / "lake" / "more").symlink_to(tmp_path / "far")
    index = gpumatch.build(
        tmp_path / "lake", tmp_path / "idx", layer="L1", follow_links=True, cache_dir=tmp_path / "cache"
    )
    (tmp_path / "out.jsonl").write_text(index.match(task="union").to_json())
    asked = [tmp_path / "out.jsonl", "a.csv", "more/b.csv", "--lake"]
    for lake in ([tmp_path / "idx"], [tmp_path / "lake", "--follow-links"]):
        assert "shared: 'Rome' = 'ROME', 'Bonn' = 'bonn'" in run(*asked, *lake).stdout
    assert "more/b.csv is no longer in" in run(*asked, tmp_path / "lake").stderr


def test_it_is_said_of_which_index_the_lake_has_gone(results, lake, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(lake, tmp_path / "mine")
    gpumatch.build(copy, tmp_path / "idx", layer="L1", cache_dir=tmp_path / "cache")
    shutil.rmtree(copy)
    given = [str(results), "a.csv", "b.csv", "--lake", str(lake), "--queries", str(tmp_path / "idx")]
    monkeypatch.setattr(sys, "argv", ["gpumatch", "explain", *given])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.strip().endswith("or give --queries the lake itself")


def test_a_match_that_has_gone_is_explained_without_shared_values(results, lake, tmp_path):
    rest = shutil.copytree(lake, tmp_path / "rest")
    (rest / "b.csv").unlink()
    found = run(results, "a.csv", "b.csv", "--lake", rest)
    assert found.stdout == run(results, "a.csv", "b.csv").stdout
    assert found.stderr == f"warning: b.csv is no longer in {rest}: no shared values are shown\n"


def test_a_query_from_outside_is_read_where_it_lies(results, lake, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.csv").write_text("city,country\nParis,Peru\n")
    found = run(results, "a.csv", "b.csv", "--lake", lake, "--queries", tmp_path / "far")
    assert "shared: 'Paris'" in found.stdout


def test_a_table_that_is_gone_or_bad_is_one_line(results, lake, tmp_path, monkeypatch, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.csv").write_bytes(b"a,b\n\0\n")
    (tmp_path / "other" / "aa.csv").write_text("a\n")
    for query, says in (
        ("a.csv", "no table 'a.csv'"),
        ("a.csv", "; give --queries the folder"),
        ("b.csv", "b.csv cannot be read: nul-bytes"),
    ):
        monkeypatch.setattr(
            sys, "argv", ["gpumatch", "explain", str(results), query, "d.csv", "--lake", str(tmp_path / "other")]
        )
        with pytest.raises(SystemExit, match="1"):
            main()
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
