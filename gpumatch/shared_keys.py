"""Tables of two sides in, those that share a key out: two columns, one of which holds most of the other's rare values.

What a join of whole tables goes by besides how alike they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpumatch.features import Side, containment_evidence
from gpumatch.kernels.shares import Shares, best_shares

# So much of the smaller set in common, and less, counts nothing.
_LEAST_SHARE = 0.4


def shared_keys(q: Side, c: Side, tables: np.ndarray) -> Shares:
    """Return what some tables (int64 [n]) of one side share with each lake table, `share` being `key_containment`."""
    if c.glimpsed_tables.all() or q.glimpsed_tables[tables].all():  # nothing would be made of it
        return Shares.of_none(len(tables))
    found = best_shares(q.value_sets, tables, c.value_sets, c.holders, _LEAST_SHARE)
    size = np.minimum(q.value_count[found.query], c.value_count[found.candidate])
    return replace(found, share=containment_evidence(found.share, size))
