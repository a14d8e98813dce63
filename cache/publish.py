"""Bytes and a path come in; a file that is wholly there or not at all goes out, and so does a lock between processes.

It must never leave a half-written file under its final name, and never delete a lock file (a waiter may hold it open).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

#: Held while a process opens the files of a folder, or puts others in their place.
OPEN_LOCK = "open.lock"
#: How often a folder that is cleared while it is opened is made again.
MAX_CLEARED = 20
_ELSEWHERE = "choose another folder (the cache's is GPUMATCH_CACHE_DIR, and --no-cache does without)"


class CacheError(Exception):
    """The cache cannot do what was asked: the message says what, where, what was found and what to do."""


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents, readable by their owner only; vectors tell of the texts behind them.

    Args:
        folder: the folder; one that exists keeps its permissions.

    Raises:
        CacheError: it cannot be created, or something that is no folder stands there.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(place.parent)
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
    except OSError as error:
        raise CacheError(f"cannot create the cache folder {folder}: {error}; {_ELSEWHERE}") from error


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable: a rename or a new file survives a power cut only after this.

    Raises:
        OSError: the folder cannot be opened or synced.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Make a file's bytes durable, and of what is said of them only what reading them takes.

    Raises:
        OSError: it cannot be synced; the kernel may have dropped some of the bytes.
    """
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has the latter only


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte at an offset; os.pwrite may write fewer than asked.

    Args:
        fd: a file open for writing, not in append mode.
        data: bytes, or a memoryview of format 'B'.
        offset: the place of the first byte in the file.

    Raises:
        OSError: as os.pwrite; part of the data may be in the file.
    """
    left = memoryview(data)
    while len(left):
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def is_alive(process: int) -> bool:
    """Tell whether a process of that number is there, ours or somebody else's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def folder_in_work(folder: Path, prefix: str) -> Iterator[Path]:
    """Make a folder of one's own in another one; it is gone afterwards, unless it was renamed.

    Whoever else sweeps there sees by `is_in_work` that somebody writes to it: a lock tells, not a process number, which
    threads share, and which says nothing to another container or machine.

    Args:
        prefix: how its name begins.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        made = folder / f"{prefix}{secrets.token_hex(8)}"
        made.mkdir(parents=True)  # the folder may have been cleared meanwhile
        try:
            fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # it was swept
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks: there all are taken to be in work
                fcntl.flock(fd, fcntl.LOCK_EX)  # waits for one who looks, or who sweeps
            if same_file(fd, made):  # else it was swept, too
                yield made
                return
        finally:
            os.close(fd)
            shutil.rmtree(made, ignore_errors=True)  # the disk may be full


def is_in_work(folder: Path) -> bool:
    """Tell whether somebody writes to a folder that `folder_in_work` has made, or may do so."""
    return not _while_idle(folder, lambda: None)


def sweep_unless_in_work(folder: Path) -> None:
    """Remove a folder that `folder_in_work` has made and nobody writes to, before anybody can begin to."""
    _while_idle(folder, lambda: shutil.rmtree(folder, ignore_errors=True))


def _while_idle(folder: Path, do: Callable[[], None]) -> bool:
    """Do something while nobody can write to a folder; tell whether it could be done, or the folder is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        do()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def sweep_torn(path: Path) -> None:
    """Remove what killed writers of a file have left of it; the caller holds the lock of all who write it."""
    for torn in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        torn.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Publish a file: readers see the old content or the new one, also after kill -9 or a power cut.

    A kill leaves at most a file `.<name>.tmp-*` in the same folder.

    Args:
        path: the final name; its folder exists.
        data: the whole content.
        mode: who may read and write it, less what the umask takes off.

    Raises:
        CacheError: the disk is full, the folder is read-only, or any other failure; the old file still stands.
    """
    # the same folder, because a rename is atomic only within one file system
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CacheError(f"cannot write {path}: {error}; free space or choose another folder") from error


class FileLock:
    """One holder at a time among all processes, and among all instances within one; gone with its process.

    Not reentrant. The file holds the pid of the latest holder, for people and for the error message.

    Args:
        path: the lock file; created when missing.
        timeout: seconds to wait before giving up.
    """

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self.path = path
        self.timeout = timeout
        self._fd: int | None = None

    def __enter__(self) -> FileLock:
        """Take the lock.

        Raises:
            CacheError: another process held it for the whole timeout, or the file cannot be opened.
        """
        if self._fd is not None:
            raise CacheError(f"the lock {self.path} is held by this very object")
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                self._fd = self._try_once()
            except OSError as error:
                raise CacheError(f"cannot open the lock file {self.path}: {error}; {_ELSEWHERE}") from error
            if self._fd is not None:
                return self
            if time.monotonic() >= deadline:
                raise CacheError(
                    f"waited {self.timeout:g} s for the lock {self.path}, held by process {self._holder()}; "
                    "wait for that process or end it"
                )
            time.sleep(0.01)  # flock has no timeout of its own, and a signal alarm would belong to the caller

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back; the file stays."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _try_once(self) -> int | None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # who waited on a file that was deleted meanwhile (a cleared cache) holds a lock nobody else sees
            if same_file(fd, self.path):
                with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, only nameless
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _holder(self) -> str:
        try:
            return self.path.read_text("ascii", "replace").strip() or "unknown"
        except OSError:
            return "unknown"


@contextlib.contextmanager
def locked_folder(folder: Path, timeout: float) -> Iterator[None]:
    """Hold a folder's lock; made again, with its folder, where a clearing process takes both away meanwhile.

    Args:
        timeout: seconds to wait for another holder.

    Raises:
        CacheError: the folder cannot be made, or the lock not be had.
    """
    lock = FileLock(folder / OPEN_LOCK, timeout=timeout)
    for left in range(MAX_CLEARED, -1, -1):
        try:
            make_private_folder(folder)
            lock.__enter__()
            break
        except CacheError as error:
            gone = isinstance(error.__cause__, FileNotFoundError | FileExistsError | NotADirectoryError)
            if not gone or not left:
                raise
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def same_file(fd: int, path: Path) -> bool:
    """Tell whether an open file still stands under a name.

    Args:
        fd: an open file.
        path: the name it was opened by.
    """
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
