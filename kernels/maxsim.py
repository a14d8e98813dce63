"""Similarities of distinct columns in; the similarities of every pair's columns and their MaxSim, both ways, out.

Layout: the candidate columns of all pairs of a chunk lie flat one after another, [m, lanes], one lane for every column
of the query that the pair belongs to. A pair is a segment of rows; a group (query) is a run of pairs.
MaxSim: Khattab and Zaharia, ColBERT, SIGIR 2020 (the mean in place of the sum, over columns in place of tokens).
"""

from __future__ import annotations

import numpy as np
import torch


def spread_table(table: torch.Tensor, c_at: torch.Tensor, q_at: torch.Tensor, c_group: torch.Tensor) -> torch.Tensor:
    """Return out[j, l] = table[c_at[j], q_at[c_group[j], l]], and 0 in the lanes that q_at fills with -1.

    Args:
        table: float32 [u, a], similarities of distinct candidate and query columns.
        c_at: int64 [m], each candidate column's row of the table.
        q_at: int64 [g, lanes], each query column's column of the table; -1 for none.
        c_group: int64 [m], the group of each candidate column.
    """
    # Lane -1 wraps to the last cell of the row before, so every row gets a zero at its end.
    table = torch.nn.functional.pad(table, (0, 1))
    width = table.shape[1]
    lanes = torch.where(q_at < 0, width - 1, q_at)
    if table.device.type != "cpu" or table.numel() >= 2**31:
        return table.view(-1)[(c_at * width)[:, None] + lanes[c_group]]
    # Three times faster than torch's indexing on a CPU, thanks to 32-bit positions.
    cells = (c_at * width).int().numpy()[:, None] + np.take(lanes.int().numpy(), c_group.numpy(), axis=0)
    return torch.from_numpy(np.take(table.numpy().reshape(-1), cells))


def segment_max(x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the maximum over each segment of rows, [p, lanes]; 0 for an empty segment.

    Args:
        x: float32 [m, lanes].
        start: int64 [p+1], segment s is rows start[s]:start[s+1]; the segments cover all rows.
    """
    return _reduce(x, start, "max")


def segment_mean(x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the mean over each segment of rows, [p, lanes]; 0 for an empty segment. Arguments as `segment_max`."""
    return _reduce(x, start, "mean")


def maxsim_forward(x: torch.Tensor, start: torch.Tensor, lanes_used: torch.Tensor) -> torch.Tensor:
    """Return the mean over a pair's query columns of the best candidate column, float32 [p]; 0 without query columns.

    Args:
        x: float32 [m, lanes], similarities of at least 0; 0 in the lanes beyond a pair's query columns.
        start: int64 [p+1], the rows of each pair.
        lanes_used: int64 [p], number of query columns of each pair.
    """
    return segment_max(x, start).sum(1) / lanes_used.clamp(min=1)


def maxsim_backward(x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the mean over a pair's candidate columns of the best query column, float32 [p]. Arguments as above."""
    best = x.amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros((len(x), 1))
    return segment_mean(best, start).squeeze(1)


def _reduce(x: torch.Tensor, start: torch.Tensor, how: str) -> torch.Tensor:
    length = start[1:] - start[:-1]
    if x.device.type != "cpu":
        reduced = torch.segment_reduce(x, how, lengths=length, axis=0, unsafe=True)
        return torch.where((length > 0)[:, None], reduced, torch.zeros_like(reduced))
    # reduceat gives x[start] for an empty segment, and is several times faster than segment_reduce on a CPU.
    out = x.new_zeros((len(length), x.shape[1]))
    full = torch.nonzero(length > 0).squeeze(1)
    if len(full) and x.shape[1]:
        ufunc = np.maximum if how == "max" else np.add
        reduced = torch.from_numpy(ufunc.reduceat(x.numpy(), start[:-1][full].numpy(), axis=0))
        out[full] = reduced if how == "max" else reduced / length[full][:, None]
    return out
