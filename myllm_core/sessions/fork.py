"""A session copied, to go on from there another way."""

from __future__ import annotations

from myllm_core.errors import InvalidRequest
from myllm_core.session_store import Session, SessionStore


def fork_session(store: SessionStore, session_id: str, target: str, at: int | None = None) -> Session:
    """Copy a session with all its branches to ``target``; its path ends after message ``at`` (from 1) when given.

    Raises ``SessionNotFound``, ``SessionConflict`` when ``target`` is taken, and ``InvalidRequest`` when the path has
    no such message; nothing is copied then.
    """
    document = store.export(session_id)
    length = len(store.path(session_id))
    if at is not None and not 1 <= at <= length:
        raise InvalidRequest(f"session {session_id} has {length} messages; at must be 1 to {length}")
    session = store.import_(document, target)
    if at is None:
        return session
    store.set_tip(target, store.path(target)[at - 1].id)
    return store.get(target)
