"""Strings in, normal forms and 64-bit hashes out: the one place that says when two names are the same name.

Pure; no files, no arrays of meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import xxhash

# A UTF-8 byte order mark, and the same three bytes when a file was once decoded as Latin-1.
_MARKS = re.compile("\ufeff|\u00ef\u00bb\u00bf")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_BLANKS = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
# Names that say nothing wherever they are: without letters and digits, and what pandas calls a column without a name.
_BLANK = re.compile(r"\W*|unnamed:?[ _]*\d*")
_NUMBERED = re.compile(r"(.*?)(\d{1,4})")
_ONLY_A_NUMBER = re.compile(r"(col|column|field|var|attr|attribute|feature|v|c|x|f|_c)?[ _-]?\d+")


def normalise_name(header: str) -> str:
    """Return a column name's normal form: lower case, marks and outer quotes stripped, blanks collapsed."""
    bare = _MARKS.sub("", header).strip().strip(_QUOTES)
    return _BLANKS.sub(" ", bare).strip().lower()


def words(text: str) -> list[str]:
    """Return the word tokens of an already lower-cased text (runs of letters, digits and underscores)."""
    return _WORD.findall(text)


def name_grams(name: str) -> list[str]:
    """Return the character 3-, 4- and 5-grams of a normal name, one blank added on each side.

    A name that is shorter than a gram is its own gram.
    """
    padded = f" {name} "
    return [padded[i : i + n] for n in (3, 4, 5) for i in range(max(1, len(padded) - n + 1))]


def spelled(header: str) -> str:
    """Return a column name as words in lower case: split at blanks, signs, underscores and humps (`firstName`)."""
    return _BETWEEN_WORDS.sub(" ", _HUMP.sub(" ", header)).strip().lower()


def is_missing(value: object) -> bool:
    """Tell what stands for no value in records made of a frame: None, NaN, and what pandas has beside them."""
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def placeholders(names: Sequence[str]) -> list[bool]:
    """Tell which of a table's names (normal forms) say nothing about their columns.

    Those are blank ones, `unnamed: 3`, and names of one stem that number at least half of the columns from 0 or 1 on
    (`col_1`, `col_2`, …). Names count as placeholders only if at least half of the table's are such: a single blank
    name beside good ones says something too.
    """
    empty = [_BLANK.fullmatch(name) is not None for name in names]
    counted: dict[str, dict[int, list[int]]] = {}
    for place, name in enumerate(names):
        if found := _NUMBERED.fullmatch(name):
            counted.setdefault(found[1], {}).setdefault(int(found[2]), []).append(place)
    for by_number in counted.values():
        numbers, places = sorted(by_number), [place for some in by_number.values() for place in some]
        runs = numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1 > 0
        if runs and 2 * len(places) >= len(names):
            for place in places:
                empty[place] = True
    if len(names) == 1 and _ONLY_A_NUMBER.fullmatch(names[0]):
        empty[0] = True
    return empty if 2 * sum(empty) >= len(names) else [False] * len(names)


# Control and format characters (zero width, direction, tags), surrogates, private use, unassigned, line separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_VARIATIONS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def plain_text(text: str, most: int) -> str:
    """Return at most `most` characters of a text, on one line, without invisible ones."""
    text = _VARIATIONS.sub("", text[: 8 * most])
    seen = "".join(" " if one.isspace() else one for one in text if one.isspace() or _is_seen(one))
    return _BLANKS.sub(" ", seen).strip()[:most]


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Return the xxh3 64-bit hash of each text's UTF-8 bytes, uint64 [n]; the same in every process and run."""
    return hash_bytes(text.encode("utf-8", "surrogatepass") for text in texts)


def hash_bytes(texts: Iterable[bytes]) -> np.ndarray:
    """Return the xxh3 64-bit hash of each string of bytes, uint64 [n]."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), dtype=np.uint64)


def hash_utf8(text: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the xxh3 64-bit hash of each of n texts, uint64 [n].

    Args:
        text: uint8 [B], UTF-8; bounds: int64 [n+1], text i is text[bounds[i]:bounds[i+1]].
    """
    raw = text.tobytes()
    return hash_bytes(raw[a:b] for a, b in pairwise(bounds.tolist()))
