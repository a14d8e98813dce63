"""Scored pairs as plain data in; JSON Lines, Arrow, polars, pandas, CSV or HTML out.

Knows nothing of how a score is made. In results of other systems all but names and scores may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from gpumatch import outputs, report
from gpumatch.errors import GpumatchError, UsageError
from gpumatch.explain import Explanation, explain
from gpumatch.text import is_missing


class Told:
    """What a run has told, for classes with its `stats` (as --stats writes them; may be empty)."""

    stats: dict[str, Any]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """What could not be read or found in the lake and the queries, each with name, rule and found."""
        return list(self.stats.get("skipped", []))

    @property
    def warnings(self) -> list[str]:
        """What the command would have warned of, such as tables that were read in part."""
        return list(self.stats.get("warnings", []))


@dataclass(frozen=True)
class Matches(Told):
    """The answers to some query rows, in their order.

    rows: one object a query row: query_table and query_column (or None), query_text if there is one, task, weights if
        they are not the shipped ones, pool (how many tables search proposed), and matches in falling score; each match
        has table, score, confidence, layer, columns ([{query, candidate, score}], columns as {index, name}), evidence.
        If a language model was asked, rows have verdicts ({asked, given}), and the matches that it was asked about have
        a verdict: says (None, with why, if there is none), sure, words (the model's), score_before, moved, and of: the
        table that was asked about in its place, if another one.
    stats: what the run did, as --stats writes it; empty for rows from elsewhere.
    """

    rows: list[dict[str, Any]]
    stats: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        """Return how much there is, in one line."""
        return f"<Matches: {len(self.rows)} queries, {sum(len(row.get('matches', ())) for row in self.rows)} matches>"

    def __len__(self) -> int:
        """Return the number of query rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the query rows."""
        return iter(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return the i-th query row."""
        return self.rows[i]

    def explain(self, query: str, candidate: str, column: str | None = None, task: str | None = None) -> Explanation:
        """Say why a match is there: signals with their weights, columns, and what comes next; see `explain`."""
        return explain(self.rows, query, candidate, None if is_missing(column) else column, task)

    def to_json(self) -> str:
        """Return JSON Lines, one object a query row."""
        return "".join(map(to_line, self.rows))

    def to_csv(self) -> str:
        """Return a line a match, for spreadsheets: an apostrophe precedes what they would take for a formula."""
        return report.to_csv(self.rows)

    def to_html(self) -> str:
        """Return a page of all matches that needs nothing else: no scripts, no network."""
        return report.to_html(self.rows)

    def write_html(self, path: str | Path) -> None:
        """Write `to_html` into a file, whole or not at all. Errors as `write`."""
        self._write(Path(path), self.to_html)

    def write(self, path: str | Path) -> None:
        """Write a file, whole or not at all, of the kind that its name says.

        It is .jsonl (`to_json`, what the commands read), .html, .csv, or .parquet (`to_arrow`).

        Raises:
            UsageError: it has another extension.
            OutputError: it cannot be written.
        """
        kinds: dict[str, Callable[[], str | bytes]] = {
            ".jsonl": self.to_json, ".html": self.to_html, ".csv": self.to_csv, ".parquet": self._to_parquet,
        }  # fmt: skip
        make = kinds.get(Path(path).suffix.lower())
        if make is None:
            raise UsageError(f"cannot write {path}: give a name that ends in {', '.join(kinds)}")
        self._write(Path(path), make)

    def _write(self, path: Path, make: Callable[[], str | bytes]) -> None:
        path = path.expanduser()
        outputs.prepare(path, "-o")
        outputs.write(path, make())

    def _to_parquet(self) -> bytes:
        from pyarrow import parquet

        sink = pa.BufferOutputStream()
        parquet.write_table(self.to_arrow(), sink)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        """Return the first matches of the first queries, for a notebook."""
        return report.snippet(self.rows)

    def to_arrow(self) -> pa.Table:
        """Return one row a match: query_table, query_column, query_text, task, rank, and the match's own fields.

        Raises:
            UsageError: a match is not as gpumatch writes it.
        """
        try:
            return pa.Table.from_pylist(_flat(self.rows), schema=_SCHEMA)
        except UnicodeEncodeError:  # a file name that is no Unicode, which Arrow cannot hold
            plain = json.dumps(self.rows, ensure_ascii=False).encode(errors="replace")
            return pa.Table.from_pylist(_flat(json.loads(plain)), schema=_SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowTypeError, AttributeError) as error:
            raise UsageError(f"these results are not as gpumatch match writes them: {error}") from error

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is optional
        """Return `to_arrow` as a pandas frame."""
        return self.to_arrow().to_pandas(maps_as_pydicts="strict")

    def to_polars(self) -> Any:  # noqa: ANN401 - polars is optional
        """Return `to_arrow` as a polars frame.

        Raises:
            GpumatchError: polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise GpumatchError("polars is not installed: pip install 'gpumatch[frames]'") from error
        return polars.from_arrow(self.to_arrow())


def to_line(row: dict[str, Any]) -> str:
    """Return one query row as a line of JSON Lines."""
    try:
        return orjson.dumps(row).decode() + "\n"
    except orjson.JSONEncodeError:  # a file name that is no Unicode: only its escape can be written
        return json.dumps(row, separators=(",", ":")) + "\n"


def _flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "query_table": row.get("query_table"),
            "query_column": row.get("query_column"),
            "query_text": row.get("query_text"),
            "task": row.get("task"),
            "rank": rank,
            "table": match["table"],
            "score": match["score"],
            "confidence": match.get("confidence"),
            "layer": match.get("layer"),
            "columns": match.get("columns"),
            "evidence": list((match.get("evidence") or {}).items()),
            "verdict": match.get("verdict"),
        }
        for row in rows
        for rank, match in enumerate(row["matches"], start=1)
    ]


_COLUMN = pa.struct([("index", pa.int32()), ("name", pa.string())])
_VERDICT = pa.struct(
    [
        ("says", pa.string()),
        ("why", pa.string()),
        ("sure", pa.float64()),
        ("words", pa.string()),
        ("score_before", pa.float64()),
        ("moved", pa.float64()),
        ("of", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("query_table", pa.string()),
        ("query_column", pa.string()),
        ("query_text", pa.string()),
        ("task", pa.string()),
        ("rank", pa.int32()),
        ("table", pa.string()),
        ("score", pa.float64()),
        ("confidence", pa.float64()),
        ("layer", pa.string()),
        ("columns", pa.list_(pa.struct([("query", _COLUMN), ("candidate", _COLUMN), ("score", pa.float64())]))),
        ("evidence", pa.map_(pa.string(), pa.float64())),
        ("verdict", _VERDICT),
    ]
)
