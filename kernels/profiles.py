"""Statistics of columns of two sides in, how alike their profiles are out."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumatch.kernels.compiled import compiled


def profile_table(q: Any, c: Any) -> Any:
    """Return out[j, i] = exp(-‖c[j] - q[i]‖²/2), the Gaussian kernel, float32 [m, a].

    Args:
        q: float32 [a, S], statistics of query columns, a NumPy array or a torch tensor.
        c: float32 [m, S], of candidate columns.
    """
    if not isinstance(q, np.ndarray):
        return ((c[:, None, :] - q[None, :, :]) ** 2).sum(2).mul_(-0.5).exp_()
    out = np.empty((len(c), len(q)), np.float32)
    _half_squares(np.ascontiguousarray(q.T), c, out)
    return np.exp(out, out=out)


@compiled
def _half_squares(q, c, out):
    for j in range(len(c)):
        row = out[j]
        row[:] = 0
        for s in range(len(q)):
            x = c[j, s]
            of_all = q[s]
            for i in range(len(row)):
                gap = of_all[i] - x
                row[i] -= np.float32(0.5) * gap * gap
