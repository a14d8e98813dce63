"""Statistics of columns of two sides in, how alike their profiles are out."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumatch.kernels.attention import exp
from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.lanes import BLOCK


def profile_table(q: Any, c: Any, wanted: np.ndarray | None = None) -> Any:
    """Return out[j, i] = exp(-‖c[j] - q[i]‖²/2), the Gaussian kernel, float32 [m, a].

    Args:
        q: float32 [a, S], statistics of query columns, a NumPy array or a torch tensor.
        c: float32 [m, S], of candidate columns.
        wanted: bool [m, blocks], which BLOCKs of a row are wanted; others may be left 0. None for all.
    """
    if not isinstance(q, np.ndarray):
        out = c.new_zeros((len(c), len(q)))
        for of_q, of_c in zip(q.T, c.T, strict=True):  # all of them at once would take S times the table
            gap = of_c[:, None] - of_q
            out.addcmul_(gap, gap, value=-0.5)
        return out.exp_()
    blocks = -(-len(q) // BLOCK)
    wanted = np.ones((len(c), blocks), np.bool_) if wanted is None else wanted
    out = np.zeros((len(c), len(q)), np.float32)
    _write(np.ascontiguousarray(q.T), c, wanted, out)
    return out


@compiled
def _write(q, c, wanted, out):
    for j in range(len(c)):
        begin, end = out.shape[1], 0
        for block in range(wanted.shape[1]):
            if wanted[j, block]:
                begin, end = min(begin, block * BLOCK), min(out.shape[1], (block + 1) * BLOCK)
        if begin >= end:
            continue
        row = out[j, begin:end]
        for s in range(len(q)):
            x = c[j, s]
            of_all = q[s, begin:end]
            for i in range(len(row)):
                gap = of_all[i] - x
                row[i] -= np.float32(0.5) * gap * gap
        for i in range(len(row)):
            row[i] = exp(row[i])
