"""A path in, the bytes of a regular file out, unpacked if they are packed; or `Unreadable` with its rule.

Never waits for a pipe, never opens a device on purpose, never holds more than it was asked for, never writes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from gpumatch.lake.rules import Unreadable

# Files up to this size are read in one piece, which is fastest; as Python strings such a text takes about 100 MB.
SMALL_BYTES = 4 << 20
# Data is a bomb if at least so many bytes came out of less than a 100th of them. Text tables shrink by a factor of 3 to
# 30; gzip can reach 1,032, zstd more. Unpacking so many bytes takes 0.05 s; parsing them can take six.
BOMB_BYTES = 32 << 20
BOMB_RATIO = 100
_UNPACKED_AT_ONCE = 1 << 20

# O_NONBLOCK: opening a pipe must not wait for its writer. O_NOCTTY: a terminal must not become ours.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_STARTS = tuple(_PACKED)


def special_rule(mode: int) -> str | None:
    """Return the rule by which something with this file mode is no regular file, or None if it is one."""
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISFIFO(mode):
        return "fifo"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "changed" if stat.S_ISDIR(mode) else "device"


def link_target(path: Path | str, inside: Path | None) -> str:
    """Return the real path behind a link.

    Args:
        path: the link.
        inside: the real folder that it must not leave; None if it may lead anywhere.

    Raises:
        Unreadable: it leads nowhere, in a circle, or out of the folder.
    """
    try:
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        rule = {errno.ENOENT: "dangling-link", errno.ELOOP: "link-loop"}.get(error.errno or 0, "unreadable")
        raise Unreadable(rule, f"a link to {_shown_link(path)}") from error
    if inside is not None and not Path(target).is_relative_to(inside):
        raise Unreadable("link-outside", f"a link to {target!a}, outside the lake")
    return target


def _shown_link(path: Path | str) -> str:
    try:
        return ascii(os.readlink(path))
    except OSError:
        return "nothing"


def open_file(path: Path | str, inside: Path | None) -> int:
    """Open a regular file for reading and return its descriptor; `inside` as in `link_target`.

    Raises:
        Unreadable: it is not there, not a regular file any more, or may not be read.
    """
    try:
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            descriptor = os.open(link_target(path, inside), _FLAGS)
    except (OSError, ValueError) as error:
        raise Unreadable("unreadable", getattr(error, "strerror", None) or str(error)) from error
    rule = special_rule(os.fstat(descriptor).st_mode)
    if rule is not None:
        os.close(descriptor)
        raise Unreadable(rule, "it was a file when the lake was listed")
    return descriptor


class Source:
    """The bytes of one file, unpacked; read forward, or again from the start.

    size: bytes of the file as it lies on disk.
    packed: "gzip", "zstd", or None; known after the first read.
    """

    def __init__(self, path: Path | str, inside: Path | None = None) -> None:
        self._descriptor = open_file(path, inside)
        about = os.fstat(self._descriptor)
        self.size, self._written = about.st_size, about.st_mtime_ns
        self.packed: str | None = None
        self._stream: pa.NativeFile | None = None
        self._out = 0

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def read(self, n: int) -> bytes:
        """Return the next n bytes, fewer only at the end.

        Raises:
            Unreadable: the file cannot be read or unpacked, or is a bomb.
        """
        try:
            if self._stream is None:
                data = self._read_plain(n)
                if self._out or not data.startswith(_PACKED_STARTS):
                    self._out += len(data)
                    return data
                self._unpack(next(codec for start, codec in _PACKED.items() if data.startswith(start)))
        except OSError as error:
            raise Unreadable("unreadable", error.strerror or str(error)) from error
        return self._read_packed(n)

    def restart(self) -> None:
        """Go back to the first byte."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._out = 0
        if self.packed:
            self._unpack(self.packed)

    def check_unchanged(self) -> None:
        """Make sure that the file did not change while it was read.

        Raises:
            Unreadable: another process has written to it.
        """
        about = os.fstat(self._descriptor)
        if (about.st_size, about.st_mtime_ns) != (self.size, self._written):
            raise Unreadable("changed", f"{self.size} bytes when it was opened, {about.st_size} when it was read")

    def seekable(self) -> pa.NativeFile:
        """Return the file, which must not be packed, for Arrow: readable at any place, with a descriptor of its own."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return pa.PythonFile(os.fdopen(os.dup(self._descriptor), "rb"), mode="r")

    def _read_plain(self, n: int) -> bytes:
        if self.size and not self._out:
            data = os.read(self._descriptor, min(n, self.size))  # no buffer larger than the file
        else:
            data = os.read(self._descriptor, n)
        if len(data) == n or not data or (len(data) == self.size and not self._out):
            return data  # whether the file has grown meanwhile `check_unchanged` tells
        parts, missing = [data], n - len(data)  # a read may be short; only an empty one is the end
        while missing and (data := os.read(self._descriptor, missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _unpack(self, codec: str) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.packed = codec
        # a descriptor object that leaves ours open
        raw = os.fdopen(self._descriptor, "rb", buffering=0, closefd=False)
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)

    def refuse_bomb(self) -> None:
        """Unpack enough to notice a bomb, and go back to the first byte.

        Raises:
            Unreadable: as `read`.
        """
        if self.packed:
            while self._out <= BOMB_BYTES and self.read(_UNPACKED_AT_ONCE):
                pass
            self.restart()

    def _read_packed(self, n: int) -> bytes:
        parts, missing = [], n
        try:
            while missing and (data := self._stream.read(min(missing, _UNPACKED_AT_ONCE))):  # type: ignore[union-attr]
                parts.append(data)
                missing -= len(data)
                self._out += len(data)
                taken = os.lseek(self._descriptor, 0, os.SEEK_CUR)
                if self._out > BOMB_BYTES and self._out > BOMB_RATIO * taken:
                    raise Unreadable("bomb", f"{taken} bytes of {self.packed} give {self._out}")
        except (OSError, pa.ArrowException) as error:
            raise Unreadable("compressed", f"{self.packed}: {first_line(error)}") from error
        return b"".join(parts)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has none."""
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__


# --- what a file looks like

_BINARY = {
    b"PK\x03\x04": "a zip archive, such as an Excel or LibreOffice workbook",
    b"PK\x05\x06": "an empty zip archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document, such as .xls",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\xfd7zXZ\0": "xz data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x04\x22\x4d\x18": "lz4 data",
    b"\x1f\x8b": "gzip data inside of compressed data",
    b"\x28\xb5\x2f\xfd": "zstd data inside of compressed data",
    b"\x7fELF": "a program",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"ARROW1\0\0": "an Arrow or Feather file",
}
# These signatures are also words that a header may begin with, so binary data has to follow.
_WORDLIKE = {
    b"PARE": "an encrypted Parquet file",
    b"%PDF-": "a PDF document",
    b"GIF8": "a GIF picture",
    b"BZh": "bzip2 data",
    b"Rar!": "a RAR archive",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
}
_STARTS = (*_BINARY, *_WORDLIKE)
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_TEXTUAL = (
    (re.compile(rb"\s*(<!doctype html|<html[\s>])", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\s*<\?xml\s"), "an XML document"),
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), "a pointer to a file that git-lfs has not fetched"),
    (re.compile(rb"\{\\rtf\d"), "an RTF document"),
)


def looks_like(head: bytes) -> str | None:
    """Return what a file is if its first bytes are not those of a table in text, or None."""
    if head.startswith(_STARTS):
        for start, kind in _BINARY.items():
            if head.startswith(start):
                return kind
        kind = next(kind for start, kind in _WORDLIKE.items() if head.startswith(start))
        return kind if _CONTROL.search(head[:1024]) else None
    if is_database(head):
        return "a DuckDB database; give it as the lake itself"
    return next((kind for pattern, kind in _TEXTUAL if pattern.match(head[:1024])), None)


def is_parquet(head: bytes) -> bool:
    """Tell a Parquet file by its first bytes; a header of a table in text may begin with the same letters."""
    return head.startswith(b"PAR1") and _CONTROL.search(head[:1024]) is not None


def is_database(head: bytes) -> bool:
    """Tell a DuckDB file by its first bytes."""
    return head[8:12] == b"DUCK" and _CONTROL.search(head[:64]) is not None
