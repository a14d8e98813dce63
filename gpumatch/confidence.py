"""Evidence of some matches in, how probable it is that each is a true one out: one formula, its parameters as data.

    confidence = σ(intercept + slope·(strength - max(density, floor)))

A logistic curve over one number (Platt, in Advances in Large Margin Classifiers, MIT Press, 1999), the same for every
lake. *True* says that the annotator of a benchmark lists the match; their lists are samples, so more is true than the
probability says. Of the query rows that it was fitted on, half fit nothing in their lake: they come from elsewhere.

Pure: a match has the same confidence whatever else is asked, and however many matches are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gpumatch.recipes import LAYERS, Recipe
from gpumatch.rescore import weighted

DECIMALS = 4

# What strength is the mean of; None for the score itself, density not taken off. A score orders the candidates of one
# query, and its level depends on the lake: where all tables have the same names, everything scores high. These signals
# were the ones whose level says the same on lakes that a curve was not fitted on (bench/LOG.md).
STRENGTH: dict[tuple[str, str], tuple[str, ...] | None] = {
    ("join", "L1"): ("lexical_maxsim",),
    ("join", "L1+L2"): ("dense_maxsim", "dense_value_maxsim", "dense_profile_maxsim"),
    ("union", "L1"): None,
    ("union", "L1+L2"): None,
    ("column", "L1"): ("name_grams", "value_grams", "value_maxsim", "value_cosine"),
    ("column", "L1+L2"): ("name_grams", "value_grams", "value_maxsim", "value_cosine"),
}


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
    ("join", "L1"): Calibration("cf32331b937f0ac1", 0.0, -4.59, 5.686),
    ("join", "L1+L2"): Calibration("59594dd2792334af", 0.0, -9.259, 10.662),
    ("union", "L1"): Calibration("79728a5db6687783", 0.243, -0.987, 15.411),
    ("union", "L1+L2"): Calibration("67a371d528af6860", 0.385, -0.814, 16.778),
    ("column", "L1"): Calibration("edfd00967764ff81", 0.0, -4.325, 7.725),
    ("column", "L1+L2"): Calibration("22c83813f8f8b3cc", 0.0, -2.664, 4.831),
}


def strength(evidence: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the mean of the signals that STRENGTH names, over those that are known (0 where none is), float32 [P].

    Args:
        evidence: float [P, len(recipe.weights)], columns in the recipe's order, NaN for what is not known.
    """
    names = STRENGTH.get(_place(recipe))
    weights = recipe.weights if names is None else {name: float(name in names) for name in recipe.weights}
    return weighted(evidence, replace(recipe, weights=weights))


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
    margin = strengths - np.maximum(density, fitted.floor)
    return np.round(logistic(fitted.intercept + fitted.slope * margin.astype(np.float64)), DECIMALS)


def logistic(z: np.ndarray) -> np.ndarray:
    """Return σ(z) = 1/(1 + e^-z)."""
    answer: np.ndarray = 1 / (1 + np.exp(-z))
    return answer


def _place(recipe: Recipe) -> tuple[str, str]:
    return recipe.task, LAYERS[recipe.dense]
