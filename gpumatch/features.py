"""A set of tables and a lake's document frequencies in, the features that evidence is computed from out.

Features lie on the device, idf applied, each made when it is first asked for. Columns that are alike share one row: the
same name, the same bag of value tokens, the same text.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array

from gpumatch.blocks import pooled_vectors
from gpumatch.embed import Vectors
from gpumatch.index import Index, TableSet
from gpumatch.kernels.sparse import Csr
from gpumatch.terms import spread
from gpumatch.vocabulary import Bags, Vocabulary

# Vectors are held as float32 up to this size (a million distinct texts are 1.5 GB), else widened a chunk at a time.
_WIDE_BYTES = 512 * 2**20


def lake_side(index: Index, device: str) -> Side:
    """Return the features of an index's own tables, the same object every time."""
    side: Side = index.derived.setdefault(f"side:{device}", Side(index.lake, index, device))
    return side


class Side:
    """The features of the queries or of the lake.

    Args:
        tables: the profiles and vectors.
        index: the lake whose document frequencies weigh both sides.
        device: "cpu" or "cuda".
    """

    def __init__(self, tables: TableSet, index: Index, device: str) -> None:
        self.device = device
        self.table_cols = tables.profiles.table_cols
        self.terms = tables.terms
        self._tables = tables
        self._vocabularies = index.vocabularies
        self._lake_values = index.lake.profiles.values

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(np.array(array)).to(self.device)

    # --- names

    @cached_property
    def name_id(self) -> torch.Tensor:
        """int64 [C], at least 0: equal exactly where two columns, of either side, have the same name."""
        known = self._vocabularies.names.find(self.terms.name)
        unseen = known == len(self._vocabularies.names)
        known[unseen] += np.arange(int(unseen.sum()))
        return self.put(known[self.terms.column_name])

    @cached_property
    def name_row(self) -> torch.Tensor:
        """int64 [C], each column's row of `name_grams`."""
        return self.put(self.terms.column_name)

    @cached_property
    def name_grams(self) -> Csr:
        """[U, grams], TF-IDF of the distinct names' 3-5-grams."""
        return self._csr(self._vocabularies.grams.tfidf(self.terms.grams))

    @cached_property
    def names(self) -> Csr:
        """[T, names], idf-weighted binary name vectors of unit length."""
        return self._csr(self._vocabularies.names.tfidf(self.terms.table_names))

    @cached_property
    def name_sets(self) -> Csr:
        """[T, names], binary name vectors."""
        return self._csr(self._vocabularies.names.counts(self.terms.table_names))

    @cached_property
    def name_shares(self) -> Csr:
        """[T, names], each name's share of its table's summed idf."""
        bags, vocabulary = self.terms.table_names, self._vocabularies.names
        idf = vocabulary.idf[vocabulary.find(bags.term)]
        total = np.bincount(bags.owner, idf, minlength=len(bags))
        share = (idf / np.maximum(total, 1e-12)[bags.owner]).astype(np.float32)
        return self._csr(vocabulary.counts(Bags(bags.start, bags.term, share)))

    @cached_property
    def set_size(self) -> torch.Tensor:
        """float32 [T], distinct names of each table."""
        return self.put(np.diff(self.terms.table_names.start).astype(np.float32))

    @cached_property
    def positions(self) -> Csr:
        """[T, positions], TF-IDF of (name, position)."""
        return self._csr(self._vocabularies.positions.tfidf(self.terms.positions))

    # --- values

    @cached_property
    def _distinct_bags(self) -> tuple[np.ndarray, np.ndarray]:
        """(a column for each distinct token bag, and each column's place among them)."""
        bags = self.terms.tokens
        mixed = (bags.term ^ bags.tf.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        sums = np.append(np.uint64(0), np.cumsum(mixed * np.uint64(0xBF58476D1CE4E5B9), dtype=np.uint64))
        content = np.stack([sums[bags.start[1:]] - sums[bags.start[:-1]], np.diff(bags.start).astype(np.uint64)])
        _, column, place = np.unique(content, axis=1, return_index=True, return_inverse=True)
        return column, place.reshape(-1)

    @cached_property
    def token_row(self) -> torch.Tensor:
        """int64 [C], each column's row of `tokens`."""
        return self.put(self._distinct_bags[1])

    @cached_property
    def tokens(self) -> Csr:
        """TF-IDF of the value tokens, one row for each distinct bag of them."""
        return self._csr(self._vocabularies.tokens.tfidf(spread(self.terms.tokens, self._distinct_bags[0])))

    @cached_property
    def stats(self) -> torch.Tensor:
        """float32 [C, S]."""
        return self.put(self._tables.profiles.stats)

    @cached_property
    def values(self) -> Csr:
        """[C, values], binary rows of the hashed distinct values that occur in the lake."""
        profiles = self._tables.profiles
        bags = Bags(profiles.value_start, profiles.values, np.ones(len(profiles.values), np.float32))
        distinct = np.unique(self._lake_values)
        return self._csr(Vocabulary(distinct, np.ones(len(distinct), np.int64), 1).counts(bags))

    @cached_property
    def sampled(self) -> torch.Tensor:
        """Which columns are known by a sample of their values only, bool [C]."""
        return self.put((self._tables.profiles.table_rows < 0)[self.terms.column_table])

    @cached_property
    def value_count(self) -> torch.Tensor:
        """float32 [C], distinct values of each column."""
        return self.put(np.diff(self._tables.profiles.value_start).astype(np.float32))

    # --- vectors

    @cached_property
    def vector_row(self) -> torch.Tensor:
        """int64 [C], each column's row among the distinct vectors."""
        return self.put(self._vectors.column.astype(np.int64))

    def header_vectors(self, tables: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, D], the header text vectors of some tables."""
        return self.vectors(torch.index_select(self._header_row, 0, tables))

    def pooled_vectors(self, tables: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, D], the unit-length mean column vectors of some tables."""
        return torch.index_select(self._pooled, 0, tables)

    @cached_property
    def _header_row(self) -> torch.Tensor:
        return self.put(self._vectors.header.astype(np.int64))

    @cached_property
    def _pooled(self) -> torch.Tensor:
        every = np.arange(len(self.terms.column_table))
        return self.put(pooled_vectors(self._vectors, every, self.terms.column_table, len(self.table_cols) - 1))

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """Return float32 [m, D], some of the distinct vectors."""
        return torch.index_select(self._vector_rows, 0, rows).float()

    @cached_property
    def _vector_rows(self) -> torch.Tensor:
        rows = self._vectors.rows
        wide = self.device == "cpu" and 4 * rows.size <= _WIDE_BYTES
        return self.put(rows).float() if wide else self.put(rows)

    @property
    def _vectors(self) -> Vectors:
        if self._tables.vectors is None:
            raise ValueError("dense evidence needs vectors, and these tables have none")
        return self._tables.vectors

    def _csr(self, rows: csr_array) -> Csr:
        rows.sort_indices()
        start, token = rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
        return Csr(self.put(start), self.put(token), self.put(rows.data), int(rows.shape[1]))
