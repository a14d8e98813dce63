"""A language model's server for tests and benchmarks: an OpenAI-compatible address on this machine, scripted.

    with ScriptedServer(decide, latency=0.3) as server:
        …  server.url  …  server.most_in_flight

`decide` is asked for a verdict on every candidate; `fault` says what goes wrong with the n-th request. It counts what
it has seen: requests, requests in flight, and how often it was asked about each pair of texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Everything that can go wrong with one request, by name; what the server itself does, and what the reply holds.
OF_SERVERS = (
    "429",
    "429 after",
    "500",
    "502",
    "503",
    "504",
    "reset",
    "silent",
    "slow",
    "half",
    "gzip",
    "length",
    "redirect",
)
OF_REPLIES = ("no json", "wrong schema", "duplicated", "shuffled", "10 MB", "no content", "unknown ids", "torn")
FAULTS = (*OF_SERVERS, *OF_REPLIES)
_LOOP_SECONDS = 2.0


@dataclass(frozen=True)
class Asked:
    """One request as the server reads it: the texts of the query and of each candidate, by its id."""

    system: str
    query: str
    candidates: dict[str, str]
    wanted: dict[str, Any]


Decide = Callable[[Asked, str, str], str]


class ScriptedServer:
    """A context manager; it serves in a thread of its own.

    Args:
        decide: of a request, a candidate's id and its text, returns same, related or different.
        latency: seconds that every reply takes.
        fault: of a request's number, from 0 on, returns one of FAULTS or None.
        reply: of a request, returns the whole content of the reply, in place of what `decide` says.
        forms, refusal: how replies can be held to JSON, and the status that another way is refused with.
    """

    def __init__(
        self,
        decide: Decide = lambda asked, name, text: "same",
        latency: float = 0.0,
        fault: Callable[[int], str | None] = lambda n: None,
        reply: Callable[[Asked], str] | None = None,
        forms: tuple[str, ...] = ("json_schema", "json_object+schema", "json_object", "none"),
        refusal: int = 400,
    ) -> None:
        self.decide, self.latency, self.fault, self.reply, self.forms = decide, latency, fault, reply, forms
        self.refusal = refusal
        self.requests = self.in_flight = self.most_in_flight = 0
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.keys: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        self.keep_bodies = False
        self._writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()

    def __enter__(self) -> ScriptedServer:
        """Start to serve."""
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24, backlog=512)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, whoever still waits."""

        async def stop() -> None:
            self._server.close()
            for _ in range(10):  # who has just been let in has a socket, which to cancel now would leave open
                await asyncio.sleep(0)
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for writer in self._writers:  # to close one whose reply nobody reads takes for ever
                writer.transport.abort()
            await asyncio.sleep(0)

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(stop(), self._loop).result(_LOOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LOOP_SECONDS)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                n, self.requests = self.requests, self.requests + 1
                try:
                    if self.keep_bodies:
                        self.bodies.append(body)
                    key = head.partition("authorization: bearer ")[2].partition("\r\n")[0]
                    self.keys[key] += 1
                    begun = self._loop.time()
                    data, after = self._answer(body, self.fault(n))
                    await asyncio.sleep(begun + self.latency - self._loop.time())
                finally:
                    self.in_flight -= 1
                await self._write(writer, data, after)
                if after:
                    break
        with contextlib.suppress(Exception):
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, after: str) -> None:
        if after == "reset":
            writer.transport.abort()
            return
        if after == "silent":
            await asyncio.sleep(3600)
        if after == "slow":
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)
        else:
            writer.write(data)
            await writer.drain()

    def _answer(self, body: bytes, fault: str | None) -> tuple[bytes, str]:
        """Return the bytes to send, and what to do besides: an empty text, or how to end the connection."""
        asked = _read(json.loads(body))
        form = asked.wanted.get("response_format", {})
        if form.get("type", "none") + ("+schema" if "schema" in form else "") not in self.forms:
            return _http(self.refusal, b'{"error":{"message":"response_format is not supported"}}'), ""
        for text in asked.candidates.values():
            self.pairs[asked.query, text] += 1
        if fault in _INSTEAD:
            return _INSTEAD[fault]
        data = self._reply(asked, len(body), fault)
        if fault in ("half", "length"):
            return _http(200, data, length=len(data) + 100)[: -1 if fault == "length" else -len(data) // 2], fault
        if fault is None or fault in ("duplicated", "shuffled"):
            for text in asked.candidates.values():
                self.answered[asked.query, text] += 1
        return _http(200, data), "slow" if fault == "slow" else ""

    def _reply(self, asked: Asked, n: int, fault: str | None) -> bytes:
        """Return the body of a reply, with what is wrong with it."""
        pairs = [self._pair(asked, name, text) for name, text in asked.candidates.items()]
        if fault in ("duplicated", "torn"):
            turned = {"same": "different", "different": "same", "related": "same"}
            pairs += [pair | {"verdict": turned[pair["verdict"]]} if fault == "torn" else pair for pair in pairs]
        if fault == "shuffled":
            pairs = pairs[::-1]
        if fault == "unknown ids":
            pairs = [pair | {"id": f"x{pair['id']}"} for pair in pairs]
        content = json.dumps({"verdicts" if fault == "wrong schema" else "pairs": pairs})
        if self.reply is not None:
            content = self.reply(asked)
        told: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        told["usage"] = {"prompt_tokens": n // 4, "completion_tokens": len(content) // 4}
        data = json.dumps({"choices": []} if fault == "no content" else told).encode()
        if fault == "no json":
            data = data[: len(data) // 2] + b"}"
        return b" " * 10_000_000 + data if fault == "10 MB" else data

    def _pair(self, asked: Asked, name: str, text: str) -> dict[str, Any]:
        says = self.decide(asked, name, text)
        return {"id": name, "verdict": says, "confidence": 0.8, "reason": f"scripted: {says}"}


def _http(status: int, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    n = len(body) if length is None else length
    head = f"HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\ncontent-length: {n}\r\n{headers}\r\n"
    return head.encode() + body


# What some faults answer instead of a reply, and how they end the connection.
_INSTEAD = {code: (_http(int(code), b'{"error":"busy"}'), "") for code in ("429", "500", "502", "503", "504")} | {
    "429 after": (_http(429, b"{}", "retry-after: 0.05\r\n"), ""),
    "redirect": (_http(302, b"", "location: http://127.0.0.1:9/\r\n"), ""),
    "gzip": (_http(200, b"\x1f\x8bnothing of the kind", "content-encoding: gzip\r\n"), ""),
    "reset": (b"", "reset"),
    "silent": (b"", "silent"),
}


def _read(wanted: dict[str, Any]) -> Asked:
    system, user = (one["content"] for one in wanted["messages"])
    lines = user.split("\n")
    listed = {}
    for line in lines[6:-1]:
        about = json.loads(line)
        name = about.pop("id")
        listed[name] = json.dumps(about, ensure_ascii=False)
    return Asked(system, json.dumps(json.loads(lines[2]), ensure_ascii=False), listed, wanted)
