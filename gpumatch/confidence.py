"""Evidence of some matches in, how probable it is that each is a true one out: one formula, its parameters as data.

    confidence = σ(intercept + slope·(strength - min(max(density, floor), ceiling)))

A logistic curve over one number (Platt, in Advances in Large Margin Classifiers, MIT Press, 1999), the same for every
lake. *True* says that the annotator of a benchmark lists the match; their lists are samples, so more is true than the
probability says. Of the query rows that it was fitted on, half fit nothing in their lake: they come from elsewhere.

Pure: a match has the same confidence whatever else is asked, and however many matches are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpumatch.recipes import KEY, LAYERS, Recipe, weighted

DECIMALS = 4

# What strength is the weighted mean of; None for the score itself, density not taken off. A score orders the candidates
# of one query, and its level depends on the lake: where all tables have the same names, everything scores high. These
# signals were the ones whose level says the same on lakes that a curve was not fitted on (bench/LOG.md).
_OF_COLUMNS = {"name_grams": 1.0, "value_grams": 1, "value_maxsim": 1, "value_cosine": 1, "rare_containment": 3}
STRENGTH: dict[tuple[str, str], dict[str, float] | None] = {
    ("join", "L1"): {"lexical_maxsim": 1},
    ("join", "L1+L2"): {"dense_maxsim": 1, "dense_value_maxsim": 1, "dense_profile_maxsim": 1},
    ("union", "L1"): None,
    ("union", "L1+L2"): None,
    ("column", "L1"): _OF_COLUMNS,
    ("column", "L1+L2"): _OF_COLUMNS,
}

# No density counts as more, by layer: ten tables that are nearly the same (the months of a year) have one of nearly 1,
# and are matches all the same. With lower ones web tables that merely look alike would be, too.
CEILING = {"L1": 0.75, "L1+L2": 0.85}


@dataclass(frozen=True)
class Calibration:
    """The parameters of one task and layer.

    recipe: key of the recipe that they were fitted to; another recipe needs others.
    floor: the best strength that 19 of 20 queries which fit nothing stay below; no density counts as less, or a table
        that is like no other would be a match for anything. 0 where scores have no density.
    """

    recipe: str
    floor: float
    intercept: float
    slope: float


# Printed by bench/calibration.py; its docstring says on which lakes.
CALIBRATIONS = {
    ("join", "L1"): Calibration("5c22883c5c31e817", 0.0, -4.545, 5.618),
    ("join", "L1+L2"): Calibration("c6e377d7a582c90e", 0.0, -8.905, 10.218),
    ("union", "L1"): Calibration("79728a5db6687783", 0.244, -1.038, 16.258),
    ("union", "L1+L2"): Calibration("67a371d528af6860", 0.372, -0.91, 16.893),
    ("column", "L1"): Calibration("3782982faab67eed", 0.0, -4.626, 10.094),
    ("column", "L1+L2"): Calibration("5d9349e0751a279d", 0.0, -4.013, 8.777),
}


def strength(evidence: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the mean that STRENGTH tells, of the signals that are known, or a shared key, float32 [P]; 0 for nothing.

    The score itself where it tells none.

    Args:
        evidence: float [P, len(recipe.weights)], columns in the recipe's order, NaN for what is not known.
    """
    of = STRENGTH.get(_place(recipe))
    if of is None:
        return weighted(evidence, recipe)
    weights = np.array([of.get(name, 0.0) for name in recipe.weights])
    known = ~np.isnan(evidence) @ weights
    alike: np.ndarray = (np.nan_to_num(evidence) @ weights / np.where(known > 0, known, 1)).astype(np.float32)
    if KEY not in recipe.weights:
        return alike
    # Tables that share a key are a match whether or not they are alike: the two are added as probabilities are.
    key = np.nan_to_num(evidence[:, list(recipe.weights).index(KEY)]).astype(np.float32)
    either: np.ndarray = alike + key * (1 - alike)
    return either


def confidence(evidence: np.ndarray, recipe: Recipe, density: np.ndarray) -> np.ndarray:
    """Return how probable it is that each match is a true one, float64 [P], rounded to DECIMALS.

    NaN where the recipe is not the one that the parameters were fitted to: what other weights say is not known.

    Args:
        evidence: as in `strength`, as it is printed.
        density: float [P], of the candidates (`rank.densities`); 0 where the recipe takes none off.
    """
    return confidence_of(strength(evidence, recipe), recipe, density)


def confidence_of(strengths: np.ndarray, recipe: Recipe, density: np.ndarray) -> np.ndarray:
    """Return what `confidence` does for matches whose `strength` is known already, float32 [P], NaN where it is not."""
    fitted = CALIBRATIONS.get(_place(recipe))
    if fitted is None or recipe.key() != fitted.recipe:
        return np.full(len(strengths), np.nan)
    distance = margin(strengths, recipe, density, fitted.floor)
    return np.round(logistic(fitted.intercept + fitted.slope * distance.astype(np.float64)), DECIMALS)


def margin(strengths: np.ndarray, recipe: Recipe, density: np.ndarray, floor: float) -> np.ndarray:
    """Return by how much each match is stronger than what its candidate has with any table, float [P]."""
    answer: np.ndarray = strengths - np.clip(density, floor, CEILING[_place(recipe)[1]])
    return answer


def logistic(z: np.ndarray) -> np.ndarray:
    """Return σ(z) = 1/(1 + e^-z)."""
    answer: np.ndarray = 1 / (1 + np.exp(-z))
    return answer


def _place(recipe: Recipe) -> tuple[str, str]:
    return recipe.task, LAYERS[recipe.dense]
