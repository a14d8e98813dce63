"""Sets of hashed values of two sides in, the exact number of values that every two of them have in common out.

Exact set containment search by an inverted index: Zhu et al., JOSIE, SIGMOD 2019; here every overlap is counted to the
end, while JOSIE stops early for the k largest.

For each value of a query there is a list of the lake's sets that hold it; values that no query holds are dropped at
once. A query walks the lists of its values and counts, for each set of the lake, how often it meets it. The work is the
sum, over values, of the queries that hold it times the sets of the lake that do. Counters are kept for a part of the
lake at a time, so that their memory is bounded however large the lake is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.devices import host, put
from gpumatch.kernels.hashing import SPREAD
from gpumatch.kernels.ragged import offsets_of

if TYPE_CHECKING:
    import torch

# The most bytes that counting takes, over all threads, beside copies of the sets and the result.
_SCRATCH = 64 << 20
# If at least one in so many sets of the lake holds a value, or is met by a query, it is faster to add to and to look
# through whole registers of counters than single ones.
_SPARSEST = 16
# The kernel's threads a block, its blocks, and its threads a value (LANES in overlap.cu).
_BLOCK, _BLOCKS, _LANES = 256, 65535, 32


@dataclass(frozen=True)
class Sets:
    """Sets of hashed values: set i has value[start[i]:start[i+1]].

    start: int64 [n+1]. value: uint64 [nnz], distinct within a set, in any order.
    """

    start: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a query and a set of the lake that have values in common: query i has start[i]:start[i+1].

    start: int64 [n_q+1]. column: int64 [x], sets of the lake, ascending within a query. count: int32 [x], values in
    common.
    """

    start: np.ndarray
    column: np.ndarray
    count: np.ndarray


def overlap(q: Sets, c: Sets, least: np.ndarray | None = None, *, threads: int = 1, device: str = "cpu") -> Overlaps:
    """Return every pair of a query and a set of the lake that have enough values in common.

    Args:
        q: n_q sets. c: the lake's sets.
        least: int64 [n_q], how many values query i must have in common with a set, at least 1; None for 1. For
            containment of at least t, ceil(t·|Q|).
        threads: how many work at once, on "cpu".
        device: "cpu" counts with compiled loops, "cuda" with the kernel of overlap.cu if CuPy is installed; any other
            device of torch's, and "cuda" without CuPy, counts with torch.
    """
    enough = np.ones(len(q), np.int32) if least is None else np.clip(least, 1, np.iinfo(np.int32).max).astype(np.int32)
    if not (len(q.value) and len(c.value)):
        return _joined(len(q), [])
    if device == "cpu":
        return _on_host(q, c, enough, threads)
    cupy = _cupy() if device.startswith("cuda") else None
    if cupy is None:
        return _joined(len(q), _with_torch(q, c, enough, device))
    with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
        found = _joined(len(q), _with_kernel(cupy, _launch, q, c, enough))
        cupy.get_default_memory_pool().free_all_blocks()  # CuPy would keep from torch what it no longer needs
    return found


# --- compiled loops


@dataclass(frozen=True)
class _Part:
    """Some neighbouring sets of the lake, by the queries' values that they hold.

    first: the first of the sets; width: how many they are.
    begin, end: int64 [d], where the list of each value lies; column: int32, the lists, ascending sets.
    place: int64 [d], the row of a list that is written out in full, or -1; full: uint8 [f, width], 1 where a set holds
        the value.
    work: int64 [n_q], the lengths of the lists of each query's values, summed.
    """

    first: int
    width: int
    begin: np.ndarray
    end: np.ndarray
    column: np.ndarray
    place: np.ndarray
    full: np.ndarray
    work: np.ndarray


def _on_host(q: Sets, c: Sets, least: np.ndarray, threads: int) -> Overlaps:
    cells, shift, q_id, n_values = _numbered(q.value)
    c_id = np.empty(len(c.value), np.int64)
    size, start = np.zeros(len(q), np.int64), np.zeros(len(q) + 1, np.int64)
    with ThreadPoolExecutor(threads) as pool:
        cuts = np.linspace(0, len(c_id), threads + 1).astype(np.int64).tolist()
        slices = [slice(*cut) for cut in pairwise(cuts)]
        list(pool.map(lambda some: _look_up(cells, shift, c.value[some], c_id[some]), slices))
        lists, column = _lists(c.start, c_id, n_values)

        def each_part(loop: Callable[..., None], *more: np.ndarray) -> None:
            for part in _parts(q.start, q_id, lists, column, len(c), threads):
                some = [
                    (q.start, q_id, least, part.work, *block, part.first, part.width, part.begin, part.end, part.column,
                     part.place, part.full, *more)
                    for block in _blocks(part, threads)
                ]  # fmt: skip
                list(pool.map(lambda arguments: loop(*arguments), some))

        # Counted twice: that takes less than keeping, and then copying, a result of unknown size.
        each_part(_sizes, size)
        start = offsets_of(size)
        found, count = np.empty(int(start[-1]), np.int64), np.empty(int(start[-1]), np.int32)
        each_part(_fill, start[:-1].copy(), start[1:], found, count)
    return Overlaps(start, found, count)


def _parts(
    q_start: np.ndarray, q_id: np.ndarray, lists: np.ndarray, column: np.ndarray, n: int, threads: int
) -> Iterator[_Part]:
    """Yield the lake in parts whose counters, and lists written out in full, take half of _SCRATCH each."""
    most = max(1, _SCRATCH // 2 // (8 * threads))  # a counter and a place among those touched, int32 both
    begin = lists[:-1]
    for first in range(0, n, most):
        width = min(most, n - first)
        end = lists[1:] if first + width == n else _advanced(begin, lists[1:], column, first + width)
        length = end - begin
        common = np.flatnonzero(length * _SPARSEST >= width)
        common = common[np.argsort(-length[common], kind="stable")][: _SCRATCH // 2 // width]
        place = np.full(len(length), -1, np.int64)
        place[common] = np.arange(len(common))
        full = _written_out(begin[common], end[common], column, first, width)
        yield _Part(first, width, begin, end, column, place, full, _work(q_start, q_id, length))
        begin = end


def _blocks(part: _Part, threads: int) -> list[tuple[int, int]]:
    """Return ranges of queries of about equal work: enough to keep all threads busy, each worth clearing counters."""
    ends = np.cumsum(part.work + 1)
    n = min(8 * threads, 1 + int(ends[-1]) // (8 * part.width))
    cuts = np.searchsorted(ends, np.arange(1, n) * (ends[-1] / n))
    bounds = np.unique([0, *cuts.tolist(), len(ends)]).tolist()
    return list(pairwise(bounds))


@compiled
def _numbered(values):
    """Give the distinct values (any 64 bits) numbers, in the order in which they first come.

    Returns:
        (a hash table uint64 [size, 2], a value and its number + 1, or 0 where there is none; the shift that `_cell`
        takes; the number of each value, int64 [n]; how many numbers there are).
    """
    bits = 4
    while (1 << bits) < 2 * len(values):
        bits += 1
    cells, shift = np.zeros((1 << bits, 2), np.uint64), np.uint64(64 - bits)
    ids = np.empty(len(values), np.int64)
    n = 0
    for e in range(len(values)):
        cell = _cell(cells, shift, values[e])
        if cells[cell, 1] == 0:
            n += 1
            cells[cell, 0], cells[cell, 1] = values[e], n
        ids[e] = np.int64(cells[cell, 1]) - 1
    return cells, shift, ids, n


@compiled
def _cell(cells, shift, value):
    """Return the cell that holds a value, or the free one where it would go."""
    cell = np.int64((value * SPREAD) >> shift)
    while cells[cell, 1] != 0 and cells[cell, 0] != value:
        cell = (cell + 1) & (len(cells) - 1)
    return cell


@compiled
def _look_up(cells, shift, values, ids):
    for e in range(len(values)):
        ids[e] = np.int64(cells[_cell(cells, shift, values[e]), 1]) - 1


@compiled
def _lists(start, ids, n):
    """Return the sets that hold each of n values, ascending, as CSR (int64 [n+1], int32); an id of -1 is skipped."""
    lists = np.zeros(n + 1, np.int64)
    for value in ids:
        if value >= 0:
            lists[value + 1] += 1
    for value in range(n):
        lists[value + 1] += lists[value]
    at, column = lists[:-1].copy(), np.empty(lists[n], np.int32)
    for j in range(len(start) - 1):
        for e in range(start[j], start[j + 1]):
            if ids[e] >= 0:
                column[at[ids[e]]] = j
                at[ids[e]] += 1
    return lists, column


@compiled
def _advanced(begin, end, column, until):
    """Return where in each list the sets below `until` end."""
    at = begin.copy()
    for value in range(len(at)):
        while at[value] < end[value] and column[at[value]] < until:
            at[value] += 1
    return at


@compiled
def _written_out(begin, end, column, first, width):
    full = np.zeros((len(begin), width), np.uint8)
    for row in range(len(begin)):
        for at in range(begin[row], end[row]):
            full[row, column[at] - first] = 1
    return full


@compiled
def _work(start, ids, length):
    work = np.zeros(len(start) - 1, np.int64)
    for i in range(len(work)):
        for e in range(start[i], start[i + 1]):
            work[i] += length[ids[e]]
    return work


@compiled
def _add_all(ids, first, begin, end, column, place, full, counter):
    """Count for a query that meets many sets: all its counters are looked through afterwards."""
    for value in ids:
        if place[value] >= 0:
            row = full[place[value]]
            for j in range(len(counter)):
                counter[j] += row[j]
        else:
            for at in range(begin[value], end[value]):
                counter[column[at] - first] += 1


@compiled
def _add_few(ids, first, begin, end, column, counter, touched):
    """Count for a query that meets few sets; return how many, and write them to the start of touched, in any order."""
    n = 0
    for value in ids:
        for at in range(begin[value], end[value]):
            j = column[at] - first
            if counter[j] == 0:
                touched[n] = j
                n += 1
            counter[j] += 1
    return n


@compiled
def _sizes(
    start, ids, least, work, since, until, first, width, begin, end, column, place, full, size,
):  # fmt: skip
    """Add to size[i] how many sets of a part have enough in common with query i."""
    counter, touched = np.zeros(width, np.int32), np.empty(width, np.int32)
    for i in range(since, until):
        enough, n = least[i], 0
        if work[i] < enough:
            continue
        of_query = ids[start[i] : start[i + 1]]
        if work[i] * _SPARSEST >= width:
            _add_all(of_query, first, begin, end, column, place, full, counter)
            for j in range(width):
                n += counter[j] >= enough
            counter[:] = 0
        else:
            for j in touched[: _add_few(of_query, first, begin, end, column, counter, touched)]:
                n += counter[j] >= enough
                counter[j] = 0
        size[i] += n


@compiled
def _fill(
    start, ids, least, work, since, until, first, width, begin, end, column, place, full, at, stop, found, count,
):  # fmt: skip
    """Write the sets of a part that have enough in common with query i to found and count, from at[i] on.

    Every set is written, but overwritten by the next unless it has enough: a branch would be mispredicted too often.
    Query i stops at stop[i], so it does not write over the next query's sets.
    """
    counter, touched = np.zeros(width, np.int32), np.empty(width, np.int32)
    for i in range(since, until):
        enough, n, last = least[i], at[i], stop[i]
        if n == last or work[i] < enough:
            continue
        of_query = ids[start[i] : start[i + 1]]
        if work[i] * _SPARSEST >= width:
            _add_all(of_query, first, begin, end, column, place, full, counter)
            j = 0
            while j < width and n < last:
                found[n], count[n] = first + j, counter[j]
                n += counter[j] >= enough
                j += 1
            counter[:] = 0
        else:
            some = touched[: _add_few(of_query, first, begin, end, column, counter, touched)]
            some.sort()
            for j in some:
                if n < last:
                    found[n], count[n] = first + j, counter[j]
                    n += counter[j] >= enough
                counter[j] = 0
        at[i] = n


# --- tensors and kernels


# A tile, the cells with enough in common, int64 ascending, and their counts, int32.
_Found = tuple["_Tile", np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Tile:
    """Counters of the queries first:last against the sets column:column+width of the lake, a row for each query.

    entries: where the queries' values lie. row: int32, the query of each, counted from first.
    """

    first: int
    last: int
    column: int
    width: int
    entries: slice
    row: np.ndarray

    @property
    def cells(self) -> int:
        return (self.last - self.first) * self.width


def _tiles(q_start: np.ndarray, n: int) -> Iterator[_Tile]:
    """Yield tiles in the order of the result: whole rows, or, where one is too much for _SCRATCH, parts of a row."""
    most = _most_cells()
    width = min(n, most)
    rows = max(1, most // n)
    for first in range(0, len(q_start) - 1, rows):
        last = min(first + rows, len(q_start) - 1)
        entries = slice(int(q_start[first]), int(q_start[last]))
        row = np.repeat(np.arange(last - first, dtype=np.int32), np.diff(q_start[first : last + 1]))
        for column in range(0, n, width):
            yield _Tile(first, last, column, min(width, n - column), entries, row)


def _most_cells() -> int:
    return max(1, _SCRATCH // 32)  # indices of 8 bytes for each, and a few of them


def _joined(n: int, found: Iterable[_Found]) -> Overlaps:
    """Return the result of n queries."""
    size = np.zeros(n, np.int64)
    columns, counts = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for tile, cell, count in found:
        row, column = np.divmod(cell, tile.width)
        size[tile.first : tile.last] += np.bincount(row, minlength=tile.last - tile.first)
        columns.append(column + tile.column)
        counts.append(count)
    return Overlaps(offsets_of(size), np.concatenate(columns), np.concatenate(counts))


def _with_torch(q: Sets, c: Sets, least: np.ndarray, device: str) -> Iterator[_Found]:
    import torch

    n = len(c)
    values, q_id = torch.unique(put(q.value.view(np.int64), device), return_inverse=True)
    c_value = put(c.value.view(np.int64), device)
    place = torch.searchsorted(values, c_value).clamp_(max=len(values) - 1)
    held = torch.nonzero(values[place] == c_value).squeeze(1)
    owner = torch.repeat_interleave(put(np.diff(c.start), device))
    key = (place[held] * n + owner[held]).sort().values  # by value, and the sets that hold it ascending
    column, enough = key % n, put(least, device)
    for tile in _tiles(q.start, n):
        low = q_id[tile.entries] * n + tile.column
        begin, end = torch.searchsorted(key, low), torch.searchsorted(key, low + tile.width)
        cells = torch.zeros(tile.cells, dtype=torch.int32, device=device)
        shift = put(tile.row, device) * tile.width - tile.column
        for some in _bounded(host((end - begin).cumsum(0))):
            _add(cells, column, begin[some], end[some], shift[some])
        rows = cells.view(-1, tile.width)
        cell = torch.nonzero((rows >= enough[tile.first : tile.last, None]).view(-1)).squeeze(1)
        yield tile, host(cell), host(cells[cell])


def _bounded(ends: np.ndarray) -> Iterator[slice]:
    """Yield slices of lists that fit a tile together, or of one list; ends: int64 [n], summed lengths up to each."""
    at = 0
    while at < len(ends):
        before = ends[at - 1] if at else 0
        to = max(at + 1, int(np.searchsorted(ends, before + _most_cells(), side="right")))
        yield slice(at, to)
        at = to


def _add(
    cells: torch.Tensor, column: torch.Tensor, begin: torch.Tensor, end: torch.Tensor, shift: torch.Tensor
) -> None:
    import torch

    length = end - begin
    owner = torch.repeat_interleave(length)
    at = torch.arange(len(owner), device=cells.device) + (begin - (length.cumsum(0) - length))[owner]
    cells.index_add_(0, column[at] + shift[owner], cells.new_ones(1).expand(len(owner)))


def _with_kernel(
    xp: Any,
    launch: Callable[..., None],
    q: Sets,
    c: Sets,
    least: np.ndarray,
) -> Iterator[_Found]:
    """Count with the kernel of overlap.cu.

    Args:
        xp: CuPy, or NumPy where the kernel runs on the host.
        launch: runs it, given how many threads are needed at least, and its arguments.
    """
    n = len(c)
    values, q_id = xp.unique(xp.asarray(q.value), return_inverse=True)
    c_value = xp.asarray(c.value)
    place = xp.minimum(xp.searchsorted(values, c_value), len(values) - 1)
    held = xp.flatnonzero(values[place] == c_value)
    owner = xp.asarray(np.repeat(np.arange(n), np.diff(c.start)))
    key = xp.sort(place[held] * n + owner[held])  # by value, and the sets that hold it ascending
    column, enough = (key % n).astype(np.int32), xp.asarray(least)
    for tile in _tiles(q.start, n):
        low = q_id[tile.entries] * n + tile.column
        begin, end = xp.searchsorted(key, low), xp.searchsorted(key, low + tile.width)
        cells = xp.zeros(tile.cells, np.int32)
        if len(low):
            launch(
                len(low) * _LANES, begin, end, xp.asarray(tile.row), np.int64(len(low)), column, np.int64(tile.column),
                np.int64(tile.width), cells,
            )  # fmt: skip
        rows = cells.reshape(-1, tile.width)
        cell = xp.flatnonzero(rows >= enough[tile.first : tile.last, None])
        yield tile, _numpy(cell), _numpy(cells[cell])


def _numpy(array: Any) -> np.ndarray:
    there: np.ndarray = array if isinstance(array, np.ndarray) else array.get()
    return there


def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        return None
    return cupy


def _launch(threads: int, *arguments: Any) -> None:
    _kernel()((min(-(-threads // _BLOCK), _BLOCKS),), (_BLOCK,), arguments)


@cache
def _kernel() -> Any:
    import cupy

    source = Path(__file__).with_name("overlap.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=source, options=("--std=c++17",)).get_function("count_common")
