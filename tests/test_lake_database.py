"""DuckDB files in, the tables and views of every schema out; nothing written, nothing outside of the file reached."""

import os
import subprocess
import sys

import duckdb
import pytest

from gpumatch.errors import LakeError
from gpumatch.lake import Skipped, database, find_queries, open_lake


@pytest.fixture
def made(tmp_path):
    """Make a DuckDB file of some statements, closed and whole."""

    def make(*statements, name="lake.duckdb"):
        path = tmp_path / name
        with duckdb.connect(str(path)) as connection:
            for statement in statements:
                connection.execute(statement)
        return path

    return make


def contents(lake):
    return {table.name: (table.header, [column.to_pylist() for column in table.columns]) for table in lake.tables()}


def test_tables_and_views_of_every_schema_by_their_full_names(made):
    path = made(
        "create table cities as select * from (values (1, 'Paris'), (2, null)) as t(id, city)",
        "create view names as select city from cities order by id",
        "create schema other",
        'create table other."odd "" name" as select 1 as "a b"',
        "create table empty(x integer, y varchar)",
        "create temp table gone as select 1",
    )
    assert contents(open_lake(path)) == {
        "main.cities": (("id", "city"), [["1", "2"], ["Paris", None]]),
        "main.empty": (("x", "y"), [[], []]),
        "main.names": (("city",), [["Paris", None]]),
        'other.odd " name': (("a b",), [["1"]]),
    }


def test_every_type_is_duckdbs_own_text_and_numbers_are_declared(made):
    path = made(
        "create table t as select 1::tinyint a, 2::uhugeint b, 1.50::decimal(9, 2) c, 0.5::double d, true e, "
        "date '2020-01-02' f, timestamp '2020-01-02 03:04:05' g, [1, null] h, {'x': 1} i, '\\x00z'::blob j, "
        "'m'::enum('m', 'n') k, map {'k': 1} l, null m"
    )
    (table,) = open_lake(path).tables()
    assert [column.to_pylist()[0] for column in table.columns] == [
        "1", "2", "1.50", "0.5", "true", "2020-01-02", "2020-01-02 03:04:05", "[1, NULL]", "{'x': 1}", "\\x00z", "m",
        "{k=1}", None,
    ]  # fmt: skip
    assert table.types[:5] == ("numeric",) * 4 + (None,)


def test_any_name_will_do_and_a_glob_finds_no_databases(made, tmp_path):
    path = made("create table t as select 1 a", name="data.csv.bin")
    assert open_lake(path).names == ["main.t"]
    with pytest.raises(LakeError, match="no tables"):
        open_lake(f"{tmp_path}/*")


def test_a_name_with_a_dot_is_listed_where_it_would_be_two_tables(made):
    path = made('create schema "a.b"', 'create table "a.b".c as select 1 x', "create schema a",
                'create table a."b.c" as select 2 x')  # fmt: skip
    lake = open_lake(path)
    assert contents(lake) == {"a.b.c": (("x",), [["2"]])}
    assert [(one.name, one.rule) for one in lake.skipped] == [("a.b.c", "repeated-name")]


def test_a_view_that_fails_is_listed_and_the_others_are_read(made):
    path = made(
        "create table t as select 1 a",
        "create view broken as select * from t",
        "create view divides as select cast('x' || a as integer) q from t",
        "create view z as select 2 b",
        "alter table t rename to u",
    )
    lake = open_lake(path)
    assert contents(lake) == {"main.u": (("a",), [["1"]]), "main.z": (("b",), [["2"]])}
    found = {one.name: (one.rule, one.found) for one in lake.skipped}
    assert {name: rule for name, (rule, _) in found.items()} == dict.fromkeys(
        ["main.broken", "main.divides"], "query-failed"
    )
    assert "t" in found["main.broken"][1]
    assert "\n" not in found["main.divides"][1]
    assert not lake.incomplete


def test_a_view_that_asks_for_too_much_memory_may_be_read_the_next_time(made, monkeypatch):
    path = made("create view v as select list(range) q from range(40000000)", "create table t as select 1 a")
    monkeypatch.setitem(database._CONFIG, "memory_limit", "10MB")
    lake = open_lake(path)
    assert list(contents(lake)) == ["main.t"]
    assert [(one.name, one.rule) for one in lake.skipped] == [("main.v", "memory")]
    assert "Out of Memory" in lake.skipped[0].found
    assert lake.incomplete


def test_views_reach_no_other_file(made, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    path = made(
        "create table t as select 1 a",
        f"create view v as select * from read_csv('{tmp_path}/secret.csv')",
        f"create view w as select * from read_text('{tmp_path}/secret.csv')",
    )
    lake = open_lake(path)
    assert list(contents(lake)) == ["main.t"]
    assert [(one.name, one.rule) for one in lake.skipped] == [("main.v", "query-failed"), ("main.w", "query-failed")]


def test_a_view_without_end_is_stopped(made, monkeypatch):
    path = made(
        "create table t as select 1 a",
        "create view e as select sum(a.range * b.range) s from range(10000000) a, range(10000000) b",
    )
    monkeypatch.setattr(database, "QUERY_SECONDS", 0.3)
    lake = open_lake(path)
    assert list(contents(lake)) == ["main.t"]
    assert lake.skipped == [Skipped("main.e", "query-slow", "stopped after 0.3 seconds")]
    assert lake.incomplete


def test_long_tables_are_sampled_as_in_any_other_format(made, tmp_path):
    path = made("create table t as select range i, 't' || range t from range(1000)")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "t.csv").write_text("i,t\n" + "".join(f"{i},t{i}\n" for i in range(1_000)))
    lake = open_lake(path, sample_rows=10)
    (read,) = lake.tables()
    (other,) = open_lake(tmp_path / "csv", sample_rows=10).tables()
    assert [column.to_pylist() for column in read.columns] == [column.to_pylist() for column in other.columns]
    assert read.sampled
    assert lake.notes == [Skipped("main.t", "rows-sampled", "10 of 1,000 rows")]


def test_long_cells_and_many_columns_are_cut(made):
    columns = ", ".join(f"{i} as c{i}" for i in range(2_100))
    path = made("create table l as select repeat('ä', 9000) a", f"create table w as select {columns}")
    lake = open_lake(path)
    read = contents(lake)
    assert read["main.l"] == (("a",), [["ä" * 8_192]])
    assert read["main.w"][0] == tuple(f"c{i}" for i in range(2_000))
    assert [(one.name, one.rule) for one in lake.notes] == [("main.l", "cells-cut"), ("main.w", "columns-cut")]


def test_the_file_is_not_touched(made):
    path = made("create table t as select 1 a")
    os.utime(path, ns=(0, 0))
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
    list(open_lake(path).tables())
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


def test_a_fingerprint_is_of_the_file_and_moves_with_it(made, tmp_path):
    path = made("create table t as select 1 a")
    first = open_lake(path).fingerprint()
    assert open_lake(path.rename(tmp_path / "moved")).fingerprint() == first
    assert open_lake(made("create table t as select 2 a")).fingerprint() != first


def test_a_database_is_a_lake_of_queries_too(made, tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.csv").write_text("a,b\n1,2\n")
    found = find_queries(open_lake(tmp_path / "lake"), made("create table t as select 1 a"), "join")
    assert [row.table for row in found.rows] == ["main.t"]


# --- what cannot be opened


def damaged(path, change):
    data = path.read_bytes()
    path.write_bytes(change(data))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:5_000],
        lambda data: data[:64],
        lambda data: data[:20] + b"\xff" * 100 + data[120:],  # after the bytes that tell a database from text
        lambda data: data[:4_096] + bytes(len(data) - 4_096),
    ],
    ids=["cut", "cut in the header", "damaged header", "blank"],
)
def test_a_damaged_database_is_an_error_that_says_what_to_do(made, change):
    path = damaged(made("create table t as select range i from range(100000)"), change)
    with pytest.raises(
        LakeError, match=r"lake\.duckdb cannot be opened: .+; (restore it from a copy|install the duckdb)"
    ):
        open_lake(path)


def test_damage_in_a_table_is_listed_or_an_error_and_never_a_wrong_table(made):
    path = made("create table t as select range i from range(300000)", "create table u as select 1 a")
    data = path.read_bytes()
    whole = contents(open_lake(path))
    for at in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            read = contents(open_lake(path))
        except LakeError:
            continue
        assert read.items() <= whole.items(), at


def test_a_database_without_tables_is_an_error(made):
    with pytest.raises(LakeError, match="holds no tables"):
        open_lake(made("create schema s"))


def test_a_database_that_another_process_writes_to_is_an_error_that_says_so(made):
    path = made("create table t as select 1 a")
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(LakeError, match="close the program or the connection that has it open, or give a copy"):
            open_lake(path)
        other.stdin.close()
    assert open_lake(path).names == ["main.t"]
