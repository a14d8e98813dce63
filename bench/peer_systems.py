"""Other people's libraries on the same tables and queries: a lake and its queries in, result rows like gpumatch's out.

    python bench/peer_systems.py SPEC      what peers.py starts and watches; SPEC is JSON, see `serve`

Every system gets gpumatch's own reading of the tables, so only the ranking differs, and the work is bounded alike: word
tokens of the first 200 distinct values of a column, and the distinct values of at most 100,000 rows.

    TF-IDF                 a table is its word tokens, headers and values; sublinear tf, cosine (scikit-learn)
    bm25s                  the same bags, BM25 of the query's tokens with their repetitions
    LSH Ensemble           columns are value sets; candidates from MinHash LSH by containment, scored by the containment
                           that their MinHashes say (datasketch)
    SetSimilaritySearch    columns are value sets, exact containment

Containment is the share of the query column's values that the candidate has. A table scores its best pair of columns
for a join, and the mean over the query's columns of their best candidate column for a union. A join query that
names a column is that column alone. Tables that score nothing are not listed.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.sparse import csr_array

from gpumatch.lake import Lake, find_queries, open_lake
from gpumatch.profile import Profiles, profile_tables
from gpumatch.text import hash_texts, normalise_name, words

# Overlaps below say little and cost most; LSH Ensemble is tuned to find what lies above.
LEAST_CONTAINMENT = 0.1
PERMUTATIONS = 128
DECIMALS = 6

Row = dict[str, Any]


class Peer(ABC):
    """A system that has indexed a lake."""

    @abstractmethod
    def __init__(self, lake: Profiles, task: str) -> None: ...

    @abstractmethod
    def scores(self, tables: Profiles, columns: range) -> np.ndarray:
        """Return float [T], each lake table's score for a query that is some columns of a table."""


# --- tables as bags of words


class Bags:
    """The word tokens of a lake's tables, headers and values, as term numbers."""

    def __init__(self, lake: Profiles) -> None:
        bounds = lake.table_cols.tolist()
        bags = [_bag(lake, range(*bounds[t : t + 2])) for t in range(lake.n_tables)]
        self.terms = np.unique(np.concatenate([np.empty(0, np.uint64), *(term for term, _ in bags)]))
        self.of_table = [(np.searchsorted(self.terms, term), tf) for term, tf in bags]

    def of(self, tables: Profiles, columns: range) -> tuple[np.ndarray, np.ndarray]:
        """Return (term numbers, how often each) of some columns; what the lake does not have is left out."""
        term, tf = _bag(tables, columns)
        place = np.searchsorted(self.terms, term)
        known = place < len(self.terms)
        known[known] = self.terms[place[known]] == term[known]
        return place[known], tf[known]


def _bag(tables: Profiles, columns: range) -> tuple[np.ndarray, np.ndarray]:
    """Return (distinct hashes, how often each) of the words of columns that stand side by side."""
    header = hash_texts(word for c in columns for word in words(tables.names[c]))
    some = slice(tables.token_start[columns.start], tables.token_start[columns.stop])
    term, place = np.unique(np.concatenate([header, tables.tokens[some]]), return_inverse=True)
    times = np.concatenate([np.ones(len(header)), tables.token_tf[some]])
    return term, np.bincount(place, times, minlength=len(term)).astype(np.int64)


class TfIdf(Peer):
    """Sparse rows of unit length, one product a query."""

    def __init__(self, lake: Profiles, task: str) -> None:
        from sklearn.feature_extraction.text import TfidfTransformer

        self._bags = Bags(lake)
        self._weigh = TfidfTransformer(sublinear_tf=True)
        self._rows = self._weigh.fit_transform(self._counts(self._bags.of_table))

    def scores(self, tables: Profiles, columns: range) -> np.ndarray:
        """Return the cosine with every table."""
        query = self._weigh.transform(self._counts([self._bags.of(tables, columns)]))
        return (self._rows @ query.T).toarray()[:, 0]

    def _counts(self, bags: Sequence[tuple[np.ndarray, np.ndarray]]) -> csr_array:
        start = np.cumsum([0, *(len(term) for term, _ in bags)])
        term, tf = (np.concatenate(parts) for parts in zip(*bags, strict=True))
        return csr_array((tf.astype(np.float64), term, start), shape=(len(bags), len(self._bags.terms)))


class Bm25(Peer):
    """The library's own index, with its defaults."""

    def __init__(self, lake: Profiles, task: str) -> None:
        import bm25s

        self._bags = Bags(lake)
        self._index = bm25s.BM25()
        vocabulary = {f"{term:x}": i for i, term in enumerate(self._bags.terms.tolist())}
        self._index.index(([_repeated(bag) for bag in self._bags.of_table], vocabulary), show_progress=False)

    def scores(self, tables: Profiles, columns: range) -> np.ndarray:
        """Return the sum of the query tokens' scores in every table."""
        return self._index.get_scores_from_ids(_repeated(self._bags.of(tables, columns)))


def _repeated(bag: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return np.repeat(*bag).tolist()


# --- columns as sets of values


class ColumnSets(Peer):
    """Scores tables by what a system finds for each query column among the lake's columns that have values."""

    def __init__(self, lake: Profiles, task: str) -> None:
        self._task, self._n = task, lake.n_tables
        sets = [_values(lake, c) for c in range(lake.n_columns)]
        self._table = np.repeat(np.arange(lake.n_tables), np.diff(lake.table_cols))[[len(one) > 0 for one in sets]]
        self.index([one for one in sets if one])

    @abstractmethod
    def index(self, sets: list[list[int]]) -> None:
        """Take the lake's sets, none of them empty."""

    @abstractmethod
    def contained(self, values: list[int]) -> list[tuple[int, float]]:
        """Return (number of a lake set, containment in it) of a query set, wherever it is worth the while."""

    def scores(self, tables: Profiles, columns: range) -> np.ndarray:
        """Return the best containment (join), or the mean of the query columns' best ones (union)."""
        best = np.zeros((len(columns), self._n))
        for row, c in enumerate(columns):
            values = _values(tables, c)
            found = self.contained(values) if values else []
            if found:
                place, share = zip(*found, strict=True)
                np.maximum.at(best[row], self._table[list(place)], share)
        return best.max(0) if self._task == "join" else best.mean(0)


def _values(tables: Profiles, c: int) -> list[int]:
    return tables.values[tables.value_start[c] : tables.value_start[c + 1]].tolist()


class Ensemble(ColumnSets):
    """MinHash LSH Ensemble (Zhu et al., VLDB 2016), with the library's defaults but for the threshold."""

    def index(self, sets: list[list[int]]) -> None:
        """Sketch the sets and put them into hash tables."""
        from datasketch import MinHashLSHEnsemble

        self._sizes, self._sketches = [len(one) for one in sets], [_sketch(one) for one in sets]
        self._ensemble = MinHashLSHEnsemble(threshold=LEAST_CONTAINMENT, num_perm=PERMUTATIONS)
        self._ensemble.index(list(zip(range(len(sets)), self._sketches, self._sizes, strict=True)))

    def contained(self, values: list[int]) -> list[tuple[int, float]]:
        """Return the candidates, with the containment that follows from the estimated Jaccard index and the sizes."""
        sketch, size = _sketch(values), len(values)
        found = []
        for place in self._ensemble.query(sketch, size):
            jaccard = sketch.jaccard(self._sketches[place])
            found.append((place, min(1.0, jaccard / (1 + jaccard) * (size + self._sizes[place]) / size)))
        return found


def _sketch(values: list[int]) -> Any:  # noqa: ANN401 - datasketch.MinHash
    from datasketch import MinHash

    sketch = MinHash(PERMUTATIONS, hashfunc=_low_half)
    sketch.update_batch(values)
    return sketch


def _low_half(value: int) -> int:
    return value & 0xFFFFFFFF  # values are hashes already; a sketch takes 32 bits


class SetSearch(ColumnSets):
    """Exact search with prefix and position filters."""

    def index(self, sets: list[list[int]]) -> None:
        """Sort the sets by the frequency of their values."""
        from SetSimilaritySearch import SearchIndex

        self._search = SearchIndex(sets, similarity_func_name="containment", similarity_threshold=LEAST_CONTAINMENT)

    def contained(self, values: list[int]) -> list[tuple[int, float]]:
        """Return every set that has enough of the values."""
        return self._search.query(values)


@dataclass(frozen=True)
class System:
    """A peer, and the distribution that it comes from."""

    make: Callable[[Profiles, str], Peer]
    distribution: str


SYSTEMS = {
    "TF-IDF": System(TfIdf, "scikit-learn"),
    "bm25s": System(Bm25, "bm25s"),
    "LSH Ensemble": System(Ensemble, "datasketch"),
    "SetSimilaritySearch": System(SetSearch, "SetSimilaritySearch"),
}


# --- running one


def answer(peer: Peer, lake: Lake, profiles: Profiles, task: str, queries: str | None) -> list[Row]:
    """Return a result row for every query row, the whole ranking each.

    Args:
        lake: as it was opened; profiles: of its tables; queries: as gpumatch's --queries.
    """
    wanted = find_queries(lake, queries, task)
    tables = profiles if wanted.outside is None else profile_tables(wanted.outside.tables())
    place = {name: t for t, name in enumerate(tables.tables)}
    rows = []
    for query in wanted.rows:
        columns = _columns(tables, place.get(query.table), query.column if task == "join" else None)
        own = query.table if wanted.outside is None else wanted.twins.get(query.table)
        matches = _ranked(peer.scores(tables, columns), profiles.tables, own) if columns else []
        rows.append({"query_table": query.table, "query_column": query.column, "task": task, "matches": matches})
    return rows


def _columns(tables: Profiles, t: int | None, name: str | None) -> range:
    """Return a table's columns, or the one of that name; none where the table or the column is not there."""
    if t is None:
        return range(0)
    columns = range(int(tables.table_cols[t]), int(tables.table_cols[t + 1]))
    if name is None:
        return columns
    normal = normalise_name(name)
    found = [c for c in columns if tables.headers[c] == name] or [c for c in columns if tables.names[c] == normal]
    return range(found[0], found[0] + 1) if found else range(0)


def _ranked(scores: np.ndarray, names: list[str], own: str | None) -> list[Row]:
    """Return the tables that score something, best first, ties by name; lake tables are in the order of their names."""
    rounded = np.round(scores.astype(np.float64), DECIMALS)
    order = np.argsort(-rounded, kind="stable")
    return [{"table": names[t], "score": float(rounded[t])} for t in order if rounded[t] > 0 and names[t] != own]


def serve(spec: dict[str, Any]) -> None:
    """Run one system on one lake; write its rows, and the seconds from this process's start to a whole index.

    spec: system, lake, task, queries (a path or None), out.
    """
    lake = open_lake(spec["lake"])
    profiles = profile_tables(lake.tables())
    peer = SYSTEMS[spec["system"]].make(profiles, spec["task"])
    indexed = time.time() - psutil.Process().create_time()
    rows = answer(peer, lake, profiles, spec["task"], spec["queries"])
    found = {"index_seconds": indexed, "tables": profiles.n_tables, "rows": rows}
    Path(spec["out"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
