"""What is asked about is uncertain, can still change, stands once for its twins, and is bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.judge.fusion import BAND, Ranking, reach
from gpumatch.judge.selection import CONTROLS, FEWEST, MOST, candidates, most, uncertainty


def ranking(scores, confidence=None, schema=None):
    n = len(scores)
    confidence = np.full(n, 0.5) if confidence is None else np.array(confidence, float)
    return Ranking(np.array(scores, float), confidence, np.arange(n) if schema is None else np.array(schema))


def test_nothing_is_asked_where_nothing_can_change():
    assert candidates(ranking([])).tolist() == []
    assert candidates(ranking([0.9])).tolist() == []
    assert candidates(ranking([0.9, 0.9 - 2 * BAND - 0.01])).tolist() == []
    assert candidates(ranking([0.9, 0.9], confidence=[0.0, 1.0])).tolist() == [0, 1]  # level: anything could
    assert candidates(ranking([0.9, 0.89], confidence=[0.0, 1.0])).tolist() == []


def test_twins_are_never_asked_about_among_each_other():
    assert candidates(ranking([0.9, 0.9, 0.89], schema=[4, 4, 4])).tolist() == []
    assert candidates(ranking([0.9, 0.9, 0.89, 0.88], schema=[4, 4, 7, 4])).tolist() == [0, 2]


def test_what_stands_alone_between_gaps_is_left_out():
    far = 3 * BAND
    scores = [1.0, 1.0 - far, 1.0 - far - 0.01, 1.0 - 2 * far - 0.01]
    # the last one is a control: known to be different, and never what one wants to know
    assert candidates(ranking(scores)).tolist() == [0, 1, 2, 3]
    assert candidates(ranking([*scores, *np.linspace(0.2, 0.0, 4) * 0])).tolist()[:3] == [0, 1, 2]


@given(st.integers(0, 2**32), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_bounds(seed, n):
    rng = np.random.default_rng(seed)
    one = Ranking(-np.sort(-rng.random(n)), rng.random(n), rng.integers(0, max(1, n // 2), n))
    places = candidates(one)
    assert len(places) <= most(n) <= MOST
    assert (np.diff(places) > 0).all()
    assert len(set(one.schema[places].tolist())) == len(places)
    first = {int(schema): i for i, schema in reversed(list(enumerate(one.schema.tolist())))}
    assert all(first[int(one.schema[place])] == place for place in places.tolist())
    if len(places) == most(n) > CONTROLS and n > MOST:
        last = sorted(first.values())[-CONTROLS:]
        assert set(last) <= set(places.tolist())


@given(st.integers(0, 2**32), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_every_change_of_order_that_is_within_reach_is_asked_about(seed, n):
    """Up to the bound: two neighbours of other schemas that verdicts could carry past each other are both asked."""
    rng = np.random.default_rng(seed)
    one = Ranking(-np.sort(-rng.random(n)), rng.random(n), rng.integers(0, n, n))
    places = set(one.schema[candidates(one)].tolist())
    moves = reach(one.confidence)
    asked = 0
    for i in range(n - 1):
        near = one.scores[i] - one.scores[i + 1] <= moves[i] + moves[i + 1]
        if one.schema[i] != one.schema[i + 1] and near and len(places) < most(n) - CONTROLS:
            assert {int(one.schema[i]), int(one.schema[i + 1])} <= places
            asked += 1
    assert asked or len(places) >= most(n) - CONTROLS or not places


def test_sizes():
    assert [most(n) for n in (0, 1, 70, 71, 150, 326, 10_000)] == [FEWEST, FEWEST, FEWEST, 11, 22, 47, MOST]


def test_uncertainty_is_the_variance_of_the_number_of_true_ones():
    one = ranking([0.9, 0.8, 0.7], confidence=[0.5, np.nan, 0.1])
    assert uncertainty(one, np.array([0, 2])) == pytest.approx(0.25 + 0.09)
    assert uncertainty(one, np.array([1])) == pytest.approx(0.09)
