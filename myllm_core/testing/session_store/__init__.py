"""What every session store must do: the docstrings of ``SessionStore`` as tests.

::

    from myllm_core.testing import SessionStoreContract

    class TestMyStore(SessionStoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore.open("", tmp_path)   # each call opens the same data

The plugin must be installed (``pip install -e .``).
"""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest

from myllm_core.errors import SessionConflict, SessionNotFound
from myllm_core.session_store import SessionStore
from myllm_core.testing.session_store.declared import DeclaredTests
from myllm_core.testing.session_store.documents import DocumentTests
from myllm_core.testing.session_store.given import branched_session, said, texts, turn
from myllm_core.testing.session_store.images import ImageTests
from myllm_core.testing.session_store.search import SearchTests
from myllm_core.testing.session_store.threads import ThreadTests
from myllm_core.testing.session_store.tree import TreeTests
from myllm_core.testing.session_store.turns import TurnTests

OpenStore = Callable[[], SessionStore]

# Ids that a store with prefixes, patterns or caseless keys would mix up.
LOOK_ALIKES = ["a", "A", "a.", "a-", "a_", "a_b", "a.b", "axb", "aa", "a-b", "a--", "0", "00", "a" * 128, "a" * 127]


class SessionStoreContract(DeclaredTests, TurnTests, TreeTests, SearchTests, DocumentTests, ImageTests, ThreadTests):
    """Subclass it and give the fixture ``open_store``; pytest does the rest.

    A store that forgets when it is closed sets ``persists = False`` and gives the fixture ``store`` instead.
    """

    persists: ClassVar[bool] = True

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """A function that opens the store; every call opens the same data, empty at the start of a test."""
        if self.persists:
            pytest.fail("give the fixture open_store, or set persists = False and give the fixture store")
        pytest.skip("this store forgets when it is closed")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[SessionStore]:
        """An empty store."""
        store = open_store()
        yield store
        store.close()

    def test_create_gives_an_empty_session(self, store: SessionStore) -> None:
        session = store.create("s", model="smollm2", title="A talk")
        assert (session.id, session.model, session.title) == ("s", "smollm2", "A talk")
        assert (session.tip, session.message_count) == (None, 0)
        assert store.get("s") == session
        assert store.path("s") == []

    def test_create_again_returns_the_session_that_is_there(self, store: SessionStore) -> None:
        store.create("s", model="first", title="First")
        store.append("s", turn("q", "a"), parent=None, key="k")
        again = store.create("s", model="second", title="Second")
        assert again == store.get("s")
        assert (again.model, again.title, again.message_count) == ("first", "First", 2)

    def test_update_changes_only_what_is_given(self, store: SessionStore) -> None:
        store.create("s", model="m", title="t")
        assert store.update("s", title="new title").model == "m"
        session = store.update("s", model="new model")
        assert (session.title, session.model) == ("new title", "new model")
        assert store.get("s") == session

    def test_times_are_utc_and_close_to_now(self, store: SessionStore) -> None:
        session = store.create("s")
        [stored] = store.append("s", [said("q")], parent=None, key="k")
        for text in (session.created_at, session.updated_at, stored.created_at):
            time = datetime.fromisoformat(text)
            assert time.utcoffset() == timedelta(0)
            assert abs(datetime.now(time.tzinfo) - time) < timedelta(minutes=5)

    @pytest.mark.parametrize(
        "change",
        [
            lambda store, tip: store.append("s", [said("more")], parent=tip, key="k"),
            lambda store, tip: store.set_tip("s", None),
            lambda store, tip: store.update("s"),
        ],
        ids=["append", "set_tip", "update"],
    )
    def test_each_change_is_the_last_one(self, store: SessionStore, change: Callable[[SessionStore, Any], Any]) -> None:
        branched_session(store)
        old = "2020-01-31T12:00:00+00:00"
        document = store.export("s") | {"created_at": old, "updated_at": old}
        store.delete("s")
        change(store, store.import_(document).tip)
        changed = datetime.fromisoformat(store.get("s").updated_at)
        assert datetime.now(changed.tzinfo) - changed < timedelta(minutes=5), "sessions are deleted for their age by it"
        assert store.get("s").created_at == old

    def test_delete_takes_the_session_and_its_messages_and_nothing_else(self, store: SessionStore) -> None:
        for session_id in ("gone", "kept"):
            store.create(session_id)
            store.append(session_id, turn("purple question", "answer"), parent=None, key="k")
        store.delete("gone")
        with pytest.raises(SessionNotFound):
            store.get("gone")
        assert [session.id for session in store.list_sessions()] == ["kept"]
        assert [session.id for session, _ in store.search("purple")] == ["kept"]
        assert texts(store.path("kept")) == ["purple question", "answer"]

    def test_an_id_can_be_used_again_after_delete(self, store: SessionStore) -> None:
        store.create("s", title="old")
        [old] = store.append("s", [said("old")], parent=None, key="k")
        store.delete("s")
        assert store.create("s").title == ""
        [new] = store.append("s", [said("new")], parent=None, key="k")
        assert new.id > old.id
        assert texts(store.path("s")) == ["new"]

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.get("none"),
            lambda store: store.append("none", [said("q")], parent=None, key="k"),
            lambda store: store.turn("none", "k"),
            lambda store: store.path("none"),
            lambda store: store.path("none", 1),
            lambda store: store.set_tip("none", None),
            lambda store: store.update("none", title="t"),
            lambda store: store.delete("none"),
            lambda store: store.export("none"),
        ],
        ids=["get", "append", "turn", "path", "path-tip", "set_tip", "update", "delete", "export"],
    )
    def test_an_unknown_session_is_not_found(self, store: SessionStore, call: Callable[[SessionStore], Any]) -> None:
        store.create("other")
        with pytest.raises(SessionNotFound):
            call(store)
        assert [session.id for session in store.list_sessions()] == ["other"]

    def test_look_alike_ids_are_different_sessions(self, store: SessionStore) -> None:
        for session_id in LOOK_ALIKES:
            store.create(session_id)
            store.append(session_id, [said(f"I am {session_id}")], parent=None, key="k")
        store.delete("a_b")
        for session_id in LOOK_ALIKES:
            if session_id != "a_b":
                assert texts(store.path(session_id)) == [f"I am {session_id}"]
                assert store.get(session_id).id == session_id

    def test_close_may_be_called_twice(self, store: SessionStore) -> None:
        store.create("s")
        store.close()
        store.close()

    def test_everything_is_there_after_closing_and_opening(self, open_store: OpenStore) -> None:
        store = open_store()
        branched_session(store)
        before = (store.get("s"), store.path("s"), store.export("s"), store.list_sessions())
        store.close()
        store = open_store()
        try:
            assert (store.get("s"), store.path("s"), store.export("s"), store.list_sessions()) == before
            assert len(store.search("question")) == 1
            first = store.append("s", turn("question", "answer"), parent=None, key="1")
            assert store.get("s") == before[0]
            [last] = store.append("s", [said("on")], parent=before[0].tip, key="after")
            assert last.id > max(item.id for item in before[1] + first)
        finally:
            store.close()

    def test_two_open_stores_share_the_data(self, open_store: OpenStore) -> None:
        one = open_store()
        two = open_store()
        try:
            one.create("s")
            first = one.append("s", turn("q1", "a1"), parent=None, key="1")
            assert two.append("s", turn("q1", "a1"), parent=None, key="1") == first
            second = two.append("s", turn("q2", "a2"), parent=first[-1].id, key="2")
            assert one.path("s") == first + second
            with pytest.raises(SessionConflict):
                one.append("s", turn("stale", "stale"), parent=first[-1].id, key="3")
        finally:
            one.close()
            two.close()
