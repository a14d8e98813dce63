"""Bytes and frames in, exact headers, cells and types out; what cannot be read names its rule."""

import csv
import datetime as dt
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpumatch.errors import LakeError
from gpumatch.lake import Table, arrow, delimited, open_lake, sample, table_from_frame, tables
from gpumatch.lake.dialect import MAX_LINE_CHARS
from gpumatch.lake.preamble import rows_before
from gpumatch.lake.rules import SKIPPED, Limits, Unreadable
from gpumatch.lake.sample import MAX_CELL_CHARS
from gpumatch.profile import profile_tables


def read_csv(data, name, delimiter):
    return delimited.read_csv(data, name, delimiter, Limits())


def read_parquet(data, name):
    return arrow.read_parquet(data, name, Limits())


def read_table(path, name):
    return tables.read_table(path, name, Limits())


def cells_of(table):
    """(header, rows of cells column by column) of a table, whose columns must be Arrow strings of one length."""
    assert all(column.type == pa.string() and len(column) == table.n_rows for column in table.columns)
    assert len(table.header) == len(table.columns) == len(table.types)
    return table.header, [column.to_pylist() for column in table.columns]


def read(text, delimiter=","):
    data = text if isinstance(text, bytes) else text.encode()
    table = read_csv(data, "t.csv", delimiter)
    assert (table.name, table.types, table.sampled) == ("t.csv", (None,) * len(table.header), False)
    return cells_of(table)


def parquet_bytes(frame):
    sink = io.BytesIO()
    pq.write_table(frame, sink)
    return sink.getvalue()


def through_parquet(column):
    """(cells, declared type) of one column written to Parquet and read back."""
    table = read_parquet(parquet_bytes(pa.table({"a": column})), "t.parquet")
    header, (cells,) = cells_of(table)
    assert header == ("a",)
    return cells, table.types[0]


def from_frame(frame):
    table = table_from_frame(frame, "q", Limits())
    assert (table.name, table.sampled) == ("q", False)
    return *cells_of(table), table.types


def broken_by(reader, data, *options):
    """The (rule, found) by which some bytes are no table."""
    with pytest.raises(Unreadable) as caught:
        reader(data, "t", *options)
    assert str(caught.value) == f"{caught.value.rule}: {caught.value.found}"
    return caught.value.rule, caught.value.found


# --- delimited text


def test_a_plain_table():
    assert read("id,city\n1,Paris\n2,Rome\n") == (("id", "city"), [["1", "2"], ["Paris", "Rome"]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_missing_last_one(end):
    assert read(f"a,b{end}1,2{end}3,4") == (("a", "b"), [["1", "3"], ["2", "4"]])


def test_short_rows_are_filled_with_nulls_and_long_ones_cut():
    assert read("a,b,c\n1\n1,2,3,4,5\n1,2,3\n,\n") == (
        ("a", "b", "c"),
        [["1", "1", "1", ""], [None, "2", "2", ""], [None, "3", "3", None]],
    )


def test_blank_lines_are_no_rows():
    assert read("a,b\n\n1,2\n\n\n3,4\n\n") == (("a", "b"), [["1", "3"], ["2", "4"]])


def test_headers_may_repeat_and_be_blank():
    assert read("id,id,, \n1,2,3,4\n") == (("id", "id", "", " "), [["1"], ["2"], ["3"], ["4"]])


@pytest.mark.parametrize("text", ["a,b,c", "a,b,c\n", "a,b,c\r\n\r\n"])
def test_a_table_of_a_header_only_has_no_rows(text):
    assert read(text) == (("a", "b", "c"), [[], [], []])
    assert read_csv(text.encode(), "t", ",").n_rows == 0


@pytest.mark.parametrize("mark", [";", "|", "#", "\t"])
def test_one_column_whose_cells_hold_another_delimiter_stays_whole(mark):
    cells = [f"red{mark}blue{mark}tag{n}" for n in range(5)]
    assert read("tags\n" + "\n".join(cells)) == (("tags",), [cells])
    titled = (
        f"Sales of 2020\nname{mark}age{mark}city\nAnn{mark}3{mark}Oslo\nBob{mark}4{mark}Bergen\nCy{mark}5{mark}Oslo\n"
    )
    assert read(titled)[0] == ("name", "age", "city")


def test_quotes_after_blanks_are_quotes():
    text = '"City", "State", "n"\n"Akron", "OH", 5\n"Na, me",  "say ""x""", 6\n"x", "", 7\n'
    assert read(text) == (
        ("City", "State", "n"),
        [["Akron", "Na, me", "x"], ["OH", 'say "x"', ""], ["5", "6", "7"]],
    )
    kept = 'a,b\n"say, ""x""",1\n" x",2\n'
    assert read(kept) == (("a", "b"), [['say, "x"', " x"], ["1", "2"]])


def test_quotes_hold_delimiters_newlines_and_quotes():
    text = 'a,"b, c"\n"x\ny","say ""hi"""\n"1\r\n2",\'q\'\n'
    assert read(text) == (("a", "b, c"), [["x\ny", "1\r\n2"], ['say "hi"', "'q'"]])


def test_an_unbalanced_quote_ends_with_its_line():
    assert read('a,b\n1,"x\n2,y\n') == (("a", "b"), [["1", "2"], ["x", "y"]])


def test_blanks_in_cells_stay():
    assert read(" a , b\n 1 ,\t2\n") == ((" a ", " b"), [[" 1 "], ["\t2"]])


def test_tabs_separate_tsv_and_commas_do_not():
    assert read("a\tb\n1,5\t2\n", "\t") == (("a", "b"), [["1,5"], ["2"]])


def test_a_byte_order_mark_is_not_part_of_the_first_header():
    assert read(b"\xef\xbb\xbfid,city\n1,x\n") == (("id", "city"), [["1"], ["x"]])
    assert read(b'\xef\xbb\xbf"id, no",city\n1,x\n') == (("id, no", "city"), [["1"], ["x"]])


def test_utf8_and_latin1():
    assert read("ville,€\nOrléans,日本\n".encode()) == (("ville", "€"), [["Orléans"], ["日本"]])
    assert read("ville,n°\nOrléans,1\n".encode("latin-1")) == (("ville", "n°"), [["Orléans"], ["1"]])


def test_a_long_text_cell_is_read_up_to_a_bound():
    assert read("a,b\n" + "x" * 200_000 + ",1\n")[1] == [["x" * MAX_CELL_CHARS], ["1"]]


@pytest.mark.parametrize("data", [b"", b" ", b"\n", b"\r\n\r\n \t\n"])
def test_no_text_is_empty(data):
    assert broken_by(read_csv, data, ",") == ("empty", f"{len(data)} bytes, none of them text")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\xef\xbb\xbf \r\n"])
def test_a_byte_order_mark_alone_is_empty(data):
    assert broken_by(read_csv, data, ",")[0] == "empty"


def test_the_header_is_the_first_row_that_is_not_blank():
    assert read("\n\r\na,b\n1,2\n") == (("a", "b"), [["1"], ["2"]])


def test_nul_bytes_are_refused():
    assert broken_by(read_csv, b"a,b\n1,\x002\n", ",") == ("nul-bytes", "a NUL byte at offset 6")


def test_what_the_csv_module_refuses_is_a_cell_without_end():
    before = csv.field_size_limit(100)
    try:
        found = broken_by(read_csv, b"a,b\n1,2\n" + b"x" * 101 + b",1,not clean\n", ",")
        assert found == ("long-field", "field larger than field limit (100)")
    finally:
        csv.field_size_limit(before)
    assert before == MAX_LINE_CHARS


CSV_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff\\"), max_size=8)


@given(
    st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(CSV_CELL, min_size=n, max_size=n), min_size=1, max_size=5))
)
@settings(max_examples=150, deadline=None)
def test_what_the_csv_module_writes_is_read_back(rows):
    assume("".join(rows[0]).strip() and not rows_before(rows))  # what is taken for titles is left out
    for delimiter in (",", "\t"):
        sink = io.StringIO(newline="")
        csv.writer(sink, delimiter=delimiter).writerows(rows)
        header, columns = read(sink.getvalue(), delimiter)
        assert header == tuple(rows[0])
        assert columns == [list(column) for column in zip(*rows[1:], strict=True)] or (columns, rows[1:]) == (
            [[] for _ in header],
            [],
        )


@given(st.binary(max_size=60) | st.text(st.sampled_from('a1,;\t\n\r" é\ufeff'), max_size=30).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_table_or_break_a_rule(data):
    try:
        table = read_csv(data, "t", ",")
    except Unreadable as error:
        assert error.rule in SKIPPED  # noqa: PT017 - not raising is as good
    else:
        cells_of(table)
        assert profile_tables([table]).n_columns == len(table.header)


# --- Parquet

LEAD = dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
HALF, MIDNIGHT = LEAD.replace(second=50, microsecond=500_000), LEAD.replace(hour=0, minute=0, second=0)


@pytest.mark.parametrize(
    ("column", "cells", "declared"),
    [
        (pa.array([1, None, -3]), ["1", None, "-3"], "numeric"),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"], "numeric"),
        (pa.array([7], pa.int8()), ["7"], "numeric"),
        (pa.array([1.5, None, 1e20, 1e-7]), ["1.5", None, "100000000000000000000", "0.0000001"], "numeric"),
        (pa.array([0.1], pa.float32()), ["0.1"], "numeric"),
        (pa.array(np.array([1.5], np.float16)), ["1.5"], "numeric"),
        (pa.array([Decimal("1.50"), None, Decimal("-20.00")]), ["1.50", None, "-20.00"], "numeric"),
        (pa.array(["x", "", None]), ["x", "", None], None),
        (pa.array(["x"], pa.large_string()), ["x"], None),
        (pa.array(["x", None], pa.string_view()), ["x", None], None),
        (pa.array([True, None, False]), ["true", None, "false"], None),
        (pa.array([dt.date(2020, 1, 2), None]), ["2020-01-02", None], None),
        (pa.array([dt.time(1, 2, 3)], pa.time32("ms")), ["01:02:03"], None),
        (pa.array([LEAD], pa.timestamp("ms")), ["2020-01-02 03:04:05"], None),
        (pa.array([LEAD, None], pa.timestamp("ns", "UTC")), ["2020-01-02 03:04:05Z", None], None),
        (pa.array([LEAD], pa.timestamp("us", "Asia/Kolkata")), ["2020-01-02 08:34:05+0530"], None),
        (pa.array([HALF, MIDNIGHT], pa.timestamp("us")), ["2020-01-02 03:04:50.5", "2020-01-02"], None),
        (pa.array([HALF, MIDNIGHT], pa.timestamp("us", "UTC")), ["2020-01-02 03:04:50.5Z", "2020-01-02"], None),
        (pa.array([MIDNIGHT], pa.timestamp("s")), ["2020-01-02"], None),
        (pa.array([MIDNIGHT], pa.date64()), ["2020-01-02"], None),
        (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"], None),
        (pa.array([None, None]), [None, None], None),
        (pa.array([b"ab", None]), ["ab", None], None),
        (pa.array([[1, 2], None, []]), ["[1, 2]", None, "[]"], None),
        (pa.array([[["x"], ["y", None]]]), ['[["x"], ["y", null]]'], None),
        (pa.array([{"x": 1, "y": "b"}]), ['{"x": 1, "y": "b"}'], None),
        (pa.array([], pa.int64()), [], "numeric"),
        (pa.array([], pa.list_(pa.int64())), [], None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_parquet_types_become_text(column, cells, declared):
    assert through_parquet(column) == (cells, declared)


def test_bytes_that_are_no_text_leave_the_other_cells_alone():
    (text, other, none), declared = through_parquet(pa.array([b"ab", b"\xff", None]))
    assert (text, none, declared) == ("ab", None, None)
    assert other not in (None, "")


def test_parquet_headers_may_repeat_and_be_blank():
    frame = pa.table([pa.array([1]), pa.array(["x"]), pa.array([None])], names=["a", "a", ""])
    table = read_parquet(parquet_bytes(frame), "t.parquet")
    assert cells_of(table) == (("a", "a", ""), [["1"], ["x"], [None]])
    assert (table.name, table.types, table.sampled) == ("t.parquet", ("numeric", None, None), False)


def test_parquet_row_groups_are_one_column():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": list(range(10)), "b": list("abcdefghij")}), sink, row_group_size=3)
    assert cells_of(read_parquet(sink.getvalue(), "t")) == (("a", "b"), [list("0123456789"), list("abcdefghij")])


def test_parquet_without_columns_or_rows():
    assert cells_of(read_parquet(parquet_bytes(pa.table({})), "t")) == ((), [])
    empty = pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.float64())})
    assert cells_of(read_parquet(parquet_bytes(empty), "t")) == (("a", "b"), [[], []])


def test_damaged_parquet_breaks_the_parquet_rule():
    good = parquet_bytes(pa.table({"a": [1, 2, 3]}))
    assert broken_by(read_parquet, b"") == ("empty", "0 bytes")
    for data in (b"PAR1", b"a,b\n1,2\n", good[:-1], good[: len(good) // 2], good[:-8] + b"\xff" * 8, good[4:]):
        rule, found = broken_by(read_parquet, data)
        assert rule == "parquet"
        assert found
        assert "\n" not in found


def odd_parquet():
    """Parquet files that can be opened, and hold what neither Arrow's cast nor Python can show."""
    offsets = pa.py_buffer(np.array([0, 2, 4], np.int32).tobytes())
    no_utf8 = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfeok")])
    far = pa.array([[10**9]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    return {
        "strings that are no UTF-8": pa.table({"a": no_utf8}),
        "a nested date beyond Python's": pa.table({"a": far}),
        "a nested timestamp beyond Python's": pa.table({"a": pa.array([[2**62]], pa.list_(pa.timestamp("us")))}),
        "a time zone that is none": pa.table({"a": pa.array([0], pa.timestamp("us", "Foo/Bar"))}),
    }


@pytest.mark.parametrize("case", odd_parquet())
def test_odd_parquet_is_read_or_listed_and_the_others_are_profiled(tmp_path, case):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(odd_parquet()[case]))
    (tmp_path / "b.csv").write_text("x\n1\n")
    lake = open_lake(tmp_path)
    profiles = profile_tables(lake.tables())
    assert sorted([*profiles.tables, *(skipped.name for skipped in lake.skipped)]) == ["a.parquet", "b.csv"]
    assert profiles.tables[-1] == "b.csv"
    assert {skipped.rule for skipped in lake.skipped} <= {"parquet"}


# --- files


def test_read_table_goes_by_the_extension_in_any_case(tmp_path):
    (tmp_path / "a.CSV").write_text("a,b\n1\t2,3\n")
    (tmp_path / "a.Tsv").write_text("a\tb,c\n1,5\t2\n")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.PARQUET")
    found = {path.name: cells_of(read_table(path, "name")) for path in tmp_path.iterdir()}
    assert found == {
        "a.CSV": (("a", "b"), [["1\t2"], ["3"]]),
        "a.Tsv": (("a", "b,c"), [["1,5"], ["2"]]),
        "a.PARQUET": (("a",), [["1"]]),
    }


def test_a_file_that_is_gone_is_unreadable(tmp_path):
    assert broken_by(lambda path, name: read_table(path, name), tmp_path / "gone.csv") == (
        "unreadable",
        "No such file or directory",
    )


# --- frames

FRAME = {"id": [1, 2, None], "city": ["Paris", None, ""], "x": [1.5, 2.0, None]}
CELLS = (
    ("id", "city", "x"),
    [["1", "2", None], ["Paris", None, ""], ["1.5", "2", None]],
    ("numeric", None, "numeric"),
)


@pytest.mark.parametrize("make", [pa.table, pa.RecordBatch.from_pydict, pl.DataFrame, dict, pd.DataFrame])
def test_frames_of_every_library_hold_the_same_cells(make):
    assert from_frame(make(FRAME)) == CELLS


def test_polars_types():
    frame = pl.DataFrame(
        {
            "date": [dt.date(2020, 1, 2), None],
            "bool": [True, False],
            "list": [[1], [2, 3]],
            "null": [None, None],
            "u8": pl.Series([1, 2], dtype=pl.UInt8),
        }
    )
    assert from_frame(frame) == (
        ("date", "bool", "list", "null", "u8"),
        [["2020-01-02", None], ["true", "false"], ["[1]", "[2, 3]"], [None, None], ["1", "2"]],
        (None, None, None, None, "numeric"),
    )


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["x", "y"])], ids=["Categorical", "Enum"])
def test_polars_categories_are_text(kind):
    frame = pl.DataFrame({"a": pl.Series(["x", None, "y", "x"], dtype=kind)})
    assert from_frame(frame) == (("a",), [["x", None, "y", "x"]], (None,))


def test_pandas_types():
    frame = pd.DataFrame(
        {
            "category": pd.Categorical(["u", None]),
            "date": pd.to_datetime(["2020-01-02", None]),
            "Int64": pd.array([1, None], "Int64"),
            "nan": [float("nan"), 1.0],
        }
    )
    header, cells, types = from_frame(frame)
    assert header == ("category", "date", "Int64", "nan")
    assert cells[0] == ["u", None]
    assert cells[1][0] == "2020-01-02"  # as pandas writes such a column itself
    assert cells[1][1] is None
    assert cells[2:] == [["1", None], [None, "1"]]
    assert types == (None, None, "numeric", "numeric")


def test_an_unnamed_pandas_index_is_no_column():
    frame = pd.DataFrame({"a": [1, 2, 3, 4], "b": ["x", "y", "z", "x"]})
    assert from_frame(frame[frame.a > 2])[:2] == (("a", "b"), [["3", "4"], ["z", "x"]])
    assert from_frame(frame[frame.a != 3])[:2] == (("a", "b"), [["1", "2", "4"], ["x", "y", "x"]])


def test_named_levels_of_a_pandas_index_are_the_first_columns():
    frame = pd.DataFrame({"city": ["Rome", "Oslo", "Rome"], "year": [2020, 2020, 2021], "n": [1, 2, 3]})
    counted = frame.groupby("city").size().to_frame("n")
    assert from_frame(counted) == (("city", "n"), [["Oslo", "Rome"], ["1", "2"]], (None, "numeric"))
    summed = frame.groupby(["city", "year"]).sum()
    assert from_frame(summed) == (
        ("city", "year", "n"),
        [["Oslo", "Rome", "Rome"], ["2020", "2020", "2021"], ["2", "1", "3"]],
        (None, "numeric", "numeric"),
    )
    assert from_frame(summed.rename_axis(["city", None]))[0] == ("city", "n")
    assert from_frame(frame.set_index("city", drop=False))[0] == ("city", "year", "n")
    wide = frame.pivot_table("n", "city", "year")
    assert from_frame(wide)[0] == ("city", "2020", "2021")
    assert from_frame(counted[[]])[:2] == (("city",), [["Oslo", "Rome"]])


def test_pandas_headers_may_be_numbers():
    assert from_frame(pd.DataFrame([[1, 2]]))[:2] == (("0", "1"), [["1"], ["2"]])


def test_pandas_headers_may_repeat():
    assert from_frame(pd.DataFrame([[1, 2]], columns=["a", "a"]))[:2] == (("a", "a"), [["1"], ["2"]])


def test_pandas_columns_of_mixed_types_are_text():
    assert from_frame(pd.DataFrame({"a": [1, "x", None]})) == (("a",), [["1", "x", None]], (None,))


def test_arrow_frames_of_several_chunks_and_of_none():
    chunked = pa.table({"a": pa.chunked_array([["x"], [], ["y", None]])})
    assert from_frame(chunked) == (("a",), [["x", "y", None]], (None,))
    assert from_frame(pa.table({"a": pa.chunked_array([], pa.int64())})) == (("a",), [[]], ("numeric",))
    assert from_frame(chunked.slice(1, 1)) == (("a",), [["y"]], (None,))


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, dict, lambda: pa.table({})])
def test_frames_without_columns(make):
    assert from_frame(make()) == ((), [], ())


@pytest.mark.parametrize("column", [pd.Series([1]), pl.Series([1])], ids=["pandas", "polars"])
def test_a_column_alone_is_no_table(column):
    with pytest.raises(
        LakeError, match=r"^table 'q' is of type Series; .* frame \(its to_frame\(\) is one\), or a dict"
    ):
        table_from_frame(column, "q", Limits(10))


def test_types_that_arrow_does_not_have_are_text():
    frame = pd.DataFrame({"c": [1 + 2j, None], "n": [2**70, 1], "x": [1, 2]})
    assert from_frame(frame) == (
        ("c", "n", "x"),
        [["(1+2j)", None], [str(2**70), "1"], ["1", "2"]],
        (None, None, "numeric"),
    )
    wide = pl.DataFrame({"n": pl.Series([2**70, None], dtype=pl.Int128), "x": [1, 2]})
    assert from_frame(wide) == (("n", "x"), [[str(2**70), None], ["1", "2"]], (None, "numeric"))


@pytest.mark.parametrize(
    ("frame", "kind"), [([1], "list"), (None, "NoneType"), (pl.LazyFrame({"a": [1]}), "LazyFrame")]
)
def test_what_is_no_frame_is_refused_by_its_type(frame, kind):
    with pytest.raises(LakeError, match=f"table 'q' is of type {kind}; give a path, a pandas, polars or pyarrow frame"):
        table_from_frame(frame, "q", Limits())


@pytest.mark.parametrize("columns", [{"a": [1, "x"]}, {"a": [1], "b": [1, 2]}, {"a": 3}, {"a": [2**70]}])
def test_columns_that_are_none_are_refused(columns):
    with pytest.raises(LakeError, match=r"table 'q': .*; give columns of one type and one length"):
        table_from_frame(columns, "q", Limits())


def test_a_frame_has_the_bounds_of_a_file(monkeypatch):
    """Rows, columns and characters: the same are kept of the same cells, and the same is said."""
    monkeypatch.setattr(sample, "MAX_COLUMNS", 3)
    monkeypatch.setattr(arrow, "_BATCH_ROWS", 7)
    frame = pa.table(
        {name: [f"{name}{i}" * (5_000 if i == 3 else 1) for i in range(50)] for name in ("a", "b", "c", "d")}
    )
    text = "\n".join(",".join(row) for row in [frame.column_names, *zip(*frame.to_pydict().values(), strict=True)])
    bounds, of_file = Limits(20), Limits(20)
    table = table_from_frame(frame, "t", bounds)
    file = delimited.read_csv(text.encode(), "t", ",", of_file)
    assert cells_of(table) == cells_of(file)
    assert (table.n_rows, len(table.header), table.sampled) == (20, 3, True)
    assert bounds.notes == of_file.notes
    assert {rule for rule, _ in bounds.notes} == {"columns-cut", "cells-cut", "rows-sampled"}


def test_a_frame_and_its_parquet_file_are_the_same_table():
    frame = pa.table(FRAME)
    assert cells_of(read_parquet(parquet_bytes(frame), "t")) == cells_of(table_from_frame(frame, "t", Limits()))


def test_rows_of_a_table_without_columns():
    assert Table("t", (), (), ()).n_rows == 0
