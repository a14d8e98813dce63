"""Scored pairs as plain data in; JSON Lines, Arrow, polars or pandas out. Knows nothing of how a score is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from gpumatch.errors import GpumatchError
from gpumatch.explain import Explanation, explain


@dataclass(frozen=True)
class Matches:
    """The answers to some query rows, in their order.

    rows: one object a query row: query_table and query_column (or None), query_text where there is one, task, weights
        where they are not the shipped ones, pool (how many tables search proposed), and matches in falling score; each
        has table, score, confidence, layer, columns ([{query, candidate, score}], columns as {index, name}), evidence.
        Where a language model was asked, rows have verdicts ({asked, given}), and matches that it was asked about a
        verdict: says (None with why where there is none), sure, words (the model's), score_before, moved, and of, the
        table that stands for it where that is another one.
    """

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        """Return the number of query rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the query rows."""
        return iter(self.rows)

    def explain(self, query: str, candidate: str, column: str | None = None) -> Explanation:
        """Say why a match is there: signals with their weights, columns, and what comes next; see `explain`."""
        return explain(self.rows, query, candidate, column)

    def to_json(self) -> str:
        """Return JSON Lines, one object a query row."""
        return "".join(map(to_line, self.rows))

    def to_arrow(self) -> pa.Table:
        """Return one row a match: query_table, query_column, query_text, task, rank, and all of the match."""
        flat = [
            {
                "query_table": row["query_table"],
                "query_column": row["query_column"],
                "query_text": row.get("query_text"),
                "task": row["task"],
                "rank": rank,
                "table": match["table"],
                "score": match["score"],
                "confidence": match["confidence"],
                "layer": match["layer"],
                "columns": match["columns"],
                "evidence": list(match["evidence"].items()),
                "verdict": match.get("verdict"),
            }
            for row in self.rows
            for rank, match in enumerate(row["matches"], start=1)
        ]
        return pa.Table.from_pylist(flat, schema=_SCHEMA)

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is optional
        """Return `to_arrow` as a pandas frame."""
        return self.to_arrow().to_pandas()

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
