"""What must hold in a sessions file at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[Path], None]:
    """A function that asserts that a file is whole for SQLite, and that its tables agree with each other."""
    return _assert_sound


def _assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=30)) as db:

        def rows(query: str) -> list[tuple[object, ...]]:
            return db.execute(query).fetchall()

        assert rows("PRAGMA integrity_check") == [("ok",)]
        assert rows("PRAGMA foreign_key_check") == []
        db.execute("INSERT INTO texts (texts) VALUES ('integrity-check')")
        db.rollback()
        wrong = """
            SELECT id, message_count FROM sessions
            WHERE message_count != (SELECT count(*) FROM messages WHERE session = number)
            OR tip IS NOT NULL AND tip NOT IN (SELECT id FROM messages WHERE session = number)
        """
        assert rows(wrong) == []
        assert rows("SELECT number FROM blobs WHERE number NOT IN (SELECT blob FROM images)") == []
        findable = "SELECT id FROM messages WHERE content != '' UNION SELECT -number FROM sessions WHERE title != ''"
        assert sorted(rows("SELECT rowid FROM texts")) == sorted(rows(findable))
