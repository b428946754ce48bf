"""The list of sessions and the search in them."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import pytest

from myllm_core.errors import InvalidRequest
from myllm_core.session_store import SessionStore
from myllm_core.testing.session_store.given import ODD_TEXTS, said, turn


class SearchTests:
    """Tests of ``list_sessions`` and ``search``."""

    def test_the_list_has_the_last_changed_first(self, store: SessionStore) -> None:
        for session_id in ("one", "two", "three", "four"):
            store.create(session_id)
        assert [session.id for session in store.list_sessions()] == ["four", "three", "two", "one"]
        store.append("two", [said("q")], parent=None, key="k")
        store.update("one", title="t")
        store.create("four")
        store.append("two", [said("q")], parent=None, key="k")
        assert [session.id for session in store.list_sessions()] == ["one", "two", "four", "three"]
        assert store.list_sessions()[0] == store.get("one")

    def test_the_list_has_pages(self, store: SessionStore) -> None:
        for number in range(7):
            store.create(f"s{number}")
        pages = [store.list_sessions(limit=3, offset=offset) for offset in (0, 3, 6, 9)]
        ids = [[session.id for session in page] for page in pages]
        assert ids == [["s6", "s5", "s4"], ["s3", "s2", "s1"], ["s0"], []]
        assert store.list_sessions(limit=0) == []

    def test_search_finds_words_in_messages_and_titles(self, store: SessionStore) -> None:
        store.create("message", title="x")
        store.append("message", turn("The quick brown fox", "jumps"), parent=None, key="k")
        store.create("title", title="A quick talk")
        store.create("neither", title="slow")
        assert {session.id for session, _ in store.search("quick")} == {"message", "title"}
        assert {session.id for session, _ in store.search("JUMPS")} == {"message"}
        [(session, excerpt)] = store.search("fox brown")
        assert session == store.get("message")
        assert "fox" in excerpt.casefold()

    def test_search_wants_all_words_in_one_text(self, store: SessionStore) -> None:
        store.create("s", title="green")
        store.append("s", turn("red apples", "blue pears"), parent=None, key="k")
        assert store.search("red yellow") == []
        assert store.search("red pears") == []
        assert len(store.search("pears blue")) == 1
        assert store.search("") == store.search("  \n") == []

    def test_search_gives_each_session_once_and_at_most_the_limit(self, store: SessionStore) -> None:
        for number in range(5):
            store.create(f"s{number}")
            store.append(f"s{number}", turn("mango mango", "mango"), parent=None, key="k")
        assert sorted(session.id for session, _ in store.search("mango")) == ["s0", "s1", "s2", "s3", "s4"]
        assert len(store.search("mango", limit=2)) == 2
        assert store.search("mango", limit=0) == []

    def test_search_follows_changes_of_the_title(self, store: SessionStore) -> None:
        store.create("s", title="elephant")
        store.update("s", title="giraffe")
        assert store.search("elephant") == []
        assert [session.id for session, _ in store.search("giraffe")] == ["s"]

    def test_a_long_text_has_a_short_excerpt(self, store: SessionStore) -> None:
        store.create("s", title="t")
        store.append("s", [said("straw " * 20_000 + "needle " + "straw " * 20_000)], parent=None, key="k")
        [(_, excerpt)] = store.search("needle")
        assert "needle" in excerpt
        assert len(excerpt) < 1000

    @pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
    def test_search_takes_text_never_a_pattern(self, store: SessionStore, text: str) -> None:
        store.create("s", title="plain")
        store.append("s", turn("alpha bravo", "charlie"), parent=None, key="k")
        try:
            found = store.search(text)
        except InvalidRequest:
            found = []
        assert found == []
        assert len(store.search("alpha")) == 1
