"""NumPy arrays in, NumPy arrays out: every op once more, in loops that are plainly right and never fast.

Tests and benchmarks compare the kernels with these. Imports nothing but NumPy; sums and products are float64.
"""

from __future__ import annotations

import numpy as np

# --- topk


def topk(
    scores: np.ndarray, k: int, exclude: np.ndarray | None = None, resolution: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows of every query, best first; those of equal rounded scores by ascending row number.

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


def similarity(known: float, other: float, product: bool) -> float:
    """Return the product or the mean of two similarities, and the second where the first is not known (below 0)."""
    if known < 0:
        return other
    return known * other if product else (known + other) / 2


def maxsim(
    tables: list[np.ndarray],
    q_at: list[np.ndarray],
    c_at: list[np.ndarray],
    q_start: np.ndarray,
    c_start: np.ndarray,
    pair_q: np.ndarray,
    pair_c: np.ndarray,
    terms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return MaxSim from the query's and from the candidate's side, each float64 [P, K]; 0 where a side has no columns.

    Args:
        tables, q_at, c_at: of each similarity, float [u, a], int64 [A], int64 [M]: that of query column i and candidate
            column j is table[c_at[j], q_at[i]].
        q_start, c_start: int64 [G+1], [T+1], the columns of each query and candidate table.
        pair_q, pair_c: int64 [P].
        terms: int64 [K, 3], (1 for the product or 0 for the mean, a similarity, another).
    """
    forward, backward = np.zeros((len(pair_q), len(terms))), np.zeros((len(pair_q), len(terms)))
    for p, (g, t) in enumerate(zip(pair_q, pair_c, strict=True)):
        lanes, columns = range(q_start[g], q_start[g + 1]), range(c_start[t], c_start[t + 1])
        if not (len(lanes) and len(columns)):
            continue
        for k, (product, a, b) in enumerate(terms.tolist()):
            s = np.array(
                [
                    [
                        similarity(tables[a][c_at[a][j], q_at[a][i]], tables[b][c_at[b][j], q_at[b][i]], bool(product))
                        for i in lanes
                    ]
                    for j in columns
                ],
                np.float64,
            )
            forward[p, k], backward[p, k] = s.max(axis=0).mean(), s.max(axis=1).mean()
    return forward, backward


def matching(worth: np.ndarray) -> list[tuple[int, int]]:
    """Return the (row, column) pairs that are each other's best, none twice, the first ones of equals; worth [m, n]."""
    taken: list[tuple[int, int]] = []
    for i in range(worth.shape[1]):
        for j in range(worth.shape[0]):
            if j not in [row for row, _ in taken] and 0 < worth[j, i] == worth[j].max() == worth[:, i].max():
                taken.append((j, i))
                break
    return taken


# --- profiles


def profile_table(q: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return exp(-‖c[j] - q[i]‖²/2), float64 [m, a], of float [a, S] and [m, S]."""
    return np.array([[np.exp(-((x - y) ** 2).sum() / 2) for y in q.astype(np.float64)] for x in c.astype(np.float64)])


# --- dense


def row_products(vectors: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return <vectors[rows[j]], others[i]>, float64 [m, a]."""
    products: np.ndarray = vectors[rows].astype(np.float64) @ others.astype(np.float64).T
    return products


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


# --- hashing


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys in the order in which they come first, and the place of each among them; int64."""
    found = list(dict.fromkeys(keys.tolist()))
    return np.array(found, np.int64), np.array([found.index(key) for key in keys.tolist()], np.int64)


# --- lanes


def compare(cells: np.ndarray, a: int, b: int, product: bool, top: np.ndarray, at: int, *, lanes: int) -> float:
    """Raise top[at:at+lanes] to the `similarity` of cells[a:a+lanes] and cells[b:b+lanes]; return its greatest."""
    said = [similarity(x, y, product) for x, y in zip(cells[a : a + lanes], cells[b : b + lanes], strict=True)]
    top[at : at + lanes] = np.maximum(top[at : at + lanes], said)
    return max(said)


def copy_lanes(source: np.ndarray, at: int, count: int, out: np.ndarray, to: int, *, lanes: int) -> bool:
    """Do out[to:][:count] = source[at:][:count], 0 on to a multiple of `lanes`; tell whether no NaN was among it."""
    out[to : to - (-count // lanes) * lanes] = 0
    out[to : to + count] = source[at : at + count]
    return not np.isnan(source[at : at + count]).any()


def write_row_sums(
    out: np.ndarray,
    at: int,
    rows: np.ndarray,
    stride: int,
    a: int,
    b: int,
    c: int,
    d: int,
    slots: np.ndarray,
    weights: np.ndarray,
    count: int,
    *,
    block: int,
) -> None:
    """Do out[at+x:][:block] = Σ weights[t] · rows[slots[t]·stride + x:][:block], t below count, x in a, b, c, d."""
    for x in (a, b, c, d):
        total = np.zeros(block)
        for slot, weight in zip(slots[:count].tolist(), weights[:count].tolist(), strict=True):
            total += weight * rows[slot * stride + x :][:block]
        out[at + x :][:block] = total


def write_products(
    rows: np.ndarray,
    starts: np.ndarray,
    first: int,
    lanes: np.ndarray,
    at: int,
    count: int,
    out: np.ndarray,
    to: int,
    stride: int,
    *,
    block: int,
    tile_rows: int,
) -> None:
    """Do out[to+r·stride:][:block] = Σ rows[starts[first+r]+t]·lanes[at+t·block:][:block] over t below count."""
    for r in range(tile_rows):
        total = np.zeros(block)
        for t in range(count):
            total += float(rows[starts[first + r] + t]) * lanes[at + t * block :][:block]
        out[to + r * stride :][:block] = total


def write_tile(
    rows: np.ndarray,
    a: int,
    b: int,
    c: int,
    d: int,
    lanes: np.ndarray,
    at: int,
    stride: int,
    count: int,
    out: np.ndarray,
    *to: int,
    block: int,
) -> None:
    """Do out[to_r:][:block] = Σ rows[r+t]·lanes[at+t·stride:][:block] over t below count, for r = a, b, c and d."""
    for r, to_r in zip((a, b, c, d), to, strict=True):
        total = np.zeros(block)
        for t in range(count):
            total += float(rows[r + t]) * lanes[at + t * stride :][:block]
        out[to_r:][:block] = total


# --- overlap


def overlap(
    q_start: np.ndarray, q_value: np.ndarray, c_start: np.ndarray, c_value: np.ndarray, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every two sets, one of each side, with at least max(1, least[i]) values in common, query by query.

    Args:
        q_start, c_start: int64 [n+1], set i has value[start[i]:start[i+1]].
        q_value, c_value: uint64 [nnz], distinct within a set.
        least: int64 [n_q], or None for 1.

    Returns:
        (start int64 [n_q+1], query i has start[i]:start[i+1]; column int64 [x], ascending within a query; count int64
        [x]).
    """
    queries = [set(one.tolist()) for one in np.split(q_value, q_start[1:])[:-1]]
    lake = [set(one.tolist()) for one in np.split(c_value, c_start[1:])[:-1]]
    start, column, count = [0], [], []
    for i, query in enumerate(queries):
        for j, other in enumerate(lake):
            common = len(query & other)
            if common >= max(1, 1 if least is None else int(least[i])):
                column.append(j)
                count.append(common)
        start.append(len(column))
    return np.array(start, np.int64), np.array(column, np.int64), np.array(count, np.int64)


# --- screen


def as_float(x: np.generic) -> np.float32:
    """Return a float32 as it is, and the bits of a float16 (uint16) as float32."""
    return np.float32(x.view(np.float16)) if x.dtype == np.uint16 else np.float32(x)


def _sums(packed: np.ndarray, asked: np.ndarray, pairs: int, rows: int, queries: int) -> list[list[int]]:
    """Return the sums of products of a block int16 [pairs, rows, 2] and one [pairs, queries, 2], by query and row."""
    x = packed[: 2 * pairs * rows].reshape(pairs, rows, 2).astype(np.int64)
    q = asked[: 2 * pairs * queries].reshape(pairs, queries, 2).astype(np.int64)
    return [[int((x[:, r] * q[:, i]).sum()) for r in range(rows)] for i in range(queries)]


def reaching(
    packed: np.ndarray,
    at: int,
    asked: np.ndarray,
    asked_at: int,
    pairs: int,
    step: np.ndarray,
    norm: np.ndarray,
    row: int,
    q_step: np.ndarray,
    q_more: np.ndarray,
    q_times: np.ndarray,
    least: np.ndarray,
    query: int,
    masks: np.ndarray,
    *,
    rows: int,
) -> bool:
    """Set bit r of masks[i] where row_step·(q_step·Σ + q_more) + row_norm·q_times ≥ least; tell whether any is set.

    Args:
        packed, asked: int16, at `at` a block [pairs, rows, 2], at `asked_at` one [pairs, queries, 2].
        step, norm: float32, of the rows from `row` on.
        q_step, q_more, q_times, least: float32, of the queries from `query` on.
        masks: uint16 [queries].
        rows: rows of a block.
    """
    queries = len(masks)
    sums = _sums(packed[at:], asked[asked_at:], pairs, rows, queries)
    for i in range(queries):
        masks[i] = 0
        for r in range(rows):
            most = float(step[row + r]) * (float(q_step[query + i]) * sums[i][r] + float(q_more[query + i]))
            if not most + float(norm[row + r]) * float(q_times[query + i]) < least[query + i]:
                masks[i] |= np.uint16(1 << r)
    return bool(masks.any())


# --- linear


def write_sums(
    packed: np.ndarray,
    at: int,
    asked: np.ndarray,
    asked_at: int,
    pairs: int,
    step: np.ndarray,
    bias: np.ndarray,
    row: int,
    q_step: np.ndarray,
    query: int,
    out: np.ndarray,
    to: int,
    width: int,
    *,
    rows: int,
    queries: int,
) -> None:
    """Do out[to + i·width + r] = Σ·q_step[query+i]·step[row+r] + bias[row+r], blocks as in `reaching`."""
    sums = _sums(packed[at:], asked[asked_at:], pairs, rows, queries)
    for i in range(queries):
        for r in range(rows):
            out[to + i * width + r] = sums[i][r] * float(q_step[query + i]) * float(step[row + r]) + float(
                bias[row + r]
            )


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return x · weightᵀ + bias, float64 [m, n], of float [m, W], [n, W] and [n]."""
    out: np.ndarray = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    return out
