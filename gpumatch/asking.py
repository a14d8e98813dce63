"""Rankings in; what a language model is asked about them, and how its verdicts move scores, out.

Loaded only if a model is to be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from gpumatch.cache.verdicts import secret_of
from gpumatch.confidence import confidence_of
from gpumatch.index import Index
from gpumatch.judge.fusion import Ranking
from gpumatch.judge.judge import NOT_ASKED, Judge, Judged, Wanted, judged_batches
from gpumatch.judge.prompt import Question, Shown, both, shown_table, shown_text
from gpumatch.rank import Asked, Batch, Ranked, densities, rankings
from gpumatch.run import Run


class Asker(Protocol):
    """Takes rankings: a `Judge`, or something that only looks at them."""

    def ask(self, batch: Sequence[Wanted], share: float, /) -> object:
        """Take the rankings of a batch, after which that share of the run's rows is done."""


class Asking:
    """Asks about the query rows from begin to stop alone: nobody pays for what is not asked for.

    How far the judge is believed goes by the verdicts on these rows of a batch, so a partial run's lines can differ
    from the full run's in how far verdicts move scores.
    """

    def __init__(self, index: Index, asked: Asked, run: Run, begin: int, stop: int) -> None:
        self._index, self._asked, self._run, self._begin, self._stop = index, asked, run, begin, stop
        self._secret = secret_of(run.verdict_folder) if run.settings.redact else None
        self._shown_tables: dict[tuple[int, int], Shown] = {}

    def judged(self, judge: Judge, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Sequence[Judged]]]:
        """Yield batches with a judge's verdicts on their rows; while one is judged, later ones are ranked."""
        wanted = ((batch, self._wanted(batch[1]), self._share(batch[0])) for batch in batches)
        for batch, found in judged_batches(judge, wanted, self._run.stats):
            self._note_missing(batch[1], found)
            yield batch, found

    def plan(self, asker: Asker) -> None:
        """Give all rankings to an asker that only plans: nothing is sent."""
        for rows, ranked in rankings(self._index, self._asked, self._run, self._begin, self._stop):
            asker.ask(self._wanted(ranked), self._share(rows))

    def _share(self, rows: np.ndarray) -> float:
        """Return the share of the rows begin to stop that is done after a batch."""
        return (min(int(rows[-1]) + 1, self._stop) - self._begin) / max(1, self._stop - self._begin)

    def _wanted(self, ranked: Sequence[Ranked]) -> list[Wanted]:
        """Return the rankings of a batch as a judge takes them, those of all groups one after another."""
        return [wanted for group in ranked for wanted in self._wanted_of(group)]

    def _wanted_of(self, group: Ranked) -> Iterator[Wanted]:
        tables, recipe = group.tables(group.ids), group.way.recipe
        density = np.zeros(tables.shape) if group.signals is not None else densities(self._index, recipe)[tables]
        sure = confidence_of(group.strength.reshape(-1), recipe, density.reshape(-1)).reshape(tables.shape)
        for i, (n, row) in enumerate(zip(group.sizes.tolist(), group.rows.tolist(), strict=True)):

            def question(places: np.ndarray, i: int = i, row: int = row) -> Question:
                return self._question(group, row, tables[i, places], group.ids[i, places])

            ranking = Ranking(group.scores[i, :n], sure[i, :n], self._schemas[tables[i, :n]])
            yield Wanted(ranking, question, asked=self._begin <= row < self._stop)

    @cached_property
    def _schemas(self) -> np.ndarray:
        """int64 [T], the same number for lake tables with the same column names, unless these say nothing."""
        profiles, named = self._index.lake.profiles, self._index.lake.terms.named_columns
        seen: dict[object, int] = {}
        bounds = profiles.table_cols.tolist()
        keys = (tuple(sorted(profiles.names[a:b])) if named[t] else t for t, (a, b) in enumerate(pairwise(bounds)))
        return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)

    def _question(self, group: Ranked, row: int, tables: np.ndarray, ids: np.ndarray) -> Question:
        query, asked, by_column = self._asked.rows[row], self._asked, group.signals is not None
        parts = [] if query.text is None else [shown_text(query.text)]
        if asked.table[row] >= 0:
            column = int(asked.column[row]) if by_column else -1
            parts.append(shown_table(asked.tables.profiles, int(asked.table[row]), column, self._secret))
        columns = ids if by_column else np.full(len(ids), -1)
        listed = [self._shown(*pair) for pair in zip(tables.tolist(), columns.tolist(), strict=True)]
        return Question(query.task, both(*parts) if len(parts) > 1 else parts[0], listed)

    def _shown(self, table: int, column: int) -> Shown:
        """Return what is shown of a lake table, made once: alike queries have candidates in common."""
        if (table, column) not in self._shown_tables:
            self._shown_tables[table, column] = shown_table(self._index.lake.profiles, table, column, self._secret)
        return self._shown_tables[table, column]

    def _note_missing(self, ranked: Sequence[Ranked], found: Sequence[Judged]) -> None:
        """List the query rows that a verdict is missing for, and why."""
        rows = [int(row) for group in ranked for row in group.rows]
        for row, judged in zip(rows, found, strict=True):
            query = self._asked.rows[row]
            why = Counter(one for one in judged.answers if isinstance(one, str) and one != NOT_ASKED)
            for reason, n in why.items():
                told = f"{n} of {len(judged.answers)} candidates have no verdict: {reason}"
                entry = {"name": query.table or str(query.text), "rule": "verdict", "found": told}
                self._run.stats.skipped.append(entry)
