"""Texts and the columns that show them in, canonical values out: one text for a value, however it is written.

Case, accents and blanks are levelled everywhere. Whether a text is a number with a unit, a date or a numbered key is
decided by column, since one text alone does not tell: "1,5" is a number where its neighbours are, and "cust_42" is 42
where all values begin with "cust_". Keys of the same things begin with `cust_`, `customer-` or nothing at all; keys
with another prefix number other things, and numbers with another unit measure them (`comparable`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# A column is read in one way if at least this share of its values can be.
_MOST = 0.8
_NEARLY_ALL = 0.9

_DASHES = r"^(:?-+:?|[\x{2010}-\x{2015}]+)$"
# What money signs are short for, so that $5 and 5 USD have one unit.
_SIGNS = {"$": "usd", "€": "eur", "£": "gbp", "¥": "jpy"}
_MONEY = f"[{''.join(_SIGNS)}]"
_CODES = "usd|eur|gbp|jpy|chf|cad|aud|cny|inr|sek|nok|dkk|pln|brl|mxn"
_UNIT = rf"(?P<after>%|\p{{L}}{{1,8}}|{_MONEY}|)"
_SIGNED = rf"^(?P<minus>-?)(?P<before>(?:{_MONEY}|{_CODES})?)\s*(?P<sign>[-+]?)\s*"
_POINT = rf"{_SIGNED}(?P<whole>\d{{1,3}}(?:[, '’]\d{{3}})+|\d*)(?P<rest>(?:\.\d*)?)\s*{_UNIT}$"
_COMMA = rf"{_SIGNED}(?P<whole>\d{{1,3}}(?:[. '’]\d{{3}})+|\d*)(?P<rest>(?:,\d*)?)\s*{_UNIT}$"
# Most numbers are as plain as these, and RE2 reads patterns of up to four groups ten times as fast.
_PLAIN = r"^(?P<sign>[-+]?)(?P<whole>\d*)(?P<rest>(?:{}\d*)?)$"
_SCIENTIFIC = r"^[-+]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})[eE][-+]?[0-3]?\d$"
# Most texts are no dates, and patterns without groups tell so at a fraction of the price.
_DATE_LIKE = r"^\d{1,4}[-/.]\d{1,2}[-/.]\d"
_WORDY_LIKE = rf"^(?:\d{{1,2}}[ -])?(?:{'|'.join(MONTHS)})"
_TIME = r"(?P<time>(?:[t ]\d.*)?)$"
_YMD = rf"^(?P<y>\d{{4}})[-/.](?P<m>\d{{1,2}})[-/.](?P<d>\d{{1,2}}){_TIME}"
_DMY = rf"^(?P<d>\d{{1,2}})[-/.](?P<m>\d{{1,2}})[-/.](?P<y>\d{{4}}){_TIME}"
# 01-02-23 may begin with the year, and 1.2.23 be a version.
_SHORT = rf"^(?P<d>\d{{1,2}})/(?P<m>\d{{1,2}})/(?P<y>\d\d){_TIME}"
_DOTTED = rf"^(?P<d>\d\d)\.(?P<m>\d\d)\.(?P<y>\d\d){_TIME}"
_COMPACT = r"^(?P<y>19\d\d|20\d\d|2100)(?P<m>\d\d)(?P<d>\d\d)$"
_MONTH = rf"(?P<m>{'|'.join(MONTHS)})[a-z]*\.?"
_WORDY = (rf"^(?P<d>\d{{1,2}})[ -]{_MONTH}[ ,-]+(?P<y>\d{{4}})$", rf"^{_MONTH} (?P<d>\d{{1,2}}),? (?P<y>\d{{4}})$")
_CLOCK = (
    r"^.(?P<h>[01]\d?|2[0-3]?|[3-9]):(?P<min>[0-5]\d)(?P<s>(?::[0-5]\d(?:\.\d+)?)?)"
    r" ?(?P<zone>z|utc|[-+](?:[01]\d|2[0-3])(?::?[0-5]\d)?|)$"
)
# Years of two digits are the hundred from here on, as in C and Python.
_FIRST_YEAR = 1969
_KEY = r"^(?P<prefix>\p{L}{1,12}[_\-#:. ]?)(?P<number>\d+)$"
# So many letters of a mark are kept, a byte each.
_LETTERS = 4
_LOW, _HIGH = np.uint32(0x7F7F7F7F), np.uint32(0x80808080)


def folded(texts: pa.Array) -> pa.Array:
    """Return texts in Unicode's compatibility form, lower case, without accents, blanks collapsed and trimmed."""
    odd = np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False))
    if len(odd):
        bare = pc.replace_substring_regex(pc.utf8_normalize(texts.take(pa.array(odd)), "NFKD"), r"\p{Mn}+", "")
        mask = np.zeros(len(texts), np.bool_)
        mask[odd] = True
        texts = pc.replace_with_mask(texts, pa.array(mask), bare)
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), r"\s+", " "))


def canonical(
    distinct: pa.Array, code: np.ndarray, column: np.ndarray, n: int
) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the canonical value of every entry.

    Args:
        distinct: D texts, none of them null.
        code, column: int64 [m], entry i says that the column column[i] of n shows the text code[i]; no entry twice.

    Returns:
        (texts, distinct; place int64 [m], which of them an entry is; coded bool [n], columns that hold numbers, dates
        or numbered keys; keyed bool [n], those of numbered keys; letter uint32 [n], the first four of the keys' prefix
        or of the numbers' unit, 0 where there are none: for `comparable`).
    """
    plain = folded(distinct)
    if not len(code):
        return plain.slice(0, 0), code, np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.uint32)
    count = np.maximum(1, np.bincount(column, minlength=n))
    best, place, letter, keyed = np.zeros(n), code.copy(), np.zeros(n, np.uint32), np.zeros(n, np.bool_)
    parts, n_texts = [plain], len(plain)
    for reading in _readings(plain):
        key = np.full(len(plain), -1)
        key[reading.where] = reading.key
        agrees, common = _agrees(key[code], column, n)
        share = np.bincount(column[agrees], minlength=n) / count
        better = (share >= reading.share) & (share > best) & ~((count < 2) & reading.of_several)
        best[better] = 1 if reading.settles else share[better]
        at = np.full(len(plain), -1)
        at[reading.where] = np.arange(n_texts, n_texts + len(reading.where))
        chosen = better[column]
        place[chosen] = np.where(agrees[chosen], at[code[chosen]], code[chosen])
        letter[better], keyed[better] = 0, reading.of_several
        marked = np.flatnonzero(better & (common > 0))
        if len(marked):
            letter[marked] = [_packed(one) for one in reading.marks.take(pa.array(common[marked] - 1)).to_pylist()]
        parts.append(reading.text)
        n_texts += len(reading.where)
    every = pa.concat_arrays(parts).dictionary_encode()
    same = every.indices.to_numpy().astype(np.int64)
    return every.dictionary, same[place], best > 0, keyed, letter


def comparable(letter: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tell whether values of two columns can mean the same, by the letters that `canonical` gives, bool [k].

    They can where no byte that both have differs: `cust` is short for `customer`, and nothing at all fits all.
    """
    # No byte is above 127, so that adding 127 sets the highest bit of those that are not 0, and carries nothing.
    apart = (letter + _LOW) & (other + _LOW) & ((letter ^ other) + _LOW) & _HIGH
    answer: np.ndarray = apart == 0
    return answer


def _packed(mark: str) -> int:
    """Return the first letters of a prefix or unit, the first one in the lowest byte; 1 to 127 each, 0 for none."""
    letters = _SIGNS.get(mark, mark).rstrip("_-#:. ")[:_LETTERS]
    return int.from_bytes(bytes(ord(one) % 127 + 1 for one in letters), "little")


def canonical_cells(cells: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the canonical value of each cell of one column, null where it holds none, and its letter, uint32 [1]."""
    encoded = pc.utf8_trim_whitespace(cells).dictionary_encode()
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used = np.flatnonzero(is_value(encoded.dictionary))
    texts, place, _, _, letter = canonical(encoded.dictionary, used, np.zeros(len(used), np.int64), 1)
    at = np.full(len(encoded.dictionary) + 1, -1)  # the last one for nulls
    at[used] = place
    return texts.take(pa.array(at[code], mask=at[code] < 0)), letter


def written_out(texts: pa.Array) -> pa.Array:
    """Return texts with numbers like 1.2e+10 as 12000000000; Arrow writes floats so, from 1e10 on and below 1e-4."""
    where = np.flatnonzero(pc.match_substring_regex(texts, _SCIENTIFIC).fill_null(False).to_numpy(zero_copy_only=False))
    if not len(where):
        return texts
    mask = np.zeros(len(texts), np.bool_)
    mask[where] = True
    plain = [format(Decimal(text), "f") for text in texts.take(pa.array(where)).to_pylist()]
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(plain, texts.type))


def is_value(distinct: pa.Array) -> np.ndarray:
    """Tell values from trimmed cells that say nothing: blanks, and the dash rows of Markdown tables."""
    silent = pc.or_(pc.equal(pc.binary_length(distinct), 0), pc.match_substring_regex(distinct, _DASHES))
    answer: np.ndarray = ~silent.to_numpy(zero_copy_only=False).astype(bool)
    return answer


@dataclass(frozen=True)
class _Reading:
    """One way to read texts.

    where: int64 [k], the texts that can be read so; text: k texts, what they say then.
    key: int64 [k], what the values of a column have to have in common; 0 goes with everything.
    marks: the prefix or unit that each key from 1 on stands for.
    share: the share of a column's values that must agree; of_several: one value alone is not enough; settles: where it
        fits, no reading after it is tried.
    """

    where: np.ndarray
    text: pa.Array
    key: np.ndarray
    marks: pa.Array
    share: float = _MOST
    of_several: bool = False
    settles: bool = False


def _readings(texts: pa.Array) -> Iterator[_Reading]:
    """Yield the readings of folded texts; where two fit a column equally well, the first one counts."""
    numbered, where = _such(texts, np.arange(len(texts)), "[0-9]")
    digits = written_out(numbered), where
    # Most eight digits are no date, so that a column of other numbers is not taken for dates.
    eight = np.flatnonzero(pc.equal(pc.binary_length(digits[0]), 8).to_numpy(zero_copy_only=False))
    compact = _matching(digits[0].take(pa.array(eight)), digits[1][eight], _COMPACT)
    yield _dates_of([_on_calendar(*compact)], _NEARLY_ALL, settles=True)
    for pattern, separators, point in ((_POINT, "[, '’]", "."), (_COMMA, "[. '’]", ",")):
        yield _numbers(*digits, pattern, separators, point)
    like, worded = (_such(*digits, pattern) for pattern in (_DATE_LIKE, _WORDY_LIKE))
    clear = [_on_calendar(*_matching(*like, _YMD)), _on_calendar(*_matching(*worded, *_WORDY))]
    where, found = _matching(*like, _DMY, _SHORT)
    yield _dates_of([*clear, _on_calendar(where, found), _on_calendar(*_matching(*like, _DOTTED))])
    yield _dates_of([*clear, _on_calendar(where, found | {"d": found["m"], "m": found["d"]})])
    where, found = _matching(*digits, _KEY)
    prefixes = found["prefix"].dictionary_encode()
    key = prefixes.indices.to_numpy().astype(np.int64) + 1
    number = _without_zeros(found["number"])
    yield _Reading(where, number, key, prefixes.dictionary, _NEARLY_ALL, of_several=True)


def _such(texts: pa.Array, of: np.ndarray, pattern: str) -> tuple[pa.Array, np.ndarray]:
    """Return the texts that hold a match, and their numbers in `of`."""
    where = np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))
    return texts.take(pa.array(where)), of[where]


def _matching(texts: pa.Array, of: np.ndarray, *patterns: str) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """Return which texts match (their numbers in `of`), and their groups by name.

    Args:
        patterns: each is tried on the texts that none before it matched; the last one has all groups, and groups that
            another one lacks are empty.
    """
    where, groups = [], []
    for pattern in patterns:
        found = pc.extract_regex(texts, pattern)
        valid = found.is_valid()
        matched = valid.to_numpy(zero_copy_only=False)
        where.append(of[matched])
        names = [found.type.field(i).name for i in range(found.type.num_fields)]
        groups.append(dict(zip(names, found.filter(valid).flatten(), strict=True)))
        if pattern != patterns[-1]:
            texts, of = texts.filter(pc.invert(valid)), of[~matched]
    parts = list(zip(groups, map(len, where), strict=True))
    columns = {name: pa.concat_arrays([some.get(name, pa.repeat("", n)) for some, n in parts]) for name in names}
    return np.concatenate(where), columns


def _numbers(texts: pa.Array, of: np.ndarray, pattern: str, separators: str, point: str) -> _Reading:
    """Read numbers; their canonical form has no separators, no outer zeros, `.` as decimal point, no unit, no plus."""
    where, found = _matching(texts, of, _PLAIN.format(re.escape(point)), pattern)
    whole = _without_zeros(pc.replace_substring_regex(found["whole"], separators, ""))
    rest = pc.utf8_rtrim(pc.utf8_ltrim(found["rest"], point), "0")
    rest = pc.if_else(pc.equal(rest, ""), "", pc.binary_join_element_wise(".", rest, ""))
    number = pc.binary_join_element_wise(whole, rest, "")
    minus = pc.or_(pc.equal(found["minus"], "-"), pc.equal(found["sign"], "-"))
    minus = pc.and_(minus, pc.not_equal(number, "0"))
    number = pc.binary_join_element_wise(pc.if_else(minus, "-", ""), number, "")
    units = pc.binary_join_element_wise(found["before"], found["after"], "").dictionary_encode()
    key = units.indices.to_numpy().astype(np.int64) + 1
    none = pc.index(units.dictionary, "").as_py()
    key[key == none + 1] = 0
    # An abbreviation counts whole, but of a word only the first letter: "kilograms" begins otherwise than "kg".
    marks = pc.replace_substring_regex(units.dictionary, "^(.).{3,}$", r"\1")
    return _Reading(where, number, key, marks)


def _without_zeros(digits: pa.Array) -> pa.Array:
    bare = pc.utf8_ltrim(digits, "0")
    return pc.if_else(pc.equal(bare, ""), "0", bare)


def _dates_of(parts: list[tuple[np.ndarray, pa.Array]], share: float = _MOST, settles: bool = False) -> _Reading:
    where = np.concatenate([where for where, _ in parts])
    texts = pa.concat_arrays([text for _, text in parts])
    return _Reading(where, texts, np.zeros(len(where), np.int64), pa.array([], pa.string()), share, settles=settles)


def _on_calendar(where: np.ndarray, found: dict[str, pa.Array]) -> tuple[np.ndarray, pa.Array]:
    """Return which texts are dates, and those as `2020-01-31`, or as `2020-01-31 23:59:01.5` in UTC.

    Args:
        where: int64 [k]; found: the k texts' year, month, day and, where the pattern has it, time.
    """
    if not len(where):
        return where, pa.array([], pa.string())
    named = pc.index_in(found["m"], pa.array(MONTHS)).cast(pa.int64())
    number = pc.if_else(pc.match_substring_regex(found["m"], "^[0-9]"), found["m"], "0").cast(pa.int64())
    month = pc.fill_null(pc.add(named, 1), number).to_numpy()
    year, day = (found[part].cast(pa.int64()).to_numpy() for part in ("y", "d"))
    short = pc.equal(pc.binary_length(found["y"]), 2).to_numpy(zero_copy_only=False)
    year = np.where(short, (year - _FIRST_YEAR) % 100 + _FIRST_YEAR, year)
    first = ((year - 1970) * 12 + month - 1).astype("M8[M]")
    date = first.astype("M8[D]") + (day - 1)
    there = (month > 0) & (month <= 12) & (date.astype("M8[M]") == first)
    if "time" not in found:
        return where[there], _days(date[there])
    bare = pc.equal(found["time"], "").to_numpy(zero_copy_only=False)
    timed = np.flatnonzero(there & ~bare)
    at, moments = _moments(date[timed], found["time"].take(pa.array(timed)))
    there &= bare
    return np.concatenate([where[there], where[timed[at]]]), pa.concat_arrays([_days(date[there]), moments])


def _days(date: np.ndarray) -> pa.Array:
    return pa.array(date.astype(np.int32), pa.date32()).cast(pa.string())


def _moments(date: np.ndarray, time: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return which of some times of the day can be read, and their moments; what is 0 at the end is left out."""
    at, found = _matching(time, np.arange(len(time)), _CLOCK)
    hour, minute = (found[part].cast(pa.int64()).to_numpy() for part in ("h", "min"))
    zone = pc.replace_substring(pc.replace_substring_regex(found["zone"], "[a-z:]", ""), "+", "0")
    east = pc.utf8_rpad(zone, 5, "0").cast(pa.int64()).to_numpy()  # hours and minutes, 530 for +05:30
    minute = hour * 60 + minute - np.sign(east) * (np.abs(east) // 100 * 60 + np.abs(east) % 100)
    moment = pa.array(date[at].astype("M8[s]") + minute * 60).cast(pa.string())
    second = pc.replace_substring_regex(found["s"], r"^((?::\d\d)?(?:\.\d*[1-9])?)\.?0*$", r"\1")
    clock = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(moment, -9, -3), pc.if_else(pc.equal(second, ":00"), "", second), ""
    )
    clock = pc.if_else(pc.equal(clock, " 00:00"), "", clock)
    return at, pc.binary_join_element_wise(pc.utf8_slice_codeunits(moment, 0, -9), clock, "")


def _agrees(key: np.ndarray, column: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tell which entries have what most of their column's have in common, or 0, and what that is.

    Args:
        key, column: int64 [m].

    Returns:
        (agrees bool [m]; common int64 [n], -1 where there is nothing).
    """
    some = np.flatnonzero(key > 0)
    common = np.full(n, -1)
    if len(some):
        width = int(key.max()) + 1
        pair, times = np.unique(column[some] * width + key[some], return_counts=True)
        owner = pair // width
        usual = 2 * times >= np.bincount(column, minlength=n)[owner]  # "12a" among numbers is not 12
        owner, pair, times = owner[usual], pair[usual], times[usual]
        order = np.lexsort((-pair, times))  # of equally common ones the first
        common[owner[order]] = pair[order] % width
    return (key == 0) | ((key > 0) & (key == common[column])), common
