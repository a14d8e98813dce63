"""How many requests may be sent, and when: rates, budgets, and a breaker for servers that do not answer.

Nothing here sends or waits by itself; times are seconds of the event loop's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpumatch.cache.verdicts import Spent

# Failures in a row, over all calls, after which a server is left alone for a while; and for how long, each time longer.
TRIP, COOL_SECONDS = 8, (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, of prompts and of replies, in whatever money."""

    prompt: float = 0.0
    reply: float = 0.0

    def of(self, prompt: int, reply: int) -> float:
        """Return what some tokens cost."""
        return (prompt * self.prompt + reply * self.reply) / 1e6


@dataclass(frozen=True)
class Budget:
    """What a run may spend at most; None for no limit."""

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    price: Price = field(default_factory=Price)

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return (self.calls, self.tokens, self.money) != (None, None, None)

    def why_not(self, spent: Spent, more: Spent) -> str:
        """Return why no more can be spent, or an empty text."""
        total = spent.plus(more)
        if self.calls is not None and total.calls > self.calls:
            return f"all {self.calls} calls of --llm-max-calls are spent"
        if self.tokens is not None and total.prompt + total.reply > self.tokens:
            return f"the {self.tokens:,} tokens of --llm-max-tokens do not suffice for it"
        if self.money is not None and self.price.of(total.prompt, total.reply) > self.money:
            return f"the {self.money:g} of --llm-budget do not suffice for it"
        return ""

    def part(self, share: float) -> Budget:
        """Return a share of it, for that share of the work."""
        return Budget(
            None if self.calls is None else int(self.calls * share + 1e-9),
            None if self.tokens is None else int(self.tokens * share + 1e-9),
            None if self.money is None else self.money * share,
            self.price,
        )


class Rate:
    """So much a minute, at an even pace, of requests or of tokens; a burst of a second's worth is let through."""

    def __init__(self, a_minute: float | None) -> None:
        self._a_second = None if a_minute is None else a_minute / 60
        self._free_at = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Take an amount; return after how many seconds it may be sent."""
        if self._a_second is None:
            return 0.0
        begin = max(self._free_at, now - 1.0)
        self._free_at = begin + amount / self._a_second
        return max(0.0, begin - now)


class Breaker:
    """Failures in a row come in; whether a server may be asked goes out: now, later, by one call alone, or no more.

    After TRIP failures nobody asks for a while, then one call asks. If that fails too the while is longer; after the
    last of COOL_SECONDS the server is given up.
    """

    def __init__(self) -> None:
        self.dead = ""
        self._failures = 0
        self._trips = 0
        self._until = 0.0
        self._probing = False

    @property
    def tripped(self) -> bool:
        """Whether the server is left alone, but for one call that probes."""
        return self._trips > 0

    def wait(self, now: float) -> float | None:
        """Return after how many seconds a call may ask again whether it may, or None: it may be sent now.

        A call sent while `tripped` is the probe; report its outcome by `success`, `failure` or `neither`.
        """
        if not self.tripped:
            return None
        if now < self._until:
            return self._until - now
        if self._probing:
            return 0.05
        self._probing = True
        return None

    def success(self) -> None:
        """Count an answer of the server."""
        self._failures = self._trips = 0
        self._probing = False

    def failure(self, now: float, why: str, probe: bool = False) -> None:
        """Count a call that the server has not answered, or not with what can be used.

        Args:
            probe: whether it was the probe; other calls that were under way when it tripped do not make it wait longer.
        """
        self._failures += 1
        self.neither(probe)
        if self.dead or not (probe or (not self.tripped and self._failures >= TRIP)):
            return
        if self._trips == len(COOL_SECONDS):
            self.dead = f"given up after {self._failures} failures in a row, the last: {why}"
            return
        self._until = now + COOL_SECONDS[self._trips]
        self._trips += 1

    def neither(self, probe: bool) -> None:
        """Note that a call has ended and told nothing of the server; if it was the probe, another one may probe."""
        self._probing = self._probing and not probe
