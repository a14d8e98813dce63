"""Query vectors and row vectors in, each query's K best rows out, without ever holding all the scores.

Ties are settled by row number (`heaps`), so the answer does not depend on how a device sorts. If few of many rows are
wanted, most are ruled out by a rough product (`screen`, `triton_topk`) and the others scored in float64; else the
float32 product is streamed over tiles of rows, and a running top-K merged after each. That product rounds differently
with other tiles, in the last bits, so of two rows whose scores are as close as that either may come first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.dense import products
from gpumatch.kernels.devices import host, put
from gpumatch.kernels.fused import fused_trouble
from gpumatch.kernels.heaps import LARGEST_SCORE, NOTHING, RESOLUTION, floor_of, key_of, keys_of, ranked, replace_least
from gpumatch.kernels.screen import screened_topk
from gpumatch.kernels.shorts import MAX_WIDTH
from gpumatch.kernels.split import Split

# With at least so many rows for each that is kept, screening is faster than float32 products of all rows: what it lets
# through, about K·(1 + ln(N/K)) rows of each query, has to be multiplied a second time.
SCREENED = 64
# Queries that a thread takes at once, and scores that it holds at most. For each product a BLAS copies all rows in an
# order of its own, which with a few queries takes as long as multiplying.
_QUERIES_AT_ONCE, _CELLS_AT_ONCE = 128, 4_000_000
_TILE = 4096
_HALVES = "float16", "torch.float16"


def topk(
    queries: np.ndarray,
    rows: Any,
    k: int,
    *,
    device: str = "cpu",
    tile: int | None = None,
    exclude: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the K rows of every query with the greatest inner products, best first; equal ones by ascending row.

    Args:
        queries: float32 [n, W].
        rows: float32 or float16 [N, W], N below 2**32: a NumPy array, memory-mapped or not, or a tensor on the device;
            or on a CPU what `Split.of` makes of them, for callers who search the same rows again.
        k: how many to keep; if there are fewer rows, -1 fills the end.
        device: "cpu", or one of torch's ("cuda", "cpu:0").
        tile: rows that are held at once on a device (with their scores, if all are computed); None for 4096 if all
            scores are computed, else for as many as half of the free memory holds.
        exclude: int64 [n], a row that query i must not get, or -1.
        threads: on a CPU, of loops other than the BLAS's own.

    Returns:
        (ids int64 [n, k], scores float32 [n, k]); ids -1 and scores -inf where there are fewer than K rows.

    Raises:
        ValueError: NaN or an infinite number, or a score beyond LARGEST_SCORE among those that are computed.
    """
    if isinstance(rows, Split):
        return _split_topk(queries, rows, k, exclude, threads)
    if device == "cpu" and is_screened(len(rows), k, queries.shape[1]):
        return ranked(screened_topk(queries, rows, k, exclude, threads))
    if device.startswith("cuda") and queries.size and k and len(rows) >= SCREENED * k and str(rows.dtype) in _HALVES:
        fused = _fused()
        if fused is not None:
            return ranked(fused(queries, rows, k, exclude, device, tile))
    asked = put(queries, device)

    def scores(start: int, stop: int) -> Any:
        return products(asked, put(rows[start:stop], device))

    return stream_topk(scores, len(rows), k, tile=tile or _TILE, exclude=exclude)


def is_screened(n_rows: int, k: int, width: int) -> bool:
    """Tell whether `topk` rules out most rows by a rough product on a CPU; if not, they may as well be `Split`."""
    return k > 0 and n_rows >= SCREENED * k and width <= MAX_WIDTH


def _split_topk(
    queries: np.ndarray, rows: Split, k: int, exclude: np.ndarray | None, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `topk` does; a thread does both products and heaps of some queries, so they stay in its cache."""
    ids, found = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    size = max(1, min(_QUERIES_AT_ONCE, _CELLS_AT_ONCE // max(1, len(rows))))

    def work(start: int) -> None:
        some = slice(start, start + size)
        hidden = None if exclude is None else exclude[some]
        ids[some], found[some] = ranked(_on_host(None, rows.products(queries[some]), 0, k, hidden))

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(0, len(queries), size)):
            pass
    return ids, found


def _fused() -> Callable[..., np.ndarray] | None:
    """Return the fused kernel, or None if Triton's kernels cannot run."""
    if fused_trouble():
        return None
    from gpumatch.kernels.triton_topk import fused_topk

    return fused_topk


def stream_topk(
    score_tile: Callable[[int, int], Any],
    n_rows: int,
    k: int,
    *,
    tile: int,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the K best rows of every query, best first; equal scores by ascending row number.

    Args:
        score_tile: (start, stop) → float32 [n, stop-start], the scores of those rows for the n queries; a NumPy array,
            which compiled loops go through, or a torch tensor, which stays on its device.
        n_rows: number of rows in all, below 2**32.
        k: how many to keep; if there are fewer rows, -1 fills the end.
        tile: rows per tile.
        exclude: int64 [n], a row that query i must not get, or -1.

    Returns:
        (ids int64 [n, k], scores float32 [n, k]); ids -1 and scores -inf where there are fewer than K rows.

    Raises:
        ValueError: a score is NaN, infinite or beyond LARGEST_SCORE.
    """
    best: Any = None
    for start in range(0, max(1, n_rows), tile):
        scores = score_tile(start, min(start + tile, n_rows))
        merge = _on_host if isinstance(scores, np.ndarray) else _on_device
        best = merge(best, scores, start, k, exclude)
    return ranked(host(best))


def _on_host(best: np.ndarray | None, scores: np.ndarray, start: int, k: int, exclude: np.ndarray | None) -> np.ndarray:
    """Merge a tile into the keys int64 [n, k] of the best so far, a min-heap for each query."""
    least = np.full(len(scores), -np.inf, np.float32)
    if best is None:
        best = np.full((len(scores), k), NOTHING, np.int64)
        if scores.shape[1] > k + 1 > 1:  # one more, for the row that is hidden
            # An empty heap would take in most rows, only to lose them again; NumPy selects ten times as fast.
            least = np.partition(scores, -1 - k, axis=1)[:, -1 - k]
    hidden = np.full(len(scores), -1, np.int64) if exclude is None else exclude
    if not _keep_best(scores, start, hidden, least, best):
        raise ValueError(_beyond(start, start + scores.shape[1]))
    return best


@compiled
def _keep_best(scores, start, hidden, least, best):
    """Push a tile's scores onto each query's min-heap of keys; False where a score is out of range.

    Args:
        least: float32 [n], a score that k rows and the hidden one reach, or -inf.
    """
    k = best.shape[1]
    fine = True
    for i in range(len(scores)):
        heap = best[i]
        # A step below, as what is rounded to the same step is settled by the row.
        reached = least[i] - 2 * RESOLUTION
        floor = max(floor_of(heap), reached) if k else np.inf
        for j in range(scores.shape[1]):
            score = scores[i, j]
            if not abs(score) <= LARGEST_SCORE:  # NaN fails every comparison
                fine = False
            if score >= floor and start + j != hidden[i]:
                key = key_of(np.float64(score), start + j)
                if key > heap[0]:
                    replace_least(heap, key)
                    floor = max(floor_of(heap), reached)
    return fine


def _on_device(best: Any, scores: Any, start: int, k: int, exclude: np.ndarray | None) -> Any:
    """Merge a tile into the keys as `_on_host` does; they are tensors, and in no order."""
    import torch

    if scores.numel() and not scores.abs().max() <= LARGEST_SCORE:
        raise ValueError(_beyond(start, start + scores.shape[1]))
    ids = torch.arange(start, start + scores.shape[1], device=scores.device)
    keys = keys_of(scores.double(), ids)
    if exclude is not None:
        keys.masked_fill_(ids == torch.from_numpy(exclude).to(ids.device)[:, None], NOTHING)
    if best is None:
        best = torch.full((len(scores), k), NOTHING, dtype=torch.int64, device=scores.device)
    return torch.cat([best, keys], dim=1).topk(k, dim=1).values


def _beyond(start: int, stop: int) -> str:
    return f"NaN, or more than {LARGEST_SCORE}, among the scores of rows {start} to {stop}"
