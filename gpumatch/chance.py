"""Columns' canonical values in; how many of all numbers and codes each holds out, for `kernels.chance`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpumatch.text import spelled

# Fewer numbers or codes than that do not tell how likely others are.
_LEAST = 3
# Codes of more letters are so many that no column holds a part worth counting.
_CODE_LENGTH = 4
_NEARLY_ALL = 0.9
# Whole numbers are counted up to 2^0, 2^1, …, so many of them; where more are held, so they are in between.
LEVELS = 20
# Words of column names that tell years.
_YEAR = {"year", "years", "yr", "season", "jahr", "jahre", "jaar", "annee", "année", "annees", "années", "anno", "anni"}
_YEAR |= {"ano", "anos", "año", "años"}
_DECIMAL = r"^-?\d{1,9}(\.\d{1,6})?$"


def of_codes(texts: pa.Array, code: np.ndarray, column: np.ndarray, n: int) -> np.ndarray:
    """Return what share of all codes of as many letters each column of short codes holds, float32 [n]; of others 0.

    Args:
        texts: canonical values; code, column: int64 [m], ascending by column: which of them each of n columns has.
    """
    length = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    length[~_matches(texts, rf"^[a-z0-9]{{1,{_CODE_LENGTH}}}$")] = 0
    letters = _matches(texts, "^[a-z]+$")
    # Values of each column by length, and those of them that are letters.
    shape = n, _CODE_LENGTH + 1
    place = column * shape[1] + length[code]
    alike = np.bincount(place, minlength=n * shape[1]).reshape(shape)
    lettered = np.bincount(place[letters[code]], minlength=n * shape[1]).reshape(shape)
    alike[:, 0] = 0
    best = alike.argmax(axis=1)
    alike, lettered = alike[np.arange(n), best], lettered[np.arange(n), best]
    codes = (alike >= _LEAST) & (alike >= _NEARLY_ALL * np.bincount(column, minlength=n))
    return np.where(codes, lettered / 26.0**best, 0).astype(np.float32)


def of_numbers(
    texts: pa.Array, code: np.ndarray, column: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what share of all numbers each column holds; arguments as `of_codes`.

    Returns:
        (fractions float32 [n], of the numbers up to its largest that are as fine as its finest, where that is no whole
        one; dense float32 [n, LEVELS], of the whole ones from 1 to 2^l; level int32 [n], the largest l that it
        reaches, -1 without whole numbers). All are 0 if it has few numbers, and less if it has other values, too.
    """
    where = np.flatnonzero(_matches(texts, _DECIMAL))
    plain = texts.take(pa.array(where))
    number, decimals = np.full(len(texts), np.nan), np.zeros(len(texts))
    number[where] = pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False)
    length, point = (f.to_numpy(zero_copy_only=False) for f in (pc.binary_length(plain), pc.find_substring(plain, ".")))
    decimals[where] = np.where(point < 0, 0, length - point - 1)
    x, fine = number[code], decimals[code]
    there = ~np.isnan(x)
    among, x, fine = column[there], x[there], fine[there]
    found, count = np.bincount(among, minlength=n), np.bincount(column, minlength=n)
    of_all = np.where(found >= _LEAST, found / np.maximum(1, count), 0)
    low, high = extremes(among, x, n)
    _, finest = extremes(among, fine, n)
    numbers = np.where(finest > 0, (high - np.minimum(low, 1)) * 10**finest + 1, np.inf)
    fractions = np.nan_to_num(np.minimum(1, found / numbers) * of_all)
    whole = (fine == 0) & (x >= 1)
    _, reach = extremes(among[whole], x[whole], n)
    level = np.where(np.isnan(reach), -1, np.minimum(LEVELS - 1, np.log2(np.fmax(1, reach)))).astype(np.int32)
    # How many there are up to each 2^l: each counts from the first that is no smaller than it.
    first = np.ceil(np.log2(x[whole])).astype(np.int64)
    kept = first < LEVELS
    counts = np.bincount(among[whole][kept] * LEVELS + first[kept], minlength=n * LEVELS).reshape(n, LEVELS)
    dense = np.minimum(1, counts.cumsum(axis=1) / 2.0 ** np.arange(LEVELS)) * of_all[:, None]
    return fractions.astype(np.float32), dense.astype(np.float32), level


def of_years(texts: pa.Array, code: np.ndarray, column: np.ndarray, headers: Sequence[str]) -> np.ndarray:
    """Return what share of the years between its first and its last each column of years holds, float32 [n].

    Other columns have 0, and those whose name does not say so: ids may be numbers from 2000 on. Years are unlike other
    numbers: those of any two tables lie in the same few decades. Days do so too, but so few of them that the ones which
    two tables have in common say something (bench/LOG.md).
    """
    n, named = len(headers), np.array([not _YEAR.isdisjoint(spelled(header).split()) for header in headers], np.bool_)
    years = _matches(texts, r"^(1[5-9]|20)\d\d$")
    x = np.zeros(len(texts))
    x[years] = pc.cast(texts.filter(pa.array(years)), pa.float64()).to_numpy(zero_copy_only=False)
    some = years[code]
    found = np.bincount(column[some], minlength=n)
    low, high = extremes(column[some], x[code[some]], n)
    held = named & (found >= _LEAST) & (found >= _NEARLY_ALL * np.bincount(column, minlength=n))
    return np.where(held, found / (high - low + 1), 0).astype(np.float32)


def extremes(column: np.ndarray, x: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest x of each column, float64 [n], NaN for none; column int64 [m] ascending."""
    low, high = np.full(n, np.nan), np.full(n, np.nan)
    if len(column):
        first = np.flatnonzero(np.diff(column, prepend=-1))
        low[column[first]], high[column[first]] = np.minimum.reduceat(x, first), np.maximum.reduceat(x, first)
    return low, high


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    answer: np.ndarray = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return answer
