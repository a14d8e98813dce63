"""Keys and unit vectors come in, the same vectors go out in any later process; what is not there is said to be missing.

It must never return a vector that was not put under that key: what is damaged counts as missing, so it is made again.

On disk, one folder per (model, revision, serialiser):

    about.json              what the vectors are, and which catalogue is current; checksummed, replaced atomically
    catalogue-<id>.sqlite   key -> handle, and the list of segments                              (catalogue.py)
    shard-<pid>-<id>.f16    rows of `dim` little-endian float16, in checksummed segments         (shards.py)
    open.lock               held while a process opens the folder or replaces its catalogue      (folder.py)

Why nothing acknowledged is lost: a put appends rows, syncs the shard, and only then commits one transaction that names
them (synchronous=FULL: one more sync per put of thousands of rows, and a power cut costs nothing either). Rows past the
catalogued ones are a torn tail that nobody reads. A put that commits in the very moment in which another process clears
the folder or sets its catalogue aside notices and puts again.

Why no wrong vector is read: each catalogue entry carries a check over key and handle, and each segment's checksum
covers its own catalogue row besides its bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpumatch.cache.catalogue import FORMAT, Catalogue, DamagedCatalogueError, Found, NewerFormatError
from gpumatch.cache.folder import ModelFolder
from gpumatch.cache.keys import KEY, namespace
from gpumatch.cache.publish import CacheError
from gpumatch.cache.shards import Segment, ShardReader, ShardWriter

#: Stored vectors are unit vectors; float16 rounding moves a norm by less than 0.001.
NORM_TOLERANCE = 0.01
#: Folders tried beside each other when later versions have written the first ones.
MAX_FOLDERS = 10
#: How often one call begins anew because others clear or prune the folder meanwhile.
MAX_TRIES = 10
#: A text takes some 5 ms to encode; so many bytes of a catalogue, 2,000 keys, are looked through in as long.
PROVED_BYTES_PER_MISSING = 100_000

T = TypeVar("T")


class VectorStore:
    """Durable map from 16-byte keys to unit vectors, shared by any number of processes.

    Threads may share one instance (calls take turns). A forked child may not: it would append to its parent's shard;
    every call there raises CacheError, and it opens its own store. Use as a context manager, or call close().

    Attributes:
        folder: the folder of this model, revision and serialiser.
        dim: length of each vector.
        damaged: one message for each damage met so far, for the caller to show; never cleared here.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.dim: int = about["dim"]
        self.damaged: list[str] = []
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._closed = False
        self._model_folder = ModelFolder(folder, about, self.damaged)
        self._catalogue: Catalogue | None = None
        self._proved: set[Path] = set()
        self._reader = ShardReader(folder, self.dim)
        self._writer = ShardWriter(folder, self.dim)

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
        newer: list[str] = []
        for attempt in range(MAX_FOLDERS):
            store = cls(Path(root) / (f"{name}-{attempt}" if attempt else name), about)
            try:
                store._attach()
            except NewerFormatError as error:
                newer.append(str(error))
                continue
            store.damaged[:0] = newer
            return store
        raise CacheError(newer[-1])

    def close(self) -> None:
        """Give back the shard and the catalogue; safe to call twice, and in a forked child (where it does nothing)."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            self._closed = True
            self._detach()
            self._writer.close()

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

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
        with self._turn():
            for _ in range(MAX_TRIES):
                vectors, found, broken = self._read(keys)
                if not broken or not self._are_replaced(list(broken)):
                    break
            for segment, reason in broken.items():
                self.damaged.append(
                    f"rows {segment.start_row} to {segment.start_row + segment.n_rows - 1} of "
                    f"{self.folder / segment.shard} are damaged ({reason}); their texts will be encoded again; "
                    "to look for more: gpumatch cache verify"
                )
            self._drop([segment.id for segment in broken], [])
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
        rows = _as_unit_rows(keys, vectors, self.dim)
        if not len(keys):
            return
        with self._turn():
            first = np.sort(np.unique(keys, return_index=True)[1])
            for _ in range(MAX_TRIES):
                if self._put_once(keys[first], rows[first]):
                    return
        raise CacheError(f"the vector cache {self.folder} is cleared all the time; try again")

    def stats(self) -> dict[str, int]:
        """Count what is stored.

        Returns:
            rows: keys that have a vector; segments; shards: shard files; bytes: of shards and catalogue on disk.

        Raises:
            CacheError: the catalogue cannot be read.
        """
        with self._turn():
            n_keys, n_segments = self._ask(Catalogue.count)
            n_shards, n_bytes = self._model_folder.usage()
        return {"rows": n_keys, "bytes": n_bytes, "shards": n_shards, "segments": n_segments}

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
            if self._catalogue is None or self._model_folder.has_moved_on():
                self._attach()
            yield

    def _put_once(self, keys: NDArray[np.void], rows: NDArray[np.float16]) -> bool:
        """Store rows; false where the folder was cleared, or its catalogue set aside, in this very moment."""
        damage = None
        try:
            # never into another catalogue than the one that was current before: the rows may be in a deleted shard
            self._current().enter(keys, self._writer.append(rows))
        except DamagedCatalogueError as error:
            damage = error.reason
        except CacheError:
            if not self._model_folder.has_moved_on():
                raise
        if damage is None and not self._model_folder.has_moved_on():
            return True
        self._attach(damage)
        return False

    def _read(self, keys: NDArray[np.void]) -> tuple[NDArray[np.float16], NDArray[np.bool_], dict[Segment, str]]:
        """Read vectors, and tell which are found and which segments are broken, and why."""
        vectors = np.zeros((len(keys), self.dim), dtype=np.float16)
        found = np.zeros(len(keys), dtype=np.bool_)
        entries = self._find(keys)
        broken: dict[Segment, str] = {}
        for segment, places in entries.iter_segments():
            try:
                if reason := self._reader.why_broken(segment):
                    broken[segment] = reason
                    continue
                vectors[places] = self._reader.rows(segment, entries.handles[places])
                found[places] = True
            except FileNotFoundError as error:
                broken[segment] = str(error.strerror)
        return vectors, found, broken

    def _are_replaced(self, broken: list[Segment]) -> bool:
        """Tell whether segments are gone because another process cleared or pruned the folder in this moment."""
        if self._model_folder.has_moved_on():
            self._attach()
            return True
        return not set(broken) <= set(self._ask(Catalogue.segments))

    def _find(self, keys: NDArray[np.void]) -> Found:
        """Look keys up; entries that cannot be true are removed and count as missing."""
        found, path = self._ask(lambda catalogue: (catalogue.find(keys), catalogue.path))
        doubtful = bool(found.lost_segments or found.false_rows)
        missing = int((found.handles < 0).sum())
        if path not in self._proved and (doubtful or self._is_worth_proving(path, missing)):
            self._proved.add(path)
            if reason := self._ask(Catalogue.why_damaged):
                self.damaged.append(
                    f"{path} is damaged ({reason}); what is true in it was kept, and the texts concerned will be "
                    "encoded again; to look for more: gpumatch cache verify"
                )
                self._model_folder.rebuild(path.name, reason)
                self._attach()
                return self._find(keys)
        if doubtful:
            self.damaged.append(
                f"{path} is damaged ({len(found.lost_segments)} segments are not listed, "
                f"{len(found.false_rows)} rows fail their check); the texts concerned will be encoded again; "
                "to look for more: gpumatch cache verify"
            )
            self._drop(found.lost_segments, found.false_rows)
        return found

    def _is_worth_proving(self, catalogue: Path, missing: int) -> bool:
        """Tell whether looking through the catalogue costs less than encoding what is missing, which it may hide."""
        try:
            return 0 < catalogue.stat().st_size <= PROVED_BYTES_PER_MISSING * missing
        except OSError:  # cleared meanwhile
            return False

    def _drop(self, segment_ids: list[int], false_rows: list[tuple[bytes, int, int]]) -> None:
        """Remove damaged entries, so that their texts can be put again."""
        if not segment_ids and not false_rows:
            return
        try:
            self._ask(lambda catalogue: catalogue.drop(segment_ids, false_rows))
        except CacheError as error:  # what was read stays true: the next reader meets the same damage
            self.damaged.append(f"the damaged entries could not be removed: {error}")

    def _ask(self, question: Callable[[Catalogue], T]) -> T:
        """Ask the catalogue; when it turns out damaged, once more an empty one."""
        try:
            return question(self._current())
        except DamagedCatalogueError as error:
            return question(self._attach(damage=error.reason))

    def _current(self) -> Catalogue:
        if self._catalogue is None:
            raise CacheError(f"the vector cache {self.folder} could not be reopened; try again")
        return self._catalogue

    def _attach(self, damage: str | None = None) -> Catalogue:
        self._detach()
        self._catalogue = self._model_folder.attach(damage)
        return self._catalogue

    def _detach(self) -> None:
        """Close the catalogue and forget what was read through it."""
        catalogue, self._catalogue = self._catalogue, None
        self._reader = ShardReader(self.folder, self.dim)
        if catalogue is not None:
            catalogue.close()


def _as_keys(keys: NDArray[np.void]) -> NDArray[np.void]:
    keys = np.ascontiguousarray(keys)
    if keys.ndim != 1 or keys.dtype != KEY:
        raise CacheError(f"keys must be V16 [n] as text_keys gives, got {keys.dtype} {keys.shape}")
    return keys


def _as_unit_rows(keys: NDArray[np.void], vectors: NDArray[np.floating[Any]], dim: int) -> NDArray[np.float16]:
    """Check vectors and round them to little-endian float16 [n, dim]."""
    vectors = np.asarray(vectors)
    if vectors.shape != (len(keys), dim) or vectors.dtype.kind != "f":
        raise CacheError(f"vectors must be floats of shape ({len(keys)}, {dim}), got {vectors.dtype} {vectors.shape}")
    with np.errstate(all="ignore"):  # what overflows becomes inf, and is refused below
        rows = np.ascontiguousarray(vectors, dtype="<f2")
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32))  # no float32 copy of all rows
    bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # not >: nan must be refused too
    if len(bad):
        raise CacheError(
            f"vector {bad[0]} of {len(rows)} (key {keys[bad[0]].tobytes().hex()}) has norm {norms[bad[0]]:.6g}, not 1; "
            "the encoder is broken or does not normalise"
        )
    return rows
