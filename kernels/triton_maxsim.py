"""Similarities of distinct columns in, as tensors; MaxSim of every pair of tables, both ways, out; one Triton kernel.

Nothing is laid out for the pairs: a program reads every cell of its pair where it lies in the tables, and writes one
number. Each cell is read once for each of the two ways, the second time mostly from a cache.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from gpumatch.kernels import devices
from gpumatch.kernels.maxsim import PRODUCT, Pairs
from gpumatch.kernels.ragged import offsets_of

# Columns of either side that are compared at once: most tables have fewer, and the registers of four warps hold a tile.
BLOCK = 32
_PRODUCT = tl.constexpr(PRODUCT)


def maxsim_fused(pairs: Pairs, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `maxsim.maxsim` does, of pairs whose similarities' tables are float32 tensors on one device."""
    shape = len(pairs.pair_c), len(terms)
    if not all(shape):
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    tables = [one.table for one in pairs.similarities]
    cells = torch.cat([table.reshape(-1) for table in tables])
    above = offsets_of(np.array([table.numel() for table in tables]))[:-1]
    # A cell's place is the sum of a number of its row and one of its column; the kernel need not know which is which.
    row_at = [one.c_at * table.shape[1] + at for one, table, at in zip(pairs.similarities, tables, above, strict=True)]
    column_at = [one.q_at for one in pairs.similarities]

    def put(array: np.ndarray) -> torch.Tensor:
        there: torch.Tensor = devices.put(array, cells.device)
        return there

    q = put(np.stack(column_at)), len(column_at[0]), put(pairs.q_start), put(pairs.pair_q)
    c = put(np.stack(row_at)), len(row_at[0]), put(pairs.c_start), put(pairs.pair_c)
    asked = put(terms)
    means = torch.empty((2, *shape), dtype=torch.float32, device=cells.device)
    for axis, (own, other) in enumerate(((q, c), (c, q))):
        # No sum here is of products, so fusion changes nothing; Triton warns if it is not told.
        _mean_of_best[(shape[0] * shape[1],)](
            cells, asked, len(terms), *own, *other, means[axis], AXIS=axis, BLOCK=BLOCK, enable_fp_fusion=False
        )
    forward, backward = devices.host(means)
    return forward, backward


# Chunk sizes vary; specialising would recompile whenever a size or an address is a multiple of 16.
@triton.jit(do_not_specialize=["n_terms", "n_own", "n_other", "means"])
def _mean_of_best(
    cells,
    terms,
    n_terms,
    own_at,
    n_own,
    own_start,
    own_of,
    other_at,
    n_other,
    other_start,
    other_of,
    means,
    AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the mean, over the columns of a pair's own side, of the best column of the other side.

    A tile's rows are candidate columns and its columns query columns, whichever side is `own`: neighbouring query
    columns are likely neighbours in a table, and neighbouring threads read them. AXIS is that of the other side.
    """
    program = tl.program_id(0)
    pair = program // n_terms
    term = terms + program % n_terms * 3
    product = tl.load(term) == _PRODUCT
    a = tl.load(term + 1)
    b = tl.load(term + 2)
    own_group = own_start + tl.load(own_of + pair)
    own_begin = tl.load(own_group)
    own_end = tl.load(own_group + 1)
    other_group = other_start + tl.load(other_of + pair)
    other_begin = tl.load(other_group)
    other_end = tl.load(other_group + 1)
    block = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for own_first in range(own_begin, own_end, BLOCK):
        own = own_first + block
        here = own < own_end
        own_a = tl.expand_dims(tl.load(own_at + a * n_own + own, mask=here, other=0), AXIS)
        own_b = tl.expand_dims(tl.load(own_at + b * n_own + own, mask=here, other=0), AXIS)
        best = tl.zeros((BLOCK, BLOCK), tl.float32)
        for other_first in range(other_begin, other_end, BLOCK):
            other = other_first + block
            there = other < other_end
            other_a = tl.expand_dims(tl.load(other_at + a * n_other + other, mask=there, other=0), 1 - AXIS)
            other_b = tl.expand_dims(tl.load(other_at + b * n_other + other, mask=there, other=0), 1 - AXIS)
            both = tl.expand_dims(here, AXIS) & tl.expand_dims(there, 1 - AXIS)
            # Cells beyond the tables are 0, and so are their mean and product; no similarity is less.
            x = tl.load(cells + (own_a + other_a), mask=both, other=0.0)
            y = tl.load(cells + (own_b + other_b), mask=both, other=0.0)
            best = tl.maximum(best, tl.where(x < 0, y, tl.where(product, x * y, (x + y) * 0.5)))
        total += tl.max(best, AXIS)
    tl.store(means + program, tl.sum(total, 0) / tl.maximum(own_end - own_begin, 1).to(tl.float32))
