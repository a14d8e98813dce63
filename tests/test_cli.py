"""The commands as a user types them: what goes to which stream, exit codes, and errors that people can act on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gpumatch import pipeline
from gpumatch.cli import app, main
from gpumatch.config import Settings
from gpumatch.demo import lake_path
from gpumatch.lake.rules import PARTLY
from gpumatch.run import Run

LAKE = {
    "a.csv": "city,country\nOslo,Norway\nRome,Italy\n",
    "b.csv": "city,country\nParis,France\nRome,Italy\n",
    "c.csv": "title,artist\nHelp!,Beatles\n",
}


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GPUMATCH_LAYER", "L1")
    folder = tmp_path / "lake"
    folder.mkdir()
    for name, text in LAKE.items():
        (folder / name).write_text(text)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(capsys, monkeypatch, *arguments):
    """Run the entry point; return (exit code, what it said on standard error)."""
    monkeypatch.setattr(sys, "argv", ["gpumatch", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out == ""
    return exit_.value.code, said.err


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys, contextlib, io\n"
        "from gpumatch.cli import app\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    try: app(['--help'])\n"
        "    except SystemExit: pass\n"
        "assert 'match' in out.getvalue()\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'scipy', 'pydantic', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


COMMANDS = [
    "match", "index", "eval", "explain", "report", "demo", "doctor", "config show", "cache stats", "cache verify",
    "cache prune", "cache clear",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples(command):
    found = run(*command.split(), "--help")
    assert found.exit_code == 0
    assert f"gpumatch {command}" in found.stdout.split("Examples:")[1]


def test_help_shows_the_defaults_of_the_settings():
    shown = "".join(run("match", "--help").stdout.replace("│", "").split())
    told = {one.name: one.show_default for one in get_command(app).commands["match"].params}
    told = {name: default for name, default in told.items() if isinstance(default, str) and name != "threads"}
    assert told.keys() >= {"layer", "k", "min_confidence", "device", "backend", "sample_rows", "llm_timeout"}
    for name, default in told.items():
        field = Settings.model_fields[name].default
        assert default == (field if isinstance(field, str) else f"{field:g}")
        assert f"[default:({default})]" in shown


def test_match_prints_data_on_standard_output_only(lake):
    done = subprocess.run(
        [sys.executable, "-m", "gpumatch", "match", str(lake), "--task", "join"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["query_table"] for row in rows] == sorted(LAKE)
    assert rows[0]["matches"][0]["table"] == "b.csv"
    assert "peak memory" in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_quiet_says_nothing(lake):
    done = subprocess.run(
        [sys.executable, "-m", "gpumatch", "match", str(lake), "--task", "join", "-q"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_what_is_less_sure_is_left_out(lake, monkeypatch):
    def found(*arguments):
        rows = map(json.loads, run("match", lake, "--task", "union", "-k", 0, "-q", *arguments).stdout.splitlines())
        return {(row["query_table"], one["table"]): one["confidence"] for row in rows for one in row["matches"]}

    whole = found()
    least = max(whole.values())
    assert found("--min-confidence", least) == {pair: sure for pair, sure in whole.items() if sure >= least} != whole
    monkeypatch.setenv("GPUMATCH_MIN_CONFIDENCE", "1")
    assert found() == {}
    assert found("--min-confidence", 0) == whole


def test_match_writes_a_file_whole_or_not_at_all(lake, tmp_path, monkeypatch):
    out = tmp_path / "runs" / "out.jsonl"
    others = ["--stats", out.parent / "stats.json", "--skipped", out.parent / "skipped.json"]
    assert run("match", lake, "--task", "union", "-k", 1, "-o", out, *others).exit_code == 0
    before = {path.name: path.read_text() for path in out.parent.iterdir()}
    assert before.keys() == {"out.jsonl", "stats.json", "skipped.json"}
    assert all(len(json.loads(line)["matches"]) == 1 for line in before["out.jsonl"].splitlines())

    def breaks(*_args, **_kwargs):
        yield {"query_table": "a.csv"}
        raise OSError("disk on fire")

    monkeypatch.setattr("gpumatch.pipeline.match", breaks)
    assert run("match", lake, "--task", "union", "-o", out, *others).exit_code == 1
    assert {name: (out.parent / name).read_text() for name in before} == before


def test_stats_tell_stages_memory_versions_and_settings(lake, tmp_path):
    assert (
        run("match", lake, "--task", "union", "--stats", tmp_path / "s.json", "-o", tmp_path / "o.jsonl").exit_code == 0
    )
    told = json.loads((tmp_path / "s.json").read_text())
    assert {"read", "profile", "index", "search", "rescore", "explain", "write"} <= set(told["stages"])
    assert told["stages"]["read"]["items"] == len(LAKE)
    assert told["peak_host_bytes"] > 10_000_000
    assert told["versions"]["torch"]
    assert told["device"] == "cpu"
    assert told["settings"]["task"] == "union"
    assert told["skipped"] == []


def test_exit_code_4_where_a_file_could_not_be_read(lake, tmp_path):
    (lake / "bad.parquet").write_bytes(b"PAR1 no")
    found = run("match", lake, "--task", "union", "-o", tmp_path / "o.jsonl")
    assert found.exit_code == 4
    assert "bad.parquet: parquet:" in found.stderr
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == len(LAKE) + 1


def test_a_table_from_outside_is_asked_by_columns(lake, tmp_path, capsys, monkeypatch):
    (tmp_path / "q.csv").write_text("town,state\nRome,Italy\n")
    command = ["match", lake, "-q", "--task", "join", "--queries", tmp_path / "q.csv"]
    found = run(*command, "--column", "town", "--column", "state")
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(row["query_column"], row["matches"][0]["columns"][0]["candidate"]["name"]) for row in rows] == [
        ("town", "city"),
        ("state", "country"),
    ]
    code, said = fails(capsys, monkeypatch, *command, "--column", "country")
    assert code == 1
    assert "q.csv: it has no column 'country', but 'town', 'state'" in said


def test_skipped_lists_all_of_what_was_not_read(lake, tmp_path):
    for n in range(9):
        (lake / f"bad{n}.csv").write_bytes(b"a,b\n1,\0\n")
    found = run("match", lake, "--task", "union", "-o", tmp_path / "o.jsonl", "--skipped", tmp_path / "s.json")
    assert found.exit_code == 4
    assert found.stderr.count("nul-bytes") == 5
    assert "… and 4 more; --skipped FILE lists all" in found.stderr
    listed = json.loads((tmp_path / "s.json").read_text())
    assert [one["name"] for one in listed if one["rule"] == "nul-bytes"] == [f"bad{n}.csv" for n in range(9)]
    assert all(one["found"] for one in listed)


def test_escape_sequences_in_names_do_not_reach_a_terminal(tmp_path, lake, capsys, monkeypatch):
    name = "z\n\x1b[31mred\u202e [/bold]"
    listed = [
        {"table_name": name, "columns": 7},
        {"table_name": "a", "columns": [{"name": "c", "sample_values": ["1"]}]},
    ]
    (tmp_path / "tables.json").write_text(json.dumps(listed))
    found = run("match", tmp_path / "tables.json", "--task", "union", "-o", tmp_path / "o.jsonl")
    assert found.exit_code == 4
    assert r"skipped z\n\x1b[31mred\u202e [/bold]: columns: " in found.stderr
    _, said = fails(capsys, monkeypatch, "match", "no\n\x1bc", "--task", "union")
    assert r"no lake at no\n\x1bc: " in said
    assert all(line.isprintable() for line in (found.stderr + said).splitlines())


@pytest.mark.parametrize("option", ["--stats", "--skipped"])
def test_a_place_that_cannot_be_written_is_named_before_the_run(lake, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr("gpumatch.pipeline.match", lambda *_, **__: pytest.fail("the run has begun"))
    found, said = fails(capsys, monkeypatch, "match", lake, "--task", "union", option, lake / "a.csv" / "s.json")
    assert (found, said.count("\n")) == (1, 1)
    assert "a.csv" in said
    assert f"; give {option} another place" in said


def test_no_output_is_another_one_or_is_read(lake, tmp_path, capsys, monkeypatch):
    """Whatever of it would be lost: the results, a table, the list of queries, weights, the index."""
    (tmp_path / "q.csv").write_text(LAKE["a.csv"])
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "q.csv").write_text(LAKE["a.csv"])
    (tmp_path / "w.toml").write_text("")
    (tmp_path / "r.csv").write_text(json.dumps({"query_table": "q", "matches": []}))
    (lake / "queries.csv").write_text("query_table\na.csv\n")
    assert run("index", lake, "-o", tmp_path / "idx").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    match = ["match", lake, "--task", "union", "-q"]
    wrong = [
        [*match, "-o", tmp_path / "z", "--stats", tmp_path / "z"],
        [*match, "--skipped", tmp_path / "z", "--stats", tmp_path / "lake" / ".." / "z"],
        [*match, "-o", lake / "a.csv"],
        [*match, "--dry-run", "--layer", "L1+L2+L3", "--stats", lake / "a.csv"],
        [*match, "-o", lake / "queries.csv"],
        [*match, "-o", lake / "new.csv"],
        [*match, "--queries", tmp_path / "q", "--stats", tmp_path / "q" / "new.csv"],
        [*match, "--queries", tmp_path / "q.csv", "--skipped", tmp_path / "q.csv"],
        [*match, "--weights", tmp_path / "w.toml", "-o", tmp_path / "w.toml"],
        ["match", tmp_path / "idx", "--task", "union", "-q", "-o", tmp_path / "idx" / "manifest.json"],
        ["match", tmp_path / "idx", "--task", "union", "-q", "-o", lake / "queries.csv"],
        ["index", lake, "-o", tmp_path / "idx", "--stats", tmp_path / "idx" / "s.json"],
        ["index", lake, "-o", tmp_path / "new", "--stats", tmp_path / "new"],
        ["index", lake, "-o", tmp_path / "idx", "--skipped", lake / "b.csv"],
        ["align", lake / "a.csv", lake / "b.csv", "-o", lake / "b.csv"],
        ["align", lake / "a.csv", lake / "b.csv", "-o", tmp_path / "z", "--stats", tmp_path / "z"],
        ["report", tmp_path / "r.csv", "-o", tmp_path / "r.csv"],
    ]
    for command in wrong:
        code, said = fails(capsys, monkeypatch, *command)
        assert (code, said.count("\n")) == (2, 1), command
        assert "another place" in said
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, command
    assert run(*match, "-o", "/dev/null", "--stats", "/dev/null", "--skipped", "/dev/null").exit_code == 0


def test_the_run_is_told_before_its_files_are_written(lake, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (lake / "bad.parquet").write_bytes(b"PAR1 no")
    monkeypatch.setattr("gpumatch.outputs.write", full)
    found = run("match", lake, "--task", "union", "-o", tmp_path / "o.jsonl", "--stats", tmp_path / "s.json")
    assert (found.exit_code, type(found.exception)) == (1, OSError)
    assert "peak memory" in found.stderr
    assert "skipped bad.parquet: parquet:" in found.stderr
    assert (tmp_path / "o.jsonl").exists()


def test_results_into_a_link_leave_it_and_can_be_continued(lake, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "far.jsonl")
    assert run("match", lake, "--task", "union", "-q", "-o", tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert len((tmp_path / "far.jsonl").read_text().splitlines()) == len(LAKE)


def test_a_dash_is_standard_output(lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["match", lake, "--task", "union", "-q"]
    assert run(*command, "-o", "-").stdout == run(*command).stdout != ""
    command = ["align", lake / "a.csv", lake / "b.csv", "-q"]
    assert run(*command, "-o", "-").stdout == run(*command).stdout != ""
    assert not (tmp_path / "-").exists()


def test_what_is_read_in_part_is_a_warning_and_no_failure(lake, tmp_path):
    found = run("match", lake, "--task", "union", "-o", tmp_path / "o.jsonl", "--sample-rows", "1")
    assert found.exit_code == 0
    assert f"rows-sampled: 2 tables were read in part ({PARTLY['rows-sampled']}); a.csv: 1 of 2 rows" in " ".join(
        found.stderr.split()
    )


def test_links_are_followed_where_asked(lake, tmp_path):
    (tmp_path / "far.csv").write_text(LAKE["a.csv"])
    (lake / "far.csv").symlink_to(tmp_path / "far.csv")
    assert run("match", lake, "--task", "union", "-q").exit_code == 4
    found = run("match", lake, "--task", "union", "-q", "--follow-links")
    assert found.exit_code == 0
    assert len(found.stdout.splitlines()) == len(LAKE) + 1


def test_a_setting_nobody_knows_is_a_warning(lake, monkeypatch):
    monkeypatch.setenv("GPUMATCH_LAYRE", "L1")
    found = run("match", lake, "--task", "union")
    assert found.exit_code == 0
    assert "GPUMATCH_LAYRE in the environment is no setting; GPUMATCH_LAYER is" in " ".join(found.stderr.split())


@pytest.fixture
def stopped(lake, tmp_path, monkeypatch):
    """What a run leaves that ends after two of three rows, and what a whole one writes."""
    import gpumatch.pipeline

    whole = run("match", lake, "--task", "union", "-q").stdout
    out, match = tmp_path / "out.jsonl", gpumatch.pipeline.match

    def breaks(*arguments, **options):
        rows = match(*arguments, **options)
        yield next(rows)
        yield next(rows)
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr("gpumatch.pipeline.match", breaks)
        assert run("match", lake, "--task", "union", "-q", "-o", out).exit_code == 1
    assert not out.exists()
    assert whole.startswith((out.with_name("out.jsonl.partial")).read_text())
    return out, whole


def left(out):
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith("out.jsonl"))


def test_a_stopped_run_is_continued(lake, stopped):
    out, whole = stopped
    found = run("match", lake, "--task", "union", "-o", out)
    assert found.exit_code == 0
    assert "2 rows" in found.stderr
    assert out.read_text() == whole
    assert left(out) == ["out.jsonl"]


def test_fresh_starts_over(lake, stopped, tmp_path):
    out, whole = stopped
    stats = tmp_path / "s.json"
    assert run("match", lake, "--task", "union", "-o", out, "--fresh", "--stats", stats).exit_code == 0
    assert json.loads(stats.read_text())["counters"]["resumed"] == 0
    assert out.read_text() == whole
    assert left(out) == ["out.jsonl"]


@pytest.mark.parametrize("what", ["settings", "lake"])
def test_what_no_longer_fits_is_given_up_and_says_so(lake, stopped, what):
    out, whole = stopped
    if what == "lake":
        (lake / "a.csv").write_text("city,country\nBern,Switzerland\n")
    more = ["-k", "1"] if what == "settings" else []
    found = run("match", lake, "--task", "union", "-o", out, *more)
    assert found.exit_code == 0
    assert "starting over" in found.stderr
    assert what in found.stderr
    assert out.read_text() == run("match", lake, "--task", "union", "-q", *more).stdout != whole
    assert left(out) == ["out.jsonl"]


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "in the background of a script"])
def test_max_memory_stops_the_run_with_the_figures(lake, tmp_path, interrupts):
    for n in range(300):
        (lake / f"t{n}.csv").write_text("a,b,c,d\n" + "1,2,3,4\n" * 50)
    done = subprocess.run(
        [sys.executable, "-m", "gpumatch", "match", lake, "--task", "union", "-o", tmp_path / "o.jsonl",
         "--max-memory", "60MB"],
        capture_output=True, text=True, check=False, env=os.environ | {"GPUMATCH_BATCH": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )  # fmt: skip
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("gpumatch: ")]
    assert said.startswith("gpumatch: stopped: ")
    assert " MB are more than --max-memory 60.00 MB (in stage " in said
    assert said.endswith("a run with -o goes on; or need less with a smaller --sample-rows, and it starts over")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_run_that_is_not_expected_to_fit_says_so(lake):
    said = []
    settings = Settings(task="join", layer="L1", device="cpu", max_memory=10**6, cache=False)
    list(pipeline.match(lake, Run(settings, say=said.append)))  # and nobody watches
    assert "are expected to need about" in said[0]


def test_index_then_match_the_index(lake, tmp_path):
    built = run("index", lake, "-o", tmp_path / "idx")
    assert built.exit_code == 0
    assert "3 tables, 6 columns, built" in built.stderr
    again = run("index", lake, "-o", tmp_path / "idx")
    assert "up to date" in again.stderr
    assert built.stdout == again.stdout == ""
    from_lake = run("match", lake, "--task", "union", "-q").stdout
    assert run("match", tmp_path / "idx", "--task", "union", "-q").stdout == from_lake


def test_eval_prints_metrics_and_compares(lake, tmp_path):
    run("match", lake, "--task", "join", "-o", tmp_path / "new.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    for row in rows:
        row["matches"] = row["matches"][::-1]
        for rank, match in enumerate(row["matches"]):
            match["score"] = 1 - rank / 10
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    truth = tmp_path / "truth.csv"
    truth.write_text("query_table,candidate_table\na.csv,b.csv\nb.csv,a.csv\nb.csv,gone.csv\n")
    found = run("eval", tmp_path / "new.jsonl", "--truth", truth, "--lake", lake)
    assert found.exit_code == 0
    assert "Hit@1" in found.stdout
    assert "2 queries" in found.stdout
    told = json.loads(run("eval", tmp_path / "new.jsonl", "--truth", truth, "--lake", lake, "--json").stdout)
    assert told["metrics"]["Hit@1"]["mean"] == 1
    assert told["truth_coverage"] == pytest.approx(2 / 3)
    assert "warning" not in found.output
    truth.write_text("query_table,candidate_table\na.csv,b.csv\nb.csv,a.csv\nb.csv,gone.csv\nx\x1b.csv,a.csv\n")
    lacking = "warning: 1 of the 3 queries of the truth, such as 'x\\x1b.csv', are not among those of the results"
    for options in ([], ["--json"], ["--pool"]):
        assert lacking in run("eval", tmp_path / "new.jsonl", "--truth", truth, "--lake", lake, *options).stderr
    truth.write_text("query_table,candidate_table\na.csv,b.csv\nb.csv,a.csv\nb.csv,gone.csv\n")
    run("index", lake, "-o", tmp_path / "idx")
    by_index = run("eval", tmp_path / "new.jsonl", "--truth", truth, "--lake", tmp_path / "idx", "--json")
    assert json.loads(by_index.stdout) == told
    against = ["--against", tmp_path / "old.jsonl"]
    compared = json.loads(run("eval", tmp_path / "new.jsonl", "--truth", truth, "--json", *against).stdout)
    assert compared["n_queries"] == 2
    assert "paired bootstrap" in run("eval", tmp_path / "new.jsonl", "--truth", truth, *against).stdout


@pytest.mark.parametrize("by", ["flag", "setting"])
def test_eval_counts_the_truth_behind_links_as_the_run_did(lake, tmp_path, monkeypatch, by):
    (tmp_path / "far").mkdir()
    (lake / "b.csv").rename(tmp_path / "far" / "b.csv")
    (lake / "more").symlink_to(tmp_path / "far")
    rows = [{"query_table": "a.csv", "query_column": None, "matches": [{"table": "c.csv", "score": 1}]}]
    (tmp_path / "r.jsonl").write_text("".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("query_table,candidate_table\na.csv,c.csv\na.csv,more/b.csv\n")
    asked = ["eval", tmp_path / "r.jsonl", "--truth", tmp_path / "t.csv", "--lake", lake, "--json"]
    assert json.loads(run(*asked).stdout)["truth_coverage"] == 0.5
    if by == "setting":
        monkeypatch.setenv("GPUMATCH_FOLLOW_LINKS", "1")
    assert json.loads(run(*asked, *["--follow-links"] * (by == "flag")).stdout)["truth_coverage"] == 1


def test_eval_tells_the_recall_of_the_pool_where_all_of_it_is_printed(lake, tmp_path, capsys, monkeypatch):
    truth = tmp_path / "truth.csv"
    truth.write_text("query_table,candidate_table\na.csv,b.csv\nb.csv,a.csv\nb.csv,gone.csv\n")
    for k, name in ((0, "all.jsonl"), (1, "cut.jsonl")):
        run("match", lake, "--task", "join", "-k", k, "-o", tmp_path / name)
    command = ["eval", tmp_path / "all.jsonl", "--truth", truth, "--pool"]
    assert json.loads(run(*command, "--json").stdout) | {"interval": []} == {
        "recall": 0.75, "interval": [], "mean_size": 2, "n_queries": 2, "n_whole": 1, "n_unanswered": 0,
        "first_unanswered": None,
    }  # fmt: skip
    found = run(*command, "--lake", lake).stdout
    assert [line.split("│")[1:3] for line in found.splitlines() if "│ " in line] == [
        [" recall                ", " 1.000 "],
        [" matches a query       ", "   2.0 "],
        [" queries that have all ", "     2 "],
    ]
    code, said = fails(capsys, monkeypatch, "eval", tmp_path / "cut.jsonl", "--truth", truth, "--pool")
    assert (code, said.count("\n")) == (1, 1)
    assert "lists 1 of the 2 tables that search proposed" in said
    assert "-k 0" in said
    code, said = fails(capsys, monkeypatch, *command, "--against", tmp_path / "cut.jsonl")
    assert (code, "--pool and --against" in said) == (2, True)


def test_demo_ends_with_one_table(tmp_path, lake):
    found = run("demo", "-o", tmp_path / "demo", "--layer", "L1")
    assert found.exit_code == 0
    lines = [line for line in found.stdout.splitlines() if "L1" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["join", "union"]
    for task in ("join", "union"):
        results = (tmp_path / "demo" / f"{task}-L1.jsonl").read_text().splitlines()
        assert len(results) == 100
    assert (lake_path("union") / "tables.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["match", "nowhere", "--task", "join"], 1, "no lake at nowhere"),
        (
            ["match", "{lake}", "--task", "join", "--queries", ""],
            1,
            "the path of the queries (--queries, queries=) is empty",
        ),
        (["align", "{lake}/a.csv", "gone.csv"], 1, "no table at gone.csv: give a CSV, TSV or Parquet file"),
        (["match", "{lake}"], 2, "--task join or --task union"),
        (["match", "{lake}", "--task", "merge"], 2, "task = 'merge'"),
        (["match", "{lake}", "--layer", "L9", "--task", "join"], 2, "layer = 'L9'"),
        (["match", "{lake}", "--task", "join", "--queries", "gone.json"], 1, "no queries at gone.json"),
        (["match", "{lake}", "--task", "join", "--device", "cuda"], 1, "--device cpu"),
        (["match", "{lake}", "--task", "join", "--layer", "L1+L2", "--encoder", "no/such"], 1, "no/such"),
        (["eval", "gone.jsonl", "--truth", "t.csv"], 1, "gone.jsonl"),
        (["index", "{lake}", "-o", "{lake}"], 1, "is not empty and no index"),
        (["index", "{lake}", "-o", "{lake}/a.csv"], 1, "a.csv is a file, and an index is a folder; give -o a new"),
        (["index", "{lake}", "-o", "{lake}/a.csv/idx"], 1, "a.csv/idx: Not a directory; give -o another place"),
        (["match", "{lake}", "--task", "join", "-o", ""], 1, ". is a folder; give -o a file in it"),
    ],
)
def test_errors_are_one_line_for_people(lake, capsys, monkeypatch, arguments, code, says):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, said = fails(capsys, monkeypatch, *(argument.format(lake=lake) for argument in arguments))
    assert found == code
    assert says in said
    assert said.startswith("gpumatch: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["match", "", "--task", "join"], ["index", "", "-o", "idx"], ["align", "a.csv", ""], ["align", "", "a.csv"],
        ["eval", "r.jsonl", "--truth", "t.csv", "--lake", ""], ["cache", "verify", "--lake", ""],
        ["explain", "r.jsonl", "a", "b", "--lake", ""], ["explain", "r.jsonl", "a", "b", "--queries", ""],
    ],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(lake, capsys, monkeypatch, arguments):
    monkeypatch.chdir(lake)
    code, said = fails(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "the path is empty" in said


def test_an_unwritable_output_is_named(lake, capsys, monkeypatch):
    found, said = fails(capsys, monkeypatch, "match", lake, "--task", "join", "-q", "-o", lake / "a.csv" / "out.jsonl")
    assert found == 1
    assert "a.csv" in said


def test_ctrl_c_ends_with_130(lake, tmp_path):
    for n in range(400):
        (lake / f"t{n}.csv").write_text("a,b,c,d\n" + "1,2,3,4\n" * 50)
    out = tmp_path / "out.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-m", "gpumatch", "match", str(lake), "--task", "union", "-k", "0", "-q", "-o", str(out)],
        env=os.environ | {"GPUMATCH_BATCH": "1"},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's background jobs ignore it
    )
    partial = out.with_name("out.jsonl.partial")
    deadline = time.monotonic() + 60
    while not partial.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"Traceback" not in said
    assert said.endswith(b"gpumatch: interrupted\n")
    assert not out.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_amid_a_callback_from_c_is_not_lost(number, code):
    script = f"""
import ctypes, os, time
from gpumatch import cli

@ctypes.CFUNCTYPE(None)
def callback():
    os.kill(os.getpid(), {number:d})
    time.sleep(0)

def app():
    callback()
    time.sleep(600)

cli.app = app
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (code, "gpumatch: interrupted\n" if code == 130 else "")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("CUDA error: out of memory"), "the GPU is out of memory"),
        (MemoryError(), "out of memory; need less"),
    ],
)
def test_a_lack_of_memory_is_one_line_for_people(lake, capsys, monkeypatch, error, says):
    def match(*_, **__):
        raise error

    monkeypatch.setattr("gpumatch.pipeline.match", match)
    code, said = fails(capsys, monkeypatch, "match", lake, "--task", "join", "-q")
    assert code == 1
    assert said.startswith(f"gpumatch: {says}")
    assert len(said.splitlines()) == 1


def left_alone(command):
    """Run a command whose reader has gone; return its exit code and what it said."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", ["match {lake} --task join -k 0 -q", "--help", "config show"])
def test_a_reader_that_leaves_ends_the_run_as_it_does_everywhere(lake, arguments):
    command = [sys.executable, "-m", "gpumatch", *arguments.format(lake=lake).split()]
    assert left_alone(command) == (141, "")


def test_what_is_printed_last_has_to_arrive_too():
    program = "import sys; from gpumatch import cli; cli.app = lambda: sys.exit(print('x')); cli.script()"
    assert left_alone([sys.executable, "-c", program]) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "gpumatch: [Errno 28] No space left on device\n")


# --- the command itself


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [("None", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why\n"), ("sys.exit(None)", 0, "")],
)
def test_the_command_ends_at_once_with_its_code_and_all_it_said(ended, code, said):
    program = f"""
import atexit, sys
from gpumatch import cli
atexit.register(print, "taken apart")
cli.main = lambda: (print("done"), {ended})
cli.script()
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (code, "done\n", said)
