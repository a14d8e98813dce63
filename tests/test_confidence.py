"""A confidence is the formula with the shipped parameters, rises with evidence, and says something on real lakes."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumatch import pipeline
from gpumatch.confidence import CALIBRATIONS, CEILING, STRENGTH, confidence, strength
from gpumatch.config import Settings
from gpumatch.demo import lake_path
from gpumatch.recipes import LAYERS, SIGNALS, UNKNOWN, recipe_for
from gpumatch.records import load_truth
from gpumatch.run import Run

PLACES = list(product(("join", "union", "column"), LAYERS))


@pytest.fixture(params=PLACES, ids="-".join)
def recipe(request):
    return recipe_for(*request.param)


def evidence_of(recipe, value=0.5, **some):
    return np.array([[some.get(name, value) for name in recipe.weights]], np.float64)


def counted(recipe):
    """The signals that a recipe's confidence is read off."""
    of = STRENGTH[recipe.task, LAYERS[recipe.dense]] or recipe.weights
    return [name for name, weight in of.items() if weight] + ["key_containment"] * (recipe.task == "join")


def one(recipe, density=0.0, value=0.5, **some):
    return float(confidence(evidence_of(recipe, value, **some), recipe, np.array([density]))[0])


def by_hand(recipe, values, density):
    """Return the confidence straight from the formula, over Python's floats."""
    weights = STRENGTH[recipe.task, LAYERS[recipe.dense]] or recipe.weights
    known = {name: weight for name, weight in weights.items() if not math.isnan(values[name])}
    total = sum(known.values())
    if STRENGTH[recipe.task, LAYERS[recipe.dense]] is None:  # the score itself
        total += UNKNOWN * sum(weight for name, weight in weights.items() if name not in known)
    mean = sum(weight * values[name] for name, weight in known.items()) / total if total else 0.0
    key = values.get("key_containment", 0.0)
    mean = mean if math.isnan(key) else 1 - (1 - mean) * (1 - key)
    fitted = CALIBRATIONS[recipe.task, LAYERS[recipe.dense]]
    usual = min(max(density, fitted.floor), CEILING[LAYERS[recipe.dense]])
    return 1 / (1 + math.exp(-fitted.intercept - fitted.slope * (mean - usual)))


@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_it_is_the_formula(place, seed):
    recipe, rng = recipe_for(*place), np.random.default_rng(seed)
    evidence = np.round(rng.random((20, len(recipe.weights))), 4)
    evidence[rng.random(evidence.shape) < 0.2] = np.nan
    density = rng.random(20)
    found = confidence(evidence, recipe, density)
    expected = [
        by_hand(recipe, dict(zip(recipe.weights, values, strict=True)), one)
        for values, one in zip(evidence.tolist(), density.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-5)  # rounded to four decimals
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found, np.round(found, 4))


def test_it_rises_with_each_signal_that_counts_and_with_no_other(recipe):
    for name, signal in SIGNALS.items():
        if name in recipe.weights:
            low, high = (one(recipe, density=0.45, **{name: end}) for end in signal.range)
            assert (low < high) == (name in counted(recipe)), name
            assert low <= high


def test_it_falls_with_density_above_the_floor_only(recipe):
    floor = CALIBRATIONS[recipe.task, LAYERS[recipe.dense]].floor
    assert one(recipe, floor + 0.2) < one(recipe, floor + 0.1) < one(recipe, floor)
    assert one(recipe, floor / 2) == one(recipe, 0.0) == one(recipe, floor)


def test_what_is_not_known_is_left_out_unless_it_is_the_score(recipe):
    first, *rest = counted(recipe)
    left = 0.5 if set(rest) - {"key_containment"} else 0.0
    if STRENGTH[recipe.task, LAYERS[recipe.dense]] is None:
        known = sum(recipe.weights.values()) - recipe.weights[first]
        left *= known / (known + UNKNOWN * recipe.weights[first])
    assert strength(evidence_of(recipe, key_containment=0, **{first: math.nan}), recipe) == pytest.approx(left)
    nothing = dict.fromkeys(recipe.weights, math.nan)
    assert strength(evidence_of(recipe, **nothing), recipe) == 0
    assert one(recipe, **nothing) < 0.1


def test_no_matches(recipe):
    assert confidence(evidence_of(recipe)[:0], recipe, np.empty(0)).shape == (0,)


def test_evidence_tells_matches_apart(recipe):
    """All alike is more probable than not, and what is like nothing is no match."""
    usual = 0.5 if recipe.density else 0.0
    assert one(recipe, usual, value=1.0) > 0.5 > one(recipe, usual, value=0.3)
    assert one(recipe, value=0.05) < 0.1


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_the_parameters_were_fitted_to_the_recipe_that_is_there(place):
    fitted = CALIBRATIONS[place]
    assert fitted.recipe == recipe_for(*place).key(), "run bench/calibration.py and ship the parameters that it prints"
    assert fitted.slope > 0
    assert (fitted.floor > 0) == (recipe_for(*place).density > 0)
    assert CALIBRATIONS.keys() == STRENGTH.keys()


@pytest.mark.parametrize("task", ["join", "union"])
def test_on_the_lakes_that_ship_it_beats_their_own_rate(task, tmp_path):
    """Of whole rankings; the share that is true is what somebody would say who knew it and nothing else."""
    run = Run(Settings(task=task, layer="L1", k=0, cache_dir=tmp_path))
    truth = {(row["query_table"], row["candidate_table"]) for row in load_truth(lake_path(task) / "ground_truth.json")}
    said, true = [], []
    for row in pipeline.match(lake_path(task), run):
        said += [match["confidence"] for match in row["matches"]]
        true += [(row["query_table"], match["table"]) in truth for match in row["matches"]]
    said, true = np.array(said), np.array(true)
    assert np.mean((said - true) ** 2) < 0.9 * np.mean((true.mean() - true) ** 2)


def test_nothing_fits_is_an_answer(tmp_path):
    """Every query of another kind of table is left without a match, and its line is there."""
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "songs.csv").write_text("title,artist\nHelp!,Beatles\nMichelle,Beatles\n")
    run = Run(Settings(task="union", layer="L1", min_confidence=0.3, cache_dir=tmp_path / "cache"))
    rows = list(pipeline.match(lake_path("union"), run, queries=tmp_path / "queries"))
    assert json.loads(json.dumps(rows)) == [
        {"query_table": "songs.csv", "query_column": None, "task": "union", "pool": 288, "matches": []}
    ]
