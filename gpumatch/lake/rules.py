"""The rules, by name, that files and queries can break, and what each says; every rule is here and nowhere else.

Pure. docs/READING.md says what to do about each rule; a test keeps the two in step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# What breaks one of these is not read, and listed in `Lake.skipped`. They may not apply at the next run though no byte
# of the file has changed: they depend on where it is, or on what else went on.
PASSING = {
    "fifo": "a named pipe",
    "socket": "a socket",
    "device": "a device",
    "dangling-link": "a link to nothing",
    "link-loop": "a link that leads back to itself",
    "link-outside": "a link that leaves the lake's folder",
    "linked-folder": "a link to a folder",
    "unreadable-folder": "a folder that cannot be listed",
    "unreadable": "a file that cannot be opened or read",
    "changed": "a file that was replaced or written to while it was read",
    "memory": "a Parquet file or a view that asked for more memory than there was",
    "query-slow": "a view that the database did not finish in time",
}
# These depend on the file's bytes alone.
SKIPPED = PASSING | {
    "empty": "no text at all",
    "compressed": "damaged or cut compressed data",
    "bomb": "data that unpacks to far more than any table does",
    "too-large": "more data than can be held at once where it has to be",
    "other-format": "something else under a table's name",
    "encoding": "text that is not in the encoding that it starts with",
    "nul-bytes": "binary data",
    "long-line": "a line or a row that never seems to end",
    "long-field": "a cell that never seems to end",
    "parquet": "a damaged or encrypted Parquet file",
    # a table in a tables.json or in a database
    "table-name": "an entry without a name",
    "repeated-name": "a second table of the same name",
    "columns": "columns that are no list of objects",
    "sample-values": "values that are no list, or are nested too deep",
    "query-failed": "a table or view that the database cannot read",
    # a bug; another version of gpumatch reads the lake anew
    "internal": "an error of gpumatch itself",
}

# What breaks one of these is read in part, and listed in `Lake.notes`.
PARTLY = {
    "preamble": "lines before the header",
    "cells-dropped": "rows with more cells than the header, which are not blank",
    "rows-sampled": "more rows than are kept; joins on what the others hold may be missed",
    "columns-cut": "more columns than are kept",
    "cells-cut": "cells with more characters than are kept",
    "bytes-replaced": "a few bytes that are no text in the file's encoding",
}

# Query rows that break one of these have no matches, or lack verdicts; they are listed beside what was not read.
UNANSWERED = {
    "query-table": "a query table that the lake does not have",
    "query-column": "a query column that its table does not have",
    "verdict": "candidates that no verdict of the language model came on",
}


@dataclass(frozen=True)
class Skipped:
    """Something that was not read, or not all of it: its name, the rule that it broke, and what was found."""

    name: str
    rule: str
    found: str


class Unreadable(Exception):
    """A file is not a table by `rule`; `found` says what it is instead."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"{rule}: {found}")
        self.rule = rule
        self.found = found


@dataclass
class Limits:
    """How much of one table a reader may keep, and where it writes down what it left out.

    sample_rows: the most rows to keep.
    notes: (rule, found) of everything left out.
    """

    sample_rows: int = 100_000
    notes: list[tuple[str, str]] = field(default_factory=list)
