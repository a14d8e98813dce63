"""Columns as sets of weighed values in; for a table, the two columns that share most with each table of a lake out.

An inverted index: which columns of the lake hold each value lies in lists, one after another. A column walks the lists
of its values and adds up, for each column of the lake, the weights of what both hold. The work is the sum, over values,
of the lengths of their lists, so values that many columns hold should have no weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpumatch.kernels.chance import Chance, between, beyond
from gpumatch.kernels.compiled import compiled


@dataclass(frozen=True)
class Columns:
    """Columns of some tables, and the values that they hold.

    table_cols: int64 [T+1], table t has the columns table_cols[t]:table_cols[t+1].
    start: int64 [C+1], token: int32 or int64 [nnz]: column c holds the values token[start[c]:start[c+1]], none twice.
    plain: how many values there are. Tokens from there on are values of columns with letters once more, as these hold
        them: two columns with letters share those, all others the plain ones.
    size: float32 [C], how many values each has in all, those that have no number among them.
    letter: uint32 [C], up to four letters, a byte below 128 each: columns hold different things, whatever their values,
        if a byte differs that both have.
    chance: what each holds any value with.
    most: float64 [2, C], what each shares with one that holds all its values: the plain ones, and those of columns with
        letters.
    """

    table_cols: np.ndarray
    start: np.ndarray
    token: np.ndarray
    plain: int
    size: np.ndarray
    letter: np.ndarray
    chance: Chance
    most: np.ndarray


@dataclass(frozen=True)
class Holders:
    """The columns that hold each value: start int64 [V+1], column int32 [nnz], ascending; weight float64 [V]."""

    start: np.ndarray
    column: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Shares:
    """For the i-th of some tables, what it shares with tables of the lake, at start[i]:start[i+1] by ascending table.

    start: int64 [n+1]; table: int64 [x], of the lake; share: float64 [x], in (0, 1); query, candidate: int64 [x], the
    two columns that have it.
    """

    start: np.ndarray
    table: np.ndarray
    share: np.ndarray
    query: np.ndarray
    candidate: np.ndarray

    @classmethod
    def of_none(cls, n: int) -> Shares:
        """Return that n tables share nothing."""
        none = np.empty(0, np.int64)
        return cls(np.zeros(n + 1, np.int64), none, np.empty(0), none, none)


def holders_of(columns: Columns, weight: np.ndarray) -> Holders:
    """Return who holds each value, float64 [V] weights of the values given; those that weigh nothing are left out."""
    start, column = _holders(columns.start, columns.token, weight)
    return Holders(start, column, weight)


def most_shared(start: np.ndarray, token: np.ndarray, weight: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return what columns share with one that holds all their values, float64 [C]; values without a number weigh 1.

    Args:
        start: int64 [C+1], token: int [nnz], size: float32 [C]: as `Columns` has them; weight: float64 [V].
    """
    answer: np.ndarray = _most_shared(start, token, weight, size)
    return answer


def best_shares(q: Columns, tables: np.ndarray, c: Columns, holders: Holders, least: float) -> Shares:
    """Return, for some tables, the tables of the lake that share more than `least` of a column with them.

    What two columns share is Σ weight of the values that both hold / (1 + min(|Q|, |C|)), beyond chance: that of the
    smaller of the two sets that is found in the other, and less where it has few values. Values that have no number
    weigh 1. A column of one value shares nothing.

    Args:
        q: the tables; tables: int64 [n], which of them.
        c: the lake's; holders: of its values.
        least: what is not enough yet, at least 0.
    """
    of_q = q.table_cols, q.start, q.token, q.plain, q.size, q.letter, q.chance, q.most
    of_c = c.table_cols, c.size, c.letter, c.chance, c.most, holders.start, holders.column, holders.weight
    return Shares(*_best_of_all(tables, *of_q, *of_c, least))


@compiled
def _most_shared(start, token, weight, size):
    out = np.empty(len(size))
    for i in range(len(size)):
        total = np.float64(size[i])
        for e in range(start[i], start[i + 1]):
            total += weight[token[e]] - 1
        out[i] = total / (1 + size[i])
    return out


@compiled
def _holders(start, token, weight):
    lists = np.zeros(len(weight) + 1, np.int64)
    for value in token:
        lists[value + 1] += weight[value] > 0
    for value in range(len(weight)):
        lists[value + 1] += lists[value]
    at, column = lists[:-1].copy(), np.empty(lists[len(weight)], np.int32)
    for j in range(len(start) - 1):
        for e in range(start[j], start[j + 1]):
            if weight[token[e]] > 0:
                column[at[token[e]]] = j
                at[token[e]] += 1
    return lists, column


@compiled
def _fit(letter, other):
    for shift in range(0, 32, 8):
        a, b = (letter >> shift) & 127, (other >> shift) & 127
        if a != 0 and b != 0 and a != b:
            return False
    return True


@compiled
def _best_of_all(
    tables, q_cols, q_start, q_token, plain, q_size, q_letter, q_chance, q_most, c_cols, c_size, c_letter, c_chance,
    c_most, lists, holder, weight, least,
):  # fmt: skip
    """Return what `Shares` has."""
    n_tables = len(c_cols) - 1
    table_of = np.empty(len(c_size), np.int64)
    for table in range(n_tables):
        table_of[c_cols[table] : c_cols[table + 1]] = table
    # What every table leaves as it was: all 0.
    met, share = np.zeros(len(c_size)), np.zeros(n_tables)
    touched, reached = np.empty(len(c_size), np.int64), np.empty(n_tables, np.int64)
    pair = np.empty((2, n_tables), np.int64)
    start, end = np.zeros(len(tables) + 1, np.int64), 0
    found, shares = np.empty((3, 16 * len(tables)), np.int64), np.empty(16 * len(tables))
    for i in range(len(tables)):
        n = _best(
            q_cols[tables[i]], q_cols[tables[i] + 1], q_start, q_token, plain, q_size, q_letter, q_chance, q_most,
            c_size, c_letter, c_chance, c_most, table_of, lists, holder, weight, least, met, touched, share, reached,
            pair,
        )  # fmt: skip
        if end + n > len(shares):
            more, longer = np.empty((3, 2 * (end + n)), np.int64), np.empty(2 * (end + n))
            more[:, :end], longer[:end] = found[:, :end], shares[:end]
            found, shares = more, longer
        for table in np.sort(reached[:n]):
            found[0, end], found[1, end], found[2, end] = table, pair[0, table], pair[1, table]
            shares[end] = share[table]
            share[table] = 0
            end += 1
        start[i + 1] = end
    return start, found[0, :end], shares[:end], found[1, :end], found[2, :end]


@compiled
def _best(
    first, last, q_start, q_token, plain, q_size, q_letter, q_chance, q_most, c_size, c_letter, c_chance, c_most,
    table_of, lists, holder, weight, least, met, touched, share, reached, pair,
):  # fmt: skip
    """Write to share and pair, at each lake table, the best of the columns first to last; return how many it reached.

    Of pairs that share as much the first stays: the columns of either side are gone through in a fixed order.
    """
    n = 0
    for i in range(first, last):
        m = 0
        for e in range(q_start[i], q_start[i + 1]):
            value = q_token[e]
            for at in range(lists[value], lists[value + 1]):
                j = holder[at]
                if value < plain and q_letter[i] != 0 and c_letter[j] != 0:
                    continue
                if met[j] == 0:
                    touched[m] = j
                    m += 1
                met[j] += weight[value]
        for j in touched[:m]:
            size = min(q_size[i], c_size[j])
            marked = np.int64(q_letter[i] != 0 and c_letter[j] != 0)
            of_q, of_c = q_most[marked, i], c_most[marked, j]
            most = max(of_q, of_c) if q_size[i] == c_size[j] else of_q if q_size[i] < c_size[j] else of_c
            of_both = beyond(met[j] / (1 + size), most, between(i, j, q_chance, c_chance), size)
            met[j] = 0
            table = table_of[j]
            if size > 1 and of_both > max(least, share[table]) and _fit(q_letter[i], c_letter[j]):
                if share[table] == 0:
                    reached[n] = table
                    n += 1
                share[table], pair[0, table], pair[1, table] = of_both, i, j
    return n
