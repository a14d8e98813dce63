"""Similarities of distinct columns in; MaxSim of every pair of tables, both ways, and its matching columns out.

MaxSim: Khattab and Zaharia, ColBERT, SIGIR 2020 (the mean in place of the sum, over columns in place of tokens).

On a CPU the similarities are laid out so that what one query needs lies together, and blocks of LANES query columns are
compared at once; where they are tensors, everything stays on their device: on a GPU in one kernel (`triton_maxsim`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumatch.kernels import devices
from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.devices import host
from gpumatch.kernels.fused import fused_trouble
from gpumatch.kernels.lanes import BLOCK, LANES, compare, copy_lanes, padded
from gpumatch.kernels.ragged import gather_segments

if TYPE_CHECKING:
    import torch

MEAN, PRODUCT = 0, 1
_NAN = "NaN among the similarities"


@dataclass(frozen=True)
class Similarity:
    """How alike query columns and candidate columns are; equal columns share a column or a row of the table.

    table: float32 [u, a], a NumPy array or a torch tensor; in [0, 1], or -1 where it is not known.
    q_at: int64 [A], the table's column for each query column.
    c_at: int64 [M], the table's row for each candidate column.
    """

    table: Any
    q_at: np.ndarray
    c_at: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a candidate table, and what is known of their columns.

    Columns of all queries lie one after another, those of query g at q_start[g]:q_start[g+1]; candidate columns too.

    q_start: int64 [G+1]. c_start: int64 [T+1]. pair_q: int64 [P], queries. pair_c: int64 [P], candidate tables.
    """

    similarities: Sequence[Similarity]
    q_start: np.ndarray
    c_start: np.ndarray
    pair_q: np.ndarray
    pair_c: np.ndarray

    @cached_property
    def laid_out(self) -> LaidOut:
        """The similarities on the host, laid out once for all that is asked of these pairs."""
        return LaidOut.of(self)


def wanted_blocks(pairs: Pairs, q_at: np.ndarray, c_at: np.ndarray, rows: int, lanes: int) -> np.ndarray:
    """Tell in which BLOCKs of neighbouring cells of a similarity's table the pairs look something up, bool [u, blocks].

    Args:
        pairs: their similarities are not used.
        q_at, c_at: as in `Similarity`.
        rows, lanes: u and a, the table's size.
    """
    wanted = np.zeros((rows, -(-lanes // BLOCK)), np.bool_)
    _want(q_at // BLOCK, c_at, pairs.q_start, pairs.c_start, pairs.pair_q, pairs.pair_c, wanted)
    return wanted


@compiled
def _want(block, c_at, q_start, c_start, pair_q, pair_c, wanted):
    of_query, n, last = np.empty(len(block), np.int64), 0, -1
    for p in range(len(pair_q)):
        if pair_q[p] != last:
            last, n = pair_q[p], 0
            for lane in range(q_start[last], q_start[last + 1]):
                if n == 0 or block[lane] != of_query[n - 1]:
                    of_query[n] = block[lane]
                    n += 1
        for j in range(c_start[pair_c[p]], c_start[pair_c[p] + 1]):
            for k in range(n):
                wanted[c_at[j], of_query[k]] = True


def maxsim(pairs: Pairs, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return MaxSim of every pair by every term, from the query's side and from the candidate's.

    Args:
        pairs: P pairs.
        terms: int64 [K, 3], (operation, a, b): two columns are as alike as the MEAN or the PRODUCT of the similarities
            number a and b says; where a is -1 (unknown), as b says. b must have no unknown cells.

    Returns:
        (forward float32 [P, K], the mean over query columns of the best candidate column; backward float32 [P, K], the
        mean over candidate columns of the best query column); 0 where either side has no columns.

    Raises:
        ValueError: NaN among the similarities.
    """
    shape = len(pairs.pair_c), len(terms)
    forward, backward = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    widest = np.diff(pairs.q_start)[pairs.pair_q].max(initial=0)
    if not (widest and shape[1] and pairs.c_start[-1]):
        return forward, backward
    table = pairs.similarities[0].table
    if not isinstance(table, np.ndarray):
        if not all(one.table.min() >= -1 for one in pairs.similarities if math.prod(one.table.shape)):
            raise ValueError(_NAN)
        return _fused()(pairs, terms) if table.is_cuda else _on_device(pairs, terms)
    laid = pairs.laid_out
    top = np.empty(int(laid.stride.max()), np.float32)
    _maxsim(
        laid.cells, laid.start, laid.stride, laid.rows, pairs.c_start, np.diff(pairs.q_start), pairs.pair_c,
        pairs.pair_q, terms, top, forward, backward,
    )  # fmt: skip
    return forward, backward


def matching_columns(
    pairs: Pairs, which: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the column pairs that are each other's best, no column of a pair of tables twice.

    The score of two columns is the mean of their known similarities. Of equally good columns the first are taken.
    Sorted by pair, falling score, query column, candidate column.

    Args:
        pairs: P pairs.
        which: the numbers of the similarities that count; None for all.

    Returns:
        (pair int64 [n], query column int64 [n], candidate column int64 [n], score float32 [n]); only scores above 0.

    Raises:
        ValueError: NaN among the similarities.
    """
    laid = pairs.laid_out
    rows = laid.rows if which is None else laid.rows[np.array(which, np.int64)]
    widths, heights = np.diff(pairs.q_start)[pairs.pair_q], np.diff(pairs.c_start)[pairs.pair_c]
    most = int(np.minimum(widths, heights).sum())
    pair, lane, column = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    score = np.empty(most, np.float32)
    worth = np.empty(int((widths * heights).max(initial=0)), np.float32)
    n = _matching(
        laid.cells, laid.start, laid.stride, rows, pairs.c_start, pairs.q_start, pairs.pair_c, pairs.pair_q, worth,
        pair, lane, column, score,
    )  # fmt: skip
    pair, lane, column, score = pair[:n], lane[:n], column[:n], score[:n]
    order = np.lexsort((column, lane, -score, pair))
    return pair[order], lane[order], column[order], score[order]


@dataclass(frozen=True)
class LaidOut:
    """The similarities query by query: what a query needs lies together, and stays in the cache while it is worked on.

    cells: float32, query g's columns against row r at start[g] + r·stride[g], strides being multiples of LANES.
    rows: int64 [B, M], the row of each candidate column in each of the B similarities.
    """

    cells: np.ndarray
    start: np.ndarray
    stride: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> LaidOut:
        """Lay out what the pairs need.

        Raises:
            ValueError: NaN among it.
        """
        stride = padded(np.diff(pairs.q_start))
        tables = [host(one.table) for one in pairs.similarities]
        height = sum(len(table) for table in tables)
        start = np.concatenate([[0], np.cumsum(stride * height)])
        cells = np.empty(int(start[-1]), np.float32)
        asked = np.zeros((len(stride), len(pairs.c_start) - 1), np.bool_)
        asked[pairs.pair_q, pairs.pair_c] = True
        rows, above = [], 0
        for one, table in zip(pairs.similarities, tables, strict=True):
            flat, row_stride = _flat(table)
            if len(one.c_at) and not _lay_out(
                flat, row_stride, one.q_at, one.c_at, pairs.q_start, pairs.c_start, asked, start, stride, above, cells
            ):
                raise ValueError(_NAN)
            rows.append(one.c_at + above)
            above += len(table)
        return cls(cells, start, stride, np.stack(rows))


def _flat(table: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a table, or a part of each row of one, as one array, and how far apart in it the rows begin."""
    table = table if table.strides[1] == table.itemsize else np.ascontiguousarray(table)
    stride = table.strides[0] // table.itemsize
    length = (len(table) - 1) * stride + table.shape[1] if table.size else 0
    return np.lib.stride_tricks.as_strided(table, (length,), (table.itemsize,), writeable=False), stride


@compiled
def _lay_out(table, row_stride, q_at, c_at, q_start, c_start, asked, start, stride, above, cells):
    """Copy what the pairs need of one similarity; the other cells stay as they are. False where NaN is among it.

    Args:
        table: one-dimensional; row r begins at r·row_stride.
    """
    fine = True
    done = np.full(c_at.max() + 1, -1, np.int64)  # for each row, the last query that it was copied for
    for g in range(len(stride)):
        begin, width = q_start[g], q_start[g + 1] - q_start[g]
        together = width > 0  # most often: the columns of a query are numbered one after another
        for lane in range(begin + 1, begin + width):
            together &= q_at[lane] == q_at[lane - 1] + 1
        for t in range(asked.shape[1]):
            if not asked[g, t]:
                continue
            for j in range(c_start[t], c_start[t + 1]):
                r = c_at[j]
                if done[r] == g:
                    continue
                done[r] = g
                to, row = start[g] + (above + r) * stride[g], r * row_stride
                if together and row + q_at[begin] + stride[g] <= len(table):
                    fine &= copy_lanes(table, row + q_at[begin], width, cells, to)
                    continue
                for lane in range(width):  # unsigned, for numbers below 0 would count from the end
                    value = table[np.uint64(row + q_at[np.uint64(begin + lane)])]
                    cells[np.uint64(to + lane)] = value
                    fine &= value == value
                for lane in range(width, stride[g]):
                    cells[np.uint64(to + lane)] = 0
    return fine


@compiled
def _maxsim(
    cells,
    start,
    stride,
    rows,
    c_start,
    q_width,
    pair_c,
    pair_q,
    terms,
    top,
    forward,
    backward,
):
    zero = np.float32(0)
    for p in range(len(pair_c)):
        begin, end, g = c_start[pair_c[p]], c_start[pair_c[p] + 1], pair_q[p]
        if begin == end or not q_width[g]:
            continue
        for k in range(len(terms)):
            product, of_a, of_b = terms[k, 0] == PRODUCT, rows[terms[k, 1]], rows[terms[k, 2]]
            for lane in range(stride[g]):
                top[lane] = zero
            total = zero
            for j in range(begin, end):
                a, b = start[g] + of_a[j] * stride[g], start[g] + of_b[j] * stride[g]
                most = zero
                for lane in range(0, stride[g], LANES):
                    most = max(most, compare(cells, a + lane, b + lane, product, top, lane))
                total += most
            best = zero
            for lane in range(q_width[g]):
                best += top[lane]
            forward[p, k] = best / np.float32(q_width[g])
            backward[p, k] = total / np.float32(end - begin)


@compiled
def _matching(
    cells,
    start,
    stride,
    rows,
    c_start,
    q_start,
    pair_c,
    pair_q,
    cells_of_pair,
    pair,
    lane,
    column,
    score,
):
    n = 0
    for p in range(len(pair_c)):
        begin, g = c_start[pair_c[p]], pair_q[p]
        height, width = c_start[pair_c[p] + 1] - begin, q_start[g + 1] - q_start[g]
        if not (height and width):
            continue
        worth = cells_of_pair[: height * width].reshape((height, width))
        best_row, best_lane = np.zeros(height, np.float32), np.zeros(width, np.float32)
        for j in range(height):
            for i in range(width):
                total, known = np.float32(0), 0
                for b in range(len(rows)):
                    value = cells[start[g] + rows[b, begin + j] * stride[g] + i]
                    if value >= 0:
                        total += value
                        known += 1
                worth[j, i] = total / np.float32(max(1, known))
                best_row[j] = max(best_row[j], worth[j, i])
                best_lane[i] = max(best_lane[i], worth[j, i])
        taken = np.zeros(height, np.bool_)
        for i in range(width):
            for j in range(height):
                if not taken[j] and worth[j, i] > 0 and worth[j, i] == best_row[j] and worth[j, i] == best_lane[i]:
                    taken[j] = True
                    pair[n], lane[n], column[n], score[n] = p, q_start[g] + i, begin + j, worth[j, i]
                    n += 1
                    break
    return n


def _fused() -> Callable[[Pairs, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the kernel that lays nothing out, or `_on_device` where Triton's kernels cannot run."""
    if fused_trouble():
        return _on_device
    from gpumatch.kernels.triton_maxsim import maxsim_fused

    return maxsim_fused


def _on_device(pairs: Pairs, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay every pair's similarities out as [candidate columns of all pairs, lanes of the widest query], and reduce."""
    import torch

    def put(array: np.ndarray) -> torch.Tensor:
        there: torch.Tensor = devices.put(array, pairs.similarities[0].table.device)
        return there

    flat, heights = gather_segments(pairs.c_start, pairs.pair_c)
    widths = np.diff(pairs.q_start)[pairs.pair_q]
    owner = np.repeat(np.arange(len(heights)), heights)
    lanes = np.arange(int(widths.max(initial=0)))
    beyond = put(lanes >= widths[:, None])[put(owner)]
    lane = np.minimum(pairs.q_start[pairs.pair_q][:, None] + lanes, pairs.q_start[-1] - 1)[owner]
    known = {}
    for b in np.unique(terms[:, 1:]).tolist():
        one = pairs.similarities[b]
        known[b] = one.table[put(one.c_at[flat])[:, None], put(one.q_at[lane])]
    lengths, width = put(heights), put(np.maximum(widths, 1))
    forward, backward = [], []
    for operation, a, b in terms.tolist():
        x, y = known[a], known[b]
        s = torch.where(x < 0, y, (x + y) / 2 if operation == MEAN else x * y).masked_fill(beyond, 0)
        forward.append(_reduce(s, lengths, "max").sum(1) / width)
        backward.append(_reduce(s.amax(1, keepdim=True), lengths, "mean").squeeze(1))
    return torch.stack(forward, 1).cpu().numpy(), torch.stack(backward, 1).cpu().numpy()


def _reduce(x: torch.Tensor, lengths: torch.Tensor, how: str) -> torch.Tensor:
    import torch

    reduced = torch.segment_reduce(x, how, lengths=lengths, axis=0, unsafe=True)
    return torch.where((lengths > 0)[:, None], reduced, torch.zeros_like(reduced))
