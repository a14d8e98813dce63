"""Query vectors and row vectors in, each query's K best rows out, without ever holding all the scores.

The product is streamed over tiles of rows; a running top-K is merged after each. Ties are settled by row number, so the
answer does not depend on how a device sorts. Products of other tile shapes round otherwise in the last bits, so of rows
within RESOLUTION of each other either may come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.devices import host

# Scores closer than this are one score: float32 products of the same rows differ in the last bits between tile shapes.
RESOLUTION = 1e-6
# Scores are counted in steps of RESOLUTION in 31 bits, the row number in the other 32: one integer orders by score
# first and row number second, so any top-K of it is deterministic.
LARGEST_SCORE = 2000.0
_ID_BITS = 32
_LAST_ID = (1 << _ID_BITS) - 1
_NOTHING = int(np.iinfo(np.int64).min)


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
        k: how many to keep; fewer rows than that leave -1 at the end.
        tile: rows per tile.
        exclude: int64 [n], a row that query i must not get, or -1.

    Returns:
        (ids int64 [n, k], scores float32 [n, k]); ids -1 and scores -inf where there are not K rows.

    Raises:
        ValueError: a score is NaN, infinite or beyond LARGEST_SCORE.
    """
    best: Any = None
    for start in range(0, max(1, n_rows), tile):
        scores = score_tile(start, min(start + tile, n_rows))
        merge = _on_host if isinstance(scores, np.ndarray) else _on_device
        best = merge(best, scores, start, k, exclude)
    best = np.sort(host(best), axis=1)[:, ::-1]
    gone = best == _NOTHING
    ids = np.where(gone, -1, _LAST_ID - (best & _LAST_ID))
    scores = np.where(gone, -np.inf, (best >> _ID_BITS) * RESOLUTION).astype(np.float32)
    return ids, scores


def _on_host(best: np.ndarray | None, scores: np.ndarray, start: int, k: int, exclude: np.ndarray | None) -> np.ndarray:
    """Merge a tile into the keys int64 [n, k] of the best so far, a min-heap for each query."""
    if best is None:
        best = np.full((len(scores), k), _NOTHING, np.int64)
    hidden = np.full(len(scores), -1, np.int64) if exclude is None else exclude
    if not _keep_best(scores, start, hidden, best):
        raise ValueError(_beyond(start, start + scores.shape[1]))
    return best


@compiled
def _keep_best(scores, start, hidden, best):
    """Push a tile's scores onto each query's min-heap of keys; False where a score is out of range."""
    k = best.shape[1]
    fine = True
    for i in range(len(scores)):
        heap = best[i]
        floor = _floor(heap) if k else np.inf
        for j in range(scores.shape[1]):
            score = scores[i, j]
            if not abs(score) <= LARGEST_SCORE:  # NaN fails every comparison
                fine = False
            if score >= floor and start + j != hidden[i]:
                key = (np.int64(np.rint(np.float64(score) / RESOLUTION)) << _ID_BITS) | (_LAST_ID - (start + j))
                if key > heap[0]:
                    _replace_least(heap, key)
                    floor = _floor(heap)
    return fine


@compiled
def _floor(heap):
    """Return a score that everything better than the least key reaches: a step below, for the rounding."""
    return -np.inf if heap[0] == _NOTHING else ((heap[0] >> _ID_BITS) - 1) * RESOLUTION


@compiled
def _replace_least(heap, key):
    at, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key


def _on_device(best: Any, scores: Any, start: int, k: int, exclude: np.ndarray | None) -> Any:  # noqa: ANN401
    """Merge a tile into the keys, as `_on_host`; tensors, in no order."""
    import torch

    if scores.numel() and not scores.abs().max() <= LARGEST_SCORE:
        raise ValueError(_beyond(start, start + scores.shape[1]))
    ids = torch.arange(start, start + scores.shape[1], device=scores.device)
    keys = (scores.double() / RESOLUTION).round_().long()
    keys = keys.bitwise_left_shift_(_ID_BITS).bitwise_or_(_LAST_ID - ids)
    if exclude is not None:
        keys.masked_fill_(ids == torch.from_numpy(exclude).to(ids.device)[:, None], _NOTHING)
    if best is None:
        best = torch.full((len(scores), k), _NOTHING, dtype=torch.int64, device=scores.device)
    return torch.cat([best, keys], dim=1).topk(k, dim=1).values


def _beyond(start: int, stop: int) -> str:
    return f"NaN, or more than {LARGEST_SCORE}, among the scores of rows {start} to {stop}"
