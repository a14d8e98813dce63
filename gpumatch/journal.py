"""Result rows in, a results file out that is whole or not there; the same command keeps what a killed run wrote.

    OUT.partial            the rows so far
    OUT.partial.journal    what they depend on, then a checkpoint after every few rows, one JSON object a line

It must never keep a row that was made from something else, and never drop a row that a checkpoint covers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import xxhash

from gpumatch.cache.publish import atomic_write_bytes, fsync_dir, same_file, sweep_torn
from gpumatch.errors import OutputError

# Rows between two checkpoints: the most that a kill loses beside the batch that is being made.
_ROWS = 256


class Journal:
    """The results file of one run. A context manager: left without an error, the file is published by one rename.

    Args:
        output: the results file.
        fresh: forget what an earlier run left.
        say: gets a line for people when rows are kept, or dropped and why.
    """

    def __init__(self, output: Path, *, fresh: bool = False, say: Callable[[str], None] = lambda text: None) -> None:
        self.output = output
        self.rows = 0
        self._fresh = fresh
        self._say = say
        self._partial = output.with_name(output.name + ".partial")
        self._log = output.with_name(output.name + ".partial.journal")
        self._digest = xxhash.xxh3_128()
        self._bytes = 0
        self._checkpoint = 0

    def __enter__(self) -> Journal:
        """Open the unfinished file and lock it.

        Raises:
            OutputError: another process writes it, or it cannot be written.
        """
        if self.output.is_dir():
            raise OutputError(f"{self.output} is a folder; give -o a file, such as {self.output / 'results.jsonl'}")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        except OSError as error:
            raise OutputError(f"cannot write {self._partial}: {error.strerror}; give -o another place") from error
        return self

    def begin(self, depends: Mapping[str, Any]) -> int:
        """Declare what the rows depend on; return how many of them are there already, from the first one on.

        Args:
            depends: plain data, under names that people know. Rows made from anything else are dropped.
        """
        depends = json.loads(json.dumps(depends))
        kept, self._digest = self._kept(depends)
        for entry in kept:
            self.rows, self._bytes = entry["rows"], entry["bytes"]
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)
        sweep_torn(self._log)
        atomic_write_bytes(self._log, b"".join(map(_line, [{"depends": depends}, *kept])))
        if kept:
            self._say(f"{self._partial} has {self.rows} rows of this run already; continuing (--fresh starts over)")
        self._checkpoint = self.rows
        return self.rows

    def write(self, line: str) -> None:
        """Write one row, a line of JSON."""
        data = line.encode()
        with self._writing():
            self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
        self.rows += 1
        if self.rows - self._checkpoint >= _ROWS:
            self.commit()

    def commit(self) -> None:
        """Make a checkpoint of the rows so far.

        No sync: a checkpoint has a hash of all bytes before it, so what a power cut loses is noticed and made again.
        """
        if self.rows == self._checkpoint:
            return
        entry = {"rows": self.rows, "bytes": self._bytes, "check": _check(self._digest, self.rows)}
        with self._writing():
            self._file.flush()
            with self._log.open("ab") as log:
                log.write(_line(entry))
        self._checkpoint = self.rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the file, or after an error keep what is there for the same command."""
        with self._writing(), self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._partial.replace(self.output)
                self._log.unlink(missing_ok=True)
                fsync_dir(self.output.parent)
                return
            with contextlib.suppress(OutputError):  # a full disk may be the very error
                self.commit()
        if self.rows:
            self._say(f"{self.rows} rows are in {self._partial}; the same command continues from there")
        elif not self._log.exists():
            self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write {self._partial}: {error.strerror or error}; free some space and give the same command, "
                "which goes on from there, or give another -o"
            ) from error

    def _locked(self) -> BinaryIO:
        while True:
            file = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            with contextlib.ExitStack() as on_error:
                on_error.enter_context(file)
                try:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputError(
                        f"another gpumatch is writing {self._partial}; wait for it, or give another -o"
                    ) from None
                if same_file(file.fileno(), self._partial):  # else its writer published it meanwhile
                    on_error.pop_all()
                    return file

    def _kept(self, depends: Mapping[str, Any]) -> tuple[list[dict[str, Any]], xxhash.xxh3_128]:
        """Return the checkpoints whose rows can be kept, in their order, and the digest up to the last of them."""
        entries = _entries(self._log)
        if self._fresh or not entries:
            return [], xxhash.xxh3_128()
        before = entries[0].get("depends")
        if before != depends:
            was = before if isinstance(before, dict) else {}
            changed = [name for name in {**was, **depends} if was.get(name) != depends.get(name)]
            self._say(f"{self._partial} was begun with another {' and '.join(changed) or 'journal'}; starting over")
            return [], xxhash.xxh3_128()
        return self._whole(entries[1:])

    def _whole(self, entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], xxhash.xxh3_128]:
        """Return the checkpoints whose hashes agree with the bytes on disk, and the digest of those bytes."""
        kept: list[dict[str, Any]] = []
        digest, at = xxhash.xxh3_128(), 0
        whole = digest.copy()
        self._file.seek(0)
        for entry in entries:
            rows, size = entry.get("rows"), entry.get("bytes")
            if not isinstance(rows, int) or not isinstance(size, int) or size < at:
                break
            for piece in _pieces(self._file, size - at):
                digest.update(piece)
                at += len(piece)
            if at != size or _check(digest, rows) != entry.get("check"):
                break
            kept.append(entry)
            whole = digest.copy()
        return kept, whole


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, 1 << 20))):
        size -= len(piece)
        yield piece


def _check(digest: xxhash.xxh3_128, rows: int) -> str:
    """Return a hash of all bytes so far and the number of their rows: a flipped digit there must not skip a row."""
    whole = digest.copy()
    whole.update(b"%d" % rows)
    return str(whole.hexdigest())


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal up to the first that is torn or damaged."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                break
            found.append(entry)
    return found
