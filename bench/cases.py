"""NAME=TASK:LAKE[:QUERIES] in, a lake with a truth and the task to run on it out; loads nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYNTAX = "NAME=TASK:LAKE[:QUERIES]"


@dataclass(frozen=True)
class Case:
    """A lake, the task to run on it, and its query tables where they lie outside."""

    name: str
    task: str
    lake: Path
    queries: Path | None

    @property
    def truth(self) -> Path:
        """The lake's ground truth.

        Raises:
            ValueError: it has none.
        """
        found = self._beside("ground_truth")
        if found is None:
            raise ValueError(f"no ground_truth.json or .csv in {self.lake}")
        return found

    @property
    def query_path(self) -> Path | None:
        """Where the query rows are, or None where every table of the lake is a query."""
        return self.queries or self._beside("queries")

    def _beside(self, stem: str) -> Path | None:
        paths = (self.lake / f"{stem}.{extension}" for extension in ("json", "csv"))
        return next((path for path in paths if path.is_file()), None)


def case_of(text: str) -> Case:
    """Read one case.

    Raises:
        ValueError: it is not written as SYNTAX says.
    """
    name, _, rest = text.partition("=")
    task, _, where = rest.partition(":")
    lake, _, queries = where.partition(":")
    if not name or not lake or task not in ("join", "union"):
        raise ValueError(f"{text!r} is not {SYNTAX} with the task join or union")
    return Case(name, task, Path(lake), Path(queries) if queries else None)


def cases_with_truths(texts: Sequence[str]) -> list[tuple[Case, list[dict[str, Any]]]]:
    """Read some cases, as `cases_of`, and the truth of each; end with what is wrong where one has none."""
    from gpumatch.errors import LakeError
    from gpumatch.records import load_truth

    try:
        return [(case, load_truth(case.truth)) for case in cases_of(texts)]
    except (ValueError, LakeError) as error:
        sys.exit(str(error))


def for_rows(truth: list[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a truth as it fits some answers: where none is to a column, a truth of columns tells of tables."""
    if any(row["query_column"] is not None for row in rows):
        return truth
    return [{name: row[name] for name in ("query_table", "candidate_table")} for row in truth]


def cases_of(texts: Sequence[str]) -> list[Case]:
    """Read some cases; without any, return those of the two lakes that ship with gpumatch."""
    if texts:
        return [case_of(text) for text in texts]
    from gpumatch.demo import lake_path

    return [Case(f"OpenData {task}", task, lake_path(task), None) for task in ("join", "union")]
