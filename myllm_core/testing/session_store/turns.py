"""Turns: appended once, whole, in order, with every field."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import pytest

from myllm_core.errors import InvalidRequest, SessionConflict
from myllm_core.session_store import NewMessage, SessionStore
from myllm_core.testing.session_store.given import ODD_TEXTS, said, texts, turn
from myllm_core.types import Message, ToolCall


class TurnTests:
    """Tests of ``append``, the title that it gives, and the text that it keeps."""

    def test_append_keeps_every_field(self, store: SessionStore) -> None:
        calls = (ToolCall("call_1", "weather", '{"city": "Köln"}'), ToolCall("call_2", "time", "{}"))
        meta = {"usage": {"prompt_tokens": 3}, "model": "m", "list": [1, 2.5, None, True, "é"], "big": 2**53 + 1}
        new = [
            said("Be brief.", "system"),
            said("Weather?"),
            NewMessage(Message("assistant", "", "I should look.", calls), meta=meta),
            NewMessage(Message("tool", "rain", tool_call_id="call_1")),
            NewMessage(Message("assistant", "It rai"), "cancelled"),
            NewMessage(Message("assistant", ""), "error", {"error": {"code": "engine_died"}}),
        ]
        store.create("s")
        stored = store.append("s", new, parent=None, key="k")
        assert [NewMessage(item.message, item.status, item.meta) for item in stored] == new
        assert store.path("s") == stored

    def test_append_chains_the_messages_and_moves_the_tip(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q1", "a1"), parent=None, key="1")
        second = store.append("s", turn("q2", "a2"), parent=first[-1].id, key="2")
        chain = first + second
        assert [item.parent_id for item in chain] == [None, *(item.id for item in chain[:-1])]
        assert [item.id for item in chain] == sorted({item.id for item in chain})
        assert store.path("s") == chain
        session = store.get("s")
        assert (session.tip, session.message_count) == (chain[-1].id, 4)

    def test_ids_rise_across_sessions(self, store: SessionStore) -> None:
        ids = []
        for number in range(6):
            session_id = f"s{number % 2}"
            tip = store.create(session_id).tip
            ids += [item.id for item in store.append(session_id, turn("q", "a"), parent=tip, key=str(number))]
        assert ids == sorted(set(ids))

    def test_a_retry_with_the_same_key_writes_nothing(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q", "a"), parent=None, key="k")
        session = store.get("s")
        assert store.append("s", turn("q", "a"), parent=None, key="k") == first
        assert store.get("s") == session
        assert store.path("s") == first

    def test_a_turn_is_found_by_its_key(self, store: SessionStore) -> None:
        store.create("s")
        store.create("t")
        first = store.append("s", turn("q1", "a1"), parent=None, key="1")
        second = store.append("s", turn("q2", "a2"), parent=first[-1].id, key="2")
        store.append("t", turn("q", "a"), parent=None, key="1")
        store.set_tip("s", None)
        assert store.turn("s", "1") == first
        assert store.turn("s", "2") == second
        assert store.turn("s", "3") == store.turn("t", "2") == []

    def test_a_late_retry_returns_what_the_first_call_wrote(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q1", "a1"), parent=None, key="1")
        second = store.append("s", turn("q2", "a2"), parent=first[-1].id, key="2")
        assert store.append("s", turn("q1", "another answer"), parent=None, key="1") == first
        assert store.path("s") == first + second

    def test_a_key_belongs_to_its_session(self, store: SessionStore) -> None:
        for session_id in ("s", "t"):
            store.create(session_id)
            store.append(session_id, [said(f"in {session_id}")], parent=None, key="same")
        assert texts(store.path("s")) == ["in s"]
        assert texts(store.path("t")) == ["in t"]

    def test_a_stale_parent_is_a_conflict_and_writes_nothing(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q1", "a1"), parent=None, key="1")
        for number, parent in enumerate([None, first[0].id, first[-1].id + 1000]):
            with pytest.raises(SessionConflict):
                store.append("s", turn("stale", "stale"), parent=parent, key=f"stale{number}")
        assert store.path("s") == first
        assert store.get("s").message_count == 2
        assert len(store.append("s", turn("q2", "a2"), parent=first[-1].id, key="stale0")) == 2

    def test_a_parent_in_another_session_is_a_conflict(self, store: SessionStore) -> None:
        store.create("s")
        store.create("t")
        [other] = store.append("t", [said("in t")], parent=None, key="k")
        with pytest.raises(SessionConflict):
            store.append("s", [said("below t")], parent=other.id, key="k")
        assert store.path("s") == []

    def test_nothing_to_append_and_an_empty_key_are_refused(self, store: SessionStore) -> None:
        store.create("s")
        with pytest.raises(InvalidRequest):
            store.append("s", [], parent=None, key="k")
        with pytest.raises(InvalidRequest):
            store.append("s", [said("q")], parent=None, key="")
        assert store.path("s") == []

    def test_the_first_question_becomes_the_title(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", [said("Be brief.", "system")], parent=None, key="1")
        assert store.get("s").title == ""
        second = store.append("s", turn("\n  Why is\tthe sky blue?\nI wonder.", "a"), parent=first[-1].id, key="2")
        assert store.get("s").title == "Why is the sky blue?"
        store.append("s", turn("And the sea?", "a"), parent=second[-1].id, key="3")
        assert store.get("s").title == "Why is the sky blue?"

    def test_a_long_first_question_is_cut_and_a_given_title_stays(self, store: SessionStore) -> None:
        store.create("long")
        store.append("long", [said("word " * 1000)], parent=None, key="k")
        assert 0 < len(store.get("long").title) <= 60
        store.create("named", title="My title")
        store.append("named", [said("question")], parent=None, key="k")
        assert store.get("named").title == "My title"

    @pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
    def test_odd_text_comes_back_as_it_was_or_is_refused(self, store: SessionStore, text: str) -> None:
        store.create("s", title="t")
        message = Message("assistant", text, text, (ToolCall("i", "n", text),), text)
        parent = None
        try:
            [stored] = store.append("s", [NewMessage(message, meta={"text": text})], parent=None, key=f"k{text}")
        except InvalidRequest:
            assert store.path("s") == []
        else:
            assert store.path("s") == [stored]
            assert (stored.message, stored.meta) == (message, {"text": text})
            parent = stored.id
        store.append("s", turn("still", "works"), parent=parent, key="next")
        assert texts(store.path("s"))[-2:] == ["still", "works"]

    @pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
    def test_an_odd_title_comes_back_as_it_was_or_is_refused(self, store: SessionStore, text: str) -> None:
        store.create("s", title="before")
        try:
            assert store.update("s", title=text, model=text).title == text
        except InvalidRequest:
            assert store.get("s").title == "before"
        else:
            assert (store.get("s").title, store.get("s").model) == (text, text)

    def test_meta_that_is_no_json_is_refused(self, store: SessionStore) -> None:
        store.create("s")
        for number, value in enumerate([float("nan"), float("inf"), object(), b"bytes", {1, 2}]):
            with pytest.raises(InvalidRequest):
                store.append("s", [NewMessage(Message("user", "q"), meta={"x": value})], parent=None, key=str(number))
        assert store.path("s") == []

    def test_a_message_of_five_million_characters(self, store: SessionStore) -> None:
        text = "long words in ünïcode " * 230_000
        store.create("s")
        store.append("s", [said(text)], parent=None, key="k")
        [kept] = texts(store.path("s"))
        assert len(kept) == len(text), "a long text was cut"
        same = kept == text  # pytest would look for ever for where they differ
        assert same, "a long text was changed"

    def test_two_thousand_messages_stay_in_order(self, store: SessionStore) -> None:
        store.create("s")
        tip = None
        for number in range(10):
            new = [said(f"{number}.{step}") for step in range(200)]
            tip = store.append("s", new, parent=tip, key=str(number))[-1].id
        said_in_order = [f"{number}.{step}" for number in range(10) for step in range(200)]
        same = texts(store.path("s")) == said_in_order  # without pages of differences
        assert same, "messages come back in another order, or not all of them"
