"""A session store in memory: short, and it passes the contract of every store."""

import json
import threading
from dataclasses import replace

from myllm_core import Session, SessionStore, StoredMessage
from myllm_core.errors import InvalidRequest, NotFound, SessionConflict, SessionNotFound
from myllm_core.session_store import check_session_id, title_from
from myllm_core.sessions.document import now, read_document, write_document


class MemoryStore(SessionStore):
    """Forgets everything when it is closed."""

    name = "memory"

    def __init__(self):
        self.lock = threading.RLock()
        self.sessions = {}  # by id, the last changed at the end
        self.messages = {}  # by session id: a list of (key, StoredMessage)
        self.last_id = 0

    @classmethod
    def open(cls, url, data_dir):
        return cls()

    def create(self, session_id, *, model="", title=""):
        check_session_id(session_id)
        with self.lock:
            if session_id not in self.sessions:
                self.messages[session_id] = []
                self._save(Session(session_id, title, model, None, now(), now()))
            return self.get(session_id)

    def get(self, session_id):
        with self.lock:
            if session_id not in self.sessions:
                raise SessionNotFound(f"there is no session {session_id}")
            return self.sessions[session_id]

    def append(self, session_id, messages, *, parent, key):
        if not messages or not key:
            raise InvalidRequest("append needs messages and a key")
        with self.lock:
            session = self.get(session_id)
            done = self.turn(session_id, key)
            if done:
                return done
            if parent != session.tip:
                raise SessionConflict(f"session {session_id} was moved on by another request; read it again")
            metas = [_as_json(new.meta) for new in messages]  # all of them, before any is written
            turn = [
                self._add(session_id, key, new, meta, parent if not i else self.last_id, now())
                for i, (new, meta) in enumerate(zip(messages, metas, strict=True))
            ]
            question = next((new.message.content for new in messages if new.message.role == "user"), "")
            self._save(
                replace(
                    session,
                    title=session.title or title_from(question),
                    tip=self.last_id,
                    message_count=session.message_count + len(turn),
                    updated_at=now(),
                )
            )
            return turn

    def turn(self, session_id, key):
        with self.lock:
            self.get(session_id)
            return [stored for used, stored in self.messages[session_id] if used == key]

    def path(self, session_id, tip=None):
        with self.lock:
            session = self.get(session_id)
            tip = session.tip if tip is None else tip
            by_id = {stored.id: stored for _, stored in self.messages[session_id]}
            path = []
            while tip is not None:
                if tip not in by_id:
                    raise NotFound(f"session {session_id} has no message {tip}")
                path.append(by_id[tip])
                tip = by_id[tip].parent_id
            return path[::-1]

    def set_tip(self, session_id, message_id):
        with self.lock:
            self.path(session_id, message_id)  # raises when it isn't there
            self._save(replace(self.get(session_id), tip=message_id, updated_at=now()))

    def update(self, session_id, *, title=None, model=None):
        changes = {name: value for name, value in (("title", title), ("model", model)) if value is not None}
        with self.lock:
            return self._save(replace(self.get(session_id), updated_at=now(), **changes))

    def list_sessions(self, *, limit=50, offset=0):
        with self.lock:
            return list(reversed(self.sessions.values()))[offset : offset + limit]

    def search(self, text, *, limit=50):
        words = text.casefold().split()
        hits = []
        with self.lock:
            for session in reversed(self.sessions.values()):
                contents = [stored.message.content for _, stored in self.messages[session.id]]
                for content in [*reversed(contents), session.title]:
                    if words and all(word in content.casefold() for word in words):
                        start = max(content.casefold().find(words[0]) - 40, 0)
                        hits.append((session, content[start : start + 120]))
                        break
        return hits[:limit]

    def delete(self, session_id):
        with self.lock:
            self.get(session_id)
            del self.sessions[session_id], self.messages[session_id]

    def export(self, session_id):
        with self.lock:
            return write_document(self.get(session_id), self.messages[session_id])

    def import_(self, document, session_id=None):
        content = read_document(document, session_id)
        with self.lock:
            if content.id in self.sessions:
                raise SessionConflict(f"there is a session {content.id} already")
            self.messages[content.id] = []
            ids = []
            for part in content.messages:
                parent = None if part.parent is None else ids[part.parent]
                new = part.to_new_message()
                ids.append(self._add(content.id, part.key, new, new.meta, parent, part.created_at).id)
            tip = None if content.tip is None else ids[content.tip]
            times = content.created_at, content.updated_at
            return self._save(Session(content.id, content.title, content.model, tip, *times, len(ids)))

    def close(self):
        pass

    def _add(self, session_id, key, new, meta, parent, created_at):
        self.last_id += 1
        stored = StoredMessage(self.last_id, parent, new.message, new.status, created_at, meta)
        self.messages[session_id].append((key, stored))
        return stored

    def _save(self, session):
        self.sessions.pop(session.id, None)
        self.sessions[session.id] = session
        return session


def _as_json(meta):
    try:
        return json.loads(json.dumps(meta, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"meta must hold JSON values: {error}") from None
