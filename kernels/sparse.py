"""Sparse rows of two sides in, the dense table of their dot products out.

Only the tokens that a query row holds are looked at, so the work is the candidates' non-zeros, whatever the width.
NumPy arrays are worked on by compiled loops, torch tensors on their device, CuPy's by cuSPARSE.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.devices import clipped
from gpumatch.kernels.lanes import BLOCK, clip_cells, write_row_sums
from gpumatch.kernels.ragged import Csr

if TYPE_CHECKING:
    import torch

# Numbers of query rows that are written out in full at once: a few MB, which stay in the processor's cache.
_MOST_WRITTEN = 1 << 21
# The same on a device, where larger products are faster: 512 MB; and non-zeros of candidates: some 2 GB on the way.
_MOST_THERE, _MOST_NONZEROS = 1 << 26, 1 << 25
# Torch's warnings when sparse tensors are made; both are known and of no matter here.
_KNOWN = ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled")


def dot_table(q: Csr, q_rows: Any, c: Csr, c_rows: Any, wanted: np.ndarray | None = None, *, clip: bool = False) -> Any:
    """Return out[j, i] = <candidate row c_rows[j], query row q_rows[i]>.

    Args:
        q, c: sparse rows over the same tokens, width V.
        q_rows: int64 [a].
        c_rows: int64 [m].
        wanted: bool [m, blocks], which BLOCKs of a row are wanted; others may be left 0. None for all.
        clip: whether to clip the products to [0, 1].

    Returns:
        float32 [m, a], of the library and on the device of q_rows and c_rows.
    """
    if not isinstance(q.start, np.ndarray):
        of = _in_cupy if type(q.start).__module__.partition(".")[0] == "cupy" else _on_device
        table = of(q, q_rows, c, c_rows)
        return clipped(table) if clip else table
    blocks = -(-len(q_rows) // BLOCK)
    wanted = np.ones((len(c_rows), blocks), np.bool_) if wanted is None else wanted
    out = np.zeros((len(c_rows), blocks * BLOCK), np.float32)
    place = _scratch.of(q.width)
    for some in _parts(q.start, q_rows, _MOST_WRITTEN):
        try:
            _write_dots(
                q.start, q.token, q.weight, q_rows[some], c.start, c.token, c.weight, c_rows, place, wanted, out,
                some.start, clip,
            )  # fmt: skip
        except BaseException:  # no memory, say: not all places are -1 again
            _scratch.forget()
            raise
    return out[:, : len(q_rows)]


def _parts(start: Any, rows: Any, most: int) -> Iterator[slice]:
    """Cut query rows into parts of which at most `most` numbers are written out, or of BLOCK rows."""
    lengths = (start[1:] - start[:-1])[rows].tolist()
    first = tokens = 0
    for i in range(0, len(rows), BLOCK):
        more = sum(lengths[i : i + BLOCK])
        if i > first and (tokens + more) * (i + BLOCK - first) > most:
            yield slice(first, i)
            first, tokens = i, 0
        tokens += more
    if first < len(rows):
        yield slice(first, len(rows))


class _Scratch(threading.local):
    """A place for each token; every user leaves all of them -1 again: to fill it anew would take longest of all."""

    _places = np.empty(0, np.int32)

    def of(self, width: int) -> np.ndarray:
        if len(self._places) < width:
            self._places = np.full(width, -1, np.int32)
        return self._places

    def forget(self) -> None:
        self._places = np.empty(0, np.int32)


_scratch = _Scratch()


@compiled
def _write_dots(
    q_start, q_token, q_weight, q_rows, c_start, c_token, c_weight, c_rows, place, wanted, out, first, clip
):
    """Write the columns of `out` from `first` on. Tokens are below 2**32: as uint32 they index without a sign check."""
    n = _number(q_start, q_token, q_rows, place)
    width = -(-len(q_rows) // BLOCK) * BLOCK
    whole = _written_out(q_start, q_token, q_weight, q_rows, place, n, width)
    longest = 0
    for row in c_rows:
        longest = max(longest, c_start[row + 1] - c_start[row])
    slots, weights = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.float32)
    flat, stride = out.reshape(-1), out.shape[1]
    for j in range(len(c_rows)):
        begin, end = c_start[c_rows[j]], c_start[c_rows[j] + 1]
        token, weight, held = c_token[begin:end], c_weight[begin:end], np.uint32(0)
        for entry in range(len(token)):  # no branch, since whether a token is held cannot be predicted
            slot = place[np.uint32(token[entry])]
            slots[held], weights[held] = slot, weight[entry]
            held += np.uint32(slot >= 0)
        to, n = j * stride + first, np.int64(held)
        a = b = c = -1  # blocks that wait until there are four
        for lane in range(0, width, BLOCK):
            if not wanted[j, (first + lane) // BLOCK]:
                continue
            if c >= 0:
                write_row_sums(flat, to, whole, width, a, b, c, lane, slots, weights, n)
                a = b = c = -1
            else:
                a, b, c = (lane, a, b) if a < 0 else (a, lane, b) if b < 0 else (a, b, lane)
        if a >= 0:  # the first one stands in for those that are missing
            write_row_sums(flat, to, whole, width, a, b if b >= 0 else a, c if c >= 0 else a, a, slots, weights, n)
        if clip:
            _clip_row(flat, to, wanted[j, first // BLOCK : (first + width) // BLOCK])
    _forget(q_start, q_token, q_rows, place)


@compiled
def _written_out(start, token, weight, rows, place, n, width):
    """Return a row for each of n numbered tokens, one after another: its weight in each of the rows, then 0."""
    whole = np.zeros(n * width, np.float32)
    for i in range(len(rows)):
        for entry in range(start[rows[i]], start[rows[i] + 1]):
            whole[place[np.uint32(token[entry])] * width + i] = weight[entry]
    return whole


@compiled
def _clip_row(cells, at, wanted):
    for block in range(len(wanted)):
        if wanted[block]:
            clip_cells(cells, at + block * BLOCK)


@compiled
def _number(start, token, rows, place):
    """Give the distinct tokens of some rows numbers, in the order in which they come; return how many there are."""
    n = 0
    for row in rows:
        for entry in range(start[row], start[row + 1]):
            if place[token[entry]] < 0:
                place[token[entry]] = n
                n += 1
    return n


@compiled
def _forget(start, token, rows, place):
    for row in rows:
        for entry in range(start[row], start[row + 1]):
            place[token[entry]] = -1


def _on_device(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    """Return `dot_table` of torch tensors.

    Sums are made in float64: torch's sparse product on CUDA adds in an order of its own, another one in each run, and
    only then does no float32 tell.
    """
    import torch

    _expect_warnings()
    held = int((c.start[c_rows + 1] - c.start[c_rows]).sum())
    pieces = c_rows.tensor_split(max(1, -(-held // _MOST_NONZEROS)))
    tables = [_products_on_device(q, q_rows, c, some) for some in pieces]
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def _products_on_device(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    import torch

    c_owner, c_token, c_weight = _gather(c, c_rows)
    tables = [c_weight.new_zeros((len(c_rows), 0))]
    for some in _parts(q.start, q_rows, _MOST_THERE):
        owner, token, weight = _gather(q, q_rows[some])
        held, slot = torch.unique(token, return_inverse=True)
        dense = torch.zeros((len(held), some.stop - some.start), dtype=torch.float64, device=weight.device)
        dense[slot, owner] = weight.double()
        place = torch.full((q.width,), -1, dtype=torch.int64, device=token.device)
        place[held] = torch.arange(len(held), device=token.device)
        slot = place[c_token]
        hit = torch.nonzero(slot >= 0).squeeze(1)
        if len(hit):
            start = torch.nn.functional.pad(torch.bincount(c_owner[hit], minlength=len(c_rows)).cumsum(0), (1, 0))
            rows = torch.sparse_csr_tensor(start, slot[hit], c_weight[hit].double(), (len(c_rows), len(held)))
            tables.append((rows @ dense).float())
        else:
            tables.append(weight.new_zeros((len(c_rows), dense.shape[1])))
    return tables[1] if len(tables) == 2 else torch.cat(tables, dim=1)


@cache
def _expect_warnings() -> None:
    """Have torch's warnings of what is known here left out; `catch_warnings` is not for several threads."""
    for said in _KNOWN:
        warnings.filterwarnings("ignore", said, UserWarning)


def _gather(csr: Csr, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (row position int64 [x], token int64 [x], weight float32 [x]) of the non-zeros of rows int64 [m]."""
    import torch

    first = csr.start[rows]
    length = csr.start[rows + 1] - first
    owner = torch.repeat_interleave(length)
    flat = torch.arange(len(owner), device=owner.device) + (first - (length.cumsum(0) - length))[owner]
    return owner, csr.token[flat].long(), csr.weight[flat]


def _in_cupy(q: Csr, q_rows: torch.Tensor, c: Csr, c_rows: torch.Tensor) -> torch.Tensor:
    """Multiply sparse rows in CuPy's arrays; q_rows, c_rows and the result are torch tensors on the same device."""
    import cupy
    import cupyx.scipy.sparse
    import torch

    table = multiplied(cupyx.scipy.sparse, q, cupy.asarray(q_rows), c, cupy.asarray(c_rows))
    return torch.as_tensor(table, device=q_rows.device)


def multiplied(sparse: Any, q: Csr, q_rows: Any, c: Csr, c_rows: Any) -> Any:
    """Return `dot_table` by a module of sparse matrices: CuPy's, or SciPy's, which has the same functions."""
    left = sparse.csr_matrix((c.weight, c.token, c.start), shape=(len(c.start) - 1, c.width))[c_rows]
    right = sparse.csr_matrix((q.weight, q.token, q.start), shape=(len(q.start) - 1, q.width))[q_rows]
    return (left @ right.T).toarray()
