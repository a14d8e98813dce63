"""bench/judge_sim.py measures what it says: MAP as `gpumatch eval` has it, policies by their calls, the real fusion."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from gpumatch.judge.fusion import Ranking
from gpumatch.judge.judge import Wanted
from gpumatch.judge.prompt import Question, Shown
from gpumatch.judge.selection import most
from gpumatch.metrics import evaluate


@pytest.fixture(scope="module")
def sim():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
        yield importlib.import_module("judge_sim")


def queries(sim, n, width=60, seed=0):
    """n queries whose true survivors stand rather at the top, with confidences that are about right."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        chance = 0.7 * 0.9 ** np.arange(width)
        scores = np.sort(0.5 + 0.2 * chance + rng.normal(0, 0.01, width))[::-1]
        true = rng.random(width) < chance
        true[0] |= not true.any()
        texts = [Shown(f'{{"i":{i},"j":{j}}}') for j in range(width)]

        def question(places, texts=texts, i=i):
            return Question("union", Shown(f'{{"q":{i}}}'), [texts[j] for j in places])

        ranking = Ranking(np.round(scores, 6), chance, np.arange(width))
        made.append(sim.Query(Wanted(ranking, question), true, int(true.sum()) + int(rng.integers(2))))
    return made


def test_average_precision_is_that_of_eval(sim):
    for i, query in enumerate(queries(sim, 6)):
        names = [f"c{j}" for j in range(len(query.true))]
        scores = query.ranking.scores + np.random.default_rng(i).normal(0, 0.05, len(names))
        ranked = sorted(zip((-np.round(scores, 6)).tolist(), range(len(names)), names, strict=True))
        rows = [{"query_table": "q", "query_column": None, "task": "union",
                 "matches": [{"table": name, "score": -score} for score, _, name in ranked]}]  # fmt: skip
        listed = [name for name, true in zip(names, query.true, strict=True) if true]
        listed += [f"elsewhere{j}" for j in range(query.n_true - len(listed))]
        truth = [{"query_table": "q", "candidate_table": name} for name in listed]
        assert sim.average_precision(query, scores) == pytest.approx(evaluate(rows, truth, resamples=1).means["MAP"])


def test_judges_are_right_as_often_as_told(sim):
    made = queries(sim, 40)
    for accuracy in (0.0, 0.5, 0.85, 1.0):
        right = np.concatenate([(s > 0) == q.true for s, q in zip(sim.said(made, accuracy, 1), made, strict=True)])
        assert right.mean() == pytest.approx(accuracy, abs=0.03)
    assert not np.array_equal(sim.said(made, 0.5, 1)[0], sim.said(made, 0.5, 2)[0])


def test_policies_send_what_they_say(sim):
    made = queries(sim, 10)
    every = sim.requests_of("all", made, 0, 0)
    assert sorted((i, int(place)) for i, places in every for place in places) == [
        (i, j) for i in range(10) for j in range(60)
    ]
    assert max(len(places) for _, places in every) == most(60)
    for policy in ("random", "margin", "ours"):
        for n in (0, 1, 5, 10):
            got = sim.requests_of(policy, made, n, 3)
            assert len(got) == n
            assert all(len(places) <= most(60) for _, places in got)
    ours = sim.requests_of("ours", made, 10**9, 0)
    assert sorted(i for i, _ in ours) == list(range(10))


def test_a_good_judge_gains_and_a_guess_loses_next_to_nothing(sim):
    made = queries(sim, 60)
    lines = {(line["policy"], line["judge"], round(line["share"], 2)): line for a in (0.5, 0.85) for line in
             ({"judge": a} | line for line in sim.measured(made, a, 3))}  # fmt: skip
    good = [line for (policy, judge, _), line in lines.items() if policy == "ours" and judge == 0.85]
    guess = [line for (policy, judge, _), line in lines.items() if policy == "ours" and judge == 0.5]
    assert max(line["gain"] for line in good) > 0.02
    assert min(line["gain"] for line in guess) > -0.01


def test_the_pool_and_the_shortcut_agree(sim):
    sim.check_served(queries(sim, 8), 0)
