"""A folder of vectors comes in; what is in it, what could go, and answers of its catalogue go out.

It must never create, change or lock anything that others wait for: it works on a read-only disk and beside writers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpumatch.cache.catalogue import Catalogue, NewerFormatError, unchanged
from gpumatch.cache.folder import DamagedAboutError, read_about
from gpumatch.cache.log import why_log_damaged
from gpumatch.cache.publish import CacheError
from gpumatch.cache.shards import SHARD_NAME, Segment, ShardReader

FOLDER_NAME = re.compile(r"[0-9a-f]{32}-v[0-9]+(-[0-9]+)?")
CATALOGUE_NAME = re.compile(r"catalogue-[0-9a-f]+\.sqlite(-wal|-shm|-journal)?")
TEMPORARY_NAME = re.compile(r"\.about\.json\.tmp-.*")
#: How often a question is asked again while others change the catalogue under it, and the seconds between.
TRIES, WAIT_SECONDS = 100, 0.02
TORN_TAIL = "a torn tail"
UNNAMED_ROWS = "rows that no key names"
#: The share of a shard that has to be of no use before the rest is moved out of it.
WORTH_MOVING = 0.05

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Bytes that nobody can reach: a whole file, or the end of one.

    path: the file; what: in words; bytes: how many of them are of no use.
    """

    path: Path
    what: str
    bytes: int


@dataclass(slots=True)
class FolderStats:
    """What is in the folder of one model, revision and serialiser.

    folder: where; about: what about.json says, without its check; empty where it cannot be read.
    rows: keys that have a vector; unnamed_rows: vectors in segments that no key names.
    bytes: of all the cache's own files; leftovers: which of them are of no use; foreign: files of others.
    trouble: why it cannot be used or counted; empty where it can.
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    segments: int = 0
    shards: int = 0
    unnamed_rows: int = 0
    bytes: int = 0
    leftovers: list[Leftover] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    trouble: str = ""

    @property
    def reclaimable(self) -> int:
        """Bytes that pruning gives back."""
        return sum(one.bytes for one in self.leftovers)


def vector_folders(root: Path) -> list[Path]:
    """List the folders of vectors under a root that may not be there, by name."""
    return sorted(entry for entry in entries_of(root) if _is_own_folder(entry))


def foreign_entries(root: Path) -> list[Path]:
    """List what lies beside the folders of vectors and is not the cache's."""
    return sorted(entry for entry in entries_of(root) if not _is_own_folder(entry))


def is_own(path: Path) -> bool:
    """Tell the files that a folder of vectors may hold from those of other people."""
    name = path.name.removeprefix("damaged-")
    ours = path.name in ("about.json", "open.lock") or any(
        pattern.fullmatch(name) for pattern in (SHARD_NAME, CATALOGUE_NAME, TEMPORARY_NAME)
    )
    return ours and path.is_file() and not path.is_symlink()


def row_bytes(about: dict[str, Any]) -> int:
    """Give the bytes of one vector; 0 where they are not known."""
    dim = about.get("dim")
    return 2 * dim if isinstance(dim, int) else 0


def folder_stats(folder: Path) -> FolderStats:
    """Count what is in one folder of vectors; what cannot be read is `trouble`, never an error."""
    found = FolderStats(folder)
    segments: list[Segment] = []
    named: dict[int, int] = {}
    lost = newer = False
    try:
        found.about, (segments, named) = ask(folder, lambda catalogue: (catalogue.segments(), catalogue.named_rows()))
        found.rows, found.segments = sum(named.values()), len(segments)
        found.unnamed_rows = max(0, sum(segment.n_rows for segment in segments) - found.rows)
    except (FileNotFoundError, CacheError) as error:
        found.trouble = str(error)
        lost = isinstance(error, FileNotFoundError | DamagedAboutError)
        newer = isinstance(error, NewerFormatError)
    files = [entry for entry in entries_of(folder) if is_own(entry)]
    found.foreign = sorted(entry for entry in entries_of(folder) if not is_own(entry))
    found.shards = sum(SHARD_NAME.fullmatch(path.name) is not None for path in files)
    found.bytes = sum(size_of(path) for path in files)
    if lost:
        gone = [path for path in sorted(files) if path.name != "open.lock" and not is_owned(path)]
        found.leftovers = [Leftover(path, "nothing leads here any more", size_of(path)) for path in gone]
    elif not newer:
        found.leftovers = set_aside(files)
    if not found.trouble:
        found.leftovers += unreachable(files, found.about, segments, named)
    return found


def set_aside(files: list[Path]) -> list[Leftover]:
    """List what is of no use whatever the catalogue says, among the cache's own files."""
    found = []
    for path in sorted(files):
        if path.name.startswith("damaged-"):
            found.append(Leftover(path, "a damaged catalogue that was set aside", size_of(path)))
        elif TEMPORARY_NAME.fullmatch(path.name):
            found.append(Leftover(path, "an abandoned temporary file", size_of(path)))
    return found


def unreachable(
    files: list[Path], about: dict[str, Any], segments: list[Segment], named: dict[int, int]
) -> list[Leftover]:
    """List what the catalogue does not name, among the cache's own files.

    Args:
        files: those files.
        about: what about.json says.
        segments: all segments of the catalogue.
        named: how many rows of each segment, by its id, are named by a key.
    """
    found = []
    for path in sorted(files):
        size = size_of(path)
        if CATALOGUE_NAME.fullmatch(path.name) and not path.name.startswith(about["catalogue"]):
            found.append(Leftover(path, "a catalogue that is no longer current", size))
        elif SHARD_NAME.fullmatch(path.name) and not is_owned(path):
            here = [segment for segment in segments if segment.shard == path.name]
            end = max((one.start_row + one.n_rows for one in here), default=0) * row_bytes(about)
            if not here:
                found.append(Leftover(path, "a shard that no catalogue names", size))
                continue
            if size > end:
                found.append(Leftover(path, TORN_TAIL, size - end))
            empty = end - sum(named.get(one.id, 0) for one in here) * row_bytes(about)
            if empty > WORTH_MOVING * end:
                found.append(Leftover(path, UNNAMED_ROWS, empty))
    return found


def ask(folder: Path, question: Callable[[Catalogue], T]) -> tuple[dict[str, Any], T]:
    """Ask the current catalogue, and once more whenever it was changed in a way that may have torn the answer.

    Returns:
        what about.json says, and the answer.

    Raises:
        FileNotFoundError: there is no about.json.
        DamagedAboutError, DamagedCatalogueError, NewerFormatError: as they say.
        CacheError: it cannot be read for any other reason.
    """

    def current() -> tuple[dict[str, Any], Path]:
        about = read_about(folder / "about.json")
        if about is None:
            raise FileNotFoundError(f"{folder} has no about.json")
        return about, folder / about["catalogue"]

    def answer(path: Path, how: str) -> T:
        with contextlib.closing(Catalogue.open_as(path, how)) as catalogue:
            return question(catalogue)

    return ask_file(current, answer)


def ask_file(current: Callable[[], tuple[S, Path]], answer: Callable[[Path, str], T]) -> tuple[S, T]:
    """Ask a file of SQLite, and once more whenever it was changed in a way that may have torn the answer.

    Args:
        current: says something about the file, and where it is.
        answer: opens a file in a given way (SQLite's words) and asks it; what SQLite raises it makes the cause of a
            CacheError.

    Returns:
        what `current` says of the file, and the answer.

    Raises:
        FileNotFoundError: there is no file.
        CacheError: of `current` or `answer`, or it is changed all the time.
    """
    copied = False
    for left in range(TRIES, 0, -1):
        about, path = current()
        before = _stamp(path)
        try:
            with _place(path, log=before.log, copied=copied) as (place, how):
                answered = answer(place, how)
        except (CacheError, OSError) as error:
            # a writer was just making the index of its log, which who only looks must not do for it
            copied = before.log and not copied and _is_read_only(error)
            same = before == _stamp(path) and current() == (about, path)
            if left == 1 or (same and not copied):
                if not path.exists():
                    raise FileNotFoundError(f"{path} is missing") from error
                if isinstance(error, CacheError):
                    raise
                raise CacheError(f"cannot read {path}: {error}") from error
        else:
            if before.log or before == _stamp(path):
                return about, answered
        time.sleep(WAIT_SECONDS)
    raise CacheError(f"{path} is changed all the time; try again")


def _is_read_only(error: Exception) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return bool(code & 0xFF == sqlite3.SQLITE_READONLY)


@contextlib.contextmanager
def _place(path: Path, *, log: bool, copied: bool) -> Iterator[tuple[Path, str]]:
    """Give what to open and how: a copy where SQLite would have to mend something beside the file to read it."""
    beside = path.with_name(f"{path.name}-wal")
    with contextlib.ExitStack() as stack:
        if log and (copied or not path.with_name(f"{path.name}-shm").exists() or why_log_damaged(beside)):
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumatch-")))
            for one in (path, beside):
                shutil.copy(one, copy)
            yield copy / path.name, "mode=rw"
        else:
            yield path, unchanged(log)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """The state of a catalogue file: whether it has a log with something in it, and which file it is."""

    log: bool
    file: tuple[int, ...]


def _stamp(path: Path) -> _Stamp:
    file: tuple[int, ...] = ()
    with contextlib.suppress(OSError):
        status = path.stat()
        file = (status.st_ino, status.st_mtime_ns, status.st_size)
    return _Stamp(size_of(path.with_name(f"{path.name}-wal")) > 0, file)


class VectorReader:
    """Reads what `VectorStore.get` would read, changing nothing: what is damaged is just not found.

    Args:
        folder: a folder of vectors.
        dim: the length of its vectors.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self._reader = ShardReader(folder, dim)

    def lookup(self, keys: NDArray[np.void]) -> NDArray[np.bool_]:
        """Tell which keys, V16 [n], are catalogued; may raise as `ask`."""
        _, found = ask(self.folder, lambda catalogue: catalogue.find(keys))
        there: NDArray[np.bool_] = found.handles >= 0
        return there

    def get(self, keys: NDArray[np.void]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return float16 [n, dim], zero where not found, and bool [n]; may raise as `ask`."""
        _, found = ask(self.folder, lambda catalogue: catalogue.find(keys))
        vectors = np.zeros((len(keys), self.dim), np.float16)
        there = np.zeros(len(keys), np.bool_)
        for segment, places in found.iter_segments():
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                if not self._reader.why_broken(segment):
                    vectors[places] = self._reader.rows(segment, found.handles[places])
                    there[places] = True
        return vectors, there


def is_owned(path: Path) -> bool:
    """Tell whether a living process holds the lock of a shard (a shared lock is tried, which changes nothing)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def size_of(path: Path) -> int:
    """Give the bytes of a file; 0 where it has gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def entries_of(folder: Path) -> list[Path]:
    """List what is in a folder; nothing where it cannot be read or is not there."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_own_folder(path: Path) -> bool:
    return FOLDER_NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()
