"""Strings in, normal forms and 64-bit hashes out: the one place that says when two names are the same name.

Pure; no files, no arrays of meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import xxhash

# A UTF-8 byte order mark, and the same three bytes when a file was once decoded as Latin-1.
_MARKS = re.compile("\ufeff|\u00ef\u00bb\u00bf")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_BLANKS = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


def normalise_name(header: str) -> str:
    """Return a column name's normal form: lower case, marks and outer quotes stripped, blanks collapsed."""
    bare = _MARKS.sub("", header).strip().strip(_QUOTES)
    return _BLANKS.sub(" ", bare).strip().lower()


def words(text: str) -> list[str]:
    """Return the word tokens of an already lower-cased text (runs of letters, digits and underscores)."""
    return _WORD.findall(text)


def name_grams(name: str) -> list[str]:
    """Return the character 3-, 4- and 5-grams of a normal name, one blank added on each side.

    A name that is shorter than a gram stands for itself there.
    """
    padded = f" {name} "
    return [padded[i : i + n] for n in (3, 4, 5) for i in range(max(1, len(padded) - n + 1))]


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Return the xxh3 64-bit hash of each text's UTF-8 bytes, uint64 [n]; the same in every process and run."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(t.encode("utf-8", "surrogatepass")) for t in texts), dtype=np.uint64)
