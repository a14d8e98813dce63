"""NumPy arrays in, NumPy arrays out: every op once more, in loops that are obviously right and never fast.

What tests and benchmarks hold the kernels to. Imports nothing but NumPy; sums and products are float64.
"""

from __future__ import annotations

import numpy as np

# --- topk


def topk(
    scores: np.ndarray, k: int, exclude: np.ndarray | None = None, resolution: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows of every query, best first; scores equal at the resolution by ascending row number.

    Args:
        scores: float [n, r], of every query and row.
        k: how many to keep.
        exclude: int64 [n], a row that query i must not get, or -1.
        resolution: scores are rounded to multiples of it.

    Returns:
        (ids int64 [n, k], scores float64 [n, k]); ids -1 and scores -inf where there are not k rows.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("NaN among the scores")
    ids = np.full((len(scores), k), -1, np.int64)
    best = np.full((len(scores), k), -np.inf)
    for i, row in enumerate(scores.astype(np.float64)):
        steps = np.round(row / resolution)
        wanted = [j for j in range(len(row)) if exclude is None or j != exclude[i]]
        for place, j in enumerate(sorted(wanted, key=lambda j: (-steps[j], j))[:k]):
            ids[i, place], best[i, place] = j, steps[j] * resolution
    return ids, best


# --- sparse


def dot_table(
    q_start: np.ndarray,
    q_token: np.ndarray,
    q_weight: np.ndarray,
    q_rows: np.ndarray,
    c_start: np.ndarray,
    c_token: np.ndarray,
    c_weight: np.ndarray,
    c_rows: np.ndarray,
) -> np.ndarray:
    """Return out[j, i] = <candidate row c_rows[j], query row q_rows[i]>, float64 [m, a].

    Args:
        q_start, c_start: int64 [n+1], row r has the entries start[r]:start[r+1].
        q_token, c_token: int64 [nnz], distinct within a row.
        q_weight, c_weight: float [nnz].
        q_rows: int64 [a].
        c_rows: int64 [m].
    """
    out = np.zeros((len(c_rows), len(q_rows)))
    for i, a in enumerate(q_rows):
        of_q = range(q_start[a], q_start[a + 1])
        row = {int(q_token[e]): float(q_weight[e]) for e in of_q}
        for j, b in enumerate(c_rows):
            of_c = range(c_start[b], c_start[b + 1])
            out[j, i] = sum(float(c_weight[e]) * row.get(int(c_token[e]), 0.0) for e in of_c)
    return out


# --- maxsim


def spread_table(table: np.ndarray, c_at: np.ndarray, q_at: np.ndarray, c_group: np.ndarray) -> np.ndarray:
    """Return out[j, l] = table[c_at[j], q_at[c_group[j], l]], and 0 where that lane of q_at is -1, float64 [m, lanes].

    Args:
        table: float [u, a].
        c_at: int64 [m].
        q_at: int64 [g, lanes].
        c_group: int64 [m].
    """
    out = np.zeros((len(c_at), q_at.shape[1]))
    for j, (row, group) in enumerate(zip(c_at, c_group, strict=True)):
        for lane, column in enumerate(q_at[group]):
            if column >= 0:
                out[j, lane] = table[row, column]
    return out


def segment_max(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the maximum over each segment of rows, float64 [p, lanes]; 0 for an empty segment.

    Args:
        x: float [m, lanes].
        start: int64 [p+1], segment s is rows start[s]:start[s+1].
    """
    out = np.zeros((len(start) - 1, x.shape[1]))
    for s in range(len(out)):
        if start[s + 1] > start[s]:
            out[s] = x[start[s] : start[s + 1]].max(axis=0)
    return out


def segment_mean(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the mean over each segment of rows, float64 [p, lanes]; 0 for an empty segment.

    Args:
        x: float [m, lanes].
        start: int64 [p+1], segment s is rows start[s]:start[s+1].
    """
    out = np.zeros((len(start) - 1, x.shape[1]))
    for s in range(len(out)):
        if start[s + 1] > start[s]:
            out[s] = x[start[s] : start[s + 1]].astype(np.float64).mean(axis=0)
    return out


def maxsim_forward(x: np.ndarray, start: np.ndarray, lanes_used: np.ndarray) -> np.ndarray:
    """Return the mean over a pair's query columns of the best candidate column, float64 [p]; 0 where one side has none.

    Args:
        x: float [m, lanes], similarities of at least 0.
        start: int64 [p+1], the rows (candidate columns) of each pair.
        lanes_used: int64 [p], lanes (query columns) of each pair; the lanes beyond are not looked at.
    """
    out = np.zeros(len(lanes_used))
    for p, lanes in enumerate(lanes_used):
        pair = x[start[p] : start[p + 1], :lanes].astype(np.float64)
        if pair.size:
            out[p] = pair.max(axis=0).mean()
    return out


def maxsim_backward(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the mean over a pair's candidate columns of the best query column, float64 [p]; 0 where one side has none.

    Args:
        x: float [m, lanes], similarities of at least 0, and 0 in the lanes beyond a pair's query columns.
        start: int64 [p+1], the rows (candidate columns) of each pair.
    """
    out = np.zeros(len(start) - 1)
    for p in range(len(out)):
        pair = x[start[p] : start[p + 1]].astype(np.float64)
        if pair.size:
            out[p] = pair.max(axis=1).mean()
    return out


# --- ragged


def gather_segments(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the entries of the given rows lie in the flat data, row after row, and each row's length.

    Args:
        offsets: int64 [n+1], segment r is offsets[r]:offsets[r+1].
        rows: int64 [m], rows to gather; they may repeat.

    Returns:
        (flat int64 [total], lengths int64 [m]).
    """
    flat = [entry for row in rows for entry in range(offsets[row], offsets[row + 1])]
    return np.array(flat, np.int64), np.array([offsets[row + 1] - offsets[row] for row in rows], np.int64)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return int64 [n+1] offsets of n consecutive segments of the given lengths (int [n])."""
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + int(length))
    return np.array(offsets, np.int64)


def first_of(*keys: np.ndarray) -> np.ndarray:
    """Return the positions, ascending, at which each combination of keys (int64 [n] each) is seen first, int64 [d]."""
    seen = set()
    first = []
    for position, combination in enumerate(zip(*(key.tolist() for key in keys), strict=True)):
        if combination not in seen:
            seen.add(combination)
            first.append(position)
    return np.array(first, np.int64)
