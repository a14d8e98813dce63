"""The folders of indexes in the cache directory in; what they hold, and what could be or was deleted, out.

Looking changes nothing; deleting is done under the folder's lock, and spares what a living process is building.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpumatch import __version__
from gpumatch.cache.inspect import Leftover, entries_of, size_of
from gpumatch.cache.publish import CacheError, FileLock
from gpumatch.cache.verify import Damage
from gpumatch.errors import IndexError_
from gpumatch.index import (
    BUILDING,
    FORMAT,
    HALF_MANIFEST,
    MANIFEST,
    checksum_of,
    is_being_built,
    load_texts,
    read_manifest,
)

_INDEX_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class IndexStats:
    """An index folder of the cache.

    folder: where; source: the lake that it was built from; tables, columns: how many it has, None if not known.
    layer, encoder, gpumatch: what it was built with; used: when it was last written or used, seconds since 1970.
    bytes: of all its files; trouble: why this gpumatch cannot use it, empty if it can; leftovers: what a kill left.
    newer: the folder's name of a newer index of the same lake, empty if there is none.
    """

    folder: Path
    source: str | None
    tables: int | None
    columns: int | None
    layer: str | None
    encoder: str | None
    gpumatch: str | None
    bytes: int
    used: float
    trouble: str
    leftovers: list[Leftover]
    newer: str = ""

    @property
    def age_days(self) -> float:
        """Days since it was last written or used."""
        return max(0.0, time.time() - self.used) / 86_400


def index_folders(root: Path) -> list[Path]:
    """List the folders of indexes in a cache directory, by name."""
    found = [path for path in entries_of(root / "indexes") if _INDEX_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(path for path in found if not path.is_symlink())


def superseded(root: Path) -> dict[Path, Path]:
    """Return the indexes of a cache directory of whose lake there is a newer one, and that: it was edited meanwhile.

    Such are of one path, encoder and way of reading, and have half of the names of either's tables in common: in
    containers every lake may lie at the same path.
    """
    alike: dict[str, list[tuple[Path, Path]]] = {}
    for folder in sorted(index_folders(root), key=_used, reverse=True):
        manifest, trouble = _judge(folder)
        about = manifest.get("about", {})
        if not trouble and about.get("opened"):
            of = json.dumps([about["opened"], about.get("encoder"), about.get("reading")], sort_keys=True)
            alike.setdefault(of, []).append((folder, folder / manifest["segment"] / "tables.arrow"))
    found = {}
    for some in alike.values():
        newer: list[tuple[Path, set[str]]] = []
        for folder, tables in some if len(some) > 1 else []:
            with contextlib.suppress(OSError, ValueError, LookupError):  # damaged, or cleared meanwhile
                names = set(load_texts(tables))
                for other, theirs in newer:
                    if 2 * len(names & theirs) >= max(len(names), len(theirs)):
                        found[folder] = other
                        break
                newer.append((folder, names))
    return found


def index_stats(folder: Path, newer: Path | None = None) -> IndexStats:
    """Count what is in one index folder; newer: what `superseded` says of it."""
    manifest, trouble = _judge(folder)
    about = manifest.get("about", {})
    tables = columns = None
    if manifest:
        with contextlib.suppress(OSError, ValueError, IndexError):
            table_cols = np.load(folder / manifest["segment"] / "table_cols.npy", mmap_mode="r", allow_pickle=False)
            tables, columns = len(table_cols) - 1, int(table_cols[-1])
    files = files_of(folder)[0]
    layer = None if not about else "L1" if about.get("encoder") is None else "L1+L2"
    return IndexStats(
        folder, about.get("source"), tables, columns, layer, about.get("encoder"), about.get("gpumatch"),
        sum(map(size_of, files)), _used(folder), trouble,
        [] if trouble else _leftovers(folder, manifest, files), newer.name if newer else "",
    )  # fmt: skip


def _judge(folder: Path) -> tuple[dict[str, Any], str]:
    """Return an index's manifest (empty if it cannot be read), and why this gpumatch cannot use the index."""
    try:
        manifest = read_manifest(folder)
    except IndexError_ as error:
        if not (folder / MANIFEST).exists():
            return {}, "no manifest: never finished"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            written = json.loads((folder / MANIFEST).read_bytes()).get("format")
            if isinstance(written, int) and written != FORMAT:
                return {}, f"index format {written}, this gpumatch reads {FORMAT}"
        return {}, f"damaged: {error}"
    if manifest["about"].get("gpumatch") != __version__:
        return manifest, f"of gpumatch {manifest['about'].get('gpumatch')}, this is {__version__}"
    return manifest, ""


def _used(folder: Path) -> float:
    for path in (folder / MANIFEST, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return time.time()


def files_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of an index folder that are the cache's, and whatever else is there."""
    own: list[Path] = []
    foreign: list[Path] = []
    for path in entries_of(folder):
        if path.is_dir() and not path.is_symlink() and path.name.startswith(("segment-", BUILDING)):
            for one in entries_of(path):
                (own if one.suffix in (".npy", ".arrow") and one.is_file() else foreign).append(one)
        elif path.is_file() and path.name.startswith((MANIFEST, ".lock", HALF_MANIFEST)):
            own.append(path)
        else:
            foreign.append(path)
    return sorted(own), sorted(foreign)


def _leftovers(folder: Path, manifest: dict[str, Any], files: list[Path]) -> list[Leftover]:
    """List what a killed writer has left in an index folder."""
    found = []
    for path in files:
        place = path.parent if path.parent != folder else path
        if place.name.startswith((BUILDING, HALF_MANIFEST)) and not is_being_built(place):
            found.append(Leftover(path, "left by a process that is gone", size_of(path)))
        elif place.name.startswith("segment-") and place.name != manifest["segment"]:
            found.append(Leftover(path, "a segment that the manifest does not name", size_of(path)))
    return found


def check_index(folder: Path) -> tuple[list[Damage], str, int]:
    """Check every file of an index folder of the cache.

    Returns:
        what is wrong; a note if it is of another version or unfinished, which is no damage; the number of files.
    """
    manifest, trouble = _judge(folder)
    if not manifest or trouble:
        if trouble.startswith("damaged"):
            return [Damage("index manifest", folder / MANIFEST, trouble, None)], "", 1
        return [], f"{folder}: {trouble}; gpumatch cache prune removes it", 0
    damages = []
    for name, expected in manifest["files"].items():
        path = folder / manifest["segment"] / name
        if (checksum := checksum_of(path)) != expected:
            damages.append(Damage("index file", path, f"checksum {checksum}, expected {expected}", None))
    if damages and _judge(folder)[0] != manifest:
        return check_index(folder)  # another one was published, or the cache cleared, meanwhile
    return damages, "", len(manifest["files"]) + 1


def why_prune(folder: Path, older_than: float | None, newer: Path | None = None) -> str:
    """Return why an index may be pruned; empty if it stays.

    Those go that are useless, that were used before the `newer` one of their lake, or not for `older_than` seconds.
    """
    damages, note, _ = check_index(folder)
    if damages:
        return f"index, {damages[0].kind} {damages[0].place.name}: {damages[0].found}"
    if note:
        return "index, " + note.removeprefix(f"{folder}: ").removesuffix("; gpumatch cache prune removes it")
    if newer is not None and _used(newer) >= _used(folder):
        return f"index, superseded by {newer.name}, a newer one of its lake"
    days = (time.time() - _used(folder)) / 86_400
    if older_than is not None and days * 86_400 > older_than:
        return f"index, not used for {days:.1f} days"
    return ""


def deletable(folder: Path) -> list[Path]:
    """List the cache's own files in an index folder, except what a living process is building."""
    return [
        path
        for path in files_of(folder)[0]
        if path.name != ".lock" and not any(map(is_being_built, (path, path.parent)))
    ]


def remove_index(
    folder: Path, why: str, older_than: float | None = None, newer: Path | None = None, *, always: bool = False
) -> list[Leftover]:
    """Delete an index if `why_prune` still has a reason to; with `always`, without any."""
    try:
        with FileLock(folder / ".lock"):
            if not always and not why_prune(folder, older_than, newer):
                return []  # rebuilt or used meanwhile
            # the manifest first: without it nobody looks for the rest
            files = sorted(deletable(folder), key=lambda path: path.name != MANIFEST)
            if not files and not always:
                return []  # a process has only just made the folder
            gone = [Leftover(path, why, size_of(path)) for path in files]
            _unlink(files)
            if [path.name for path in entries_of(folder)] == [".lock"]:
                (folder / ".lock").unlink(missing_ok=True)
    except CacheError:
        if folder.exists():
            raise
        return []  # another process was faster
    with contextlib.suppress(OSError):
        folder.rmdir()
    return gone


def tidy_index(folder: Path) -> list[Leftover]:
    """Delete what killed writers have left in an index that stays."""
    with FileLock(folder / ".lock"):
        left = index_stats(folder).leftovers
        _unlink([one.path for one in left])
    return left


def _unlink(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
    for place in {path.parent for path in files if path.parent.name.startswith(("segment-", BUILDING))}:
        with contextlib.suppress(OSError):  # something that is not ours is in it
            place.rmdir()
