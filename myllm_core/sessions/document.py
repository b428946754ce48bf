"""A session as one JSON document, so that it can leave one store and enter another.

Format: ``format`` is ``myllm-session``, ``version`` 1 or 2. ``messages`` are in the order of appending; ``parent`` and
``tip`` are positions in that list (from 0) or null, so a document doesn't depend on a store's ids. ``key`` is the
idempotency key of the call that appended the message. Images of a message are its ``images``: ``data`` (base64),
``type`` and ``at``, as in ``Image``; a document that has some is of version 2, which version 1 can't read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from myllm_core.errors import InvalidRequest
from myllm_core.images import MOST_PIXELS, check_image, decode_base64, write_images
from myllm_core.session_store import NewMessage, Session, Status, StoredMessage, check_session_id
from myllm_core.types import Image, Message, Role, ToolCall

FORMAT = "myllm-session"
VERSION = 2

_T = TypeVar("_T")


def now() -> str:
    """The time as stores write it: ISO 8601 UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _as_value_error(check: Callable[[_T], object]) -> Callable[[_T], _T]:
    def checked(value: _T) -> _T:
        try:
            check(value)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return value

    return checked


def _check_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write it as 2026-01-31T12:00:00+00:00")
    return text


def _image(text: str) -> Image:
    data = decode_base64(text)
    return Image(data, check_image(data, MOST_PIXELS))


Time = Annotated[str, AfterValidator(_check_time)]
SessionId = Annotated[str, AfterValidator(_as_value_error(check_session_id))]
Position = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)  # built at the first import_


class DocumentToolCall(_Part):
    """A tool call, as in ``ToolCall``."""

    id: str
    name: str
    arguments: str


class DocumentImage(_Part):
    """An image, as in ``Image``."""

    data: Annotated[str, AfterValidator(_as_value_error(_image))]
    type: str
    at: Position = 0


class DocumentMessage(_Part):
    """A message of a document."""

    parent: Position | None
    role: Role
    content: str
    reasoning: str = ""
    tool_calls: list[DocumentToolCall] = []
    tool_call_id: str | None = None
    images: list[DocumentImage] = []
    status: Status = "complete"
    created_at: Time = Field(default_factory=now)
    meta: dict[str, JsonValue] = {}
    key: Annotated[str, Field(min_length=1)]

    def to_new_message(self) -> NewMessage:
        """The message as ``append`` takes it."""
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in self.tool_calls)
        images = tuple(replace(_image(image.data), at=image.at) for image in self.images)
        message = Message(self.role, self.content, self.reasoning, calls, self.tool_call_id, images)
        return NewMessage(message, self.status, dict(self.meta))


class SessionDocument(_Part):
    """A whole session."""

    format: Literal["myllm-session"]
    version: Literal[1, 2]
    id: SessionId
    title: str = ""
    model: str = ""
    tip: Position | None
    created_at: Time = Field(default_factory=now)
    updated_at: Time = Field(default_factory=now)
    messages: list[DocumentMessage]

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        if self.tip is not None and self.tip >= len(self.messages):
            raise ValueError(f"tip is {self.tip}, but there are only {len(self.messages)} messages")
        for position, message in enumerate(self.messages):
            if message.parent is not None and message.parent >= position:
                raise ValueError(f"messages.{position}: its parent {message.parent} doesn't come before it")
        return self


def write_document(session: Session, messages: Iterable[tuple[str, StoredMessage]]) -> dict[str, Any]:
    """The document of a session; ``messages`` are all of its tree with their keys, by rising id."""
    positions: dict[int, int] = {}
    parts = []
    for position, (key, stored) in enumerate(messages):
        positions[stored.id] = position
        message = stored.message
        parts.append(
            {
                "parent": None if stored.parent_id is None else positions[stored.parent_id],
                "role": message.role,
                "content": message.content,
                "reasoning": message.reasoning,
                "tool_calls": [
                    {"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls
                ],
                "tool_call_id": message.tool_call_id,
                **({"images": write_images(message.images)} if message.images else {}),
                "status": stored.status,
                "created_at": stored.created_at,
                "meta": stored.meta,
                "key": key,
            }
        )
    return {
        "format": FORMAT,
        "version": 2 if any("images" in part for part in parts) else 1,
        "id": session.id,
        "title": session.title,
        "model": session.model,
        "tip": None if session.tip is None else positions[session.tip],
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "messages": parts,
    }


def read_document(document: dict[str, Any], session_id: str | None = None) -> SessionDocument:
    """Check a document in depth; ``session_id`` takes the place of its own. Raises ``InvalidRequest``."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidRequest('this is no exported session: "format" must be "myllm-session"')
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InvalidRequest(
            f"this session was exported by a newer myllm (version {version}, this one reads {VERSION}): update myllm"
        )
    if session_id is not None:
        document = {**document, "id": session_id}
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the exported session is no JSON: {error}") from None
    try:
        return SessionDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"the exported session is wrong: {place + ': ' if place else ''}{reason}") from None
