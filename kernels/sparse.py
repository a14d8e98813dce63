"""Sparse rows of two sides in, the dense table of their dot products out.

Only the tokens that a query row holds are looked at, so the work is the candidates' non-zeros, whatever the width.
NumPy arrays are worked on by compiled loops, torch tensors on their device, CuPy's by cuSPARSE.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.hashing import empty_table, find
from gpumatch.kernels.lanes import LANES, add_scaled, padded
from gpumatch.kernels.ragged import Csr

if TYPE_CHECKING:
    import torch

# A token is written out in full where at least one in so many query rows holds it.
_SPARSEST = 16


def dot_table(q: Csr, q_rows: Any, c: Csr, c_rows: Any) -> Any:
    """Return out[j, i] = <candidate row c_rows[j], query row q_rows[i]>.

    Args:
        q, c: sparse rows over the same tokens, width V.
        q_rows: int64 [a].
        c_rows: int64 [m].

    Returns:
        float32 [m, a], of the library and on the device of the rows' numbers.
    """
    if type(q.start).__module__.partition(".")[0] == "cupy":
        return _in_cupy(q, q_rows, c, c_rows)
    if not isinstance(q.start, np.ndarray):
        return _on_device(q, q_rows, c, c_rows)
    out = np.zeros((len(c_rows), padded(len(q_rows))), np.float32)
    _add_dots(q.start, q.token, q.weight, q_rows, c.start, c.token, c.weight, c_rows, out)
    return out[:, : len(q_rows)]


@compiled
def _add_dots(q_start, q_token, q_weight, q_rows, c_start, c_token, c_weight, c_rows, out):
    keys, shift, begin, end, holder, held = _inverted(q_start, q_token, q_weight, q_rows)
    place, dense = _common(begin, end, holder, held, out.shape[1])
    width, flat = out.shape[1], out.reshape(-1)
    for j in range(len(c_rows)):
        for entry in range(c_start[c_rows[j]], c_start[c_rows[j] + 1]):
            cell, weight = find(keys, shift, c_token[entry]), c_weight[entry]
            if keys[cell] == -1:  # most are not held, and their lists need not be looked up
                continue
            if place[cell] >= 0:
                for lane in range(0, width, LANES):
                    add_scaled(flat, j * width + lane, dense, place[cell] * width + lane, weight)
            else:
                for at in range(begin[cell], end[cell]):
                    flat[j * width + holder[at]] += weight * held[at]


@compiled
def _common(begin, end, holder, held, n):
    """Write the lists of the tokens that many rows hold out in full: whole registers of zeros are added faster."""
    place = np.full(len(begin), -1, np.int64)
    count = 0
    for cell in range(len(begin)):
        if end[cell] > begin[cell] and _SPARSEST * (end[cell] - begin[cell]) >= n:
            place[cell] = count
            count += 1
    dense = np.zeros((count, n), np.float32)
    for cell in range(len(begin)):
        if place[cell] >= 0:
            for at in range(begin[cell], end[cell]):
                dense[place[cell], holder[at]] = held[at]
    return place, dense.reshape(-1)


@compiled
def _inverted(start, token, weight, rows):
    """Return a hash table from a token to the rows that hold it: lists that lie one after another, empty for others."""
    total = 0
    for row in rows:
        total += start[row + 1] - start[row]
    keys, shift = empty_table(total)
    begin, end = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    for row in rows:
        for entry in range(start[row], start[row + 1]):
            cell = find(keys, shift, token[entry])
            keys[cell] = token[entry]
            end[cell] += 1
    at = 0
    for cell in range(len(keys)):
        begin[cell], at = at, at + end[cell]
        end[cell] = begin[cell]
    holder, held = np.empty(total, np.int64), np.empty(total, np.float32)
    for i in range(len(rows)):
        for entry in range(start[rows[i]], start[rows[i] + 1]):
            cell = find(keys, shift, token[entry])
            holder[end[cell]], held[end[cell]] = i, weight[entry]
            end[cell] += 1
    return keys, shift, begin, end, holder, held


def _on_device(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    import torch

    owner, token, weight = _gather(q, q_rows)
    held, slot = torch.unique(token, return_inverse=True)
    dense = weight.new_zeros((len(held), len(q_rows)))
    dense[slot, owner] = weight
    place = torch.full((q.width,), -1, dtype=torch.int64, device=token.device)
    place[held] = torch.arange(len(held), device=token.device)

    c_owner, c_token, c_weight = _gather(c, c_rows)
    slot = place[c_token]
    hit = torch.nonzero(slot >= 0).squeeze(1)
    start = torch.nn.functional.pad(torch.bincount(c_owner[hit], minlength=len(c_rows)).cumsum(0), (1, 0))
    if not (len(c_rows) and dense.numel()):
        return dense.new_zeros((len(c_rows), len(q_rows)))
    with warnings.catch_warnings():  # that sparse tensors are a beta feature, once a process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(start, slot[hit], c_weight[hit], (len(c_rows), len(held))) @ dense


def _gather(csr: Csr, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (row position int64 [x], token int64 [x], weight float32 [x]) of the non-zeros of rows int64 [m]."""
    import torch

    first = csr.start[rows]
    length = csr.start[rows + 1] - first
    owner = torch.repeat_interleave(length)
    flat = torch.arange(len(owner), device=owner.device) + (first - (length.cumsum(0) - length))[owner]
    return owner, csr.token[flat], csr.weight[flat]


def _in_cupy(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    """Multiply sparse rows in CuPy's arrays; the numbers of rows, and what comes out, are torch's on that device."""
    import cupy
    import cupyx.scipy.sparse
    import torch

    table = multiplied(cupyx.scipy.sparse, q, cupy.asarray(q_rows), c, cupy.asarray(c_rows))
    return torch.as_tensor(table, device=q_rows.device)


def multiplied(sparse: Any, q: Csr, q_rows: Any, c: Csr, c_rows: Any) -> Any:
    """Return `dot_table` by a module of sparse matrices: CuPy's, or SciPy's, which it is written after."""
    left = sparse.csr_matrix((c.weight, c.token, c.start), shape=(len(c.start) - 1, c.width))[c_rows]
    right = sparse.csr_matrix((q.weight, q.token, q.start), shape=(len(q.start) - 1, q.width))[q_rows]
    return (left @ right.T).toarray()
