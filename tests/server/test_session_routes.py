"""Stored conversations over HTTP: renamed, forked, taken elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from support.server import LiveServer, StartServer


@pytest.fixture
def talk(live: LiveServer) -> str:
    """A session of two turns."""
    session = str(live.chat("one").json["session_id"])
    live.chat("two", session_id=session)
    return session


def said(live: LiveServer, session: str) -> list[str]:
    return [message["content"] for message in live.get(f"/api/sessions/{session}").json["messages"]]


def test_another_title_and_model(live: LiveServer, talk: str) -> None:
    changed = live.request("PATCH", f"/api/sessions/{talk}", {"title": "About numbers"})
    assert changed.status == 200 and changed.json["title"] == "About numbers"
    assert live.request("PATCH", f"/api/sessions/{talk}", {"model": "slow"}).json["model"] == "slow"
    shown = live.get(f"/api/sessions/{talk}").json
    assert (shown["title"], shown["model"]) == ("About numbers", "slow")
    for body in ({}, {"title": ""}, {"title": 5}, {"tip": 1}):
        assert live.request("PATCH", f"/api/sessions/{talk}", body).status == 422
    assert live.request("PATCH", "/api/sessions/nope", {"title": "x"}).code == "session_not_found"


def test_a_fork_goes_its_own_way(live: LiveServer, talk: str) -> None:
    whole = live.post(f"/api/sessions/{talk}/fork").json["id"]
    assert said(live, whole) == ["one", "one", "two", "two"]
    answer = live.post(f"/api/sessions/{talk}/fork", {"session_id": f"{talk}-2", "at": 2})
    assert answer.json["id"] == f"{talk}-2" and said(live, f"{talk}-2") == ["one", "one"]
    live.chat("three", session_id=f"{talk}-2")
    assert said(live, f"{talk}-2")[-1] == "three" and said(live, talk)[-1] == "two"
    assert live.post(f"/api/sessions/{talk}/fork", {"session_id": talk}).code == "session_conflict"
    assert live.post(f"/api/sessions/{talk}/fork", {"at": 5}).status == 400
    assert live.post(f"/api/sessions/{talk}/fork", {"at": 0}).status == 422
    assert live.post("/api/sessions/nope/fork").code == "session_not_found"


def test_a_session_moves_to_another_server(live: LiveServer, talk: str, start: StartServer) -> None:
    document = live.get(f"/api/sessions/{talk}/export").json
    assert document["format"] == "myllm-session" and len(document["messages"]) == 4
    with start() as other:
        assert other.post("/api/sessions/import", document).json["id"] == talk
        assert said(other, talk) == said(live, talk)
        assert other.post("/api/sessions/import", document).code == "session_conflict"
        assert other.post("/api/sessions/import?session_id=mine", document).json["id"] == "mine"
        assert other.get("/api/sessions/mine/export").json == document | {
            "id": "mine",
            "updated_at": other.get("/api/sessions/mine").json["updated_at"],
        }
        other.chat("three", session_id="mine")
        assert said(other, "mine")[-2:] == ["three", "three"]


@pytest.mark.parametrize("document", [{}, {"format": "x"}, {"format": "myllm-session", "version": 3}, [], "x"])
def test_what_is_no_session(live: LiveServer, document: Any) -> None:
    answer = live.post("/api/sessions/import", document)
    assert answer.status in (400, 422) and answer.code == "invalid_request"
    assert live.get("/api/sessions/nope/export").code == "session_not_found"
    assert live.post("/api/sessions/import?odd=1", {}).status == 422
