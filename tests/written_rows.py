"""Result rows and truth rows as `gpumatch match` and annotators write them, from what a test cares about."""

from __future__ import annotations


def result(query, ranking, column=None):
    """A result row; ranking is [(table, score)] or [(table, candidate column, score)]."""
    matches = []
    for table, *candidate, score in ranking:
        columns = [{"query": column, "candidate": {"index": 0, "name": name}, "score": score} for name in candidate]
        matches.append({"table": table, "score": score, "layer": "L1", "columns": columns, "evidence": {}})
    return {"query_table": query, "query_column": column, "task": "join", "matches": matches}


def pair(query, candidate, query_column=None, candidate_column=None):
    row = {"query_table": query, "candidate_table": candidate}
    if query_column is not None:
        row["query_column"] = query_column
    if candidate_column is not None:
        row["candidate_column"] = candidate_column
    return row
