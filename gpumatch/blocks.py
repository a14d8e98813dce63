"""Terms and vectors in, rows of concatenated unit-length blocks out: what one inner product compares.

A row holds its blocks unweighted, with raw term frequencies. Weights and squared idf multiply the query's row only, so
one index serves both tasks, every layer and any weights. Hashed blocks use signed feature hashing (Weinberger et al.,
ICML 2009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from gpumatch.embed import Vectors
from gpumatch.kernels.halves import widened
from gpumatch.kernels.ragged import gather_segments
from gpumatch.terms import Terms, Vocabularies, spread
from gpumatch.vocabulary import Bags, Vocabulary

HASHED = 1024
# How many numbers a table's column count is written as; all counts from WIDEST on are the same.
WIDTHS, WIDEST = 24, 2000


@dataclass(frozen=True)
class Layout:
    """Where each block lies in a row: block → (start, stop)."""

    spans: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, sizes: dict[str, int]) -> Layout:
        """Lay blocks of the given sizes one after another."""
        spans, start = {}, 0
        for name, size in sizes.items():
            spans[name] = (start, start + size)
            start += size
        return cls(spans)

    @property
    def width(self) -> int:
        """Length of a row."""
        return max((stop for _, stop in self.spans.values()), default=0)


def table_layout(dim: int | None) -> Layout:
    """Return the layout of table rows; dim is the length of a vector, or None without vectors (L1)."""
    sizes = {"header": HASHED, "position": HASHED, "values": HASHED, "width": WIDTHS}
    return Layout.of(sizes if dim is None else sizes | {"columns": dim, "header_text": dim})


def column_layout(dim: int | None) -> Layout:
    """Return the layout of column rows."""
    sizes = {"column_name": HASHED, "column_values": HASHED}
    return Layout.of(sizes if dim is None else sizes | {"column": dim})


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one set of tables, a range at a time.

    dim: length of a vector in the index, or None where it has none; without `vectors` the dense blocks stay 0.
    vocabularies, weights: given for query rows (weights and squared idf applied), None for lake rows.
    """

    terms: Terms
    vectors: Vectors | None
    table_cols: np.ndarray
    dim: int | None
    vocabularies: Vocabularies | None = None
    weights: dict[str, float] | None = None

    def tables(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 [m, width] rows of the given tables (int64 [m])."""
        layout = table_layout(self.dim)
        out = np.zeros((len(rows), layout.width), np.float32)
        columns, widths = gather_segments(self.table_cols, rows)
        owner = np.repeat(np.arange(len(rows)), widths)
        terms = self.terms
        named = terms.named[columns]
        header = spread(terms.name_words, terms.column_name[columns[named]])
        self._put(out, layout, "header", hashed_rows(header, owner[named][header.owner], self._idf("words"), len(rows)))
        position = spread(terms.positions, rows)
        self._put(out, layout, "position", hashed_rows(position, position.owner, self._idf("positions"), len(rows)))
        tokens = spread(terms.tokens, columns)
        self._put(out, layout, "values", hashed_rows(tokens, owner[tokens.owner], self._idf("tokens"), len(rows)))
        self._put(out, layout, "width", width_rows()[np.minimum(widths, WIDEST)])
        if self.vectors is not None:
            self._put(out, layout, "columns", pooled_vectors(self.vectors, terms.named, columns, owner, len(rows)))
            said = terms.named_columns[rows, None] > 0
            self._put(out, layout, "header_text", said * widened(self.vectors.rows[self.vectors.header[rows]]))
        return out

    def columns(self, columns: np.ndarray) -> np.ndarray:
        """Return float32 [m, width] rows of the given columns (int64 [m])."""
        layout = column_layout(self.dim)
        out = np.zeros((len(columns), layout.width), np.float32)
        terms = self.terms
        named = np.flatnonzero(terms.named[columns])
        name = spread(terms.name_words, terms.column_name[columns[named]])
        self._put(out, layout, "column_name", hashed_rows(name, named[name.owner], self._idf("words"), len(columns)))
        tokens = spread(terms.tokens, columns)
        self._put(out, layout, "column_values", hashed_rows(tokens, tokens.owner, self._idf("tokens"), len(columns)))
        if self.vectors is not None:
            self._put(out, layout, "column", _column_vectors(self.vectors, terms.named, columns))
        return out

    def _idf(self, kind: str) -> Vocabulary | None:
        return None if self.vocabularies is None else getattr(self.vocabularies, kind)

    def _put(self, out: np.ndarray, layout: Layout, block: str, values: np.ndarray) -> None:
        weight = 1.0 if self.weights is None else self.weights.get(block, 0.0)
        start, stop = layout.spans[block]
        out[:, start:stop] = weight * unit_rows(values)


@cache
def width_rows() -> np.ndarray:
    """Return rows of unit length, float32 [WIDEST+1, WIDTHS], whose products tell how alike two column counts are.

    Products come close to exp(-|ln(1+a) - ln(1+b)|), the signal column_count, by .03 on the mean: the kernel's main
    eigenvectors on a grid, carried on to all counts (Williams and Seeger, NIPS 2000).
    """
    x = np.log1p(np.arange(WIDEST + 1))
    grid = np.linspace(x[0], x[-1], 64)
    value, vector = np.linalg.eigh(np.exp(-np.abs(grid[:, None] - grid)))
    value, vector = value[-WIDTHS:], vector[:, -WIDTHS:] * np.sign(vector[0, -WIDTHS:])  # either sign would do: fix it
    return unit_rows(np.exp(-np.abs(x[:, None] - grid)) @ vector / np.sqrt(value))


def pooled_vectors(vectors: Vectors, named: np.ndarray, columns: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
    """Return float32 [n, D], the unit-length sum of the vectors of each owner's columns; owner int64 [m] ascending."""
    out = np.zeros((n, vectors.dim), np.float32)
    if len(columns):
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        out[owner[first]] = np.add.reduceat(_column_vectors(vectors, named, columns), first, axis=0)
    return unit_rows(out)


def _column_vectors(vectors: Vectors, named: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return float32 [m, D], the sums of some columns' value and, where that is `named` (bool [C]), name vectors."""
    names, values = vectors.rows[vectors.name[columns]], vectors.rows[vectors.value[columns]]
    answer: np.ndarray = widened(names) * named[columns, None] + widened(values)
    return answer


def chunks(n: int, size: int) -> Iterator[np.ndarray]:
    """Yield 0..n-1 in runs of at most `size`."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def hashed_rows(bags: Bags, owner: np.ndarray, vocabulary: Vocabulary | None, n: int) -> np.ndarray:
    """Return float64 [n, HASHED], the hashed terms of some bags summed for each owner.

    Args:
        owner: int64 [nnz], which of the n rows each entry of the bags belongs to.
        vocabulary: given for query rows, whose squared idf then multiplies the frequencies.
    """
    weight = bags.tf.astype(np.float64)
    if vocabulary is not None:
        weight *= vocabulary.idf[vocabulary.find(bags.term)] ** 2
    sign = 1.0 - 2.0 * (bags.term >> np.uint64(63)).astype(np.float64)
    cell = owner * HASHED + (bags.term % np.uint64(HASHED)).astype(np.int64)
    return np.bincount(cell, weight * sign, minlength=n * HASHED).reshape(n, HASHED)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, w] at unit length, float32; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    answer: np.ndarray = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return answer
