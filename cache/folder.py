"""A folder and what it should hold come in; the one catalogue that is current there goes out, open.

It must never delete what a catalogue names or a living process owns, nor use a catalogue's name twice: SQLite deletes
`<name>-wal` by name when the last connection closes, so a process that still had a moved or deleted catalogue open
would delete the log of the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import xxhash

from gpumatch.cache.catalogue import (
    BUSY_SECONDS,
    FORMAT,
    Catalogue,
    DamagedCatalogueError,
    NewerFormatError,
    closed_on_error,
    unchanged,
)
from gpumatch.cache.log import why_log_damaged
from gpumatch.cache.publish import CacheError, atomic_write_bytes, fsync_dir, locked_folder
from gpumatch.cache.shards import SHARD_NAME, sweep_shard


class DamagedAboutError(CacheError):
    """An about.json is not what was written."""


class ModelFolder:
    """The folder of one model, revision and serialiser.

    Args:
        path: the folder; created when missing.
        about: what its vectors are; about.json must say the same.
        damaged: gets one message for each damage met.
    """

    def __init__(self, path: Path, about: dict[str, Any], damaged: list[str]) -> None:
        self.path = path
        self._about = about
        self._about_path = path / "about.json"
        self._damaged = damaged
        self._stamp: tuple[int, ...] | None = None

    def attach(self, damage: str | None = None) -> Catalogue:
        """Open the current catalogue, beginning a new one where there is none or it is damaged.

        Args:
            damage: what was found wrong with the catalogue that the last call gave, if anything was.

        Raises:
            NewerFormatError: a later version wrote the folder; it is as it was.
            CacheError: the folder holds other vectors, or cannot be read and written.
        """
        with locked_folder(self.path, BUSY_SECONDS):
            if self.has_moved_on():
                damage = None  # another process met the same and has begun a new catalogue already
            try:
                catalogue = self._open_current(damage) or self._begin()
            except OSError as error:
                raise CacheError(f"cannot use the cache folder {self.path}: {error}") from error
            self._stamp = self._stamp_now()
        return catalogue

    def rebuild(self, name: str, reason: str) -> None:
        """Set a damaged catalogue aside, and begin one with what is true in it; a later current one is left alone.

        Args:
            name: the damaged catalogue.
            reason: what is wrong with it.

        Raises:
            as `attach`.
        """
        with locked_folder(self.path, BUSY_SECONDS):
            if self._read_about() != name:
                return
            log = self.path / f"{name}-wal"
            try:
                # open before it moves: its log is found by name
                old = Catalogue.open_as(self.path / name, unchanged(log.exists() and log.stat().st_size > 0))
            except CacheError:
                old = None
            self._set_aside(name, reason)
            self._begin(old).close()

    def has_moved_on(self) -> bool:
        """Tell whether another catalogue has become current since `attach`."""
        return self._stamp != self._stamp_now()

    def usage(self) -> tuple[int, int]:
        """Count the shards, and the bytes of shards and catalogue."""
        files = [entry for entry in os.scandir(self.path) if entry.is_file()]
        shards = [entry for entry in files if SHARD_NAME.fullmatch(entry.name)]
        kept = shards + [entry for entry in files if entry.name.startswith("catalogue-")]
        return len(shards), sum(entry.stat().st_size for entry in kept)

    def _open_current(self, damage: str | None) -> Catalogue | None:
        """Open and sweep; none where there is no catalogue, or it is damaged, and then it is set aside."""
        name = self._read_about()
        if name is None:
            return None
        path = self.path / name
        if damage is not None:
            self._set_aside(name, damage)
            return None
        if not path.is_file():
            self._damaged.append(f"{path} is missing; its vectors will be encoded again")
            return None
        log = path.with_name(f"{name}-wal")
        reason = why_log_damaged(log)  # asked first: opening the catalogue may use the log up
        try:
            with closed_on_error(Catalogue.open(path)) as catalogue:
                self._sweep(catalogue)
        except DamagedCatalogueError as error:
            self._set_aside(name, error.reason)
            return None
        if reason:
            self._damaged.append(f"{log} is damaged ({reason}); the texts concerned will be encoded again")
        return catalogue

    def _begin(self, damaged: Catalogue | None = None) -> Catalogue:
        """Create a catalogue and publish its name; a kill before the last line leaves a file that is swept.

        Args:
            damaged: one to take what is true from, and to close.
        """
        name = f"catalogue-{secrets.token_hex(8)}.sqlite"
        with closed_on_error(Catalogue.create(self.path / name)) as catalogue:
            if damaged is not None:
                with contextlib.closing(damaged):
                    catalogue.copy_true(damaged)
            fsync_dir(self.path)
            about = {**self._about, "catalogue": name}
            text = json.dumps({**about, "check": _about_check(about)}, indent=2)
            atomic_write_bytes(self._about_path, text.encode() + b"\n")
        return catalogue

    def _set_aside(self, name: str, reason: str) -> None:
        """Keep a damaged catalogue under another name; a process that still has it open harms nobody."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path / f"{name}{suffix}", self.path / f"damaged-{name}{suffix}")
        self._damaged.append(
            f"{self.path / name} is damaged ({reason}); it now stands aside as damaged-{name}, "
            "and its vectors will be encoded again; gpumatch cache prune removes it"
        )

    def _sweep(self, catalogue: Catalogue) -> None:
        """Delete what killed processes left and nobody can reach. Called under open.lock."""
        named = catalogue.shards()
        for entry in list(os.scandir(self.path)):
            stale = entry.name.startswith("catalogue-") and not entry.name.startswith(catalogue.path.name)
            if stale or entry.name.startswith(".about.json.tmp-"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
            elif SHARD_NAME.fullmatch(entry.name) and entry.name not in named:
                sweep_shard(Path(entry.path), catalogue.shards)

    def _read_about(self) -> str | None:
        """Name the current catalogue, or none where a new one must begin."""
        try:
            about = read_about(self._about_path)
        except DamagedAboutError as error:
            self._damaged.append(f"{error}; the vectors beside it will be encoded again")
            return None
        if about is None:
            return None
        for field, ours in self._about.items():
            if about.get(field) != ours:
                raise CacheError(
                    f"{self.path} holds vectors of {field} {about.get(field)!r}, but {ours!r} was asked for; "
                    "give the encoder another revision, or delete all vectors: gpumatch cache clear --vectors"
                )
        return str(about["catalogue"])

    def _stamp_now(self) -> tuple[int, ...] | None:
        """Identify this very about.json; every new catalogue comes with a new one."""
        try:
            status = os.stat(self._about_path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def read_about(path: Path) -> dict[str, Any] | None:
    """Read an about.json without its check; None where there is none.

    Raises:
        NewerFormatError: a later version wrote it.
        DamagedAboutError: it is not what was written.
        CacheError: it cannot be read for any other reason.
    """
    try:
        about = json.loads(path.read_bytes())
        written = about["format"]
        if isinstance(written, int) and written > FORMAT:
            raise NewerFormatError(path.parent, written)
        whole = about.pop("check") == _about_check(about) and isinstance(about["catalogue"], str)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedAboutError(f"{path} is damaged")
    return dict(about)


def _about_check(about: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())
