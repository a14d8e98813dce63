"""Query texts in; their query rows for search, and how alike they are to the lake's tables, out.

A text is compared with what a table says of itself: the words of its column names, the words of its values and, at
L1+L2, the vector of its header. Works on the host, since texts are few. Never looks at a table's file name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from gpumatch.blocks import hashed_rows, table_layout, unit_rows
from gpumatch.index import Index
from gpumatch.kernels.hashing import distinct
from gpumatch.kernels.ragged import Csr
from gpumatch.kernels.sparse import dot_table
from gpumatch.terms import spread
from gpumatch.text import hash_texts, spelled, words
from gpumatch.vocabulary import Bags, Vocabulary


@dataclass(frozen=True)
class Texts:
    """X different query texts.

    words: X bags of their words, each word once.
    vectors: float32 [X, D] of unit length, or None where only L1 is wanted.
    """

    words: Bags
    vectors: np.ndarray | None

    @classmethod
    def of(cls, texts: Sequence[str], vectors: np.ndarray | None) -> Texts:
        """Take texts to words: lower case, split at blanks, signs, underscores and humps, as column names are."""
        return cls(_word_bags(texts), vectors)


def text_rows(texts: Texts, which: np.ndarray, index: Index, blocks: Mapping[str, float]) -> np.ndarray:
    """Return the query rows of some texts (int64 [n], -1 for none), float32 [n, width], as `blocks.RowMaker` lays them.

    Args:
        blocks: search block → weight.
    """
    layout, there = table_layout(index.lake.dim), np.flatnonzero(which >= 0)
    bags, n = spread(texts.words, which[there]), len(there)
    values = {
        "header": hashed_rows(bags, bags.owner, index.vocabularies.words, n),
        "values": hashed_rows(bags, bags.owner, index.vocabularies.tokens, n),
    }
    if texts.vectors is not None:
        values["header_text"] = texts.vectors[which[there]]
    rows = np.zeros((len(which), layout.width), np.float32)
    for block in values.keys() & blocks.keys():
        start, stop = layout.spans[block]
        rows[there, start:stop] = blocks[block] * unit_rows(values[block])
    return rows


def text_signals(texts: Texts, index: Index, text: np.ndarray, table: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return signals of texts, float32 [P, len(names)]; NaN where they need names, and all of a table's say nothing.

    Args:
        text, table: int64 [P], texts of `texts` and tables of the lake.
    """
    rows, row_at = distinct(text)
    tables, table_at = distinct(table)
    found = [_TEXT_SIGNALS[name](texts, index, rows, tables)[table_at, row_at] for name in names]
    return np.stack(found, axis=1).astype(np.float32)


def _of_names(texts: Texts, index: Index, rows: np.ndarray, tables: np.ndarray) -> np.ndarray:
    return _where_named(index, tables, _LakeWords.known(index, "names").shares(texts.words, rows, tables))


def _of_values(texts: Texts, index: Index, rows: np.ndarray, tables: np.ndarray) -> np.ndarray:
    return _LakeWords.known(index, "values").shares(texts.words, rows, tables)


def _of_headers(texts: Texts, index: Index, rows: np.ndarray, tables: np.ndarray) -> np.ndarray:
    vectors = index.lake.vectors
    if vectors is None or texts.vectors is None:
        raise ValueError("the header's vector is asked for, and there are no vectors")
    headers = vectors.rows[vectors.header[tables]].astype(np.float32)
    return _where_named(index, tables, (headers @ texts.vectors[rows].T).clip(0, 1))


# Functions of distinct texts [a] and tables [u] that return float32 [u, a].
_TEXT_SIGNALS: dict[str, Callable[[Texts, Index, np.ndarray, np.ndarray], np.ndarray]] = {
    "text_names": _of_names,
    "text_values": _of_values,
    "text_header": _of_headers,
}


@dataclass(frozen=True)
class _LakeWords:
    """The words of every lake table, binary rows [T, words], and how many columns hold each."""

    rows: Csr
    vocabulary: Vocabulary

    @classmethod
    def known(cls, index: Index, what: str) -> _LakeWords:
        """Return the words of the tables' "names" or "values", collected once."""
        key = f"words of {what}"
        if key not in index.derived:
            index.derived[key] = cls._of_names(index) if what == "names" else cls._of_values(index)
        found: _LakeWords = index.derived[key]
        return found

    @classmethod
    def _of_names(cls, index: Index) -> _LakeWords:
        terms = index.lake.terms
        headers = list(dict.fromkeys(index.lake.profiles.headers))
        place = {header: i for i, header in enumerate(headers)}
        which = np.fromiter((place[header] for header in index.lake.profiles.headers), np.int64)
        named = np.flatnonzero(terms.named)
        return cls._of(spread(_word_bags(headers), which[named]), terms.column_table[named], len(terms.positions))

    @classmethod
    def _of_values(cls, index: Index) -> _LakeWords:
        terms = index.lake.terms
        return cls._of(terms.tokens, terms.column_table, len(terms.positions))

    @classmethod
    def _of(cls, columns: Bags, table: np.ndarray, n: int) -> _LakeWords:
        """Collect n tables' words; columns: a bag for each column; table: int64, the table of each column."""
        vocabulary = Vocabulary.of(columns)
        tables = Bags.of(table[columns.owner], columns.term, n).binary()
        return cls(vocabulary.counts(tables), vocabulary)

    def shares(self, texts: Bags, rows: np.ndarray, tables: np.ndarray) -> np.ndarray:
        """Return the share of each text's summed idf whose words a table has, float32 [tables, rows]."""
        idf = self.vocabulary.idf[self.vocabulary.find(texts.term)]
        total = np.bincount(texts.owner, idf, minlength=len(texts))
        weighed = Bags(texts.start, texts.term, (idf / np.maximum(total, 1e-12)[texts.owner]).astype(np.float32))
        found: np.ndarray = dot_table(self.vocabulary.counts(weighed), rows, self.rows, tables, clip=True)
        return found


def _where_named(index: Index, tables: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Put NaN in the rows of tables that have columns but only placeholders as names."""
    widths = np.diff(index.lake.profiles.table_cols)[tables]
    found[(index.lake.terms.named_columns[tables] == 0) & (widths > 0)] = np.nan
    return found


def _word_bags(texts: Sequence[str]) -> Bags:
    said = [words(spelled(text)) for text in texts]
    owner = np.repeat(np.arange(len(said)), [len(some) for some in said])
    return Bags.of(owner, hash_texts(chain.from_iterable(said)), len(said)).binary()
