"""Batches of rankings in, what a model's verdicts change about them out; the next batches are ranked meanwhile.

The only code that knows the order: what to ask, what is known already, what the budget allows, and what it all moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from gpumatch.cache.verdicts import Spent, VerdictStore
from gpumatch.judge.fusion import SIGN, Ranking, judged, moves, worth
from gpumatch.judge.limits import Budget
from gpumatch.judge.pool import Answer, Limits, Pool, from_body
from gpumatch.judge.prompt import Question
from gpumatch.judge.reply import Verdict
from gpumatch.judge.selection import candidates, uncertainty
from gpumatch.judge.transport import Transport
from gpumatch.recipes import SCORE_DECIMALS
from gpumatch.stats import RunStats

# Batches that are asked about at once: enough that calls go on while others are ranked, and no more are held.
AHEAD = 4
NOT_ASKED = ""


@dataclass(frozen=True)
class Wanted:
    """One query row, and how to put some of its candidates (places, int64 [v]) into a question.

    asked: whether to ask about it; a batch is ranked whole, and may have rows outside of --offset and --max-queries.
    """

    ranking: Ranking
    question: Callable[[np.ndarray], Question]
    asked: bool = True


@dataclass(frozen=True)
class Judged:
    """What verdicts say of one query row.

    places: int64 [v], the candidates that were chosen; answers: to each of them, a verdict or why there is none.
    speaks: int64 [n], which of them speaks for each candidate, -1 for none.
    moves: float64 [n], what is added to each score.
    """

    places: np.ndarray
    answers: Sequence[Answer]
    speaks: np.ndarray
    moves: np.ndarray

    def speaker(self, place: int) -> int:
        """Return the place of the candidate that speaks for one: its own, or of one with the same column names."""
        return int(self.places[self.speaks[place]])

    def verdict(self, place: int, before: float) -> dict[str, Any] | None:
        """Return what was said of a candidate as results have it, the model's words as such; None: it was not asked.

        Args:
            before: its score without verdicts.
        """
        answer = self.answers[self.speaks[place]] if self.speaks[place] >= 0 else NOT_ASKED
        if answer == NOT_ASKED:
            return None
        if not isinstance(answer, Verdict):
            return {"says": None, "why": answer}
        moved = round(float(self.moves[place]), SCORE_DECIMALS) + 0.0  # no -0
        told = {"says": answer.says, "sure": answer.sure, "words": answer.words}
        return told | {"score_before": before, "moved": moved}

    def counts(self) -> dict[str, int]:
        """Return how many candidates were asked about, by this run or before, and how many verdicts there are."""
        asked = sum(one != NOT_ASKED for one in self.answers)
        return {"asked": asked, "given": sum(isinstance(one, Verdict) for one in self.answers)}


@dataclass
class Plan:
    """What would be asked: its cost at most, candidates, those of them that are known already; and one request."""

    rows: int = 0
    cost: Spent = field(default_factory=Spent)
    candidates: int = 0
    known: int = 0
    example: Question | None = None


@dataclass
class _Row:
    """A query row under way.

    open: the candidates, by their number among `places`, that no verdict is known on.
    coming: for those of these that a call is made about, where its answer will be.
    """

    wanted: Wanted
    places: np.ndarray
    question: Question | None = None
    keys: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    coming: dict[int, _Coming] = field(default_factory=dict)


@dataclass(frozen=True)
class _Coming:
    """An answer that will be the i-th of a call's."""

    call: Future[list[Answer]]
    i: int


class Judge:
    """A context manager around a `Pool`; asks batch by batch.

    Args:
        connect: makes the transport; None to ask nobody and only plan.
        run: names the run, whose budget holds over all processes that work on it.
    """

    def __init__(
        self,
        connect: Callable[[], Transport] | None,
        model: str,
        store: VerdictStore,
        run: str,
        limits: Limits | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.plan = Plan()
        self._model, self._store, self._budget = model, store, budget or Budget()
        self._pool = None if connect is None else Pool(connect, model, store, run, limits, self._budget)
        self._before = store.spent(run)
        self._coming: dict[bytes, _Coming] = {}
        self._on_exit = ExitStack()

    def __enter__(self) -> Judge:
        """Start the pool."""
        if self._pool is not None:
            self._on_exit.enter_context(self._pool)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is under way."""
        self._on_exit.close()

    def told(self) -> dict[str, int]:
        """Return what was asked and answered, for a run's statistics."""
        counts = {"verdicts asked": self.plan.candidates, "verdicts known": self.plan.known}
        if self._pool is None:
            return counts | {"calls planned": self.plan.cost.calls}
        spent, told = self._pool.spent, self._pool.told
        return counts | {
            "verdicts given": told.answered,
            "verdicts missing": told.asked - told.answered,
            "calls": told.sent,
            "prompt tokens": spent.prompt,
            "reply tokens": spent.reply,
        }

    def ask(self, batch: Sequence[Wanted], share: float) -> list[_Row]:
        """Choose what to ask about a batch and begin to ask it.

        Args:
            share: of the whole run's rows, those up to the end of this batch: so much of the budget may be spent then.
        """
        rows = []
        for one in batch:
            row = _Row(one, candidates(one.ranking) if one.asked else np.empty(0, np.int64))
            if len(row.places):
                row.question = one.question(row.places)
                row.keys = row.question.keys(self._model)
            rows.append(row)
        known = self._known(key for row in rows for key in row.keys)
        for row in rows:
            row.answers = [known.get(key, NOT_ASKED) for key in row.keys]
            row.open = [i for i, key in enumerate(row.keys) if key not in known]
            self.plan.known += len(row.keys) - len(row.open)
        self._send([row for row in rows if row.open], share)
        self.plan.rows += sum(one.asked for one in batch)
        return rows

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, Verdict]:
        found = {key: from_body(body) for key, body in self._store.get(keys).items()}
        return {key: verdict for key, verdict in found.items() if verdict is not None}

    def _send(self, rows: Sequence[_Row], share: float) -> None:
        """Ask about what is open, by falling uncertainty, as far as the budget goes; about nothing twice."""
        allowed = self._budget.part(share)
        gains = [uncertainty(row.wanted.ranking, row.places[row.open]) for row in rows]
        for i in sorted(range(len(rows)), key=lambda i: (-gains[i], i)):
            row = rows[i]
            row.coming = {j: self._coming[row.keys[j]] for j in row.open if row.keys[j] in self._coming}
            new = [j for j in row.open if j not in row.coming]
            if row.question is None or not new:
                continue
            question = Question(row.question.task, row.question.query, [row.question.candidates[j] for j in new])
            cost = Spent(1, question.prompt_tokens, question.most_reply_tokens())
            plan = self.plan
            if allowed.why_not(self._before.plus(plan.cost), cost):
                continue
            plan.cost, plan.candidates = plan.cost.plus(cost), plan.candidates + len(new)
            plan.example = plan.example or question
            if self._pool is not None:
                call = self._pool.ask(question)
                row.coming |= {j: _Coming(call, at) for at, j in enumerate(new)}
                self._coming |= {row.keys[j]: row.coming[j] for j in new}

    def answered(self, rows: Sequence[_Row]) -> list[Judged]:
        """Wait for the answers to a batch, and return what they change."""
        for row in rows:
            for j, coming in row.coming.items():
                row.answers[j] = coming.call.result()[coming.i]
                self._coming.pop(row.keys[j], None)  # a verdict is in the store now
        given = [(row, [i for i, one in enumerate(row.answers) if isinstance(one, Verdict)]) for row in rows]
        signs = [
            np.array([SIGN[one.says] for one in row.answers if isinstance(one, Verdict)], np.float64)
            for row, _ in given
        ]
        none, places = np.empty(0), [row.places[some] for row, some in given]
        confidences = [row.wanted.ranking.confidence[at] for (row, _), at in zip(given, places, strict=True)]
        believed = worth(*(np.concatenate([none, *parts]) for parts in (confidences, places, signs)))
        answers = []
        for (row, some), sign in zip(given, signs, strict=True):
            ranking = row.wanted.ranking
            moved = moves(ranking, row.places[some], sign, believed)
            answers.append(Judged(row.places, row.answers, judged(ranking, row.places), moved))
        return answers


B = TypeVar("B")


def judged_batches(
    judge: Judge, batches: Iterable[tuple[B, Sequence[Wanted], float]], stats: RunStats
) -> Iterator[tuple[B, list[Judged]]]:
    """Yield (batch, what verdicts change) in order, for batches (anything, its rows, share of the run's rows).

    Up to AHEAD batches are under way: the first ones are asked about while the next ones are made.
    """
    waiting: list[tuple[B, list[_Row]]] = []

    def first() -> tuple[B, list[Judged]]:
        with stats.stage("judge", "candidates") as stage:
            batch, rows = waiting.pop(0)
            found = judge.answered(rows)
            stage.items += sum(len(one.answers) for one in found)
        return batch, found

    for batch, wanted, share in batches:
        with stats.stage("judge", "candidates"):
            waiting.append((batch, judge.ask(wanted, share)))
        if len(waiting) > AHEAD:
            yield first()
    while waiting:
        yield first()
