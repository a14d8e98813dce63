"""Weights of one's own: what a file may say, what is said of the rest, and that its content is all that counts."""

from __future__ import annotations

import json
import os
import sys

import pytest
from typer.testing import CliRunner

import gpumatch
import gpumatch.pipeline
from gpumatch.cli import app, main
from gpumatch.errors import UsageError
from gpumatch.recipes import LAYERS, TASKS, recipe_for, signals_of
from gpumatch.run import Run
from gpumatch.weights import load_recipes, weights_of

LAKE = {
    "a.csv": "city,country\nOslo,Norway\nRome,Italy\n",
    "b.csv": "city,country\nParis,France\nRome,Italy\n",
    "c.csv": "title,artist\nHelp!,Beatles\n",
    "d.csv": "city,land,area\nRome,Italy,1\nKyiv,Ukraine,2\n",
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    for name, text in LAKE.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("GPUMATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GPUMATCH_LAYER", "L1")


@pytest.fixture
def write(tmp_path):
    def write(text, name="w.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def run(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output
    return found


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def as_toml(recipes):
    return "".join(
        f"[{recipe.task}]\n"
        + "".join(f"{k} = {w}\n" for k, w in weights_of(recipe).items() if (recipe.task, k) != ("column", "density"))
        for recipe in recipes
    )


# --- what a file may say


def test_what_is_named_replaces_the_weights_whole(write):
    found = load_recipes(write("[union]\nname_cosine = 2\nprofile = 0.5\n[column]\ncontainment = 1\n"), "L1")
    assert found.keys() == {"union", "column"}
    assert found["union"].weights == {"name_cosine": 2, "profile": 0.5}
    assert found["column"].weights == {"containment": 1}
    for task, recipe in found.items():
        shipped = recipe_for(task, "L1")
        assert (recipe.task, recipe.density, recipe.blocks, recipe.pool) == (
            shipped.task,
            shipped.density,
            shipped.blocks,
            shipped.pool,
        )


def test_density_may_stand_with_weights_or_alone(write):
    found = load_recipes(write("[join]\nprofile = 1\ndensity = 0.5\n[union]\ndensity = 0\n"), "L1")
    assert (found["join"].density, found["join"].weights) == (0.5, {"profile": 1})
    assert (found["union"].density, found["union"].weights) == (0, recipe_for("union", "L1").weights)


def test_order_and_kind_of_numbers_say_nothing(write):
    one = load_recipes(write("[join]\nprofile = 1\nname_cosine = 2\n"), "L1")["join"]
    other = load_recipes(write("# hello\n[join]\nname_cosine = 2.0\nprofile = 1.0\n", "o.toml"), "L1")["join"]
    assert one.key() == other.key()
    assert list(one.weights) == list(other.weights)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_shipped_weights_written_out_are_the_shipped_recipes(write, layer):
    shipped = [recipe_for(task, layer) for task in TASKS]
    found = load_recipes(write(as_toml(shipped)), layer)
    assert list(found.values()) == shipped
    assert [recipe.key() for recipe in found.values()] == [recipe.key() for recipe in shipped]


def test_every_signal_can_be_weighed(write):
    for layer in LAYERS:
        lines = (f"[{task}]\n" + "".join(f"{name} = 1\n" for name in signals_of(task, layer)) for task in TASKS)
        found = load_recipes(write("".join(lines)), layer)
        assert {task: tuple(recipe.weights) for task, recipe in found.items()} == {
            task: signals_of(task, layer) for task in TASKS
        }


# --- what is refused

KNOWN = "name_overlap, name_cosine, "
REFUSED = [
    ("[unoin]\nname_cosine = 1", "[unoin] is no task; the nearest is union; allowed are [join], [union] and [column]"),
    ("[zzz]\nname_cosine = 1", "[zzz] is no task; allowed are [join], [union] and [column]"),
    ("name_cosine = 1", "name_cosine = 1 stands outside of a table; allowed are [join], [union] and [column]"),
    ("union = 3", "union = 3 stands outside of a table; allowed are"),
    ("[union]\nname-cosin = 1", "name-cosin = 1: no signal; the nearest is name_cosine; [union] takes " + KNOWN),
    ("[join]\nfoo = 1", "[join] foo = 1: no signal; [join] takes " + KNOWN),
    ('[join]\n"a\\u001b" = 1', "[join] a\\x1b = 1: no signal"),
    ("[join]\nprofile = -1", "[join] profile = -1, but it takes a number from 0 to 1000000"),
    ("[join]\nprofile = '1'", "[join] profile = '1', but it takes a number from 0"),
    ("[join]\nprofile = true", "[join] profile = True, but it takes a number from 0"),
    ("[join]\nprofile = nan", "[join] profile = nan, but it takes a number from 0"),
    ("[join]\nprofile = inf", "[join] profile = inf, but it takes a number from 0"),
    ("[join]\nprofile = 1" + "0" * 400, "but it takes a number from 0 to 1000000"),
    ("[join.profile]\nx = 1", "[join] profile = {'x': 1}, but it takes a number from 0"),
    ("[join]\ndense_maxsim = 1", "dense_maxsim = 1: a signal of L1+L2, and this run has --layer L1; [join] takes"),
    ("[union]\nname_grams = 1", "[union] name_grams = 1: a signal of columns, and [union] compares tables"),
    ("[column]\nprofile = 1", "[column] profile = 1: a signal of tables, and [column] compares columns"),
    ("[join]\ntext_names = 1", "[join] text_names = 1: a signal of texts, and [join] compares tables; [join] takes"),
    ("[text]\ntext_names = 1", "[text] is no task; allowed are [join], [union] and [column]"),
    ("[join]\nprofile = 0\nname_cosine = 0.0", "[join]: all its weights are 0; give one at least that is above"),
    ("[join]", "[join] takes " + KNOWN),
    ("[join]\ndensity = 1.5", "[join] density = 1.5, but it takes a number from 0 to 1"),
    ("[join]\ndensity = 'x'", "[join] density = 'x', but it takes a number from 0 to 1"),
    ("[column]\ndensity = 0", "[column] density = 0: columns have none; it belongs to [join] or [union]"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_a_refusal_names_the_file_the_key_what_was_found_and_what_is_allowed(write, text, says):
    path = write(text)
    with pytest.raises(UsageError) as caught:
        load_recipes(path, "L1")
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_all_refusals_are_told_at_once(write):
    said = r"x = 1 stands outside.*; \[join\] profile = -1.*; \[join\] density = 2.*; \[unoin\] is no task"
    with pytest.raises(UsageError, match=said):
        load_recipes(write("x = 1\n[join]\nprofile = -1\ndensity = 2\n[unoin]\n"), "L1")


def test_what_is_no_toml_or_not_there(write, tmp_path):
    with pytest.raises(UsageError, match=r"w\.toml is no TOML: Expected.*profile = 2\.0 below \[join\]"):
        load_recipes(write("hello"), "L1")
    (tmp_path / "w.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"w\.toml is no TOML"):
        load_recipes(tmp_path / "w.toml", "L1")
    with pytest.raises(UsageError, match=r"gone\.toml: no weights to read \(No such file.*give --weights a TOML file"):
        load_recipes(tmp_path / "gone.toml", "L1")
    with pytest.raises(UsageError, match=r"no weights to read \(Is a directory\)"):
        load_recipes(tmp_path, "L1")


@pytest.mark.parametrize("command", [["match", "{lake}", "--task", "union"], ["index", "{lake}", "-o", "x.idx"]])
def test_commands_say_it_in_one_line_before_they_begin(lake, write, capsys, monkeypatch, tmp_path, command):
    monkeypatch.setattr(
        sys, "argv", ["gpumatch", *(part.format(lake=lake) for part in command), "--weights", str(write("[unoin]"))]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("gpumatch: ")
    assert "[unoin] is no task" in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "x.idx").exists()


# --- what it changes


def test_scores_follow_the_weights_and_rows_tell_them(lake, write):
    weights = write("[join]\nname_cosine = 1\nprofile = 3\ncolumn_count = 0\n")
    rows = rows_of(run("match", lake, "--task", "join", "-q", "--weights", weights).stdout)
    for row in rows:
        assert row["weights"] == {"name_cosine": 1, "profile": 3, "column_count": 0, "density": 0}
        for match in row["matches"]:
            assert match["evidence"].keys() == {"name_cosine", "profile", "column_count"}
            known = {name: value for name, value in match["evidence"].items() if value is not None}
            total = sum(row["weights"][name] for name in known)
            score = sum(row["weights"][name] * value for name, value in known.items()) / total
            assert match["score"] == pytest.approx(score, abs=2e-4)
    assert "weights" not in run("match", lake, "--task", "join", "-q").stdout


def test_what_other_weights_say_has_no_confidence(lake, write):
    path = write("[union]\nname_position = 1\n")
    for task, known in (("union", False), ("join", True)):
        rows = gpumatch.pipeline.match(lake, Run(gpumatch.Settings(task=task, weights=path)))
        assert all((match["confidence"] is not None) == known for row in rows for match in row["matches"])
    with pytest.raises(UsageError, match="replaces those of union; give only one of"):
        Run(gpumatch.Settings(task="union", weights=path, min_confidence=0.5))


def test_columns_of_two_tables_are_aligned_by_them(lake, write):
    path = write("[column]\nname_grams = 1\nname_cosine = 5\n")
    found = gpumatch.align(lake / "a.csv", lake / "d.csv", weights=path)
    assert found.alike[0, 0] == 1
    assert found.pairs.tolist()[0] == [0, 0]


def test_a_task_that_the_file_does_not_name_is_left_alone(lake, write):
    shipped = run("match", lake, "--task", "join", "-q").stdout
    weights = write("[union]\nname_cosine = 1\n[column]\ncontainment = 1\n")
    assert run("match", lake, "--task", "join", "-q", "--weights", weights).stdout == shipped


def test_column_queries_have_weights_of_their_own(lake, write, tmp_path):
    (tmp_path / "q.csv").write_text("query_table,query_column\na.csv,city\na.csv,\n")
    weights = write("[column]\nname_grams = 1\n")
    found = run("match", lake, "--task", "join", "-q", "--weights", weights, "--queries", tmp_path / "q.csv")
    column, table = rows_of(found.stdout)
    assert column["weights"] == {"name_grams": 1, "density": 0}
    assert [match["evidence"] for match in column["matches"][:2]] == [{"name_grams": 1}, {"name_grams": 1}]
    assert "weights" not in table


def test_density_of_ones_own_is_taken_off_joins_and_unions(lake, write):
    for task in ("join", "union"):
        rows = {}
        for share in (0, 0.5):
            weights = write(f"[{task}]\nname_cosine = 1\ndensity = {share}\n")
            rows[share] = rows_of(run("match", lake, "--task", task, "-q", "-k", 0, "--weights", weights).stdout)
        raw = {row["query_table"]: {m["table"]: m["score"] for m in row["matches"]} for row in rows[0]}
        density = {c: sum(raw[c].values()) / len(raw[c]) for c in raw}  # of three others
        for row in rows[0.5]:
            for match in row["matches"]:
                expected = raw[row["query_table"]][match["table"]] - 0.5 * density[match["table"]]
                assert match["score"] == pytest.approx(expected, abs=3e-6)


def test_an_index_answers_like_its_lake_with_weights_too(lake, write, tmp_path):
    weights = write("[union]\nname_cosine = 1\ntoken_profile_maxsim = 0.5\n")
    from_lake = run("match", lake, "--task", "union", "-q", "--weights", weights).stdout
    run("index", lake, "-o", tmp_path / "idx", "--weights", weights)
    assert run("match", tmp_path / "idx", "--task", "union", "-q", "--weights", weights).stdout == from_lake
    shipped = run("match", lake, "--task", "union", "-q").stdout
    assert run("match", tmp_path / "idx", "--task", "union", "-q").stdout == shipped != from_lake


def test_environment_file_and_python_set_them_too(lake, write, tmp_path, monkeypatch):
    weights = write("[union]\nname_cosine = 1\n")
    expected = run("match", lake, "--task", "union", "-q", "--weights", weights).stdout
    index = gpumatch.build(lake, tmp_path / "idx", weights=weights)
    assert index.match(task="union").to_json() == expected
    (tmp_path / "gpumatch.toml").write_text('weights = "w.toml"\n')
    assert run("match", lake, "--task", "union", "-q").stdout == expected
    other = write("[union]\nprofile = 1\n", "other.toml")
    monkeypatch.setenv("GPUMATCH_WEIGHTS", str(other))
    assert rows_of(run("match", lake, "--task", "union", "-q").stdout)[0]["weights"]["profile"] == 1
    shown = json.loads(run("config", "show", "--json").stdout)["settings"]
    assert next((one["value"], one["place"]) for one in shown if one["name"] == "weights") == (
        str(other),
        "GPUMATCH_WEIGHTS",
    )


# --- content counts, the name does not


def stop_after_two(monkeypatch, *arguments):
    from gpumatch import pipeline

    match = pipeline.match

    def breaks(*some, **more):
        rows = match(*some, **more)
        yield next(rows)
        yield next(rows)
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "match", breaks)
        assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 1


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("other.toml", "# the same\n[union]\nprofile = 1.0\nname_cosine = 2\n", True),
        ("w.toml", "[union]\nname_cosine = 2\nprofile = 1.5\n", False),
        ("w.toml", "[union]\nname_cosine = 2\nprofile = 1\ndensity = 0\n", False),
    ],
    ids=["another name", "another weight", "another density"],
)
def test_a_stopped_run_goes_on_where_the_weights_are_the_same(lake, write, tmp_path, monkeypatch, name, text, kept):
    weights = write("[union]\nname_cosine = 2\nprofile = 1\n")
    out = tmp_path / "out.jsonl"
    command = ["match", lake, "--task", "union", "-o", out]
    stop_after_two(monkeypatch, *command, "-q", "--weights", weights)
    found = run(*command, "--weights", write(text, name))
    said = " ".join(found.stderr.split())
    assert ("has 2 rows of this run already" in said) == kept
    assert ("was begun with another weights; starting over" in said) == (not kept)
    assert out.read_text() == run("match", lake, "--task", "union", "-q", "--weights", tmp_path / name).stdout


def test_pools_of_an_index_are_kept_by_content(lake, write, tmp_path):
    def index(weights, name):
        return run("index", lake, "-o", tmp_path / "idx", "--weights", write(weights, name)).stdout

    def pools():
        return json.loads((tmp_path / "idx" / "manifest.json").read_text())["pools"]

    index("[union]\nname_cosine = 2\n", "a.toml")
    first = pools()
    index("[union]\nname_cosine = 2.0 # the same\n", "b.toml")
    assert pools() == first
    index("[union]\nname_cosine = 3\n", "a.toml")
    assert len(pools()) == len(first) + 1
    expected = run("match", lake, "--task", "union", "-q", "--weights", tmp_path / "a.toml", "--no-cache").stdout
    assert run("match", tmp_path / "idx", "--task", "union", "-q", "--weights", tmp_path / "a.toml").stdout == expected


# --- explain


@pytest.mark.parametrize("task", ["join", "union"])
def test_explain_goes_by_the_weights_of_the_rows(lake, write, tmp_path, task):
    weights = write(f"[{task}]\nname_cosine = 1\nprofile = 3\ncolumn_count = 0\ndensity = 0.25\n")
    out = tmp_path / "out.jsonl"
    run("match", lake, "--task", task, "-q", "--weights", weights, "-o", out)
    found = json.loads(run("explain", out, "a.csv", "b.csv", "--json").stdout)
    assert {part["signal"]: part["weight"] for part in found["parts"]} == {
        "profile": 3,
        "name_cosine": 1,
        "column_count": 0,
    }
    assert found["density"] < 0
    total = sum(part["contribution"] for part in found["parts"]) + found["density"]
    assert total == pytest.approx(found["score"], abs=1e-6)


def test_explain_refuses_weights_that_are_not_the_evidences(lake, write, tmp_path):
    out = tmp_path / "out.jsonl"
    run("match", lake, "--task", "join", "-q", "--weights", write("[join]\nprofile = 1\n"), "-o", out)
    out.write_text(out.read_text().replace('"profile":1.0,"density"', '"name_cosine":1.0,"density"'))
    found = CliRunner().invoke(app, ["explain", str(out), "a.csv", "b.csv"])
    assert "another version's recipe" in str(found.exception)
