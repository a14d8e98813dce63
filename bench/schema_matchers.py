"""valentine's schema matchers on the tables that gpumatch's search proposes: gpumatch's rows in, ranked anew, rows out.

    python bench/schema_matchers.py SPEC   what peers.py starts and watches; SPEC is JSON, see `serve`

valentine (Koutras et al., ICDE 2021) matches the columns of two tables, nothing in it searches a lake: so it is given
gpumatch's survivors, and only their order is its own. A table scores the largest sum over one-to-one assignments of the
query's columns to its own, as table-union search scores tables (Nargesian et al., VLDB 2018; Fan et al., VLDB 2023),
divided by the query's columns; a join query that names a column is that column alone. The library's defaults:

    Coma           trigrams and tokens of names (Do and Rahm, VLDB 2002), what is within .15 of a column's best
    Coma, values   the mean of that and of the TF-IDF cosines of single values
    Jaccard        Jaccard index of the value sets, where values are the same from a Levenshtein similarity of .8 on

at most a thousand rows of each table.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.optimize import linear_sum_assignment

from gpumatch.lake import Table, find_queries, open_lake
from gpumatch.text import normalise_name

MATCHERS = ("Coma", "Coma, values", "Jaccard")
DECIMALS = 6


def matcher_of(name: str) -> Any:  # noqa: ANN401 - valentine.algorithms.BaseMatcher
    """Return one of MATCHERS."""
    from valentine.algorithms import Coma, JaccardDistanceMatcher

    if name == "Jaccard":
        return JaccardDistanceMatcher()
    if name == "Coma":
        return Coma()
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    from valentine.algorithms.coma.similarity import tfidf

    tfidf._english_stopwords = lambda: ENGLISH_STOP_WORDS  # NLTK's own would have to be downloaded
    return Coma(use_instances=True)


def table_of(table: Table, column: str | None = None) -> Any:  # noqa: ANN401 - valentine.data_sources.DataframeTable
    """Return a table as valentine takes it, or one column of it, its repeated headers told apart."""
    import pandas as pd
    from valentine.data_sources import DataframeTable

    cells: dict[str, list[str | None]] = {}
    for name, values in zip(table.header, table.columns, strict=True):
        while name in cells:
            name += "_"
        cells[name] = [value or None for value in values.to_pylist()]
    if column is not None:
        same = (name for name in cells if name == column)
        alike = (name for name in cells if normalise_name(name) == normalise_name(column))
        name = next(same, next(alike, None))
        cells = {} if name is None else {name: cells[name]}
    return DataframeTable(pd.DataFrame(cells, dtype="object"), table.name)


def assigned(matches: Mapping[Any, float]) -> float:
    """Return the largest sum of the scores of column pairs that share no column.

    Args:
        matches: valentine's ColumnPair → score.
    """
    sources = {name: i for i, name in enumerate(dict.fromkeys(pair.source_column for pair in matches))}
    targets = {name: i for i, name in enumerate(dict.fromkeys(pair.target_column for pair in matches))}
    scores = np.zeros((len(sources), len(targets)))
    for pair, score in matches.items():
        scores[sources[pair.source_column], targets[pair.target_column]] = score
    return float(scores[linear_sum_assignment(scores, maximize=True)].sum())


def serve(spec: dict[str, Any]) -> None:
    """Rank the survivors of some queries by one matcher; write the rows, and the seconds until the lake is read.

    spec: system, lake, task, queries (a path or None), rows (gpumatch's results file), asked (a list of [query table,
    query column or null]), out.
    """
    lake = open_lake(spec["lake"])
    tables = {table.name: table for table in lake.tables()}
    candidates = {name: table_of(table) for name, table in tables.items()}
    outside = find_queries(lake, spec["queries"], spec["task"]).outside
    if outside is not None:
        tables = {table.name: table for table in outside.tables()}
    matcher = matcher_of(spec["system"])
    read = time.time() - psutil.Process().create_time()
    rows, asked = [], {tuple(key) for key in spec["asked"]}
    with Path(spec["rows"]).open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if (row["query_table"], row["query_column"]) not in asked:
                continue
            query = table_of(tables[row["query_table"]], row["query_column"])
            width = max(1, len(query.get_columns()))
            names = [match["table"] for match in row["matches"]]
            scores = [assigned(matcher.get_matches(query, candidates[name])) / width for name in names]
            ranked = sorted(zip((-round(score, DECIMALS) for score in scores), names, strict=True))
            rows.append(row | {"matches": [{"table": name, "score": -score} for score, name in ranked]})
    found = {
        "index_seconds": read,
        "tables": len(candidates),
        "rows": rows,
        "version": importlib.metadata.version("valentine"),
    }
    Path(spec["out"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
