"""Rankings in, the candidates worth asking about out: those whose place is uncertain and can still change.

Of candidates with the same column names the first stands for all. One can still change places if a verdict on it and
one on a neighbour of another schema, both at their most, would carry them past each other. The first of these are asked
about, in one request: a query costs one call, or none.

Pure: the same rankings are asked about the same, whatever has been answered so far.
"""

from __future__ import annotations

import numpy as np

from gpumatch.judge.fusion import UNKNOWN, Ranking, reach

# One in so many of a query's candidates is asked about; never fewer than FEWEST, never more than MOST.
SHARE, FEWEST, MOST = 7, 10, 48
# So many of those are the last ones of the ranking, which are known to be different: by what a judge says of them one
# learns what its yes is worth.
CONTROLS = 3


def candidates(ranking: Ranking) -> np.ndarray:
    """Return the places of the candidates to ask about, int64 [v], rising; none where nothing can change."""
    first = np.sort(np.unique(ranking.schema, return_index=True)[1])
    can = np.zeros(len(ranking.scores), bool)
    moves = reach(ranking.confidence)
    # Neighbours of another schema, on either side: twins that stand between do not change places with each other.
    last = np.flatnonzero(np.diff(ranking.schema))
    gap = ranking.scores[last] - ranking.scores[last + 1]
    near = gap <= moves[last] + moves[last + 1]
    can[last[near]] = can[last[near] + 1] = True
    open_schemas = np.unique(ranking.schema[can])
    uncertain = first[np.isin(ranking.schema[first], open_schemas)]
    if not len(uncertain):
        return uncertain
    n = most(len(ranking.scores))
    chosen = uncertain if len(uncertain) <= n - CONTROLS else uncertain[: n - CONTROLS]
    controls = first[~np.isin(first, chosen)][-CONTROLS:]
    return np.sort(np.concatenate([chosen, controls]))


def most(n: int) -> int:
    """Return how many of n candidates one request may ask about."""
    return min(MOST, max(FEWEST, -(-n // SHARE)))


def uncertainty(ranking: Ranking, places: np.ndarray) -> float:
    """Return Σ c·(1-c) over the places, the variance of how many of them are true: what a call can clear up."""
    c = ranking.confidence[places]
    return float(np.where(np.isnan(c), UNKNOWN / 4, c * (1 - c)).sum())
