"""Rows of float16 come in and go to shard files; checksummed runs of rows go out, and later the rows of such runs.

It must never write over a row that a catalogue may name, and never give a row whose run has not passed its checksum.

A *shard* is `shard-<pid>-<id>.f16`: rows of `dim` little-endian float16, appended by the one process that holds its
lock. A *segment* is a run of rows in one shard with one checksum. A *handle* is segment id << 24 | row within the
segment. Segment ids are random and never used again, so a stale handle leads nowhere rather than to another vector.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpumatch.cache.publish import CacheError, fsync_dir, same_file, sync_data, write_all

ROW_BITS = 24
#: Rows per segment: what the first read of any of them must check (12 MB at dim 384, about 5 ms), and what one flipped
#: bit costs.
SEGMENT_ROWS = 16_384
#: Mapped shards kept open; each holds a file descriptor, and 1024 is a common limit for the whole process.
MAX_MAPS = 64
SHARD_NAME = re.compile(r"shard-[0-9]+-[0-9a-f]+\.f16")


@dataclass(frozen=True, slots=True)
class Segment:
    """One catalogue row: where a run of rows is, and what its bytes must hash to."""

    id: int
    shard: str
    start_row: int
    n_rows: int
    checksum: int

    @classmethod
    def from_row(cls, row: tuple[object, ...] | None) -> Segment | None:
        """Read a catalogue row that may hold anything after damage; None where it cannot be true."""
        match row:
            case (int(segment_id), str(shard), int(start_row), int(n_rows), int(checksum)):
                if start_row >= 0 and n_rows >= 1 and SHARD_NAME.fullmatch(shard):
                    return cls(segment_id, shard, start_row, n_rows, checksum)
        return None

    def checksum_of(self, pieces: Iterable[bytes | memoryview]) -> int:
        """Hash the bytes of the rows, after the catalogue row itself: a flipped start or id must not pass either."""
        hasher = xxhash.xxh3_64(f"{self.id} {self.shard} {self.start_row} {self.n_rows} ".encode())
        for piece in pieces:
            hasher.update(piece)
        return int.from_bytes(hasher.digest(), "big", signed=True)  # SQLite's integers are signed

    def handles(self) -> NDArray[np.int64]:
        """Name every row; int64 [n_rows]."""
        return (self.id << ROW_BITS) + np.arange(self.n_rows)

    def shard_rows(self, handles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the places in the shard of handles of this segment; int64 [n]."""
        return self.start_row + (handles & ((1 << ROW_BITS) - 1))


class ShardWriter:
    """Appends rows to a shard of its own, which begins with the first of them.

    Args:
        folder: where the shard goes.
        dim: length of each row.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._row_bytes = dim * 2
        self._fd: int | None = None
        self._name = ""
        self._n_rows = 0

    def append(self, rows: NDArray[np.float16]) -> list[Segment]:
        """Write rows and sync them; nobody sees them before a catalogue names their segments.

        Args:
            rows: little-endian float16 [n, dim], contiguous.

        Raises:
            CacheError: the disk is full or not writable; no row is stored then.
        """
        try:
            fd, begin = self.begin(), self._n_rows
            try:
                segments = [
                    self._write_segment(fd, rows[start : start + SEGMENT_ROWS])
                    for start in range(0, len(rows), SEGMENT_ROWS)
                ]
                sync_data(fd)
            except OSError:
                with contextlib.suppress(OSError):  # give back what a full disk needs most; no catalogue names it
                    os.ftruncate(fd, begin * self._row_bytes)
                raise
        except OSError as error:
            # after a failed sync the kernel may have dropped pages of this file: the next rows begin another
            self.close()
            raise CacheError(
                f"cannot write vectors to {self._folder}: {error}; free space, or choose another cache folder"
            ) from error
        return segments

    def begin(self) -> int:
        """Create and lock the shard, unless that is done; gives its file descriptor. May raise OSError."""
        if self._fd is not None and not same_file(self._fd, self._folder / self._name):
            self.close()  # the cache was cleared
        while self._fd is None:
            self._name, self._n_rows = f"shard-{os.getpid()}-{secrets.token_hex(8)}.f16", 0
            path = self._folder / self._name
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if _try_lock(self._fd) and same_file(self._fd, path):
                fsync_dir(self._folder)
            else:  # an opening process is about to sweep it, or has done so, for it was not yet locked
                self.close()
        return self._fd

    def close(self) -> None:
        """Give the shard back, for anyone to sweep if no catalogue names it; the next rows begin another."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _write_segment(self, fd: int, rows: NDArray[np.float16]) -> Segment:
        raw = rows.reshape(-1).view(np.uint8).data
        write_all(fd, raw, self._n_rows * self._row_bytes)
        segment = Segment(secrets.randbits(63 - ROW_BITS), self._name, self._n_rows, len(rows), checksum=0)
        # before the commit: if that fails half-way, these rows may be named and must not be overwritten
        self._n_rows += len(rows)
        return replace(segment, checksum=segment.checksum_of([raw]))


class ShardReader:
    """Reads the rows of segments, each checked once in the life of this object.

    Args:
        folder: where the shards are.
        dim: length of each row.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._dim = dim
        self._whole: set[int] = set()
        self._maps: dict[str, NDArray[np.float16]] = {}

    def why_broken(self, segment: Segment) -> str:
        """Check a segment, unless that is done; empty when it is whole.

        Raises:
            CacheError: it cannot be read, for a reason that says nothing about its bytes.
        """
        if segment.id in self._whole:
            return ""
        try:
            checksum = segment.checksum_of(self.iter_bytes(segment))
        except EOFError:
            return "the file is too short"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                return str(error.strerror)
            raise CacheError(f"cannot read {self._folder / segment.shard}: {error}") from error
        if checksum != segment.checksum:
            return "checksum mismatch"
        self._whole.add(segment.id)
        return ""

    def rows(self, segment: Segment, handles: NDArray[np.int64]) -> NDArray[np.float16]:
        """Read rows of a segment that `why_broken` has found whole; float16 [n, dim].

        Args:
            segment: the segment.
            handles: int64 [n], all of this segment.

        Raises:
            FileNotFoundError: the shard was deleted meanwhile.
            CacheError: it cannot be mapped.
        """
        shard = self._maps.pop(segment.shard, None)
        if shard is None or len(shard) < segment.start_row + segment.n_rows:
            path = self._folder / segment.shard
            try:
                shape = (path.stat().st_size // (self._dim * 2), self._dim)  # without a torn tail
                shard = np.memmap(path, dtype="<f2", mode="r", shape=shape)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise CacheError(f"cannot map {path}: {error}") from error
            if len(self._maps) >= MAX_MAPS:
                del self._maps[next(iter(self._maps))]
        self._maps[segment.shard] = shard  # last in: the first of the dict is the one unused for longest
        return shard[segment.shard_rows(handles)]

    def iter_bytes(self, segment: Segment) -> Iterator[bytes]:
        """Read the bytes of a segment, whole or not, in pieces of at most 1 MiB; EOFError where the file ends early."""
        # read, not mapped: a bad sector or a file cut short is an error here, where under mmap it kills the process
        fd = os.open(self._folder / segment.shard, os.O_RDONLY)
        try:
            place, left = segment.start_row * self._dim * 2, segment.n_rows * self._dim * 2
            if place + left > os.fstat(fd).st_size:  # asked first: pread refuses what a damaged start_row may be
                raise EOFError
            while left:
                raw = os.pread(fd, min(left, 1 << 20), place)
                if not raw:
                    raise EOFError
                yield raw
                place, left = place + len(raw), left - len(raw)
        finally:
            os.close(fd)


def sweep_shard(path: Path, named_shards: Callable[[], set[str]]) -> None:
    """Delete a shard that no catalogue names and no living process owns.

    Args:
        path: the shard.
        named_shards: asks the catalogue; called under the shard's lock, for its owner may just have committed and left.

    Raises:
        OSError: it cannot be deleted.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if _try_lock(fd) and path.name not in named_shards():
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def cut_tail(path: Path, end_of: Callable[[], int]) -> int:
    """Cut what follows the named rows off a shard that no living process owns; gives the bytes freed.

    Args:
        path: the shard.
        end_of: asks the catalogue how many bytes are named; called under the shard's lock, as in `sweep_shard`.

    Raises:
        OSError: it cannot be cut.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        if not _try_lock(fd):
            return 0
        end, size = end_of(), os.fstat(fd).st_size
        if 0 < end < size:
            os.ftruncate(fd, end)
            return size - end
        return 0
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
