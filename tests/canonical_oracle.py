"""The distinct values of a column in, their canonical forms out: `gpumatch.canonical` written down once more, in loops.

Takes nothing from gpumatch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

MONEY = "$€£¥"
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def fold(text):
    """Lower case, no accents, single blanks."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    # One code point for one, as Arrow does.
    text = "".join(c.lower()[0] for c in text)
    return re.sub(r"[\t\n\f\r ]+", " ", text).strip()


def as_number(text, separators, point):
    """(plain number, unit) or None."""
    before = text[0] if text[:1] and text[0] in MONEY else ""
    rest = text[len(before) :].lstrip("\t\n\f\r ")
    sign = rest[0] if rest[:1] in ("+", "-") else ""
    rest = rest[len(sign) :].lstrip("\t\n\f\r ")
    letters = trailing_letters(rest)
    after = rest[-1] if rest[-1:] and rest[-1] in f"%{MONEY}" else letters if len(letters) <= 8 else ""
    number = rest.removesuffix(after).rstrip("\t\n\f\r ")
    whole, _, fraction = number.partition(point)
    grouped = re.fullmatch(rf"[0-9]{{1,3}}([{separators}][0-9]{{3}})+", whole)
    if not grouped and not re.fullmatch("[0-9]*", whole):
        return None
    if not re.fullmatch("[0-9]*", fraction):
        return None
    whole = "".join(c for c in whole if c in "0123456789").lstrip("0") or "0"
    fraction = fraction.rstrip("0")
    plain = f"{whole}.{fraction}" if fraction else whole
    return ("-" if sign == "-" and plain != "0" else "") + plain, before + after


def as_date(text, order):
    """The date as year-month-day, or None."""
    numbers = r"([0-9]{1,2})[-/.]([0-9]{1,2})[-/.]([0-9]{4})"
    midnight = r"([t ]0{1,2}:00(:00)?(\.0+)?z?)?"
    month = f"({'|'.join(MONTHS)})[a-z]*\\.?"
    if found := re.fullmatch(r"([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})" + midnight, text):
        y, m, d = found[1], int(found[2]), int(found[3])
    elif found := re.fullmatch(rf"([0-9]{{1,2}})[ -]{month}[ ,-]+([0-9]{{4}})", text):
        y, m, d = found[3], MONTHS.index(found[2]) + 1, int(found[1])
    elif found := re.fullmatch(rf"{month} ([0-9]{{1,2}}),? ([0-9]{{4}})", text):
        y, m, d = found[3], MONTHS.index(found[1]) + 1, int(found[2])
    elif found := re.fullmatch(numbers + midnight, text):
        y, m, d = found[3], *((int(found[2]), int(found[1])) if order == "dmy" else (int(found[1]), int(found[2])))
    else:
        return None
    return f"{y}-{m:02}-{d:02}" if 1 <= m <= 12 and 1 <= d <= 31 else None


def as_key(text):
    """(number, prefix) of a numbered key, or None."""
    prefix = text.rstrip("0123456789")
    letters = prefix[:-1] if prefix[-1:] and prefix[-1] in "_-#:. " else prefix
    if not 1 <= len(letters) <= 12 or trailing_letters(letters) != letters or prefix == text:
        return None
    return text[len(prefix) :].lstrip("0") or "0", prefix


def trailing_letters(text):
    """The letters that a text ends with."""
    n = len(text)
    while n and unicodedata.category(text[n - 1])[0] == "L":
        n -= 1
    return text[n:]


def canonical(values):
    """(the canonical form of each value, whether the column is coded, the first letter of its keys or "")."""
    plain = [fold(value) for value in values]
    digits = [bool(re.search("[0-9]", text)) for text in plain]

    def read(reading):
        return [reading(text) if said else None for text, said in zip(plain, digits, strict=True)]

    point = read(lambda text: as_number(text, ", '", "."))
    comma = read(lambda text: as_number(text, ". '", ","))
    best, answer, letter = 0, plain, ""
    for found, least in (
        (of_one_kind(point, len(values), loose=True), 0.8),
        (of_one_kind(comma, len(values), loose=True), 0.8),
        (read(lambda text: as_date(text, "dmy")), 0.8),
        (read(lambda text: as_date(text, "mdy")), 0.8),
        (of_one_kind(read(as_key), len(values), loose=False) if len(values) > 1 else [], 0.9),
    ):
        share = sum(one is not None for one in found) / max(1, len(values))
        if share >= least and share > best:
            best = share
            answer = [text if one is None else one for text, one in zip(plain, found, strict=True)]
            letter = next(text[0] for text, one in zip(plain, found, strict=True) if one is not None)
            letter = letter if least == 0.9 else ""
    return answer, best > 0, letter


def of_one_kind(found, n, loose):
    """The texts of those (text, kind) whose kind most values have, or, if loose, that have none."""
    kinds = Counter(one[1] for one in found if one and (one[1] or not loose))
    usual = [kind for kind, times in kinds.items() if 2 * times >= n]
    wanted = max(usual, key=lambda kind: kinds[kind], default=None)
    return [one[0] if one and (one[1] == wanted or (loose and not one[1])) else None for one in found]
