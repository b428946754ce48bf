"""Search in the sessions file: the FTS5 table ``texts``, one row for each message and each title.

The row of a message has the message's id, the row of a title the session's number below zero, so that one scan from
the highest row down meets the newest messages first and the titles last. The table holds its own copy of the text,
made searchable, because FTS5 can only take out of its index exactly what was put in.
"""

from __future__ import annotations

import re
import sqlite3

_EXCERPT_WORDS = 16

# Scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Chinese characters) and Hangul, whose words carry
# endings: each character is indexed as a word of its own, with a zero-width space as the border.
_UNSPACED = re.compile(
    "(?=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff])"
)
_BORDER = "\u200b"


def index_message(db: sqlite3.Connection, message_id: int, text: str) -> None:
    """Make a new message findable."""
    _index(db, message_id, text)


def index_title(db: sqlite3.Connection, session: int, title: str) -> None:
    """Make the session with this number findable by this title, and no longer by the one before."""
    db.execute("DELETE FROM texts WHERE rowid = ?", [-session])
    _index(db, -session, title)


def remove_session(db: sqlite3.Connection, session: int) -> None:
    """Forget a session's title and messages; call it while the messages are still there."""
    db.execute("DELETE FROM texts WHERE rowid IN (SELECT id FROM messages WHERE session = ?)", [session])
    db.execute("DELETE FROM texts WHERE rowid = ?", [-session])


def search(db: sqlite3.Connection, text: str, limit: int) -> list[tuple[int, str]]:
    """Numbers of up to ``limit`` sessions that hold all words of ``text`` in one row, with an excerpt of the newest."""
    query = " ".join('"' + word.replace('"', '""') + '"' for word in dict.fromkeys(_searchable(text).split()))
    if not query:
        return []
    rows = db.execute(
        "SELECT coalesce(messages.session, -texts.rowid), texts.rowid FROM texts "
        "LEFT JOIN messages ON messages.id = texts.rowid WHERE texts MATCH ? ORDER BY texts.rowid DESC",
        [query],
    )
    newest: dict[int, int] = {}
    while len(newest) < limit and (row := rows.fetchone()):
        newest.setdefault(*row)
    rows.close()
    return [(session, _excerpt(db, query, rowid)) for session, rowid in newest.items()]


def _index(db: sqlite3.Connection, rowid: int, text: str) -> None:
    if text:
        db.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", [rowid, _searchable(text)])


def _searchable(text: str) -> str:
    return _UNSPACED.sub(_BORDER, text.replace("\0", " "))


def _excerpt(db: sqlite3.Connection, query: str, rowid: int) -> str:
    (excerpt,) = db.execute(
        f"SELECT snippet(texts, 0, '', '', '…', {_EXCERPT_WORDS}) FROM texts WHERE texts MATCH ? AND rowid = ?",
        [query, rowid],
    ).fetchone()
    return " ".join(excerpt.replace(_BORDER, "").split())
