"""Verdicts under hashed keys come in, go into one SQLite file that is journal and cache in one, and come out again.

    FOLDER/verdicts-v1.sqlite    a row a verdict, with a checksum; a row a run, with what it has spent
    FOLDER/secret                32 random bytes, by which values are hashed where they are not to be sent
    FOLDER/open.lock             held while the file is opened, closed, put aside or deleted

A verdict is there for every later process once `put` has returned, whatever kills this one; where it cannot be written
this process has it still. It must never return a row whose checksum is wrong, nor let an error of SQLite out. A damaged
file is put aside and begun anew: what is lost is asked again.

SQLite finds the log and its index by the file's name, so no process may have a new file of that name open while others
that have the old one may still make or delete these: hence the lock. Who has the old file open goes on in the new one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

import xxhash

from gpumatch.cache.catalogue import closed_on_error, connect, is_damage
from gpumatch.cache.inspect import Leftover, ask_file, entries_of, size_of
from gpumatch.cache.publish import (
    OPEN_LOCK,
    CacheError,
    FileLock,
    atomic_write_bytes,
    locked_folder,
    make_private_folder,
)
from gpumatch.cache.remove import remove_files

FILE = "verdicts-v1.sqlite"
ASIDE = ".damaged"
SECRET = "secret"  # noqa: S105 - the name of the file
_SECRET_BYTES = 32
#: Seconds that a writer waits for another process.
_BUSY_SECONDS = 20.0
#: Keys in one question to the catalogue: SQLite takes a limited number of parameters.
_KEYS_AT_ONCE = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS verdict (key BLOB PRIMARY KEY, body BLOB NOT NULL, "check" INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    run TEXT PRIMARY KEY, calls INTEGER NOT NULL, prompt INTEGER NOT NULL, reply INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run has spent: calls sent, tokens of their prompts and of the replies."""

    calls: int = 0
    prompt: int = 0
    reply: int = 0

    def plus(self, more: Spent) -> Spent:
        """Return the sum of the two."""
        return Spent(self.calls + more.calls, self.prompt + more.prompt, self.reply + more.reply)


class VerdictStore:
    """The verdicts in a folder, or with None in memory. A context manager; may be used from several threads.

    Any method may raise CacheError: the file is locked or damaged, or its disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._unkept: dict[bytes, bytes] = {}
        self._file: tuple[int, int] | None = None

    def __enter__(self) -> VerdictStore:
        """Open the file, a new one where it is damaged.

        Raises:
            CacheError: the folder cannot be written.
        """
        if self._folder is None:
            self._base = self._opened()
        else:
            self._base, self._file = self._begun(self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, after another try to write what could not be written."""
        with contextlib.suppress(CacheError):
            self.put({})
        with contextlib.ExitStack() as stack:
            if self._folder is not None:
                with contextlib.suppress(CacheError):  # who closes last deletes the log
                    stack.enter_context(FileLock(self._folder / OPEN_LOCK, _BUSY_SECONDS))
            self._base.close()

    @property
    def _path(self) -> str:
        return ":memory:" if self._folder is None else str(self._folder / FILE)

    def _begun(self, folder: Path) -> tuple[sqlite3.Connection, tuple[int, int]]:
        """Open the file, put aside where it is damaged, and tell which one it is."""
        with locked_folder(folder, _BUSY_SECONDS):
            try:
                try:
                    base = self._opened()
                except (sqlite3.Error, UnicodeDecodeError) as error:
                    if not is_damage(folder / FILE, error):
                        raise
                    for name in _FILES:
                        with contextlib.suppress(FileNotFoundError):
                            (folder / name).replace(folder / f"{name}{ASIDE}")
                    base = self._opened()
                with closed_on_error(base):
                    return base, _identity(folder / FILE)
            except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
                raise self._failed("open", error) from error

    def _follow(self) -> None:
        """Go on in the file that stands under the name now: the cache was cleared, or the file put aside.

        What runs have spent goes with it, as they go on too.
        """
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            if _identity(self._folder / FILE) == self._file:
                return
        old = self._base
        self._base, self._file = self._begun(self._folder)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(old):
            rows = old.execute("SELECT * FROM spent").fetchall()
            self._base.executemany("INSERT OR IGNORE INTO spent VALUES (?, ?, ?, ?)", rows)

    def _opened(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with closed_on_error(base):
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power cut the last calls, asked again
            if base.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
            base.executescript(_TABLES)
        return base

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the bodies of the keys that are there and whole."""
        wanted = list(dict.fromkeys(keys))
        with self._lock, self._explained("read"):
            found = {key: self._unkept[key] for key in wanted if key in self._unkept}
            for start in range(0, len(wanted), _KEYS_AT_ONCE):
                some = wanted[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(f'SELECT key, body, "check" FROM verdict WHERE key IN ({marks})', some)  # noqa: S608 - marks only
                found |= {key: body for key, body, check in rows if _is_true(key, body, check)}
        return found

    def put(self, bodies: Mapping[bytes, bytes]) -> None:
        """Keep some verdicts, and what could not be kept before; all of them or none. One that is there already stays.

        Raises:
            CacheError: they are in memory, where `get` finds them, until a later call or the end succeeds.
        """
        with self._lock:
            self._unkept |= bodies
            if not self._unkept:
                return
            rows = [(key, body, _check(key, body)) for key, body in self._unkept.items()]
            with self._transaction():
                self._base.executemany("INSERT OR IGNORE INTO verdict VALUES (?, ?, ?)", rows)
            self._unkept.clear()

    def spent(self, run: str) -> Spent:
        """Return what a run has spent so far, in this process and in those that were stopped."""
        with self._lock, self._explained("read"):
            row = self._base.execute("SELECT calls, prompt, reply FROM spent WHERE run = ?", (run,)).fetchone()
        return Spent(*row) if row else Spent()

    def spend(self, run: str, more: Spent) -> None:
        """Add to what a run has spent; take off with numbers below 0."""
        with self._lock, self._transaction():
            self._base.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (run) DO UPDATE SET "
                "calls = calls + excluded.calls, prompt = prompt + excluded.prompt, reply = reply + excluded.reply",
                (run, more.calls, more.prompt, more.reply),
            )

    def forget(self, run: str) -> None:
        """Forget what a run has spent: it has ended, or begins anew."""
        with self._lock, self._transaction():
            self._base.execute("DELETE FROM spent WHERE run = ?", (run,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained("write"):
            self._follow()
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # SQLite ends it by itself where the disk is full
                    self._base.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # who has waited in vain for a lock does not wait again and again
                self._base.execute("PRAGMA busy_timeout=0")
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: Exception) -> CacheError:
        return CacheError(
            f"cannot {what} {self._path}: {error}; free space, end what locks it, or set GPUMATCH_CACHE_DIR to another "
            "folder"
        )


@dataclass(slots=True)
class VerdictStats:
    """What is in a folder of verdicts.

    rows, damaged: verdicts, and how many of them fail their check; bytes: of all the store's own files.
    aside: damaged files that were put aside, of no use; foreign: files of others.
    trouble: why they cannot be counted; empty where they can; ruined: whether it is that the file is damaged.
    """

    folder: Path
    rows: int = 0
    damaged: int = 0
    bytes: int = 0
    aside: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    trouble: str = ""
    ruined: bool = False


def verdict_stats(folder: Path, *, prove: bool = False) -> VerdictStats:
    """Count what is in a folder of verdicts, which need not be there; nothing is created or changed.

    Args:
        prove: whether to check every row.
    """
    found = VerdictStats(folder)
    entries = sorted(entries_of(folder))
    own = [path for path in entries if is_own(path.name)]
    found.foreign = [path for path in entries if path not in own]
    found.aside = [path for path in own if path.name.endswith(ASIDE)]
    found.bytes = sum(size_of(path) for path in own)
    path = folder / FILE
    try:
        _, (found.rows, found.damaged) = ask_file(lambda: (None, path), partial(_counted, prove=prove))
    except FileNotFoundError:
        pass  # nothing was asked yet, or it has just been cleared
    except CacheError as error:
        found.trouble = str(error)
        found.ruined = isinstance(error.__cause__, Exception) and is_damage(path, error.__cause__)
    return found


def _counted(path: Path, how: str, *, prove: bool) -> tuple[int, int]:
    """Count the rows, and those of them that fail their check."""
    try:
        with contextlib.closing(connect(path, how)) as base:
            if base.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdict'").fetchone() is None:
                return 0, 0  # a process is just beginning it
            if not prove:
                return base.execute("SELECT count(*) FROM verdict").fetchone()[0], 0
            true = [_is_true(*row) for row in base.execute('SELECT key, body, "check" FROM verdict')]
            return len(true), true.count(False)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise CacheError(f"cannot be read: {error}") from error


def remove_verdicts(folder: Path, why: str, *, only_aside: bool = False) -> list[Leftover]:
    """Delete the store's own files, or only what was put aside, and the folder unless something else is in it.

    A process that has it open begins it anew.

    Args:
        why: what is said of the files that went.

    Raises:
        CacheError: it cannot be locked or deleted.
    """

    def which() -> list[Leftover]:
        own = [path for path in sorted(entries_of(folder)) if is_own(path.name) and path.name != OPEN_LOCK]
        return [Leftover(path, why, size_of(path)) for path in own if path.name.endswith(ASIDE) or not only_aside]

    return remove_files(folder, which) if folder.is_dir() and (which() or not only_aside) else []


def secret_of(folder: Path | None) -> bytes:
    """Return the folder's secret, made at first use; without a folder a new one every time."""
    if folder is None:
        return secrets.token_bytes(_SECRET_BYTES)
    make_private_folder(folder)
    path = folder / SECRET
    with contextlib.suppress(OSError):
        found = path.read_bytes()
        if len(found) == _SECRET_BYTES:
            return found
    made = secrets.token_bytes(_SECRET_BYTES)
    atomic_write_bytes(path, made)
    os.chmod(path, 0o600)
    return made


def is_own(name: str) -> bool:
    """Tell a file of this store by its name."""
    return name in (SECRET, OPEN_LOCK) or name.removesuffix(ASIDE) in _FILES


_FILES: Sequence[str] = tuple(f"{FILE}{end}" for end in ("", "-wal", "-shm", "-journal"))


def _identity(path: Path) -> tuple[int, int]:
    """Tell which file stands under a name; not by a descriptor, whose closing would give up SQLite's locks."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_true(key: object, body: object, check: object) -> bool:
    """Tell whether a row, which may hold anything after damage, is as it was written."""
    return isinstance(key, bytes) and isinstance(body, bytes) and check == _check(key, body)


def _check(key: bytes, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(key + body) >> 1  # SQLite's integers have a sign
