"""Profiles in, bags of hashed terms out: what the lexical blocks and the lexical evidence are made of.

Pure; the same function serves lake tables and query tables, so both sides can only be compared like with like.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpumatch.kernels.hashing import SPREAD
from gpumatch.kernels.ragged import gather_segments, offsets_of
from gpumatch.once import once
from gpumatch.profile import Profiles
from gpumatch.text import hash_texts, name_grams, placeholders, words
from gpumatch.vocabulary import Bags, Vocabulary


@dataclass(frozen=True)
class Terms:
    """The bags of one set of tables. T tables, C columns, U distinct column names.

    column_table: int64 [C].
    column_name: int64 [C], which of the U distinct names a column has.
    name: uint64 [U], hash of each distinct name.
    named: bool [C], whether a column's name is no placeholder; see `text.placeholders`.
    table_names: T bags of distinct name hashes, of named columns.
    positions: T bags of hashed (name, position), of named columns.
    grams: U bags of the names' character 3-5-grams.
    name_words: U bags of the names' words, and each name as a whole.
    tokens: C bags of value tokens.
    """

    column_table: np.ndarray
    column_name: np.ndarray
    name: np.ndarray
    named: np.ndarray
    table_names: Bags
    positions: Bags
    grams: Bags
    name_words: Bags
    tokens: Bags

    @once
    def named_columns(self) -> np.ndarray:
        """float32 [T], how many columns of each table have a name that says anything."""
        found = np.bincount(self.column_table[self.named], minlength=len(self.positions))
        return found.astype(np.float32)

    @classmethod
    def of(cls, profiles: Profiles) -> Terms:
        """Derive the bags of some profiles."""
        widths = np.diff(profiles.table_cols)
        table = np.repeat(np.arange(profiles.n_tables), widths)
        position = np.arange(profiles.n_columns) - profiles.table_cols[:-1][table]
        distinct = list(dict.fromkeys(profiles.names))
        place = {name: i for i, name in enumerate(distinct)}
        column_name = np.fromiter((place[name] for name in profiles.names), np.int64, profiles.n_columns)
        name = hash_texts(distinct)
        hashes = name[column_name]
        bounds = profiles.table_cols.tolist()
        empty = [said for a, b in pairwise(bounds) for said in placeholders(profiles.names[a:b])]
        named = ~np.array(empty, np.bool_)
        return cls(
            column_table=table,
            column_name=column_name,
            name=name,
            named=named,
            table_names=Bags.of(table[named], hashes[named], profiles.n_tables).binary(),
            positions=Bags.of(
                table[named],
                (hashes ^ (position.astype(np.uint64) + np.uint64(1)) * SPREAD)[named],
                profiles.n_tables,
            ),
            grams=_bags([name_grams(text) for text in distinct]),
            # A whole name is a term beside its words; the leading mark tells it from a word.
            name_words=_bags([[*words(text), f"\x1f{text}"] for text in distinct]),
            tokens=Bags(profiles.token_start, profiles.tokens, profiles.token_tf),
        )


@dataclass(frozen=True)
class Vocabularies:
    """Document frequencies of a lake's terms.

    names, words and tokens count columns; positions count tables; grams count distinct names.
    """

    names: Vocabulary
    words: Vocabulary
    positions: Vocabulary
    grams: Vocabulary
    tokens: Vocabulary

    @classmethod
    def of(cls, terms: Terms) -> Vocabularies:
        """Collect them from the lake's terms."""
        n_columns = len(terms.column_name)
        order = np.argsort(terms.name)
        per_name = np.bincount(terms.column_name, minlength=len(terms.name))
        return cls(
            names=Vocabulary(terms.name[order], per_name[order], n_columns),
            words=Vocabulary.of(spread(terms.name_words, terms.column_name)),
            positions=Vocabulary.of(terms.positions),
            grams=Vocabulary.of(terms.grams),
            tokens=Vocabulary.of(terms.tokens),
        )


def spread(bags: Bags, rows: np.ndarray) -> Bags:
    """Return the bags of the given rows (int64 [m]), which may repeat."""
    flat, lengths = gather_segments(bags.start, rows)
    return Bags(offsets_of(lengths), bags.term[flat], bags.tf[flat])


def _bags(texts: list[list[str]]) -> Bags:
    lengths = [len(terms) for terms in texts]
    flat = [term for terms in texts for term in terms]
    distinct = list(dict.fromkeys(flat))
    place = {term: i for i, term in enumerate(distinct)}
    hashes = hash_texts(distinct)
    which = np.fromiter((place[term] for term in flat), np.int64, len(flat))
    return Bags.of(np.repeat(np.arange(len(texts)), lengths), hashes[which], len(texts))
