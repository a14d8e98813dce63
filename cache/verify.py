"""A folder of vectors comes in; everything that is not as it was written, or is no vector, goes out by name.

It must never change a byte, report what another process has just replaced, or hold more than one byte a vector and one
piece of a shard in memory.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpumatch.cache.catalogue import (
    Catalogue,
    DamagedCatalogueError,
    Entry,
    NewerFormatError,
    integrity,
    iter_entries,
    true_entries,
)
from gpumatch.cache.folder import DamagedAboutError, read_about
from gpumatch.cache.inspect import ask
from gpumatch.cache.log import why_log_damaged
from gpumatch.cache.publish import CacheError
from gpumatch.cache.shards import ROW_BITS, Segment, ShardReader
from gpumatch.cache.vectors import NORM_TOLERANCE

PRUNE = "gpumatch cache prune"
#: More entries that fail their check than this are no longer listed one by one: the whole catalogue counts as damaged.
MAX_FALSE_ROWS = 100_000
NO_VECTOR = ("", "not finite", "zero", "constant", "not of norm 1")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    kind: one or two words; place: the file or folder; found: what is wrong there.
    texts: how many texts are concerned, None where that cannot be known; mend: the command that mends it.
    """

    kind: str
    place: Path
    found: str
    texts: int | None
    mend: str = PRUNE


@dataclass(slots=True)
class FolderProof:
    """What a check of one folder found.

    folder, about: which; rows, segments: how many were proved or found wanting.
    damages: what is wrong; note: why it was not looked at, where that is no damage.
    broken: segments whose bytes are not what was written; false_rows: entries that cannot be true or name no vector.
    ruined: why the catalogue has to be made anew of what is true in it; empty where that is not so.
    hopeless: why nobody can use the folder; empty where that is not so.
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    segments: int = 0
    damages: list[Damage] = field(default_factory=list)
    note: str = ""
    broken: list[Segment] = field(default_factory=list)
    false_rows: list[Entry] = field(default_factory=list)
    ruined: str = ""
    hopeless: str = ""


@dataclass(slots=True)
class _Census:
    """What the catalogue says, from one snapshot of it.

    segments: by id; ids, starts: int64 [S], each segment's id and the place of its first row among all rows.
    named: uint8 [R], how many keys name each row, 2 for more.
    """

    segments: list[Segment]
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    named: NDArray[np.uint8]
    n_keys: int = 0
    n_false: int = 0
    n_lost: int = 0
    false_rows: list[Entry] = field(default_factory=list)
    impossible_segments: int = 0
    reason: str = ""

    def named_rows(self, place: int) -> NDArray[np.uint8]:
        """Tell for each row of a segment how many keys name it."""
        return self.named[self.starts[place] : self.starts[place] + self.segments[place].n_rows]


def check_folder(folder: Path) -> FolderProof:
    """Prove every catalogue row, every segment's checksum and every vector of a folder.

    Raises:
        CacheError: it cannot be read, for a reason that says nothing about its bytes.
    """
    proof = FolderProof(folder)
    _check_log(proof)
    try:
        proof.about, census = ask(folder, _count)
    except NewerFormatError as error:
        proof.note = str(error)
        return proof
    except (FileNotFoundError, DamagedAboutError, DamagedCatalogueError) as error:
        _no_catalogue(proof, error)
        return proof
    proof.rows, proof.segments = census.n_keys, len(census.segments)
    _tell_catalogue(proof, census)
    _check_shards(proof, census)
    return proof


def _check_log(proof: FolderProof) -> None:
    with contextlib.suppress(CacheError):  # told by who asks the catalogue
        about = read_about(proof.folder / "about.json") or {}
        log = proof.folder / f"{about.get('catalogue')}-wal"
        if reason := why_log_damaged(log):
            proof.damages.append(Damage("catalogue log", log, reason, None))


def _no_catalogue(proof: FolderProof, error: Exception) -> None:
    if isinstance(error, DamagedCatalogueError):
        proof.ruined = error.reason
        proof.damages.append(Damage("catalogue", error.path, error.reason, None))
    elif isinstance(error, DamagedAboutError):
        proof.hopeless = "about.json is not what was written"
        proof.damages.append(Damage("about.json", proof.folder / "about.json", "not what was written", None))
    elif str(error).endswith("is missing"):
        place = Path(str(error).removesuffix(" is missing"))
        proof.hopeless = str(error)
        proof.damages.append(Damage("missing catalogue", place, "about.json names it", None))
    else:  # a process is about to begin it, or was killed then
        proof.note = f"{error}: no vectors yet"


# --- the catalogue


def _count(catalogue: Catalogue) -> _Census:
    with catalogue.snapshot() as conn:
        raw = conn.execute("SELECT * FROM segments").fetchall()
        segments = [one for one in map(Segment.from_row, raw) if one is not None and one.n_rows <= 1 << ROW_BITS]
        segments.sort(key=lambda segment: segment.id)
        n_rows = np.array([segment.n_rows for segment in segments], np.int64)
        ids = np.array([segment.id for segment in segments], np.int64)
        census = _Census(segments, ids, np.cumsum(n_rows) - n_rows, np.zeros(int(n_rows.sum()), np.uint8))
        census.impossible_segments = len(raw) - len(segments)
        census.reason = integrity(conn)
        _count_entries(conn, n_rows, census)
    return census


def _count_entries(conn: sqlite3.Connection, n_rows: NDArray[np.int64], census: _Census) -> None:
    for batch in iter_entries(conn):
        census.n_keys += len(batch)
        true = true_entries(batch)
        handles = np.array([entry[1] for entry, good in zip(batch, true.tolist(), strict=True) if good], np.int64)
        if len(census.ids):
            place = np.minimum(np.searchsorted(census.ids, handles >> ROW_BITS), len(census.ids) - 1)
            row = handles & ((1 << ROW_BITS) - 1)
            listed = (census.ids[place] == handles >> ROW_BITS) & (row < n_rows[place])
            slots = census.starts[place] + row
        else:
            listed, slots = np.zeros(len(handles), bool), np.zeros(len(handles), np.int64)
        census.n_false += len(batch) - len(handles)
        census.n_lost += int((~listed).sum())
        right = true.copy()
        right[true] = listed
        wrong = [entry for entry, good in zip(batch, right.tolist(), strict=True) if not good]
        census.false_rows += wrong[: MAX_FALSE_ROWS - len(census.false_rows)]
        slots, times = np.unique(slots[listed], return_counts=True)
        census.named[slots] = np.minimum(census.named[slots] + times, 2)


def _tell_catalogue(proof: FolderProof, census: _Census) -> None:
    """Put into words what the catalogue alone shows to be wrong."""
    path = proof.folder / str(proof.about["catalogue"])
    proof.false_rows = census.false_rows
    if census.reason or census.n_false + census.n_lost > MAX_FALSE_ROWS:
        proof.ruined = census.reason or f"{census.n_false + census.n_lost} of {census.n_keys} rows cannot be true"
    if census.reason:
        proof.damages.append(Damage("catalogue", path, census.reason, None))
    if census.n_false:
        found = f"{census.n_false} of {census.n_keys} rows fail their check"
        proof.damages.append(Damage("catalogue rows", path, found, census.n_false))
    if census.n_lost:
        found = f"{census.n_lost} of {census.n_keys} rows name a row of no segment"
        if census.impossible_segments:
            found += f" ({census.impossible_segments} segments cannot be true)"
        proof.damages.append(Damage("catalogue rows", path, found, census.n_lost))
    elif census.impossible_segments:
        found = f"{census.impossible_segments} segments cannot be true"
        proof.damages.append(Damage("catalogue rows", path, found, 0))
    stored = len(census.named)
    if not proof.damages and census.n_keys > stored:
        found = f"{census.n_keys} keys, but segments of {stored} rows"
        proof.damages.append(Damage("count", path, found, census.n_keys - stored))


# --- the shards


def _check_shards(proof: FolderProof, census: _Census) -> None:
    """Read every segment once; what is wrong and still listed afterwards is told."""
    dim = proof.about["dim"]
    reader = ShardReader(proof.folder, dim)
    reasons: dict[int, str] = {}
    bad: list[tuple[int, NDArray[np.uint8]]] = []
    for place in sorted(range(len(census.segments)), key=lambda i: _where(census.segments[i])):
        reason, kinds = _read(reader, census.segments[place], dim)
        if reason:
            reasons[place] = reason
            continue
        kinds[census.named_rows(place) == 0] = 0  # what no key names misleads nobody
        if kinds.any():
            bad.append((place, kinds))
    if reasons and (fitting := _fitting_dim(proof.folder, [census.segments[i] for i in reasons], census)):
        found = f"it says that vectors have {dim} numbers, but the shards are of vectors of {fitting}"
        proof.damages.append(Damage("dimension", proof.folder / "about.json", found, proof.rows))
        proof.hopeless = found
        return
    _tell_broken(proof, census, reasons)
    _tell_no_vectors(proof, census, bad)
    _tell_shared(proof, census)


def _where(segment: Segment) -> tuple[str, int]:
    return segment.shard, segment.start_row


def _read(reader: ShardReader, segment: Segment, dim: int) -> tuple[str, NDArray[np.uint8]]:
    """Return why a segment is broken, empty where it is whole; and per row what is wrong with it as a vector."""
    kinds = np.zeros(segment.n_rows, np.uint8)
    try:
        checksum = segment.checksum_of(_judged(reader.iter_bytes(segment), dim, kinds))
    except EOFError:
        return "the file is too short", kinds
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        return str(error.strerror), kinds
    return "" if checksum == segment.checksum else "checksum mismatch", kinds


def _judged(pieces: Iterator[bytes], dim: int, kinds: NDArray[np.uint8]) -> Iterator[bytes]:
    """Pass the bytes on, and note per row of them what is wrong."""
    carried, done = b"", 0
    for piece in pieces:
        yield piece
        carried += piece
        n = len(carried) // (2 * dim)
        rows = np.frombuffer(carried, "<f2", n * dim).reshape(n, dim).astype(np.float32)
        kinds[done : done + n] = _kinds(rows)
        carried, done = carried[n * 2 * dim :], done + n


def _kinds(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Give for each row the place in NO_VECTOR of what is wrong with it; uint8 [n], 0 where nothing is."""
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        wrong = [
            ~np.isfinite(rows).all(axis=1),
            ~rows.any(axis=1),
            (rows == rows[:, :1]).all(axis=1) & (rows.shape[1] > 1),
            ~(np.abs(norms - 1) <= NORM_TOLERANCE),
        ]
    return np.select(wrong, [1, 2, 3, 4], 0).astype(np.uint8)


def _fitting_dim(folder: Path, broken: list[Segment], census: _Census) -> int:
    """Tell the length of vector under which a broken segment is whole; 0 where there is none."""
    first = min(broken, key=lambda segment: (segment.start_row, segment.shard))
    rows = max(one.start_row + one.n_rows for one in census.segments if one.shard == first.shard)
    try:
        size = (folder / first.shard).stat().st_size
    except OSError:
        return 0
    dim = size // (2 * rows)  # a torn tail is shorter than a number for every row
    if dim < 1:
        return 0
    return 0 if _read(ShardReader(folder, dim), first, dim)[0] else dim


def _still(proof: FolderProof, segments: list[Segment]) -> set[Segment]:
    """Return those segments that the catalogue still lists: others were dropped, moved or cleared meanwhile."""
    try:
        return set(segments) & set(ask(proof.folder, Catalogue.segments)[1])
    except FileNotFoundError:
        return set()


def _tell_broken(proof: FolderProof, census: _Census, reasons: dict[int, str]) -> None:
    still = _still(proof, [census.segments[place] for place in reasons]) if reasons else set()
    for place, reason in reasons.items():
        segment = census.segments[place]
        if segment in still:
            proof.broken.append(segment)
            kind = "missing shard" if reason == "No such file or directory" else "segment"
            texts = int(np.count_nonzero(census.named_rows(place)))
            found = f"rows {segment.start_row} to {segment.start_row + segment.n_rows - 1}: {reason}"
            proof.damages.append(Damage(kind, proof.folder / segment.shard, found, texts))


def _tell_no_vectors(proof: FolderProof, census: _Census, bad: list[tuple[int, NDArray[np.uint8]]]) -> None:
    for place, kinds in bad:
        segment = census.segments[place]
        rows = np.flatnonzero(kinds)
        entries = _entries(proof, segment.handles()[rows])
        if not entries:
            continue  # dropped meanwhile
        proof.false_rows += entries
        for kind in np.unique(kinds[rows]).tolist():
            where = np.flatnonzero(kinds == kind)
            more = f" and {len(where) - 1} more" if len(where) > 1 else ""
            found = f"row {segment.start_row + where[0]}{more}: {NO_VECTOR[kind]}"
            proof.damages.append(Damage("vector", proof.folder / segment.shard, found, len(where)))


def _tell_shared(proof: FolderProof, census: _Census) -> None:
    """Two keys never share a row: a put gives each key its own. One of the two is wrong."""
    for place, segment in enumerate(census.segments):
        rows = np.flatnonzero(census.named_rows(place) > 1)
        if len(rows) and (entries := _entries(proof, segment.handles()[rows])):
            proof.false_rows += entries
            found = f"row {segment.start_row + rows[0]}: {len(entries)} keys name {len(rows)} rows"
            proof.damages.append(Damage("shared row", proof.folder / segment.shard, found, len(entries)))


def _entries(proof: FolderProof, handles: NDArray[np.int64]) -> list[Entry]:
    try:
        return ask(proof.folder, partial(Catalogue.entries, handles=handles))[1]
    except FileNotFoundError:
        return []
