"""Keys and segments come in; handles and segments go out of one SQLite file, in any later process.

It must never give an entry that fails its check, nor call a full disk, a lock or a mistake of ours damage to the file.

SQLite does not checksum its pages, so each key's row carries a check over key and handle. A flipped key may still hide
itself and its neighbours in the tree; a caller that misses keys which should be there asks `why_damaged`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpumatch.cache.keys import KEY
from gpumatch.cache.publish import CacheError
from gpumatch.cache.shards import ROW_BITS, Segment

FORMAT = 1
BUSY_SECONDS = 30.0
#: Keys per SELECT; below the 999 parameters that the oldest SQLite allows, and no slower than 30,000.
KEYS_PER_QUERY = 512
ENTRIES_AT_ONCE = 65_536

SCHEMA = f"""
    CREATE TABLE segments (
        id INTEGER PRIMARY KEY, shard TEXT NOT NULL, start_row INTEGER NOT NULL, n_rows INTEGER NOT NULL,
        checksum INTEGER NOT NULL
    );
    CREATE TABLE vectors (
        key BLOB NOT NULL PRIMARY KEY, handle INTEGER NOT NULL, row_check INTEGER NOT NULL
    ) WITHOUT ROWID;
    PRAGMA user_version = {FORMAT};
"""
#: Key, handle, row check.
Entry = tuple[bytes, int, int]

#: SQLite's primary result codes that say "this file is not what I wrote". SQLITE_ERROR (no such table) is among them
#: because the statements here are fixed; full disks, locks and I/O errors are not.
DAMAGE_CODES = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
    }
)


class DamagedCatalogueError(CacheError):
    """The file is not what was written; path and reason are kept apart, for who sets it aside."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the vector catalogue {path} is damaged: {reason}; gpumatch cache prune mends it")
        self.path = path
        self.reason = reason


class NewerFormatError(CacheError):
    """A later version wrote this; it is left alone."""

    def __init__(self, place: Path, version: int) -> None:
        super().__init__(f"{place} was written by a newer gpumatch (format {version}); left alone")


class MovedError(CacheError):
    """Another process changed what was looked at; nothing was done."""


@dataclass(slots=True)
class Found:
    """What one look into the catalogue gave, all of it from one snapshot; -1 among the handles means missing."""

    handles: NDArray[np.int64]
    segments: dict[int, Segment]
    lost_segments: list[int]
    false_rows: list[Entry]

    def iter_segments(self) -> Iterator[tuple[Segment, NDArray[np.intp]]]:
        """Give each segment and the places of its handles, by segment and row: each shard is read forwards."""
        order = np.argsort(self.handles, kind="stable")
        order = order[self.handles[order] >= 0]
        ids, starts = np.unique(self.handles[order] >> ROW_BITS, return_index=True)
        for segment_id, places in zip(ids.tolist(), np.split(order, starts)[1:], strict=True):
            yield self.segments[segment_id], places


class Catalogue:
    """One open catalogue file. Each call is one transaction, and may raise DamagedCatalogueError or another CacheError.

    Args:
        path: a file that is there; `open`, `open_as` and `create` look into it.
        how: SQLite's words for what may be done with it.
    """

    # mode=rw: a missing file is an error, not an empty database under the old name
    def __init__(self, path: Path, how: str = "mode=rw") -> None:
        self.path = path
        self._segments: dict[int, Segment] = {}
        with self._explained():
            self._conn = connect(path, how)

    @classmethod
    def open(cls, path: Path) -> Catalogue:
        """Open a catalogue that is there.

        Raises:
            NewerFormatError: a later version wrote it; it is as it was.
            DamagedCatalogueError: the file is not what was written.
            CacheError: it cannot be read and written for any other reason.
        """
        with closed_on_error(cls.open_as(path, "mode=rw")) as catalogue, catalogue._explained():
            _tune(catalogue._conn)
        return catalogue

    @classmethod
    def open_as(cls, path: Path, how: str) -> Catalogue:
        """Open a catalogue to look at it.

        Args:
            path: the file.
            how: SQLite's words for what may be done with it, such as those of `unchanged`.

        Raises:
            as `open`.
        """
        with closed_on_error(cls(path, how)) as catalogue, catalogue._explained():
            catalogue._check_format()  # before any other statement: those write to an empty file and to newer ones
        return catalogue

    @classmethod
    def create(cls, path: Path) -> Catalogue:
        """Make an empty catalogue.

        Raises:
            OSError: the name is taken, or no file can be made there.
            CacheError: it cannot be filled.
        """
        path.touch(mode=0o600, exist_ok=False)
        with closed_on_error(cls(path)) as catalogue, catalogue._explained():
            _tune(catalogue._conn)
            catalogue._conn.executescript(SCHEMA)
        return catalogue

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._conn.close()

    def find(self, keys: NDArray[np.void]) -> Found:
        """Look up keys, V16 [n]; entries that cannot be true count as missing and are listed for `drop`."""
        with self.snapshot() as conn:
            found = self._look(conn, keys)
        self._segments.update(found.segments)
        return found

    def enter(self, keys: NDArray[np.void], segments: list[Segment]) -> None:
        """Enter segments, and their rows under distinct keys, V16 [n]; a key that has a true entry keeps it."""
        handles = np.concatenate([segment.handles() for segment in segments])
        checks = row_checks(keys, handles)
        with self._transaction("BEGIN IMMEDIATE") as conn:
            conn.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", map(astuple, segments))
            # another process may have put the same text first, and its vector is as good as ours; an entry that is
            # there and cannot be true is replaced
            for verb in ("IGNORE", "REPLACE"):
                entries = zip(keys.tolist(), handles.tolist(), checks.tolist(), strict=True)
                sql = f"INSERT OR {verb} INTO vectors VALUES (?, ?, ?)"  # noqa: S608 - one of two words
                # sorted: neighbours in the tree are written together
                written = conn.executemany(sql, sorted(entries)).rowcount
                if verb == "IGNORE" and written == len(keys):
                    return  # the common case: all are new, so there is nothing to doubt
                absent = self._look(conn, keys).handles < 0
                if not absent.any():
                    return
                keys, handles, checks = keys[absent], handles[absent], checks[absent]
            raise sqlite3.DatabaseError("rows just written are not found again")

    def drop(self, segment_ids: list[int], false_rows: list[Entry]) -> None:
        """Remove damaged entries, so that their texts can be put again."""
        for segment_id in segment_ids:
            self._segments.pop(segment_id, None)
        listed = json.dumps(segment_ids)
        with self._transaction("BEGIN IMMEDIATE") as conn:
            conn.executemany("DELETE FROM vectors WHERE key = ? AND handle IS ? AND row_check IS ?", false_rows)
            conn.execute("DELETE FROM segments WHERE id IN (SELECT value FROM json_each(?))", (listed,))
            # one scan of all keys, however many segments; an index on handle would slow every put for this rare case
            sql = f"DELETE FROM vectors WHERE handle >> {ROW_BITS} IN (SELECT value FROM json_each(?))"  # noqa: S608
            conn.execute(sql, (listed,))

    def count(self) -> tuple[int, int]:
        """Count keys and segments."""
        with self.snapshot() as conn:
            n_keys, n_segments = conn.execute(
                "SELECT (SELECT count(*) FROM vectors), (SELECT count(*) FROM segments)"
            ).fetchone()
        return n_keys, n_segments

    def shards(self) -> set[str]:
        """Name the shards of all segments."""
        with self.snapshot() as conn:
            return {row[0] for row in conn.execute("SELECT DISTINCT shard FROM segments")}

    def segments(self) -> list[Segment]:
        """List the segments whose rows can be true."""
        with self.snapshot() as conn:
            rows = conn.execute("SELECT * FROM segments").fetchall()
        return [segment for segment in map(Segment.from_row, rows) if segment is not None]

    def entries(self, handles: NDArray[np.int64]) -> list[Entry]:
        """List the entries of some handles; one scan of all keys."""
        sql = "SELECT key, handle, row_check FROM vectors WHERE handle IN (SELECT value FROM json_each(?))"
        with self.snapshot() as conn:
            return conn.execute(sql, (json.dumps(handles.tolist()),)).fetchall()

    def entries_in(self, segments: list[Segment]) -> list[Entry]:
        """List the entries that name a row of some segments; one scan of all keys."""
        sql = (
            f"SELECT key, handle, row_check FROM vectors WHERE handle >> {ROW_BITS} IN "  # noqa: S608
            "(SELECT value FROM json_each(?))"
        )
        with self.snapshot() as conn:
            return conn.execute(sql, (json.dumps([segment.id for segment in segments]),)).fetchall()

    def named_rows(self) -> dict[int, int]:
        """Count for each segment id the keys that name a row of it; one scan of all keys."""
        counts: Counter[int] = Counter()
        with self.snapshot() as conn:
            cursor = conn.execute("SELECT handle FROM vectors WHERE typeof(handle) = 'integer'")
            while batch := cursor.fetchmany(ENTRIES_AT_ONCE):
                ids, times = np.unique(np.array(batch, np.int64) >> ROW_BITS, return_counts=True)
                counts.update(dict(zip(ids.tolist(), times.tolist(), strict=True)))
        return dict(counts)

    def copy_true(self, damaged: Catalogue) -> None:
        """Take over what is true in a damaged catalogue, as far as it can be read."""
        with self._transaction("BEGIN IMMEDIATE") as conn:
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                for row in damaged._conn.execute("SELECT * FROM segments"):
                    if (segment := Segment.from_row(row)) is not None:
                        conn.execute("INSERT OR IGNORE INTO segments VALUES (?, ?, ?, ?, ?)", astuple(segment))
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                for entries in iter_entries(damaged._conn):
                    kept = [entry for entry, good in zip(entries, true_entries(entries).tolist(), strict=True) if good]
                    conn.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", kept)

    def why_damaged(self) -> str:
        """Look through the whole file, some two seconds for a million keys; empty where nothing is wrong with it."""
        with self.snapshot() as conn:
            if said := integrity(conn):
                return said
            false = sum(int((~true_entries(entries)).sum()) for entries in iter_entries(conn))
        return f"{false} rows fail their check" if false else ""

    def move(self, old: list[Segment], new: list[Segment], entries: list[Entry]) -> None:
        """Replace segments by others that hold the same rows under the same keys; all or nothing.

        Args:
            old: segments that go.
            new: what comes, with one row for each entry, in the order of the entries.
            entries: every entry of the old segments.

        Raises:
            MovedError: an entry is no longer what was given.
        """
        keys = np.array([key for key, _, _ in entries], KEY)
        handles = np.concatenate([segment.handles() for segment in new])
        moved = zip(handles.tolist(), row_checks(keys, handles).tolist(), *zip(*entries, strict=True), strict=True)
        sql = "UPDATE vectors SET handle = ?, row_check = ? WHERE key = ? AND handle = ? AND row_check = ?"
        with self._transaction("BEGIN IMMEDIATE") as conn:
            if conn.executemany(sql, moved).rowcount != len(entries):
                raise MovedError(f"{self.path} was changed meanwhile; try again")
            conn.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", map(astuple, new))
            conn.executemany("DELETE FROM segments WHERE id = ?", [(segment.id,) for segment in old])
        for segment in old:
            self._segments.pop(segment.id, None)

    def snapshot(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Give the connection inside of one read transaction; what SQLite raises is explained."""
        return self._transaction("BEGIN")

    def _check_format(self) -> None:
        version = self._conn.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise NewerFormatError(self.path, version)
        if version != FORMAT:
            raise sqlite3.DatabaseError(f"its format is {version}, not {FORMAT}")

    def _look(self, conn: sqlite3.Connection, keys: NDArray[np.void]) -> Found:
        asked = keys.tolist()
        unique = sorted(set(asked))  # neighbours in the tree are read together
        entries: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(unique), KEYS_PER_QUERY):
            batch = unique[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(batch))
            sql = f"SELECT key, handle, row_check FROM vectors WHERE key IN ({marks})"  # noqa: S608 - only marks
            entries.update((key, (handle, check)) for key, handle, check in conn.execute(sql, batch))
        pairs = itertools.chain.from_iterable(entries.get(key, (-1, 0)) for key in asked)
        try:
            handles, checks = np.fromiter(pairs, np.int64, 2 * len(asked)).reshape(-1, 2).T.copy()
        except (TypeError, ValueError, OverflowError) as error:
            raise sqlite3.DatabaseError(f"a handle is no integer: {error}") from error

        false = (handles != -1) & ((handles < 0) | (row_checks(keys, handles) != checks))
        false_rows = [(asked[place], *entries[asked[place]]) for place in np.flatnonzero(false)]
        handles[false] = -1

        segments: dict[int, Segment] = {}
        lost: list[int] = []
        for segment_id in np.unique(handles[handles >= 0] >> ROW_BITS).tolist():
            segment = self._segments.get(segment_id) or Segment.from_row(
                conn.execute("SELECT * FROM segments WHERE id = ?", (segment_id,)).fetchone()
            )
            if segment is None:
                lost.append(segment_id)
            else:
                segments[segment_id] = segment
        handles[np.isin(handles >> ROW_BITS, lost)] = -1
        return Found(handles, segments, lost, false_rows)

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._explained():
            try:
                self._conn.execute(begin)
                yield self._conn
                self._conn.execute("COMMIT")
            finally:
                with contextlib.suppress(sqlite3.Error):
                    if self._conn.in_transaction:
                        self._conn.execute("ROLLBACK")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite raises into DamagedCatalogueError or another CacheError."""
        try:
            yield
        # a message that quotes a damaged schema may be no UTF-8, and then the sqlite3 module raises the other one
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if is_damage(self.path, error):
                raise DamagedCatalogueError(self.path, str(error)) from error
            raise CacheError(_cannot_use(self.path, str(error))) from error


def connect(path: Path, how: str) -> sqlite3.Connection:
    """Open a file of SQLite, for all threads and with transactions begun by hand.

    Args:
        path: the file.
        how: SQLite's words for what may be done with it.
    """
    uri = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def unchanged(log: bool) -> str:
    """Return SQLite's words for looking at a file: no byte of it changes, and no file appears beside it.

    Args:
        log: whether it has a log with something in it. Without one SQLite is told that nobody writes, and takes no
            lock: who asks must see to it that the file is the same afterwards (`inspect.ask_file`).
    """
    return f"mode=ro&{'readonly_shm' if log else 'immutable'}=1"


def is_damage(path: Path, error: Exception) -> bool:
    """Tell whether what SQLite has raised says that the file is not what was written."""
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return False  # a mistake of ours
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF == sqlite3.SQLITE_READONLY:
        # a flipped byte 18 makes SQLite call a writable file read-only
        return all(os.access(place, os.W_OK) for place in (path, path.parent))
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in DAMAGE_CODES


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


@contextlib.contextmanager
def closed_on_error(thing: C) -> Iterator[C]:
    """Give a thing on, open; close it only if what is done with it here fails."""
    try:
        yield thing
    except BaseException:
        thing.close()
        raise


def _cannot_use(path: Path, reason: str) -> str:
    return f"cannot use the vector catalogue {path}: {reason}; free space, or choose another cache folder"


def _tune(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("PRAGMA cache_size = -65536")  # 64 MiB: the whole catalogue of about 1.5 million keys


def is_typed(entry: tuple[object, ...]) -> bool:
    """Tell an entry that may be true from one whose fields are of other kinds."""
    match entry:
        case (bytes(key), int(), int()):
            return len(key) == KEY.itemsize
    return False


def true_entries(entries: list[Entry]) -> NDArray[np.bool_]:
    """Tell which entries are as they were written; bool [n]."""
    true = np.array([is_typed(entry) for entry in entries], np.bool_)
    typed = [entry for entry, good in zip(entries, true.tolist(), strict=True) if good]
    handles, checks = np.array([entry[1:] for entry in typed], np.int64).reshape(-1, 2).T.copy()
    true[true] = (handles >= 0) & (row_checks(np.array([key for key, _, _ in typed], KEY), handles) == checks)
    return true


def iter_entries(conn: sqlite3.Connection) -> Iterator[list[Entry]]:
    """Read all entries, which may be anything after damage, in lists of bounded length."""
    cursor = conn.execute("SELECT key, handle, row_check FROM vectors")
    while entries := cursor.fetchmany(ENTRIES_AT_ONCE):
        yield entries


def integrity(conn: sqlite3.Connection) -> str:
    """Tell what SQLite finds wrong with its file; empty where nothing is."""
    said = [str(row[0]) for row in conn.execute("PRAGMA integrity_check(3)")]
    return "" if said == ["ok"] else " ".join("; ".join(said).split())


def row_checks(keys: NDArray[np.void], handles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bind each key to its handle: splitmix64 over both, int64 [n]; one flipped bit changes half of the result."""
    lanes = keys.view("<u8").reshape(-1, 2)
    mixed = np.full(len(keys), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for lane in (lanes[:, 0], lanes[:, 1], handles.view(np.uint64)):
        mixed = mixed ^ lane
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed.view(np.int64)
