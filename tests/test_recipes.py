"""Recipes as numbers: what the score of each task is made of, and when two scores are the same score."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from gpumatch.recipes import DENSE_BLOCKS, LAYERS, SIGNALS, Recipe, recipe_for

TASKS = ("join", "union", "column")
EVERY = [recipe_for(task, layer) for task in TASKS for layer in LAYERS]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_join_is_the_plain_mean_of_four_lexical_signals(layer):
    recipe = recipe_for("join", layer)
    assert recipe.weights == {"name_overlap": 1, "name_cosine": 1, "lexical_maxsim": 1, "profile": 1}
    assert recipe.density == 0
    assert recipe.pool == 300
    assert not recipe.symmetric
    assert not recipe.dense


def test_a_union_weighs_eight_symmetric_signals_and_takes_off_a_quarter_of_the_density():
    recipe = recipe_for("union", "L1+L2")
    assert recipe.weights == {
        "name_jaccard": 1,
        "name_value_maxsim": 1,
        "dense_maxsim": 1,
        "pooled_columns": 0.5,
        "name_position": 0.5,
        "profile_both": 0.5,
        "column_count": 0.5,
        "header_text": 0.5,
    }
    assert recipe.density == 0.25
    assert recipe.pool == 300
    assert recipe.symmetric
    assert recipe.dense


def test_a_column_adds_equal_weights_to_the_column_formula():
    recipe = recipe_for("column", "L1+L2")
    third = 1 / 3
    assert recipe.weights == {
        "named_containment": 1,
        "name_cosine": 1,
        "name_grams": third,
        "value_tokens": third,
        "dense_column": third,
    } | {name: 0 for name in recipe.weights if name == "containment"}  # shown as evidence, not weighed
    assert recipe.density == 0
    assert recipe.dense
    assert not recipe.symmetric


@pytest.mark.parametrize("task", TASKS)
def test_l1_drops_the_dense_terms_and_nothing_else(task):
    full, lexical = recipe_for(task, "L1+L2"), recipe_for(task, "L1")
    assert lexical.weights == {name: w for name, w in full.weights.items() if SIGNALS[name].layer == "L1"}
    assert full.weights.keys() - lexical.weights.keys() == {
        "join": set(),
        "union": {"dense_maxsim", "pooled_columns", "header_text"},
        "column": {"dense_column"},
    }.get(task)
    assert lexical.blocks == {name: w for name, w in full.blocks.items() if name not in DENSE_BLOCKS}
    assert (lexical.task, lexical.density, lexical.pool) == (full.task, full.density, full.pool)
    assert not lexical.dense
    assert list(lexical.weights) == [name for name in full.weights if name in lexical.weights]


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: f"{recipe.task} {len(recipe.blocks)}")
def test_a_recipe_holds_only_what_there_is(recipe):
    assert recipe.weights.keys() <= SIGNALS.keys()
    assert all(weight >= 0 for weight in recipe.weights.values())
    assert all(weight > 0 for weight in recipe.blocks.values())
    assert recipe.blocks
    assert 0 <= recipe.density < 1
    assert recipe.pool >= 50
    # A recipe with pools is scored from either side, or twice.
    assert recipe.symmetric == all(SIGNALS[name].symmetric for name in recipe.weights)


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
        "containment",
        "named_containment",
    }


# --- key


CHANGES = {
    "task": "other",
    "weights": {"name_jaccard": 2},
    "density": 0.125,
    "blocks": {"header": 3},
    "pool": 7,
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
