"""The path of one table file in, one `Table` of Arrow string columns out, or `Unreadable` with its rule.

Never guesses silently: what cannot be read as a table raises `Unreadable`, and the caller lists it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from gpumatch.lake.arrow import read_parquet_file
from gpumatch.lake.delimited import read_delimited
from gpumatch.lake.files import SMALL_BYTES, Source, is_parquet
from gpumatch.lake.rules import Limits
from gpumatch.lake.sample import Table

_Reader = Callable[[Source, bytes, str, Limits], Table]
READERS: dict[str, _Reader] = {
    ".csv": lambda source, head, name, limits: read_delimited(source, head, name, ",", limits),
    ".tsv": lambda source, head, name, limits: read_delimited(source, head, name, "\t", limits),
    ".parquet": read_parquet_file,
}
_EXTENSION = re.compile(rf".*({'|'.join(map(re.escape, READERS))})(\.gz|\.zst)?", re.IGNORECASE | re.DOTALL)


def extension_of(name: str) -> str | None:
    """Return the extension that makes a name a table's, in lower case and without .gz or .zst; or None."""
    found = _EXTENSION.fullmatch(name)
    return found[1].lower() if found else None


def read_table(path: Path, name: str, limits: Limits, inside: Path | None = None) -> Table:
    """Read one table file by its extension, or as Parquet if its first bytes say so.

    Args:
        inside: the real folder that links must not leave; None if they may.

    Raises:
        Unreadable: with the rule that it broke.
    """
    with Source(path, inside) as source:
        head = source.read(SMALL_BYTES + 1)
        extension = ".parquet" if is_parquet(head) else extension_of(path.name) or ".csv"
        return READERS[extension](source, head, name, limits)
