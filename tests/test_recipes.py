"""Recipes as numbers: what the score of each task is made of, and when two scores are the same score."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from gpumatch.recipes import (
    DENSE_BLOCKS,
    KEY,
    LAYERS,
    SIGNALS,
    TASKS,
    Recipe,
    contributions,
    recipe_for,
    signals_of,
    weighted,
)

EVERY = [recipe_for(task, layer) for task in (*TASKS, "text") for layer in LAYERS]


def test_a_join_weighs_names_values_profiles_and_vectors_from_the_querys_side():
    recipe = recipe_for("join", "L1+L2")
    assert recipe.weights == recipe_for("join", "L1").weights | {
        "dense_maxsim": 1,
        "dense_value_maxsim": 1,
        "dense_profile_maxsim": 0.5,
        "key_containment": 16,
    }
    assert recipe_for("join", "L1").weights == {
        "name_overlap": 1,
        "name_cosine": 1,
        "lexical_maxsim": 1,
        "profile": 1,
        "key_containment": 10,
    }
    assert recipe.density == 0
    assert not recipe.symmetric
    assert recipe.dense


def test_a_union_weighs_symmetric_signals_and_takes_off_a_quarter_of_the_density():
    recipe = recipe_for("union", "L1+L2")
    halves = {"name_value_maxsim", "profile_both", "name_position", "column_count", "header_text"}
    assert recipe.weights == {"dense_maxsim_both": 2, "dense_profile_maxsim": 1.5} | dict.fromkeys(halves, 0.5)
    lexical = recipe_for("union", "L1")
    halves -= {"header_text"}
    assert lexical.weights == {"lexical_maxsim_both": 2, "token_profile_maxsim": 1} | dict.fromkeys(halves, 0.5)
    for one in (recipe, lexical):
        assert one.density == 0.25
        assert one.symmetric
    assert recipe.dense


def test_a_column_weighs_names_and_values_alike():
    recipe = recipe_for("column", "L1+L2")
    ones = ("name_grams", "name_vectors", "value_grams", "value_maxsim", "value_cosine")
    shown = dict.fromkeys(("containment", "value_jaccard"), 0)  # as evidence, not weighed
    others = {"name_cosine": 2, "named_containment": 0.5, "rare_containment": 12}
    assert recipe.weights == others | dict.fromkeys(ones, 1) | shown
    assert recipe.density == 0
    assert recipe.dense
    assert not recipe.symmetric


@pytest.mark.parametrize("task", TASKS)
def test_l1_needs_no_vectors(task):
    full, lexical = recipe_for(task, "L1+L2"), recipe_for(task, "L1")
    assert all(SIGNALS[name].layer == "L1" for name in lexical.weights)
    assert lexical.blocks == {name: w for name, w in full.blocks.items() if name not in DENSE_BLOCKS}
    assert (lexical.task, lexical.density) == (full.task, full.density)
    assert full.dense
    assert not lexical.dense


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: f"{recipe.task} {len(recipe.blocks)}")
def test_a_recipe_holds_only_what_there_is(recipe):
    assert recipe.weights.keys() <= SIGNALS.keys()
    assert all(weight >= 0 for weight in recipe.weights.values())
    assert all(weight > 0 for weight in recipe.blocks.values())
    assert recipe.blocks
    assert 0 <= recipe.density < 1
    assert 50 <= recipe.least <= recipe.pool
    # A recipe with pools is scored from either side, or twice.
    assert recipe.symmetric == all(SIGNALS[name].symmetric for name in recipe.weights)


@pytest.mark.parametrize("task", ["join", "union"])
def test_vectors_let_search_keep_fewer_or_more_and_words_alone_do_not(task):
    full, lexical = recipe_for(task, "L1+L2"), recipe_for(task, "L1")
    assert (full.least, full.pool, full.cut) == (150, 600, 0.3)
    assert (lexical.least, lexical.pool, lexical.cut) == (300, 300, 0)
    assert replace(full, pool=7).least == 7
    for layer in LAYERS:
        assert recipe_for("column", layer).least == recipe_for("column", layer).pool == 200


def test_every_signal_says_what_it_is():
    for name, signal in SIGNALS.items():
        assert signal.name == name
        assert signal.layer in ("L1", "L2")
        assert signal.range[0] < signal.range[1]
        assert signal.formula
    assert {name for name, signal in SIGNALS.items() if not signal.symmetric} == {
        "name_overlap",
        "lexical_maxsim",
        "profile",
        "dense_maxsim",
        "dense_value_maxsim",
        "containment",
        "named_containment",
        "rare_containment",
        "value_maxsim",
        "value_overlap_maxsim",
    }


def test_a_text_weighs_names_and_vectors_before_values():
    assert recipe_for("text", "L1").weights == {"text_names": 1, "text_values": 0.5}
    assert recipe_for("text", "L1+L2").weights == {"text_names": 1, "text_values": 0.5, "text_header": 1}
    assert recipe_for("text", "L1").density == recipe_for("text", "L1").cut == recipe_for("text", "L1+L2").cut == 0


def test_the_signals_of_a_task_are_those_of_its_kind_and_layer():
    assert signals_of("join", "L1+L2") == signals_of("union", "L1+L2")
    for recipe in EVERY:
        known = signals_of(recipe.task, LAYERS[recipe.dense])
        assert recipe.weights.keys() <= set(known)
        assert all(SIGNALS[name].layer == "L1" for name in known) == (not recipe.dense)
        one = {"column": "name_grams", "text": "text_names"}.get(recipe.task, "profile")
        assert one in known
        assert known == tuple(name for name in SIGNALS if name in known)
    tables, columns, texts = (set(signals_of(task, "L1+L2")) for task in ("union", "column", "text"))
    assert tables & columns == {"name_cosine"}
    assert tables | columns | texts == SIGNALS.keys()
    assert not texts & (tables | columns)


# --- key


CHANGES = {
    "task": "other",
    "weights": {"name_cosine": 2},
    "density": 0.125,
    "blocks": {"header": 3},
    "pool": 7,
    "cut": 0.5,
}


def test_the_key_changes_with_every_field():
    assert CHANGES.keys() == {field.name for field in fields(Recipe)}
    base = recipe_for("union", "L1+L2")
    keys = [base.key(), *(replace(base, **{name: value}).key() for name, value in CHANGES.items())]
    assert len(set(keys)) == len(keys)
    for name in base.weights:
        assert replace(base, weights=base.weights | {name: base.weights[name] + 0.001}).key() != base.key()
    for name in base.blocks:
        assert replace(base, blocks=base.blocks | {name: base.blocks[name] + 0.001}).key() != base.key()


def test_the_key_is_the_same_for_the_same_recipe():
    base = recipe_for("union", "L1+L2")
    assert replace(base, weights=dict(reversed(base.weights.items()))).key() == base.key()
    assert recipe_for("union", "L1+L2").key() == base.key()
    assert len(base.key()) == 16
    assert int(base.key(), 16) >= 0


def test_layers_and_tasks_have_keys_of_their_own():
    assert len({recipe.key() for recipe in EVERY}) == len(EVERY)


# --- the weighted mean


@pytest.mark.parametrize("recipe", EVERY)
@pytest.mark.parametrize("n", [0, 1, 31, 123])
def test_weighted_is_the_weighted_mean(recipe, n):
    signals = np.random.default_rng(n).uniform(0, 1, (n, len(recipe.weights))).astype(np.float32)
    expected = [
        sum(weight * float(value) for weight, value in zip(recipe.weights.values(), row, strict=True))
        / sum(recipe.weights.values())
        for row in signals
    ]
    got = weighted(signals, recipe)
    assert got.dtype == np.float32
    assert got.shape == (n,)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)


def test_of_what_is_not_known_a_part_of_the_weight_counts():
    recipe = Recipe(task="t", weights={"name_cosine": 1, "profile": 3}, density=0, blocks={}, pool=5)
    signals = np.array([[0.5, np.nan], [np.nan, 0.5], [np.nan, np.nan], [1, 0]], np.float32)
    np.testing.assert_allclose(weighted(signals, recipe), [0.5 / 2.2, 1.5 / 3.4, 0, 0.25])


def test_a_key_that_is_not_known_is_left_out():
    recipe = Recipe(task="t", weights={"name_cosine": 1, "profile": 3, KEY: 4}, density=0, blocks={}, pool=5)
    nan = np.nan
    signals = [
        [0.5, 0.5, 1],
        [0.5, nan, 1],
        [nan, 0.5, 0],
        [0.5, nan, nan],
        [nan, nan, 0.5],
        [nan, nan, nan],
        [1, 0, nan],
    ]
    got = weighted(np.array(signals, np.float32), recipe)
    np.testing.assert_allclose(got, [0.75, 4.5 / 6.2, 1.5 / 7.4, 0.5 / 2.2, 2 / 5.6, 0, 0.25])
    for row, score in zip(signals, got, strict=True):
        known = {name: value for name, value in zip(recipe.weights, row, strict=True) if not np.isnan(value)}
        adds = contributions(recipe.weights, known.keys())
        assert adds.keys() == known.keys()
        assert sum(adds[name] * value for name, value in known.items()) == pytest.approx(score)


def test_weighted_of_ones_is_one_and_the_density_is_left_on():
    for recipe in EVERY:
        np.testing.assert_allclose(weighted(np.ones((3, len(recipe.weights)), np.float32), recipe), 1, rtol=1e-7)
