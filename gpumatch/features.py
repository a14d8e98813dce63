"""A set of tables and a lake's document frequencies in, the features that evidence is computed from out.

Features lie on the device (NumPy arrays on a CPU, torch tensors elsewhere), idf applied, each made when it is first
asked for. One that a device has no room for stays on the host, and the rows that a chunk asks for pass through. Columns
that are alike share one row: the same name, the same bag of value tokens, the same text. Row numbers stay on the host,
where chunks are put together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpumatch.blocks import pooled_vectors
from gpumatch.embed import Vectors
from gpumatch.index import Index, TableSet
from gpumatch.kernels.chance import Chance
from gpumatch.kernels.dense import row_products
from gpumatch.kernels.devices import device_bytes, put, put_in_cupy
from gpumatch.kernels.grams import gram_bags
from gpumatch.kernels.halves import widened
from gpumatch.kernels.hashing import SPREAD
from gpumatch.kernels.ragged import Csr, gather_segments, offsets_of
from gpumatch.kernels.shares import Columns, Holders, holders_of, most_shared
from gpumatch.memory import give_back, is_out_of_memory, keeps
from gpumatch.once import once
from gpumatch.terms import spread
from gpumatch.text import hash_utf8
from gpumatch.vocabulary import Bags

# Vectors are held as float32 up to this size (a million distinct texts are 1.5 GB), else widened a chunk at a time.
_WIDE_BYTES = 512 * 2**20
# Values less rare than that (`Vocabulary.rarity`) say nothing of a key: of ten thousand columns 170 and more hold them.
_LEAST_RARITY = 0.5
# The values that a `tables.json` lists are a few; a sample of a file's rows is a hundred thousand.
_FEW_ROWS = 100
_MUCH = 8


class _feature(once[Any]):
    """A feature that is made on the host, and carried to the device by the side that is there, if it fits."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        def made(side: Side) -> Any:  # noqa: ANN401
            return make(side) if side.host is side else side.kept(getattr(side.host, make.__name__))

        super().__init__(made)
        self.__doc__ = make.__doc__


def lake_side(index: Index, device: str, sparse: str = "torch") -> Side:
    """Return the features of an index's own tables, the same object every time."""
    key = f"side:{device}:{sparse}"
    if key not in index.derived:
        host = None if device == "cpu" else lake_side(index, "cpu")
        index.derived[key] = Side(index.lake, index, device, sparse, host)
    side: Side = index.derived[key]
    return side


class Side:
    """The features of the queries or of the lake.

    Args:
        tables: the profiles and vectors.
        index: the lake whose document frequencies weigh both sides.
        device: "cpu" or "cuda".
        sparse: "cupy" where CuPy is to multiply sparse rows.
        host: the same tables' features on the host, where they are made; None to make that side too.
    """

    def __init__(
        self, tables: TableSet, index: Index, device: str, sparse: str = "torch", host: Side | None = None
    ) -> None:
        self.device = device
        self.host = self if device == "cpu" else host or Side(tables, index, "cpu")
        self._put_sparse = put_in_cupy if sparse == "cupy" else self.put
        self.table_cols = tables.profiles.table_cols
        self.terms = tables.terms
        self._tables = tables
        self._vocabularies = index.vocabularies
        self._index = index

    def put(self, array: np.ndarray) -> Any:  # noqa: ANN401 - of either library
        """Return an array as the device works on it."""
        return put(array, self.device)

    def kept(self, made: Any) -> Any:  # noqa: ANN401
        """Return a feature of the host's for all chunks to come: on the device, or as it is where that has no room."""
        nbytes = sum(array.nbytes for array in _arrays(made))
        # A device of torch's that is none of CUDA's has room for anything.
        if not keeps(nbytes, *device_bytes(self.device, 2 * nbytes)):
            return made
        try:
            return self._carried(made)
        except Exception as error:  # others want the device too, and smaller chunks would not make this any smaller
            if not is_out_of_memory(error):
                raise
            give_back(error)
            return made

    def some(self, feature: Any, rows: np.ndarray) -> tuple[Any, Any]:  # noqa: ANN401
        """Return a feature as the device works on it, and where rows of it, int64 [m], are there.

        Of one that has stayed on the host it is those rows alone.
        """
        if self.host is not self and isinstance(_arrays(feature)[0], np.ndarray):
            feature, rows = self._carried(_taken(feature, rows)), np.arange(len(rows))
        return feature, self.put(rows)

    def _carried(self, made: Any) -> Any:  # noqa: ANN401
        if not isinstance(made, Csr):
            return self.put(made)
        there = self._put_sparse
        return Csr(there(made.start), there(made.token), there(made.weight), made.width)

    # --- names

    @once
    def name_id(self) -> np.ndarray:
        """int64 [U], of the distinct names, at least 0: the same number on either side is the same name."""
        known = self._vocabularies.names.find(self.terms.name)
        unseen = known == len(self._vocabularies.names)
        known[unseen] += np.arange(int(unseen.sum()))
        return known

    @property
    def name_row(self) -> np.ndarray:
        """int64 [C], each column's row of `name_grams`, and its place in `name_id`."""
        return self.terms.column_name

    @property
    def named_columns(self) -> np.ndarray:
        """float32 [T], how many columns of each table have a name that says anything."""
        return self.terms.named_columns

    @_feature
    def name_grams(self) -> Csr:
        """[U, grams], TF-IDF of the distinct names' 3-5-grams."""
        return self._vocabularies.grams.tfidf(self.terms.grams)

    @_feature
    def names(self) -> Csr:
        """[T, names], idf-weighted binary name vectors of unit length."""
        return self._vocabularies.names.tfidf(self.terms.table_names)

    @_feature
    def name_sets(self) -> Csr:
        """[T, names], binary name vectors."""
        return self._vocabularies.names.counts(self.terms.table_names)

    @_feature
    def name_shares(self) -> Csr:
        """[T, names], each name's share of its table's summed idf."""
        bags, vocabulary = self.terms.table_names, self._vocabularies.names
        idf = vocabulary.idf[vocabulary.find(bags.term)]
        total = np.bincount(bags.owner, idf, minlength=len(bags))
        share = (idf / np.maximum(total, 1e-12)[bags.owner]).astype(np.float32)
        return vocabulary.counts(Bags(bags.start, bags.term, share))

    @_feature
    def positions(self) -> Csr:
        """[T, positions], TF-IDF of (name, position)."""
        return self._vocabularies.positions.tfidf(self.terms.positions)

    # --- values

    @once
    def _distinct_bags(self) -> tuple[np.ndarray, np.ndarray]:
        """(a column for each distinct token bag, and each column's place among them)."""
        if self.host is not self:
            return self.host._distinct_bags
        bags = self.terms.tokens
        mixed = (bags.term ^ bags.tf.astype(np.uint64)) * SPREAD
        mixed ^= mixed >> np.uint64(29)
        sums = np.append(np.uint64(0), np.cumsum(mixed * np.uint64(0xBF58476D1CE4E5B9), dtype=np.uint64))
        content = sums[bags.start[1:]] - sums[bags.start[:-1]]
        content ^= np.diff(bags.start).astype(np.uint64) * np.uint64(0x94D049BB133111EB)
        _, column, place = np.unique(content, return_index=True, return_inverse=True)
        return column, place.reshape(-1)

    @property
    def token_row(self) -> np.ndarray:
        """int64 [C], each column's row of `tokens`."""
        return self._distinct_bags[1]

    @_feature
    def tokens(self) -> Csr:
        """TF-IDF of the value tokens, one row for each distinct bag of them."""
        return self._vocabularies.tokens.tfidf(spread(self.terms.tokens, self._distinct_bags[0]))

    @_feature
    def stats(self) -> Any:  # noqa: ANN401
        """float32 [C, S], on the device."""
        return self._tables.profiles.stats

    @property
    def number_range(self) -> np.ndarray:
        """float64 [C, 2]."""
        return self._tables.profiles.number_range

    @_feature
    def values(self) -> Csr:
        """[C, values], binary rows of the canonical values that occur in the lake."""
        return self._index.values.counts(self._tables.value_bags)

    @_feature
    def weighed_values(self) -> Csr:
        """[C, values], TF-IDF of the canonical values."""
        return self._index.values.tfidf(self._tables.value_bags)

    @_feature
    def rare_values(self) -> Csr:
        """[C, values], how rare each canonical value that occurs in the lake is there."""
        return self._index.values.rarities(self._tables.value_bags)

    @once
    def most_shared(self) -> np.ndarray:
        """What a column shares with one that holds all its values, by their rarity: plain, marked; float64 [2, C]."""
        return self.host.most_shared if self.host is not self else self._most_shared(0)

    def _most_shared(self, least: float) -> np.ndarray:
        """Return the same with less rare values than that left out, on the host."""
        held = zip((self.values, self.marked_values), self._rarities(least), strict=True)
        return np.stack([most_shared(one.start, one.token, rarity, self.value_count) for one, rarity in held])

    def _rarities(self, least: float) -> tuple[np.ndarray, np.ndarray]:
        """Return how rare the lake's values are, plain and marked, float64; 0 where they are less rare than that."""
        plain, marked = (one.rarity[:-1] for one in (self._index.values, self._index.marked_values))
        return np.where(plain < least, 0, plain), np.where(marked < least, 0, marked)

    @_feature
    def marked_values(self) -> Csr:
        """[C, marked values], as `values`, of columns that have a letter."""
        return self._index.marked_values.counts(self._tables.marked_values)

    @_feature
    def rare_marked_values(self) -> Csr:
        """[C, marked values], how rare each value is among the lake's columns of the same first letter."""
        return self._index.marked_values.rarities(self._tables.marked_values)

    @_feature
    def value_grams(self) -> Csr:
        """[C, grams], TF-IDF of the 3-grams of a column's first canonical values."""
        return self._index.value_grams.tfidf(self._tables.value_grams)

    @property
    def coded(self) -> np.ndarray:
        """Which columns hold numbers, dates or numbered keys, bool [C]."""
        return self._tables.profiles.coded

    @property
    def letter(self) -> np.ndarray:
        """uint32 [C], what numbered keys begin with, or the unit of numbers (`canonical.comparable`)."""
        return self._tables.profiles.letter

    @property
    def chance(self) -> Chance:
        """How likely each column holds a value only because it holds so many."""
        profiles = self._tables.profiles
        return Chance(profiles.chance, profiles.dense, profiles.level, profiles.keyed)

    @once
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        """(the first of each distinct canonical value, and each value's place among them), int64 [n] and [X]."""
        if self.host is not self:
            return self.host._texts
        profiles = self._tables.profiles
        hashes = hash_utf8(profiles.text, profiles.text_bytes)
        _, first, place = np.unique(hashes, return_index=True, return_inverse=True)
        return first, place.reshape(-1)

    @_feature
    def text_grams(self) -> Csr:
        """TF-IDF of the 3-grams of each distinct canonical value."""
        profiles = self._tables.profiles
        taken, lengths = gather_segments(profiles.text_bytes, self._texts[0])
        bags = gram_bags(profiles.text[taken], offsets_of(lengths), np.arange(len(lengths) + 1))
        return self._index.value_grams.tfidf(Bags(*bags))

    def spelled_values(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the values that are compared by how they are spelled.

        Args:
            most: values of a column.

        Returns:
            (start int64 [C+1], row int64 [n]): column c's values are row[start[c]:start[c+1]], rows of `text_grams`;
            none of a column that is coded.
        """
        start = self._tables.profiles.text_start
        lengths = np.where(self.coded, 0, np.minimum(most, np.diff(start)))
        ends = offsets_of(lengths)
        flat = np.arange(int(ends[-1])) + np.repeat(start[:-1] - ends[:-1], lengths)
        return ends, self._texts[1][flat]

    @once
    def sampled_tables(self) -> np.ndarray:
        """Which tables are known by a sample of their rows only, bool [T]."""
        answer: np.ndarray = self._tables.profiles.table_rows < 0
        return answer

    @property
    def sampled(self) -> np.ndarray:
        """Which columns are, bool [C]."""
        answer: np.ndarray = self.sampled_tables[self.terms.column_table]
        return answer

    @once
    def glimpsed_tables(self) -> np.ndarray:
        """Which tables are known by a sample that is too small to tell what they share with others, bool [T]."""
        answer: np.ndarray = self.sampled_tables & (self._tables.profiles.table_rows >= -_FEW_ROWS)
        return answer

    @property
    def glimpsed(self) -> np.ndarray:
        """Which columns are, bool [C]."""
        answer: np.ndarray = self.glimpsed_tables[self.terms.column_table]
        return answer

    @once
    def value_count(self) -> np.ndarray:
        """float32 [C], distinct values of each column."""
        return np.diff(self._tables.profiles.value_start).astype(np.float32)

    @once
    def value_sets(self) -> Columns:
        """Which values of the lake each column holds, to be compared by who else holds them; on the host."""
        if self.host is not self:
            return self.host.value_sets
        values, marked = self.values, self.marked_values
        column = np.concatenate(
            [np.repeat(np.arange(len(one.start) - 1), np.diff(one.start)) for one in (values, marked)]
        )
        token = np.concatenate([values.token, values.width + marked.token])[np.argsort(column, kind="stable")]
        return Columns(
            self.table_cols,
            values.start + marked.start,
            token,
            values.width,
            self.value_count,
            self.letter,
            self.chance,
            self._most_shared(_LEAST_RARITY),
        )

    @once
    def holders(self) -> Holders:
        """Of lake tables, who holds each value, by its rarity; on the host."""
        if self.host is not self:
            return self.host.holders
        return holders_of(self.value_sets, np.concatenate(self._rarities(_LEAST_RARITY)))

    # --- vectors

    @once
    def value_row(self) -> np.ndarray:
        """int64 [C], the row of each column's values among the distinct vectors."""
        return self._vectors.value.astype(np.int64)

    @once
    def name_vector_row(self) -> np.ndarray:
        """int64 [C], the row of each column's name among the distinct vectors."""
        return self._vectors.name.astype(np.int64)

    @once
    def header_row(self) -> np.ndarray:
        """int64 [T], the row of each table's header text among the distinct vectors."""
        return self._vectors.header.astype(np.int64)

    def vectors(self, rows: np.ndarray) -> Any:  # noqa: ANN401
        """Return float32 [m, D], some of the distinct vectors, on the device."""
        held, at = self.some(self._vector_rows, rows)
        return widened(held[at]) if isinstance(held, np.ndarray) else held[at].float()

    def cosines(self, rows: np.ndarray, others: Any, wanted: np.ndarray | None = None) -> Any:  # noqa: ANN401
        """Return float32 [m, a], the products of some of the distinct vectors with others, float32 [a, D], in [0, 1].

        Args:
            wanted: as `row_products` has it.
        """
        return row_products(*self.some(self._vector_rows, rows), others, wanted, clip=True)

    @_feature
    def pooled(self) -> Any:  # noqa: ANN401
        """float32 [T, D], the unit-length sum of the vectors of each table's names and values, on the device."""
        n, table = len(self.table_cols) - 1, self.terms.column_table
        return pooled_vectors(self._vectors, self.terms.named, np.arange(len(table)), table, n)

    @once
    def _vector_rows(self) -> Any:  # noqa: ANN401
        rows = self._vectors.rows
        if self.host is not self:
            return self.kept(rows)
        return widened(rows) if 4 * rows.size <= _WIDE_BYTES else self.put(rows)

    @property
    def _vectors(self) -> Vectors:
        if self._tables.vectors is None:
            raise ValueError("dense evidence needs vectors, and these tables have none")
        return self._tables.vectors


def containment_evidence(share: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return how much it says of a join that so much of a set is found in another, in [0, 1).

    The share to a power: 5 where little is shared, as a value or two of a few are found anywhere, falling to 1 where
    much is, and half way where it is _MUCH.

    Args:
        share: float [P], Σ rarity of what both hold / (1 + size), beyond chance; size: float [P], of the set.
    """
    answer: np.ndarray = share ** (1 + 4 * np.exp2(-share * (1 + size) / _MUCH))
    return answer


def _arrays(feature: Any) -> list[Any]:  # noqa: ANN401
    return [feature.start, feature.token, feature.weight] if isinstance(feature, Csr) else [feature]


def _taken(feature: Any, rows: np.ndarray) -> Any:  # noqa: ANN401
    """Return some rows of a feature on the host, int64 [m]."""
    if not isinstance(feature, Csr):
        return feature[rows]
    flat, lengths = gather_segments(feature.start, rows)
    return Csr(offsets_of(lengths), feature.token[flat], feature.weight[flat], feature.width)
