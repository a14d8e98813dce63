"""Scores, confidences and verdicts in, how far each candidate moves out. Pure, and the same for every lake.

A verdict moves a candidate, and by as much every candidate that has the same column names (its twins: a model can
tell them apart no better than chance, and never puts one before another), by

    BAND · worth · 4·c·(1-c) · (+1 same, 0 related, -1 different)

c being the confidence of the best of the twins, and c·(1-c) the variance of what is not known: what is nearly sure
moves little, what is as likely as not moves most, and nothing moves by more than BAND.

*worth*, between 0 and 1, says how far this judge can be believed. It is not configured but estimated from how the
verdicts of a batch correlate with the confidences, which are calibrated. Of a judge who says yes to a share s of the
true matches and to a share f of the others, the share of yes is f + c·(s-f), so the slope over c is s-f (Youden's
index, Cancer 1950), 0 for one who guesses. A confidence has an error of its own, for which least squares would find too
flat a slope; so the place in the ranking, which correlates with the confidence and not with its error, serves as
instrumental variable (Reiersøl 1945; Wald 1940). The fewer the verdicts, the nearer the estimate is to PRIOR.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The most that a verdict moves a score by; chosen on the lakes at hand (bench/LOG.md).
BAND = 0.07
# What is believed of a judge beforehand: the mean and the standard deviation of its slope.
PRIOR, PRIOR_SD = 0.5, 0.25
# From this slope on a judge is believed fully: one who is right 85 times in 100.
FULL = 0.7
# How unsure a candidate is whose confidence is not known: as one with a confidence of .1.
UNKNOWN = 0.36

SIGN = {"same": 1.0, "related": 0.0, "different": -1.0}


@dataclass(frozen=True)
class Ranking:
    """The candidates of one query row, best first.

    scores: float64 [n], as search and evidence have them, falling.
    confidence: float64 [n], NaN where it is not known.
    schema: int64 [n], candidates with the same column names have the same number.
    """

    scores: np.ndarray
    confidence: np.ndarray
    schema: np.ndarray


def reach(confidence: np.ndarray) -> np.ndarray:
    """Return the most by which a verdict can move candidates, float64 [n]."""
    unsure = 4 * confidence * (1 - confidence)
    answer: np.ndarray = BAND * np.where(np.isnan(unsure), UNKNOWN, unsure)
    return answer


def worth(confidence: np.ndarray, place: np.ndarray, sign: np.ndarray) -> float:
    """Return how far a judge is believed, in [0, 1].

    Args:
        confidence: float64 [v], of the candidates that it judged, NaN where it is not known.
        place: int64 [v], their places in their rankings, from 0 on.
        sign: float64 [v], what it said: SIGN.
    """
    known = ~np.isnan(confidence)
    c, yes, z = confidence[known], (sign[known] + 1) / 2, -np.log1p(place[known])
    slope, certainty = 0.0, 0.0
    if len(c) > 2:
        c, yes, z = c - c.mean(), yes - yes.mean(), z - z.mean()
        together = float((c * z).sum())
        if together > 0:
            slope = float((yes * z).sum()) / together
            # A coin's variance, at least: verdicts that all say the same leave nothing over, and yet say little.
            noise = max(float(((yes - slope * c) ** 2).mean()), 0.25 / len(c))
            certainty = together**2 / (noise * float((z**2).sum()))
    prior = 1 / PRIOR_SD**2
    believed = (slope * certainty + PRIOR * prior) / (certainty + prior)
    return float(np.clip(believed / FULL, 0, 1))


def moves(ranking: Ranking, places: np.ndarray, sign: np.ndarray, worth: float) -> np.ndarray:
    """Return what to add to the scores of all candidates, float64 [n].

    Args:
        places: int64 [v], the candidates that were judged; of twins the mean of what was said of them counts.
        sign: float64 [v].
    """
    n = int(ranking.schema.max(initial=-1)) + 1
    schema = ranking.schema[places]
    mean = np.bincount(schema, sign, minlength=n) / np.maximum(1, np.bincount(schema, minlength=n))
    best = np.zeros(n, np.int64)
    best[ranking.schema[::-1]] = np.arange(len(ranking.schema))[::-1]
    answer: np.ndarray = (mean * reach(ranking.confidence[best]))[ranking.schema] * worth
    return answer


def judged(ranking: Ranking, places: np.ndarray) -> np.ndarray:
    """Return which of `places` (int64 [v]) speaks for each candidate, int64 [n], -1 for none."""
    of_schema = np.full(int(ranking.schema.max(initial=-1)) + 1, -1)
    of_schema[ranking.schema[places]] = np.arange(len(places))
    answer: np.ndarray = of_schema[ranking.schema]
    return answer
