"""Lakes and query tables in, `Matches` out: the Python face of the same pipeline that the command runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any

from gpumatch import pipeline
from gpumatch.alignment import Alignment
from gpumatch.config import Settings, load_settings
from gpumatch.encoder import Encoder
from gpumatch.errors import LakeError, UsageError
from gpumatch.index import Index as StoredIndex
from gpumatch.lake import Limits, QuerySet, Skipped, Table, query_rows, table_from_frame
from gpumatch.memory import told
from gpumatch.recipes import LAYERS
from gpumatch.records import names_queries
from gpumatch.results import Matches, Told
from gpumatch.run import Run
from gpumatch.text import is_missing

# A model by its folder or hub id, or an object of one's own.
_Encoder = Encoder | str | Path | None


class Index(Told):
    """A lake made searchable: built by `gpumatch.build`, opened by `gpumatch.open`.

    stats: what building or opening the index did, as --stats writes it.
    """

    def __init__(
        self,
        stored: StoredIndex,
        settings: Settings,
        encoder: Encoder | None = None,
        stats: dict[str, Any] | None = None,
    ) -> None:
        self._stored = stored
        self._settings = settings
        self._encoder = encoder
        self.stats = stats or {}

    def __repr__(self) -> str:
        """Return what it holds and where, in one line."""
        profiles, encoder = self._stored.lake.profiles, self._stored.about["encoder"]
        vectors = "no vectors" if encoder is None else f"vectors of {encoder}"
        return f"<Index {self._stored.folder}: {profiles.n_tables} tables, {profiles.n_columns} columns, {vectors}>"

    @property
    def tables(self) -> list[str]:
        """The names of the lake's tables, in code-point order."""
        return list(self._stored.lake.profiles.tables)

    @told()
    def match(
        self,
        queries: Any = None,  # noqa: ANN401
        *,
        column: str | int | Sequence[str | int] | None = None,
        task: str | None = None,
        k: int | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Matches:
        """Rank, for every query, the lake's tables that it can be joined or unioned with.

        Args:
            queries: None for the rows of the lake's queries file, or without one every table; a queries file, table
                file, folder or glob; a pandas, polars or pyarrow frame, or a dict {column: list of values}; or a dict
                of such tables by name, which differ as text too. Named levels of a pandas index become the first
                columns; levels without a name are left out. A list of dicts, or a frame, with query_table or query_text
                among its fields is what a queries file is: rows that name tables of the lake.
            column: name of the column to join query tables from outside the lake on (a number if the frame's names are
                numbers); if several are given, each is a query of its own. An empty list is an error.
            task: "join", "union", or "auto" if a queries file has a task_type; by default as the index was opened with.
            k: matches a query, 0 for all survivors; by default as the index was opened with, or else 20.
            settings: any other field of `gpumatch.Settings`; `encoder`, as in `build`.

        Raises:
            GpumatchError: with what to do about it; also for a frame that cannot be read. A query file, or a row of a
                list, that cannot be read or found raises nothing: it has no matches, and `Matches.skipped` tells why.
        """
        given = {name: value for name, value in (("task", task), ("k", k)) if value is not None}
        run = _run(settings.pop("encoder", None) or self._encoder, self._settings.model_dump() | given | settings)
        columns = [] if column is None else _column_names(column)
        with run.watched():
            rows = list(pipeline.match(self._stored, run, queries=_queries(queries, columns, run), columns=columns))
        return Matches(rows, run.stats.to_dict())


@told()
def build(lake: str | Path, path: str | Path, *, encoder: _Encoder = None, **settings: Any) -> Index:  # noqa: ANN401
    """Build the index of a lake in the folder `path`, or bring it up to date, and open it.

    Args:
        lake: a folder of CSV, TSV or Parquet files, a tables.json, a DuckDB file, or a glob.
        path: a folder for the index; what is there is brought up to date.
        encoder: the folder or hub id of a sentence-transformers model, or an encoder of your own, see
            `gpumatch.encoder.Encoder`.
        settings: fields of `gpumatch.Settings`.

    Raises:
        GpumatchError: with what to do about it.
    """
    if not isinstance(lake, str | Path):
        raise UsageError(f"a lake is files, and this is a {type(lake).__name__}; give the path of their folder")
    run = _run(encoder, settings)
    with run.watched():
        stored, _ = pipeline.update_index(lake, _folder(path), run)
    return Index(stored, run.settings, _own(encoder), run.stats.to_dict())


@told()
def align(a: Any, b: Any, *, keys: bool = False, encoder: _Encoder = None, **settings: Any) -> Alignment:  # noqa: ANN401
    """Match the columns of two tables: how alike every two are, and the one-to-one alignment.

    Args:
        a, b: a table file each, or a pandas, polars or pyarrow frame (as `Index.match`) or dict of columns.
        keys: also look for what to join the two on.
        encoder, settings: as `build`.

    Raises:
        GpumatchError: with what to do about it.
    """
    run = _run(encoder, settings)
    with run.watched():
        query, candidate = (
            one if isinstance(one, str | Path) else _tables({name: one}, run)[0] for one, name in ((a, "a"), (b, "b"))
        )
        return pipeline.align(query, candidate, run, keys=keys)


@told()
def open(path: str | Path, *, encoder: _Encoder = None, **settings: Any) -> Index:  # noqa: ANN401
    """Open an index folder. Arguments and errors as `build`; one of L1 answers at L1 where no layer is given."""
    run = _run(encoder, settings)
    with run.watched():
        stored = pipeline.load_index(_folder(path), run)
    pipeline.tell(stored.about, run)
    lexical = stored.about["encoder"] is None and "layer" not in settings
    chosen = load_settings(**run.settings.model_dump() | {"layer": LAYERS[0]}) if lexical else run.settings
    return Index(stored, chosen, _own(encoder), run.stats.to_dict())


def _run(encoder: _Encoder, settings: dict[str, Any]) -> Run:
    own = _own(encoder)
    named = {"encoder": str(encoder)} if own is None and encoder is not None else {}
    return Run(load_settings(**settings | named), encoder=own)


def _own(encoder: _Encoder) -> Encoder | None:
    return None if isinstance(encoder, str | Path) else encoder


def _folder(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or not str(path):
        raise UsageError(f"the index's path is {path!r}; give the path of a folder")
    return Path(path).expanduser()


def _column_names(column: Any) -> list[str]:  # noqa: ANN401
    """Return column names as text, as tables have them: names in frames may be numbers."""
    columns = [column] if isinstance(column, str | Integral) else column
    try:
        names = [str(one) for one in columns if isinstance(one, str | Integral)]
        whole = 0 < len(names) == len(columns)
    except TypeError:
        whole = False
    if not whole:
        raise UsageError(f"column={column!r}; give the name of a column, or a list of names; None asks by whole tables")
    return names


def _queries(queries: Any, columns: Sequence[str], run: Run) -> Any:  # noqa: ANN401
    """Return queries as the pipeline takes them: a path, tables from outside the lake, or rows that name its tables."""
    if queries is None or isinstance(queries, str | Path):
        return queries
    if isinstance(queries, list | tuple) and any(isinstance(row, Mapping) and names_queries(row) for row in queries):
        return _rows([row if isinstance(row, Mapping) else {} for row in queries], columns, run)
    if _is_dict_of_frames(queries):
        return _tables(queries, run)
    of_frame = getattr(queries, "column_names", getattr(queries, "columns", ()))  # pyarrow's, or pandas' and polars'
    fields = list(queries if isinstance(queries, Mapping) else of_frame)
    if not names_queries([field for field in fields if isinstance(field, str)]):
        return _tables({"query": queries}, run)
    table = table_from_frame(queries, "queries", Limits(sys.maxsize))  # every row of it is a query
    cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return _rows([dict(zip(table.header, row, strict=True)) for row in cells], columns, run)


def _rows(records: Sequence[Mapping[str, Any]], columns: Sequence[str], run: Run) -> QuerySet:
    if columns:
        raise UsageError("rows of queries name their columns themselves: give query_column in the rows, and no column=")
    records = [{field: value for field, value in row.items() if not is_missing(value)} for row in records]
    return QuerySet(query_rows(records, run.settings.task, "queries"))


def _tables(frames: Mapping[Any, Any], run: Run) -> list[Table]:
    """Read frames as files are read; the run's warnings tell what is left out of them."""
    tables, partly = [], []
    for name, n in Counter(map(str, frames)).items():
        if n > 1:  # rows and their answers go by these names
            keys = ", ".join(repr(key) for key in frames if str(key) == name)
            raise UsageError(f"{n} query tables are named {name!r} (the keys {keys}); give each a name of its own")
    for name, frame in frames.items():
        if not str(name):
            raise UsageError("a query table's name is empty; its answers go by its name, so give it one")
        if isinstance(frame, str | Path):
            raise LakeError(f"table {name!r} is a path, {str(frame)!r}; give a path alone, queries={str(frame)!r}")
        for column, values in frame.items() if isinstance(frame, Mapping) else ():
            if isinstance(values, list | tuple) and any(isinstance(value, dict) for value in values):
                raise LakeError(
                    f"{column!r} is a list of dicts; give a table as a frame, such as pandas.DataFrame(rows), or as a "
                    "dict {column: list of values}"
                )
        limits = Limits(run.settings.sample_rows)
        tables.append(table_from_frame(frame, str(name), limits))
        partly += [asdict(Skipped(str(name), *note)) for note in limits.notes]
    pipeline.tell({"skipped": [], "partly": partly}, run)
    return tables


def _is_dict_of_frames(queries: Any) -> bool:  # noqa: ANN401
    """Tell {"name": frame} from one table written as {"column": [values]}."""
    return isinstance(queries, Mapping) and not any(isinstance(value, list | tuple) for value in queries.values())
