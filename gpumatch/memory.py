"""A lake's size in, the memory that a run on it needs out; and work that goes on in halves when memory runs out.

If no half fits, or a device fails otherwise, `told` says so to people. Reads no file of the lake and starts nothing.
The figures behind the estimate were measured: see bench/LOG.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from gpumatch.cache.publish import CacheError
from gpumatch.errors import DeviceError, GpumatchError, MemoryLimitError, UnusableCacheError

R = TypeVar("R")

# Python, the libraries and the encoder at work on its longest texts, before any lake.
BASE_BYTES = {False: 290_000_000, True: 520_000_000}
# torch, the context that CUDA makes for a process, and what is copied from and to the device.
_CUDA_BYTES = 1_600_000_000
# What a thread holds while it scores a chunk.
_THREAD_BYTES = 60_000_000
# A table's rows, pools and terms, and the texts, tokens and vectors of its six or seven columns.
_TABLE_BYTES = {False: 60_000, True: 80_000}
# Values count as their bytes in the file: a distinct one is kept as eight bytes and takes about as many there. A table
# counts no more than this, since it keeps no more than its sample.
_LARGEST_TABLE_BYTES = 16_000_000


def sized(n: int) -> str:
    """Return a size as people read it, with enough digits to tell two of them apart."""
    unit, size = next((one for one in (("GB", 10**9), ("MB", 10**6)) if n >= one[1]), ("kB", 1_000))
    return f"{n / size:.2f} {unit}"


@dataclass(frozen=True)
class HostPlan:
    """What a run is expected to take of the host's memory, in bytes.

    base: Python, the libraries and the encoder at work on its longest texts. threads: what they hold while they score.
    tables: rows, pools and terms, and the texts, tokens and vectors of the columns. values: the distinct values.
    """

    base: int
    threads: int
    tables: int
    values: int

    @property
    def needed(self) -> int:
        """The bytes of all together."""
        return self.base + self.threads + self.tables + self.values


def host_plan(tables: int, file_bytes: int, threads: int, *, dense: bool, device: str = "cpu") -> HostPlan:
    """Return about how many bytes of memory a run on a lake needs, and for what.

    Args:
        tables: how many tables the lake has.
        file_bytes: the size of their files.
        threads: how many threads score.
        dense: whether vectors are wanted (L1+L2).
        device: "cpu", or "cuda" if a GPU may be used too.
    """
    base = BASE_BYTES[dense] + (0 if device == "cpu" else _CUDA_BYTES)
    values = min(file_bytes, tables * _LARGEST_TABLE_BYTES)
    return HostPlan(base, threads * _THREAD_BYTES, tables * _TABLE_BYTES[dense], values)


@dataclass(frozen=True)
class DevicePlan:
    """What a search and the scoring after it take of a device's memory, in bytes, planned before any of it is taken.

    free: what there is. rows, vectors: the lake's rows and the distinct vectors if they stay on the device, else 0.
    tile_rows: rows of the lake that are copied or scored at once; tile: those rows, their scores and keys.
    best: the best rows of every query of a batch.
    chunk_cells: cells of a table of similarities; chunk: all tables of the chunks in work.
    """

    free: int
    rows: int
    vectors: int
    tile_rows: int
    tile: int
    best: int
    chunk_cells: int
    chunk: int

    @property
    def needed(self) -> int:
        """The bytes of all together."""
        return self.rows + self.vectors + self.tile + self.best + self.chunk


# Shares of a device's memory: for a tile, and for the chunks that are scored.
_TILE_SHARE, _CHUNK_SHARE = 0.2, 0.2
# Bytes of a score, float32, with its keys while they are sorted; and of a number of a row, float16 and as float32.
_SCORE_BYTES, _ROW_BYTES = 4 + 3 * 8, 2 + 4
_MOST_TILE_SCORES, _MOST_CHUNK_CELLS = 1 << 28, 1 << 28
# Float32 tables of similarities that a chunk holds at once (six, and all of them once more for the kernel of MaxSim);
# and chunks that are in work at once.
_CHUNK_TABLES, CHUNKS_IN_WORK = 12, 3


def device_plan(
    free: int, total: int, *, tables: int, width: int, vectors: int, dim: int, queries: int, k: int, more: int = 0
) -> DevicePlan:
    """Divide a device's memory.

    Piece sizes depend on the device's total memory, not on what is free: sums of another shape round differently in the
    last bits, and the same job must give the same answers. If too little is free, pieces are halved.

    Args:
        free, total: the device's bytes. tables, width: how many rows the lake has and their length, float16.
        vectors, dim: how many distinct vectors there are and their length, float16.
        queries, k: how many queries a batch has, and how many rows are kept for each.
        more: bytes of other rows that stay where the lake's do.
    """
    best, resident, of_vectors = 2 * 8 * queries * k, 2 * tables * width + more, 2 * vectors * dim
    of_vectors = of_vectors if keeps(of_vectors + best, free, total) else 0
    taken = resident + of_vectors + best
    # Half of what vectors leave, so that something is left for other features.
    if taken + resident > free or not keeps(taken, free, total):
        resident = 0
    of_row = (2 + _ROW_BYTES) * width + _SCORE_BYTES * queries
    most = min(int(_TILE_SHARE * total) // of_row, _MOST_TILE_SCORES // max(1, queries))
    tile_rows = max(1, min(tables, _power_of_two(most)))
    cells = min(_MOST_CHUNK_CELLS, int(_CHUNK_SHARE * total) // (4 * _CHUNK_TABLES * CHUNKS_IN_WORK))
    cells = max(1, _power_of_two(cells))
    return DevicePlan(
        free=free,
        rows=resident,
        vectors=of_vectors,
        tile_rows=tile_rows,
        tile=tile_rows * of_row,
        best=best,
        chunk_cells=cells,
        chunk=4 * cells * _CHUNK_TABLES * CHUNKS_IN_WORK,
    )


def keeps(nbytes: int, free: int, total: int) -> bool:
    """Tell whether so many bytes can stay on a device and leave room for the chunks that are scored."""
    return nbytes + int(_CHUNK_SHARE * total) <= free


def _power_of_two(n: int) -> int:
    """Return the greatest power of two that is not above n, 0 for 0."""
    return 1 << n.bit_length() - 1 if n > 0 else 0


class Halving:
    """Runs work over items in pieces; a piece that runs out of memory is done in halves, and later ones are as small.

    Whatever memory is lacking counts, the host's or a device's (`is_out_of_memory`). One item that does not fit is an
    error.
    """

    def __init__(self) -> None:
        self._most: int | None = None

    def __call__(self, work: Callable[[slice], R], start: int, stop: int) -> Iterator[tuple[slice, R]]:
        """Yield (piece, work(piece)) for pieces that cover start to stop in their order."""
        while start < stop:
            piece = slice(start, stop if self._most is None else min(stop, start + self._most))
            try:
                done = work(piece)
            except Exception as error:
                if not is_out_of_memory(error) or piece.stop - piece.start < 2:
                    raise
                half = (piece.stop - piece.start + 1) // 2
                self._most = half if self._most is None else min(half, self._most)  # another thread may have halved
                give_back(error)
                continue
            yield piece, done
            start = piece.stop


# What the messages say of libraries that have no error type for it: torch for the CPU's memory, CUDA's contexts, pinned
# memory and CUDA's libraries (each a RuntimeError), FAISS, CuPy, Triton.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator|out of memory|_ALLOC_FAILED|cudaErrorMemoryAllocation|alloc fail")
# What the errors of a device, its driver and its libraries contain; and the packages that raise no other errors.
_OF_DEVICE = re.compile(
    r"CUDA (?:error|out of memory|driver|GPU)|cuda[A-Z]|CU[A-Z]+_STATUS_|cuDNN error|NVIDIA|Triton Error|faiss::gpu"
)
_DEVICE_PACKAGES = ("cupy", "cupy_backends", "triton")
# Characters of an error that are passed on: torch's one line is long, it tells who holds how much.
_SAID = 400


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, the host's or a device's, from other errors."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


@contextmanager
def told() -> Iterator[None]:
    """Turn a lack of memory and the errors of a device or the cache into ones that say what to do.

    Raises:
        UnusableCacheError: for an error of the cache.
        MemoryLimitError: the host is out of memory.
        DeviceError: a device is out of memory, or it, its driver or a library of its own fails.
    """
    try:
        yield
    except GpumatchError:  # says what to do already
        raise
    except CacheError as error:
        raise UnusableCacheError(str(error)) from error
    except Exception as error:
        out_of_memory, of_device = is_out_of_memory(error), _is_of_device(error)
        if out_of_memory and not of_device:
            raise MemoryLimitError(
                "out of memory; need less with --threads 1, --layer L1 or a smaller --sample-rows"
            ) from error
        if not of_device:
            raise
        what, advice = "the GPU failed", "see gpumatch doctor, or run with --device cpu"
        if out_of_memory:
            what = f"the GPU is out of memory{_free_there()}, and smaller pieces did not help"
            advice = "end what else uses it, or run with --device cpu"
        found = next(iter(str(error).strip().splitlines()), type(error).__name__)[:_SAID]
        raise DeviceError(f"{what}: {found}; {advice}") from error


def _is_of_device(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # which another thread may be importing
    if any(isinstance(error, getattr(torch, name, ())) for name in ("OutOfMemoryError", "AcceleratorError")):
        return True
    if type(error).__module__.partition(".")[0] in _DEVICE_PACKAGES:
        return True
    return isinstance(error, RuntimeError) and bool(_OF_DEVICE.search(str(error)))


def _free_there() -> str:
    from gpumatch.kernels.devices import device_bytes

    try:
        free, total = device_bytes("cuda", 0)
    except Exception:  # the device that has just failed
        return ""
    return f" ({sized(free)} of {sized(total)} free)"


def give_back(error: BaseException) -> None:
    """Free what the failed piece held: the frames of its traceback keep its arrays alive."""
    error.__traceback__ = None
    # Another thread may be importing either, which has nothing yet then. One keeps from the other what it has had.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    if pool := getattr(sys.modules.get("cupy"), "get_default_memory_pool", None):
        pool().free_all_blocks()
