"""Verdicts under hashed keys come in, go into one SQLite file that is journal and cache in one, and come out again.

    FOLDER/verdicts-v1.sqlite    a row a verdict, with a checksum; a row a run, with what it has spent
    FOLDER/secret                32 random bytes, by which values are hashed where they are not to be sent

A verdict is there for every later process once `put` has returned, whatever kills this one; where it cannot be written
this process has it still. It must never return a row whose checksum is wrong, nor let an error of SQLite out. A damaged
file is put aside and begun anew: what is lost is asked again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import xxhash

from gpumatch.cache.publish import CacheError, atomic_write_bytes, make_private_folder

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

    def __enter__(self) -> VerdictStore:
        """Open the file, a new one where it is damaged.

        Raises:
            CacheError: the folder cannot be written.
        """
        if self._folder is not None:
            make_private_folder(self._folder)
        try:
            self._base = self._opened()
        except sqlite3.DatabaseError as error:
            if self._folder is None or isinstance(error, sqlite3.OperationalError):
                raise self._failed("open", error) from error
            for name in _FILES:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / name).replace(self._folder / f"{name}{ASIDE}")
            self._base = self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, after another try to write what could not be written."""
        with contextlib.suppress(CacheError):
            self.put({})
        self._base.close()

    @property
    def _path(self) -> str:
        return ":memory:" if self._folder is None else str(self._folder / FILE)

    def _opened(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as on_error:
            base = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            on_error.callback(base.close)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power cut the last calls, asked again
            if base.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
            base.executescript(_TABLES)
            on_error.pop_all()
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
                found |= {key: body for key, body, check in rows if check == _check(key, body)}
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

    def _failed(self, what: str, error: sqlite3.Error) -> CacheError:
        return CacheError(
            f"cannot {what} {self._path}: {error}; free space, end what locks it, or set GPUMATCH_CACHE_DIR to another "
            "folder"
        )


@dataclass(slots=True)
class VerdictStats:
    """What is in a folder of verdicts: rows, how many of them are damaged, files and bytes; trouble in words.

    aside: damaged files that were put aside, of no use.
    """

    folder: Path
    rows: int = 0
    damaged: int = 0
    bytes: int = 0
    aside: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    trouble: str = ""


def verdict_stats(folder: Path, *, prove: bool = False) -> VerdictStats:
    """Count what is in a folder of verdicts, which need not be there; nothing is created or changed.

    Args:
        prove: whether to check every row.
    """
    found = VerdictStats(folder)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    own = [path for path in entries if is_own(path.name)]
    found.foreign = [path for path in entries if path not in own]
    found.aside = [path for path in own if path.name.endswith(ASIDE)]
    found.bytes = sum(path.stat().st_size for path in own)
    if folder / FILE not in own:
        return found
    try:
        with contextlib.closing(sqlite3.connect(f"{(folder / FILE).absolute().as_uri()}?mode=ro", uri=True)) as base:
            found.rows = base.execute("SELECT count(*) FROM verdict").fetchone()[0]
            if prove:
                rows = base.execute('SELECT key, body, "check" FROM verdict')
                found.damaged = sum(check != _check(key, body) for key, body, check in rows)
    except sqlite3.Error as error:
        found.trouble = f"cannot be read: {error}"
    return found


def remove_verdicts(folder: Path, *, only_aside: bool = False) -> list[tuple[Path, int]]:
    """Delete the store's own files, or only what was put aside; return each with its bytes.

    Raises:
        CacheError: one cannot be deleted.
    """
    gone = []
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if is_own(path.name) and (path.name.endswith(ASIDE) or not only_aside):
                gone.append((path, path.stat().st_size))
                path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot delete {error.filename or folder}: {error.strerror}") from error
    with contextlib.suppress(OSError):
        folder.rmdir()
    return gone


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
    return name == SECRET or name.removesuffix(ASIDE) in _FILES


_FILES: Sequence[str] = tuple(f"{FILE}{end}" for end in ("", "-wal", "-shm", "-journal"))


def _check(key: bytes, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(key + body) >> 1  # SQLite's integers have a sign
