"""A lake's size in, the memory that a run on it needs out; and work that goes on in halves where memory runs out.

Reads no file of the lake and starts nothing. The figures behind the estimate were measured: see bench/LOG.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

R = TypeVar("R")

# Python, the libraries and the encoder at work on its longest texts, before any lake.
_BASE_BYTES = {False: 290_000_000, True: 1_020_000_000}
# What a thread holds while it scores a chunk.
_THREAD_BYTES = 60_000_000
# A table's rows, pools and terms, and the texts, tokens and vectors of its six or seven columns.
_TABLE_BYTES = {False: 60_000, True: 80_000}
# A distinct value is kept as eight bytes and takes about as many in a file; a table keeps no more than its sample.
_LARGEST_TABLE_BYTES = 16_000_000


def expected_bytes(tables: int, file_bytes: int, threads: int, *, dense: bool) -> int:
    """Return about how many bytes of memory a run on a lake needs.

    Args:
        tables: how many tables the lake has.
        file_bytes: the size of their files.
        threads: how many threads score.
        dense: whether vectors are wanted (L1+L2).
    """
    values = min(file_bytes, tables * _LARGEST_TABLE_BYTES)
    return _BASE_BYTES[dense] + threads * _THREAD_BYTES + tables * _TABLE_BYTES[dense] + values


class Halving:
    """Runs work over items in pieces; a piece that runs out of memory is done in two halves, and so are later ones.

    Out of memory on a device, in torch's CPU allocator or in Python all count. One item that does not fit is an error.
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
                self._most = (piece.stop - piece.start + 1) // 2
                give_back(error)
                continue
            yield piece, done
            start = piece.stop


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, on whatever device, from other errors."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def give_back(error: BaseException) -> None:
    """Let go of what the failed piece held: the frames of its traceback keep its arrays alive."""
    error.__traceback__ = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
