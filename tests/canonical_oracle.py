"""The distinct values of a column in, their canonical forms out: `gpumatch.canonical` written down once more, in loops.

Takes nothing from gpumatch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from datetime import datetime, timedelta

MONEY = "$€£¥"
CODES = ["usd", "eur", "gbp", "jpy", "chf", "cad", "aud", "cny", "inr", "sek", "nok", "dkk", "pln", "brl", "mxn"]
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
    minus, text = text[:1] == "-", text.removeprefix("-")
    before = text[0] if text[:1] and text[0] in MONEY else text[:3] if text[:3] in CODES else ""
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
    return ("-" if (minus or sign == "-") and plain != "0" else "") + plain, before + after


def as_date(text, order):
    """(the date as year-month-day, or the moment in UTC, ""), or None."""
    month = f"({'|'.join(MONTHS)})[a-z]*\\.?"
    time = ""
    if found := re.fullmatch(r"([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})([t ][0-9].*)?", text):
        y, m, d, time = found[1], int(found[2]), int(found[3]), found[4]
    elif found := re.fullmatch(rf"([0-9]{{1,2}})[ -]{month}[ ,-]+([0-9]{{4}})", text):
        y, m, d = found[3], MONTHS.index(found[2]) + 1, int(found[1])
    elif found := re.fullmatch(rf"{month} ([0-9]{{1,2}}),? ([0-9]{{4}})", text):
        y, m, d = found[3], MONTHS.index(found[1]) + 1, int(found[2])
    elif found := re.fullmatch(r"([0-9]{1,2})([-/.])([0-9]{1,2})([-/.])([0-9]{4}|[0-9]{2})([t ][0-9].*)?", text):
        first, mark, second, other, y, time = found.groups()
        if len(y) == 2:
            dotted = mark == other == "." and len(first) == len(second) == 2 and order == "dmy"
            if not dotted and not mark == other == "/":
                return None
            y = int(y) + (1900 if int(y) >= 69 else 2000)
        m, d = (int(second), int(first)) if order == "dmy" else (int(first), int(second))
    else:
        return None
    return as_moment(int(y), m, d, time or "")


def as_moment(y, m, d, time):
    """(year-month-day hour:minute:second in UTC without what is zero at its end, ""), or None for what is no moment."""
    found = re.fullmatch(r"(?:[t ]([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?(?: ?(z|utc|[-+].*))?)?", time)
    zone = found and re.fullmatch("([-+])([0-9]{2})(?::?([0-9]{2}))?", found[5] or "z")
    if not found or ((found[5] or "z")[0] in "+-" and not zone):
        return None
    east = timedelta()
    try:
        moment = datetime(y, m, d, int(found[1] or 0), int(found[2] or 0), int(found[3] or 0))
        if zone:
            east = datetime.strptime(f"{zone[2]}:{zone[3] or '00'}", "%H:%M") - datetime(1900, 1, 1)
    except ValueError:
        return None
    moment -= -east if zone and zone[1] == "-" else east
    seconds = f":{moment.second:02}.{(found[4] or '').rstrip('0')}".rstrip(".")
    clock = f"{moment.hour:02}:{moment.minute:02}" + ("" if seconds == ":00" else seconds)
    date = moment.date().isoformat()
    return (date if clock == "00:00" else f"{date} {clock}"), ""


def as_compact_date(text):
    """(a date of eight digits as year-month-day, ""), or None."""
    if not re.fullmatch("[0-9]{8}", text) or not 1900 <= int(text[:4]) <= 2100:
        return None
    return as_moment(int(text[:4]), int(text[4:6]), int(text[6:]), "")


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


def of_unit(unit):
    """The letters that a unit is known by."""
    unit = {"$": "usd", "€": "eur", "£": "gbp", "¥": "jpy"}.get(unit, unit)
    return unit if len(unit) <= 3 else unit[0]


def apart(letters, other):
    """Whether what two columns' values begin with, or their units, are two things."""
    return any(one != another for one, another in zip(letters, other, strict=False))


def packed(letters):
    """Letters as a number."""
    return sum((ord(letter) % 127 + 1) * 256**i for i, letter in enumerate(letters))


def canonical(values):
    """(each value's canonical form; whether the column is coded, and by keys; four letters of their prefix or unit)."""
    plain = [fold(value) for value in values]
    digits = [bool(re.search("[0-9]", text)) for text in plain]
    written_out = [_written_out(text) for text in plain]

    def read(reading):
        return [reading(text) if said else None for text, said in zip(written_out, digits, strict=True)]

    point = read(lambda text: as_number(text, ", '’", "."))
    comma = read(lambda text: as_number(text, ". '’", ","))
    compact = read(as_compact_date)
    best, answer, keyed, letters = 0, plain, False, ""
    for found, least in (
        (compact, 0.9),
        (of_one_kind(point, len(values), loose=True), 0.8),
        (of_one_kind(comma, len(values), loose=True), 0.8),
        (read(lambda text: as_date(text, "dmy")), 0.8),
        (read(lambda text: as_date(text, "mdy")), 0.8),
        (of_one_kind(read(as_key), len(values), loose=False) if len(values) > 1 else [], 0.9),
    ):
        share = sum(one is not None for one in found) / max(1, len(values))
        if share >= least and share > best:
            best = share
            answer = [text if one is None else one[0] for text, one in zip(plain, found, strict=True)]
            keyed = least == 0.9 and found is not compact
            mark = next((one[1] for one in found if one and one[1]), "")
            letters = mark.rstrip("_-#:. ")[:4] if least == 0.9 else of_unit(mark)
            if found is compact:
                break
    return answer, best > 0, keyed, letters


def _written_out(text):
    """1.2e+3 as 1200, and any other text as it is."""
    if not re.fullmatch(r"[-+]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})e[-+]?[0-3]?[0-9]", text):
        return text
    number, _, power = text.partition("e")
    sign, whole, fraction = number[:1] if number[:1] in "+-" else "", *number.lstrip("+-").partition(".")[::2]
    digits, point = whole + fraction, len(whole) + int(power)
    digits = "0" * -point + digits if point < 0 else digits + "0" * (point - len(digits))
    point = max(0, point)
    return f"{sign}{digits[:point]}.{digits[point:]}"


def of_one_kind(found, n, loose):
    """Those (text, kind) whose kind most values have, or, if loose, that have none."""
    kinds = Counter(one[1] for one in found if one and (one[1] or not loose))
    usual = [kind for kind, times in kinds.items() if 2 * times >= n]
    wanted = max(usual, key=lambda kind: kinds[kind], default=None)
    return [one if one and (one[1] == wanted or (loose and not one[1])) else None for one in found]
