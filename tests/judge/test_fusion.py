"""Verdicts move scores within the band, by what the judge has shown to be worth; twins keep their order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.judge.fusion import BAND, FULL, PRIOR, UNKNOWN, Ranking, judged, moves, reach, worth


def ranking(scores, confidence, schema):
    return Ranking(np.array(scores, float), np.array(confidence, float), np.array(schema, np.int64))


@st.composite
def a_ranking(draw, most=12):
    n = draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.integers(0, 40, n) / 40)
    confidence = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 11, n) / 10)
    return Ranking(scores, confidence, rng.integers(0, draw(st.integers(1, n)), n)), rng


def moves_by_hand(one, places, sign, worth):
    """The formula, candidate by candidate."""
    found = []
    for schema in one.schema:
        twins = [i for i, other in enumerate(one.schema) if other == schema]
        told = [s for p, s in zip(places, sign, strict=True) if p in twins]
        c = one.confidence[twins[0]]
        unsure = UNKNOWN if np.isnan(c) else 4 * c * (1 - c)
        found.append(BAND * worth * unsure * (sum(told) / len(told) if told else 0))
    return found


@given(a_ranking(), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_moves_against_the_formula(drawn, believed):
    one, rng = drawn
    places = np.flatnonzero(rng.random(len(one.scores)) < 0.6)
    sign = rng.choice([-1.0, 0.0, 1.0], len(places))
    found = moves(one, places, sign, believed)
    np.testing.assert_allclose(found, moves_by_hand(one, places, sign, believed), atol=1e-12)
    assert (np.abs(found) <= BAND + 1e-12).all()
    for schema in set(one.schema.tolist()):  # twins keep their distances, and so their order
        assert len(set(found[one.schema == schema].tolist())) == 1


@given(a_ranking())
@settings(max_examples=50, deadline=None)
def test_the_speaker_of_a_candidate_is_its_twin(drawn):
    one, rng = drawn
    _, first = np.unique(one.schema, return_index=True)
    places = np.sort(first[rng.random(len(first)) < 0.7])
    speaks = judged(one, places)
    for i, speaker in enumerate(speaks.tolist()):
        asked = {int(one.schema[place]): at for at, place in enumerate(places.tolist())}
        assert speaker == asked.get(int(one.schema[i]), -1)


def test_what_is_nearly_sure_moves_little():
    np.testing.assert_allclose(reach(np.array([0.0, 0.5, 1.0, np.nan])), [0, BAND, 0, BAND * UNKNOWN])
    assert reach(np.array([0.05]))[0] < BAND / 4


def judge_of(accuracy, n, seed=0):
    """What a judge says of n candidates in rankings of 20, whose confidences are right on the whole but not each."""
    rng = np.random.default_rng(seed)
    place = np.arange(n) % 20
    chance = 0.6 * 0.85**place
    true = rng.random(n) < chance
    confidence = np.clip(chance + rng.normal(0, 0.05, n), 0, 1)
    return confidence, place, np.where((rng.random(n) < accuracy) == true, 1.0, -1.0)


def test_a_good_judge_is_believed_and_a_guess_is_not():
    worths = [np.mean([worth(*judge_of(a, 2000, seed)) for seed in range(20)]) for a in (0.5, 0.7, 0.85, 1.0)]
    assert worths[0] < 0.1
    assert worths == sorted(worths)
    assert worths[1] == pytest.approx(0.4 / FULL, abs=0.12)
    assert worths[2] > 0.9


def test_a_judge_that_is_mostly_wrong_is_not_believed():
    assert worth(*judge_of(0.1, 2000)) == 0


@pytest.mark.parametrize("says", [1.0, -1.0, 0.0])
def test_a_judge_that_says_the_same_of_everything_moves_next_to_nothing(says):
    confidence, place, sign = judge_of(1.0, 500)
    assert worth(confidence, place, np.full_like(sign, says)) < 0.05


def test_few_verdicts_leave_the_prior():
    none = np.empty(0)
    assert worth(none, none, none) == pytest.approx(PRIOR / FULL)
    assert worth(np.full(9, np.nan), np.arange(9), np.ones(9)) == pytest.approx(PRIOR / FULL)
    assert worth(*judge_of(0.85, 4)) == pytest.approx(PRIOR / FULL, abs=0.15)
    # places that go against the confidences are no instrument
    assert worth(np.linspace(0, 1, 9), np.arange(9), np.ones(9)) == pytest.approx(PRIOR / FULL)
