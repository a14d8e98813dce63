"""Two columns in; how likely one holds a value of the other only because it holds so many, and what is left of it, out.

Row numbers hold any small number, a list of all airports half of all codes of three letters. That such a column holds
the values of another one says nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpumatch.kernels.compiled import compiled


class Chance(NamedTuple):
    """What the columns of one side hold any value with.

    fixed: float32 [C], the chance of a value, whatever the other column is: of fractions, short codes and years.
    dense: float32 [C, L], what share of the whole numbers from 1 to 2^l each holds.
    level: int32 [C], the largest l, below L, up to which its whole numbers reach; -1 where it has none.
    keyed: bool [C], columns of numbered keys, which may well begin at 1: between two such there is no chance.
    """

    fixed: np.ndarray
    dense: np.ndarray
    level: np.ndarray
    keyed: np.ndarray


def chance_between(q: Chance, c: Chance, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the chance that one of two columns holds a value of the other, the larger of the two ways, float64 [P].

    Of whole numbers it is the share that a column holds of those up to where both reach.

    Args:
        left, right: int64 [P], columns of q and of c.
    """
    answer: np.ndarray = _between_all(left, right, q, c)
    return answer


def beyond_chance(share: np.ndarray, most: np.ndarray, chance: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return how much more of some sets is found in others than chance finds, as a share of what it does not, float64.

    (s - m·(c + 2·√(c·(1-c)/n))) / (1 - c), at least 0: of n values each is found with the chance c, give or take two
    standard deviations, and all of them would be m.

    Args:
        share, most, chance: float [P]; size: float [P], of the sets.
    """
    answer: np.ndarray = _beyond_of_all(*(np.asarray(one, np.float64) for one in (share, most, chance, size)))
    return answer


@compiled
def _between_all(left, right, q, c):
    out = np.empty(len(left))
    for p in range(len(left)):
        out[p] = between(left[p], right[p], q, c)
    return out


@compiled
def between(i, j, q, c):
    """Return the chance between column i of q and column j of c."""
    if q.keyed[i] and c.keyed[j]:
        return 0.0
    chance = np.float64(max(q.fixed[i], c.fixed[j]))
    level = min(q.level[i], c.level[j])
    if level >= 0:
        chance = max(chance, np.float64(q.dense[i, level]), np.float64(c.dense[j, level]))
    return chance


@compiled
def _beyond_of_all(share, most, chance, size):
    out = np.empty(len(share))
    for i in range(len(share)):
        out[i] = beyond(share[i], most[i], chance[i], size[i])
    return out


@compiled
def beyond(share, most, chance, size):
    """Return what is left of one share."""
    if chance == 0:
        return share
    found = chance + 2 * np.sqrt(chance * (1 - chance) / max(1, size))
    return max(0, share - most * found) / (1 - chance) if found < 1 else 0 * share
