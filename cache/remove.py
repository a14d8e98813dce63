"""A folder of vectors comes in; what nobody can reach or use, or all of it, is deleted, and what went goes out.

It must never delete what a key leads to and is whole, what a living process owns, or a file that is not the cache's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpumatch.cache.catalogue import Catalogue, MovedError
from gpumatch.cache.folder import ModelFolder, read_about
from gpumatch.cache.inspect import (
    UNNAMED_ROWS,
    Leftover,
    ask,
    entries_of,
    folder_stats,
    is_own,
    row_bytes,
    set_aside,
    size_of,
    unreachable,
)
from gpumatch.cache.publish import CacheError, FileLock
from gpumatch.cache.shards import ROW_BITS, SHARD_NAME, Segment, ShardReader, ShardWriter, cut_tail
from gpumatch.cache.verify import FolderProof, check_folder

#: Rows moved out of a shard at once.
MOVED_AT_ONCE = 262_144


def prune_folder(folder: Path, *, dry_run: bool = False) -> list[Leftover]:
    """Delete what nobody can reach or use; the texts behind damaged entries are encoded again when next wanted.

    Reads every vector once. Safe beside readers and writers; what belongs to a living process stays.

    Args:
        folder: a folder of vectors.
        dry_run: only tell what would go.

    Returns:
        what went, or would: damaged entries with 0 bytes, their rows under their shard.

    Raises:
        CacheError: the folder cannot be read and written.
    """
    proof = check_folder(folder)
    if proof.hopeless or proof.note:
        gone = _of_no_use(folder, proof)
        return gone if dry_run or not gone else remove_files(folder, partial(_of_no_use, folder, proof))
    plan = _plan(folder, proof)
    if dry_run or not plan:
        return plan
    sizes = {one.path: size_of(one.path) for one in plan}
    _mend(folder, proof)
    return [one for one in plan if not one.bytes or size_of(one.path) < sizes[one.path]]


def clear_folder(folder: Path) -> list[Leftover]:
    """Delete all that is the cache's in a folder, and the folder unless something else is in it.

    A process that has it open begins it anew.

    Raises:
        CacheError: it cannot be locked or deleted.
    """
    return remove_files(folder, partial(_all_of, folder, "cleared"))


def remove_files(folder: Path, which: Callable[[], list[Leftover]]) -> list[Leftover]:
    """Delete files of a folder under its lock, and the folder where nothing is left in it.

    Args:
        which: lists the files; called under the lock, for a list from before may lack the new about.json.
    """
    try:
        with FileLock(folder / "open.lock"):
            what = which()
            # about.json first: who has the folder open sees by it that another catalogue is to begin
            for path in sorted({one.path for one in what}, key=lambda path: path.name != "about.json"):
                path.unlink(missing_ok=True)
            left = [path for path in entries_of(folder) if path.name != "open.lock"]
            if not left:
                (folder / "open.lock").unlink(missing_ok=True)
    except CacheError:
        if folder.exists():
            raise
        return []  # another process was faster
    except OSError as error:
        raise CacheError(f"cannot delete {error.filename or folder}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a process has begun it anew
        folder.rmdir()
    return what


def _all_of(folder: Path, why: str) -> list[Leftover]:
    files = sorted(path for path in entries_of(folder) if is_own(path) and path.name != "open.lock")
    return [Leftover(path, why, size_of(path)) for path in files]


def _of_no_use(folder: Path, proof: FolderProof) -> list[Leftover]:
    """List the files of a folder that nobody can use, if it still is as it was found."""
    if not proof.about:
        found = folder_stats(folder)  # a process may have begun it meanwhile
        return found.leftovers if found.trouble else []
    try:
        return _all_of(folder, proof.hopeless) if read_about(folder / "about.json") == proof.about else []
    except CacheError:
        return []


def _plan(folder: Path, proof: FolderProof) -> list[Leftover]:
    files = [path for path in entries_of(folder) if is_own(path)]
    plan = [Leftover(one.place, f"{one.kind}: {one.found}", 0) for one in proof.damages]
    plan += set_aside(files)
    if not proof.about:
        return plan  # what the catalogue names is known when it is made anew
    about, (segments, named) = ask(folder, lambda catalogue: (catalogue.segments(), catalogue.named_rows()))
    for _, handle, _ in proof.false_rows:
        if isinstance(handle, int) and handle >= 0:
            named[handle >> ROW_BITS] = named.get(handle >> ROW_BITS, 1) - 1
    broken = set(proof.broken)
    return plan + unreachable(files, about, [one for one in segments if one not in broken], named)


def _mend(folder: Path, proof: FolderProof) -> None:
    about = read_about(folder / "about.json")
    if about is None:
        return  # cleared meanwhile
    name = str(about.pop("catalogue"))
    model_folder = ModelFolder(folder, about, [])
    if proof.ruined:
        model_folder.rebuild(name, proof.ruined)
        proof = check_folder(folder)
    with contextlib.closing(model_folder.attach()) as catalogue:
        catalogue.drop([segment.id for segment in proof.broken], proof.false_rows)
        _move_rows(folder, catalogue, proof.about)
    with contextlib.closing(model_folder.attach()) as catalogue:  # deletes what is no longer named
        _cut_tails(folder, catalogue, row_bytes(about))
        for one in set_aside(entries_of(folder)):
            one.path.unlink(missing_ok=True)


def _move_rows(folder: Path, catalogue: Catalogue, about: dict[str, Any]) -> None:
    """Move the rows that keys name out of shards that hold many others; nobody names those shards then."""
    segments, named = catalogue.segments(), catalogue.named_rows()
    found = unreachable(entries_of(folder), about, segments, named)
    shards = {one.path.name for one in found if one.what == UNNAMED_ROWS}
    writer, reader = ShardWriter(folder, about["dim"]), ShardReader(folder, about["dim"])
    with contextlib.closing(writer):
        for old in _groups([segment for segment in segments if segment.shard in shards]):
            with contextlib.suppress(MovedError):  # another process prunes too
                _move_group(catalogue, reader, writer, old)


def _move_group(catalogue: Catalogue, reader: ShardReader, writer: ShardWriter, old: list[Segment]) -> None:
    entries = sorted(catalogue.entries_in(old), key=lambda entry: entry[1])  # by segment, and by row within
    if not entries:
        catalogue.drop([segment.id for segment in old], [])
        return
    handles = np.array([handle for _, handle, _ in entries], np.int64)
    pieces = []
    for segment in sorted(old, key=lambda segment: segment.id):
        if reader.why_broken(segment):
            return  # damaged since it was checked
        pieces.append(reader.rows(segment, handles[handles >> ROW_BITS == segment.id]))
    catalogue.move(old, writer.append(np.ascontiguousarray(np.concatenate(pieces))), entries)


def _groups(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Cut segments into groups of a bounded number of rows, shard by shard."""
    group: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: (segment.shard, segment.start_row)):
        if group and sum(one.n_rows for one in group) + segment.n_rows > MOVED_AT_ONCE:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _cut_tails(folder: Path, catalogue: Catalogue, bytes_a_row: int) -> None:
    def end_of(shard: str) -> int:
        ends = [one.start_row + one.n_rows for one in catalogue.segments() if one.shard == shard]
        return max(ends, default=0) * bytes_a_row

    for path in entries_of(folder):
        if SHARD_NAME.fullmatch(path.name):
            cut_tail(path, partial(end_of, path.name))
