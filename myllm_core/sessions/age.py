"""Sessions that nobody goes on with: which they are, and how they are deleted while others are used.

A turn is stored when it ends, so a session that another process is answering looks idle until then: a turn that goes on
with a session of some age says so first (``note_use``). That is why nothing younger than an hour counts as idle.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from myllm_core.errors import InvalidRequest, SessionNotFound, StorageError, StoreError
from myllm_core.session_store import Session, SessionStore

LEAST_AGE = 3600.0
"""Seconds that a session must have been left alone before it may be deleted for its age."""

_NOTED = 600.0  # seconds without a change after which a turn that begins is noted
_PAGE = 500


def idle_sessions(store: SessionStore, age: float) -> list[Session]:
    """The sessions that haven't changed for ``age`` seconds, the last changed first.

    Raises ``InvalidRequest`` for less than ``LEAST_AGE``.
    """
    if age < LEAST_AGE:
        raise InvalidRequest("sessions may be in use for an hour after their last change; say 1h or more")
    found: dict[str, Session] = {}  # one that changes meanwhile moves to the front, so others may be seen twice
    offset = 0
    while page := store.list_sessions(limit=_PAGE, offset=offset):
        found |= {session.id: session for session in page if _age(session) >= age}
        offset += len(page)
    return list(found.values())


def delete_idle(store: SessionStore, session_id: str, age: float) -> bool:
    """Delete a session, unless it has changed within ``age`` seconds or is gone; whether it did."""
    try:
        if _age(store.get(session_id)) < age:
            return False
        store.delete(session_id)
    except SessionNotFound:
        return False
    return True


def note_use(store: SessionStore, session_id: str) -> None:
    """Count a session as changed now, when a turn begins that goes on with one of some age."""
    if _age(store.get(session_id)) >= _NOTED:
        with suppress(StoreError, StorageError):  # told when the turn ends; nobody can delete it meanwhile either
            store.update(session_id)


def _age(session: Session) -> float:
    """Seconds since the last change, by the machine's clock."""
    return (datetime.now(UTC) - datetime.fromisoformat(session.updated_at)).total_seconds()
