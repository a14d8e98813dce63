"""The cache directory in; what it holds, whether that is right, and what could be or was deleted, out.

`stats` and `verify` change nothing. `prune` and `clear` delete only what the cache itself has written there, and are
safe beside running processes. What concerns the bytes of vectors alone is in `gpumatch.cache`, what concerns an index
folder in `index_care`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpumatch.cache.catalogue import row_checks
from gpumatch.cache.inspect import (
    FolderStats,
    Leftover,
    VectorReader,
    entries_of,
    folder_stats,
    foreign_entries,
    size_of,
    vector_folders,
)
from gpumatch.cache.keys import text_keys
from gpumatch.cache.publish import CacheError
from gpumatch.cache.remove import clear_folder, prune_folder
from gpumatch.cache.verdicts import VerdictStats, remove_verdicts, verdict_stats
from gpumatch.cache.verify import Damage, FolderProof, check_folder
from gpumatch.embed import SERIALISER, batch_plan
from gpumatch.errors import EncoderError, IndexError_, UsageError
from gpumatch.index import Index, is_index
from gpumatch.index_care import (
    IndexStats,
    check_index,
    deletable,
    files_of,
    index_folders,
    index_stats,
    remove_index,
    superseded,
    tidy_index,
    why_prune,
)
from gpumatch.lake import open_lake
from gpumatch.profile import Profiles, encoder_texts, profile_tables
from gpumatch.run import Run

#: An encoder gives a text the same vector again up to rounding: other batch shapes cost less than 0.0001 of the cosine.
LEAST_COSINE = 0.999
_AT_ONCE = 16_384
_ENCODED_AT_ONCE = 64
_AGE = re.compile(r"(\d+)\s*(h|d|w)")
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What is in a cache directory; foreign: what is there but is not the cache's."""

    root: Path
    vectors: list[FolderStats]
    indexes: list[IndexStats]
    verdicts: VerdictStats
    foreign: list[Path]

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all folders."""
        return {
            "vectors": sum(one.rows for one in self.vectors),
            "indexes": len(self.indexes),
            "verdicts": self.verdicts.rows,
            "bytes": sum(one.bytes for one in self.vectors)
            + sum(one.bytes for one in self.indexes)
            + self.verdicts.bytes,
            "reclaimable": sum(one.reclaimable for one in self.vectors)
            + sum(size for one in self.indexes for size in _useless(one))
            + sum(size_of(path) for path in self.verdicts.aside),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        vectors = [
            {key: one.about.get(key) for key in ("model", "revision", "serialiser", "dim")}
            | {key: getattr(one, key) for key in ("rows", "segments", "shards", "unnamed_rows", "bytes", "reclaimable")}
            | {"folder": str(one.folder), "trouble": one.trouble, "leftovers": removed_json(one.leftovers)}
            for one in self.vectors
        ]
        indexes = [
            {name: getattr(one, name) for name in IndexStats.__slots__ if name not in ("folder", "leftovers")}
            | {"folder": str(one.folder), "usable": not one.trouble, "leftovers": removed_json(one.leftovers)}
            for one in self.indexes
        ]
        verdicts = {name: getattr(self.verdicts, name) for name in ("rows", "bytes", "trouble")}
        verdicts |= {"folder": str(self.verdicts.folder), "aside": [str(path) for path in self.verdicts.aside]}
        return {
            "root": str(self.root),
            "vectors": vectors,
            "indexes": indexes,
            "verdicts": verdicts,
            "foreign": [str(path) for path in self.foreign],
            "totals": self.totals,
        }


@dataclass(slots=True)
class Sample:
    """What encoding some texts of one model anew has shown.

    model, revision: which; known: how many texts at hand have stored vectors; encoded: how many of them were encoded.
    least_cosine: the least between a stored vector and its new one; wrong: how many are below `LEAST_COSINE`.
    """

    model: str
    revision: str
    known: int = 0
    encoded: int = 0
    least_cosine: float | None = None
    wrong: int = 0


@dataclass(slots=True)
class Verified:
    """What checking the whole cache has found: numbers, damages, and what could not be checked and why."""

    root: Path
    vectors: int = 0
    segments: int = 0
    indexes: int = 0
    files: int = 0
    verdicts: int = 0
    samples: list[Sample] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        damages = [
            {"kind": one.kind, "place": str(one.place), "found": one.found, "texts": one.texts, "mend": one.mend}
            for one in self.damages
        ]
        samples = [{name: getattr(one, name) for name in Sample.__slots__} for one in self.samples]
        numbers = {name: getattr(self, name) for name in ("vectors", "segments", "indexes", "files", "verdicts")}
        whole = not self.damages
        return {
            "root": str(self.root), "whole": whole, **numbers, "samples": samples, "damages": damages,
            "notes": self.notes,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Removed:
    """What was deleted, or would be; kept: what is in the cache directory but is not the cache's, and so stays."""

    leftovers: list[Leftover]
    kept: list[Path]
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(one.bytes for one in self.leftovers)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "dry_run": self.dry_run, "bytes": self.bytes, "removed": removed_json(self.leftovers),
            "kept": [str(path) for path in self.kept],
        }  # fmt: skip


def removed_json(leftovers: list[Leftover]) -> list[dict[str, Any]]:
    """Return leftovers as plain data."""
    return [{"path": str(one.path), "what": one.what, "bytes": one.bytes} for one in leftovers]


def seconds_of(age: str) -> int:
    """Return an age such as 12h, 30d or 2w in seconds.

    Raises:
        UsageError: it is no age.
    """
    if (found := _AGE.fullmatch(age.strip())) is None:
        raise UsageError(f"--older-than {age!r} is no age; give hours, days or weeks: --older-than 30d")
    return int(found[1]) * _SECONDS[found[2]]


# --- stats


def stats(root: Path) -> CacheStats:
    """Count what is in a cache directory, which need not be there; nothing is created or changed."""
    vectors = [folder_stats(folder) for folder in vector_folders(root / "vectors")]
    newer = superseded(root)
    indexes = [index_stats(folder, newer.get(folder)) for folder in index_folders(root)]
    verdicts = verdict_stats(root / "verdicts")
    return CacheStats(root, vectors, indexes, verdicts, sorted(_foreign(root, vectors) + verdicts.foreign))


def _foreign(root: Path, vectors: list[FolderStats]) -> list[Path]:
    ours = {root / "vectors", root / "indexes", root / "verdicts"}
    found = [path for path in entries_of(root) if path not in ours]
    found += foreign_entries(root / "vectors")
    found += [path for folder in vectors for path in folder.foreign]
    indexes = index_folders(root)
    found += [path for path in entries_of(root / "indexes") if path not in indexes]
    found += [path for folder in indexes for path in files_of(folder)[1]]
    return sorted(found)


def _useless(one: IndexStats) -> list[int]:
    return [one.bytes] if one.trouble or one.newer else [left.bytes for left in one.leftovers]


# --- verify


def verify(run: Run, *, lake: str | Path | None = None, sample: int = 64, seed: int = 0) -> Verified:
    """Check that the cache of a run's settings holds what was put there, and that the vectors belong to their texts.

    Args:
        run: its encoder encodes the sample.
        lake: a lake or an index with more texts to check, beside those of the cache's indexes.
        sample: how many texts of each model are encoded anew, chosen by `seed` alone.
    """
    root = run.settings.cache_dir
    found = Verified(root)
    known: dict[Path, _Known] = {}
    for folder in vector_folders(root / "vectors"):
        proof = check_folder(folder)
        found.vectors += proof.rows
        found.segments += proof.segments
        found.damages += proof.damages
        if proof.note:
            found.notes.append(proof.note)
        if proof.about and not proof.hopeless:
            if proof.about["serialiser"] == SERIALISER:
                known[folder] = _Known(proof, seed, sample)
            else:
                found.notes.append(f"{folder}: texts of form {proof.about['serialiser']}, not encoded anew")
        run.step("verify", len(known), 0)
    for profiles, index in _sources(root, lake, run, found):
        _look_up(profiles, index, known, found)
    for one in known.values():
        _encode_anew(one, run, found)
    _prove_verdicts(root / "verdicts", found)
    return found


def _prove_verdicts(folder: Path, found: Verified) -> None:
    """Check every verdict; a damaged one is never used, but asked for again."""
    verdicts = verdict_stats(folder, prove=True)
    found.verdicts = verdicts.rows
    mend = "gpumatch cache clear --verdicts"
    if verdicts.ruined:
        found.damages.append(Damage("verdicts", folder, verdicts.trouble, None, mend))
    elif verdicts.trouble:
        found.notes.append(f"{folder}: its verdicts were not proved: {verdicts.trouble}")
    if verdicts.damaged:
        said = f"{verdicts.damaged} of {verdicts.rows} verdicts fail their checksum; they are asked for again"
        found.damages.append(Damage("verdicts", folder, said, verdicts.damaged, mend))


class _Known:
    """The texts at hand whose vectors a folder has, and a sample of them."""

    def __init__(self, proof: FolderProof, seed: int, size: int) -> None:
        self.proof = proof
        self.reader = VectorReader(proof.folder, proof.about["dim"])
        self.encoder = f"{proof.about['model']}@{proof.about['revision']}"
        self.texts: dict[bytes, tuple[int, str]] = {}
        self._seen = np.empty(0, np.int64)
        self._seed, self._size = seed, size

    @property
    def n(self) -> int:
        """Number of distinct texts at hand that are stored."""
        return len(self._seen)

    def offer(self, keys: np.ndarray, texts: list[str]) -> None:
        """Take note of stored texts; those with the lowest hashes of key and seed are kept, whatever their order."""
        ranks = row_checks(keys, np.full(len(keys), self._seed, np.int64))
        self._seen = np.union1d(self._seen, ranks)
        for i in np.argsort(ranks, kind="stable")[: self._size].tolist():
            self.texts[keys[i].tobytes()] = (int(ranks[i]), texts[i])
        self.texts = dict(sorted(self.texts.items(), key=lambda item: item[1])[: self._size])


def _sources(
    root: Path, lake: str | Path | None, run: Run, found: Verified
) -> Iterator[tuple[Profiles, tuple[Path, Index] | None]]:
    """Check every index, and yield the profiles of those that are whole, and of the lake."""
    for folder in index_folders(root):
        found.indexes += 1
        if (index := _whole_index(folder, found)) is not None:
            yield index.lake.profiles, (folder, index)
    if lake is not None and is_index(Path(lake)):
        yield Index.load(Path(lake)).lake.profiles, None
    elif lake is not None:
        opened = open_lake(lake, **run.settings.reading)
        yield profile_tables(opened.tables()), None


def _whole_index(folder: Path, found: Verified) -> Index | None:
    damages, note, n_files = check_index(folder)
    found.files += n_files
    found.damages += damages
    if note:
        found.notes.append(note)
    if damages or note:
        return None
    try:
        return Index.load(folder)
    except IndexError_ as error:
        if is_index(folder) and check_index(folder)[0]:
            found.damages.append(Damage("index", folder, str(error), None))
    return None


def _look_up(profiles: Profiles, index: tuple[Path, Index] | None, known: dict[Path, _Known], found: Verified) -> None:
    """Find texts in every folder of vectors; an index's own vectors must be the stored ones."""
    texts = encoder_texts(profiles)
    keys, first = np.unique(text_keys(texts), return_index=True)
    for one in known.values():
        worst, differing = 1.0, 0
        for start in range(0, len(keys), _AT_ONCE):
            some, at = keys[start : start + _AT_ONCE], first[start : start + _AT_ONCE]
            try:
                stored, there = one.reader.get(some)
            except (CacheError, FileNotFoundError):
                break  # cleared meanwhile, or told already
            one.offer(some[there], [texts[i] for i in at[there]])
            if index is not None and index[1].about["encoder"] == one.encoder and index[1].lake.vectors is not None:
                vectors = index[1].lake.vectors
                full = there & np.array([texts[i] != "" for i in at], np.bool_)  # the vector of an empty one is 0 there
                cosines = _cosines(vectors.rows[vectors.place[at[full]]], stored[full])
                worst, differing = min(worst, cosines.min(initial=1.0)), differing + int((cosines < LEAST_COSINE).sum())
        if index is not None and differing:
            said = f"{differing} of {len(keys)} vectors are not the stored ones (least cosine {worst:.4f})"
            found.damages.append(Damage("index vectors", index[0], said, differing, "gpumatch cache clear"))


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float64 [n]; -1 where a row is no vector."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        cosines: np.ndarray = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.where(np.isfinite(cosines), cosines, -1.0)


def _encode_anew(one: _Known, run: Run, found: Verified) -> None:
    """Encode the sample of a folder and compare; if something cannot be compared a note says so."""
    about = one.proof.about
    if not one.texts:
        if one.proof.rows:
            found.notes.append(
                f"{one.proof.folder}: none of the {one.proof.rows} texts of {about['model']} is at hand, so none was "
                "encoded anew; give the lake they are of: gpumatch cache verify --lake LAKE"
            )
        return
    try:
        encoder = run.open_encoder()
    except EncoderError as error:
        found.notes.append(f"nothing was encoded anew: {error}")
        return
    if f"{encoder.model}@{encoder.revision}" != one.encoder:
        found.notes.append(
            f"texts of {one.encoder} were not encoded anew, as this encoder is {encoder.model}; "
            "give that one: GPUMATCH_ENCODER=FOLDER gpumatch cache verify"
        )
        return
    sample = Sample(about["model"], about["revision"], one.n)
    found.samples.append(sample)
    _compare(one, run, sample, found)


def _compare(one: _Known, run: Run, sample: Sample, found: Verified) -> None:
    encoder = run.open_encoder()
    keys = np.array(list(one.texts), np.dtype("V16"))
    texts = [text for _, text in one.texts.values()]
    stored, there = one.reader.get(keys)
    cosines = np.ones(len(keys))
    for batch in batch_plan(encoder.lengths(texts), _ENCODED_AT_ONCE):
        fresh = encoder.encode([texts[i] for i in batch])
        if fresh.shape[1] != stored.shape[1]:
            said = f"vectors of {stored.shape[1]} numbers, but the encoder gives {fresh.shape[1]}"
            found.damages.append(Damage("dimension", one.proof.folder, said, one.proof.rows))
            return
        cosines[batch] = _cosines(fresh, stored[batch])
        sample.encoded += len(batch)
        run.step("encode", sample.encoded, len(texts))
    sample.least_cosine = float(cosines[there].min(initial=1.0))
    wrong = np.flatnonzero(there & (cosines < LEAST_COSINE))
    sample.wrong = len(wrong)
    if len(wrong):
        said = (
            f"{len(wrong)} of {sample.encoded} vectors are not those of their texts "
            f"(least cosine {sample.least_cosine:.4f}; first key {keys[wrong[0]].tobytes().hex()})"
        )
        mend = "gpumatch cache clear --vectors"
        found.damages.append(Damage("wrong vectors", one.proof.folder, said, len(wrong), mend))


# --- prune and clear


def prune(root: Path, *, older_than: float | None = None, dry_run: bool = False) -> Removed:
    """Delete what nobody can reach or use.

    Args:
        older_than: seconds; indexes that were not used for so long go too.
        dry_run: only tell what would go.
    """
    gone: list[Leftover] = []
    for folder in vector_folders(root / "vectors"):
        gone += prune_folder(folder, dry_run=dry_run)
    newer = superseded(root)
    for folder in index_folders(root):
        why = why_prune(folder, older_than, newer.get(folder))
        if why and not dry_run:
            gone += remove_index(folder, why, older_than, newer.get(folder))
        elif why:
            gone += [Leftover(path, why, size_of(path)) for path in deletable(folder)]
        elif not dry_run:
            gone += tidy_index(folder)
        else:
            gone += index_stats(folder).leftovers
    aside = "a damaged file that was put aside"
    if dry_run:
        gone += [Leftover(path, aside, size_of(path)) for path in verdict_stats(root / "verdicts").aside]
    else:
        gone += remove_verdicts(root / "verdicts", aside, only_aside=True)
    return Removed(gone, stats(root).foreign, dry_run)


def clear(root: Path, *, vectors: bool = True, indexes: bool = True, verdicts: bool = True) -> Removed:
    """Delete all vectors, indexes and verdicts, or some kinds of them; a running process begins them anew."""
    gone: list[Leftover] = []
    for folder in vector_folders(root / "vectors") if vectors else []:
        gone += clear_folder(folder)
    for folder in index_folders(root) if indexes else []:
        gone += remove_index(folder, "cleared", always=True)
    if verdicts:
        gone += remove_verdicts(root / "verdicts", "cleared")
    return Removed(gone, stats(root).foreign)
