"""Ten thousand mutated files: each is read within bounds or listed with a rule somebody thought of, and within 2 s.

Derandomised: the same files every time; take that out to look for more.
"""

from datetime import timedelta

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumatch.errors import LakeError
from gpumatch.lake import open_lake
from gpumatch.lake.rules import PARTLY, SKIPPED
from gpumatch.lake.sample import MAX_CELL_CHARS, MAX_CELLS, MAX_COLUMNS

EXTENSIONS = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.zst", ".parquet.gz")
LISTING = b"""[{"table_name": "a", "columns": [{"name": "x", "type": "int", "sample_values": ["1", null, 2]}]},
{"table_name": "b", "columns": [{"column_name": "y", "data_type": "text", "sample_values": ["\\ud800", "z"]}]}]"""
# What breaks readers where it is put in: quotes, escapes, delimiters, line ends, marks, NULs, numbers that are sizes.
PIECES = (
    b'"', b"\\", b",", b";", b"\t", b"|", b"#", b"'", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xfe\xff", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xc3", b"\xf0\x9f\x98\x80", b"\x1a", b"\x80\0\0\0", b"\x7f\xff\xff\xff", b"\xff" * 8, b'""',
    b'\\"', b"sep=;\n", b"---", b"[" * 50, b"{", b"PAR1", b"\x1f\x8b", b"1e999", b"," * 3_000, b"x" * 9_000,
    b'"\n' * 99,
)  # fmt: skip

edits = st.binary(max_size=32)  # four bytes an edit: drawing structured ones takes longer than reading the file
mutated = settings(
    deadline=timedelta(seconds=2), derandomize=True, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def mutate(data, some):
    """Apply edits to bytes: change, put in, cut out, double, move, or end there."""
    data = bytearray(data)
    for i in range(0, len(some) - 3, 4):
        kind, what = some[i] % 7, some[i + 3]
        at = int.from_bytes(some[i + 1 : i + 3], "little") % (len(data) + 1)
        size = 1 + what % 64
        if kind == 0:
            data[at : at + 1] = bytes([what])
        elif kind in (1, 2):
            data[at:at] = PIECES[what % len(PIECES)]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * (1 + what % 7)
        elif kind == 5:
            piece = data[at : at + size]
            del data[at : at + size]
            data[at // 2 : at // 2] = piece
        else:
            del data[at:]
    return bytes(data)


def check(lake):
    """Read all of a lake; every table keeps its bounds, all else is listed."""
    tables = list(lake.tables())
    assert len(tables) + len(lake.skipped) >= len(lake.names)
    for table in tables:
        assert len(table.header) == len(table.columns) == len(table.types) <= MAX_COLUMNS
        assert {len(column) for column in table.columns} <= {table.n_rows}
        assert table.n_rows * len(table.columns) <= MAX_CELLS
        for column in table.columns:
            assert column.type == pa.string()
            column.validate(full=True)
            assert all(len(cell) <= MAX_CELL_CHARS for cell in column.drop_null().to_pylist())
    assert {one.rule for one in lake.skipped} <= SKIPPED.keys() - {"internal"}, lake.skipped
    assert {one.rule for one in lake.notes} <= PARTLY.keys()


def check_or_refused(path):
    """Read a file that is a lake by itself, and may be none."""
    try:
        check(open_lake(path))
    except LakeError as refused:
        message = str(refused)
    else:
        return
    assert str(path) in message


@pytest.fixture(scope="module")
def seeds(bad_files):
    """A function to every small one of the bad files; no list, as hypothesis would print it."""
    plain = [case.content for case in bad_files.CASES.values() if isinstance(case.content, bytes)]
    small = [data for data in plain if len(data) < 20_000]
    return lambda which: small[which % len(small)]


@given(which=st.integers(0, 1 << 16), extension=st.integers(0, len(EXTENSIONS) - 1), some=edits)
@settings(mutated, max_examples=9_000)
def test_a_mutated_file_is_read_or_listed(tmp_path, seeds, which, extension, some):
    path = tmp_path / f"a{EXTENSIONS[extension]}"
    path.write_bytes(mutate(seeds(which), some))
    try:
        check(open_lake(tmp_path))
    finally:
        path.unlink()


@given(some=edits)
@settings(mutated, max_examples=800)
def test_a_mutated_listing_is_read_or_refused(tmp_path, some):
    path = tmp_path / "tables.json"
    path.write_bytes(mutate(LISTING, some))
    check_or_refused(path)


@given(some=edits)
@settings(mutated, max_examples=200)
def test_a_mutated_database_is_read_or_refused(tmp_path, database, some):
    path = tmp_path / "a.duckdb"
    path.write_bytes(mutate(database(), some))
    check_or_refused(path)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A function to the bytes of a DuckDB file."""
    path = tmp_path_factory.mktemp("duck") / "a.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select range i, 't' || range t from range(100)")
        connection.execute("create view v as select i from t")
    return path.read_bytes
