"""Errors that people read: each says what, where, what was found and the command that fixes it.

`printable` makes text of others safe to show in them. Pure; no imports of gpumatch.

    GpumatchError            anything gpumatch tells its user; exit code 1
    ├── UsageError           the request itself cannot be met; exit code 2
    ├── LakeError            the lake, a queries file or a truth file cannot be used
    ├── IndexError_          an index folder is missing, damaged or of another version
    ├── EncoderError         an encoder cannot be loaded, or its weights are not the expected ones
    ├── UnusableCacheError   the cache cannot be used, or refuses what an encoder has made
    ├── DeviceError          the asked-for device is not there, fails, or has too little memory
    ├── OutputError          the results file cannot be written, or another process is writing it
    └── MemoryLimitError     the run would need, or needs, more memory than it may have
"""

from __future__ import annotations


class GpumatchError(Exception):
    """Something the user can act on; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(GpumatchError):
    """The request cannot be met as written (an unknown task, two options that exclude each other)."""

    exit_code = 2


class LakeError(GpumatchError):
    """A lake, a queries file or a truth file cannot be used at all."""


class IndexError_(GpumatchError):
    """An index folder is missing, damaged, or written by another version."""


class EncoderError(GpumatchError):
    """An encoder cannot be loaded, or its weights are not the expected ones."""


class UnusableCacheError(GpumatchError):
    """The cache cannot be used, or refuses what an encoder has made (the user's form of `gpumatch.cache`'s errors)."""


class DeviceError(GpumatchError):
    """The asked-for device is not on this machine, fails, or has too little memory."""


class OutputError(GpumatchError):
    """The results file cannot be written, or another process is writing it."""


class MemoryLimitError(GpumatchError):
    """The run needs more memory than --max-memory allows, or than the machine has."""


def printable(text: str) -> str:
    """Return a text as one line for a terminal, with what cannot be seen written out.

    Names may hold escape sequences, and newlines behind which something else seems to be said.
    """
    if text.isprintable():  # nearly all is
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
