"""Lakes of every kind: which tables they have, under which names, in which order, and what is listed as skipped."""

import csv
import json
import os
import re
import shutil
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpumatch.errors import LakeError
from gpumatch.lake import Skipped, open_lake
from gpumatch.profile import profile_tables

CSV = "id,city\n1,Paris\n2,Rome\n"


def fill(root, files):
    """Write files (path → text or bytes) below root in the given order, and return root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def parquet(columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def contents(lake):
    """Name → (header, columns of cells) of every table that streams by."""
    return {table.name: (table.header, [column.to_pylist() for column in table.columns]) for table in lake.tables()}


def listing(path, rows):
    path.write_text(json.dumps(rows))
    return path


# --- folders


def test_a_nested_folder_of_csv_tsv_and_parquet(tmp_path):
    fill(
        tmp_path,
        {
            "a.csv": CSV,
            "sub/b.tsv": "x\ty,z\n1\t2\n",
            "sub/deep er/c.parquet": parquet({"n": [1, None], "s": ["u", "v"]}),
            "notes.txt": CSV,
            "a.csv.xz": CSV,
            "readme": CSV,
            "data.json": "{}",
        },
    )
    lake = open_lake(tmp_path)
    assert lake.root == tmp_path
    assert lake.names == ["a.csv", "sub/b.tsv", "sub/deep er/c.parquet"]
    assert contents(lake) == {
        "a.csv": (("id", "city"), [["1", "2"], ["Paris", "Rome"]]),
        "sub/b.tsv": (("x", "y,z"), [["1"], ["2"]]),
        "sub/deep er/c.parquet": (("n", "s"), [["1", None], ["u", "v"]]),
    }
    assert lake.skipped == []
    assert lake.identities()["sub/b.tsv"] == (tmp_path / "sub" / "b.tsv", "")


def test_a_lake_may_be_given_as_text(tmp_path):
    fill(tmp_path, {"a.csv": CSV})
    assert open_lake(str(tmp_path)).names == ["a.csv"]


def test_a_tables_folder_beside_queries_and_truth(tmp_path):
    fill(
        tmp_path,
        {
            "tables/a.csv": CSV,
            "tables/sub/b.csv": CSV,
            "tables/queries.csv": CSV,
            "queries.csv": "query_table\na.csv\n",
            "ground_truth.csv": "query_table,candidate_table\n",
            "other.csv": CSV,
        },
    )
    lake = open_lake(tmp_path)
    assert lake.root == tmp_path
    assert lake.names == ["a.csv", "queries.csv", "sub/b.csv"]
    assert lake.identities()["a.csv"] == (tmp_path / "tables" / "a.csv", "")


def test_the_side_files_at_the_root_of_a_flat_lake_are_no_tables(tmp_path):
    side = ["queries.csv", "ground_truth.csv", "queries.json", "ground_truth.json"]
    fill(tmp_path, dict.fromkeys([*side, "a.csv", "sub/queries.csv", "sub/ground_truth.csv", "queries.tsv"], CSV))
    fill(tmp_path, {"queries.csv": "query_column;query_table\n"})
    assert open_lake(tmp_path).names == ["a.csv", "queries.tsv", "sub/ground_truth.csv", "sub/queries.csv"]
    assert open_lake(f"{tmp_path}/*.csv").names == ["a.csv"]


def test_a_queries_file_that_lists_none_is_a_table_of_a_flat_lake(tmp_path):
    fill(tmp_path, {"a.csv": CSV, "queries.csv": "query,hits\ncats,1\n"})
    assert open_lake(tmp_path).names == open_lake(f"{tmp_path}/*.csv").names == ["a.csv", "queries.csv"]
    fill(tmp_path, {"queries.csv": ""})
    lake = open_lake(tmp_path)
    assert (list(contents(lake)), [one.rule for one in lake.skipped]) == (["a.csv"], ["empty"])
    fill(tmp_path, {"tables/a.csv": CSV})
    assert open_lake(tmp_path).names == ["a.csv"]


def test_names_are_in_code_point_order_whatever_the_order_of_the_files(tmp_path):
    ordered = [
        "10.csv",
        "9.csv",
        "B.csv",
        "Z/a.csv",
        "a b.csv",
        "a.csv",
        "a.tsv",
        "a/z.csv",
        "a_b.csv",
        "b.csv",
        "é.csv",
        "日.csv",
        "🙂.csv",
    ]
    assert ordered == sorted(ordered)
    for i, files in enumerate((ordered, ordered[::-1], ordered[1::2] + ordered[::2])):
        lake = open_lake(fill(tmp_path / str(i), dict.fromkeys(files, CSV)))
        assert lake.names == ordered
        assert [table.name for table in lake.tables()] == ordered


def test_extensions_count_in_any_case(tmp_path):
    lake = open_lake(fill(tmp_path, {"A.CSV": CSV, "b.Tsv": "x\n1\n", "c.PARQUET": parquet({"n": [1]})}))
    assert sorted(contents(lake)) == ["A.CSV", "b.Tsv", "c.PARQUET"]
    assert lake.skipped == []


def test_hidden_files_and_folders_are_left_out(tmp_path):
    fill(tmp_path, dict.fromkeys([".a.csv", ".git/b.csv", "sub/.c.csv", "sub/.d/e.csv", "f.csv", ".csv"], CSV))
    assert open_lake(tmp_path).names == ["f.csv"]
    hidden = fill(tmp_path / ".lake", {"a.csv": CSV})
    assert open_lake(hidden).names == ["a.csv"]  # only what is hidden below the lake counts


def test_what_would_be_a_table_the_next_time_is_known(tmp_path, monkeypatch):
    fill(tmp_path / "flat", {"a.csv": "x\n1\n"})
    fill(tmp_path / "deep", {"tables/a.csv": "x\n1\n"})
    (tmp_path / "one").mkdir()
    listing(tmp_path / "one" / "tables.json", [{"table_name": "t", "columns": []}])
    (tmp_path / "link").symlink_to(tmp_path / "flat")
    monkeypatch.chdir(tmp_path / "flat")
    taken = {
        "flat": ["out.csv", "new/out.TSV.gz", "tables.json", "../link/out.parquet", str(tmp_path / "flat" / "b.csv")],
        "deep": ["../deep/tables/out.csv", "../deep/tables.json"],
        "one": [],
    }
    free = ["out.jsonl", "out.json", ".out.csv", ".new/out.csv", "../out.csv", "../flat2/out.csv", "../deep/out.csv",
            "new/tables.json", "../one/out.csv", "/dev/null"]  # fmt: skip
    for lake, paths in taken.items():
        others = [path for other, some in taken.items() if other != lake for path in some]
        opened = open_lake(tmp_path / lake)
        assert [path for path in paths + others + free if opened.would_read(Path(path))] == paths
    assert not open_lake("a.csv").would_read(Path("b.csv"))
    assert open_lake("a*.csv").would_read(Path("a2.csv"))
    assert not open_lake("../flat/a*.csv").would_read(Path("b.csv"))
    assert open_lake("../**/a*.csv").would_read(Path("new/a2.csv"))


def test_only_files_are_tables(tmp_path):
    fill(tmp_path, {"folder.csv/a.csv": CSV})
    (tmp_path / "broken.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "folder.csv" / "a.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    lake = open_lake(tmp_path)
    assert lake.names == ["folder.csv/a.csv", "link.csv"]
    assert len(contents(lake)) == 2


@pytest.mark.parametrize("pattern", ["", "/**/*.csv"], ids=["folder", "glob"])
def test_a_folder_linked_into_itself_gives_each_table_once(tmp_path, pattern):
    fill(tmp_path, {"a.csv": CSV, "sub/b.csv": CSV})
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert open_lake(f"{tmp_path}{pattern}").names == ["a.csv", "sub/b.csv"]


def test_file_names_that_are_no_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.csv", "wb") as file:
        file.write(CSV.encode())
    lake = open_lake(tmp_path)
    assert lake.names == ["\udcff.csv"]
    assert profile_tables(lake.tables()).tables == ["\udcff.csv"]
    assert lake.fingerprint() == open_lake(tmp_path).fingerprint()


# --- single files and globs


def test_a_single_file_is_a_lake_of_one_table(tmp_path):
    fill(tmp_path, {"a.csv": CSV, "b.csv": CSV})
    lake = open_lake(tmp_path / "a.csv")
    assert (lake.root, lake.names) == (tmp_path, ["a.csv"])
    assert contents(lake) == {"a.csv": (("id", "city"), [["1", "2"], ["Paris", "Rome"]])}


def test_a_single_file_that_is_named_outright_is_a_table_whatever_its_name(tmp_path):
    fill(tmp_path, {"ground_truth.csv": CSV})
    assert open_lake(tmp_path / "ground_truth.csv").names == ["ground_truth.csv"]


def test_globs_name_tables_below_their_last_plain_folder(tmp_path, monkeypatch):
    fill(
        tmp_path,
        dict.fromkeys(["2020/a.csv", "2021/a.csv", "2021/deep/b.csv", "2021/c.tsv", "2021/n.txt", "d.csv"], CSV),
    )
    found = {
        pattern: (open_lake(tmp_path / pattern).root, open_lake(tmp_path / pattern).names)
        for pattern in ("*.csv", "20*/*.csv", "2021/*", "2021/?.csv", "**/*.csv", "202[01]/a.csv")
    }
    assert found == {
        "*.csv": (tmp_path, ["d.csv"]),
        "20*/*.csv": (tmp_path, ["2020/a.csv", "2021/a.csv"]),
        "2021/*": (tmp_path / "2021", ["a.csv", "c.tsv"]),
        "2021/?.csv": (tmp_path / "2021", ["a.csv"]),
        "**/*.csv": (tmp_path, ["2020/a.csv", "2021/a.csv", "2021/deep/b.csv", "d.csv"]),
        "202[01]/a.csv": (tmp_path, ["2020/a.csv", "2021/a.csv"]),
    }
    monkeypatch.chdir(tmp_path / "2021")
    for pattern, names in {
        "*.csv": ["a.csv"],
        "./*.csv": ["a.csv"],
        "../20*/a.csv": ["2020/a.csv", "2021/a.csv"],
        "deep/*.csv": ["b.csv"],
    }.items():
        assert open_lake(pattern).names == names
        assert len(contents(open_lake(pattern))) == len(names)


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    folder = fill(tmp_path / "lake[1]", {"a.csv": CSV, "b.tsv": CSV, "deep*/c.csv": CSV, "deeper/c.csv": CSV})
    assert open_lake(folder).names == ["a.csv", "b.tsv", "deep*/c.csv", "deeper/c.csv"]
    assert open_lake(f"{folder}/*.csv").names == ["a.csv"]
    assert open_lake(f"{folder}/deep*/*.csv").names == ["deep*/c.csv", "deeper/c.csv"]
    with pytest.raises(LakeError, match=re.escape(f"no lake at {folder}/gone")):
        open_lake(folder / "gone")


# --- nothing there


def test_what_is_no_lake_says_what_was_expected(tmp_path):
    fill(
        tmp_path,
        {"only/readme.txt": "x", "hollow/tables/readme.txt": "x", "hollow/a.csv": CSV, "x.xlsx": "x", "bare": "x"},
    )
    extensions = ".csv, .tsv, .parquet"
    wanted = "give a folder of CSV, TSV or Parquet files, a tables.json, a DuckDB file, or a glob"
    expected = {
        "gone": f"no lake at {tmp_path}/gone: {wanted}",
        "gone.csv": f"no lake at {tmp_path}/gone.csv: {wanted}",
        "only": f"no tables below {tmp_path}/only: no file there ends in {extensions}",
        "hollow": f"no tables below {tmp_path}/hollow/tables: no file there ends in {extensions}",
        "only/*.csv": f"no tables below {tmp_path}/only: no file there that *.csv matches ends in {extensions}",
        "hollow/z*/*": f"no tables below {tmp_path}/hollow: no file there that z*/* matches ends in {extensions}",
        "x.xlsx": f"{tmp_path}/x.xlsx is no lake: its extension is .xlsx; expected .json, {extensions} or a folder",
        "bare": f"{tmp_path}/bare is no lake: its extension is missing; expected .json, {extensions} or a folder",
    }
    found = {}
    for source in expected:
        with pytest.raises(LakeError) as caught:
            open_lake(tmp_path / source)
        found[source] = str(caught.value)
    assert found == expected
    with pytest.raises(LakeError, match="the lake's path is empty"):
        open_lake("")


# --- what cannot be read


def test_unreadable_files_are_listed_with_their_rule_and_the_others_are_read(tmp_path):
    good = parquet({"n": [1, 2, 3]})
    fill(
        tmp_path,
        {
            "a.csv": CSV,
            "b_nul.csv": b"id\n1\x002\n",
            "c_empty.csv": b"",
            "d_blank.tsv": b" \n\n",
            "e_cut.parquet": good[: len(good) // 2],
            "f_empty.parquet": b"",
            "g_long.csv": "id\n" + "x" * 300 + "\n",
            "h_header.csv": "id,city\n",
            "i_gone.csv": CSV,
            "j.parquet": good,
        },
    )
    lake = open_lake(tmp_path)
    assert lake.skipped == []
    (tmp_path / "i_gone.csv").unlink()
    before = csv.field_size_limit(200)
    try:
        read = contents(lake)
    finally:
        csv.field_size_limit(before)
    assert read == {
        "a.csv": (("id", "city"), [["1", "2"], ["Paris", "Rome"]]),
        "h_header.csv": (("id", "city"), [[], []]),
        "j.parquet": (("n",), [["1", "2", "3"]]),
    }
    assert [(skipped.name, skipped.rule) for skipped in lake.skipped] == [
        ("b_nul.csv", "nul-bytes"),
        ("c_empty.csv", "empty"),
        ("d_blank.tsv", "empty"),
        ("e_cut.parquet", "parquet"),
        ("f_empty.parquet", "empty"),
        ("g_long.csv", "long-field"),
        ("i_gone.csv", "unreadable"),
    ]
    found = {skipped.name: skipped.found for skipped in lake.skipped}
    assert found["b_nul.csv"] == "a NUL byte at offset 4"
    assert found["c_empty.csv"] == "0 bytes, none of them text"
    assert found["d_blank.tsv"] == "3 bytes, none of them text"
    assert found["g_long.csv"] == "field larger than field limit (200)"
    assert found["i_gone.csv"] == "No such file or directory"


def test_reading_twice_lists_what_is_skipped_once(tmp_path):
    lake = open_lake(fill(tmp_path, {"a.csv": CSV, "b.csv": ""}))
    assert contents(lake) == contents(lake)
    assert lake.skipped == [Skipped("b.csv", "empty", "0 bytes, none of them text")]


# --- tables.json


def test_tables_json_with_either_spelling_of_its_keys(tmp_path):
    rows = [
        {
            "table_name": "b",
            "columns": [
                {"name": "City", "type": "string", "sample_values": ["Paris", "Rome"]},
                {"name": "n", "type": "numeric", "sample_values": ["1"]},
            ],
        },
        {
            "table_name": "a.csv",
            "columns": [
                {"column_name": "City", "data_type": "VARCHAR", "sample_values": ["Paris", None]},
                {"column_name": "n", "data_type": "INTEGER", "sample_values": [1, 2.5, True]},
            ],
        },
    ]
    path = listing(tmp_path / "tables.json", rows)
    for lake in (open_lake(tmp_path), open_lake(path)):
        assert (lake.root, lake.names) == (tmp_path, ["a.csv", "b"])
        a, b = lake.tables()
        assert (a.name, a.header, a.types, a.sampled) == ("a.csv", ("City", "n"), ("string", "numeric"), True)
        assert [column.to_pylist() for column in a.columns] == [["Paris", None, None], ["1", "2.5", "True"]]
        assert (b.name, b.header, b.types, b.sampled) == ("b", ("City", "n"), ("string", "numeric"), True)
        assert [column.to_pylist() for column in b.columns] == [["Paris", "Rome"], ["1", None]]
        assert all(column.type == pa.string() for one in (a, b) for column in one.columns)
        assert lake.skipped == []


def test_samples_may_be_missing_null_or_empty(tmp_path):
    columns = [{"name": "a"}, {"name": "b", "sample_values": None}, {"name": "c", "sample_values": []}, {}]
    rows = [{"table_name": "t", "columns": columns}, {"table_name": "u", "columns": []}]
    t, u = open_lake(listing(tmp_path / "lake.json", rows)).tables()
    assert (t.header, t.types, t.n_rows) == (("a", "b", "c", ""), (None,) * 4, 0)
    assert [column.to_pylist() for column in t.columns] == [[]] * 4
    assert (u.header, u.columns, u.n_rows, u.sampled) == ((), (), 0, True)


def test_samples_of_any_json_type_become_text(tmp_path):
    values = [1, -2.5, 1e22, 12345678901234567890123, True, None, "", "x", [1, "a"], {"k": None}, "\ud800z"]
    rows = [{"table_name": "t", "columns": [{"name": 7, "sample_values": values}]}]
    (table,) = open_lake(listing(tmp_path / "t.json", rows)).tables()
    assert table.header == ("7",)
    assert table.columns[0].to_pylist() == [
        "1",
        "-2.5",
        "1e+22",
        "12345678901234567890123",
        "True",
        None,
        "",
        "x",
        "[1, 'a']",
        "{'k': None}",
        "?z",
    ]


def test_a_key_that_is_null_is_as_good_as_missing(tmp_path):
    columns = [
        {"name": None, "column_name": "city", "type": None, "data_type": "int", "sample_values": ["x"]},
        {"name": None, "sample_values": ["x"]},
    ]
    (table,) = open_lake(listing(tmp_path / "t.json", [{"table_name": "t", "columns": columns}])).tables()
    assert table.header == ("city", "")
    assert table.types == ("numeric", None)


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        (None, None),
        ("numeric", "numeric"),
        ("Number", "numeric"),
        ("INT64", "numeric"),
        ("integer", "numeric"),
        ("bigint", "numeric"),
        ("float", "numeric"),
        ("DOUBLE PRECISION", "numeric"),
        ("decimal(10,2)", "numeric"),
        ("real", "numeric"),
        ("smallint", "numeric"),
        ("tinyint", "numeric"),
        ("uint8", "numeric"),
        ("string", "string"),
        ("text", "string"),
        ("VARCHAR(10)", "string"),
        ("date", "string"),
        ("boolean", "string"),
        ("interval", "string"),
    ],
)
def test_declared_types(tmp_path, declared, kind):
    rows = [{"table_name": "t", "columns": [{"name": "a", "type": declared, "sample_values": ["1"]}]}]
    (table,) = open_lake(listing(tmp_path / "t.json", rows)).tables()
    assert table.types == (kind,)


def test_broken_rows_are_listed_with_their_rule_and_the_others_are_read(tmp_path):
    column = {"name": "x", "sample_values": ["1"]}
    rows = [
        {"table_name": "good", "columns": [column]},
        {"columns": [column]},
        {"table_name": "", "columns": [column]},
        {"table_name": 3, "columns": [column]},
        "text",
        None,
        {"table_name": "good", "columns": []},
        {"table_name": "no columns"},
        {"table_name": "columns object", "columns": {"x": ["1"]}},
        {"table_name": "column text", "columns": ["x"]},
        {"table_name": "sample text", "columns": [column, {"name": "y", "sample_values": "abc"}]},
        {"table_name": "sample object", "columns": [{"column_name": "z", "sample_values": {"a": 1}}]},
        {"table_name": "also good", "columns": [column]},
    ]
    lake = open_lake(listing(tmp_path / "lake.json", rows))
    assert contents(lake) == {"also good": (("x",), [["1"]]), "good": (("x",), [["1"]])}
    assert lake.skipped == [
        *(Skipped(f"lake.json[{i}]", "table-name", "no table_name") for i in (1, 2, 3, 4, 5)),
        Skipped("good", "repeated-name", "lake.json[6] has the name of an earlier table"),
        Skipped("column text", "columns", "columns is list, expected a list of objects"),
        Skipped("columns object", "columns", "columns is dict, expected a list of objects"),
        Skipped("no columns", "columns", "columns is NoneType, expected a list of objects"),
        Skipped("sample object", "sample-values", "sample_values of column 'z' is dict"),
        Skipped("sample text", "sample-values", "sample_values of column 'y' is str"),
    ]


def test_tables_json_comes_before_tables_and_files(tmp_path):
    fill(tmp_path, {"a.csv": CSV, "tables/b.csv": CSV})
    listing(tmp_path / "tables.json", [{"table_name": "j", "columns": []}])
    assert open_lake(tmp_path).names == ["j"]


def test_tables_json_in_other_encodings(tmp_path):
    text = json.dumps([{"table_name": "é", "columns": []}], ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "t.json").write_bytes(text.encode(encoding))
        assert open_lake(tmp_path / "t.json").names == ["é"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "{path} is no tables.json: "),
        (b"[{]", "{path} is no tables.json: "),
        (b'["\xff"]', "{path} is no tables.json: "),
        (b"[" * 100_000, "{path} is no tables.json: "),
        (b'{"table_name": "a"}', "{path}: expected a list of tables, found dict"),
        (b"[]", "{path} holds no tables: expected rows with table_name and columns"),
        (b'[{"name": "a"}]', "{path} holds no tables: expected rows with table_name and columns"),
    ],
    ids=["empty", "broken", "latin-1", "deep", "object", "none", "no names"],
)
def test_what_is_no_tables_json(tmp_path, text, message):
    path = tmp_path / "tables.json"
    path.write_bytes(text)
    with pytest.raises(LakeError) as caught:
        open_lake(tmp_path)
    assert str(caught.value).startswith(message.format(path=path))


# --- fingerprints

FILES = {"a.csv": CSV, "sub/b.csv": "x\n1\n", "c.parquet": parquet({"n": [1]})}


def fingerprint(root, files):
    return open_lake(fill(root, files)).fingerprint()


def test_a_copied_lake_has_the_same_fingerprint(tmp_path):
    first = fingerprint(tmp_path / "one", FILES)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert open_lake(tmp_path / "two").fingerprint() == first
    assert {fingerprint(tmp_path / f"o{i}", dict(order)) for i, order in enumerate(permutations(FILES.items()))} == {
        first
    }
    assert len(first) == 32


def test_what_is_no_table_leaves_the_fingerprint_alone(tmp_path):
    first = fingerprint(tmp_path / "one", FILES)
    assert (
        fingerprint(tmp_path / "one", {"queries.csv": "query_table\na.csv\n", "notes.txt": "x", ".b.csv": CSV}) == first
    )


@pytest.mark.parametrize(
    "change",
    [
        {"a.csv": CSV.replace("Rome", "Rom3")},
        {"a.csv": CSV + "\n"},
        {"sub/b.csv": "x\r1\n"},
        {"sub/b.csv": ""},
        {"d.csv": ""},
    ],
    ids=["byte", "longer", "newline", "emptied", "added"],
)
def test_a_changed_lake_has_another_fingerprint(tmp_path, change):
    assert fingerprint(tmp_path / "one", FILES) != fingerprint(tmp_path / "two", FILES | change)


def test_names_and_borders_count_in_the_fingerprint(tmp_path):
    lakes = [
        {"a.csv": "x\n1\n", "b.csv": "y\n2\n"},
        {"a.csv": "x\n1\n", "c.csv": "y\n2\n"},
        {"a.csv": "y\n2\n", "b.csv": "x\n1\n"},
        {"a.csv": "x\n1\ny\n", "b.csv": "2\n"},
        {"a.csv": "x\n1\n", "sub/b.csv": "y\n2\n"},
        {"a.csv": "x\n1\n", "b.tsv": "y\n2\n"},
        {"a.csv": "x\n1\n"},
        {"a.csv": "x\n1\nb.csvy\n2\n"},
    ]
    assert len({fingerprint(tmp_path / str(i), files) for i, files in enumerate(lakes)}) == len(lakes)


def test_a_file_that_is_gone_changes_the_fingerprint(tmp_path):
    lake = open_lake(fill(tmp_path, FILES))
    first = lake.fingerprint()
    (tmp_path / "a.csv").unlink()
    assert lake.fingerprint() != first


def test_the_fingerprint_of_a_tables_json_is_that_of_its_tables(tmp_path):
    rows = [
        {"table_name": "a", "columns": [{"name": "x", "type": "string", "sample_values": ["1", "\ud800"]}]},
        {"table_name": "b", "columns": []},
    ]

    def of(rows, **layout):
        (tmp_path / "t.json").write_text(json.dumps(rows, **layout))
        return open_lake(tmp_path / "t.json").fingerprint()

    first = of(rows)
    assert of(rows[::-1], indent=3) == first
    assert of([dict(reversed(row.items())) for row in rows]) == first
    changed = [
        [{**rows[0], "table_name": "c"}, rows[1]],
        [{**rows[0], "columns": [{"name": "x", "type": "string", "sample_values": ["2", "\ud800"]}]}, rows[1]],
        [{**rows[0], "columns": [{"name": "x", "type": "numeric", "sample_values": ["1", "\ud800"]}]}, rows[1]],
        [{**rows[0], "columns": [{"name": "x", "type": "string", "sample_values": [1, "\ud800"]}]}, rows[1]],
        rows[:1],
    ]
    assert len({first, *map(of, changed)}) == 1 + len(changed)
