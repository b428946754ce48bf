"""What a response is made of, while it is written and when it is read again."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from myllm_core.session_store import StoredMessage
from myllm_core.types import Finish, Message, Usage

_ITEM_ID = re.compile(r"(?P<kind>msg|fc|rs)_(?P<name>[0-9a-f]{48})(_\d{1,4})?", re.ASCII)

META = "response"
"""Under this name the reply's meta has what else belongs to a response."""


def new_id(previous: str | None) -> str:
    """The id of a response: that of its session, and of its turn. One that goes on from another is of its session."""
    session = previous[5:37] if previous else uuid.uuid4().hex
    return f"resp_{session}{uuid.uuid4().hex[:16]}"


def session_of(response_id: str) -> str:
    """The session that a response is a turn of."""
    return f"resp-{response_id[5:37]}"


def response_of(item_id: str) -> tuple[str, str]:
    """The response that an item is of, and the id under which the item is kept; empty for what is no item's id.

    A reply's texts are kept as one: further messages of a response are in its first.
    """
    match = _ITEM_ID.fullmatch(item_id)
    if match is None:
        return "", ""
    return f"resp_{match['name']}", f"msg_{match['name']}_0" if match["kind"] == "msg" else item_id


class Parts:
    """Ids and shapes of a response's items; the ids are the same whenever they are made."""

    def __init__(self, response_id: str) -> None:
        self._name = response_id.removeprefix("resp_")

    def reasoning(self, text: str, status: str = "completed") -> dict[str, Any]:
        """The reasoning before an answer."""
        content = [{"type": "reasoning_text", "text": text}] if text else []
        return {"id": f"rs_{self._name}", "type": "reasoning", "summary": [], "content": content, "status": status}

    def message(self, text: str | None, status: str = "completed", number: int = 0) -> dict[str, Any]:
        """A message; None: without content yet."""
        content = [] if text is None else [text_part(text)]
        about = {"id": f"msg_{self._name}_{number}", "type": "message", "role": "assistant"}
        return {**about, "status": status, "content": content}

    def call(self, index: int, call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
        """A call of a function."""
        about = {"id": f"fc_{self._name}_{index}", "type": "function_call", "call_id": call_id}
        return {**about, "name": name, "arguments": arguments, "status": status}

    def all(self, message: Message, status: str) -> list[dict[str, Any]]:
        """The items that a stored reply comes to."""
        items = [self.reasoning(message.reasoning)] if message.reasoning else []
        if message.content or not message.tool_calls:
            items.append(self.message(message.content, status))
        calls = enumerate(message.tool_calls)
        return items + [self.call(index, call.id, call.name, call.arguments) for index, call in calls]


def text_part(text: str) -> dict[str, Any]:
    """The text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def document(response_id: str, told: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A response that has just begun; ``told`` are the request's fields, ``more`` takes the place of any."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **told,
        **more,
    }


def ending(finish: Finish) -> dict[str, Any]:
    """How a response ended, and what it took."""
    cut = finish.reason == "length"
    return {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "usage": usage(finish.usage),
    }


def usage(counts: Usage) -> dict[str, Any]:
    """Token counts as responses have them."""
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.total_tokens,
    }


def stored_document(response_id: str, turn: Sequence[StoredMessage]) -> dict[str, Any]:
    """The response that a stored turn was."""
    stored = turn[-1]
    meta = stored.meta
    cut = meta.get("finish_reason") == "length"
    status = {"complete": "incomplete" if cut else "completed", "cancelled": "cancelled", "error": "failed"}[
        stored.status
    ]
    told = dict(meta.get(META, {}))
    return document(
        response_id,
        told,
        created_at=int(datetime.fromisoformat(stored.created_at).timestamp()),
        status=status,
        incomplete_details={"reason": "max_output_tokens"} if cut else None,
        output=Parts(response_id).all(stored.message, "incomplete" if status != "completed" else status),
        usage=usage(Usage(meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0))),
    )
