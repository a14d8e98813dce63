"""A DuckDB file in, its tables and views as `Table`s out.

Never writes the file, and lets nothing in it reach other files, the network or extensions.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpumatch.errors import LakeError
from gpumatch.lake.arrow import add_batches
from gpumatch.lake.files import Source, first_line, is_database
from gpumatch.lake.rules import Limits, Skipped, Unreadable
from gpumatch.lake.sample import MAX_CELL_CHARS, Sample, Table

# A limit, since a view may compute for ever; tables are read at millions of rows a second.
QUERY_SECONDS = 300.0
# One thread, so that rows come in the table's order; no folder for temporary files, so that nothing is written.
_CONFIG = {
    "enable_external_access": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
    "temp_directory": "",
    "memory_limit": "2GB",
    "threads": 1,
}
_BATCH_CELLS = 1 << 16
_LIST = """
    select schema_name, table_name from duckdb_tables() where not internal and database_name = current_database()
    union all
    select schema_name, view_name from duckdb_views() where not internal and database_name = current_database()
    order by all
"""


def is_database_file(path: Path) -> bool:
    """Tell a DuckDB file, whatever its name."""
    try:
        with Source(path) as source:
            return source.packed is None and is_database(source.read(64))
    except Unreadable:
        return False


class Database:
    """The tables of a DuckDB file.

    tables: "schema.table" → (schema, table).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: list[Skipped] = []
        self.tables: dict[str, tuple[str, str]] = {}
        with self._connected() as connection:
            for schema, table in connection.sql(_LIST).fetchall():
                name = f"{schema}.{table}"
                if name in self.tables:
                    self.skipped.append(Skipped(name, "repeated-name", f"table {table!a} in schema {schema!a}"))
                else:
                    self.tables[name] = (schema, table)
        if not self.tables:
            raise LakeError(f"{path} holds no tables: expected base tables or views")

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        import duckdb  # only lakes that are databases need it

        connection = None
        try:
            connection = duckdb.connect(str(self.path), read_only=True, config=_CONFIG)
            connection.execute("set lock_configuration = true")
            yield connection
        except duckdb.Error as error:
            raise LakeError(f"{self.path} cannot be opened: {first_line(error)}; {_advice(error)}") from error
        finally:
            if connection is not None:
                connection.close()

    @contextmanager
    def reader(self) -> Iterator[Any]:
        """Open the file once for many tables; yields a function from a name and limits to a `Table`."""
        with self._connected() as connection:
            yield lambda name, limits: _read(connection, name, self.tables[name], limits)


def _advice(error: Exception) -> str:
    said = str(error).lower()
    if "set lock on" in said or "different configuration" in said:
        return "close the program or the connection that has it open, or give a copy"
    if "version" in said:
        return "install the duckdb that wrote it, or export its tables to Parquet"
    return "restore it from a copy, or export its tables to Parquet"


def _read(connection: Any, name: str, table: tuple[str, str], limits: Limits) -> Table:  # noqa: ANN401
    import duckdb

    try:
        with _interrupted(connection):
            whole = connection.sql(f"select * from {_quoted(table[0])}.{_quoted(table[1])}")  # noqa: S608 - quoted
            header, types = whole.columns, [_declared_type(str(one)) for one in whole.types]
            sample = Sample(name, header, types, limits)
            # DuckDB's own text form of every type, and no more characters than can be kept
            texts = ", ".join(f"left(cast(#{i + 1} as varchar), {MAX_CELL_CHARS + 1})" for i in range(sample.width))
            rows = max(1, _BATCH_CELLS // max(1, sample.width))
            add_batches(sample, whole.project(texts).to_arrow_reader(rows))
    except duckdb.InterruptException as error:
        raise Unreadable("query-slow", f"stopped after {QUERY_SECONDS:g} seconds") from error
    except duckdb.OutOfMemoryException as error:
        raise Unreadable("memory", first_line(error)) from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise Unreadable("query-failed", first_line(error)) from error
    return sample.finish()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_NUMERIC = re.compile(r"U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)|FLOAT|DOUBLE|DECIMAL(\(\d+,\s*\d+\))?")


def _declared_type(kind: str) -> str | None:
    return "numeric" if _NUMERIC.fullmatch(kind) else None


@contextmanager
def _interrupted(connection: Any) -> Iterator[None]:  # noqa: ANN401 - duckdb is imported late
    """Stop a query that takes too long."""
    timer = threading.Timer(QUERY_SECONDS, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
