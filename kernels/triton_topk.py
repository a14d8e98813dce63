"""Query vectors and float16 row vectors in, each query's K best rows out: product and filter in one Triton kernel.

The scores never leave the registers. A slab of rows is multiplied on the tensor cores, and for each row and query one
bit is written: whether the row may be among the query's best. Those rows are multiplied again in float64, and raise the
score that rows of the next slab, a few times larger, must reach. The answer is the one that float64 alone would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from gpumatch.kernels.dense import products
from gpumatch.kernels.devices import host, put
from gpumatch.kernels.heaps import ID_BITS, LARGEST_SCORE, NOTHING, RESOLUTION, keys_of

# Two programs of eight warps fit a multiprocessor (128 registers, 96 KB for three stages): one computes while the other
# fills its pipeline, which is needed where rows are short.
BLOCK_Q, BLOCK_R, BLOCK_W = 128, 128, 64
# Words of 32 bits that one program of `_note` looks through.
BLOCK = 1024
# Rows of a slab that can be noted for a query; a slab of so many rows always fits.
ROOM = 4096
# A slab may be so large that one in so many places of the room is used on average, if rows are in random order.
_FILL = 4
# Bytes that a slab's rows and bits may take on the device, or half of what is free if that is less; and numbers of rows
# that are scored exactly at once.
_SLAB_BYTES = 6 * 2**30
_EXACT_CELLS = 16 * 2**20
# Units in the last place of float32 and float16.
_FLOAT, _HALF = 2.0**-24, 2.0**-11


def fused_topk(
    queries: np.ndarray,
    rows: Any,
    k: int,
    exclude: np.ndarray | None,
    device: str,
    tile: int | None = None,
) -> np.ndarray:
    """Return the keys (`heaps`) of the K best rows of every query, in no order, int64 [n, k].

    Args:
        queries: float32 [n, W].
        rows: float16 [N, W], N below 2**32: on the host, and copied slab by slab, or a tensor on the device.
        k: how many to keep, at least 1.
        exclude: int64 [n], a row that query i must not get, or -1.
        device: one of torch's.
        tile: the most rows of a slab, at least ROOM; None for as many as half of the free memory holds.

    Raises:
        ValueError: NaN or an infinite number, or a best score beyond LARGEST_SCORE.
    """
    search = _Search(put(queries, device), k, exclude)
    for start, stop in search.slabs(len(rows) if len(queries) else 0, tile):
        slab = rows[start:stop] if isinstance(rows, torch.Tensor) else put(rows[start:stop], device)
        search.take(slab, start)
    return host(search.best)


class _Search:
    """The K best rows so far of n queries.

    best: int64 [n, k], their keys. floor: float32 [n], what a row must score to be better than the worst of them.
    """

    def __init__(self, queries: torch.Tensor, k: int, exclude: np.ndarray | None) -> None:
        n = len(queries)
        if not bool(queries.isfinite().all()):
            raise ValueError("NaN or an infinite number among the queries")
        self.queries, self.k = queries, k
        self.device = queries.device
        norm = torch.linalg.vector_norm(queries.double(), dim=1)
        self.scale = torch.where(norm > 0, norm, torch.ones_like(norm)).float()
        self.halves = (queries / self.scale[:, None]).half()
        # How far a score may be off for rows of length 1: what rounding took away of each query, and float32 sums.
        lost = torch.linalg.vector_norm(queries.double() / self.scale[:, None].double() - self.halves.double(), dim=1)
        self.error = lost.float() * (1 + _HALF) + 2 * (queries.shape[1] + 8) * _FLOAT
        hidden = torch.full((n,), -1, dtype=torch.int64) if exclude is None else torch.from_numpy(exclude)
        self.hidden = hidden.to(self.device)
        self.best = torch.full((n, k), NOTHING, dtype=torch.int64, device=self.device)
        self.floor = torch.full((n,), -torch.inf, device=self.device)

    def slabs(self, n_rows: int, tile: int | None) -> Iterator[tuple[int, int]]:
        """Yield which rows to take next: more and more of them, since ever fewer are better than the best so far."""
        free = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else _SLAB_BYTES
        bytes_of_row = 2 * self.queries.shape[1] + triton.cdiv(len(self.queries), BLOCK_Q) * BLOCK_Q // 8
        most = max(ROOM, min(_SLAB_BYTES, free) // bytes_of_row if tile is None else tile)
        start = 0
        while start < n_rows:
            stop = start + min(most, max(ROOM, start * ROOM // (_FILL * self.k)))
            yield start, min(stop, n_rows)
            start = stop

    def take(self, rows: torch.Tensor, start: int, of: Any = slice(None)) -> None:
        """Go through a slab of rows, the first of which is number `start`, for all queries or for `of`, int64 [m]."""
        size = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).amax()
        if not bool(size.isfinite()):
            raise ValueError(f"NaN or an infinite number among rows {start} to {start + len(rows)}")
        floor, scale, allowed = self.floor[of], self.scale[of], self.error[of] * size
        least = floor / scale - allowed
        if bool(floor.isinf().any()) and self.k <= len(rows) <= ROOM:
            # Nothing is known yet: K rows of this slab reach the K-th rough score, so the best do; a step less may tie.
            hides = self.hidden[of][:, None] == torch.arange(start, start + len(rows), device=self.device)
            rough = products(self.halves[of].float(), rows).masked_fill_(hides, -torch.inf)
            kth = rough.topk(self.k, dim=1).values[:, -1]
            least = torch.maximum(least, kth - 2 * allowed - 2 * RESOLUTION / scale)
        places, counts = self._filter(rows, start, least, of)
        too_many = counts > ROOM
        counts = torch.where(too_many, 0, counts)
        most = int(counts.max())
        if most:
            self._keep(rows, start, places[:, :most].long(), counts, of)
        # Of these queries alone: one that scores all rows alike (an empty query) must not repeat the others' work.
        again = torch.nonzero(too_many).squeeze(1)
        if len(again):
            left, middle = torch.arange(len(self.queries), device=self.device)[of][again], len(rows) // 2
            self.take(rows[:middle], start, left)
            self.take(rows[middle:], start + middle, left)

    def _filter(
        self, rows: torch.Tensor, start: int, least: torch.Tensor, of: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which rows of a slab may reach `least`: (int32 [m, ROOM] in any order, how many int32 [m])."""
        halves, n, width = self.halves[of], len(least), self.queries.shape[1]
        places = torch.empty((n, ROOM), dtype=torch.int32, device=self.device)
        counts = torch.zeros(n, dtype=torch.int32, device=self.device)
        query_blocks = triton.cdiv(n, BLOCK_Q)
        tiles = query_blocks * triton.cdiv(len(rows), BLOCK_R)
        bits = torch.empty((tiles, BLOCK_Q, BLOCK_R // 32), dtype=torch.int32, device=self.device)
        hidden = self.hidden[of] - start  # below 0 or beyond the slab's end if it is not in the slab
        # Fusion is of no matter here, but Triton warns if it is not told.
        _reaching[(tiles,)](
            halves, rows.contiguous(), least, hidden, bits, n, len(rows), query_blocks,
            W=width, BLOCK_Q=BLOCK_Q, BLOCK_R=BLOCK_R, BLOCK_W=BLOCK_W, num_warps=8, num_stages=3,
            enable_fp_fusion=True,
        )  # fmt: skip
        _note[(triton.cdiv(bits.numel(), BLOCK),)](
            bits, places, counts, bits.numel(), query_blocks,
            ROOM=ROOM, BLOCK_Q=BLOCK_Q, WORDS=BLOCK_R // 32, BLOCK=BLOCK, enable_fp_fusion=True,
        )  # fmt: skip
        return places, counts

    def _keep(self, rows: torch.Tensor, start: int, places: torch.Tensor, counts: torch.Tensor, of: Any) -> None:
        """Score noted rows (int64 [n, m], the first counts[i] of each) in float64 and merge them into the best."""
        queries, (n, m) = self.queries[of], places.shape
        there = torch.arange(m, device=self.device) < counts[:, None]
        places = torch.where(there, places, 0)
        scores = torch.empty((n, m), dtype=torch.float64, device=self.device)
        some = max(1, _EXACT_CELLS // max(1, m * rows.shape[1]))
        for a in range(0, n, some):
            gathered = rows[places[a : a + some]].double()
            scores[a : a + some] = (gathered @ queries[a : a + some].double()[:, :, None])[:, :, 0]
        if bool((there & ~(scores.abs() <= LARGEST_SCORE)).any()):
            raise ValueError(f"more than {LARGEST_SCORE} among the scores of rows {start} to {start + len(rows)}")
        keys = torch.where(there, keys_of(scores, places + start), NOTHING)
        best = torch.cat([self.best[of], keys], dim=1).topk(self.k, dim=1).values
        worst = best.amin(dim=1)
        # A step lower because keys are rounded to steps, and a little more because the floor is rounded to float32.
        floor = ((worst >> ID_BITS) - 1).double() * RESOLUTION
        floor = torch.where(worst == NOTHING, -torch.inf, floor - floor.abs() * 2 * _FLOAT)
        self.best[of], self.floor[of] = best, floor.float()


@triton.jit
def _reaching(
    queries,
    rows,
    least,
    hidden,
    bits,
    n_queries,
    n_rows,
    query_blocks,
    W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Write a tile of bits: whether a row's product with a query is at least that query's `least`."""
    # Programs that run together share rows, which so are read from memory once; the queries stay in the L2 cache.
    block = tl.program_id(0)
    q = (block % query_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    r = (block // query_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    q_from = queries + q.to(tl.int64)[:, None] * W
    r_from = rows + r.to(tl.int64)[None, :] * W
    total = tl.zeros((BLOCK_Q, BLOCK_R), tl.float32)
    for first in range(0, W, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        a = tl.load(q_from + w[None, :], mask=(q[:, None] < n_queries) & (w[None, :] < W), other=0.0)
        b = tl.load(r_from + w[:, None], mask=(r[None, :] < n_rows) & (w[:, None] < W), other=0.0)
        total = tl.dot(a, b, total)
    wanted = tl.load(least + q, mask=q < n_queries, other=float("inf"))
    not_that = tl.load(hidden + q, mask=q < n_queries, other=-1)
    reaches = (total >= wanted[:, None]) & (r[None, :] < n_rows) & (r[None, :] != not_that[:, None])
    of_words = tl.reshape(reaches.to(tl.int32), (BLOCK_Q, BLOCK_R // 32, 32))
    words = tl.sum(of_words << tl.arange(0, 32)[None, None, :], 2)
    at = tl.arange(0, BLOCK_Q)[:, None] * (BLOCK_R // 32) + tl.arange(0, BLOCK_R // 32)[None, :]
    tl.store(bits + block.to(tl.int64) * (BLOCK_Q * (BLOCK_R // 32)) + at, words)


@triton.jit
def _note(
    bits,
    places,
    counts,
    n_words,
    query_blocks,
    ROOM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Append the rows whose bits are set to their queries' places, as far as there is room, and count them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + at, mask=at < n_words, other=0)
    tile = at // (BLOCK_Q * WORDS)
    inside = at % (BLOCK_Q * WORDS)
    q = (tile % query_blocks) * BLOCK_Q + inside // WORDS
    first = ((tile // query_blocks) * WORDS + inside % WORDS) * 32
    left = tl.sum((word != 0).to(tl.int32), 0)
    while left > 0:
        there = word != 0
        # The lowest bit that is set; as a float32 its exponent is the bit's place.
        lowest = (word & -word).to(tl.uint32, bitcast=True).to(tl.float32)
        row = first + (lowest.to(tl.int32, bitcast=True) >> 23) - 127
        place = tl.atomic_add(counts + q, 1, mask=there)
        tl.store(places + q * ROOM + place, row.to(tl.int32), mask=there & (place < ROOM))
        word = word & (word - 1)
        left = tl.sum((word != 0).to(tl.int32), 0)
