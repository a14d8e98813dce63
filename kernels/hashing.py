"""Integers in, the different ones out, by a hash table."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumatch.kernels.compiled import compiled

# An odd constant (2**64 / the golden ratio) whose products' high bits spread any integers: Knuth, TAOCP 3, 6.4.
SPREAD = np.uint64(0x9E3779B97F4A7C15)


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys in the order in which they come first, and the place of each key among them.

    Args:
        keys: int64 [n], at least 0.

    Returns:
        (int64 [d], int64 [n]).
    """
    at, found = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    n = _distinct(np.ascontiguousarray(keys, np.int64), found, at)
    return found[:n], at


@compiled
def _distinct(keys, found, at):
    held, shift = empty_table(len(keys))
    place = np.empty(len(held), np.int64)
    n = 0
    for i in range(len(keys)):
        cell = find(held, shift, keys[i])
        if held[cell] == -1:
            held[cell], place[cell], found[n] = keys[i], n, keys[i]
            n += 1
        at[i] = place[cell]
    return n


@compiled
def empty_table(n: int) -> tuple[np.ndarray, np.uint64]:
    """Return (cells int64, all -1, room for n keys; the shift that `find` takes)."""
    bits = 4
    while (1 << bits) < 2 * n:
        bits += 1
    return np.full(1 << bits, -1, np.int64), np.uint64(64 - bits)


@compiled
def find(cells: Any, shift: Any, key: Any) -> Any:
    """Return the cell that holds a key (at least 0), or the free one (-1) where it would go."""
    cell = np.int64((np.uint64(key) * SPREAD) >> shift)
    while cells[cell] != -1 and cells[cell] != key:
        cell = (cell + 1) & (len(cells) - 1)
    return cell
