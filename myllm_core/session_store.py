"""What a session store is: durable, append-only trees of messages with a current tip.

Continue, regenerate, edit and fork are moves of the tip. Methods are called from several threads.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from myllm_core.errors import InvalidRequest
from myllm_core.types import Message

Status = Literal["complete", "cancelled", "error"]

_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_TITLE_LENGTH = 60


def check_session_id(session_id: str) -> str:
    """The id itself when it is 1 to 128 characters of ``A-Z a-z 0-9 . _ -``. Raises ``InvalidRequest``."""
    if _SESSION_ID.fullmatch(session_id):
        return session_id
    raise InvalidRequest(f"{session_id[:40]!a} can't be a session id; use 1 to 128 characters of A-Z a-z 0-9 . _ -")


def title_from(content: str) -> str:
    """The title that a session gets from its first user message: its first line, at most 60 characters."""
    first_line = next((line for line in content[:4096].splitlines() if line.strip()), "")
    title = " ".join(_CONTROLS.sub(" ", first_line).split())
    return title if len(title) <= _TITLE_LENGTH else title[: _TITLE_LENGTH - 1].rstrip() + "…"


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
    """A session without its messages. ``tip`` is the id of the last message of the current path.

    ``message_count`` counts all messages of the tree, those of left branches too. ``append``, ``set_tip`` and
    ``update`` set ``updated_at``, also when nothing else is changed; ``import_`` takes the document's.
    """

    id: str
    title: str
    model: str
    tip: int | None
    created_at: str
    updated_at: str
    message_count: int = 0


class SessionStore(ABC):
    """Keeps sessions. An append is durable when the call returns, and whole or not there at all.

    Every method raises ``StoreError`` when the store can't be used (``StorageError`` when the disk is
    full or read-only), and ``SessionNotFound`` for an id that doesn't exist (``delete`` and ``get`` too).
    Session ids are what ``check_session_id`` lets through; the core checks them before it calls. Text
    comes back as it was given; a store that can't keep some (NUL, lone surrogates) raises
    ``InvalidRequest`` and writes nothing.

    ``myllm_core.testing.SessionStoreContract`` tests a store against this page.
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
        when ``parent`` isn't the tip: call ``set_tip`` first to branch; ``InvalidRequest`` when there are no
        messages or ``key`` is empty. A session without a title gets ``title_from`` its first user message.
        """

    @abstractmethod
    def turn(self, session_id: str, key: str) -> list[StoredMessage]:
        """What ``append`` wrote with this key, in order; nothing when it never did."""

    @abstractmethod
    def path(self, session_id: str, tip: int | None = None) -> list[StoredMessage]:
        """The messages from the root to ``tip`` (None: the current tip), in order.

        Raises ``NotFound`` when ``tip`` is no message of this session.
        """

    @abstractmethod
    def set_tip(self, session_id: str, message_id: int | None) -> None:
        """Move the tip to a message of this session, or before the first one (None). Raises ``NotFound``."""

    @abstractmethod
    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Session:
        """Change a session's title or model."""

    @abstractmethod
    def list_sessions(self, *, limit: int = 50, offset: int = 0) -> list[Session]:
        """Sessions, the last changed first: in the order of the calls, whatever the clock says."""

    @abstractmethod
    def search(self, text: str, *, limit: int = 50) -> list[tuple[Session, str]]:
        """Sessions that hold all words of ``text`` in one message or the title, each once, with a short excerpt.

        ``text`` is words, never a pattern: upper and lower case are one, punctuation may be ignored.
        """

    @abstractmethod
    def delete(self, session_id: str) -> None:
        """Delete a session and all its messages."""

    @abstractmethod
    def export(self, session_id: str) -> dict[str, Any]:
        """The whole tree as JSON values, in the format of ``myllm_core.sessions.document``."""

    @abstractmethod
    def import_(self, document: dict[str, Any], session_id: str | None = None) -> Session:
        """Make a session from an export, under ``session_id`` or its own id, whichever store wrote it.

        Raises ``SessionConflict`` when the id is taken, ``InvalidRequest`` when the document is wrong.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the store. May be called twice."""
