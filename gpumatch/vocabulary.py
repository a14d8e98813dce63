"""Bags of hashed terms in, document frequencies and TF-IDF rows out: one mechanism for names, grams, words and tokens.

Pure NumPy; strings never come here, only their 64-bit hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpumatch.kernels.ragged import Csr, offsets_of
from gpumatch.once import once


@dataclass(frozen=True)
class Bags:
    """n bags of terms: start int64 [n+1], term uint64 [nnz] ascending and distinct within a bag, tf float32 [nnz]."""

    start: np.ndarray
    term: np.ndarray
    tf: np.ndarray

    @classmethod
    def of(cls, owner: np.ndarray, term: np.ndarray, n: int) -> Bags:
        """Count terms: owner int64 [m] says which of the n bags each term uint64 [m] belongs to."""
        order = np.lexsort((term, owner))
        owner, term = owner[order], term[order]
        fresh = np.ones(len(term), bool)
        fresh[1:] = (term[1:] != term[:-1]) | (owner[1:] != owner[:-1])
        first = np.flatnonzero(fresh)
        tf = np.diff(np.append(first, len(term))).astype(np.float32)
        return cls(offsets_of(np.bincount(owner[first], minlength=n)), term[first], tf)

    def __len__(self) -> int:
        """Return n."""
        return len(self.start) - 1

    @property
    def owner(self) -> np.ndarray:
        """int64 [nnz], the bag of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def binary(self) -> Bags:
        """Return the same bags, each term counted once."""
        return Bags(self.start, self.term, np.ones_like(self.tf))


@dataclass(frozen=True)
class Vocabulary:
    """The terms of a collection: term uint64 [V] ascending, df int64 [V] bags that hold it, n_docs bags in all."""

    term: np.ndarray
    df: np.ndarray
    n_docs: int

    @classmethod
    def of(cls, bags: Bags) -> Vocabulary:
        """Collect the terms of some bags."""
        term, df = np.unique(bags.term, return_counts=True)
        return cls(term, df, len(bags))

    def __len__(self) -> int:
        """Return V."""
        return len(self.term)

    @once
    def idf(self) -> np.ndarray:
        """float64 [V+1], 1 + ln((1+n)/(1+df)); the last entry is for terms that the collection has never seen."""
        answer: np.ndarray = 1 + np.log((1 + self.n_docs) / (1 + np.append(self.df, 0)))
        return answer

    @once
    def rarity(self) -> np.ndarray:
        """float64 [V+1], 1 for terms of at most two bags, falling with the logarithm of df to 0 for terms of all."""
        most = np.log((1 + self.n_docs) / 3)
        return np.minimum(1, (self.idf - 1) / most) if most > 0 else np.ones(len(self.idf))

    def find(self, term: np.ndarray) -> np.ndarray:
        """Return int64 ids of the terms (uint64 [m]); V for a term never seen."""
        at = np.searchsorted(self.term, term)
        known = at < len(self)
        known[known] = self.term[at[known]] == term[known]
        return np.where(known, at, len(self))

    def tfidf(self, bags: Bags) -> Csr:
        """Return float32 [n, V] TF-IDF rows of unit length, raw term frequencies.

        Terms never seen count in a row's length and in nothing else, since they can match no row of the collection.
        """
        term = self.find(bags.term)
        weight = bags.tf * self.idf[term]
        length = np.sqrt(np.bincount(bags.owner, weight**2, minlength=len(bags)))
        weight = weight / np.maximum(length, 1e-12)[bags.owner]
        return self._rows(bags, term, weight)

    def counts(self, bags: Bags) -> Csr:
        """Return float32 [n, V] raw term frequencies, without the terms never seen."""
        return self._rows(bags, self.find(bags.term), bags.tf)

    def rarities(self, bags: Bags) -> Csr:
        """Return float32 [n, V], how rare each term of a bag is, without the terms never seen."""
        term = self.find(bags.term)
        return self._rows(bags, term, self.rarity[term])

    def _rows(self, bags: Bags, term: np.ndarray, weight: np.ndarray) -> Csr:
        known = term < len(self)
        start = offsets_of(np.bincount(bags.owner[known], minlength=len(bags)))
        return Csr(start, term[known].astype(np.int32), weight[known].astype(np.float32), len(self))
