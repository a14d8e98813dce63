"""The bags of names, positions, grams, words and tokens against a naive recomputation from the same profiles."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.lake import Table
from gpumatch.profile import profile_tables
from gpumatch.terms import Terms, Vocabularies, spread
from gpumatch.text import name_grams, placeholders, words
from gpumatch.vocabulary import Bags

GOLDEN = 0x9E3779B97F4A7C15


def h(text):
    return xxhash.xxh3_64_intdigest(text.encode())


def at(name, position):
    """The hashed (name, position) term."""
    return h(name) ^ ((position + 1) * GOLDEN % 2**64)


def profiles_of(tables):
    """Profiles of tables given as lists of (header, cells)."""
    return profile_tables(
        Table(
            f"t{i}",
            tuple(header for header, _ in columns),
            tuple(pa.array(cells, pa.string()) for _, cells in columns),
            (None,) * len(columns),
        )
        for i, columns in enumerate(tables)
    )


def as_counters(bags):
    bounds = bags.start.tolist()
    return [dict(zip(bags.term[a:b].tolist(), bags.tf[a:b].tolist(), strict=True)) for a, b in pairwise(bounds)]


def hashed(terms):
    return {h(term): float(tf) for term, tf in Counter(terms).items()}


TABLES = [
    [("City", ["Paris", "Rome"]), ("city", ["x"]), ("Ref Date", ["2020-01-01"])],
    [],
    [("Ref Date", ["Paris Paris"]), ("", [])],
]


def test_terms_of_three_tables_spelled_out():
    terms = Terms.of(profiles_of(TABLES))
    assert terms.column_table.tolist() == [0, 0, 0, 2, 2]
    assert terms.column_name.tolist() == [0, 0, 1, 1, 2]
    assert terms.name.tolist() == [h("city"), h("ref date"), h("")]
    assert as_counters(terms.table_names) == [
        {h("city"): 1.0, h("ref date"): 1.0},
        {},
        {h("ref date"): 1.0},
    ]
    assert terms.named.tolist() == [True, True, True, True, False]
    assert as_counters(terms.positions) == [
        {at("city", 0): 1.0, at("city", 1): 1.0, at("ref date", 2): 1.0},
        {},
        {at("ref date", 0): 1.0},
    ]
    assert as_counters(terms.grams) == [hashed(name_grams(name)) for name in ("city", "ref date", "")]
    assert as_counters(terms.name_words) == [
        {h("city"): 1.0, h("\x1fcity"): 1.0},
        {h("ref"): 1.0, h("date"): 1.0, h("\x1fref date"): 1.0},
        {h("\x1f"): 1.0},
    ]
    assert as_counters(terms.tokens) == [
        {h("paris"): 1.0, h("rome"): 1.0},
        {h("x"): 1.0},
        {h("2020"): 1.0, h("01"): 2.0},
        {h("paris"): 2.0},
        {},
    ]


def test_document_frequencies_count_columns_tables_and_names():
    lake = Vocabularies.of(Terms.of(profiles_of(TABLES)))
    frequency = {
        field: dict(zip(one.term.tolist(), one.df.tolist(), strict=True))
        for field, one in vars(lake).items()
        if field != "grams"
    }
    assert frequency == {
        "names": {h("city"): 2, h("ref date"): 2, h(""): 1},
        "words": {h("city"): 2, h("\x1fcity"): 2, h("ref"): 2, h("date"): 2, h("\x1fref date"): 2, h("\x1f"): 1},
        "positions": {
            at("city", 0): 1,
            at("city", 1): 1,
            at("ref date", 2): 1,
            at("ref date", 0): 1,
        },
        "tokens": {h("paris"): 2, h("rome"): 1, h("x"): 1, h("2020"): 1, h("01"): 1},
    }
    grams = Counter(gram for name in ("city", "ref date", "") for gram in set(name_grams(name)))
    assert dict(zip(lake.grams.term.tolist(), lake.grams.df.tolist(), strict=True)) == hashed(grams.elements())
    sizes = {field: one.n_docs for field, one in vars(lake).items()}
    assert sizes == {"names": 5, "words": 5, "positions": 3, "grams": 3, "tokens": 5}


HEADER = st.sampled_from(["a", "A ", "b", "a b", "ab_c", "été", "", "ID", "id ", "Ref-Date"]) | st.text(max_size=6)


@given(
    st.lists(
        st.lists(st.tuples(HEADER, st.lists(st.sampled_from(["x y", "y", "z,z"]), max_size=3)), max_size=4), max_size=4
    )
)
@settings(max_examples=80, deadline=None)
def test_terms_and_frequencies_against_loops(tables):
    profiles = profiles_of(tables)
    terms = Terms.of(profiles)
    names = list(profiles.names)
    distinct = list(dict.fromkeys(names))
    by_table = [names[a:b] for a, b in pairwise(profiles.table_cols)]

    assert terms.column_table.tolist() == [t for t, columns in enumerate(tables) for _ in columns]
    assert [distinct[i] for i in terms.column_name] == names
    assert terms.name.tolist() == [h(name) for name in distinct]
    said = [[name for name, empty in zip(row, placeholders(row), strict=True) if not empty] for row in by_table]
    assert as_counters(terms.table_names) == [hashed(set(row)) for row in said]
    assert terms.named.sum() == sum(map(len, said))
    assert as_counters(terms.positions) == [
        {term: float(tf) for term, tf in Counter(at(name, i) for i, name in named).items()}
        for row in by_table
        for named in [
            [(i, name) for (i, name), empty in zip(enumerate(row), placeholders(row), strict=True) if not empty]
        ]
    ]
    assert as_counters(terms.grams) == [hashed(name_grams(name)) for name in distinct]
    name_words = [hashed([*words(name), f"\x1f{name}"]) for name in distinct]
    assert as_counters(terms.name_words) == name_words

    lake = Vocabularies.of(terms)
    for vocabulary, documents in (
        (lake.names, [{h(name)} for name in names]),
        (lake.words, [name_words[distinct.index(name)] for name in names]),
        (lake.positions, as_counters(terms.positions)),
        (lake.grams, as_counters(terms.grams)),
        (lake.tokens, as_counters(terms.tokens)),
    ):
        frequency = Counter(term for document in documents for term in document)
        assert vocabulary.term.tolist() == sorted(frequency)
        assert vocabulary.df.tolist() == [frequency[term] for term in sorted(frequency)]
        assert vocabulary.n_docs == len(documents)


def test_spread_repeats_drops_and_reorders_bags():
    bags = Bags.of(np.array([0, 0, 2]), np.array([5, 5, 9], np.uint64), 3)
    assert as_counters(spread(bags, np.array([2, 0, 1, 0]))) == [{9: 1.0}, {5: 2.0}, {}, {5: 2.0}]
    assert len(spread(bags, np.empty(0, np.int64))) == 0


def test_terms_of_no_tables_and_of_no_columns():
    for tables in ([], [[], []]):
        terms = Terms.of(profiles_of(tables))
        assert terms.column_table.tolist() == terms.column_name.tolist() == terms.name.tolist() == []
        assert as_counters(terms.table_names) == as_counters(terms.positions) == [{}] * len(tables)
        assert (len(terms.grams), len(terms.name_words), len(terms.tokens)) == (0, 0, 0)
        assert [len(one) for one in vars(Vocabularies.of(terms)).values()] == [0] * 5
