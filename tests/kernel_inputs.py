"""What several kernels are tested on, and how what they find is judged."""

from __future__ import annotations

import numpy as np

from gpumatch.kernels import heaps, reference
from gpumatch.kernels.maxsim import Similarity


def vectors(n, width, seed, kind=np.float32):
    """Unit vectors, a few of them twice."""
    rng = np.random.default_rng([seed, n, width])
    found = rng.normal(size=(n, width))
    found /= np.maximum(1e-9, np.linalg.norm(found, axis=1, keepdims=True))
    if n > 2:
        found[rng.integers(0, n, n // 4)] = found[rng.integers(0, n, n // 4)]
    return found.astype(kind)


def assert_best_keys(keys, queries, rows, k, exclude):
    """Keys are those of the k best rows by products in float64."""
    assert keys.dtype == np.int64
    assert keys.shape == (len(queries), k)
    wanted = reference.topk(queries.astype(np.float64) @ rows.astype(np.float64).T, k, exclude)
    ids, scores = heaps.ranked(keys)
    np.testing.assert_array_equal(ids, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], rtol=2e-7, atol=1e-9)


def similarities(lanes, columns, unknown, rng):
    """Three similarities between that many query and candidate columns; the last is not known everywhere."""
    found = []
    for kind in range(3):
        u, a = int(rng.integers(1, columns + 2)), int(rng.integers(1, lanes + 2))
        table = rng.uniform(0, 1, (u, a)).astype(np.float32)
        if kind == 2:
            table[rng.uniform(size=table.shape) < unknown] = -1
        found.append(Similarity(table, rng.integers(0, a, lanes), rng.integers(0, u, columns)))
    return found
