"""Paths that the user names and their content in; files out, made as the user's other programs make files.

Must never rename over a link, a pipe or a device, nor notice only after a run that its file cannot be written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from gpumatch.cache.publish import CacheError, atomic_write_bytes
from gpumatch.errors import OutputError, UsageError

# The mode that programs ask for; the umask takes off what others may not do.
MODE = 0o666


def prepare(path: Path, option: str) -> None:
    """Make the folders of a file that will be written, and check that it can be.

    Raises:
        OutputError: it cannot be written; the message names the option to give another place.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give {option} a file in it, such as {path / 'out.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; give {option} another place") from error
    place = path if _is_special(path) else target_of(path).parent
    if not os.access(place, os.W_OK):
        raise OutputError(f"cannot write {path}: {place} is not to be written to; give {option} another place")


def keep_apart(written: Mapping[str, Path], read: Iterable[Path] = ()) -> None:
    """Check that no two outputs are the same file, and that none is read by the command, whatever names and links say.

    Args:
        written: option → the path that it names. Pipes, devices and our own streams may be named several times.
        read: files, and folders of which all that is in them is needed.

    Raises:
        UsageError: with the option to give another place.
    """
    places: dict[object, tuple[str, Path]] = {}
    for option, path in written.items():
        if _is_special(path) or _own_stream(path) is not None:
            continue
        if (other := places.get(_identity(path))) is not None:
            raise UsageError(f"{other[0]} and {option} are both {path}; give one of them another place")
        places[_identity(path)] = option, path
    inside = {_identity(place): told for told in places.values() for place in Path(os.path.realpath(told[1])).parents}
    for path in read if places else ():
        identity = _identity(path)
        if (found := places.get(identity)) is not None:
            raise UsageError(f"{found[0]} {found[1]} would replace an input of the run; give {found[0]} another place")
        if (found := inside.get(identity)) is not None:
            raise UsageError(f"{found[0]} {found[1]} lies in {path}; give {found[0]} another place")


def _identity(path: Path) -> object:
    """Return something that is the same for all names of a file; if it does not exist, where it would be."""
    try:
        about = path.stat()
    except OSError:
        return os.path.realpath(path)
    return about.st_dev, about.st_ino


def write(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all; a pipe or a device is simply written to.

    Raises:
        OutputError, OSError: it cannot be written; a file that was there is still there.
    """
    if isinstance(data, str):
        data = data.encode(errors="backslashreplace")  # file names in it may be no Unicode
    stream = opened_stream(path)
    if stream is None:
        try:
            atomic_write_bytes(target_of(path), data, MODE)
        except CacheError as error:
            raise OutputError(str(error)) from error
        return
    with stream:
        stream.buffer.write(data)


def target_of(path: Path) -> Path:
    """Return where a file is published: a link stays, and what it leads to is replaced."""
    return path.resolve() if path.is_symlink() else path


def opened_stream(path: Path) -> TextIO | None:
    """Open what cannot be replaced: a pipe, a device, or the target of one of our own streams (/dev/stdout).

    Returns None for a file, a folder or nothing.
    """
    own = _own_stream(path)
    if own is not None:
        own.flush()
        return _text_on(os.dup(own.fileno()))  # keeps its position: opened anew it would begin at 0
    return _text_on(path) if _is_special(path) else None


def _own_stream(path: Path) -> TextIO | None:
    for own in (sys.stdout, sys.stderr):
        # The path is not there; or the stream is closed, was never opened, or is no file at all.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(os.fstat(own.fileno()), path.stat()):
                return own
    return None


def _text_on(file: int | Path) -> TextIO:
    return open(file, "w", encoding="utf-8", newline="\n")


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
