"""A lake's profiles and vectors in, an `Index` out; and an index folder, published whole or not at all.

    INDEX/manifest.json            names the segment folder, the versions and a checksum of every file
    INDEX/segment-<hash>/*.npy     arrays, memory-mapped on opening
    INDEX/segment-<hash>/*.arrow   lists of strings

A segment is never changed: a new one is built beside it, and one rename of the manifest publishes it. Never pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from gpumatch.blocks import RowMaker, chunks, table_layout
from gpumatch.cache.publish import (
    FileLock,
    atomic_write_bytes,
    folder_in_work,
    fsync_dir,
    is_alive,
    is_in_work,
    sweep_torn,
    sweep_unless_in_work,
)
from gpumatch.embed import Vectors
from gpumatch.errors import IndexError_
from gpumatch.kernels.hashing import SPREAD
from gpumatch.once import once
from gpumatch.profile import Profiles
from gpumatch.terms import Terms, Vocabularies
from gpumatch.vocabulary import Bags, Vocabulary

FORMAT = 10
MANIFEST = "manifest.json"
# How the names begin of what a writer makes before it is published.
BUILDING, HALF_MANIFEST = ".building-", f".{MANIFEST}.tmp-"
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class TableSet:
    """Profiles and, unless only L1 is wanted, vectors of the same tables."""

    profiles: Profiles
    vectors: Vectors | None

    @property
    def dim(self) -> int | None:
        """Length of a vector, or None without vectors."""
        return None if self.vectors is None else self.vectors.dim

    @once
    def terms(self) -> Terms:
        """The bags of hashed terms of these tables."""
        return Terms.of(self.profiles)

    @once
    def value_bags(self) -> Bags:
        """C bags of hashed canonical values."""
        profiles = self.profiles
        return Bags(profiles.value_start, profiles.values, np.ones(len(profiles.values), np.float32))

    @once
    def marked_values(self) -> Bags:
        """C bags of the values of columns that have a letter (`Profiles.letter`), told apart by the first of them.

        `PAT-42` and `SKU-42` are no more the same here than are two words. The bags of all other columns are empty.
        """
        bags = self.value_bags
        first = self.profiles.letter[bags.owner] & np.uint32(0x7F)
        some = first > 0
        told = bags.term[some] ^ (first[some].astype(np.uint64) * SPREAD)
        return Bags.of(bags.owner[some], told, len(bags))

    def counted(self, columns: Bags) -> Vocabulary:
        """Return in how many families the terms of C bags are."""
        family, owner = self._families, columns.owner
        members = np.bincount(family)
        alone = (members == 1)[family][owner]
        together = Bags.of(family[owner[~alone]], columns.term[~alone], len(members))  # each term once a family
        term, df = np.unique(np.concatenate([columns.term[alone], together.term]), return_counts=True)
        return Vocabulary(term, df, len(members))

    @once
    def _families(self) -> np.ndarray:
        """int64 [C], the same number for columns at one place of tables with the same header, from 0 on.

        A table that is cut by month or region, or lies there twice, would make its own keys common if all of its copies
        counted. Headers that say nothing are nobody's kin.
        """
        profiles, named = self.profiles, self.terms.named_columns
        seen: dict[object, int] = {}
        first, n = [], 0
        for t, (a, b) in enumerate(pairwise(profiles.table_cols.tolist())):
            key = tuple(profiles.names[a:b]) if named[t] else t
            start = seen.setdefault(key, n)
            n += (b - a) * (start == n)
            first.append(start)
        widths = np.diff(profiles.table_cols)
        answer: np.ndarray = np.repeat(np.array(first, np.int64) - profiles.table_cols[:-1], widths)
        return answer + np.arange(profiles.n_columns)

    @once
    def value_grams(self) -> Bags:
        """C bags of the 3-grams of the first canonical values."""
        from gpumatch.kernels.grams import gram_bags  # loads numba: what only looks at an index does without

        return Bags(*gram_bags(self.profiles.text, self.profiles.text_bytes, self.profiles.text_start))


@dataclass(frozen=True)
class Pools:
    """Every lake table's own survivors and their raw scores under one recipe, and the density that follows.

    ids: int32 [T, K], -1 where there are fewer; scores: float32 [T, K]; density: float32 [T], the mean of a table's
    ten best scores. A query that is a lake table finds its answer here.
    """

    ids: np.ndarray
    scores: np.ndarray
    density: np.ndarray


@dataclass
class Index:
    """A searchable lake.

    lake: the tables, in code-point order of their names.
    rows: float16 [T, width], their unweighted block rows.
    vocabularies: document frequencies of the lake's terms.
    about: what it was built from (lake fingerprint, encoder, layer).
    pools: recipe key → `Pools`, filled when a recipe with density is first used.
    folder: where it is stored, or None.
    derived: what later stages have made of the lake and will use again, by their own keys; never stored.
    """

    lake: TableSet
    rows: np.ndarray
    vocabularies: Vocabularies
    about: dict[str, Any]
    pools: dict[str, Pools] = field(default_factory=dict)
    folder: Path | None = None
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, lake: TableSet, about: dict[str, Any], threads: int = 1) -> Index:
        """Build the index of a lake in memory."""
        maker = RowMaker(lake.terms, lake.vectors, lake.profiles.table_cols, lake.dim)
        rows = np.zeros((lake.profiles.n_tables, table_layout(lake.dim).width), np.float16)

        def make(some: np.ndarray) -> None:
            rows[some] = maker.tables(some)

        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(make, chunks(len(rows), _ROWS_AT_ONCE)), maxlen=0)
        return cls(lake, rows, Vocabularies.of(lake.terms), about)

    @once
    def values(self) -> Vocabulary:
        """How many families of columns each canonical value is in."""
        return self.lake.counted(self.lake.value_bags)

    @once
    def marked_values(self) -> Vocabulary:
        """The same of `TableSet.marked_values`: how many columns with that first letter each value is in."""
        return self.lake.counted(self.lake.marked_values)

    @once
    def value_grams(self) -> Vocabulary:
        """How many columns each 3-gram of the first canonical values is in."""
        return Vocabulary.of(self.lake.value_grams)

    def save(self, folder: Path) -> None:
        """Write a segment beside what is there and publish it by one rename of the manifest.

        Raises:
            IndexError_: the folder cannot be made or written, or holds something that is no index.
        """
        check_folder(folder)
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IndexError_(f"cannot make the folder {folder}: {error.strerror}; give -o another place") from error
        try:
            with folder_in_work(folder, BUILDING) as building:
                self._write(folder, building)
        except OSError as error:  # of a write that was cut short NumPy gives no number
            raise IndexError_(
                f"cannot write {folder}: {error.strerror or error}; free space or choose another folder"
            ) from error
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it holds an index
                    folder.rmdir()
        self.folder = folder

    def _write(self, folder: Path, building: Path) -> None:
        for name, array in self._arrays().items():
            np.save(building / f"{name}.npy", array, allow_pickle=False)
        for name, texts in self._texts().items():
            _save_texts(building / f"{name}.arrow", texts)
        files = {path.name: checksum_of(path) for path in sorted(building.iterdir())}
        for name in files:
            _fsync(building / name)
        segment = "segment-" + xxhash.xxh3_128_hexdigest(json.dumps([files, self.about], sort_keys=True).encode())
        manifest = {
            "format": FORMAT,
            "segment": segment,
            "about": self.about,
            "pools": sorted(self.pools),
            "files": files,
        }
        manifest["checksum"] = _manifest_checksum(manifest)
        with FileLock(folder / ".lock"):  # two writers would delete each other's segments
            if any(checksum_of(folder / segment / name) != expected for name, expected in files.items()):
                shutil.rmtree(folder / segment, ignore_errors=True)  # one that is damaged
                building.rename(folder / segment)
            fsync_dir(folder)
            sweep_torn(folder / MANIFEST)
            # sweep before publishing: after a kill here, later runs find the index whole and never sweep
            for path in folder.glob(f"{BUILDING}*"):
                sweep_unless_in_work(path)
            atomic_write_bytes(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
            _sweep(folder, keep=lambda path: not path.name.startswith("segment-") or path.name == segment)

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Open an index folder, its arrays memory-mapped.

        Raises:
            IndexError_: no index there, another version's, or a file that is missing or not what was written.
        """
        manifest = read_manifest(folder)
        try:
            return cls._open(folder, manifest)
        except (IndexError_, FileNotFoundError) as error:
            if read_manifest(folder) != manifest:
                return cls.load(folder)  # another one was published meanwhile
            if isinstance(error, FileNotFoundError):  # of a file that its writer knew nothing of
                raise IndexError_(
                    f"{folder} lacks {error.filename}; rebuild it: gpumatch index LAKE -o {folder}"
                ) from None
            raise

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> Index:
        segment = folder / manifest["segment"]
        for name, expected in manifest["files"].items():
            found = checksum_of(segment / name)
            if found != expected:
                raise IndexError_(
                    f"{segment / name} is damaged (checksum {found}, expected {expected}); "
                    f"rebuild it: gpumatch index LAKE -o {folder}"
                )

        def array(name: str) -> np.ndarray:
            # a plain array over the same memory: slicing a np.memmap costs as much as a small product
            found: np.ndarray = np.asarray(np.load(segment / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            return found

        parts: dict[str, Any] = {}
        for item in fields(Profiles):
            parts[item.name] = (
                load_texts(segment / f"{item.name}.arrow") if item.type == "list[str]" else array(item.name)
            )
        vectors = None
        if manifest["about"]["encoder"] is not None:
            vectors = Vectors(*(array(f"vector_{item.name}") for item in fields(Vectors)))
        lake = TableSet(Profiles(**parts), vectors)
        pools = {
            key: Pools(array(f"pool_{key}_ids"), array(f"pool_{key}_scores"), array(f"pool_{key}_density"))
            for key in manifest["pools"]
        }
        return cls(lake, array("rows"), Vocabularies.of(lake.terms), manifest["about"], pools, folder)

    def _arrays(self) -> dict[str, np.ndarray]:
        profiles = self.lake.profiles
        arrays = {f.name: getattr(profiles, f.name) for f in fields(Profiles) if f.type != "list[str]"}
        arrays["rows"] = self.rows
        if self.lake.vectors is not None:
            arrays |= {f"vector_{item.name}": getattr(self.lake.vectors, item.name) for item in fields(Vectors)}
        for key, pools in self.pools.items():
            arrays[f"pool_{key}_ids"] = pools.ids
            arrays[f"pool_{key}_scores"] = pools.scores
            arrays[f"pool_{key}_density"] = pools.density
        return arrays

    def _texts(self) -> dict[str, list[str]]:
        return {f.name: getattr(self.lake.profiles, f.name) for f in fields(Profiles) if f.type == "list[str]"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return an index folder's manifest.

    Raises:
        IndexError_: no index there, or another version's.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except OSError as error:
        raise IndexError_(
            f"{folder} is no index: {error.strerror}; build one: gpumatch index LAKE -o {folder}"
        ) from error
    except ValueError as error:
        raise IndexError_(
            f"{folder}/{MANIFEST} is damaged: {error}; rebuild it: gpumatch index LAKE -o {folder}"
        ) from error
    if manifest.get("format") != FORMAT:
        raise IndexError_(
            f"{folder} has index format {manifest.get('format')}, this gpumatch reads {FORMAT}; "
            f"rebuild it: gpumatch index LAKE -o {folder}"
        )
    if manifest.get("checksum") != _manifest_checksum(manifest):
        raise IndexError_(
            f"{folder}/{MANIFEST} is damaged (its checksum differs); rebuild it: gpumatch index LAKE -o {folder}"
        )
    return manifest


def is_index(path: Path) -> bool:
    """Tell an index folder from a lake."""
    return (path / MANIFEST).is_file()


def check_folder(folder: Path) -> None:
    """Check that an index can be built in a folder.

    Raises:
        IndexError_: it is a file, or holds something that is no index.
    """
    if folder.exists() and not folder.is_dir():
        raise IndexError_(f"{folder} is a file, and an index is a folder; give -o a new folder")
    if folder.is_dir() and not all(_is_ours(path) for path in folder.iterdir()):
        raise IndexError_(f"{folder} is not empty and no index; give -o a new folder")


def _manifest_checksum(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _is_ours(path: Path) -> bool:
    """Tell whether something may be in an index folder: its manifest, segments, and what a kill has left of them."""
    if path.name == MANIFEST:
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return True  # damaged; nothing is lost
        return not isinstance(manifest, dict) or not manifest or "segment" in manifest
    return path.name.startswith(("segment-", BUILDING, HALF_MANIFEST, ".lock"))


def is_being_built(path: Path) -> bool:
    """Tell whether somebody writes this in an index folder: a folder, or a manifest, by the process in its name."""
    if path.name.startswith(BUILDING):
        return is_in_work(path)
    number = re.match(rf"{re.escape(HALF_MANIFEST)}(\d+)", path.name)
    return number is not None and is_alive(int(number[1]))


def _sweep(folder: Path, keep: Callable[[Path], bool]) -> None:
    for path in folder.iterdir():
        if not keep(path):
            shutil.rmtree(path, ignore_errors=True)


def checksum_of(path: Path) -> str:
    """Return the checksum of a file's bytes, or in brackets why it has none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError as error:
        return f"({error.strerror})"


def _save_texts(path: Path, texts: list[str]) -> None:
    # Bytes: a file name that is no Unicode holds lone surrogates, which Arrow's strings cannot.
    table = pa.table({"text": pa.array([text.encode("utf-8", "surrogatepass") for text in texts], pa.large_binary())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def load_texts(path: Path) -> list[str]:
    """Return a list of strings of an index, such as the names of its tables."""
    with pa.memory_map(str(path)) as source:
        found = pa.ipc.open_file(source).read_all()["text"].to_pylist()
    return [text.decode("utf-8", "surrogatepass") for text in found]


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
