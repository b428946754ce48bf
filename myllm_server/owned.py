"""Sessions by key: who can't manage sees those that its own key has made, and no others.

A session ``ID`` of the key ``NAME`` is stored as ``key.NAME.ID``. A key's name has no dot, so no two keys meet.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from myllm_core.errors import InvalidRequest, MyllmError
from myllm_core.runtime.runtime import Runtime
from myllm_core.session_store import NewMessage, Session, SessionStore, StoredMessage

T = TypeVar("T")

_PAGE = 500
_MAX_ID = 128  # characters, as check_session_id says


class OwnedRuntime(Runtime):
    """A runtime whose sessions are those of one owner. Everything else is shared with the one that it is made from."""

    __slots__ = ("_prefix",)

    def __init__(self, runtime: Runtime, owner: str) -> None:
        self.__dict__ = runtime.__dict__  # so that whatever either of them opens or loads, both have
        self._prefix = f"key.{owner}."

    async def sessions(self, use: Callable[[SessionStore], T]) -> T:
        """Run ``use(store)`` on a thread of its own; the store shows the owner's sessions."""
        return await super().sessions(lambda store: use(OwnedStore(store, self._prefix)))

    @asynccontextmanager
    async def _session_lock(self, session_id: str, deadline: float) -> AsyncGenerator[None, None]:
        async with super()._session_lock(self._prefix + session_id, deadline):
            yield


class OwnedStore(SessionStore):
    """The part of another store whose session ids begin with ``prefix``, which is left out here."""

    name = "owned"

    def __init__(self, store: SessionStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    @classmethod
    def open(cls, url: str, data_dir: Path) -> Self:
        """Never called: it is made around an open store."""
        raise NotImplementedError

    def create(self, session_id: str, *, model: str = "", title: str = "") -> Session:
        """See ``SessionStore``, as for all methods here."""
        with self._inside():
            return self._shown(self._store.create(self._id(session_id), model=model, title=title))

    def get(self, session_id: str) -> Session:
        """See ``SessionStore``."""
        with self._inside():
            return self._shown(self._store.get(self._id(session_id)))

    def append(
        self, session_id: str, messages: Sequence[NewMessage], *, parent: int | None, key: str
    ) -> list[StoredMessage]:
        """See ``SessionStore``."""
        with self._inside():
            return self._store.append(self._id(session_id), messages, parent=parent, key=key)

    def turn(self, session_id: str, key: str) -> list[StoredMessage]:
        """See ``SessionStore``."""
        with self._inside():
            return self._store.turn(self._id(session_id), key)

    def path(self, session_id: str, tip: int | None = None) -> list[StoredMessage]:
        """See ``SessionStore``."""
        with self._inside():
            return self._store.path(self._id(session_id), tip)

    def set_tip(self, session_id: str, message_id: int | None) -> None:
        """See ``SessionStore``."""
        with self._inside():
            self._store.set_tip(self._id(session_id), message_id)

    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Session:
        """See ``SessionStore``."""
        with self._inside():
            return self._shown(self._store.update(self._id(session_id), title=title, model=model))

    def list_sessions(self, *, limit: int = 50, offset: int = 0) -> list[Session]:
        """See ``SessionStore``."""
        return [self._shown(session) for session in islice(self._all(), offset, offset + limit)]

    def search(self, text: str, *, limit: int = 50) -> list[tuple[Session, str]]:
        """See ``SessionStore``."""
        asked = limit
        while True:
            found = self._store.search(text, limit=asked)
            mine = [(self._shown(session), excerpt) for session, excerpt in found if self._owns(session)]
            if len(mine) >= limit or len(found) < asked:
                return mine[:limit]
            asked *= 4

    def delete(self, session_id: str) -> None:
        """See ``SessionStore``."""
        with self._inside():
            self._store.delete(self._id(session_id))

    def export(self, session_id: str) -> dict[str, Any]:
        """See ``SessionStore``."""
        with self._inside():
            return self._store.export(self._id(session_id)) | {"id": session_id}

    def import_(self, document: dict[str, Any], session_id: str | None = None) -> Session:
        """See ``SessionStore``."""
        with self._inside():
            return self._shown(self._store.import_(document, self._id(str(session_id or document.get("id")))))

    def close(self) -> None:
        """Leave the store open: it is the others' too."""

    def _id(self, session_id: str) -> str:
        most = _MAX_ID - len(self._prefix)
        if len(session_id) > most:
            raise InvalidRequest(f"a session id can have at most {most} characters with this key")
        return self._prefix + session_id

    def _owns(self, session: Session) -> bool:
        return session.id.startswith(self._prefix)

    def _shown(self, session: Session) -> Session:
        return replace(session, id=session.id.removeprefix(self._prefix))

    def _all(self) -> Iterator[Session]:
        offset = 0
        while page := self._store.list_sessions(limit=_PAGE, offset=offset):
            yield from filter(self._owns, page)
            offset += len(page)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Errors name sessions as the owner knows them."""
        try:
            yield
        except MyllmError as error:
            if self._prefix not in error.message:
                raise
            raise type(error)(error.message.replace(self._prefix, ""), **error.data) from error
