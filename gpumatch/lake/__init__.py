"""A path in; tables as Arrow string columns, and a list of what was skipped and why, out.

The only package that opens the user's files; it never writes one and never lets a bad file stop a run.
"""

from gpumatch.lake.arrow import table_from_frame
from gpumatch.lake.queries import Query, QuerySet, find_queries, query_rows, read_query_rows, table_queries
from gpumatch.lake.rules import Limits, Skipped
from gpumatch.lake.sample import Table
from gpumatch.lake.source import Lake, listed, open_lake

__all__ = [
    "Lake",
    "Limits",
    "Query",
    "QuerySet",
    "Skipped",
    "Table",
    "find_queries",
    "listed",
    "open_lake",
    "query_rows",
    "read_query_rows",
    "table_from_frame",
    "table_queries",
]
