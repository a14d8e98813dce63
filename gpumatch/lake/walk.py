"""A folder, and perhaps a pattern, in; the table files below it, and what has a table's name but is no file, out.

Opens no file. Follows no link to a folder unless told to, never goes up, and never enters a folder twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from gpumatch.lake.files import link_target, special_rule
from gpumatch.lake.rules import SKIPPED, Skipped, Unreadable
from gpumatch.lake.tables import extension_of


@dataclass
class Found:
    """files: name below the folder → path, for regular files with a table's extension and links to such."""

    files: dict[str, Path] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def walk(base: Path, inside: Path | None, pattern: Sequence[str] = ("**", "*")) -> Found:
    """Find the tables below a folder.

    Args:
        inside: the real folder that links must not leave; None to follow all of them, to folders too.
        pattern: what the path of a table has to match, a part for each of its names; "**" stands for any folders.
    """
    return _Walk(base, inside, pattern).found


class _Walk:
    """found: filled by the walk, which the constructor makes."""

    def __init__(self, base: Path, inside: Path | None, pattern: Sequence[str]) -> None:
        self.found = Found()
        self._inside, self._pattern = inside, pattern
        self._entered: set[tuple[int, int]] = set()
        # folders to enter: (what their tables' names begin with, path)
        self._real: list[tuple[str, Path]] = [("", base)]
        self._linked: list[tuple[str, Path]] = []
        while self._real or self._linked:
            # links to folders come after all real folders, so that a folder gets its own name and not a link's
            self._enter(*(self._real.pop() if self._real else self._linked.pop(0)))

    def _skip(self, name: str, rule: str, found: str) -> None:
        self.found.skipped.append(Skipped(name, rule, found))

    def _enter(self, prefix: str, folder: Path) -> None:
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in self._entered:
                return self._skip(prefix[:-1], "linked-folder", "a link to a folder that is read already")
            self._entered.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                self._sort_in(entry, prefix + entry.name, folder / entry.name)
        except OSError as error:
            self._skip(prefix[:-1] or ".", "unreadable-folder", error.strerror or str(error))

    def _sort_in(self, entry: os.DirEntry[str], name: str, path: Path) -> None:
        """Put one entry of a folder where it belongs: to the files, the folders to enter, or what is skipped."""
        if entry.name.startswith("."):
            return
        parts = name.split("/")
        if entry.is_dir(follow_symlinks=False):
            if leads_to(self._pattern, parts):
                self._real.append((f"{name}/", path))
            return
        is_table = extension_of(entry.name) is not None and matches(self._pattern, parts)
        if is_table and entry.is_file(follow_symlinks=False):
            self.found.files[name] = path
        elif entry.is_symlink() and path.is_dir():
            if leads_to(self._pattern, parts) and self._inside is None:
                self._linked.append((f"{name}/", path))
            elif leads_to(self._pattern, parts):
                self._skip(name, "linked-folder", f"a link to {os.path.realpath(path)!a}")
        elif is_table:
            self._judge(entry, name, path)

    def _judge(self, entry: os.DirEntry[str], name: str, path: Path) -> None:
        """Keep a link to a file; list as skipped links to anything else, and what is no file at all."""
        try:
            target = link_target(path, self._inside) if entry.is_symlink() else path
            rule = special_rule(os.stat(target).st_mode)
            if rule is None:
                self.found.files[name] = path
            else:
                self._skip(name, rule, f"{SKIPPED[rule]}, not a file")
        except OSError as error:
            self._skip(name, "unreadable", error.strerror or str(error))
        except Unreadable as reason:
            self._skip(name, reason.rule, reason.found)


def matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Tell whether a path matches a pattern, part by part."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(pattern[1:], parts) or (bool(parts) and matches(pattern, parts[1:]))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(pattern[1:], parts[1:])


def leads_to(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Tell whether something below a folder could match a pattern."""
    for i, one in enumerate(pattern):
        if one == "**":
            return True
        if i == len(parts):
            return True
        if not fnmatchcase(parts[i], one):
            return False
    return False
