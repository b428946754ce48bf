"""The rules of a conversation: what of a request is new, and what of a reply is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from myllm_core.errors import InvalidRequest, SessionConflict
from myllm_core.session_store import NewMessage, SessionStore, Status, StoredMessage
from myllm_core.types import (
    Event,
    Finish,
    FinishReason,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

_TRIES = 20  # another process may move the tip between our two calls


@dataclass(frozen=True, slots=True)
class Branch:
    """Where in a session a turn goes on, and what is kept with it.

    ``after`` is the id of the message to go on from; None: the last one. ``meta`` are JSON values that are stored with
    the reply's own.
    """

    after: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn about to be taken: the whole conversation, what of it is new, and where it goes on.

    ``key`` is what it is stored under. ``reply`` is there when it was taken before. ``meta`` is stored with the reply.
    """

    messages: tuple[Message, ...]
    new: tuple[Message, ...]
    parent: int | None
    key: str = ""
    reply: StoredMessage | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def resume_turn(store: SessionStore, session_id: str, messages: Sequence[Message], key: str) -> Turn | None:
    """The turn that was taken with this key before: with its reply or, when that was interrupted, without it.

    A reply that is taken again is stored beside the interrupted one, under a key of its own. None when there was no
    such turn. Raises ``InvalidRequest`` when it was about something else.
    """
    done = store.turn(session_id, key)
    if not done:
        return None
    asked = [stored.message for stored in done[:-1]]
    if asked and not _same(asked, messages[-len(asked) :]):
        raise InvalidRequest("this idempotency key was used for another message; use a new one for each")
    path: list[StoredMessage] = []
    attempt = key
    for number in count(1):
        if not done or done[-1].status == "complete":
            break
        path = store.path(session_id, done[-1].parent_id)
        attempt = f"{key} {number}"
        done = store.turn(session_id, attempt)
    parent = path[-1].id if path else None
    return Turn(tuple(stored.message for stored in path), (), parent, attempt, done[-1] if done else None)


def repeat_reply(stored: StoredMessage) -> Iterator[Event]:
    """The events of a reply that was stored."""
    message, meta = stored.message, stored.meta
    if message.reasoning:
        yield ReasoningDelta(message.reasoning)
    if message.content:
        yield TextDelta(message.content)
    for index, call in enumerate(message.tool_calls):
        yield ToolCallDelta(index, call.id, call.name, call.arguments)
    usage = Usage(meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0))
    reason = meta.get("finish_reason", "stop")
    yield Finish(reason, usage, seed=meta.get("seed"), engine=meta.get("engine"))


def plan_turn(path: Sequence[StoredMessage], messages: Sequence[Message], key: str) -> Turn:
    """Put a request's messages behind a stored conversation.

    Messages that begin with the whole stored conversation (clients that resend everything) bring only the rest; so do
    messages that begin with its system message. No new messages, when the last stored one awaits a reply, asks for that
    reply (again). Raises ``InvalidRequest`` when there is nothing to answer.
    """
    stored = [item.message for item in path]
    new = list(messages)
    if stored and _same(stored, new[: len(stored)]):
        new = new[len(stored) :]
    elif stored and stored[0].role == "system" and new and _same(stored[:1], new[:1]):
        new = new[1:]
    for message in new:
        _check_text(message.content)
    whole = (*stored, *new)
    if not whole or whole[-1].role in ("assistant", "system"):
        raise InvalidRequest("there is nothing to answer; the last message must come from the user (or a tool)")
    return Turn(whole, tuple(new), path[-1].id if path else None, key)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"a message has half a surrogate pair at character {error.start}, which isn't Unicode text; remove it"
        ) from None


def _same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    return list(map(_identity, one)) == list(map(_identity, other))


def _identity(message: Message) -> tuple[Any, ...]:
    # clients write arguments anew (spaces, order), but leave a call's id and name as they were
    calls = [(call.id, call.name) for call in message.tool_calls]
    images = [(image.at, image.data) for image in message.images]
    return message.role, message.content, calls, message.tool_call_id, images


class Said:
    """What a reply has said so far."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}

    def __bool__(self) -> bool:
        return bool(self._text or self._reasoning or self._calls)

    def take(self, event: Event) -> None:
        """Take an event in."""
        match event:
            case TextDelta():
                self._text.append(event.text)
            case ReasoningDelta():
                self._reasoning.append(event.text)
            case ToolCallDelta():
                call = self._calls.get(event.index, ToolCall("", "", ""))
                self._calls[event.index] = ToolCall(
                    call.id or event.id or "", call.name or event.name or "", call.arguments + event.arguments
                )

    def message(self, reason: FinishReason) -> Message:
        """The reply as a message.

        A call that the end of the reply cut is kept as text, and so is every call of a reply that was interrupted:
        nobody will answer it, and a call without a result can't be gone on from.
        """
        interrupted = reason in ("cancelled", "error")
        text, calls = list(self._text), []
        for index in sorted(self._calls):
            call = self._calls[index]
            if interrupted or not _is_object(call.arguments):
                text.append(f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}')
            else:
                calls.append(call)
        return Message("assistant", "".join(text), "".join(self._reasoning), tuple(calls))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def keep_turn(
    store: SessionStore, session_id: str, turn: Turn, reply: Message, finish: Finish, model: str
) -> list[StoredMessage]:
    """Append a turn with its reply, complete or not, durably and once per key. The session is made with its first turn.

    When somebody else moved the session on meanwhile, the turn becomes a branch beside theirs, and the tip; nothing is
    lost.
    """
    status: Status = {"cancelled": "cancelled", "error": "error"}.get(finish.reason, "complete")  # type: ignore[assignment]
    usage = finish.usage
    meta: dict[str, Any] = {
        **turn.meta,
        "model": model,
        "engine": finish.engine,
        "finish_reason": finish.reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seed": finish.seed,
    }
    if finish.context is not None and finish.context.dropped:
        meta["dropped"] = list(finish.context.dropped)
    messages = [*(NewMessage(message) for message in turn.new), NewMessage(reply, status, meta)]
    if turn.parent is None:
        store.create(session_id, model=model)
    for _ in range(_TRIES):
        try:
            return store.append(session_id, messages, parent=turn.parent, key=turn.key)
        except SessionConflict:
            store.set_tip(session_id, turn.parent)
    return store.append(session_id, messages, parent=turn.parent, key=turn.key)
