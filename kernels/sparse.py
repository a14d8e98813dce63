"""Sparse rows of two sides in, the dense table of their dot products out.

Only the tokens that a query row holds are looked at, so the work is the candidates' non-zeros, whatever the width.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Csr:
    """Sparse rows: start int64 [n+1], token int64 [nnz] ascending within a row, weight float32 [nnz]; width tokens."""

    start: torch.Tensor
    token: torch.Tensor
    weight: torch.Tensor
    width: int

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (row position int64 [x], token int64 [x], weight float32 [x]) of the non-zeros of rows int64 [m]."""
        first = self.start[rows]
        length = self.start[rows + 1] - first
        owner = torch.repeat_interleave(length)
        flat = torch.arange(len(owner), device=owner.device)
        flat += torch.index_select(first - (length.cumsum(0) - length), 0, owner)
        return owner, torch.index_select(self.token, 0, flat), torch.index_select(self.weight, 0, flat)


def dot_table(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    """Return out[j, i] = <candidate row c_rows[j], query row q_rows[i]>.

    Args:
        q, c: sparse rows over the same tokens, width V.
        q_rows: int64 [a], few: the tokens of these rows become a dense matrix of [tokens, a].
        c_rows: int64 [m].

    Returns:
        float32 [m, a].
    """
    owner, token, weight = q.gather(q_rows)
    held, slot = torch.unique(token, return_inverse=True)
    dense = weight.new_zeros((len(held), len(q_rows)))
    dense[slot, owner] = weight
    place = torch.full((q.width,), -1, dtype=torch.int64, device=token.device)
    place[held] = torch.arange(len(held), device=token.device)

    c_owner, c_token, c_weight = c.gather(c_rows)
    slot = torch.index_select(place, 0, c_token)
    hit = torch.nonzero(slot >= 0).squeeze(1)
    slot, c_owner, c_weight = (torch.index_select(of_all, 0, hit) for of_all in (slot, c_owner, c_weight))
    start = torch.nn.functional.pad(torch.bincount(c_owner, minlength=len(c_rows)).cumsum(0), (1, 0))
    return _product(start, slot, c_weight, (len(c_rows), len(held)), dense)


def _product(
    start: torch.Tensor, slot: torch.Tensor, weight: torch.Tensor, shape: tuple[int, int], dense: torch.Tensor
) -> torch.Tensor:
    if not (shape[0] and shape[1] and dense.shape[1]):
        return dense.new_zeros((shape[0], dense.shape[1]))
    if dense.device.type == "cpu":  # as fast as torch's own, and without its beta warning
        rows = csr_array((weight.numpy(), slot.numpy(), start.numpy()), shape=shape)
        return torch.from_numpy(rows @ dense.numpy())
    with warnings.catch_warnings():  # that sparse tensors are a beta feature, once a process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(start, slot, weight, shape) @ dense
