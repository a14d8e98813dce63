"""Questions in, an answer for every candidate out, each a verdict or the reason why there is none.

One thread with one event loop; in it so many calls at once as are allowed, and one owner of retries. An answer is in
the store before anybody sees it; where the store fails nothing more is sent, as it would be paid for again, and what is
under way is still told. It must never send more than the budget allows, nor leave a question unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from gpumatch.cache.publish import CacheError
from gpumatch.cache.verdicts import Spent, VerdictStore
from gpumatch.judge.fusion import SIGN
from gpumatch.judge.limits import Breaker, Budget, Rate
from gpumatch.judge.prompt import Question
from gpumatch.judge.reply import BadReply, Usage, Verdict, read_reply
from gpumatch.judge.transport import Reply, Transport, TransportError

# A call that fails is sent so often in all, with waits that double from the first on, drawn between half and whole.
ATTEMPTS, FIRST_WAIT, MOST_WAIT = 5, 0.5, 20.0
# Statuses that may pass: too many requests, and what servers and proxies say when they are not well.
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_NOT_DONE = {429, 503}  # such a request has cost nothing, like all that are refused
# Ways to have a server answer in JSON; where it refuses one, the next is tried. The second is llama-cpp-python's.
FORMS = ("json_schema", "json_object+schema", "json_object", "none")
_OF_FORMS = (b"response_format", b"json_schema")
_CLOSE_SECONDS = 1.0
# The pool's thread has little to do, and often: others give way to it after half a millisecond, in place of five.
_SWITCH_SECONDS = 0.0005

Answer = Verdict | str


@dataclass(frozen=True)
class Limits:
    """How the pool may behave.

    concurrency: calls in flight at most. timeout: seconds for a call, retries included. deadline: seconds for the run.
    requests, tokens: a minute, or None.
    """

    concurrency: int = 16
    timeout: float = 120.0
    deadline: float | None = None
    requests: float | None = None
    tokens: float | None = None


@dataclass
class Told:
    """What a pool has done so far."""

    sent: int = 0
    asked: int = 0
    answered: int = 0


class _Failed(Exception):
    """A call failed.

    passing: whether the same call may succeed later. after: seconds that the server wants to be left alone.
    counts: whether it is a failure of the server. fatal: no other call can succeed either.
    """

    def __init__(
        self, why: str, *, passing: bool, after: float | None = None, counts: bool = True, fatal: bool = False
    ) -> None:
        super().__init__(why)
        self.why, self.passing, self.after, self.counts, self.fatal = why, passing, after, counts, fatal


@dataclass
class _Call:
    """A question on its way; ends: when its time is over, None before it is first sent."""

    question: Question
    ends: float | None = None


class Pool:
    """A context manager; `ask` may be called from any thread.

    Args:
        connect: makes the transport, in the pool's own thread.
        run: names the run whose budget it is, over all processes that work on it.
        rng: draws the waits; markers are always drawn by the system.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        model: str,
        store: VerdictStore,
        run: str,
        limits: Limits | None = None,
        budget: Budget | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.told = Told()
        self._connect, self._model, self._store, self._run = connect, model, store, run
        self._limits, self._budget = limits or Limits(), budget or Budget()
        self._rng = rng or random.Random()  # noqa: S311 - of waits
        self._form = 0
        self._proved = False
        self._breaker = Breaker()
        self._requests, self._tokens = Rate(self._limits.requests), Rate(self._limits.tokens)
        self._left_alone_until = 0.0

    def __enter__(self) -> Pool:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._begun = self._loop.time()
        self._spent = self._store.spent(self._run)
        self._transport: Transport | None = None
        self._slots = asyncio.Semaphore(self._limits.concurrency)
        self._ready = asyncio.Semaphore(2 * self._limits.concurrency)
        self._thread = threading.Thread(target=self._loop.run_forever, name="gpumatch-judge", daemon=True)
        self._thread.start()
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what is under way, within about a second; answers that have come are in the store."""
        sys.setswitchinterval(self._switch)
        stopped = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        try:
            stopped.result(_CLOSE_SECONDS)
        except (TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
            if not self._thread.is_alive():
                self._loop.close()

    @property
    def spent(self) -> Spent:
        """What the run has spent so far, over all processes that worked on it."""
        return self._spent

    def ask(self, question: Question) -> Future[list[Answer]]:
        """Return what will hold an answer for each candidate, in their order: a verdict, or why there is none."""
        return asyncio.run_coroutine_threadsafe(self._answers(question), self._loop)

    # --- in the thread

    async def _stop(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._transport is not None:
            await self._transport.close()
        await self._loop.shutdown_asyncgens()
        for _ in range(3):  # what has been closed is let go of by callbacks
            await asyncio.sleep(0)

    async def _answers(self, question: Question) -> list[Answer]:
        try:
            answers = await self._call(question)
        except _Failed as failure:
            answers = [failure.why] * len(question.candidates)
        except Exception as error:  # its text could hold what was sent, and with it the key
            answers = [f"an error of the program: {type(error).__name__}"] * len(question.candidates)
        self.told.asked += len(answers)
        self.told.answered += sum(isinstance(one, Verdict) for one in answers)
        return answers

    async def _call(self, question: Question) -> list[Answer]:
        call = _Call(question)
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                return await self._attempt(call)
            except _Failed as failure:
                wait = self._rng.uniform(0.5, 1) * min(MOST_WAIT, FIRST_WAIT * 2**attempt)
                if failure.after is not None:  # and not all at the same moment
                    wait = failure.after + self._rng.uniform(0, 0.1) * wait
                over = call.ends is not None and self._loop.time() + wait > call.ends
                if last or over or not failure.passing or self._breaker.dead:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _attempt(self, call: _Call) -> list[Answer]:
        """Send a question once, and read what comes.

        A slot is taken for the time on the way alone: what is sent next is written before, and replies are read after.
        """
        question = call.question
        prompt, reply = question.prompt_tokens, question.most_reply_tokens()
        cost = Spent(1, prompt, reply)
        async with self._ready:
            ids, form, body = question.ids, *self._written(question)
            async with self._slots:
                probe = await self._admitted(cost, call.ends)
                if call.ends is None:  # its time begins when it is sent: others may be long before it
                    call.ends = self._loop.time() + self._limits.timeout
                if form != self._form:  # others have found out meanwhile what the server takes
                    form, body = self._written(question)
                returned = Spent()  # what of the cost turns out not to have been spent
                try:
                    got = await self._sent(body, call.ends)
                except TransportError as error:
                    returned = Spent(0, 0, reply) if error.reached else cost
                    raise self._counted(_Failed(str(error), passing=True), probe) from None
                except BaseException:  # cancelled, or something that nobody has thought of
                    self._breaker.neither(probe)
                    raise
                finally:
                    self._settle(returned)
                if got.status != 200:  # what follows from it holds for who waits for the slot
                    failure = self._refused(got, form)
                    free = got.status < 500 or got.status in _NOT_DONE or not failure.counts
                    self._settle(cost if free else Spent(0, 0, reply))
                    raise self._counted(failure, probe)
        await asyncio.sleep(0)  # who waits for the slot is sent first
        try:
            verdicts, usage = read_reply(got.body, ids)
        except BadReply as bad:
            raise self._counted(_Failed(str(bad), passing=True), probe) from None
        self._settle(_left(cost, usage))
        self._keep(question, ids, verdicts)
        self._breaker.success()
        self._proved = True
        return [verdicts.get(name, "the model left it out") for name in ids]

    def _written(self, question: Question) -> tuple[int, bytes]:
        return self._form, question.body(self._model, secrets.token_hex(8), FORMS[self._form])

    async def _admitted(self, cost: Spent, ends: float | None) -> bool:
        """Wait until the rates, the server and the breaker allow a call, and spend it; tell whether it is a probe."""
        now = self._loop.time()
        wait = max(self._requests.wait(now, cost.calls), self._tokens.wait(now, cost.prompt + cost.reply))
        while True:
            now = self._loop.time()
            if self._breaker.dead:
                raise _Failed(self._breaker.dead, passing=False, counts=False)
            if self._limits.deadline is not None and now - self._begun > self._limits.deadline:
                raise _Failed(
                    f"the {self._limits.deadline:g} s of --llm-deadline are over", passing=False, counts=False
                )
            if why := self._budget.why_not(self._spent, cost):
                raise _Failed(why, passing=False, counts=False)
            wait = max(wait, self._left_alone_until - now)
            if wait <= 0:
                held = self._breaker.wait(now)
                if held is None:
                    with self._storing():
                        self._spend(cost)  # nothing else has run since it was seen that it can be afforded
                        return self._breaker.tripped
                    continue
                wait = held
            if ends is not None and now + wait > ends:
                raise _Failed("its time was over before it could be sent again", passing=False, counts=False)
            await asyncio.sleep(wait)
            wait = 0.0

    async def _sent(self, body: bytes, ends: float) -> Reply:
        if self._transport is None:
            self._transport = self._connect()
        self.told.sent += 1
        if self._limits.deadline is not None:
            ends = min(ends, self._begun + self._limits.deadline)
        try:
            async with asyncio.timeout_at(ends):
                return await self._transport.send(body)
        except TimeoutError:
            raise TransportError("no whole reply in time", reached=True) from None

    def _counted(self, failure: _Failed, probe: bool) -> _Failed:
        """Tell the breaker of a failure, and return it."""
        if failure.counts:
            self._breaker.failure(self._loop.time(), failure.why, probe)
        else:
            self._breaker.neither(probe)
        if failure.fatal:
            self._breaker.dead = self._breaker.dead or failure.why
        return failure

    def _refused(self, got: Reply, form: int) -> _Failed:
        """Return what an answer that is no reply means, and draw the consequences for the calls that follow."""
        why = f"the server says {got.status}" + (f' ("{got.said}")' if got.said else "")
        about_form = got.status in (400, 422, 501) or any(word in got.body for word in _OF_FORMS)
        if about_form and form < len(FORMS) - 1 and (form < self._form or not self._proved):
            # It may not know how to hold a model to a schema: ask for less, once for all calls. What was sent before
            # that was found out may be refused when another has its answer already.
            self._form = max(self._form, form + 1)
            return _Failed(f"{why} to {FORMS[form]}", passing=True, after=0.0, counts=False)
        if got.status in (401, 403):
            return _Failed(f"{why}: set GPUMATCH_LLM_API_KEY to its key", passing=False, fatal=True)
        if got.status == 404:
            return _Failed(f"{why}: no such model or address; see --llm-url and --llm-model", passing=False, fatal=True)
        after = _retry_after(got.headers)
        if got.status in _NOT_DONE and after is not None:
            self._left_alone_until = max(self._left_alone_until, self._loop.time() + after)
        return _Failed(why, passing=got.status in _PASSING, after=after)

    def _keep(self, question: Question, ids: Sequence[str], verdicts: Mapping[str, Verdict]) -> None:
        keys = question.keys(self._model)
        bodies = {key: to_body(verdicts[name]) for key, name in zip(keys, ids, strict=True) if name in verdicts}
        with self._storing():
            self._store.put(bodies)

    def _settle(self, returned: Spent) -> None:
        if returned != Spent():
            with self._storing():
                self._spend(Spent(-returned.calls, -returned.prompt, -returned.reply))

    def _spend(self, more: Spent) -> None:
        if self._budget.limited:  # then it has to be known to the process that goes on if this one is killed
            self._store.spend(self._run, more)
        self._spent = self._spent.plus(more)

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Have nothing more asked where the store fails."""
        try:
            yield
        except CacheError as error:
            self._breaker.dead = self._breaker.dead or f"verdicts cannot be kept: {error}"


def to_body(verdict: Verdict) -> bytes:
    """Return a verdict as the store keeps it."""
    return json.dumps([verdict.says, float(verdict.sure), verdict.words]).encode()


def from_body(body: bytes) -> Verdict | None:
    """Return a verdict that `to_body` made; None of anything else."""
    try:
        says, sure, words = json.loads(body)
    except (ValueError, TypeError):
        return None
    good = isinstance(says, str) and says in SIGN and isinstance(sure, float) and isinstance(words, str)
    return Verdict(says, sure, words) if good else None


def _left(cost: Spent, usage: Usage) -> Spent:
    """Return the part of an expected cost that was not spent, by the server's own count where it gives one."""
    prompt = 0 if usage.prompt is None else cost.prompt - usage.prompt
    return Spent(0, prompt, 0 if usage.reply is None else cost.reply - usage.reply)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; None without one."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), 3600.0) if seconds == seconds else None
