"""The kit finds stores that break the contract: each fault below makes just the tests fail that are about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FAULTY = '''
import pytest

from myllm_core.session_store import NewMessage
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.testing import SessionStoreContract


class Forgetful(SQLiteStore):
    """Takes a retry for a new turn."""

    def append(self, session_id, messages, *, parent, key):
        self.calls = getattr(self, "calls", 0) + 1
        return super().append(session_id, messages, parent=parent, key=key and f"{key} {self.calls}")


class Overwriting(SQLiteStore):
    """Never says that somebody else was faster."""

    def append(self, session_id, messages, *, parent, key):
        return super().append(session_id, messages, parent=self.get(session_id).tip, key=key)


class Stripping(SQLiteStore):
    """Thinks that nobody needs blanks at the end."""

    def append(self, session_id, messages, *, parent, key):
        from dataclasses import replace

        short = [replace(new, message=replace(new.message, content=new.message.content.rstrip())) for new in messages]
        return super().append(session_id, short, parent=parent, key=key)


class Blind(SQLiteStore):
    """Keeps no images."""

    def append(self, session_id, messages, *, parent, key):
        from dataclasses import replace

        blind = [replace(new, message=replace(new.message, images=())) for new in messages]
        return super().append(session_id, blind, parent=parent, key=key)


class Base(SessionStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: self.store_class.open("", tmp_path)


class TestForgetful(Base):
    store_class = Forgetful


class TestOverwriting(Base):
    store_class = Overwriting


class TestStripping(Base):
    store_class = Stripping


class TestBlind(Base):
    store_class = Blind


class TestNothingGiven(SessionStoreContract):
    pass
'''


EXPECTED = {
    "Forgetful": {
        "a_late_retry_returns_what_the_first_call_wrote",
        "a_retry_after_an_import_writes_nothing",
        "a_retry_after_the_tip_moved_still_returns_the_turn",
        "a_retry_with_the_same_key_writes_nothing",
        "a_turn_is_found_by_its_key",
        "the_list_has_the_last_changed_first",
        "the_same_turn_sent_by_many_threads_is_written_once",
    },
    "Blind": {
        "images_come_back_as_they_were_given",
        "images_leave_and_enter_a_store_with_their_messages",
        "images_that_others_show_too_outlive_a_deleted_session",
    },
    "Overwriting": {
        "a_parent_in_another_session_is_a_conflict",
        "a_stale_parent_is_a_conflict_and_writes_nothing",
        "two_open_stores_share_the_data",
    },
    "Stripping": {"odd_text_comes_back_as_it_was_or_is_refused"},
}


def test_the_kit_finds_faulty_stores(tmp_path: Path) -> None:
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    chosen = "not wrong_document and not pattern and not odd_title and not five_million"
    options = ["-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", "-k", chosen]
    command = [sys.executable, "-m", "pytest", *options, "test_faulty.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    failed: dict[str, set[str]] = {}
    for owner, test in re.findall(r"^(?:FAILED|ERROR) test_faulty\.py::Test(\w+)::test_(\w+)", result.stdout, re.M):
        failed.setdefault(owner, set()).add(test)
    without_a_store = failed.pop("NothingGiven")
    assert len(without_a_store) > 40, "a kit without a store must not pass"
    assert failed == EXPECTED, result.stdout
