"""What a session store is: durable, append-only trees of messages with a current tip.

Continue, regenerate, edit and fork are moves of the tip. Methods are called from several threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from myllm_core.types import Message

Status = Literal["complete", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append. ``status`` other than ``complete`` marks a reply that was interrupted.

    ``meta`` holds JSON values that the core wants back: usage, model, engine, finish reason.
    """

    message: Message
    status: Status = "complete"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in the store; ids rise in the order of appending within a store. ``created_at`` is ISO 8601 UTC."""

    id: int
    parent_id: int | None
    message: Message
    status: Status
    created_at: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """A session without its messages. ``tip`` is the id of the last message of the current path."""

    id: str
    title: str
    model: str
    tip: int | None
    created_at: str
    updated_at: str
    message_count: int = 0


class SessionStore(ABC):
    """Keeps sessions. An append is durable when the call returns, and whole or not there at all.

    Every method raises ``StoreError`` when the store can't be used, and ``SessionNotFound`` for an
    id that doesn't exist (``delete`` and ``get`` too). Session ids are 1 to 128 characters of
    ``A-Z a-z 0-9 . _ -``; the core checks them before it calls.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def open(cls, url: str, data_dir: Path) -> Self:
        """Open the store at ``url`` (the setting ``session_url``; empty: its own default under ``data_dir``)."""

    @abstractmethod
    def create(self, session_id: str, *, model: str = "", title: str = "") -> Session:
        """Make an empty session, or return the one that has this id already."""

    @abstractmethod
    def get(self, session_id: str) -> Session:
        """The session of this id."""

    @abstractmethod
    def append(
        self, session_id: str, messages: Sequence[NewMessage], *, parent: int | None, key: str
    ) -> list[StoredMessage]:
        """Append a turn below ``parent`` and move the tip to its last message, in one transaction.

        ``parent`` None starts a new root. When ``key`` was used in this session before, nothing is
        written and what that call wrote is returned, so a retry is safe. Raises ``SessionConflict``
        when ``parent`` isn't the tip: call ``set_tip`` first to branch.
        """

    @abstractmethod
    def path(self, session_id: str, tip: int | None = None) -> list[StoredMessage]:
        """The messages from the root to ``tip`` (None: the current tip), in order."""

    @abstractmethod
    def set_tip(self, session_id: str, message_id: int | None) -> None:
        """Move the tip to a message of this session, or before the first one (None). Raises ``NotFound``."""

    @abstractmethod
    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Session:
        """Change a session's title or model."""

    @abstractmethod
    def list_sessions(self, *, limit: int = 50, offset: int = 0) -> list[Session]:
        """Sessions, the last changed first."""

    @abstractmethod
    def search(self, text: str, *, limit: int = 50) -> list[tuple[Session, str]]:
        """Sessions that hold all words of ``text`` in a message or the title, each with a short excerpt."""

    @abstractmethod
    def delete(self, session_id: str) -> None:
        """Delete a session and all its messages."""

    @abstractmethod
    def export(self, session_id: str) -> dict[str, Any]:
        """The whole tree as JSON values, as ``import_`` takes it."""

    @abstractmethod
    def import_(self, document: dict[str, Any], session_id: str | None = None) -> Session:
        """Make a session from an export, under ``session_id`` or its own id. Raises ``SessionConflict`` when taken."""

    @abstractmethod
    def close(self) -> None:
        """Release the store. May be called twice."""
