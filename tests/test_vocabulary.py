"""Bags and TF-IDF rows against counters and loops over plain numbers."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.vocabulary import Bags, Vocabulary

TERM = st.sampled_from([0, 1, 2, 3, 5, 8, 2**63, 2**64 - 1])
BAGS = st.lists(st.lists(TERM, max_size=8), max_size=6)


def bags_of(bags):
    """Bags from lists of terms, the entries in a scrambled order."""
    entries = [(i, term) for i, bag in enumerate(bags) for term in bag]
    entries = entries[1::2] + entries[::2]
    owner = np.array([i for i, _ in entries], np.int64)
    return Bags.of(owner, np.array([term for _, term in entries], np.uint64), len(bags))


def as_counters(bags):
    bounds = bags.start.tolist()
    return [dict(zip(bags.term[a:b].tolist(), bags.tf[a:b].tolist(), strict=True)) for a, b in pairwise(bounds)]


def dense(rows):
    """The sparse rows as a dense array, tokens in order and none twice."""
    out = np.zeros((len(rows.start) - 1, rows.width), np.float32)
    for i, (a, b) in enumerate(pairwise(rows.start.tolist())):
        assert (np.diff(rows.token[a:b]) > 0).all()
        out[i, rows.token[a:b]] = rows.weight[a:b]
    return out


def tfidf_oracle(lake, queries):
    """Dense float64 rows: tf * (1 + ln((1 + n) / (1 + df))), divided by the length over seen and unseen terms."""
    terms = sorted({term for bag in lake for term in bag})
    df = {term: sum(term in bag for bag in lake) for term in terms}
    rows = []
    for bag in queries:
        weight = {
            term: tf * (1 + math.log((1 + len(lake)) / (1 + df.get(term, 0)))) for term, tf in Counter(bag).items()
        }
        length = math.sqrt(sum(w * w for w in weight.values()))
        rows.append([weight.get(term, 0) / length if length else 0.0 for term in terms])
    return np.array(rows, float).reshape(len(queries), len(terms))


@given(BAGS)
@settings(max_examples=100, deadline=None)
def test_bags_count_terms(bags):
    made = bags_of(bags)
    assert len(made) == len(bags)
    assert as_counters(made) == [dict(Counter(bag)) for bag in bags]
    assert all(list(counter) == sorted(counter) for counter in as_counters(made))
    assert made.owner.tolist() == [i for i, bag in enumerate(bags) for _ in set(bag)]
    assert (made.start.dtype, made.term.dtype, made.tf.dtype) == (np.int64, np.uint64, np.float32)


def test_bags_of_nothing():
    for n in (0, 3):
        made = Bags.of(np.empty(0, np.int64), np.empty(0, np.uint64), n)
        assert len(made) == n
        assert made.start.tolist() == [0] * (n + 1)
        assert (len(made.term), len(made.tf), len(made.owner)) == (0, 0, 0)


def test_binary_bags_count_each_term_once_and_leave_the_bags_alone():
    made = bags_of([[4, 4, 9], [], [4]])
    assert as_counters(made.binary()) == [{4: 1.0, 9: 1.0}, {}, {4: 1.0}]
    assert as_counters(made) == [{4: 2.0, 9: 1.0}, {}, {4: 1.0}]


def test_vocabulary_counts_bags_not_occurrences():
    vocabulary = Vocabulary.of(bags_of([[7, 7, 7, 2], [7], [], [2**64 - 1]]))
    assert vocabulary.term.tolist() == [2, 7, 2**64 - 1]
    assert vocabulary.df.tolist() == [1, 2, 1]
    assert (vocabulary.n_docs, len(vocabulary)) == (4, 3)


def test_idf_is_smoothed_and_ends_with_that_of_a_term_never_seen():
    vocabulary = Vocabulary.of(bags_of([[7, 2], [7], [], [7]]))
    expected = [1 + math.log(5 / 2), 1 + math.log(5 / 4), 1 + math.log(5)]
    assert vocabulary.idf.tolist() == pytest.approx(expected, rel=1e-15)
    assert vocabulary.idf.dtype == np.float64


def test_find_gives_the_place_or_the_number_of_terms():
    vocabulary = Vocabulary.of(bags_of([[7, 2, 2**64 - 1]]))
    asked = np.array([0, 2, 3, 7, 8, 2**64 - 1, 2**64 - 2], np.uint64)
    assert vocabulary.find(asked).tolist() == [3, 0, 3, 1, 3, 2, 3]
    assert vocabulary.find(np.empty(0, np.uint64)).tolist() == []


def test_a_vocabulary_of_nothing_knows_no_term():
    for n in (0, 2):
        vocabulary = Vocabulary.of(Bags.of(np.empty(0, np.int64), np.empty(0, np.uint64), n))
        assert vocabulary.find(np.array([0, 5], np.uint64)).tolist() == [0, 0]
        assert vocabulary.idf.tolist() == pytest.approx([1 + math.log(1 + n)])
        assert dense(vocabulary.tfidf(bags_of([[5], []]))).shape == (2, 0)
        assert len(vocabulary.counts(bags_of([[5], []])).token) == 0


@given(BAGS, BAGS)
@settings(max_examples=100, deadline=None)
def test_tfidf_and_counts_against_loops(lake, queries):
    vocabulary = Vocabulary.of(bags_of(lake))
    rows = vocabulary.tfidf(bags_of(queries))
    assert rows.width == len(vocabulary)
    assert (rows.start.dtype, rows.token.dtype, rows.weight.dtype) == (np.int64, np.int32, np.float32)
    np.testing.assert_allclose(dense(rows), tfidf_oracle(lake, queries), rtol=2e-6, atol=1e-12)
    counts = vocabulary.counts(bags_of(queries))
    assert counts.weight.dtype == np.float32
    expected = [[Counter(bag)[term] for term in vocabulary.term.tolist()] for bag in queries]
    assert dense(counts).tolist() == np.array(expected, float).reshape(len(queries), len(vocabulary)).tolist()


def test_rows_of_the_collection_have_unit_length():
    lake = [[1, 1, 2], [2, 3], [], [5] * 40 + [1]]
    vocabulary = Vocabulary.of(bags_of(lake))
    lengths = np.sqrt((dense(vocabulary.tfidf(bags_of(lake))) ** 2).sum(axis=1))
    assert lengths.tolist() == pytest.approx([1, 1, 0, 1], abs=1e-6)


def test_an_unseen_term_shortens_what_is_left_of_its_row_and_takes_no_column():
    vocabulary = Vocabulary.of(bags_of([[10], [20]]))
    seen, unseen = 1 + math.log(3 / 2), 1 + math.log(3)
    row = vocabulary.tfidf(bags_of([[10, 15, 15]]))
    assert (row.width, len(row.token)) == (2, 1)
    assert dense(row)[0].tolist() == pytest.approx([seen / math.hypot(seen, 2 * unseen), 0])
    assert len(vocabulary.tfidf(bags_of([[15]])).token) == 0
    assert dense(vocabulary.counts(bags_of([[10, 10, 15]]))).tolist() == [[2, 0]]
