"""Export and import."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import json
from typing import Any

import pytest

from myllm_core.errors import InvalidRequest, SessionConflict
from myllm_core.session_store import SessionStore
from myllm_core.testing.session_store.given import branched_session, said, texts, turn


class DocumentTests:
    """Tests of ``export`` and ``import_``."""

    def test_an_export_makes_the_same_session_under_another_id(self, store: SessionStore) -> None:
        branched_session(store)
        document = json.loads(json.dumps(store.export("s"), allow_nan=False))
        copy = store.import_(document, "copy")
        original = store.get("s")
        assert (copy.id, copy.title, copy.model, copy.message_count) == ("copy", "talk", "m", 5)
        assert (copy.created_at, copy.updated_at) == (original.created_at, original.updated_at)
        assert store.get("copy") == copy
        assert [(item.message, item.status, item.meta, item.created_at) for item in store.path("copy")] == [
            (item.message, item.status, item.meta, item.created_at) for item in store.path("s")
        ]
        assert store.export("copy") == {**store.export("s"), "id": "copy"}

    def test_an_export_brings_a_deleted_session_back(self, store: SessionStore) -> None:
        tip = branched_session(store)
        document = store.export("s")
        store.delete("s")
        session = store.import_(document)
        assert session.id == "s"
        assert store.export("s") == document
        assert len(store.search("question")) == 1
        assert session.tip is not None
        assert session.tip > tip
        store.append("s", [said("go on")], parent=session.tip, key="next")
        assert texts(store.path("s")) == ["question", "new answer", "more", "go on"]

    def test_a_retry_after_an_import_writes_nothing(self, store: SessionStore) -> None:
        branched_session(store)
        session = store.import_(store.export("s"), "copy")
        store.append("copy", turn("question", "answer"), parent=session.tip, key="1")
        assert store.get("copy").message_count == session.message_count

    def test_an_import_under_a_taken_id_is_a_conflict(self, store: SessionStore) -> None:
        branched_session(store)
        before = store.export("s")
        store.create("t")
        for session_id in (None, "s", "t"):
            with pytest.raises(SessionConflict):
                store.import_(before, session_id)
        assert store.export("s") == before
        assert store.path("t") == []

    def test_a_document_made_by_hand_is_taken(self, store: SessionStore) -> None:
        message = {"role": "user", "content": "hi", "parent": None, "key": "1"}
        document = {"format": "myllm-session", "version": 1, "id": "hand", "tip": 0, "messages": [message]}
        assert store.import_(document).message_count == 1
        assert texts(store.path("hand")) == ["hi"]

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ((), []),
            ((), None),
            ((), {}),
            (("format",), "other"),
            (("version",), 3),
            (("version",), "1"),
            (("version",), None),
            (("id",), "../up"),
            (("id",), ""),
            (("id",), "a" * 129),
            (("id",), 7),
            (("title",), None),
            (("surprise",), 1),
            (("tip",), 5),
            (("tip",), -1),
            (("tip",), "0"),
            (("tip",), True),
            (("created_at",), "yesterday"),
            (("created_at",), "2026-01-01T00:00:00"),
            (("messages",), None),
            (("messages",), {}),
            (("messages",), ["hi"]),
            (("messages", 0, "parent"), 0),
            (("messages", 1, "parent"), 1),
            (("messages", 1, "parent"), 4),
            (("messages", 1, "parent"), -1),
            (("messages", 1, "role"), "wizard"),
            (("messages", 1, "content"), None),
            (("messages", 1, "content"), ["text"]),
            (("messages", 1, "content"), "\ud800"),
            (("messages", 1, "status"), "fine"),
            (("messages", 1, "key"), ""),
            (("messages", 1, "meta"), []),
            (("messages", 1, "meta"), {"x": float("nan")}),
            (("messages", 1, "meta"), {"x": b"bytes"}),
            (("messages", 1, "tool_calls"), [{"id": "i", "name": "n"}]),
            (("messages", 1, "tool_calls"), [{"id": "i", "name": "n", "arguments": {}}]),
            (("messages", 1, "surprise"), 1),
            (("messages", 1, "images"), [{"data": "!", "type": "image/png"}]),
            (("messages", 1, "images"), [{"data": "aGVsbG8=", "type": "image/png"}]),
        ],
        ids=ascii,
    )
    def test_a_wrong_document_is_refused_whole(
        self, store: SessionStore, place: tuple[str | int, ...], value: object
    ) -> None:
        branched_session(store)
        document: Any = store.export("s")
        document["id"] = "new"
        if place:
            part = document
            for step in place[:-1]:
                part = part[step]
            part[place[-1]] = value
        else:
            document = value
        with pytest.raises(InvalidRequest):
            store.import_(document)
        assert [session.id for session in store.list_sessions()] == ["s"]
