"""Query rows from every source, in their order; tasks, twins, and the exact words of what is refused."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpumatch.errors import LakeError, UsageError
from gpumatch.lake import Lake, Query, QuerySet, find_queries, open_lake, read_query_rows

CSV = "id,city\n1,Paris\n"


def fill(root, files):
    """Write files (path → text, bytes, or rows for JSON) below root, and return root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture
def lake(tmp_path):
    return open_lake(fill(tmp_path / "lake", {"b.csv": CSV, "a.csv": CSV, "sub/c.csv": CSV}))


def rows_of(found):
    """The (table, column, task) rows of a query set that stays inside the lake."""
    assert (found.outside, found.twins) == (None, {})
    return [(row.table, row.column, row.task) for row in found.rows]


def refused(kind, function, *arguments):
    with pytest.raises(kind) as caught:
        function(*arguments)
    return str(caught.value)


# --- the lake's own queries

JSON_ROWS = [
    {"query_table": "b.csv", "query_column": "id", "task_type": "join"},
    {"query_table": "a.csv", "task_type": "UNION", "note": "kept out"},
    {"query_table": "b.csv", "query_column": None, "task_type": "join"},
    {"query_table": "gone.csv", "query_column": "", "task_type": "join"},
    {"query_table": "b.csv", "query_column": 0, "task_type": "union"},
    {"query_table": "b.csv", "query_column": "id", "task_type": "join"},
]
EXPECTED = [
    ("b.csv", "id", "join"),
    ("a.csv", None, "union"),
    ("b.csv", None, "join"),
    ("gone.csv", None, "join"),
    ("b.csv", "0", "union"),
    ("b.csv", "id", "join"),
]
CSV_ROWS = """query_table,query_column,task_type,note
b.csv,id,join,
a.csv,,UNION,"kept
out"
b.csv,,join
gone.csv,,join,x,y,z

b.csv,0,union,
b.csv,id,join,
"""


def test_without_a_queries_file_every_table_is_a_query_in_name_order(lake):
    for task in ("join", "union"):
        assert rows_of(find_queries(lake, None, task)) == [
            (name, None, task) for name in ("a.csv", "b.csv", "sub/c.csv")
        ]


@pytest.mark.parametrize(("name", "rows"), [("queries.json", JSON_ROWS), ("queries.csv", CSV_ROWS)])
def test_the_queries_file_of_a_lake_keeps_its_rows_and_their_order(lake, name, rows):
    fill(lake.root, {name: rows})
    assert rows_of(find_queries(lake, None, "auto")) == EXPECTED


def test_the_queries_file_beside_a_tables_folder_and_a_tables_json(tmp_path):
    fill(tmp_path, {"one/tables/a.csv": CSV, "one/queries.csv": "query_table\na.csv\n", "one/tables/queries.csv": CSV})
    assert rows_of(find_queries(open_lake(tmp_path / "one"), None, "join")) == [("a.csv", None, "join")]
    fill(
        tmp_path, {"two/tables.json": [{"table_name": "t", "columns": []}], "two/queries.json": [{"query_table": "t"}]}
    )
    assert rows_of(find_queries(open_lake(tmp_path / "two"), None, "union")) == [("t", None, "union")]


def test_a_queries_file_without_a_query_table_lists_none_among_tables_and_is_refused_beside_them(tmp_path):
    fill(tmp_path, {"a.csv": CSV, "queries.csv": CSV})
    names = [("a.csv", None, "join"), ("queries.csv", None, "join")]
    assert rows_of(find_queries(open_lake(tmp_path), None, "join")) == names
    advice = "; a queries.csv beside tables lists the queries: mend it, rename it, or give --queries"
    fill(tmp_path, {"tables/a.csv": CSV})
    message = refused(LakeError, find_queries, open_lake(tmp_path), None, "join")
    assert message.startswith(f"{tmp_path}/queries.csv, row 1: no query_table and no query_text; its fields are ")
    assert message.endswith(advice)
    assert advice not in refused(
        LakeError, find_queries, open_lake(tmp_path), fill(tmp_path, {"q.json": []}) / "q.json", "join"
    )


def test_json_comes_before_csv(lake):
    fill(lake.root, {"queries.json": [{"query_table": "a.csv"}], "queries.csv": "query_table\nb.csv\n"})
    assert rows_of(find_queries(lake, None, "join")) == [("a.csv", None, "join")]


# --- a queries file elsewhere


@pytest.mark.parametrize(("name", "rows"), [("mine.json", JSON_ROWS), ("mine.csv", CSV_ROWS), ("mine.JSON", JSON_ROWS)])
def test_a_queries_file_anywhere_names_tables_of_the_lake(lake, tmp_path, name, rows):
    fill(tmp_path, {name: rows})
    fill(lake.root, {"queries.json": [{"query_table": "not asked"}]})
    for path in (tmp_path / name, str(tmp_path / name)):
        assert rows_of(find_queries(lake, path, "auto")) == EXPECTED


@pytest.mark.parametrize(
    "header", ["query_table", "\ufeffquery_table", '\ufeff"query_table"', "query_column,query_table"]
)
def test_a_csv_is_a_list_of_queries_by_its_header(lake, tmp_path, header):
    row = "id,a.csv" if "," in header else "a.csv"
    fill(tmp_path, {"q.csv": f"{header}\r\n{row}\r\n"})
    expected = "id" if "," in header else None
    assert rows_of(find_queries(lake, tmp_path / "q.csv", "join")) == [("a.csv", expected, "join")]


def test_a_tsv_list_of_queries_is_read_like_a_csv_one(lake, tmp_path):
    fill(tmp_path, {"q.tsv": "query_table\tquery_column\na.csv\tid\n"})
    assert rows_of(find_queries(lake, tmp_path / "q.tsv", "join")) == [("a.csv", "id", "join")]


@pytest.mark.parametrize("sign", [";", "|", "\t", "#"])
@pytest.mark.parametrize("start", ["", "sep={}\r\n"], ids=["plain", "named"])
def test_a_list_of_queries_may_have_any_delimiter_of_tables(lake, tmp_path, sign, start):
    """As Excel writes them where the comma is in numbers."""
    text = start.format(sign) + 'query_table;query_column;task_type\na.csv;id;join\n"b.csv";;union\n'.replace(";", sign)
    expected = [("a.csv", "id", "join"), ("b.csv", None, "union")]
    fill(tmp_path, {"q.csv": text})
    assert rows_of(find_queries(lake, tmp_path / "q.csv", "auto")) == expected
    fill(lake.root, {"queries.csv": text})
    assert rows_of(find_queries(lake, None, "auto")) == expected


def test_other_delimiters_in_the_cells_of_a_list_end_none(lake, tmp_path):
    fill(tmp_path, {"q.csv": "query_text\nsales; by region\ncosts; by region\n"})
    found = find_queries(lake, tmp_path / "q.csv", "join")
    assert [row.text for row in found.rows] == ["sales; by region", "costs; by region"]


def test_a_table_with_a_column_named_much_like_query_table_is_a_table(lake, tmp_path):
    fill(tmp_path, {"log.csv": "last_query_table_id,n\n1,2\n"})
    found = find_queries(lake, tmp_path / "log.csv", "join")
    assert found.rows == [Query("log.csv", None, "join")]
    assert found.outside.names == ["log.csv"]


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"], ids=ascii)
def test_only_line_ends_end_a_row(tmp_path, odd):
    fill(tmp_path, {"q.csv": f"query_table,query_column\na{odd}b.csv,x{odd}\nc.csv,y\n"})
    assert read_query_rows(tmp_path / "q.csv", "join") == [
        Query(f"a{odd}b.csv", f"x{odd}", "join"),
        Query("c.csv", "y", "join"),
    ]


def test_quoted_names_hold_commas_quotes_and_newlines(tmp_path):
    fill(tmp_path, {"q.csv": 'query_table,query_column\n"a, ""b"".csv","x\r\ny"\n'})
    assert read_query_rows(tmp_path / "q.csv", "join") == [Query('a, "b".csv', "x\r\ny", "join")]


# --- tasks


def test_a_given_task_wins_over_the_task_type_of_every_row(tmp_path):
    fill(
        tmp_path,
        {
            "q.json": [
                {"query_table": "a", "task_type": "join"},
                {"query_table": "b"},
                {"query_table": "c", "task_type": "?"},
            ]
        },
    )
    for task in ("join", "union"):
        assert [row.task for row in read_query_rows(tmp_path / "q.json", task)] == [task] * 3


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({}, "no task_type"),
        ({"task_type": ""}, "no task_type"),
        ({"task_type": None}, "no task_type"),
        ({"task_type": "Merge"}, "task_type 'merge'"),
        ({"task_type": 3}, "task_type '3'"),
    ],
)
def test_auto_needs_a_task_type_in_every_row(lake, tmp_path, row, found):
    path = (
        fill(tmp_path, {"q.json": [{"query_table": "a", "task_type": "join"}, {"query_table": "b"} | row]}) / "q.json"
    )
    message = f"{path}, row 2: {found}; add --task join or --task union"
    assert refused(UsageError, find_queries, lake, path, "auto") == message


def test_auto_needs_a_queries_file(lake, tmp_path):
    message = "the lake: no task_type; add --task join or --task union"
    assert refused(UsageError, find_queries, lake, None, "auto") == message
    outside = fill(tmp_path / "out", {"x.csv": CSV})
    message = f"{outside}: no task_type; add --task join or --task union"
    assert refused(UsageError, find_queries, lake, outside, "auto") == message


def test_a_row_may_have_a_text_beside_its_table_or_instead(lake, tmp_path):
    rows = [{"query_table": "a.csv", "query_text": "ages"}, {"query_text": "ages", "query_table": None}]
    fill(
        tmp_path,
        {"q.json": rows, "q.csv": 'query_text,query_table\nages,a.csv\n"ages",\n', "t.csv": "query_text\nages\n"},
    )
    expected = [Query("a.csv", None, "join", "ages"), Query(None, None, "join", "ages")]
    for name in ("q.json", "q.csv"):
        found = find_queries(lake, tmp_path / name, "join")
        assert (found.rows, found.outside) == (expected, None)
    assert find_queries(lake, tmp_path / "t.csv", "join").rows == expected[1:]
    rows = [{"query_table": "a.csv", "query_text": None}, {"query_table": "a.csv", "query_text": ""}]
    assert (
        find_queries(lake, fill(tmp_path, {"n.json": rows}) / "n.json", "join").rows
        == [Query("a.csv", None, "join")] * 2
    )


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "q.json",
            [{"query_table": "a"}, {"table": "b", "x": 1}],
            "{path}, row 2: no query_table and no query_text; its fields are table, x",
        ),
        ("q.json", [{}], "{path}, row 1: no query_table and no query_text; its fields are none"),
        ("q.json", [{"query_table": 7}], "{path}, row 1: no query_table and no query_text; its fields are query_table"),
        (
            "q.json",
            [{"query_table": ""}],
            "{path}, row 1: no query_table and no query_text; its fields are query_table",
        ),
        (
            "q.json",
            [{"query_text": 7}],
            "{path}, row 1: query_text is 7; write in words what is looked for, or leave it out",
        ),
        (
            "q.json",
            [{"query_table": "a", "query_text": "  "}],
            "{path}, row 1: query_text is '  '; write in words what is looked for, or leave it out",
        ),
        (
            "q.csv",
            "query_text,query_column\nages,id\n",
            "{path}, row 1: query_column 'id' without query_table; name the table that has it",
        ),
        ("q.json", [], "{path} holds no query rows"),
        ("q.json", {"query_table": "a"}, "{path}: expected a list of objects with query_table or query_text"),
        ("q.json", ["a.csv"], "{path}: expected a list of objects with query_table or query_text"),
        ("q.csv", "query_table,task_type\n", "{path} holds no query rows"),
        (
            "q.csv",
            "query_table,task_type\n,join\n",
            "{path}, row 1: no query_table and no query_text; its fields are query_table, task_type",
        ),
    ],
)
def test_rows_that_cannot_be_asked(lake, tmp_path, name, content, message):
    path = fill(tmp_path, {name: content}) / name
    assert refused(LakeError, find_queries, lake, path, "join") == message.format(path=path)


@pytest.mark.parametrize("data", [b"", b"[{", b'["\xff"]', b"[" * 100_000], ids=["empty", "broken", "latin-1", "deep"])
def test_json_that_cannot_be_read(lake, tmp_path, data):
    path = fill(tmp_path, {"q.json": data}) / "q.json"
    assert refused(LakeError, find_queries, lake, path, "join").startswith(f"{path} cannot be read as query rows: ")


def test_what_is_neither_queries_nor_tables(lake, tmp_path):
    fill(tmp_path, {"q.txt": "query_table\na.csv\n", "hollow/n.txt": "x"})
    assert refused(LakeError, find_queries, lake, tmp_path / "q.txt", "join") == (
        f"{tmp_path}/q.txt is neither a queries file (.json, .csv) nor a table (.csv, .tsv, .parquet)"
    )
    assert refused(LakeError, find_queries, lake, tmp_path / "gone.csv", "join") == (
        f"no queries at {tmp_path}/gone.csv: give a queries.json or .csv, or a folder, file or glob of tables"
    )
    assert refused(LakeError, find_queries, lake, tmp_path / "hollow", "join") == (
        f"no tables below {tmp_path}/hollow: no file there ends in .csv, .tsv, .parquet"
    )
    assert refused(LakeError, find_queries, lake, f"{tmp_path}/gone*.csv", "join") == (
        f"no tables below {tmp_path}: no file there that gone*.csv matches ends in .csv, .tsv, .parquet"
    )
    assert refused(LakeError, find_queries, lake, "", "join") == (
        "the path of the queries (--queries, queries=) is empty; give . for the current folder"
    )


# --- tables from outside


def test_the_tables_of_a_folder_are_queries(lake, tmp_path):
    fill(tmp_path / "out", {"z.csv": CSV, "sub/a.csv": CSV, "a.csv": "x,y\n5,6\n"})
    for source in (tmp_path / "out", str(tmp_path / "out")):
        found = find_queries(lake, source, "union")
        assert found.rows == [Query(name, None, "union") for name in ("a.csv", "sub/a.csv", "z.csv")]
        assert found.outside.names == ["a.csv", "sub/a.csv", "z.csv"]
        assert next(found.outside.tables()).header == ("x", "y")
        assert found.twins == {}  # the lake's a.csv is another file of that name


def test_tables_from_outside_are_asked_by_each_of_some_columns(lake, tmp_path):
    fill(tmp_path / "new", {"x.csv": CSV, "y.csv": CSV})
    found = find_queries(lake, tmp_path / "new", "join", ["id", "no such"])
    expected = [(name, column, "join") for name in ("x.csv", "y.csv") for column in ("id", "no such")]
    assert [(row.table, row.column, row.task) for row in found.rows] == expected
    fill(tmp_path, {"q.csv": "query_table\na.csv\n"})
    for queries in (None, tmp_path / "q.csv"):
        with pytest.raises(UsageError, match=r"columns to join on .*--column.* go with tables from outside.*--queries"):
            find_queries(lake, queries, "join", ["id"])
    for task in ("union", "auto"):
        with pytest.raises(UsageError, match=f"the task is {task}: give --task join"):
            find_queries(lake, tmp_path / "new", task, ["id"])


def test_a_single_table_file_is_a_query(lake, tmp_path):
    fill(tmp_path, {"one.csv": CSV, "two.tsv": "x\ty\n1\t2\n"})
    pq.write_table(pa.table({"query_table": ["a.csv"]}), tmp_path / "three.parquet")
    for name, header in (("one.csv", ("id", "city")), ("two.tsv", ("x", "y")), ("three.parquet", ("query_table",))):
        found = find_queries(lake, tmp_path / name, "join")
        assert found.rows == [Query(name, None, "join")]
        assert [table.header for table in found.outside.tables()] == [header]
        assert found.twins == {}


def test_the_tables_of_a_glob_are_queries(lake, tmp_path):
    fill(tmp_path / "out", {"q1.csv": CSV, "q2.csv": CSV, "x.csv": CSV, "sub/q3.csv": CSV})
    found = find_queries(lake, f"{tmp_path}/out/q*.csv", "join")
    assert [row.table for row in found.rows] == ["q1.csv", "q2.csv"]
    found = find_queries(lake, f"{tmp_path}/out/**/q*.csv", "join")
    assert [row.table for row in found.rows] == ["q1.csv", "q2.csv", "sub/q3.csv"]


def test_the_samples_of_a_tables_json_folder_are_queries(lake, tmp_path):
    fill(
        tmp_path / "out", {"tables.json": [{"table_name": "t", "columns": []}, {"table_name": "a.csv", "columns": []}]}
    )
    found = find_queries(lake, tmp_path / "out", "join")
    assert [row.table for row in found.rows] == ["a.csv", "t"]
    assert [table.sampled for table in found.outside.tables()] == [True, True]
    assert found.twins == {}


# --- twins


def test_a_query_that_is_the_same_file_as_a_lake_table_has_it_as_its_twin(lake, tmp_path, monkeypatch):
    assert find_queries(lake, lake.root / "a.csv", "join").twins == {"a.csv": "a.csv"}
    assert find_queries(lake, lake.root / "sub", "join").twins == {"c.csv": "sub/c.csv"}
    assert find_queries(lake, f"{lake.root}/*/c.csv", "join").twins == {"sub/c.csv": "sub/c.csv"}
    assert find_queries(lake, lake.root, "join").twins == {name: name for name in ("a.csv", "b.csv", "sub/c.csv")}
    monkeypatch.chdir(lake.root / "sub")
    assert find_queries(lake, "../a.csv", "join").twins == {"a.csv": "a.csv"}
    assert find_queries(lake, "c.csv", "join").twins == {"c.csv": "sub/c.csv"}


def test_twins_are_found_through_symbolic_links(lake, tmp_path):
    out = fill(tmp_path / "out", {"copy.csv": CSV})
    (out / "link.csv").symlink_to(lake.root / "a.csv")
    (out / "again.csv").symlink_to(out / "link.csv")
    assert find_queries(lake, out, "join").outside.names == ["copy.csv"]
    followed = open_lake(lake.root, follow_links=True)
    assert find_queries(followed, out, "join").twins == {"again.csv": "a.csv", "link.csv": "a.csv"}
    (tmp_path / "other way").symlink_to(lake.root)
    assert find_queries(lake, tmp_path / "other way" / "sub", "join").twins == {"c.csv": "sub/c.csv"}
    (lake.root / "z.csv").symlink_to(out / "copy.csv")
    followed = open_lake(lake.root, follow_links=True)
    assert find_queries(followed, out / "copy.csv", "join").twins == {"copy.csv": "z.csv"}


def test_twins_beside_a_tables_folder(tmp_path):
    fill(tmp_path, {"tables/a.csv": CSV, "queries.csv": "query_table\na.csv\n"})
    lake = open_lake(tmp_path)
    assert find_queries(lake, tmp_path / "tables" / "a.csv", "join").twins == {"a.csv": "a.csv"}
    assert find_queries(lake, tmp_path / "tables", "join").twins == {"a.csv": "a.csv"}


def test_a_copy_with_the_same_name_and_bytes_is_no_twin(lake, tmp_path):
    assert find_queries(lake, fill(tmp_path / "out", {"a.csv": CSV}), "join").twins == {}


def test_a_table_given_by_its_own_path_is_its_own_twin_though_others_link_to_it(lake):
    os.symlink(lake.root / "a.csv", lake.root / "z.csv")
    assert find_queries(open_lake(lake.root), lake.root / "a.csv", "join").twins == {"a.csv": "a.csv"}


def test_the_entries_of_one_tables_json_are_their_own_twins(tmp_path):
    fill(tmp_path, {"tables.json": [{"table_name": "t", "columns": []}, {"table_name": "u", "columns": []}]})
    for lake in (open_lake(tmp_path), open_lake(tmp_path / "tables.json")):
        assert find_queries(lake, tmp_path, "join").twins == {"t": "t", "u": "u"}


def test_a_lake_without_files_has_no_twins(tmp_path):
    out = fill(tmp_path / "out", {"a.csv": CSV})
    found = find_queries(Lake(tmp_path, ["a.csv"]), out, "join")
    assert found == QuerySet([Query("a.csv", None, "join")], found.outside, {})
