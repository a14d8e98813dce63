"""Texts and model names come in; 16-byte keys and folder names go out, the same in every process and on every machine.

Pure: it must never read a file, a clock or a random number, and never normalise a text (equal bytes, equal key).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

#: One key: 16 raw bytes. np.unique, np.sort, np.isin and == work on it, and ``.tolist()`` gives ``bytes`` for SQLite.
#: Not 'S16', which drops trailing zero bytes.
KEY = np.dtype("V16")


def text_keys(texts: Sequence[str]) -> NDArray[np.void]:
    """Digest each text into a key, in the order given.

    Args:
        texts: any strings; lone surrogates are allowed.

    Returns:
        V16 [n]: the big-endian xxh3-128 digest of each text's UTF-8 bytes. Read-only.
    """
    digest = xxhash.xxh3_128_digest
    # surrogatepass: cells read from damaged CSV files hold lone surrogates, and must not stop the run
    joined = b"".join([digest(text.encode("utf-8", "surrogatepass")) for text in texts])
    return np.frombuffer(joined, dtype=KEY) if joined else np.empty(0, dtype=KEY)


def namespace(model: str, revision: str, serialiser: str) -> str:
    """Name the folder for all vectors that may be compared with each other.

    Args:
        model: the encoder's name.
        revision: its weights' revision or checksum.
        serialiser: the recipe that turned columns into texts.

    Returns:
        32 hexadecimal digits; two different triples never share one by framing.
    """
    hasher = xxhash.xxh3_128()
    for part in (model, revision, serialiser):
        raw = part.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little"))  # without it ("a", "bc") and ("ab", "c") are one namespace
        hasher.update(raw)
    return hasher.hexdigest()
