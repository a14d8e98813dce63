"""The pool against a scripted server: whatever the network does, every candidate has a verdict or a reason, once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter

import pytest

from gpumatch.cache.publish import CacheError
from gpumatch.cache.verdicts import Spent, VerdictStore
from gpumatch.judge import limits as limits_module
from gpumatch.judge import pool as pool_module
from gpumatch.judge import transport as transport_module
from gpumatch.judge.limits import Budget, Price
from gpumatch.judge.pool import Limits, Pool, from_body, to_body
from gpumatch.judge.prompt import Question, Shown
from gpumatch.judge.reply import Verdict
from gpumatch.judge.transport import HttpTransport, Reply, TransportError

MIXES = 200


def table(name):
    return Shown(json.dumps({"columns": [{"name": name, "type": "text", "values": ["x"]}]}, separators=(",", ":")))


def questions(n, width=4, start=0):
    return [
        Question("union", table(f"q{i}"), [table(f"c{i}.{j}") for j in range(width)]) for i in range(start, start + n)
    ]


@pytest.fixture
def hasty(monkeypatch):
    """Waits of milliseconds in place of seconds."""
    monkeypatch.setattr(pool_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(limits_module, "COOL_SECONDS", (0.05, 0.05, 0.05))


@contextlib.contextmanager
def a_pool(server_or_url, *, store=None, rng=0, key=None, run="run", **given):
    url = getattr(server_or_url, "url", server_or_url)
    limits = Limits(**{"concurrency": 4, "timeout": 20, **{k: v for k, v in given.items() if k != "budget"}})
    with contextlib.ExitStack() as stack:
        store = store or stack.enter_context(VerdictStore(None))

        def connect():
            return HttpTransport(url, key, limits.concurrency)

        yield stack.enter_context(Pool(connect, "m", store, run, limits, given.get("budget"), random.Random(rng)))


def answers(pool, asked):
    """All answers, and a check that there is one for every candidate."""
    futures = [pool.ask(one) for one in asked]
    found = [future.result(60) for future in futures]
    for one, got in zip(asked, found, strict=True):
        assert len(got) == len(one.candidates)
        assert all(isinstance(answer, Verdict) or (isinstance(answer, str) and answer) for answer in got)
    return found


def all_given(found):
    return all(isinstance(answer, Verdict) for got in found for answer in got)


def truth(asked, name, text):
    return "same" if json.loads(text)["columns"][0]["name"].endswith((".0", ".2")) else "different"


# --- what works


def test_every_candidate_gets_its_own_verdict(scripted):
    asked = questions(20)
    with scripted.ScriptedServer(truth) as server, a_pool(server) as pool:
        found = answers(pool, asked)
        assert [[answer.says for answer in got] for got in found] == [["same", "different"] * 2] * 20
        assert all(answer.words.startswith("scripted") for got in found for answer in got)
        assert (server.requests, pool.told.sent, pool.told.answered, pool.told.asked) == (20, 20, 80, 80)
        assert server.most_in_flight <= 4
        assert set(server.pairs.values()) == {1}


def test_no_more_calls_in_flight_than_allowed_and_as_many(scripted):
    with scripted.ScriptedServer(truth, latency=0.05) as server, a_pool(server, concurrency=7) as pool:
        answers(pool, questions(40))
    assert server.most_in_flight == 7


def test_verdicts_are_in_the_store_before_anybody_sees_them(scripted):
    with scripted.ScriptedServer(truth) as server, VerdictStore(None) as store, a_pool(server, store=store) as pool:
        for one in questions(5):
            got = pool.ask(one).result(20)
            kept = store.get(one.keys("m"))
            assert [from_body(kept[key]) for key in one.keys("m")] == got
    assert from_body(to_body(Verdict("related", 0.25, "ü\n"))) == Verdict("related", 0.25, "ü\n")


def test_the_key_is_sent_and_only_there(scripted):
    from pydantic import SecretStr

    with scripted.ScriptedServer(truth) as server, a_pool(server, key=SecretStr("sk-key-123")) as pool:
        server.keep_bodies = True
        answers(pool, questions(2))
        assert set(server.keys) == {"sk-key-123"}
        assert b"sk-key" not in b"".join(server.bodies)
        assert "sk-key" not in repr(vars(pool))


@pytest.mark.parametrize("refusal", [400, 422, 500, 501])
@pytest.mark.parametrize("forms", [("json_object+schema", "none"), ("json_object", "none"), ("none",)])
def test_a_server_that_knows_no_schema_is_asked_for_less(scripted, forms, refusal, hasty):
    with scripted.ScriptedServer(truth, forms=forms, refusal=refusal) as server, a_pool(server, concurrency=3) as pool:
        assert all_given(answers(pool, questions(12)))
        assert pool_module.FORMS[pool._form] == forms[0]
        # the first ones find out, the others know
        assert server.requests <= 12 + 3 * len(pool_module.FORMS)


def test_what_was_sent_before_it_was_found_out_is_sent_again():
    """Its refusal comes when another call has its answer, and so the form that all use is proved."""
    refused, answered = [], asyncio.Event()

    class Slow:
        async def send(self, body):
            asked = json.loads(body)
            if "response_format" in asked:
                refused.append(body)
                if len(refused) == 1:
                    await answered.wait()
                return Reply(400, b"{}")
            ids = [json.loads(line)["id"] for line in asked["messages"][1]["content"].split("\n")[6:-1]]
            pairs = [{"id": name, "verdict": "same", "confidence": 1, "reason": "x"} for name in ids]
            asyncio.get_running_loop().call_later(0.05, answered.set)
            content = json.dumps({"pairs": pairs})
            return Reply(200, json.dumps({"choices": [{"message": {"content": content}}]}).encode())

        async def close(self):
            pass

    with VerdictStore(None) as store, Pool(Slow, "m", store, "r", Limits(concurrency=2)) as pool:
        assert all_given(answers(pool, questions(2)))


def test_markers_are_drawn_anew_for_every_request(scripted):
    with scripted.ScriptedServer(truth) as server, a_pool(server) as pool:
        server.keep_bodies = True
        answers(pool, questions(6))
    markers = {json.loads(body)["messages"][1]["content"].split("\n")[1] for body in server.bodies}
    assert len(markers) == 6


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'["same"]', b'["perhaps", 0.5, "x"]', b'["same", "0.5", "x"]', b"7", b"{}"]
)
def test_what_is_no_verdict_is_not_taken_for_one(body):
    assert from_body(body) is None


# --- what goes wrong

ANSWERED_IN_THE_END = {None, "duplicated", "shuffled"}


def test_the_faults_are_those_that_are_promised(scripted):
    assert len(scripted.FAULTS) >= 16


@pytest.mark.parametrize("which", range(21))
def test_each_fault_once_and_always(scripted, hasty, which):
    fault = scripted.FAULTS[which]
    asked = questions(4)
    with scripted.ScriptedServer(truth, fault=lambda n: fault if n < 2 else None) as server:
        timeout = 3.0 if fault in ("silent", "slow") else 20
        with a_pool(server, timeout=timeout) as pool:
            found = answers(pool, asked)
    lost = {"silent", "slow", "redirect"}  # those take all of a call's time, or are final
    assert all_given(found[:]) or fault in lost
    assert all_given(found[2:]) or fault in lost
    with scripted.ScriptedServer(truth, fault=lambda n: fault) as server, a_pool(server, timeout=1.0) as pool:
        found = answers(pool, asked)
    assert all_given(found) == (fault in ANSWERED_IN_THE_END)
    if fault not in ANSWERED_IN_THE_END:
        assert any(isinstance(answer, str) for got in found for answer in got)


def test_there_are_as_many_faults_as_are_tested(scripted):
    assert len(scripted.FAULTS) == 21


@pytest.mark.parametrize(
    "url", ["http://no-such-host.invalid/v1", "no url", "ftp://127.0.0.1/v1", "http://127.0.0.1:1/v1"]
)
def test_no_server_at_all(hasty, url):
    with a_pool(url) as pool:
        found = answers(pool, questions(12))
        assert not any(isinstance(answer, Verdict) for got in found for answer in got)
        assert pool.spent == Spent()


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("https://h:80", "https://h:80/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("http://h/a%2Fb?api-version=1&x=y", "http://h/a%2Fb/chat/completions?api-version=1&x=y"),
    ],
)
def test_a_url_is_asked_below_its_path_with_its_query(url, asked):
    assert HttpTransport(url, None, 1)._url == asked


def test_tls_to_a_server_without_it(scripted, hasty, monkeypatch):
    monkeypatch.setattr(transport_module, "_CONNECT_SECONDS", 0.3)
    with scripted.ScriptedServer(truth) as server, a_pool(server.url.replace("http:", "https:")) as pool:
        found = answers(pool, questions(3))
        assert not any(isinstance(answer, Verdict) for got in found for answer in got)


@pytest.mark.parametrize("half", [0, 1])
def test_seeded_mixes_of_faults(scripted, hasty, half):
    """200 of them in two tests; the seed that fails is named."""
    faults = [None, *(fault for fault in scripted.FAULTS if fault not in ("silent", "slow"))]
    for seed in range(half * MIXES // 2, (half + 1) * MIXES // 2):
        rng = random.Random(seed)
        share, some = rng.random(), rng.sample(faults, rng.randint(1, 6))
        plan = [rng.choice(some) if rng.random() < share else None for _ in range(400)]
        asked = questions(rng.randint(1, 12), rng.randint(1, 5))
        with scripted.ScriptedServer(truth, fault=plan.__getitem__) as server, VerdictStore(None) as store:
            with a_pool(
                server, store=store, timeout=rng.choice([0.5, 5]), concurrency=rng.randint(1, 6), rng=seed
            ) as pool:
                found = answers(pool, asked)
            for one, got in zip(asked, found, strict=True):
                kept = store.get(one.keys("m"))
                said = {
                    key: answer for key, answer in zip(one.keys("m"), got, strict=True) if isinstance(answer, Verdict)
                }
                assert {key: from_body(body) for key, body in kept.items()} == said, f"seed {seed}"
                for i, answer in enumerate(got):
                    right = "same" if i in (0, 2) else "different"
                    assert isinstance(answer, str) or answer.says == right, f"seed {seed}"
            assert max(server.answered.values(), default=1) == 1, f"seed {seed}"


@pytest.mark.parametrize(
    ("status", "word"), [(401, "GPUMATCH_LLM_API_KEY"), (403, "GPUMATCH_LLM_API_KEY"), (404, "--llm-model")]
)
def test_what_cannot_get_better_stops_at_once(status, word):
    sent = []

    class Refusing:
        async def send(self, body):
            sent.append(body)
            return Reply(status, b"{}")

        async def close(self):
            pass

    with VerdictStore(None) as store, Pool(Refusing, "m", store, "r", Limits(concurrency=2)) as pool:
        found = answers(pool, questions(10))
    assert all(word in answer for got in found for answer in got)
    assert len(sent) <= 2


def test_what_a_server_says_of_what_it_refuses_is_told_and_no_form_is_tried_twice(scripted, hasty):
    with scripted.ScriptedServer(truth, forms=()) as server, a_pool(server, concurrency=1) as pool:
        found = answers(pool, questions(20))
        tries = len(pool_module.FORMS) + limits_module.TRIP - 1 + len(limits_module.COOL_SECONDS)
        assert server.requests == tries
    said = 'the server says 400 ("response_format is not supported")'
    assert {got[0] for got in found} == {said, f"given up after 11 failures in a row, the last: {said}"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"context length is\\n2048"}}', "context length is 2048"),
        (b'{"error":"no\\u202e \\u001b[31msuch model"}', "no [31msuch model"),
        (b'{"object":"error","message":"too long"}', "too long"),
        (b'{"detail":[{"msg":"x"}]}', '{"detail": [{"msg": "x"}]}'),
        (b'{"error":{"code":7}}', '{"code": 7}'),
        (b"<html>\r\n413 Too Large\xff</html>", "<html> 413 Too Large\ufffd</html>"),
        (b'{"error":{"message":"sk-a/1 is no key; sk-a\\/1"}}', "(key) is no key; (key)"),
        (b'{"detail":["sk-a\\/1"]}', '{"detail": ["(key)"]}'),
        (b'"' + b"x" * 197 + b'sk-a/1 y"', "x" * 197 + "(ke"),
        (b"[" * 100_000, "[" * 200),
        (b"", ""),
    ],
)
def test_what_a_server_says_is_one_short_line_without_the_key(body, said):
    from pydantic import SecretStr

    assert transport_module._reason_in(body, SecretStr("sk-a/1")) == said


def test_a_dead_server_is_given_up(hasty):
    """tests/judge/test_limits.py has the pauses, and bench/judge_load.py the time that it takes in all."""
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with a_pool(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", concurrency=16) as pool:
            found = answers(pool, questions(300))
            # the calls under way when it tripped, and one probe after each while
            assert pool.told.sent <= limits_module.TRIP + 16 + 1 + len(limits_module.COOL_SECONDS)
    reasons = Counter(answer for got in found for answer in got)
    assert all("no connection" in reason for reason in reasons)
    assert any("given up" in reason for reason in reasons)


def test_a_server_that_recovers_is_asked_again(scripted, hasty):
    with scripted.ScriptedServer(truth, fault=lambda n: "503" if n < 9 else None) as server, a_pool(server) as pool:
        assert all_given(answers(pool, questions(30)))


def test_retry_after_is_honoured_by_all_calls(scripted):
    times = []

    def fault(n):
        times.append(time.monotonic())
        return "429 after" if n == 0 else None

    with scripted.ScriptedServer(truth, fault=fault) as server, a_pool(server, concurrency=1) as pool:
        assert all_given(answers(pool, questions(3)))
    assert times[1] - times[0] >= 0.05


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("-1", 0.0), ("x", None), ("", None), ("nan", None), ("1e9", 3600.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0)],
)  # fmt: skip
def test_retry_after_in_all_its_forms(text, seconds):
    assert pool_module._retry_after({"retry-after": text}) == seconds


# --- limits


def test_rates_a_minute(scripted):
    with scripted.ScriptedServer(truth) as server, a_pool(server, requests=600) as pool:
        begun = time.monotonic()
        answers(pool, questions(25))
        assert time.monotonic() - begun >= 24 / 10 - 1.0


def test_a_deadline_for_the_run(scripted):
    with scripted.ScriptedServer(truth, latency=0.5) as server, a_pool(server, concurrency=1, deadline=3.0) as pool:
        found = answers(pool, questions(20))
    given = sum(isinstance(got[0], Verdict) for got in found)
    assert 1 <= given <= 6
    assert any("--llm-deadline" in str(got[0]) for got in found)


@pytest.mark.parametrize(
    "budget",
    [Budget(calls=5), Budget(tokens=4000), Budget(money=0.02, price=Price(5.0, 10.0))],
    ids=["calls", "tokens", "money"],
)
def test_a_budget_is_never_exceeded(scripted, budget):
    one = questions(1)[0]
    cost = Spent(1, one.prompt_tokens, one.most_reply_tokens())
    with scripted.ScriptedServer(truth) as server, VerdictStore(None) as store:
        with a_pool(server, store=store, budget=budget) as pool:
            found = answers(pool, questions(30))
            spent = pool.spent
        # another process that goes on with the same run
        with a_pool(server, store=store, budget=budget) as pool:
            answers(pool, questions(30, start=100))
            assert pool.spent.calls <= spent.calls + 30
            assert budget.why_not(Spent(), pool.spent) == ""
    assert budget.why_not(Spent(), spent) == ""
    assert budget.why_not(spent, cost) or budget.calls is None
    assert 0 < spent.calls < 30
    assert server.requests >= spent.calls
    assert any("--llm" in answer for got in found for answer in got if isinstance(answer, str))


def test_what_a_server_did_not_take_costs_nothing(scripted, hasty):
    def busy(n):
        return "429" if n % 2 == 0 else None

    with scripted.ScriptedServer(truth, fault=busy) as server, a_pool(server, concurrency=1) as pool:
        answers(pool, questions(4))
        assert pool.spent.calls == 4
    with scripted.ScriptedServer(truth, fault=lambda n: "500") as server, a_pool(server, concurrency=1) as pool:
        answers(pool, questions(1))
        assert pool.spent.calls == server.requests == pool_module.ATTEMPTS
        assert pool.spent.reply == 0


def test_a_call_s_time_begins_when_it_is_sent(scripted):
    """Those that wait for others are not over before their turn has come."""
    with scripted.ScriptedServer(truth, latency=0.1) as server, a_pool(server, concurrency=2, timeout=2.0) as pool:
        assert all_given(answers(pool, questions(60)))  # three seconds in all
    with scripted.ScriptedServer(truth) as server, a_pool(server, concurrency=4, timeout=2.0, requests=1200) as pool:
        assert all_given(answers(pool, questions(70)))


def test_a_budget_that_ends_with_the_probe_holds_nobody_up(monkeypatch):
    """The call that may ask whether the server is well again can be one that there is no money for."""
    monkeypatch.setattr(limits_module, "COOL_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setattr(pool_module, "ATTEMPTS", 1)

    class Failing:
        async def send(self, body):
            raise TransportError("no", reached=True)

        async def close(self):
            pass

    budget = Budget(calls=limits_module.TRIP)
    with VerdictStore(None) as store, Pool(Failing, "m", store, "r", Limits(concurrency=2), budget) as pool:
        found = answers(pool, questions(limits_module.TRIP + 6))
    reasons = [got[0] for got in found]
    assert reasons[: limits_module.TRIP] == ["no"] * limits_module.TRIP
    assert all("--llm-max-calls" in reason for reason in reasons[limits_module.TRIP :])


def test_what_nobody_has_thought_of_is_a_reason_without_its_text():
    class Broken:
        async def send(self, body):
            raise ValueError("Illegal header value b'Bearer sk-secret'")

        async def close(self):
            pass

    with VerdictStore(None) as store, Pool(Broken, "m", store, "r", Limits(concurrency=2)) as pool:
        found = answers(pool, questions(3))
    assert {answer for got in found for answer in got} == {"an error of the program: ValueError"}


@pytest.mark.parametrize("fails", ["put", "spend"])
def test_a_store_that_fails_ends_the_asking_and_loses_nothing_that_was_paid_for(scripted, fails, monkeypatch):
    calls = []

    def refuses(self, *given):
        calls.append(given)
        raise CacheError("cannot write verdicts: disk full")

    monkeypatch.setattr(VerdictStore, fails, refuses)
    with scripted.ScriptedServer(truth) as server:
        with a_pool(server, concurrency=2, budget=Budget(calls=99)) as pool:
            found = answers(pool, questions(30))
        paid = server.requests
    given = [got for got in found if all_given([got])]
    assert len(given) == paid == pool.told.sent == pool.spent.calls
    assert paid == 0 if fails == "spend" else 1 <= paid <= 4
    assert {why for got in found if got not in given for why in got} == {
        "verdicts cannot be kept: cannot write verdicts: disk full"
    }
    assert sum(given != ({},) for given in calls) == max(1, paid)  # at the end there is one more try


# --- stopping


def test_leaving_stops_what_is_under_way_at_once(scripted):
    before = threading.active_count()
    with scripted.ScriptedServer(truth, latency=30) as server:
        with a_pool(server) as pool:
            futures = [pool.ask(one) for one in questions(50)]
            while not server.in_flight:
                time.sleep(0.01)
        assert server.answered.total() < 200  # nobody waited for the latency
        assert all(future.done() for future in futures)
    assert threading.active_count() <= before + 1


def test_memory_does_not_grow_with_the_number_of_candidates(scripted):
    """Peak traced memory of 64 and of 384 questions, asked 64 at a time as a run does."""
    import tracemalloc

    peaks = []
    with scripted.ScriptedServer(truth) as server, a_pool(server, concurrency=8) as pool:
        answers(pool, questions(64, start=10**6))
        for n in (1, 6):
            tracemalloc.start()
            for start in range(n):
                answers(pool, questions(64, start=64 * start))
                server.pairs.clear()  # what the server counts is in this process too
                server.answered.clear()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20


def test_a_transport_that_is_cancelled_lets_the_next_probe(hasty):
    """A probe whose time is over must not hold the breaker for ever."""
    sent = itertools.count()

    class Hanging:
        async def send(self, body):
            n = next(sent)
            if n < limits_module.TRIP:
                raise TransportError("no", reached=False)
            return Reply(200, json.dumps({"choices": [{"message": {"content": "{}"}}]}).encode())

        async def close(self):
            pass

    with VerdictStore(None) as store, Pool(Hanging, "m", store, "r", Limits(concurrency=16, timeout=8)) as pool:
        answers(pool, questions(20))  # and comes to an end
        assert next(sent) > limits_module.TRIP
