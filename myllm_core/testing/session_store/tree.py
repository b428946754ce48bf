"""The tree: regenerate, edit and fork are moves of the tip."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import pytest

from myllm_core.errors import NotFound
from myllm_core.session_store import SessionStore, StoredMessage
from myllm_core.testing.session_store.given import said, turn


class TreeTests:
    """Tests of ``set_tip`` and ``path``."""

    def test_regenerate_keeps_the_old_answer_as_a_branch(self, store: SessionStore) -> None:
        store.create("s")
        question, old = store.append("s", turn("q", "old answer"), parent=None, key="1")
        store.set_tip("s", question.id)
        assert store.path("s") == [question]
        [new] = store.append("s", [said("new answer", "assistant")], parent=question.id, key="2")
        assert store.path("s") == [question, new]
        assert store.path("s", old.id) == [question, old]
        assert store.get("s").message_count == 3
        store.set_tip("s", old.id)
        assert store.path("s") == [question, old]

    def test_an_edited_first_question_starts_a_second_root(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q", "a"), parent=None, key="1")
        store.set_tip("s", None)
        assert (store.path("s"), store.get("s").tip) == ([], None)
        second = store.append("s", turn("better q", "b"), parent=None, key="2")
        assert second[0].parent_id is None
        assert store.path("s") == second
        assert store.path("s", first[-1].id) == first

    def test_a_fork_in_the_middle_shares_what_came_before(self, store: SessionStore) -> None:
        store.create("s")
        trunk: list[StoredMessage] = []
        for number in range(5):
            parent = trunk[-1].id if trunk else None
            trunk += store.append("s", turn(f"q{number}", f"a{number}"), parent=parent, key=f"t{number}")
        store.set_tip("s", trunk[3].id)
        branch = store.append("s", turn("fork", "forked"), parent=trunk[3].id, key="fork")
        assert store.path("s") == trunk[:4] + branch
        assert store.path("s", trunk[-1].id) == trunk

    def test_a_retry_after_the_tip_moved_still_returns_the_turn(self, store: SessionStore) -> None:
        store.create("s")
        first = store.append("s", turn("q", "a"), parent=None, key="k")
        store.set_tip("s", None)
        assert store.append("s", turn("q", "a"), parent=None, key="k") == first
        assert store.get("s").tip is None

    def test_a_tip_must_be_a_message_of_the_session(self, store: SessionStore) -> None:
        store.create("s")
        store.create("t")
        mine = store.append("s", turn("q", "a"), parent=None, key="k")
        [foreign] = store.append("t", [said("x")], parent=None, key="k")
        for tip in (foreign.id, foreign.id + 1000, 0, -1, 2**63, 2**70, -(2**70)):
            with pytest.raises(NotFound):
                store.set_tip("s", tip)
            with pytest.raises(NotFound):
                store.path("s", tip)
        assert store.path("s") == mine
