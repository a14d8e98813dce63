"""How likely a column holds a value only because it holds so many, in plain Python: from its canonical values."""

from __future__ import annotations

import math
import re

LEVELS = 20


def numbers_of(values):
    return [value for value in values if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", value)]


def of_fractions(values):
    """The share of all numbers up to the largest and as fine as the finest, times the share of values that are any."""
    found = numbers_of(values)
    finest = max((len(value.partition(".")[2]) for value in found), default=0)
    if len(found) < 3 or not finest:
        return 0.0
    numbers = [float(value) for value in found]
    there = (max(numbers) - min(1, *numbers)) * 10**finest + 1
    return min(1, len(found) / there) * (len(found) / len(values))


def of_codes(values):
    """The share of all codes of as many letters, where nine of ten values have as many letters or digits."""
    best = max(range(1, 5), key=lambda n: sum(bool(re.fullmatch(rf"[a-z0-9]{{{n}}}", value)) for value in values))
    alike = [value for value in values if re.fullmatch(rf"[a-z0-9]{{{best}}}", value)]
    if len(alike) < 3 or 10 * len(alike) < 9 * len(values):
        return 0.0
    return sum(value.isalpha() for value in alike) / 26**best


def of_years(values, header):
    """The share of the years from first to last, where nine of ten values are years and the name says so."""
    words = re.split(r"[\W_]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", header).lower())
    if not {"year", "years", "yr", "jahr"} & set(words):
        return 0.0
    years = [int(value) for value in values if re.fullmatch(r"1[5-9][0-9]{2}|20[0-9]{2}", value)]
    if len(years) < 3 or 10 * len(years) < 9 * len(values):
        return 0.0
    return len(years) / (max(years) - min(years) + 1)


def fixed(values, header):
    return max(of_fractions(values), of_codes(values), of_years(values, header))


def whole_of(values):
    return [int(value) for value in numbers_of(values) if "." not in value and int(value) >= 1]


def dense_up_to(values, level):
    """The share of the whole numbers from 1 to 2^level, times the share of values that are numbers at all."""
    found = numbers_of(values)
    if len(found) < 3:
        return 0.0
    return min(1, sum(x <= 2**level for x in whole_of(values)) / 2**level) * (len(found) / len(values))


def level(values):
    """How far the whole numbers reach, as a power of 2; -1 where there are none."""
    whole = whole_of(values)
    return min(LEVELS - 1, math.floor(math.log2(max(whole)))) if whole else -1
