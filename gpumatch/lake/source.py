"""A lake's path in, a `Lake` out: which tables it has, their names, and a stream of what they hold.

Never reads a table before it is asked for, and orders tables by name so that file order cannot show in a result.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import xxhash

from gpumatch.errors import LakeError
from gpumatch.lake.database import Database, is_database_file
from gpumatch.lake.files import first_line, open_file, special_rule
from gpumatch.lake.list_of_queries import lists_queries
from gpumatch.lake.listing import Listing, canonical, read_listing, table_from_entry
from gpumatch.lake.rules import PASSING, SKIPPED, Limits, Skipped, Unreadable
from gpumatch.lake.sample import Table
from gpumatch.lake.tables import READERS, extension_of, read_table
from gpumatch.lake.walk import Found, matches, walk

# Raised when the same files are read as other tables than before, so that no index of the old reading is used again.
READER = 5
# Files beside the tables of a lake folder that are no tables themselves, except a queries.csv that lists no queries.
SIDE_FILES = {f"{stem}.{ext}" for stem in ("queries", "ground_truth") for ext in ("json", "csv")}
_LISTINGS = ("tables.json", "tables.json.gz", "tables.json.zst")
_HASHED_BYTES = 1 << 20


@dataclass
class Lake:
    """The tables of one lake, in code-point order of their names.

    root: the folder that holds the side files (queries, truth).
    names: the table names, sorted; a name is given once.
    skipped: what was table-like and could not be read, filled while the tables stream by.
    sample_rows: the most rows of a table that are kept.
    follow_links: whether links to folders, and out of the lake, are followed.
    notes: what was read only in part, filled like `skipped`.
    opened: what the user named: a folder, a file or a glob.
    """

    root: Path
    names: list[str]
    skipped: list[Skipped] = field(default_factory=list)
    sample_rows: int = 100_000
    follow_links: bool = False
    notes: list[Skipped] = field(default_factory=list)
    opened: Path = Path()
    _files: dict[str, Path] = field(default_factory=dict)
    _inside: Path | None = None
    _listing: Listing | None = None
    _database: Database | None = None
    _told: set[Skipped] = field(default_factory=set)
    _unhashed: set[str] = field(default_factory=set)

    def tables(self) -> Iterator[Table]:
        """Yield every readable table in name order; the rest goes to `skipped`."""
        with self._reader() as read:
            for name in self.names:
                limits = Limits(self.sample_rows)
                try:
                    table = read(name, limits)
                except Unreadable as reason:
                    self._tell(self.skipped, Skipped(name, reason.rule, reason.found))
                except MemoryError:  # not the file's fault, and the next file would fail too
                    raise
                except Exception as error:  # a file must never stop a run, not even by a bug of ours
                    found = f"{type(error).__name__}: {first_line(error)}"
                    self._tell(self.skipped, Skipped(name, "internal", found))
                else:
                    self._note(name, limits)
                    yield table

    @property
    def incomplete(self) -> bool:
        """Whether tables are missing that the next run may find, though the fingerprint says that nothing has changed.

        Known once the tables have streamed by. A file that could not be hashed either has its rule in the fingerprint.
        """
        names = set(self.names) - self._unhashed
        return any(one.rule in PASSING and one.name in names for one in self.skipped)

    def table(self, name: str) -> Table:
        """Read one table.

        Raises:
            LakeError: there is none of that name, or it cannot be read.
        """
        if name not in self.names:
            near = "".join(f"; {one!r} is there" for one in difflib.get_close_matches(name, self.names, n=1))
            raise LakeError(
                f"no table {name!r} in {self.root}{near}; give --queries the folder of a query from elsewhere"
            )
        limits = Limits(self.sample_rows)
        try:
            with self._reader() as read:
                table = read(name, limits)
        except Unreadable as reason:
            raise LakeError(f"{name} cannot be read: {reason.rule}: {reason.found}") from reason
        self._note(name, limits)
        return table

    def _note(self, name: str, limits: Limits) -> None:
        for rule, found in limits.notes:
            self._tell(self.notes, Skipped(name, rule, found))

    def _tell(self, where: list[Skipped], one: Skipped) -> None:
        if one not in self._told:  # the tables may be streamed more than once
            self._told.add(one)
            where.append(one)

    @contextmanager
    def _reader(self) -> Iterator[Callable[[str, Limits], Table]]:
        if self._database is not None:
            with self._database.reader() as read:
                yield read
        elif self._listing is not None:
            rows = self._listing.rows
            yield lambda name, limits: table_from_entry(rows[name], name, limits)
        else:
            yield lambda name, limits: read_table(self._files[name], name, limits, self._inside)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tables."""
        one_file = self._listing or self._database
        return list(self._files.values()) if one_file is None else [one_file.path]

    def left_aside(self) -> list[str]:
        """Return the names of table files right beside tables/ or a tables.json, which are not read, sorted."""
        if not self.opened.is_dir() or is_flat(self.opened):
            return []
        names: list[str] = []
        with suppress(OSError), os.scandir(self.opened) as there:  # which may be read only by name
            names = [one.name for one in there if extension_of(one.name) is not None]
        return sorted(name for name in names if name not in SIDE_FILES and not name.startswith("."))

    def would_read(self, path: Path) -> bool:
        """Tell whether a file there would be a table of this lake, or its list of tables, the next time it is read."""
        if self._listing is not None or self._database is not None or self.opened.is_file():
            return False
        place, folder = path.parent.resolve() / path.name, self.opened.is_dir()
        if folder and path.name in _LISTINGS:
            return place.parent == self.opened.resolve()
        base = (_tables_below(self.opened) if folder else self.root).resolve()
        pattern = ("**", "*") if folder else self.opened.parts[len(self.root.parts) :]
        inside = place.relative_to(base).parts if place.is_relative_to(base) else (".",)
        hidden = any(part.startswith(".") for part in inside)
        return not hidden and extension_of(path.name) is not None and matches(pattern, inside)

    def size(self) -> int:
        """Return the bytes on disk of the files that hold the tables; missing files count 0."""
        total = 0
        for path in self.paths:
            with suppress(OSError):
                total += path.stat().st_size
        return total

    def stamp(self) -> str:
        """Return a hash of the names, sizes and times of the files that hold the tables; none of them is opened."""
        one = _only_file(self.opened)
        return _stamp_of(self._files if one is None else {"": one, ".wal": Path(f"{one}.wal")})

    def identities(self) -> dict[str, tuple[Path, str]]:
        """Return what each table is, whatever its name: its file, or its name in a file of many; links come last."""
        if self._listing is not None or self._database is not None:
            where = (self.root if self._database is None else self._database.path).resolve()
            return {name: (where, name) for name in self.names}
        links_last = sorted(self._files.items(), key=lambda item: item[1].is_symlink())
        return {name: (path.resolve(), "") for name, path in links_last}

    def fingerprint(self) -> str:
        """Return a hash of all that the tables depend on: equal for equal lakes, wherever they are."""
        digest = xxhash.xxh3_128()
        parts: list[Any] = [READER, self.sample_rows, self.follow_links, len(self.names)]
        if self._listing is not None:
            parts += [*self._listing.broken, *(canonical(self._listing.rows[name]) for name in self.names)]
        elif self._database is not None:
            wal = Path(f"{self._database.path}.wal")
            parts += [_hash_of(self._database.path, None), _hash_of(wal, None) if wal.exists() else ""]
        else:
            parts += sorted(f"{one.name}:{one.rule}" for one in self.skipped if one.name not in self._files)
            hashes = {name: _hash_of(self._files[name], self._inside) for name in self.names}
            self._unhashed = {name for name, found in hashes.items() if found.partition(":")[0] in SKIPPED}
            parts += [part for item in hashes.items() for part in item]
        for part in parts:
            data = str(part).encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode())
            digest.update(data)
        return digest.hexdigest()


def _hash_of(path: Path, inside: Path | None) -> str:
    """Return a hash of a file's bytes, or the rule by which it cannot be read."""
    digest = xxhash.xxh3_128()
    try:
        descriptor = open_file(path, inside)
        try:
            while data := os.read(descriptor, _HASHED_BYTES):
                digest.update(data)
        finally:
            os.close(descriptor)
    except Unreadable as reason:
        return reason.rule
    except OSError as error:
        return f"unreadable: {error.errno}"
    return digest.hexdigest()


def open_lake(source: str | Path, *, sample_rows: int = 100_000, follow_links: bool = False) -> Lake:
    """Open a folder of tables, a folder with tables/ or tables.json, a tables.json, a table, a DuckDB file, or a glob.

    Args:
        sample_rows: of longer tables, a uniform sample of so many rows is read.
        follow_links: follow links to folders and out of the lake.

    Raises:
        LakeError: there is nothing there, or nothing in it has a table's extension.
    """
    if source == "":  # as a path it would be the current folder
        raise LakeError("the lake's path is empty; give . for the current folder")
    lake = _opened(source, follow_links)
    lake.sample_rows, lake.follow_links, lake.opened = sample_rows, follow_links, Path(source)
    return lake


def listed(source: str | Path, *, follow_links: bool) -> tuple[set[str] | None, str]:
    """Return the names of a lake's tables, None where one file holds them all, and its `Lake.stamp`; read nothing.

    Raises:
        LakeError: as `open_lake`.
    """
    if _only_file(Path(source)) is not None:
        return None, Lake(Path(), [], opened=Path(source)).stamp()
    lake = open_lake(source, follow_links=follow_links)
    return set(lake.names), lake.stamp()


def _only_file(source: Path) -> Path | None:
    """Return the file that holds all tables of a lake, where there is one."""
    return _listing_in(source) if source.is_dir() else source if source.is_file() else None


def _stamp_of(files: Mapping[str, Path]) -> str:
    digest = xxhash.xxh3_128()
    for name, path in sorted(files.items()):
        told = name.encode("utf-8", "surrogatepass")
        with suppress(OSError):
            about = path.stat()
            told += f"\0{about.st_size}\0{about.st_mtime_ns}".encode()
        digest.update(told + b"\0\0")
    return digest.hexdigest()


def _opened(source: str | Path, follow: bool) -> Lake:
    path = Path(source)
    if path.is_dir():
        listing = _listing_in(path)
        if listing is not None:
            return _of_listing(listing)
        below = _tables_below(path)
        return _of_files(path, below, walk(below, None if follow else below.resolve()), follow)
    if path.is_file():
        return _of_file(path)
    plain = next((i for i, part in enumerate(path.parts) if _is_pattern(part, Path(*path.parts[: i + 1]))), None)
    if plain is not None:
        base = Path(*path.parts[:plain])
        found = walk(base, None if follow else base.resolve(), path.parts[plain:])
        return _of_files(base, base, found, follow, f" that {path.relative_to(base)} matches")
    if not os.path.lexists(path):
        raise LakeError(
            f"no lake at {path}: give a folder of CSV, TSV or Parquet files, a tables.json, a DuckDB file, or a glob"
        )
    try:
        kind = SKIPPED[special_rule(path.stat().st_mode) or "unreadable"]
    except OSError:
        kind = SKIPPED["dangling-link"]
    raise LakeError(f"{path} is no lake but {kind}: give a folder, a file or a glob")


def _listing_in(folder: Path) -> Path | None:
    return next((folder / name for name in _LISTINGS if (folder / name).is_file()), None)


def _tables_below(folder: Path) -> Path:
    return folder / "tables" if (folder / "tables").is_dir() else folder


def is_flat(folder: Path) -> bool:
    """Tell whether a lake folder's own files are its tables, or it has tables/ or a tables.json."""
    return not (folder / "tables").is_dir() and _listing_in(folder) is None


def _of_file(path: Path) -> Lake:
    if path.suffix.lower() == ".json" or path.name.lower() in _LISTINGS:
        return _of_listing(path)
    if is_database_file(path):
        database = Database(path)
        return Lake(path.parent, sorted(database.tables), list(database.skipped), _database=database)
    if extension_of(path.name) is not None:
        return Lake(path.parent, [path.name], _files={path.name: path})
    raise LakeError(
        f"{path} is no lake: its extension is {path.suffix or 'missing'}; expected .json, "
        f"{', '.join(READERS)} or a folder"
    )


def _of_listing(path: Path) -> Lake:
    listing = read_listing(path)
    return Lake(path.parent, sorted(listing.rows), listing.skipped, _listing=listing)


def _is_pattern(part: str, path: Path) -> bool:
    """Tell whether a part of a path is a glob's, not a folder's whose name is a glob that does not match itself."""
    return glob.has_magic(part) and (fnmatchcase(part, part) or not path.is_dir())


def _of_files(root: Path, below: Path, found: Found, follow: bool, which: str = "") -> Lake:
    side = SIDE_FILES if below == root else set()
    if side and "queries.csv" in found.files and not lists_queries(found.files["queries.csv"]):
        side = side - {"queries.csv"}
    files = {name: path for name, path in found.files.items() if name not in side}
    skipped = sorted((one for one in found.skipped if one.name not in side), key=lambda one: one.name)
    if not files:
        why = "".join(f"; {one.name!a} is {SKIPPED[one.rule]}" for one in skipped[:3])
        why += next((f"; {path} is a database: give that" for path in _databases_in(below)), "")
        raise LakeError(f"no tables below {below}: no file there{which} ends in {', '.join(READERS)}{why}")
    return Lake(root, sorted(files), skipped, _files=files, _inside=None if follow else below.resolve())


def _databases_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):  # it cannot be listed
        yield from filter(is_database_file, sorted(folder.iterdir()))
