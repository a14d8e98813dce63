"""Bytes of a server's reply in, verdicts out: whatever is not a verdict on something that was asked is dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpumatch.text import plain_text

WORDS_CHARS = 200
# How far the end of a text is looked through for JSON, ten times what all verdicts take, and how often in vain.
_LOOKED_THROUGH, _MOST_FAILURES = 100_000, 200
# What thoughts end with where a server leaves them in the reply, and how a JSON object with members begins.
_THOUGHT = "</think>"
_OBJECT = re.compile(r'\{[ \t\r\n]*"')
_DECODER = json.JSONDecoder()
Says = Literal["same", "related", "different"]


@dataclass(frozen=True)
class Verdict:
    """What a model says of one candidate.

    sure: how sure it says it is, in [0, 1]; shown, and not counted with: models are poor judges of that.
    words: its reason, at most WORDS_CHARS characters without control characters; the model's words, never gpumatch's.
    """

    says: Says
    sure: float
    words: str


class BadReply(Exception):
    """The reply holds no verdicts that can be read; the message says why."""


class _Pair(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str = Field(max_length=40)
    verdict: Says
    confidence: float = Field(ge=0, le=1)
    reason: str = ""


def schema_of(ids: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of a reply to some ids: one entry for each, or small models stop after the first."""
    pair = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "enum": list(ids)},
            "verdict": {"type": "string", "enum": ["same", "related", "different"]},
            "confidence": {"type": "number"},
            "reason": {"type": "string"},
        },
        "required": ["id", "verdict", "confidence", "reason"],
        "additionalProperties": False,
    }
    pairs = {"type": "array", "items": pair, "minItems": len(ids), "maxItems": len(ids)}
    return {"type": "object", "properties": {"pairs": pairs}, "required": ["pairs"], "additionalProperties": False}


@dataclass(frozen=True)
class Usage:
    """Tokens that a server says it has counted, or None where it says nothing."""

    prompt: int | None
    reply: int | None


def read_reply(body: bytes, asked: Collection[str]) -> tuple[dict[str, Verdict], Usage]:
    """Return a verdict for each id that was asked and answered once, or alike each time.

    Raises:
        BadReply: there is none.
    """
    envelope = _json(body)
    try:
        content = envelope["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BadReply("no choices[0].message.content") from None
    if not isinstance(content, str):
        raise BadReply("choices[0].message.content is no text")
    return _verdicts(content, asked), _usage(envelope)


def _verdicts(content: str, asked: Collection[str]) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    torn: set[str] = set()
    for one in _pairs_in(content)[: 10 * len(asked)]:
        try:
            pair = _Pair.model_validate(one)
        except ValidationError:
            continue
        if pair.id not in asked:
            continue
        if pair.id in found and found[pair.id].says != pair.verdict:
            torn.add(pair.id)
        words = plain_text(pair.reason, WORDS_CHARS)
        found.setdefault(pair.id, Verdict(pair.verdict, round(pair.confidence, 3), words))
    found = {name: verdict for name, verdict in found.items() if name not in torn}
    if not found:
        raise BadReply("the reply has no verdict on anything that was asked")
    return found


def _pairs_in(content: str) -> list[Any]:
    """Return the pairs of the last JSON object that has any: models wrap it in thoughts, words, drafts and fences."""
    text = content.rpartition(_THOUGHT)[2][-_LOOKED_THROUGH:].encode("utf-8", "replace").decode()
    found: list[Any] | None = None
    end = failures = 0
    while (begin := _OBJECT.search(text, end)) and failures < _MOST_FAILURES:
        try:
            value, end = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            end, failures = begin.end(), failures + 1
        else:
            found = value["pairs"] if isinstance(value.get("pairs"), list) else found
    if found is None:
        raise BadReply("the reply has no list of pairs")
    return found


def _json(data: bytes) -> Any:  # noqa: ANN401 - anything
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadReply("not JSON") from None


def _usage(envelope: Any) -> Usage:  # noqa: ANN401 - anything
    usage = envelope.get("usage") if isinstance(envelope, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, reply = (n if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 10**9 else None for n in counts)
    return Usage(prompt, reply)
