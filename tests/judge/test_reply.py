"""A reply is verdicts on what was asked, or a reason why there are none; nothing else comes through."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumatch.judge.reply import WORDS_CHARS, BadReply, Usage, Verdict, read_reply


def reply(content, usage=None):
    content = content if isinstance(content, str) else json.dumps(content)
    told = {"choices": [{"message": {"content": content}}]} | ({} if usage is None else {"usage": usage})
    return json.dumps(told).encode()


def pair(name, verdict="same", confidence=0.5, reason="why"):
    return {"id": name, "verdict": verdict, "confidence": confidence, "reason": reason}


def read(content, asked=("t1", "t2"), usage=None):
    return read_reply(reply(content, usage), asked)


def test_verdicts_come_back_in_any_order_and_any_dress():
    pairs = [pair("t2", "different", 1), pair("t1")]
    wanted = {"t1": Verdict("same", 0.5, "why"), "t2": Verdict("different", 1.0, "why")}
    text = json.dumps({"pairs": pairs})
    for content in (text, f"```json\n{text}\n```", f"Here: {text} Bye"):
        assert read(content)[0] == wanted
    assert read({"pairs": pairs * 2})[0] == wanted
    assert read({"pairs": [*pairs, {"id": "t1"}, 7, None, "x"], "more": 1})[0] == wanted


def test_what_is_thought_and_drafted_before_the_verdicts_is_passed_over():
    """Brackets in prose, examples, drafts and words behind; the last object with pairs counts."""
    wanted, final = {"t1": Verdict("same", 0.5, "why {a}")}, json.dumps({"pairs": [pair("t1", reason="why {a}")]})
    draft = json.dumps({"pairs": [pair("t1", "different"), pair("t2")]})
    thoughts = [
        f"<think>\nthe set {{a, b}} fits\n</think>\n\n{final}",
        f"<think>{draft}</think><think>{{</think>{final}",
        f"{{id: t1}} {{}} {{{draft} {draft[:-20]} so:\n{final}\n``` as {{a, b}}" + ' and {"a": 1}, {"pairs": 1}',
        "{a, b} " * 1000 + final,
        '{"note": {"of": 1}, ' + final[1:],
    ]
    for content in thoughts:
        assert read(content)[0] == wanted, content[:100]
    with pytest.raises(BadReply):  # thoughts alone are no answer
        read(f"<think>{draft}</think>{final[:-3]}")


def test_unknown_ids_are_dropped_and_contradictions_too():
    assert read({"pairs": [pair("t1"), pair("t9"), pair("customers.csv")]})[0].keys() == {"t1"}
    assert read({"pairs": [pair("t1"), pair("t2"), pair("t1", "different")]})[0].keys() == {"t2"}
    with pytest.raises(BadReply, match="no verdict on anything that was asked"):
        read({"pairs": [pair("t1"), pair("t1", "related")]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "SAME!"}, {"verdict": None}, {"confidence": 1.5}, {"confidence": "high"}, {"confidence": None},
        {"confidence": float("nan")}, {"id": 7}, {"id": ["t1"]}, {"verdict": ["same"]}, {"reason": {"a": 1}},
    ],
)  # fmt: skip
def test_a_pair_of_the_wrong_form_is_no_verdict(wrong):
    with pytest.raises(BadReply):
        read({"pairs": [pair("t1") | wrong]})
    assert read({"pairs": [pair("t1") | wrong, pair("t2")]})[0].keys() == {"t2"}


@pytest.mark.parametrize(
    "content",
    ["", "no", "{", "}{", "{}", "[]", '{"pairs": 3}', '{"pairs": []}', '{"pairs": {}}', "[" * 99_999, '{"a":' * 99_999,
     '{"' * 1_000_000, '{"a":[' * 99_999, '{"a":{"b":"' * 99_999, "{" + " {" * 1_000_000],
)  # fmt: skip
def test_no_verdicts_at_all(content):
    with pytest.raises(BadReply):
        read(content)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"null", b"[]", b'{"choices":[]}', b'{"choices":[{"message":{}}]}',
             b'{"choices":{"0":1}}', b'{"choices":[{"message":{"content":null}}]}', b'{"error":"x"}', b"[" * 200_000],
)  # fmt: skip
def test_no_reply_at_all(body):
    with pytest.raises(BadReply):
        read_reply(body, ["t1"])


@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["choices", "message", "content", "pairs", "id", "usage"]) | st.text(), x)).map(lambda x: json.dumps(x).encode()))  # fmt: skip # noqa: E501
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_verdicts_or_a_reason(body):
    try:
        found, usage = read_reply(body, ["t1"])
    except BadReply:
        return
    assert found.keys() == {"t1"}
    assert isinstance(usage, Usage)


def test_words_are_short_and_cannot_do_anything():
    words = "a\u202eb\x1b[31m\u200bc\nd\te" + "x" * 5000
    found = read({"pairs": [pair("t1", reason=words)]})[0]["t1"].words
    assert len(found) <= WORDS_CHARS
    assert found.startswith("ab[31mc d e")
    assert all(unicodedata.category(one)[0] != "C" for one in found)


def test_usage_is_believed_only_where_it_can_be():
    usage = {"prompt_tokens": 7, "completion_tokens": -1}
    assert read({"pairs": [pair("t1")]}, usage=usage)[1] == Usage(7, None)
    assert read({"pairs": [pair("t1")]}, usage={"prompt_tokens": True})[1] == Usage(None, None)
    assert read({"pairs": [pair("t1")]}, usage=[1])[1] == Usage(None, None)
