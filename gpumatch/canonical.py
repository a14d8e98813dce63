"""Texts and the columns that show them in, canonical values out: one text for a value, however it is written.

Case, accents and blanks are levelled everywhere. Whether a text is a number with a unit, a date or a numbered key is
decided by column, since one text alone does not tell: "1,5" is a number if its neighbours are, and "cust_42" is 42 if
all values begin with "cust_". Keys of the same things may begin with `cust_`, `customer-` or nothing at all; keys whose
prefixes begin with different letters number different things (`comparable`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# A column is read in one way if at least this share of its values can be.
_MOST = 0.8
_NEARLY_ALL = 0.9

_DASHES = r"^(:?-+:?|[\x{2010}-\x{2015}]+)$"
_MONEY = "[$€£¥]"
_UNIT = rf"(?P<after>%|\p{{L}}{{1,8}}|{_MONEY}|)"
_SIGNED = rf"^(?P<before>{_MONEY}?)\s*(?P<sign>[-+]?)\s*"
_POINT = rf"{_SIGNED}(?P<whole>\d{{1,3}}(?:[, ']\d{{3}})+|\d*)(?P<rest>(?:\.\d*)?)\s*{_UNIT}$"
_COMMA = rf"{_SIGNED}(?P<whole>\d{{1,3}}(?:[. ']\d{{3}})+|\d*)(?P<rest>(?:,\d*)?)\s*{_UNIT}$"
# Most numbers are as plain as these, and RE2 reads patterns of up to four groups ten times as fast.
_PLAIN = r"^(?P<sign>[-+]?)(?P<whole>\d*)(?P<rest>(?:{}\d*)?)$"
_MIDNIGHT = r"(?:[t ]0{1,2}:00(?::00)?(?:\.0+)?z?)?$"
_YMD = rf"^(?P<y>\d{{4}})[-/.](?P<m>\d{{1,2}})[-/.](?P<d>\d{{1,2}}){_MIDNIGHT}"
_DMY = rf"^(?P<d>\d{{1,2}})[-/.](?P<m>\d{{1,2}})[-/.](?P<y>\d{{4}}){_MIDNIGHT}"
_MDY = rf"^(?P<m>\d{{1,2}})[-/.](?P<d>\d{{1,2}})[-/.](?P<y>\d{{4}}){_MIDNIGHT}"
_MONTH = rf"(?P<m>{'|'.join(MONTHS)})[a-z]*\.?"
_WORDY = (rf"^(?P<d>\d{{1,2}})[ -]{_MONTH}[ ,-]+(?P<y>\d{{4}})$", rf"^{_MONTH} (?P<d>\d{{1,2}}),? (?P<y>\d{{4}})$")
_KEY = r"^(?P<prefix>\p{L}{1,12}[_\-#:. ]?)(?P<number>\d+)$"


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
) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return the canonical value of every entry.

    Args:
        distinct: D texts, none of them null.
        code, column: int64 [m], entry i says that the column column[i] of n shows the text code[i]; no entry twice.

    Returns:
        (texts, the distinct canonical values; place int64 [m], which of them each entry has; coded bool [n], columns of
        numbers, dates or numbered keys; letter uint32 [n], the first letter of the keys' prefix, 0 if there is none).
    """
    plain = folded(distinct)
    if not len(code):
        return plain.slice(0, 0), code, np.zeros(n, np.bool_), np.zeros(n, np.uint32)
    count = np.maximum(1, np.bincount(column, minlength=n))
    best, place, letter = np.zeros(n), code.copy(), np.zeros(n, np.uint32)
    parts, n_texts = [plain], len(plain)
    for reading in _readings(plain):
        key = np.full(len(plain), -1)
        key[reading.where] = reading.key
        agrees = _agrees(key[code], column, n)
        share = np.bincount(column[agrees], minlength=n) / count
        better = (share >= reading.share) & (share > best) & ~((count < 2) & reading.of_several)
        best[better] = share[better]
        at = np.full(len(plain), -1)
        at[reading.where] = np.arange(n_texts, n_texts + len(reading.where))
        chosen = better[column]
        place[chosen] = np.where(agrees[chosen], at[code[chosen]], code[chosen])
        letter[better] = 0
        if reading.letter is not None:
            read = np.flatnonzero(chosen & agrees)
            letter[column[read]] = reading.letter[at[code[read]] - n_texts]
        parts.append(reading.text)
        n_texts += len(reading.where)
    every = pa.concat_arrays(parts).dictionary_encode()
    same = every.indices.to_numpy().astype(np.int64)
    return every.dictionary, same[place], best > 0, letter


def comparable(letter: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tell whether values of two columns can mean the same, by the letters that `canonical` returns, bool [k]."""
    answer: np.ndarray = (letter == 0) | (other == 0) | (letter == other)
    return answer


def canonical_cells(cells: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the canonical value of each cell of one column, null where it holds none, and its letter, uint32 [1]."""
    encoded = pc.utf8_trim_whitespace(cells).dictionary_encode()
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used = np.flatnonzero(is_value(encoded.dictionary))
    texts, place, _, letter = canonical(encoded.dictionary, used, np.zeros(len(used), np.int64), 1)
    at = np.full(len(encoded.dictionary) + 1, -1)  # the last one for nulls
    at[used] = place
    return texts.take(pa.array(at[code], mask=at[code] < 0)), letter


def is_value(distinct: pa.Array) -> np.ndarray:
    """Tell values from trimmed cells that say nothing: blanks, and the dash rows of Markdown tables."""
    silent = pc.or_(pc.equal(pc.binary_length(distinct), 0), pc.match_substring_regex(distinct, _DASHES))
    answer: np.ndarray = ~silent.to_numpy(zero_copy_only=False).astype(bool)
    return answer


@dataclass(frozen=True)
class _Reading:
    """One way to read texts.

    where: int64 [k], the texts that can be read so; text: k texts, their canonical values then.
    key: int64 [k], what the values of a column must have in common; 0 goes with everything.
    share: the share of a column's values that must agree; of_several: one value alone is not enough.
    letter: uint32 [k], the first letter of each key's prefix; None if no keys are read.
    """

    where: np.ndarray
    text: pa.Array
    key: np.ndarray
    share: float = _MOST
    of_several: bool = False
    letter: np.ndarray | None = None


def _readings(texts: pa.Array) -> Iterator[_Reading]:
    """Yield the readings of folded texts; if two fit a column equally well, the first one counts."""
    digits = np.flatnonzero(pc.match_substring_regex(texts, "[0-9]").to_numpy(zero_copy_only=False))
    texts = texts.take(pa.array(digits))
    for pattern, separators, point in ((_POINT, "[, ']", "."), (_COMMA, "[. ']", ",")):
        yield _numbers(texts, digits, pattern, separators, point)
    spelled = [_dates(texts, digits, pattern) for pattern in (_YMD, *_WORDY)]
    for pattern in (_DMY, _MDY):
        dates = [*spelled, _dates(texts, digits, pattern)]
        yield _Reading(
            np.concatenate([where for where, _ in dates]),
            pa.concat_arrays([text for _, text in dates]),
            np.zeros(sum(len(where) for where, _ in dates), np.int64),
        )
    where, found = _matching(texts, digits, _KEY)
    prefixes = found["prefix"].dictionary_encode()
    prefix = prefixes.indices.to_numpy().astype(np.int64)
    letter = np.array([ord(one[0]) for one in prefixes.dictionary.to_pylist()], np.uint32)[prefix]
    yield _Reading(where, _without_zeros(found["number"]), prefix + 1, _NEARLY_ALL, of_several=True, letter=letter)


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
    minus = pc.and_(pc.equal(found["sign"], "-"), pc.not_equal(number, "0"))
    number = pc.binary_join_element_wise(pc.if_else(minus, "-", ""), number, "")
    units = pc.binary_join_element_wise(found["before"], found["after"], "").dictionary_encode()
    key = units.indices.to_numpy().astype(np.int64) + 1
    none = pc.index(units.dictionary, "").as_py()
    key[key == none + 1] = 0
    return _Reading(where, number, key)


def _without_zeros(digits: pa.Array) -> pa.Array:
    bare = pc.utf8_ltrim(digits, "0")
    return pc.if_else(pc.equal(bare, ""), "0", bare)


def _dates(texts: pa.Array, of: np.ndarray, pattern: str) -> tuple[np.ndarray, pa.Array]:
    """Return which texts are dates, and those as `2020-01-31`."""
    where, found = _matching(texts, of, pattern)
    named = pc.index_in(found["m"], pa.array(MONTHS)).cast(pa.int64())
    number = pc.if_else(pc.match_substring_regex(found["m"], "^[0-9]"), found["m"], "0").cast(pa.int64())
    month, day = pc.fill_null(pc.add(named, 1), number), found["d"].cast(pa.int64())
    there = pc.and_(
        pc.and_(pc.greater(month, 0), pc.less_equal(month, 12)), pc.and_(pc.greater(day, 0), pc.less_equal(day, 31))
    )
    two = [pc.utf8_lpad(part.cast(pa.string()), 2, "0") for part in (month, day)]
    iso = pc.binary_join_element_wise(found["y"], *two, "-")
    return where[there.to_numpy(zero_copy_only=False)], iso.filter(there)


def _agrees(key: np.ndarray, column: np.ndarray, n: int) -> np.ndarray:
    """Tell which entries have the key that most of their column's have, or key 0; key and column int64 [m]."""
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
    answer: np.ndarray = (key == 0) | ((key > 0) & (key == common[column]))
    return answer
