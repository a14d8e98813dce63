"""Rates are even, budgets are never exceeded, and a server that does not answer is left alone and then given up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.cache.verdicts import Spent
from gpumatch.judge.limits import COOL_SECONDS, TRIP, Breaker, Budget, Price, Rate


@given(st.floats(1, 6000), st.lists(st.tuples(st.floats(0, 2), st.floats(1, 50)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_never_more_than_the_rate_and_a_second_of_burst(a_minute, calls):
    rate, now, sent = Rate(a_minute), 0.0, []
    for gap, amount in calls:
        now += gap
        sent.append((now + rate.wait(now, amount), amount))
    for i, (start, _) in enumerate(sent):
        for end, _ in sent[i:]:
            # what was let through from the first to before the last of them
            between = sum(amount for at, amount in sent[i:] if at < end)
            assert between <= a_minute / 60 * (end - start + 1.0) + max(amount for _, amount in sent) + 1e-6


def test_without_a_rate_nothing_waits():
    assert Rate(None).wait(5.0, 1e9) == 0


def test_a_budget_counts_calls_tokens_and_money():
    budget = Budget(calls=2, tokens=100, money=1.0, price=Price(10_000, 20_000))
    assert budget.why_not(Spent(1, 10, 10), Spent(1, 10, 10)) == ""
    assert "2 calls of --llm-max-calls" in budget.why_not(Spent(2, 0, 0), Spent(1, 0, 0))
    assert "--llm-max-tokens" in budget.why_not(Spent(0, 50, 0), Spent(1, 50, 1))
    assert "--llm-budget" in budget.why_not(Spent(0, 50, 20), Spent(1, 5, 3))
    assert Budget().why_not(Spent(10**9, 10**12, 10**12), Spent(1, 1, 1)) == ""


def test_parts_of_a_budget():
    budget = Budget(10, 1000, 5.0)
    assert budget.part(0.35) == Budget(3, 350, 1.75)
    assert budget.part(1.0) == budget
    assert Budget().part(0.5) == Budget()
    assert sum(budget.part((i + 1) / 7).calls - budget.part(i / 7).calls for i in range(7)) == 10


def test_the_breaker_trips_probes_and_gives_up():
    breaker, now = Breaker(), 100.0
    for _ in range(TRIP - 1):
        assert breaker.wait(now) is None
        breaker.failure(now, "no")
    assert breaker.wait(now) is None
    breaker.failure(now, "no")
    for cool in COOL_SECONDS:
        assert breaker.wait(now) == pytest.approx(cool)
        now += cool
        assert breaker.wait(now) is None  # the probe
        assert breaker.wait(now) == 0.05  # nobody else meanwhile
        assert not breaker.dead
        assert breaker.tripped
        breaker.failure(now, "late")  # one that was under way before
        assert breaker.wait(now) == 0.05
        assert not breaker.dead
        breaker.failure(now, "still no", probe=True)
    assert "still no" in breaker.dead
    assert sum(COOL_SECONDS) < 10


def test_one_answer_closes_the_breaker_and_a_cancelled_probe_lets_another_try():
    breaker = Breaker()
    for _ in range(TRIP):
        breaker.failure(0.0, "no")
    assert breaker.wait(COOL_SECONDS[0]) is None
    breaker.neither(probe=False)  # somebody else's end is not the probe's
    assert breaker.wait(COOL_SECONDS[0]) == 0.05
    breaker.neither(probe=True)
    assert breaker.wait(COOL_SECONDS[0]) is None
    breaker.success()
    assert [breaker.wait(COOL_SECONDS[0]) for _ in range(3)] == [None] * 3
    for _ in range(TRIP - 1):
        breaker.failure(9.0, "no")
    breaker.success()
    breaker.failure(9.0, "no")
    assert breaker.wait(9.0) is None


def test_calls_that_were_under_way_when_it_tripped_do_not_count_as_probes():
    breaker = Breaker()
    for _ in range(TRIP + 20):
        breaker.failure(0.0, "no")
    assert not breaker.dead
    assert breaker.wait(0.0) == pytest.approx(COOL_SECONDS[0])
