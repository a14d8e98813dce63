"""Every rule of reading by a file that breaks it; all of them together in one lake; and faults while a file is read."""

import ast
import errno
import gzip
import os
import re
import stat
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpumatch.errors import LakeError
from gpumatch.lake import Skipped, arrow, delimited, files, find_queries, listing, open_lake, source, tables
from gpumatch.lake.rules import PARTLY, PASSING, SKIPPED, UNANSWERED, Unreadable
from gpumatch.profile import profile_tables

PLAIN = b"id,city\n1,Paris\n2,Rome\n"
READ = (("id", "city"), [["1", "2"], ["Paris", "Rome"]])


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        names = re.findall(r'^    "(.+?)": Case\(', Path(__file__).with_name("bad_files.py").read_text(), re.MULTILINE)
        metafunc.parametrize("case", names)


def contents(lake):
    return {table.name: (table.header, [column.to_pylist() for column in table.columns]) for table in lake.tables()}


def rules(listed):
    return {one.name: one.rule for one in listed}


def check(lake, cases):
    """Compare a lake with what the cases expect: tables, rules and notes, and nothing besides."""
    read = contents(lake)
    tables, skipped, notes = {}, {}, {}
    for case in cases:
        name = f"{case.file}/in.csv" if case.file == "folder.csv" else case.file
        if isinstance(case.expected, str):
            skipped[name] = case.expected
        else:
            tables[name] = case.expected
            notes |= {(name, rule): True for rule in case.notes}
    for name in [name for name in read if name.startswith("other end of ") or name == "zz plain.csv"]:
        assert read.pop(name) == READ
    found = {name: rule for name, rule in rules(lake.skipped).items() if not name.startswith("other end of ")}
    assert found == skipped
    assert read.keys() == tables.keys()
    for name, expected in tables.items():
        assert read[name] == expected, name
    assert {(one.name, one.rule) for one in lake.notes} == notes.keys()
    assert all(one.found and "\n" not in one.found for one in [*lake.skipped, *lake.notes])


def test_a_file_is_read_or_listed_with_its_rule(tmp_path, bad_files, case):
    (tmp_path / "zz plain.csv").write_bytes(PLAIN)
    bad_files.make(bad_files.CASES[case], tmp_path)
    check(open_lake(tmp_path), [bad_files.CASES[case]])


def test_a_file_is_read_alike_where_it_is_read_piece_by_piece(tmp_path, monkeypatch, bad_files, case):
    for reader in (tables, delimited, arrow):
        monkeypatch.setattr(reader, "SMALL_BYTES", 100)
    bad_files.make(bad_files.CASES[case], tmp_path)
    (tmp_path / "zz plain.csv").write_bytes(PLAIN)
    check(open_lake(tmp_path), [bad_files.CASES[case]])


def test_all_files_together_make_one_lake(tmp_path, bad_files):
    assert len({case.file for case in bad_files.CASES.values()}) == len(bad_files.CASES) >= 150
    (tmp_path / "zz plain.csv").write_bytes(PLAIN)
    for case in bad_files.CASES.values():
        bad_files.make(case, tmp_path)
    lake = open_lake(tmp_path)
    check(lake, bad_files.CASES.values())
    assert set(profile_tables(lake.tables()).tables) == set(lake.names) - {one.name for one in lake.skipped}
    assert lake.fingerprint() == open_lake(tmp_path).fingerprint()


def test_every_rule_is_broken_by_a_case_or_by_a_test_of_its_own(bad_files):
    broken = {case.expected for case in bad_files.CASES.values() if isinstance(case.expected, str)}
    noted = {rule for case in bad_files.CASES.values() for rule in case.notes}
    assert {*SKIPPED, *PARTLY} - broken - noted - asserted_rules() == set()


def asserted_rules():
    """Return the rules that the tests of reading expect in an assertion on what a lake lists."""
    found = set()
    for path in [Path(__file__), *Path(__file__).parent.glob("test_lake_*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and re.search(r"\.(skipped|notes)\b", ast.unparse(node.test)):
                for one in ast.walk(node):
                    named = isinstance(one, ast.Call) and ast.unparse(one.func) == "Skipped"
                    rules = one.args[1:2] if named else one.elts[1:2] if isinstance(one, ast.Tuple) else []
                    rules = one.values if isinstance(one, ast.Dict) else rules
                    found |= {rule.value for rule in rules if isinstance(rule, ast.Constant)}
    return found


# --- what the system lets happen


def test_what_changes_between_listing_and_reading_is_listed(tmp_path):
    for name in ("a_fifo", "b_link", "c_folder", "d_gone", "e_socket", "f_plain"):
        (tmp_path / f"{name}.csv").write_bytes(PLAIN)
    lake = open_lake(tmp_path)
    for name in lake.names[:5]:
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "a_fifo.csv")
    (tmp_path / "b_link.csv").symlink_to("/etc/passwd")
    (tmp_path / "c_folder.csv").mkdir()
    os.mknod(tmp_path / "e_socket.csv", stat.S_IFSOCK | 0o600)
    assert contents(lake) == {"f_plain.csv": READ}
    assert rules(lake.skipped) == {
        "a_fifo.csv": "fifo",
        "b_link.csv": "link-outside",
        "c_folder.csv": "changed",
        "d_gone.csv": "unreadable",
        "e_socket.csv": "unreadable",
    }
    assert len(lake.fingerprint()) == 32


@pytest.mark.parametrize("change", ["longer", "shorter", "rewritten"])
def test_a_file_that_is_written_to_while_it_is_read_is_listed(tmp_path, monkeypatch, change):
    path = tmp_path / "a.csv"
    path.write_bytes(PLAIN)
    os.utime(path, ns=(0, 0))
    lake, read = open_lake(tmp_path), os.read

    def changing(descriptor, n):
        data = read(descriptor, n)
        path.write_bytes({"longer": PLAIN + b"3,Oslo\n", "shorter": b"id\n", "rewritten": PLAIN[::-1]}[change])
        return data

    monkeypatch.setattr(files.os, "read", changing)
    assert list(lake.tables()) == []
    assert rules(lake.skipped) == {"a.csv": "changed"}


def test_short_reads_are_read_whole(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(PLAIN)
    read = os.read
    monkeypatch.setattr(files.os, "read", lambda descriptor, n: read(descriptor, min(n, 5)))
    assert contents(open_lake(tmp_path)) == {"a.csv": READ}


@pytest.mark.parametrize("at", ["open", "read"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_errors_of_the_system_are_listed(tmp_path, monkeypatch, at, code):
    for name in ("a.csv", "b.parquet", "c.csv.gz"):
        (tmp_path / name).write_bytes(PLAIN)
    lake = open_lake(tmp_path)

    def failing(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, at, failing)
    assert list(lake.tables()) == []
    assert lake.skipped == [Skipped(name, "unreadable", os.strerror(code)) for name in lake.names]


def test_an_error_in_the_middle_of_a_large_file_is_listed(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(b"id,city\n" + b"1,Paris\n" * 700_000)
    lake, read, calls = open_lake(tmp_path), os.read, []

    def failing(descriptor, n):
        calls.append(n)
        if len(calls) > 3:
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, n)

    monkeypatch.setattr(files.os, "read", failing)
    assert list(lake.tables()) == []
    assert lake.skipped == [Skipped("a.csv", "unreadable", "Input/output error")]


def test_a_device_is_listed_and_never_opened(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(PLAIN)
    (tmp_path / "null.csv").symlink_to("/dev/null")
    lake = open_lake(tmp_path, follow_links=True)
    assert contents(lake) == {"a.csv": READ}
    assert rules(lake.skipped) == {"null.csv": "device"}


def test_a_folder_that_cannot_be_listed_is_listed_itself(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.csv").write_bytes(PLAIN)
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    lake = open_lake(tmp_path)
    assert contents(lake) == {"a.csv": READ}
    assert lake.skipped == [Skipped("shut", "unreadable-folder", "Permission denied")]


def test_what_nobody_thought_of_is_listed_too(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(PLAIN)
    lake = open_lake(tmp_path)

    def failing(*arguments):
        raise ZeroDivisionError("of all things\nthis")

    monkeypatch.setattr(source, "read_table", failing)
    assert list(lake.tables()) == []
    assert lake.skipped == [Skipped("a.csv", "internal", "ZeroDivisionError: of all things")]


def test_a_lack_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(PLAIN)

    def failing(*arguments):
        raise MemoryError

    monkeypatch.setattr(source, "read_table", failing)
    with pytest.raises(MemoryError):
        list(open_lake(tmp_path).tables())


def test_a_parquet_file_that_asks_for_too_much_memory_is_listed(tmp_path, monkeypatch):
    """As damaged ones do; so whole ones are no damaged ones either."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")

    def failing(*arguments, **named):
        raise pa.ArrowMemoryError("malloc of size 4611686018427387904 failed")

    monkeypatch.setattr(arrow.pq, "ParquetFile", failing)
    lake = open_lake(tmp_path)
    assert list(lake.tables()) == []
    assert lake.skipped == [Skipped("a.parquet", "memory", "malloc of size 4611686018427387904 failed")]
    assert lake.incomplete


# --- what may pass


@pytest.mark.parametrize("rule", sorted(SKIPPED))
def test_a_table_may_be_there_the_next_time_by_some_rules(tmp_path, monkeypatch, rule):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(PLAIN)
    lake = open_lake(tmp_path)
    lake.fingerprint()
    assert len(list(lake.tables())) == 2
    assert not lake.incomplete

    def failing(path, *arguments):
        raise Unreadable(rule, "x")

    monkeypatch.setattr(source, "read_table", failing)
    list(lake.tables())
    assert lake.incomplete == (rule in PASSING)


@pytest.mark.parametrize("at", ["open", "read"])
def test_what_the_fingerprint_could_not_read_either_is_no_news(tmp_path, monkeypatch, at):
    """The fingerprint says so itself, and is another one when the file can be read."""
    (tmp_path / "a.csv").write_bytes(PLAIN)
    os.mkfifo(tmp_path / "b.csv")
    lake = open_lake(tmp_path)
    whole = lake.fingerprint()

    def failing(*arguments):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, at, failing)
        assert lake.fingerprint() != whole
        assert list(lake.tables()) == []
    assert rules(lake.skipped) == {"a.csv": "unreadable", "b.csv": "fifo"}
    assert not lake.incomplete
    assert lake.fingerprint() == whole
    assert lake.incomplete


def test_a_database_in_a_folder_without_tables_is_pointed_out(tmp_path):
    path = tmp_path / "some.db"
    duckdb.connect(str(path)).close()
    with pytest.raises(LakeError, match=rf"no file there ends in .*; {path} is a database: give that$"):
        open_lake(tmp_path)


def test_nothing_but_bad_files_is_no_lake_and_says_why(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(LakeError, match=r"no file there ends in \.csv, \.tsv, \.parquet; 'a\.csv' is a named pipe$"):
        open_lake(tmp_path)
    with pytest.raises(LakeError, match="is no lake but a named pipe"):
        open_lake(tmp_path / "a.csv")


# --- links


@pytest.fixture
def linked(tmp_path):
    """A lake with links to a file and a folder inside of it and outside of it, and one around."""
    lake, out = tmp_path / "lake", tmp_path / "out"
    (lake / "real").mkdir(parents=True)
    out.mkdir()
    for path in (lake / "real" / "a.csv", out / "b.csv"):
        path.write_bytes(PLAIN)
    (lake / "in.csv").symlink_to("real/a.csv")
    (lake / "out.csv").symlink_to(out / "b.csv")
    (lake / "again").symlink_to("real")
    (lake / "beyond").symlink_to(out)
    (lake / "real" / "around").symlink_to("..")
    (out / "back").symlink_to(lake)
    return lake


@pytest.mark.parametrize("pattern", ["", "/**/*"], ids=["folder", "glob"])
def test_links_within_the_lake_are_followed_to_files_alone(linked, pattern):
    lake = open_lake(f"{linked}{pattern}")
    assert contents(lake) == {"in.csv": READ, "real/a.csv": READ}
    assert rules(lake.skipped) == {
        "again": "linked-folder",
        "beyond": "linked-folder",
        "out.csv": "link-outside",
        "real/around": "linked-folder",
    }


@pytest.mark.parametrize("pattern", ["", "/**/*"], ids=["folder", "glob"])
def test_all_links_are_followed_where_asked_and_no_folder_twice(linked, pattern):
    lake = open_lake(f"{linked}{pattern}", follow_links=True)
    assert contents(lake) == dict.fromkeys(["beyond/b.csv", "in.csv", "out.csv", "real/a.csv"], READ)
    assert rules(lake.skipped) == dict.fromkeys(["again", "beyond/back", "real/around"], "linked-folder")


def test_folders_full_of_links_to_each_other_end(tmp_path):
    for i in range(12):
        (tmp_path / f"f{i}").mkdir()
        (tmp_path / f"f{i}" / "t.csv").write_bytes(PLAIN)
        for j in range(12):
            (tmp_path / f"f{i}" / f"to{j}").symlink_to(tmp_path / f"f{j}")
    assert len(open_lake(tmp_path, follow_links=True).names) == 12
    assert len(open_lake(f"{tmp_path}/**/*.csv").names) == 12


def test_a_pattern_never_goes_up(tmp_path):
    (tmp_path / "lake").mkdir()
    for name in ("lake/a.csv", "b.csv"):
        (tmp_path / name).write_bytes(PLAIN)
    with pytest.raises(LakeError, match="no tables below"):
        open_lake(f"{tmp_path}/lak*/../*.csv")


# --- bounds


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("n", [9, 10, 11, 1_000])
def test_long_tables_are_sampled_in_file_order(tmp_path, kind, n):
    table = pa.table({"i": list(range(n)), "t": [f"t{i}" for i in range(n)]})
    if kind == "csv":
        (tmp_path / "a.csv").write_text("i,t\n" + "".join(f"{i},t{i}\n" for i in range(n)))
    else:
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    lake = open_lake(tmp_path, sample_rows=10)
    (read,) = lake.tables()
    numbers = [int(one) for one in read.columns[0].to_pylist()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == min(n, 10)
    assert read.columns[1].to_pylist() == [f"t{i}" for i in numbers]
    assert read.sampled == (n > 10)
    name = lake.names[0]
    assert lake.notes == ([Skipped(name, "rows-sampled", f"10 of {n:,} rows")] if n > 10 else [])
    if n == 1_000:  # the same on every machine, for every format and however the file is read
        assert numbers == SAMPLE_OF_1000


SAMPLE_OF_1000 = [203, 254, 366, 410, 503, 543, 566, 821, 930, 986]


def test_what_has_to_be_held_whole_must_not_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_UNPACKED_BYTES", files.SMALL_BYTES + 1_000)
    monkeypatch.setattr(listing, "MAX_LISTING_BYTES", 1_000)
    numbers = pa.array(np.random.default_rng(0).integers(0, 2**62, 600_000))
    with gzip.open(tmp_path / "a.parquet.gz", "wb", compresslevel=1) as file:
        pq.write_table(pa.table({"a": numbers}), file)
    (tmp_path / "b.csv").write_bytes(PLAIN)
    lake = open_lake(tmp_path)
    assert contents(lake) == {"b.csv": READ}
    assert rules(lake.skipped) == {"a.parquet.gz": "too-large"}
    (tmp_path / "tables.json").write_text('[{"table_name": "a"}' + " " * 1_000 + "]")
    with pytest.raises(LakeError, match="a list of more than 1,000 bytes; give its tables as files"):
        open_lake(tmp_path / "tables.json")
    for name, text in (("q.csv", "query_table\n" + "b.csv\n" * 200), ("q.json", "[" + " " * 1_000 + "]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(LakeError, match=rf"{name} .*too-large: .* 1,000 bytes; .* or its queries in parts"):
            find_queries(lake, tmp_path / name, "join")


def test_wide_tables_keep_fewer_rows(tmp_path):
    header = ",".join(f"c{i}" for i in range(1_000))
    (tmp_path / "a.csv").write_text(header + "\n" + (",".join("1" * 1_000) + "\n") * 2_001)
    lake = open_lake(tmp_path)
    (table,) = lake.tables()
    assert (table.n_rows, table.sampled) == (2_000, True)
    assert lake.notes == [Skipped("a.csv", "rows-sampled", "2,000 of 2,001 rows")]


def test_outside_queries_are_read_within_the_same_bounds(tmp_path):
    for folder in ("lake", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("i,j\n" + "1,2\n" * 20)
    lake = open_lake(tmp_path / "lake", sample_rows=5)
    outside = find_queries(lake, tmp_path / "out", "join").outside
    assert [table.n_rows for table in outside.tables()] == [5]
    assert rules(outside.notes) == {"a.csv": "rows-sampled"}


def test_a_fingerprint_covers_the_way_of_reading(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(PLAIN)
    prints = [
        open_lake(tmp_path).fingerprint(),
        open_lake(tmp_path, sample_rows=7).fingerprint(),
        open_lake(tmp_path, follow_links=True).fingerprint(),
    ]
    monkeypatch.setattr(source, "READER", 99)
    prints.append(open_lake(tmp_path).fingerprint())
    os.mkfifo(tmp_path / "b.csv")
    prints.append(open_lake(tmp_path).fingerprint())
    assert len(set(prints)) == 5


# --- the document


def test_the_document_names_every_rule_and_no_other():
    text = (Path(__file__).parent.parent / "docs" / "READING.md").read_text()
    named = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted([*SKIPPED, *PARTLY, *UNANSWERED])


def test_every_rule_in_the_code_is_one_of_the_list():
    reading = Path(source.__file__).parent
    code = "".join(path.read_text() for path in reading.parent.rglob("*.py") if path.name != "rules.py")
    written = r'(?:Unreadable\(|append\(\(|_skip\([^"]*?|Skipped\([^"{]*?|"rule": )"([a-z-]+)"'
    used = set(re.findall(written, code))
    assert used <= {*SKIPPED, *PARTLY, *UNANSWERED}
    assert {rule for rule in {*SKIPPED, *PARTLY, *UNANSWERED} if f'"{rule}"' not in code} == set()
