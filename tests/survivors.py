"""Pairs of queries and lake tables (or columns) as search proposes them."""

import numpy as np


def some_pairs(n_q, n_c, seed=0, most=None):
    """Survivors as search gives them: queries in any order, one left out, each with its own candidates in any order."""
    rng = np.random.default_rng(seed)
    queries = rng.permutation(n_q)[: max(1, n_q - 1)]
    survivors = [rng.permutation(n_c)[: rng.integers(1, (most or n_c) + 1)] for _ in queries]
    return np.repeat(queries, [len(some) for some in survivors]), np.concatenate(survivors)
