"""Sessions, messages and awkward texts for the tests of a session store."""

from __future__ import annotations

from myllm_core.session_store import NewMessage, SessionStore, StoredMessage
from myllm_core.types import Message, Role, ToolCall

# Text that is data everywhere: patterns, quotes, other languages' syntax, borders of encodings.
ODD_TEXTS = [
    "",
    " ",
    "\n",
    "%",
    "_",
    "*",
    "a*",
    '"',
    "'",
    "''; DROP TABLE messages; --",
    '") OR 1=1 --',
    "NEAR(a b)",
    "AND OR NOT",
    "-a ^b {c} d:e",
    "{{7*7}} ${HOME} %s {0}",
    "\\",
    "\\u0000",
    "\x00",
    "before\x00after",
    "\x1b[31mred\x1b[0m",
    "\r\n\t\u2028\u2029\u0085",
    "\ufeff\u200b\u202e",
    "e\u0301 \u00e9 \u212b \ufb01",
    "今日は、世界。ไทย ខ្មែរ العربية हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈\U0010ffff",
    "\ud800",
    "a\udfffb",
    "\ud83d\ude00",
]


def said(text: str, role: Role = "user") -> NewMessage:
    """A message to append."""
    return NewMessage(Message(role, text))


def turn(question: str, answer: str) -> list[NewMessage]:
    """A question and its answer."""
    return [said(question), said(answer, "assistant")]


def texts(path: list[StoredMessage]) -> list[str]:
    """The contents of a path's messages."""
    return [stored.message.content for stored in path]


def branched_session(store: SessionStore) -> int:
    """Five messages on two branches in the session ``s``; returns its tip."""
    store.create("s", model="m", title="talk")
    calls = (ToolCall("i", "look", '{"x": "é\\u0000"}'),)
    question, _ = store.append("s", turn("question", "answer"), parent=None, key="1")
    store.set_tip("s", question.id)
    new = NewMessage(Message("assistant", "new answer", "thinking", calls), "cancelled", {"usage": {"n": 1}})
    [answer] = store.append("s", [new], parent=question.id, key="2")
    more = NewMessage(Message("tool", "more", tool_call_id="i"))
    [tip] = store.append("s", [more], parent=answer.id, key="3")
    side = store.append("s", [said("not on the path")], parent=tip.id, key="4")
    assert side
    store.set_tip("s", tip.id)
    return tip.id
