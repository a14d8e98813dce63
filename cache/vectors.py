"""Keys and unit vectors come in, the same vectors go out in any later process; what is not there is said to be missing.

It must never return a vector that was not put under that key: what is damaged counts as missing, so it is made again.

On disk, one folder per (model, revision, serialiser):

    about.json              what the vectors are, and which catalogue is current; checksummed, replaced atomically
    catalogue-<id>.sqlite   key -> handle, and the list of segments
    shard-<pid>-<id>.f16    rows of `dim` little-endian float16, appended by the one process that holds its lock
    open.lock               held while a process opens the folder or replaces its catalogue

A *segment* is a run of rows in one shard with one checksum. A *handle* is segment id << 24 | row within the segment.
Segment ids are random and never used again, so a stale handle leads nowhere rather than to another vector.

Why nothing acknowledged is lost: a put appends rows, syncs the shard, and only then commits one transaction that names
them (synchronous=FULL: one more sync per put of thousands of rows, and a power cut costs nothing either). Rows past the
catalogued ones are a torn tail that nobody reads. The one exception: a put that commits in the very moment in which
another process sets the catalogue aside as damaged goes aside with it.

Why no wrong vector is read: SQLite does not checksum its pages, so each key's row carries a check over key and handle,
and each segment's checksum covers its own catalogue row besides its bytes. A flipped key may still hide itself and a
few neighbours in the tree: they are encoded again, some of them up to four times before they stay (measured over 4,600
flips of a catalogue of 100 keys), but never mistaken.

Why catalogues have unique names: SQLite deletes `<name>-wal` by name when the last connection closes, so a process that
still had a moved or deleted catalogue open would delete the log of the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpumatch.cache.keys import KEY, namespace
from gpumatch.cache.publish import (
    CacheError,
    FileLock,
    atomic_write_bytes,
    fsync_dir,
    make_private_folder,
    same_file,
    write_all,
)

FORMAT = 1
ROW_BITS = 24
ROW_MASK = (1 << ROW_BITS) - 1
#: Rows per segment: what the first read of any of them must check (12 MB at dim 384, about 5 ms), and what one flipped
#: bit costs.
SEGMENT_ROWS = 16_384
#: Stored vectors are unit vectors; float16 rounding moves a norm by less than 0.001.
NORM_TOLERANCE = 0.01
BUSY_SECONDS = 30.0
#: Keys per SELECT; below the 999 parameters that the oldest SQLite allows, and no slower than 30,000.
KEYS_PER_QUERY = 512
#: Mapped shards kept open; each holds a file descriptor, and 1024 is a common limit for the whole process.
MAX_MAPS = 64

SHARD_NAME = re.compile(r"shard-[0-9]+-[0-9a-f]+\.f16")
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

#: A message that quotes a damaged schema may be no UTF-8, and then the sqlite3 module raises the other one.
CATALOGUE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segment:
    """One catalogue row: where a run of rows is, and what its bytes must hash to."""

    id: int
    shard: str
    start_row: int
    n_rows: int
    checksum: int

    def hasher(self) -> xxhash.xxh3_64:
        """Start the checksum with the row itself, so that a flipped start or id cannot pass."""
        return xxhash.xxh3_64(f"{self.id} {self.shard} {self.start_row} {self.n_rows} ".encode())


@dataclass(slots=True)
class _Found:
    """What one look into the catalogue gave; all of it from one snapshot."""

    handles: NDArray[np.int64]
    segments: dict[int, Segment]
    lost_segments: list[int]
    false_rows: list[tuple[bytes, int, int]]


class _NewerFormatError(CacheError):
    """The folder was written by a later version; ours goes beside it."""


class VectorStore:
    """Durable map from 16-byte keys to unit vectors, shared by any number of processes.

    Threads may share one instance (calls take turns). A forked child may not: it would append to its parent's shard;
    every call there raises CacheError, and it opens its own store. Use as a context manager, or call close().

    Attributes:
        folder: the folder of this model, revision and serialiser.
        damaged: one message for each damage met so far, for the caller to show; never cleared here.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self.dim: int = about["dim"]
        self._about = about
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._closed = False
        self._conn: sqlite3.Connection | None = None
        self._catalogue = folder
        self._stamp: tuple[int, ...] | None = None
        self._segments: dict[int, Segment] = {}
        self._verified: set[int] = set()
        self._maps: dict[str, NDArray[np.float16]] = {}
        self._shard_fd: int | None = None
        self._shard_name = ""
        self._shard_rows = 0

    # Opening and closing

    @classmethod
    def open(cls, root: Path, *, model: str, revision: str, serialiser: str, dim: int) -> VectorStore:
        """Open the store for one model, revision and serialiser, creating it when missing.

        Files that a killed process left behind, and that nobody can reach, are deleted. A damaged catalogue is set
        aside and an empty one begun; `damaged` then says so.

        Args:
            root: the folder that holds the folders of all models.
            model: the encoder's name.
            revision: its weights' revision.
            serialiser: the recipe that turned columns into texts.
            dim: length of each vector.

        Raises:
            CacheError: the folder holds vectors of another length, or cannot be read and written.
        """
        if dim < 1:
            raise CacheError(f"the vector length must be at least 1, got {dim}")
        about = {"format": FORMAT, "model": model, "revision": revision, "serialiser": serialiser, "dim": dim}
        name = f"{namespace(model, revision, serialiser)}-v{FORMAT}"
        messages: list[str] = []
        for attempt in itertools.count():
            store = cls(Path(root) / (f"{name}-{attempt}" if attempt else name), about)
            try:
                store._attach()
            except _NewerFormatError as error:
                store.close()
                messages.append(str(error))
                if attempt >= 9:
                    raise
            except BaseException:
                store.close()
                raise
            else:
                store.damaged[:0] = messages
                return store
        raise AssertionError("itertools.count ends never")

    def close(self) -> None:
        """Give back the shard and the catalogue; safe to call twice, and in a forked child (where it does nothing)."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            self._closed = True
            self._disconnect()
            self._leave_shard()

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    # The four calls

    def lookup(self, keys: NDArray[np.void]) -> NDArray[np.int64]:
        """Find which keys are catalogued, without reading any vector.

        Args:
            keys: V16 [n], in any order, repeats allowed.

        Returns:
            int64 [n]: a handle, or -1 where the key is missing. A handle says that the vector was put; only `get`
            says whether its bytes are still whole.

        Raises:
            CacheError: keys of another type, or the catalogue cannot be read.
        """
        keys = _as_keys(keys)
        with self._turn():
            return self._find(keys).handles

    def get(self, keys: NDArray[np.void]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Read the vectors of the keys that are there.

        The first read from a segment in this process checks the whole segment. A damaged one is dropped from the
        catalogue, its keys count as not found, and `damaged` gets a message.

        Args:
            keys: V16 [n], in any order, repeats allowed.

        Returns:
            float16 [n, dim], zero where not found; bool [n], true where found.

        Raises:
            CacheError: keys of another type, or the store cannot be read.
        """
        keys = _as_keys(keys)
        vectors = np.zeros((len(keys), self.dim), dtype=np.float16)
        found = np.zeros(len(keys), dtype=np.bool_)
        with self._turn():
            look = self._find(keys)
            handles = look.handles
            order = np.argsort(handles, kind="stable")  # by segment and row: each shard is read forwards
            order = order[handles[order] >= 0]
            segment_ids = handles[order] >> ROW_BITS
            cuts = np.flatnonzero(np.diff(segment_ids)) + 1
            broken: list[int] = []
            for places in np.split(order, cuts) if len(order) else []:
                segment = look.segments[int(handles[places[0]]) >> ROW_BITS]
                reason = self._why_broken(segment)
                if reason:
                    broken.append(segment.id)
                    self._report_rows(segment, reason)
                    continue
                rows = self._mapped(segment)
                vectors[places] = rows[(handles[places] & ROW_MASK) + segment.start_row]
                found[places] = True
            self._drop(broken, [])
        return vectors, found

    def put(self, keys: NDArray[np.void], vectors: NDArray[np.floating[Any]]) -> None:
        """Store vectors; once this returns, no crash loses them. The first vector put under a key stays.

        Args:
            keys: V16 [n]; of repeated keys the first counts.
            vectors: float16, float32 or float64 [n, dim] of norm 1; stored as float16.

        Raises:
            CacheError: a row is not finite or not of norm 1 (then nothing is stored), shapes or types do not fit, or
                the disk is full or not writable.
        """
        keys = _as_keys(keys)
        rows = self._as_rows(keys, vectors)
        if not len(keys):
            return
        with self._turn():
            first = np.sort(np.unique(keys, return_index=True)[1])
            keys, rows = keys[first], rows[first]
            segments, handles = self._append(rows)
            self._transact(lambda conn: self._name(conn, keys, handles, segments), "BEGIN IMMEDIATE")

    def stats(self) -> dict[str, int]:
        """Count what is stored.

        Returns:
            rows: keys that have a vector; segments; shards: shard files; bytes: of shards and catalogue on disk.

        Raises:
            CacheError: the catalogue cannot be read.
        """

        def count(conn: sqlite3.Connection) -> tuple[int, int]:
            sql = "SELECT (SELECT count(*) FROM vectors), (SELECT count(*) FROM segments)"
            rows, segments = conn.execute(sql).fetchone()
            return rows, segments

        with self._turn():
            rows, segments = self._transact(count)
            files = [entry for entry in os.scandir(self.folder) if entry.is_file()]
            shards = [entry for entry in files if SHARD_NAME.fullmatch(entry.name)]
            kept = shards + [entry for entry in files if entry.name.startswith("catalogue-")]
            size = sum(entry.stat().st_size for entry in kept)
        return {"rows": rows, "bytes": size, "shards": len(shards), "segments": segments}

    # The catalogue

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the instance for one call, and follow when another process has begun a new catalogue."""
        if os.getpid() != self._pid:
            raise CacheError(
                f"the vector cache {self.folder} was opened by process {self._pid}; open it again in the forked one"
            )
        with self._mutex:
            if self._closed:
                raise CacheError(f"the vector cache {self.folder} is closed")
            if self._conn is None or self._stamp != self._stamp_now():
                self._attach()
            yield

    def _transact(self, work: Callable[[sqlite3.Connection], T], begin: str = "BEGIN") -> T:
        """Run work in one transaction; when the catalogue turns out damaged, once more on an empty one."""
        for last in (False, True):
            conn = self._conn
            if conn is None:
                raise CacheError(f"the vector cache {self.folder} could not be reopened; try again")
            try:
                conn.execute(begin)
                result = work(conn)
                conn.execute("COMMIT")
                return result
            except CATALOGUE_ERRORS as error:
                self._roll_back(conn)
                if last or not self._is_damage(error):
                    raise self._explained(error) from error
                self._attach(damage=str(error))
            except BaseException:
                self._roll_back(conn)
                raise
        raise AssertionError("the second pass returns or raises")

    def _name(
        self, conn: sqlite3.Connection, keys: NDArray[np.void], handles: NDArray[np.int64], segments: list[Segment]
    ) -> None:
        """Enter distinct keys and their segments."""
        rows = [(s.id, s.shard, s.start_row, s.n_rows, s.checksum) for s in segments]
        conn.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", rows)
        checks = _row_checks(keys, handles)
        # another process may have put the same text first, and its vector is as good as ours; an entry that is there
        # and cannot be true is replaced
        for verb in ("IGNORE", "REPLACE"):
            entries = zip(keys.tolist(), handles.tolist(), checks.tolist(), strict=True)
            before = conn.total_changes
            # sorted: neighbours in the tree are written together
            sql = f"INSERT OR {verb} INTO vectors VALUES (?, ?, ?)"  # noqa: S608 - one of two words
            conn.executemany(sql, sorted(entries))
            if verb == "IGNORE" and conn.total_changes - before == len(keys):
                return  # the common case: all are new, so there is nothing to doubt
            absent = self._look(conn, keys).handles < 0
            if not absent.any():
                return
            keys, handles, checks = keys[absent], handles[absent], checks[absent]
        raise sqlite3.DatabaseError("rows just written are not found again")

    def _find(self, keys: NDArray[np.void]) -> _Found:
        """Look keys up; entries that cannot be true are removed and count as missing."""
        found = self._transact(lambda conn: self._look(conn, keys))
        self._segments.update(found.segments)
        if found.lost_segments or found.false_rows:
            self.damaged.append(
                f"{self._catalogue} is damaged ({len(found.lost_segments)} segments are not listed, "
                f"{len(found.false_rows)} rows fail their check); the texts concerned will be encoded again"
            )
            self._drop(found.lost_segments, found.false_rows)
        return found

    def _look(self, conn: sqlite3.Connection, keys: NDArray[np.void]) -> _Found:
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

        false = (handles != -1) & ((handles < 0) | (_row_checks(keys, handles) != checks))
        false_rows = [(asked[place], *entries[asked[place]]) for place in np.flatnonzero(false)]
        handles[false] = -1

        segments: dict[int, Segment] = {}
        lost: list[int] = []
        for segment_id in np.unique(handles[handles >= 0] >> ROW_BITS).tolist():
            segment = self._segments.get(segment_id)
            if segment is None:
                segment = _segment_from(conn.execute("SELECT * FROM segments WHERE id = ?", (segment_id,)).fetchone())
            if segment is None:
                lost.append(segment_id)
            else:
                segments[segment_id] = segment
        handles[np.isin(handles >> ROW_BITS, lost)] = -1
        return _Found(handles, segments, lost, false_rows)

    def _drop(self, segment_ids: list[int], false_rows: list[tuple[bytes, int, int]]) -> None:
        """Remove damaged entries, so that their texts can be put again."""
        if not segment_ids and not false_rows:
            return
        listed = json.dumps(segment_ids)

        def delete(conn: sqlite3.Connection) -> None:
            conn.executemany("DELETE FROM vectors WHERE key = ? AND handle IS ? AND row_check IS ?", false_rows)
            conn.execute("DELETE FROM segments WHERE id IN (SELECT value FROM json_each(?))", (listed,))
            # one scan of all keys, however many segments; an index on handle would slow every put for this rare case
            sql = f"DELETE FROM vectors WHERE handle >> {ROW_BITS} IN (SELECT value FROM json_each(?))"  # noqa: S608
            conn.execute(sql, (listed,))

        for segment_id in segment_ids:
            self._segments.pop(segment_id, None)
        try:
            self._transact(delete, "BEGIN IMMEDIATE")
        except CacheError as error:  # what was read stays true: the next reader meets the same damage
            self.damaged.append(f"the damaged entries could not be removed: {error}")

    # Attaching to the folder

    def _attach(self, damage: str | None = None) -> None:
        """Connect to the current catalogue, beginning a new one where there is none or it is damaged."""
        make_private_folder(self.folder)
        with FileLock(self.folder / "open.lock", timeout=BUSY_SECONDS):
            # else another process met the same damage and has begun a new catalogue already
            ours = damage is not None and self._stamp == self._stamp_now()
            self._disconnect()
            name = self._read_about()
            try:
                if ours and damage is not None and name is not None:
                    self._set_aside(name, damage)
                elif name is not None and self._connect_existing(name):
                    self._stamp = self._stamp_now()
                    return
                self._begin_catalogue()
            except CATALOGUE_ERRORS as error:
                self._disconnect()
                raise self._explained(error) from error
            except OSError as error:
                self._disconnect()
                raise CacheError(f"cannot use the cache folder {self.folder}: {error}") from error
            self._stamp = self._stamp_now()

    def _read_about(self) -> str | None:
        """Name the current catalogue, or none where a new one must begin."""
        path = self.folder / "about.json"
        try:
            about = json.loads(path.read_bytes())
            written = about["format"]
            if isinstance(written, int) and written > FORMAT:
                raise _NewerFormatError(f"{self.folder} was written by a newer gpumatch (format {written}); left alone")
            check = about.pop("check")
            name = str(about.pop("catalogue"))
            whole = check == _about_check({**about, "catalogue": name})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            self.damaged.append(f"{path} is damaged; the vectors beside it will be encoded again")
            return None
        for field, ours in self._about.items():
            if about.get(field) != ours:
                raise CacheError(
                    f"{self.folder} holds vectors of {field} {about.get(field)!r}, but {ours!r} was asked for; "
                    f"delete that folder (gpumatch cache clear)"
                )
        return name

    def _connect_existing(self, name: str) -> bool:
        """Connect and sweep; False where the catalogue is damaged, which is then set aside."""
        path = self.folder / name
        if not path.is_file():
            self.damaged.append(f"{path} is missing; its vectors will be encoded again")
            return False
        try:
            conn = self._connect(path)
            # before any other statement: those write to an empty file and to one of another version
            version = conn.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT:
                raise _NewerFormatError(f"{path} was written by a newer gpumatch (format {version}); left alone")
            if version != FORMAT:
                raise sqlite3.DatabaseError(f"its format is {version}, not {FORMAT}")
            _tune(conn)
            self._sweep(conn)
        except CATALOGUE_ERRORS as error:
            if not self._is_damage(error):
                raise
            self._disconnect()
            self._set_aside(name, str(error))
            return False
        return True

    def _connect(self, path: Path) -> sqlite3.Connection:
        # mode=rw: a missing file is an error, not an empty database under the old name
        uri = f"{path.absolute().as_uri()}?mode=rw"
        conn = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._conn, self._catalogue = conn, path
        return conn

    def _begin_catalogue(self) -> None:
        """Create an empty catalogue and publish its name; a kill before the last line leaves a file that is swept."""
        name = f"catalogue-{secrets.token_hex(8)}.sqlite"
        (self.folder / name).touch(mode=0o600, exist_ok=False)
        conn = self._connect(self.folder / name)
        _tune(conn)
        conn.executescript(SCHEMA)
        fsync_dir(self.folder)
        about = {**self._about, "catalogue": name}
        text = json.dumps({**about, "check": _about_check(about)}, indent=2)
        atomic_write_bytes(self.folder / "about.json", text.encode() + b"\n")

    def _set_aside(self, name: str, reason: str) -> None:
        """Keep a damaged catalogue under another name; a process that still has it open harms nobody."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.folder / f"{name}{suffix}", self.folder / f"damaged-{name}{suffix}")
        self.damaged.append(
            f"{self.folder / name} is damaged ({reason}); it now stands aside as damaged-{name}, "
            "and its vectors will be encoded again"
        )

    def _sweep(self, conn: sqlite3.Connection) -> None:
        """Delete what killed processes left and nobody can reach. Called under open.lock."""
        current = self._catalogue.name
        named = {row[0] for row in conn.execute("SELECT DISTINCT shard FROM segments")}
        for entry in list(os.scandir(self.folder)):
            stale = entry.name.startswith("catalogue-") and not entry.name.startswith(current)
            if stale or entry.name.startswith(".about.json.tmp-"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
            elif SHARD_NAME.fullmatch(entry.name) and entry.name not in named:
                self._sweep_shard(conn, Path(entry.path))

    def _sweep_shard(self, conn: sqlite3.Connection, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # asked again under the lock: its owner may have committed and left since the names were listed
            if conn.execute("SELECT 1 FROM segments WHERE shard = ? LIMIT 1", (path.name,)).fetchone() is None:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(fd)

    def _stamp_now(self) -> tuple[int, ...] | None:
        """Identify this very about.json; every new catalogue comes with a new one."""
        try:
            status = os.stat(self.folder / "about.json")
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        self._segments.clear()
        self._verified.clear()
        self._maps.clear()
        if conn is not None:
            with contextlib.suppress(sqlite3.Error):
                conn.close()

    def _roll_back(self, conn: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            if conn.in_transaction:
                conn.execute("ROLLBACK")

    def _is_damage(self, error: Exception) -> bool:
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return False  # a mistake in this file
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF == sqlite3.SQLITE_READONLY:
            # a flipped byte 18 makes SQLite call a writable file read-only
            return all(os.access(place, os.W_OK) for place in (self._catalogue, self.folder))
        return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in DAMAGE_CODES

    def _explained(self, error: Exception) -> CacheError:
        return CacheError(
            f"cannot use the vector catalogue {self._catalogue}: {error}; free space, or choose another cache folder"
        )

    # The shards

    def _as_rows(self, keys: NDArray[np.void], vectors: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
        """Check vectors and round them to float16 [n, dim]."""
        vectors = np.asarray(vectors)
        if vectors.shape != (len(keys), self.dim) or vectors.dtype.kind != "f":
            raise CacheError(
                f"vectors must be floats of shape ({len(keys)}, {self.dim}), got {vectors.dtype} {vectors.shape}"
            )
        with np.errstate(all="ignore"):  # what overflows becomes inf, and is refused below
            rows = np.ascontiguousarray(vectors, dtype="<f2")
            for start in range(0, len(rows), SEGMENT_ROWS):  # in pieces: a float32 copy of all would be twice the size
                piece = rows[start : start + SEGMENT_ROWS].astype(np.float32)
                norms = np.sqrt(np.einsum("ij,ij->i", piece, piece))
                bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # not >: nan must be refused too
                if len(bad):
                    place = start + int(bad[0])
                    raise CacheError(
                        f"vector {place} of {len(rows)} (key {keys[place].tobytes().hex()}) has norm "
                        f"{norms[bad[0]]:.6g}, not 1; the encoder is broken or does not normalise"
                    )
        return rows

    def _append(self, rows: NDArray[np.float16]) -> tuple[list[Segment], NDArray[np.int64]]:
        """Write rows to this instance's own shard and sync it; nobody sees them before the catalogue names them."""
        handles = np.empty(len(rows), dtype=np.int64)
        segments: list[Segment] = []
        begin = 0
        try:
            fd = self._own_shard()
            begin = self._shard_rows
            for start in range(0, len(rows), SEGMENT_ROWS):
                piece = rows[start : start + SEGMENT_ROWS]
                raw = piece.reshape(-1).view(np.uint8).data
                write_all(fd, raw, self._shard_rows * self.dim * 2)
                bare = Segment(secrets.randbits(63 - ROW_BITS), self._shard_name, self._shard_rows, len(piece), 0)
                segments.append(_with_checksum(bare, raw))
                handles[start : start + len(piece)] = (bare.id << ROW_BITS) + np.arange(len(piece))
                # before the commit: if that fails half-way, these rows may be named and must not be overwritten
                self._shard_rows += len(piece)
            os.fdatasync(fd)
        except OSError as error:
            if self._shard_fd is not None:
                with contextlib.suppress(OSError):  # give back what a full disk needs most; no catalogue names it
                    os.ftruncate(self._shard_fd, begin * self.dim * 2)
            # after a failed sync the kernel may have dropped pages of this file: the next put begins another
            self._leave_shard()
            raise CacheError(
                f"cannot write vectors to {self.folder}: {error}; free space, or choose another cache folder"
            ) from error
        return segments, handles

    def _own_shard(self) -> int:
        """Give this instance's shard, creating and locking it at the first put. May raise OSError."""
        if self._shard_fd is not None and not same_file(self._shard_fd, self.folder / self._shard_name):
            self._leave_shard()  # the cache was cleared
        while self._shard_fd is None:
            name = f"shard-{self._pid}-{secrets.token_hex(8)}.f16"
            fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._shard_fd, self._shard_name, self._shard_rows = fd, name, 0
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # an opening process is about to sweep it, for it is not yet locked
                self._leave_shard()
                continue
            if not same_file(fd, self.folder / name):
                self._leave_shard()
                continue
            fsync_dir(self.folder)
        return self._shard_fd

    def _leave_shard(self) -> None:
        fd, self._shard_fd = self._shard_fd, None
        if fd is not None:
            os.close(fd)

    def _why_broken(self, segment: Segment) -> str:
        """Check a segment once per process; empty when it is whole."""
        if segment.id in self._verified:
            return ""
        hasher = segment.hasher()
        # read, not mapped: a bad sector or a file cut short is an error here, where under mmap it kills the process
        try:
            fd = os.open(self.folder / segment.shard, os.O_RDONLY)
            try:
                place, left = segment.start_row * self.dim * 2, segment.n_rows * self.dim * 2
                while left:
                    raw = os.pread(fd, min(left, 1 << 20), place)
                    if not raw:
                        return "the file is too short"
                    hasher.update(raw)
                    place, left = place + len(raw), left - len(raw)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                return str(error.strerror)
            raise CacheError(f"cannot read {self.folder / segment.shard}: {error}") from error
        if _signed(hasher.intdigest()) != segment.checksum:
            return "checksum mismatch"
        self._verified.add(segment.id)
        return ""

    def _mapped(self, segment: Segment) -> NDArray[np.float16]:
        """Map the shard of a verified segment; float16 [rows in file, dim]."""
        rows = self._maps.pop(segment.shard, None)
        if rows is None or len(rows) < segment.start_row + segment.n_rows:
            path = self.folder / segment.shard
            try:
                n_rows = path.stat().st_size // (self.dim * 2)
                rows = np.memmap(path, dtype="<f2", mode="r", shape=(n_rows, self.dim))
            except OSError as error:
                raise CacheError(f"cannot map {path}: {error}") from error
            if len(self._maps) >= MAX_MAPS:
                del self._maps[next(iter(self._maps))]
        self._maps[segment.shard] = rows  # last in: the first of the dict is the one unused for longest
        return rows

    def _report_rows(self, segment: Segment, reason: str) -> None:
        self.damaged.append(
            f"rows {segment.start_row} to {segment.start_row + segment.n_rows - 1} of {self.folder / segment.shard} "
            f"are damaged ({reason}); their texts will be encoded again"
        )


def _as_keys(keys: NDArray[np.void]) -> NDArray[np.void]:
    keys = np.ascontiguousarray(keys)
    if keys.ndim != 1 or keys.dtype != KEY:
        raise CacheError(f"keys must be V16 [n] as text_keys gives, got {keys.dtype} {keys.shape}")
    return keys


def _tune(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("PRAGMA cache_size = -65536")  # 64 MiB: the whole catalogue of about 1.5 million keys


def _segment_from(row: tuple[Any, ...] | None) -> Segment | None:
    """Read a catalogue row that may hold anything after damage."""
    if row is None:
        return None
    segment_id, shard, start_row, n_rows, checksum = row
    if not all(isinstance(value, int) for value in (start_row, n_rows, checksum)) or start_row < 0 or n_rows < 1:
        return None
    if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
        return None
    return Segment(segment_id, shard, start_row, n_rows, checksum)


def _with_checksum(segment: Segment, raw: memoryview) -> Segment:
    hasher = segment.hasher()
    hasher.update(raw)
    return Segment(segment.id, segment.shard, segment.start_row, segment.n_rows, _signed(hasher.intdigest()))


def _signed(digest: int) -> int:
    """Fold an unsigned 64-bit digest into SQLite's signed integers."""
    return digest - (1 << 64) if digest >> 63 else digest


def _row_checks(keys: NDArray[np.void], handles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bind each key to its handle: splitmix64 over both, int64 [n]; one flipped bit changes half of the result."""
    lanes = keys.view("<u8").reshape(-1, 2)
    mixed = np.full(len(keys), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for lane in (lanes[:, 0], lanes[:, 1], handles.view(np.uint64)):
        mixed = mixed ^ lane
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed.view(np.int64)


def _about_check(about: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())
