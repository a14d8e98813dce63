"""Lakes and query tables in, `Matches` out: the Python face of the same pipeline that the command runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpumatch import pipeline
from gpumatch.alignment import Alignment
from gpumatch.config import Settings, load_settings
from gpumatch.encoder import Encoder
from gpumatch.index import Index as StoredIndex
from gpumatch.lake import table_from_frame
from gpumatch.memory import told
from gpumatch.results import Matches
from gpumatch.run import Run


class Index:
    """A lake made searchable: built by `gpumatch.build`, opened by `gpumatch.open`."""

    def __init__(self, stored: StoredIndex, settings: Settings, encoder: Encoder | None = None) -> None:
        self._stored = stored
        self._settings = settings
        self._encoder = encoder

    @property
    def tables(self) -> list[str]:
        """The names of the lake's tables, in code-point order."""
        return list(self._stored.lake.profiles.tables)

    @told()
    def match(
        self,
        queries: Any = None,  # noqa: ANN401
        *,
        column: str | Sequence[str] | None = None,
        task: str = "auto",
        k: int = 20,
        **settings: Any,  # noqa: ANN401
    ) -> Matches:
        """Rank, for every query, the lake's tables that it can be joined or unioned with.

        Args:
            queries: None for the rows of the lake's queries file, or without one every table; a queries file, table
                file, folder or glob; a pandas, polars or pyarrow frame; or a dict of such frames by name.
            column: what to join query tables from outside the lake on; of several columns, each is a query of its own.
            task: "join", "union", or "auto" where a queries file has a task_type.
            k: matches a query, 0 for all survivors.
            settings: any other field of `gpumatch.Settings`.

        Raises:
            GpumatchError: with what to do about it.
        """
        chosen = self._settings.model_dump() | {"task": task, "k": k} | settings
        run = Run(load_settings(**chosen), encoder=self._encoder)
        columns = [column] if isinstance(column, str) else column or ()
        return Matches(list(pipeline.match(self._stored, run, queries=_query_tables(queries), columns=columns)))


@told()
def build(lake: str | Path, path: str | Path, *, encoder: Encoder | None = None, **settings: Any) -> Index:  # noqa: ANN401
    """Build the index of a lake in the folder `path`, or bring it up to date, and open it.

    Args:
        lake: a folder of CSV, TSV or Parquet files, a tables.json, or a glob.
        encoder: one of your own, see `gpumatch.encoder.Encoder`.
        settings: fields of `gpumatch.Settings`.

    Raises:
        GpumatchError: with what to do about it.
    """
    chosen = load_settings(**settings)
    stored, _ = pipeline.update_index(lake, Path(path), Run(chosen, encoder=encoder))
    return Index(stored, chosen, encoder)


@told()
def align(a: Any, b: Any, *, keys: bool = False, encoder: Encoder | None = None, **settings: Any) -> Alignment:  # noqa: ANN401
    """Match the columns of two tables: how alike every two are, and the one-to-one alignment.

    Args:
        a, b: a table file each, or a pandas, polars or pyarrow frame or dict of columns.
        keys: also look for what to join the two on.
        encoder, settings: as `build`.

    Raises:
        GpumatchError: with what to do about it.
    """
    query, candidate = (
        one if isinstance(one, str | Path) else table_from_frame(one, name) for one, name in ((a, "a"), (b, "b"))
    )
    return pipeline.align(query, candidate, Run(load_settings(**settings), encoder=encoder), keys=keys)


def open(path: str | Path, *, encoder: Encoder | None = None, **settings: Any) -> Index:  # noqa: ANN401
    """Open an index folder. Arguments and errors as `build`."""
    return Index(StoredIndex.load(Path(path)), load_settings(**settings), encoder)


def _query_tables(queries: Any) -> Any:  # noqa: ANN401
    if queries is None or isinstance(queries, str | Path):
        return queries
    named = queries if _is_dict_of_frames(queries) else {"query": queries}
    return [table_from_frame(frame, str(name)) for name, frame in named.items()]


def _is_dict_of_frames(queries: Any) -> bool:  # noqa: ANN401
    """Tell {"name": frame} from one table written as {"column": [values]}."""
    return isinstance(queries, Mapping) and not any(isinstance(value, list | tuple) for value in queries.values())
