"""What documents and lines of the Ollama dialect are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from myllm_core.errors import EngineError
from myllm_core.types import Event, Finish, PositionLogprobs, ReasoningDelta, TextDelta, ToolCallDelta
from myllm_server.logprobs import logprob

_NANO = 10**9


def now() -> str:
    """The time as this dialect writes it: RFC 3339."""
    return rfc3339(datetime.now(UTC))


def rfc3339(time: datetime) -> str:
    """A time of UTC."""
    return time.isoformat().replace("+00:00", "Z")


def done_reason(finish: Finish) -> str:
    """``stop`` or ``length``. Raises the error of a reply that failed."""
    if finish.error:
        raise finish.error
    if finish.reason == "cancelled":
        raise EngineError("the engine ended the reply before it was done; send the request again")
    return "length" if finish.reason == "length" else "stop"


def ending(finish: Finish, seconds: float) -> dict[str, Any]:
    """What the last line has; ``seconds`` is how long all of it took. Durations are in nanoseconds."""
    timings = finish.timings
    return {
        "done": True,
        "done_reason": done_reason(finish),
        "total_duration": int(seconds * _NANO),
        "load_duration": int(max(0.0, seconds - timings.prompt - timings.generation) * _NANO),
        "prompt_eval_count": finish.usage.prompt_tokens,
        "prompt_eval_duration": int(timings.prompt * _NANO),
        "eval_count": finish.usage.completion_tokens,
        "eval_duration": int(timings.generation * _NANO),
    }


def logprobs(positions: Sequence[PositionLogprobs]) -> list[dict[str, Any]]:
    """Log probabilities of tokens."""
    return [{**logprob(one.chosen), "top_logprobs": [logprob(other) for other in one.top]} for one in positions]


@dataclass
class Calls:
    """The tool calls of a reply. This dialect tells of each when it is whole."""

    _index: int | None = None
    _id: str = ""
    _name: str = ""
    _arguments: list[str] = field(default_factory=list)

    def take(self, event: Event) -> list[dict[str, Any]]:
        """The calls that are whole now that ``event`` comes."""
        if not isinstance(event, ToolCallDelta):
            return self._whole() if isinstance(event, Finish) else []
        whole = self._whole() if event.index != self._index else []
        self._index = event.index
        self._id = event.id or self._id
        self._name = event.name or self._name
        self._arguments.append(event.arguments)
        return whole

    def _whole(self) -> list[dict[str, Any]]:
        if self._index is None:
            return []
        function = {"index": self._index, "name": self._name, "arguments": _object(self._name, self._arguments)}
        call = {"id": self._id, "function": function}
        self._index, self._id, self._name, self._arguments = None, "", "", []
        return [call]


def _object(name: str, parts: list[str]) -> dict[str, Any]:
    try:
        value = json.loads("".join(parts) or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"the model called {name} with arguments that are no JSON object; ask it again")
    return value


@dataclass
class Reply:
    """A whole reply."""

    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    positions: list[PositionLogprobs] = field(default_factory=list)

    @classmethod
    def of(cls, events: Sequence[Event], finish: Finish) -> Reply:
        """The reply that these events tell."""
        reply, calls = cls(), Calls()
        for event in (*events, finish):
            if isinstance(event, TextDelta):
                reply.text += event.text
                reply.positions += event.logprobs
            elif isinstance(event, ReasoningDelta):
                reply.thinking += event.text
            reply.calls += calls.take(event)
        return reply

    def message(self) -> dict[str, Any]:
        """The message of a chat."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["thinking"] = self.thinking
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def response(self) -> dict[str, Any]:
        """The fields of a generation."""
        return {"response": self.text} | ({"thinking": self.thinking} if self.thinking else {})
