"""A session store of JSON files, one for each session; a lock file lets processes take turns."""

import base64
import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock

from myllm_core import Image, Message, Session, SessionStore, StoredMessage, ToolCall
from myllm_core.errors import InvalidRequest, NotFound, SessionConflict, SessionNotFound, StoreError
from myllm_core.images import decode_base64
from myllm_core.session_store import check_session_id, title_from
from myllm_core.sessions.document import now, read_document, write_document


class JsonFilesStore(SessionStore):
    """Each call locks the folder, reads what it needs, and writes one file in one step."""

    name = "jsonfiles"

    def __init__(self, folder):
        self.folder = folder

    @classmethod
    def open(cls, url, data_dir):
        folder = Path(url) if url else Path(data_dir) / "json-sessions"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} can't be used for sessions: {error.strerror}") from None
        return cls(folder)

    @contextmanager
    def _locked(self):
        try:
            with FileLock(self.folder / ".lock"):
                yield
        except OSError as error:
            raise StoreError(f"sessions in {self.folder} can't be used: {error.strerror or error}") from None

    def _path(self, session_id):  # ids that differ in case only are files of one name on some systems
        return self.folder / f"{hashlib.sha256(session_id.encode()).hexdigest()[:32]}.json"

    def _read(self, session_id):
        try:
            raw = json.loads(self._path(session_id).read_bytes())
        except FileNotFoundError:
            raise SessionNotFound(f"there is no session {session_id}") from None
        except ValueError as error:
            raise StoreError(f"{self._path(session_id)} is damaged: {error}") from None
        return Session(**raw["session"]), [(key, _stored(item)) for key, item in raw["messages"]]

    def _write(self, session, messages):
        raw = {
            "changed": self._next_number(),
            "session": asdict(session),
            "messages": [(key, asdict(stored)) for key, stored in messages],
        }
        self._put(self._path(session.id), json.dumps(raw, ensure_ascii=False, indent=1, default=_base64))
        return session

    def _put(self, path, text):
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"half a surrogate pair isn't text that can be kept: {error.reason}") from None
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _next_number(self):
        path = self.folder / ".number"
        number = int(path.read_text()) + 1 if path.exists() else 1
        self._put(path, str(number))
        return number

    def create(self, session_id, *, model="", title=""):
        check_session_id(session_id)
        with self._locked():
            if not self._path(session_id).exists():
                self._write(Session(session_id, title, model, None, now(), now()), [])
            return self._read(session_id)[0]

    def get(self, session_id):
        with self._locked():
            return self._read(session_id)[0]

    def append(self, session_id, messages, *, parent, key):
        if not messages or not key:
            raise InvalidRequest("append needs messages and a key")
        with self._locked():
            session, there = self._read(session_id)
            done = [stored for used, stored in there if used == key]
            if done:
                return done
            if parent != session.tip:
                raise SessionConflict(f"session {session_id} was moved on by another request; read it again")
            turn = []
            for new in messages:
                above = turn[-1].id if turn else parent
                meta = _as_json(new.meta)
                turn.append(StoredMessage(self._next_number(), above, new.message, new.status, now(), meta))
            question = next((new.message.content for new in messages if new.message.role == "user"), "")
            changed = replace(
                session,
                title=session.title or title_from(question),
                tip=turn[-1].id,
                message_count=session.message_count + len(turn),
                updated_at=now(),
            )
            self._write(changed, [*there, *((key, stored) for stored in turn)])
            return turn

    def turn(self, session_id, key):
        with self._locked():
            return [stored for used, stored in self._read(session_id)[1] if used == key]

    def path(self, session_id, tip=None):
        with self._locked():
            session, messages = self._read(session_id)
        return _path(session, messages, session.tip if tip is None else tip)

    def set_tip(self, session_id, message_id):
        with self._locked():
            session, messages = self._read(session_id)
            _path(session, messages, message_id)  # raises when it isn't there
            self._write(replace(session, tip=message_id, updated_at=now()), messages)

    def update(self, session_id, *, title=None, model=None):
        changes = {name: value for name, value in (("title", title), ("model", model)) if value is not None}
        with self._locked():
            session, messages = self._read(session_id)
            return self._write(replace(session, updated_at=now(), **changes), messages)

    def _all(self):
        """All sessions with their messages, the last changed first."""
        raws = [json.loads(path.read_bytes()) for path in self.folder.glob("*.json")]
        for raw in sorted(raws, key=lambda raw: raw["changed"], reverse=True):
            yield Session(**raw["session"]), [item["message"]["content"] for _, item in raw["messages"]]

    def list_sessions(self, *, limit=50, offset=0):
        with self._locked():
            return [session for session, _ in self._all()][offset : offset + limit]

    def search(self, text, *, limit=50):
        words = text.casefold().split()
        hits = []
        with self._locked():
            for session, contents in self._all():
                for content in [*reversed(contents), session.title]:
                    if words and all(word in content.casefold() for word in words):
                        start = max(content.casefold().find(words[0]) - 40, 0)
                        hits.append((session, content[start : start + 120]))
                        break
        return hits[:limit]

    def delete(self, session_id):
        with self._locked():
            self._read(session_id)
            self._path(session_id).unlink()

    def export(self, session_id):
        with self._locked():
            return write_document(*self._read(session_id))

    def import_(self, document, session_id=None):
        content = read_document(document, session_id)
        with self._locked():
            if self._path(content.id).exists():
                raise SessionConflict(f"there is a session {content.id} already")
            messages, ids = [], []
            for part in content.messages:
                above = None if part.parent is None else ids[part.parent]
                new = part.to_new_message()
                ids.append(self._next_number())
                stored = StoredMessage(ids[-1], above, new.message, new.status, part.created_at, new.meta)
                messages.append((part.key, stored))
            tip = None if content.tip is None else ids[content.tip]
            times = content.created_at, content.updated_at
            return self._write(Session(content.id, content.title, content.model, tip, *times, len(ids)), messages)

    def close(self):
        pass


def _path(session, messages, tip):
    by_id = {stored.id: stored for _, stored in messages}
    path = []
    while tip is not None:
        if tip not in by_id:
            raise NotFound(f"session {session.id} has no message {tip}")
        path.append(by_id[tip])
        tip = by_id[tip].parent_id
    return path[::-1]


def _stored(raw):
    message = raw["message"]
    calls = tuple(ToolCall(**call) for call in message["tool_calls"])
    images = tuple(Image(**{**image, "data": decode_base64(image["data"])}) for image in message.get("images", ()))
    return StoredMessage(**{**raw, "message": Message(**{**message, "tool_calls": calls, "images": images})})


def _base64(data):
    return base64.b64encode(data).decode()


def _as_json(meta):
    try:
        return json.loads(json.dumps(meta, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"meta must hold JSON values: {error}") from None
