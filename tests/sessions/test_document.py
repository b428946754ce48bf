"""The export format: what a refused document is told, and that nothing is lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from myllm_core.errors import InvalidRequest
from myllm_core.session_store import check_session_id, title_from
from myllm_core.sessions.document import read_document

HAND_MADE: dict[str, Any] = {
    "format": "myllm-session",
    "version": 1,
    "id": "s",
    "tip": 1,
    "messages": [
        {"role": "user", "content": "hi", "parent": None, "key": "1"},
        {"role": "assistant", "content": "hello", "parent": 0, "key": "1"},
    ],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "chat"}, '"format" must be "myllm-session"'),
        ({"version": 3}, "newer myllm .*version 3.*update myllm"),
        ({"version": 0}, "version: Input should be 1 or 2"),
        ({"tip": 2}, "tip is 2, but there are only 2 messages"),
        ({"id": "a/b"}, "id: 'a/b' can't be a session id"),
        ({"created_at": "2026-01-01T00:00:00"}, "created_at: .*no time zone"),
        ({"extra": 1}, "extra: Extra inputs"),
        ({"messages": [{"role": "user", "content": "x", "parent": 0, "key": "1"}]}, "messages.0: its parent 0"),
        ({"messages": [{"role": "god", "content": "x", "parent": None, "key": "1"}]}, "messages.0.role: .*'system'"),
        ({"messages": [{"role": "user", "content": "x\ud800", "parent": None, "key": "1"}]}, "is no JSON"),
    ],
)
def test_the_error_says_where_and_what(change: dict[str, Any], message: str) -> None:
    document = {**HAND_MADE, "tip": None, **change}
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_document(document)
    assert "\n" not in caught.value.message


def test_a_wrong_new_id_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="can't be a session id"):
        read_document(HAND_MADE, "..\n")


def test_what_is_left_out_has_defaults() -> None:
    document = read_document(json.loads(json.dumps(HAND_MADE)), "other")
    assert (document.id, document.title, document.messages[1].status) == ("other", "", "complete")
    assert document.created_at.endswith("+00:00")


@pytest.mark.parametrize("session_id", ["a", "A-b_c.9", "..", "-rf", "a" * 128])
def test_ids_that_are_taken(session_id: str) -> None:
    assert check_session_id(session_id) == session_id


@pytest.mark.parametrize("session_id", ["", "a" * 129, "a b", "a\n", "a/b", "ä", "\x00", "\ud800", "a\u200b", "*", "١"])
def test_ids_that_are_refused_in_one_printable_line(session_id: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 128 characters") as caught:
        check_session_id(session_id)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Why?", "Why?"),
        ("\n \n  two\t words \nmore", "two words"),
        ("", ""),
        (" \n\t", ""),
        ("\x1b[31mred\x07\x9b", "[31mred"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("word " * 10**6, "word " * 11 + "word…"),
    ],
)
def test_titles(content: str, title: str) -> None:
    assert title_from(content) == title
