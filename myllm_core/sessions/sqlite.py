"""The default session store: one SQLite file with a full-text index, shared by CLI and server."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from myllm_core.errors import ConfigError, InvalidRequest, NotFound, SessionConflict, SessionNotFound
from myllm_core.session_store import (
    NewMessage,
    Session,
    SessionStore,
    StoredMessage,
    check_session_id,
    title_from,
)
from myllm_core.sessions import fulltext, images
from myllm_core.sessions.database import Database
from myllm_core.sessions.document import now, read_document, write_document
from myllm_core.types import Message, ToolCall

_SESSION = "id, title, model, tip, created_at, updated_at, message_count"
_MESSAGE = "id, parent, role, content, reasoning, tool_calls, tool_call_id, status, created_at, meta, images"
_MAX_NUMBER = 2**63 - 1  # SQLite's


class SQLiteStore(SessionStore):
    """Sessions in ``sessions.db`` under the data directory (WAL, synchronous FULL, FTS5).

    Safe from several threads (one connection behind a lock, see ``Database``) and several processes
    (every write is one ``BEGIN IMMEDIATE`` transaction). Order comes from sequence numbers, never from the clock.
    On a full disk what is open can still be read; in a read-only folder nothing can, unless another program has the
    file open. Both raise ``StorageError``.
    """

    name = "sqlite"

    def __init__(self, path: Path, connect: Callable[..., sqlite3.Connection] = sqlite3.connect) -> None:
        self._database = Database(path, connect)
        with self._database.reading():  # a file that can't be used is told of now, not at the first message
            pass

    @classmethod
    def open(cls, url: str, data_dir: Path) -> Self:
        """Open ``url``: a path, ``sqlite:///path`` (relative to ``data_dir``), or empty for ``sessions.db`` there."""
        path = url.removeprefix("sqlite:///")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
            raise ConfigError(f"session_url {path.split(':')[0]}:… is no SQLite file: write sqlite:///path or a path")
        return cls(data_dir / os.path.expanduser(path or "sessions.db"))

    def create(self, session_id: str, *, model: str = "", title: str = "") -> Session:
        """Make an empty session, or return the one that has this id already."""
        check_session_id(session_id)
        with self._database.writing() as db:
            if not _exists(db, session_id):
                time = now()
                _save(db, _insert_session(db, session_id), Session(session_id, title, model, None, time, time))
            return _find(db, session_id).session

    def get(self, session_id: str) -> Session:
        """The session of this id."""
        with self._database.reading() as db:
            return _find(db, session_id).session

    def append(
        self, session_id: str, messages: Sequence[NewMessage], *, parent: int | None, key: str
    ) -> list[StoredMessage]:
        """Append a turn below ``parent`` and move the tip to its last message, in one transaction."""
        if not messages or not key:
            raise InvalidRequest("append needs at least one message and a key that isn't empty")
        with self._database.writing() as db:
            found = number, session = _find(db, session_id)
            done = _turn(db, number, key)
            if done:
                return done
            if parent != session.tip:
                raise SessionConflict(
                    f"session {session_id} was moved on by another request; read it again, then repeat yours",
                    parent=parent,
                    tip=session.tip,
                )
            time = now()
            for message in messages:
                parent = _insert_message(db, number, parent, message, time, key)
            title = session.title or _first_title(messages)
            count = session.message_count + len(messages)
            _save(db, found, replace(session, title=title, tip=parent, message_count=count, updated_at=time))
            return _turn(db, number, key)

    def turn(self, session_id: str, key: str) -> list[StoredMessage]:
        """What ``append`` wrote with this key, in order; nothing when it never did."""
        with self._database.reading() as db:
            return _turn(db, _find(db, session_id).number, key)

    def path(self, session_id: str, tip: int | None = None) -> list[StoredMessage]:
        """The messages from the root to ``tip`` (None: the current tip), in order."""
        with self._database.reading() as db:
            found = _find(db, session_id)
            if tip is None:
                tip = found.session.tip
            else:
                _check_message(db, found, tip)
            rows = db.execute(
                f"""
                WITH RECURSIVE up (step) AS (
                    VALUES (?) UNION ALL
                    SELECT parent FROM messages JOIN up ON id = step WHERE parent IS NOT NULL
                )
                SELECT {_MESSAGE} FROM up JOIN messages ON id = step
                """,
                [tip],
            ).fetchall()
            # a parent's id is below its child's
            return sorted((_stored(db, row) for row in rows), key=lambda message: message.id)

    def set_tip(self, session_id: str, message_id: int | None) -> None:
        """Move the tip to a message of this session, or before the first one (None)."""
        with self._database.writing() as db:
            found = _find(db, session_id)
            if message_id is not None:
                _check_message(db, found, message_id)
            _save(db, found, replace(found.session, tip=message_id, updated_at=now()))

    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Session:
        """Change a session's title or model."""
        with self._database.writing() as db:
            found = _find(db, session_id)
            old = found.session
            session = replace(
                old,
                title=old.title if title is None else title,
                model=old.model if model is None else model,
                updated_at=now(),
            )
            _save(db, found, session)
            return session

    def list_sessions(self, *, limit: int = 50, offset: int = 0) -> list[Session]:
        """Sessions, the last changed first."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {_SESSION} FROM sessions ORDER BY changed DESC LIMIT ? OFFSET ?",
                [_count(limit), _count(offset)],
            ).fetchall()
        return [Session(*row) for row in rows]

    def search(self, text: str, *, limit: int = 50) -> list[tuple[Session, str]]:
        """Sessions that hold all words of ``text`` in one message or the title: the newest message first, titles last.

        The excerpt has up to 16 words around the hit.
        """
        hits: list[tuple[Session, str]] = []
        with self._database.reading() as db:
            for number, excerpt in fulltext.search(db, text, limit):
                row = db.execute(f"SELECT {_SESSION} FROM sessions WHERE number = ?", [number]).fetchone()
                hits.append((Session(*row), excerpt))
        return hits

    def delete(self, session_id: str) -> None:
        """Delete a session and all its messages."""
        with self._database.writing() as db:
            number, _ = _find(db, session_id)
            fulltext.remove_session(db, number)
            db.execute("DELETE FROM sessions WHERE number = ?", [number])

    def export(self, session_id: str) -> dict[str, Any]:
        """The whole tree as JSON values, in the format of ``myllm_core.sessions.document``."""
        with self._database.reading() as db:
            number, session = _find(db, session_id)
            rows = db.execute(
                f"SELECT turn_key, {_MESSAGE} FROM messages WHERE session = ? ORDER BY id", [number]
            ).fetchall()
            return write_document(session, [(row[0], _stored(db, row[1:])) for row in rows])

    def import_(self, document: dict[str, Any], session_id: str | None = None) -> Session:
        """Make a session from an export, under ``session_id`` or its own id."""
        content = read_document(document, session_id)
        with self._database.writing() as db:
            if _exists(db, content.id):
                raise SessionConflict(f"there is a session {content.id} already; choose another id")
            found = _insert_session(db, content.id)
            ids: list[int] = []
            for part in content.messages:
                parent = None if part.parent is None else ids[part.parent]
                new = part.to_new_message()
                ids.append(_insert_message(db, found.number, parent, new, part.created_at, part.key))
            tip = None if content.tip is None else ids[content.tip]
            session = Session(
                content.id, content.title, content.model, tip, content.created_at, content.updated_at, len(ids)
            )
            _save(db, found, session)
            return session

    def close(self) -> None:
        """Release the store. May be called twice."""
        self._database.close()


class _Found(NamedTuple):
    number: int
    session: Session


def _find(db: sqlite3.Connection, session_id: str) -> _Found:
    row = db.execute(f"SELECT number, {_SESSION} FROM sessions WHERE id = ?", [session_id]).fetchone()
    if row is None:
        raise SessionNotFound(f"there is no session {session_id}; see: myllm sessions list")
    return _Found(row[0], Session(*row[1:]))


def _exists(db: sqlite3.Connection, session_id: str) -> bool:
    return db.execute("SELECT 1 FROM sessions WHERE id = ?", [session_id]).fetchone() is not None


def _count(number: int) -> int:
    return min(max(number, 0), _MAX_NUMBER)  # below zero means "all" to SQLite


def _check_message(db: sqlite3.Connection, found: _Found, message_id: int) -> None:
    query = "SELECT 1 FROM messages WHERE id = ? AND session = ?"
    if not 0 < message_id <= _MAX_NUMBER or not db.execute(query, [message_id, found.number]).fetchone():
        raise NotFound(f"session {found.session.id} has no message {message_id}")


def _insert_session(db: sqlite3.Connection, session_id: str) -> _Found:
    blank = Session(session_id, "", "", None, "", "")
    number = db.execute(
        "INSERT INTO sessions (id, title, model, created_at, updated_at, message_count, changed) "
        "VALUES (?, '', '', '', '', 0, (SELECT coalesce(max(changed), 0) + 1 FROM sessions))",
        [session_id],
    ).lastrowid
    return _Found(_rowid(number), blank)


def _save(db: sqlite3.Connection, found: _Found, session: Session) -> None:
    db.execute(
        "UPDATE sessions SET title = ?, model = ?, tip = ?, created_at = ?, updated_at = ?, message_count = ?, "
        "changed = (SELECT max(changed) + 1 FROM sessions) WHERE number = ?",
        [
            session.title,
            session.model,
            session.tip,
            session.created_at,
            session.updated_at,
            session.message_count,
            found.number,
        ],
    )
    if session.title != found.session.title:
        fulltext.index_title(db, found.number, session.title)


def _insert_message(
    db: sqlite3.Connection, number: int, parent: int | None, new: NewMessage, created_at: str, key: str
) -> int:
    message = new.message
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    message_id = _rowid(
        db.execute(
            "INSERT INTO messages (session, parent, turn_key, role, content, reasoning, tool_calls, tool_call_id, "
            "status, created_at, meta, images) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                number,
                parent,
                key,
                message.role,
                message.content,
                message.reasoning,
                _json(calls),
                message.tool_call_id,
                new.status,
                created_at,
                _json(new.meta),
                len(message.images),
            ],
        ).lastrowid
    )
    images.insert(db, message_id, message.images)
    fulltext.index_message(db, message_id, message.content)
    return message_id


def _rowid(rowid: int | None) -> int:
    assert rowid is not None  # None only before the first INSERT of a cursor
    return rowid


def _json(value: Any) -> str:
    if not value:
        return ""  # most messages have neither tool calls nor meta
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"meta must hold JSON values: {error}") from None


def _turn(db: sqlite3.Connection, number: int, key: str) -> list[StoredMessage]:
    query = f"SELECT {_MESSAGE} FROM messages WHERE session = ? AND turn_key = ? ORDER BY id"
    return [_stored(db, row) for row in db.execute(query, [number, key]).fetchall()]


def _stored(db: sqlite3.Connection, row: Sequence[Any]) -> StoredMessage:
    message_id, parent, role, content, reasoning, calls, tool_call_id, status, created_at, meta, pictured = row
    tool_calls = tuple(ToolCall(**call) for call in json.loads(calls)) if calls else ()
    pictures = images.select(db, message_id) if pictured else ()
    message = Message(role, content, reasoning, tool_calls, tool_call_id, pictures)
    return StoredMessage(message_id, parent, message, status, created_at, json.loads(meta) if meta else {})


def _first_title(messages: Iterable[NewMessage]) -> str:
    return next((title_from(new.message.content) for new in messages if new.message.role == "user"), "")
