"""A session copied, from this store to go on from there another way, or from a document."""

from __future__ import annotations

from typing import Any

from myllm_core.errors import InvalidRequest
from myllm_core.session_store import Session, SessionStore


def import_document(store: SessionStore, document: dict[str, Any], session_id: str | None = None) -> Session:
    """Make a session from an export, as changed now: its own times may be old. Raises as ``import_``."""
    return store.update(store.import_(document, session_id).id)


def fork_session(store: SessionStore, session_id: str, target: str, at: int | None = None) -> Session:
    """Copy a session with all its branches to ``target``; its path ends after message ``at`` (from 1) when given.

    Raises ``SessionNotFound``, ``SessionConflict`` when ``target`` is taken, and ``InvalidRequest`` when the path has
    no such message; nothing is copied then.
    """
    document = store.export(session_id)
    length = len(store.path(session_id))
    if at is not None and not 1 <= at <= length:
        raise InvalidRequest(f"session {session_id} has {length} messages; at must be 1 to {length}")
    session = import_document(store, document, target)
    if at is None:
        return session
    store.set_tip(target, store.path(target)[at - 1].id)
    return store.get(target)
