"""evaluate against trec_eval (untied), against every order of the ties by brute force, and on its contract's edges."""

import dataclasses
import itertools
import json
import math
import random
import statistics
import sys
import tracemalloc

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG
from written_rows import pair, result

from gpumatch.errors import LakeError, UsageError
from gpumatch.metrics import (
    METRICS,
    _bootstrap_means,
    compare,
    evaluate,
    pool_recall,
    score_queries,
)

TREC = dict(
    zip(
        METRICS,
        [Success @ 1, Success @ 3, Success @ 5, P @ 1, P @ 5, P @ 10, R @ 1, R @ 5, R @ 10, AP, nDCG @ 10, RR],
        strict=True,
    )
)


def metrics_of(results, truth, **options):
    """The metrics of the only evaluated query, by name."""
    scored = score_queries(results, truth, **options)
    assert len(scored.keys) == 1
    return dict(zip(METRICS, scored.values[0].tolist(), strict=True))


def naive_metrics(relevant, n_relevant):
    """The textbook definitions on one order: relevant is a list of 0 and 1."""
    hits = [i for i, bit in enumerate(relevant, start=1) if bit]
    values = {f"Hit@{k}": float(any(relevant[:k])) for k in (1, 3, 5)}
    values |= {f"P@{k}": sum(relevant[:k]) / k for k in (1, 5, 10)}
    values |= {f"R@{k}": sum(relevant[:k]) / n_relevant for k in (1, 5, 10)}
    values["MAP"] = sum(sum(relevant[:i]) / i for i in hits) / n_relevant
    ideal = sum(1 / math.log2(1 + i) for i in range(1, min(10, n_relevant) + 1))
    values["nDCG@10"] = sum(1 / math.log2(1 + i) for i in hits if i <= 10) / ideal
    values["MRR"] = 1 / hits[0] if hits else 0.0
    return values


def mean_over_orders(groups, n_relevant):
    """The mean of `naive_metrics` over every order of every tie group; groups is a list of lists of 0 and 1."""
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    each = [naive_metrics(list(itertools.chain(*order)), n_relevant) for order in orders]
    return {name: statistics.fmean(values[name] for values in each) for name in METRICS}


def rows_of(groups, unlisted, jitter=0.0):
    """A result row and a truth whose ranking falls into these groups, with `unlisted` true tables never listed."""
    ranking, truth = [], [pair("q", f"unlisted{n}") for n in range(unlisted)]
    for g, group in enumerate(groups):
        for bit in group:
            table = f"t{len(ranking)}"
            # The matches of a group fall by less than half of 1e-6: they differ as printed, not once rounded.
            ranking.append((table, float(len(groups) - g) + 0.4e-6 - jitter * len(ranking)))
            if bit:
                truth.append(pair("q", table))
    return [result("q", ranking)], truth


# --- values


@pytest.mark.parametrize("seed", range(8))
def test_untied_rankings_agree_with_trec_eval(seed):
    rng = random.Random(seed)
    results, truth, run, qrels = [], [], [], []
    for q in range(25):
        query, tables = f"q{q}", [f"t{n}" for n in rng.sample(range(60), 60)]
        ranking = [(table, float(100 - n)) for n, table in enumerate(tables[: rng.randint(1, 40)])]
        true = rng.sample(tables, rng.randint(1, 20))
        if q % 5:  # every fifth query has a truth and no answer
            results.append(result(query, ranking))
            run += [ir_measures.ScoredDoc(query, table, score) for table, score in ranking]
        truth += [pair(query, table) for table in true]
        qrels += [ir_measures.Qrel(query, table, 1) for table in true]
    scored = score_queries(results, truth)
    assert len(scored.unanswered) == 5
    seen = 0
    for metric in ir_measures.iter_calc(TREC.values(), qrels, run):
        name = next(name for name, measure in TREC.items() if measure == metric.measure)
        ours = scored.values[scored.keys.index((metric.query_id, None)), METRICS.index(name)]
        assert ours == pytest.approx(metric.value, abs=1e-9), name
        seen += 1
    assert seen == len(METRICS) * 25
    means = evaluate(results, truth, resamples=1).means
    theirs = ir_measures.calc_aggregate(TREC.values(), qrels, run)
    assert means == pytest.approx({name: theirs[measure] for name, measure in TREC.items()}, abs=1e-9)


BITS = st.integers(0, 1)


@st.composite
def tie_groups(draw):
    """Up to 14 slots: single ones, and one or two tie groups of up to five whose orders can all be walked."""
    groups = [[bit] for bit in draw(st.lists(BITS, max_size=8))]
    groups.append(draw(st.lists(BITS, min_size=2, max_size=5)))
    groups.append(draw(st.lists(BITS, min_size=1, max_size=3)))
    return draw(st.permutations(groups))


@settings(max_examples=150, deadline=None)
@given(groups=tie_groups(), unlisted=st.integers(0, 12), jitter=st.sampled_from([0.0, 1e-8]))
def test_tied_rankings_are_the_mean_over_all_orders(groups, unlisted, jitter):
    n_relevant = sum(map(sum, groups)) + unlisted
    results, truth = rows_of(groups, unlisted, jitter)
    if not n_relevant:
        assert score_queries(results, truth).keys == []
        return
    expected = mean_over_orders(groups, n_relevant)
    assert metrics_of(results, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "groups",
    [
        [[1, 0]],
        [[0, 0, 1, 0, 1, 0]],  # Hit@3 and Hit@5 end inside the group
        [[0]] * 8 + [[1, 0, 1, 0]],  # every cut at 10 ends inside the group
        [[0, 0], [1, 1, 0], [0, 1]],  # relevant above and inside
        [[1, 1, 1, 1]],
    ],
    ids=["pair", "cut hits", "cut at ten", "several", "all relevant"],
)
def test_chosen_ties_are_the_mean_over_all_orders(groups):
    results, truth = rows_of(groups, unlisted=1)
    n_relevant = sum(map(sum, groups)) + 1
    assert metrics_of(results, truth) == pytest.approx(mean_over_orders(groups, n_relevant), abs=1e-12)


def test_values_of_a_tie_worked_by_hand():
    # One relevant of three, all tied: first at 1, 2 or 3 with equal chance.
    found = metrics_of([result("q", [("a", 0.5), ("b", 0.5), ("c", 0.5)])], [pair("q", "b")])
    third = 1 / 3
    assert found["Hit@1"] == pytest.approx(third)
    assert found["MRR"] == found["MAP"] == pytest.approx(third * (1 + 1 / 2 + 1 / 3))
    assert found["Hit@3"] == found["R@5"] == pytest.approx(1)
    assert found["P@10"] == pytest.approx(0.1)


def test_a_large_tie_stays_a_probability():
    ranking = [(f"t{n}", 1.0) for n in range(3000)]
    truth = [pair("q", f"t{n}") for n in range(1500)]
    values = score_queries([result("q", ranking)], truth).values
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-12
    hit3 = 1 - math.prod((1500 - t) / (3000 - t) for t in range(3))
    assert values[0, METRICS.index("Hit@3")] == pytest.approx(hit3, abs=1e-12)


@pytest.mark.parametrize(("gap", "hit"), [(0.0, 0.5), (4e-7, 0.5), (2e-6, 0.0)])
def test_scores_equal_after_rounding_to_a_millionth_are_ties(gap, hit):
    found = metrics_of([result("q", [("wrong", 0.5 + gap), ("right", 0.5)])], [pair("q", "right")])
    assert found["Hit@1"] == hit


def test_order_within_a_tie_changes_nothing():
    ranking = [("a", 0.7), ("b", 0.7 - 1e-8), ("c", 0.7 - 2e-8), ("d", 0.1)]
    swapped = [("c", 0.7), ("a", 0.7 - 1e-8), ("b", 0.7 - 2e-8), ("d", 0.1)]
    truth = [pair("q", "c"), pair("q", "d")]
    assert metrics_of([result("q", ranking)], truth) == metrics_of([result("q", swapped)], truth)


def test_an_item_listed_twice_counts_once_where_it_stands_first():
    # Were the second place to count, it would tie with x.
    found = metrics_of([result("q", [("right", 0.9), ("x", 0.8), ("right", 0.8)])], [pair("q", "right")])
    assert found == naive_metrics([1, 0], 1)


# --- what is counted


def test_self_pairs_leave_truth_and_results():
    truth = [pair("q", "q"), pair("q", "a"), pair("alone", "alone")]
    results = [result("q", [("q", 1.0), ("a", 0.5)]), result("alone", [("alone", 1.0)])]
    scored = score_queries(results, truth)
    assert scored.keys == [("q", None)]
    assert scored.values[0].tolist() == metrics_of_perfect_single()
    assert scored.coverage == 0.5
    assert scored.n_truth_pairs == 1


def metrics_of_perfect_single():
    return list(naive_metrics([1], 1).values())


def test_coverage_counts_queries_with_a_true_candidate_in_the_lake():
    results = [result(q, [("a", 0.9), ("b", 0.5)]) for q in ("q1", "q2", "q3", "q4")]
    truth = [pair("q1", "b"), pair("q1", "gone"), pair("q2", "gone"), pair("q3", "a"), pair("q3", "a")]
    truth.append(pair("unanswered", "gone"))
    scored = score_queries(results, truth, lake_tables={"a", "b"})
    assert scored.keys == [("q1", None), ("q3", None)]
    assert scored.unanswered == []  # nothing in the lake could answer it
    assert scored.coverage == 2 / 4
    assert scored.truth_coverage == 2 / 5  # q1-b and q3-a of five distinct pairs
    recall = scored.values[:, METRICS.index("R@5")]
    assert recall.tolist() == [1.0, 1.0]  # the pair outside the lake is no longer missed
    unknown = score_queries(results, truth)
    assert unknown.coverage == 3 / 4
    assert unknown.truth_coverage is None
    assert dataclasses.replace(scored, n_rows=0, n_covered_rows=0).coverage == 0
    assert unknown.values[0, METRICS.index("R@5")] == 0.5


RIGHT = [result("q1", [("a", 1.0)])]


def test_an_unanswered_query_counts_zero():
    results, truth = [result("q1", [("a", 1.0)])], [pair("q1", "a"), pair("q2", "b")]
    found = evaluate(results, truth)
    assert (found.n_queries, found.n_unanswered, found.first_unanswered, found.n_rows) == (2, 1, "'q2'", 1)
    assert found.means["Hit@1"] == 0.5
    assert found.coverage == 1.0


@pytest.mark.parametrize("score", [evaluate, pool_recall, lambda rows, truth: compare(RIGHT, rows, truth)])
def test_a_truth_of_other_queries_is_refused(score):
    says = r"^none of the 2 queries of the truth \(the first is 'q1'\) is among .* results \(.* is 'q1\.csv'\)"
    with pytest.raises(LakeError, match=says):
        score([result("q1.csv", [("a", 1.0)])], [pair("q1", "a"), pair("q2", "b")])


def test_an_empty_ranking_counts_zero():
    found = evaluate([result("q1", [("a", 1.0)]), result("q2", [])], [pair("q1", "a"), pair("q2", "b")])
    assert found.means["MRR"] == 0.5
    assert found.n_unanswered == 0


def test_a_restriction_leaves_the_other_queries_out():
    results = [result("q1", [("a", 1.0)]), result("q3", [("x", 1.0)])]
    truth = [pair("q1", "a"), pair("q2", "b"), pair("q3", "c"), pair("q4", "d")]
    found = evaluate(results, truth, queries={("q1", None), ("q2", None)})
    assert (found.n_queries, found.n_unanswered, found.n_rows) == (2, 1, 1)
    assert found.means["Hit@1"] == 0.5


def test_a_restriction_counts_the_rows_of_its_own_queries():
    results = [result(query, [("a", 1.0)]) for query in ("q1", "q3", "q4", "without truth")]
    truth = [pair(query, "a") for query in ("q1", "q2", "q3", "q4")]
    found = evaluate(results, truth, queries={("q1", None), ("without truth", None)})
    assert (found.n_queries, found.n_rows, found.coverage) == (1, 2, 0.5)


def test_keys_follow_the_truth_not_the_result_rows():
    results = [result(q, [("a", 1.0)]) for q in ("q1", "q2", "q3")]
    truth = [pair(q, "a") for q in ("q2", "q3", "q1")]
    assert score_queries(reversed(results), truth).keys == score_queries(results, truth).keys
    assert score_queries(results, truth).keys == [("q2", None), ("q3", None), ("q1", None)]


COLUMN_ROWS = [result("q", [("t", "wrong", 0.9), ("u", "c", 0.8)], column="k")]


@pytest.mark.parametrize(("level", "hit1", "recall"), [("auto", 0.0, 0.5), ("column", 0.0, 0.5), ("table", 1.0, 1.0)])
def test_a_column_key_is_judged_by_its_best_column(level, hit1, recall):
    truth = [pair("q", "t", "k", "c"), pair("q", "u", "k", "c")]
    found = metrics_of(COLUMN_ROWS, truth, level=level)
    assert found["Hit@1"] == hit1
    assert found["R@5"] == recall


def test_auto_falls_back_to_tables_where_a_truth_row_names_no_column():
    truth = [pair("q", "t", "k", "c"), pair("q", "u", "k")]
    assert metrics_of(COLUMN_ROWS, truth)["R@5"] == 1.0
    with pytest.raises(UsageError, match="truth row 2: has no candidate_column"):
        score_queries(COLUMN_ROWS, truth, level="column")


def test_auto_judges_a_table_key_by_tables():
    results = [result("q", [("t", "wrong", 0.9)])]
    truth = [pair("q", "t", candidate_column="c")]
    assert metrics_of(results, truth)["Hit@1"] == 1.0
    assert metrics_of(results, truth, level="column")["Hit@1"] == 0.0


def test_columns_of_one_table_are_different_items():
    # Column matching lists one table again and again, each time with another column.
    results = [result("q", [("t", "x", 0.9), ("t", "c", 0.8)], column="k")]
    assert metrics_of(results, [pair("q", "t", "k", "c")])["MRR"] == 0.5


def test_a_match_without_columns_is_no_true_column():
    results = [result("q", [("t", 0.9), ("t", "c", 0.8)], column="k")]
    del results[0]["matches"][0]["columns"]
    assert metrics_of(results, [pair("q", "t", "k", "c")])["MRR"] == 0.5


@pytest.mark.parametrize(
    ("columns", "hit"),
    [
        ([{"candidate": {"index": 0, "name": "c"}}], 1),
        ([{"candidate": "c"}], 1),
        (["c"], 1),
        (["x", "c"], 0),
        ([{"candidate": {"index": 0}}], 0),
        ([{"candidate": ["c"]}], 0),
        ([None], 0),
        ([], 0),
        ("c", 0),
        ({"candidate": "c"}, 0),
    ],
)
def test_a_column_of_other_systems_may_be_its_bare_name(columns, hit):
    results = [result("q", [("t", 0.9)], column="k")]
    results[0]["matches"][0]["columns"] = columns
    assert metrics_of(results, [pair("q", "t", "k", "c")])["Hit@1"] == hit


def test_keys_with_and_without_column_are_different_queries():
    results = [result("q", [("a", 1.0)], column="x"), result("q", [("b", 1.0)], column="y"), result("q", [("c", 1.0)])]
    truth = [pair("q", "a", "x"), pair("q", "b", "y"), pair("q", "c")]
    scored = score_queries(results, truth)
    assert scored.keys == [("q", "x"), ("q", "y"), ("q", None)]
    assert scored.values[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_results_and_truth_of_different_grain_are_refused():
    with pytest.raises(LakeError, match="every truth row has a query_column and no results row has one"):
        score_queries([result("q", [("a", 1.0)])], [pair("q", "a", "k")])
    with pytest.raises(LakeError, match="every results row has a query_column and no truth row has one"):
        score_queries([result("q", [("a", 1.0)], column="k")], [pair("q", "a")])


def test_symmetric_hit_takes_reversed_pairs_of_the_same_queries():
    results = [result("a", [("b", 1.0)]), result("b", [("a", 1.0)]), result("c", [("x", 1.0)])]
    truth = [pair("a", "b"), pair("b", "z"), pair("c", "z")]
    found = evaluate(results, truth)
    assert found.n_queries == 3
    assert found.means["Hit@1"] == pytest.approx(1 / 3)
    assert found.hit1_symmetric == pytest.approx(2 / 3)
    only_b = evaluate(results, truth, queries=[("b", None)])  # the pair a-b still counts, reversed
    assert (only_b.n_queries, only_b.means["Hit@1"], only_b.hit1_symmetric) == (1, 0.0, 1.0)


def test_symmetric_hit_is_by_table_and_reverses_columns_to_their_own_key():
    results = [
        result("a", [("b", "wrong", 1.0)], column="k"),
        result("b", [("a", "k", 1.0)], column="c"),
        result("b", [("a", "k", 1.0)], column="other"),
    ]
    truth = [pair("a", "b", "k", "c"), pair("b", "z", "c", "z"), pair("b", "z", "other", "z")]
    found = evaluate(results, truth)
    assert found.means["Hit@1"] == 0.0
    assert found.hit1_symmetric == pytest.approx(2 / 3)


# --- uncertainty


def noisy_results(rng, accuracy, n=120):
    return [result(f"q{q}", [("right" if rng.random() < accuracy else "x", 0.9), ("y", 0.8)]) for q in range(n)]


TRUTH = [pair(f"q{q}", "right") for q in range(120)]


def test_intervals_repeat_with_the_seed_and_ignore_the_order_of_rows():
    results = noisy_results(random.Random(1), 0.5)
    first = evaluate(results, TRUTH, seed=3)
    assert evaluate(iter(results), iter(TRUTH), seed=3) == first
    assert evaluate(results[::-1], TRUTH, seed=3) == first
    assert evaluate(results, TRUTH, seed=4).intervals != first.intervals


def test_interval_of_a_share_is_about_the_binomial_one():
    found = evaluate(noisy_results(random.Random(2), 0.5), TRUTH, resamples=4000)
    share = found.means["Hit@1"]
    half = 1.96 * math.sqrt(share * (1 - share) / 120)
    low, high = found.intervals["Hit@1"]
    assert low < share < high
    assert low == pytest.approx(share - half, abs=0.015)
    assert high == pytest.approx(share + half, abs=0.015)


def test_the_interval_is_the_middle_95_of_100_resamples(monkeypatch):
    def from_0_to_1(values, resamples, seed):
        return np.repeat(np.linspace(0, 1, resamples)[:, None], len(METRICS), axis=1)

    monkeypatch.setattr("gpumatch.metrics._bootstrap_means", from_0_to_1)
    results = noisy_results(random.Random(1), 0.5)
    assert evaluate(results, TRUTH, resamples=1001).intervals["MAP"] == pytest.approx((0.025, 0.975))
    found = compare(results, results, TRUTH, resamples=1001).differences["MAP"]
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))


def test_2000_resamples_of_seed_0_where_nothing_else_is_asked_for():
    results, others = noisy_results(random.Random(1), 0.5), noisy_results(random.Random(2), 0.6)
    assert evaluate(results, TRUTH) == evaluate(results, TRUTH, resamples=2000, seed=0)
    assert compare(results, others, TRUTH) == compare(results, others, TRUTH, resamples=2000, seed=0)


def test_intervals_do_not_depend_on_the_block_size(monkeypatch):
    results = noisy_results(random.Random(1), 0.5)
    whole = evaluate(results, TRUTH, resamples=100)
    monkeypatch.setattr("gpumatch.metrics._BOOTSTRAP_CELLS", 120 * 7)
    assert evaluate(results, TRUTH, resamples=100).intervals["MRR"] == pytest.approx(whole.intervals["MRR"])


def test_resamples_are_held_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("gpumatch.metrics._BOOTSTRAP_CELLS", 20_000)
    tracemalloc.start()
    try:
        assert (_bootstrap_means(np.ones((1000, len(METRICS))), 1000, seed=0) == 1).all()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # all at once: 8 MB, several times
    finally:
        tracemalloc.stop()


def test_compare_tells_the_better_system_and_its_sign():
    worse, better = noisy_results(random.Random(3), 0.3), noisy_results(random.Random(4), 0.7)
    there = compare(worse, better, TRUTH).differences["Hit@1"]
    back = compare(better, worse, TRUTH).differences["Hit@1"]
    assert there.difference > 0.2
    assert there.difference == pytest.approx(there.b - there.a)
    assert 0 < there.low < there.difference < there.high
    assert there.p < 0.01
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == there.p


def test_compare_of_equals_finds_nothing():
    results = noisy_results(random.Random(5), 0.5)
    for row in compare(results, results, TRUTH).rows():
        assert row[3:] == (0.0, 0.0, 0.0, 1.0)


def test_compare_is_paired():
    # b repeats a and gains on ten queries: unpaired noise would hide it, pairs cannot lose.
    a = noisy_results(random.Random(6), 0.5)
    missed = [n for n, row in enumerate(a) if row["matches"][0]["table"] == "x"][:10]
    b = [result(row["query_table"], [("right", 1.0)]) if n in missed else row for n, row in enumerate(a)]
    found = compare(a, b[::-1], TRUTH).differences["Hit@1"]
    assert found.difference == pytest.approx(10 / 120)
    assert found.low > 0
    assert found.p < 0.01


def test_p_value_is_twice_the_smaller_share():
    # One query gained, one lost, one equal: the sign of a resample is that of its gains minus its losses.
    truth = [pair(q, "right") for q in ("q1", "q2", "q3")]
    a = [result("q1", [("right", 1.0)]), result("q2", [("x", 1.0)]), result("q3", [("x", 1.0)])]
    b = [result("q1", [("x", 1.0)]), result("q2", [("right", 1.0)]), result("q3", [("x", 1.0)])]
    assert compare(a, b, truth).differences["Hit@1"].p == 1.0
    # Two gains, one loss. Of the 27 resamples 7 have at least two losses (difference < 0), none has a difference of 0.
    b[2] = result("q3", [("right", 1.0)])
    found = compare(a, b, truth, resamples=40_000).differences["Hit@1"]
    assert found.p == pytest.approx(2 * 7 / 27, abs=0.02)


def test_gains_and_losses_that_cancel_count_for_both_sides():
    # P@10 differs by .1, .2 and -.3, whose float sum is 6e-17: it is 0 in 6 of the 27 resamples, above in 11.
    gains = {"q1": 1, "q2": 2, "q3": 3}
    truth = [pair(query, f"t{t}") for query, n in gains.items() for t in range(n)]
    full = {query: result(query, [(f"t{t}", 1.0) for t in range(n)]) for query, n in gains.items()}
    found = compare([full["q3"]], [full["q1"], full["q2"]], truth, resamples=20_000).differences["P@10"]
    assert found.p == 1.0


def test_compare_counts_what_one_system_left_unanswered():
    truth = [pair("q1", "a"), pair("q2", "a")]
    both = [result("q1", [("a", 1.0)]), result("q2", [("a", 1.0)])]
    found = compare(both[:1], both, truth)
    assert found.n_queries == 2
    assert found.differences["MAP"].difference == 0.5


def test_what_is_printed_and_what_is_dumped_agree():
    results = noisy_results(random.Random(7), 0.5)
    found = evaluate(results, TRUTH, lake_tables={"right", "x", "y"})
    assert [row[0] for row in found.rows()] == list(METRICS)
    dumped = json.loads(json.dumps(found.to_dict()))
    name, mean, low, high = found.rows()[9]
    assert name == "MAP"
    assert dumped["metrics"]["MAP"] == {"mean": mean, "low": low, "high": high}
    assert dumped["coverage"] == dumped["truth_coverage"] == 1.0
    both = compare(results, results[:50], TRUTH)
    assert [row[0] for row in both.rows()] == list(METRICS)
    metrics = json.loads(json.dumps(both.to_dict()))["metrics"]
    assert tuple(metrics["MRR"].values()) == both.rows()[11][1:]


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows, truth: evaluate(rows, truth, level="row"), "level 'row'"),
        (lambda rows, truth: evaluate(rows, truth, resamples=0), "resamples must be at least 1"),
    ],
)
def test_a_wrong_request_is_a_usage_error(call, message):
    with pytest.raises(UsageError, match=message):
        call([result("q", [("a", 1.0)])], [pair("q", "a")])


@pytest.mark.parametrize("run", [evaluate, lambda rows, truth, **options: compare(rows, rows, truth, **options)])
def test_nothing_to_evaluate_is_an_error(run):
    with pytest.raises(LakeError, match=r"no query has a true candidate: 1 result rows, 1 truth pairs \(0 in the lake"):
        run([result("q", [("a", 1.0)])], [pair("q", "a")], lake_tables={"b"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "results row 2: found a list, not an object"),
        ({"query_column": None, "matches": []}, "results row 2: `query_table` must be a name, found None"),
        ({"query_table": "r", "query_column": 3, "matches": []}, "results row 2: `query_column` must be .* found 3"),
        ({"query_table": "r", "matches": None}, "results row 2: `matches` must be a list, found None"),
        (result("r", [("a", 0.1), ("b", 0.2)]), "results row 2, match 2: score 0.2 stands below 0.1"),
        (result("r", [("a", math.nan)]), "results row 2, match 1: `score` must be a finite number, found nan"),
        (result("r", [("a", "0.5")]), "results row 2, match 1: `score` must be a finite number, found '0.5'"),
        (result("r", [(None, 0.5)]), "results row 2, match 1: `table` must be a name, found None"),
        (result("q", []), "results row 2: query_table 'q', query_column None was answered before at results row 1"),
    ],
)
def test_a_malformed_result_row_is_named(row, message):
    with pytest.raises(LakeError, match=message):
        score_queries([result("q", [("a", 1.0)]), row], [pair("q", "a")])


def test_scores_may_rise_within_the_rounding():
    assert metrics_of([result("q", [("a", 0.5), ("b", 0.5 + 4e-7)])], [pair("q", "b")])["Hit@1"] == 0.5


def test_the_largest_scores_are_scores():
    largest = sys.float_info.max
    assert metrics_of([result("q", [("a", largest), ("b", -largest)])], [pair("q", "a")])["Hit@1"] == 1


def test_a_malformed_truth_row_is_named():
    with pytest.raises(LakeError, match="truth row 2: `candidate_table` must be a name, found ''"):
        score_queries([result("q", [("a", 1.0)])], [pair("q", "a"), pair("q", "")])


# --- pools


def ranked(query, *tables, column=None):
    return result(query, [(table, 1 - n / 100) for n, table in enumerate(tables)], column)


def test_pool_recall_by_hand():
    truth = [pair("q", t) for t in "abcd"] + [pair("r", "a"), pair("r", "r"), pair("s", "a")]
    found = pool_recall([ranked("q", "x", "d", "y", "a", "a"), ranked("r", "r", "z", "a")], truth)
    assert (found.n_queries, found.n_whole, found.n_unanswered) == (3, 1, 1)
    assert found.recall == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert found.mean_size == pytest.approx((4 + 2 + 0) / 3)  # once each, the query itself left out
    low, high = found.interval
    assert 0 <= low < found.recall < high <= 1
    assert json.loads(json.dumps(found.to_dict()))["recall"] == found.recall


def test_pool_recall_counts_what_is_in_the_lake_and_in_the_queries():
    truth = [pair("q", "a"), pair("q", "gone"), pair("r", "a")]
    rows = [ranked("q", "a", "b"), ranked("r", "b")]
    assert pool_recall(rows, truth).recall == pytest.approx((1 / 2 + 0) / 2)
    assert pool_recall(rows, truth, lake_tables={"a", "b"}).recall == pytest.approx(1 / 2)
    only = pool_recall(rows, truth, queries={("q", None)})
    assert (only.n_queries, only.recall, only.mean_size) == (1, 0.5, 2)


def test_pool_recall_by_column():
    truth = [pair("q", "a", "k", "x"), pair("q", "b", "k", "y")]
    rows = [result("q", [("a", "x", 0.9), ("b", "other", 0.8)], column="k")]
    assert pool_recall(rows, truth).recall == 0.5
    assert pool_recall(rows, truth, level="table").recall == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9), min_size=1)), min_size=1, max_size=6))
def test_pool_recall_against_sets(queries):
    rows = [ranked(f"q{n}", *(f"t{t}" for t in sorted(listed))) for n, (listed, _) in enumerate(queries)]
    truth = [pair(f"q{n}", f"t{t}") for n, (_, true) in enumerate(queries) for t in true]
    found = pool_recall(rows, truth, resamples=10)
    shares = [len(listed & true) / len(true) for listed, true in queries]
    assert found.recall == pytest.approx(statistics.mean(shares))
    assert found.mean_size == pytest.approx(statistics.mean(len(listed) for listed, _ in queries))
    assert found.n_whole == sum(share == 1 for share in shares)


def test_results_that_k_has_cut_have_no_pool_recall():
    truth = [pair("q", "a"), pair("r", "a")]
    whole = {**ranked("q", "a", "b"), "pool": 2}
    cut = {**ranked("r", "a"), "pool": 7}
    assert pool_recall([whole], truth).recall == 0.5
    with pytest.raises(LakeError, match=r"results row 2: 'r' lists 1 of the 7 tables .* make the results with -k 0"):
        pool_recall([whole, cut], truth)


def test_pool_recall_without_a_true_candidate_is_refused():
    with pytest.raises(LakeError, match="no query has a true candidate"):
        pool_recall([ranked("q", "a")], [pair("q", "q")])
    with pytest.raises(UsageError, match="resamples"):
        pool_recall([ranked("q", "a")], [pair("q", "a")], resamples=0)
