"""Bytes of a request in, status and bytes of the reply out, over HTTP or whatever else stands in for it.

Knows nothing of verdicts, retries or budgets. Never follows a redirect, and never reads more than MOST_BYTES.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from gpumatch.text import plain_text

# A reply of MOST verdicts is some 10 kB.
MOST_BYTES = 2 * 2**20
SAID_CHARS = 200
_CONNECT_SECONDS = 5.0
_ENDPOINT = "/chat/completions"


@dataclass(frozen=True)
class Reply:
    """What a server has answered; header names in lower case.

    said: why it refused, in its own words; at most SAID_CHARS characters on one line, and never the key.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    said: str = ""


class TransportError(Exception):
    """No reply came; the message says why.

    reached: whether the request may have reached the server, and cost something.
    """

    def __init__(self, why: str, *, reached: bool) -> None:
        super().__init__(why)
        self.reached = reached


class Transport(Protocol):
    """Sends requests; many at once."""

    async def send(self, body: bytes) -> Reply:
        """Send a request and return the reply to it.

        Raises:
            TransportError: none came, or none that can be read.
        """

    async def close(self) -> None:
        """Let go of all connections."""


class HttpTransport:
    """An OpenAI-compatible server: POST url/chat/completions, with the url's query; the url may end so already."""

    def __init__(self, url: str, key: SecretStr | None, concurrency: int) -> None:
        import httpx2  # which runs that ask nobody do without

        self._http = httpx2
        self._key = key
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key is not None:
            headers["authorization"] = f"Bearer {key.get_secret_value()}"
        parts = urlsplit(url)
        base = parts.path.rstrip("/").removesuffix(_ENDPOINT).rstrip("/")
        self._url = parts._replace(path=base + _ENDPOINT).geturl()
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),  # who sends keeps the time
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            follow_redirects=False,
            verify=not url.lower().startswith("http:"),  # reading all certificates takes a while; http has none
        )

    async def send(self, body: bytes) -> Reply:
        """Send a request and return the reply to it."""
        http = self._http
        try:
            async with self._client.stream("POST", self._url, content=body) as answer:
                data = bytearray()
                async for piece in answer.aiter_bytes():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise TransportError(f"a reply of more than {MOST_BYTES:,} bytes", reached=True)
                headers = {name.lower(): value for name, value in answer.headers.items()}
                said = "" if answer.status_code == 200 else _reason_in(bytes(data), self._key)
                return Reply(answer.status_code, bytes(data), headers, said)
        except (http.ConnectError, http.ConnectTimeout, http.PoolTimeout, http.UnsupportedProtocol) as error:
            raise TransportError(f"no connection: {_said(error)}", reached=False) from None
        except (http.HTTPError, http.StreamError) as error:
            raise TransportError(_said(error), reached=True) from None
        except http.InvalidURL as error:
            raise TransportError(f"not a URL: {_said(error)}", reached=False) from None

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def _reason_in(body: bytes, key: SecretStr | None) -> str:
    """Return what a refusal says: error.message, error or message, or else all of it; some repeat the key in it."""
    told: Any = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        told = json.loads(told)
        for name in ("error", "message"):
            told = told.get(name, told) if isinstance(told, dict) else told
    text = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    if key is not None:
        text = text.replace(key.get_secret_value(), "(key)")
    return plain_text(text, SAID_CHARS)
