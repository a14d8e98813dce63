"""Query vectors and row vectors in, each query's K best rows out, without ever holding all the scores.

The product is streamed over tiles of rows; a running top-K is merged after each. Ties are settled by row number, so the
answer does not depend on how a device sorts. Products of other tile shapes round otherwise in the last bits, so of rows
within RESOLUTION of each other either may come first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Scores closer than this are one score: float32 products of the same rows differ in the last bits between tile shapes.
RESOLUTION = 1e-6
# Scores are counted in steps of RESOLUTION in 31 bits, the row number in the other 32.
LARGEST_SCORE = 2000.0
_ID_BITS = 32


def stream_topk(
    score_tile: Callable[[int, int], torch.Tensor],
    n_rows: int,
    k: int,
    *,
    tile: int,
    exclude: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the K best rows of every query, best first; equal scores by ascending row number.

    Args:
        score_tile: (start, stop) → float32 [n, stop-start], the scores of those rows for the n queries.
        n_rows: number of rows in all, below 2**32.
        k: how many to keep; fewer rows than that leave -1 at the end.
        tile: rows per tile.
        exclude: int64 [n], a row that query i must not get, or -1.

    Returns:
        (ids int64 [n, k], scores float32 [n, k]); ids -1 and scores -inf where there are not K rows.

    Raises:
        ValueError: a score is NaN, infinite or beyond LARGEST_SCORE.
    """
    best: torch.Tensor | None = None
    for start in range(0, n_rows, tile):
        stop = min(start + tile, n_rows)
        scores = score_tile(start, stop)
        if scores.numel() and not scores.abs().max() <= LARGEST_SCORE:  # NaN fails every comparison
            raise ValueError(f"NaN, or more than {LARGEST_SCORE}, among the scores of rows {start} to {stop}")
        ids = torch.arange(start, stop, device=scores.device)
        # One integer orders by score first and row number second, so any top-K of it is deterministic.
        keys = (scores.double() / RESOLUTION).round_().long()
        keys = keys.bitwise_left_shift_(_ID_BITS).bitwise_or_((1 << _ID_BITS) - 1 - ids)
        if exclude is not None:
            keys.masked_fill_(ids == exclude.to(ids.device)[:, None], _NOTHING)
        merged = keys if best is None else torch.cat([best, keys], dim=1)
        best = merged.topk(min(k, merged.shape[1]), dim=1).values
    if best is None:
        best = score_tile(0, 0).long()
    best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=_NOTHING)
    ids = (1 << _ID_BITS) - 1 - (best & ((1 << _ID_BITS) - 1))
    scores = ((best >> _ID_BITS).double() * RESOLUTION).float()
    gone = best == _NOTHING
    return ids.masked_fill(gone, -1), scores.masked_fill(gone, -torch.inf)


_NOTHING = torch.iinfo(torch.int64).min
