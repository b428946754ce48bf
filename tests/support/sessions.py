"""Sessions of any age in a real store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from myllm_core.session_store import NewMessage, SessionStore
from myllm_core.types import Message

DAY = 86400.0


def put_session(store: SessionStore, session_id: str, days: float, messages: int = 2) -> None:
    """A session of ``messages``, changed for the last time so many days ago."""
    time = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    store.create(session_id)
    said = [NewMessage(Message("user", f"purple {number}")) for number in range(messages)]
    store.append(session_id, said, parent=None, key="1")
    document = store.export(session_id) | {"created_at": time, "updated_at": time}
    store.delete(session_id)
    store.import_(document)
