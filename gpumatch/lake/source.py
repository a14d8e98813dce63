"""A lake's path in, a `Lake` out: which tables it has, their names, and a stream of what they hold.

Never reads a table before it is asked for, and orders tables by name so that file order cannot show in a result.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from gpumatch.errors import LakeError
from gpumatch.lake.tables import READERS, Skipped, Table, Unreadable, _text_array, read_table

# Beside the tables of a lake folder, and not tables themselves.
SIDE_FILES = {f"{stem}.{ext}" for stem in ("queries", "ground_truth") for ext in ("json", "csv")}


@dataclass
class Lake:
    """The tables of one lake, in code-point order of their names.

    root: the folder that holds the side files (queries, truth).
    names: the table names, sorted; a name is given once.
    skipped: what was table-like and could not be read, filled while the tables stream by.
    """

    root: Path
    names: list[str]
    skipped: list[Skipped] = field(default_factory=list)
    _files: dict[str, Path] = field(default_factory=dict)
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tables(self) -> Iterator[Table]:
        """Yield every readable table in name order; the rest goes to `skipped`."""
        for name in self.names:
            try:
                yield _table_from_json(self._rows[name], name) if self._rows else read_table(self._files[name], name)
            except Unreadable as reason:
                skipped = Skipped(name, reason.rule, reason.found)
                if skipped not in self.skipped:  # the tables may be streamed more than once
                    self.skipped.append(skipped)

    def path_of(self, name: str) -> Path | None:
        """Return the file behind a table, or None where the lake is a tables.json."""
        return self._files.get(name)

    def identities(self) -> dict[str, tuple[Path, str]]:
        """Return what each table is, whatever its name: its file, or its entry in a tables.json; links come last."""
        if self._rows:
            return {name: (self.root.resolve(), name) for name in self.names}
        links_last = sorted(self._files.items(), key=lambda item: item[1].is_symlink())
        return {name: (path.resolve(), "") for name, path in links_last}

    def fingerprint(self) -> str:
        """Return a hash of every table's name and bytes: equal for equal lakes, wherever they lie."""
        digest = xxhash.xxh3_128()
        for name in self.names:
            if self._rows:
                content = json.dumps(self._rows[name], sort_keys=True).encode("utf-8", "surrogatepass")
            else:
                try:
                    content = self._files[name].read_bytes()
                except OSError as error:
                    content = str(error.errno).encode()
            digest.update(f"{len(name)}:{name}:{len(content)}:".encode("utf-8", "surrogatepass"))
            digest.update(content)
        return digest.hexdigest()


def open_lake(source: str | Path) -> Lake:
    """Open a folder of CSV, TSV or Parquet files, a folder with tables/ or tables.json, a tables.json, or a glob.

    Raises:
        LakeError: there is nothing there, or nothing in it has a table's extension.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "tables.json").is_file():
            return _open_json(path / "tables.json")
        below = path / "tables" if (path / "tables").is_dir() else path
        return _open_files(path, below, sorted(below.rglob("*")))
    if path.is_file() and path.suffix.lower() == ".json":
        return _open_json(path)
    if path.is_file() and path.suffix.lower() in READERS:
        return Lake(path.parent, [path.name], _files={path.name: path})
    if glob.has_magic(str(source)):
        first = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        base = Path(*path.parts[:first])
        found = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]
        return _open_files(base, base, [path for path in found if not _below_a_link(path, base)])
    if not path.exists():
        raise LakeError(f"no lake at {path}: give a folder of CSV, TSV or Parquet files, a tables.json, or a glob")
    raise LakeError(
        f"{path} is no lake: its extension is {path.suffix or 'missing'}; expected .json, "
        f"{', '.join(READERS)} or a folder"
    )


def _open_files(root: Path, below: Path, paths: list[Path]) -> Lake:
    files = {
        path.relative_to(below).as_posix(): path
        for path in paths
        if path.suffix.lower() in READERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(below).parts)
        and not (path.parent == root and path.name in SIDE_FILES)
    }
    if not files:
        raise LakeError(f"no tables below {below}: no file there ends in {', '.join(READERS)}")
    return Lake(root, sorted(files), _files=files)


def _open_json(path: Path) -> Lake:
    try:
        listing = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LakeError(f"{path} is no tables.json: {error}") from error
    if not isinstance(listing, list):
        raise LakeError(f"{path}: expected a list of tables, found {type(listing).__name__}")
    rows: dict[str, dict[str, Any]] = {}
    skipped: list[Skipped] = []
    for position, row in enumerate(listing):
        name = _utf8(row.get("table_name")) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            skipped.append(Skipped(f"{path.name}[{position}]", "table-name", "no table_name"))
        elif name in rows:
            skipped.append(Skipped(name, "repeated-name", f"{path.name}[{position}] has the name of an earlier table"))
        else:
            rows[name] = row
    if not rows:
        raise LakeError(f"{path} holds no tables: expected rows with table_name and columns")
    return Lake(path.parent, sorted(rows), skipped, _rows=rows)


def _table_from_json(row: dict[str, Any], name: str) -> Table:
    columns = row.get("columns")
    if not isinstance(columns, list) or not all(isinstance(column, dict) for column in columns):
        raise Unreadable("columns", f"columns is {type(columns).__name__}, expected a list of objects")
    header, types, cells = [], [], []
    for column in columns:
        header.append(_utf8(str(_either(column, "name", "column_name") or "")))
        types.append(_declared_type(_either(column, "type", "data_type")))
        values = column.get("sample_values") or []
        if not isinstance(values, list):
            raise Unreadable("sample-values", f"sample_values of column {header[-1]!r} is {type(values).__name__}")
        cells.append([None if value is None else str(value) for value in values])
    depth = max(map(len, cells), default=0)
    arrays: tuple[pa.Array, ...] = tuple(_text_array([*column, *[None] * (depth - len(column))]) for column in cells)
    return Table(name, tuple(header), arrays, tuple(types), sampled=True)


_NUMERIC = re.compile(
    r"(unsigned\s+)?((big|small|tiny|medium|u)?int(eger)?\d*|num(ber|eric)?|float\d*|double|decimal\d*|real|long|short)\b"
)


def _declared_type(declared: object) -> str | None:
    if declared is None:
        return None
    return "numeric" if _NUMERIC.match(str(declared).lower()) else "string"


def _either(row: dict[str, Any], one: str, other: str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    return row[one] if row.get(one) is not None else row.get(other)


def _utf8(text: Any) -> Any:  # noqa: ANN401 - a JSON value; what is no string is judged elsewhere
    """Replace lone surrogates, which JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def _below_a_link(path: Path, base: Path) -> bool:
    """Tell a path that a glob found through a linked folder: links can run in circles."""
    return any(folder.is_symlink() for folder in path.parents if folder != base and folder.is_relative_to(base))
