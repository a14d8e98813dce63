"""UTF-8 bytes in, bags of 3-grams out."""

from __future__ import annotations

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.ragged import offsets_of

_BLANK = 32


def gram_bags(text: np.ndarray, bounds: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how often each 3-gram of bytes occurs in groups of texts, one blank added on each side of a text.

    Args:
        text: uint8 [B], texts one after another.
        bounds: int64 [n+1], text i is text[bounds[i]:bounds[i+1]].
        start: int64 [g+1], group j has the texts start[j]:start[j+1].

    Returns:
        (start int64 [g+1], gram uint64 [nnz] the three bytes as a number, ascending within a group, tf float32 [nnz]).
    """
    lengths = np.maximum(0, np.diff(bounds))  # a text of b bytes and two blanks has b grams
    ends = np.append(0, np.cumsum(lengths))[start]
    gram, tf = np.empty(int(ends[-1] - ends[0]), np.uint64), np.empty(int(ends[-1] - ends[0]), np.float32)
    sizes = np.empty(len(start) - 1, np.int64)
    most = int(np.diff(ends).max(initial=0))
    n = _gram_bags(text, bounds, start, np.empty(most, np.int64), gram, tf, sizes)
    return offsets_of(sizes), gram[:n], tf[:n]


@compiled
def _gram_bags(text, bounds, start, buffer, gram, tf, sizes):
    n = 0
    for group in range(len(start) - 1):
        held = 0
        for i in range(start[group], start[group + 1]):
            for at in range(bounds[i], bounds[i + 1]):
                before = text[at - 1] if at > bounds[i] else _BLANK
                after = text[at + 1] if at + 1 < bounds[i + 1] else _BLANK
                buffer[held] = np.int64(before) << 16 | np.int64(text[at]) << 8 | np.int64(after)
                held += 1
        found = np.sort(buffer[:held])
        first = n
        for i in range(held):
            if i and found[i] == found[i - 1]:
                tf[n - 1] += 1
            else:
                gram[n], tf[n] = found[i], 1
                n += 1
        sizes[group] = n - first
    return n
