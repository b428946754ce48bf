"""The stored side of a conversation: its system message, and moves of the session's tip."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from myllm_core.errors import SessionNotFound
from myllm_core.session_store import NewMessage, SessionStore, StoredMessage
from myllm_core.types import Image, Message

if TYPE_CHECKING:
    from myllm_core.runtime.runtime import Runtime


class Conversation:
    """A session (None: nothing is kept) and the system message that its turns are sent with."""

    def __init__(self, runtime: Runtime, session_id: str | None) -> None:
        self._runtime = runtime
        self.session_id = session_id
        self.system: str | None = None

    async def start(self, system: str | None) -> None:
        """Take the stored system message, or give the session ``system`` when it has another one."""
        path = await self.path()
        if path and path[0].message.role == "system":
            self.system = path[0].message.content
        if system is not None and system != self.system:
            await self.set_system(system)

    def messages(self, text: str, images: Sequence[Image] = ()) -> list[Message]:
        """What to send for a user's text, with images that stand before it."""
        # A session that begins with this system message already isn't given it again by the runtime.
        system = [Message("system", self.system)] if self.system else []
        return [*system, Message("user", text, images=tuple(images))]

    async def path(self) -> list[StoredMessage]:
        """The stored conversation; empty when there is none yet."""
        session_id = self.session_id
        if session_id is None:
            return []
        try:
            return await self._runtime.sessions(lambda store: store.path(session_id))
        except SessionNotFound:
            return []

    async def set_system(self, system: str | None) -> None:
        """Go on with another system message, or none.

        What was said is repeated below the new message as a branch of its own, for stored messages never change.
        """
        path = await self.path()
        session_id = self.session_id
        self.system = system
        if not path or session_id is None:
            return
        said = [item for item in path if item.message.role != "system"]
        branch = [NewMessage(item.message, item.status, item.meta) for item in said]
        if system:
            branch.insert(0, NewMessage(Message("system", system)))

        def rebuild(store: SessionStore) -> None:
            store.set_tip(session_id, None)
            if branch:
                store.append(session_id, branch, parent=None, key=f"system-{uuid.uuid4().hex}")

        await self._runtime.sessions(rebuild)

    async def set_tip(self, message_id: int | None) -> None:
        """Go on from another message."""
        session_id = self.session_id
        if session_id is not None:
            await self._runtime.sessions(lambda store: store.set_tip(session_id, message_id))


def last_question(path: list[StoredMessage]) -> StoredMessage | None:
    """The user's last message."""
    return next((item for item in reversed(path) if item.message.role == "user"), None)
