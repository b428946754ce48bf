"""What documents and stream chunks of the OpenAI dialect are made of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from myllm_core import __version__
from myllm_core.chat.text import utf8_decoder
from myllm_core.errors import EngineError
from myllm_core.types import Event, Finish, PositionLogprobs, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from myllm_server.logprobs import finite, logprob


def head(prefix: str, kind: str, model: str, engine: str) -> dict[str, Any]:
    """The fields that an answer begins with, the same in all chunks of a stream.

    The fingerprint says what made it, as far as a dialect without engines can: myllm's version and the engine.
    """
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"myllm-{__version__}-{engine}",
    }


def usage(counts: Usage) -> dict[str, Any]:
    """Token counts of a whole request."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }


def finish_reason(finish: Finish) -> str:
    """Why a choice ended: ``stop``, ``length`` or ``tool_calls``. Raises the error of one that failed."""
    if finish.error:
        raise finish.error
    if finish.reason == "cancelled":
        raise EngineError("the engine ended the reply before it was done; send the request again")
    return finish.reason


def tool_call(event: ToolCallDelta) -> dict[str, Any]:
    """A piece of a tool call: id, type and name in the first of an index, then argument text."""
    about = {"id": event.id, "type": "function"} if event.id else {}
    name = {"name": event.name} if event.name else {}
    return {"index": event.index, **about, "function": {**name, "arguments": event.arguments}}


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    """Log probabilities as chats have them."""
    content = [{**logprob(one.chosen), "top_logprobs": [logprob(other) for other in one.top]} for one in positions]
    return {"content": content, "refusal": None}


class LegacyLogprobs:
    """Log probabilities as completions have them; ``offset`` characters come before the first token."""

    def __init__(self, offset: int) -> None:
        self._decoder = utf8_decoder()
        self._offset = offset

    def shape(self, positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
        """Those of the next tokens."""
        offsets = []
        for one in positions:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(one.chosen.bytes))
        return {
            "tokens": [one.chosen.token for one in positions],
            "token_logprobs": [finite(one.chosen.logprob) for one in positions],
            "top_logprobs": [
                {other.token: finite(other.logprob) for other in (*reversed(one.top), one.chosen)} for one in positions
            ],
            "text_offset": offsets,
        }


def text_of(events: Sequence[Event]) -> str:
    """The text of a whole answer."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def _positions(events: Sequence[Event]) -> list[PositionLogprobs]:
    return [one for event in events if isinstance(event, TextDelta) for one in event.logprobs]


def _tool_calls(events: Sequence[Event]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            piece = tool_call(event)
            call = calls.setdefault(piece.pop("index"), {"function": {"arguments": ""}})
            arguments = call["function"]["arguments"] + event.arguments
            call |= piece | {"function": call["function"] | piece["function"] | {"arguments": arguments}}
    return [calls[index] for index in sorted(calls)]


def chat_choice(index: int, events: Sequence[Event], logprobs: bool) -> dict[str, Any]:
    """A choice of a chat, from all its events, the last one a ``Finish``."""
    calls = _tool_calls(events)
    text = text_of(events)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if reasoning := "".join(event.text for event in events if isinstance(event, ReasoningDelta)):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(_positions(events)) if logprobs else None,
        **_end(events),
    }


def completion_choice(index: int, events: Sequence[Event], echoed: str, logprobs: bool) -> dict[str, Any]:
    """A choice of a completion, after the text that is ``echoed``."""
    return {
        "index": index,
        "text": echoed + text_of(events),
        "logprobs": LegacyLogprobs(len(echoed)).shape(_positions(events)) if logprobs else None,
        **_end(events),
    }


def _end(events: Sequence[Event]) -> dict[str, Any]:
    finish = events[-1]
    assert isinstance(finish, Finish)
    return {"finish_reason": finish_reason(finish)}
